"""Standard normals addressed by (key, iteration, row): ChaCha20 words through Box-Muller.

Pair p of a row takes words 2p (a radius) and 2p + 1 (an angle). One radius in 2^12 is so long that 32 bits
are too coarse for it: it takes a second word, number p of the blocks after the row's, so that tails have 64
bits and reach 9.4 standard deviations. Shorter ones lose nothing that a float32 could hold. Logarithm, sine
and cosine are polynomials in float64, so that the loops vectorise and the numbers are the same everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import float64, int32, int64, njit, types, uint32
from numba.extending import intrinsic
from numpy.typing import NDArray

from dpads.kernels.chacha import LANES, WORDS, keystream, set_key
from dpads.kernels.workers import ROWS_PER_TASK, over

LOG_2 = 0.6931471805599453
NORMALS_PER_ROW = 16  # of a flat vector
REFINED = 1 << 20  # first words below this take a second one
MIDDLE = 1 << 31  # the second word of the others
TURN = 1.4629180792671596e-09  # 2 pi / 2^32


def _bits_of(_context: Any, value: Any) -> Any:
    """The bits of a float64 as int64."""

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


def _float_of(_context: Any, value: Any) -> Any:
    """The float64 that has the given bits."""

    def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


_bits: Any = intrinsic(_bits_of)
_from_bits: Any = intrinsic(_float_of)


@njit(inline="always", error_model="numpy")
def _log(u: float) -> np.float32:
    """Natural logarithm of a normal float64 in (0, 1], in float32 with relative error below 3e-7."""
    bits = _bits(u)
    # adding the difference between 2 and sqrt(2) carries into the exponent where the mantissa exceeds sqrt(2)
    exponent = ((bits + int64(0x00095F619980C433)) >> int64(52)) - int64(1023)
    mantissa = _from_bits(bits - (exponent << int64(52)))
    d = np.float32(mantissa - 1.0)  # exact before it is rounded: no digits are lost near u = 1
    s = np.float32(d / np.float32(d + np.float32(2.0)))
    t = np.float32(s * s)
    poly = np.float32(t * np.float32(1.0 / 9.0) + np.float32(1.0 / 7.0))
    poly = np.float32(poly * t + np.float32(1.0 / 5.0))
    poly = np.float32(poly * t + np.float32(1.0 / 3.0))
    s = np.float32(s + s)
    rest = np.float32(s + s * np.float32(t * poly))
    return np.float32(np.float32(exponent) * np.float32(LOG_2) + rest)


@njit(cache=True, nogil=True, error_model="numpy")
def lane_normals(
    words: NDArray[np.uint32], lows: NDArray[np.uint32], pairs: int, out: NDArray[np.float32]
) -> None:
    """Turns lane-layout words into lane-layout standard normals.

    Args:
        words: uint32[>= 2 * pairs * LANES], word w of lane l at w * LANES + l.
        lows: uint32[>= pairs * LANES], second words of the radii, likewise.
        pairs: normals per lane / 2.
        out: float32[(2 * pairs + 1) * LANES], normal n of lane l at n * LANES + l; the rest is scratch.
    """
    radii = out[2 * pairs * LANES :]
    for p in range(pairs):
        # slices indexed by the lane alone: LLVM then sees unit strides and vectorises
        high = words[2 * p * LANES : (2 * p + 1) * LANES]
        low = lows[p * LANES : (p + 1) * LANES]
        turn = words[(2 * p + 1) * LANES : (2 * p + 2) * LANES]
        cosines = out[2 * p * LANES : (2 * p + 1) * LANES]
        sines = out[(2 * p + 1) * LANES : (2 * p + 2) * LANES]
        for lane in range(LANES):
            u = float64(high[lane]) * 2.0**-32 + (float64(low[lane]) + 0.5) * 2.0**-64
            radii[lane] = np.sqrt(abs(np.float32(2.0) * _log(u)))
        for lane in range(LANES):
            # quarter turns, and the rest as a signed fraction of half a quarter: exact in integers
            quarter = uint32(uint32(turn[lane] + uint32(0x20000000)) >> uint32(30))
            rest = int32(uint32(turn[lane] - uint32(quarter << uint32(30))))
            x = np.float32(np.float32(rest) * np.float32(TURN))
            t = np.float32(x * x)
            sine = np.float32(t * np.float32(-1.9515296e-4) + np.float32(8.3321609e-3))
            sine = np.float32(sine * t + np.float32(-1.6666655e-1))
            sine = np.float32(x + x * np.float32(t * sine))
            cosine = np.float32(t * np.float32(2.4433157e-5) + np.float32(-1.3887316e-3))
            cosine = np.float32(cosine * t + np.float32(4.1666646e-2))
            cosine = np.float32(cosine * t - np.float32(0.5))
            cosine = np.float32(np.float32(1.0) + t * cosine)
            swap = (quarter & uint32(1)) != uint32(0)
            first = sine if swap else cosine
            second = cosine if swap else sine
            # over the quarters the sign of the cosine is + - - +, that of the sine + + - -
            minus = (uint32(quarter + uint32(1)) & uint32(2)) != uint32(0)
            cosines[lane] = radii[lane] * (-first if minus else first)
            minus = (quarter & uint32(2)) != uint32(0)
            sines[lane] = radii[lane] * (-second if minus else second)


@njit(inline="always")
def pairs_of(dim: int) -> int:
    """Box-Muller pairs that a row of `dim` numbers takes."""
    return (dim + 1) // 2


@njit(inline="always")
def blocks_of(dim: int) -> int:
    """ChaCha blocks that a row of `dim` numbers takes, without those of second words."""
    return (2 * pairs_of(dim) + WORDS - 1) // WORDS


@njit(inline="always")
def words_of(dim: int) -> int:
    """Length of the array of words that `group_normals` writes to."""
    return (blocks_of(dim) + (pairs_of(dim) + WORDS - 1) // WORDS) * WORDS * LANES


@njit(inline="always")
def scratch_of(dim: int) -> int:
    """Length of the array that `group_normals` writes to."""
    return (2 * pairs_of(dim) + 1) * LANES


class Scratch(NamedTuple):
    """Memory for the normals of LANES rows.

    Attributes:
        initial: uint32[16 * LANES], the key set; counter and nonce words are overwritten.
        words: uint32[words_of(dim)].
        normals: float32[scratch_of(dim)], normal n of row l at n * LANES + l.
    """

    initial: NDArray[np.uint32]
    words: NDArray[np.uint32]
    normals: NDArray[np.float32]


@njit(cache=True, nogil=True)
def scratch_for(key: NDArray[np.uint32], dim: int) -> Scratch:
    """Memory for one thread, the key set."""
    initial = np.empty(WORDS * LANES, np.uint32)
    set_key(initial, key)
    return Scratch(
        initial, np.empty(words_of(dim), np.uint32), np.zeros(scratch_of(dim), np.float32)
    )


@njit(cache=True, nogil=True)
def group_normals(
    scratch: Scratch, rows: NDArray[np.int64], start: int, count: int, step: int, dim: int
) -> None:
    """Standard normals of up to LANES rows, into `scratch.normals`.

    Args:
        scratch: from `scratch_for`, for the same dim.
        rows: int64[k], row addresses below 2^32.
        start: first of the rows taken.
        count: number of the rows taken, at most LANES.
        step: the iteration of the address.
        dim: normals per row.
    """
    initial, words = scratch.initial, scratch.words
    for lane in range(LANES):
        row = rows[start + min(lane, count - 1)]
        initial[13 * LANES + lane] = uint32(row)
        initial[14 * LANES + lane] = uint32(step)
        initial[15 * LANES + lane] = uint32(step >> 32)
    blocks, pairs = blocks_of(dim), pairs_of(dim)
    for index in range(blocks):
        for lane in range(LANES):
            initial[12 * LANES + lane] = uint32(index)
        keystream(initial, words, index * WORDS * LANES)
    lows = words[blocks * WORDS * LANES :]
    _second_words(initial, words, blocks, pairs, lows)
    lane_normals(words, lows, pairs, scratch.normals)


@njit(cache=True, nogil=True)
def _second_words(
    initial: NDArray[np.uint32],
    words: NDArray[np.uint32],
    blocks: int,
    pairs: int,
    lows: NDArray[np.uint32],
) -> None:
    """Second words of the radii: drawn for the long ones, `MIDDLE` for the others."""
    longest = uint32(0xFFFFFFFF)  # a small word is a long radius
    for p in range(pairs):
        high = words[2 * p * LANES : (2 * p + 1) * LANES]
        for lane in range(LANES):
            longest = min(longest, high[lane])
    if longest >= uint32(REFINED):
        for i in range(pairs * LANES):
            lows[i] = uint32(MIDDLE)
        return
    for index in range((pairs + WORDS - 1) // WORDS):
        for lane in range(LANES):
            initial[12 * LANES + lane] = uint32(blocks + index)
        keystream(initial, lows, index * WORDS * LANES)
    for p in range(pairs):
        high = words[2 * p * LANES : (2 * p + 1) * LANES]
        low = lows[p * LANES : (p + 1) * LANES]
        for lane in range(LANES):
            if high[lane] >= uint32(REFINED):
                low[lane] = uint32(MIDDLE)


@njit(cache=True, nogil=True)
def _fill(
    key: NDArray[np.uint32],
    rows: NDArray[np.int64],
    step: int,
    stddev: np.float32,
    out: NDArray[np.float32],
) -> None:
    """One thread's share of `fill_normals`."""
    dim = out.shape[1]
    scratch = scratch_for(key, dim)
    for start in range(0, len(rows), LANES):
        count = min(LANES, len(rows) - start)
        group_normals(scratch, rows, start, count, step, dim)
        for lane in range(count):
            for j in range(dim):
                out[start + lane, j] = stddev * scratch.normals[j * LANES + lane]


