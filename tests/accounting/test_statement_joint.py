"""Joint statements: several runs on the same rows composed, each once, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from statement_runs import EVERYTHING, PUBLIC, STORE_COUNT, USERS, another, run_inputs

from dpads.accounting import events
from dpads.accounting.accountant import epsilon_of, round_up
from dpads.accounting.checks import ClaimLevel
from dpads.accounting.joint import JointRuns
from dpads.accounting.sealing import sealed
from dpads.accounting.statement import GuaranteeStatement, joint_statement, make_statement
from dpads.accounting.verification import verify_statement
from dpads.errors import ConfigError


def two(**changes: Any) -> GuaranteeStatement:
    return joint_statement([run_inputs(), another(run_inputs(**changes))])


def test_several_runs_cost_what_all_their_ledgers_cover() -> None:
    one = make_statement(run_inputs())
    twenty = [run_inputs(), *(another(run_inputs(), n) for n in range(1, 20))]
    statement = joint_statement(twenty)
    training = run_inputs().covered_event
    exact = epsilon_of(events.composed([training] * 20), 1e-8, twenty[0].relation).epsilon
    assert statement.epsilon == round_up(exact)
    assert one.epsilon is not None
    assert statement.epsilon > 2 * one.epsilon
    data = statement.data
    assert data["accounting"]["tuning"]["method"] == "composition"
    assert data["accounting"]["tuning"]["runs"] == 20
    assert [e["run"] for e in data["accounting"]["entries"]] == list(range(20))
    assert {g["covers"] for g in data["guarantees"]} == {"all_listed_runs"}
    assert len(data["ledgers"]) == 20
    assert [r["run"] for r in data["further_runs"]] == list(range(1, 20))
    assert "20 training runs on the same rows" in statement.headline
    assert "jointly" in statement.headline


def test_the_smallest_delta_counts_and_is_said() -> None:
    statement = two(privacy={**PUBLIC, "delta": 1e-10})
    assert statement.data["guarantees"][0]["value"]["delta"] == 1e-10
    assert "1e-10)" in statement.headline
    assert "delta is the smallest of the runs'" in statement.headline


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {**PUBLIC, "unit": "user", "max_examples_per_unit": 2}}, "unit"),
        ({"privacy": STORE_COUNT}, "neighbouring relation"),
        ({"privacy": {**PUBLIC, "max_examples_per_unit": 2}, **USERS}, "cap of rows per user"),
        ({"privacy": {**PUBLIC, "dataset_size": 80_000}}, "number of units"),
        ({"train_fingerprint": "00" * 32}, "same training rows"),
    ],
)
def test_runs_that_do_not_compose_are_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    other = another(run_inputs(**changes))
    with pytest.raises(ConfigError, match=message) as error:
        joint_statement([run_inputs(), other])
    assert other.train_fingerprint not in str(error.value)
    with pytest.raises(ConfigError, match=message):
        joint_statement([run_inputs(), another(run_inputs(), 2), other])


def test_no_runs_have_no_statement() -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        joint_statement([])


def test_a_run_that_is_there_twice_is_refused() -> None:
    run = replace(run_inputs(), run="a")
    later = replace(run_inputs(evaluated_on=("test", "train")), run="a-copy")
    for again in (run, later):
        with pytest.raises(ConfigError, match="Name it once") as error:
            joint_statement([run, another(run_inputs(), 3), again])
        assert f'run 3 ("{again.run}") is run 1 ("a") again' in str(error.value)


def test_two_runs_of_one_configuration_both_count_although_their_ledgers_are_equal() -> None:
    one, other = run_inputs(), another(run_inputs())
    assert one.ledger_head == other.ledger_head
    assert len(JointRuns((one, other)).entries) == 2


def test_one_run_without_a_claim_leaves_none_for_all() -> None:
    statement = two(noise_seed_used=True)
    assert statement.claim_level is ClaimLevel.NONE
    assert "In run 2: noise_seed was set" in statement.headline
    assert "In run 1" not in statement.headline


def test_checks_are_those_of_all_runs_with_the_worst_result() -> None:
    statement = joint_statement(
        [run_inputs(human=EVERYTHING, reference=True), another(run_inputs(human={}))]
    )
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    checks = {c["id"]: c for c in statement.data["checks"]}
    assert checks["reference.kept_inside"]["asserted_by"] == EVERYTHING["asserted_by"]
    assert checks["joint.same_rows"]["result"] == "holds"
    assert checks["noise.generator"]["assumption"].startswith("Noise and coins come from ChaCha20")
    # one run's people declared how it was configured, the other's did not
    assert checks["tuning.declared"]["result"] == "unknown"
    assert "how the configuration was chosen beyond these runs (not declared)" in statement.headline
    assert {m["key"] for m in statement.data["missing"]} >= {"publisher", "asserted_by"}


def test_samplers_may_differ_under_zero_out() -> None:
    runs = [
        run_inputs({**PUBLIC, "sampler": "truncated_poisson"}),
        another(run_inputs({**PUBLIC, "sampler": "fixed_order"})),
    ]
    statement = joint_statement(runs)
    assert statement.claim_level is ClaimLevel.FORMAL
    checks = {c["id"]: c["assumption"] for c in statement.data["checks"]}
    assert "In run 1: Every unit joined" in checks["sampling.matches_accounting"]
    assert "In run 2: Every unit was in one batch" in checks["sampling.matches_accounting"]
    assert checks["sampling.no_amplification"].startswith("In run 2: ")


def test_users_of_several_capped_runs_have_a_joint_guarantee() -> None:
    capped = {"privacy": {**PUBLIC, "max_examples_per_unit": 2}, **USERS}
    statement = joint_statement([run_inputs(**capped), another(run_inputs(**capped))])
    found = {g["id"]: g for g in statement.data["guarantees"]}
    assert found["G2"]["value"]["epsilon"] > found["G1"]["value"]["epsilon"]
    assert "they are jointly (" in statement.headline


def test_progress_of_a_guarantee_for_users_is_told() -> None:
    seen: list[tuple[int, int]] = []
    capped = run_inputs(privacy={**PUBLIC, "max_examples_per_unit": 2}, **USERS)
    make_statement(capped, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(count, 5) for count in range(6)]
    seen.clear()
    make_statement(run_inputs(), on_progress=lambda done, of: seen.append((done, of)))
    assert seen == []


def test_what_happened_upstream_is_said_once() -> None:
    text = "Negatives were sampled down."
    declared = {
        "kind": "upstream",
        "description": text,
        "rows": "train_and_test",
        "treatment": "not_covered",
    }
    for human in ({}, {"upstream": text}):
        statement = make_statement(run_inputs(human=human, extra=(declared,)))
        assert statement.headline.count("what was done to the log before") == 1
        assert "what was done to the log before: Negatives were sampled down;" in statement.headline


@pytest.mark.parametrize("basis", ["enforced_by_code", "verified"])
def test_nobody_can_forge_why_a_check_of_some_runs_is_believed(basis: str) -> None:
    runs = [run_inputs(privacy=STORE_COUNT), run_inputs(privacy=STORE_COUNT)]
    data = json.loads(joint_statement([another(r, i) for i, r in enumerate(runs)]).to_json())
    [check] = [c for c in data["checks"] if c["id"] == "adjacency.n_public"]
    assert verify_statement(data).ok
    check["basis"] = basis
    check.pop("asserted_by", None)
    found = verify_statement(sealed(data))
    assert not found.ok
    assert any(f.item.endswith("/basis") for f in found.findings if not f.held)
