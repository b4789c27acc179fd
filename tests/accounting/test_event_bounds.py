"""What is known of a choice among mechanisms and of a Renyi filter, and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.privacy_accountant import UnsupportedEventError
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

from dpads.accounting import events
from dpads.accounting.accountant import Relation, deltas_of, epsilon_of, rdp_epsilon
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree
from dpads.accounting.group import refusal_of
from dpads.accounting.notions import attack_bounds, gdp_fit, rdp_points, zcdp_rho
from dpads.accounting.pld import supports
from dpads.accounting.renyi import rdp_at, rdp_curve
from dpads.errors import ConfigError

ADD = Relation.ADD_OR_REMOVE_ONE
DELTA = 1e-8
# Their curves cross: the first costs more at small orders, the second at large ones.
SLOW = events.dp_sgd(1.5, 0.02, 3000)
RARE = events.dp_sgd(0.8, 0.001, 3000)
BOTH = events.worst_of([SLOW, RARE])


def _curve(event: EventTree, relation: Relation = ADD) -> tuple[np.ndarray, np.ndarray]:
    curve = rdp_curve(canonical_bytes(event), relation)
    assert curve is not None
    return curve


def test_the_curve_of_a_choice_is_the_pointwise_maximum() -> None:
    orders, both = _curve(BOTH)
    parts = np.array([_curve(SLOW)[1], _curve(RARE)[1]])
    larger = np.argmax(parts, axis=0)
    assert set(larger[np.all(np.isfinite(parts), axis=0)]) == {0, 1}  # the curves cross
    assert np.all(both >= np.max(parts, axis=0))
    finite = np.isfinite(both)
    assert both[finite] == pytest.approx(np.max(parts, axis=0)[finite], rel=1e-9)
    # Computed apart from this library: the maximum of dp-accounting's own curves.
    own = [RdpAccountant().compose(to_dp_event(part)) for part in (SLOW, RARE)]
    expected, _ = compute_epsilon(own[0]._orders, np.max([a._rdp for a in own], axis=0), DELTA)
    assert epsilon_of(BOTH, DELTA, ADD).epsilon == pytest.approx(expected, rel=1e-9)
    assert len(orders) == len(both)


def test_a_choice_costs_at_least_each_part_and_pld_does_not_know_it() -> None:
    loss = epsilon_of(BOTH, DELTA, ADD)
    assert loss.accountant == "rdp"
    assert loss.pld_epsilon is None
    assert not supports(canonical_bytes(BOTH), ADD)
    for part in (SLOW, RARE):
        assert loss.epsilon >= rdp_epsilon(part, DELTA, ADD)
    again = events.worst_of([RARE, SLOW])
    assert epsilon_of(again, DELTA, ADD).epsilon == loss.epsilon


def test_the_mixture_that_a_choice_stands_for_costs_no_more() -> None:
    """A fair draw of a mechanism, told with its output: its divergence, from the definition."""
    parts = [(0.7, 1.3), (0.3, 0.9)]  # chance, noise multiplier
    choice = events.worst_of([events._gaussian(noise) for _, noise in parts])
    for order in (1.5, 2.0, 8.0):
        moments = [math.exp(order * (order - 1) / (2 * noise**2)) for _, noise in parts]
        mixture = math.log(sum(p * m for (p, _), m in zip(parts, moments, strict=True)))
        assert mixture / (order - 1) <= rdp_at(canonical_bytes(choice), order, ADD)


def test_choosing_is_selected_by_the_largest_curve() -> None:
    best = events.repeat_and_select(BOTH, mean=10.0, shape=1.0)
    loss = epsilon_of(best, DELTA, ADD)
    assert (loss.accountant, loss.pld_epsilon) == ("rdp", None)
    for part in (SLOW, RARE):
        one = events.repeat_and_select(part, mean=10.0, shape=1.0)
        assert loss.epsilon > epsilon_of(one, DELTA, ADD).epsilon
    assert loss.epsilon > epsilon_of(BOTH, DELTA, ADD).epsilon


@pytest.mark.parametrize("shape", ["poisson", 0.0, 1.0])
def test_a_selections_divergence_grows_with_the_order(shape: float | str) -> None:
    _, rdp = _curve(events.repeat_and_select(BOTH, mean=10.0, shape=shape))
    finite = rdp[np.isfinite(rdp)]
    assert np.all(np.diff(finite) >= 0.0)
    assert np.all(finite >= _curve(BOTH)[1][np.isfinite(rdp)])


@pytest.mark.parametrize("order", [2.0, 8.0, 8.05, 40.0, 1024.0])
def test_a_filter_is_its_total_up_to_its_order_and_nothing_above(order: float) -> None:
    event = events.renyi_filter(order=order, rdp=0.25)
    orders, rdp = _curve(event)
    below = orders <= order
    assert rdp[below] == pytest.approx(np.full(below.sum(), 0.25), rel=1e-9)
    assert np.all(rdp[below] >= 0.25)
    assert np.all(np.isinf(rdp[~below]))
    assert not supports(canonical_bytes(event), ADD)


def test_a_filters_epsilon_is_the_conversion_at_its_order() -> None:
    event = events.renyi_filter(order=20.0, rdp=0.25)
    # Canonne, Kamath, Steinke (2020), Proposition 12, by hand.
    expected = 0.25 + math.log(1 - 1 / 20) - (math.log(DELTA) + math.log(20)) / 19
    loss = epsilon_of(event, DELTA, ADD)
    assert loss.epsilon == pytest.approx(expected, rel=1e-9)
    assert (loss.accountant, loss.pld_epsilon) == ("rdp", None)


def test_a_filter_composes_with_what_was_fixed_in_advance() -> None:
    run = events.gaussian(10.0)
    filtered = events.renyi_filter(order=8.0, rdp=0.25)
    both = events.composed([filtered, run])
    total = rdp_at(canonical_bytes(both), 8.0, ADD)
    assert total == pytest.approx(0.25 + rdp_at(canonical_bytes(run), 8.0, ADD), rel=1e-9)
    assert math.isinf(rdp_at(canonical_bytes(both), 8.1, ADD))


@pytest.mark.parametrize("event", [BOTH, events.renyi_filter(order=8.0, rdp=0.25)])
def test_no_other_notion_and_no_group_describes_them(event: EventTree) -> None:
    assert zcdp_rho(event, ADD) is None
    assert gdp_fit(event, ADD) is None
    assert "No group guarantee" in str(refusal_of(event, 2, ADD))
    points = rdp_points(event, ADD)
    assert points is not None
    assert 2.0 in points[0]
    bounds = attack_bounds(event, ADD)
    assert 0.0 < bounds.advantage < 1.0
    assert deltas_of(event, (1.0,), ADD)[0] < 1.0


@pytest.mark.parametrize("event", [BOTH, events.renyi_filter(order=8.0, rdp=0.25)])
def test_they_are_refused_under_replace_one(event: EventTree) -> None:
    hidden = events.composed([events.gaussian(1.0), events.self_composed(event, 2)])
    for tree in (event, hidden, events.repeat_and_select(event, mean=2.0, shape=1.0)):
        with pytest.raises(ConfigError, match="replace_one"):
            epsilon_of(tree, DELTA, Relation.REPLACE_ONE)


def test_relation_and_noise_are_looked_for_inside_a_choice() -> None:
    passes = events.worst_of([events.fixed_order(1.0, 1), events.gaussian(1.0)])
    with pytest.raises(ConfigError, match="zero_out"):
        epsilon_of(passes, DELTA, ADD)
    assert math.isfinite(epsilon_of(passes, DELTA, Relation.ZERO_OUT).epsilon)
    bare = events.worst_of([events.gaussian(1.0), events.gaussian(0.0)])
    selected = events.repeat_and_select(bare, mean=2.0, shape=1.0)
    for tree in (bare, selected, events.composed([selected, events.gaussian(1.0)])):
        assert epsilon_of(tree, DELTA, ADD).epsilon == math.inf
        assert deltas_of(tree, (1.0,), ADD) == (1.0,)


def test_a_part_that_rdp_does_not_know_leaves_nothing_known() -> None:
    cut = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)
    event = events.worst_of([events.gaussian(1.0), cut])
    with pytest.raises(UnsupportedEventError):
        epsilon_of(event, DELTA, Relation.ZERO_OUT)
    assert rdp_at(canonical_bytes(event), 2.0, Relation.ZERO_OUT) == math.inf
