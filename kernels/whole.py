"""Norms and clipped sums of gradients that stand in memory whole, one row an example.

Such a gradient needs no bound on how it was computed: what is summed is the very vector that was measured.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.clip import ANY_ORDER
from dpads.kernels.partial_sums import SUMMED_AT_A_TIME

TILE = 2048  # sums that stay in the first-level cache


@njit(cache=True, nogil=True, fastmath=ANY_ORDER)
def _square(row: NDArray[np.float32]) -> float:
    """Squared norm in float64."""
    total = 0.0
    for j in range(len(row)):
        total += np.float64(row[j]) * np.float64(row[j])
    return total


@njit(cache=True, nogil=True)
def add_square_norms(
    grads: NDArray[np.float32],
    unit_offsets: NDArray[np.int64],
    squares: NDArray[np.float64],
    parts: NDArray[np.float64],
) -> None:
    """Adds each unit's squared gradient, its examples merged before squaring.

    Args:
        grads: float32[n, P].
        unit_offsets: int64[U + 1], positions in `grads`.
        squares: float64[U], added to; an upper bound of the exact value.
        parts: float64[U], the sum of the norms of single examples is added where a unit has several.
    """
    width = grads.shape[1]
    for u in range(len(unit_offsets) - 1):
        first, last = unit_offsets[u], unit_offsets[u + 1]
        if last - first == 1:
            squares[u] += _square(grads[first])
            continue
        for i in range(first, last):
            parts[u] += np.sqrt(_square(grads[i]))
        for start in range(0, width, TILE):
            end = min(start + TILE, width)
            merged, rounding = np.zeros(end - start), np.zeros(end - start)
            for i in range(first, last):
                for j in range(start, end):
                    merged[j - start] += np.float64(grads[i, j])
                    rounding[j - start] += abs(np.float64(grads[i, j]))
            total = 0.0
            for j in range(end - start):
                # float64 summation errs by at most count * 2^-53 of the absolute sum: an upper bound
                bound = abs(merged[j]) + rounding[j] * (last - first) * 2.0**-52
                total += bound * bound
            squares[u] += total


@njit(cache=True, nogil=True)
def add_clipped(
    grads: NDArray[np.float32], factors: NDArray[np.float32], sums: NDArray[np.float64]
) -> None:
    """sums += factors @ grads in float64.

    Args:
        grads: float32[n, P].
        factors: float32[n]; examples whose factor is zero are left out, finite or not.
        sums: float64[P], added to.
    """
    width = grads.shape[1]
    for begin in range(0, len(grads), SUMMED_AT_A_TIME):
        stop = min(begin + SUMMED_AT_A_TIME, len(grads))
        for start in range(0, width, TILE):
            end = min(start + TILE, width)
            part = np.zeros(end - start)
            for i in range(begin, stop):
                factor = np.float64(factors[i])
                if factor != 0.0:
                    row = grads[i, start:end]
                    for j in range(len(part)):
                        part[j] += factor * np.float64(row[j])
            for j in range(len(part)):
                sums[start + j] += part[j]
