"""`dpads train` as one of several processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dpads.cli_screen import fail, say
from dpads.errors import ConfigError, DpadsError, InputError

if TYPE_CHECKING:
    from dpads.config import Config


# Lines of JAX's own, which would stand between ours: read by its libraries when they are loaded.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE"}


def join_processes(
    coordinator: str | None,
    count: int | None,
    number: int | None,
    *,
    config: Path,
    set_: Sequence[str],
    out: Path | None,
    resume: bool,
    physical_batch_size: int | None,
) -> None:
    """Joins the other processes, once everything that one process can see is in order.

    Args:
        coordinator: "host:port" of process 0.
        count: of processes.
        number: of this one.
        config: of the run.
        set_: its overrides.
        out: the run's folder, which process 0 writes.
        resume: whether it goes on with an interrupted run.
        physical_batch_size: examples in memory at a time.

    Raises:
        ConfigError: an option is missing or wrong, or the configuration is for another backend.
        StoreError: this process cannot open its shards.
        ProcessLostError: the others did not come.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from dpads.backend_packages import load_backend
    from dpads.config import load_config

    if coordinator is None or count is None or number is None:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id go together: give all three, the same "
            "--coordinator and --num-processes to every process."
        )
    if count < 1:
        raise ConfigError(f"Expected --num-processes of 1 or more, got {count}.")
    if not 0 <= number < count:
        raise ConfigError(
            f"Expected --process-id from 0 to {count - 1} for --num-processes {count}, got {number}."
        )
    bind = listening_address(coordinator, number)
    parsed = load_config(config, set_)
    if parsed.training.backend != "jax":
        raise ConfigError(
            f'Expected backend = "jax" for several processes, got "{parsed.training.backend}". Set it in '
            "[training], or give --set training.backend=jax."
        )
    load_backend(parsed)
    if number == 0 and out is not None:
        _check_out(parsed, out, resume)
    if count > 1:
        if physical_batch_size is not None:
            raise ConfigError(
                f"--physical-batch-size is for one process: {count} of them hold a part of each batch "
                "already. Leave it out."
            )
        _check_shards(parsed, (number, count))
        say_when_aborted()
        from dpads.jax_hosts import START_SECONDS, join

        say(
            f"Process {number} of {count}: waiting for the others at {coordinator}, {START_SECONDS} "
            "seconds at most."
        )
        join(coordinator, bind, count, number)


def listening_address(coordinator: str, number: int) -> str | None:
    """Where process 0 listens: at the address that the others are given and at no other, if it has it.

    Args:
        coordinator: "host:port".
        number: of this process.

    Returns:
        "address:port"; None in other processes, where the address leads to this machine but is not its own,
        as behind a gateway, and where its name means this machine alone to itself and another address to
        others.

    Raises:
        ConfigError: it is no address, nobody knows the host, or the port is taken.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"Expected --coordinator HOST:PORT with a port from 1 to 65535, such as 10.0.0.1:9876, got "
            f'"{coordinator}".'
        )
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f'--coordinator: nobody here knows the host "{host}" ({error.strerror}). Give the name or the '
            "address of the machine of process 0, and its port, such as 10.0.0.1:9876."
        ) from None
    if number > 0:
        return None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None
            raise ConfigError(
                f"--coordinator: process 0 cannot listen at {coordinator} ({error.strerror}). Give a port "
                "that is free on its machine to all processes."
            ) from None
    loopback = ip_address(str(address[0]).partition("%")[0]).is_loopback
    if loopback and host not in ("localhost", f"[{address[0]}]", address[0]):
        return None
    own = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
    return f"{own}:{port}"


def _check_out(config: Config, out: Path, resume: bool) -> None:
    """Refuses a folder that process 0 could not write to, before it makes the others wait."""
    from dpads.run_files import check_free
    from dpads.run_training import interrupted

    if resume:
        interrupted(config, out)
    else:
        check_free(out)


def _check_shards(config: Config, part: tuple[int, int]) -> None:
    """Refuses shards that this process could not train on, before it makes the others wait."""
    from dpads.run_data import open_rows

    store = open_rows(config.data.train, config.schema, Path(), part=part)
    store.check_labels()


@contextmanager
def ending_for_all() -> Iterator[None]:
    """Ends this process at once where anything fails, so that the others notice and stop too.

    An ordinary exit would wait for the others, which wait for this one.
    """
    whole = False
    try:
        yield
        whole = True
    except typer.Exit as end:
        _end(end.exit_code)
    except KeyboardInterrupt:
        say("Interrupted before training began: nothing was changed.")
        _end(1)
    except (DpadsError, OSError) as error:
        fail(error)
        _end(2 if isinstance(error, InputError) else 1)
    finally:
        if not whole:
            traceback.print_exc()
            _end(1)


def say_when_aborted() -> None:
    """Says what to do, and ends with exit code 1, where JAX aborts: as it does where another process hangs.

    The handler is compiled: Python is not asked then.
    """
    import ctypes

    from numba import cfunc, types

    from dpads.jax_hosts import GO_ON

    text = (
        "error: JAX has ended this process: another one has stopped or hung, or its machine cannot be "
        f"reached. {GO_ON}\n"
    )
    library: Any = ctypes.CDLL(None)
    write, leave = library.write, library._exit
    write.argtypes, write.restype = (
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t],
        ctypes.c_ssize_t,
    )
    leave.argtypes, leave.restype = [ctypes.c_int], None
    encoded = ctypes.create_string_buffer(text.encode())
    address, length = ctypes.addressof(encoded), len(encoded.value)

    @cfunc(types.void(types.int32))
    def handler(_: int) -> None:
        write(2, address, length)
        leave(1)

    _KEPT.extend([encoded, handler])
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(int(signal.SIGABRT), handler.address)


_KEPT: list[Any] = []  # what the handler reads, for as long as the process lives


def _end(code: int) -> None:
    """Ends the process without waiting for anybody."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
