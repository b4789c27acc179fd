"""A store in shards is the store in one piece, whoever opens which of them."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_logs import FULL, WITH_USER, equal, few_values, log, parts_of, rows_of

from dpads import store_cutting
from dpads.errors import StoreError
from dpads.preparing import prepare
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.store_shards import first_straddling, shard_name

ROWS, SHARDS = 3000, 5
PAIRS = {"examples": FULL, "users": WITH_USER}
PARTS = [(i, n) for n in (1, 2, 3, 5) for i in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores in one piece and in shards of one log, with and without users."""
    folder = tmp_path_factory.mktemp("shards")
    log(ROWS, users=90).write_parquet(folder / "log.parquet")
    for name, schema in PAIRS.items():
        prepare(folder / "log.parquet", schema, out=folder / name)
        prepare(folder / "log.parquet", schema, out=folder / f"{name}-cut", shards=SHARDS)
    few_values(2000).write_parquet(folder / "few.parquet")
    prepare(folder / "few.parquet", FULL, out=folder / "few")
    prepare(folder / "few.parquet", FULL, out=folder / "few-cut", shards=SHARDS)
    return folder


def pair(folder: Path, name: str) -> tuple[ExampleStore, ExampleStore]:
    """The store in one piece, and in shards."""
    return ExampleStore.open(folder / name), ExampleStore.open(folder / f"{name}-cut")


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[ExampleStore, ExampleStore]:
    """The stores with users."""
    return pair(folder, "users")


# What is in a store in shards


@pytest.mark.parametrize("name", [*PAIRS, "few"])
def test_shards_together_are_the_store_in_one_piece(folder: Path, name: str) -> None:
    one, cut = pair(folder, name)
    assert equal(one, cut)
    assert cut.part == one.part == (0, 1)
    assert cut.path == folder / f"{name}-cut"
    assert cut.schema == one.schema
    for seed in (0, 1):
        np.testing.assert_array_equal(one.content_keys(seed), cut.content_keys(seed))
    if name == "users":
        np.testing.assert_array_equal(one.user_offsets, cut.user_offsets)
        assert one.num_users == cut.num_users == 90
    batches = [batch.labels for batch in cut.scan(701)]
    np.testing.assert_array_equal(np.concatenate(batches), one.read(np.arange(len(one))).labels)


@given(rows=st.lists(st.integers(0, ROWS - 1), max_size=40))
def test_examples_are_read_in_any_order(
    opened: tuple[ExampleStore, ExampleStore], rows: list[int]
) -> None:
    one, cut = opened
    batch, other = one.read(rows), cut.read(rows)
    assert rows_of(batch) == rows_of(other)
    for name, bag in batch.bags.items():
        found = other.bags[name]
        np.testing.assert_array_equal(found.offsets, bag.offsets)
        assert (found.values.dtype, found.offsets.dtype) == (bag.values.dtype, bag.offsets.dtype)
    assert (other.scalar_ids.dtype, other.dense.dtype) == (np.int32, np.float32)
    assert other.scalar_ids.shape == batch.scalar_ids.shape


def test_positions_outside_are_refused(folder: Path) -> None:
    part = ExampleStore.open(folder / "users-cut", part=(1, 2))
    with pytest.raises(StoreError, match="positions"):
        part.read([len(part)])


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_parts_cover_the_store_once_in_order(folder: Path, name: str, processes: int) -> None:
    one, cut = pair(folder, name)
    parts = parts_of(folder / f"{name}-cut", processes)
    assert [part.part for part in parts] == [(i, processes) for i in range(processes)]
    assert {part.fingerprint for part in parts} == {cut.fingerprint}
    assert {part.whole_fingerprint for part in parts} == {cut.whole_fingerprint}
    rows = np.concatenate([part.input_rows for part in parts])
    np.testing.assert_array_equal(rows, one.input_rows)
    read = [row for part in parts for row in rows_of(part.read(np.arange(len(part))))]
    assert read == rows_of(one.read(np.arange(ROWS)))
    assert sum(part.num_units("example") for part in parts) == ROWS
    if name == "users":
        assert sum(part.num_users for part in parts) == one.num_users
        borders = [part.border_users() for part in parts]
        assert first_straddling(borders) is None
    else:
        assert all(part.border_users() is None for part in parts)


@pytest.mark.parametrize("name", PAIRS)
def test_shards_are_about_equal(folder: Path, name: str) -> None:
    sizes = [
        ExampleStore.open(folder / f"{name}-cut" / shard_name(i, SHARDS)).num_examples
        for i in range(SHARDS)
    ]
    most = int(np.diff(ExampleStore.open(folder / "users").user_offsets).max())
    assert sum(sizes) == ROWS
    assert max(abs(size - ROWS / SHARDS) for size in sizes) <= (most if name == "users" else 1)


