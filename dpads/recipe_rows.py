"""Rows made up from a schema alone, to try settings on without a look at anybody's data.

Ids follow a Zipf law, labels a sparse logistic or Poisson model of them. Nothing of a real log is in them:
what is best on them is a guess for real rows, and costs no privacy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from dpads.benching_trainer import zipf_ids
from dpads.schema import FeatureSchema

if TYPE_CHECKING:
    import pyarrow as pa

SEED: Final = 20230301
LARGEST_VOCABULARY: Final = 20_000
MOST_IN_BAG: Final = 5
ROWS_PER_USER: Final = 8
SPREAD: Final = 1.5  # of the logits
RATE: Final = 0.1  # of positive labels, about; of counts, their mean

Vector = NDArray[np.float64]


def write_made_up_rows(schema: FeatureSchema, rows: int, path: Path, *, seed: int = SEED) -> Path:
    """Writes made-up rows as a Parquet file.

    Args:
        schema: the columns.
        rows: how many.
        path: the file.
        seed: public.

    Returns:
        The path.
    """
    import pyarrow.parquet as parquet

    parquet.write_table(made_up_rows(schema, rows, seed=seed), path)
    return path


def made_up_rows(schema: FeatureSchema, rows: int, *, seed: int = SEED) -> pa.Table:
    """A table of made-up rows that `prepare` takes under the schema.

    Args:
        schema: the columns.
        rows: how many.
        seed: public.

    Examples:
        >>> schema = FeatureSchema(task="ctr", label="y", categorical=["C1"], buckets=100)
        >>> made_up_rows(schema, 1000).column_names
        ['C1', 'y']
    """
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    logits = np.zeros(rows)
    vocabularies = {name: min(n, LARGEST_VOCABULARY) for name, n in schema.table_rows.items()}
    effects = {name: _effects(rng, size) for name, size in vocabularies.items()}
    for numeric in schema.numeric:
        values = np.floor(rng.lognormal(1.0, 1.0, rows))
        logits += rng.normal() * (np.log1p(values) - 1.0)
        columns[numeric.column] = pa.array(values)
    for field in schema.fields:
        if not field.is_bag:
            ids = zipf_ids(rng, vocabularies[field.table], rows)
            logits += effects[field.table][ids]
            columns[field.name] = _words(ids)
            continue
        ends = np.concatenate([[0], np.cumsum(rng.integers(0, MOST_IN_BAG + 1, rows))])
        ids = zipf_ids(rng, vocabularies[field.table], int(ends[-1]))
        sums = np.concatenate([[0.0], np.cumsum(effects[field.table][ids])])
        logits += sums[ends[1:]] - sums[ends[:-1]]
        columns[field.name] = pa.LargeListArray.from_arrays(pa.array(ends), _words(ids))
        if field.weights is not None:
            weights = pa.array(rng.uniform(0.5, 1.5, len(ids)))
            columns[field.weights] = pa.LargeListArray.from_arrays(pa.array(ends), weights)
    if schema.user is not None:
        columns[schema.user] = pa.array(zipf_ids(rng, max(1, rows // ROWS_PER_USER), rows))
    if schema.weight is not None:
        columns[schema.weight] = pa.array(rng.uniform(0.5, 1.5, rows))
    exposure = rng.exponential(1.0, rows) + 0.1 if schema.exposure is not None else np.ones(rows)
    if schema.exposure is not None:
        columns[schema.exposure] = pa.array(exposure)
    columns[schema.label] = pa.array(_labels(rng, schema, logits, exposure))
    return pa.table(columns)


def _labels(
    rng: np.random.Generator, schema: FeatureSchema, logits: Vector, exposure: Vector
) -> NDArray[np.int64]:
    """Labels of the task, of one spread whatever the number of columns."""
    spread = float(logits.std())
    scaled = (logits - logits.mean()) * (SPREAD / spread if spread > 0.0 else 0.0)
    if schema.task == "count":
        means: Vector = exposure * RATE * np.exp(np.minimum(scaled, 4.0))
        counts: NDArray[np.int64] = rng.poisson(means)
        return counts
    chance = 1.0 / (1.0 + np.exp(-(scaled + np.log(RATE / (1.0 - RATE)))))
    positive: NDArray[np.int64] = (rng.random(len(chance)) < chance).astype(np.int64)
    return positive


def _effects(rng: np.random.Generator, size: int) -> Vector:
    """Effects of values: one in three has one."""
    return np.where(rng.random(size) < 1.0 / 3.0, rng.normal(size=size), 0.0)


def _words(ids: NDArray[np.int64]) -> pa.Array:
    """Ids as text."""
    import pyarrow as pa

    known = pa.array([f"v{number}" for number in range(int(ids.max(initial=0)) + 1)])
    return pa.DictionaryArray.from_arrays(pa.array(ids), known).cast(pa.string())
