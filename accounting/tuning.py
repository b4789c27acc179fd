"""What it costs to choose a model among several runs on the same rows.

Composition covers every run and every look at it. Repeat-and-select covers the best of a random,
secret number of runs of which nothing else is ever shown; it is RDP's alone, so it is offered for
plain Poisson runs under add-or-remove and zero-out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpads.accounting import events
from dpads.accounting.accountant import PrivacyLoss, epsilon_of
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import LARGEST_SHAPE, MOST_RUNS, EventTree
from dpads.accounting.relation import Relation
from dpads.errors import ConfigError

SELECTION_SHAPES: Mapping[str, float | str] = {
    "logarithmic": 0.0,
    "geometric": 1.0,
    "poisson": "poisson",
}
"""Named laws of the number of runs; any other truncated negative binomial is given by its shape."""

_REASONS = {
    "truncated_poisson_gaussian": "no RDP of truncated Poisson batches is known",
    "fixed_order_pass": "it is offered for Poisson runs alone, not for passes in a fixed order",
    "mixture_of_gaussians": "no RDP of a group's mixture of Gaussians is known",
    "repeat_and_select": "the run is a selection already",
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


def selection_refusal(run: EventTree, relation: Relation) -> str | None:
    """Why the best of a random number of these runs cannot be accounted; None where it can."""
    to_dp_event(run)
    if Relation(relation) is Relation.REPLACE_ONE:
        return "it is accounted by RDP, which ignores the relation replace_one"
    for leaf, _ in events.counted_leaves(run):
        if leaf["kind"] in _REASONS:
            return _REASONS[leaf["kind"]]
    return None


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
