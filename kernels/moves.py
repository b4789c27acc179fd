"""Moving table rows by one iteration: decay, gradient and noise in one rounding.

A gradient that was rounded into a row before it has its noise would move by more than its sensitivity, by up
to a unit in the row's last place per coordinate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.chacha import LANES
from dpads.kernels.clip import merged_sum
from dpads.kernels.gaussian import Scratch, group_normals, scratch_for
from dpads.kernels.memory import prefetch
from dpads.kernels.merge import Runs, SortedPlaces
from dpads.kernels.workers import ROWS_PER_TASK, over

SUMMED_ROWS = 128  # at a time: their sums stay in the first-level cache


class Move(NamedTuple):
    """row <- decay * row + factor * sum - stddev * normals.

    Attributes:
        factor: of the sums.
        decay: of the rows.
        stddev: of the noise; 0 draws none.
        step: of the addresses (key, step, row).
        key: uint32[8].
    """

    factor: float
    decay: float
    stddev: float
    step: int
    key: NDArray[np.uint32]


@njit(cache=True, nogil=True)
def _move_lanes(
    array: NDArray[np.float32],
    history: NDArray[np.int32],
    rows: NDArray[np.int64],
    start: int,
    sums: NDArray[np.float64],
    move: Move,
    scratch: Scratch,
) -> None:
    """Moves rows[start : start + len(sums)], at most LANES."""
    dim, normals = array.shape[1], scratch.normals
    if move.stddev > 0.0:
        group_normals(scratch, rows, start, len(sums), move.step, dim)
    for lane in range(len(sums)):
        row = rows[start + lane]
        if len(history) > 0:
            history[row] = move.step
        values, total = array[row], sums[lane]
        if move.stddev > 0.0:
            for j in range(dim):
                moved = move.decay * np.float64(values[j]) + move.factor * total[j]
                noise = move.stddev * np.float64(normals[j * LANES + lane])
                values[j] = np.float32(moved - noise)
        else:
            for j in range(dim):
                moved = move.decay * np.float64(values[j]) + move.factor * total[j]
                values[j] = np.float32(moved)


@njit(cache=True, nogil=True)
def move_rows(
    array: NDArray[np.float32],
    history: NDArray[np.int32],
    rows: NDArray[np.int64],
    sums: NDArray[np.float64],
    move: Move,
) -> None:
    """Moves distinct rows by sums in memory.

    Args:
        array: float32[n, dim], changed in place at `rows`.
        history: int32[n], set to `move.step` at `rows`; empty where none is kept.
        rows: int64[k].
        sums: float64[k, dim].
        move: what is done.
    """
    scratch = scratch_for(move.key, array.shape[1])
    for start in range(0, len(rows), LANES):
        _move_lanes(array, history, rows, start, sums[start : start + LANES], move, scratch)


@njit(cache=True, nogil=True)
def move_merged(
    array: NDArray[np.float32],
    history: NDArray[np.int32],
    grads: NDArray[np.float32],
    places: SortedPlaces,
    factors: NDArray[np.float32],
    runs: Runs,
    first: int,
    last: int,
    move: Move,
) -> None:
    """Moves the rows of runs first:last by their `clip.merged_sum`s, of which a few are kept at a time."""
    dim = array.shape[1]
    scratch, sums = scratch_for(move.key, dim), np.empty((SUMMED_ROWS, dim))
    for start in range(first, last, SUMMED_ROWS):
        count = min(SUMMED_ROWS, last - start)
        merged_sum(grads, places, factors, runs, start, sums[:count])
        for lanes in range(0, count, LANES):
            few = sums[lanes : min(lanes + LANES, count)]
            for ahead in range(start + lanes + LANES, min(start + lanes + 2 * LANES, last)):
                row = runs.rows[ahead]
                prefetch(array.ctypes.data + row * dim * array.itemsize)
                prefetch(history.ctypes.data + row * history.itemsize)
            _move_lanes(array, history, runs.rows, start + lanes, few, move, scratch)


def move_others(array: NDArray[np.float32], but: NDArray[np.int64], move: Move) -> None:
    """Moves every row but some by no gradient.

    Args:
        array: float32[n, dim], changed in place.
        but: int64[k], rising, the rows to leave as they are.
        move: what is done.
    """
    history = np.empty(0, np.int32)

    def share(first: int, last: int) -> None:
        left_out = but[np.searchsorted(but, first) : np.searchsorted(but, last)]
        rows = np.delete(np.arange(first, last), left_out - first)
        move_rows(array, history, rows, np.zeros((len(rows), array.shape[1])), move)

    over(len(array), ROWS_PER_TASK, share)
