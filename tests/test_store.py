from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpads.batch import SparseBatch
from dpads.encoding import encode
from dpads.errors import DataError, SchemaError, StoreError
from dpads.schema import Bag, FeatureSchema
from dpads.store import ExampleStore, prepare
from dpads.store_keys import content_keys, with_ordinals

FULL = FeatureSchema(
    task="ctr",
    label="y",
    numeric=["x1", "x2"],
    categorical=["c1", "c2", "c3"],
    bags=[Bag("tags", weights="w"), "plain"],
    weight="factor",
    exposure="seconds",
    buckets=1000,
)
WITH_USER = FeatureSchema.from_dict({**FULL.to_dict(), "user": "uid"})


def log(rows: int, seed: int = 0, users: int = 7) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows)
    return pl.DataFrame(
        {
            "y": rng.integers(0, 2, rows),
            "x1": rng.integers(0, 50, rows),
            "x2": rng.normal(size=rows),
            **{f"c{i}": rng.integers(0, 30, rows) for i in (1, 2, 3)},
            "tags": [rng.integers(0, 9, n).tolist() for n in lengths],
            "w": [rng.random(n).tolist() for n in lengths],
            "plain": [["a", "b", "a"][: n % 4] for n in lengths],
            "factor": rng.random(rows),
            "seconds": rng.random(rows) + 0.5,
            "uid": rng.integers(0, users, rows),
        },
        schema_overrides={"tags": pl.List(pl.Int64), "w": pl.List(pl.Float64)},
    )


def make(frame: pl.DataFrame, schema: FeatureSchema, folder: Path, name: str = "s") -> ExampleStore:
    path = folder / f"{name}.parquet"
    frame.write_parquet(path)
    return prepare(path, schema, out=folder / name)


def rows_of(batch: SparseBatch) -> list[tuple[Any, ...]]:
    """Each example as plain data."""
    return [
        (
            tuple(batch.scalar_ids[i].tolist()),
            tuple(batch.dense[i].tolist()),
            float(batch.labels[i]),
            None if batch.weights is None else float(batch.weights[i]),
            None if batch.exposure is None else float(batch.exposure[i]),
            *(
                (
                    tuple(bag.values[bag.offsets[i] : bag.offsets[i + 1]].tolist()),
                    None
                    if bag.weights is None
                    else tuple(bag.weights[bag.offsets[i] : bag.offsets[i + 1]].tolist()),
                )
                for bag in batch.bags.values()
            ),
        )
        for i in range(batch.num_examples)
    ]


def expected(frame: pl.DataFrame, schema: FeatureSchema) -> list[tuple[Any, ...]]:
    """Each row of a log as `rows_of` shows it, straight from the encoder."""
    table = encode(frame.to_arrow().combine_chunks().to_batches()[0], schema).to_pydict()
    return [
        (
            tuple(table["ids"][i]),
            tuple(table["dense"][i]),
            table["label"][i],
            table["weight"][i],
            table["exposure"][i],
            (tuple(table["bag:tags"][i]), tuple(table["bag_weights:tags"][i])),
            (tuple(table["bag:plain"][i]), None),
        )
        for i in range(frame.height)
    ]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, ExampleStore]:
    """A store of three record batches without users."""
    frame = log(140_000)
    return frame, make(frame, FULL, tmp_path_factory.mktemp("big"))