def test_a_shard_is_an_ordinary_store_under_one_private_key(folder: Path) -> None:
    whole = folder / "examples-cut"
    shards = [whole / shard_name(i, SHARDS) for i in range(SHARDS)]
    assert sorted(whole.iterdir()) == [*shards, whole / "shards.json"]
    assert len({(shard / "key").read_bytes() for shard in shards}) == 1
    facts = json.loads((whole / "shards.json").read_text())
    opened = [ExampleStore.open(shard) for shard in shards]
    assert facts["fingerprints"] == [shard.fingerprint for shard in opened]
    assert (facts["format"], facts["shards"]) == (1, SHARDS)
    for shard, store in zip(shards, opened, strict=True):
        assert sorted(p.name for p in shard.iterdir()) == ["data.arrow", "key", "store.json"]
        assert stat.S_IMODE((shard / "key").stat().st_mode) == 0o600
        assert (store.part, store.schema) == ((0, 1), FULL)


def test_record_batches_hold_exactly_65536_rows(tmp_path: Path) -> None:
    frame = (
        log(5).sample(200_000, with_replacement=True, seed=0).with_columns(x1=pl.int_range(200_000))
    )
    schema = FeatureSchema(task="count", label="x1", categorical=["c1"], bags=["plain"])
    frame.write_parquet(tmp_path / "log.parquet")
    cut = prepare(tmp_path / "log.parquet", schema, out=tmp_path / "s", shards=2)
    for i in range(2):
        with pa.ipc.open_file(cut.path / shard_name(i, 2) / "data.arrow") as reader:
            sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
            reader.read_all().validate(full=True)
        assert sizes == [65_536, 100_000 - 65_536]
    np.testing.assert_array_equal(cut.read(np.arange(200_000)).labels, np.arange(200_000))


def test_one_shard_is_a_store_in_one_piece(tmp_path: Path) -> None:
    log(50).write_parquet(tmp_path / "log.parquet")
    stores = [
        prepare(tmp_path / "log.parquet", FULL, out=tmp_path / "a"),
        prepare(tmp_path / "log.parquet", FULL, out=tmp_path / "b", shards=1),
    ]
    for store in stores:
        assert sorted(p.name for p in store.path.iterdir()) == ["data.arrow", "key", "store.json"]
        assert store.part == (0, 1)
    content = [(store.path / "data.arrow").read_bytes() for store in stores]
    assert content[0] == content[1]


# Splits and caps


@pytest.mark.parametrize("name", [*PAIRS, "few"])
def test_a_split_is_that_of_the_store_in_one_piece(folder: Path, name: str) -> None:
    one, cut = pair(folder, name)
    sides = cut.split(0.3, seed=5)
    for expected, found in zip(one.split(0.3, seed=5), sides, strict=True):
        assert equal(expected, found)
    for processes in (2, 3, 5):
        split = [part.split(0.3, seed=5) for part in parts_of(cut.path, processes)]
        for side, whole in enumerate(sides):
            parts = [both[side] for both in split]
            assert {part.fingerprint for part in parts} == {whole.fingerprint}
            rows = np.concatenate([part.input_rows for part in parts])
            np.testing.assert_array_equal(rows, whole.input_rows)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_adding_or_moving_rows_moves_nobody_to_another_side(shards: int, tmp_path: Path) -> None:
    # Equal rows are in several shards, and a row more moves all cuts.
    def sides(frame: pl.DataFrame, name: str) -> list[list[tuple[Any, ...]]]:
        frame.write_parquet(tmp_path / f"{name}.parquet")
        cut = prepare(tmp_path / f"{name}.parquet", FULL, out=tmp_path / name, shards=shards)
        return [sorted(rows_of(s.read(np.arange(len(s))))) for s in cut.split(0.3, seed=5)]

    frame = few_values(200)
    before = sides(frame, "a")
    extra = few_values(1, seed=9).with_columns(c1=pl.lit(77))
    after = sides(pl.concat([extra, frame.reverse()], how="vertical_relaxed"), "b")
    added = rows_of(ExampleStore.open(tmp_path / "b").read([0]))[0]
    for old, new in zip(before, after, strict=True):
        assert [row for row in new if row != added] == old


def test_counts_of_equal_rows_do_not_depend_on_the_batches_they_are_made_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_cutting, "SCAN_ROWS", 7)
    monkeypatch.setattr(store_cutting, "PARTS", 3)
    cut = prepare(folder / "few.parquet", FULL, out=tmp_path / "s", shards=SHARDS)
    other = ExampleStore.open(folder / "few-cut")
    for found, expected in zip(cut.split(0.3, seed=5), other.split(0.3, seed=5), strict=True):
        assert equal(found, expected)


