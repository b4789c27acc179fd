from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpads.errors import SchemaError
from dpads.preparing import prepare
from dpads.schema import PRESETS, Bag, FeatureSchema, Field, Numeric

BASE: dict[str, Any] = {"task": "ctr", "label": "click"}
FULL = FeatureSchema(
    task="count",
    label="n",
    numeric=["I1", {"column": "I2", "transform": "identity", "clip": [0, 5], "missing": 1}],
    categorical=["C1", "C2"],
    bags=["tags", {"column": "words", "weights": "w"}, Bag("urls", pooling="mean")],
    tables={"text": ["C2", "words"]},
    buckets={"text": 50, "C1": 7, "urls": 9},
    weight="factor",
    exposure="seconds",
    user="uid",
)


def test_fields_and_tables() -> None:
    assert FULL.fields == (
        Field("C1", "C1", False),
        Field("C2", "text", False),
        Field("tags", "tags", True),
        Field("words", "text", True, "sum", "w"),
        Field("urls", "urls", True, "mean"),
    )
    assert FULL.table_rows == {"C1": 7, "text": 50, "tags": 100_000, "urls": 9}
    assert FULL.numeric[1] == Numeric("I2", "identity", (0.0, 5.0), 1.0)
    assert FULL.input_columns == (
        "n", "I1", "I2", "C1", "C2", "tags", "words", "urls", "w", "factor", "seconds", "uid",
    )  # fmt: skip


def test_buckets_of_a_shared_table_by_one_members_name() -> None:
    schema = FeatureSchema(
        **BASE, categorical=["a", "b"], tables={"t": ["a", "b"]}, buckets={"b": 5}
    )
    assert schema.table_rows == {"t": 5}


def test_plain_data_and_back() -> None:
    data = json.loads(json.dumps(FULL.to_dict()))
    again = FeatureSchema.from_dict(data)
    assert again == FULL
    assert again.fingerprint() == FULL.fingerprint()


def test_the_fingerprint_is_stable_and_sees_every_change() -> None:
    # Committed: stores and ledgers written earlier hold it.
    assert FeatureSchema(**BASE).fingerprint() == (
        "1f9699e32a79006c336c8446693419a2316bce1fbb2bf81cbd8d0b24c1113ffc"
    )
    changed = [
        {**FULL.to_dict(), key: value}
        for key, value in {
            "task": "ctr",
            "label": "m",
            "numeric": ["I1"],
            "buckets": 7,
            "weight": None,
            "exposure": None,
            "user": None,
        }.items()
    ]
    prints = {FeatureSchema.from_dict(table).fingerprint() for table in changed}
    assert len(prints | {FULL.fingerprint()}) == len(changed) + 1


def test_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[schema]\npreset = "criteo-display"\nbuckets = 1_000\n'
        '[schema.tables]\nshared = ["C1", "C2"]\n[privacy]\nepsilon = 1\n'
    )
    schema = FeatureSchema.from_toml(path)
    assert len(schema.columns) == 40
    assert (schema.columns[0], schema.columns[1], schema.columns[-1]) == ("label", "I1", "C26")
    assert [n.column for n in schema.numeric] == [f"I{i}" for i in range(1, 14)]
    assert [f.table for f in schema.fields[:3]] == ["shared", "shared", "C3"]
    assert set(schema.table_rows.values()) == {1000}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name: str) -> None:
    schema = FeatureSchema.from_dict({"preset": name})
    # of Avazu's columns one is not read: the impression's own number
    assert set(schema.columns) - {"id"} == set(schema.input_columns)


