"""Runs that were compared with the one that a statement is about: which entry covers which run.

A run that was selected has no event of its own on the ledger. What covers it is a tuning entry
before it: a private selection among runs of which its event is one, or a Renyi filter whose fixed
total its event does not exceed. Nothing else covers a run: adding up events of runs that were chosen
after a look at earlier ones bounds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import NO_OP, EventTree, kinds_of
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.relation import Relation
from dpads.accounting.renyi import rdp_at

SCORE_ROWS = ("training_units_set_aside", "none")
"""Where a private selection may compute its score: "none" is a run's noisy outputs alone."""


def parts_of(selection: EventTree) -> list[EventTree]:
    """The mechanisms of one run of a private selection; [] of another event."""
    if selection["kind"] != "repeat_and_select":
        return []
    run = selection["event"]
    return list(run["events"]) if run["kind"] == "worst_of" else [run]


def covers(tuning: EventTree, run: EventTree, relation: Relation) -> bool:
    """Whether a tuning entry's event covers a run that was chosen inside of it."""
    if tuning["kind"] == "renyi_filter":
        if relation is Relation.REPLACE_ONE:
            return False
        return rdp_at(canonical_bytes(run), tuning["order"], relation) <= float(tuning["rdp"])
    return run in parts_of(tuning)


def covering(ledger: Sequence[LedgerEntry], relation: Relation) -> LedgerEntry | None:
    """The tuning entry that covers a ledger's selected run; None where none before it does."""
    before: list[LedgerEntry] = []
    for entry in ledger:
        run = entry.announced_event
        if run is not None:
            fitting = (
                e for e in before if e.dp_event is not None and covers(e.dp_event, run, relation)
            )
            return next(fitting, None)
        if entry.kind == "tuning":
            before.append(entry)
    return None


def is_selection(entry: LedgerEntry) -> bool:
    """Whether an entry covers runs of which only the best is shown."""
    return entry.dp_event is not None and "repeat_and_select" in kinds_of(entry.dp_event)


def is_filter(entry: LedgerEntry) -> bool:
    """Whether an entry covers runs that were chosen after a look at earlier ones."""
    return entry.dp_event is not None and "renyi_filter" in kinds_of(entry.dp_event)


def score_is_inside(entry: LedgerEntry) -> bool:
    """Whether a private selection's score is in its event, from rows that may be used for it."""
    score = entry.details.get("score")
    if entry.dp_event is None or not isinstance(score, dict):
        return False
    event, rows = score.get("dp_event"), score.get("rows")
    if rows == "none":
        return bool(event == NO_OP)
    return rows in SCORE_ROWS and event in parts_of(entry.dp_event)
