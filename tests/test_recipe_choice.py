"""How the recipe compares trials, where its grids go on, and what it says of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_recipes import Here, configuration, document_of, recipes_here
from typer.testing import CliRunner

from dpads.cli import app
from dpads.config import Config
from dpads.config_toml import to_toml
from dpads.errors import ConfigError
from dpads.recipe_batch import time_words
from dpads.recipe_choice import (
    CLIP,
    TABLE_RATE,
    TOWER_RATE,
    Tried,
    average_words,
    best_of,
    beyond,
    evidence,
    smallest_harmless,
    tried_of,
)
from dpads.recipe_stages import rounds_of
from dpads.recipes import recipe
from dpads.store import ExampleStore

SE = 0.05 / 1.96


@pytest.fixture
def config(train_store: ExampleStore, log_folder: Path) -> Config:
    return configuration(log_folder)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return recipes_here(monkeypatch)


def trial(rate: float, loss: float, entropy: float | None = 0.9, **other: float) -> Tried:
    """A trial with an interval of +-0.05."""
    metrics = {} if entropy is None else {"normalized_entropy": entropy}
    settings = {TABLE_RATE: rate, TOWER_RATE: other.pop("tower", 0.1), **other}
    return Tried(settings, loss, "", SE, metrics)


def test_within_one_standard_error_the_smallest_learning_rate_wins() -> None:
    assert best_of([trial(128, 0.30), trial(8, 0.31), trial(2, 0.325), trial(0.5, 0.33)]) == trial(
        2, 0.325
    )
    assert best_of([trial(2, 0.31, tower=0.3), trial(2, 0.31, tower=0.1)]).settings[
        TOWER_RATE
    ] == pytest.approx(0.1)


def test_what_predicts_worse_than_the_average_rate_loses_to_any_that_does_not() -> None:
    wild, tame = trial(128, 0.20, 2.84), trial(8, 0.40, 1.0)
    assert best_of([wild, tame]) == tame
    assert best_of([wild, trial(64, 0.21, 2.0)]).settings[TABLE_RATE] == 64
    assert "worse than the average rate: normalized entropy 2.84" in average_words(wild)
    assert average_words(tame) == ""
    # Counts have no such metric.
    assert best_of([trial(8, 0.40, None), trial(128, 0.20, None)]).settings[TABLE_RATE] == 128


def test_the_clip_norm_keeps_its_tolerance_and_its_learning_rate_is_the_smallest() -> None:
    clips = [
        (0.1, 1, 0.21), (0.3, 1, 0.2019), (0.3, 4, 0.2018), (3.0, 1, 0.2)
    ]  # fmt: skip
    found = smallest_harmless([trial(rate, loss, **{CLIP: c}) for c, rate, loss in clips])
    assert (found.settings[CLIP], found.settings[TABLE_RATE]) == (0.3, 1)
    wild = trial(1, 0.1, 1.5, **{CLIP: 0.01})
    assert smallest_harmless([wild, trial(1, 0.2, **{CLIP: 1.0})]).settings[CLIP] == 1.0


def test_rounds_with_noise_go_on_around_the_one_that_would_be_chosen(config: Config) -> None:
    near = rounds_of(config, 4, [trial(128, 0.20, 2.84), trial(8, 0.40)])
    assert {item[TABLE_RATE] for item in near} == {8}


def test_the_standard_error_is_that_of_the_interval() -> None:
    measured = {
        "auc_loss": 0.3, "pr_auc": 0.2, "log_loss": 0.4, "normalized_entropy": 0.9, "calibration": 1.1,
        "intervals": {"auc_loss": [0.25, 0.35]},
    }  # fmt: skip
    found = tried_of({TABLE_RATE: 1.0}, measured, "auc_loss", "0001")
    assert found is not None
    assert found.standard_error == pytest.approx(SE)
    shown = evidence((TABLE_RATE,), "auc_loss", [found])
    assert shown["columns"][1:] == [
        "auc loss", "pr auc", "log loss", "normalized entropy", "calibration",
    ]  # fmt: skip
    assert shown["evidence"] == [[1.0, 0.3, 0.2, 0.4, 0.9, 1.1]]
    counted = tried_of({}, {"poisson_log_loss": -1.0, "calibration": 1.1}, "poisson_log_loss", "1")
    assert counted is not None
    assert evidence((), "poisson_log_loss", [counted])["columns"] == [
        "poisson log loss", "calibration"
    ]  # fmt: skip
    assert tried_of({}, {"auc_loss": None}, "auc_loss", "0001") is None


def test_a_grid_goes_on_by_the_same_factor_beyond_the_edge_that_the_best_is_at() -> None:
    tried = [trial(rate, loss) for rate, loss in ((1, 0.4), (4, 0.3), (16, 0.2))]
    keys = (TABLE_RATE, TOWER_RATE)
    assert beyond(tried[1], tried, keys) == []
    assert beyond(tried[2], tried, keys) == [{TABLE_RATE: 64, TOWER_RATE: 0.1}]
    assert beyond(tried[0], tried, keys) == [{TABLE_RATE: 0.25, TOWER_RATE: 0.1}]
    clips = [trial(r, 0.3, **{CLIP: c}) for c in (0.1, 0.3, 1.0) for r in (1, 4)]
    below = beyond(clips[0], clips, (CLIP,), (TABLE_RATE,))
    assert [(item[CLIP], item[TABLE_RATE]) for item in below] == [(0.03333, 1), (0.03333, 4)]


def falling(monkeypatch: pytest.MonkeyPatch, entropy: float = 0.9, inside: float = 1e9) -> None:
    """Losses that fall with the tables' learning rate up to a place, whatever was measured."""
    monkeypatch.setattr("dpads.recipes.EXTENSIONS", 3)

    def measured(settings: Any, found: Any, loss: str, name: str) -> Tried:
        rate, clip = settings[TABLE_RATE], settings.get(CLIP, 1.0)
        lost = (1 / rate if rate <= inside else 10 / inside) + 10 * abs(clip - 0.5)
        return Tried(settings, lost, name, 0.0, {**found, "normalized_entropy": entropy})

    monkeypatch.setattr("dpads.recipe_trials.tried_of", measured)


