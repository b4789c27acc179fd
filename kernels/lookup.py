"""Table lookup and pooling.

A batch reaches the tables as a list of places: place k of an example reads `array[rows[k]]`, multiplies it by
`coefs[k]` and adds it to the example's feature vector at columns `columns[k] : columns[k] + dim`. Scalar
fields give one place an example, bags one per id; padding gives none. Repeated rows stay repeated places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


class Places(NamedTuple):
    """Where the examples of a batch read one array of tables.

    Attributes:
        rows: int64[nnz], rows of the array.
        columns: int32[nnz], first feature column that the row is added to.
        coefs: float32[nnz], the factor of the row (weight of an id, 1/count for a mean).
        offsets: int64[B + 1], places of example i are `offsets[i]:offsets[i + 1]`.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int32]
    coefs: NDArray[np.float32]
    offsets: NDArray[np.int64]


@njit(cache=True, nogil=True)
def count_scalars(
    ids: NDArray[np.int32], fields: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Adds the number of scalar places of each example to `counts` (int64[B])."""
    for i in range(ids.shape[0]):
        for f in fields:
            counts[i] += ids[i, f] >= 0


@njit(cache=True, nogil=True)
def count_bag(
    values: NDArray[np.int64], offsets: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Adds the number of places of one bag to `counts` (int64[B])."""
    for i in range(len(offsets) - 1):
        for k in range(offsets[i], offsets[i + 1]):
            counts[i] += values[k] >= 0


@njit(cache=True, nogil=True)
def place_scalars(
    ids: NDArray[np.int32],
    fields: NDArray[np.int64],
    bases: NDArray[np.int64],
    columns: NDArray[np.int32],
    places: Places,
    cursor: NDArray[np.int64],
) -> None:
    """Writes the places of scalar fields at each example's cursor and moves it on.

    Args:
        ids: int32[B, F], rows of each field's table, negative for padding.
        fields: int64[n], which columns of `ids` read this array.
        bases: int64[n], first row of each field's table within the array.
        columns: int32[n], feature column of each field.
        places: written to.
        cursor: int64[B], next free place of each example.
    """
    for i in range(ids.shape[0]):
        k = cursor[i]
        for n in range(len(fields)):
            row = ids[i, fields[n]]
            if row >= 0:
                places.rows[k] = bases[n] + row
                places.columns[k] = columns[n]
                places.coefs[k] = 1.0
                k += 1
        cursor[i] = k


@njit(cache=True, nogil=True)
def place_bag(
    values: NDArray[np.int64],
    offsets: NDArray[np.int64],
    weights: NDArray[np.float32],
    mean: bool,
    base: int,
    column: int,
    places: Places,
    cursor: NDArray[np.int64],
) -> None:
    """Writes the places of one bag; `weights` is empty where every id counts once."""
    for i in range(len(offsets) - 1):
        used = 0
        for k in range(offsets[i], offsets[i + 1]):
            used += values[k] >= 0
        at = cursor[i]
        for k in range(offsets[i], offsets[i + 1]):
            if values[k] < 0:
                continue
            places.rows[at] = base + values[k]
            places.columns[at] = column
            if mean:
                places.coefs[at] = np.float32(1.0 / used)
            else:
                places.coefs[at] = weights[k] if len(weights) > 0 else np.float32(1.0)
            at += 1
        cursor[i] = at


@njit(cache=True, parallel=True, nogil=True)
def pool(array: NDArray[np.float32], places: Places, features: NDArray[np.float32]) -> None:
    """Adds each place's weighted row to its example's features.

    Args:
        array: float32[rows, dim].
        places: of B examples.
        features: float32[B, width], added to.
    """
    dim = array.shape[1]
    for i in prange(len(places.offsets) - 1):
        for k in range(places.offsets[i], places.offsets[i + 1]):
            row = places.rows[k]
            column = places.columns[k]
            coef = places.coefs[k]
            for j in range(dim):
                features[i, column + j] += coef * array[row, j]
