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
ROWS = 16  # products of a multiple of so many rows treat all rows alike


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
    blas: Blas, left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[n, m] = left[n, k] right[m, k]^T, C-contiguous float32.

    A row of the result depends on the row alone, to the bit: routines treat a few last rows in another way
    than the others, so those are multiplied in a block of their own.
    """
    k, m = left.shape[1], right.shape[0]
    if m == 1:
        _times_vector(left, right[0], out)
        return
    if k == 0:
        out[:] = 0.0
        return
    _rows_times(blas, left, TRANSPOSED, right, k, out)


@njit(cache=True, nogil=True)
def times(
    blas: Blas, left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[n, m] = left[n, k] right[k, m], C-contiguous float32; rows as in `times_transposed`."""
    m = right.shape[1]
    if m > 0:
        _rows_times(blas, left, PLAIN, right, m, out)


@njit(cache=True, nogil=True)
def _rows_times(
    blas: Blas,
    left: NDArray[np.float32],
    how: int,
    right: NDArray[np.float32],
    stride: int,
    out: NDArray[np.float32],
) -> None:
    """Whole blocks of rows in one product, the last few in another."""
    n, k, m = left.shape[0], left.shape[1], out.shape[1]
    whole = n - n % ROWS
    if whole > 0:
        _product(
            blas, how, whole, m, k, right.ctypes.data, stride, left.ctypes.data, out.ctypes.data
        )
    if whole < n:
        rest, result = np.zeros((ROWS, k), np.float32), np.empty((ROWS, m), np.float32)
        rest[: n - whole] = left[whole:]
        _product(
            blas, how, ROWS, m, k, right.ctypes.data, stride, rest.ctypes.data, result.ctypes.data
        )
        out[whole:] = result[: n - whole]


@njit(cache=True, nogil=True)
def _product(
    blas: Blas, how: int, n: int, m: int, k: int, right: int, stride: int, left: int, out: int
) -> None:
    """A row-major product of n rows."""
    _sgemm(blas.sgemm, how, PLAIN, m, n, k, right, stride, left, k, float32(0.0), out, m)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _times_vector(
    left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """out[n, 1] = left[n, k] right[k]."""
    for i in range(len(left)):
        row = left[i]
        total = float32(0.0)
        for j in range(len(right)):
            total += row[j] * right[j]
        out[i, 0] = total


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
