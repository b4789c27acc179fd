"""Stores: what is read is what was encoded, whole or not at all."""

from __future__ import annotations

import itertools
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from store_logs import FULL, WITH_USER, expected, log, make, rows_of

from dpads.errors import DataError, SchemaError, StoreError
from dpads.preparing import prepare
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore


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


def test_record_batches_are_whole_whatever_the_batches_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpads.reading.BATCH_ROWS", 30_001)
    frame = log(70_000)
    store = make(frame, FULL, tmp_path)
    with pa.ipc.open_file(store.path / "data.arrow") as reader:
        sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sizes == [65_536, 70_000 - 65_536]
    rows = [0, 30_000, 30_001, 60_002, 65_535, 65_536, 69_999]
    assert rows_of(store.read(rows)) == expected(frame[rows], FULL)


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
        (damage_format, "format 2"),
    ],
)
def test_damaged_and_foreign_stores_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    store = make(log(1000), FULL, tmp_path)
    damage(store.path)
    with pytest.raises(StoreError, match=message):
        ExampleStore.open(store.path)


def test_a_store_of_another_schema_names_the_first_difference(tmp_path: Path) -> None:
    store = make(log(10), FULL, tmp_path)
    store.check_schema(
        FeatureSchema.from_dict({**FULL.to_dict(), "columns": sorted(FULL.input_columns)})
    )
    other = FeatureSchema.from_dict({**FULL.to_dict(), "buckets": 999})
    with pytest.raises(StoreError, match=r"buckets is 1000 there and 999 here"):
        store.check_schema(other)


@pytest.mark.parametrize(("size", "resident"), [(5, 6), (7, 6), (7, 7)])
def test_pages_of_a_large_file_are_let_go_of_when_they_are_many(
    monkeypatch: pytest.MonkeyPatch, size: int, resident: int
) -> None:
    import mmap

    import dpads.store_mapping as mapping

    monkeypatch.setattr(mapping, "RESIDENT_BYTES", 6)
    monkeypatch.setattr(mapping, "_file_bytes", lambda: resident)
    asked: list[int] = []

    class Mapping:
        def __len__(self) -> int:
            return size

        def madvise(self, advice: int) -> None:
            asked.append(advice)

    residency = mapping.Residency(Mapping())  # type: ignore[arg-type]
    for _ in range(2):
        residency.limit()
    let_go = size > 6 and resident > 6
    assert asked == ([mmap.MADV_DONTNEED] * 2 if let_go else [])


def test_mapped_pages_count_as_the_process_memory(
    big: tuple[pl.DataFrame, ExampleStore],
) -> None:
    from dpads.store_mapping import _file_bytes

    store = big[1]
    store.read(np.arange(store.num_examples))
    assert _file_bytes() > 1 << 20


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_the_fingerprint_covers_every_byte_and_the_length(tmp_path: Path, size: int) -> None:
    import dpads.store_mapping as mapping

    path, key = tmp_path / "data", bytes(32)
    content = np.random.default_rng(size).bytes(size)
    path.write_bytes(content)
    whole = mapping.keyed_fingerprint(key, path)
    assert whole == mapping.keyed_fingerprint(key, path)
    assert whole != mapping.keyed_fingerprint(bytes(31) + b"\1", path)
    for at in {0, size // 2, size - 1} if size else ():
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert whole != mapping.keyed_fingerprint(key, path)
    path.write_bytes(content + b"\0")
    assert whole != mapping.keyed_fingerprint(key, path)
