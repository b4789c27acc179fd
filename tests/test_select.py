"""The winner of a sweep: chosen among private trials, charged for all of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli_calls import done, dpads_command

import dpads
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import dp_sgd
from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.errors import ConfigError, RunError
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
    document = {"base": {"data": data, **BASE}, "axes": dict(axes), **changes}
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
    return Counter(canonical_bytes(e.dp_event) for e in entries if e.dp_event is not None)


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
    with pytest.raises(ConfigError, match="no private trial finished"):
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
