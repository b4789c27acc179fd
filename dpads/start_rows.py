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
            store that they are a part of, "test": of its test rows, "public": whether these are called
            public}; None where nobody kept it.
        data: where the last of them had its rows from.
    """

    known: tuple[Mapping[str, Any], ...]
    data: DataConfig

    @classmethod
    def of_run(
        cls,
        record: RunRecord,
        entries: Sequence[LedgerEntry],
        data: DataConfig,
        *,
        public: bool,
    ) -> EarlierRows:
        """The rows of a run, and of those that it started from.

        Args:
            record: of the run.
            entries: of its ledger.
            data: where it had its rows from.
            public: whether all of these rows are called public.
        """
        own = {
            "rows": record.train_fingerprint,
            "store": record.train_store,
            "test": record.test_fingerprint,
            "public": public,
        }
        known: list[dict[str, Any]] = []
        for entry in entries:
            if entry.kind == "earlier_run" and "earlier" in entry.details:
                called = public or entry.treatment == "public_data_only"
                items = entry.details.get(DETAIL, [dict.fromkeys(own)])
                known.extend({**item, "public": called or bool(item["public"])} for item in items)
        return cls((*known, own), data)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data, for an entry's details."""
        return [dict(item) for item in self.known]

    def shared_with_public(self, train: ExampleStore, data: DataConfig) -> str | None:
        """What rows to train on share with rows that are called public: "store" or "log"; None: nothing."""
        names = {train.fingerprint, train.whole_fingerprint}
        public = [item for item in self.known if item["public"]]
        if any(names & {item["rows"], item["store"]} for item in public):
            return "store"
        if not self.known[-1]["public"]:
            return None
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
        others = self._others(train)
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
        others = self._others(train)
        if any(names & {item["test"], item["store"]} for item in others):
            return "train_and_test"
        if not others:
            return rows
        tested = self.data.test if isinstance(self.data.test, tuple) else self.data.train
        shared = not _files(tested).isdisjoint(_files(data.train))
        return "train_and_test" if shared else "declared_test"

    def _others(self, train: ExampleStore) -> list[Mapping[str, Any]]:
        """The runs that trained on other private rows than these."""
        private = [item for item in self.known if not item["public"]]
        return [item for item in private if item["rows"] != train.fingerprint]


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
