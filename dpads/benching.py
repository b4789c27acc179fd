"""A short measurement of training steps on this machine, on made-up batches.

A step is drawing the Poisson batch, clipping, noise and both updates; reading examples from a disk is not
in it.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.batch import BagIds, SparseBatch
from dpads.errors import ConfigError
from dpads.kernels.workers import available_cores
from dpads.models.base import Description
from dpads.plan import PrivacySpec, resolve
from dpads.resources import MemoryEstimate, estimate_memory
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer, TrainingSettings

FIELDS: Final = 26  # as in Criteo's logs
NUMBERS: Final = 13
EXAMPLES: Final = 37_000_000  # a public size that gives realistic sampling probabilities
ZIPF: Final = 1.1
IDS_PER_BAG: Final = 5
BLOCK: Final = 4  # steps of one variant in a row; the first meets another's caches and is not timed
WARM_TURNS: Final = 2
LEAST_TURNS: Final = 3
MOST_TURNS: Final = 200
LARGEST_SAMPLE: Final = 2**28  # bytes of tables beyond which smaller ones stand in for them


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
    description: Description, schema: FeatureSchema, *, expected_batch_size: int, seconds: float
) -> StepTimes:
    """Times private steps beside the same steps without noise and clipping, in turn.

    Args:
        description: the model.
        schema: the columns.
        expected_batch_size: examples in a batch.
        seconds: how long to measure, beside building the models.

    Raises:
        ConfigError: a value is out of range, or the model will not fit into memory.
    """
    memory = estimate_memory(description, schema, expected_batch_size=expected_batch_size)

    def timed(noise_multiplier: float) -> TimedTrainer:
        return TimedTrainer(
            description,
            schema,
            TrainingSettings(),
            expected_batch_size=expected_batch_size,
            num_examples=max(EXAMPLES, expected_batch_size),
            noise_multiplier=noise_multiplier,
        )

    begin = time.monotonic()
    variants = {"private": timed(1.0), "without noise": timed(0.0)}
    medians = _medians(variants, made_up_batches(schema, expected_batch_size), begin + seconds)
    return StepTimes(
        rows=sum(group.num_rows for group in description.layout(schema).groups),
        expected_batch_size=expected_batch_size,
        private_ms=1e3 * medians["private"],
        without_noise_ms=1e3 * medians["without noise"],
        memory=memory,
    )


def private_step_seconds(
    description: Description,
    schema: FeatureSchema,
    settings: TrainingSettings,
    *,
    expected_batch_size: int,
    num_examples: int,
    noise_multiplier: float,
    l2_clip_norm: float,
    seconds: float,
) -> float | None:
    """The median time of a private step; large tables are measured by smaller ones.

    Args:
        description: the model.
        schema: the columns.
        settings: optimizers and table noise.
        expected_batch_size: examples in a batch.
        num_examples: how many a batch is drawn from.
        noise_multiplier: of the plan.
        l2_clip_norm: of the plan.
        seconds: how long to measure, beside building the model.

    Returns:
        Seconds, or None where no smaller tables can stand in: under dense noise the size decides, and
        embedding_dim = "auto" makes smaller tables narrower.
    """
    sample = sampled_schema(description, schema, settings.table_noise)
    if sample is None:
        return None
    begin = time.monotonic()
    trainer = TimedTrainer(
        description,
        sample,
        settings,
        expected_batch_size=expected_batch_size,
        num_examples=num_examples,
        noise_multiplier=noise_multiplier,
        l2_clip_norm=l2_clip_norm,
    )
    batches = made_up_batches(sample, expected_batch_size)
    return _medians({"private": trainer}, batches, begin + seconds)["private"]


def sampled_schema(
    description: Description, schema: FeatureSchema, table_noise: str
) -> FeatureSchema | None:
    """The schema, its buckets scaled down where the tables are large; None where that changes the step."""

    def table_bytes(at: FeatureSchema) -> int:
        return sum(4 * group.num_rows * group.dim for group in description.layout(at).groups)

    whole = table_bytes(schema)
    if whole <= LARGEST_SAMPLE:
        return schema
    scaled = {
        name: max(min(rows, 1000), rows * LARGEST_SAMPLE // whole)
        for name, rows in schema.table_rows.items()
    }
    smaller = replace(schema, buckets=scaled)
    same_tower = description.layout(smaller).width == description.layout(schema).width
    return smaller if same_tower and table_noise == "lazy" else None


class TimedTrainer:
    """A trainer whose store hands out made-up batches.

    Args:
        description: the model.
        schema: the columns.
        settings: optimizers and table noise.
        expected_batch_size: examples in a batch.
        num_examples: how many a batch is drawn from, at least the batch.
        noise_multiplier: 0 for neither noise nor clipping.
        l2_clip_norm: the clip norm under noise.
    """

    def __init__(
        self,
        description: Description,
        schema: FeatureSchema,
        settings: TrainingSettings,
        *,
        expected_batch_size: int,
        num_examples: int,
        noise_multiplier: float,
        l2_clip_norm: float = 1.0,
    ) -> None:
        spec = PrivacySpec(
            noise_multiplier=noise_multiplier,
            delta=1e-8,
            sampling_prob=expected_batch_size / num_examples,
            iterations=(WARM_TURNS + MOST_TURNS) * BLOCK,
        )
        plan = resolve(
            spec,
            expected_batch_size=expected_batch_size,
            epochs=None,
            l2_clip_norm=l2_clip_norm if noise_multiplier else math.inf,
        )
        self._feed = _Feed(schema, num_examples)
        # The trainer asks a store for what `_Feed` has, and for nothing else.
        store = cast(ExampleStore, self._feed)
        self._trainer = Trainer(store, description, plan, settings, Performance(), Ledger())

    def seconds(self, batches: list[SparseBatch]) -> float:
        """The time of a step, the mean over all but the first."""
        self._step(batches[0])
        begin = time.perf_counter()
        for batch in batches[1:]:
            self._step(batch)
        return (time.perf_counter() - begin) / (len(batches) - 1)

    def _step(self, batch: SparseBatch) -> None:
        """One iteration; the batch is read ahead for the next one."""
        self._feed.batch = batch
        self._trainer.step()


class _Feed:
    """Stands in for a store: hands out the batch that it was given."""

    def __init__(self, schema: FeatureSchema, num_examples: int) -> None:
        self.schema = schema
        self.num_examples = num_examples
        self.fingerprint = "made up"
        self.batch: SparseBatch | None = None

    def check_labels(self) -> None:
        """Made-up batches have labels."""

    def read(self, rows: NDArray[np.int64]) -> SparseBatch:
        """As many examples as the draw has: those of the turn, the first ones again beyond their number."""
        assert self.batch is not None
        pick = np.arange(len(rows)) % self.batch.num_examples
        bags = {name: _picked(bag, pick) for name, bag in self.batch.bags.items()}
        return dataclasses.replace(
            self.batch,
            scalar_ids=self.batch.scalar_ids[pick],
            bags=bags,
            dense=self.batch.dense[pick],
            labels=self.batch.labels[pick],
            weights=None if self.batch.weights is None else self.batch.weights[pick],
            exposure=None if self.batch.exposure is None else self.batch.exposure[pick],
        )


def _picked(bag: BagIds, pick: NDArray[np.int64]) -> BagIds:
    """The lists of some examples."""
    lengths = np.diff(bag.offsets)[pick]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    at = np.repeat(bag.offsets[:-1][pick] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return BagIds(bag.values[at], offsets, None if bag.weights is None else bag.weights[at])


def _medians(
    variants: Mapping[str, TimedTrainer], batches: Iterator[SparseBatch], until: float
) -> dict[str, float]:
    """Median seconds of a step of each variant; they take turns, each in both orders."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(WARM_TURNS + MOST_TURNS):
        if turn >= WARM_TURNS + LEAST_TURNS and time.monotonic() >= until:
            break
        block = [next(batches) for _ in range(BLOCK)]
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            seconds = variants[name].seconds(block)
            if turn >= WARM_TURNS:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def made_up_batches(schema: FeatureSchema, size: int) -> Iterator[SparseBatch]:
    """Batches that never repeat: ids from a Zipf law, five in a list, 3 % positive labels."""
    rng = np.random.default_rng(0)
    rows = schema.table_rows
    scalars = [field for field in schema.fields if not field.is_bag]
    lists = [field for field in schema.fields if field.is_bag]
    while True:
        ids = np.empty((size, len(scalars)), np.int32)
        for column, field in enumerate(scalars):
            ids[:, column] = _zipf(rng, rows[field.table], size)
        bags = {
            field.name: BagIds(
                _zipf(rng, rows[field.table], size * IDS_PER_BAG),
                np.arange(size + 1) * IDS_PER_BAG,
                np.ones(size * IDS_PER_BAG, np.float32) if field.weights else None,
            )
            for field in lists
        }
        ones = np.ones(size, np.float32)
        yield SparseBatch(
            field_names=tuple(field.name for field in scalars),
            scalar_ids=ids,
            bags=bags,
            dense=rng.standard_normal((size, len(schema.numeric)), np.float32),
            labels=(rng.random(size) < 0.03).astype(np.float32),
            weights=ones if schema.weight else None,
            exposure=ones if schema.exposure else None,
        )


