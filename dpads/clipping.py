"""Per-unit clipped gradients: what the mechanism adds noise to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.errors import ConfigError, DataError
from dpads.kernels import clip
from dpads.kernels.lookup import pool, start_features
from dpads.kernels.merge import SortedPlaces, like, merge_runs, sort_places
from dpads.kernels.workers import Task, get_workers, over
from dpads.models.base import Model, check_backend
from dpads.models.gradients import ChunkGradients, DenseSums
from dpads.rounding import CHUNK, LOWEST_FLOOR
from dpads.row_sums import KnownSums, PlacedSums, Reads, RowSums, batch_reads

CHUNK_STEP = 64
SUMMED_AT_A_TIME = 1 << 19
SORTED_AT_A_TIME = 1 << 15
_NO_GROUPS = np.empty(0, np.int64)


@dataclass(frozen=True)
class ClippedSum:
    """The sum over units of clipped gradients; secret until noise is added.

    There is no arithmetic on it in public: a `NoiseMechanism` takes the tower's part, a `TableMechanism`
    the tables' part.

    Attributes:
        dense: {parameter: float64 array}.
        groups: {group: RowSums}.
        l2_clip_norm: the bound on one unit's gradient over all parameters jointly.
    """

    dense: Mapping[str, NDArray[np.float64]]
    groups: Mapping[str, RowSums]
    l2_clip_norm: float


@dataclass(frozen=True)
class ClippedGradients:
    """Clipped gradients of one batch, for tests and research; secret, not noised.

    Attributes:
        norms: float64[U], the norm of each unit's full gradient before clipping, infinity where it is
            not finite.
        dense: {parameter: float32 array}, sums of clipped gradients of the tower.
        tables: {table: (row_ids int64[k], values float32[k, dim])}, merged by row.
    """

    norms: NDArray[np.float64]
    dense: dict[str, NDArray[np.float32]]
    tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]


class Workspace:
    """Arrays kept between steps, so that a step asks for no large memory."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def take(
        self, name: str, shape: tuple[int, ...], dtype: type[np.floating[Any]] = np.float32
    ) -> NDArray[Any]:
        """An array of any content; a later call with the same name may return the same memory."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            # a little more than asked for: the sizes of Poisson batches vary
            kept = self._kept[name] = np.empty(size + size // 8, dtype)
        return kept[:size].reshape(shape)


def clip_batch(
    model: Model,
    batch: SparseBatch,
    reads: Mapping[str, Reads],
    l2_clip_norm: float,
    workspace: Workspace | None = None,
    *,
    groups: NDArray[np.int64] | None = None,
    floor: float = LOWEST_FLOOR,
) -> tuple[ClippedSum, NDArray[np.float64]]:
    """Clips each unit's joint gradient and sums; one forward and one backward pass.

    The batch is cut into chunks of whole units that stay in cache; each thread takes a stretch of them.

    Args:
        model: its tables must be up to date at the rows that `reads` names.
        batch: possibly empty.
        reads: from `batch_reads`.
        l2_clip_norm: positive; infinity does not clip.
        workspace: memory to use again; the sums live in it, until its next use.
        groups: int64[g + 1], bounds of groups of examples. A unit's group must not depend on other units;
            sums within a group are float32, of groups float64. None sums in float64 throughout.
        floor: from `cancellation_floor`, the same for all batches of a run.

    Returns:
        The sum, and the units' norms before clipping, float64[U].

    Guarantees:
        - Each unit adds a vector of norm at most l2_clip_norm; one unit more or less, in its group,
          moves the sum by at most l2_clip_norm * (1 + 2^-10), rounding included, in batches that the floor
          is for.
        - A unit that is not finite adds zero and leaves the others' sum unchanged to the bit.
    """
    space = workspace or Workspace()
    if batch.unit_offsets is not None or groups is None:
        groups = (
            _NO_GROUPS  # parts of one unit may cancel, and float32 rounding would be of their size
        )
    if len(groups) and int(groups[-1]) != batch.num_examples:
        raise DataError(
            f"Expected groups of all {batch.num_examples} examples of the batch, got other bounds. "
            "Read as many examples as units were drawn."
        )
    job = ChunkedClipping(model, batch, reads, l2_clip_norm, space, groups, floor)
    return job.total(), job.norms


class ChunkedClipping:
    """One batch on its way to its clipped sum.

    Attributes:
        norms: float64[U], written chunk by chunk.
    """

    def __init__(
        self,
        model: Model,
        batch: SparseBatch,
        reads: Mapping[str, Reads],
        l2_clip_norm: float,
        space: Workspace,
        groups: NDArray[np.int64],
        floor: float,
    ) -> None:
        self._model, self._batch, self._reads = model, batch, reads
        self._l2_clip_norm, self._floor, self._space = l2_clip_norm, floor, space
        self._targets = model.output.targets(batch)
        self._numbers = model.layout.numbers(batch)
        self._groups = groups
        self.norms = np.empty(batch.num_units, np.float64)
        self._feature_grads = space.take("grads", (batch.num_examples, model.layout.width))
        self._factors = np.empty(batch.num_examples, np.float32)

    def total(self) -> ClippedSum:
        """The sums over all chunks, lanes added in order."""
        from dpads.kernels.torch_ops import single_threaded

        lanes, parameters = self._lanes(), self._model.dense
        size = sum(value.size for value in parameters.values())
        sums = [
            DenseSums.over(self._space.take(f"{lane}.dense", (size,), np.float64), parameters)
            for lane in range(len(lanes))
        ]

        def task(lane: int) -> Task:
            return lambda: self._lane(lane, lanes[lane], sums[lane])

        def add(first: int, last: int) -> None:
            for other in sums[1:]:
                sums[0].flat[first:last] += other.flat[first:last]

        tasks = [task(lane) for lane in range(len(lanes))]
        by_row = {}
        for name, reads in self._reads.items():
            by_row[name] = like(reads.places)
            tasks += self._sorting(reads, by_row[name])
        with single_threaded():
            get_workers().run(tasks)
        over(size, SUMMED_AT_A_TIME, add)
        groups = {
            group.name: PlacedSums(
                self._reads[group.name].runs,
                by_row[group.name],
                self._feature_grads,
                self._factors,
                group.dim,
            )
            for group in self._model.layout.groups
        }
        return ClippedSum(sums[0].parts, groups, self._l2_clip_norm)

    def _sorting(self, reads: Reads, out: SortedPlaces) -> list[Task]:
        """Tasks that write the places in the order of their rows; no lane needs them."""

        def task(first: int) -> Task:
            last = min(first + SORTED_AT_A_TIME, len(reads.places.rows))
            return lambda: sort_places(reads.places, reads.runs, first, last, out)

        return [task(first) for first in range(0, len(reads.places.rows), SORTED_AT_A_TIME)]

    def _lanes(self) -> list[list[tuple[int, int]]]:
        """Chunks of units for every thread; at least one chunk, possibly empty, in all."""
        size, units = self._batch.num_examples, self._batch.num_units
        threads = get_workers().threads
        share = -(-size // threads)
        step = min(CHUNK, max(-(-share // CHUNK_STEP) * CHUNK_STEP, CHUNK_STEP))
        marks = np.arange(0, size, min(step, self._model.tower.examples_at_a_time))
        if self._batch.unit_offsets is not None:
            marks = np.searchsorted(self._batch.unit_offsets, marks)
        elif len(self._groups):
            marks = self._groups[np.searchsorted(self._groups, marks)]
        bounds = sorted({0, *marks.tolist(), units}) if units else [0, 0]
        chunks = list(pairwise(bounds))
        count = min(threads, len(chunks))
        cuts = [len(chunks) * lane // count for lane in range(count + 1)]
        return [chunks[first:last] for first, last in pairwise(cuts)]

    def _lane(self, lane: int, chunks: list[tuple[int, int]], sums: DenseSums) -> None:
        """The chunks of one thread, summed into its own arrays."""
        import torch

        torch.set_num_threads(1)
        sums.flat[...] = 0.0
        for first, last in chunks:
            self._chunk(lane, first, last, sums)

    def _chunk(self, lane: int, first_unit: int, last_unit: int, sums: DenseSums) -> None:
        """Units first_unit:last_unit: gradients, norms, factors, and their part of the sums."""
        unit_offsets, layout = self._batch.unit_offsets, self._model.layout
        first, last = first_unit, last_unit
        if unit_offsets is not None:
            first, last = int(unit_offsets[first_unit]), int(unit_offsets[last_unit])
        features = self._space.take(f"{lane}.features", (last - first, layout.width))
        start_features(self._numbers[first:last], layout.embedded, features)
        for group in layout.groups:
            pool(self._model.arrays[group.name], self._reads[group.name].places, first, features)
        grads = self._feature_grads[first:last]
        tower = self._model.tower.gradients(features, self._targets.part(first, last), grads)
        factors = self._factors[first:last]
        self._clip(grads, tower, first, first_unit, last_unit, factors)
        groups = self._groups
        if len(groups):
            low, high = np.searchsorted(groups, [first, last])
            groups = groups[low : high + 1] - first
        tower.add_clipped(factors, groups, sums)

    def _clip(
        self,
        grads: NDArray[np.float32],
        tower: ChunkGradients,
        first: int,
        first_unit: int,
        last_unit: int,
        factors: NDArray[np.float32],
    ) -> None:
        """Norms of a chunk's units, and clip factors of its examples."""
        model, units = self._model, last_unit - first_unit
        segments = self._batch.unit_offsets
        offsets = np.arange(first, first + units + 1)
        if segments is not None:
            offsets = segments[first_unit : last_unit + 1]
        offsets = offsets - first
        squares, parts = np.zeros(units), np.zeros(units)
        for group in model.layout.groups:
            places, dim = self._reads[group.name].places, group.dim
            if segments is not None or group.rows_may_repeat:
                clip.square_norms_merged(grads, places, first, dim, offsets, squares, parts)
            else:
                slots = len(group.slots)
                clip.square_norms_distinct(grads, places, first, dim, slots, squares)
        tower.add_square_norms(offsets, squares, parts)
        norms = self.norms[first_unit:last_unit]
        if segments is None:
            clip.clip_factors(squares, parts, self._l2_clip_norm, self._floor, norms, factors)
            return
        unit_factors = np.empty(units, np.float32)
        clip.clip_factors(squares, parts, self._l2_clip_norm, self._floor, norms, unit_factors)
        clip.spread_to_examples(unit_factors, offsets, factors)


