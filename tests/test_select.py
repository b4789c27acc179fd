"""The winner of a sweep: chosen among private trials, charged for all of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_calls import done, dpads_command

import dpads
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import composed, dp_sgd
from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.errors import ConfigError, RunError
from dpads.run import note_evaluation
from dpads.selecting import choose, select
from dpads.store import ExampleStore
from dpads.sweep_config import parse_sweep
from dpads.sweep_folder import sole_user
from dpads.sweep_stores import open_stores
from dpads.sweep_trial import TrialTask, run_trial
from dpads.sweeping import Sweep

BASE: dict[str, Any] = {
    "schema": {
        "task": "ctr",
        "label": "click",
        "numeric": ["past_clicks", "past_views", "page_depth"],
        "categorical": ["device", "hour", "region", "site", "campaign"],
        "bags": ["interests"],
        "buckets": 200,
    },
    "model": {"name": "logistic"},
    "privacy": {"noise_multiplier": 2.0, "dataset_size": 2400},
    "training": {"expected_batch_size": 300, "epochs": 1},
}
AXES = {
    "training.table_optimizer.learning_rate": [0.5, 1.0],
    "training.init_seed": [2, 1],
    "data.split_seed": [5],
}


def swept(log_folder: Path, out: Path, axes: Mapping[str, Any], **changes: Any) -> Sweep:
    """A small sweep, its trials run in this process."""
    data = {"train": str(log_folder / "train-store"), "test": 0.2}
    privacy = {"privacy": changes.pop("privacy")} if "privacy" in changes else {}
    document = {"base": {"data": data, **BASE, **privacy}, "axes": dict(axes), **changes}
    config = parse_sweep(document, base=log_folder)
    with sole_user(out):
        (out / "trials").mkdir()
        (out / "sweep.toml").write_text(config.to_toml())
        stores = open_stores(config, out / "store", None)
        for trial in config.trials:
            task = TrialTask(
                name=trial.name,
                config=to_toml(stores.config_of(trial)),
                folder=str(out / "trials" / trial.name),
                ledger=str(out / "ledger.jsonl"),
                rows=config.rows,
                test_rows=stores.test_rows,
                threads=1,
            )
            assert run_trial(task).status == "done"
    return Sweep(out, config)


@pytest.fixture(scope="module")
def whole_sweep(
    train_store: ExampleStore, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two settings of two seeds and references; copy it before changing it."""
    out = tmp_path_factory.mktemp("sweeps") / "whole"
    swept(log_folder, out, AXES, reference=True)
    return out


@pytest.fixture
def sweep(whole_sweep: Path, tmp_path: Path) -> Sweep:
    """The sweep, free to change; metrics are set so that the winner is known."""
    folder = Path(shutil.copytree(whole_sweep, tmp_path / "sweep"))
    found = Sweep.open(folder)
    losses = {(0.5, 1): 0.30, (0.5, 2): 0.10, (1.0, 1): 0.15, (1.0, 2): 0.16}
    for trial in found.trials:
        training = trial.config.training
        loss = losses[training.table_optimizer.learning_rate, training.init_seed]
        set_metrics(found, trial.name, loss=0.01 if trial.reference else loss)
    return found


def set_metrics(sweep: Sweep, trial: str, *, loss: float) -> None:
    path = sweep.folder_of(trial) / "metrics.json"
    values = {**json.loads(path.read_text()), "auc_loss": loss, "auc": 1.0 - loss}
    path.write_text(json.dumps({**values, "log_loss": 1.0 - loss}))


def events(entries: Any) -> Counter[bytes]:
    """Each training with what is released beside it, which the winner's own ledger lists one by one."""
    own = [e.dp_event for e in entries if e.kind in ("training", "recalibration")]
    others = [e.dp_event for e in entries if e.kind == "tuning"]
    whole = [composed(own)] if own else []
    assert len(own) + len(others) == sum(e.dp_event is not None for e in entries)
    return Counter(canonical_bytes(event) for event in [*whole, *others])


