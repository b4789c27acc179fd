"""`dpads train` as one of several processes."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from dpads.cli_screen import fail, say
from dpads.errors import ConfigError, DpadsError, InputError


def join_processes(
    coordinator: str | None,
    count: int | None,
    number: int | None,
    *,
    config: Path,
    set_: Sequence[str],
) -> None:
    """Joins the other processes before anything else is computed.

    Args:
        coordinator: "host:port" of process 0.
        count: of processes.
        number: of this one.
        config: of the run.
        set_: its overrides.

    Raises:
        ConfigError: an option is missing or wrong, or the configuration is for another backend.
    """
    from dpads.backend_packages import load_backend
    from dpads.config import load_config

    if coordinator is None or count is None or number is None:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id go together: give all three, the same "
            "--coordinator and --num-processes to every process."
        )
    if not re.fullmatch(r".+:[0-9]{1,5}", coordinator):
        raise ConfigError(
            f'Expected --coordinator HOST:PORT, such as 10.0.0.1:9876, got "{coordinator}".'
        )
    if count < 1 or not 0 <= number < count:
        raise ConfigError(
            f"Expected --process-id from 0 to {count - 1} for --num-processes {count}, got {number}."
        )
    parsed = load_config(config, set_)
    if parsed.training.backend != "jax":
        raise ConfigError(
            f'Expected backend = "jax" for several processes, got "{parsed.training.backend}". Set it in '
            "[training], or give --set training.backend=jax."
        )
    load_backend(parsed)
    if count > 1:
        from dpads.jax_hosts import START_SECONDS, join

        say(
            f"Process {number} of {count}: waiting for the others at {coordinator}, {START_SECONDS} "
            "seconds at most."
        )
        join(coordinator, count, number)


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
    except (DpadsError, OSError) as error:
        fail(error)
        _end(2 if isinstance(error, InputError) else 1)
    finally:
        if not whole:
            traceback.print_exc()
            _end(1)


def _end(code: int) -> None:
    """Ends the process without waiting for anybody."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