def fill_normals(
    key: NDArray[np.uint32],
    rows: NDArray[np.int64],
    step: int,
    out: NDArray[np.float32],
    stddev: float = 1.0,
) -> None:
    """Writes normals for the given rows: out[i] depends on (key, step, rows[i]) alone.

    Args:
        key: uint32[8].
        rows: int64[k], row addresses below 2^32.
        step: the iteration of the address.
        out: float32[k, dim], overwritten.
        stddev: of the normals.

    Guarantees:
        - The result does not depend on the number of threads, on k or on the order of rows.
    """
    over(
        len(rows),
        ROWS_PER_TASK,
        lambda start, end: _fill(key, rows[start:end], step, np.float32(stddev), out[start:end]),
    )


def normals(key: NDArray[np.uint32], step: int, count: int) -> NDArray[np.float32]:
    """A flat vector of standard normals addressed by (key, step), float32[count].

    Coordinate i is number i mod 16 of row i // 16, so that a prefix does not depend on `count`.
    """
    rows = np.arange((count + NORMALS_PER_ROW - 1) // NORMALS_PER_ROW, dtype=np.int64)
    out = np.empty((len(rows), NORMALS_PER_ROW), np.float32)
    fill_normals(key, rows, step, out)
    return out.reshape(-1)[:count]


@njit(cache=True, nogil=True)
def noisy_mean(
    sums: NDArray[np.float64],
    first_row: int,
    key: NDArray[np.uint32],
    step: int,
    stddev: float,
    grid: float,
    divisor: float,
    out: NDArray[np.float32],
) -> None:
    """(sums + stddev * normals) rounded to the grid, over the divisor; the normals are those of `normals`.

    Args:
        sums: float64[n], coordinates from 16 * first_row on.
        first_row: address of the first 16 coordinates.
        key: uint32[8].
        step: the iteration of the address.
        stddev: of the noise on the sums, positive.
        grid: a power of two.
        divisor: positive.
        out: float32[n], written.
    """
    scratch = scratch_for(key, NORMALS_PER_ROW)
    rows = first_row + np.arange((len(sums) + NORMALS_PER_ROW - 1) // NORMALS_PER_ROW)
    for start in range(0, len(rows), LANES):
        count = min(LANES, len(rows) - start)
        group_normals(scratch, rows, start, count, step, NORMALS_PER_ROW)
        for lane in range(count):
            at = (start + lane) * NORMALS_PER_ROW
            for j in range(min(NORMALS_PER_ROW, len(sums) - at)):
                noisy = sums[at + j] + stddev * np.float64(scratch.normals[j * LANES + lane])
                out[at + j] = np.float32(np.rint(noisy / grid) * grid / divisor)
