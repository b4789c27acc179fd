"""What identifies a user's torch module: its structure, its code and its initial parameters, as digests.

Helper functions that the code calls are in none of them, nor is what these read: that is taken on trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CellType, CodeType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.models.torch_conversion import Lookup
from dpads.models.torch_conversion_layout import ReadLayout
from dpads.models.torch_conversion_trace import Trace
from dpads.models.torch_fields import Inputs

PLAIN = (bool, int, float, str, type(None))
ITEMS_DEEP = 3  # of what is looked through for numbers and functions


def structure_of(template: nn.Module, inputs: Inputs, found: Trace, layout: ReadLayout) -> str:
    """SHA-256 of what the parameters must fit: layers, shapes, constants, and what embeddings read.

    Constants are frozen parameters, buffers, and tensors and arrays that are plain attributes.
    """
    facts = {
        "layers": [
            [name, _class_name(layer), _options(layer)] for name, layer in template.named_modules()
        ],
        "parameters": [
            [name, list(value.shape), value.requires_grad]
            for name, value in template.named_parameters()
        ],
        "constants": _digest(
            part
            for name, value in _constants(template)
            for part in (name.encode(), _bytes(value.detach()))
        ),
        "reads": {name: [repr(source) for source in own] for name, own in found.sources.items()},
        "rows": dict(found.rows),
        "width": layout.width,
        "schema": inputs.schema.fingerprint(),
        "lengths": dict(inputs.lengths),
        "padding": inputs.padding,
    }
    return _digest([json.dumps(facts, sort_keys=True).encode()])


def code_of(template: nn.Module, function: Callable[..., Any] | None) -> str:
    """SHA-256 of the code of the module's classes, but torch's, and of the function of its inputs.

    Functions that layers hold as attributes or hooks are in it; those that code calls by name are not.
    """
    classes = {
        kind
        for layer in template.modules()
        for kind in type(layer).__mro__
        if not kind.__module__.startswith(("torch.", "dpads.")) and kind is not object
    }
    parts = []
    for kind in sorted(classes, key=lambda each: (each.__module__, each.__qualname__)):
        parts.append(f"{kind.__module__}.{kind.__qualname__}".encode())
        for name, value in sorted(vars(kind).items()):
            code = getattr(getattr(value, "__func__", value), "__code__", None)
            if isinstance(code, CodeType):
                parts += [name.encode(), *_code(code)]
    for name, value in _attributes(template):
        code_parts = [*_function(value)]
        if code_parts:
            parts += [name.encode(), *code_parts]
    return _digest([*parts, *_function(function)])


def initial_of(template: nn.Module, tables: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of all parameters and constants."""
    digest = hashlib.sha256()
    for name, value in template.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    for name, table in tables.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table).data)
    return digest.hexdigest()


def _constants(template: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters that are not trained, buffers, and numbers that layers hold as attributes."""
    frozen = [(n, v) for n, v in template.named_parameters() if not v.requires_grad]
    held = [(name, _tensor(value)) for name, value in _attributes(template)]
    plain = [(name, value) for name, value in held if value is not None]
    return [*frozen, *template.named_buffers(), *plain]


def _attributes(template: nn.Module) -> Iterator[tuple[str, Any]]:
    """What layers hold beside parameters, buffers and layers, by name; lists and mappings item by item."""
    known = {id(value) for value in (*template.parameters(), *template.buffers())}
    known |= {id(layer.weight) for layer in template.modules() if isinstance(layer, Lookup)}
    for path, layer in template.named_modules():
        if isinstance(layer, Lookup):
            continue
        for name, value in sorted(vars(layer).items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _items(f"{path}.{name}", value, known, ITEMS_DEEP)


def _items(name: str, value: Any, known: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """A value, or the items of one that holds several."""
    if id(value) in known:
        return
    if isinstance(value, Mapping | list | tuple) and depth:
        # by their places: the keys of hooks are numbers that torch counts over all modules
        for place, item in enumerate(value.values() if isinstance(value, Mapping) else value):
            yield from _items(f"{name}.{place}", item, known, depth - 1)
    else:
        yield name, value


def _tensor(value: Any) -> torch.Tensor | None:
    """A value's numbers; None where it has none."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    return value if isinstance(value, torch.Tensor) and not value.is_sparse else None


def _function(value: Any, depth: int = ITEMS_DEEP) -> Iterator[bytes]:
    """What a function does, its defaults and what it holds of where it was made; nothing of other values."""
    if isinstance(value, partial):
        held = (value.func, *value.args, *value.keywords.values())
    else:
        value = getattr(value, "__func__", value)
        code = getattr(value, "__code__", None)
        if not isinstance(code, CodeType):
            return
        yield from _code(code)
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        held = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *cells)
    for item in held if depth else ():
        numbers = _tensor(item)
        if numbers is not None:
            yield _bytes(numbers.detach())
        elif _is_plain(item):
            yield repr(item).encode()
        else:
            yield from _function(item, depth - 1)


def _options(layer: nn.Module) -> dict[str, Any]:
    """Plain attributes of a layer."""
    return {
        name: value
        for name, value in sorted(vars(layer).items())
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    """Whether a value is a number or text, or a short list of such."""
    if isinstance(value, list | tuple):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)


def _class_name(layer: nn.Module) -> str:
    """The layer's class; every stand-in is named by what it stands in for."""
    if isinstance(layer, Lookup):
        return "embedding_bag" if layer.is_bag else "embedding"
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _code(code: CodeType) -> Iterable[bytes]:
    """What a code object does, without where it was written."""
    yield code.co_code
    yield repr(code.co_names).encode()
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _code(value)
        elif isinstance(value, frozenset):
            yield repr(sorted(map(repr, value))).encode()
        else:
            yield repr(value).encode()


def _bytes(value: torch.Tensor) -> bytes:
    """The numbers of a tensor."""
    return value.contiguous().numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, each after its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
