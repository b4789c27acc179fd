from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpads.encoding import check_columns, encode, encoded_schema
from dpads.errors import DataError
from dpads.hashing import table_rows, user_keys
from dpads.preparing import prepare
from dpads.schema import Bag, FeatureSchema, Numeric

SCHEMA = FeatureSchema(
    task="ctr",
    label="click",
    numeric=["I1", Numeric("I2", "identity", clip=(-1.0, 2.0), missing=7.0)],
    categorical=["C1", "C2"],
    bags=[Bag("tags", weights="w"), "plain"],
    tables={"word": ["C2", "tags"]},
    buckets={"C1": 100, "word": 1000, "plain": 10},
    weight="factor",
    exposure="seconds",
    user="uid",
)
GOOD: dict[str, list[Any]] = {
    "click": [0, 1, 1],
    "I1": [0, None, -3],
    "I2": [1.5, None, -9.0],
    "C1": ["a", None, ""],
    "C2": [-5, 7, None],
    "tags": [[7, 7, None], [], None],
    "w": [[0.5, 2.0, None], [], None],
    "plain": [["x"], ["y", "", "x"], []],
    "factor": [1.0, 0.0, 2.5],
    "seconds": [1.0, 0.5, 2.0],
    "uid": ["ann", "bob", "ann"],
}


def batch(**changes: Any) -> pa.RecordBatch:
    return pa.record_batch({**GOOD, **changes})


def row(table: str, value: str, buckets: int) -> int:
    return int(table_rows(pl.Series([value]), table, buckets)[0])


def test_every_column_becomes_what_the_schema_says() -> None:
    out = encode(batch(), SCHEMA)
    out.validate(full=True)
    assert out.schema == encoded_schema(SCHEMA)
    seven = row("word", "7", 1000)
    assert out.column("ids").to_pylist() == [
        [row("C1", "a", 100), row("word", "-5", 1000)],
        [0, seven],
        [0, 0],
    ]
    assert out.column("bag:tags").to_pylist() == [[seven, seven, -1], [], []]
    assert out.column("bag_weights:tags").to_pylist() == [[0.5, 2.0, 0.0], [], []]
    x, y = row("plain", "x", 10), row("plain", "y", 10)
    assert out.column("bag:plain").to_pylist() == [[x], [y, -1, x], []]
    dense = np.array(out.column("dense").to_pylist())
    np.testing.assert_allclose(dense[:, 0], [0.0, 0.0, -np.log(4.0)], rtol=1e-6)
    np.testing.assert_allclose(dense[:, 1], [1.5, 2.0, -1.0])
    assert out.column("label").to_pylist() == [0.0, 1.0, 1.0]
    assert out.column("weight").to_pylist() == [1.0, 0.0, 2.5]
    assert out.column("exposure").to_pylist() == [1.0, 0.5, 2.0]
    keys = user_keys(pl.Series(["ann", "bob"]))
    ann, bob = (int(k[0]).to_bytes(8, "big") + int(k[1]).to_bytes(8, "big") for k in keys)
    assert out.column("user").to_pylist() == [ann, bob, ann]


@given(
    order=st.permutations(range(3)), columns=st.permutations(sorted(GOOD)), cut=st.integers(0, 3)
)
def test_a_pure_function_of_each_row(order: list[int], columns: list[str], cut: int) -> None:
    whole = encode(batch(), SCHEMA).to_pylist()
    shuffled = batch().select(columns).take(pa.array(order))
    parts = [encode(shuffled.slice(0, cut), SCHEMA), encode(shuffled.slice(cut), SCHEMA)]
    assert [r for part in parts for r in part.to_pylist()] == [whole[i] for i in order]


def test_no_rows() -> None:
    assert encode(batch().slice(0, 0), SCHEMA).num_rows == 0


