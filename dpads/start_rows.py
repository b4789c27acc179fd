"""Which rows the runs trained on that a run starts from, as far as their records tell.

A log that was prepared twice has two fingerprints, and nobody keeps which rows a part of a store had. So code
knows for certain that rows are apart only where every run trained on the same ones; it knows that they may
be shared where stores, or files, are the same; of anything else people have to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpads.accounting.ledger import LedgerEntry
from dpads.config import DataConfig
from dpads.errors import DataError
from dpads.reading import find_logs
from dpads.record import RunRecord
from dpads.store import ExampleStore

DETAIL = "trained_on"
"""The key of an entry's details that names the rows of earlier runs, by keyed digests."""

_TEST_ROWS = ("test", "declared_test")


@dataclass(frozen=True)
class EarlierRows:
    """The rows of the runs that a run starts from.

    Attributes:
        known: of each run, oldest first, {"rows": fingerprint of its training rows, "store": of the whole
            store that they are a part of, "test": of its test rows}; None where nobody kept it.
        data: where the last of them had its rows from.
    """

    known: tuple[Mapping[str, str | None], ...]
    data: DataConfig

    @classmethod
    def of_run(
        cls, record: RunRecord, entries: Sequence[LedgerEntry], data: DataConfig
    ) -> EarlierRows:
        """The rows of a run, and of those that it started from.

        Args:
            record: of the run.
            entries: of its ledger.
            data: where it had its rows from.
        """
        own = {
            "rows": record.train_fingerprint,
            "store": record.train_store,
            "test": record.test_fingerprint,
        }
        before = [e for e in entries if e.kind == "earlier_run" and "earlier" in e.details]
        nobody: dict[str, str | None] = dict.fromkeys(own)
        known: list[Any] = [item for e in before for item in e.details.get(DETAIL, [nobody])]
        return cls((*known, own), data)

    def to_list(self) -> list[dict[str, str | None]]:
        """Plain data, for an entry's details."""
        return [dict(item) for item in self.known]

    def shares(self, train: ExampleStore, data: DataConfig) -> str | None:
        """What rows to train on share with earlier training rows: "store" or "log"; None: nothing."""
        names = {train.fingerprint, train.whole_fingerprint}
        if any(names & {item["rows"], item["store"]} for item in self.known):
            return "store"
        return "log" if not _files(self.data.train).isdisjoint(_files(data.train)) else None

    def test_rows(
        self, found: str, train: ExampleStore, test: ExampleStore, data: DataConfig
    ) -> str:
        """What the ledger calls rows to test on, which earlier runs may have trained on.

        Args:
            found: what it would call them if there were no earlier run.
            train: the training rows, capped.
            test: the rows to test on.
            data: where both come from.
        """
        others = [item for item in self.known if item["rows"] != train.fingerprint]
        if found == "train_and_test" or not others:
            return found
        names = {test.fingerprint, test.whole_fingerprint}
        if any(names & {item["rows"], item["store"]} for item in others):
            return "train_and_test"
        logs = data.test if isinstance(data.test, tuple) else data.train
        shared = not _files(self.data.train).isdisjoint(_files(logs))
        return "train_and_test" if shared else "declared_test"

    def looked_at(self, rows: str, train: ExampleStore, data: DataConfig) -> str:
        """What the ledger calls rows that earlier runs tested on, which this run may train on.

        Args:
            rows: what the earlier ledger calls them.
            train: the training rows, capped.
            data: where they come from.
        """
        if rows not in _TEST_ROWS:
            return rows
        names = {train.fingerprint, train.whole_fingerprint}
        others = [item for item in self.known if item["rows"] != train.fingerprint]
        if any(names & {item["test"], item["store"]} for item in others):
            return "train_and_test"
        if not others:
            return rows
        tested = self.data.test if isinstance(self.data.test, tuple) else self.data.train
        shared = not _files(tested).isdisjoint(_files(data.train))
        return "train_and_test" if shared else "declared_test"


def _files(names: Sequence[str]) -> set[tuple[int, int]]:
    """The log files that are still there, each the same under all its names; of a store none."""
    return {(facts.st_dev, facts.st_ino) for facts in _facts(names)}


def _facts(names: Sequence[str]) -> Iterator[Any]:
    """What the file system says of log files."""
    if any(Path(name).is_dir() for name in names):
        return  # a store: it has a fingerprint
    try:
        for file in find_logs(names):
            yield file.path.stat()
    except (DataError, OSError):  # gone since: nobody can tell any more
        return
