"""The plan: every number of the mechanism, resolved once, before any data is touched.

`PrivacySpec` is the promise that is wanted, `DpSgdConfig` the mechanism exactly (both live in
`dpads.accounting.mechanism`), `Plan` both together with everything resolved between them. One plan
builds sampler, clipper, noise and event, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from dpads.accounting import calibration, events
from dpads.accounting.accountant import (
    PrivacyLoss,
    Relation,
    check_delta,
    default_delta,
    epsilon_of,
)
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.mechanism import (
    LARGEST_BATCH_ROWS,
    LARGEST_ITERATIONS,
    DpSgdConfig,
    PrivacySpec,
    number,
    whole_number,
)
from dpads.accounting.releases import (
    WORDS,
    Release,
    Wanted,
    composed_with,
    in_order,
    mu_of,
    with_noise,
)
from dpads.accounting.schemes import smallest_cap
from dpads.errors import ConfigError
from dpads.plan_noise import beside, calibrate, calibrated

__all__ = [
    "DpSgdConfig",
    "Plan",
    "PrivacySpec",
    "Relation",
    "Release",
    "Wanted",
    "calibrate",
    "resolve",
    "training_words",
]

DatasetSizeStatus = Literal["public", "asserted_public", "private"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run and what it will cost, resolved from public numbers.

    Attributes:
        privacy: The promise that was asked for.
        mechanism: The mechanism that keeps it.
        delta: The resolved delta.
        relation: The neighbouring relation.
        dataset_size: The number of units that the plan was resolved with; None where none entered.
        dataset_size_status: "public" when configured, "asserted_public" when it is the store's own
            count, "private" when no count entered the plan.
        releases: Noisy sums beside training, each with the noise of its share of the budget, in the
            order in which they are made.
        carried: What the runs have spent whose model this one starts from; None where it starts
            anew.

    Guarantees:
        - Nothing in it depends on the data when the privacy spec holds dataset_size, or
          sampling_prob, iterations and delta: neighbouring stores give equal bytes.
    """

    privacy: PrivacySpec
    mechanism: DpSgdConfig
    delta: float
    relation: Relation
    dataset_size: int | None
    dataset_size_status: DatasetSizeStatus
    releases: tuple[Release, ...] = ()
    carried: events.EventTree | None = None

    def __post_init__(self) -> None:
        if in_order(self.releases) != self.releases:
            raise ConfigError("Expected releases in the order in which they are made, got another.")
        if self.releases and not self.is_private:
            raise ConfigError("Expected no releases beside training without noise, got some.")
        scheme = self.mechanism.scheme
        if self.relation not in scheme.relations:
            raise ConfigError(
                f'Expected relation "zero_out" with sampler = "{scheme.kind}", got "{self.relation}": '
                "one unit more or less would shift other units, which only zero-out leaves in place."
            )
        rows = self.mechanism.expected_batch_size * self.privacy.rows_per_unit
        if rows > LARGEST_BATCH_ROWS:
            raise ConfigError(
                f"Expected expected_batch_size * max_examples_per_unit to be at most {LARGEST_BATCH_ROWS:,} "
                "rows, got more. Lower one of them."
            )

    def event(self) -> events.EventTree:
        """Everything: what is carried on, the releases, and the preregistered maximum of iterations."""
        return self.event_of(self.mechanism.iterations)

    def event_of(self, iterations: int) -> events.EventTree:
        """Everything, with so many iterations of training; what is reserved for afterwards included."""
        return composed_with(self.releases, self.mechanism.event(iterations), self.carried)

    def release(self, kind: str) -> Release | None:
        """The release of a kind; None where there is none."""
        return next((release for release in self.releases if release.kind == kind), None)

    @property
    def loss(self) -> PrivacyLoss:
        """What everything costs, with the preregistered maximum of iterations."""
        return epsilon_of(self.event(), self.delta, self.relation)

    @property
    def is_private(self) -> bool:
        """Whether there is any noise to make a claim with."""
        return self.mechanism.noise_multiplier > 0.0

    @property
    def default_delta(self) -> float | None:
        """The largest delta at which a tier is named; None where no number of units is known."""
        return None if self.dataset_size is None else default_delta(self.dataset_size)

    @property
    def allowed_iterations(self) -> int:
        """How many iterations may run before the next one would exceed the budget."""
        budget, most = self.privacy.epsilon, self.mechanism.iterations
        if budget is None or self.loss.epsilon <= budget:
            return most
        return calibration.largest_count(
            self.event_of, budget, self.delta, self.relation, at_most=most
        )

    def epsilon_spent(self, iterations_done: int) -> float:
        """An upper bound of the epsilon spent so far, cheap enough for a progress bar.

        It is the exact figure of the next of sixteen counts, each computed when it is first
        reached; the last is the figure of the whole plan. What is reserved for after training counts
        from the first iteration on.
        """
        if iterations_done <= 0:
            begun = composed_with(self.releases, dict(events.NO_OP), self.carried, finished=False)
            if begun == events.NO_OP:
                return 0.0
            return epsilon_of(begun, self.delta, self.relation).epsilon
        most = self.mechanism.iterations
        # Epsilon grows about as the square root, so counts at squares are evenly spaced in it.
        part = math.ceil(_PROGRESS_POINTS * math.sqrt(min(1.0, iterations_done / most)))
        count = min(most, math.ceil(most * (part / _PROGRESS_POINTS) ** 2))
        count = min(most, max(count, iterations_done))
        return epsilon_of(self.event_of(count), self.delta, self.relation).epsilon

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same plan on every machine."""
        further: dict[str, Any] = {}
        if self.releases:
            further["releases"] = [release.to_dict() for release in self.releases]
        if self.carried is not None:
            further["carried"] = self.carried
        return {
            "privacy": self.privacy.to_dict(),
            "mechanism": self.mechanism.to_dict(),
            "delta": self.delta,
            "relation": str(self.relation),
            "dataset_size": self.dataset_size,
            "dataset_size_status": self.dataset_size_status,
            "sensitivity_slack": events.SENSITIVITY_SLACK,
            **further,
        }

    def to_json(self) -> bytes:
        """Canonical bytes of `to_dict`."""
        return canonical_bytes(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan of `to_dict`.

        Raises:
            ConfigError: A value out of range, or a key missing or unknown.
        """
        mechanism = dict(values["mechanism"])
        if mechanism["l2_clip_norm"] is None:
            mechanism["l2_clip_norm"] = math.inf
        return cls(
            privacy=PrivacySpec(**values["privacy"]),
            mechanism=DpSgdConfig(**mechanism),
            delta=check_delta(values["delta"]),
            relation=Relation(values["relation"]),
            dataset_size=values["dataset_size"],
            dataset_size_status=values["dataset_size_status"],
            releases=tuple(Release.from_dict(item) for item in values.get("releases", ())),
            carried=values.get("carried"),
        )


