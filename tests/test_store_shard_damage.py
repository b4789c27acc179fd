"""Shards that are damaged, missing or of another store are refused, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_logs import FULL, WITH_USER, log

from dpads.errors import StoreError
from dpads.preparing import prepare
from dpads.store import ExampleStore
from dpads.store_shards import shard_name


def shard(path: Path, number: int = 1) -> Path:
    return path / shard_name(number, 3)


def facts(path: Path, **changes: Any) -> None:
    """Changes the list."""
    old = json.loads((path / "shards.json").read_text())
    (path / "shards.json").write_text(json.dumps({**old, **changes}))


def listed(path: Path) -> list[str]:
    found: list[str] = json.loads((path / "shards.json").read_text())["fingerprints"]
    return found


def no_list(path: Path) -> None:
    (path / "shards.json").unlink()


def list_text(path: Path) -> None:
    (path / "shards.json").write_text("{")


def list_kind(path: Path) -> None:
    (path / "shards.json").write_text("[]")


def list_format(path: Path) -> None:
    facts(path, format=99)


def list_short(path: Path) -> None:
    facts(path, fingerprints=listed(path)[:2])


def list_of_numbers(path: Path) -> None:
    facts(path, fingerprints=[1, 2, 3])


def list_not_ascii(path: Path) -> None:
    facts(path, fingerprints=[*listed(path)[:2], "ü"])


def list_empty(path: Path) -> None:
    facts(path, fingerprints=[], shards=0)


def list_without_whole(path: Path) -> None:
    facts(path, fingerprint=None)


def list_whole(path: Path) -> None:
    facts(path, fingerprint="0" * 64)


def list_of_another_store(path: Path) -> None:
    shutil.copy(path.parent / "other" / "shards.json", path)


def no_shard(path: Path) -> None:
    shutil.rmtree(shard(path))


def shard_byte(path: Path) -> None:
    data = bytearray((shard(path) / "data.arrow").read_bytes())
    data[len(data) // 2] ^= 1
    (shard(path) / "data.arrow").write_bytes(bytes(data))


def shard_no_data(path: Path) -> None:
    (shard(path) / "data.arrow").unlink()


def shard_key(path: Path) -> None:
    (shard(path) / "key").write_bytes(b"0" * 32)


def shard_no_meta(path: Path) -> None:
    (shard(path) / "store.json").unlink()


def shard_copy(path: Path) -> None:
    shutil.rmtree(shard(path))
    shutil.copytree(shard(path, 0), shard(path))


def shard_order(path: Path) -> None:
    shard(path, 2).rename(path / "aside")
    shard(path, 1).rename(shard(path, 2))
    (path / "aside").rename(shard(path, 1))


def shard_of_another_store(path: Path) -> None:
    shutil.rmtree(shard(path))
    shutil.copytree(shard(path.parent / "other"), shard(path))


def shard_in_the_list_of_another_store(path: Path) -> None:
    shard_of_another_store(path)
    other = listed(path.parent / "other")
    facts(path, fingerprints=[listed(path)[0], other[1], listed(path)[2]])


def shard_of_another_schema(path: Path) -> None:
    shutil.rmtree(shard(path))
    frame = log(100)
    frame.write_parquet(path.parent / "x.parquet")
    prepare(path.parent / "x.parquet", FULL, out=shard(path))


NAMED = r"shard-00001-of-00003: "


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_list, r"expected shards\.json beside"),
        (list_text, r"shards\.json: the list of shards is damaged"),
        (list_kind, r"shards\.json: the list of shards is damaged"),
        (list_format, r"shards\.json: expected format 1"),
        (list_short, r"shards\.json: the list of shards is damaged"),
        (list_of_numbers, r"shards\.json: the list of shards is damaged"),
        (list_not_ascii, r"shards\.json: the list of shards is damaged"),
        (list_empty, r"shards\.json: the list of shards is damaged"),
        (list_without_whole, r"shards\.json: the list of shards is damaged"),
        (list_whole, r"shards\.json: the list of shards is damaged"),
        (list_of_another_store, r"expected shard \d of the store, got one that shards\.json"),
        (no_shard, NAMED + "expected this shard here"),
        (shard_byte, NAMED + "the store is damaged"),
        (shard_no_data, NAMED + "the store is damaged"),
        (shard_key, NAMED + "the store is damaged"),
        (shard_no_meta, NAMED + "expected a store"),
        (shard_copy, NAMED + "expected shard 1 of the store, got shard 0"),
        (shard_order, NAMED + "expected shard 1 of the store, got shard 2"),
        (shard_of_another_store, NAMED + "expected shard 1 of the store, got one that"),
        (shard_of_another_schema, NAMED + "expected shard 1 of the store, got one that"),
        (shard_in_the_list_of_another_store, r"shards\.json: the list of shards is damaged"),
    ],
)
def test_damaged_missing_and_foreign_shards_are_refused(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    log(60).write_parquet(tmp_path / "log.parquet")
    for name in ("s", "other"):
        prepare(tmp_path / "log.parquet", WITH_USER, out=tmp_path / name, shards=3)
    damage(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        ExampleStore.open(tmp_path / "s")
    with pytest.raises(StoreError):
        ExampleStore.open(tmp_path / "s", part=(1, 3))


def test_a_list_that_was_changed_is_refused_by_processes_whose_shards_are_whole(
    tmp_path: Path,
) -> None:
    log(60).write_parquet(tmp_path / "log.parquet")
    prepare(tmp_path / "log.parquet", FULL, out=tmp_path / "s", shards=3)
    facts(tmp_path / "s", fingerprints=[*listed(tmp_path / "s")[:2], "0" * 64])
    with pytest.raises(StoreError, match="the list of shards is damaged"):
        ExampleStore.open(tmp_path / "s", part=(0, 3))
