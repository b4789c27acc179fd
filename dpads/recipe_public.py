"""Whether rows that somebody calls public are rows that the recipe protects.

Only copies are found: rows that are somebody's in another form are the word of whoever calls them public.
Stores are keyed, so they are compared by what their rows hold, and not by fingerprints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from dpads.errors import ConfigError, DataError
from dpads.reading import find_logs
from dpads.store import ExampleStore
from dpads.store_keys import content_keys

SEED: Final = 0  # of the keys that are compared; any would do
SCAN: Final = 1 << 16  # rows at a time
_ADVICE: Final = 'Name other rows, or "synthetic"; or leave public out, and the claim says so.'


def check_public_logs(sources: Sequence[str], private: Sequence[str], key: str) -> None:
    """Refuses public logs that are private ones by another name, or byte by byte.

    Args:
        sources: the public rows: logs, or a store, which is not looked at.
        private: likewise those of `key`.
        key: data.train or data.test.

    Raises:
        ConfigError: one of them is.
    """
    ours, theirs = _logs(sources), _logs(private)
    if shares_a_file(ours, theirs):
        raise ConfigError(
            f"The public rows are among those of {key}, whose rows the recipe protects: a file of both "
            f"is the same. {_ADVICE}"
        )
    sizes = {path.stat().st_size for path in ours} & {path.stat().st_size for path in theirs}
    digests = [
        {_digest(path) for path in paths if path.stat().st_size in sizes}
        for paths in (ours, theirs)
    ]
    if digests[0] & digests[1]:
        raise ConfigError(
            f"The public rows are among those of {key}, whose rows the recipe protects: a file of theirs "
            f"is a copy. {_ADVICE}"
        )


def check_public_store(public: ExampleStore, private: ExampleStore, key: str) -> None:
    """Refuses public rows that are all among the private ones, in whatever order.

    Args:
        public: the public rows.
        private: those of `key`.
        key: data.train or data.test.

    Raises:
        ConfigError: they are.
    """
    if public.shares_examples(private) or _is_among(public, private):
        raise ConfigError(
            f"The public rows are among those of {key}, whose rows the recipe protects: each of them has "
            f"an equal row there. {_ADVICE}"
        )


def logs_share_a_file(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists of logs have a file in common, by whatever names; stores have no files here."""
    return shares_a_file(_logs(first), _logs(second))


def shares_a_file(first: Sequence[Path], second: Sequence[Path]) -> bool:
    """Whether a file is in both lists: links to one file are that file."""
    facts = [
        {(s.st_dev, s.st_ino) for s in (path.stat() for path in paths)} for paths in (first, second)
    ]
    return not facts[0].isdisjoint(facts[1])


def _logs(sources: Sequence[str]) -> list[Path]:
    """The files of logs; none of a store, and none where they are gone since they were prepared."""
    if len(sources) == 1 and Path(sources[0]).is_dir():
        return []
    try:
        return [log.path for log in find_logs(list(sources))]
    except DataError:
        return []


def _digest(path: Path) -> bytes:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _is_among(public: ExampleStore, private: ExampleStore) -> bool:
    """Whether every row of one store has a row of its own in the other one that holds the same.

    Users are left out: their keys are each store's own.
    """
    if not 0 < public.num_examples <= private.num_examples:
        return False
    keys, wanted = np.unique(
        np.concatenate([content_keys(batch, None, SEED) for batch in public.scan(SCAN)]),
        return_counts=True,
    )
    found = np.zeros(len(keys), np.int64)
    for batch in private.scan(SCAN):
        own = content_keys(batch, None, SEED)
        places = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        np.add.at(found, places[keys[places] == own], 1)
    return bool((found >= wanted).all())