@pytest.mark.parametrize("cap", [1, 20, "all but one", 10_000])
def test_caps_are_those_of_the_store_in_one_piece(
    opened: tuple[ExampleStore, ExampleStore], cap: Any
) -> None:
    one, cut = opened
    if cap == "all but one":
        cap = int(np.diff(one.user_offsets).max()) - 1
    expected, whole = one.capped(cap, seed=3), cut.capped(cap, seed=3)
    assert equal(expected, whole)
    for processes in (2, 5):
        parts = [part.capped(cap, seed=3) for part in parts_of(cut.path, processes)]
        # also where nobody of one part has more, and somebody of another one has
        assert {part.fingerprint for part in parts} == {whole.fingerprint}
        rows = np.concatenate([part.input_rows for part in parts])
        np.testing.assert_array_equal(rows, whole.input_rows)


def test_a_side_of_one_part_may_be_empty(tmp_path: Path) -> None:
    frame = log(40, users=8)
    frame.write_parquet(tmp_path / "log.parquet")
    cut = prepare(tmp_path / "log.parquet", WITH_USER, out=tmp_path / "s", shards=8)
    tests = [part.split(0.2, seed=1)[1] for part in parts_of(cut.path, 8)]
    assert sum(map(len, tests)) == len(cut.split(0.2, seed=1)[1]) > 0
    empty = next(part for part in tests if not len(part))
    assert empty.num_users == len(empty.input_rows) == empty.read([]).num_examples == 0
    assert empty.user_offsets is not None
    assert empty.user_offsets.tolist() == [0]
    assert (list(empty.scan(10)), empty.border_users()) == ([], None)
    assert len(empty.content_keys(0)) == len(empty.capped(1, seed=0)) == 0
    assert [len(side) for side in empty.split(0.5, seed=0)] == [0, 0]
    with pytest.raises(StoreError, match="empty"):
        cut.split(1e-9, seed=0)


def test_parts_know_whether_they_share_examples(folder: Path) -> None:
    path = folder / "examples-cut"
    first, second = parts_of(path, 2)
    whole = ExampleStore.open(path)
    assert not first.shares_examples(second)
    assert first.split_from(second)
    assert whole.shares_examples(second)
    assert not whole.split_from(first)
    train, test = first.split(0.3, seed=1)
    assert train.split_from(test)


# Who may open what


def test_a_process_needs_its_own_shards_alone(folder: Path, tmp_path: Path) -> None:
    whole = folder / "users-cut"
    for i, n in PARTS:
        host = tmp_path / f"{i}-{n}" / "store"
        host.mkdir(parents=True)
        shutil.copy(whole / "shards.json", host)
        for number in range(i * SHARDS // n, (i + 1) * SHARDS // n):
            name = shard_name(number, SHARDS)
            shutil.copytree(whole / name, host / name)
        assert equal(ExampleStore.open(host, part=(i, n)), ExampleStore.open(whole, part=(i, n)))
        if n > 1:
            with pytest.raises(StoreError, match=r"shard-.*Copy it to this machine"):
                ExampleStore.open(host)


def test_more_processes_than_shards_are_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"shards, 5, got 6\. .*--shards 6, or start fewer"):
        ExampleStore.open(folder / "users-cut", part=(0, 6))
    with pytest.raises(StoreError, match=r"one piece\. .*--shards 2, or start one process"):
        ExampleStore.open(folder / "users", part=(0, 2))
    assert ExampleStore.open(folder / "users", part=(0, 1)).num_examples == ROWS


@pytest.mark.parametrize("part", [(0, 0), (2, 2), (-1, 2), (0, 2, 1), (0.0, 2), (True, 2), 1, None])
def test_what_is_no_part_is_refused(folder: Path, part: Any) -> None:
    with pytest.raises(StoreError, match="process i of n"):
        ExampleStore.open(folder / "users-cut", part=part)


def test_pages_of_all_shards_are_let_go_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    from dpads.store_mapping import Residency

    monkeypatch.setattr("dpads.store_mapping.RESIDENT_BYTES", 9)
    monkeypatch.setattr("dpads.store_mapping._file_bytes", lambda: 10)
    asked: list[tuple[int, int]] = []

    class Mapping:
        def __init__(self, number: int) -> None:
            self.number = number

        def __len__(self) -> int:
            return 5

        def madvise(self, advice: int) -> None:
            asked.append((self.number, advice))

    Residency(Mapping(0)).limit()  # type: ignore[arg-type]
    assert asked == []
    Residency(Mapping(0), Mapping(1)).limit()  # type: ignore[arg-type]
    assert asked == [(0, mmap.MADV_DONTNEED), (1, mmap.MADV_DONTNEED)]
    monkeypatch.undo()
    cut = ExampleStore.open(folder / "few-cut")
    assert len(cut._mapped.residency.mappings) == SHARDS