def test_the_winner_has_the_best_mean_over_seeds(sweep: Sweep) -> None:
    choice = choose(sweep)
    training = choice.trial.config.training
    # One seed of the other settings is better, and so are the references: neither counts.
    assert (training.table_optimizer.learning_rate, training.init_seed) == (1.0, 1)
    assert choice.mean == pytest.approx(0.155)
    assert (choice.seeds, choice.settings) == (2, 2)
    for words in ("0.155", "mean over 2 seeds", "2 private settings", "not covered"):
        assert words in choice.in_words
    assert choose(sweep, "auc").trial == choice.trial
    other = choose(sweep, "log_loss").trial.config.training.table_optimizer.learning_rate
    assert other == 0.5


def test_every_other_private_trial_is_charged(sweep: Sweep) -> None:
    run = select(sweep)
    assert run.path == sweep.path / "selected"
    entries = run.ledger.entries
    assert events(entries) == events(sweep.ledger.entries)
    kinds = Counter(entry.kind for entry in entries)
    assert kinds["training"] == 1
    assert kinds["tuning"] == 3
    own = run.plan.loss.epsilon
    statement = run.statement()
    assert statement.epsilon is not None
    assert statement.epsilon > 1.5 * own
    checks = {check["id"]: check["basis"] for check in statement.data["checks"]}
    assert checks["tuning.fixed_in_advance"] == "enforced_by_code"
    assert dpads.verify(run.path).ok


def test_the_ledger_goes_on_from_the_trials_own(sweep: Sweep) -> None:
    run = select(sweep)
    own = Ledger.load(sweep.folder_of(choose(sweep).trial.name) / "ledger.jsonl").entries
    assert run.ledger.entries[: len(own)] == own
    chose = run.ledger.entries[-1]
    assert (chose.kind, chose.rows, chose.treatment) == ("evaluation", "test", "not_covered")
    assert chose.details["chose_configuration"] is True
    references = [entry for entry in run.ledger.entries if entry.kind == "reference"]
    assert len(references) == sum(trial.reference for trial in sweep.trials)
    assert {entry.details["chose_configuration"] for entry in references} == {False}


def test_trials_that_failed_or_were_tried_again_are_charged_too(sweep: Sweep) -> None:
    winner = choose(sweep).trial.name
    details = {
        "relation": "add_or_remove_one",
        "delta": 1e-8,
        "unit": "example",
        "cap": None,
    }
    failed = next(t.name for t in sweep.trials if t.name != winner and not t.reference)
    shutil.rmtree(sweep.folder_of(failed))  # it is on the ledger all the same
    lost = dp_sgd(1.5, 0.125, 8)
    ledger = sweep.ledger
    first = next(e for e in ledger.entries if e.details.get("trial") == winner)
    ledger.append(  # the winner was lost and trained anew: the first try is charged beside it
        kind="tuning",
        description="Trial of a sweep is trained",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=lost,
        details={**details, "trial": failed, "attempt": 2},
    )
    ledger.append(
        kind="tuning",
        description="Trial of a sweep is trained",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=first.dp_event,
        details={**details, "trial": winner, "attempt": 2},
    )
    run = select(sweep)
    assert events(run.ledger.entries) == events(sweep.ledger.entries)
    assert Counter(e.kind for e in run.ledger.entries)["tuning"] == 5

    check = check_of(run, "tuning.fixed_in_advance")
    assert check["basis"] == "declared_in_configuration"
    assert "2 of them were made anew" in check["note"]
    assert check_of(run, "tuning.runs_counted")["result"] == "holds"
    assert run.statement().data["claim_level"] == "conditional"
    assert dpads.verify(run.path).ok


def check_of(run: dpads.Run, name: str) -> dict[str, Any]:
    checks: list[dict[str, Any]] = run.statement().data["checks"]
    return next(check for check in checks if check["id"] == name)


def forget(sweep: Sweep, trials: Collection[str]) -> None:
    """The sweep as if it had been stopped before these trials."""
    kept = [e for e in sweep.ledger.entries if e.details["trial"] not in trials]
    (sweep.path / "ledger.jsonl").unlink()
    ledger = Ledger(sweep.path / "ledger.jsonl")
    for entry in kept:
        ledger.append(**entry.to_dict())
    for trial in trials:
        shutil.rmtree(sweep.folder_of(trial))


