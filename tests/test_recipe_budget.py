"""What a recipe spent: once, durably, and never again for other models, whatever is deleted by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from small_recipes import Here, configuration, recipes_here, spent

from dpads.accounting.events import dp_sgd
from dpads.accounting.ledger import Ledger
from dpads.config import Config
from dpads.errors import CheckpointError, RunError
from dpads.recipes import recipe
from dpads.run import Run
from dpads.store import ExampleStore
from dpads.sweep_config import SweepConfig


@pytest.fixture
def config(train_store: ExampleStore, log_folder: Path) -> Config:
    return configuration(log_folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return recipes_here(monkeypatch)


def test_cut_off_anywhere_it_goes_on_and_spends_nothing_twice(
    config: Config, here: Here, tmp_path: Path
) -> None:
    starts = 0
    while True:
        ran = len(set(here.names))

        def stop(folder: Path, asked: SweepConfig, ran: int = ran) -> None:
            if len(set(here.names)) > ran:
                raise KeyboardInterrupt

        here.check = stop
        starts += 1
        try:
            run = recipe(config, out=tmp_path / "r", public="synthetic", trials=4)
            break
        except KeyboardInterrupt:
            assert starts < 10
    assert starts >= 3
    here.check = lambda folder, asked: None
    # Stages that are whole are not run again; rounds with noise are only read again.
    assert here.names.count("1-reference") == here.names.count("3-clip-norm") == 1
    assert len(spent(tmp_path / "r")) == 4
    assert [entry.kind for entry in run.ledger.entries].count("tuning") == 1
    assert recipe(config, out=tmp_path / "r", public="synthetic", trials=4).ledger.head == (
        run.ledger.head
    )


def test_a_trial_that_was_charged_twice_ends_the_recipe(
    config: Config, here: Here, tmp_path: Path
) -> None:
    def charge(folder: Path, asked: SweepConfig) -> None:
        if not asked.trials[0].reference:
            path = folder / "stages" / f"{len(here.names) + 3}-learning-rates" / "ledger.jsonl"
            Ledger.load(path).append(
                kind="tuning",
                description="A trial that was lost",
                rows="train",
                treatment="covered_by_accounting",
                dp_event=dp_sgd(1.0, 0.1, 10),
                details={"trial": "0009"},
            )

    here.check = charge
    with pytest.raises(RunError, match="other trials were charged"):
        recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    assert not (tmp_path / "r" / "model").exists()


def whole(config: Config, here: Here, folder: Path) -> Run:
    return recipe(config, out=folder, public="synthetic", trials=2)


RATES = "stages/5-learning-rates"


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ([RATES, "model"], "its trials are spent"),
        (["stages", "model"], "its trials are spent"),
        (["stages", "model", "recipe.json"], "its trials are spent"),
        (["stages", "model", "recipe.json", "filter.json"], "missing or damaged, so nobody"),
        (["filter.json"], "missing or damaged, so nobody"),
        (["filter.json", "recipe.json"], "missing or damaged, so nobody"),
        (["ledger.jsonl"], "disagree about the total"),
        (["ledger.jsonl", "filter.json"], "missing or damaged, so nobody"),
        (["ledger.jsonl", "filter.json", "recipe.json"], "charged on another ledger"),
        (["ledger.jsonl", "filter.json", "recipe.json", "model"], "does not know"),
        (["ledger.jsonl", "filter.json", "recipe.json", "stages"], "charged on another ledger"),
        ([f"{RATES}/.recipe"], "its ledger or its marker"),
        ([f"{RATES}/ledger.jsonl", f"{RATES}/trials"], "its ledger or its marker"),
        ([f"{RATES}/trials", "model"], "although it was trained"),
        ([f"{RATES}/trials/0002"], "although it was trained"),
        ([f"{RATES}/trials/0002", f"{RATES}/trials/0002.json"], "although it was trained"),
    ],
)
def test_what_is_lost_is_never_drawn_again_under_the_same_charge(
    config: Config, here: Here, tmp_path: Path, lost: Sequence[str], words: str
) -> None:
    folder = tmp_path / "r"
    whole(config, here, folder)
    here.names.clear()
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=words):
        whole(config, here, folder)
    assert "5-learning-rates" not in here.names


def test_a_trial_that_was_cut_off_and_has_lost_its_ledger_is_not_trained_again(
    config: Config, here: Here, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    whole(config, here, folder)
    trial = folder / RATES / "trials" / "0002"
    trial.with_suffix(".json").unlink()
    partial = trial.rename(trial.with_suffix(".partial"))
    (partial / "ledger.jsonl").unlink()
    with pytest.raises(CheckpointError, match="although it was trained"):
        whole(config, here, folder)


@pytest.mark.parametrize("lost", [["model"], ["model", "recipe.json"]])
def test_what_is_made_of_the_rest_may_be_deleted(
    config: Config, here: Here, tmp_path: Path, lost: Sequence[str]
) -> None:
    folder = tmp_path / "r"
    run = whole(config, here, folder)
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = whole(config, here, folder)
    assert again.ledger.head == run.ledger.head
    assert (again.record.artifacts, again.metrics) == (run.record.artifacts, run.metrics)


def test_a_stage_on_private_rows_that_runs_again_is_on_the_ledger_again(
    config: Config, here: Here, tmp_path: Path
) -> None:
    def stop(folder: Path, asked: SweepConfig) -> None:
        if here.names:
            raise KeyboardInterrupt

    here.check = stop
    folder = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        recipe(config, out=folder, trials=2)
    shutil.rmtree(folder / "stages")
    (folder / "recipe.json").unlink()
    here.names.clear()
    with pytest.raises(KeyboardInterrupt):
        recipe(config, out=folder, trials=2)
    stages = [entry.details["stage"] for entry in Ledger.load(folder / "ledger.jsonl").entries]
    assert stages.count("1-reference") == 4  # trained and compared, twice


@pytest.mark.parametrize("at", ["filter", "ledger", "folder", "spent"])
def test_a_crash_around_the_charge_loses_nothing(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "r"
    with monkeypatch.context() as crashing:
        if at == "filter":
            crashing.setattr("dpads.recipes.FilterFile.create", crash)
        elif at == "ledger":
            crashing.setattr("dpads.accounting.ledger.Ledger.append", only_before_tuning(crash))
        elif at == "folder":
            crashing.setattr("dpads.recipe_trials.FilterFile.spend", crash)
        else:
            crashing.setattr("dpads.recipe_trials.StageTrials._looks", crash)
        with pytest.raises(KeyboardInterrupt):
            whole(config, here, folder)
    run = whole(config, here, folder)
    assert [entry.kind for entry in run.ledger.entries].count("tuning") == 1
    assert len(spent(folder)) == 2


def only_before_tuning(crash: Any) -> Any:
    """An append that does what it does but for the charge."""
    real = Ledger.append

    def append(self: Ledger, **fields: Any) -> Any:
        return (
            crash()
            if fields["kind"] == "tuning" and "Renyi" in fields["description"]
            else real(self, **fields)
        )

    return append


def test_a_filter_of_another_total_is_refused(config: Config, here: Here, tmp_path: Path) -> None:
    def stop(folder: Path, asked: SweepConfig) -> None:
        if not asked.trials[0].reference:
            raise KeyboardInterrupt

    here.check = stop
    with pytest.raises(KeyboardInterrupt):
        recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    path = tmp_path / "r" / "filter.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "rdp": 2 * facts["rdp"], "spent": []}))
    with pytest.raises(CheckpointError, match="disagree about the total"):
        recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
