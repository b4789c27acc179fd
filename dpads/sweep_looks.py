"""What a sweep looked at: its ledger in figures and words, and never more than the ledger holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dpads.accounting.accountant import PrivacyLoss, Relation, round_up
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.accounting.tuning import cost_of_composition
from dpads.accounting.wording import RELATION_WORDS, number
from dpads.errors import DpadsError
from dpads.sweep_rows import SEEDS, Row, SweepRows, unit_words

LEDGER: Final = "ledger.jsonl"
_NOT_COVERED: Final = "not_covered"
# What an entry has to say of itself to be composed with others.
_NEEDED: Final = frozenset({"unit", "relation", "delta"})


@dataclass(frozen=True, kw_only=True)
class Joint:
    """What all models that protect the same unit reveal together.

    Attributes:
        models: How many trials it covers, finished or not.
        unit: Whom it protects, in words.
        relation: The neighbouring relation.
        loss: The composed loss.
    """

    models: int
    unit: str
    relation: Relation
    loss: PrivacyLoss

    @property
    def is_finite(self) -> bool:
        """Whether anything is bounded."""
        return math.isfinite(self.loss.epsilon)

    @property
    def epsilon(self) -> str:
        """Epsilon as it is printed: rounded up."""
        return f"{round_up(self.loss.epsilon):.2f}" if self.is_finite else "infinity"

    @property
    def delta(self) -> str:
        """Delta as it is printed."""
        return number(self.loss.delta)

    @property
    def relation_words(self) -> str:
        """The relation in words."""
        return RELATION_WORDS[self.relation]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Every access of a sweep, as its ledger tells it.

    Attributes:
        problem: Why nothing can be said: no ledger, or an altered one.
        joint: The guarantees, one per unit, relation and cap.
        noise_free: How many models were trained without noise on private rows.
        evaluations: How many accesses read rows exactly for metrics.
        others: Other accesses outside the guarantee, with how often.
        unlisted: Finished trials that no covered entry of the ledger names.
        crosses: Whether trials tested on rows that others trained on.
        entries: How many entries the ledger holds.
    """

    problem: str | None = None
    joint: Sequence[Joint] = ()
    noise_free: int = 0
    evaluations: int = 0
    others: Sequence[tuple[str, int]] = ()
    unlisted: Sequence[str] = ()
    crosses: bool = False
    entries: int = 0

    @property
    def not_covered(self) -> int:
        """How many accesses are outside every figure."""
        return self.noise_free + self.evaluations + sum(count for _, count in self.others)


def looked_at(folder: Path, sweep: SweepRows) -> Looks:
    """Reads the sweep's ledger and composes what it covers.

    Args:
        folder: The sweep's folder.
        sweep: Its trials.

    Guarantees:
        - A model that the ledger does not cover is never counted among those that a figure covers.
        - Of several deltas the smallest is stated.
    """
    path = folder / LEDGER
    try:
        # Nothing was read where no trial came as far as its plan.
        unread = not path.exists() and all(row["status"] == "failed" for row in sweep.rows)
        entries = () if unread else Ledger.load(path).entries
    except DpadsError as error:
        return Looks(problem=str(error), crosses=_crosses(sweep, ()))
    composable = [e for e in entries if e.dp_event is not None and _NEEDED <= set(e.details)]
    groups: dict[tuple[Any, ...], list[LedgerEntry]] = {}
    for entry in composable:
        key = tuple(entry.details.get(name) for name in ("unit", "relation", "cap"))
        groups.setdefault(key, []).append(entry)
    uncovered = [entry for entry in entries if entry.treatment == _NOT_COVERED]
    kinds = Counter(entry.kind for entry in uncovered)
    others = Counter(e.description for e in uncovered if e.kind not in ("reference", "evaluation"))
    bare = [e for e in entries if e.dp_event is not None and e not in composable]
    others.update(f"{e.description} (no delta is entered, so no figure includes it)" for e in bare)
    covered = {entry.details.get("trial") for entry in composable}
    # The ledger may know of fewer noise-free models than there are: the larger number is said.
    noise_free = max(kinds["reference"], len(sweep.noise_free)) if sweep.is_private else 0
    return Looks(
        joint=[_joint(key, found) for key, found in groups.items()],
        noise_free=noise_free,
        evaluations=kinds["evaluation"],
        others=sorted(others.items()),
        unlisted=[row["trial"] for row in sweep.noisy if row["trial"] not in covered],
        crosses=_crosses(sweep, entries),
        entries=len(entries),
    )


def _joint(key: tuple[Any, ...], entries: Sequence[LedgerEntry]) -> Joint:
    """The composition of some entries."""
    unit, relation, cap = key
    delta = min(float(entry.details["delta"]) for entry in entries)
    events = [dict(entry.dp_event) for entry in entries if entry.dp_event is not None]
    cost = cost_of_composition(events, delta, Relation(relation))
    return Joint(
        models=len({_name_of(entry) for entry in entries}),
        unit=unit_words(unit, cap),
        relation=Relation(relation),
        loss=cost.loss,
    )


def _name_of(entry: LedgerEntry) -> str:
    """Which trial an entry is of."""
    return str(entry.details.get("trial", entry.description))


def _crosses(sweep: SweepRows, entries: Sequence[LedgerEntry]) -> bool:
    """Whether rows that one trial tests on are rows that another trains on."""
    declared = any(e.kind == "evaluation" and e.rows == "train_and_test" for e in entries)
    own = any(e.kind == "evaluation" and e.rows == "declared_test" for e in entries)
    return declared or (not own and len(_splits(sweep.rows)) > 1)


def _splits(rows: Sequence[Row]) -> set[Any]:
    """The seeds that decided which rows were test rows."""
    init, split = SEEDS
    return {row.get(split) if row.get(split) is not None else row.get(init) for row in rows}
