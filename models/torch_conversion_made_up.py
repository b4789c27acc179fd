"""Made-up rows of a schema, to try a module on: repeated ids, first and last rows, padding, empty lists."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpads.batch import PADDING, SparseBatch
from dpads.models.torch_fields import Inputs
from dpads.schema import Bag, Numeric


def made_up(inputs: Inputs, size: int, seed: int) -> SparseBatch:
    """A batch of made-up rows; the same seed gives the same rows.

    Args:
        inputs: the columns.
        size: examples.
        seed: of the rows.
    """
    rng = np.random.default_rng(seed)
    schema = inputs.schema
    ids = {name: _ids(inputs, name, size, rng) for name in schema.categorical}
    bags = {bag.column: _bag(inputs, bag, size, rng) for bag in schema.bags}
    count = schema.task == "count"
    return SparseBatch.from_arrays(
        ids={**ids, **bags},
        dense=np.array([_numbers(item, size, rng) for item in schema.numeric])
        .reshape(len(schema.numeric), size)
        .T,
        labels=rng.poisson(1.5, size) if count else np.arange(size) % 2,
        weights=rng.uniform(0.5, 2, size),
        exposure=rng.uniform(0.5, 2, size) if count else None,
    )


def _numbers(numeric: Numeric, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A numeric column after its clip and transform."""
    raw = rng.normal(0, 1.5, size)
    if numeric.clip is not None:
        raw = np.clip(raw, *numeric.clip)
    return np.sign(raw) * np.log1p(np.abs(raw)) if numeric.transform == "signed_log1p" else raw


def _ids(inputs: Inputs, field: str, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ids of a field: half of them anywhere, half among a few that so occur again and again."""
    rows = inputs.rows_of(field)
    few = np.array([0, 1, rows - 1, min(inputs.padding, rows - 1), rows // 2])
    return np.where(rng.random(size) < 0.5, rng.integers(0, rows, size), rng.choice(few, size))


def _bag(
    inputs: Inputs, bag: Bag, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64] | None]:
    """Lists of a bag: empty ones, short ones, full ones."""
    full = inputs.lengths.get(bag.column, 3)
    lengths = np.where(
        rng.random(size) < 0.5, rng.integers(0, full + 1, size), full + rng.integers(0, 3, size)
    )
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    values = _ids(inputs, bag.column, int(offsets[-1]), rng)
    values[rng.random(len(values)) < 0.1] = PADDING
    weights = None if bag.weights is None else rng.uniform(0, 2, len(values))
    return values, offsets, weights
