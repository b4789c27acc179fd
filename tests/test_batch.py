from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpads.batch import PADDING, SparseBatch
from dpads.errors import DataError

GOOD: dict[str, Any] = {
    "ids": {
        "C1": np.array([3, -1, 7]),
        "tags": ([5, 5, 2, -1], [0, 3, 3, 4], [0.5, 1, 2, 0]),
        "C2": [0, 0, 2**31 - 1],
        "plain": ([], [0, 0, 0, 0], None),
    },
    "dense": [[1.0, 2.0], [3.0, 4.0], [5.0, np.inf]],
    "labels": [0, 1, 0],
    "weights": [1.0, 0.0, 2.0],
    "exposure": [1.0, 2.0, 3.0],
    "unit_offsets": [0, 2, 3],
}


def test_arrays_become_a_batch() -> None:
    batch = SparseBatch.from_arrays(**GOOD)
    assert batch.field_names == ("C1", "C2")
    np.testing.assert_array_equal(batch.scalar_ids, [[3, 0], [PADDING, 0], [7, 2**31 - 1]])
    assert batch.scalar_ids.dtype == np.int32
    assert batch.scalar_ids.flags.c_contiguous
    assert list(batch.bags) == ["tags", "plain"]
    tags = batch.bags["tags"]
    assert tags.weights is not None
    assert (tags.values.dtype, tags.offsets.dtype, tags.weights.dtype) == (
        np.int64,
        np.int64,
        np.float32,
    )
    assert batch.dense.shape == (3, 2)
    assert (batch.num_examples, batch.num_units) == (3, 2)


def test_no_features_and_no_examples() -> None:
    batch = SparseBatch.from_arrays(ids={}, labels=[])
    assert (batch.num_examples, batch.num_units) == (0, 0)
    assert (batch.scalar_ids.shape, batch.dense.shape) == ((0, 0), (0, 0))
    units = SparseBatch.from_arrays(ids={"C1": []}, labels=[], unit_offsets=[0])
    assert units.num_units == 0


def test_three_ids_in_a_tuple_are_a_scalar_field() -> None:
    batch = SparseBatch.from_arrays(ids={"C1": (1, 2, 3)}, labels=[0, 0, 1])
    assert batch.field_names == ("C1",)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"ids": {"C1": [1, 2]}}, r'ids\["C1"\]: expected 3 ids, got 2'),
    ({"ids": {"C1": [1.0, 2.0, 3.0]}}, "integers, got float64"),
    ({"ids": {"C1": [[1], [2], [3]]}}, "one dimension"),
    ({"ids": {"C1": [1, -2, 3]}}, "rows from 0, or -1"),
    ({"ids": {"C1": [1, 2**31, 3]}}, r"below 2\^31"),
    ({"ids": {"b": ([1, -2], [0, 1, 2, 2], None)}}, "rows from 0, or -1"),
    ({"ids": {"b": ([1, 2], [0, 1, 2], None)}}, "expected 4 offsets, got 3"),
    ({"ids": {"b": ([1, 2], [0, 2, 1, 2], None)}}, "without falling"),
    ({"ids": {"b": ([1, 2], [0, 1, 1, 1], None)}}, "rise from 0 to 2"),
    ({"ids": {"b": ([1, 2], [1, 1, 1, 2], None)}}, "rise from 0 to 2"),
    ({"ids": {"b": ([1, 2], [0, 1, 2, 2], [1.0])}}, "expected 2 values, got 1"),
    ({"ids": {"b": ([1, 2], [0, 1, 2, 2], [1.0, -1.0])}}, "finite numbers >= 0"),
    ({"ids": {"b": ([1, 2], [0, 1, 2, 2], [1.0, np.nan])}}, "finite numbers >= 0"),
    ({"dense": [1.0, 2.0, 3.0]}, r"dense: expected shape \[3, features\]"),
    ({"dense": [[1.0], [2.0]]}, r"dense: expected shape \[3, features\]"),
    ({"labels": [[0], [1], [0]]}, "labels: expected one dimension"),
    ({"weights": [1.0, 2.0]}, "weights: expected 3 values"),
    ({"weights": [1.0, -2.0, 1.0]}, "weights: expected finite"),
    ({"weights": [1.0, np.inf, 1.0]}, "weights: expected finite"),
    ({"exposure": [1.0, 0.0, 1.0]}, "exposure: expected finite"),
    ({"unit_offsets": [0, 3, 2, 3]}, "unit_offsets"),
    ({"unit_offsets": [0, 2]}, "rise from 0 to 3"),
    ({"unit_offsets": []}, "rise from 0 to 3"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_wrong_shapes_and_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SparseBatch.from_arrays(**{**GOOD, **changes})
