"""The plan: resolved from public numbers, equal on neighbouring stores, within its budget."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from dpads.accounting.accountant import epsilon_of
from dpads.errors import BudgetError, ConfigError
from dpads.plan import DpSgdConfig, Plan, PrivacySpec, Relation, calibrate, resolve
from dpads.plan_rows import DEFAULT_RELEASES, plan_table

CONFIG = DpSgdConfig(
    l2_clip_norm=1.0,
    noise_multiplier=1.0,
    sampling_prob=0.01,
    iterations=1000,
    expected_batch_size=100,
)


def _plan(**privacy: Any) -> Plan:
    return resolve(PrivacySpec(**privacy), expected_batch_size=100, epochs=3, store_units=10_000)


def test_public_dataset_size_resolves_everything() -> None:
    plan = _plan(epsilon=3.0, dataset_size=20_000)
    assert plan.mechanism.sampling_prob == 100 / 20_000
    assert plan.mechanism.iterations == 600
    assert plan.delta == 1e-8
    assert plan.relation is Relation.ADD_OR_REMOVE_ONE
    assert plan.dataset_size_status == "public"
    assert 3.0 * 0.999 <= plan.loss.epsilon <= 3.0
    assert plan.allowed_iterations == 600
    assert epsilon_of(plan.event(), plan.delta, plan.relation) == plan.loss


@pytest.mark.parametrize(
    "privacy",
    [
        {"epsilon": 3.0, "dataset_size": 20_000},
        {"noise_multiplier": 1.0, "dataset_size": 20_000, "delta": 1e-6},
        {"epsilon": 2.0, "delta": 1e-7, "sampling_prob": 0.01, "iterations": 50},
        {"noise_multiplier": 0.0, "dataset_size": 20_000},
    ],
)
def test_plan_is_equal_byte_for_byte_on_neighbouring_stores(privacy: dict[str, Any]) -> None:
    plans = {
        resolve(
            PrivacySpec(**privacy), expected_batch_size=100, epochs=3, store_units=units
        ).to_json()
        for units in (None, 1, 9_999, 10_000, 10_001)
    }
    assert len(plans) == 1


def test_numbers_that_are_equal_give_equal_bytes() -> None:
    one = _plan(epsilon=3, dataset_size=np.int64(20_000), delta=1e-6)
    other = _plan(epsilon=3.0, dataset_size=20_000, delta=np.float64(1e-6))
    assert one.to_json() == other.to_json()


def test_without_a_public_size_the_stores_count_and_zero_out_are_used() -> None:
    plan = _plan(epsilon=3.0, delta=1e-6)
    assert plan.mechanism.sampling_prob == 0.01
    assert plan.relation is Relation.ZERO_OUT
    assert (plan.dataset_size, plan.dataset_size_status) == (10_000, "asserted_public")


def test_sampling_prob_and_iterations_need_no_count_when_delta_is_given() -> None:
    plan = _plan(noise_multiplier=1.0, delta=1e-6, sampling_prob=0.02, iterations=7)
    assert (plan.mechanism.sampling_prob, plan.mechanism.iterations) == (0.02, 7)
    assert (plan.dataset_size, plan.dataset_size_status) == (None, "private")
    assert plan.relation is Relation.ADD_OR_REMOVE_ONE
    assert plan.default_delta is None
    # Without delta the count enters through its default, so it must be called public.
    plan = _plan(noise_multiplier=1.0, sampling_prob=0.02, iterations=7)
    assert (plan.dataset_size, plan.dataset_size_status) == (10_000, "asserted_public")
    assert plan.relation is Relation.ZERO_OUT


def test_plan_survives_json() -> None:
    for privacy in (
        {"epsilon": 3.0, "dataset_size": 20_000},
        {"noise_multiplier": 1.0, "unit": "user", "max_examples_per_unit": 4},
    ):
        plan = _plan(**privacy)
        again = Plan.from_dict(json.loads(plan.to_json()))
        assert again == plan
        assert again.to_json() == plan.to_json()
    free = resolve(
        PrivacySpec(noise_multiplier=0),
        expected_batch_size=10,
        epochs=1,
        l2_clip_norm=math.inf,
        store_units=100,
    )
    assert Plan.from_dict(json.loads(free.to_json())) == free


@pytest.mark.parametrize(
    ("units", "size", "epochs", "iterations"),
    [
        (1000, 10, 3, 300),
        (71_000, 1024, 5, 347),
        (100, 100, 1, 1),
        (70, 7, 0.7, 7),
        (10, 1, 0.3, 3),
        (49, 1, 1, 49),
    ],
)
def test_iterations_are_the_epochs_rounded_up_exactly(
    units: int, size: int, epochs: float, iterations: int
) -> None:
    plan = resolve(
        PrivacySpec(noise_multiplier=1.0, dataset_size=units),
        expected_batch_size=size,
        epochs=epochs,
    )
    assert plan.mechanism.iterations == iterations


def test_a_run_stops_before_the_iteration_that_would_exceed_the_budget() -> None:
    plan = _plan(epsilon=3.0, dataset_size=20_000)
    careless = Plan(
        privacy=plan.privacy,
        mechanism=DpSgdConfig(**{**plan.mechanism.to_dict(), "iterations": 5000}),
        delta=plan.delta,
        relation=plan.relation,
        dataset_size=plan.dataset_size,
        dataset_size_status=plan.dataset_size_status,
    )
    allowed = careless.allowed_iterations
    assert 595 <= allowed < 5000
    event = DpSgdConfig(**{**plan.mechanism.to_dict(), "iterations": allowed}).event()
    assert epsilon_of(event, plan.delta, plan.relation).epsilon <= 3.0


def test_epsilon_spent_never_falls_and_never_flatters() -> None:
    plan = _plan(epsilon=3.0, dataset_size=20_000)
    spent = [plan.epsilon_spent(t) for t in range(601)]
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert spent[-1] == plan.loss.epsilon
    assert len(set(spent)) <= 17
    for done in (1, 17, 100, 345, 599):
        event = DpSgdConfig(**{**plan.mechanism.to_dict(), "iterations": done}).event()
        assert plan.epsilon_spent(done) >= epsilon_of(event, plan.delta, plan.relation).epsilon


def test_noise_multiplier_zero_is_training_without_privacy() -> None:
    plan = _plan(noise_multiplier=0, dataset_size=20_000)
    assert not plan.is_private
    assert plan.loss.epsilon == math.inf
    assert plan.allowed_iterations == plan.mechanism.iterations
    assert plan.epsilon_spent(5) == math.inf
    assert plan.mechanism.noise_per_coordinate == 0.0


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({}, "got neither"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "got both"),
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": "3"}, "epsilon"),
        ({"noise_multiplier": -0.1}, "noise_multiplier"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"noise_multiplier": 5e-324}, r"noise_multiplier to be 0 or at least 2\^-10"),
        ({"noise_multiplier": 2.0**-10 * 0.999}, r"noise_multiplier to be 0 or at least 2\^-10"),
        ({"noise_multiplier": "1"}, "noise_multiplier"),
        ({"epsilon": 1.0, "delta": 0.0}, "delta"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta"),
        ({"epsilon": 1.0, "delta": 1}, "delta"),
        ({"epsilon": 1.0, "dataset_size": 0}, "dataset_size"),
        ({"epsilon": 1.0, "dataset_size": 1e6}, "dataset_size"),
        ({"epsilon": 1.0, "dataset_size": True}, "dataset_size"),
        ({"epsilon": 1.0, "dataset_size": 10**41}, "dataset_size to be at most .* Give the number"),
        (
            {"epsilon": 1.0, "sampling_prob": 0.1, "iterations": 10**9 + 1},
            "iterations to be at most .* Use fewer",
        ),
        ({"epsilon": 1.0, "unit": "users"}, '"user"'),
        ({"epsilon": 1.0, "unit": "user"}, "max_examples_per_unit"),
        ({"epsilon": 1.0, "unit": "user", "max_examples_per_unit": 0}, "max_examples_per_unit"),
        ({"epsilon": 1.0, "sampling_prob": 0.1}, "iterations beside sampling_prob"),
        ({"epsilon": 1.0, "iterations": 5}, "sampling_prob beside iterations"),
        ({"epsilon": 1.0, "sampling_prob": 1.5, "iterations": 5}, r"sampling_prob in \(0, 1\]"),
        ({"epsilon": 1.0, "sampling_prob": 0.0, "iterations": 5}, "sampling_prob"),
        ({"epsilon": 1.0, "sampling_prob": 0.1, "iterations": 0}, "iterations"),
    ],
)
def test_specs_that_are_refused(privacy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrivacySpec(**privacy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": 2.0**-11}, r"noise_multiplier to be 0 or at least 2\^-10"),
        ({"l2_clip_norm": 0.0}, "l2_clip_norm"),
        ({"l2_clip_norm": math.nan}, "l2_clip_norm"),
        ({"l2_clip_norm": math.inf}, "finite l2_clip_norm"),
        ({"expected_batch_size": 0}, "expected_batch_size"),
        ({"expected_batch_size": 10.5}, "expected_batch_size"),
        ({"expected_batch_size": 10**400}, "expected_batch_size to be at most .* smaller batch"),
        ({"iterations": 0}, "iterations"),
        ({"iterations": 10**12}, "iterations to be at most .* Use fewer"),
    ],
)
def test_mechanisms_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DpSgdConfig(**{**CONFIG.to_dict(), **change})


def test_a_batch_larger_than_the_data_is_refused_without_printing_the_private_count() -> None:
    with pytest.raises(ConfigError, match="sampling_prob") as refused:
        resolve(PrivacySpec(epsilon=1.0), expected_batch_size=100, epochs=1, store_units=57)
    assert "57" not in str(refused.value)
    with pytest.raises(ConfigError, match="the 57 units"):
        resolve(PrivacySpec(epsilon=1.0, dataset_size=57), expected_batch_size=100, epochs=1)


@pytest.mark.parametrize("epochs", [0, -1, math.inf, math.nan, None, "5"])
def test_epochs_that_are_no_number_are_refused(epochs: Any) -> None:
    with pytest.raises(ConfigError, match="epochs"):
        resolve(PrivacySpec(epsilon=1.0, dataset_size=100), expected_batch_size=10, epochs=epochs)


@pytest.mark.parametrize("epochs", [1e300, 1e15, 1e9])
def test_more_iterations_than_can_run_are_refused_with_what_to_change(epochs: float) -> None:
    spec = PrivacySpec(noise_multiplier=1.0)
    with pytest.raises(ConfigError, match=r"epochs .* Lower epochs, or raise") as refused:
        resolve(spec, expected_batch_size=10, epochs=epochs, store_units=5_731)
    assert "731" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"epochs .* Lower epochs, or raise"):
        plan_table(71_000, epsilon=3.0, batch_sizes=[256], epochs=[epochs])


def test_as_many_iterations_as_are_allowed_can_be_planned() -> None:
    plan = _plan(noise_multiplier=1e5, dataset_size=10**12, sampling_prob=1e-6, iterations=10**9)
    assert 0.0 < plan.loss.epsilon < 1.0


def test_no_number_of_units_anywhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="dataset_size"):
        resolve(PrivacySpec(epsilon=1.0), expected_batch_size=10, epochs=1)


def test_a_budget_too_small_for_one_iteration_is_refused() -> None:
    with pytest.raises(BudgetError, match="too small for one iteration"):
        resolve(
            PrivacySpec(epsilon=1e-9, dataset_size=100, delta=1e-9),
            expected_batch_size=100,
            epochs=1,
        )
    with pytest.raises(BudgetError, match="too small for one iteration"):
        calibrate(CONFIG, epsilon=0.01, delta=1e-8, solve_for="iterations")


@pytest.mark.parametrize("relation", ["add_or_remove_one", "zero_out"])
def test_calibrate_meets_its_target_from_below(relation: str) -> None:
    for solve_for in ("noise_multiplier", "iterations", "expected_batch_size"):
        found = calibrate(CONFIG, epsilon=1.5, delta=1e-6, relation=relation, solve_for=solve_for)
        spent = epsilon_of(found.event(), 1e-6, Relation(relation)).epsilon
        # One unit more in a batch of about 100 moves epsilon by a percent.
        closeness = 0.98 if solve_for == "expected_batch_size" else 0.998
        assert 1.5 * closeness <= spent <= 1.5
        kept = {k: v for k, v in CONFIG.to_dict().items() if k not in (solve_for, "sampling_prob")}
        assert kept.items() <= found.to_dict().items()
    assert found.sampling_prob == pytest.approx(found.expected_batch_size / 10_000)
    assert CONFIG.iterations == 1000


def test_calibrate_names_what_it_can_solve_for() -> None:
    with pytest.raises(ConfigError, match='"iterations"'):
        calibrate(CONFIG, epsilon=1.0, delta=1e-6, solve_for="iteration")
    with pytest.raises(ConfigError, match="relation"):
        calibrate(CONFIG, epsilon=1.0, delta=1e-6, relation="add_remove")
    free = DpSgdConfig(**{**CONFIG.to_dict(), "noise_multiplier": 0.0})
    with pytest.raises(BudgetError, match="noise_multiplier"):
        calibrate(free, epsilon=1.0, delta=1e-6, solve_for="iterations")


def test_plan_table_has_noise_and_cost_of_every_combination() -> None:
    rows = plan_table(71_000, epsilon=3.0, delta=1e-6, batch_sizes=[256, 1024], epochs=[1, 5])
    assert [(r.expected_batch_size, r.epochs) for r in rows] == [
        (256, 1),
        (256, 5),
        (1024, 1),
        (1024, 5),
    ]
    for row in rows:
        assert row.sampling_prob == row.expected_batch_size / 71_000
        assert row.noise_per_coordinate == row.noise_multiplier / row.expected_batch_size
        assert 3.0 * 0.999 <= row.epsilon <= 3.0
    assert rows[3].iterations == 347
    clipped = plan_table(
        71_000, epsilon=3.0, delta=1e-6, batch_sizes=[256], epochs=[1], l2_clip_norm=0.5
    )
    assert clipped[0].noise_per_coordinate == rows[0].noise_per_coordinate / 2
    with pytest.raises(ConfigError, match="sampling_prob"):
        plan_table(100, epsilon=1.0, batch_sizes=[101])


def test_a_table_of_plans_is_for_the_sampler_that_will_run() -> None:
    rows = {
        name: plan_table(
            1000, epsilon=3.0, delta=1e-6, batch_sizes=[100], epochs=[2], sampler=name
        )[0]
        for name in ("poisson", "fixed_order")
    }
    spec = PrivacySpec(epsilon=3.0, delta=1e-6, dataset_size=1000, sampler="fixed_order")
    plan = resolve(spec, expected_batch_size=100, epochs=2, wanted=DEFAULT_RELEASES)
    assert rows["fixed_order"].noise_multiplier == plan.mechanism.noise_multiplier
    assert rows["fixed_order"].noise_multiplier > rows["poisson"].noise_multiplier


@pytest.mark.parametrize("norm", [1e-30, 1e30])
def test_clip_norms_whose_sums_leave_the_range_of_floats_are_refused(norm: float) -> None:
    spec = PrivacySpec(noise_multiplier=1.0, dataset_size=1000)
    with pytest.raises(ConfigError, match=r"2\^-60 to 2\^60"):
        resolve(spec, expected_batch_size=100, epochs=1, l2_clip_norm=norm)
