"""A store that was cut into shards, opened as one; or the shards of one process of several.

    STORE/
      shards.json                   format, number of shards, their fingerprints, and that of the whole
      shard-00000-of-00004/         an ordinary store; all have one key
      ...

The shards follow one another in the order of the store in one piece, and no user is in two of them.
Process i of n opens the shards from i*K//n to before (i+1)*K//n and needs no others on its machine.
The fingerprint of the whole, keyed too, is the same for every process: what a run is called does
not depend on how many there are.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpads.batch import BagIds
from dpads.errors import StoreError
from dpads.store_keys import Keys, in_stored_order
from dpads.store_mapping import BagColumn, Column, MappedStore, Residency, Rows, map_store

SHARDS = "shards.json"
SHARDS_FORMAT = 1

Border: TypeAlias = tuple[Keys, Keys]
"""The keys of the first and the last user of some rows, uint64[2] each, that rise as users do."""


def shard_name(number: int, count: int) -> str:
    """The folder of one shard."""
    return f"shard-{number:05d}-of-{count:05d}"


def write_list(folder: Path, key: bytes, fingerprints: Sequence[str]) -> None:
    """Writes which shards there are.

    Args:
        folder: of the store.
        key: of all shards.
        fingerprints: of the shards in order.
    """
    facts = {
        "format": SHARDS_FORMAT,
        "shards": len(fingerprints),
        "fingerprints": list(fingerprints),
        "fingerprint": _whole_fingerprint(key, fingerprints),
    }
    (folder / SHARDS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def open_mapped(path: Path, part: tuple[int, int]) -> MappedStore:
    """Maps a store's files after checking them.

    Args:
        path: the store's folder.
        part: (i, n): process i of n.

    Raises:
        StoreError: as `ExampleStore.open` says.
    """
    if not _is_part(part):
        raise StoreError(
            f"Expected part = (i, n), process i of n with 0 <= i < n, got {part!r}. "
            "Leave it out to open all."
        )
    processes = part[1]
    if (path / SHARDS).is_file():
        return _open_shards(path, part)
    if any(path.glob("shard-*-of-*")):
        raise StoreError(f"{path}: expected {SHARDS} beside the shards, found none. Copy it too.")
    whole = map_store(path)
    if processes > 1:
        raise StoreError(
            f"{path}: expected a store in at least {processes} shards, one for each process, got one in "
            f"one piece. Prepare the logs again with --shards {processes}, or start one process."
        )
    return whole


def first_straddling(borders: Sequence[Border | None]) -> int | None:
    """Which rows have a user that rows before them have.

    Args:
        borders: `ExampleStore.border_users` of all parts in order, 0 of n first.

    Returns:
        The number of the first part whose users do not come after those of all parts before it; None
        where no user straddles.
    """
    last: list[int] | None = None
    for number, border in enumerate(borders):
        if border is None:
            continue
        if last is not None and border[0].tolist() <= last:
            return number
        last = border[1].tolist()
    return None


@dataclass(frozen=True)
class JoinedColumn:
    """A column of several stores, one after another.

    Attributes:
        parts: the stores' columns.
        bounds: int64[parts + 1], the numbers of their first rows, and how many there are.
    """

    parts: tuple[Column, ...]
    bounds: Rows

    def take(self, rows: Rows) -> NDArray[Any]:
        """The rows' words, [n] or [n, width]."""
        found = [(at, self.parts[part].take(own)) for part, at, own in _by_part(self.bounds, rows)]
        if len(found) == 1:
            return found[0][1]
        first = found[0][1]
        taken = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for at, values in found:
            taken[at] = values
        return taken


@dataclass(frozen=True)
class JoinedBag:
    """A list column of several stores, one after another.

    Attributes:
        parts: the stores' columns.
        bounds: as in `JoinedColumn`.
    """

    parts: tuple[BagColumn, ...]
    bounds: Rows

    def take(self, rows: Rows) -> BagIds:
        """The rows' lists, one after another."""
        found = list(_by_part(self.bounds, rows))
        bags = [self.parts[part].take(own) for part, _, own in found]
        if len(bags) == 1:
            return bags[0]
        # Lists lie store by store here; `back` finds that of each row.
        back = np.empty(len(rows), np.int64)
        back[np.concatenate([at for _, at, _ in found])] = np.arange(len(rows))
        lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
        begins = (np.cumsum(lengths) - lengths)[back]
        lengths = lengths[back]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        place = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
        factors = [bag.weights for bag in bags if bag.weights is not None]
        return BagIds(
            np.concatenate([bag.values for bag in bags])[place],
            offsets,
            np.concatenate(factors)[place] if factors else None,
        )


