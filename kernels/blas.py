"""Matrix products inside numba kernels, without the GIL.

A BLAS is called by its Fortran interface; the address of the routine is an argument, so that compiled kernels
can be cached. Matrices are row-major here and column-major there, so operands change places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, float64, int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

PLAIN, TRANSPOSED = ord("N"), ord("T")
# Numbers of rows that a routine may be called with, each set from largest to smallest; see `row_blocks`.
CANDIDATES = (
    (512, 128, 32, 16),
    (192, 96, 48, 16),
    (192, 96, 48),
    (144, 48),
    (64, 16),
    (48,),
    (16,),
    (4,),
)
NO_BLOCKS = np.zeros(4, np.int64)


class Blas(NamedTuple):
    """Addresses of the routines, from `torch_ops.find_blas`.

    Attributes:
        sgemm: float32 product.
        dgemm: float64 product.
    """

    sgemm: int
    dgemm: int


def _gemm(number: Any, real: ir.Type) -> Any:
    """A call of ?gemm(transa, transb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc)."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8), ir.IntType(32)
        pointer = byte.as_pointer()
        routine = ir.FunctionType(ir.VoidType(), [pointer] * 13)

        def by_reference(value: Any, kind: ir.Type) -> Any:
            place = cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]
            builder.store(value, place)
            return builder.bitcast(place, pointer)

        def letter(value: Any) -> Any:
            return by_reference(builder.trunc(value, byte), byte)

        def count(value: Any) -> Any:
            return by_reference(builder.trunc(value, word), word)

        def matrix(value: Any) -> Any:
            return builder.inttoptr(value, pointer)

        one = by_reference(ir.Constant(real, 1.0), real)
        function = builder.inttoptr(args[0], routine.as_pointer())
        operands = [matrix(args[6]), count(args[7]), matrix(args[8]), count(args[9])]
        result = [by_reference(args[10], real), matrix(args[11]), count(args[12])]
        shape = [letter(args[1]), letter(args[2]), count(args[3]), count(args[4]), count(args[5])]
        builder.call(function, [*shape, one, *operands, *result])
        return context.get_dummy_value()

    return types.void(*[int64] * 10, number, int64, int64), generate


def _intrinsic(single: bool) -> Any:
    """The call as numba sees it; numba wants every argument named."""
    kind, real = (float32, ir.FloatType()) if single else (float64, ir.DoubleType())

    def call(
        _context: Any,
        address: Any,
        transa: Any,
        transb: Any,
        m: Any,
        n: Any,
        k: Any,
        a: Any,
        lda: Any,
        b: Any,
        ldb: Any,
        beta: Any,
        c: Any,
        ldc: Any,
    ) -> Any:
        """?gemm at an address."""
        return _gemm(kind, real)

    return intrinsic(call)


_sgemm: Any = _intrinsic(single=True)
_dgemm: Any = _intrinsic(single=False)


