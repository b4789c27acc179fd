"""The plan: every number of the mechanism, resolved once, before any data is touched.

`PrivacySpec` is the promise that is wanted, `DpSgdConfig` the mechanism exactly (both live in
`dpads.accounting.mechanism`), `Plan` both together with everything resolved between them. One plan
builds sampler, clipper, noise and event, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Literal

from dpads._validate import nearest
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
from dpads.accounting.schemes import smallest_cap
from dpads.errors import BudgetError, ConfigError

__all__ = [
    "DpSgdConfig",
    "Plan",
    "PrivacySpec",
    "Relation",
    "calibrate",
    "resolve",
]

SOLVE_FOR = ("noise_multiplier", "iterations", "expected_batch_size")

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

    def __post_init__(self) -> None:
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
        """The event of the preregistered maximum of iterations."""
        return self.mechanism.event()

    @property
    def loss(self) -> PrivacyLoss:
        """What the preregistered maximum of iterations costs."""
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
            self.mechanism.event, budget, self.delta, self.relation, at_most=most
        )

    def epsilon_spent(self, iterations_done: int) -> float:
        """An upper bound of the epsilon spent so far, cheap enough for a progress bar.

        It is the exact figure of the next of sixteen counts, each computed when it is first
        reached; the last is the figure of the whole plan.
        """
        if iterations_done <= 0:
            return 0.0
        most = self.mechanism.iterations
        # Epsilon grows about as the square root, so counts at squares are evenly spaced in it.
        part = math.ceil(_PROGRESS_POINTS * math.sqrt(min(1.0, iterations_done / most)))
        count = min(most, math.ceil(most * (part / _PROGRESS_POINTS) ** 2))
        count = min(most, max(count, iterations_done))
        return epsilon_of(self.mechanism.event(count), self.delta, self.relation).epsilon

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the same for the same plan on every machine."""
        return {
            "privacy": self.privacy.to_dict(),
            "mechanism": self.mechanism.to_dict(),
            "delta": self.delta,
            "relation": str(self.relation),
            "dataset_size": self.dataset_size,
            "dataset_size_status": self.dataset_size_status,
            "sensitivity_slack": events.SENSITIVITY_SLACK,
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
        )


