"""Processes and devices that JAX knows: a run's arrays lie on all of them in one row.

Tables are cut into blocks of rows, a block a device; tower parameters are on every device. A process joins
the others by `jax.distributed.initialize` before anything else is computed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from dpads.errors import ConfigError, ProcessLostError
from dpads.hosts import ALONE, Hosts

AXIS = "devices"
# JAX has no types for these.
_spec: Any = PartitionSpec
_psum_scatter: Any = lax.psum_scatter
_psum: Any = lax.psum
_config: Any = jax.config
_global_array: Any = jax.make_array_from_process_local_data
CUT, WHOLE = _spec(AXIS), _spec()
HEARTBEAT_SECONDS = 30
GO_ON = (
    "Start all of them again; where process 0 left a folder RUN.partial, with --resume, and training goes on "
    "from its last checkpoint."
)
START_SECONDS = 300

T = TypeVar("T")


@contextmanager
def noticing_losses(count: int) -> Iterator[None]:
    """Says in words that another process has gone, where it is that what a computation failed of."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # JAX has no type for it
        if count == 1 or isinstance(error, ProcessLostError):
            raise
        raise ProcessLostError(
            "A computation with the other processes failed: one of them has stopped or cannot be reached, "
            f"and its own output says why. {GO_ON} ({str(error).splitlines()[0][:200]})"
        ) from error


class JaxHosts(Hosts):
    """The processes that `jax.distributed` has brought together."""

    def __init__(self) -> None:
        self.number, self.count = jax.process_index(), jax.process_count()
        devices = Counter(device.process_index for device in jax.devices())
        if len(set(devices.values())) > 1:
            raise ConfigError(
                "Expected the same number of devices in every process, got "
                f"{', '.join(str(devices[i]) for i in range(self.count))}. Start as many processes on a "
                "machine as give each the same, or hide devices (CUDA_VISIBLE_DEVICES)."
            )

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """As bytes, so that no type is narrowed on the way."""
        values = np.ascontiguousarray(values)
        if values.size == 0:
            return np.empty((self.count, *values.shape), values.dtype)
        flat = np.frombuffer(values.tobytes(), np.uint8)
        with noticing_losses(self.count):
            found = np.asarray(multihost_utils.process_allgather(flat))
        return np.frombuffer(found.tobytes(), values.dtype).reshape(self.count, *values.shape)

    def of_first(self, data: bytes) -> bytes:
        """Broadcast from process 0."""
        size = int(self.gather(np.array([len(data)], np.int64))[0, 0])
        own = np.zeros(size, np.uint8)
        if self.is_first:
            own[:] = np.frombuffer(data, np.uint8)
        if size == 0:
            return b""
        with noticing_losses(self.count):
            found = multihost_utils.broadcast_one_to_all(own, is_source=self.is_first)
            return np.asarray(found, np.uint8).tobytes()


def found_hosts() -> Hosts:
    """The processes that JAX knows of."""
    return ALONE if jax.process_count() == 1 else JaxHosts()


def join(coordinator: str, bind: str | None, count: int, number: int) -> None:
    """Joins the other processes of a run, and waits for all of them.

    Args:
        coordinator: "host:port" of process 0.
        bind: "address:port" that process 0 listens at; None for all of its addresses.
        count: of processes.
        number: of this one.

    Raises:
        ProcessLostError: not all of them came in time.
        ConfigError: process 0 expects another number of them.
    """
    _config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM to itself
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                number,
                coordinator_bind_address=bind,
                initialization_timeout=2
                * START_SECONDS,  # JAX would end the process without a word
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except Exception as error:  # noqa: BLE001 (JAX has no type for it)
            failed.append(error)

    # in a thread of its own: a call that waits in JAX's code would not let Ctrl-C through
    waiting = Thread(target=initialize, daemon=True)
    waiting.start()
    end = time.monotonic() + START_SECONDS
    while waiting.is_alive() and time.monotonic() < end:
        waiting.join(0.2)
    if failed:
        raise ProcessLostError(
            f"Process {number} could not join the others at {coordinator}: {failed[0]}"
        ) from failed[0]
    if waiting.is_alive():
        raise ProcessLostError(
            f"The {count} processes did not meet at {coordinator} within {START_SECONDS} seconds. Start the "
            f"command once for each --process-id from 0 to {count - 1}, with one --coordinator and one "
            "--num-processes, and see that all machines reach process 0 there."
        )
    if jax.process_count() != count:
        raise ConfigError(
            f"Expected one --num-processes in all processes, got {count} here and {jax.process_count()} "
            "in process 0. Give all of them the same."
        )


