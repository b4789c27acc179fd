"""The statement: computed, complete, honest about what nobody checked, and sealed."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from statement_runs import NO_CLAIM, RUNS, STATEMENTS, inputs_of, run_inputs, statement_of

from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of, round_up
from dpads.accounting.canonical import digest
from dpads.accounting.checks import Basis, Check, ClaimLevel, Result, claim_level
from dpads.accounting.evidence import BY_BACKEND, EVIDENCE
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.accounting.statement import (
    GuaranteeStatement,
    check_schema,
    joint_statement,
    load_schema,
    make_statement,
)
from dpads.errors import VerificationError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_run_has_a_statement_that_its_schema_accepts(name: str) -> None:
    statement = statement_of(name)
    jsonschema.Draft202012Validator.check_schema(load_schema())
    check_schema(json.loads(statement.to_json()))
    again = GuaranteeStatement.from_json(statement.to_json())
    assert again.data == statement.data
    assert again.to_markdown() == statement.to_markdown()
    assert joint_statement(inputs_of(name)).to_json() == statement.to_json()


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("public size", "formal"),
        ("no count", "formal"),
        ("fixed noise", "formal"),
        ("weighted", "formal"),
        ("tuned", "formal"),
        ("store's count", "conditional"),
        ("signed", "conditional"),
        ("reference", "conditional"),
        ("train metrics", "conditional"),
        ("no noise", "none"),
        ("fixed seed", "none"),
        ("user without column", "none"),
        ("user unit", "formal"),
        ("capped", "formal"),
        ("truncated", "formal"),
        ("fixed order", "formal"),
    ],
)
def test_claim_level_is_computed(name: str, level: str) -> None:
    statement = statement_of(name)
    assert statement.claim_level == level
    assert statement.headline.startswith(f"Claim level: {level}")


@pytest.mark.parametrize("name", RUNS)
def test_epsilon_is_that_of_the_ledgers_event_rounded_up(name: str) -> None:
    inputs, statement = run_inputs(**RUNS[name]), statement_of(name)
    found = [g for g in statement.data["guarantees"] if g["notion"] == "approx_dp"]
    if name == "no noise":
        assert statement.data["guarantees"] == []
        return
    event = statement.data["accounting"]["dp_event"]
    exact = epsilon_of(event, inputs.delta, inputs.relation).epsilon
    assert [g["value"]["epsilon"] for g in found if g["id"] == "G1"] == [round_up(exact)]
    assert 0 <= found[0]["value"]["epsilon"] - exact < 0.0101
    assert statement.epsilon == (None if name in NO_CLAIM else round_up(exact))
    assert digest(event) == statement.data["accounting"]["dp_event_sha256"]


@pytest.mark.parametrize("name", NO_CLAIM)
def test_without_a_claim_no_epsilon_is_in_the_headline(name: str) -> None:
    statement = statement_of(name)
    assert not re.search(r"\d\.\d|epsilon|Tier", statement.headline)
    assert "No differential privacy is claimed" in statement.headline
    assert "tier" not in statement.data
    assert all(g["hypothetical"] for g in statement.data["guarantees"])
    page = statement.to_markdown()
    head = page.partition("## 1.")[0]
    assert not re.search(r"\(\d", head)
    if name == "no noise":
        assert "No epsilon exists" in page
    else:
        assert "What the accounting would have said" in page


@pytest.mark.parametrize("name", [n for n in RUNS if n not in NO_CLAIM])
def test_with_a_claim_the_headline_says_what_it_is(name: str) -> None:
    inputs, statement = run_inputs(**RUNS[name]), statement_of(name)
    assert f"({statement.epsilon:.2f}, " in statement.headline
    assert f"one {inputs.unit}" in statement.headline
    assert "Not covered:" in statement.headline
    split_off = "the training log that were not split off to test)"
    of_two = f"For one user (at most 2 rows of {split_off} it is ("
    for_users = {
        "user unit": f"private for one user (at most 4 rows of {split_off} under",
        **dict.fromkeys(
            ("everything", "capped", "fixed order, capped", "users, released beside"), of_two
        ),
        "users, started": "For one user (at most 2 rows in each run, this one and the earlier ones)",
        "users uncapped": "No user-level guarantee exists: no cap on the rows of one user.",
        "weighted": "No user-level guarantee exists: no cap on the rows of one user.",
    }
    expected = for_users.get(name, "No user-level guarantee exists: no user column.")
    assert expected in statement.headline


def test_conditional_claims_say_on_what_and_who_answers() -> None:
    unsigned = statement_of("store's count")
    assert "signed by nobody" in unsigned.headline
    assert "number of units" in unsigned.headline
    assert unsigned.data["signoffs"] == []
    assert "asserted_by" in {m["key"] for m in unsigned.data["missing"]}
    check = _check(unsigned, "adjacency.n_public")
    assert check["basis"] == "declared_in_configuration"
    assert "asserted_by" not in check

    signed = statement_of("signed")
    assert "asserted by Ada Lovelace, data steward" in signed.headline
    assert _check(signed, "adjacency.n_public")["basis"] == "asserted_by_user"
    assert signed.data["signoffs"][0]["name"] == "Ada Lovelace"
    assert "adjacency.n_public" in signed.data["signoffs"][0]["fields"]
    assert signed.data["missing"] == []
    assert "*missing*" not in signed.to_markdown()


def test_the_headline_names_what_is_not_covered() -> None:
    assert "reference model" in statement_of("reference").headline
    assert "test rows" in statement_of("public size").headline
    assert "test rows" not in statement_of("no metrics").headline
    assert "metrics on training rows" in statement_of("train metrics").headline
    assert "other runs on these rows" in statement_of("tuned").headline
    assert "Negatives were sampled down" in statement_of("signed").headline


def test_a_tier_needs_a_delta_as_small_as_the_default() -> None:
    assert statement_of("public size").data["tier"]["label"] == "tier2_eps_le_10"
    loose = statement_of("loose delta")
    assert "tier" not in loose.data
    assert "No tier is named" in loose.headline
    assert "Tier" not in loose.to_markdown().replace("No tier", "")
    assert "tier" not in statement_of("no count").data


def test_what_code_cannot_know_about_constants_is_left_to_a_person() -> None:
    for name in RUNS:
        statement = statement_of(name)
        fitted = _check(statement, "features.nothing_fitted")
        assert "by this library" in fitted["assumption"]
        assert "a person must vouch for it, see tuning.declared" in fitted["note"]
        declared = _check(statement, "tuning.declared")
        assert "clip constants, numbers of buckets" in declared["assumption"]
        assert declared["basis"] != "enforced_by_code"


def test_the_generators_key_is_from_the_system_only_where_no_seed_was_given() -> None:
    for name in RUNS:
        noise = statement_of(name).data["mechanism"]["noise"]
        seeded = name == "fixed seed"
        assert noise["rng"] == ("csprng_keyed_noise_seed" if seeded else "csprng_keyed_os_entropy")
        assert (noise["seed_policy"] == "published_fixed") == seeded


def test_replays_are_said_to_be_bound_and_tested_not_compared() -> None:
    statement = make_statement(run_inputs(replayed=3))
    check = _check(statement, "iterations.all_counted")
    assert check["basis"] == "enforced_by_code"
    assert (
        "not resumed unless everything that changes its numbers is the same"
        in (check["assumption"])
    )
    assert "is tested, not compared in each run" in check["assumption"]
    refs = [e["ref"] for e in check["evidence"]]
    assert "dpads/training_identity.py::run_identity" in refs
    assert (
        "tests/test_training.py::test_a_resumed_run_ends_with_the_same_parameters_to_the_bit"
        in refs
    )
    assert any("3 replayed after an interruption" in ref for ref in refs)
    assert "replayed to the bit" not in statement.to_markdown()


def test_the_float32_gaussian_is_always_named() -> None:
    for name in RUNS:
        statement = statement_of(name)
        check = _check(statement, "noise.floating_point")
        assert (check["result"], check["effect_if_false"]) == ("violated", "theoretical")
        assert any("float32 Gaussian" in limit for limit in statement.data["limitations"])
        assert "rounded to a public grid of about 2^-10 of the noise's stddev" in check["note"]
        assert "dpads/noise.py::to_public_grid" in {e["ref"] for e in check["evidence"]}


def test_limits_of_zero_out_and_of_the_accountants_margin_are_named() -> None:
    for name in RUNS:
        data = statement_of(name).data
        limits = " ".join(data["limitations"])
        assert "numerical error is measured" in limits
        zero_out = data["definition"]["adjacency"]["relation"] == "zero_out"
        assert ("Zero-out applies to the training rows, after" in limits) == zero_out


def test_rounding_is_shown_on_neighbouring_batches() -> None:
    check = _check(statement_of("public size"), "clipping.rounding")
    refs = " ".join(e["ref"] for e in check["evidence"])
    assert "::test_neighbouring_batches_of_aligned_gradients_differ_by_at_most" in refs


def test_the_profile_falls_with_delta_and_holds_the_chosen_delta() -> None:
    profile = next(
        g["value"]["profile"]
        for g in statement_of("public size").data["guarantees"]
        if g["notion"] == "privacy_profile"
    )
    deltas = [p["delta"] for p in profile]
    assert deltas == sorted(deltas, reverse=True)
    assert {1e-5, 1e-6, 1e-8, 1e-10, 1e-12} <= set(deltas)
    assert [p["epsilon"] for p in profile] == sorted(p["epsilon"] for p in profile)
    assert statement_of("public size").epsilon == {p["delta"]: p["epsilon"] for p in profile}[1e-8]


def _with_entries(inputs: StatementInputs, entries: list[LedgerEntry]) -> StatementInputs:
    return replace(inputs, ledger=tuple(entries))


def _training(event: events.EventTree) -> LedgerEntry:
    return LedgerEntry(
        kind="training",
        description="x",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=event,
    )


def test_planted_defects_each_take_the_claim_away() -> None:
    good = run_inputs()
    assert make_statement(good).claim_level is ClaimLevel.FORMAL
    training = good.entries("training")[0]
    rest = [e for e in good.ledger if e is not training]
    other = events.dp_sgd(good.noise_multiplier * 2, 1024 / 71_000, 347)
    fewer = events.dp_sgd(good.noise_multiplier, 1024 / 71_000, 100)
    defects = {
        "sampling.matches_accounting": [
            _with_entries(good, [_training(other), *rest]),
            _with_entries(good, [_training(fewer), *rest]),
            _with_entries(good, rest),
        ],
        "iterations.all_counted": [
            replace(good, executed=348),
            _with_entries(good, rest),
            _with_entries(good, [training, training, *rest]),
        ],
        "ledger.complete": [replace(good, reference_trained=True)],
        "noise.generator": [replace(good, noise_seed_used=True)],
    }
    for check, variants in defects.items():
        for variant in variants:
            statement = make_statement(variant)
            assert statement.claim_level is ClaimLevel.NONE, check
            assert _check(statement, check)["result"] == "violated"


def test_a_loss_that_nothing_bounds_takes_the_claim_away() -> None:
    good = run_inputs()
    unbounded = events.dp_sgd(2.0**-12, 1024 / 71_000, 347)
    plan = {**good.plan, "mechanism": {**good.mechanism, "noise_multiplier": 2.0**-12}}
    rest = [e for e in good.ledger if e.kind != "training"]
    statement = make_statement(
        replace(_with_entries(good, [_training(unbounded), *rest]), plan=plan)
    )
    check = _check(statement, "accountant.upper_bound")
    assert (check["result"], check["load_bearing"]) == ("violated", True)
    assert statement.claim_level is ClaimLevel.NONE
    assert statement.headline.startswith("Claim level: none.")
    assert "Nothing bounds the privacy loss" in statement.headline
    assert statement.data["guarantees"] == []


def test_the_smallest_noise_that_is_allowed_has_a_finite_epsilon() -> None:
    smallest = run_inputs({"noise_multiplier": 2.0**-10, "dataset_size": 71_000})
    statement = make_statement(smallest)
    assert statement.claim_level is ClaimLevel.FORMAL
    assert statement.epsilon is not None
    assert statement.epsilon > 1e5


def test_everything_that_is_covered_counts() -> None:
    good = run_inputs()
    count = LedgerEntry(
        kind="dp_count",
        description="noisy count of clicks, for the bias",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=events.gaussian(2.0),
    )
    both = make_statement(_with_entries(good, [count, *good.ledger]))
    alone = make_statement(good)
    assert both.claim_level is ClaimLevel.FORMAL
    assert both.epsilon is not None
    assert alone.epsilon is not None
    assert both.epsilon > alone.epsilon + 0.05
    assert "noisy count of clicks" in both.to_markdown()


BEARING = Check(id="a.b", assumption="x", basis=Basis.ENFORCED)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, ClaimLevel.FORMAL),
        ({"basis": Basis.VERIFIED}, ClaimLevel.FORMAL),
        ({"basis": Basis.ASSERTED, "asserted_by": "Ada"}, ClaimLevel.CONDITIONAL),
        ({"basis": Basis.DECLARED}, ClaimLevel.CONDITIONAL),
        ({"result": Result.VIOLATED}, ClaimLevel.NONE),
        ({"result": Result.UNKNOWN, "basis": Basis.NOT_CHECKED}, ClaimLevel.NONE),
        ({"result": Result.NOT_APPLICABLE}, ClaimLevel.NONE),
        ({"result": Result.VIOLATED, "load_bearing": False}, ClaimLevel.FORMAL),
        ({"basis": Basis.DECLARED, "load_bearing": False}, ClaimLevel.FORMAL),
    ],
)
def test_the_weakest_load_bearing_check_decides(changes: dict[str, Any], level: ClaimLevel) -> None:
    assert claim_level([BEARING, replace(BEARING, id="c.d", **changes), BEARING]) is level
    assert claim_level([replace(BEARING, load_bearing=False)]) is ClaimLevel.NONE
    assert claim_level([]) is ClaimLevel.NONE


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    if not isinstance(value, dict | list):
        yield path, value
    for key, part in items:
        yield from _leaves(part, (*path, key))


def test_one_altered_item_is_found_wherever_it_is() -> None:
    data = json.loads(statement_of("signed").to_json())
    places = [
        (path, value)
        for path, value in _leaves(data)
        # of the two hundred points of a curve a few stand for all
        if not ("rdp_" in str(path) and path[-1] % 20)
    ]
    assert len(places) > 250
    for path, value in places:
        altered = copy.deepcopy(data)
        target = altered
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = (not value) if isinstance(value, bool) else _other(value)
        with pytest.raises(VerificationError):
            GuaranteeStatement.from_json(json.dumps(altered))


def _other(value: Any) -> Any:
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "0.1"}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"claim_level": "formal"}, "digest"),
        ({"visibility": "secret"}, "visibility"),
        ({"guarantees": []}, "guarantees"),
    ],
)
def test_statements_that_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    data = {**json.loads(statement_of("store's count").to_json()), **change}
    with pytest.raises(VerificationError, match=message):
        GuaranteeStatement.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"x"', "null", "{}", '{"digest": NaN}', "[" * 100_000]
)
def test_what_is_no_statement_is_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        GuaranteeStatement.from_json(text)


def test_the_schema_itself_forbids_claims_that_contradict_themselves() -> None:
    data = json.loads(statement_of("fixed seed").to_json())
    data["guarantees"][0]["hypothetical"] = False
    with pytest.raises(VerificationError, match="hypothetical"):
        check_schema(data)
    data = json.loads(statement_of("public size").to_json())
    for guarantee in data["guarantees"]:
        guarantee["hypothetical"] = True
    with pytest.raises(VerificationError, match="guarantees"):
        check_schema(data)
    data = json.loads(statement_of("signed").to_json())
    del _check(GuaranteeStatement(data), "adjacency.n_public")["asserted_by"]
    with pytest.raises(VerificationError, match="asserted_by"):
        check_schema(data)


def _check(statement: GuaranteeStatement, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in statement.data["checks"] if c["id"] == name)
    return found


def test_check_names_are_unique_and_the_guarantee_lists_the_load_bearing_ones() -> None:
    for name in RUNS:
        data = statement_of(name).data
        ids = [c["id"] for c in data["checks"]]
        assert len(ids) == len(set(ids))
        bearing = [c["id"] for c in data["checks"] if c["load_bearing"]]
        for guarantee in data["guarantees"]:
            rests_on_cap = guarantee["unit"] == "user"
            wanted = [c for c in bearing if rests_on_cap or c != "unit.cap_enforced"]
            assert guarantee["depends_on_checks"] == wanted
        assert {a["check_id"] for a in data["definition"]["data_accesses"] if "check_id" in a} <= {
            *ids
        }


REFERENCES = sorted(
    {
        pair
        for known in (EVIDENCE, *BY_BACKEND.values())
        for pairs in known.values()
        for pair in pairs
    }
)


@pytest.mark.parametrize(("kind", "ref"), REFERENCES, ids=[ref for _, ref in REFERENCES])
def test_evidence_points_at_code_and_tests_that_exist(kind: str, ref: str) -> None:
    file, _, symbol = ref.partition("::")
    assert (kind == "unit_test") == file.startswith("tests/")
    tree = ast.parse((ROOT / file).read_text())
    defined = {
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [t.id for t in node.targets if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    }
    assert not symbol or symbol in defined


def test_the_fingerprint_of_private_rows_is_never_in_a_statement() -> None:
    for name in RUNS:
        statement = statement_of(name)
        fingerprint = run_inputs(**RUNS[name]).train_fingerprint
        assert fingerprint not in statement.to_json() + statement.to_markdown()


def test_statements_follow_the_ledger() -> None:
    ledger = Ledger()
    inputs = run_inputs(ledger=ledger.entries, ledger_head=ledger.head)
    assert make_statement(inputs).claim_level is ClaimLevel.NONE
    one, two = statement_of("public size"), statement_of("no metrics")
    assert one.heads != two.heads
    assert one.data["statement_id"] != two.data["statement_id"]


def test_relations_are_those_of_the_plan() -> None:
    for name, relation in (("public size", "add_or_remove_one"), ("store's count", "zero_out")):
        data = statement_of(name).data
        assert data["definition"]["adjacency"]["relation"] == relation
        assert {g["adjacency"] for g in data["guarantees"]} == {relation}
        assert Relation(relation)
