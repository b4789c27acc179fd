"""A trainer that trains for the clock: its batches are made up, and no log is needed."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.batch import BagIds, SparseBatch
from dpads.models.base import Description
from dpads.plan import PrivacySpec, resolve
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer, TrainingSettings

ZIPF: Final = 1.1
IDS_PER_BAG: Final = 5
BLOCK: Final = 4  # steps of one variant in a row; the first meets another's caches and is not timed
WARM_TURNS: Final = 2
LEAST_TURNS: Final = 3
MOST_TURNS: Final = 200


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
        self._in_jax = settings.backend == "jax"
        self._feed = _Feed(schema, num_examples)
        # The trainer asks a store for what `_Feed` has, and for nothing else.
        store = cast(ExampleStore, self._feed)
        self._trainer = Trainer(store, description, plan, settings, Performance(), Ledger())

    def seconds(self, batches: list[SparseBatch]) -> float:
        """The time of a step, the mean over all but the first."""
        self._step(batches[0])
        self._wait()
        begin = time.perf_counter()
        for batch in batches[1:]:
            self._step(batch)
        self._wait()
        return (time.perf_counter() - begin) / (len(batches) - 1)

    def finish(self) -> None:
        """Brings every row up to date, as a run does at its end."""
        self._trainer.finish()

    def _wait(self) -> None:
        """Steps in JAX return before they are done."""
        if self._in_jax:
            from dpads.jax_devices import wait

            wait()

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
        self.part = (0, 1)
        self.batch: SparseBatch | None = None

    def check_labels(self) -> None:
        """Made-up batches have labels."""

    def border_users(self) -> None:
        """They have no users."""

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


def step_medians(
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
            ids[:, column] = zipf_ids(rng, rows[field.table], size)
        bags = {
            field.name: BagIds(
                zipf_ids(rng, rows[field.table], size * IDS_PER_BAG),
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


def zipf_ids(rng: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """Ids below `rows` whose chance falls as rank^-1.1."""
    tail = 1.0 - (rows + 1.0) ** (1.0 - ZIPF)
    ranks: NDArray[np.float64] = (1.0 - rng.random(count) * tail) ** (1.0 / (1.0 - ZIPF))
    ids: NDArray[np.int64] = np.minimum(ranks.astype(np.int64) - 1, rows - 1)
    return ids
