"""Lazy Gaussian noise: the law of noise on every row in every iteration, at the cost of the touched rows.

Row r was last noised before iteration a = history[r]. Before it is read at iteration b it is multiplied by
prod_{t=a}^{b-1} d_t and receives the one Gaussian that sums what it missed, of variance
scale^2 * sum_{t=a}^{b-1} eta_t^2 * prod_{u=t+1}^{b-1} d_u^2. The draw has the address (key, b, r).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dpads.kernels.chacha import LANES
from dpads.kernels.gaussian import group_normals, scratch_for
from dpads.kernels.memory import prefetch
from dpads.kernels.workers import ROWS_PER_TASK, over

BLOCK_BITS = 4
BLOCK = 1 << BLOCK_BITS
RECENT = 4096  # intervals shorter than this are looked up: most rows that are read were read lately


class MissedNoise(NamedTuple):
    """Tables from which the variance of any interval [a, b) comes without subtracting sums.

    Attributes:
        squares: float64[T], eta_t^2.
        factors: float64[T], d_t^2.
        log_decay: float64[T + 1], sum of log d_t over t < index.
        suffix: float64[T + 1], variance of [t, end of t's block).
        prefix: float64[T + 1], variance of [start of t's block, t).
        left: float64[levels, blocks], variance from a block to the middle of its span, 2^(level + 1) blocks.
        right: float64[levels, blocks], variance from that middle through a block.
    """

    squares: NDArray[np.float64]
    factors: NDArray[np.float64]
    log_decay: NDArray[np.float64]
    suffix: NDArray[np.float64]
    prefix: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]


@njit(inline="always")
def _exp(x: float) -> float:
    """exp(x), quick where there is no decay."""
    return 1.0 if x == 0.0 else float(np.exp(x))


@njit(cache=True, nogil=True)
def tabulate(squares: NDArray[np.float64], decays: NDArray[np.float64]) -> MissedNoise:
    """Builds the tables for learning rates whose squares are given and decay factors d_t in (0, 1].

    Time and memory are O(T + (T / 16) log(T / 16)): blocks of 16 iterations, and over the blocks a disjoint
    sparse table, so that every query is a few additions of positive numbers.
    """
    steps = len(squares)
    factors = decays * decays
    log_decay = np.zeros(steps + 1)
    total = 0.0
    lost = 0.0  # Kahan summation: intervals at the end of a long run keep their digits
    for t in range(steps):
        term = np.log(decays[t]) - lost
        new = total + term
        lost = (new - total) - term
        total = new
        log_decay[t + 1] = total
    prefix = np.zeros(steps + 1)
    for t in range(steps):
        before = 0.0 if t % BLOCK == 0 else prefix[t]
        if (t + 1) % BLOCK != 0:
            prefix[t + 1] = before * factors[t] + squares[t]
    suffix = np.zeros(steps + 1)
    weight = 1.0
    for t in range(steps - 1, -1, -1):
        last = (t + 1) % BLOCK == 0 or t == steps - 1
        weight = 1.0 if last else weight * factors[t + 1]
        suffix[t] = (0.0 if last else suffix[t + 1]) + squares[t] * weight
    blocks = (steps + BLOCK - 1) // BLOCK
    levels = 1
    while (1 << levels) < blocks:
        levels += 1
    left = np.zeros((levels, blocks))
    right = np.zeros((levels, blocks))
    for level in range(levels):
        half = 1 << level
        for middle in range(half, blocks, 2 * half):
            value = 0.0
            for b in range(middle - 1, middle - half - 1, -1):
                end = min((b + 1) * BLOCK, steps)
                value += suffix[b * BLOCK] * np.exp(
                    2.0 * (log_decay[middle * BLOCK] - log_decay[end])
                )
                left[level, b] = value
            value = 0.0
            for b in range(middle, min(middle + half, blocks)):
                end = min((b + 1) * BLOCK, steps)
                decay = _exp(2.0 * (log_decay[end] - log_decay[b * BLOCK]))
                value = value * decay + suffix[b * BLOCK]
                right[level, b] = value
    return MissedNoise(squares, factors, log_decay, suffix, prefix, left, right)


@njit(cache=True, nogil=True)
def missed_variance(table: MissedNoise, a: int, b: int) -> float:
    """sum_{t=a}^{b-1} eta_t^2 prod_{u=t+1}^{b-1} d_u^2 for 0 <= a <= b <= T, relative error below 1e-9."""
    if a >= b:
        return 0.0
    first = a >> BLOCK_BITS
    if first == (b - 1) >> BLOCK_BITS:
        value = 0.0
        for t in range(a, b):
            value = value * table.factors[t] + table.squares[t]
        return value
    position = (first + 1) << BLOCK_BITS
    value = float(table.suffix[a])
    x = first + 1
    y = (b >> BLOCK_BITS) - 1
    if x <= y:
        end = (y + 1) << BLOCK_BITS
        if x == y:
            middle_value = table.suffix[x << BLOCK_BITS]
        else:
            level = 0
            while ((x ^ y) >> (level + 1)) > 0:
                level += 1
            middle = ((y >> level) << level) << BLOCK_BITS
            decay = _exp(2.0 * (table.log_decay[end] - table.log_decay[middle]))
            middle_value = table.left[level, x] * decay + table.right[level, y]
        value = (
            value * _exp(2.0 * (table.log_decay[end] - table.log_decay[position])) + middle_value
        )
        position = end
    if b > position:
        decay = _exp(2.0 * (table.log_decay[b] - table.log_decay[position]))
        value = value * decay + table.prefix[b]
    return value


@njit(cache=True, nogil=True)
def recent_intervals(
    table: MissedNoise,
    step: int,
    scale: float,
    stddevs: NDArray[np.float64],
    decays: NDArray[np.float64],
) -> None:
    """Standard deviation and decay of the short intervals that end at `step`, shared by many rows.

    Args:
        table: of the schedule.
        step: end of the intervals.
        scale: noise_multiplier * l2_clip_norm / divisor.
        stddevs: float64[RECENT], entry k is written for the interval [step - k, step), k <= step.
        decays: float64[RECENT], likewise.
    """
    variance = 0.0
    decay = 1.0
    for k in range(min(len(stddevs), step + 1)):
        stddevs[k] = scale * np.sqrt(variance)
        decays[k] = np.sqrt(decay)
        t = step - k - 1
        if t >= 0:
            variance += table.squares[t] * decay
            decay *= table.factors[t]


@njit(cache=True, nogil=True)
def _missed(table: MissedNoise, since: int, step: int, scale: float) -> tuple[float, float]:
    """Standard deviation and decay of [since, step).

    For intervals that are too long to be looked up: to hand the table on costs more than a lookup.
    """
    stddev = scale * np.sqrt(missed_variance(table, since, step))
    return stddev, _exp(table.log_decay[step] - table.log_decay[since])


@njit(cache=True, nogil=True)
def missed_by(
    since: NDArray[np.int32],
    step: int,
    scale: float,
    table: MissedNoise,
    stddevs: NDArray[np.float64],
    decays: NDArray[np.float64],
    missed: NDArray[np.float64],
    kept: NDArray[np.float64],
) -> None:
    """What rows missed: 0 and 1 where they are up to date.

    Args:
        since: int32[k], the first iteration whose noise each row lacks, at most `step`.
        step: iterations [since, step) are made up for.
        scale: noise_multiplier * l2_clip_norm / divisor.
        table: of the schedule.
        stddevs: float64[RECENT], from `recent_intervals` at this step.
        decays: float64[RECENT], likewise.
        missed: float64[k], written: standard deviations of the noise.
        kept: float64[k], written: factors of the rows.
    """
    for i in range(len(since)):
        gap = step - since[i]
        if gap < len(stddevs):
            missed[i], kept[i] = stddevs[gap], decays[gap]
        else:
            missed[i], kept[i] = _missed(table, since[i], step, scale)


@njit(cache=True, nogil=True)
def _catch_up(
    array: NDArray[np.float32],
    history: NDArray[np.int32],
    rows: NDArray[np.int64],
    step: int,
    key: NDArray[np.uint32],
    scale: float,
    table: MissedNoise,
    stddevs: NDArray[np.float64],
    decays: NDArray[np.float64],
) -> None:
    """One thread's share of `catch_up`."""
    dim = array.shape[1]
    scratch, since = scratch_for(key, dim), np.empty(LANES, np.int64)
    normals = scratch.normals
    for start in range(0, len(rows), LANES):
        count = min(LANES, len(rows) - start)
        for ahead in range(start + LANES, min(start + 2 * LANES, len(rows))):
            prefetch(array.ctypes.data + rows[ahead] * dim * array.itemsize)
            prefetch(history.ctypes.data + rows[ahead] * history.itemsize)
        pending = False
        for lane in range(count):
            since[lane] = history[rows[start + lane]]
            pending = pending or since[lane] < step
        if not pending:
            continue
        if scale > 0.0:
            group_normals(scratch, rows, start, count, step, dim)
        for lane in range(count):
            gap = step - since[lane]
            if gap <= 0:
                continue
            row = rows[start + lane]
            if gap < len(stddevs):
                stddev, decay = stddevs[gap], decays[gap]
            else:
                stddev, decay = _missed(table, since[lane], step, scale)
            values = array[row]
            for j in range(dim):
                value = decay * values[j] - stddev * normals[j * LANES + lane]
                values[j] = np.float32(value)
            history[row] = step


def catch_up(
    array: NDArray[np.float32],
    history: NDArray[np.int32],
    rows: NDArray[np.int64],
    step: int,
    key: NDArray[np.uint32],
    scale: float,
    table: MissedNoise,
    stddevs: NDArray[np.float64],
    decays: NDArray[np.float64],
) -> None:
    """Brings rows up to date with iteration `step`: decay and noise of everything they missed.

    Args:
        array: float32[n, dim], changed in place at `rows`.
        history: int32[n], the first iteration whose noise each row lacks; set to `step` at `rows`.
        rows: int64[k], distinct.
        step: iterations [history, step) are made up for.
        key: uint32[8], the table's noise key.
        scale: noise_multiplier * l2_clip_norm / divisor.
        table: of the schedule.
        stddevs: float64[RECENT], from `recent_intervals` at this step.
        decays: float64[RECENT], likewise.

    Guarantees:
        - The result does not depend on the number of threads nor on the order of rows.
        - A row already up to date is not changed and draws nothing.
    """
    over(
        len(rows),
        ROWS_PER_TASK,
        lambda start, end: _catch_up(
            array, history, rows[start:end], step, key, scale, table, stddevs, decays
        ),
    )
