"""From logs to a store, whole or not at all."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpads.encoding import encode, encoded_schema
from dpads.errors import DataError, InputError, StoreError
from dpads.reading import LogFile, Logs, find_logs, read_batches
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.store_cutting import cut_into_shards
from dpads.store_mapping import DATA, FORMAT, METADATA_KEY, write_meta
from dpads.store_writing import RecordSink, Sink, UserSink

if TYPE_CHECKING:
    import pyarrow as pa


def prepare(
    logs: Logs,
    schema: FeatureSchema | str | Path,
    *,
    out: str | Path,
    labelled: bool = True,
    progress: Callable[[int], None] | None = None,
    shards: int = 1,
) -> ExampleStore:
    """Encodes logs into a store.

    Args:
        logs: a path or glob, or several: Parquet, Arrow, CSV or TSV, plain or .gz or .zst.
        schema: what the columns are, or a TOML file with a [schema] table.
        out: the folder to make; it must not exist.
        labelled: False does without the label column: such a store is good for `Run.predict` alone.
        progress: called with the number of examples encoded so far.
        shards: parts that the store is cut into, so that several processes or machines can train on it, each
            on its own. A user's rows are in one of them. 1 leaves the store in one piece.

    Returns:
        The store, opened; its examples are in the same order whatever `shards` is.

    Raises:
        SchemaError: the schema file is wrong.
        DataError: a log is missing, damaged or empty, or a value is outside the schema.
        StoreError: `out` exists, `shards` is not a positive number, or there are more shards than users (or
            examples, without users).
        InputError: `out` is to be in what is not a folder.

    Guarantees:
        - Nothing is left behind on failure, and `out` appears only when it is whole.
        - Memory does not grow with the logs.
    """
    if not isinstance(schema, FeatureSchema):
        schema = FeatureSchema.from_toml(schema)
    if type(shards) is not int or shards < 1:
        raise StoreError(f"Expected shards to be at least 1, got {shards!r}.")
    target = Path(out)
    _refuse_existing(target)
    made = missing_parents(target)
    files = find_logs(logs)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        key = secrets.token_bytes(32)
        if shards == 1:
            _write_data(files, schema, partial, labelled, progress)
            write_meta(partial, key)
        else:
            whole = partial / "whole"
            whole.mkdir()
            _write_data(files, schema, whole, labelled, progress)
            cut_into_shards(whole, shards, partial, key)
            shutil.rmtree(whole)
        _refuse_existing(target)
        partial.rename(target)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
            remove_empty(made)
    return ExampleStore.open(target)


def _write_data(
    files: Sequence[LogFile],
    schema: FeatureSchema,
    folder: Path,
    labelled: bool,
    progress: Callable[[int], None] | None,
) -> None:
    """Encodes logs into one data file."""
    total, arrow = 0, _stored_schema(schema, labelled)
    with RecordSink(folder / DATA, arrow) as records:
        sink: Sink = UserSink(records, folder, arrow) if schema.user else records
        for file in files:
            for raw in read_batches(file, schema, labelled=labelled):
                try:
                    encoded = encode(raw, schema, labelled=labelled)
                except DataError as error:
                    raise DataError(f"{file.path}: {error}") from None
                sink.add(_numbered(encoded, total, arrow))
                total += raw.num_rows
                if progress is not None:
                    progress(total)
        if total == 0:
            raise DataError("Expected at least one row, got empty logs. Check the paths.")
        sink.finish()


def missing_parents(target: Path) -> list[Path]:
    """The folders that have to be made before `target` can be, innermost first.

    Raises:
        InputError: something on the way is not a folder.
    """
    for folder in target.parents:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: expected a folder, found a file. Name another folder.")
    return [folder for folder in target.parents if not folder.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes what `missing_parents` named and was made, unless something else is in it by now."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _refuse_existing(target: Path) -> None:
    """Nothing that exists is overwritten."""
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists. Choose another folder, or remove it first.")


def _stored_schema(schema: FeatureSchema, labelled: bool) -> pa.Schema:
    """The data file's Arrow schema with its metadata."""
    import pyarrow as pa

    from dpads import __version__

    meta: dict[str, Any] = {"format": FORMAT, "dpads_version": __version__}
    meta["schema"] = schema.to_dict()
    if not labelled:
        meta["labelled"] = False
    columns = encoded_schema(schema).append(pa.field("input_row", pa.int64(), nullable=False))
    return columns.with_metadata({METADATA_KEY: json.dumps(meta, sort_keys=True).encode()})


def _numbered(batch: pa.RecordBatch, start: int, schema: pa.Schema) -> pa.RecordBatch:
    """An encoded batch with the numbers of its rows in the logs."""
    import pyarrow as pa

    rows = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64))
    return pa.RecordBatch.from_arrays([*batch.columns, rows], schema=schema)
