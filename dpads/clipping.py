"""Per-unit clipped gradients: what the mechanism adds noise to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.batch import SparseBatch
from dpads.errors import ConfigError
from dpads.kernels import clip
from dpads.kernels.lookup import Places
from dpads.kernels.merge import Runs, merge_runs
from dpads.models.base import ExampleGradients, Model


@dataclass(frozen=True)
class RowSums:
    """Sums of clipped gradients of one group's touched rows.

    Attributes:
        rows: int64[k], distinct, rising, rows of the group's array.
        values: float64[k, dim].
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float64]


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


@dataclass(frozen=True)
class Reads:
    """The places where one batch reads one group, and the same places sorted by row."""

    places: Places
    runs: Runs


def batch_reads(model: Model, batch: SparseBatch) -> dict[str, Reads]:
    """For every group of tables, where the batch reads it."""
    reads = {}
    for group in model.layout.groups:
        places = group.places(batch)
        reads[group.name] = Reads(places, merge_runs(places.rows))
    return reads


def clip_batch(
    model: Model, batch: SparseBatch, reads: Mapping[str, Reads], l2_clip_norm: float
) -> tuple[ClippedSum, NDArray[np.float64]]:
    """Clips each unit's joint gradient and sums; one forward and one backward pass.

    Args:
        model: its tables must be up to date at the rows that `reads` names.
        batch: possibly empty.
        reads: from `batch_reads`.
        l2_clip_norm: positive; infinity does not clip.

    Returns:
        The sum, and the units' norms before clipping, float64[U].

    Guarantees:
        - Each unit adds a vector of norm at most l2_clip_norm; one unit more or less moves the
          sum by at most l2_clip_norm * (1 + 2^-10), rounding included.
        - A unit that is not finite adds zero and leaves the others' sum unchanged to the bit.
    """
    from dpads.kernels.lookup import pool

    size = batch.num_examples
    features = np.zeros((size, model.layout.width), np.float32)
    for group in model.layout.groups:
        pool(model.arrays[group.name], reads[group.name].places, features)
    features[:, model.layout.embedded :] = batch.dense
    grads = model.tower.gradients(features, batch)
    offsets = batch.unit_offsets if batch.unit_offsets is not None else np.arange(size + 1)
    squares, parts = _square_norms(model, grads, reads, offsets, batch.unit_offsets is not None)
    norms = np.empty(batch.num_units, np.float64)
    factors = np.empty(batch.num_units, np.float32)
    clip.clip_factors(squares, parts, l2_clip_norm, norms, factors)
    if batch.unit_offsets is not None:
        unit_factors = factors
        factors = np.empty(size, np.float32)
        clip.spread_to_examples(unit_factors, offsets, factors)
    return _clipped_sum(model, grads, reads, factors, l2_clip_norm), norms


def _square_norms(
    model: Model,
    grads: ExampleGradients,
    reads: Mapping[str, Reads],
    offsets: NDArray[np.int64],
    segments: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared norms per unit, and the sums of the norms of parts that may cancel."""
    squares = np.zeros(len(offsets) - 1)
    parts = np.zeros(len(offsets) - 1)
    for group in model.layout.groups:
        places = reads[group.name].places
        if segments or group.rows_may_repeat:
            clip.square_norms_merged(grads.features, places, group.dim, offsets, squares, parts)
        else:
            clip.square_norms_distinct(grads.features, places, group.dim, squares)
    for layer in grads.linears:
        bias = 0.0 if layer.bias is None else 1.0
        clip.linear_square_norms(layer.inputs, layer.output_grads, bias, offsets, squares, parts)
    return squares, parts


def _clipped_sum(
    model: Model,
    grads: ExampleGradients,
    reads: Mapping[str, Reads],
    factors: NDArray[np.float32],
    l2_clip_norm: float,
) -> ClippedSum:
    """Sums gradients times their examples' factors."""
    from dpads.kernels.torch_ops import clipped_outer_sum

    left_out = factors == 0.0
    dense: dict[str, NDArray[np.float64]] = {}
    for layer in grads.linears:
        scaled = np.empty_like(layer.output_grads)
        clip.scale_rows(layer.output_grads, factors, scaled)
        inputs = layer.inputs
        if left_out.any():  # a zero times an infinite activation would be NaN: select instead
            inputs = np.where(left_out[:, None], np.float32(0), inputs)
        total = np.zeros((scaled.shape[1], inputs.shape[1]))
        clipped_outer_sum(scaled, np.ascontiguousarray(inputs), total)
        dense[layer.weight] = total
        if layer.bias is not None:
            dense[layer.bias] = scaled.sum(axis=0, dtype=np.float64)
    groups = {}
    for group in model.layout.groups:
        places, runs = reads[group.name].places, reads[group.name].runs
        examples = np.empty(len(places.rows), np.int64)
        clip.place_examples(places.offsets, examples)
        values = np.empty((len(runs.rows), group.dim))
        clip.merged_sum(grads.features, places, examples, factors, runs, values)
        groups[group.name] = RowSums(runs.rows, values)
    return ClippedSum(dense, groups, l2_clip_norm)


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
        groups[name] = RowSums(runs.rows, merged)
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
        backend: "torch".

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
    if backend != "torch":
        raise ConfigError(f'Unknown backend "{backend}".' + nearest(backend, ["torch"]))
    check_clip_norm(l2_clip_norm)
    model.check_batch(batch)
    total, norms = clip_batch(model, batch, batch_reads(model, batch), float(l2_clip_norm))
    tables = {}
    for group in model.layout.groups:
        sums = total.groups[group.name]
        for name, base in group.bases.items():
            low, high = np.searchsorted(sums.rows, [base, base + group.rows[name]])
            values = sums.values[low:high].astype(np.float32)
            tables[name] = (sums.rows[low:high] - base, values)
    dense = {name: value.astype(np.float32) for name, value in total.dense.items()}
    return ClippedGradients(norms, dense, tables)