def test_only_a_label() -> None:
    schema = FeatureSchema(task="count", label="n")
    out = encode(pa.record_batch({"n": [0, 5]}), schema)
    assert out.to_pydict() == {"label": [0.0, 5.0]}


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_kinds_of_text_agree(kind: pa.DataType) -> None:
    schema = FeatureSchema(task="ctr", label="y", categorical=["c"], buckets=1000)
    column = pa.array(["a", None, "bc"]).cast(kind)
    out = encode(pa.record_batch({"y": [0, 1, 0], "c": column}), schema)
    assert out.column("ids").to_pylist() == [[row("c", "a", 1000)], [0], [row("c", "bc", 1000)]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.large_list(pa.string()), pa.list_(pa.int64(), 2)]
)
def test_kinds_of_lists_agree(kind: pa.DataType) -> None:
    schema = FeatureSchema(task="ctr", label="y", bags=["b"], buckets=1000)
    raw = [["1", "2"], None, ["3", "3"]] if "string" in str(kind) else [[1, 2], None, [3, 3]]
    out = encode(pa.record_batch({"y": [0, 1, 0], "b": pa.array(raw, kind)}), schema)
    one, two, three = (row("b", v, 1000) for v in "123")
    assert out.column("bag:b").to_pylist() == [[one, two], [], [three, three]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, 2, 1], pa.uint8()),
        pa.array([3, 2, 1], pa.float32()),
        pa.array([3, 2, 1], pa.decimal128(9, 2)),
    ],
)
def test_kinds_of_numbers_agree(column: pa.Array) -> None:
    schema = FeatureSchema(task="count", label="y", numeric=[Numeric("x", "identity")])
    out = encode(pa.record_batch({"y": column, "x": column}), schema)
    assert out.column("label").to_pylist() == [3.0, 2.0, 1.0]
    assert out.column("dense").to_pylist() == [[3.0], [2.0], [1.0]]


def test_booleans_are_labels_and_numbers() -> None:
    schema = FeatureSchema(task="ctr", label="y", numeric=["x"])
    out = encode(pa.record_batch({"y": [True, False], "x": [False, None]}), schema)
    assert out.column("label").to_pylist() == [1.0, 0.0]


SECRET = 31337.5  # a private value; no message may show it

BAD = {
    "label outside {0, 1}": ({"click": [0, 1, 31337]}, "click", "0 or 1"),
    "label of a fraction": ({"click": [0, 1, 0.313375]}, "click", "0 or 1"),
    "label negative": ({"click": [0, 1, -1]}, "click", "0 or 1"),
    "label null": ({"click": [0, None, 1]}, "click", "null"),
    "label text": ({"click": ["0", "31337.5", "1"]}, "click", "text"),
    "numeric NaN": ({"I1": [1.0, float("nan"), SECRET]}, "I1", "NaN"),
    "numeric infinite": ({"I2": [1.0, -float("inf"), SECRET]}, "I2", "infinity"),
    "numeric text": ({"I1": ["31337.5", "2", "3"]}, "I1", "text"),
    "numeric dates": ({"I1": pa.array([1, 2, 3], pa.date32())}, "I1", "date32"),
    "id floats": ({"C1": [SECRET, 1.0, None]}, "C1", "floats"),
    "id booleans": ({"C2": [True, None, False]}, "C2", "booleans"),
    "id lists": ({"C1": [["31337.5"], [], []]}, "C1", "List"),
    "bag of no lists": ({"plain": ["31337.5", "x", "y"]}, "plain", "lists"),
    "bag of negative ids": ({"tags": [[7, 7, -31337], [], None]}, "tags", "negative"),
    "bag of floats": ({"plain": [[SECRET], [], []]}, "plain", "floats"),
    "bag weights too few": ({"w": [[0.5, SECRET], [], None]}, "w", "one weight per id"),
    "bag weights shifted": ({"w": [[0.5, 2.0], [SECRET], None]}, "w", "one weight per id"),
    "bag weights negative": ({"w": [[0.5, -31337.5, None], [], None]}, "w", "negative"),
    "bag weights null": ({"w": [[None, 2.0, 1.0], [], None]}, "w", "null"),
    "bag weights NaN": ({"w": [[float("nan"), 2.0, 1.0], [], None]}, "w", "NaN"),
    "bag weights text": ({"w": [["31337.5", "1", "1"], [], None]}, "w", "text"),
    "weight negative": ({"factor": [-31337.5, 1.0, 1.0]}, "factor", "smaller"),
    "weight null": ({"factor": [None, 1.0, SECRET]}, "factor", "null"),
    "weight NaN": ({"factor": [float("nan"), 1.0, SECRET]}, "factor", "NaN"),
    "weight text": ({"factor": ["31337.5", "1", "1"]}, "factor", "text"),
    "weight infinite": ({"factor": [float("inf"), 1.0, SECRET]}, "factor", "infinity"),
    "exposure zero": ({"seconds": [0.0, 1.0, SECRET]}, "seconds", "above 0"),
    "exposure negative": ({"seconds": [-31337.5, 1.0, 2.0]}, "seconds", "above 0"),
    "exposure NaN": ({"seconds": [float("nan"), 1.0, SECRET]}, "seconds", "NaN"),
    "exposure null": ({"seconds": [None, 1.0, SECRET]}, "seconds", "null"),
    "exposure beneath float32": ({"seconds": [1e-60, 1.0, SECRET]}, "seconds", "above 0"),
    "exposure beyond float32": ({"seconds": [1e60, 1.0, SECRET]}, "seconds", "float32"),
    "user null": ({"uid": ["31337.5", None, "x"]}, "uid", "null or empty"),
    "user empty": ({"uid": ["31337.5", "", "x"]}, "uid", "null or empty"),
    "user float": ({"uid": [SECRET, 1.0, 2.0]}, "uid", "floats"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_by_name_without_being_shown(case: str) -> None:
    changes, column, word = BAD[case]
    with pytest.raises(DataError) as caught:
        encode(batch(**changes), SCHEMA)
    message = str(caught.value)
    assert f'"{column}"' in message
    assert word in message
    assert "31337" not in message
    assert "ann" not in message


def test_a_number_beyond_float32_needs_a_clip_or_logarithm() -> None:
    raw = pa.record_batch({"y": [0], "x": [1e60]})
    with pytest.raises(DataError, match=r'"x".*clip'):
        encode(raw, FeatureSchema(task="ctr", label="y", numeric=[Numeric("x", "identity")]))
    encode(raw, FeatureSchema(task="ctr", label="y", numeric=["x"]))
    clipped = Numeric("x", "identity", clip=(0, 1))
    encode(raw, FeatureSchema(task="ctr", label="y", numeric=[clipped]))


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([3, 0.5], "whole numbers from 0, got another value"),
        ([3, -1], "whole numbers from 0, got another value"),
        ([3, None], "whole numbers from 0 in every row, got null"),
        ([3, float("nan")], "finite labels"),
        ([3, float("inf")], "finite labels"),
        (["3", "0"], "numbers as labels, got text"),
    ],
)
def test_counts_are_whole_numbers_from_zero(labels: list[Any], word: str) -> None:
    with pytest.raises(DataError, match=f'"n".*{word}') as caught:
        encode(pa.record_batch({"n": labels}), FeatureSchema(task="count", label="n"))
    # what to do about it
    assert any(hint in str(caught.value) for hint in ("rows", "Write clicks"))


