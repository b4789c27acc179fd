"""Many random runs: the two accountants agree, and epsilon and delta move as they must."""

from __future__ import annotations

import math
import random

import pytest

from dpads.accounting import events
from dpads.accounting.accountant import (
    Relation,
    delta_of,
    deltas_of,
    epsilon_of,
    rdp_epsilon,
    rough_epsilon,
)
from dpads.accounting.grid import VALUE_DISCRETIZATION_INTERVAL

ADD, ZERO = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT


def _random_runs(count: int) -> list[tuple[float, float, int, float]]:
    draw = random.Random(2211)
    runs = []
    for _ in range(count):
        sampling_prob = 10 ** draw.uniform(-5, -0.5)
        iterations = round(10 ** draw.uniform(0, 4.3))
        noise = draw.uniform(0.4, 4.0)
        runs.append((sampling_prob, noise, iterations, 10 ** draw.uniform(-10, -4)))
    return runs


@pytest.mark.parametrize(("sampling_prob", "noise", "iterations", "delta"), _random_runs(60))
def test_pld_is_not_above_rdp(
    sampling_prob: float, noise: float, iterations: int, delta: float
) -> None:
    event = events.dp_sgd(noise, sampling_prob, iterations)
    loss = epsilon_of(event, delta, ADD)
    assert loss.pld_epsilon is not None
    assert loss.rdp_epsilon is not None
    if loss.rdp_epsilon < 500:
        assert loss.pld_epsilon <= loss.rdp_epsilon + VALUE_DISCRETIZATION_INTERVAL
    assert loss.epsilon == min(loss.pld_epsilon, loss.rdp_epsilon)
    assert epsilon_of(event, delta, ZERO).epsilon == loss.epsilon
    assert rough_epsilon(event, delta, ADD) >= loss.epsilon - 1e-9
    assert rdp_epsilon(event, delta, ADD) == loss.rdp_epsilon


@pytest.mark.slow
@pytest.mark.parametrize(("sampling_prob", "noise", "iterations", "delta"), _random_runs(260)[60:])
def test_pld_is_not_above_rdp_at_two_hundred_more(
    sampling_prob: float, noise: float, iterations: int, delta: float
) -> None:
    loss = epsilon_of(events.dp_sgd(noise, sampling_prob, iterations), delta, ADD)
    assert loss.pld_epsilon is not None
    assert loss.rdp_epsilon is not None
    if loss.rdp_epsilon < 500:
        assert loss.pld_epsilon <= loss.rdp_epsilon + VALUE_DISCRETIZATION_INTERVAL


@pytest.mark.parametrize(("sampling_prob", "noise", "iterations", "_"), _random_runs(25))
def test_below_1e_10_the_smaller_bound_is_reported(
    sampling_prob: float, noise: float, iterations: int, _: float
) -> None:
    event = events.dp_sgd(noise, sampling_prob, iterations)
    before = epsilon_of(event, 1e-10, ADD).epsilon
    for delta in (1e-11, 1e-13, 1e-15, 1e-18, 1e-100):
        loss = epsilon_of(event, delta, ADD)
        assert loss.pld_epsilon is not None
        assert loss.rdp_epsilon is not None
        assert loss.epsilon == min(loss.pld_epsilon, loss.rdp_epsilon) < math.inf
        assert (loss.accountant == "rdp") == (loss.rdp_epsilon < loss.pld_epsilon)
        assert loss.epsilon >= before - 1e-9
        before = loss.epsilon


@pytest.mark.parametrize(("sampling_prob", "noise", "iterations", "delta"), _random_runs(40))
def test_epsilon_falls_with_noise_and_rises_with_iterations_everywhere(
    sampling_prob: float, noise: float, iterations: int, delta: float
) -> None:
    epsilon = epsilon_of(events.dp_sgd(noise, sampling_prob, iterations), delta, ADD).epsilon
    more_noise = events.dp_sgd(noise * 1.1, sampling_prob, iterations)
    longer = events.dp_sgd(noise, sampling_prob, math.ceil(iterations * 1.2))
    assert epsilon_of(more_noise, delta, ADD).epsilon < epsilon or epsilon == 0.0
    assert epsilon_of(longer, delta, ADD).epsilon > epsilon or epsilon == 0.0


@pytest.mark.parametrize(("sampling_prob", "noise", "iterations", "delta"), _random_runs(40))
def test_delta_is_the_inverse_of_epsilon_from_above(
    sampling_prob: float, noise: float, iterations: int, delta: float
) -> None:
    event = events.dp_sgd(noise, sampling_prob, iterations)
    for relation in Relation:
        epsilon = epsilon_of(event, delta, relation).epsilon
        if epsilon < 300.0:
            back = delta_of(event, epsilon, relation)
            assert back <= delta * 1.05
            assert back >= delta * 0.8 or epsilon < 1.0  # a small epsilon is rounded up by the grid
    points = (0.0, 0.01, 0.5, 1.0, 5.0, 1e3, 1e300)
    deltas = deltas_of(event, points, ADD)
    assert list(deltas) == sorted(deltas, reverse=True)
    assert all(0.0 < bound <= 1.0 for bound in deltas)
    assert deltas[2] == delta_of(event, 0.5, ADD)
