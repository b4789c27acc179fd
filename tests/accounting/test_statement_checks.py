"""Every check can fail: one planted change of a run per check, and what it does to the claim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from altering import failure
from statement_runs import (
    ANOTHER,
    AUDIT,
    BESIDE,
    EARLIER,
    EVERYTHING,
    FILTER,
    FIXED_NOISE,
    GIVEN,
    NOISY_COUNT,
    PUBLIC,
    RESTING,
    RUNS,
    STATEMENTS,
    STORE_COUNT,
    TUNED,
    USERS,
    WITH_A_FUNCTION,
    WITH_A_MODULE,
    another,
    run_inputs,
    statement_of,
)

from dpads.accounting import events
from dpads.accounting.checks import ClaimLevel
from dpads.accounting.evidence import BY_BACKEND, EVIDENCE
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.sealing import sealed
from dpads.accounting.statement import GuaranteeStatement, joint_statement, make_statement

TRUNCATED = {**PUBLIC, "sampler": "truncated_poisson"}
FIXED = {**PUBLIC, "sampler": "fixed_order"}
CAPPED = {**PUBLIC, "max_examples_per_unit": 2}
PUBLIC_ROWS = {"rows": "none", "treatment": "public_data_only", "description": "A public log"}
EXACT = {"rows": "train", "treatment": "not_covered", "description": "An exact look"}
CALIBRATION = {**NOISY_COUNT, "kind": "recalibration"}

Change = Callable[[StatementInputs], StatementInputs]


def plan(**items: Any) -> Change:
    return lambda run: replace(run, plan={**run.plan, **items})


def mechanism(**items: Any) -> Change:
    return lambda run: plan(mechanism={**run.mechanism, **items})(run)


def spec(**items: Any) -> Change:
    return lambda run: plan(privacy={**run.plan["privacy"], **items})(run)


def run(**items: Any) -> Change:
    return lambda before: replace(before, **items)


def ledger(kind: str, **items: Any) -> Change:
    """The run with another ledger entry beside its own."""

    def change(before: StatementInputs) -> StatementInputs:
        more = run_inputs(extra=({**EXACT, **items, "kind": kind},))
        entry = more.entries(kind)[-1]
        return replace(before, ledger=(*before.ledger, entry))

    return change


def twice(before: StatementInputs) -> StatementInputs:
    return replace(before, ledger=(*before.ledger, *before.entries("training")))


def announcing(event: events.EventTree) -> Change:
    """The covered training entry announces another event."""

    def change(before: StatementInputs) -> StatementInputs:
        entries = (replace(e, dp_event=event) if e.dp_event else e for e in before.ledger)
        return replace(before, ledger=tuple(entries))

    return change


def covering(**items: Any) -> Change:
    """The entry that covers the selected run is another."""

    def change(before: StatementInputs) -> StatementInputs:
        entries = (replace(e, **items) if e.kind == "tuning" else e for e in before.ledger)
        return replace(before, ledger=tuple(entries))

    return change


SELECTED = {"privacy": FIXED_NOISE, "before": (TUNED,), "selected": True}
CHOSEN = {**EXACT, "details": {"chose_configuration": True}}

# A run that a check holds in, and a change of it after which it does not.
PLANTED: dict[str, tuple[dict[str, Any], Change]] = {
    "sampling.matches_accounting": ({}, announcing(events.dp_sgd(9.0, 0.01, 10))),
    "sampling.suits_relation": (
        {"privacy": FIXED},
        plan(relation="add_or_remove_one"),
    ),
    "sampling.any_batch_size": ({}, run(backend="another")),
    "sampling.truncation_in_event": ({"privacy": TRUNCATED}, mechanism(max_batch_size=1025)),
    "sampling.no_amplification": ({"privacy": FIXED}, mechanism(units=None)),
    "clipping.joint_norm": ({}, mechanism(l2_clip_norm=None)),
    "clipping.rounding": ({}, plan(sensitivity_slack=0.0)),
    "clipping.non_finite": ({}, run(backend="another")),
    "model.no_cross_example_ops": ({}, run(backend="another")),
    "weights.before_clipping": (
        {"schema": {"user": None, "weight": "w"}},
        run(backend="another"),
    ),
    "normaliser.public_constant": ({}, run(backend="another")),
    "unit.cap_enforced": (
        {"privacy": CAPPED, **USERS},
        run(schema={"user": None, "weight": None}),
    ),
    "noise.every_coordinate": ({}, mechanism(noise_multiplier=0.0)),
    "noise.never_reused": ({}, run(noise_seed_used=True)),
    "noise.generator": ({}, run(noise_seed_used=True)),
    "iterations.all_counted": ({}, twice),
    "iterations.fixed_in_advance": ({}, run(executed=100)),
    "adjacency.public_numbers": ({}, spec(dataset_size=70_000)),
    "features.nothing_fitted": ({}, ledger("selection")),
    "initialisation.data_independent": ({}, ledger("dp_count")),
    "calibration.accounted": ({"extra": (CALIBRATION,)}, ledger("recalibration")),
    "releases.accounted": (
        {"wanted": BESIDE},
        lambda before: replace(
            before, ledger=tuple(e for e in before.ledger if e.kind != "recalibration")
        ),
    ),
    "ledger.complete": ({}, run(reference_trained=True)),
    "tuning.same_mechanism": (SELECTED, run(noise_seed_used=True)),
    "tuning.runs_counted": (
        {"extra": (ANOTHER,) * 3},
        run(ledger=run_inputs(extra=(ANOTHER,)).ledger),
    ),
    "tuning.drawn_once": (SELECTED, covering(details={"score": TUNED["details"]["score"]})),
    "tuning.score_inside": (SELECTED, covering(details={"selection": "5e" * 16})),
    "tuning.filter_kept": (
        {**SELECTED, "before": (FILTER,)},
        covering(dp_event=events.renyi_filter(order=12.0, rdp=1e-3)),
    ),
    "accountant.upper_bound": ({}, announcing(events.dp_sgd(2.0**-12, 0.01, 10))),
    "audit.no_contradiction": (
        {"audits": (AUDIT,)},
        run(audits=({**AUDIT, "epsilon_lower_bound": 3.01},)),
    ),
}
WITH_PEOPLE: dict[str, tuple[dict[str, Any], Change]] = {
    "initialisation.earlier_accounted": (EARLIER, plan(carried=events.gaussian(7.0))),
}
"""Likewise of runs whose claim rests on people too."""

MORE = {
    "a run without a covered entry": run(ledger=()),
    "more iterations than announced": run(executed=348),
    "a relation that the store's count does not allow": plan(dataset_size_status="asserted_public"),
    "a count that nobody calls public": plan(dataset_size_status="private"),
    "a user unit without a cap": spec(unit="user"),
    "a release with less noise than the plan's": lambda before: plan(
        releases=[item.to_dict() for item in run_inputs(wanted=BESIDE).releases]
    )(before),
}
PEOPLE = {
    "adjacency.n_public": {"privacy": STORE_COUNT},
    "reference.kept_inside": {"reference": True},
    "evaluation.kept_inside": {"evaluated_on": ("train_and_test",)},
    "evaluation.test_rows_apart": {"evaluated_on": ("declared_test",)},
    "reference.chose_configuration": {"extra": ({**CHOSEN, "kind": "reference"},)},
    "evaluation.chose_configuration": {
        "extra": (*(ANOTHER,) * 3, {**CHOSEN, "kind": "evaluation"})
    },
    "initialisation.from_earlier_run": EARLIER,
    "initialisation.earlier_assumptions": {**RESTING},
    "initialisation.rate_is_public": {"public_rate": True},
    "initialisation.vouched_for": {"before": (GIVEN,)},
    "model.examples_apart": {"model": "torch"},
    "public_rows.are_public": {"extra": ({**PUBLIC_ROWS, "kind": "reference"},)},
    "tuning.fixed_in_advance": {"extra": ({**ANOTHER, "details": {}},)},
}
"""Only people answer for these: their presence alone makes a claim conditional."""

FOR_THE_READER = {"noise.floating_point", "tuning.declared", "delta.small"}
"""These never decide a claim."""


def check_of(statement: GuaranteeStatement, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in statement.data["checks"] if c["id"] == name)
    return found


@pytest.mark.parametrize("name", [*PLANTED, *WITH_PEOPLE])
def test_each_load_bearing_check_can_fail_and_then_takes_the_claim_away(name: str) -> None:
    given, change = {**PLANTED, **WITH_PEOPLE}[name]
    good = run_inputs(**given)
    whole = make_statement(good)
    level = ClaimLevel.CONDITIONAL if name in WITH_PEOPLE else ClaimLevel.FORMAL
    assert whole.claim_level is level
    assert check_of(whole, name)["result"] == "holds"
    broken = make_statement(change(good))
    check = check_of(broken, name)
    assert check["result"] in ("violated", "unknown")
    assert check["load_bearing"]
    assert broken.claim_level is ClaimLevel.NONE
    assert broken.epsilon is None
    assert check["note"].rstrip(".") in broken.headline


@pytest.mark.parametrize("name", MORE)
def test_other_planted_changes_take_the_claim_away_too(name: str) -> None:
    statement = make_statement(MORE[name](run_inputs()))
    assert statement.claim_level is ClaimLevel.NONE
    assert statement.epsilon is None


@pytest.mark.parametrize("name", PEOPLE)
def test_what_only_people_can_answer_for_makes_a_claim_conditional(name: str) -> None:
    plain = make_statement(run_inputs(**PEOPLE[name]))
    assert plain.claim_level is ClaimLevel.CONDITIONAL
    assert check_of(plain, name)["basis"] == "declared_in_configuration"
    signed = make_statement(run_inputs(**PEOPLE[name], human=EVERYTHING))
    assert signed.claim_level is ClaimLevel.CONDITIONAL
    assert check_of(signed, name)["asserted_by"] == EVERYTHING["asserted_by"]


@pytest.mark.parametrize(
    ("kind", "entry", "tried", "vouched"),
    [
        ("torch", WITH_A_MODULE, "made-up rows of this module", "The forward pass of the user's"),
        ("jax", WITH_A_FUNCTION, "given one example at a time", "rules for gradients and oper"),
    ],
    ids=["torch", "jax"],
)
def test_a_users_model_is_known_by_its_kind_or_by_the_ledger(
    kind: str, entry: dict[str, Any], tried: str, vouched: str
) -> None:
    for given in ({"model": kind}, {"before": (entry,)}):
        statement = make_statement(run_inputs(**given, backend=kind))
        mixing = check_of(statement, "model.no_cross_example_ops")
        assert mixing["basis"] == "verified"
        assert tried in mixing["note"]
        apart = check_of(statement, "model.examples_apart")
        assert apart["load_bearing"]
        assert vouched in apart["assumption"]
        assert statement.claim_level is ClaimLevel.CONDITIONAL


def test_built_in_models_ask_nobody() -> None:
    built_in = make_statement(run_inputs())
    assert check_of(built_in, "model.no_cross_example_ops")["basis"] == "enforced_by_code"
    assert "model.examples_apart" not in {c["id"] for c in built_in.data["checks"]}


def test_the_assumption_about_a_users_module_cannot_be_left_out() -> None:
    data = copy.deepcopy(dict(statement_of("a user's module").data))
    checks = data["checks"]
    data["checks"] = [c for c in checks if c["id"] != "model.examples_apart"]
    assert '"model.examples_apart" is not among them' in failure(sealed(data))
    data["subject"]["model_kind"] = "mlp"  # the ledger says so, too
    assert '"model.examples_apart" is not among them' in failure(sealed(data))
    data["checks"] = copy.deepcopy(checks)
    for check in data["checks"]:
        if check["id"] in ("model.examples_apart", "model.no_cross_example_ops"):
            check["basis"] = "enforced_by_code"
    assert "/basis: " in failure(sealed(data))


def test_an_earlier_run_without_noise_leaves_no_claim() -> None:
    statement = make_statement(ledger("earlier_run")(run_inputs()))
    assert statement.claim_level is ClaimLevel.NONE
    assert check_of(statement, "initialisation.from_earlier_run")["result"] == "violated"
    assert "The earlier run added no noise" in statement.headline


def test_the_joint_check_fails_before_there_is_a_statement() -> None:
    # runs on other rows have no joint statement at all: tests of joint statements refuse them
    statement = joint_statement([run_inputs(), another(run_inputs())])
    assert check_of(statement, "joint.same_rows")["basis"] == "verified"


def test_no_check_is_left_out_here() -> None:
    known = {c["id"] for name in STATEMENTS for c in statement_of(name).data["checks"]}
    assert known == {*PLANTED, *WITH_PEOPLE, *PEOPLE, *FOR_THE_READER, "joint.same_rows"}
    assert set(EVIDENCE) <= known
    assert all(set(own) <= set(EVIDENCE) for own in BY_BACKEND.values())


def test_a_backend_has_code_and_tests_of_its_own() -> None:
    torch, jax = statement_of("public size"), statement_of("trained in JAX")
    assert "backend" not in torch.data["mechanism"]
    assert jax.data["mechanism"]["backend"] == "jax"
    assert "| Backend | jax |" in jax.to_markdown()
    assert jax.claim_level is ClaimLevel.FORMAL
    assert jax.epsilon == torch.epsilon
    generator = check_of(jax, "noise.generator")
    assert "the same ChaCha20 words" in generator["note"]
    for name in BY_BACKEND["jax"]:
        if name in {check["id"] for check in jax.data["checks"]}:
            refs, others = (
                {evidence["ref"] for evidence in check_of(statement, name)["evidence"]}
                for statement in (jax, torch)
            )
            assert any("jax" in ref for ref in refs), name
            assert not any("jax" in ref for ref in others), name
    both = statement_of("one in JAX")
    refs = {item["ref"] for item in check_of(both, "noise.generator")["evidence"]}
    assert {"kernels/jax_random.py::keystream", "kernels/chacha.py::keystream"} <= refs
    assert check_of(both, "noise.generator")["note"].startswith('In run 2 ("b"): ')


def test_what_runs_elsewhere_than_the_tests_is_said() -> None:
    gpu = statement_of("trained on a GPU")
    assert gpu.claim_level is ClaimLevel.FORMAL
    assert check_of(gpu, "clipping.rounding")["note"].startswith("A GPU ran it; the tests behind")
    assert "ChaCha20" in check_of(gpu, "noise.generator")["note"]
    assert "JAX on a GPU" in gpu.to_html()
    # its sums may come out otherwise when an iteration is run again
    resumed = statement_of("trained on a GPU, resumed")
    assert resumed.claim_level is ClaimLevel.NONE
    assert check_of(resumed, "iterations.all_counted")["result"] == "unknown"
    assert make_statement(run_inputs(backend="jax", replayed=3)).claim_level is ClaimLevel.FORMAL
    # float64, on which the bounds of rounding stand, is another there
    tpu = make_statement(run_inputs(backend="jax-tpu"))
    assert tpu.claim_level is ClaimLevel.NONE
    assert check_of(tpu, "clipping.rounding")["result"] == "unknown"


def test_the_backend_cannot_be_left_out() -> None:
    data = copy.deepcopy(dict(statement_of("trained in JAX").data))
    del data["mechanism"]["backend"]
    assert "checks/" in failure(sealed(data))


def test_without_noise_nothing_is_claimed_and_it_is_said_plainly() -> None:
    statement = statement_of("no noise")
    assert statement.claim_level is ClaimLevel.NONE
    assert "no noise was added at all" in statement.headline
    assert statement.data["guarantees"] == []
    assert "meaning" not in statement.data


def test_a_truncated_batch_says_what_it_costs() -> None:
    cost = check_of(statement_of("truncated"), "sampling.truncation_in_event")["cost"]
    assert 0.0 < cost["epsilon_added"] < 0.01


def test_an_audit_never_raises_a_claim() -> None:
    audited, plain = statement_of("audited"), statement_of("public size")
    assert audited.claim_level is plain.claim_level
    assert audited.epsilon == plain.epsilon
    assert not audited.data["audit"][0]["contradicts_claim"]
    assert statement_of("audit above the claim").data["audit"][0]["contradicts_claim"]
    assert "contradicts" in statement_of("audit above the claim").to_markdown()


def test_user_guarantees_stand_on_the_cap_and_row_guarantees_do_not() -> None:
    for guarantee in statement_of("capped").data["guarantees"]:
        on_cap = "unit.cap_enforced" in guarantee["depends_on_checks"]
        assert on_cap == (guarantee["unit"] == "user")
    for guarantee in statement_of("user unit").data["guarantees"]:
        assert "unit.cap_enforced" in guarantee["depends_on_checks"]


def test_the_headline_names_every_access_that_shaped_the_model_and_is_not_covered() -> None:
    looks = (
        {**EXACT, "kind": "tuning", "description": "Forty runs without noise were compared"},
        {**EXACT, "kind": "upstream", "rows": "train_and_test", "description": "Bots were removed"},
    )
    statement = make_statement(run_inputs(extra=looks, human={"refresh": "Every day."}))
    assert statement.claim_level is ClaimLevel.FORMAL
    assert "Forty runs without noise were compared" in statement.headline
    assert "what was done to the log before: Bots were removed" in statement.headline
    # training again shapes another model: it is a limit of this guarantee, not a hole in it
    assert "Every day" not in statement.headline
    assert "Every day." in statement.to_markdown()


@pytest.mark.parametrize("name", RUNS)
def test_rows_that_were_split_off_are_no_units(name: str) -> None:
    statement, ledger = statement_of(name), run_inputs(**RUNS[name]).ledger
    earlier = any(e.kind == "earlier_run" and e.dp_event is not None for e in ledger)
    split = any(entry.rows == "test" for entry in ledger)
    unit = statement.data["definition"]["unit_of_privacy"]["definition"]
    of_one_log = split and not earlier  # the rows of an earlier log may have been split otherwise
    assert ("not split off to test" in unit) is of_one_log
    assert ("an earlier one trained on" in unit or "the earlier ones" in unit) is earlier
    if statement.claim_level is not ClaimLevel.NONE:
        assert ("not split off to test" in statement.headline) is of_one_log
        assert (
            "split off from the same log, which have no guarantee" in statement.headline
        ) is split


def test_nothing_tells_which_run_of_a_private_selection_was_resumed() -> None:
    for replayed in (None, 0, 3):
        inputs = replace(run_inputs(**RUNS["selected privately"]), replayed=replayed)
        statement = make_statement(inputs)
        assert statement.data["mechanism"]["steps"]["replayed"] is None
        for text in (statement.to_json(), statement.to_markdown(), statement.to_html()):
            words = " ".join(text.split())
            assert "not told: it would say which of the runs was selected" in words
            assert "replayed after an interruption" not in words
        assert failure(statement.data) == ""
    in_a_filter = replace(run_inputs(**RUNS["recipe"]), replayed=3)
    assert make_statement(in_a_filter).data["mechanism"]["steps"]["replayed"] == 3
