"""Bringing equal rows together: a stable radix sort of row numbers and the runs of equal ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

DIGIT_BITS = 11


class Runs(NamedTuple):
    """Places sorted by row.

    Attributes:
        order: int64[nnz], places in order of their row, equal rows in the order given.
        starts: int64[k + 1], run r is `order[starts[r]:starts[r + 1]]`.
        rows: int64[k], the row of each run, rising.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]


@njit(cache=True, nogil=True)
def merge_runs(rows: NDArray[np.int64]) -> Runs:
    """Sorts places by row, in time linear in their number.

    Args:
        rows: int64[nnz], non-negative.
    """
    n = len(rows)
    order = np.arange(n)
    if n == 0:
        return Runs(order, np.zeros(1, np.int64), rows.copy())
    keys = rows.copy()
    other_keys = np.empty_like(keys)
    other = np.empty_like(order)
    largest = keys.max()
    buckets = 1 << DIGIT_BITS
    counts = np.empty(buckets, np.int64)
    shift = 0
    while shift == 0 or (largest >> shift) > 0:
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & (buckets - 1)] += 1
        total = 0
        for b in range(buckets):
            count = counts[b]
            counts[b] = total
            total += count
        for i in range(n):
            digit = (keys[i] >> shift) & (buckets - 1)
            at = counts[digit]
            counts[digit] = at + 1
            other_keys[at] = keys[i]
            other[at] = order[i]
        keys, other_keys = other_keys, keys
        order, other = other, order
        shift += DIGIT_BITS
    distinct = 1
    for i in range(1, n):
        distinct += keys[i] != keys[i - 1]
    starts = np.empty(distinct + 1, np.int64)
    unique = np.empty(distinct, np.int64)
    run = 0
    for i in range(n):
        if i == 0 or keys[i] != keys[i - 1]:
            starts[run] = i
            unique[run] = keys[i]
            run += 1
    starts[distinct] = n
    return Runs(order, starts, unique)
