"""Rows for a run: a prepared store, or logs that are prepared on the spot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.events import EventTree
from dpads.config import Config
from dpads.errors import DataError, StoreError
from dpads.hosts import ALONE, Hosts
from dpads.plan import Plan, PrivacySpec, resolve
from dpads.predicting import COLUMN
from dpads.preparing import prepare
from dpads.private_sums_config import wanted_releases
from dpads.reading import find_logs
from dpads.schema import FeatureSchema
from dpads.start_rows import EarlierRows
from dpads.store import ExampleStore
from dpads.store_shards import SHARDS


def open_rows(
    sources: Sequence[str],
    schema: FeatureSchema,
    aside: Path,
    on_prepare: Callable[[int], None] | None = None,
    *,
    labelled: bool = True,
    part: tuple[int, int] = (0, 1),
) -> ExampleStore:
    """Opens a store, or prepares logs into one.

    Args:
        sources: one folder of a store, or logs.
        schema: what the rows must have.
        aside: where a store of logs goes; one that is there already is used.
        on_prepare: called with the number of examples prepared so far.
        labelled: whether logs must have the label column.
        part: (i, n): the shards of process i of n.

    Raises:
        StoreError: the store is damaged or has another schema, or there are logs for several processes.
        DataError: the logs are not what the schema says.
    """
    if len(sources) == 1 and Path(sources[0]).is_dir():
        store = ExampleStore.open(sources[0], part=part)
    elif part[1] > 1:
        raise StoreError(
            f"{', '.join(map(str, sources))}: expected the folder of a store in shards, for {part[1]} "
            "processes. Prepare it once, and set data.train to it: dpads prepare LOGS --schema CONFIG "
            f"--out STORE --shards {part[1]}."
        )
    elif aside.is_dir():
        store = ExampleStore.open(aside)
    else:
        store = prepare(list(sources), schema, out=aside, labelled=labelled, progress=on_prepare)
    store.check_schema(schema)
    return store


@dataclass(frozen=True)
class RunRows:
    """The stores of a run, what is known of the test rows, and the plan they resolve to.

    Attributes:
        train: the rows to train on, capped.
        test: the rows for metrics.
        test_rows: what the ledger calls them: "test" where this library split them off, "declared_test"
            where the configuration says so, "train_and_test" where they may be training rows, those of
            earlier runs included.
        plan: the mechanism.
        units: of the training rows of all processes.
    """

    train: ExampleStore
    test: ExampleStore | None
    test_rows: str
    plan: Plan
    units: int


def open_run_rows(
    config: Config,
    store: ExampleStore | None,
    test: ExampleStore | None,
    folder: Path,
    on_prepare: Callable[[int], None] | None,
    carried: EventTree | None = None,
    earlier: EarlierRows | None = None,
    hosts: Hosts = ALONE,
) -> RunRows:
    """Opens or prepares what is not open yet; a plan that needs no count is resolved before.

    Args:
        config: of the run.
        store: the training rows, opened already.
        test: likewise the test rows.
        folder: where stores of logs go.
        on_prepare: called with the number of examples prepared so far.
        carried: what earlier runs have spent whose parameters this one starts from.
        earlier: the rows that those runs trained on.
        hosts: the run's processes, each of which opens its own shards.

    Raises:
        StoreError: a store is damaged, has no labels or has another schema, or a side of the split is empty.
        DataError: the logs are not what the schema says.
    """
    schema = config.schema
    if config.privacy.dataset_size is not None:
        resolve_plan(config, config.privacy, config.l2_clip_norm, None, carried)
    part = (hosts.number, hosts.count)
    rows = store or open_rows(config.data.train, schema, folder / "train", on_prepare, part=part)
    rows.check_schema(schema)
    rows.check_labels()
    if hosts.count > 1:  # before any row is read
        hosts.check_same({"store": rows.whole_fingerprint})
    if isinstance(config.data.test, float):
        rows, test = rows.split(config.data.test, seed=config.split_seed)
        if 0 in hosts.sum(np.array([len(rows), len(test)])):
            raise StoreError("The split leaves one side empty. Use more rows or another fraction.")
    elif test is None and config.data.test is not None:
        names = config.data.test
        whole = not (Path(names[0]) / SHARDS).is_file()
        test = open_rows(names, schema, folder / "test", on_prepare, part=(0, 1) if whole else part)
    if test is not None:
        test.check_schema(schema)
        test.check_labels()
    test_rows = "test"
    if hosts.count > 1:
        shards = "" if test is None or test.part[1] == 1 else test.fingerprint
        hosts.check_same({"test rows": shards})
    if test is not None and not hosts.all(rows.split_from(test)):
        names = config.data.test if isinstance(config.data.test, tuple) else ()
        apart = hosts.all(not may_share_rows(rows, test, (config.data.train, names)))
        test_rows = "declared_test" if apart else "train_and_test"
    cap = config.privacy.max_examples_per_unit
    if cap is not None:
        rows = rows.capped(cap, seed=config.split_seed)
    if test is not None and earlier is not None:
        test_rows = earlier.test_rows(test_rows, rows, test, config.data)
        if not hosts.all(test_rows == hosts.of_first(test_rows.encode()).decode()):
            test_rows = "train_and_test"
    units = int(hosts.sum(np.array([rows.num_units(config.privacy.unit)]))[0])
    plan = resolve_plan(config, config.privacy, config.l2_clip_norm, units, carried)
    return RunRows(rows, test, test_rows, plan, units)


def resolve_plan(
    config: Config,
    privacy: PrivacySpec,
    l2_clip_norm: float,
    units: int | None,
    carried: EventTree | None = None,
) -> Plan:
    """The plan of a promise on this configuration."""
    return resolve(
        privacy,
        expected_batch_size=config.training.expected_batch_size,
        epochs=config.training.epochs,
        l2_clip_norm=l2_clip_norm,
        store_units=units,
        carried=carried,
        wanted=wanted_releases(config.schema, config.prior, config.selection, config.recalibration),
    )


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


def write_predictions(path: Path, predictions: Iterable[NDArray[np.float32]]) -> int:
    """Writes one column of a Parquet file, aside first and renamed when whole.

    Returns:
        How many predictions there were.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = path.with_name(f".{path.name}.partial")
    schema, count = pa.schema([pa.field(COLUMN, pa.float32())]), 0
    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for part in predictions:
                writer.write_table(pa.table({COLUMN: pa.array(part)}, schema=schema))
                count += len(part)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return count
