"""Cuts a store into shards of about as many examples each, at borders of privacy units.

Whether an example without a user is a test row depends on how many equal ones came before, which a
process that has only some shards cannot count: they are counted here, and kept in the shards. Equal
rows are found by a key of their content: keys are spread over part files, and each part is sorted by
itself. Memory is bounded by the largest part, which is the whole divided by `PARTS` unless one row is
repeated most of the time.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpads.errors import StoreError
from dpads.store import SCAN_ROWS, ExampleStore
from dpads.store_keys import ordinals
from dpads.store_mapping import DATA, ORDINAL, map_data, write_meta
from dpads.store_shards import shard_name, write_list
from dpads.store_writing import PARTS, RECORD_ROWS, RecordSink

if TYPE_CHECKING:
    import pyarrow as pa

_COUNTED = np.dtype([("key", np.uint64), ("row", np.int64)])


def cut_into_shards(whole: Path, shards: int, out: Path, key: bytes) -> None:
    """Writes the shards of a store and their list.

    Args:
        whole: folder with the data file in one piece; this fills it with files of its own too.
        shards: how many, at least 2.
        out: folder of the store.
        key: of all shards.

    Raises:
        StoreError: there are fewer privacy units than shards.
    """
    store = ExampleStore(map_data(whole, key, ""), None, "")
    cuts = _cuts(store, shards)
    places = None if store.schema.user else _count_equal(store, whole, key)
    fingerprints = []
    for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
        folder = out / shard_name(number, shards)
        folder.mkdir(mode=0o700)
        _copy(whole / DATA, begin, end, places, folder / DATA)
        fingerprints.append(write_meta(folder, key))
    write_list(out, key, fingerprints)


def _cuts(store: ExampleStore, shards: int) -> list[int]:
    """The positions of the shards' first examples, and how many examples there are."""
    size = store.num_examples
    users = store.schema.user is not None
    units = sum(len(starts) for starts in store.user_starts()) if users else size
    if units < shards:
        raise StoreError(
            f"Expected at least one {'user' if users else 'example'} for each of {shards} shards, got "
            "fewer. Ask for fewer shards."
        )
    if not users:
        return [number * size // shards for number in range(shards + 1)]
    cuts, seen, last = [0], 0, 0  # `last` is the user that the last shard begins with
    for starts in store.user_starts():
        while (number := len(cuts)) < shards:
            # The first user from the even cut on; but none is empty, neither this shard nor a later one.
            even = seen + int(np.searchsorted(starts, number * size // shards))
            chosen = min(max(even, last + 1), units - shards + number)
            if chosen - seen >= len(starts):
                break
            cuts.append(int(starts[chosen - seen]))
            last = chosen
        seen += len(starts)
    return [*cuts, size]


def _count_equal(store: ExampleStore, folder: Path, key: bytes) -> NDArray[np.uint64]:
    """How many equal examples came before each, uint64[n], in a file."""
    seed, size = int.from_bytes(key, "little"), store.num_examples
    paths = [folder / f"keys-{part:02d}" for part in range(PARTS)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for begin in range(0, size, SCAN_ROWS):
            end = min(begin + SCAN_ROWS, size)
            counted = np.empty(end - begin, _COUNTED)
            counted["key"] = store.content_keys(seed, begin, end)
            counted["row"] = np.arange(begin, end)
            part = counted["key"] % np.uint64(PARTS)
            order = np.argsort(part, kind="stable")
            ends = np.searchsorted(part[order], np.arange(PARTS, dtype=np.uint64), side="right")
            for file, rows in zip(files, np.split(order, ends[:-1]), strict=True):
                counted[rows].tofile(file)
    places = np.memmap(folder / ORDINAL, np.uint64, "w+", shape=(size,))
    for path in paths:
        counted = np.fromfile(path, _COUNTED)
        path.unlink()
        places[counted["row"]] = ordinals(counted["key"])
    return places


def _copy(
    source: Path, begin: int, end: int, places: NDArray[np.uint64] | None, target: Path
) -> None:
    """Writes some rows of a data file as another one, with their places among equal rows."""
    import pyarrow as pa

    with pa.OSFile(str(source)) as file, pa.ipc.open_file(file) as reader:
        schema = reader.schema
        if places is not None:
            schema = schema.append(pa.field(ORDINAL, pa.uint64(), nullable=False))
        with RecordSink(target, schema) as sink:
            for number in range(begin // RECORD_ROWS, -(-end // RECORD_ROWS)):
                start = number * RECORD_ROWS
                first, last = max(begin - start, 0), min(end - start, RECORD_ROWS)
                rows: pa.RecordBatch = reader.get_batch(number).slice(first, last - first)
                if places is not None:
                    column = pa.array(places[start + first : start + last])
                    rows = pa.RecordBatch.from_arrays([*rows.columns, column], schema=schema)
                sink.add(rows)
            sink.finish()
