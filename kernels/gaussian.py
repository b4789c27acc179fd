"""Standard normals addressed by (key, iteration, row): ChaCha20 words through Box-Muller.

Pair p of a row takes words 3p, 3p + 1 (a 64-bit radius: tails reach 9.4 standard deviations) and 3p + 2 (a
32-bit angle). Logarithm, sine and cosine are polynomials in float64, so that the loops vectorise and the
numbers are the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, float64, int64, njit, prange, types, uint32
from numba.extending import intrinsic
from numpy.typing import NDArray

from dpads.kernels.chacha import LANES, WORDS, keystream, set_key

SQRT_HALF = 0.7071067811865476
LOG_2 = 0.6931471805599453
GROUPS_PER_TASK = 64  # rows per parallel task / LANES: amortises the scratch arrays


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


@njit(inline="always")
def _log(u: float) -> float:
    """Natural logarithm of a positive normal float64, relative error below 1e-13."""
    bits = _bits(u)
    exponent = (bits >> int64(52)) - int64(1023)
    mantissa = _from_bits((bits & int64(0x000FFFFFFFFFFFFF)) | int64(0x3FF0000000000000))
    high = mantissa > 1.4142135623730951
    mantissa = mantissa * 0.5 if high else mantissa
    scale = float64(exponent) + (1.0 if high else 0.0)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    t = s * s
    poly = 1.0 / 17.0
    poly = poly * t + 1.0 / 15.0
    poly = poly * t + 1.0 / 13.0
    poly = poly * t + 1.0 / 11.0
    poly = poly * t + 1.0 / 9.0
    poly = poly * t + 1.0 / 7.0
    poly = poly * t + 1.0 / 5.0
    poly = poly * t + 1.0 / 3.0
    return float(scale * LOG_2 + 2.0 * s * (1.0 + poly * t))


@njit(cache=True, nogil=True)
def lane_normals(words: NDArray[np.uint32], pairs: int, out: NDArray[np.float32]) -> None:
    """Turns lane-layout words into lane-layout standard normals.

    Args:
        words: uint32[>= 3 * pairs * LANES], word w of lane l at w * LANES + l.
        pairs: normals per lane / 2.
        out: float32[2 * pairs * LANES], normal n of lane l at n * LANES + l.
    """
    for p in range(pairs):
        for lane in range(LANES):
            first = float64(words[(3 * p) * LANES + lane])
            second = float64(words[(3 * p + 1) * LANES + lane])
            u = first * 2.0**-32 + (second + 0.5) * 2.0**-64
            radius = np.sqrt(max(-2.0 * _log(u), 0.0))
            turn = float64(words[(3 * p + 2) * LANES + lane]) * 2.0**-32
            octant = np.floor(turn * 4.0 + 0.5)
            x = (turn - octant * 0.25) * 6.283185307179586
            t = x * x
            sine = -1.0 / 39916800.0
            sine = sine * t + 1.0 / 362880.0
            sine = sine * t - 1.0 / 5040.0
            sine = sine * t + 1.0 / 120.0
            sine = sine * t - 1.0 / 6.0
            sine = x + x * t * sine
            cosine = 1.0 / 479001600.0
            cosine = cosine * t - 1.0 / 3628800.0
            cosine = cosine * t + 1.0 / 40320.0
            cosine = cosine * t - 1.0 / 720.0
            cosine = cosine * t + 1.0 / 24.0
            cosine = cosine * t - 0.5
            cosine = 1.0 + t * cosine
            quadrant = int64(octant) & int64(3)
            swap = (quadrant & int64(1)) == int64(1)
            c = sine if swap else cosine
            s = cosine if swap else sine
            c = -c if (quadrant == int64(1)) or (quadrant == int64(2)) else c
            s = -s if quadrant >= int64(2) else s
            out[(2 * p) * LANES + lane] = float32(radius * c)
            out[(2 * p + 1) * LANES + lane] = float32(radius * s)


@njit(inline="always")
def pairs_of(dim: int) -> int:
    """Box-Muller pairs that a row of `dim` numbers takes."""
    return (dim + 1) // 2


@njit(inline="always")
def blocks_of(dim: int) -> int:
    """ChaCha blocks that a row of `dim` numbers takes."""
    return (3 * pairs_of(dim) + WORDS - 1) // WORDS


@njit(cache=True, nogil=True)
def group_normals(
    initial: NDArray[np.uint32],
    words: NDArray[np.uint32],
    rows: NDArray[np.int64],
    start: int,
    count: int,
    step: int,
    dim: int,
    out: NDArray[np.float32],
) -> None:
    """Standard normals of up to LANES rows, in lane layout.

    Args:
        initial: uint32[16 * LANES] that `set_key` prepared; counter and nonce words are overwritten.
        words: uint32[blocks_of(dim) * 16 * LANES], scratch.
        rows: int64[k], row addresses below 2^32.
        start: first of the rows taken.
        count: number of the rows taken, at most LANES.
        step: the iteration of the address.
        dim: normals per row.
        out: float32[2 * pairs_of(dim) * LANES].
    """
    for lane in range(LANES):
        row = rows[start + min(lane, count - 1)]
        initial[13 * LANES + lane] = uint32(row)
        initial[14 * LANES + lane] = uint32(step)
        initial[15 * LANES + lane] = uint32(step >> 32)
    for index in range(blocks_of(dim)):
        for lane in range(LANES):
            initial[12 * LANES + lane] = uint32(index)
        keystream(initial, words, index * WORDS * LANES)
    lane_normals(words, pairs_of(dim), out)


@njit(cache=True, parallel=True, nogil=True)
def fill_normals(
    key: NDArray[np.uint32], rows: NDArray[np.int64], step: int, out: NDArray[np.float32]
) -> None:
    """Writes standard normals for the given rows: out[i] depends on (key, step, rows[i]) alone.

    Args:
        key: uint32[8].
        rows: int64[k], row addresses below 2^32.
        step: the iteration of the address.
        out: float32[k, dim], overwritten.

    Guarantees:
        - The result does not depend on the number of threads, on k or on the order of rows.
    """
    dim = out.shape[1]
    span = GROUPS_PER_TASK * LANES
    for task in prange((len(rows) + span - 1) // span):
        initial = np.empty(WORDS * LANES, np.uint32)
        words = np.empty(blocks_of(dim) * WORDS * LANES, np.uint32)
        normals = np.empty(2 * pairs_of(dim) * LANES, np.float32)
        set_key(initial, key)
        for start in range(task * span, min((task + 1) * span, len(rows)), LANES):
            count = min(LANES, len(rows) - start)
            group_normals(initial, words, rows, start, count, step, dim, normals)
            for lane in range(count):
                for j in range(dim):
                    out[start + lane, j] = normals[j * LANES + lane]


def normals(key: NDArray[np.uint32], step: int, count: int) -> NDArray[np.float32]:
    """A flat vector of standard normals addressed by (key, step), float32[count].

    Coordinate i is number i mod 16 of row i // 16, so that a prefix does not depend on `count`.
    """
    rows = np.arange((count + 15) // 16, dtype=np.int64)
    out = np.empty((len(rows), 16), np.float32)
    fill_normals(key, rows, step, out)
    return out.reshape(-1)[:count]
