"""The ledger: every access to private data, written down before it happens, in a hash chain.

One line of JSON per entry:

    {"entry": {...}, "index": 0, "previous": "000...", "sha256": "..."}

`sha256` covers the canonical JSON of the other three keys, so a line cannot be changed, moved or
taken out of the middle without breaking every line after it. What was cut off the end shows in
the statement, which holds the last line's digest and the number of entries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpads._validate import nearest
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree, composed
from dpads.accounting.foreign import parse_json
from dpads.errors import InputError, VerificationError

KINDS: Mapping[str, str] = {
    "earlier_run": "the runs before, whose final parameters this one starts from",
    "training": "a training run, opened before its first batch with the most iterations it may do",
    "training_finished": "how many iterations of the training entry before it ran",
    "dp_count": "a noisy count or sum, such as a bias prior",
    "selection": "a private choice of rows, columns or thresholds",
    "recalibration": "a calibration layer fitted on private rows",
    "tuning": "runs on the same rows whose results were compared",
    "selected_training": "the training run that a tuning entry before it covers",
    "evaluation": "exact metrics on private rows",
    "reference": "a model trained without noise on private rows",
    "trial": "the further trials of the sweep that this run is one of",
    "unplanned_read": "a read of the model during training that no schedule fixed in advance",
    "upstream": "what happened to the data before it came here, as its user declares it",
}
"""What an entry can be."""

ROWS = ("train", "test", "declared_test", "train_and_test", "none")

TREATMENTS: Mapping[str, str] = {
    "covered_by_accounting": "inside the stated epsilon",
    "data_independent": "does not depend on the data",
    "public_data_only": "looks at public data only",
    "not_released": "exact, and kept inside",
    "not_covered": "outside the guarantee",
    "declared_public": "declared to be public",
}
"""How an access relates to the guarantee."""

# These only say more about an entry before them, whose event covers them.
_WITHOUT_EVENT = frozenset({"training_finished", "unplanned_read", "selected_training"})
_NEVER_COVERED = frozenset({"evaluation", "reference", "trial"})
_OUTSIDE = ("not_covered", "not_released", "public_data_only")
_EARLIER = ("covered_by_accounting", "not_covered", "public_data_only")
_OF_TRAINING = frozenset(
    {
        "training", "training_finished", "unplanned_read", "reference", "selected_training", "trial",
        "earlier_run",
    }
)  # fmt: skip
_FIRST = "0" * 64
_LINE_KEYS = {"entry", "index", "previous", "sha256"}


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One access to private data.

    Attributes:
        kind: One of `KINDS`.
        description: What was done, in words that reveal nothing of private rows.
        rows: Which rows it read: "train"; "test", split off by this library; "declared_test", which
            the configuration calls test rows; "train_and_test"; or "none".
        treatment: One of `TREATMENTS`.
        dp_event: The event of what is covered; None of what is not.
        details: Further plain data, such as {"executed": 347, "replayed": 0}. Of the kind
            "selected_training" its "dp_event" is that of the run, which a tuning entry before it
            has to cover. "chose_configuration": True on an evaluation or a reference says that its
            result chose columns or hyperparameters of this model. "declared_in": "schema" on what the
            schema says was done upstream; what people say has none. A "trial" says of how many "trials"
            this run is one, itself included. A covered "earlier_run" says of which "earlier" ledger its
            event is: see `earlier.earlier_entry`.

    Raises:
        InputError: An unknown word, a covered access without an event, or an event on an access
            that is not covered.
    """

    kind: str
    description: str
    rows: str
    treatment: str
    dp_event: EventTree | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _known("kind", self.kind, KINDS)
        _known("rows", self.rows, ROWS)
        _known("treatment", self.treatment, TREATMENTS)
        if not str(self.description).strip():
            raise InputError("Expected a ledger entry to have a description, got none.")
        details: object = self.details
        if not isinstance(details, Mapping):
            raise InputError("Expected the details of a ledger entry to be an object.")
        covered = self.treatment == "covered_by_accounting"
        if self.kind in _NEVER_COVERED and self.treatment not in _OUTSIDE:
            raise InputError(
                f'Expected a ledger entry of kind "{self.kind}" to be "not_covered" or '
                f'"not_released", or "public_data_only", got "{self.treatment}": no event of it is on '
                "this ledger."
            )
        if self.kind == "earlier_run" and self.treatment not in _EARLIER:
            raise InputError(
                f'Expected a ledger entry of kind "earlier_run" to be {" or ".join(_EARLIER)}, got '
                f'"{self.treatment}": parameters came from somewhere.'
            )
        of_others = self.kind in ("reference", "earlier_run")
        on_other_rows = of_others and (self.treatment, self.rows) == ("public_data_only", "none")
        if self.kind in _OF_TRAINING and self.rows != "train" and not on_other_rows:
            raise InputError(
                f'Expected a ledger entry of kind "{self.kind}" to be of rows "train", got "{self.rows}".'
            )
        if self.kind in _WITHOUT_EVENT:
            if self.dp_event is not None:
                raise InputError(
                    f'Expected no dp_event on a ledger entry of kind "{self.kind}": an entry '
                    "before it holds the event."
                )
        elif covered != (self.dp_event is not None):
            raise InputError(
                "Expected a dp_event on a ledger entry exactly when its treatment is "
                f'"covered_by_accounting", got treatment "{self.treatment}" '
                f"{'without' if covered else 'with'} one."
            )
        if self.dp_event is not None:
            to_dp_event(self.dp_event)
        trials = self.details.get("trials")
        if self.kind == "trial" and (type(trials) is not int or trials < 1):
            raise InputError(
                'Expected a ledger entry of kind "trial" to say in its details how many "trials" there '
                f"are, got {trials!r}."
            )
        if self.kind == "selected_training":
            if not covered:
                raise InputError(
                    'Expected a ledger entry of kind "selected_training" to be '
                    f'"covered_by_accounting", got "{self.treatment}".'
                )
            to_dp_event(self.details.get("dp_event"))

    @property
    def announced_event(self) -> EventTree | None:
        """The event of a selected run, which another entry covers; None of any other entry."""
        return self.details["dp_event"] if self.kind == "selected_training" else None

    @property
    def is_of_schema(self) -> bool:
        """Whether the schema says what this "upstream" entry does, and no person in words."""
        return self.kind == "upstream" and self.details.get("declared_in") == "schema"

    @property
    def chose_configuration(self) -> bool:
        """Whether the result of this exact look chose columns or hyperparameters of the model."""
        return self.details.get("chose_configuration") is True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Ledger:
    """An append-only list of accesses, on disk where a path is given.

    Args:
        path: The file that entries are appended to; created with the first entry. None keeps the
            ledger in memory. A file that exists is refused: use `Ledger.load`.

    Raises:
        InputError: The file exists.

    Guarantees:
        - When `append` returns, the entry is on disk: what it announces may begin.
        - A file changed by anybody else since is never appended to.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._entries: list[LedgerEntry] = []
        self._head = _FIRST
        self._bytes = 0
        if self._path is not None and self._path.exists():
            raise InputError(
                f"Expected no file at {self._path}, found one. A ledger is never overwritten: "
                "continue it with Ledger.load, or choose another path."
            )

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """The entries, oldest first."""
        return tuple(self._entries)

    @property
    def head(self) -> str:
        """The digest of the last line, which depends on every line before it."""
        return self._head

    def append(
        self,
        *,
        kind: str,
        description: str,
        rows: str,
        treatment: str,
        dp_event: EventTree | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> LedgerEntry:
        """Writes one entry, durably, and returns it.

        Args:
            kind: One of `KINDS`.
            description: What is about to be done.
            rows: Which rows it reads.
            treatment: One of `TREATMENTS`.
            dp_event: The event, exactly when the treatment is "covered_by_accounting".
            details: Further plain data.

        Raises:
            InputError: The entry is malformed; nothing was written.
            VerificationError: The file changed since this ledger read or wrote it.
        """
        # Through JSON and back: what is kept in memory is what a reader of the file will see.
        fields = json.loads(
            canonical_bytes(
                {
                    "kind": kind,
                    "description": description,
                    "rows": rows,
                    "treatment": treatment,
                    "dp_event": dp_event,
                    "details": dict(details or {}),
                }
            )
        )
        entry = LedgerEntry(**fields)
        line, head = _line(entry, len(self._entries), self._head)
        self._write(line)
        self._entries.append(entry)
        self._head = head
        return entry

    def joint_event(self) -> EventTree:
        """Everything that is covered, as one event: the guarantee of this ledger."""
        return joint_event([self])

    def to_jsonl(self) -> bytes:
        """The bytes of the file, also of a ledger that is kept in memory."""
        lines, head = [], _FIRST
        for index, entry in enumerate(self._entries):
            line, head = _line(entry, index, head)
            lines.append(line)
        return b"".join(lines)

    def save(self, path: Path | str) -> None:
        """Writes a copy to a file that does not exist; this ledger goes on where it was.

        Raises:
            InputError: The file exists.
        """
        copy = Ledger(path)
        copy._write(self.to_jsonl())

    @classmethod
    def load(cls, path: Path | str) -> Ledger:
        """Reads a ledger, checking every line; further entries are appended to the same file.

        Raises:
            InputError: There is no such file.
            VerificationError: A line was changed, moved, taken out or torn; the message names the
                first one.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"Expected a ledger at {path}, found no file.")
        data = path.read_bytes()
        ledger = cls()
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            ledger._take(line, f"{path}, line {number}")
        if data and not data.endswith(b"\n"):
            number = data.count(b"\n") + 1
            raise VerificationError(
                f"{path}, line {number}: the line is incomplete, as after a crash while writing. "
                "What it was to announce had not begun: delete this line to go on."
            )
        ledger._path, ledger._bytes = path, len(data)
        return ledger

    def _take(self, line: bytes, where: str) -> None:
        """Checks one line against the chain so far and takes its entry."""
        try:
            value = parse_json(line)
        except VerificationError:
            raise VerificationError(f"{where}: not JSON. The ledger was altered.") from None
        if not isinstance(value, dict) or set(value) != _LINE_KEYS:
            raise VerificationError(f"{where}: not a line of a ledger. The ledger was altered.")
        claimed = value.pop("sha256")
        if value["index"] != len(self._entries) or value["previous"] != self._head:
            raise VerificationError(
                f"{where}: it does not follow the line before it. A line was taken out, put in, "
                "moved or altered."
            )
        # Bytes, not values: 1 and 1.0 are equal in Python, and so are true and 1.
        if digest(value) != claimed or canonical_bytes({**value, "sha256": claimed}) != line:
            raise VerificationError(f"{where}: its digest is not its own. The line was altered.")
        try:
            entry = LedgerEntry(**value["entry"])
        except (InputError, TypeError) as error:
            raise VerificationError(f"{where}: {error}") from None
        self._entries.append(entry)
        self._head = claimed

    def _write(self, line: bytes) -> None:
        """Appends one line and waits until it is on disk."""
        if self._path is None:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self._path, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size != self._bytes:
                raise VerificationError(
                    f"Expected {self._path} to hold {self._bytes} bytes, found {size}: somebody "
                    "else wrote to it since. Load it again before appending."
                )
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{self._path}: the disk took only part of a line")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._bytes == 0:
            _sync_folder(self._path.parent)
        self._bytes += len(line)


def joint_event(ledgers: Sequence[Ledger]) -> EventTree:
    """Everything that several ledgers cover, composed: the joint guarantee of runs on one data set.

    Args:
        ledgers: Ledgers of runs on the same rows, under the same unit and relation.
    """
    covered = [e.dp_event for led in ledgers for e in led.entries if e.dp_event is not None]
    return composed(covered)


def _line(entry: LedgerEntry, index: int, previous: str) -> tuple[bytes, str]:
    """The line of an entry, and its digest."""
    line = {"entry": entry.to_dict(), "index": index, "previous": previous}
    head = digest(line)
    return canonical_bytes({**line, "sha256": head}) + b"\n", head


def _known(key: str, value: object, words: Mapping[str, str] | Sequence[str]) -> None:
    """An `InputError` for a word that is not known."""
    if value not in words:
        raise InputError(
            f'Expected a known "{key}" on a ledger entry, got {value!r}.'
            + nearest(str(value), words)
        )


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name durable too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
