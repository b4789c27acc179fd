"""Epsilon: closed forms, published numbers, two accountants, and nothing that is too small."""

from __future__ import annotations

import math
from typing import Any

import dp_accounting as dp
import mpmath
import numpy as np
import pytest
from closed_forms import exact_gaussian, gaussian_delta

from dpads.accounting import events
from dpads.accounting.accountant import (
    Relation,
    Tier,
    default_delta,
    delta_of,
    epsilon_of,
    profile,
    rdp_epsilon,
    rough_epsilon,
    round_up,
    tier,
)
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.grid import VALUE_DISCRETIZATION_INTERVAL, grid_interval
from dpads.accounting.mixtures import Mixture, mixture_distribution
from dpads.accounting.precision import compose, composition_error
from dpads.accounting.relation import neighboring_relation
from dpads.errors import ConfigError, InputError

SLACK = 1 + events.SENSITIVITY_SLACK
ADD, ZERO, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT, Relation.REPLACE_ONE
GOLDEN_RUN = events.dp_sgd(0.766 * SLACK, 0.00178706, 2798)


@pytest.mark.parametrize("noise_multiplier", [0.3, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize(("relation", "sensitivity"), [(ADD, 1.0), (ZERO, 1.0), (REPLACE, 2.0)])
def test_closed_form_of_the_plain_gaussian(
    noise_multiplier: float, delta: float, relation: Relation, sensitivity: float
) -> None:
    exact = exact_gaussian(noise_multiplier, delta, sensitivity)
    loss = epsilon_of(events.gaussian(noise_multiplier * SLACK), delta, relation)
    assert exact - 1e-9 <= loss.epsilon <= exact * 1.0005 + 2e-3
    if relation is REPLACE:
        assert loss.rdp_epsilon is None
    else:
        assert loss.rdp_epsilon is not None
        assert loss.rdp_epsilon >= exact


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 1.0, 4.0])
@pytest.mark.parametrize(("relation", "sensitivity"), [(ADD, 1.0), (ZERO, 1.0), (REPLACE, 2.0)])
def test_closed_form_of_the_plain_gaussians_delta(
    noise_multiplier: float, epsilon: float, relation: Relation, sensitivity: float
) -> None:
    exact = gaussian_delta(sensitivity / noise_multiplier, epsilon)
    delta = delta_of(events.gaussian(noise_multiplier * SLACK), epsilon, relation)
    assert exact * (1 - 1e-12) <= delta <= exact * 1.001 + 1e-14


@pytest.mark.parametrize("delta", [1e-4, 1e-9])
def test_closed_form_of_passes_in_a_fixed_order(delta: float) -> None:
    event = events.fixed_order(2.0 * SLACK, 4)
    exact = exact_gaussian(1.0, delta)
    loss = epsilon_of(event, delta, ZERO)
    assert exact - 1e-9 <= loss.epsilon <= exact * 1.0005 + 2e-3
    assert loss.rdp_epsilon is not None
    assert loss.rdp_epsilon >= exact
    for relation in (ADD, REPLACE):
        with pytest.raises(ConfigError, match="zero_out"):
            epsilon_of(event, delta, relation)


def test_composition_of_plain_gaussians_is_one_gaussian() -> None:
    very_many = events.self_composed(events.gaussian(1e5 * SLACK), 10**10)
    assert epsilon_of(very_many, 1e-10, ADD).epsilon == pytest.approx(
        exact_gaussian(1, 1e-10), rel=1e-3
    )
    many = epsilon_of(events.self_composed(events.gaussian(30.0), 900), 1e-6, ADD).epsilon
    assert many == pytest.approx(epsilon_of(events.gaussian(1.0), 1e-6, ADD).epsilon, rel=1e-6)


@pytest.mark.parametrize("delta", [1e-8, 1e-12, 1e-15, 1e-17])
@pytest.mark.parametrize("least", [5.0, 20.0])
def test_unlike_plain_gaussians_compose_in_closed_form(least: float, delta: float) -> None:
    # Convolved in float64 ten of them came out too small from delta 1e-12 down.
    multipliers = [least + 0.1 * i for i in range(10)]
    event = events.composed(
        [
            events.gaussian(m * SLACK) if i % 2 else events.fixed_order(m * SLACK, 1)
            for i, m in enumerate(multipliers)
        ]
    )
    exact = exact_gaussian(1 / math.sqrt(math.fsum(1 / m**2 for m in multipliers)), delta)
    found = epsilon_of(event, delta, ZERO).epsilon
    assert exact - 1e-9 <= found <= exact * 1.02


