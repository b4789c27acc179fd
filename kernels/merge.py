"""Bringing equal rows together: a stable radix sort of row numbers and the runs of equal ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, uint32
from numpy.typing import NDArray

from dpads.kernels.lookup import Places

DIGIT_BITS = 12  # two passes up to 2^24 rows


class Runs(NamedTuple):
    """Places sorted by row.

    Attributes:
        order: int32[nnz], places in order of their row, equal rows in the order given.
        starts: int64[k + 1], run r is `order[starts[r]:starts[r + 1]]`.
        rows: int64[k], the row of each run, rising.
    """

    order: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]


class SortedPlaces(NamedTuple):
    """What `Places` say, in the order of the rows.

    Attributes:
        examples: int32[nnz].
        columns: int32[nnz].
        coefs: float32[nnz].
    """

    examples: NDArray[np.int32]
    columns: NDArray[np.int32]
    coefs: NDArray[np.float32]


@njit(cache=True, nogil=True)
def merge_runs(rows: NDArray[np.int64]) -> Runs:
    """Sorts places by row, in time linear in their number.

    Args:
        rows: int64[nnz], from 0 to 2^32 - 1; nnz below 2^31.
    """
    n = len(rows)
    keys, order = np.empty(n, np.uint32), np.empty(n, np.int32)
    other_keys, other = np.empty(n, np.uint32), np.empty(n, np.int32)
    largest = uint32(0)
    for i in range(n):
        keys[i] = uint32(rows[i])
        order[i] = i
        largest = max(largest, keys[i])
    mask = uint32((1 << DIGIT_BITS) - 1)
    starts = np.empty(1 << DIGIT_BITS, np.int32)
    shift = 0
    while shift == 0 or (shift < 32 and (largest >> uint32(shift)) > 0):
        starts[:] = 0
        for i in range(n):
            starts[(keys[i] >> uint32(shift)) & mask] += 1
        total = 0
        for digit in range(len(starts)):
            count = starts[digit]
            starts[digit] = total
            total += count
        for i in range(n):
            digit = (keys[i] >> uint32(shift)) & mask
            at = starts[digit]
            starts[digit] = at + 1
            other_keys[at] = keys[i]
            other[at] = order[i]
        keys, other_keys = other_keys, keys
        order, other = other, order
        shift += DIGIT_BITS
    ends = np.zeros(n + 1, np.int64)
    unique = np.empty(n, np.int64)
    run = -1
    for i in range(n):  # without a branch, for whether a key is new cannot be foreseen
        run += i == 0 or keys[i] != keys[i - 1]
        unique[run] = keys[i]
        ends[run + 1] = i + 1
    return Runs(order, ends[: run + 2], unique[: run + 1])


def like(places: Places) -> SortedPlaces:
    """Memory for the places sorted, of any content."""
    return SortedPlaces(
        np.empty_like(places.examples),
        np.empty_like(places.columns),
        np.empty_like(places.coefs),
    )


@njit(cache=True, nogil=True)
def sort_places(places: Places, runs: Runs, first: int, last: int, out: SortedPlaces) -> None:
    """Writes positions first:last of the places in the order of their rows.

    Sums over a row then read memory in order.
    """
    for i in range(first, last):
        k = runs.order[i]
        out.examples[i] = places.examples[k]
        out.columns[i] = places.columns[k]
        out.coefs[i] = places.coefs[k]