def test_what_is_read_is_what_was_encoded(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    frame, store = big
    rows = np.array([0, 65_535, 65_536, 139_999, 3, 3, 131_072, 70_000])
    batch = store.read(rows)
    assert rows_of(batch) == expected(frame[rows.tolist()], FULL)
    assert batch.field_names == ("c1", "c2", "c3")
    assert batch.scalar_ids.dtype == np.int32
    assert batch.scalar_ids.flags.c_contiguous
    assert batch.bags["tags"].values.dtype == np.int64
    assert batch.dense.dtype == batch.labels.dtype == np.float32
    assert batch.unit_offsets is None
    assert len(store) == store.num_examples == store.num_units("example") == 140_000


def test_reading_nothing(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    batch = big[1].read([])
    assert (batch.num_examples, batch.scalar_ids.shape, batch.dense.shape) == (0, (0, 3), (0, 2))
    assert batch.bags["tags"].offsets.tolist() == [0]


@pytest.mark.parametrize("rows", [[-1], [140_000], [0, 2**40]])
def test_positions_outside_are_refused(
    rows: list[int], big: tuple[pl.DataFrame, ExampleStore]
) -> None:
    with pytest.raises(StoreError, match="positions"):
        big[1].read(rows)


def test_scan_is_read_in_stored_order(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    _, store = big
    sizes, labels = [], []
    for batch in store.scan(60_000):
        sizes.append(batch.num_examples)
        labels.append(batch.labels)
    assert sizes == [60_000, 60_000, 20_000]
    np.testing.assert_array_equal(np.concatenate(labels), store.read(np.arange(140_000)).labels)


def test_record_batches_hold_exactly_65536_rows_and_any_reader_opens_them(
    big: tuple[pl.DataFrame, ExampleStore],
) -> None:
    _, store = big
    with pa.ipc.open_file(store.path / "data.arrow") as reader:
        sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        reader.read_all().validate(full=True)
    assert sizes == [65_536, 65_536, 140_000 - 2 * 65_536]
    assert store.input_rows.tolist() == list(range(140_000))


def test_reads_are_views_of_the_mapped_file(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str((big[1].path / "data.arrow").resolve()) in maps


@pytest.mark.parametrize(
    "schema",
    [
        FeatureSchema(task="ctr", label="y"),
        FeatureSchema(task="ctr", label="y", categorical=["c1"]),
        FeatureSchema(task="count", label="x1", numeric=["x2"]),
        FeatureSchema(task="ctr", label="y", bags=["plain"]),
        FeatureSchema(task="ctr", label="y", categorical=["c1"], user="uid"),
    ],
)
def test_stores_of_few_columns(schema: FeatureSchema, tmp_path: Path) -> None:
    frame = log(50)
    store = make(frame, schema, tmp_path)
    batch = store.read(np.arange(50))
    fields = [item.name for item in schema.fields if not item.is_bag]
    assert batch.scalar_ids.shape == (50, len(fields))
    assert batch.dense.shape == (50, len(schema.numeric))
    assert list(batch.bags) == [bag.column for bag in schema.bags]
    np.testing.assert_array_equal(
        batch.labels, frame[schema.label].to_numpy()[store.input_rows].astype(np.float32)
    )
    assert (batch.weights, batch.exposure) == (None, None)


@pytest.mark.parametrize("sort_bytes", [1 << 28, 20_000, 1])
def test_users_stand_together_in_any_log_order(
    sort_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpads.store_writing.SORT_BYTES", sort_bytes)
    monkeypatch.setattr("dpads.reading.BATCH_ROWS", 500)
    frame = log(5000, users=300)
    store = make(frame, WITH_USER, tmp_path)
    offsets = store.user_offsets
    assert offsets is not None
    owners = frame["uid"].to_numpy()[store.input_rows]
    assert store.num_users == store.num_units("user") == len(offsets) - 1 == 300
    assert (offsets[0], offsets[-1]) == (0, 5000)
    for begin, end in itertools.pairwise(offsets):
        assert len(set(owners[begin:end])) == 1
        assert (np.diff(store.input_rows[begin:end]) > 0).all()
    assert sorted(store.input_rows.tolist()) == list(range(5000))
    plain = expected(frame, WITH_USER)
    assert rows_of(store.read(np.arange(5000))) == [plain[i] for i in store.input_rows]
    assert sorted(p.name for p in store.path.iterdir()) == ["data.arrow", "key", "store.json"]


def test_user_offsets_across_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(log(1000, users=90), WITH_USER, tmp_path)
    whole = store.user_offsets
    monkeypatch.setattr("dpads.store.SCAN_ROWS", 7)
    again = ExampleStore.open(store.path)
    np.testing.assert_array_equal(again.user_offsets, whole)
    np.testing.assert_array_equal(again.input_rows, store.input_rows)
    np.testing.assert_array_equal(again.content_keys(1), store.content_keys(1))


def test_bags_that_are_all_empty(tmp_path: Path) -> None:
    frame = log(70_000).with_columns(
        plain=pl.when(pl.int_range(70_000) == 69_999).then(pl.lit(["a"])).otherwise(pl.lit([]))
    )
    store = make(frame, FeatureSchema(task="ctr", label="y", bags=["plain"]), tmp_path)
    bag = store.read([0, 69_999, 1]).bags["plain"]
    assert bag.offsets.tolist() == [0, 0, 1, 1]
    assert make(frame[:10], store.schema, tmp_path, "b").read([3]).bags["plain"].values.size == 0


def test_users_need_a_user_column(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    assert big[1].user_offsets is None
    with pytest.raises(SchemaError, match="user"):
        big[1].num_units("user")


def test_several_files_in_one_order(tmp_path: Path) -> None:
    frame = log(300)
    parts = [frame[:100], frame[100:250].select(sorted(frame.columns)), frame[250:]]
    for i, part in enumerate(parts):
        part.write_parquet(tmp_path / f"log{i}.parquet")
    seen: list[int] = []
    store = prepare(f"{tmp_path}/log*.parquet", FULL, out=tmp_path / "s", progress=seen.append)
    assert seen == [100, 250, 300]
    assert rows_of(store.read(np.arange(300))) == expected(frame, FULL)


def test_csv_and_parquet_give_one_store(tmp_path: Path) -> None:
    schema = FeatureSchema(task="ctr", label="y", numeric=["x1"], categorical=["c1"], user="uid")
    frame = log(200).select("uid", "c1", "x1", "y")
    frame.write_csv(tmp_path / "log.csv")
    text = prepare(tmp_path / "log.csv", schema, out=tmp_path / "text")
    binary = make(frame.select("y", "x1", "c1", "uid"), schema, tmp_path)
    content = [(store.path / "data.arrow").read_bytes() for store in (text, binary)]
    assert content[0] == content[1]


def test_a_schema_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text('[schema]\ntask = "ctr"\nlabel = "y"\n')
    log(10).write_parquet(tmp_path / "log.parquet")
    store = prepare(tmp_path / "log.parquet", tmp_path / "schema.toml", out=tmp_path / "s")
    assert store.schema == FeatureSchema(task="ctr", label="y")


def test_the_key_is_private_and_the_fingerprint_depends_on_it(tmp_path: Path) -> None:
    stores = [make(log(10), FULL, tmp_path, name) for name in "ab"]
    assert stat.S_IMODE((stores[0].path / "key").stat().st_mode) == 0o600
    assert stores[0].fingerprint != stores[1].fingerprint
    assert ExampleStore.open(stores[0].path).fingerprint == stores[0].fingerprint
    with pa.ipc.open_file(stores[0].path / "data.arrow") as reader:
        meta = json.loads(reader.schema.metadata[b"dpads"])
    assert FeatureSchema.from_dict(meta["schema"]) == FULL
    assert meta["dpads_version"]


def test_repr_shows_sizes_only(tmp_path: Path) -> None:
    store = make(log(10), FULL, tmp_path)
    assert repr(store) == f"ExampleStore('{store.path}', num_examples=10)"


# What may go wrong while preparing


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.suffix not in (".parquet", ".csv"))


@pytest.mark.parametrize("schema", [FULL, WITH_USER])
def test_nothing_is_left_behind_on_failure(
    schema: FeatureSchema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpads.store_writing.SORT_BYTES", 1)
    log(100).write_parquet(tmp_path / "a.parquet")
    bad = log(100).with_columns(y=pl.lit(31337))
    bad.write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet.*label|b\.parquet.*Label") as caught:
        prepare(f"{tmp_path}/*.parquet", schema, out=tmp_path / "new" / "deep" / "store")
    assert "31337" not in str(caught.value)
    assert left(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        assert len(list(tmp_path.glob("store.partial-*"))) == 1
        assert not (tmp_path / "store").exists()
        raise KeyboardInterrupt

    log(100).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "a.parquet", FULL, out=tmp_path / "store", progress=interrupt)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "dangling link"])
def test_what_exists_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    log(10).write_parquet(tmp_path / "a.parquet")
    out = tmp_path / "store"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "full folder":
            (out / "mine").write_text("mine")
    before = left(tmp_path)
    with pytest.raises(StoreError, match="exists"):
        prepare(tmp_path / "a.parquet", FULL, out=out)
    assert left(tmp_path) == before


def test_empty_logs_are_refused(tmp_path: Path) -> None:
    log(10)[:0].write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("y\n")
    with pytest.raises(DataError, match="empty"):
        prepare(tmp_path / "a.parquet", FULL, out=tmp_path / "store")
    with pytest.raises(DataError, match="empty"):
        prepare(tmp_path / "b.csv", FeatureSchema(task="ctr", label="y"), out=tmp_path / "store")
    assert left(tmp_path) == []


# What may be wrong with a store


def damage_none(path: Path) -> None:
    shutil.rmtree(path)


def damage_meta(path: Path) -> None:
    (path / "store.json").write_text("{")


def damage_meta_text(path: Path) -> None:
    meta = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**meta, "fingerprint": "ü"}))


def damage_meta_kind(path: Path) -> None:
    (path / "store.json").write_text("[]")


def damage_key(path: Path) -> None:
    (path / "key").write_bytes(b"0" * 32)


def damage_no_key(path: Path) -> None:
    (path / "key").unlink()


def damage_no_data(path: Path) -> None:
    (path / "data.arrow").unlink()


def damage_empty(path: Path) -> None:
    (path / "data.arrow").write_bytes(b"")


def damage_short(path: Path) -> None:
    data = (path / "data.arrow").read_bytes()
    (path / "data.arrow").write_bytes(data[:-100])


def damage_byte(path: Path) -> None:
    data = bytearray((path / "data.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "data.arrow").write_bytes(bytes(data))


def damage_format(path: Path) -> None:
    meta = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**meta, "format": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_none, "found none"),
        (damage_meta, "damaged"),
        (damage_meta_kind, "damaged"),
        (damage_meta_text, "damaged"),
        (damage_key, "damaged"),
        (damage_no_key, "damaged"),
        (damage_no_data, "damaged"),
        (damage_empty, "damaged"),
        (damage_short, "damaged"),
        (damage_byte, "damaged"),
        (damage_format, "format 1"),
    ],
)
def test_damaged_and_foreign_stores_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    store = make(log(1000), FULL, tmp_path)
    damage(store.path)
    with pytest.raises(StoreError, match=message):
        ExampleStore.open(store.path)