def test_golden_rdp_ignores_replace_one_and_is_not_used() -> None:
    # dp-accounting's RDP gives 11.69 for a plain Gaussian at 0.5, delta 1e-6; the truth is 26.36.
    loss = epsilon_of(events.gaussian(0.5 * SLACK), 1e-6, REPLACE)
    assert loss.epsilon == pytest.approx(26.36, abs=5e-3)
    assert (loss.accountant, loss.rdp_epsilon) == ("pld", None)
    unaware = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    assert unaware.compose(dp.GaussianDpEvent(0.5)).get_epsilon(1e-6) == pytest.approx(
        11.69, abs=5e-3
    )


@pytest.mark.parametrize(
    ("event", "delta", "relation", "expected"),
    [
        (events.dp_sgd(0.5 * SLACK, 1e-4, 10**4), 1e-6, ADD, 1.955),
        (events.fixed_order(0.5 * SLACK, 1), 1e-6, ZERO, 10.997),
        (GOLDEN_RUN, 1e-6, ZERO, 1.30),
        (GOLDEN_RUN, 1e-8, ZERO, 2.12),
        (GOLDEN_RUN, 1e-10, ZERO, 3.00),
        (events.composed([GOLDEN_RUN] * 20), 1e-10, ZERO, 6.30),
        (events.dp_sgd(0.5 * SLACK, 1e-3, 1000), 1e-7, ADD, 5.172),
        (events.dp_sgd(0.7 * SLACK, 1e-3, 1000), 1e-7, ADD, 1.425),
        (events.dp_sgd(0.7 * SLACK, 1e-3, 5000), 1e-7, ADD, 1.850),
        (events.dp_sgd(0.6 * SLACK, 16384 / 37e6, 2259), 1e-8, ZERO, 2.6746),
    ],
)
def test_golden_numbers_by_pld(
    event: events.EventTree, delta: float, relation: Relation, expected: float
) -> None:
    loss = epsilon_of(event, delta, relation)
    assert loss.accountant == "pld"
    assert loss.epsilon == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(
    ("event", "delta", "expected"),
    [
        (GOLDEN_RUN, 1e-10, 3.63),
        (events.composed([GOLDEN_RUN] * 20), 1e-10, 6.78),
        (events.dp_sgd(0.5 * SLACK, 1e-3, 1000), 1e-7, 6.250),
        (events.dp_sgd(0.7 * SLACK, 1e-3, 1000), 1e-7, 2.476),
        (events.dp_sgd(0.7 * SLACK, 1e-3, 5000), 1e-7, 2.725),
        (events.dp_sgd(0.8 * SLACK, 1e-3, 10**5), 1e-12, 5.25),
    ],
)
def test_golden_numbers_by_rdp(event: events.EventTree, delta: float, expected: float) -> None:
    assert epsilon_of(event, delta, ZERO).rdp_epsilon == pytest.approx(expected, abs=0.011)


def test_golden_profile_at_1e_12_without_float64s_error() -> None:
    # The golden 3.87 holds float64's transform error, 3.84 is the same composition in 80 bits.
    epsilon = epsilon_of(GOLDEN_RUN, 1e-12, ZERO).epsilon
    assert epsilon == pytest.approx(3.84, abs=0.04)


def test_golden_dp_count_of_positives_costs_three_ten_thousandths() -> None:
    both = events.composed([GOLDEN_RUN, events.gaussian(100.0)])
    one = epsilon_of(GOLDEN_RUN, 1e-10, ZERO).epsilon
    assert epsilon_of(both, 1e-10, ZERO).epsilon - one == pytest.approx(3e-4, abs=1e-4)


@pytest.mark.parametrize(("shape", "expected"), [(0.0, 4.96), (1.0, 5.33), ("poisson", 5.36)])
def test_golden_best_of_a_random_number_of_runs(shape: float | str, expected: float) -> None:
    loss = epsilon_of(events.repeat_and_select(GOLDEN_RUN, mean=20, shape=shape), 1e-10, ZERO)
    assert (loss.accountant, loss.pld_epsilon) == ("rdp", None)
    assert loss.epsilon == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(
    ("group_size", "expected"), [(4, 9.70), pytest.param(16, 31.50, marks=pytest.mark.slow)]
)
def test_golden_user_with_at_most_k_examples(group_size: int, expected: float) -> None:
    loss = epsilon_of(events.for_group(GOLDEN_RUN, group_size), 1e-10, ZERO)
    assert loss.epsilon == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize(("deviations", "expected"), [(6, 2.6763), (3, 11.69)])
