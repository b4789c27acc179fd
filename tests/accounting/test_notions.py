"""Other words for one event: closed forms where there are any, upper bounds everywhere."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from closed_forms import gaussian_delta
from scipy.stats import norm

from dpads.accounting import events
from dpads.accounting.accountant import Relation, delta_of, epsilon_of
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.notions import (
    GDP_TOLERANCE,
    AttackBounds,
    attack_bounds,
    gdp_fit,
    rdp_points,
    round_up_digits,
    zcdp_rho,
)
from dpads.accounting.renyi import epsilon_of_curve, rdp_curve
from dpads.errors import ConfigError, InputError

SLACK = 1 + events.SENSITIVITY_SLACK
ADD, ZERO, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT, Relation.REPLACE_ONE
GOLDEN_RUN = events.dp_sgd(0.766 * SLACK, 0.00178706, 2798)
MANY_SMALL = events.dp_sgd(20.0, 0.5, 400)  # many iterations with much noise: nearly one Gaussian
TRUNCATED = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)
GAUSSIANS = [
    (events.gaussian(2.0 * SLACK), 0.5),
    (events.self_composed(events.gaussian(8.0 * SLACK), 16), 0.5),
    (events.dp_sgd(4.0 * SLACK, 1.0, 9), 0.75),
    (
        events.composed([events.gaussian(5.0 * SLACK), events.gaussian(SLACK / 0.4)]),
        math.hypot(0.2, 0.4),
    ),
]


@pytest.mark.parametrize(("event", "mu"), GAUSSIANS)
def test_closed_forms_of_plain_gaussians(event: events.EventTree, mu: float) -> None:
    for relation, factor in ((ADD, 1.0), (ZERO, 1.0), (REPLACE, 2.0)):
        rho, fit = zcdp_rho(event, relation), gdp_fit(event, relation)
        assert rho is not None
        assert fit is not None
        assert rho == pytest.approx((factor * mu) ** 2 / 2, rel=1e-9)
        assert fit.mu == pytest.approx(factor * mu, rel=1e-9)
        assert rho >= (factor * mu) ** 2 / 2 * (1 - 1e-15)
        assert fit.fpr_floor == 0.0
    points = rdp_points(event, ADD)
    assert points is not None
    for order, divergence in zip(*points, strict=True):
        exact = order * mu**2 / 2
        assert exact * (1 - 1e-12) <= divergence <= exact * (1 + 2e-5)


@pytest.mark.parametrize("passes", [1, 4])
def test_closed_forms_of_passes_in_a_fixed_order(passes: int) -> None:
    event = events.fixed_order(2.0 * SLACK, passes)
    fit = gdp_fit(event, ZERO)
    assert fit is not None
    assert fit.mu == pytest.approx(math.sqrt(passes) / 2)
    assert zcdp_rho(event, ZERO) == pytest.approx(passes / 8)


def test_sampling_and_no_noise_have_no_rho() -> None:
    for event in (GOLDEN_RUN, TRUNCATED, events.for_group(GOLDEN_RUN, 3), events.dp_sgd(0, 0.1, 5)):
        assert zcdp_rho(event, ZERO) is None
    assert zcdp_rho(events.composed([GOLDEN_RUN, events.gaussian(100.0)]), ZERO) is None
    assert zcdp_rho(events.NO_OP, ZERO) is None


@pytest.mark.parametrize(
    "event", [GOLDEN_RUN, events.repeat_and_select(GOLDEN_RUN, mean=20, shape=1.0), MANY_SMALL]
)
def test_stated_rdp_is_the_accountants_rounded_up(event: events.EventTree) -> None:
    points = rdp_points(event, ADD)
    curve = rdp_curve(canonical_bytes(event), ADD)
    assert points is not None
    assert curve is not None
    computed = dict(zip(*curve, strict=True))
    for order, divergence in zip(*points, strict=True):
        assert computed[order] <= divergence <= computed[order] * (1 + 2e-5)
    assert len(points[0]) == np.count_nonzero(np.isfinite(curve[1]))
    epsilon = epsilon_of_curve(np.array(points[0]), np.array(points[1]), 1e-8)
    rdp_epsilon = epsilon_of(event, 1e-8, ADD).rdp_epsilon
    assert rdp_epsilon is not None
    assert rdp_epsilon <= epsilon <= rdp_epsilon * (1 + 1e-4)


def test_rdp_that_is_unknown_or_ignores_the_relation_is_not_stated() -> None:
    assert rdp_points(GOLDEN_RUN, REPLACE) is None
    assert rdp_points(TRUNCATED, ZERO) is None
    assert rdp_points(events.for_group(GOLDEN_RUN, 2), ZERO) is None
    assert rdp_points(events.dp_sgd(0.0, 0.1, 5), ZERO) is None


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_samplers_whose_order_shifts_need_zero_out(relation: Relation) -> None:
    for event in (events.fixed_order(1.0, 2), TRUNCATED):
        for notion in (rdp_points, zcdp_rho, gdp_fit, attack_bounds):
            with pytest.raises(ConfigError, match="zero_out"):
                notion(event, relation)


def test_malformed_events_are_refused_by_name() -> None:
    for notion in (rdp_points, zcdp_rho, gdp_fit, attack_bounds):
        with pytest.raises(InputError, match="kind"):
            notion({"kind": "magic"}, ADD)


def test_golden_gdp_does_not_fit_a_small_sampling_probability() -> None:
    # At epsilon 0.25, 1, 2, 3 and 4 mu would have to be 0.21, 0.26, 0.38, 0.48 and 0.57.
    assert gdp_fit(GOLDEN_RUN, ZERO) is None
    needed = []
    for epsilon in (0.25, 1.0, 2.0, 3.0, 4.0):
        delta, low, high = delta_of(GOLDEN_RUN, epsilon, ZERO), 0.01, 5.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if gaussian_delta(middle, epsilon) < delta else (low, middle)
        needed.append(high)
    assert needed == pytest.approx([0.21, 0.26, 0.38, 0.48, 0.57], abs=0.012)


@pytest.mark.parametrize("relation", [ADD, ZERO, REPLACE])
def test_gdp_where_it_fits_covers_the_profile(relation: Relation) -> None:
    fit = gdp_fit(MANY_SMALL, relation)
    assert fit is not None
    assert 0.0 < fit.fpr_floor < 1e-12
    furthest = epsilon_of(MANY_SMALL, 1e-12, relation).epsilon
    draw = random.Random(5)
    for epsilon in [0.0, furthest, *(draw.uniform(0.0, furthest) for _ in range(200))]:
        delta = delta_of(MANY_SMALL, epsilon, relation)
        assert gaussian_delta(fit.mu, epsilon) >= delta * (1 - 1e-9)
        assert gaussian_delta(fit.mu / (1 + 2 * GDP_TOLERANCE), epsilon) < delta
    # Above the floor, and only there, the Gaussian's likelihood ratio stays within what was compared.
    at = norm.isf(fit.fpr_floor)
    assert at * fit.mu - fit.mu**2 / 2 == pytest.approx(furthest, rel=1e-6)


def test_gdp_needs_a_profile_to_be_compared_with() -> None:
    assert gdp_fit(events.dp_sgd(0.0, 0.1, 5), ADD) is None
    assert gdp_fit(events.NO_OP, ADD) is None
    assert gdp_fit(events.dp_sgd(0.01, 0.5, 100), ADD) is None


@pytest.mark.parametrize("mu", [0.05, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("fpr", [1e-6, 1e-3, 0.05, 0.5, 0.99])
def test_an_attackers_gain_is_the_plain_gaussians(mu: float, fpr: float) -> None:
    bounds = attack_bounds(events.gaussian(SLACK / mu), ADD, fpr)
    advantage = 2 * float(norm.cdf(mu / 2)) - 1
    tpr = float(norm.cdf(norm.ppf(fpr) + mu))
    assert advantage <= bounds.advantage <= advantage * 1.002 + 1e-6
    assert tpr <= bounds.tpr <= tpr * 1.01 + 1e-6
    assert bounds.accuracy == (1 + bounds.advantage) / 2
    twice = attack_bounds(events.gaussian(SLACK / mu), REPLACE, fpr)
    assert twice.advantage >= 2 * float(norm.cdf(mu)) - 1


def _random_runs(count: int) -> list[tuple[float, float, int]]:
    draw = random.Random(1311)
    return [
        (10 ** draw.uniform(-5, -0.3), draw.uniform(0.4, 4.0), round(10 ** draw.uniform(0, 4)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(("sampling_prob", "noise", "iterations"), _random_runs(30))
def test_an_attackers_gain_is_what_every_epsilon_and_delta_allow(
    sampling_prob: float, noise: float, iterations: int
) -> None:
    event = events.dp_sgd(noise, sampling_prob, iterations)
    bounds = attack_bounds(event, ADD)
    assert 0.0 <= bounds.advantage <= 1.0
    assert bounds.fpr <= bounds.tpr <= 1.0
    assert bounds.advantage <= delta_of(event, 0.0, ADD) * (1 + 1e-9)
    assert bounds.tpr <= bounds.fpr + bounds.advantage
    for delta in (1e-4, 1e-6, 1e-9):
        epsilon = epsilon_of(event, delta, ADD).epsilon
        if epsilon < 300:
            share = (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1)
            assert bounds.advantage <= share * (1 + 1e-3) + 1e-9
            assert bounds.tpr <= math.exp(epsilon) * bounds.fpr + delta + 2e-5
    unsampled = attack_bounds(events.dp_sgd(noise, 1.0, iterations), ADD)
    assert bounds.advantage <= unsampled.advantage + 1e-9
    assert bounds.tpr <= unsampled.tpr + 1e-9


def test_an_attackers_gain_has_ends() -> None:
    nothing_hidden = AttackBounds(advantage=1.0, fpr=1e-3, tpr=1.0)
    assert attack_bounds(events.dp_sgd(0.0, 0.1, 5), ADD) == nothing_hidden
    assert attack_bounds(events.dp_sgd(2.0**-9, 0.9, 10**4), ADD) == nothing_hidden
    assert attack_bounds(events.NO_OP, ADD).advantage <= 1e-15
    assert attack_bounds(events.NO_OP, ADD).tpr == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 1.5, math.nan, True, "0.1"])
def test_a_rate_outside_zero_one_is_refused(fpr: float) -> None:
    with pytest.raises(ConfigError, match="false positive rate"):
        attack_bounds(GOLDEN_RUN, ADD, fpr)


def test_digits_are_rounded_up() -> None:
    draw = random.Random(3)
    for _ in range(500):
        value, digits = 10 ** draw.uniform(-30, 30), draw.randint(1, 8)
        shown = round_up_digits(value, digits)
        assert value <= shown <= value * (1 + 10 ** (1 - digits)) * (1 + 1e-15)
    assert round_up_digits(0.0) == 0.0
    assert round_up_digits(math.inf) == math.inf
