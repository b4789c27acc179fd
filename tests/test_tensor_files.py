"""Files of tensors: safetensors reads what is written, and what safetensors writes is mapped."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dpads.tensor_files import map_tensors, tensor_parts

ARRAYS = {
    "table": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a scalar": np.float32([7.0]).reshape(()),
    "none": np.zeros((0, 5), np.float32),
    "history": np.arange(5, dtype=np.int32),
    "sums": np.arange(6, dtype=np.float64).reshape(2, 3),
    "bits": np.arange(3, dtype=np.uint8),
}


def write(path: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    path.write_bytes(b"".join(bytes(part) for part in tensor_parts(arrays, {"format": "dpads"})))
    return path


def test_safetensors_reads_what_is_written_and_mapping_gives_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "t", ARRAYS)
    for read in (load_file(path), map_tensors(path)):
        assert set(read) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert read[name].dtype == array.dtype
            assert read[name].shape == array.shape
            np.testing.assert_array_equal(read[name], array)


def test_what_safetensors_writes_is_mapped(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "t")
    for name, array in map_tensors(tmp_path / "t").items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t", ARRAYS)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"", whole[:20], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(SafetensorError):
            map_tensors(path)


def test_a_type_that_dpads_never_writes_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float16)}, tmp_path / "t")
    with pytest.raises(SafetensorError, match="unexpected type"):
        map_tensors(tmp_path / "t")


def test_neither_way_copies_the_arrays(tmp_path: Path) -> None:
    large = np.zeros((1 << 20, 16), np.float32)
    tracemalloc.start()
    with (tmp_path / "t").open("wb") as file:
        for part in tensor_parts({"table": large}):
            file.write(part)
    assert map_tensors(tmp_path / "t")["table"][5, 5] == 0.0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.nbytes / 16
