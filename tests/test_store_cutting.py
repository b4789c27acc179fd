"""Cutting a store into shards: at borders of users, no shard empty, nothing left on failure."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cli_calls import CONFIG, done, dpads_command
from hypothesis import given
from hypothesis import strategies as st
from store_logs import FULL, WITH_USER, equal, log, parts_of
from test_store import left

from dpads import store_cutting
from dpads.errors import StoreError
from dpads.preparing import prepare
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.store_shards import first_straddling, shard_name

# Cuts


@given(
    sizes=st.lists(st.sampled_from([1, 1, 2, 3, 40]), min_size=1, max_size=30),
    shards=st.integers(2, 12),
    scan=st.integers(1, 50),
)
def test_cuts_are_borders_of_users_and_leave_no_shard_empty(
    sizes: list[int], shards: int, scan: int
) -> None:
    starts = np.cumsum([0, *sizes])[:-1]

    class Store:
        """As far as cuts are concerned."""

        schema = WITH_USER
        num_examples = sum(sizes)

        def user_starts(self) -> Any:
            yield from (starts[i : i + scan] for i in range(0, len(starts), scan))

    store: Any = Store()
    if len(sizes) < shards:
        with pytest.raises(StoreError, match="at least one user for each of"):
            store_cutting._cuts(store, shards)
        return
    cuts = store_cutting._cuts(store, shards)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, sum(sizes), shards + 1)
    assert set(cuts[:-1]) <= set(starts.tolist())
    lengths = np.diff(cuts)
    assert lengths.min() >= 1
    # Each cut is the first border from the even one on, unless shards would be empty then.
    for number in range(1, shards):
        even = int(np.searchsorted(starts, number * sum(sizes) // shards))
        chosen = int(np.searchsorted(starts, cuts[number]))
        before = int(np.searchsorted(starts, cuts[number - 1]))
        assert chosen == min(max(even, before + 1), len(sizes) - shards + number)


@pytest.mark.parametrize("schema", [FULL, WITH_USER])
def test_fewer_units_than_shards_are_refused(schema: FeatureSchema, tmp_path: Path) -> None:
    frame = log(4).with_columns(uid=pl.int_range(4) % 3)
    frame.write_parquet(tmp_path / "log.parquet")
    units = 4 if schema.user is None else 3
    assert len(prepare(tmp_path / "log.parquet", schema, out=tmp_path / "s", shards=units)) == 4
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(StoreError, match="Ask for fewer shards"):
        prepare(tmp_path / "log.parquet", schema, out=tmp_path / "new" / "s", shards=units + 1)
    assert left(tmp_path) == []


@pytest.mark.parametrize("shards", [0, -1, True, 2.0, "2", None])
def test_shards_are_counted_from_one(shards: Any, tmp_path: Path) -> None:
    log(4).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(StoreError, match="shards to be at least 1"):
        prepare(tmp_path / "log.parquet", FULL, out=tmp_path / "s", shards=shards)
    assert left(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []

    def interrupt(folder: Path, key: bytes) -> str:
        calls.append(key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(store_cutting, "write_meta", interrupt)
    log(100).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "log.parquet", FULL, out=tmp_path / "new" / "s", shards=3)
    assert len(calls) == 2
    assert left(tmp_path) == []


# Users in two shards


def keys(*borders: tuple[tuple[int, int], tuple[int, int]] | None) -> list[Any]:
    return [
        None if border is None else tuple(np.array(user, np.uint64) for user in border)
        for border in borders
    ]


@pytest.mark.parametrize(
    ("borders", "found"),
    [
        (keys(), None),
        (keys(None, None), None),
        (keys(((0, 0), (0, 5))), None),
        (keys(((0, 0), (0, 5)), ((0, 6), (1, 0)), ((1, 1), (1, 1))), None),
        (keys(((0, 0), (0, 5)), ((0, 5), (1, 0))), 1),
        (keys(((0, 0), (0, 5)), ((0, 4), (1, 0))), 1),
        (keys(((0, 0), (1, 0)), ((0, 9), (2, 0))), 1),
        (keys(((0, 0), (0, 5)), None, ((0, 5), (1, 0))), 2),
        (keys(None, ((0, 0), (0, 2**64 - 1)), None, ((1, 0), (2**64 - 1, 0))), None),
        (keys(((2, 0), (2, 0)), ((3, 0), (3, 0)), ((3, 0), (4, 0)), ((1, 0), (1, 0))), 2),
    ],
)
def test_a_user_of_two_parts_is_found(borders: list[Any], found: int | None) -> None:
    assert first_straddling(borders) == found


@pytest.fixture
def straddling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards; a user has rows in the second and the third."""
    frame = log(300, users=9)
    frame.write_parquet(tmp_path / "log.parquet")
    one = prepare(tmp_path / "log.parquet", WITH_USER, out=tmp_path / "one")
    offsets = one.user_offsets
    assert offsets is not None
    cuts = [0, int(offsets[2]), int(offsets[6]) - 1, 300]
    monkeypatch.setattr(store_cutting, "_cuts", lambda *_: cuts)
    with pytest.raises(StoreError, match="every user in one shard"):
        prepare(tmp_path / "log.parquet", WITH_USER, out=tmp_path / "s", shards=3)
    return tmp_path / "s"