def _by_part(bounds: Rows, rows: Rows) -> Iterator[tuple[int, Rows, Rows]]:
    """Each part that has some of the rows: its number, where they stand in `rows`, their own numbers."""
    part = np.searchsorted(bounds, rows, side="right") - 1
    first, last = (int(part.min()), int(part.max())) if len(rows) else (0, 0)
    order = np.argsort(part, kind="stable") if first < last else np.arange(len(rows))
    ends = np.searchsorted(part[order], np.arange(first, last + 1), side="right")
    for number, begin, end in zip(range(first, last + 1), [0, *ends[:-1]], ends, strict=True):
        if begin < end or first == last:
            at = order[begin:end]
            yield number, at, rows[at] - bounds[number]


def _join(path: Path, shards: Sequence[MappedStore], fingerprint: str) -> MappedStore:
    """Several shards as one store."""
    first = shards[0]
    if len(shards) == 1:
        return replace(first, path=path, fingerprint=fingerprint)
    bounds = np.cumsum([0, *(shard.num_rows for shard in shards)])
    return replace(
        first,
        path=path,
        fingerprint=fingerprint,
        num_rows=int(bounds[-1]),
        columns={
            name: JoinedColumn(tuple(shard.columns[name] for shard in shards), bounds)
            for name in first.columns
        },
        bags={
            name: JoinedBag(tuple(shard.bags[name] for shard in shards), bounds)
            for name in first.bags
        },
        residency=Residency(*(file for shard in shards for file in shard.residency.mappings)),
    )


def _open_shards(path: Path, part: tuple[int, int]) -> MappedStore:
    """The shards of one process, checked one by one and together."""
    fingerprints, fingerprint = _read_list(path)
    count, (process, processes) = len(fingerprints), part
    if processes > count:
        raise StoreError(
            f"{path}: expected at most as many processes as the store has shards, {count}, got "
            f"{processes}. Prepare the logs again with --shards {processes}, or start fewer processes."
        )
    numbers = range(process * count // processes, (process + 1) * count // processes)
    shards = [_open_shard(path, number, fingerprints) for number in numbers]
    if not hmac.compare_digest(_whole_fingerprint(shards[0].key, fingerprints), fingerprint):
        raise _damaged_list(path)
    straddling = first_straddling([_border(shard) for shard in shards])
    if straddling is not None:
        raise StoreError(
            f"{shards[straddling].path}: expected every user in one shard, got a user who is in the shard "
            "before as well. Prepare the logs again."
        )
    return replace(_join(path, shards, fingerprint), part=part, sharded=True)


def _open_shard(path: Path, number: int, fingerprints: Sequence[str]) -> MappedStore:
    """One shard, if it is the one that belongs there."""
    folder = path / shard_name(number, len(fingerprints))
    if not folder.is_dir():
        raise StoreError(
            f"{folder}: expected this shard here, found none. Copy it to this machine."
        )
    shard = map_store(folder)
    if shard.fingerprint == fingerprints[number]:
        return shard
    if shard.fingerprint in fingerprints:
        found = f"shard {fingerprints.index(shard.fingerprint)} of the same store"
    else:
        found = f"one that {SHARDS} does not name"
    raise StoreError(
        f"{folder}: expected shard {number} of the store, got {found}. Put all shards back as "
        "`dpads prepare` made them."
    )


def _read_list(path: Path) -> tuple[list[str], str]:
    """The fingerprints of the shards, and of the whole."""
    try:
        facts = json.loads((path / SHARDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _damaged_list(path) from None
    if not isinstance(facts, dict) or "format" not in facts:
        raise _damaged_list(path)
    if facts["format"] != SHARDS_FORMAT:
        raise StoreError(
            f"{path / SHARDS}: expected format {SHARDS_FORMAT}, got another. Prepare the logs again "
            "with this version of dpads."
        )
    whole, listed = facts.get("fingerprint"), facts.get("fingerprints")
    found = [
        item
        for item in [whole, *(listed if isinstance(listed, list) else [])]
        if isinstance(item, str) and item.isascii()
    ]
    if (
        len(found) < 2
        or found[0] != whole
        or found[1:] != listed
        or facts.get("shards") != len(listed)
    ):
        raise _damaged_list(path)
    return found[1:], found[0]


def _damaged_list(path: Path) -> StoreError:
    """What to say of a list that is not as it was written."""
    return StoreError(
        f"{path / SHARDS}: the list of shards is damaged, or of another store. Copy it from where "
        "`dpads prepare` made it, or prepare the logs again."
    )


def _whole_fingerprint(key: bytes, fingerprints: Sequence[str]) -> str:
    """The fingerprint of all shards together."""
    return hmac.digest(key, " ".join(["shards", *fingerprints]).encode(), "sha256").hex()


def _border(shard: MappedStore) -> Border | None:
    """As `ExampleStore.border_users`."""
    if "user" not in shard.columns or not shard.num_rows:
        return None
    first, last = in_stored_order(shard.columns["user"].take(np.array([0, shard.num_rows - 1])))
    return first, last


def _is_part(part: object) -> bool:
    """Whether this says process i of n."""
    if not isinstance(part, tuple) or len(part) != 2:
        return False
    return all(type(item) is int for item in part) and 0 <= part[0] < part[1]
