"""Asking for memory before it is needed: the rows of large tables are seldom in cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

# By then the memory has answered.
PLACES_AHEAD = 16


def _prefetch_of(_context: Any, address: Any) -> Any:
    """Starts to load the cache line at an address; never faults."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        # 0: to read; 3: keep in all caches; 1: data
        hints = [ir.Constant(word, hint) for hint in (0, 3, 1)]
        builder.call(function, [builder.inttoptr(args[0], pointer), *hints])
        return context.get_dummy_value()

    return types.void(int64), generate


prefetch: Any = intrinsic(_prefetch_of)
