"""Which table rows a privacy unit reads."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def presences(
    rows: NDArray[np.int64], bounds: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows that each unit reads, each once, however often it reads it.

    Args:
        rows: int64[nnz], in any order within a unit.
        bounds: int64[U + 1], unit u reads `rows[bounds[u]:bounds[u + 1]]`.

    Returns:
        int64[U + 1] and int64[k]: unit u has the rows from place offsets[u] to before offsets[u + 1].
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
    return offsets, found[:at]
