"""Samplers own their event; one that disagrees with its relation or its event cannot be built."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

import dpads
from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of
from dpads.accounting.schemes import FixedOrderScheme, TruncatedPoissonScheme, smallest_cap
from dpads.noise import RunKeys
from dpads.plan import DpSgdConfig, Plan, PrivacySpec, calibrate, resolve
from dpads.sampling import FixedOrderSampler, PoissonSampler, TruncatedPoissonSampler, sampler_of

KEYS = RunKeys(bytes(32), "0" * 64)
OTHERS = ["truncated_poisson", "fixed_order"]


def plan_of(sampler: str, **keys: Any) -> Plan:
    spec = PrivacySpec(
        **{"noise_multiplier": 1.0, "sampler": sampler, "dataset_size": 1000, **keys}
    )
    return resolve(spec, expected_batch_size=100, epochs=2.5)


def test_a_truncated_batch_is_any_subset_of_the_poisson_batch_as_likely() -> None:
    scheme = TruncatedPoissonScheme(0.3, 40, smallest_cap(40, 0.3))
    assert scheme.max_batch_size == 30
    # far below what is accounted for, so that nearly every batch is cut
    object.__setattr__(scheme, "max_batch_size", 8)
    sampler = TruncatedPoissonSampler(scheme, 4000, KEYS.key("a"), KEYS.key("b"))
    whole = PoissonSampler(0.3, 4000, KEYS.key("a"))
    counts, cut = np.zeros(40), 0
    for iteration in range(4000):
        drawn, kept = whole.units(iteration, 40), sampler.units(iteration, 40)
        assert len(kept) == min(len(drawn), 8)
        assert np.isin(kept, drawn).all()
        assert (np.diff(kept) > 0).all()
        counts[kept] += 1
        cut += len(drawn) > 8
    assert cut > 3000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_fixed_order_pass_has_every_unit_once() -> None:
    plan = plan_of("fixed_order", dataset_size=950)
    sampler = sampler_of(plan.mechanism, KEYS)
    assert isinstance(sampler, FixedOrderSampler)
    assert plan.mechanism.iterations == 24  # ceil(2.5 * 950 / 100)
    batches = [sampler.units(t, 950) for t in range(24)]
    np.testing.assert_array_equal(np.concatenate(batches[:10]), np.arange(950))
    np.testing.assert_array_equal(batches[10], batches[0])
    assert sampler.event(1.0) == events.fixed_order(1.0, 3)  # a pass that was begun counts whole
    assert plan.event() == sampler.event(1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_sampler_relation_and_event_agree_or_nothing_is_built(name: str) -> None:
    plan = plan_of(name)
    assert plan.relation is Relation.ZERO_OUT
    sampler = sampler_of(plan.mechanism, KEYS)
    assert plan.event() == sampler.event(plan.mechanism.noise_multiplier)
    assert plan.loss.relation is Relation.ZERO_OUT
    for relation in (Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE):
        with pytest.raises(dpads.ConfigError, match="zero_out"):
            dataclasses.replace(plan, relation=relation)
        with pytest.raises(dpads.ConfigError, match="zero_out"):
            epsilon_of(plan.event(), 1e-6, relation)
    with pytest.raises(dpads.ConfigError, match="number of units in the training rows"):
        sampler.units(0, 999)
    with pytest.raises(dpads.ConfigError, match="Expected an iteration"):
        sampler.units(plan.mechanism.iterations, 1000)


def test_no_sampler_but_poisson_is_amplified_or_cheap() -> None:
    losses = {name: plan_of(name, delta=1e-6).loss.epsilon for name in ["poisson", *OTHERS]}
    assert losses["fixed_order"] > 2 * losses["poisson"]
    one_gaussian = epsilon_of(
        events.self_composed(events.gaussian(1.0), 3), 1e-6, Relation.ZERO_OUT
    )
    assert losses["fixed_order"] == pytest.approx(one_gaussian.epsilon, rel=1e-6)
    poisson = plan_of("poisson", delta=1e-6)
    zero_out = epsilon_of(poisson.event(), 1e-6, Relation.ZERO_OUT).epsilon
    assert zero_out <= losses["truncated_poisson"] <= 1.05 * zero_out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sampler": "shuffled"}, "poisson, truncated_poisson, fixed_order"),
        ({"sampler": "poissson"}, 'Did you mean "poisson"'),
        ({"max_batch_size": 200}, "truncated_poisson"),
        ({"sampler": "truncated_poisson", "max_batch_size": 150}, "six|6 standard deviations"),
        ({"sampler": "truncated_poisson", "max_batch_size": 0}, "whole number >= 1"),
        ({"sampler": "fixed_order", "sampling_prob": 0.1, "iterations": 3}, "in order"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(dpads.ConfigError, match=message):
        plan_of(keys.pop("sampler", "poisson"), **keys)


def test_a_sampler_that_needs_a_public_number_of_units_asks_for_it() -> None:
    for name in OTHERS:
        spec = PrivacySpec(noise_multiplier=1.0, delta=1e-6, sampler=name)
        with pytest.raises(dpads.ConfigError, match="number of units"):
            resolve(spec, expected_batch_size=10, epochs=1)
    with pytest.raises(dpads.ConfigError, match="number of units"):
        DpSgdConfig(
            l2_clip_norm=1.0,
            noise_multiplier=1.0,
            sampling_prob=0.1,
            iterations=5,
            expected_batch_size=10,
            sampler="fixed_order",
        )
    with pytest.raises(dpads.ConfigError, match="max_batch_size exactly"):
        dataclasses.replace(plan_of("poisson").mechanism, max_batch_size=500)


@pytest.mark.parametrize("name", OTHERS)
def test_a_budget_is_met_from_below_under_every_sampler(name: str) -> None:
    plan = plan_of(name, epsilon=3.0, noise_multiplier=None, delta=1e-6)
    assert 3.0 * (1 - 1e-3) <= plan.loss.epsilon <= 3.0
    assert plan.allowed_iterations == plan.mechanism.iterations
    for solve_for in ("iterations", "expected_batch_size"):
        smaller = calibrate(
            plan.mechanism, epsilon=2.0, delta=1e-6, relation="zero_out", solve_for=solve_for
        )
        assert epsilon_of(smaller.event(), 1e-6, Relation.ZERO_OUT).epsilon <= 2.0


def test_a_cap_that_never_cuts_is_plain_poisson() -> None:
    scheme = TruncatedPoissonScheme(0.5, 20, 20)
    assert scheme.event(1.0, 3) == events.dp_sgd(1.0, 0.5, 3)
    assert FixedOrderScheme(4).event(1.0, 0) == events.NO_OP


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_each_sampler_states_its_event(name: str, train_store: Any) -> None:
    run = dpads.train(
        train_store,
        model=dpads.models.Logistic(),
        privacy=PrivacySpec(noise_multiplier=1.0, delta=1e-6, sampler=name),
        expected_batch_size=300,
        epochs=1,
    )
    data = run.statement().data
    assert data["mechanism"]["sampler"]["kind"] == name
    assert data["definition"]["adjacency"]["relation"] == "zero_out"
    assert data["accounting"]["dp_event"] == run.plan.event()
    with pytest.raises(dpads.ConfigError, match="number of units in the training rows"):
        dpads.train(
            train_store,
            model=dpads.models.Logistic(),
            privacy=PrivacySpec(noise_multiplier=1.0, dataset_size=2999, sampler=name),
            expected_batch_size=300,
            epochs=1,
        )
