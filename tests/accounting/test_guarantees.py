"""Guarantees in the schema's form: every notion that describes the event, every number rounded up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scipy.stats import norm

from dpads.accounting import events
from dpads.accounting.accountant import PROFILE_DELTAS, Relation, default_delta, epsilon_of
from dpads.accounting.guarantees import guarantees_of, meaning_of, tier_of
from dpads.errors import ConfigError, InputError

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "accounting/guarantee-statement.schema.json").read_text()
)
SLACK = 1 + events.SENSITIVITY_SLACK
ADD, ZERO, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT, Relation.REPLACE_ONE
GOLDEN_RUN = events.dp_sgd(0.766 * SLACK, 0.00178706, 2798)
SMALL_RUN = events.dp_sgd(1.0, 0.1, 10)
MANY_SMALL = events.dp_sgd(20.0, 0.5, 400)
TRUNCATED = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def stated(event: events.EventTree, **changed: Any) -> dict[str, dict[str, Any]]:
    """The guarantees by id, each valid under the schema."""
    arguments: dict[str, Any] = {
        "delta": 1e-8,
        "relation": ADD,
        "unit": "example",
        "covers": "final_model_single_run",
        "depends_on": ["noise.scale", "steps.all_counted"],
        "hypothetical": False,
    }
    guarantees = guarantees_of(event, **{**arguments, **changed})
    validator = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/guarantee"})
    for guarantee in guarantees:
        assert not list(validator.iter_errors(guarantee)), guarantee["id"]
        assert guarantee["is_bound"] == "upper_bound"
        assert guarantee["depends_on_checks"] == arguments["depends_on"]
    assert json.loads(json.dumps(guarantees, allow_nan=False)) == guarantees
    return {guarantee["id"]: guarantee for guarantee in guarantees}


def test_golden_statement_of_one_run() -> None:
    all_of = stated(GOLDEN_RUN, delta=1e-10, relation=ZERO)
    assert list(all_of) == ["G1", "G1p", "G1r"]
    assert all_of["G1"]["value"] == {"epsilon": 3.0, "delta": 1e-10}
    profile = {p["delta"]: p["epsilon"] for p in all_of["G1p"]["value"]["profile"]}
    # The published 2.12 and 3.87 are to the nearest, and 3.87 holds float64's error (truly 3.84).
    assert profile == {1e-5: 0.98, 1e-6: 1.30, 1e-8: 2.13, 1e-10: 3.00, 1e-12: 3.84}
    assert {g["unit"] for g in all_of.values()} == {"example"}
    assert {g["adjacency"] for g in all_of.values()} == {"zero_out"}


def test_golden_statement_for_users_with_a_cap() -> None:
    all_of = stated(GOLDEN_RUN, delta=1e-10, group_size=4)
    assert list(all_of) == ["G1", "G1p", "G1r", "G2", "G2p"]
    assert all_of["G2"]["value"] == {"epsilon": 9.70, "delta": 1e-10}
    for name in ("G2", "G2p"):
        assert (all_of[name]["unit"], all_of[name]["group_size"]) == ("user", 4)
    alone = {p["delta"]: p["epsilon"] for p in all_of["G1p"]["value"]["profile"]}
    users = {p["delta"]: p["epsilon"] for p in all_of["G2p"]["value"]["profile"]}
    assert all(users[delta] > alone[delta] for delta in alone)


def test_a_cap_of_one_row_makes_the_users_guarantee_the_examples() -> None:
    all_of = stated(SMALL_RUN, group_size=1)
    assert all_of["G2"] == {**all_of["G1"], "id": "G2", "unit": "user"}
    assert all_of["G2p"]["value"] == all_of["G1p"]["value"]


@pytest.mark.parametrize(
    ("event", "relation"), [(TRUNCATED, ZERO), (SMALL_RUN, REPLACE), (GOLDEN_RUN, REPLACE)]
)
def test_where_no_group_bound_exists_none_is_stated(
    event: events.EventTree, relation: Relation
) -> None:
    assert not {"G2", "G2p"} & set(stated(event, relation=relation, group_size=3))


def test_a_group_that_nothing_protects_has_no_guarantee() -> None:
    assert not {"G2", "G2p"} & set(stated(GOLDEN_RUN, delta=1e-10, group_size=2000))


@pytest.mark.parametrize("relation", list(Relation))
def test_every_number_is_rounded_up(relation: Relation) -> None:
    for event in (GOLDEN_RUN, SMALL_RUN, MANY_SMALL, events.gaussian(3.0)):
        all_of = stated(event, delta=3e-9, relation=relation)
        for point in [all_of["G1"]["value"], *all_of["G1p"]["value"]["profile"]]:
            exact = epsilon_of(event, point["delta"], relation).epsilon
            assert exact <= point["epsilon"] < exact + 0.01 + 1e-9
        deltas = [p["delta"] for p in all_of["G1p"]["value"]["profile"]]
        assert deltas == sorted({*PROFILE_DELTAS, 3e-9}, reverse=True)
        assert ("G1r" in all_of) == (relation is not REPLACE)


def test_plain_gaussians_are_stated_in_every_notion() -> None:
    all_of = stated(events.gaussian(2.0 * SLACK))
    assert list(all_of) == ["G1", "G1p", "G1r", "G1z", "G1g"]
    assert 0.125 <= all_of["G1z"]["value"]["rho"] <= 0.125 * (1 + 1e-5)
    assert all_of["G1g"]["value"] == {"mu": pytest.approx(0.5, abs=1.1e-4), "mu_fpr_floor": 0.0}
    assert all_of["G1g"]["value"]["mu"] >= 0.5
    assert all_of["G1g"]["accountant"] == "closed_form"
    assert stated(events.fixed_order(2.0 * SLACK, 1), relation=ZERO).keys() == all_of.keys()


def test_gdp_is_stated_only_where_it_fits() -> None:
    assert "G1g" not in stated(GOLDEN_RUN)
    fitting = stated(MANY_SMALL)["G1g"]
    assert fitting["accountant"] == "pld"
    assert 0.0 < fitting["value"]["mu_fpr_floor"] < 1e-12


@pytest.mark.parametrize(
    "event", [events.NO_OP, events.dp_sgd(0.0, 0.1, 5), events.gaussian(2.0**-11)]
)
def test_where_nothing_bounds_the_loss_nothing_is_stated(event: events.EventTree) -> None:
    assert stated(event, group_size=3) == {}


def test_a_delta_too_small_for_transforms_is_met_by_rdp() -> None:
    all_of = stated(SMALL_RUN, delta=1e-300)
    assert all_of["G1"]["accountant"] == "rdp"
    assert all_of["G1"]["value"]["delta"] == 1e-300
    assert stated(events.for_group(SMALL_RUN, 2), delta=1e-300) == {}


@pytest.mark.parametrize("delta", [0, 1, -1e-8, math.nan, True, "1e-8"])
def test_deltas_outside_zero_one_are_refused(delta: Any) -> None:
    with pytest.raises(ConfigError, match="delta"):
        stated(SMALL_RUN, delta=delta)


@pytest.mark.parametrize(
    "event", [{"kind": "magic"}, {"kind": "gaussian", "noise_multiplier": math.nan}, None]
)
def test_malformed_events_are_refused_by_name(event: Any) -> None:
    with pytest.raises(InputError, match=r"event|kind|noise_multiplier"):
        stated(event)
    with pytest.raises(InputError, match=r"event|kind|noise_multiplier"):
        meaning_of(event, relation=ADD, unit="example")


@pytest.mark.parametrize("group_size", [0, -1, 1.5, True, "4"])
def test_group_sizes_that_are_none_are_refused(group_size: Any) -> None:
    with pytest.raises(InputError, match="group_size"):
        stated(SMALL_RUN, group_size=group_size)


def test_hypothetical_guarantees_say_so_and_have_no_tier() -> None:
    all_of = stated(SMALL_RUN, hypothetical=True, group_size=2)
    assert all(g["hypothetical"] for g in all_of.values())
    assert tier_of([*all_of.values()], units=1000) is None


def test_the_tier_is_the_first_guarantees_at_a_small_delta() -> None:
    all_of = [*stated(GOLDEN_RUN, delta=1e-10, group_size=4).values()]
    tier = {"label": "tier2_eps_le_10", "for_guarantee": "G1", "delta": 1e-10}
    assert tier_of(all_of, units=36_672_493) == tier
    assert tier_of(all_of, units=None) is None
    loose = [*stated(GOLDEN_RUN, delta=1e-5).values()]
    assert loose[0]["value"]["epsilon"] < 1.0
    assert default_delta(36_672_493) < 1e-5
    assert tier_of(loose, units=36_672_493) is None
    assert tier_of([], units=1000) is None


def test_meaning_is_the_plain_gaussians_rounded_up() -> None:
    meaning = meaning_of(events.gaussian(SLACK), relation=ADD, unit="example")
    advantage = 2 * float(norm.cdf(0.5)) - 1
    tpr = float(norm.cdf(norm.ppf(1e-3) + 1))
    assert advantage <= meaning["advantage"] <= advantage + 3e-4
    assert tpr <= meaning["tpr"] <= tpr + 3e-4
    assert meaning["accuracy"] >= (1 + meaning["advantage"]) / 2
    assert meaning["accuracy"] <= (1 + meaning["advantage"]) / 2 + 1e-4
    assert (meaning["for_guarantee"], meaning["prior"], meaning["fpr"]) == ("G1", 0.5, 1e-3)
    assert meaning.keys() == {
        "for_guarantee", "prior", "advantage", "accuracy", "fpr", "tpr", "text"
    }  # fmt: skip


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("unit", ["example", "user"])
def test_meaning_is_told_in_words_with_its_numbers(relation: Relation, unit: str) -> None:
    meaning = meaning_of(SMALL_RUN, relation=relation, unit=unit)
    assert unit in meaning["text"]
    for name in ("accuracy", "tpr", "fpr"):
        percent = f"{100 * meaning[name]:.2f}".rstrip("0").rstrip(".") + " %"
        assert (f"at most {percent}" if name != "fpr" else percent) in meaning["text"]
    assert meaning["text"].count(". ") == 1


def test_meaning_without_noise_is_that_anything_is_told() -> None:
    meaning = meaning_of(events.dp_sgd(0.0, 0.1, 5), relation=ADD, unit="example")
    assert (meaning["advantage"], meaning["accuracy"], meaning["tpr"]) == (1.0, 1.0, 1.0)