def test_a_store_of_another_schema_names_the_first_difference(tmp_path: Path) -> None:
    store = make(log(10), FULL, tmp_path)
    store.check_schema(FeatureSchema.from_dict({**FULL.to_dict(), "columns": ["y", "x1"]}))
    other = FeatureSchema.from_dict({**FULL.to_dict(), "buckets": 999})
    with pytest.raises(StoreError, match=r"buckets is 1000 there and 999 here"):
        store.check_schema(other)


# Keys, splits and views


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(40)))
def test_keys_depend_on_content_and_not_on_position(order: list[int]) -> None:
    values = np.arange(40, dtype=np.int32) // 4  # ten values, four identical rows of each
    batch = SparseBatch.from_arrays(ids={"c": values}, labels=np.zeros(40))
    moved = SparseBatch.from_arrays(ids={"c": values[order]}, labels=np.zeros(40))
    keys = with_ordinals(content_keys(batch, None, 3))
    again = with_ordinals(content_keys(moved, None, 3))
    assert len(set(keys.tolist())) == 40
    for value in range(10):
        first, second = keys[values == value], again[values[order] == value]
        assert set(first.tolist()) == set(second.tolist())


@pytest.mark.parametrize("name", ["y", "x1", "x2", "c3", "tags", "w", "plain", "factor", "seconds"])
def test_keys_depend_on_every_column(name: str, tmp_path: Path) -> None:
    frame = log(60)
    changed = frame.with_columns(
        {
            "y": 1 - pl.col("y"),
            "plain": pl.concat_list("plain", pl.lit("a")),
            "tags": pl.col("tags").list.eval(pl.element() + 100),
            "w": pl.col("w").list.eval(pl.element() + 1),
        }.get(name, pl.col(name) + 100).alias(name)
    )
    keys = make(frame, FULL, tmp_path, "a").content_keys(0)
    other = make(changed, FULL, tmp_path, "b").content_keys(0)
    lists = frame["tags"].list.len().to_numpy() > 0
    touched = lists if name in ("tags", "w") else np.ones(60, np.bool_)
    assert (keys[touched] != other[touched]).all()
    np.testing.assert_array_equal(keys[~touched], other[~touched])


