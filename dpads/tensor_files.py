"""safetensors files of large arrays, written and read without a copy of them.

safetensors' own writer wants every array as bytes beside the array, and its reader returns copies; tables may
be most of the machine's memory. Its checks of a file are used before the file is mapped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Buffer = bytes | memoryview

_NAMES: dict[np.dtype[Any], str] = {
    np.dtype("<f4"): "F32",
    np.dtype("<f8"): "F64",
    np.dtype("<i4"): "I32",
    np.dtype("u1"): "U8",
}
_TYPES: dict[str, np.dtype[Any]] = {name: dtype for dtype, name in _NAMES.items()}


def tensor_parts(
    arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> list[Buffer]:
    """A safetensors file in parts, to be written one after another; equal arrays give equal bytes.

    Args:
        arrays: float32, float64, int32 or uint8; the parts after the first are the arrays themselves.
        metadata: text beside them.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    parts: list[Buffer] = []
    at = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        place = [at, at + array.nbytes]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": place,
        }
        parts.append(array.reshape(-1).data)
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, mapped into memory and read-only.

    Raises:
        OSError: the file cannot be read.
        safetensors.SafetensorError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    with safe_open(path, "np") as checked:
        names = list(checked.keys())
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    arrays = {}
    for name in names:
        first, last = header[name]["data_offsets"]
        if header[name]["dtype"] not in _TYPES:
            raise SafetensorError(f"{path}: tensors of an unexpected type")
        dtype = _TYPES[header[name]["dtype"]]
        words = np.frombuffer(data[start + first : start + last], dtype)
        arrays[name] = words.reshape(header[name]["shape"])
    return arrays