def add_sums(first: ClippedSum, second: ClippedSum) -> ClippedSum:
    """The sum over the units of two physical batches of one iteration.

    Raises:
        ConfigError: the clip norms differ.
    """
    if first.l2_clip_norm != second.l2_clip_norm:
        raise ConfigError("Expected physical batches of one iteration to share their l2_clip_norm.")
    dense = {name: value + second.dense[name] for name, value in first.dense.items()}
    groups = {}
    for name, one in first.groups.items():
        two = second.groups[name]
        runs = merge_runs(np.concatenate([one.rows, two.rows]))
        values = np.concatenate([one.values, two.values])[runs.order]
        merged = np.add.reduceat(values, runs.starts[:-1]) if len(values) else values
        groups[name] = KnownSums(runs.rows, merged)
    return ClippedSum(dense, groups, first.l2_clip_norm)


def check_clip_norm(l2_clip_norm: Any) -> float:
    """The clip norm as a float.

    Raises:
        ConfigError: it is not a positive number.
    """
    if not (isinstance(l2_clip_norm, int | float) and l2_clip_norm > 0) or math.isnan(l2_clip_norm):
        raise ConfigError(f"Expected a positive l2_clip_norm, got {l2_clip_norm!r}.")
    return float(l2_clip_norm)


def clipped_gradients(
    model: Model, batch: SparseBatch, *, l2_clip_norm: float, backend: str = "torch"
) -> ClippedGradients:
    """The core as a pure function: the sum of per-unit-clipped gradients of a batch.

    Args:
        model: from `description.init(schema)`.
        batch: from `SparseBatch.from_arrays` or a store; may be empty.
        l2_clip_norm: the bound C on the joint norm of one unit's gradient over the tower and all tables;
            infinity does not clip.
        backend: "torch" or "jax".

    Returns:
        Norms and sums; secret, no noise is added.

    Raises:
        ConfigError: l2_clip_norm is not positive, or the backend is unknown.
        DataError: the batch lacks a field, or an id is not a row of its table.

    Guarantees:
        - The gradient with respect to a table row is the sum over all places in the unit where
          the row is used; padding contributes nothing.
        - Every unit's contribution has norm at most l2_clip_norm.

    Examples:
        >>> import numpy as np, dpads
        >>> schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["C1"], buckets=10)
        >>> model = dpads.models.Logistic().init(schema)
        >>> batch = dpads.SparseBatch.from_arrays(ids={"C1": [3, 3, 7]}, labels=[1, 0, 1])
        >>> out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.5)
        >>> out.norms.round(3).tolist(), out.tables["C1"][0].tolist()
        ([0.707, 0.707, 0.707], [3, 7])
    """
    check_backend(backend)
    check_clip_norm(l2_clip_norm)
    model.check_batch(batch)
    reads = batch_reads(model, batch)
    if backend == "jax":
        from dpads.jax_clip import clip_once

        total, norms = clip_once(model, batch, reads, float(l2_clip_norm))
    else:
        total, norms = clip_batch(model, batch, reads, float(l2_clip_norm))
    tables = {}
    for group in model.layout.groups:
        sums = total.groups[group.name]
        for name, base in group.bases.items():
            low, high = np.searchsorted(sums.rows, [base, base + group.rows[name]])
            values = sums.part(int(low), int(high)).astype(np.float32)
            tables[name] = (sums.rows[low:high] - base, values)
    dense = {name: value.astype(np.float32) for name, value in total.dense.items()}
    return ClippedGradients(norms, dense, tables)
