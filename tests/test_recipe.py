"""The recipe: decisions of its stages, what is on the ledger before they run, and what is spent."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from cli_calls import done
from small_recipes import DOCUMENT, Here, configuration, document_of, recipes_here, spent

import dpads
from dpads.accounting.events import dp_sgd
from dpads.accounting.filters import RenyiFilter
from dpads.accounting.ledger import Ledger
from dpads.accounting.relation import Relation
from dpads.config import Config, load_config, parse_config
from dpads.config_toml import to_toml
from dpads.errors import BudgetError, CheckpointError, ConfigError, RunError
from dpads.recipe_batch import largest_in_time
from dpads.recipe_budget import FilterFile
from dpads.recipe_choice import CLIP, TABLE_RATE, TOWER_RATE, Tried, edge_words, smallest_harmless
from dpads.recipe_rows import made_up_rows, write_made_up_rows
from dpads.recipe_stages import rounds_of
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


def kinds(run: Run) -> list[str]:
    return [entry.kind for entry in run.ledger.entries]


def test_on_private_rows_the_ledger_comes_first_and_the_claim_is_never_formal(
    config: Config, here: Here, tmp_path: Path
) -> None:
    def check(folder: Path, asked: SweepConfig) -> None:
        stage = len(here.names)
        ledger = Ledger.load(folder / "ledger.jsonl").entries
        if all(trial.reference for trial in asked.trials):
            references = [entry for entry in ledger if entry.kind == "reference"]
            assert len(references) == stage + 1  # its own is there before it runs
            assert references[-1].treatment == "not_covered"
            assert references[-1].details["chose_configuration"] is True
        else:
            assert "tuning" in [entry.kind for entry in ledger]
            names = [item["trial"].split("/")[0] for item in spent(folder)]
            assert names.count(f"{stage + 3}-learning-rates") == len(asked.trials)

    here.check = check
    run = recipe(config, out=tmp_path / "r", trials=4)
    assert here.names == [
        "1-reference", "3-clip-norm", "5-learning-rates", "6-learning-rates"
    ]  # fmt: skip
    assert kinds(run) == [
        "reference", "evaluation", "reference", "evaluation", "tuning", "evaluation", "evaluation",
        "selected_training", "training_finished", "evaluation",
    ]  # fmt: skip
    statement = run.statement()
    assert statement.claim_level != "formal"
    assert "without noise" in statement.headline
    assert dpads.verify(tmp_path / "r" / "model").ok
    found = document_of(tmp_path / "r")
    assert found["claim"] == statement.headline
    assert [stage["rows"] for stage in found["stages"]] == [
        "private", "none", "private", "none", "private", "private"
    ]  # fmt: skip


def test_no_trial_is_formal_where_private_rows_chose_its_settings(
    config: Config, here: Here, tmp_path: Path
) -> None:
    recipe(config, out=tmp_path / "r", trials=4)
    stages = tmp_path / "r" / "stages"
    assert all((stage / ".recipe").is_file() for stage in stages.iterdir())
    for name, stage_entries in (("5-learning-rates", 4), ("6-learning-rates", 5)):
        for path in sorted((stages / name / "trials").glob("*/ledger.jsonl")):
            run = Run.load(path.parent)
            looks = kinds(run)[: kinds(run).index("training")]
            assert looks[0] == "trial"
            assert len(looks) == 1 + stage_entries
            assert run.ledger.entries[0].details["trials"] == 4
            assert run.ledger.entries[1].details["chose_configuration"] is True
            assert run.statement().claim_level != "formal"
            assert "without noise" in run.statement().headline
            assert dpads.verify(path.parent).ok


def test_on_made_up_rows_no_private_row_is_read_without_noise(
    config: Config, here: Here, tmp_path: Path
) -> None:
    def check(folder: Path, asked: SweepConfig) -> None:
        private = str(config.data.train[0])
        for trial in asked.trials:
            assert (trial.config.data.train[0] == private) != trial.reference

    here.check = check
    run = recipe(config, out=tmp_path / "r", public="synthetic", trials=3)
    assert kinds(run) == [
        "tuning", "evaluation", "selected_training", "training_finished", "evaluation"
    ]  # fmt: skip
    statement = run.statement()
    assert statement.claim_level == "formal"
    assert statement.epsilon is not None
    assert statement.epsilon <= 8.0
    chosen = load_config(tmp_path / "r" / "config.toml")
    assert chosen.data == config.data
    assert chosen.privacy == run.config.privacy


def test_public_rows_are_public_only_if_somebody_says_so(
    config: Config, here: Here, test_store: ExampleStore, tmp_path: Path
) -> None:
    run = recipe(config, out=tmp_path / "r", public=str(test_store.path), trials=1)
    outside = {e.treatment for e in run.ledger.entries if e.kind == "reference"}
    assert outside == {"public_data_only"}
    assert run.statement().claim_level == "conditional"


def test_users_are_made_up_too(
    click_log: Any, log_folder: Path, here: Here, tmp_path: Path
) -> None:
    schema = dataclasses.replace(click_log.schema, user="user")
    dpads.prepare(log_folder / "train.parquet", schema, out=tmp_path / "users")
    users = configuration(
        log_folder,
        data={"train": str(tmp_path / "users")},
        schema={"user": "user"},
        privacy={"unit": "user", "max_examples_per_unit": 4, "dataset_size": 300, "epsilon": 20.0},
        training={"expected_batch_size": 30},
    )
    run = recipe(users, out=tmp_path / "r", public="synthetic", trials=2)
    assert run.plan.privacy.unit == "user"
    assert run.statement().claim_level == "formal"
    assert dpads.verify(tmp_path / "r" / "model").ok


def test_a_recipe_that_was_asked_for_something_else_is_refused(
    config: Config, here: Here, tmp_path: Path
) -> None:
    def stop(folder: Path, asked: SweepConfig) -> None:
        raise KeyboardInterrupt

    here.check = stop
    with pytest.raises(KeyboardInterrupt):
        recipe(config, out=tmp_path / "r", trials=2)
    with pytest.raises(ConfigError, match="public, trials differ"):
        recipe(config, out=tmp_path / "r", trials=3, public="synthetic")


# What is spent


def budget_for(trials: int) -> tuple[RenyiFilter, dict[str, Any]]:
    event = dp_sgd(2.0, 0.1, 50)
    planned: Sequence[Any] = [event] * trials
    return RenyiFilter.for_budget(5.0, 1e-6, Relation.ADD_OR_REMOVE_ONE, planned), event


def test_what_was_spent_survives_and_is_spent_once_for_each_name(tmp_path: Path) -> None:
    budget, event = budget_for(3)
    FilterFile.create(tmp_path, budget).spend("a/0", event, "1")
    again = FilterFile(tmp_path)
    again.spend("a/0", event, "1")
    again.spend("a/1", event, "1")
    assert FilterFile(tmp_path).spent == [event, event]
    with pytest.raises(RunError, match="another mechanism"):
        again.spend("a/0", dp_sgd(3.0, 0.1, 50), "1")
    with pytest.raises(RunError, match="another mechanism or folder"):
        again.spend("a/0", event, "2")
    assert again.folders == {"a": "1"}


def test_nothing_beyond_the_total_is_spent(tmp_path: Path) -> None:
    budget, event = budget_for(3)
    file = FilterFile.create(tmp_path, budget)
    number = 0
    while budget.admits(event, number + 1):
        file.spend(f"a/{number}", event, "1")
        number += 1
    assert number >= 3
    with pytest.raises(BudgetError):
        file.spend("a/more", event, "1")
    assert len(FilterFile(tmp_path).spent) == number
    (tmp_path / "filter.json").write_text("{}")
    with pytest.raises(CheckpointError, match="what is spent"):
        FilterFile(tmp_path)


# Decisions


def tried(*pairs: tuple[dict[str, float], float]) -> list[Tried]:
    return [Tried(settings, loss) for settings, loss in pairs]


def test_the_clip_norm_is_the_smallest_that_costs_little() -> None:
    trials = tried(
        ({CLIP: 0.1}, 0.21), ({CLIP: 0.3}, 0.2019), ({CLIP: 0.3}, 0.2018), ({CLIP: 3.0}, 0.2)
    )  # fmt: skip
    assert smallest_harmless(trials).loss == 0.2018
    assert smallest_harmless(trials, tolerance=0.1).settings[CLIP] == 0.1
    # A Poisson log loss may be negative.
    assert smallest_harmless(tried(({CLIP: 0.1}, -0.98), ({CLIP: 1.0}, -1.0))).loss == -1.0


def test_learning_rates_are_refined_around_the_best_and_never_tried_twice(config: Config) -> None:
    found: list[Tried] = []
    left = 12
    while settings := rounds_of(config, left, found):
        assert len(settings) <= left
        left -= len(settings)
        found += [
            Tried(item, (math.log(item[TABLE_RATE]) - 1) ** 2 + math.log(item[TOWER_RATE]) ** 2)
            for item in settings
        ]
    pairs = [(item.settings[TABLE_RATE], item.settings[TOWER_RATE]) for item in found]
    assert left == 0
    assert len(set(pairs)) == len(pairs) == 12
    losses = [item.loss for item in found]
    assert min(losses) < min(losses[:3])


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_few_trials_try_the_present_learning_rate_first(config: Config, trials: int) -> None:
    rates = [item[TABLE_RATE] for item in rounds_of(config, trials, [])]
    assert len(rates) == trials
    assert config.training.table_optimizer.learning_rate in rates


def test_the_batch_is_the_largest_that_the_time_allows() -> None:
    chosen, measured = largest_in_time([10, 20, 40, 80], 100, 5.0, lambda size: size * 1e-3)
    assert chosen == 40
    assert measured[-1] == (80, 0.08, 8.0)
    assert largest_in_time([10, 20], 100, 0.1, lambda size: size * 1.0)[0] == 10
    assert largest_in_time([10, 20], 100, 9.0, lambda size: None)[0] == 10


def test_a_decision_at_the_edge_says_so() -> None:
    trials = tried(({CLIP: 0.1}, 0.3), ({CLIP: 1.0}, 0.2), ({CLIP: 3.0}, 0.3))
    assert edge_words(trials[1], trials, [CLIP], "public") == ""
    assert CLIP in edge_words(trials[2], trials, [CLIP], "public")
    assert "look at private rows counts" in edge_words(trials[2], trials, [CLIP], "private")


# Made-up rows


@pytest.mark.parametrize("task", ["ctr", "count"])
def test_made_up_rows_fit_every_kind_of_column(tmp_path: Path, task: Any) -> None:
    schema = dpads.FeatureSchema(
        task=task,
        label="y",
        numeric=["a"],
        categorical=["C1", "C2"],
        bags=["tags", dpads.Bag("kinds", weights="shares")],
        tables={"word": ["C1", "tags"]},
        buckets=500,
        weight="w",
        exposure="seconds" if task == "count" else None,
        user="uid",
    )
    path = write_made_up_rows(schema, 3000, tmp_path / "rows.parquet")
    store = dpads.prepare(path, schema, out=tmp_path / "store")
    assert store.num_examples == 3000
    assert 0.05 < store.read(list(range(3000))).labels.mean() < 0.6
    assert made_up_rows(schema, 50).equals(made_up_rows(schema, 50))
    assert not made_up_rows(schema, 50).equals(made_up_rows(schema, 50, seed=1))


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy": {"epsilon": None, "noise_multiplier": 1.0}}, "privacy.epsilon"),
        ({"privacy": {"dataset_size": None}}, "privacy.dataset_size"),
        ({"privacy": {"sampler": "truncated_poisson"}}, "privacy.sampler"),
        ({"data": {"test": None}}, "data.test"),
        ({"training": {"noise_seed": 1}}, "noise_seed"),
        ({"training": {"reference": True}}, "training.reference"),
    ],
)
def test_a_configuration_that_lacks_what_it_needs_is_refused(
    log_folder: Path,
    train_store: ExampleStore,
    tmp_path: Path,
    changes: dict[str, dict[str, Any]],
    words: str,
) -> None:
    merged = {
        name: {k: v for k, v in {**table, **changes.get(name, {})}.items() if v is not None}
        for name, table in {
            "data": {"train": str(log_folder / "train-store"), "test": 0.2},
            **DOCUMENT,
        }.items()
    }
    with pytest.raises(ConfigError, match=words):
        recipe(parse_config(merged, base=log_folder), out=tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_private_rows_are_not_taken_for_public_ones(
    config: Config, log_folder: Path, here: Here, tmp_path: Path
) -> None:
    store = config.data.train[0]
    with pytest.raises(ConfigError, match="public rows are among"):
        recipe(config, out=tmp_path / "r", public=store)
    logs = configuration(log_folder, data={"train": str(log_folder / "train.parquet")})
    with pytest.raises(ConfigError, match="public rows are among"):
        recipe(logs, out=tmp_path / "s", public=str(log_folder / "*train.parquet"))
    assert not here.names


@pytest.mark.parametrize("rows", ["data.train", "data.test"])
@pytest.mark.parametrize("how", ["link", "copy", "rewritten", "part", "store"])
def test_copies_of_private_rows_are_not_taken_for_public_ones(
    log_folder: Path, here: Here, tmp_path: Path, rows: str, how: str
) -> None:
    logs = {"train": str(log_folder / "train.parquet"), "test": str(log_folder / "test.parquet")}
    config = configuration(log_folder, data=logs)
    source, public = Path(logs[rows.partition(".")[2]]), tmp_path / "public.parquet"
    if how == "link":
        public.hardlink_to(source)
    elif how == "copy":
        shutil.copy(source, public)
    else:
        table = parquet.read_table(source)
        order = np.random.default_rng(0).permutation(table.num_rows)
        taken = table.take(order[:500] if how == "part" else order)
        parquet.write_table(taken, public, compression="zstd")
    if how == "store":
        dpads.prepare(public, config.schema, out=tmp_path / "public")
        public = tmp_path / "public"
    words = {"link": "a file of both", "copy": "is a copy"}.get(how, "has an equal row there")
    with pytest.raises(ConfigError, match=f"{rows}.*{words}"):
        recipe(config, out=tmp_path / "r", public=str(public))
    assert not here.names


def test_a_folder_of_something_else_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with pytest.raises(ConfigError, match="no recipe"):
        recipe(config, out=tmp_path / "r")
    with pytest.raises(ConfigError, match="hours"):
        recipe(config, out=tmp_path / "s", hours=math.inf)
    with pytest.raises(ConfigError, match="trials"):
        recipe(config, out=tmp_path / "s", trials=0)


@pytest.mark.slow
def test_the_command_goes_through_all_stages_and_reports_them(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "start.toml").write_text(to_toml(config))
    folder = tmp_path / "r"
    shown = done(
        "recipe", tmp_path / "start.toml", "--public", "synthetic", "--out", folder, "--trials", 2
    )
    for words in ("on made-up rows", "on private rows", "Noise multiplier", "Claim level: formal"):
        assert words in shown
    assert (folder / "report.html").stat().st_size > 10_000
    assert dpads.verify(folder / "model").ok
    again = done(
        "recipe", tmp_path / "start.toml", "--public", "synthetic", "--out", folder, "--trials", 2,
        "--json",
    )  # fmt: skip
    assert json.loads(again)["claim"] == document_of(folder)["claim"]
