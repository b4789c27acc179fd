"""Releases beside training: their shares are reserved before it, and everything meets one budget."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpads
from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import KINDS, Release, Wanted, mu_of
from dpads.errors import BudgetError, ConfigError
from dpads.plan import Plan, PrivacySpec, resolve
from dpads.plan_rows import DEFAULT_RELEASES, plan_table
from dpads.private_sums_config import wanted_releases

SPEC = PrivacySpec(epsilon=3.0, dataset_size=20_000)


def wanted(**shares: float) -> tuple[Wanted, ...]:
    return tuple(Wanted(kind=k, share=s, l2_clip_norm=1.25) for k, s in shares.items())


def plan_of(spec: PrivacySpec = SPEC, carried: Any = None, **shares: float) -> Plan:
    return resolve(
        spec, expected_batch_size=100, epochs=3, wanted=wanted(**shares), carried=carried
    )


def ledger_of(plan: Plan) -> Ledger:
    """What a run of the plan puts on its ledger, in its order."""
    ledger = Ledger()
    covered = {"rows": "train", "treatment": "covered_by_accounting"}
    if plan.carried is not None:
        ledger.append(kind="earlier_run", description="Before", dp_event=plan.carried, **covered)
    for kind in ("dp_count", "selection", "training", "recalibration"):
        release = plan.release(kind)
        event = plan.mechanism.event() if kind == "training" else release and release.event()
        if event is not None:
            ledger.append(kind=kind, description="Now", dp_event=event, **covered)
    return ledger


@settings(max_examples=25)
@given(
    epsilon=st.floats(0.3, 20.0),
    shares=st.dictionaries(st.sampled_from(KINDS), st.floats(1e-4, 0.3), max_size=3),
    spec=st.sampled_from(
        [
            {"dataset_size": 20_000},
            {},
            {"dataset_size": 20_000, "sampler": "fixed_order"},
            {"dataset_size": 20_000, "delta": 1e-6},
        ]
    ),
    before=st.sampled_from([None, events.gaussian(40.0), events.dp_sgd(4.0, 0.01, 50)]),
)
def test_everything_together_meets_the_budget_from_below(
    epsilon: float, shares: dict[str, float], spec: dict[str, Any], before: events.EventTree | None
) -> None:
    try:
        plan = resolve(
            PrivacySpec(epsilon=epsilon, **spec),
            expected_batch_size=200,
            epochs=2,
            store_units=20_000,
            wanted=wanted(**shares),
            carried=before,
        )
    except BudgetError:
        assert before is not None
        assert epsilon_of(before, 1e-8, Relation.ADD_OR_REMOVE_ONE).epsilon > 0.5 * epsilon
        return
    assert epsilon * 0.998 <= plan.loss.epsilon <= epsilon
    assert plan.allowed_iterations == plan.mechanism.iterations
    # What the plan promises is what the ledger of its run composes.
    assert ledger_of(plan).joint_event() == plan.event()
    assert epsilon_of(plan.event(), plan.delta, plan.relation).epsilon <= epsilon
    # Everything that runs is in it, and training alone costs less.
    alone = epsilon_of(plan.mechanism.event(), plan.delta, plan.relation).epsilon
    assert (alone < plan.loss.epsilon) is bool(shares or before)


def test_a_share_is_a_part_of_mu_squared() -> None:
    """Plain Gaussians compose exactly: shares of the whole, training the rest."""
    spec = PrivacySpec(epsilon=3.0, delta=1e-8, sampling_prob=1.0, iterations=5)
    plan = resolve(
        spec,
        expected_batch_size=100,
        epochs=None,
        wanted=wanted(dp_count=0.1, recalibration=0.25),
    )
    slack = 1.0 + events.SENSITIVITY_SLACK
    whole = mu_of(3.0, 1e-8) ** 2
    parts = [release.noise_multiplier**-2 for release in plan.releases]
    assert parts == pytest.approx([0.1 * whole, 0.25 * whole], rel=1e-9)
    training = 5 * plan.mechanism.noise_multiplier**-2
    assert training + sum(parts) == pytest.approx(whole / slack**2, rel=3e-3)


def test_shares_beside_a_given_noise_multiplier_are_of_the_whole_that_comes_out() -> None:
    spec = PrivacySpec(noise_multiplier=4.0, delta=1e-8, sampling_prob=1.0, iterations=5)
    plan = resolve(
        spec, expected_batch_size=1, epochs=None, wanted=wanted(dp_count=0.1, recalibration=0.2)
    )
    training = 5 / 4.0**2
    parts = [release.noise_multiplier**-2 for release in plan.releases]
    # From a quick bound of training's cost, which is a little above: a little less noise than exactly.
    assert parts[0] / 0.1 == pytest.approx(parts[1] / 0.2)
    assert training / 0.7 <= parts[0] / 0.1 <= 1.2 * training / 0.7
    assert plan.mechanism.noise_multiplier == 4.0


@pytest.mark.parametrize("sampler", ["poisson", "truncated_poisson", "fixed_order"])
def test_a_given_noise_multiplier_gives_every_sampler_releases_of_the_same_order(
    sampler: str,
) -> None:
    spec = PrivacySpec(noise_multiplier=1.5, dataset_size=20_000, sampler=sampler)
    (release,) = plan_of(spec, recalibration=0.01).releases
    assert 3.0 < release.noise_multiplier < 300.0


def test_releases_cost_training_next_to_nothing_at_their_default_shares() -> None:
    plain, beside = plan_of(), plan_of(dp_count=0.01, recalibration=0.01)
    ratio = beside.mechanism.noise_multiplier / plain.mechanism.noise_multiplier
    assert 1.0 < ratio < 1.02


def test_without_noise_nothing_is_released() -> None:
    plan = plan_of(PrivacySpec(noise_multiplier=0, dataset_size=20_000), recalibration=0.01)
    assert plan.releases == ()
    assert plan == plan_of(PrivacySpec(noise_multiplier=0, dataset_size=20_000))


def test_releases_come_in_the_order_in_which_they_are_made() -> None:
    plan = plan_of(recalibration=0.01, selection=0.1, dp_count=0.02)
    assert [release.kind for release in plan.releases] == ["dp_count", "selection", "recalibration"]
    assert Plan.from_dict(json.loads(plan.to_json())) == plan


def test_a_plan_without_releases_is_written_as_ever() -> None:
    assert not {"releases", "carried"} & set(plan_of().to_dict())


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"dp_count": 0.5, "recalibration": 0.5}, "leave some of it to training"),
        ({"recalibration": 0.0}, "in (0, 1)"),
        ({"recalibration": 1.0}, "in (0, 1)"),
        ({"recalibration": math.nan}, "in (0, 1)"),
        ({"recalibrate": 0.1}, 'Did you mean "recalibration"?'),
    ],
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(**shares)
    assert message in str(caught.value)


def test_one_release_of_a_kind() -> None:
    with pytest.raises(ConfigError, match="once"):
        resolve(
            SPEC,
            expected_batch_size=100,
            epochs=3,
            wanted=[*wanted(dp_count=0.1), *wanted(dp_count=0.1)],
        )


def test_iterations_that_are_allowed_leave_the_budget_of_what_comes_after() -> None:
    plan = plan_of(dp_count=0.01, recalibration=0.3)
    longer = Plan.from_dict(
        {**plan.to_dict(), "mechanism": {**plan.mechanism.to_dict(), "iterations": 5000}}
    )
    allowed = longer.allowed_iterations
    assert 0.98 * plan.mechanism.iterations <= allowed < 5000
    spent = epsilon_of(longer.event_of(allowed), plan.delta, plan.relation).epsilon
    assert spent <= 3.0
    assert longer.event_of(allowed)["events"][-1] == plan.releases[-1].event()


def test_epsilon_spent_counts_what_is_reserved() -> None:
    plan = plan_of(dp_count=0.05, recalibration=0.05)
    spent = [plan.epsilon_spent(t) for t in (0, 1, 100, 300, plan.mechanism.iterations)]
    assert 0.0 < spent[0] < spent[1]
    assert spent == sorted(spent)
    assert spent[-1] == plan.loss.epsilon
    for done in (1, 100, 300):
        exact = epsilon_of(plan.event_of(done), plan.delta, plan.relation).epsilon
        assert plan.epsilon_spent(done) >= exact


def test_what_earlier_runs_spent_is_inside_the_total() -> None:
    day = plan_of(PrivacySpec(epsilon=2.0, dataset_size=20_000), recalibration=0.01)
    total = plan_of(PrivacySpec(epsilon=3.0, dataset_size=20_000), day.event(), recalibration=0.01)
    assert 2.994 <= total.loss.epsilon <= 3.0
    assert total.event()["events"][0] == day.event()
    assert total.mechanism.noise_multiplier > plan_of().mechanism.noise_multiplier
    with pytest.raises(BudgetError, match="spent by the runs whose model"):
        plan_of(PrivacySpec(epsilon=1.9, dataset_size=20_000), day.event())


def test_mu_is_that_of_the_gaussian_mechanism() -> None:
    for epsilon, delta in ((0.1, 1e-6), (1.0, 1e-8), (8.0, 1e-5)):
        noise = 1.0 / mu_of(epsilon, delta) * (1.0 + events.SENSITIVITY_SLACK)
        spent = epsilon_of(events.gaussian(noise), delta, Relation.ADD_OR_REMOVE_ONE).epsilon
        assert spent == pytest.approx(epsilon, rel=3e-3)


def test_a_release_is_plain_data() -> None:
    release = Release(kind="selection", share=0.1, l2_clip_norm=2.0, noise_multiplier=8.0)
    assert Release.from_dict(release.to_dict()) == release
    assert release.noise_stddev == 16.0
    with pytest.raises(ConfigError, match="got others"):
        Release.from_dict({**release.to_dict(), "more": 1})


def test_a_table_of_plans_has_what_training_releases_by_default() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="click", categorical=["site"], buckets=10)
    asked = wanted_releases(
        schema, dpads.PriorConfig(), dpads.SelectionConfig(), dpads.RecalibrationConfig()
    )
    assert asked == DEFAULT_RELEASES
    (row,) = plan_table(20_000, epsilon=3.0, batch_sizes=[100], epochs=[3])
    plan = resolve(SPEC, expected_batch_size=100, epochs=3, wanted=asked)
    assert (row.noise_multiplier, row.epsilon) == (
        plan.mechanism.noise_multiplier,
        plan.loss.epsilon,
    )
    assert row.releases == plan.releases
    (bare,) = plan_table(20_000, epsilon=3.0, batch_sizes=[100], epochs=[3], wanted=())
    assert bare.releases == ()
    assert bare.noise_multiplier < row.noise_multiplier
