"""Statements of runs that were chosen among others: what is counted, covered, claimed and verified."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from altering import altered, failure, get, numbers, put, text_of
from statement_runs import (
    ANOTHER,
    CHOSEN_BY_TESTS,
    FILTER,
    FIXED_NOISE,
    NOISE_FREE_STAGE,
    OWN,
    SCORED,
    TUNED,
    another,
    run_inputs,
    statement_of,
)

from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of, round_up
from dpads.accounting.canonical import digest
from dpads.accounting.checks import ClaimLevel
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.sealing import sealed
from dpads.accounting.statement import GuaranteeStatement, joint_statement, make_statement
from dpads.errors import ConfigError

ADD = Relation.ADD_OR_REMOVE_ONE
KINDS = ("chosen from a sweep", "selected privately", "recipe")


def selected(*before: dict[str, Any], **items: Any) -> StatementInputs:
    return run_inputs(privacy=FIXED_NOISE, before=before, selected=True, **items)


def result_of(statement: GuaranteeStatement, name: str) -> str:
    return next(str(c["result"]) for c in statement.data["checks"] if c["id"] == name)


def test_a_sweeps_winner_is_stated_with_all_that_it_was_compared_with() -> None:
    statement = statement_of("chosen from a sweep")
    together = events.composed([OWN] * 3 + [events.dp_sgd(2.5, 0.01, 300)])
    assert statement.data["accounting"]["dp_event"] == together
    assert statement.epsilon == round_up(epsilon_of(together, 1e-8, ADD).epsilon)
    assert statement.epsilon > round_up(epsilon_of(OWN, 1e-8, ADD).epsilon)
    assert statement.data["accounting"]["tuning"]["runs"] == 4
    assert "and the 3 other training runs on the same rows" in statement.headline
    assert (
        "the test rows, split off from the same log, which have no guarantee: they were read exactly "
        "for metrics that chose among runs" in statement.headline
    )
    assert "how the configuration was chosen beyond these runs" in statement.headline
    assert {g["covers"] for g in statement.data["guarantees"]} == {"tuning_and_final_model"}
    assert statement.claim_level is ClaimLevel.FORMAL


def test_a_looked_at_reference_and_nobodys_word_for_the_file_leave_conditions() -> None:
    statement = statement_of("chosen from a sweep with a reference")
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    for words in (
        "the reference model trained without noise on the same rows",
        "exact metrics that chose among runs, on rows that may be training rows",
        "fixed before the first of them ran",
    ):
        assert words in statement.headline
    row = next(
        a
        for a in statement.data["definition"]["data_accesses"]
        if a.get("check_id") == "tuning.declared"
    )
    assert "without a look at these rows but those of the runs that this" in row["description"]


COUNTED = {"sweep": "a7" * 32, "trials": 4}


@pytest.mark.parametrize(
    ("details", "left", "note"),
    [
        (COUNTED, 2, "counts 2 other runs, and the sweep had 3"),
        (COUNTED, 1, "counts 1 other runs, and the sweep had 3"),
        (COUNTED, 0, "the ledger counts none of these"),
        ({**COUNTED, "trials": 3}, 3, "counts 3 other runs, and the sweep had 2"),
        ({**COUNTED, "retrained": 1}, 3, "counts 3 other runs, and the sweep had 4"),
    ],
)
def test_a_ledger_that_leaves_out_a_planned_trial_has_no_claim(
    details: dict[str, Any], left: int, note: str
) -> None:
    others = ({**ANOTHER, "details": details},) * left
    statement = make_statement(run_inputs(privacy=FIXED_NOISE, extra=(*others, CHOSEN_BY_TESTS)))
    assert statement.claim_level is ClaimLevel.NONE
    assert result_of(statement, "tuning.runs_counted") == "violated"
    assert note in statement.headline
    assert failure(statement.data) == ""


def test_a_training_that_was_made_anew_was_not_fixed_in_advance() -> None:
    statement = statement_of("chosen from a sweep with a trial made anew")
    assert result_of(statement, "tuning.runs_counted") == "holds"
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    assert "on 1 assumption declared by the configuration and signed by nobody: How many runs" in (
        statement.headline
    )
    check = next(c for c in statement.data["checks"] if c["id"] == "tuning.fixed_in_advance")
    assert "1 of them were made anew" in check["note"]
    assert any("somebody's word stands here" in text for text in statement.data["limitations"])
    formal = statement_of("chosen from a sweep")
    assert any("whether it ran or not" in text for text in formal.data["limitations"])


def test_a_trial_whose_configuration_others_chose_is_never_formal() -> None:
    statement = statement_of("trial of a recipe")
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    assert result_of(statement, "tuning.runs_counted") == "holds"
    public = {"rows": "none", "treatment": "public_data_only"}
    on_public_rows = ({**NOISE_FREE_STAGE, **public}, {**CHOSEN_BY_TESTS, **public})
    again = make_statement(run_inputs(before=on_public_rows))
    assert "tuning.runs_counted" not in {check["id"] for check in again.data["checks"]}


def test_a_private_selection_is_its_own_guarantee_and_shows_one_run() -> None:
    statement = statement_of("selected privately")
    loss = epsilon_of(TUNED["dp_event"], 1e-8, ADD)
    assert statement.data["accounting"]["dp_event"] == TUNED["dp_event"]
    assert statement.epsilon == round_up(loss.epsilon)
    assert statement.claim_level is ClaimLevel.FORMAL
    assert statement.data["accounting"]["bounds"]["pld"] is None
    assert statement.data["accounting"]["value_discretization_interval"] is None
    assert statement.data["accounting"]["tuning"] == {
        "method": "repeat_and_select",
        "runs": 1,
        "run_count_distribution": "poisson",
        "mean": 10.0,
        "only_best_released": True,
    }
    assert "privately selected among a random, secret number of runs (10 on average" in (
        statement.headline
    )
    assert statement.data["meaning"]["advantage"] < 1.0
    assert (
        "not even their number"
        in (statement.data["definition"]["mechanism_output"]["formally_protected"])
    )
    page = statement.to_markdown()
    assert "The run that was selected is covered by E1: 347 x Gaussian" in " ".join(page.split())
    assert "log loss, computed from training units that no run trains on" in " ".join(page.split())


def test_a_recipe_with_noise_free_stages_on_private_rows_is_never_formal() -> None:
    statement = statement_of("recipe")
    assert statement.epsilon == round_up(epsilon_of(FILTER["dp_event"], 1e-8, ADD).epsilon)
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    assert "runs without noise on the same rows, which chose hyperparameters" in statement.headline
    assert "inside the Renyi filter (order 12, total 1.5) that was fixed before" in (
        statement.headline
    )
    ids = {check["id"] for check in statement.data["checks"]}
    assert "reference.chose_configuration" in ids
    assert "reference.kept_inside" not in ids  # it would not be true
    assert any("Nothing bounds what they tell" in t for t in statement.data["limitations"])
    for human in ({}, {"asserted_by": "Ada", "tuning": "none"}):
        again = make_statement(selected(FILTER, NOISE_FREE_STAGE, human=human))
        assert again.claim_level is ClaimLevel.CONDITIONAL
    assert make_statement(selected(FILTER)).claim_level is ClaimLevel.FORMAL


def test_public_rows_are_somebodys_word() -> None:
    statement = statement_of("recipe on public rows")
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    assert "runs without noise" not in statement.headline
    assert "are called public hold nobody's data" in statement.headline


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trial", "Not covered: the 5 other trials of the sweep that this run belongs to; "),
        ("trial of few", "Not covered: the other trial of the sweep that this run belongs to; "),
        (
            "two trials",
            "other ones of the 6 trials of a sweep that runs of this statement belong to",
        ),
    ],
)
def test_a_trials_own_statement_is_about_that_trial_alone(name: str, words: str) -> None:
    statement = statement_of(name)
    assert words in statement.headline
    assert "how the configuration was chosen" in statement.headline  # whatever people said
    assert result_of(statement, "tuning.declared") == "unknown"
    assert any("This is a trial of a sweep." in text for text in statement.data["limitations"])
    data = json.loads(statement.to_json())
    row = next(a for a in data["definition"]["data_accesses"] if "trials" in a)
    row["trials"] = 1
    assert failure(sealed(data))


def test_trials_without_others_or_on_public_rows() -> None:
    alone = statement_of("trial alone")
    assert "sweep" not in alone.headline
    assert result_of(alone, "tuning.declared") == "holds"
    public = statement_of("trial on public rows")
    assert public.claim_level is ClaimLevel.CONDITIONAL
    assert "trials" not in public.headline


LARGER = events.composed([OWN, OWN])
UNCOVERED: dict[str, StatementInputs] = {
    "nothing before it": selected(),
    "only after it": selected(extra=(TUNED,)),
    "an entry that is no tuning": selected({**TUNED, "kind": "selection"}),
    "a plain run of the same event": selected({**ANOTHER, "dp_event": OWN}),
    "a selection among others": selected(
        {
            **TUNED,
            "dp_event": events.repeat_and_select(
                events.worst_of([events.dp_sgd(1.9, 0.0144, 347), SCORED]), mean=9.0, shape=1.0
            ),
        }
    ),
    "a selection of larger runs": selected(
        {**TUNED, "dp_event": events.repeat_and_select(LARGER, mean=9.0, shape=1.0)}
    ),
    "a filter that it does not fit into": selected(
        {**FILTER, "dp_event": events.renyi_filter(order=12.0, rdp=1e-3)}
    ),
    "a filter of an order that has none": selected(
        {**FILTER, "dp_event": events.renyi_filter(order=1024.5, rdp=100.0)}
    ),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_a_selected_run_that_nothing_covers_has_no_claim(name: str) -> None:
    statement = make_statement(UNCOVERED[name])
    assert statement.claim_level is ClaimLevel.NONE
    assert statement.epsilon is None
    assert result_of(statement, "sampling.matches_accounting") == "violated"
    assert result_of(statement, "iterations.all_counted") == "violated"
    assert failure(statement.data) == ""


def test_a_run_that_announces_another_event_than_its_plans_has_no_claim() -> None:
    good = selected(TUNED)
    other = events.dp_sgd(1.5, 0.005, 1000)  # a candidate too, but not this run's
    entries = (
        replace(e, details={"dp_event": other}) if e.kind == "selected_training" else e
        for e in good.ledger
    )
    statement = make_statement(replace(good, ledger=tuple(entries)))
    assert statement.claim_level is ClaimLevel.NONE
    assert result_of(statement, "sampling.matches_accounting") == "violated"


@pytest.mark.parametrize("kind", ["training", "selected_training"])
def test_one_run_is_announced_once(kind: str) -> None:
    entry = {"kind": kind, "description": "once more"}
    entry |= {"dp_event": OWN} if kind == "training" else {"details": {"dp_event": OWN}}
    statement = make_statement(selected(TUNED, extra=(entry,)))
    assert statement.claim_level is ClaimLevel.NONE
    assert result_of(statement, "iterations.all_counted") == "violated"


@pytest.mark.parametrize(
    "score",
    [
        None,
        {"measure": "log_loss", "rows": "test", "dp_event": SCORED},
        {"measure": "log_loss", "rows": "none", "dp_event": SCORED},
        {"measure": "log_loss", "rows": "training_units_set_aside", "dp_event": events.NO_OP},
        {
            "measure": "log_loss",
            "rows": "training_units_set_aside",
            "dp_event": events.gaussian(19.0),
        },
    ],
    ids=["none", "test rows", "no noise needed", "no noise", "another noise"],
)
def test_a_score_outside_of_the_budget_takes_the_claim_away(score: dict[str, Any] | None) -> None:
    details = {"selection": "5e" * 16, **({} if score is None else {"score": score})}
    statement = make_statement(selected({**TUNED, "details": details}))
    assert result_of(statement, "tuning.score_inside") == "violated"
    assert statement.claim_level is ClaimLevel.NONE
    assert failure(statement.data) == ""


def test_a_score_from_noisy_outputs_alone_is_inside() -> None:
    score = {"measure": "norm", "rows": "none", "dp_event": events.NO_OP}
    entry = {**TUNED, "details": {"selection": "5e" * 16, "score": score}}
    statement = make_statement(selected(entry))
    assert statement.claim_level is ClaimLevel.FORMAL
    assert failure(statement.data) == ""


def test_two_runs_of_one_selection_are_refused() -> None:
    one = selected(TUNED)
    with pytest.raises(ConfigError, match="at most one run of a private selection"):
        joint_statement([one, another(one)])
    nameless = {**TUNED, "details": {"score": TUNED["details"]["score"]}}
    with pytest.raises(ConfigError, match="nothing says that they do not"):
        joint_statement([one, another(selected(nameless))])
    elsewhere = {**TUNED, "details": {**TUNED["details"], "selection": "6f" * 16}}
    joint = joint_statement([one, another(selected(elsewhere))])
    assert joint.data["accounting"]["dp_event"] == events.self_composed(TUNED["dp_event"], 2) or (
        len(joint.data["accounting"]["dp_event"]["events"]) == 2
    )
    assert failure(joint.data) == ""


def test_a_selected_run_joins_unrelated_ones_with_its_whole_selection() -> None:
    statement = statement_of("one of them selected")
    plain = run_inputs(run="a")
    assert statement.data["accounting"]["dp_event"] == events.composed(
        [plain.covered_event, TUNED["dp_event"]]
    )
    assert statement.data["accounting"]["selected"][0]["run"] == 1


def test_one_word_for_the_file_is_not_everybodys() -> None:
    unfixed = {**ANOTHER, "details": {}}
    fixed = {**ANOTHER, "details": {**COUNTED, "trials": 2}}
    runs = [
        run_inputs(privacy=FIXED_NOISE, extra=(unfixed,), run="a", human={"asserted_by": "Ada"}),
        another(run_inputs(privacy=FIXED_NOISE, extra=(fixed,), run="b")),
        another(run_inputs(privacy=FIXED_NOISE, extra=(unfixed,), run="c"), 2),
    ]
    statement = joint_statement(runs)
    assert statement.claim_level is ClaimLevel.CONDITIONAL
    assert failure(statement.data) == ""
    data = json.loads(statement.to_json())
    place = next(n for n, c in enumerate(data["checks"]) if c["id"] == "tuning.fixed_in_advance")
    data["checks"][place]["basis"] = "enforced_by_code"
    assert failure(sealed(data)).startswith(f"checks/{place}/basis: ")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("forged", [False, True], ids=["digests left", "digests renewed"])
def test_an_altered_number_is_found_and_named(name: str, forged: bool) -> None:
    data = json.loads(statement_of(name).to_json())
    digest_only = {"mechanism/clipping/norm", "mechanism/clipping/expected_batch_size"}
    for number, (path, value) in enumerate(numbers(data)):
        if ("rdp_orders" in path or "rdp_values" in path) and number % 40:
            continue
        other = put(data, path, altered(value, last=True))
        found = failure(sealed(other) if forged else other)
        where = text_of(path)
        if forged and where in digest_only:
            continue
        assert found, where
        item = found.partition(": ")[0]
        assert where.startswith(item), (where, found)


FORGED: list[tuple[str, str, Any]] = [
    ("selected privately", "accounting/entries/0/dp_event/mean", 9.0),
    ("selected privately", "accounting/entries/0/dp_event/shape", 1.0),
    ("selected privately", "accounting/tuning/run_count_distribution", "geometric"),
    ("selected privately", "accounting/tuning/only_best_released", False),
    ("selected privately", "accounting/selected/0/covered_by", None),
    ("selected privately", "accounting/entries/0/score/rows", "test"),
    ("recipe", "accounting/entries/0/dp_event/order", 11.0),
    ("recipe", "accounting/entries/0/dp_event/rdp", 1.4),
    ("recipe", "accounting/selected/0/covered_by", "E2"),
    ("recipe", "definition/data_accesses/1/stage", "reference_training"),
    ("chosen from a sweep", "accounting/tuning/runs", 3),
    ("chosen from a sweep", "accounting/tuning/method", "not_declared"),
    ("chosen from a sweep", "accounting/entries/1/count", 1),
    ("chosen from a sweep", "accounting/entries/1/sweep", "b8" * 32),
    ("chosen from a sweep", "accounting/entries/1/trials", 3),
]


@pytest.mark.parametrize(("name", "where", "value"), FORGED)
def test_a_forged_item_of_the_tuning_does_not_hold(name: str, where: str, value: Any) -> None:
    data = json.loads(statement_of(name).to_json())
    path = tuple(int(key) if key.isdigit() else key for key in where.split("/"))
    assert get(data, path) != value
    assert failure(sealed(put(data, path, value)))


def test_a_selection_whose_mean_was_lowered_everywhere_has_other_figures() -> None:
    data = json.loads(statement_of("selected privately").to_json())
    for where in (("accounting", "entries", 0, "dp_event"), ("accounting", "dp_event")):
        get(data, where)["mean"] = 5.0
    data["accounting"]["tuning"]["mean"] = 5.0
    data["accounting"]["dp_event_sha256"] = digest(data["accounting"]["dp_event"])
    assert failure(sealed(data)).startswith("guarantees/0/value/epsilon: ")


def test_an_entry_that_was_taken_out_is_missed() -> None:
    data = json.loads(statement_of("chosen from a sweep").to_json())
    gone = data["accounting"]["entries"].pop()
    accesses = data["definition"]["data_accesses"]
    accesses[:] = [a for a in accesses if a.get("dp_event") != gone["id"]]
    assert failure(sealed(data))