def test_trials_that_never_began_are_charged_as_planned(sweep: Sweep) -> None:
    whole, others = events(sweep.ledger.entries), private_others(sweep)
    forget(sweep, others[1:])  # stopped after two of four trials
    run = select(sweep)
    assert events(run.ledger.entries) == whole
    assert Counter(e.kind for e in run.ledger.entries)["tuning"] == 3
    words = [e.description for e in run.ledger.entries if "had not begun" in e.description]
    assert len(words) == 2
    assert check_of(run, "tuning.fixed_in_advance")["basis"] == "enforced_by_code"
    assert dpads.verify(run.path).ok


def test_trials_that_never_began_are_planned_on_as_many_units(
    train_store: ExampleStore, log_folder: Path, tmp_path: Path
) -> None:
    axes = {"training.table_optimizer.learning_rate": [0.5, 1.0]}
    privacy = {"noise_multiplier": 2.0}  # the store's own number of units
    found = swept(log_folder, tmp_path / "s", axes, privacy=privacy)
    whole = events(found.ledger.entries)
    forget(found, private_others(found))
    assert events(select(found).ledger.entries) == whole


def private_others(sweep: Sweep) -> list[str]:
    winner = choose(sweep).trial
    return [t.name for t in sweep.trials if t != winner and not t.reference]


def looked_at(run: Path, rows: str = "train") -> None:
    """What `dpads evaluate` on the training log leaves."""
    note_evaluation(Ledger.load(run / "ledger.jsonl"), rows)


@pytest.mark.parametrize("whose", ["another trial", "a reference", "the winner"])
def test_a_later_look_at_a_trial_is_not_covered_either(sweep: Sweep, whose: str) -> None:
    names = {
        "another trial": private_others(sweep)[0],
        "a reference": next(t.name for t in sweep.trials if t.reference),
        "the winner": choose(sweep).trial.name,
    }
    looked_at(sweep.folder_of(names[whose]))
    run = select(sweep)
    looks = [e for e in run.ledger.entries if e.kind == "evaluation" and e.rows == "train"]
    assert [(e.treatment, e.chose_configuration) for e in looks] == [("not_covered", True)]
    assert "exact metrics that chose among runs, on rows that may be training rows" in (
        run.statement().headline
    )
    assert run.statement().data["claim_level"] == "conditional"
    assert dpads.verify(run.path).ok


def test_reads_and_declarations_of_other_trials_are_told(sweep: Sweep) -> None:
    declared = {"kind": "upstream", "description": "Joined.", "treatment": "not_covered"}
    first, second = private_others(sweep)[:2]
    for name in (first, second):
        ledger = Ledger.load(sweep.folder_of(name) / "ledger.jsonl")
        ledger.append(**declared, rows="train")
    lost = sweep.folder_of(second).with_name(f"{second}.lost-1")
    lost.mkdir()
    Ledger(lost / "ledger.jsonl").append(
        kind="recalibration", description="A layer", rows="train", treatment="not_covered"
    )
    run = select(sweep)
    kinds = Counter(entry.kind for entry in run.ledger.entries)
    assert (kinds["upstream"], kinds["recalibration"]) == (1, 1)


def test_what_is_charged_is_not_called_outside(sweep: Sweep) -> None:
    for trial in sweep.trials:
        Ledger.load(sweep.folder_of(trial.name) / "ledger.jsonl").append(
            kind="trial",
            description="This run is one of 6 trials",
            rows="train",
            treatment="not_covered",
            details={"trials": 6},
        )
    run = select(sweep)
    assert not [entry for entry in run.ledger.entries if entry.kind == "trial"]
    assert "trials of the sweep that this run belongs to" not in run.statement().headline


def test_a_winner_whose_folder_was_exchanged_is_refused(sweep: Sweep) -> None:
    folder = sweep.folder_of(choose(sweep).trial.name)
    entries = Ledger.load(folder / "ledger.jsonl").entries
    (folder / "ledger.jsonl").unlink()
    ledger = Ledger(folder / "ledger.jsonl")
    for entry in entries:
        event = {"dp_event": dp_sgd(1.0, 0.125, 8)} if entry.kind == "training" else {}
        ledger.append(**{**entry.to_dict(), **event})
    with pytest.raises(RunError, match="folder was exchanged"):
        select(sweep)
    assert not (sweep.path / "selected").exists()


