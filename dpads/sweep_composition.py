"""What the trials of a sweep cost together: composed, since every one of them may be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpads.accounting.events import EventTree
from dpads.accounting.ledger import Ledger
from dpads.accounting.relation import Relation
from dpads.accounting.tuning import cost_of_composition


@dataclass(frozen=True, kw_only=True)
class SweepCost:
    """The privacy loss of all trials with one unit, relation and cap.

    Attributes:
        unit: of privacy.
        relation: the neighbouring relation.
        cap: rows kept of one user; None for all.
        delta: the smallest among the trials.
        epsilon: of all trials together, an upper bound.
        trials: how many were announced, those included that failed or trained twice.
    """

    unit: str
    relation: str
    cap: int | None
    delta: float
    epsilon: float
    trials: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def composed_costs(ledger: Ledger) -> tuple[SweepCost, ...]:
    """What the private trials on a sweep's ledger cost together.

    Figures of unlike units say different things and are not added up: each is the cost of its trials
    alone.

    Args:
        ledger: of the sweep.

    Raises:
        UnsupportedEventError: no accountant knows the trials together.
    """
    groups: dict[tuple[str, str, int | None], list[tuple[EventTree, float]]] = {}
    for entry in ledger.entries:
        if entry.kind == "tuning" and entry.dp_event is not None:
            own = entry.details
            key = (str(own["unit"]), str(own["relation"]), own["cap"])
            groups.setdefault(key, []).append((entry.dp_event, float(own["delta"])))
    return tuple(_cost(*key, trials) for key, trials in groups.items())


def _cost(
    unit: str, relation: str, cap: int | None, trials: Sequence[tuple[EventTree, float]]
) -> SweepCost:
    """The cost of one group."""
    delta = min(delta for _, delta in trials)
    cost = cost_of_composition([event for event, _ in trials], delta, Relation(relation))
    return SweepCost(
        unit=unit,
        relation=relation,
        cap=cap,
        delta=delta,
        epsilon=cost.loss.epsilon,
        trials=len(trials),
    )