@njit(cache=True, nogil=True)
def times_transposed(
    blas: Blas,
    blocks: NDArray[np.int64],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """out[n, m] = left[n, k] right[m, k]^T, C-contiguous float32.

    A row of the result depends on the row alone, to the bit, with blocks from `row_blocks`: routines add in
    another order in the last rows of a matrix, and in matrices of other sizes.

    Args:
        blas: from `find_blas`.
        blocks: int64[4], numbers of rows to multiply at a time, falling, 0 beyond the last; all 0 for
            plain loops.
        left: float32[n, k].
        right: float32[m, k].
        out: float32[n, m], written.
    """
    k, m = left.shape[1], right.shape[0]
    if k == 0:
        out[:] = 0.0
    elif m == 1 or blocks[0] == 0:
        _dot_rows(left, right, out)
    else:
        _in_blocks(blas, blocks, left, TRANSPOSED, right, k, out)


@njit(cache=True, nogil=True)
def times(
    blas: Blas,
    blocks: NDArray[np.int64],
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """out[n, m] = left[n, k] right[k, m], C-contiguous float32; as `times_transposed`."""
    k, m = right.shape
    if m == 0:
        return
    if k == 1 or blocks[0] == 0:
        _add_rows(left, right, out)
    else:
        _in_blocks(blas, blocks, left, PLAIN, right, m, out)


@njit(cache=True, nogil=True)
def _in_blocks(
    blas: Blas,
    blocks: NDArray[np.int64],
    left: NDArray[np.float32],
    how: int,
    right: NDArray[np.float32],
    stride: int,
    out: NDArray[np.float32],
) -> None:
    """Products of blocks of rows; the last few rows are filled up to the smallest block."""
    n, k, m = left.shape[0], left.shape[1], out.shape[1]
    done, smallest = 0, 0
    for size in blocks:
        if size > 0:
            smallest = size
            while n - done >= size:
                here, there = left[done:].ctypes.data, out[done:].ctypes.data
                _product(blas, how, size, m, k, right.ctypes.data, stride, here, there)
                done += size
    if done < n:
        rest, result = np.zeros((smallest, k), np.float32), np.empty((smallest, m), np.float32)
        rest[: n - done] = left[done:]
        here, there = rest.ctypes.data, result.ctypes.data
        _product(blas, how, smallest, m, k, right.ctypes.data, stride, here, there)
        out[done:] = result[: n - done]


@njit(cache=True, nogil=True)
def _product(
    blas: Blas, how: int, n: int, m: int, k: int, right: int, stride: int, left: int, out: int
) -> None:
    """A row-major product of n rows."""
    _sgemm(blas.sgemm, how, PLAIN, m, n, k, right, stride, left, k, float32(0.0), out, m)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot_rows(
    left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[n, m] = left[n, k] right[m, k]^T, one dot product after another."""
    for i in range(len(left)):
        for m in range(len(right)):
            row, column = left[i], right[m]
            total = float32(0.0)
            for j in range(len(column)):
                total += row[j] * column[j]
            out[i, m] = total


@njit(cache=True, nogil=True)
def _add_rows(
    left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[n, m] = left[n, k] right[k, m], one row of `right` after another."""
    for i in range(len(left)):
        row = out[i]
        for j in range(len(row)):
            row[j] = left[i, 0] * right[0, j]
        for k in range(1, len(right)):
            for j in range(len(row)):
                row[j] += left[i, k] * right[k, j]


def row_blocks(blas: Blas, width_in: int, width_out: int) -> NDArray[np.int64]:
    """Numbers of rows with which both products of a layer treat every row alike, tried on this machine.

    Args:
        blas: from `find_blas`, and as many threads as it will have.
        width_in: k of `times_transposed`, m of `times`.
        width_out: m of `times_transposed`, k of `times`.

    Returns:
        int64[2, 4], blocks for `times_transposed` and for `times`: the first of `CANDIDATES` with which equal
        rows give equal bits in every place of every block; all 0 where none does.
    """
    rng = np.random.default_rng(0)
    result = np.zeros((2, 4), np.int64)
    weight = rng.normal(size=(width_out, width_in)).astype(np.float32)
    for index, (routine, width, width_result) in enumerate(
        [(times_transposed, width_in, width_out), (times, width_out, width_in)]
    ):
        vectors = rng.normal(size=(1 + 64 // max(width_result, 1), width)).astype(np.float32)
        for candidate in CANDIDATES:
            blocks = NO_BLOCKS.copy()
            blocks[: len(candidate)] = candidate
            if all(
                _alike(routine, blas, blocks, vector, weight, width_result) for vector in vectors
            ):
                result[index] = blocks
                break
    return result


def _alike(
    routine: Any,
    blas: Blas,
    blocks: NDArray[np.int64],
    vector: NDArray[np.float32],
    weight: NDArray[np.float32],
    width: int,
) -> bool:
    """Whether copies of one row give equal bits, in all blocks and from several addresses."""
    most = int(blocks.sum() + blocks[blocks > 0][-1])
    copies, out = np.tile(vector, (most + 3, 1)), np.empty((most + 3, width), np.float32)
    expected = None
    for start in range(4):
        for size in (most, *(int(b) for b in blocks if b), 1):
            routine(blas, blocks, copies[start : start + size], weight, out[start : start + size])
            expected = out[start].copy() if expected is None else expected
            if not (out[start : start + size].view(np.uint32) == expected.view(np.uint32)).all():
                return False
    return True


@njit(cache=True, nogil=True)
def transposed_times(
    blas: Blas,
    left: NDArray[np.float32],
    first: int,
    right: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """out[m, k] = left[n, first:first + m]^T right[n, k], C-contiguous float32."""
    n, m, k = left.shape[0], out.shape[0], right.shape[1]
    if n > 0 and m > 0 and k > 0:
        _sgemm(
            blas.sgemm,
            PLAIN,
            TRANSPOSED,
            k,
            m,
            n,
            right.ctypes.data,
            k,
            left.ctypes.data + first * left.itemsize,
            left.shape[1],
            float32(0.0),
            out.ctypes.data,
            k,
        )


@njit(cache=True, nogil=True)
def add_transposed_times(
    blas: Blas, left: NDArray[np.float64], right: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """out[m, k] += left[n, m]^T right[n, k], C-contiguous float64."""
    n, m, k = left.shape[0], left.shape[1], right.shape[1]
    if n > 0 and m > 0 and k > 0:
        _dgemm(
            blas.dgemm,
            PLAIN,
            TRANSPOSED,
            k,
            m,
            n,
            right.ctypes.data,
            k,
            left.ctypes.data,
            m,
            1.0,
            out.ctypes.data,
            k,
        )