def test_one_private_trial_was_chosen_among_none(
    train_store: ExampleStore, log_folder: Path, tmp_path: Path
) -> None:
    run = select(swept(log_folder, tmp_path / "s", {"privacy.noise_multiplier": [2.0]}))
    assert {entry.kind for entry in run.ledger.entries} >= {"training", "evaluation"}
    assert not any(entry.chose_configuration for entry in run.ledger.entries)
    assert run.statement().data["claim_level"] != "none"


@pytest.mark.parametrize("mark", ["sweep/.recipe", "recipe.json", "../asked.json"])
def test_a_stage_of_a_recipe_is_refused(sweep: Sweep, mark: str) -> None:
    place = sweep.path.parent / mark
    place.write_text("{}")
    try:
        with pytest.raises(ConfigError, match="Use the recipe's own model"):
            select(sweep)
    finally:
        place.unlink()


def test_rows_that_another_split_trains_on_are_no_test_rows(
    train_store: ExampleStore, log_folder: Path, tmp_path: Path
) -> None:
    axes = {"data.split_seed": [5, 6], "privacy.noise_multiplier": [2.0]}
    run = select(swept(log_folder, tmp_path / "s", axes), out=tmp_path / "won")
    tuning = [entry for entry in run.ledger.entries if entry.kind == "tuning"]
    assert [entry.rows for entry in tuning] == ["train_and_test"]
    assert run.ledger.entries[-1].rows == "train_and_test"
    assert dpads.verify(tmp_path / "won").ok


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"privacy.dataset_size": [2400, 2300]}, "privacy.dataset_size"),
        ({"privacy.max_examples_per_unit": [2, 3]}, "max_examples_per_unit"),
    ],
)
def test_trials_that_do_not_compose_are_refused(
    train_store: ExampleStore,
    click_log: Any,
    log_folder: Path,
    tmp_path: Path,
    axes: dict[str, Any],
    words: str,
) -> None:
    changes = {}
    if "cap" in words or "max" in words:
        schema = {**BASE["schema"], "user": "user"}
        full = dpads.FeatureSchema.from_dict(schema)
        dpads.prepare(log_folder / "train.parquet", full, out=tmp_path / "users")
        data = {"train": str(tmp_path / "users"), "test": 0.2}
        changes = {"base": {**BASE, "schema": schema, "data": data}}
    found = swept(log_folder, tmp_path / "s", axes, **changes)
    with pytest.raises(ConfigError, match=words):
        select(found)
    assert not (found.path / "selected").exists()


def test_what_cannot_be_selected_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auc_loss"):
        select(sweep, by="auc_los")
    with pytest.raises(ConfigError, match="ordered by"):
        select(sweep, by="calibration")
    with pytest.raises(ConfigError, match="expected the folder of a sweep"):
        select(tmp_path)
    with sole_user(sweep.path), pytest.raises(RunError, match="another process"):
        select(sweep)
    select(sweep, out=tmp_path / "once")
    with pytest.raises(ConfigError, match="exists already"):
        select(sweep, out=tmp_path / "once")
    for trial in sweep.trials:
        if not trial.reference:
            shutil.rmtree(sweep.folder_of(trial.name))
    with pytest.raises(ConfigError, match="no private trial has finished and has auc_loss"):
        select(sweep, out=tmp_path / "none")


def test_the_command_says_how_it_was_chosen(sweep: Sweep) -> None:
    shown = done("select", sweep.path, "--by", "auc")
    for words in ("highest auc", "not covered", "differentially private", "selected"):
        assert words in shown
    result = dpads_command("select", sweep.path, "--out", sweep.path / "again", "--json")
    told = json.loads(result.stdout)
    assert (told["trial"], told["by"], told["score_covered"], told["scored_rows"]) == (
        choose(sweep).trial.name, "auc_loss", False, "test"
    )  # fmt: skip