def test_a_user_in_two_shards_is_refused_at_opening(straddling: Path) -> None:
    with pytest.raises(StoreError, match=rf"{shard_name(2, 3)}: expected every user in one shard"):
        ExampleStore.open(straddling)


def test_a_user_in_two_processes_shards_is_found_by_their_borders(straddling: Path) -> None:
    borders = [store.border_users() for store in parts_of(straddling, 3)]
    assert first_straddling(borders) == 2
    first, second = parts_of(straddling, 3)[:2]
    assert first_straddling([first.border_users(), second.border_users()]) is None


def test_a_user_whose_rows_stand_apart_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffle(columns: tuple[Any, ...]) -> Any:
        return np.arange(len(columns[0]))

    log(100, users=5).write_parquet(tmp_path / "log.parquet")
    with monkeypatch.context() as unsorted:
        unsorted.setattr("dpads.store_writing.np.lexsort", shuffle)
        store = prepare(tmp_path / "log.parquet", WITH_USER, out=tmp_path / "s")
    with pytest.raises(StoreError, match="stand apart"):
        store.user_offsets  # noqa: B018 (raises)


# The command


def test_the_command_cuts_a_store(tmp_path: Path) -> None:
    frame = log(1000, users=40)
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "s.toml").write_text(
        '[schema]\ntask = "ctr"\nlabel = "y"\ncategorical = ["c1"]\nuser = "uid"\n'
    )
    logs = (tmp_path / "log.parquet", "--schema", tmp_path / "s.toml", "--out")
    text = done("prepare", *logs, tmp_path / "a", "--shards", "4")
    assert text == f"{tmp_path}/a: 1,000 examples in 4 shards\n"
    found = json.loads(done("prepare", *logs, tmp_path / "b", "--shards", "2", "--json"))
    assert found == {"store": f"{tmp_path}/b", "examples": 1000, "shards": 2}
    assert done("prepare", *logs, tmp_path / "c") == f"{tmp_path}/c: 1,000 examples\n"
    stores = [ExampleStore.open(tmp_path / name) for name in "abc"]
    for one, other in itertools.pairwise(stores):
        assert equal(one, other)


def test_a_store_in_shards_is_taken_where_a_store_is(log_folder: Path, tmp_path: Path) -> None:
    # Every example is in every batch, so that the runs' keys, which name the store, do not matter.
    config = CONFIG.replace("batch_size = 300", "batch_size = 3000").replace(
        "epsilon = 3.0", "noise_multiplier = 0.0"
    )
    (tmp_path / "config.toml").write_text(config.replace('"test.parquet"', "0.2"))
    rows, schema = log_folder / "train.parquet", ("--schema", tmp_path / "config.toml")
    predictions = []
    for shards in (1, 3):
        store, run = tmp_path / f"store{shards}", tmp_path / f"run{shards}"
        done("prepare", rows, *schema, "--out", store, "--shards", shards)
        done("train", tmp_path / "config.toml", "--set", f"data.train={store}", "--out", run)
        done("evaluate", run, store)
        done("predict", run, store, "--out", tmp_path / f"{shards}.parquet")
        predictions.append(pl.read_parquet(tmp_path / f"{shards}.parquet")["prediction"])
    assert predictions[0].equals(predictions[1])


@pytest.mark.parametrize("shards", ["0", "-3", "1.5", "many", "11", "", "1e30"])
def test_the_command_refuses_what_is_no_number_of_shards(shards: str, tmp_path: Path) -> None:
    log(10).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "s.toml").write_text('[schema]\ntask = "ctr"\nlabel = "y"\n')
    result = dpads_command(
        "prepare", tmp_path / "log.parquet", "--schema", tmp_path / "s.toml",
        "--out", tmp_path / "new" / "s", "--shards", shards,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "shards" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