def _zipf(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """Ids below `rows` whose chance falls as rank^-1.1."""
    tail = 1.0 - (rows + 1.0) ** (1.0 - ZIPF)
    ranks: NDArray[np.float64] = (1.0 - rng.random(count) * tail) ** (1.0 / (1.0 - ZIPF))
    ids: NDArray[np.int64] = np.minimum(ranks.astype(np.int64) - 1, rows - 1)
    return ids


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import version

    return {
        "processor": platform.machine(),
        "cores": available_cores(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "numpy")},
    }


def measure_grid(
    description: Description,
    rows: list[int],
    batch_sizes: list[int],
    *,
    seconds: float,
    on_cell: Callable[[int, int], None],
) -> list[StepTimes]:
    """Times steps at every number of rows and batch size.

    Args:
        description: the model.
        rows: of all tables together.
        batch_sizes: examples in a batch.
        seconds: for all of it, about.
        on_cell: called with rows and batch size before each is measured.

    Raises:
        ConfigError: a value is out of range, or a model will not fit into memory.
    """
    for size in batch_sizes:
        if size < 1:
            raise ConfigError(f"Expected a batch size of at least 1, got {size}.")
    schemas = [criteo_like(number) for number in rows]
    share = seconds / (len(schemas) * len(batch_sizes))
    cells = []
    for schema, number in zip(schemas, rows, strict=True):
        for size in batch_sizes:
            on_cell(number, size)
            cells.append(
                compare_steps(description, schema, expected_batch_size=size, seconds=share)
            )
    return cells
