"""Everything that a statement is made of, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpads.accounting import accountant, events
from dpads.accounting.facts import HumanFacts
from dpads.accounting.ledger import LedgerEntry


@dataclass(frozen=True, kw_only=True)
class StatementInputs:
    """Everything that a statement is made of, as plain data.

    Attributes:
        plan: `Plan.to_dict()`.
        ledger: The run's ledger entries, oldest first.
        ledger_head: `Ledger.head`.
        artifacts: sha256 of the released files, by name.
        task: "ctr", "cvr" or "count".
        model: The kind of model, such as "mlp".
        schema: `FeatureSchema.to_dict()`.
        table_noise: "lazy" or "dense".
        executed: Iterations that ran.
        replayed: Iterations that ran again after an interruption.
        versions: Versions by package, "dpads" and "dp-accounting" among them.
        created_at: UTC, ISO 8601, ending in Z.
        noise_seed_used: Whether noise_seed was set; it voids the claim.
        reference_trained: Whether a model was trained without noise on the same rows.
        human: The [statement] table.
    """

    plan: Mapping[str, Any]
    ledger: tuple[LedgerEntry, ...]
    ledger_head: str
    artifacts: Mapping[str, str]
    task: str
    model: str
    schema: Mapping[str, Any]
    table_noise: str
    executed: int
    replayed: int
    versions: Mapping[str, str]
    created_at: str
    noise_seed_used: bool = False
    reference_trained: bool = False
    human: HumanFacts = field(default_factory=HumanFacts)

    @property
    def mechanism(self) -> Mapping[str, Any]:
        """The plan's mechanism."""
        mechanism: Mapping[str, Any] = self.plan["mechanism"]
        return mechanism

    @property
    def noise_multiplier(self) -> float:
        """stddev of the noise over l2_clip_norm."""
        return float(self.mechanism["noise_multiplier"])

    @property
    def is_private(self) -> bool:
        """Whether there is any noise."""
        return self.noise_multiplier > 0.0

    @property
    def planned_iterations(self) -> int:
        """The preregistered maximum."""
        return int(self.mechanism["iterations"])

    @property
    def unit(self) -> str:
        """What one unit of privacy is: "example" or "user"."""
        return str(self.plan["privacy"]["unit"])

    @property
    def cap(self) -> int | None:
        """Rows kept of one user, where a cap is configured."""
        cap = self.plan["privacy"].get("max_examples_per_unit")
        return None if cap is None else int(cap)

    @property
    def delta(self) -> float:
        """The delta of the guarantee."""
        return float(self.plan["delta"])

    @property
    def relation(self) -> accountant.Relation:
        """The neighbouring relation."""
        return accountant.Relation(self.plan["relation"])

    @property
    def dataset_size(self) -> int | None:
        """The number of units in the plan, public or asserted to be."""
        size = self.plan["dataset_size"]
        return None if size is None else int(size)

    @property
    def dataset_size_status(self) -> str:
        """How the count may be known: "public", "asserted_public" or "private"."""
        return str(self.plan["dataset_size_status"])

    @property
    def default_delta(self) -> float | None:
        """The largest delta at which a tier is named."""
        return None if self.dataset_size is None else accountant.default_delta(self.dataset_size)

    @property
    def planned_event(self) -> events.EventTree:
        """The event of the plan's numbers."""
        mechanism = self.mechanism
        return events.dp_sgd(
            self.noise_multiplier, float(mechanism["sampling_prob"]), self.planned_iterations
        )

    @property
    def covered_event(self) -> events.EventTree:
        """The events of the ledger's training entries."""
        return events.composed([e.dp_event for e in self.entries("training") if e.dp_event])

    @property
    def joint_event(self) -> events.EventTree:
        """The events of everything that is covered: what is accounted."""
        return events.composed([e.dp_event for e in self.ledger if e.dp_event])

    @property
    def loss(self) -> accountant.PrivacyLoss | None:
        """What everything that is covered costs; None where nothing bounds it."""
        if self.joint_event == events.NO_OP:
            return None
        loss = accountant.epsilon_of(self.joint_event, self.delta, self.relation)
        return loss if math.isfinite(loss.epsilon) else None

    def entries(self, kind: str) -> list[LedgerEntry]:
        """The ledger's entries of one kind."""
        return [entry for entry in self.ledger if entry.kind == kind]
