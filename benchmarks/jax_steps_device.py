"""What a GPU itself tells about the steps that it took: how long it was busy, and of how much bandwidth."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

COPIED: Final = 1 << 30  # bytes of the array whose copy tells the bandwidth
COPIES: Final = 20


@contextmanager
def device_time(extra: dict[str, Any]) -> Iterator[None]:
    """Traces what runs inside; notes milliseconds that the device was busy, and bytes a second of a copy."""
    import jax

    if jax.default_backend() == "cpu":
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        spans = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    extra["busy_ms"] = 1e-6 * length_of_union(spans) / extra["steps"]
    extra["device"] = jax.devices()[0].device_kind
    extra["copy_bytes_per_second"] = copy_speed()


def length_of_union(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the spans lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def copy_speed() -> float:
    """Bytes read and written a second by adding one to a large array in place."""
    import jax
    import jax.numpy as jnp

    add = jax.jit(lambda values: values + 1.0, donate_argnums=0)
    values = add(jnp.zeros(COPIED // 4, jnp.float32)).block_until_ready()
    begin = time.perf_counter()
    for _ in range(COPIES):
        values = add(values)
    values.block_until_ready()
    return 2.0 * COPIED * COPIES / (time.perf_counter() - begin)
