"""Rows for a run: a prepared store, or logs that are prepared on the spot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpads.errors import DataError
from dpads.reading import find_logs
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore, prepare

COLUMN = "prediction"


def open_rows(
    sources: Sequence[str],
    schema: FeatureSchema,
    aside: Path,
    on_prepare: Callable[[int], None] | None = None,
    *,
    labelled: bool = True,
) -> ExampleStore:
    """Opens a store, or prepares logs into one.

    Args:
        sources: one folder of a store, or logs.
        schema: what the rows must have.
        aside: where a store of logs goes; one that is there already is used.
        on_prepare: called with the number of examples prepared so far.
        labelled: whether logs must have the label column.

    Raises:
        StoreError: the store is damaged or has another schema.
        DataError: the logs are not what the schema says.
    """
    if len(sources) == 1 and Path(sources[0]).is_dir():
        store = ExampleStore.open(sources[0])
    elif aside.is_dir():
        store = ExampleStore.open(aside)
    else:
        store = prepare(list(sources), schema, out=aside, labelled=labelled, progress=on_prepare)
    store.check_schema(schema)
    return store


def may_share_rows(
    train: ExampleStore, test: ExampleStore, sources: tuple[Sequence[str], Sequence[str]]
) -> bool:
    """Whether rows to test on may be among those to train on, as far as anybody can tell.

    Args:
        train: the training rows.
        test: the test rows.
        sources: the stores or logs that they came from.
    """
    if train.shares_examples(test):
        return True
    if any(len(names) == 1 and Path(names[0]).is_dir() for names in sources):
        return False
    try:
        first, second = ({_identity(file.path) for file in find_logs(names)} for names in sources)
    except (DataError, OSError):  # gone since they were prepared: nobody can tell any more
        return True
    return not first.isdisjoint(second)


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of one file, links included."""
    facts = path.stat()
    return facts.st_dev, facts.st_ino


@contextmanager
def opened(
    sources: Sequence[str], schema: FeatureSchema, *, labelled: bool = True
) -> Iterator[ExampleStore]:
    """As `open_rows`; a store that had to be prepared is private and deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="dpads-"))
    try:
        yield open_rows(sources, schema, folder / "rows", labelled=labelled)
    finally:
        shutil.rmtree(folder)


def write_predictions(path: Path, predictions: NDArray[np.float32]) -> None:
    """Writes one column of a Parquet file, aside first and renamed when whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(pa.table({COLUMN: pa.array(predictions)}), aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
