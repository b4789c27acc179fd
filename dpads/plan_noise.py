"""The noise, the iterations or the batch size that meets a budget, beside what else is on it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import lru_cache, partial

from dpads._validate import nearest
from dpads.accounting import calibration, events
from dpads.accounting.accountant import Relation, check_delta, epsilon_of, quick_rdp_epsilon
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.mechanism import DpSgdConfig
from dpads.accounting.releases import Release, Wanted, composed_with, mu_of, with_noise
from dpads.accounting.schemes import smallest_cap
from dpads.errors import BudgetError, ConfigError

SOLVE_FOR = ("noise_multiplier", "iterations", "expected_batch_size")


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
        noise = calibrated(config, epsilon, delta, relation)
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


def calibrated(
    config: DpSgdConfig,
    epsilon: float,
    delta: float,
    relation: Relation,
    releases: tuple[Release, ...] = (),
    carried: events.EventTree | None = None,
) -> float:
    """The smallest noise multiplier that meets a budget, beside what else counts.

    Args:
        config: The mechanism; its own noise multiplier is not looked at.
        epsilon: The budget.
        delta: Of the budget.
        relation: The neighbouring relation.
        releases: What is released beside training.
        carried: What was spent before.

    Raises:
        BudgetError: It is too small.
    """
    spent = None if carried is None else canonical_bytes(carried)
    return _searched(config, epsilon, delta, relation, releases, spent)


@lru_cache(maxsize=256)  # trials of a sweep that differ in their seeds share one search
def _searched(
    config: DpSgdConfig,
    epsilon: float,
    delta: float,
    relation: Relation,
    releases: tuple[Release, ...],
    spent: bytes | None,
) -> float:
    """`calibrated`, by what can be told apart in a cache."""
    scheme = config.scheme
    carried = None if spent is None else json.loads(spent)

    def event(noise: float, iterations: int) -> events.EventTree:
        return composed_with(releases, scheme.event(noise, iterations), carried)

    try:
        return calibration.smallest_noise_multiplier(
            lambda noise: event(noise, config.iterations), epsilon, delta, relation
        )
    except BudgetError:
        one = event(calibration.LARGEST_NOISE_MULTIPLIER, 1)
        if epsilon_of(one, delta, relation).epsilon <= epsilon:
            raise
        if carried is None:
            raise _too_small_for_one_iteration(epsilon, delta) from None
        took = epsilon_of(carried, delta, relation).epsilon
        raise BudgetError(
            f"The budget epsilon={epsilon:g} at delta={delta:g} is spent by the runs whose model this one "
            f"starts from (they took {took:.4g}): it is the total, theirs included. Raise epsilon, or "
            "train anew."
        ) from None


def beside(
    config: DpSgdConfig, delta: float, relation: Relation, asked: Sequence[Wanted]
) -> tuple[Release, ...]:
    """Releases beside a training whose noise is given: their shares are of the whole that comes out.

    With mu^2 of training alone the whole has mu^2 / (1 - all shares). What it costs is composed exactly;
    this decides the releases' noise alone, so a bound that is quickly computed will do.
    """
    bound = quick_rdp_epsilon(config.event(), delta, relation)
    if not math.isfinite(bound):  # RDP does not know every sampler
        bound = epsilon_of(config.event(), delta, relation).epsilon
    left = 1.0 - math.fsum(item.share for item in asked)
    whole = mu_of(bound, delta) / math.sqrt(left)
    return tuple(with_noise(item, whole) for item in asked)


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