def resolve(
    privacy: PrivacySpec,
    *,
    expected_batch_size: int,
    epochs: float | None,
    l2_clip_norm: float = 1.0,
    store_units: int | None = None,
) -> Plan:
    """The plan of a configuration.

    Args:
        privacy: The promise that is wanted.
        expected_batch_size: Units in a batch on average, and the divisor of noisy sums.
        epochs: Passes over the data on average; unused where privacy.iterations is given.
        l2_clip_norm: Largest norm of one unit's gradient.
        store_units: The store's own count of units; looked at only where no public number is
            configured.

    Raises:
        ConfigError: A value out of range, a batch larger than the number of units, or no number
            of units anywhere.
        BudgetError: The budget is too small for one iteration.

    Guarantees:
        - Sampler, relation and event agree, or there is no plan.
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
    noise = privacy.noise_multiplier
    if noise is None:
        noise = _calibrated(mechanism, privacy.epsilon or 0.0, delta, relation)
    mechanism = dataclasses.replace(mechanism, l2_clip_norm=l2_clip_norm, noise_multiplier=noise)
    return Plan(
        privacy=privacy,
        mechanism=mechanism,
        delta=delta,
        relation=relation,
        dataset_size=units,
        dataset_size_status=status,
    )


def calibrate(
    config: DpSgdConfig,
    *,
    epsilon: float,
    delta: float,
    relation: Relation | str = Relation.ADD_OR_REMOVE_ONE,
    solve_for: str = "noise_multiplier",
) -> DpSgdConfig:
    """A new mechanism that meets a budget from below, one number changed.

    Args:
        config: The mechanism to start from.
        epsilon: The budget, > 0.
        delta: The delta of the budget, in (0, 1).
        relation: "add_or_remove_one", "zero_out" or "replace_one".
        solve_for: "noise_multiplier" (the smallest that fits), "iterations" or
            "expected_batch_size" (the largest that fits; sampling_prob moves with it, the number
            of units and the iterations stay).

    Raises:
        ConfigError: A value out of range.
        BudgetError: The budget is too small for one iteration, or for a batch of one unit.

    Examples:
        >>> config = DpSgdConfig(l2_clip_norm=1.0, noise_multiplier=1.0, sampling_prob=0.01,
        ...                      iterations=1000, expected_batch_size=100)
        >>> round(calibrate(config, epsilon=3.0, delta=1e-6).noise_multiplier, 2)
        0.87
    """
    epsilon, delta = calibration.check_epsilon(epsilon), check_delta(delta)
    relation = _relation(relation)
    if solve_for not in SOLVE_FOR:
        raise ConfigError(
            f"Expected solve_for to be one of {', '.join(SOLVE_FOR)}, got {solve_for!r}."
            + nearest(str(solve_for), SOLVE_FOR)
        )
    if solve_for == "noise_multiplier":
        noise = _calibrated(config, epsilon, delta, relation)
        return dataclasses.replace(config, noise_multiplier=noise)
    if config.noise_multiplier == 0.0:
        raise BudgetError(
            f"noise_multiplier = 0 protects nothing: no number of {solve_for} meets "
            f"epsilon={epsilon:g}. Solve for noise_multiplier instead."
        )
    if solve_for == "iterations":
        count = calibration.largest_count(config.event, epsilon, delta, relation)
        if count == 0:
            raise _too_small_for_one_iteration(epsilon, delta)
        return dataclasses.replace(config, iterations=count)
    units = config.expected_batch_size / config.sampling_prob
    most = max(1, math.floor(units))
    resized = partial(_resized, config, units)
    size = calibration.largest_count(
        lambda n: resized(n).event(), epsilon, delta, relation, at_most=most
    )
    if size == 0:
        raise BudgetError(
            f"The budget epsilon={epsilon:g} at delta={delta:g} is too small for a batch of one "
            f"unit at noise multiplier {config.noise_multiplier:g} and {config.iterations} "
            "iterations. Raise epsilon or the noise multiplier, or train for fewer iterations."
        )
    return resized(size)


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


@lru_cache(maxsize=256)  # trials of a sweep that differ in their seeds share one search
def _calibrated(config: DpSgdConfig, epsilon: float, delta: float, relation: Relation) -> float:
    """The smallest noise multiplier with which the mechanism meets the budget."""
    scheme = config.scheme
    try:
        return calibration.smallest_noise_multiplier(
            lambda noise: scheme.event(noise, config.iterations), epsilon, delta, relation
        )
    except BudgetError:
        one = scheme.event(calibration.LARGEST_NOISE_MULTIPLIER, 1)
        if epsilon_of(one, delta, relation).epsilon > epsilon:
            raise _too_small_for_one_iteration(epsilon, delta) from None
        raise


def _too_small_for_one_iteration(epsilon: float, delta: float) -> BudgetError:
    """The budget cannot be met at all."""
    return BudgetError(
        f"The budget epsilon={epsilon:g} at delta={delta:g} is too small for one iteration. "
        "Raise epsilon or delta, or use a smaller batch."
    )


def _resized(config: DpSgdConfig, units: float, size: int) -> DpSgdConfig:
    """The mechanism with another batch size on the same number of units."""
    prob = min(1.0, size / units)
    cap = config.max_batch_size
    if cap is not None:
        cap = smallest_cap(config.units or 0, prob)
    return dataclasses.replace(
        config, expected_batch_size=size, sampling_prob=prob, max_batch_size=cap
    )


def _relation(value: Relation | str) -> Relation:
    """A relation from its name."""
    known = [str(r) for r in Relation]
    if value not in known:
        raise ConfigError(
            f"Expected relation to be one of {', '.join(known)}, got {value!r}."
            + nearest(str(value), known)
        )
    return Relation(value)
