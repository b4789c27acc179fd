"""Exact sums of units' clipped vectors, few of whose coordinates are not zero."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, error_model="numpy")
def add_unit_vectors(
    sums: NDArray[np.int64],
    offsets: NDArray[np.int64],
    places: NDArray[np.int64],
    values: NDArray[np.float64],
    l2_clip_norm: float,
    steps: float,
) -> None:
    """Adds each unit's vector, scaled to a norm of at most l2_clip_norm, in whole steps of it.

    Entries at one place are added first. Parts are rounded towards zero, so that no vector gets longer. A
    unit whose norm is not finite adds nothing.

    Args:
        sums: int64[coordinates], added to.
        offsets: int64[units + 1], unit u has the entries from offsets[u] to before offsets[u + 1].
        places: int64[entries], coordinates, each below len(sums).
        values: float64[entries].
        l2_clip_norm: positive.
        steps: how many make l2_clip_norm.
    """
    least = 1.0 - 2.0**-40  # room for the rounding of norm and product
    for u in range(len(offsets) - 1):
        first, last = offsets[u], offsets[u + 1]
        order = np.argsort(places[first:last], kind="mergesort")
        merged = np.empty(last - first)
        rows = np.empty(last - first, np.int64)
        count = 0
        for k in order:
            place, value = places[first + k], values[first + k] / l2_clip_norm
            if count > 0 and rows[count - 1] == place:
                merged[count - 1] += value
            else:
                rows[count], merged[count] = place, value
                count += 1
        square = 0.0
        for k in range(count):
            square += merged[k] * merged[k]
        if not np.isfinite(square):
            continue
        norm = np.sqrt(square)
        factor = 1.0 / max(norm, 1.0)
        if norm > least:
            factor *= least
        for k in range(count):
            sums[rows[k]] += np.int64(merged[k] * factor * steps)
