"""torch's threads and torch's matrix products."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba.extending import get_cython_function_address

from dpads.kernels.blas import Blas
from dpads.kernels.workers import over


@contextmanager
def single_threaded() -> Iterator[None]:
    """Lets torch and its BLAS use the calling thread alone: the pool's threads have chunks of their own.

    torch's threads would also wait by spinning after each operation, and take the cores from the pool.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def over_alone(count: int, size: int, task: Callable[[int, int], None]) -> None:
    """`over`, each range on its thread alone: torch and its BLAS take no others."""

    def alone(first: int, last: int) -> None:
        torch.set_num_threads(1)
        task(first, last)

    with single_threaded():
        over(count, size, alone)


@cache
def find_blas() -> Blas:
    """torch's BLAS where its library shows it (its threads then follow torch's), else SciPy's."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if library.is_file():
        loaded = ctypes.CDLL(str(library))
        if hasattr(loaded, "sgemm_") and hasattr(loaded, "dgemm_"):
            return Blas(_address(loaded.sgemm_), _address(loaded.dgemm_))
    return scipy_blas()


def scipy_blas() -> Blas:
    """SciPy's BLAS."""
    module = "scipy.linalg.cython_blas"
    return Blas(
        get_cython_function_address(module, "sgemm"), get_cython_function_address(module, "dgemm")
    )


def _address(function: Any) -> int:
    """Where a C function lies."""
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