@pytest.mark.parametrize("form", ["train.csv", "without header", "test.csv"])
def test_avazu_as_kaggle_gives_it(form: str, tmp_path: Path) -> None:
    """The first lines of a file of that form: 24 columns, all but two of them ids; test.csv has no click."""
    header = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
        "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    )
    ids = "1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,44956a24"
    lines = [
        f"1000009418151094273,0,14102100,1005,0,{ids},1,2,15706,320,50,1722,0,35,-1,79",
        f"10000169349117863715,1,14102123,1005,1,{ids},1,0,15704,320,50,1722,0,35,100084,79",
    ]
    if form == "test.csv":
        header = header.replace("click,", "")
        lines = [re.sub(r"^(\d+),\d", r"\1", line) for line in lines]
    parts = lines if form == "without header" else [header, *lines]
    (tmp_path / "log.csv").write_text("\n".join(parts) + "\n")
    schema = FeatureSchema.from_dict({"preset": "avazu", "buckets": 1000})
    assert len(schema.fields) == 22
    store = prepare(
        tmp_path / "log.csv", schema, out=tmp_path / "store", labelled=form != "test.csv"
    )
    batch = store.read([0, 1])
    assert batch.labels.tolist() == ([0.0, 0.0] if form == "test.csv" else [0.0, 1.0])
    same = dict(zip(batch.field_names, (batch.scalar_ids[0] == batch.scalar_ids[1]), strict=True))
    assert [name for name, equal in same.items() if not equal] == [
        "hour", "banner_pos", "device_conn_type", "C14", "C20",
    ]  # fmt: skip
    assert (batch.scalar_ids > 0).all()  # minus one and zero are ids like others here


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": "click"}, r'Expected task "ctr", "cvr" or "count", got "click"'),
    ({"label": ""}, "label.*expected a name"),
    ({"label": 3}, "label.*expected a name, got 3"),
    ({"categorical": "C1"}, "categorical.*expected a list, got str"),
    ({"categorical": ["a", 1]}, "categorical.*expected a name, got 1"),
    ({"numeric": "I1"}, "numeric.*expected a list"),
    ({"numeric": [3]}, "numeric.*expected a column name or a table, got int"),
    ({"numeric": [{"colum": "x"}]}, r'Unknown key "colum" in numeric.*Did you mean "column"'),
    ({"numeric": [{"transform": "identity"}]}, 'numeric.*needs "column"'),
    ({"numeric": [{"column": "x", "transform": "identty"}]}, r'Did you mean "identity"'),
    ({"numeric": [{"column": "x", "clip": [1, 1]}]}, "low < high"),
    ({"numeric": [{"column": "x", "clip": [1]}]}, "low, high"),
    ({"numeric": [{"column": "x", "clip": 3}]}, "clip.*expected a list"),
    ({"numeric": [{"column": "x", "clip": [0, float("inf")]}]}, "finite"),
    ({"numeric": [{"column": "x", "clip": [0, "1"]}]}, "finite"),
    ({"numeric": [{"column": "x", "missing": float("nan")}]}, "finite number for missing"),
    ({"numeric": [{"column": "x", "missing": "0"}]}, "finite number for missing"),
    ({"bags": [{"column": "b", "pooling": "max"}]}, 'pooling "sum" or "mean", got "max"'),
    ({"bags": [{"column": "b", "pooling": "mean", "weights": "w"}]}, 'pooling = "sum" only'),
    ({"bags": [{"column": "b", "weights": 1}]}, "weights.*expected a name"),
    ({"categorical": ["a", "a"]}, '"a" is both categorical and categorical'),
    ({"categorical": ["click"]}, '"click" is both the label and categorical'),
    ({"categorical": ["a"], "user": "a"}, '"a" is both categorical and the user'),
    ({"tables": {"t": ["a"]}, "categorical": ["b", "aa"]}, r'"a".*Did you mean "aa"'),
    ({"tables": {"t": ["a"], "u": ["a"]}, "categorical": ["a"]}, 'in tables "t" and "u"'),
    ({"tables": {"a": ["b"]}, "categorical": ["a", "b"]}, "Rename the table"),
    ({"tables": ["a"]}, "tables.*expected a table, got list"),
    ({"tables": {"t": "a"}, "categorical": ["a"]}, "tables.t.*expected a list"),
    ({"buckets": 1}, "from 2 to"),
    ({"buckets": 2**31}, "from 2 to"),
    ({"buckets": 10.0}, "whole number, got 10.0"),
    ({"buckets": True}, "whole number, got True"),
    ({"buckets": {"a": "5"}, "categorical": ["a"]}, "buckets of a.*whole number"),
    ({"buckets": {"ab": 5}, "categorical": ["abc"]}, r'"ab", which is no field.*"abc"'),
    (
        {"categorical": ["a", "b"], "tables": {"t": ["a", "b"]}, "buckets": {"a": 5, "b": 6}},
        "different buckets",
    ),
    ({"columns": ["x", "x", "click"]}, '"x" twice'),
    ({"columns": ["x", "clck"]}, r'columns lacks "click", which is the label.*"clck"'),
    ({"lable": "x"}, r'Unknown key "lable".*Did you mean "label"'),
    ({"preset": "criteo-displai"}, r'Unknown preset.*Did you mean "criteo-display"'),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        FeatureSchema.from_dict({**BASE, **changes})


@pytest.mark.parametrize("key", ["task", "label"])
def test_what_is_needed(key: str) -> None:
    table = {name: value for name, value in BASE.items() if name != key}
    with pytest.raises(SchemaError, match=f'needs "{key}"'):
        FeatureSchema.from_dict(table)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"[schema", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"[data]", r"expected a \[schema\] table"),
        (b"schema = 3", r"expected a \[schema\] table"),
    ],
)
def test_files_that_hold_no_schema(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SchemaError, match=message):
        FeatureSchema.from_toml(path)


def test_a_folder_is_no_schema(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no file that can be read"):
        FeatureSchema.from_toml(tmp_path)


names = st.lists(st.text(min_size=1), unique=True, min_size=6, max_size=6)


@given(names=names, buckets=st.integers(2, 2**31 - 1), clip=st.tuples(st.floats(-9, 0), st.just(1)))
def test_any_schema_survives_json(names: list[str], buckets: int, clip: tuple[float, int]) -> None:
    label, number, scalar, bag, weights, table = names
    schema = FeatureSchema(
        task="ctr",
        label=label,
        numeric=[Numeric(number, clip=clip)],
        categorical=[scalar],
        bags=[Bag(bag, weights=weights)],
        tables={table: [scalar, bag]},
        buckets={table: buckets},
    )
    again = FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert again.fingerprint() == schema.fingerprint()