def training_words(plan: Plan) -> str:
    """What a run does to its training rows, in words for its ledger."""
    words = f"{plan.mechanism.iterations} iterations of DP-SGD over tower and tables"
    beside = [WORDS[release.kind] for release in plan.releases]
    return words if not beside else f"{words}, with {' and '.join(beside)}"


def resolve(
    privacy: PrivacySpec,
    *,
    expected_batch_size: int,
    epochs: float | None,
    l2_clip_norm: float = 1.0,
    store_units: int | None = None,
    wanted: Sequence[Wanted] = (),
    carried: events.EventTree | None = None,
) -> Plan:
    """The plan of a configuration.

    Args:
        privacy: The promise that is wanted.
        expected_batch_size: Units in a batch on average, and the divisor of noisy sums.
        epochs: Passes over the data on average; unused where privacy.iterations is given.
        l2_clip_norm: Largest norm of one unit's gradient.
        store_units: The store's own count of units; looked at only where no public number is
            configured.
        wanted: Releases beside training; without noise there are none.
        carried: What the runs have spent whose model this one starts from.

    Raises:
        ConfigError: A value out of range, a batch larger than the number of units, or no number
            of units anywhere.
        BudgetError: The budget is too small for one iteration.

    Guarantees:
        - Sampler, relation and event agree, or there is no plan.
        - The releases' shares are taken off before training's noise is computed, and everything
          together meets privacy.epsilon.
        - store_units changes nothing when privacy.dataset_size is given, or when
          privacy.sampling_prob, privacy.iterations and privacy.delta are.
    """
    size = whole_number("expected_batch_size", expected_batch_size)
    units = privacy.dataset_size
    status: DatasetSizeStatus = "public"
    if privacy.dataset_size is None and privacy.sampling_prob is not None and privacy.delta:
        status = "private"
    elif privacy.dataset_size is None:
        units, status = store_units, "asserted_public"
    if units is None and status != "private":
        raise ConfigError(
            "Expected a number of units, got none. Set privacy.dataset_size to a public number of "
            "units, or privacy.sampling_prob, privacy.iterations and privacy.delta."
        )
    if privacy.sampler != "poisson" and units is None:
        raise ConfigError(
            f'Expected a public number of units with sampler = "{privacy.sampler}", got none. Set '
            "privacy.dataset_size to the number of units in the training rows."
        )
    if privacy.sampling_prob is not None and privacy.iterations is not None:
        sampling_prob, iterations = privacy.sampling_prob, privacy.iterations
    else:
        sampling_prob, iterations = _schedule(size, epochs, units or 0, status == "public")
    cap = privacy.max_batch_size
    if privacy.sampler == "truncated_poisson" and cap is None:
        cap = smallest_cap(units or 0, sampling_prob)
    mechanism = DpSgdConfig(
        l2_clip_norm=1.0,
        noise_multiplier=0.0,
        sampling_prob=sampling_prob,
        iterations=iterations,
        expected_batch_size=size,
        sampler=privacy.sampler,
        units=None if privacy.sampler == "poisson" else units,
        max_batch_size=cap,
    )
    delta = privacy.delta if privacy.delta is not None else default_delta(units or 1)
    # A count that is the store's own is equal on neighbouring stores only under zero-out.
    relation = Relation.ADD_OR_REMOVE_ONE
    if status == "asserted_public" or privacy.sampler != "poisson":
        relation = Relation.ZERO_OUT
    noise, asked = privacy.noise_multiplier, in_order(wanted)
    releases: tuple[Release, ...] = ()
    if noise is None:
        budget = privacy.epsilon or 0.0
        releases = tuple(with_noise(item, mu_of(budget, delta)) for item in asked)
        noise = calibrated(mechanism, budget, delta, relation, releases, carried)
    elif noise > 0.0 and asked:
        noisy = dataclasses.replace(mechanism, noise_multiplier=noise)
        releases = beside(noisy, delta, relation, asked)
    mechanism = dataclasses.replace(mechanism, l2_clip_norm=l2_clip_norm, noise_multiplier=noise)
    return Plan(
        privacy=privacy,
        mechanism=mechanism,
        delta=delta,
        relation=relation,
        dataset_size=units,
        dataset_size_status=status,
        releases=releases,
        carried=carried,
    )


_PROGRESS_POINTS = 16


def _schedule(
    size: int, epochs: float | None, units: int, units_are_public: bool
) -> tuple[float, int]:
    """sampling_prob = expected_batch_size / units, iterations = ceil(epochs / sampling_prob)."""
    passes = number("epochs", epochs, "to be a finite number > 0")
    if not 0.0 < passes < math.inf:
        raise ConfigError(f"Expected epochs to be a finite number > 0, got {epochs!r}.")
    if size > units:
        bound = f"the {units} units" if units_are_public else "the number of units in the store"
        raise ConfigError(
            f"Expected expected_batch_size to be at most {bound}, got {size}: sampling_prob, "
            "their ratio, would be above 1. Use a smaller batch."
        )
    # In fractions: in floats a whole quotient can come out a little above, and one batch is added.
    iterations = math.ceil(Fraction(str(passes)) * Fraction(units, size))
    if iterations > LARGEST_ITERATIONS:
        raise ConfigError(
            f"Expected epochs that take at most {LARGEST_ITERATIONS:,} iterations, got epochs = "
            f"{epochs!r} with expected_batch_size = {size}, which take more. Lower epochs, or raise "
            "expected_batch_size."
        )
    return size / units, iterations