def test_golden_truncated_poisson(deviations: int, expected: float) -> None:
    cap = round(16384 + deviations * math.sqrt(16384))
    event = events.truncated_poisson(
        0.6 * SLACK, 16384 / 37e6, 2259, dataset_size=37_000_000, max_batch_size=cap
    )
    assert epsilon_of(event, 1e-8, ZERO).epsilon == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
@pytest.mark.parametrize(
    "event",
    [
        events.fixed_order(1.0, 1),
        events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30),
        events.composed([events.gaussian(1.0), events.fixed_order(1.0, 1)]),
    ],
)
def test_samplers_whose_order_shifts_need_zero_out(
    event: events.EventTree, relation: Relation
) -> None:
    # dp-accounting itself would let these through.
    with pytest.raises(ConfigError, match="zero_out"):
        epsilon_of(event, 1e-6, relation)
    assert epsilon_of(event, 1e-6, ZERO).epsilon > 0


def test_what_no_accountant_knows_is_never_caught() -> None:
    with pytest.raises(dp.UnsupportedEventError):
        epsilon_of(events.repeat_and_select(GOLDEN_RUN, mean=5, shape=1.0), 1e-6, REPLACE)
    with pytest.raises(dp.UnsupportedEventError):
        epsilon_of(events.for_group(GOLDEN_RUN, 2), 1e-6, REPLACE)


def test_delta_of_what_only_rdp_knows() -> None:
    event = events.repeat_and_select(GOLDEN_RUN, mean=20, shape=1.0)
    epsilon = epsilon_of(event, 1e-8, ADD).epsilon
    assert delta_of(event, epsilon, ADD) == pytest.approx(1e-8, rel=1e-6)
    assert 0.5 < delta_of(event, 0.0, ADD) <= 1.0
    with pytest.raises(dp.UnsupportedEventError):
        delta_of(event, 1.0, REPLACE)


@pytest.mark.parametrize("relation", list(Relation))
def test_delta_of_no_noise_is_one(relation: Relation) -> None:
    assert delta_of(events.dp_sgd(0.0, 0.01, 10), 1e6, relation) == 1.0
    assert delta_of(events.NO_OP, 0.0, relation) <= 1e-15


@pytest.mark.parametrize("epsilon", [-1e-9, math.nan, math.inf, -math.inf, True, "1", None])
def test_epsilon_that_is_no_finite_number_from_0_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        delta_of(GOLDEN_RUN, epsilon, ADD)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_delta_too_needs_the_relation_of_its_sampler(relation: Relation) -> None:
    with pytest.raises(ConfigError, match="zero_out"):
        delta_of(events.fixed_order(1.0, 1), 1.0, relation)


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "gaussian", "noise_multiplier": math.nan},
        {"kind": "gaussian", "noise_multiplier": {1, 2}},
        {"kind": "self_composed", "event": events.gaussian(1.0), "count": math.inf},
        None,
    ],
)
def test_events_that_json_cannot_hold_are_refused_by_name(event: Any) -> None:
    for of in (epsilon_of, delta_of, rough_epsilon, rdp_epsilon):
        with pytest.raises(InputError, match="event"):
            of(event, 0.5, ADD)


@pytest.mark.parametrize("sampling_prob", [5e-324, 1e-16, 1 - 2.0**-53])
@pytest.mark.parametrize("noise", [0.3, 1e9])
@pytest.mark.parametrize("relation", list(Relation))
def test_extreme_sampling_neither_crashes_nor_flatters(
    sampling_prob: float, noise: float, relation: Relation
) -> None:
    event = events.dp_sgd(noise, sampling_prob, 3)
    loss = epsilon_of(event, 1e-9, relation)
    everyone = epsilon_of(events.dp_sgd(noise, 1.0, 3), 1e-9, relation).epsilon
    assert 0.0 <= loss.epsilon <= everyone * (1 + 1e-3) + 2e-3
    assert delta_of(event, 0.0, relation) > 0.0
    if sampling_prob > 0.5 and relation is not REPLACE:  # there the rest caps the loss
        assert loss.epsilon >= everyone * (1 - 1e-3) - 2e-3


def test_a_truncated_sample_of_next_to_nothing_is_refused() -> None:
    event = events.truncated_poisson(1.0, 1e-300, 1, dataset_size=10, max_batch_size=3)
    with pytest.raises(InputError, match="sampling_prob"):
        epsilon_of(event, 1e-9, ZERO)


def _extended_precision() -> bool:
    return bool(np.finfo(np.longdouble).eps < np.finfo(np.float64).eps)


