"""The ledgers that a statement was made of, filled again with the uses of the data that it lists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.figures import FACTS
from dpads.accounting.ledger import LedgerEntry
from dpads.errors import InputError, VerificationError

_KINDS: Mapping[str, str] = {
    "earlier_training": "earlier_run",
    "training": "training",
    "class_prior_or_bias_init": "dp_count",
    "vocabulary_or_hashing": "selection",
    "calibration_layer": "recalibration",
    "hyperparameter_tuning": "tuning",
    "evaluation": "evaluation",
    "reference_training": "reference",
    "reference_tuning": "reference",
    "model_selection": "evaluation",
    "monitoring_and_logs": "unplanned_read",
    "further_trials": "trial",
    "filtering_or_downsampling": "upstream",
}
"""The ledger's kind of each stage that an entry can have."""

_CHOSE = frozenset({"reference_tuning", "model_selection"})
"""The stages of exact looks that chose columns or hyperparameters of the model."""

TIMES = re.compile(r"(.*) \(([1-9][0-9]{0,8}) times\)", re.DOTALL)


def run_name(data: Mapping[str, Any], place: int) -> str:
    """What a run is called among the others."""
    called = data["ledgers"][place]["run"]
    return f"run {place + 1}" if called is None else f'run {place + 1} ("{called}")'


