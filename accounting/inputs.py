"""Everything that one run contributes to a statement, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpads.accounting import compared, events
from dpads.accounting.earlier import GIVEN_WITH
from dpads.accounting.facts import HumanFacts
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.relation import Relation
from dpads.accounting.releases import Release, composed_with
from dpads.accounting.schemes import SamplingScheme, scheme_of
from dpads.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StatementInputs:
    """Everything that one run contributes to a statement, as plain data.

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
        replayed: Iterations that ran again after an interruption; None where that is not told.
        versions: Versions by package, "dpads" and "dp-accounting" among them.
        created_at: Of the statement, UTC, ISO 8601, ending in Z.
        train_fingerprint: Keyed digest of the training rows. It is compared between the runs of a
            joint statement and printed nowhere.
        backend: What ran the mechanism: "torch", "jax" on processors, or "jax-gpu" and the like.
        run: What the run is called, where it stands among others.
        noise_seed_used: Whether noise_seed was set; it voids the claim.
        reference_trained: Whether a model was trained without noise on the same rows.
        class_weighted: Whether losses of one class weigh more than the other's.
        public_rate: Whether the output starts at a rate that the configuration calls public.
        audits: Empirical lower bounds on this run's privacy loss, each as the schema's `audit` has
            it but for `contradicts_claim`, which is computed.
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
    replayed: int | None
    versions: Mapping[str, str]
    created_at: str
    train_fingerprint: str
    backend: str = "torch"
    run: str | None = None
    noise_seed_used: bool = False
    reference_trained: bool = False
    class_weighted: bool = False
    public_rate: bool = False
    audits: tuple[Mapping[str, Any], ...] = ()
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
    def user_column(self) -> str | None:
        """The column that tells users apart, where the schema names one."""
        column = self.schema.get("user")
        return None if column is None else str(column)

    @property
    def delta(self) -> float:
        """The delta of the guarantee."""
        return float(self.plan["delta"])

    @property
    def relation(self) -> Relation:
        """The neighbouring relation."""
        return Relation(self.plan["relation"])

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
    def sampler(self) -> str:
        """How units come into batches: the kind of the scheme."""
        return str(self.mechanism["sampler"])

    @property
    def scheme(self) -> SamplingScheme | None:
        """The sampling scheme of the plan's numbers; None where it refuses them."""
        try:
            return scheme_of(self.mechanism)
        except ConfigError:
            return None

    @property
    def releases(self) -> tuple[Release, ...]:
        """What the plan releases beside training."""
        return tuple(Release.from_dict(item) for item in self.plan.get("releases", ()))

    @property
    def weighted(self) -> bool:
        """Whether losses have weights, of rows or of classes."""
        return self.class_weighted or self.schema.get("weight") is not None

    @property
    def carried(self) -> events.EventTree | None:
        """What the plan counts of earlier runs; None where there are none."""
        return self.plan.get("carried")

    @property
    def users_model(self) -> str | None:
        """What kind of model of the user's own it is, by its name or by what the ledger says of it."""
        said = {entry.description for entry in self.entries("earlier_run")}
        found = (k for k, words in GIVEN_WITH.items() if k == self.model or words in said)
        return next(found, None)

    @property
    def planned_event(self) -> events.EventTree | None:
        """The event of the plan's numbers; None where no scheme has them.

        Of a selected run it is that of everything: what is released beside its training is no entry of
        its own on the ledger.
        """
        scheme = self.scheme
        if scheme is None:
            return None
        training = scheme.event(self.noise_multiplier, self.planned_iterations)
        return training if self.selected is None else composed_with(self.releases, training)

    @property
    def opened(self) -> list[LedgerEntry]:
        """The entries that this run's training is on the ledger with: one, where all is well."""
        return [e for e in self.ledger if e.kind in ("training", "selected_training")]

    @property
    def covered_event(self) -> events.EventTree:
        """The events of these entries; that of a selected run is covered by an entry before it."""
        found = (entry.dp_event or entry.announced_event for entry in self.opened)
        return events.composed([event for event in found if event is not None])

    @property
    def selected(self) -> LedgerEntry | None:
        """The entry of this run where it was selected among others; None where it was not."""
        return next(iter(self.entries("selected_training")), None)

    @property
    def covering(self) -> LedgerEntry | None:
        """The tuning entry that covers the selected run; None where none before it does."""
        return compared.covering(self.ledger, self.relation)

    @property
    def told_replays(self) -> int | None:
        """`replayed`, but of a run that was selected privately: it would say which one that was."""
        selected = self.covering is not None and compared.is_selection(self.covering)
        return None if selected else self.replayed

    @property
    def is_trial(self) -> bool:
        """Whether this run is one of several on private rows whose cost is on another ledger."""
        private = (e for e in self.entries("trial") if e.treatment != "public_data_only")
        return any(entry.details["trials"] > 1 for entry in private)

    def entries(self, kind: str) -> list[LedgerEntry]:
        """The ledger's entries of one kind."""
        return [entry for entry in self.ledger if entry.kind == kind]