@pytest.mark.parametrize(
    ("column", "values", "word"),
    [
        ("n", [0.0, 1.5], "whole numbers"),
        ("n", [0, -2], "whole numbers"),
        ("seconds", [1.0, 0.0], "above 0"),
        ("seconds", [1.0, -1.0], "above 0"),
        ("w", [1.0, -0.5], "from 0"),
        ("w", [1.0, float("nan")], "NaN"),
    ],
)
def test_bad_counts_exposures_and_weights_leave_no_store(
    column: str, values: list[Any], word: str, tmp_path: Path
) -> None:
    """Through `prepare`, the second row of the second file: told with its file, nothing half-written."""
    schema = FeatureSchema(task="count", label="n", numeric=["x"], weight="w", exposure="seconds")
    good: dict[str, list[Any]] = {"n": [0, 3], "x": [1, 2], "w": [1.0, 0.0], "seconds": [0.5, 2.0]}
    pq.write_table(pa.table(good), tmp_path / "a.parquet")
    pq.write_table(pa.table({**good, column: values}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=rf'b\.parquet.*"{column}".*{word}'):
        prepare(str(tmp_path / "*.parquet"), schema, out=tmp_path / "new" / "store")
    assert {path.name for path in tmp_path.rglob("*")} == {"a.parquet", "b.parquet"}


def test_a_missing_column_lists_the_nearest_names() -> None:
    names = [*sorted(set(GOOD) - {"seconds"}), "second", "Seconds_"]
    with pytest.raises(DataError, match=r'"seconds".*Did you mean "second" or "Seconds_"'):
        check_columns(names, SCHEMA)
    with pytest.raises(DataError, match=r'"I1"'):
        encode(batch().select([name for name in GOOD if name != "I1"]), SCHEMA)


def test_a_column_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r'one column "C1", got 2'):
        check_columns([*GOOD, "C1"], SCHEMA)
    check_columns([*GOOD, "other", "other"], SCHEMA)