class Filling:
    """Puts the uses of the data back on ledgers."""

    def __init__(self, data: Mapping[str, Any], sizes: Sequence[int]) -> None:
        self._data = data
        self._sizes = sizes
        self._left = {item["id"]: item for item in data["accounting"]["entries"]}
        self._tuning = {i["id"] for i in self._left.values() if i["kind"] == "tuning"}
        self._selected = list(data["accounting"].get("selected", []))
        self._pending = Counter[int]()
        for item in self._left.values():
            self._pending[item["run"]] += item["count"]
        self._ledgers: list[list[LedgerEntry]] = [[] for _ in sizes]

    def filled(self) -> list[list[LedgerEntry]]:
        """The ledgers."""
        current = 0
        again: list[tuple[int, LedgerEntry]] = []
        for number, row in enumerate(self._data["definition"]["data_accesses"]):
            if "rows" not in row:  # no access of a ledger
                continue
            path = f"definition/data_accesses/{number}"
            if self._is_selected(row):
                current, entry = self._selected_run(row, path)
                self._ledgers[current].append(entry)
                continue
            if "dp_event" in row:
                item = self._item(row, path)
                current = item["run"]
                entry = self._entry(row, path, item)
                self._ledgers[current].extend([entry] * item["count"])
                continue
            entry, count = self._uncovered(row, path)
            place = next((p for p in range(current, len(self._sizes)) if self._room(p)), current)
            self._ledgers[place].append(entry)
            if count - 1 > sum(self._sizes):
                raise VerificationError(f"{path}: no ledger has so many entries.")
            again.extend([(place, entry)] * (count - 1))
        if self._left:
            name = next(iter(self._left))
            raise VerificationError(f'accounting/entries: no use of the data names "{name}".')
        if self._selected:
            raise VerificationError("accounting/selected: no use of the data is one of them.")
        self._put_again(again)
        listed = sum(len(ledger) for ledger in self._ledgers)
        if sum(self._sizes) > listed + len(self._sizes):
            raise VerificationError(
                f"definition/data_accesses: the ledgers have {sum(self._sizes)} entries, of which "
                f"{listed} are listed as uses, and each ledger has one more when a run ends."
            )
        for place, size in enumerate(self._sizes):
            self._fill_up(place, size)
        return self._ledgers

    def _is_selected(self, row: Mapping[str, Any]) -> bool:
        """Whether a use is a run that another entry covers."""
        if row["stage"] != "training" or row["treatment"] != "covered_by_accounting":
            return False
        return row.get("dp_event") is None or row["dp_event"] in self._tuning

    def _selected_run(self, row: Mapping[str, Any], path: str) -> tuple[int, LedgerEntry]:
        """A selected run's place, and its entry."""
        if not self._selected or self._selected[0]["run"] >= len(self._sizes):
            raise VerificationError(f"{path}: accounting/selected does not have this run.")
        item = self._selected.pop(0)
        text, place = str(row["description"]), int(item["run"])
        if len(self._sizes) > 1:
            text = text.removesuffix(f", {run_name(self._data, place)}")
        details = {"dp_event": item["dp_event"]}
        return place, _entry(row, path, text, None, details, kind="selected_training")

    def _room(self, place: int) -> int:
        """How many entries a ledger can still take, covered ones to come apart."""
        free = self._sizes[place] - len(self._ledgers[place]) - self._pending[place]
        return max(0, free)

    def _put_again(self, again: Sequence[tuple[int, LedgerEntry]]) -> None:
        """Entries that stand on the ledgers several times: on the next runs' first."""
        last: tuple[int, LedgerEntry] | None = None
        for first, entry in again:
            start = last[0] if last is not None and last[1] is entry else first
            order = [(start + 1 + step) % len(self._sizes) for step in range(len(self._sizes))]
            place = next((p for p in order if self._room(p)), first)
            self._ledgers[place].append(entry)
            last = (place, entry)

    def _fill_up(self, place: int, size: int) -> None:
        """Entries that only say more about another one are in no list of uses."""
        ledger = self._ledgers[place]
        if len(ledger) > size:
            raise VerificationError(
                f"ledgers/{place}/entries: {size} is stated, and definition/data_accesses lists "
                f"{len(ledger)}."
            )
        closing = LedgerEntry(
            kind="training_finished",
            description="Iterations ran",
            rows="train",
            treatment="covered_by_accounting",
        )
        ledger.extend([closing] * (size - len(ledger)))

    def _item(self, row: Mapping[str, Any], path: str) -> dict[str, Any]:
        """The item of accounting.entries that a use names."""
        item: dict[str, Any] | None = self._left.pop(row["dp_event"], None)
        if item is None:
            raise VerificationError(
                f"{path}/dp_event: accounting/entries has none of this name, or it was used."
            )
        self._pending[item["run"]] -= item["count"]
        return item

    def _entry(self, row: Mapping[str, Any], path: str, item: Mapping[str, Any]) -> LedgerEntry:
        """A covered entry."""
        text, place, count = row["description"], item["run"], item["count"]
        if count > 1:
            text = text.removesuffix(f" ({count} times)")
        if len(self._sizes) > 1:
            text = text.removesuffix(f", {run_name(self._data, place)}")
        if _KINDS.get(row["stage"]) != item["kind"]:
            raise VerificationError(f'{path}/stage: its entry is of the kind "{item["kind"]}".')
        facts = {key: item[key] for key in FACTS if key in item}
        return _entry(row, path, text, item["dp_event"], {"id": item["id"], **facts})

    def _uncovered(self, row: Mapping[str, Any], path: str) -> tuple[LedgerEntry, int]:
        """An entry without an event, and how often it is there."""
        times = TIMES.fullmatch(row["description"])
        text, count = (times[1], int(times[2])) if times else (row["description"], 1)
        details: dict[str, Any] = {"chose_configuration": True} if row["stage"] in _CHOSE else {}
        if row["stage"] == "filtering_or_downsampling" and row["filled_by"] == "auto+human":
            details["declared_in"] = "schema"
        if "trials" in row:
            details["trials"] = row["trials"]
        return _entry(row, path, text, None, details), count


def _entry(
    row: Mapping[str, Any],
    path: str,
    text: str,
    event: dict[str, Any] | None,
    details: Mapping[str, Any],
    *,
    kind: str | None = None,
) -> LedgerEntry:
    """An entry of a ledger; its kind follows from the stage, but for a selected run's."""
    kind = _KINDS.get(row["stage"]) if kind is None else kind
    if kind is None:
        raise VerificationError(f"{path}/stage: no entry of a ledger has it.")
    try:
        return LedgerEntry(
            kind=kind,
            description=text,
            rows=row["rows"],
            treatment=row["treatment"],
            dp_event=event,
            details=details,
        )
    except InputError as error:
        raise VerificationError(f"{path}: {error}") from None