def test_order_inside_a_bag_counts(tmp_path: Path) -> None:
    schema = FeatureSchema(task="ctr", label="y", bags=["b"])
    frame = pl.DataFrame({"y": [0, 0], "b": [["p", "q"], ["q", "p"]]})
    keys = make(frame, schema, tmp_path).content_keys(0)
    assert keys[0] != keys[1]


def test_keys_are_uniform_and_seeded(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    store = big[1]
    keys, other = store.content_keys(0), store.content_keys(1)
    assert (keys != other).all()
    for word in (keys, keys ^ other):
        share = (word >> np.uint64(32)).astype(np.float64) / 2**32
        counts = np.bincount((share * 64).astype(np.int64), minlength=64)
        mean = len(keys) / 64  # chi-square of 64 cells: mean 63, standard deviation 11.2
        assert abs(((counts - mean) ** 2 / mean).sum() - 63) < 5 * 11.2


def sides(frame: pl.DataFrame, store: ExampleStore) -> list[set[int]]:
    """The rows' own numbers (column x1) on each side of a split."""
    parts = store.split(0.3, seed=5)
    return [set(frame["x1"].to_numpy()[part.input_rows].tolist()) for part in parts]


@pytest.mark.parametrize("schema", [FULL, WITH_USER])
def test_adding_or_moving_rows_moves_nobody_to_another_side(
    schema: FeatureSchema, tmp_path: Path
) -> None:
    frame = log(400, users=80).with_columns(x1=pl.int_range(400))
    before = sides(frame, make(frame, schema, tmp_path, "a"))
    extra = log(50, seed=9).with_columns(x1=pl.int_range(1000, 1050), uid=pl.lit(999))
    more = pl.concat([extra, frame.reverse()], how="vertical_relaxed")
    after = sides(more, make(more, schema, tmp_path, "b"))
    for old, new in zip(before, after, strict=True):
        assert {n for n in new if n < 1000} == old


def test_a_split_covers_every_row_once_at_about_the_fraction(
    big: tuple[pl.DataFrame, ExampleStore],
) -> None:
    _, store = big
    train, test = store.split(0.2, seed=7)
    rows = np.concatenate([train.input_rows, test.input_rows])
    assert sorted(rows.tolist()) == list(range(140_000))
    # Binomial: standard deviation sqrt(140000 * 0.2 * 0.8) = 150.
    assert abs(test.num_examples - 28_000) < 5 * 150
    other = store.split(0.2, seed=8)[1]
    assert other.input_rows.tolist() != test.input_rows.tolist()
    again = store.split(0.2, seed=7)[1]
    assert again.input_rows.tolist() == test.input_rows.tolist()
    prints = {s.fingerprint for s in (store, train, test, other)}
    assert len(prints) == 4
    assert again.fingerprint == test.fingerprint


def test_users_are_on_one_side(tmp_path: Path) -> None:
    frame = log(2000, users=200)
    store = make(frame, WITH_USER, tmp_path)
    owners = frame["uid"].to_numpy()
    train, test = store.split(0.3, seed=1)
    groups = [set(owners[part.input_rows].tolist()) for part in (train, test)]
    assert groups[0].isdisjoint(groups[1])
    assert train.num_users + test.num_users == 200
    for part in (train, test):
        assert part.user_offsets is not None
        for begin, end in itertools.pairwise(part.user_offsets):
            assert len(set(owners[part.input_rows[begin:end]])) == 1


def test_a_view_reads_as_the_store_does(big: tuple[pl.DataFrame, ExampleStore]) -> None:
    frame, store = big
    _, test = store.split(0.01, seed=2)
    rows = np.array([5, 0, len(test) - 1])
    numbers = test.input_rows[rows].tolist()
    assert rows_of(test.read(rows)) == expected(frame[numbers], FULL)
    scanned = np.concatenate([batch.labels for batch in test.scan(100)])
    np.testing.assert_array_equal(scanned, frame["y"].to_numpy()[test.input_rows])
    with pytest.raises(StoreError, match="positions"):
        test.read([len(test)])
    deeper = test.split(0.5, seed=3)
    assert sum(len(part) for part in deeper) == len(test)
    assert set(deeper[1].input_rows.tolist()) < set(test.input_rows.tolist())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_are_refused(
    fraction: float, big: tuple[pl.DataFrame, ExampleStore]
) -> None:
    with pytest.raises(StoreError, match="fraction"):
        big[1].split(fraction, seed=0)


def test_a_split_with_an_empty_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="empty"):
        make(log(3), FULL, tmp_path).split(1e-9, seed=0)


