"""What it costs to choose a model among several runs on the same rows.

Composition covers every run and every look at it. Repeat-and-select covers the best of a random,
secret number of runs of which nothing else is ever shown; it is RDP's alone, so it is offered for
plain Poisson runs under add-or-remove and zero-out.

What a law of the number of runs costs, at equal means (10) and about epsilon 1 for one run:

    >>> from dpads.accounting.accountant import round_up
    >>> run = events.dp_sgd(1.727, 0.01, 1000)
    >>> one = epsilon_of(run, 1e-8, Relation.ADD_OR_REMOVE_ONE)
    >>> round_up(one.epsilon), round_up(one.rdp_epsilon or 0.0)
    (1.09, 1.16)
    >>> for law in SELECTION_SHAPES:
    ...     best = cost_of_selection(
    ...         run, mean=10, shape=law, delta=1e-8, relation=Relation.ADD_OR_REMOVE_ONE
    ...     )
    ...     print(law, round_up(best.loss.epsilon))
    logarithmic 1.78
    geometric 2.08
    poisson 2.26

The heavier a law's tail, the less it costs and the more often it draws very many runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dpads.accounting import events
from dpads.accounting.accountant import (
    PrivacyLoss,
    check_delta,
    check_relation,
    epsilon_of,
    quick_rdp_epsilon,
    rdp_epsilon,
)
from dpads.accounting.calibration import (
    LARGEST_NOISE_MULTIPLIER,
    SMALLEST_NOISE_MULTIPLIER,
    TOLERANCE,
    check_epsilon,
)
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import LARGEST_SHAPE, MOST_RUNS, EventTree
from dpads.accounting.relation import Relation
from dpads.accounting.renyi import best_whole_order, divergence_at
from dpads.errors import BudgetError, ConfigError

SELECTION_SHAPES: Mapping[str, float | str] = {
    "logarithmic": 0.0,
    "geometric": 1.0,
    "poisson": "poisson",
}
"""Named laws of the number of runs; any other truncated negative binomial is given by its shape."""

_EventOf: TypeAlias = Callable[[float], EventTree]
_Cost: TypeAlias = Callable[[EventTree, float, Relation], float]

_MOST_STEPS = 100
_FARTHEST = 25.0  # from a guess, in logarithms
_CLOSE = 1e-4
_LEAST = 1e-300
_FAR_OFF, _LONGEST_STEP = 40.0, 2.0
_FLATTEST, _STEEPEST = 0.05, 20.0

_REASONS = {
    "truncated_poisson_gaussian": "no RDP of truncated Poisson batches is known",
    "fixed_order_pass": "it is offered for Poisson runs alone, not for passes in a fixed order",
    "mixture_of_gaussians": "no RDP of a group's mixture of Gaussians is known",
    "repeat_and_select": "the run is a selection already",
    "renyi_filter": "one candidate's run is an event of its own, not everything inside a filter",
    "non_private": "a run without noise has no guarantee that could be selected under",
}


@dataclass(frozen=True)
class TuningCost:
    """What choosing among runs costs together.

    Attributes:
        method: "composition" or "repeat_and_select".
        runs: The number of runs, or its mean.
        event: Everything, as one event.
        loss: What it costs.
    """

    method: str
    runs: float
    event: EventTree
    loss: PrivacyLoss


def cost_of_composition(runs: Sequence[EventTree], delta: float, relation: Relation) -> TuningCost:
    """The cost of several runs on the same rows, all of which may be looked at.

    It holds where every run's noise, sampling and iterations were fixed before the first one ran, as
    a sweep's file fixes them. What is chosen after a look at an earlier run is spent from a
    `filters.RenyiFilter` instead.

    Args:
        runs: Each run's event (anything else that reads the rows may be among them).
        delta: The delta, in (0, 1).
        relation: The neighbouring relation; it must suit every run's sampler.

    Raises:
        ConfigError: No runs, delta is not in (0, 1), or a sampler needs another relation.
        InputError: An event is malformed.
        UnsupportedEventError: No accountant knows the runs together.
    """
    if not runs:
        raise ConfigError("Expected at least one run to compose, got none.")
    event = events.composed(runs)
    return TuningCost("composition", float(len(runs)), event, epsilon_of(event, delta, relation))


def cost_of_selection(
    run: EventTree, *, mean: float, shape: float | str, delta: float, relation: Relation
) -> TuningCost:
    """The cost of the best of a random number of runs, the rest of which is never shown.

    It holds where the number of runs is drawn from the law and kept secret, the candidates are
    drawn independently from a fixed list, the score comes from the private run alone, and only the
    best run's output leaves.

    Args:
        run: The event of one run, the same for each candidate.
        mean: The mean number of runs, at least 1.
        shape: The law: "logarithmic", "geometric", "poisson", or the shape (> 0) of a truncated
            negative binomial.
        delta: The delta, in (0, 1).
        relation: The neighbouring relation.

    Raises:
        ConfigError: It cannot be accounted (the message says why), or a number is out of range.
        InputError: The event is malformed.

    References:
        Papernot and Steinke (2022), arXiv 2110.03620 v2, Theorems 2 and 6.
    """
    reason = selection_refusal(run, relation)
    if reason is not None:
        raise ConfigError(
            f"The best of a random number of runs cannot be accounted here: {reason}. Compose all "
            "runs instead, which also lets every run be looked at."
        )
    law, mean = _check_shape(shape), _check_mean(mean)
    event = events.repeat_and_select(run, mean=mean, shape=law)
    return TuningCost("repeat_and_select", mean, event, epsilon_of(event, delta, relation))


@dataclass(frozen=True)
class SelectionNoise:
    """The noise with which the best of a random number of unlike candidates meets a budget.

    Attributes:
        noise_multipliers: Of each candidate, in the order in which they were given.
        score_noise_multiplier: Of the score.
        run_epsilon: What one run and its score cost, whichever candidate it is.
        event: The whole selection: what goes on the ledger, before the first run.
        loss: What it costs.
    """

    noise_multipliers: tuple[float, ...]
    score_noise_multiplier: float
    run_epsilon: float
    event: EventTree
    loss: PrivacyLoss


def noise_for_selection(
    candidates: Sequence[Callable[[float], EventTree]],
    *,
    score: Callable[[float], EventTree],
    mean: float,
    shape: float | str,
    epsilon: float,
    delta: float,
    relation: Relation,
) -> SelectionNoise:
    """Noise multipliers with which selecting the best of a random number of runs meets a budget.

    A run draws one candidate from the list, trains it on one part of the units and scores it on the
    other part, which is set apart unit by unit. So of all candidates and the score only the
    costliest counts (`events.worst_of`), and the cheapest way to meet a budget is to let all of them
    cost the same where it counts: each one's noise is found for one common Renyi divergence, at the
    order at which the selection's epsilon is read, and that divergence is searched. RDP does all of
    it, since nothing else bounds a selection.

    Args:
        candidates: From a noise multiplier to a candidate's event, for each candidate.
        score: The same for the noisy score of one run.
        mean: The mean number of runs, at least 1.
        shape: The law, as for `cost_of_selection`.
        epsilon: The budget of the selection, > 0.
        delta: The delta of the budget, in (0, 1).
        relation: The neighbouring relation.

    Returns:
        The noise multipliers; the selection's epsilon lies in [epsilon * (1 - TOLERANCE), epsilon],
        or below where `SMALLEST_NOISE_MULTIPLIER` is enough.

    Raises:
        ConfigError: No candidates, a number out of range, or a run that cannot be selected among
            (the message says why).
        InputError: An event is malformed.
        BudgetError: No noise multiplier up to `LARGEST_NOISE_MULTIPLIER` meets the budget.

    Guarantees:
        - The event's epsilon is never above the budget.

    Examples:
        >>> short, long = (lambda noise, n=n: events.dp_sgd(noise, 0.01, n) for n in (100, 1000))
        >>> found = noise_for_selection(
        ...     [short, long], score=events.gaussian, mean=10, shape="poisson", epsilon=3.0,
        ...     delta=1e-8, relation=Relation.ADD_OR_REMOVE_ONE,
        ... )
        >>> found.loss.epsilon <= 3.0, found.noise_multipliers[0] < found.noise_multipliers[1]
        (True, True)
    """
    target, delta, relation = check_epsilon(epsilon), check_delta(delta), Relation(relation)
    law, mean = _check_shape(shape), _check_mean(mean)
    if not candidates:
        raise ConfigError("Expected at least one candidate to select from, got none.")
    every = [*candidates, score]
    for event_of in every:
        reason = selection_refusal(event_of(1.0), relation)
        if reason is not None:
            raise ConfigError(
                f"The best of a random number of runs cannot be accounted here: {reason}."
            )
        check_relation(event_of(1.0), relation)

    def selection(noises: Sequence[float]) -> EventTree:
        parts = [event_of(noise) for event_of, noise in zip(every, noises, strict=True)]
        return events.repeat_and_select(events.worst_of(parts), mean=mean, shape=law)

    noises = _common_noise(every, selection, target, delta, relation)
    event = selection(noises)
    return SelectionNoise(
        noise_multipliers=tuple(noises[:-1]),
        score_noise_multiplier=noises[-1],
        run_epsilon=rdp_epsilon(event["event"], delta, relation),
        event=event,
        loss=epsilon_of(event, delta, relation),
    )


def _common_noise(
    every: Sequence[_EventOf],
    selection: Callable[[Sequence[float]], EventTree],
    target: float,
    delta: float,
    relation: Relation,
) -> list[float]:
    """A noise multiplier for each, all of one divergence at one order, that meet the target.

    The order is the one at which the selection's epsilon is read, which shows only afterwards: it
    is guessed, and corrected. Whole orders do until the last time.
    """
    order = _first_order(target, delta)
    level = math.log(target / 2.0)
    noises: list[float] = []
    for epsilon_of_event in (quick_rdp_epsilon, quick_rdp_epsilon, rdp_epsilon):
        if noises:
            order = best_whole_order(canonical_bytes(selection(noises)), delta, relation)

        def noises_at(level: float, order: float = order) -> list[float]:
            return [_noise_of(e, order, math.exp(level), relation) for e in every]

        def epsilon_at(level: float, cost: _Cost = epsilon_of_event) -> float:
            return cost(selection(noises_at(level)), delta, relation)

        found = _largest_level(epsilon_at, target, level)
        if found is None:
            raise BudgetError(
                f"The budget epsilon={target:g} at delta={delta:g} is too small to select a run with: "
                f"it would take a noise multiplier above {LARGEST_NOISE_MULTIPLIER:g}. Raise epsilon "
                "or delta, lower the mean number of runs, or train for fewer iterations."
            )
        level, noises = found, noises_at(found)
    return noises


def _largest_level(
    epsilon_at: Callable[[float], float], target: float, start: float
) -> float | None:
    """The largest logarithm of a divergence whose epsilon is at most a target, within tolerance.

    None where even the smallest costs more: noise multipliers end.
    """
    low, high, at = start - _FARTHEST, start + _FARTHEST, start
    found: float | None = None
    before: tuple[float, float] | None = None
    for _ in range(_MOST_STEPS):
        excess = math.log(max(epsilon_at(at), _LEAST) / target)
        if excess <= 0.0:
            found = at
            if excess >= math.log1p(-TOLERANCE):
                break
        low, high = (at, high) if excess <= 0.0 else (low, at)
        if high - low < _CLOSE:
            break
        slope = 1.0
        if before is not None and before[0] != at:
            slope = min(_STEEPEST, max(_FLATTEST, (excess - before[1]) / (at - before[0])))
        before = (at, excess)
        at -= (excess + TOLERANCE / 2.0) / slope
        if not low < at < high:
            at = (low + high) / 2.0
    return found


def _noise_of(event_of: _EventOf, order: float, rdp: float, relation: Relation) -> float:
    """The noise multiplier at which an event has a Renyi divergence, within a hair; or the nearest."""
    low, high = math.log(SMALLEST_NOISE_MULTIPLIER), math.log(LARGEST_NOISE_MULTIPLIER)
    at, slope = 0.0, -2.0
    before: tuple[float, float] | None = None
    for _ in range(_MOST_STEPS):
        event = canonical_bytes(event_of(math.exp(at)))
        divergence = divergence_at(event, order, relation)
        excess = min(_FAR_OFF, math.log(max(divergence, _LEAST) / rdp))
        if abs(excess) < _CLOSE * _CLOSE or high - low < _CLOSE * _CLOSE:
            break
        low, high = (at, high) if excess > 0.0 else (low, at)
        if before is not None and before[0] != at:
            slope = min(-_FLATTEST, (excess - before[1]) / (at - before[0]))
        before = (at, excess)
        at -= min(_LONGEST_STEP, max(-_LONGEST_STEP, excess / slope))
        if not low < at < high:
            at = (low + high) / 2.0
    return math.exp(at)


def _first_order(epsilon: float, delta: float) -> float:
    """About the order at which a Gaussian of this epsilon has it."""
    return float(min(64, max(2, round(1.0 - 2.0 * math.log(delta) / epsilon))))


def selection_refusal(run: EventTree, relation: Relation) -> str | None:
    """Why the best of a random number of these runs cannot be accounted; None where it can."""
    to_dp_event(run)
    if Relation(relation) is Relation.REPLACE_ONE:
        return "it is accounted by RDP, which ignores the relation replace_one"
    kinds = events.kinds_of(run)
    return next((reason for kind, reason in _REASONS.items() if kind in kinds), None)


def _check_mean(mean: object) -> float:
    """The mean number of runs as a float, or a `ConfigError`."""
    if isinstance(mean, bool) or not isinstance(mean, int | float) or not 1 <= mean <= MOST_RUNS:
        raise ConfigError(
            f"Expected mean, the mean number of runs, to be a number in [1, {MOST_RUNS:g}], got "
            f"{mean!r}."
        )
    return float(mean)


def _check_shape(shape: object) -> float | str:
    """The law of the number of runs as an event holds it, or a `ConfigError`."""
    if isinstance(shape, str) and shape in SELECTION_SHAPES:
        return SELECTION_SHAPES[shape]
    if (
        isinstance(shape, bool)
        or not isinstance(shape, int | float)
        or not 0 <= shape <= LARGEST_SHAPE
    ):
        known = ", ".join(f'"{name}"' for name in SELECTION_SHAPES)
        raise ConfigError(
            f"Expected shape, the law of the number of runs, to be {known} or a number in "
            f"[0, {LARGEST_SHAPE:g}], got {shape!r}."
        )
    return float(shape)
