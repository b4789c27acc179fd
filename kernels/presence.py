"""Which table rows a privacy unit touches, and sums over units of clipped vectors with few coordinates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class UnitVectors(NamedTuple):
    """One vector per unit, all but a few of its coordinates zero.

    Attributes:
        offsets: int64[U + 1], unit u has the entries `offsets[u]:offsets[u + 1]`.
        coordinates: int64[nnz], distinct within a unit.
        values: float64[nnz].
    """

    offsets: NDArray[np.int64]
    coordinates: NDArray[np.int64]
    values: NDArray[np.float64]


@njit(cache=True, nogil=True)
def presences(rows: NDArray[np.int64], bounds: NDArray[np.int64]) -> UnitVectors:
    """One at every row that a unit reads, however often it reads it.

    Args:
        rows: int64[nnz], in any order within a unit.
        bounds: int64[U + 1], unit u reads `rows[bounds[u]:bounds[u + 1]]`.
    """
    units = len(bounds) - 1
    offsets = np.zeros(units + 1, np.int64)
    found = np.empty(bounds[-1] - bounds[0], np.int64)
    at = 0
    for u in range(units):
        own = np.sort(rows[bounds[u] : bounds[u + 1]])
        for k in range(len(own)):
            if k == 0 or own[k] != own[k - 1]:
                found[at] = own[k]
                at += 1
        offsets[u + 1] = at
    return UnitVectors(offsets, found[:at], np.ones(at))


@njit(cache=True, nogil=True)
def add_clipped(vectors: UnitVectors, l2_clip_norm: float, total: NDArray[np.float64]) -> None:
    """Adds each unit's vector to a sum, scaled down to a norm of at most `l2_clip_norm`.

    A unit whose vector is not finite adds nothing.

    Args:
        vectors: of some units.
        l2_clip_norm: positive.
        total: float64[size], added to, unit by unit.
    """
    for u in range(len(vectors.offsets) - 1):
        first, last = vectors.offsets[u], vectors.offsets[u + 1]
        square = 0.0
        for k in range(first, last):
            square += vectors.values[k] * vectors.values[k]
        if not np.isfinite(square):
            continue
        scale = 1.0
        if square > l2_clip_norm * l2_clip_norm:
            scale = l2_clip_norm / np.sqrt(square)
        for k in range(first, last):
            total[vectors.coordinates[k]] += scale * vectors.values[k]
