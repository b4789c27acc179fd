"""The rows of a sweep: prepared once, then mapped into memory by every trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpads.config import Config
from dpads.errors import ConfigError, DataError, InputError
from dpads.run_data import open_rows
from dpads.sweep_config import SweepConfig, Trial
from dpads.sweep_settings import check_plan, in_words

if TYPE_CHECKING:
    from dpads.store import ExampleStore


@dataclass(frozen=True)
class SweepStores:
    """The rows of a sweep's trials.

    Attributes:
        train: rows to train on, and to split test rows off from.
        test: rows to test on, where they are not split off.
        test_rows: what ledgers call the test rows.
    """

    train: ExampleStore
    test: ExampleStore | None
    test_rows: str

    def config_of(self, trial: Trial) -> Config:
        """A trial's configuration with the stores in place of logs."""
        data = dataclasses.replace(trial.config.data, train=(str(self.train.path.absolute()),))
        if self.test is not None:
            data = dataclasses.replace(data, test=(str(self.test.path.absolute()),))
        return dataclasses.replace(trial.config, data=data)

    def iterations_of(self, trial: Trial) -> int:
        """The iterations of a trial, all of its public numbers checked.

        Raises:
            ConfigError: its numbers do not fit the rows; the message names its settings.
        """
        privacy = trial.config.privacy
        try:
            units = None if privacy.dataset_size else self.train.num_units(privacy.unit)
            return check_plan(trial.config, units)
        except InputError as error:
            raise type(error)(f"A trial with {in_words(trial.settings)}: {error}") from None


def open_stores(
    config: SweepConfig, folder: Path, on_prepare: Callable[[int], None] | None
) -> SweepStores:
    """Opens the stores that the base names, or prepares its logs into the folder.

    Args:
        config: the sweep.
        folder: where stores of logs are kept.
        on_prepare: called with the number of examples of a log that are prepared so far.

    Raises:
        ConfigError: train and test logs have a file in common.
        DataError: a log is not what the schema says; the message names its key.
        StoreError: a store is damaged, has no labels or has another schema.
    """
    data, schema = config.base.data, config.base.schema
    names = data.test if isinstance(data.test, tuple) else None
    found = {
        "train": _log_files("train", data.train, folder),
        "test": _log_files("test", names or (), folder),
    }
    if not found["train"].isdisjoint(found["test"]):
        raise ConfigError(
            "data.train and data.test of the base share a log, so that trials would be tested on rows that "
            "they were trained on, and stores of them would hide it. Name other logs, or set data.test to a "
            "fraction."
        )
    train = _rows("train", data.train, config, folder, on_prepare)
    test = None if names is None else _rows("test", names, config, folder, on_prepare)
    for store in (train, test):
        if store is not None:
            store.check_schema(schema)
            store.check_labels()
    seeds = {trial.config.split_seed for trial in config.trials}
    if test is None:
        # Rows that one trial holds out are rows that another split trains on.
        kind = "test" if len(seeds) == 1 else "train_and_test"
    else:
        kind = "train_and_test" if train.shares_examples(test) else "declared_test"
    return SweepStores(train, test, kind)


def _rows(
    key: str,
    names: Sequence[str],
    config: SweepConfig,
    folder: Path,
    on_prepare: Callable[[int], None] | None,
) -> ExampleStore:
    """One store."""
    folder.mkdir(mode=0o700, exist_ok=True)
    return open_rows(names, config.base.schema, folder / key, on_prepare)


def _log_files(key: str, names: Sequence[str], folder: Path) -> set[tuple[int, int]]:
    """What tells the files of logs apart, under whatever name; none where a store is given or kept."""
    from dpads.reading import find_logs

    if not names or (len(names) == 1 and Path(names[0]).is_dir()) or (folder / key).is_dir():
        return set()
    try:
        facts = [file.path.stat() for file in find_logs(names)]
    except DataError as error:
        raise DataError(f"data.{key}: {error}") from None
    return {(fact.st_dev, fact.st_ino) for fact in facts}
