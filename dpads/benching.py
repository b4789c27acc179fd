"""A short measurement of training steps on this machine, on made-up batches.

A step is drawing the Poisson batch, clipping, noise and both updates; reading examples from a disk is not
in it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from dpads.benching_trainer import TimedTrainer, made_up_batches, step_medians
from dpads.errors import ConfigError
from dpads.kernels.workers import available_cores
from dpads.models.base import Description
from dpads.resources import MemoryEstimate, MemoryWords, check_memory, estimate_memory
from dpads.schema import FeatureSchema
from dpads.training import TrainingSettings

if TYPE_CHECKING:
    from dpads.jax_devices import DeviceKind

FIELDS: Final = 26  # as in Criteo's logs
NUMBERS: Final = 13
EXAMPLES: Final = 37_000_000  # a public size that gives realistic sampling probabilities


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """How long a training step takes.

    Attributes:
        rows: of all tables together.
        expected_batch_size: examples in a batch on average.
        private_ms: milliseconds of a private step, the median.
        without_noise_ms: likewise without noise and clipping.
        memory: what training at this size takes.
    """

    rows: int
    expected_batch_size: int
    private_ms: float
    without_noise_ms: float
    memory: MemoryEstimate

    @property
    def examples_per_second(self) -> float:
        """Examples that private training takes in a second."""
        return 1e3 * self.expected_batch_size / self.private_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": self.rows,
            "expected_batch_size": self.expected_batch_size,
            "private_ms": self.private_ms,
            "without_noise_ms": self.without_noise_ms,
            "examples_per_second": self.examples_per_second,
            "memory_bytes": self.memory.to_dict(),
        }


def criteo_like(rows: int) -> FeatureSchema:
    """The columns of a Criteo log, with `rows` table rows in all.

    Raises:
        ConfigError: there are too few for 26 tables.
    """
    if rows < 2 * FIELDS:
        raise ConfigError(
            f"Expected at least {2 * FIELDS} rows in all, got {rows}: {FIELDS} tables share them."
        )
    return FeatureSchema(
        task="ctr",
        label="label",
        numeric=[f"I{i + 1}" for i in range(NUMBERS)],
        categorical=[f"C{i + 1}" for i in range(FIELDS)],
        buckets=rows // FIELDS,
    )


def compare_steps(
    description: Description,
    schema: FeatureSchema,
    *,
    expected_batch_size: int,
    seconds: float,
    backend: str = "torch",
) -> StepTimes:
    """Times private steps beside the same steps without noise and clipping, in turn.

    Args:
        description: the model.
        schema: the columns.
        expected_batch_size: examples in a batch.
        seconds: how long to measure, beside building the models.
        backend: "torch" or "jax".

    Raises:
        ConfigError: a value is out of range, or the model will not fit into memory.
        MissingDependencyError: the backend is not installed.
    """
    memory = estimate_memory(
        description, schema, expected_batch_size=expected_batch_size, backend=backend
    )

    def timed(noise_multiplier: float) -> TimedTrainer:
        return TimedTrainer(
            description,
            schema,
            TrainingSettings(backend=backend),
            expected_batch_size=expected_batch_size,
            num_examples=max(EXAMPLES, expected_batch_size),
            noise_multiplier=noise_multiplier,
        )

    begin = time.monotonic()
    variants = {"private": timed(1.0), "without noise": timed(0.0)}
    medians = step_medians(variants, made_up_batches(schema, expected_batch_size), begin + seconds)
    return StepTimes(
        rows=sum(group.num_rows for group in description.layout(schema).groups),
        expected_batch_size=expected_batch_size,
        private_ms=1e3 * medians["private"],
        without_noise_ms=1e3 * medians["without noise"],
        memory=memory,
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on, and what JAX found there, where it is installed."""
    installed = importlib.util.find_spec("jax") is not None
    names = ("torch", "numba", "numpy", *(("jax",) if installed else ()))
    return {
        "processor": platform.machine(),
        "cores": available_cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "devices": [kind.to_dict() for kind in _devices()] if installed else [],
    }


def _devices() -> list[DeviceKind]:
    """The devices that JAX found."""
    from dpads.jax_devices import found_devices

    return found_devices()


def check_room(
    description: Description, schema: FeatureSchema, expected_batch_size: int, backend: str
) -> None:
    """Refuses a size at which two models, private and without noise, will not fit beside each other.

    Raises:
        ConfigError: what `compare_steps` needs exceeds what this process can have.
    """
    one = estimate_memory(
        description, schema, expected_batch_size=expected_batch_size, backend=backend
    )
    # Only the private one keeps a history.
    doubled = {name: 2 * getattr(one, name) for name in ("tables", "optimizer", "batch", "device")}
    rows = sum(group.num_rows for group in description.layout(schema).groups)
    words = MemoryWords(
        wanted="two models, which are measured beside each other, to fit",
        got=f"{rows:,} rows at batch size {expected_batch_size:,}, which need",
        tables="Use fewer --rows or a smaller --embedding-dim.",
        batch="Use a smaller --batch-size.",
    )
    check_memory(dataclasses.replace(one, **doubled), words=words)


def measure_grid(
    description: Description,
    rows: list[int],
    batch_sizes: list[int],
    *,
    seconds: float,
    on_cell: Callable[[int, int], None],
    backend: str = "torch",
) -> list[StepTimes]:
    """Times steps at every number of rows and batch size.

    Args:
        description: the model.
        rows: of all tables together.
        batch_sizes: examples in a batch.
        seconds: for all of it, about.
        on_cell: called with rows and batch size before each is measured.
        backend: "torch" or "jax", which compiles programs for every cell before it is measured.

    Raises:
        ConfigError: a value is out of range, or two models will not fit into memory.
        MissingDependencyError: the backend is not installed.

    Guarantees:
        - All sizes are checked before the first is measured.
    """
    for size in batch_sizes:
        if size < 1:
            raise ConfigError(f"Expected a batch size of at least 1, got {size}.")
    schemas = [criteo_like(number) for number in rows]
    for schema in schemas:
        for size in batch_sizes:
            check_room(description, schema, size, backend)
    share = seconds / (len(schemas) * len(batch_sizes))
    cells = []
    for schema, number in zip(schemas, rows, strict=True):
        for size in batch_sizes:
            on_cell(number, size)
            cells.append(
                compare_steps(
                    description, schema, expected_batch_size=size, seconds=share, backend=backend
                )
            )
    return cells
