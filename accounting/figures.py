"""The figures of a statement: what was accounted and what follows from it, items 3a and 3c."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpads.accounting import accountant, events
from dpads.accounting.accesses import tuning_of
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.checks import Check, ClaimLevel
from dpads.accounting.grid import grid_interval
from dpads.accounting.guarantees import guarantees_of, meaning_of, tier_of
from dpads.accounting.joint import JointRuns
from dpads.accounting.ledger import LedgerEntry

_TUNING: Mapping[str | None, str] = {
    None: "not_declared",
    "none": "none_data_independent",
    "public_data": "public_proxy",
    "not_accounted": "not_accounted",
}
_LAWS: Mapping[float, str] = {0.0: "logarithmic", 1.0: "geometric"}

FACTS = ("selection", "score", "sweep", "trials", "retrained", "earlier")
"""The details of a tuning entry or an earlier run that its item in accounting.entries has too."""

CAP_CHECK = "unit.cap_enforced"
"""The check that a guarantee for users stands on, and one for rows does not."""


@dataclass(frozen=True)
class Figures:
    """What the covered entries cost, in every notion.

    Attributes:
        runs: The runs.
        checks: Their checks.
        level: The claim level that follows from the checks.
        on_progress: Called with how much of a guarantee for users is computed, and of how much.
    """

    runs: JointRuns
    checks: Sequence[Check]
    level: ClaimLevel
    on_progress: Callable[[int, int], None] | None = None

    def accounting(self) -> dict[str, Any]:
        """Item 3a and the tuning half of 3c."""
        runs, event, loss = self.runs, self.runs.event, self.runs.loss
        interval = None
        if loss is not None and loss.pld_epsilon is not None:
            interval = grid_interval(canonical_bytes(event), runs.delta, runs.relation)
        groups, selected = self._group_events(), self._selected()
        return {
            "type": "none" if loss is None else loss.accountant,
            "library": "dp-accounting",
            "version": runs.together(r.versions.get("dp-accounting", "unknown") for r in runs.runs),
            "entries": [
                {
                    "id": item.id,
                    "kind": item.entry.kind,
                    "run": item.run,
                    "count": item.count,
                    "dp_event": item.entry.dp_event,
                    **_facts(item.entry),
                }
                for item in runs.entries
            ],
            **({"selected": selected} if selected else {}),
            "dp_event": event,
            "dp_event_sha256": digest(event),
            **({"group_events": groups} if groups else {}),
            "bounds": _bounds(loss),
            "value_discretization_interval": interval,
            "tuning": self._tuning(),
            "justification": runs.said("justification"),
        }

    @cached_property
    def guarantees(self) -> list[dict[str, Any]]:
        """Item 3c: every notion that describes the event, each with what it stands on."""
        runs = self.runs
        if runs.loss is None:
            return []
        bearing = [check.id for check in self.checks if check.load_bearing]
        stated = guarantees_of(
            runs.event,
            delta=runs.delta,
            relation=runs.relation,
            unit=runs.unit,
            covers=self._covers(),
            depends_on=bearing,
            hypothetical=self.level is ClaimLevel.NONE,
            group_size=runs.group_size,
            on_progress=self.on_progress,
        )
        for guarantee in stated:
            if guarantee["unit"] != "user":
                guarantee["depends_on_checks"] = [name for name in bearing if name != CAP_CHECK]
        return stated

    def meaning(self) -> dict[str, Any] | None:
        """What the headline says of an attacker; None where nothing is claimed."""
        if self.level is ClaimLevel.NONE or not self.guarantees:
            return None
        return meaning_of(self.runs.event, relation=self.runs.relation, unit=self.runs.unit)

    def tier(self) -> dict[str, Any] | None:
        """The tier, where the delta allows one to be named and anything is claimed."""
        return tier_of(self.guarantees, units=self.runs.dataset_size)

    def audits(self) -> list[dict[str, Any]]:
        """Empirical lower bounds, each beside what is claimed at its delta."""
        return [
            {**audit, "contradicts_claim": contradicts(self.runs, audit)}
            for run in self.runs.runs
            for audit in run.audits
        ]

    def _group_events(self) -> list[dict[str, Any]]:
        """The event as the rows of one user see it, where a guarantee for users is stated."""
        size = self.runs.group_size
        if size is None or not any(g["unit"] == "user" for g in self.guarantees):
            return []
        event = events.for_group(self.runs.event, size)
        return [{"group_size": size, "dp_event": event, "dp_event_sha256": digest(event)}]

    def _selected(self) -> list[dict[str, Any]]:
        """The events of selected runs, each with the entry that covers it."""
        return [
            {
                "run": place,
                "dp_event": entry.announced_event,
                "dp_event_sha256": digest(entry.announced_event),
                "covered_by": self.runs.covering_id(place),
            }
            for place, run in enumerate(self.runs.runs)
            for entry in run.entries("selected_training")
        ]

    def _covers(self) -> str:
        """What the guarantees are about."""
        if self.runs.is_joint:
            return "all_listed_runs"
        return "tuning_and_final_model" if self.runs.compared else "final_model_single_run"

    def _tuning(self) -> dict[str, Any]:
        """How the configuration was chosen, and what of that is counted."""
        items, runs = self.runs.compared, len(self.runs.runs)
        compared = [i.entry.dp_event for i in items if i.entry.dp_event is not None]
        selections = [event for event in compared if event["kind"] == "repeat_and_select"]
        filters = [event for event in compared if event["kind"] == "renyi_filter"]
        if selections:
            mean, shape = selections[0]["mean"], selections[0]["shape"]
            law = "poisson" if shape == "poisson" else _LAWS.get(shape)
            return {
                "method": "repeat_and_select",
                "runs": runs,
                "run_count_distribution": law or "truncated_negative_binomial",
                "mean": mean,
                **({} if shape == "poisson" else {"shape": shape}),
                "only_best_released": True,
            }
        if filters:
            return {
                "method": "renyi_filter",
                "runs": runs,
                "order": filters[0]["order"],
                "rdp": filters[0]["rdp"],
                "only_best_released": False,
            }
        if compared or self.runs.is_joint:
            tried = sum(item.count for item in items)
            return {
                "method": "composition",
                "runs": runs + tried,
                "run_count_distribution": "fixed",
                "only_best_released": False,
            }
        return {"method": _TUNING[tuning_of(self.runs)], "runs": runs}


def _facts(entry: LedgerEntry) -> dict[str, Any]:
    """What an entry says of runs that were compared or came before, as far as checks stand on it."""
    known = entry.details if entry.kind in ("tuning", "earlier_run") else {}
    return {key: known[key] for key in FACTS if key in known}


def contradicts(runs: JointRuns, audit: Mapping[str, Any]) -> bool:
    """Whether an audit's lower bound is above what the accounting says at the audit's delta."""
    if not runs.is_accountable:
        return False
    stated = accountant.epsilon_of(runs.event, audit["delta"], runs.relation).epsilon
    return bool(audit["epsilon_lower_bound"] > accountant.round_up(stated))


def truncation_cost(runs: JointRuns) -> float:
    """How much epsilon the cut of large batches adds to that of Poisson batches, rounded up."""
    if runs.loss is None:
        return 0.0
    whole = accountant.epsilon_of(_untruncated(runs.event), runs.delta, runs.relation)
    return accountant.round_up(max(0.0, runs.loss.epsilon - whole.epsilon), 4)


def _untruncated(event: events.EventTree) -> events.EventTree:
    """The event as if no batch had been cut."""
    kind = event["kind"]
    if kind == "truncated_poisson_gaussian":
        noise = {"kind": "gaussian", "noise_multiplier": event["noise_multiplier"]}
        prob = event["sampling_prob"]
        return {"kind": "poisson_sampled", "sampling_prob": prob, "event": noise}
    if kind == "self_composed":
        return events.self_composed(_untruncated(event["event"]), event["count"])
    if kind == "composed":
        return events.composed([_untruncated(part) for part in event["events"]])
    return event


def _bounds(loss: accountant.PrivacyLoss | None) -> dict[str, float | None]:
    """Both accountants' bounds, rounded up; None where one has none."""
    if loss is None:
        return {"pld": None, "rdp": None}
    both = {"pld": loss.pld_epsilon, "rdp": loss.rdp_epsilon}
    return {
        name: None if bound is None or math.isinf(bound) else accountant.round_up(bound, 4)
        for name, bound in both.items()
    }
