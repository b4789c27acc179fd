"""A Renyi filter: one order, one total, and never more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of, rdp_epsilon
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.filters import RenyiFilter, smallest_noise_multiplier_within
from dpads.accounting.renyi import rdp_at, rdp_curve
from dpads.errors import BudgetError, ConfigError, InputError

ADD = Relation.ADD_OR_REMOVE_ONE
DELTA = 1e-8
RUN = events.dp_sgd(1.0, 0.01, 500)


def _filter(epsilon: float = 3.0) -> RenyiFilter:
    return RenyiFilter.for_budget(epsilon, DELTA, ADD, [RUN] * 4)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-12])
def test_the_total_converts_to_the_budget_from_below(epsilon: float, delta: float) -> None:
    found = RenyiFilter.for_budget(epsilon, delta, ADD, [RUN])
    spent = epsilon_of(found.event(), delta, ADD).epsilon
    assert epsilon * (1 - 1e-9) <= spent <= epsilon
    # By hand, from Canonne, Kamath, Steinke (2020), Proposition 12.
    order = found.order
    by_hand = (
        found.rdp + math.log(1 - 1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    )
    assert by_hand == pytest.approx(epsilon, rel=1e-9)
    assert by_hand <= epsilon


def test_the_order_is_where_most_of_the_plan_fits() -> None:
    curve = rdp_curve(canonical_bytes(RUN), ADD)
    assert curve is not None
    orders = np.asarray(curve[0])
    found = _filter()
    fitting = found.rdp / found.cost_of(RUN)
    for order in orders:
        total = 3.0 - math.log1p(-1 / order) + (math.log(DELTA) + math.log(order)) / (order - 1)
        assert total / rdp_at(canonical_bytes(RUN), float(order), ADD) <= fitting * (1 + 1e-9)
    # A rarer, louder mechanism has its best order elsewhere.
    loud = RenyiFilter.for_budget(3.0, DELTA, ADD, [events.dp_sgd(0.6, 0.001, 500)])
    assert loud.order < found.order


def test_a_planned_total_that_plain_composition_meets_is_met_here_too() -> None:
    """With everything fixed in advance the filter loses nothing but the choice of one order."""
    runs = [RUN] * 4
    epsilon = rdp_epsilon(events.composed(runs), DELTA, ADD)
    found = RenyiFilter.for_budget(epsilon * (1 + 1e-9), DELTA, ADD, runs)
    for run in runs:
        found.spend(run)
    assert not found.admits(events.dp_sgd(1.0, 0.01, 1))


def test_spending_never_exceeds_the_total_and_a_refusal_changes_nothing() -> None:
    found = _filter()
    cost, spent = found.cost_of(RUN), 0
    while found.admits(RUN):
        found.spend(RUN)
        spent += 1
    assert spent == math.floor(found.rdp / cost)
    before = found.spent
    with pytest.raises(BudgetError, match=r"is left\. Use more noise or fewer iterations"):
        found.spend(RUN)
    assert found.spent == before <= found.rdp
    assert found.left == found.rdp - before
    assert found.event() == events.renyi_filter(order=found.order, rdp=found.rdp)
    found.spend(events.dp_sgd(50.0, 0.01, 1))  # a small one still fits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.7, 20.0), min_size=1, max_size=30))
def test_whatever_is_chosen_the_composition_stays_inside(noises: list[float]) -> None:
    found = RenyiFilter(order=12.0, rdp=0.7, relation=ADD)
    ran = []
    for noise in noises:
        run = events.dp_sgd(round(noise, 1), 0.02, 100)
        if found.admits(run):
            found.spend(run)
            ran.append(run)
        else:
            with pytest.raises(BudgetError):
                found.spend(run)
    total = rdp_at(canonical_bytes(events.composed(ran)), found.order, ADD)
    assert total <= found.rdp
    assert found.spent >= total * (1 - 1e-12)


def test_a_resumed_filter_goes_on_where_it_was() -> None:
    found = _filter()
    found.spend(RUN)
    event = found.event()
    again = RenyiFilter(order=event["order"], rdp=event["rdp"], relation=ADD)
    again.spend(RUN)
    assert (again.spent, again.left) == (found.spent, found.left)


@pytest.mark.parametrize("count", [1, 7])
def test_the_noise_with_which_so_many_runs_fit(count: int) -> None:
    found = _filter()
    found.spend(events.dp_sgd(2.0, 0.01, 500))

    def event_of(noise: float) -> events.EventTree:
        return events.dp_sgd(noise, 0.01, 500)

    noise = smallest_noise_multiplier_within(found, event_of, count)
    assert found.admits(event_of(noise), count)
    assert not found.admits(event_of(noise * 0.99), count)
    assert found.left * (1 - 1e-3) <= count * found.cost_of(event_of(noise)) <= found.left
    for _ in range(count):
        found.spend(event_of(noise))


def test_noise_that_no_budget_needs_and_noise_that_none_has() -> None:
    generous = RenyiFilter(order=2.0, rdp=1e9, relation=ADD)
    assert smallest_noise_multiplier_within(generous, events.gaussian) == 0.1
    tiny = RenyiFilter(order=2.0, rdp=1e-14, relation=ADD)
    with pytest.raises(BudgetError, match="stop here"):
        smallest_noise_multiplier_within(tiny, events.gaussian)
    with pytest.raises(ConfigError, match="count"):
        smallest_noise_multiplier_within(generous, events.gaussian, 0)


def test_a_selection_can_be_spent_from_a_filter() -> None:
    best = events.repeat_and_select(RUN, mean=5.0, shape=1.0)
    found = RenyiFilter.for_budget(4.0, DELTA, ADD, [best])
    found.spend(best)
    assert found.spent >= rdp_at(canonical_bytes(best), found.order, ADD)


def test_what_rdp_does_not_know_has_no_place_in_a_filter() -> None:
    cut = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)
    found = RenyiFilter(order=8.0, rdp=0.5, relation=Relation.ZERO_OUT)
    assert found.cost_of(cut) == math.inf
    with pytest.raises(BudgetError):
        found.spend(cut)
    with pytest.raises(BudgetError):
        found.spend(events.gaussian(0.0))
    with pytest.raises(BudgetError, match="poisson"):
        RenyiFilter.for_budget(3.0, DELTA, Relation.ZERO_OUT, [cut])
    with pytest.raises(ConfigError, match="zero_out"):
        _filter().spend(events.fixed_order(1.0, 1))


@pytest.mark.parametrize(
    ("order", "rdp"),
    [
        (1.0, 1.0),
        (math.inf, 1.0),
        (8.0, 0.0),
        (8.0, -1.0),
        (8.0, math.nan),
        (True, 1.0),
        ("8", 1.0),
    ],
)
def test_numbers_out_of_range_are_refused(order: float, rdp: float) -> None:
    with pytest.raises(ConfigError, match=r"order|rdp"):
        RenyiFilter(order=order, rdp=rdp, relation=ADD)


def test_budgets_that_make_no_filter_are_refused() -> None:
    with pytest.raises(ConfigError, match="replace_one"):
        RenyiFilter(order=8.0, rdp=1.0, relation=Relation.REPLACE_ONE)
    with pytest.raises(ConfigError, match="replace_one"):
        RenyiFilter.for_budget(1.0, DELTA, Relation.REPLACE_ONE, [RUN])
    with pytest.raises(ConfigError, match="at least one planned event"):
        RenyiFilter.for_budget(1.0, DELTA, ADD, [])
    with pytest.raises(ConfigError, match="epsilon"):
        RenyiFilter.for_budget(-1.0, DELTA, ADD, [RUN])
    with pytest.raises(BudgetError, match="Raise epsilon"):
        RenyiFilter.for_budget(1e-4, 1e-12, ADD, [RUN])
    with pytest.raises(InputError, match="kind"):
        RenyiFilter.for_budget(1.0, DELTA, ADD, [{"kind": "shuffled"}])
