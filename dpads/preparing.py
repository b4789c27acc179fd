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
from dpads.reading import Logs, find_logs, read_batches
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.store_mapping import DATA, FORMAT, KEY, META, METADATA_KEY, keyed_fingerprint
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
) -> ExampleStore:
    """Encodes logs into a store.

    Args:
        logs: a path or glob, or several: Parquet, Arrow, CSV or TSV, plain or .gz or .zst.
        schema: what the columns are, or a TOML file with a [schema] table.
        out: the folder to make; it must not exist.
        labelled: False does without the label column: such a store is good for `Run.predict` alone.
        progress: called with the number of examples encoded so far.

    Returns:
        The store, opened.

    Raises:
        SchemaError: the schema file is wrong.
        DataError: a log is missing, damaged or empty, or a value is outside the schema.
        StoreError: `out` exists.
        InputError: `out` is to be in what is not a folder.

    Guarantees:
        - Nothing is left behind on failure, and `out` appears only when it is whole.
        - Memory does not grow with the logs.
    """
    if not isinstance(schema, FeatureSchema):
        schema = FeatureSchema.from_toml(schema)
    target = Path(out)
    _refuse_existing(target)
    made = missing_parents(target)
    files = find_logs(logs)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        total = 0
        arrow = _stored_schema(schema, labelled)
        with RecordSink(partial / DATA, arrow) as records:
            sink: Sink = UserSink(records, partial, arrow) if schema.user else records
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
        _write_meta(partial)
        _refuse_existing(target)
        partial.rename(target)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
            remove_empty(made)
    return ExampleStore.open(target)


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


def _write_meta(folder: Path) -> None:
    """Draws the key and writes the fingerprint under it."""
    key = secrets.token_bytes(32)
    (folder / KEY).touch(mode=0o600)
    (folder / KEY).write_bytes(key)
    fingerprint = keyed_fingerprint(key, folder / DATA)
    text = json.dumps({"format": FORMAT, "fingerprint": fingerprint}, indent=2)
    (folder / META).write_text(text + "\n", encoding="utf-8")