def test_on_made_up_rows_grids_go_on_and_a_recipe_that_was_cut_off_takes_them_up(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling(monkeypatch)

    def stop(folder: Path, asked: Any) -> None:
        if len(here.names) == 2:
            raise KeyboardInterrupt

    here.check = stop
    with pytest.raises(KeyboardInterrupt):
        recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    trained = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("r/stages/1*/trials/*"))]
    assert here.names == ["1-reference", "1-reference-wider-1"]
    here.check = lambda folder, asked: None
    recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    again = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("r/stages/1*/trials/*"))]
    assert again[: len(trained)] == trained
    stages = document_of(tmp_path / "r")["stages"]
    wider = [stage for stage in stages if stage["name"].startswith("1-")]
    assert [stage["name"] for stage in wider] == [
        "1-reference", "1-reference-wider-1", "1-reference-wider-2", "1-reference-wider-3"
    ]  # fmt: skip
    rate = config.training.table_optimizer.learning_rate
    assert [stage["chosen"][TABLE_RATE] for stage in wider] == [
        pytest.approx(rate * factor) for factor in (1, 2, 4, 8)
    ]
    assert "the grid goes on there" in wider[0]["decision"]
    assert "better values may lie beyond" in wider[-1]["decision"]
    assert stages[-1]["chosen"][TABLE_RATE] >= 8 * rate  # later stages begin there


def test_a_grid_stops_once_the_best_is_inside(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = config.training.table_optimizer.learning_rate
    falling(monkeypatch, inside=rate)
    recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    first = [name for name in here.names if name.startswith("1-")]
    assert first == ["1-reference", "1-reference-wider-1"]


def test_on_private_rows_the_grid_stays_and_the_text_says_so(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling(monkeypatch)
    recipe(config, out=tmp_path / "r", trials=4)
    assert not [name for name in here.names if "wider" in name]
    stages = document_of(tmp_path / "r")["stages"]
    assert "each further look at private rows counts" in stages[0]["decision"]
    assert stages[-2]["decision"].startswith("Best so far: learning rates")
    assert stages[-1]["decision"].startswith("The model: learning rates")


def test_a_model_that_predicts_worse_than_the_average_rate_is_said_loudly(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling(monkeypatch, entropy=2.84)
    monkeypatch.setattr("dpads.recipe_choice.is_worse_than_average", lambda metrics: True)
    (tmp_path / "a.toml").write_text(to_toml(config))
    words = ["recipe", str(tmp_path / "a.toml"), "--out", str(tmp_path / "r"), "--trials", "1"]
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "CAREFUL: the model predicts worse than the average rate" in shown.output
    said = "predicts worse than the average rate: normalized entropy 2.84"
    decisions = [stage["decision"] for stage in document_of(tmp_path / "r")["stages"]]
    assert [said in decision for decision in decisions] == [True, False, True, False, True]
    assert f"CAREFUL: {said}" in shown.output


def test_hours_that_no_batch_can_meet_are_refused_before_anything_is_trained(
    config: Config, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpads.recipe_batch.private_step_seconds", lambda *_, **__: 9.0)
    # 8 iterations of 9 s are 72 s, 576 s for 8 trials
    with pytest.raises(ConfigError, match=r"even batches of 300 take about 0\.16 h for 8 trials"):
        recipe(config, out=tmp_path / "r", public="synthetic", hours=0.15)
    assert not (tmp_path / "r").exists()
    assert not here.names
    recipe(config, out=tmp_path / "r", public="synthetic", hours=0.17)
    batch = document_of(tmp_path / "r")["stages"][1]
    assert batch["evidence"][0] == [300, "9 s", "9.6 min"]


def test_epochs_that_replace_the_configured_ones_are_said_so(
    config: Config, here: Here, tmp_path: Path
) -> None:
    recipe(config, out=tmp_path / "r", public="synthetic", trials=1)
    batch = document_of(tmp_path / "r")["stages"][1]
    assert "8 epochs in place of the configured 1:" in batch["decision"]


def test_times_are_in_the_unit_in_which_they_are_read_most_easily() -> None:
    words = [time_words(seconds) for seconds in (0.00042, 0.1748, 95.0, 9000.0, None)]
    assert words == ["0.42 ms", "0.17 s", "1.6 min", "2.5 h", None]
