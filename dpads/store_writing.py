"""Writes encoded record batches as a store's data file, grouped by user where there are users.

Rows of a store without users keep the log's order. Rows of one with users are sorted by (user's
key, input row): what exceeds memory is first spread over part files by the key's leading bits,
then each part is sorted by itself. Memory is bounded by `SORT_BYTES` and by the largest part,
which is the whole divided by `PARTS` unless few users own most rows.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dpads.encoding import USER_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_ROWS = 65_536
SORT_BYTES = 1 << 28
PARTS = 64


class Sink(Protocol):
    """Takes encoded batches one after another."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes one batch."""

    def finish(self) -> None:
        """Writes what is left."""


class RecordSink:
    """Writes record batches of exactly 65,536 rows (the last may be shorter) to one Arrow file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._file: IO[bytes] = path.open("wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows in the order in which they are stored."""
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, RECORD_ROWS - self._pending_rows)
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            start += piece.num_rows
            if self._pending_rows == RECORD_ROWS:
                self._write()

    def finish(self) -> None:
        """Writes the last batch and the footer, and waits until the disk has them."""
        if self._pending_rows:
            self._write()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> RecordSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _write(self) -> None:
        """Writes the pending rows as one record batch."""
        self._writer.write_batch(_joined(self._pending))
        self._pending, self._pending_rows = [], 0


class UserSink:
    """Sorts rows by user and passes them on; the input order stays within a user."""

    def __init__(self, target: RecordSink, folder: Path, schema: pa.Schema) -> None:
        self._target = target
        self._folder = folder
        self._schema = schema
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._spills = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows in any order."""
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes > SORT_BYTES:
            self._spill()

    def finish(self) -> None:
        """Sorts everything and hands it to the target."""
        if not self._spills:
            self._pass_on(self._pending)
        else:
            self._spill()
            for part in range(PARTS):
                self._pass_on(self._read_part(part))
        self._target.finish()

    def _spill(self) -> None:
        """Spreads the pending rows over one file per spill and part."""
        import pyarrow as pa

        if self._pending:
            batch = _joined(self._pending)
            part_of = (user_words(batch)[:, 0] >> np.uint64(64 - 6)).astype(np.int64)
            order = np.argsort(part_of, kind="stable")
            ends = np.cumsum(np.bincount(part_of, minlength=PARTS))
            for part in range(PARTS):
                rows = order[ends[part - 1] if part else 0 : ends[part]]
                if len(rows):
                    path = self._part_path(self._spills, part)
                    with path.open("wb") as file, pa.ipc.new_stream(file, self._schema) as writer:
                        writer.write_batch(batch.take(pa.array(rows)))
            self._pending, self._pending_bytes = [], 0
            self._spills += 1

    def _read_part(self, part: int) -> list[pa.RecordBatch]:
        """Every spill's rows of one part; their files are removed."""
        import pyarrow as pa

        batches: list[pa.RecordBatch] = []
        for spill in range(self._spills):
            path = self._part_path(spill, part)
            if path.exists():
                with path.open("rb") as file, pa.ipc.open_stream(file) as reader:
                    batches.extend(reader)
                path.unlink()
        return batches

    def _part_path(self, spill: int, part: int) -> Path:
        """Where one spill's rows of one part wait."""
        return self._folder / f"part-{part:02d}-{spill:06d}.arrows"

    def _pass_on(self, batches: list[pa.RecordBatch]) -> None:
        """Sorts rows and hands them to the target."""
        import pyarrow as pa

        if not batches:
            return
        batch = _joined(batches)
        batches.clear()
        words = user_words(batch)
        rows = batch.column("input_row").to_numpy()
        order = np.lexsort((rows, words[:, 1], words[:, 0]))
        for start in range(0, len(order), RECORD_ROWS):
            self._target.add(batch.take(pa.array(order[start : start + RECORD_ROWS])))


def user_words(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """The users' keys as uint64[n, 2], high half first."""
    column = batch.column("user")
    start = column.offset * USER_BYTES
    raw = np.frombuffer(column.buffers()[1], np.uint8, len(column) * USER_BYTES, start)
    return raw.view(">u8").reshape(-1, 2).astype(np.uint64)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Several batches as one."""
    import pyarrow as pa

    if len(batches) == 1:
        return batches[0]
    return cast("pa.RecordBatch", pa.Table.from_batches(batches).combine_chunks().to_batches()[0])
