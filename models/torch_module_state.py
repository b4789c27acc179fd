"""What a torch module keeps beside its parameters: nothing may pass from one forward pass to the next.

What forward assigns to attributes is taken back after each pass, so that the next begins as the first did.
What it changes inside of objects (tensors, lists, generators of random numbers) is found by comparison.
"""

from __future__ import annotations

import random
from collections import deque
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

COMPARED = 4096  # elements up to which numbers are compared, not only how often torch wrote to them
DEPTH = 4  # of objects in objects
_FIXED = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
_CODE = (FunctionType, MethodType, BuiltinFunctionType, ModuleType)
_OF_TORCH = frozenset(vars(nn.Module()))


class KeptState:
    """A module's attributes, buffers and parameters as they are when this is made.

    Args:
        module: nothing has called it yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept: list[tuple[dict[str, Any], dict[str, Any], list[int]]] = []
        self._inside: list[tuple[str, Any, Any]] = []
        for path, layer in module.named_modules():
            if type(layer).__module__.startswith("dpads."):
                continue  # stand-ins, which keep nothing of a batch
            own = vars(layer)
            for held in (own, layer._parameters, layer._buffers):
                copied: dict[str, Any] = dict(held)
                self._kept.append((held, copied, [*map(id, copied.values())]))
            plain = {key: value for key, value in own.items() if key not in _OF_TORCH}
            for key, value in {**layer._parameters, **layer._buffers, **plain}.items():
                if not isinstance(value, (*_FIXED, *_CODE)):
                    name = f"{path}.{key}" if path else key
                    self._inside.append((name, value, _content(value, DEPTH)))

    def settle(self) -> str | None:
        """Takes back what was assigned since; names an attribute whose inside was changed, or None."""
        for held, before, places in self._kept:
            if [*map(id, held.values())] != places:
                held.clear()
                held.update(before)
        for name, value, before in self._inside:
            if _content(value, DEPTH) != before:
                return name
        return None


def _content(value: Any, depth: int) -> Any:
    """What changes when the inside of a value changes; comparable with `!=`."""
    if isinstance(value, _FIXED):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return id(value), value._version, _numbers(value)
    if isinstance(value, np.ndarray):
        known = value.size <= COMPARED and not value.dtype.hasobject
        return id(value), value.tobytes() if known else None
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if depth == 0 or isinstance(value, (*_CODE, nn.Module)):
        return id(value)
    if isinstance(value, dict):
        return id(value), [(repr(key), _content(own, depth - 1)) for key, own in value.items()]
    if isinstance(value, list | tuple | deque):
        return id(value), [_content(own, depth - 1) for own in value]
    if isinstance(value, set | frozenset):
        return id(value), sorted(map(repr, value))
    if hasattr(value, "__dict__"):
        return id(value), _content(vars(value), depth - 1)[1]
    return id(value)


def _numbers(value: torch.Tensor) -> bytes | None:
    """The bits of a small tensor that is not trained."""
    if value.requires_grad or value.numel() > COMPARED or value.layout is not torch.strided:
        return None
    return value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