@dataclass(frozen=True)
class Axis:
    """What the devices do with each other's numbers inside a step; one device does nothing.

    Attributes:
        devices: their number.
    """

    devices: int

    def all_rows(self, own: jax.Array) -> jax.Array:
        """Every device's rows, one device after another."""
        return own if self.devices == 1 else lax.all_gather(own, AXIS, tiled=True)

    def own_rows(self, sums: jax.Array) -> jax.Array:
        """This device's part of rows that are summed over all devices."""
        if self.devices == 1:
            return sums
        own: jax.Array = _psum_scatter(sums, AXIS, scatter_dimension=0, tiled=True)
        return own

    def total(self, sums: jax.Array) -> jax.Array:
        """The sum over all devices."""
        total: jax.Array = sums if self.devices == 1 else _psum(sums, AXIS)
        return total

    def first_row(self, rows: int) -> jax.Array | int:
        """The number of a table's first row here, int64, where every device has so many."""
        return 0 if self.devices == 1 else lax.axis_index(AXIS).astype(jnp.int64) * rows


class Devices:
    """All devices of all processes in one row, those of a process side by side.

    Attributes:
        count: of devices.
        first: the number of this process' first one.
        local: how many this process has.
        hosts: of processes.
    """

    def __init__(self, hosts: Hosts) -> None:
        found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        own = [i for i, device in enumerate(found) if device.process_index == jax.process_index()]
        self.count, self.first, self.local, self.hosts = len(found), own[0], len(own), hosts
        self._mesh = Mesh(np.array(found), (AXIS,))

    @property
    def axis(self) -> Axis:
        """What they do with each other's numbers."""
        return Axis(self.count)

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """The part for this process' devices of rows that are cut evenly."""
        size = len(values) // self.count
        return values[self.first * size : (self.first + self.local) * size]

    def cut(self, own: NDArray[Any]) -> jax.Array:
        """An array cut along its first axis, from the part for this process' devices."""
        return self._laid_out(own, CUT)

    def whole(self, values: NDArray[Any]) -> jax.Array:
        """An array that every device has, the same in every process."""
        return self._laid_out(values, WHOLE)

    def _laid_out(self, values: NDArray[Any], spec: Any) -> jax.Array:
        """An array of all devices, from what this process has of it."""
        if self.count == 1:
            return jnp.array(values)
        array: jax.Array = _global_array(NamedSharding(self._mesh, spec), values)
        return array

    def fetch(self, array: jax.Array) -> NDArray[Any]:
        """All of an array, in every process."""
        with noticing_losses(self.hosts.count):
            if array.is_fully_addressable or array.is_fully_replicated:
                return np.asarray(array)
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    def compiled(
        self,
        function: Callable[..., T],
        in_specs: tuple[Any, ...],
        out_specs: Any,
        *,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., T]:
        """A function of arrays that all devices compute together.

        Args:
            function: of what each device has.
            in_specs: CUT or WHOLE for each argument, or such a tree.
            out_specs: likewise of the result.
            donate: numbers of the arguments whose memory is used again.
        """
        if self.count > 1:
            function = jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=in_specs,
                out_specs=out_specs,
                check_vma=False,
            )
        return jax.jit(function, donate_argnums=donate)
