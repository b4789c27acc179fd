"""Choosing among runs: published costs, and a reason wherever there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of, rdp_epsilon
from dpads.accounting.tuning import (
    SELECTION_SHAPES,
    cost_of_composition,
    cost_of_selection,
    noise_for_selection,
    selection_refusal,
)
from dpads.errors import BudgetError, ConfigError, InputError

SLACK = 1 + events.SENSITIVITY_SLACK
ADD, ZERO, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT, Relation.REPLACE_ONE
GOLDEN_RUN = events.dp_sgd(0.766 * SLACK, 0.00178706, 2798)
TRUNCATED = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("logarithmic", 4.96), (0.5, 5.15), ("geometric", 5.33), ("poisson", 5.36)],
)
def test_golden_best_of_a_random_number_of_runs(shape: float | str, expected: float) -> None:
    cost = cost_of_selection(GOLDEN_RUN, mean=20, shape=shape, delta=1e-10, relation=ZERO)
    assert (cost.method, cost.runs, cost.loss.accountant) == ("repeat_and_select", 20.0, "rdp")
    assert cost.loss.epsilon == pytest.approx(expected, abs=5.5e-3)


def test_golden_twenty_runs_composed() -> None:
    cost = cost_of_composition([GOLDEN_RUN] * 20, 1e-10, ZERO)
    assert (cost.method, cost.runs, cost.loss.accountant) == ("composition", 20.0, "pld")
    assert cost.loss.epsilon == pytest.approx(6.30, abs=5e-3)
    assert cost.loss.rdp_epsilon == pytest.approx(6.78, abs=5.5e-3)
    assert cost.event == events.self_composed(GOLDEN_RUN, 20)


def test_runs_of_any_kind_compose() -> None:
    runs = [events.dp_sgd(1.0, 0.01, 100), events.dp_sgd(2.0, 0.02, 50), events.gaussian(30.0)]
    cost = cost_of_composition([*runs, TRUNCATED, events.fixed_order(4.0, 1)], 1e-8, ZERO)
    assert cost.runs == 5.0
    assert cost.loss.epsilon > max(epsilon_of(run, 1e-8, ZERO).epsilon for run in runs)
    assert cost_of_composition([runs[0]], 1e-8, ZERO).loss == epsilon_of(runs[0], 1e-8, ZERO)
    with pytest.raises(ConfigError, match="zero_out"):
        cost_of_composition([runs[0], TRUNCATED], 1e-8, ADD)


def test_composition_knows_replace_one() -> None:
    cost = cost_of_composition([events.gaussian(3.0), events.dp_sgd(1.0, 0.01, 9)], 1e-6, REPLACE)
    assert cost.loss.rdp_epsilon is None


def test_no_runs_cost_nothing_that_could_be_stated() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        cost_of_composition([], 1e-8, ZERO)


def test_a_selection_costs_more_than_a_run_and_grows_with_the_mean() -> None:
    run = events.dp_sgd(1.0, 0.01, 100)
    one = epsilon_of(run, 1e-8, ADD).rdp_epsilon
    for shape in SELECTION_SHAPES:
        costs = [
            cost_of_selection(run, mean=mean, shape=shape, delta=1e-8, relation=ADD).loss.epsilon
            for mean in (1.0, 2.0, 20.0, 1000.0)
        ]
        assert costs == sorted(costs)
        assert one is not None
        assert costs[0] > one


@pytest.mark.parametrize(
    ("run", "relation", "reason"),
    [
        (TRUNCATED, ZERO, "truncated"),
        (events.composed([GOLDEN_RUN, TRUNCATED]), ZERO, "truncated"),
        (events.fixed_order(1.0, 2), ZERO, "fixed order"),
        (events.for_group(GOLDEN_RUN, 4), ZERO, "mixture"),
        (GOLDEN_RUN, REPLACE, "ignores the relation replace_one"),
        (events.repeat_and_select(GOLDEN_RUN, mean=2, shape=1.0), ZERO, "selection already"),
        (events.dp_sgd(0.0, 0.1, 5), ZERO, "without noise"),
    ],
)
def test_what_cannot_be_selected_under_is_refused_with_the_reason(
    run: events.EventTree, relation: Relation, reason: str
) -> None:
    assert reason in str(selection_refusal(run, relation))
    with pytest.raises(ConfigError, match=reason) as refusal:
        cost_of_selection(run, mean=20, shape="geometric", delta=1e-8, relation=relation)
    assert "Compose all runs instead" in str(refusal.value)


def test_poisson_runs_with_counts_can_be_selected_under() -> None:
    run = events.composed([events.gaussian(100.0), GOLDEN_RUN])
    assert selection_refusal(run, ZERO) is None
    assert selection_refusal(run, ADD) is None


@pytest.mark.parametrize(
    "shape", ["uniform", "Poisson", "", -1.0, math.nan, math.inf, 1e9, True, None]
)
def test_unknown_laws_of_the_number_of_runs(shape: Any) -> None:
    with pytest.raises((ConfigError, InputError), match="shape"):
        cost_of_selection(GOLDEN_RUN, mean=20, shape=shape, delta=1e-8, relation=ADD)


@pytest.mark.parametrize("mean", [0, 0.5, -3.0, math.nan, math.inf, 1e7, True, "20"])
def test_means_out_of_range(mean: Any) -> None:
    with pytest.raises((ConfigError, InputError), match="mean"):
        cost_of_selection(GOLDEN_RUN, mean=mean, shape=1.0, delta=1e-8, relation=ADD)


@pytest.mark.parametrize("delta", [0, 1, math.nan, True])
def test_deltas_outside_zero_one(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        cost_of_selection(GOLDEN_RUN, mean=2, shape=1.0, delta=delta, relation=ADD)
    with pytest.raises(ConfigError, match="delta"):
        cost_of_composition([GOLDEN_RUN], delta, ADD)


@pytest.mark.parametrize("noise", [1e9, 1e200])
@pytest.mark.parametrize("shape", list(SELECTION_SHAPES))
def test_a_run_that_hides_nearly_everything_is_no_free_lunch(noise: float, shape: str) -> None:
    # dp-accounting's own selection fails here: a divergence below rounding is negative or 1e-17.
    run = events.dp_sgd(noise, 1e-6, 10)
    cost = cost_of_selection(run, mean=20, shape=shape, delta=1e-8, relation=ADD)
    assert 0.0 <= cost.loss.epsilon < 0.2


def _schedules() -> list[Callable[[float], events.EventTree]]:
    """Ten unlike candidates: their Renyi curves cross."""
    return [
        partial(events.dp_sgd, sampling_prob=prob, iterations=count)
        for prob in (0.002, 0.01, 0.05, 0.1, 0.2)
        for count in (100, 1000)
    ]


@pytest.mark.parametrize(
    ("epsilon", "mean", "shape"),
    [(3.0, 10, "poisson"), (1.0, 10, "geometric"), (0.2, 3, "logarithmic"), (8.0, 1, 2.5)],
)
def test_noise_for_a_selection_meets_the_budget_from_below(
    epsilon: float, mean: float, shape: float | str
) -> None:
    schedules = _schedules()
    found = noise_for_selection(
        schedules,
        score=events.gaussian,
        mean=mean,
        shape=shape,
        epsilon=epsilon,
        delta=1e-8,
        relation=ADD,
    )
    assert epsilon * (1 - 1e-3) <= found.loss.epsilon <= epsilon
    assert found.loss == epsilon_of(found.event, 1e-8, ADD)
    noises = zip(schedules, found.noise_multipliers, strict=True)
    parts = [schedule(noise) for schedule, noise in noises]
    parts.append(events.gaussian(found.score_noise_multiplier))
    law = SELECTION_SHAPES.get(str(shape), shape)
    assert found.event == events.repeat_and_select(events.worst_of(parts), mean=mean, shape=law)
    assert found.run_epsilon < epsilon
    for part in parts:
        assert rdp_epsilon(part, 1e-8, ADD) <= found.run_epsilon
    # No candidate could do with much less noise: all of them are at the edge of the common curve.
    for place in range(len(parts)):
        less = [*found.noise_multipliers, found.score_noise_multiplier]
        less[place] *= 0.9
        worse = [e(noise) for e, noise in zip([*schedules, events.gaussian], less, strict=True)]
        event = events.repeat_and_select(events.worst_of(worse), mean=mean, shape=law)
        assert epsilon_of(event, 1e-8, ADD).epsilon > found.loss.epsilon


def test_equal_candidates_have_equal_noise() -> None:
    schedule = partial(events.dp_sgd, sampling_prob=0.01, iterations=100)
    found = noise_for_selection(
        [schedule, schedule],
        score=events.gaussian,
        mean=5,
        shape="geometric",
        epsilon=2.0,
        delta=1e-8,
        relation=ZERO,
    )
    assert found.noise_multipliers[0] == found.noise_multipliers[1]
    assert len(found.event["event"]["events"]) == 2


def test_a_selection_that_no_noise_pays_for_is_refused() -> None:
    schedule = partial(events.dp_sgd, sampling_prob=1.0, iterations=1000)
    for changes, error, words in [
        ({"epsilon": 1e-5, "delta": 1e-12}, BudgetError, "Raise epsilon"),
        ({"relation": REPLACE}, ConfigError, "replace_one"),
        ({"candidates": []}, ConfigError, "at least one candidate"),
        ({"candidates": [lambda _: TRUNCATED]}, ConfigError, "truncated"),
        ({"candidates": [lambda _: events.fixed_order(1.0, 1)]}, ConfigError, "fixed order"),
        ({"score": lambda _: events.gaussian(0.0)}, ConfigError, "without noise"),
        ({"mean": 0.5}, ConfigError, "mean"),
        ({"shape": "uniform"}, ConfigError, "shape"),
        ({"epsilon": math.inf}, ConfigError, "epsilon"),
    ]:
        arguments: dict[str, Any] = {
            "candidates": [schedule],
            "score": events.gaussian,
            "mean": 5,
            "shape": "geometric",
            "epsilon": 2.0,
            "delta": 1e-8,
            "relation": ADD,
            **changes,
        }
        with pytest.raises(error, match=words):
            noise_for_selection(**arguments)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (TRUNCATED, "truncated"),
        (events.fixed_order(1.0, 2), "fixed order"),
        (events.for_group(events.dp_sgd(1.0, 0.1, 5), 2), "mixture"),
        (events.repeat_and_select(GOLDEN_RUN, mean=2.0, shape=1.0), "selection already"),
        (events.gaussian(0.0), "without noise"),
        (events.renyi_filter(order=8.0, rdp=1.0), "filter"),
    ],
    ids=lambda part: part["kind"] if isinstance(part, dict) else "",
)
def test_no_choice_hides_what_cannot_be_selected_among(part: events.EventTree, words: str) -> None:
    choice = events.worst_of([GOLDEN_RUN, events.worst_of([part, events.gaussian(1.0)])])
    for run in (choice, events.composed([GOLDEN_RUN, choice])):
        assert words in str(selection_refusal(run, ZERO))
    assert selection_refusal(events.worst_of([GOLDEN_RUN, events.gaussian(1.0)]), ZERO) is None
