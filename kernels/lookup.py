"""Table lookup and pooling.

A batch reaches the tables as a list of places: place k of an example reads `array[rows[k]]`, multiplies it by
`coefs[k]` and adds it to the example's feature vector at columns `columns[k] : columns[k] + dim`. Scalar
fields give one place an example, bags one per id; padding gives none. Repeated rows stay repeated places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.memory import PLACES_AHEAD, prefetch


class Places(NamedTuple):
    """Where the examples of a batch read one array of tables.

    Attributes:
        rows: int64[nnz], rows of the array.
        columns: int32[nnz], first feature column that the row is added to.
        coefs: float32[nnz], the factor of the row (weight of an id, 1/count for a mean).
        examples: int32[nnz], the example that reads.
        offsets: int64[B + 1], places of example i are `offsets[i]:offsets[i + 1]`.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int32]
    coefs: NDArray[np.float32]
    examples: NDArray[np.int32]
    offsets: NDArray[np.int64]


def empty_places(counts: NDArray[np.int64]) -> Places:
    """Places of any content, `counts[i]` of example i (int64[B]), to be written by `place_*`."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    total = int(offsets[-1])
    return Places(
        np.empty(total, np.int64),
        np.empty(total, np.int32),
        np.empty(total, np.float32),
        np.empty(total, np.int32),
        offsets,
    )


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
                places.examples[k] = i
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
            places.examples[at] = i
            if mean:
                places.coefs[at] = np.float32(1.0 / used)
            else:
                places.coefs[at] = weights[k] if len(weights) > 0 else np.float32(1.0)
            at += 1
        cursor[i] = at


@njit(cache=True, nogil=True)
def pool(
    array: NDArray[np.float32], places: Places, first: int, features: NDArray[np.float32]
) -> None:
    """Adds each place's weighted row to its example's features.

    Args:
        array: float32[rows, dim].
        places: of a batch.
        first: the example of the batch that `features[0]` belongs to.
        features: float32[n, width], added to.
    """
    dim = array.shape[1]
    last = places.offsets[first + len(features)]
    for i in range(len(features)):
        for k in range(places.offsets[first + i], places.offsets[first + i + 1]):
            if k + PLACES_AHEAD < last:
                prefetch(array.ctypes.data + places.rows[k + PLACES_AHEAD] * dim * array.itemsize)
            row = array[places.rows[k]]
            part = features[i, places.columns[k] : places.columns[k] + dim]
            coef = places.coefs[k]
            for j in range(dim):
                part[j] += coef * row[j]


@njit(cache=True, nogil=True)
def start_features(
    dense: NDArray[np.float32], embedded: int, features: NDArray[np.float32]
) -> None:
    """features = [0 in the first `embedded` columns, then dense], float32[n, embedded + K]."""
    for i in range(len(features)):
        features[i, :embedded] = 0.0
        features[i, embedded:] = dense[i]


@njit(cache=True, nogil=True)
def keep_selected(places: Places, selected: NDArray[np.bool_]) -> Places:
    """The places that read selected rows; the others read zero vectors, so that nothing of them is left.

    Coefficients stay: of a mean, rows that are not selected still count.

    Args:
        places: of a batch.
        selected: bool[rows] of the array.
    """
    offsets = np.zeros(len(places.offsets), np.int64)
    for i in range(len(offsets) - 1):
        kept = offsets[i]
        for k in range(places.offsets[i], places.offsets[i + 1]):
            kept += selected[places.rows[k]]
        offsets[i + 1] = kept
    rows, columns = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int32)
    coefs, examples = np.empty(offsets[-1], np.float32), np.empty(offsets[-1], np.int32)
    at = 0
    for k in range(places.offsets[0], places.offsets[-1]):
        if selected[places.rows[k]]:
            rows[at], columns[at] = places.rows[k], places.columns[k]
            coefs[at], examples[at] = places.coefs[k], places.examples[k]
            at += 1
    return Places(rows, columns, coefs, examples, offsets)