@pytest.mark.skipif(not _extended_precision(), reason="this platform's long double is float64")
@pytest.mark.parametrize(
    ("sampling_prob", "noise", "iterations", "delta"),
    [(0.00178706, 0.766, 2798, 1e-12), (1e-3, 2.0, 10**5, 1e-9), (1e-3, 0.8, 10**4, 1e-11)],
)
def test_float64s_composition_error_is_within_its_bound(
    sampling_prob: float, noise: float, iterations: int, delta: float
) -> None:
    event = events.dp_sgd(noise, sampling_prob, iterations)
    relation = neighboring_relation(ADD)
    float64 = compose(event, relation, 1e-3, extended=False)
    extended = compose(event, relation, 1e-3, extended=True)
    bound = composition_error(iterations, extended=False)
    for epsilon in np.linspace(0.0, 12.0, 40):
        error = float64.get_delta_for_epsilon(epsilon) - extended.get_delta_for_epsilon(epsilon)
        assert abs(float(error)) <= bound
    interval = grid_interval(canonical_bytes(event), delta, ADD)
    exact = compose(event, relation, interval, extended=True).get_epsilon_for_delta(delta)
    ours = epsilon_of(event, delta, ADD).pld_epsilon
    assert ours is not None
    assert float(exact) <= ours <= float(exact) * 1.01


@pytest.mark.parametrize(
    ("sampling_prob", "noise", "iterations"),
    [(1e-3, 0.8, 2798), (0.1, 2.0, 10), (1e-3, 2.0, 10**5)],
)
def test_extended_composition_is_dp_accountings_with_wider_floats(
    sampling_prob: float, noise: float, iterations: int
) -> None:
    relation = neighboring_relation(ADD)
    ours = compose(events.dp_sgd(noise, sampling_prob, iterations), relation, 1e-3, extended=True)
    one = mixture_distribution(noise / SLACK, [1.0], [sampling_prob], 1e-3)
    pmfs = [pmf.to_dense_pmf() for pmf in (one._pmf_remove, one._pmf_add)]
    for pmf in pmfs:
        pmf._probs = np.asarray(pmf._probs, np.longdouble)
    theirs = type(one)(*pmfs).self_compose(iterations)
    bound = composition_error(iterations, extended=True)
    for epsilon in np.linspace(0.0, 12.0, 40):
        error = ours.get_delta_for_epsilon(epsilon) - theirs.get_delta_for_epsilon(epsilon)
        assert abs(float(error)) <= bound + 1e-20


@pytest.mark.parametrize("noise", [0.5, 0.766, 2.0, 20.0])
@pytest.mark.parametrize("sampling_prob", [1e-5, 1e-3, 0.1, 0.9])
def test_one_iteration_is_dp_accountings_but_for_its_rounding(
    sampling_prob: float, noise: float
) -> None:
    ours = mixture_distribution(noise, [1.0], [sampling_prob], 1e-3)
    theirs = dp.pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise, value_discretization_interval=1e-3, sampling_prob=sampling_prob
    )
    for epsilon in np.linspace(0.0, 5.0, 40):
        expected = theirs.get_delta_for_epsilon(epsilon)
        assert ours.get_delta_for_epsilon(epsilon) == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize(
    ("sampling_prob", "noise"), [(1e-3, 2.0), (1e-3, 0.8), (0.1, 2.0), (1e-9, 1.0)]
)
def test_one_iterations_divergences_keep_their_digits(
    sampling_prob: float, noise: float, removed: bool
) -> None:
    mixture = Mixture(np.array([1.0 / noise]), np.array([sampling_prob]))
    most = -math.log1p(-sampling_prob)  # the loss never exceeds this where the unit was out
    epsilons = np.linspace(-0.9 * most, 0.9 * most, 15)
    with mpmath.workdps(60):
        q, stddev = mpmath.mpf(sampling_prob), mpmath.mpf(noise)
        exact = []
        for epsilon in map(mpmath.mpf, epsilons.tolist()):
            ratio = mpmath.exp(epsilon if removed else -epsilon)
            at = stddev**2 * mpmath.log((ratio - (1 - q)) / q) + mpmath.mpf(1) / 2
            side = -1 if removed else 1
            plain = mpmath.ncdf(side * at / stddev)
            mixed = (1 - q) * plain + q * mpmath.ncdf(side * (at - 1) / stddev)
            pair = (mixed, plain) if removed else (plain, mixed)
            exact.append(float(pair[0] - mpmath.exp(epsilon) * pair[1]))
    deltas = mixture._delta_removed(epsilons) if removed else mixture._delta_added(epsilons)
    assert deltas == pytest.approx(exact, rel=1e-11, abs=1e-17)


