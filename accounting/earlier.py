"""Earlier runs: what starting from their parameters adds to a run's ledger and to its figures.

Runs that start from each other's parameters compose, one after another: a unit may be in both logs, and code
cannot know that it is not. So the first entry of a run that starts from another is everything that the
other's ledger covers, as one event, which stays flat however long a chain of runs becomes. Costs add up where
the later run was not planned after a look at the earlier one: that is for people to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import EventTree, composed, counted_leaves, self_composed
from dpads.accounting.ledger import LedgerEntry

GIVEN_WITH: Mapping[str, str] = {
    "torch": "Parameters and constants came with a torch module",
    "jax": "Parameters and constants came with a function in JAX",
}
"""What the entry of a user's own model says, which is no earlier run; by the name of its kind."""

NOT_DECLARED = "not_declared"
"""The answer of an earlier run of which nobody said how its configuration was chosen."""

LOOKS = ("evaluation", "reference", "trial")
"""The kinds of uncovered entries that go on with a model: looks at private rows without noise."""


def carried_event(ledger: Sequence[LedgerEntry]) -> EventTree:
    """Everything that a ledger covers, equal mechanisms counted wherever they stand.

    Composition does not depend on the order; without this a chain of runs would nest deeper with each.
    """
    counts: dict[bytes, tuple[EventTree, int]] = {}
    whole = composed([entry.dp_event for entry in ledger if entry.dp_event is not None])
    for leaf, count in counted_leaves(whole):
        key = canonical_bytes(leaf)
        counts[key] = (leaf, counts.get(key, (leaf, 0))[1] + count)
    return composed([e if n == 1 else self_composed(e, n) for e, n in counts.values()])


def earlier_entries(
    ledger: Sequence[LedgerEntry],
    head: str,
    rests_on: Sequence[str],
    *,
    parameters: str,
    tuning: str | None,
) -> list[dict[str, Any]]:
    """The first entries of a run that starts from another's final parameters.

    Args:
        ledger: The other's, oldest entry first.
        head: Its digest.
        rests_on: The assumptions that the other's guarantee rests on, those of runs before it included.
        parameters: Digest of the file of the other's parameters.
        tuning: How people say that the other's configuration was chosen, and those before it.

    Returns:
        Fields of entries: the event of everything that is covered, then the looks that are not, as they
        stand there. What the other calls its test rows may be among this run's training rows: whoever
        knows these has to say so.
    """
    event = carried_event(ledger)
    declared = [entry.description for entry in ledger if entry.kind == "upstream"]
    text = (
        "Everything that is covered of the earlier run whose final parameters training starts from"
    )
    if declared:
        text += f"; what was done to its log before: {'; '.join(dict.fromkeys(declared))}"
    earlier = {
        "head": head,
        "entries": len(ledger),
        "parameters": parameters,
        "rests_on": list(rests_on),
        "tuning": tuning or NOT_DECLARED,
    }
    first = {
        "kind": "earlier_run",
        "description": text,
        "rows": "train",
        "treatment": "covered_by_accounting",
        "dp_event": event,
        "details": {"earlier": earlier},
    }
    return [first, *(_carried(entry) for entry in ledger if entry.kind in LOOKS)]


def given_entry(description: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The entry of parameters that people vouch for: they hold nothing of private rows."""
    return {
        "kind": "earlier_run",
        "description": description,
        "rows": "none",
        "treatment": "public_data_only",
        "details": dict(details or {}),
    }


def answers_of(entries: Sequence[LedgerEntry]) -> set[str | None]:
    """How people say that configurations of covered earlier runs were chosen; None: nobody said."""
    covered = [e for e in entries if e.kind == "earlier_run" and e.dp_event is not None]
    said = {e.details.get("earlier", {}).get("tuning") for e in covered}
    return {None if answer == NOT_DECLARED else answer for answer in said}


def resting_on(entries: Sequence[LedgerEntry]) -> list[str]:
    """The assumptions that earlier runs' guarantees rest on, each once."""
    found = [
        str(text)
        for entry in entries
        for text in entry.details.get("earlier", {}).get("rests_on", [])
    ]
    return list(dict.fromkeys(found))


def _carried(entry: LedgerEntry) -> dict[str, Any]:
    """A look of an earlier run."""
    text = entry.description
    if "carried" not in entry.details:
        text += ", of an earlier run"
    return {
        "kind": entry.kind,
        "description": text,
        "rows": entry.rows,
        "treatment": entry.treatment,
        "details": {**entry.details, "carried": True},
    }
