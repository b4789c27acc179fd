"""Runs that start from earlier ones: what they cost together, and what cannot be started from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import SMALL, kinds, stop_at
from torch import nn

import dpads
from dpads import synthetic
from dpads.accounting import events
from dpads.accounting.accountant import epsilon_of
from dpads.accounting.earlier import carried_event
from dpads.accounting.ledger import Ledger
from dpads.config import load_config
from dpads.config_toml import to_toml
from dpads.errors import BudgetError, CheckpointError, ConfigError, InputError, VerificationError
from dpads.run_training import train_config
from dpads.store import ExampleStore
from dpads.sweep_axes import check_axis
from dpads.sweep_config import parse_sweep
from dpads.training import Performance, Trainer
from dpads.verifying import verify
from dpads.warm_start import open_start

FIXED = dpads.PrivacySpec(noise_multiplier=1.5, delta=1e-8, dataset_size=3000)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[ExampleStore]:
    """The logs of three days, other rows each."""
    folder = tmp_path_factory.mktemp("days")
    stores = []
    for day in range(3):
        log = synthetic.click_log(3000, seed=20 + day, buckets=200)
        log.write(folder / f"{day}.parquet")
        stores.append(
            dpads.prepare(folder / f"{day}.parquet", log.schema, out=folder / f"store{day}")
        )
    return stores


def train(store: ExampleStore, out: Path | None = None, **keys: Any) -> dpads.Run:
    return dpads.train(
        store, **{**SMALL, "performance": Performance(threads=1), "out": out, **keys}
    )


@pytest.fixture(scope="module")
def monday(days: list[ExampleStore], tmp_path_factory: pytest.TempPathFactory) -> dpads.Run:
    """A first run, with exact metrics on test rows that were split off."""
    out = tmp_path_factory.mktemp("runs") / "monday"
    return train(days[0], out, privacy=FIXED, test=0.2)


def events_of(run: dpads.Run) -> list[Any]:
    return [e.dp_event for e in run.ledger.entries if e.dp_event is not None]


def holds(run: dpads.Run) -> None:
    """The folder, and its statement alone, are what a stranger recomputes."""
    assert run.path is not None
    run.statement()
    for path in (run.path, run.path / "statement.json"):
        failed = [finding for finding in verify(path).findings if not finding.held]
        assert not failed, failed


def test_the_figures_compose_both_runs(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    tuesday = train(days[1], tmp_path / "tuesday", privacy=FIXED, start_from=monday)
    assert kinds(tuesday.ledger)[:2] == ["earlier_run", "evaluation"]
    first = tuesday.ledger.entries[0]
    both = events.composed([*events_of(monday), *events_of(tuesday)[1:]])
    statement = tuesday.statement()
    cost = epsilon_of(both, 1e-8, tuesday.plan.relation).epsilon
    alone = epsilon_of(events.composed(events_of(monday)), 1e-8, monday.plan.relation).epsilon
    assert statement.epsilon == pytest.approx(cost, abs=0.011)
    assert statement.epsilon > 1.2 * alone
    assert tuesday.plan.loss.epsilon == pytest.approx(cost, abs=0.01)
    assert tuesday.plan.carried == first.dp_event == carried_event(monday.ledger.entries)
    assert first.details["earlier"]["head"] == monday.ledger.head
    assert "everything that is covered of the earlier runs" in statement.headline
    assert statement.claim_level == "conditional"
    assert "was chosen after a look at what the earlier one showed" in statement.headline
    holds(tuesday)


def test_the_budget_is_the_total(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    spent = monday.plan.loss.epsilon
    budget = dataclasses.replace(FIXED, noise_multiplier=None, epsilon=1.2 * spent)
    tuesday = train(days[1], tmp_path / "tuesday", privacy=budget, start_from=monday.path)
    fresh = train(days[1], privacy=budget)
    assert 1.1 * spent < tuesday.plan.loss.epsilon <= 1.2 * spent
    assert tuesday.plan.mechanism.noise_multiplier > 1.1 * fresh.plan.mechanism.noise_multiplier
    assert tuesday.plan.allowed_iterations == tuesday.plan.mechanism.iterations
    holds(tuesday)


@pytest.mark.parametrize("part", [0.5, 1.0, 1.000001])
def test_a_budget_that_is_spent_already_is_refused(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path, part: float
) -> None:
    """Also one of which next to nothing is left, as where the earlier run had the same epsilon."""
    epsilon = part * monday.plan.loss.epsilon
    budget = dataclasses.replace(FIXED, noise_multiplier=None, epsilon=epsilon)
    with pytest.raises(BudgetError, match="is spent by the runs whose model this one starts from"):
        train(days[1], tmp_path / "tuesday", privacy=budget, start_from=monday)
    assert not list(tmp_path.iterdir())


def test_chains_stay_flat_and_carry_every_look(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    tuesday = train(
        days[1],
        tmp_path / "tuesday",
        privacy=FIXED,
        start_from=monday,
        test=0.2,
        reference=True,
    )
    wednesday = train(days[2], tmp_path / "wednesday", privacy=FIXED, start_from=tuesday)
    assert kinds(wednesday.ledger)[:5] == [
        "earlier_run",
        "evaluation",
        "reference",
        "evaluation",
        "evaluation",
    ]
    event = wednesday.ledger.entries[0].dp_event
    assert event is not None
    counts = {leaf["kind"]: n for leaf, n in events.counted_leaves(event)}
    iterations = monday.plan.mechanism.iterations + tuesday.plan.mechanism.iterations
    assert counts["poisson_sampled"] == iterations
    assert counts["gaussian"] == 2  # both days' calibrations
    assert max(len(part.get("events", [])) for part in [event]) <= 2
    rows = [e.rows for e in wednesday.ledger.entries[:5]]
    assert rows == ["train", "declared_test", "train", "declared_test", "declared_test"]
    words = [e.description for e in wednesday.ledger.entries[1:5]]
    assert all(text.count("of an earlier run") == 1 for text in words)
    resting = wednesday.ledger.entries[0].details["earlier"]["rests_on"]
    assert len(resting) == 1
    assert "everything that its ledger covers is in the event" in resting[0]
    assert "reference model" in wednesday.statement().headline
    holds(wednesday)


def test_training_starts_from_the_final_parameters(
    days: list[ExampleStore], monday: dpads.Run
) -> None:
    config = dataclasses.replace(
        monday.config,
        training=dataclasses.replace(monday.config.training, start_from=str(monday.path)),
        data=dataclasses.replace(monday.config.data, train=(str(days[1].path),), test=None),
    )
    start = open_start(config)
    assert start is not None
    from dpads.run_job import settings_of

    trainer = Trainer(
        days[1], config.model, monday.plan, settings_of(config), Performance(threads=1), Ledger(),
        start=start.model,
    )  # fmt: skip
    for name, value in monday.model.state().items():
        assert np.array_equal(trainer.model.state()[name], value)
    assert trainer.model.output.offset == monday.model.output.offset
    assert trainer.model.output.calibration is None
    trainer.step()
    assert not np.array_equal(trainer.model.state()["dense.linear.bias"], value)


def test_what_an_earlier_run_learnt_is_worth_something(
    days: list[ExampleStore], tmp_path: Path
) -> None:
    free = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000)
    keys = {"privacy": free, "l2_clip_norm": float("inf"), "test": days[2]}
    first = train(days[0], tmp_path / "a", **{**keys, "epochs": 20})
    later = train(days[1], tmp_path / "b", **keys, start_from=first)
    fresh = train(days[1], **keys)
    assert later.metrics["log_loss"] < fresh.metrics["log_loss"] - 0.005
    assert later.statement().claim_level == "none"
    assert later.ledger.entries[0].treatment == "not_covered"
    holds(later)


def test_rows_that_are_called_public_carry_nothing(
    days: list[ExampleStore], tmp_path: Path
) -> None:
    free = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000)
    public = train(days[0], tmp_path / "public", privacy=free, l2_clip_norm=float("inf"))
    run = train(
        days[1],
        tmp_path / "run",
        privacy=FIXED,
        start_from=public,
        start_from_public=True,
        statement={"asserted_by": "Ada Lovelace"},
    )
    alone = train(days[1], privacy=FIXED)
    assert run.plan.carried is None
    assert run.statement().epsilon == alone.statement().epsilon
    assert run.statement().claim_level == "conditional"
    assert "asserted by Ada Lovelace" in run.statement().headline
    assert "hold nothing of anybody's data" in run.statement().headline
    holds(run)


def edited(run: dpads.Run, folder: Path, name: str, change: Any) -> Path:
    """A copy of a run with one file changed."""
    assert run.path is not None
    shutil.copytree(run.path, folder)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": dpads.models.Mlp(embedding_dim=2, hidden=(3,))}, "same model.*differs in"),
        ({"privacy": dataclasses.replace(FIXED, delta=1e-9)}, "delta.*1e-08.*got 1e-09"),
        (
            {"privacy": dataclasses.replace(FIXED, delta=None, dataset_size=10**9), "epochs": 1e-6},
            "delta.*1e-08.*got 1e-10",
        ),
        ({"privacy": dataclasses.replace(FIXED, dataset_size=None)}, "neighbouring relation"),
        (
            {"privacy": dataclasses.replace(FIXED, max_examples_per_unit=2)},
            "max_examples_per_unit",
        ),
        ({"positive_weight": 2.0}, "positive_weight"),
        ({"prior": dpads.PriorConfig(kind="public", rate=0.1)}, "Leave one of them out"),
        ({"start_from": "absent"}, "expected the folder of a run, found none"),
        ({"start_from": 7}, "expected a run or its folder"),
        ({"start_from": None, "start_from_public": True}, "Expected start_from with"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_what_does_not_compose_is_refused_before_anything_is_written(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path, keys: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(days[1], tmp_path / "a" / "b", **{"privacy": FIXED, "start_from": monday, **keys})
    assert not list(tmp_path.iterdir())


def test_another_schema_is_refused(monday: dpads.Run, tmp_path: Path) -> None:
    log = synthetic.click_log(3000, seed=9, buckets=100)
    log.write(tmp_path / "log.parquet")
    store = dpads.prepare(tmp_path / "log.parquet", log.schema, out=tmp_path / "store")
    with pytest.raises(ConfigError, match=r"same schema.*differs in buckets"):
        train(store, tmp_path / "run", privacy=FIXED, start_from=monday)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "store"]


def test_a_run_that_claims_nothing_is_refused(days: list[ExampleStore], tmp_path: Path) -> None:
    free = dpads.PrivacySpec(noise_multiplier=0.0, delta=1e-8, dataset_size=3000)
    exact = train(days[0], tmp_path / "exact", privacy=free, l2_clip_norm=float("inf"))
    seeded = train(days[0], tmp_path / "seeded", privacy=FIXED, noise_seed=1)
    for run, reason in ((exact, "no noise was added"), (seeded, "noise_seed")):
        with pytest.raises(ConfigError, match=f"nothing is claimed for this run.*{reason}"):
            train(days[1], tmp_path / "later", privacy=FIXED, start_from=run)
    assert not (tmp_path / "later.partial").exists()


def test_altered_files_are_refused(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    def other_byte(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    def later_version(data: bytes) -> bytes:
        return data.replace(b'"format": 2', b'"format": 99')

    for name, change, kind, message in (
        ("model.safetensors", other_byte, ConfigError, "another file than was trained"),
        ("ledger.jsonl", lambda data: data.replace(b"iterations", b"Iterations", 1),
         VerificationError, "altered"),
        ("model.json", later_version, dpads.errors.RunError, "newer"),
    ):  # fmt: skip
        folder = edited(monday, tmp_path / name, name, change)
        with pytest.raises(kind, match=message):
            train(days[1], tmp_path / "later", privacy=FIXED, start_from=folder)
    assert not (tmp_path / "later.partial").exists()


def test_a_run_in_memory_has_to_be_saved_first(days: list[ExampleStore], tmp_path: Path) -> None:
    run = train(days[0], privacy=FIXED)
    with pytest.raises(ConfigError, match=r"run\.save"):
        train(days[1], privacy=FIXED, start_from=run)
    run.save(tmp_path / "saved")
    again = train(days[1], privacy=FIXED, start_from=dpads.Run.load(tmp_path / "saved"))
    assert kinds(again.ledger)[0] == "earlier_run"


@pytest.mark.parametrize("iteration", [1, 9])
def test_a_cut_off_run_goes_on_as_if_it_had_not_been(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path, iteration: int
) -> None:
    """Also where somebody looked at the earlier run meanwhile."""
    assert monday.path is not None
    shutil.copytree(monday.path, tmp_path / "monday")
    keys = {"privacy": FIXED, "start_from": tmp_path / "monday", "noise_seed": 3}
    whole = train(days[1], tmp_path / "whole", **keys)
    out = tmp_path / "cut"
    often = Performance(threads=1, checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(days[1], out, **keys, performance=often, on_progress=stop_at(iteration))
    earlier = dpads.Run.load(tmp_path / "monday")
    for _ in range(4):
        earlier.evaluate(days[2])
    assert len(earlier.ledger.entries) > len(monday.ledger.entries)
    partial = tmp_path / "cut.partial"
    config = load_config(partial / "config.toml")
    run = train_config(config, store=days[1], performance=often, out=out, resume=True)
    for name, value in whole.model.state().items():
        assert np.array_equal(run.model.state()[name], value)
    assert kinds(run.ledger) == kinds(whole.ledger)
    assert run.ledger.entries[0] == whole.ledger.entries[0]
    holds(run)


def test_a_run_whose_start_is_another_now_is_not_resumed(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    assert monday.path is not None
    shutil.copytree(monday.path, tmp_path / "start")
    out = tmp_path / "cut"
    keys = {"privacy": FIXED, "start_from": tmp_path / "start"}
    with pytest.raises(KeyboardInterrupt):
        train(days[1], out, **keys, on_progress=stop_at(1))
    shutil.rmtree(tmp_path / "start")
    train(days[0], tmp_path / "start", privacy=FIXED, test=0.2)
    config = load_config(tmp_path / "cut.partial" / "config.toml")
    with pytest.raises(CheckpointError, match="start"):
        train_config(
            config, store=days[1], performance=Performance(threads=1), out=out, resume=True
        )
    assert (tmp_path / "cut.partial").is_dir()  # its privacy is spent: nothing is thrown away


def test_a_configuration_names_the_folder_beside_it(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    assert monday.path is not None
    shutil.copytree(monday.path, tmp_path / "runs" / "monday")
    text = (monday.path / "config.toml").read_text()
    text = text.replace("[training]", '[training]\nstart_from = "runs/monday"')
    (tmp_path / "day2.toml").write_text(text)
    config = load_config(tmp_path / "day2.toml", [f"data.train={json.dumps(str(days[1].path))}"])
    assert config.training.start_from == str(tmp_path / "runs" / "monday")
    run = train_config(config, out=tmp_path / "tuesday", performance=Performance(threads=1))
    assert kinds(run.ledger)[0] == "earlier_run"
    with pytest.raises(ConfigError, match="expected a path, got an empty text"):
        load_config(tmp_path / "day2.toml", ['training.start_from=""'])


def test_sweeps_and_recipes_do_not_start_from_earlier_runs(
    days: list[ExampleStore], monday: dpads.Run, tmp_path: Path
) -> None:
    training = dataclasses.replace(monday.config.training, start_from=str(monday.path))
    privacy = dataclasses.replace(FIXED, noise_multiplier=None, epsilon=3.0)
    data = dataclasses.replace(monday.config.data, train=(str(days[1].path),))
    config = dataclasses.replace(monday.config, training=training, privacy=privacy, data=data)
    with pytest.raises(ConfigError, match="a trial of a recipe cannot start from an earlier run"):
        dpads.recipe(config, out=tmp_path / "recipe")
    (tmp_path / "base.toml").write_text(to_toml(config))
    document = {"base": "base.toml", "axes": {"privacy.epsilon": [1.0, 2.0]}}
    with pytest.raises(ConfigError, match="a trial of a sweep cannot start from an earlier run"):
        parse_sweep(document, base=tmp_path)
    with pytest.raises(ConfigError, match='start_from" cannot be an axis'):
        check_axis("training.start_from")
    assert [path.name for path in tmp_path.iterdir()] == ["base.toml"]


class Sum(nn.Module):
    """A user's own module: the sum of one number per id."""

    def __init__(self, columns: tuple[str, ...], rows: dict[str, int]) -> None:
        super().__init__()
        self.columns = columns
        self.numbers = nn.ModuleDict({name: nn.Embedding(rows[name], 1) for name in columns})
        self.bias = nn.Linear(1, 1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        parts = [self.numbers[name](inputs[name]) for name in self.columns]
        logits: torch.Tensor = self.bias(torch.stack(parts).sum(0)).squeeze(1)
        return logits


def test_a_torch_module_that_is_made_again_starts_from_its_earlier_run(
    days: list[ExampleStore], tmp_path: Path
) -> None:
    schema = days[0].schema

    def made(seed: int) -> Any:
        torch.manual_seed(seed)
        columns = schema.categorical
        rows = {item.name: schema.table_rows[item.table] for item in schema.fields}
        return dpads.models.from_torch(Sum(columns, rows), schema)

    first = train(days[0], tmp_path / "a", privacy=FIXED, model=made(0))
    assert first.ledger.entries[0].treatment == "public_data_only"
    assert "hold nothing of anybody's data" in first.statement().headline
    holds(first)
    later = train(days[1], tmp_path / "b", privacy=FIXED, model=made(1), start_from=first)
    treatments = [e.treatment for e in later.ledger.entries if e.kind == "earlier_run"]
    assert treatments == ["covered_by_accounting", "public_data_only"]
    resting = later.ledger.entries[0].details["earlier"]["rests_on"]
    assert any("hold nothing of anybody's data" in text for text in resting)
    holds(later)
    with pytest.raises(ConfigError, match=r"same model.*differs in"):
        train(days[1], tmp_path / "c", privacy=FIXED, start_from=first)