# Real and large logs


def shared_data(name: str) -> Path:
    folder = Path(os.environ.get("DPADS_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not (folder / name).exists():
        pytest.skip("needs ../shared/data (or the folder in DPADS_DATA)")
    return folder / name


@pytest.mark.parametrize("header", [False, True])
def test_criteo_in_its_original_form_through_the_preset(header: bool, tmp_path: Path) -> None:
    schema = FeatureSchema.from_dict({"preset": "criteo-display"})
    source = shared_data("criteo_1tb_day0_10k.tsv.gz")
    frame = pl.read_csv(source, separator="\t", has_header=False, infer_schema=False)
    if header:
        frame.columns = list(schema.columns)
        frame.write_csv(tmp_path / "day0.tsv", separator="\t")
        source = tmp_path / "day0.tsv"
    store = prepare(source, schema, out=tmp_path / "store")
    batch = store.read(np.arange(store.num_examples))
    assert batch.scalar_ids.shape == (10_000, 26)
    assert batch.dense.shape == (10_000, 13)
    labels = frame[:, 0].cast(pl.Float32).to_numpy()
    np.testing.assert_array_equal(batch.labels, labels)
    missing = frame[:, 14:].select(pl.all().is_null()).to_numpy()
    np.testing.assert_array_equal(batch.scalar_ids == 0, missing)
    raw = frame[:, 1:14].cast(pl.Float64).fill_null(0).to_numpy()
    np.testing.assert_allclose(batch.dense, np.sign(raw) * np.log1p(np.abs(raw)), rtol=1e-6)


def test_adkdd_with_its_signed_ids(tmp_path: Path) -> None:
    schema = FeatureSchema(
        task="ctr", label="click", categorical=[f"hash_{i}" for i in range(19)], buckets=3000
    )
    store = prepare(shared_data("criteo_adkdd2021.parquet"), schema, out=tmp_path / "store")
    assert store.num_examples == 71_567
    assert store.read(np.arange(71_567)).scalar_ids.min() >= 0


WRITE_LOG = """
import gzip, io, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.csv as text, pyarrow.parquet as parquet

path, chunks = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
columns = {"y": rng.integers(0, 2, 50_000), "uid": rng.integers(0, 40_000, 50_000)}
for j in range(10):
    columns[f"C{j}"] = [f"{v:x}" for v in rng.integers(0, 2**60, 50_000)]
table = pa.table(columns)
with path.open("wb") as file:
    if path.suffix in (".parquet", ".arrow"):
        kind = parquet.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_file
        with kind(file, table.schema) as writer:
            for _ in range(chunks):
                writer.write_table(table)
    else:
        pack = gzip.compress if path.suffix == ".gz" else bytes
        lines = io.BytesIO()
        text.write_csv(table, lines, text.WriteOptions(include_header=False))
        file.write(pack((",".join(columns) + "\\n").encode()))
        part = pack(lines.getvalue())
        for _ in range(chunks):
            file.write(part)
"""
PREPARE_LOG = """
import resource, sys
import dpads, dpads.store_writing

dpads.store_writing.SORT_BYTES = 1 << 25
schema = dpads.FeatureSchema(task="ctr", label="y", user=sys.argv[3] or None,
                             categorical=[f"C{j}" for j in range(10)])
peak = 0

def anonymous(_):
    # Pages of mapped files do not count: the system takes them back when it needs them.
    global peak
    with open("/proc/self/status") as file:
        now = next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    peak = max(peak, now)

dpads.prepare(sys.argv[1], schema, out=sys.argv[2], progress=anonymous)
anonymous(0)
print(peak // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "user"), [(".parquet", ""), (".csv", ""), (".csv.gz", "uid"), (".arrow", "uid")]
)
def test_memory_does_not_grow_with_the_log(suffix: str, user: str, tmp_path: Path) -> None:
    peaks = []
    for chunks in (50, 150):  # 2.5 and 7.5 million rows: 0.5 and 1.4 GB of text
        log_path, store_path = tmp_path / f"log{suffix}", tmp_path / "store"
        subprocess.run([sys.executable, "-c", WRITE_LOG, log_path, str(chunks)], check=True)
        command = [sys.executable, "-c", PREPARE_LOG, log_path, store_path, user]
        out = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(out.stdout))
        shutil.rmtree(store_path)
    # The larger store has 300 MB more, the larger log 900 MB more.
    assert peaks[1] < peaks[0] + 120, f"peak resident memory in MB: {peaks}"
