"""A store's data file, mapped into memory and read by row without a copy of the rest."""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dpads.batch import BagIds
from dpads.encoding import bag_column, bag_weights_column
from dpads.errors import StoreError
from dpads.kernels.workers import get_workers
from dpads.schema import FeatureSchema
from dpads.store_writing import RECORD_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
DATA, META, KEY = "data.arrow", "store.json", "key"
METADATA_KEY = b"dpads"
ORDINAL = "ordinal"
HASH_BYTES = 1 << 20
SEGMENT_BYTES = 1 << 26
RESIDENT_BYTES = 1 << 30

Rows = NDArray[np.int64]


class Column(Protocol):
    """A column of fixed width."""

    def take(self, rows: Rows) -> NDArray[Any]:
        """The rows' words, [n] or [n, width]."""


class BagColumn(Protocol):
    """A list column."""

    def take(self, rows: Rows) -> BagIds:
        """The rows' lists, one after another."""


@dataclass(frozen=True)
class StoredColumn:
    """A column of fixed width inside the mapped file.

    Attributes:
        words: the whole file as words of the column's type.
        bases: int64[batches], where each record batch's values start, in words.
        width: words per row.
    """

    words: NDArray[Any]
    bases: Rows
    width: int

    def take(self, rows: Rows) -> NDArray[Any]:
        """The rows' words, [n] for width 1 and [n, width] otherwise."""
        starts = self.starts(rows)
        if self.width == 1:
            return self.words[starts]
        return sliding_window_view(self.words, self.width)[starts]

    def starts(self, rows: Rows) -> Rows:
        """Where each row starts, in words."""
        return self.bases[rows // RECORD_ROWS] + (rows % RECORD_ROWS) * self.width


@dataclass(frozen=True)
class StoredBag:
    """A list column inside the mapped file."""

    offsets: StoredColumn
    values: StoredColumn
    weights: StoredColumn | None

    def take(self, rows: Rows) -> BagIds:
        """The rows' lists, one after another."""
        at = self.offsets.starts(rows)
        begins = self.offsets.words[at]
        lengths = self.offsets.words[at + 1] - begins
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        batch = rows // RECORD_ROWS
        within = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
        place = np.repeat(self.values.bases[batch], lengths) + within
        weights = None
        if self.weights is not None:
            weights = self.weights.words[np.repeat(self.weights.bases[batch], lengths) + within]
        return BagIds(self.values.words[place].astype(np.int64), offsets, weights)


class Residency:
    """Keeps the part of large mapped files that counts as this process' memory small.

    Pages stay in the system's cache; they are only no longer this process' own.

    Args:
        mappings: of the files.
    """

    def __init__(self, *mappings: mmap.mmap) -> None:
        self.mappings = mappings
        size = sum(len(mapping) for mapping in mappings)
        self._large = size > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED")

    def limit(self) -> None:
        """Lets go of the pages when they have become many; to be called after a column was read."""
        if self._large and _file_bytes() > RESIDENT_BYTES:
            for mapping in self.mappings:
                mapping.madvise(mmap.MADV_DONTNEED)


def _file_bytes() -> int:
    """Bytes of mapped files that count as this process' memory; 0 where the system does not tell."""
    try:
        shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[2]
    except OSError:
        return 0
    return int(shared) * mmap.PAGESIZE


@dataclass(frozen=True)
class MappedStore:
    """A store's files, mapped into memory.

    Attributes:
        path: the store's folder.
        schema: what it was prepared with.
        key: secret.
        fingerprint: of the whole store under the key.
        num_rows: how many rows are mapped.
        labelled: whether it has labels.
        columns: by name.
        bags: by the field's name.
        residency: of all files.
        part: (i, n) where these are the shards of process i of n.
        sharded: whether the store is cut into shards.
    """

    path: Path
    schema: FeatureSchema
    key: bytes
    fingerprint: str
    num_rows: int
    labelled: bool
    columns: Mapping[str, Column]
    bags: Mapping[str, BagColumn]
    residency: Residency
    part: tuple[int, int] = (0, 1)
    sharded: bool = False


def keyed_fingerprint(key: bytes, path: Path) -> str:
    """HMAC-SHA256 of the data file: of its segments' digests, which all threads compute."""
    size = path.stat().st_size
    count = max(-(-size // SEGMENT_BYTES), 1)
    digests = [b""] * count

    def hash_segment(number: int) -> Callable[[], None]:
        def task() -> None:
            digest, left = hashlib.sha256(), SEGMENT_BYTES
            with path.open("rb") as file:  # reading leaves no pages of the file in this process
                file.seek(number * SEGMENT_BYTES)
                while left > 0 and (part := file.read(min(left, HASH_BYTES))):
                    digest.update(part)
                    left -= len(part)
            digests[number] = digest.digest()

        return task

    get_workers().run([hash_segment(number) for number in range(count)])
    whole = b"".join(digests) + size.to_bytes(8, "little")
    return hmac.digest(key, whole, "sha256").hex()


def write_meta(folder: Path, key: bytes) -> str:
    """Writes the key beside a finished data file, and the fingerprint under it.

    Returns:
        The fingerprint.
    """
    (folder / KEY).touch(mode=0o600)
    (folder / KEY).write_bytes(key)
    fingerprint = keyed_fingerprint(key, folder / DATA)
    text = json.dumps({"format": FORMAT, "fingerprint": fingerprint}, indent=2)
    (folder / META).write_text(text + "\n", encoding="utf-8")
    return fingerprint


def map_store(path: Path) -> MappedStore:
    """Maps a store's files after checking them."""
    if not (path / META).is_file():
        raise StoreError(f"{path}: expected a store made by `dpads prepare`, found none.")
    damaged = StoreError(f"{path}: the store is damaged. Prepare the logs again.")
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        key = (path / KEY).read_bytes()
        fingerprint = keyed_fingerprint(key, path / DATA)
    except (OSError, ValueError):
        raise damaged from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise damaged
    if meta["format"] != FORMAT:
        raise StoreError(
            f"{path}: expected a store of format {FORMAT}, got another. Prepare the logs again "
            "with this version of dpads."
        )
    if not hmac.compare_digest(fingerprint.encode(), str(meta.get("fingerprint")).encode()):
        raise damaged
    return map_data(path, key, fingerprint)


def map_data(path: Path, key: bytes, fingerprint: str) -> MappedStore:
    """Maps a data file that is known to be whole.

    Args:
        path: the folder that it is in.
        key: of the store.
        fingerprint: of the data file.
    """
    import pyarrow as pa

    with (path / DATA).open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    whole = pa.py_buffer(mapping)
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    facts = json.loads(reader.schema.metadata[METADATA_KEY])
    schema = FeatureSchema.from_dict(facts["schema"])
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    columns, bags = _columns(schema, ORDINAL in reader.schema.names, whole, batches)
    rows = sum(batch.num_rows for batch in batches)
    labelled = bool(facts.get("labelled", True))
    return MappedStore(
        path, schema, key, fingerprint, rows, labelled, columns, bags, Residency(mapping)
    )


def _columns(
    schema: FeatureSchema, numbered: bool, whole: pa.Buffer, batches: list[pa.RecordBatch]
) -> tuple[dict[str, StoredColumn], dict[str, StoredBag]]:
    """Where the columns lie in the mapped file."""

    def column(name: str, kind: type[np.generic], part: int, width: int) -> StoredColumn:
        """The column's buffer `part` (in the order of Array.buffers) in every record batch."""
        size = np.dtype(kind).itemsize
        words = np.frombuffer(whole, kind, whole.size // size)
        buffers = [batch.column(name).buffers()[part] for batch in batches]
        # A batch whose lists are all empty may have no buffer of values; nothing is read there.
        bases = [buffer.address - whole.address if buffer else 0 for buffer in buffers]
        return StoredColumn(words, np.array(bases, np.int64) // size, width)

    columns = {
        name: column(name, np.float32, 1, 1)
        for name in ("label", "weight", "exposure")
        if name == "label" or getattr(schema, name)
    }
    columns["input_row"] = column("input_row", np.int64, 1, 1)
    if numbered:
        columns[ORDINAL] = column(ORDINAL, np.uint64, 1, 1)
    scalars = sum(not item.is_bag for item in schema.fields)
    if scalars:
        columns["ids"] = column("ids", np.int32, 2, scalars)
    if schema.numeric:
        columns["dense"] = column("dense", np.float32, 2, len(schema.numeric))
    if schema.user:
        columns["user"] = column("user", np.uint64, 1, 2)
    bags: dict[str, StoredBag] = {}
    for item in schema.fields:
        if item.is_bag:
            name, factors = bag_column(item.name), bag_weights_column(item.name)
            bags[item.name] = StoredBag(
                column(name, np.int64, 1, 1),
                column(name, np.int32, 3, 1),
                column(factors, np.float32, 3, 1) if item.weights else None,
            )
    return columns, bags