def test_no_number_is_too_small_where_float64_fails() -> None:
    # dp-accounting's float64 PLD reads 3.319 here; the same algorithm in 80 bits reads 3.333.
    event = events.dp_sgd(2.0 * SLACK, 1e-3, 10**6)
    naive = dp.pld.PLDAccountant(value_discretization_interval=1e-4)
    naive.compose(to_dp_event(event))
    ours = epsilon_of(event, 1e-10, ADD)
    assert ours.epsilon > naive.get_epsilon(1e-10)
    assert ours.epsilon >= 3.333


def test_epsilon_falls_with_noise_and_rises_with_iterations_and_sampling() -> None:
    by_noise = [epsilon_of(events.dp_sgd(s, 0.01, 500), 1e-6, ADD).epsilon for s in (0.6, 1, 2, 9)]
    assert by_noise == sorted(by_noise, reverse=True)
    by_count = [
        epsilon_of(events.dp_sgd(1.0, 0.01, t), 1e-6, ADD).epsilon
        for t in (1, 10, 500, 9_000, 11_000, 40_000)
    ]
    assert by_count == sorted(by_count)
    by_prob = [
        epsilon_of(events.dp_sgd(1.0, q, 500), 1e-6, ADD).epsilon for q in (1e-4, 1e-2, 0.5, 1.0)
    ]
    assert by_prob == sorted(by_prob)
    by_delta = [loss.epsilon for loss in profile(GOLDEN_RUN, ZERO)]
    assert by_delta == sorted(by_delta)


@pytest.mark.parametrize("relation", list(Relation))
def test_no_noise_is_infinite_epsilon(relation: Relation) -> None:
    assert epsilon_of(events.dp_sgd(0.0, 0.01, 10), 1e-6, relation).epsilon == math.inf
    event = {"kind": "gaussian", "noise_multiplier": 0.0}
    assert epsilon_of(event, 1e-6, relation).epsilon == math.inf


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("noise", [1e-300, 1e-3, 0.02, 1e9, 1e200])
@pytest.mark.parametrize("sampling_prob", [1e-6, 1.0])
def test_extreme_noise_neither_crashes_nor_flatters(
    noise: float, sampling_prob: float, relation: Relation
) -> None:
    loss = epsilon_of(events.dp_sgd(noise, sampling_prob, 1000), 1e-6, relation)
    assert loss.epsilon >= 0
    if noise < 1:
        assert loss.epsilon > 100 or loss.epsilon == math.inf


@pytest.mark.parametrize("delta", [0, 0.0, 1, 1.0, -1e-6, 2.0, math.nan, math.inf, True, "1e-6"])
def test_delta_outside_zero_one_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon_of(GOLDEN_RUN, delta, ADD)


def test_a_denormal_delta_gives_a_bound() -> None:
    loss = epsilon_of(GOLDEN_RUN, 1e-320, ADD)
    assert loss.accountant == "rdp"
    assert epsilon_of(GOLDEN_RUN, 1e-12, ADD).epsilon < loss.epsilon < math.inf


def test_no_event_costs_nothing() -> None:
    assert epsilon_of(events.NO_OP, 1e-6, ADD).epsilon == 0.0


def test_the_grid_is_never_coarser_than_it_says_for_ordinary_runs() -> None:
    assert grid_interval(canonical_bytes(GOLDEN_RUN), 1e-8, ADD) == VALUE_DISCRETIZATION_INTERVAL


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (1, 1e-8),
        (71_000, 1e-8),
        (10**7, 1e-8),
        (10**7 + 1, 1e-9),
        (37_000_000, 1e-9),
        (10**8, 1e-9),
        (10**9, 1e-10),
    ],
)
def test_default_delta_is_a_power_of_ten_below_a_tenth_over_n(units: int, expected: float) -> None:
    assert default_delta(units) == expected
    assert default_delta(units) * units <= 0.1 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [(0.0, 0.0), (2.9901, 3.0), (3.0, 3.0), (3.0000001, 3.01), (0.001, 0.01), (2.675, 2.68)],
)
def test_printed_epsilon_is_rounded_up(epsilon: float, shown: float) -> None:
    assert round_up(epsilon) == shown
    assert round_up(math.inf) == math.inf


def test_tier_needs_a_small_delta() -> None:
    # The same run is tier 1 at delta 1e-5 and tier 2 at 1e-10.
    assert tier(0.97, 1e-5, 37_000_000) is None
    assert tier(2.99, 1e-10, 37_000_000) is Tier.TIER_2
    assert tier(1.0, 1e-8, 1000) is Tier.TIER_1
    assert tier(10.01, 1e-8, 1000) is Tier.TIER_3
    assert tier(1.0, 1e-10, None) is None
