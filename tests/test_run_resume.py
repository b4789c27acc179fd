"""Interrupted runs: going on gives the same run, or says why not; nothing private is left."""

from __future__ import annotations

import dataclasses
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from cli_calls import dpads_command
from small_runs import SMALL, kinds, stop_at

import dpads
from dpads import training
from dpads.accounting.ledger import Ledger
from dpads.config import DataConfig
from dpads.errors import (
    CheckpointError,
    ConfigError,
)
from dpads.run_training import train_config
from dpads.store import ExampleStore
from dpads.training_identity import differences


def test_interrupted_and_resumed_is_the_same_to_the_bit(
    train_store: ExampleStore,
    test_store: ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    common = {**SMALL, "test": test_store, "reference": True, "noise_seed": 5}
    straight = dpads.train(train_store, **common, out=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        dpads.train(train_store, **common, out=tmp_path / "cut", on_progress=stop_at(7))
    partial = tmp_path / "cut.partial"
    assert stat.S_IMODE((partial / "checkpoints").stat().st_mode) == 0o700
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ConfigError, match="--resume"):
        dpads.train(train_store, **common, out=tmp_path / "cut")
    resumed = train_config(
        straight.config, store=train_store, test=test_store, out=tmp_path / "cut", resume=True
    )
    for name, array in straight.model.state().items():
        np.testing.assert_array_equal(resumed.model.state()[name], array)
    assert resumed.metrics == straight.metrics
    assert resumed.record.replayed > 0
    assert kinds(resumed.ledger).count("training") == 1
    assert kinds(resumed.ledger).count("reference") == 1
    assert not partial.exists()
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_what_a_kill_leaves_of_preparation_does_not_reach_the_run(
    train_store: ExampleStore, log_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "run", tmp_path / "run.partial"
    data = DataConfig(train=(str(log_folder / "train.parquet"),))
    config = dataclasses.replace(dpads.train(train_store, **SMALL).config, data=data)
    # A kill runs no handler: let the handler do nothing.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)

    def killed(_: int) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        train_config(config, out=out, on_prepare=killed)
    monkeypatch.undo()
    assert [item.name for item in partial.glob("prepared/*")]
    assert stat.S_IMODE(partial.stat().st_mode) == 0o700
    train_config(config, out=out, resume=True)
    assert not [item for item in out.iterdir() if item.is_dir()]
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert not partial.exists()


@pytest.mark.parametrize("step", ["write", "discard"])
def test_a_whole_run_that_was_not_renamed_is_resumed_by_renaming(
    train_store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = tmp_path / "run"
    config = dpads.train(train_store, **SMALL).config
    real = training.Trainer.discard_checkpoints

    def stop(trainer: training.Trainer) -> None:
        if step == "discard":
            real(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "discard_checkpoints", stop)
    with pytest.raises(KeyboardInterrupt):
        train_config(config, store=train_store, out=out)
    monkeypatch.undo()
    head = Ledger.load(tmp_path / "run.partial" / "ledger.jsonl").head
    run = train_config(config, store=train_store, out=out, resume=True)
    assert run.ledger.head == head
    assert run.path == out
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    assert not (out / "checkpoints").exists()
    with pytest.raises(ConfigError, match="exists already"):
        train_config(config, store=train_store, out=out, resume=True)


def test_a_run_cannot_be_resumed_as_another(
    train_store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    out = tmp_path / "run"
    config = dpads.train(train_store, **SMALL).config
    with pytest.raises(ConfigError, match="nothing to resume"):
        train_config(config, store=train_store, out=out, resume=True)
    with pytest.raises(KeyboardInterrupt):
        train_config(config, store=train_store, out=out, on_progress=stop_at(3))
    other = dataclasses.replace(config, privacy=dpads.PrivacySpec(epsilon=9.0, dataset_size=3000))
    with pytest.raises(ConfigError, match=r"configuration: privacy\.epsilon differ"):
        train_config(other, store=train_store, out=out, resume=True)
    data = DataConfig(train=("another.parquet",))
    with pytest.raises(ConfigError, match=r"configuration: data\.train differ"):
        train_config(dataclasses.replace(config, data=data), out=out, resume=True)
    shutil.rmtree(tmp_path / "run.partial" / "checkpoints")
    with pytest.raises(CheckpointError, match="privacy is spent"):
        train_config(config, store=train_store, out=out, resume=True)


def test_a_run_from_python_goes_on_from_the_command_line(
    train_store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration names the store in a way that holds wherever the file is read."""
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    (tmp_path / "store").symlink_to(train_store.path)
    monkeypatch.chdir(tmp_path)
    store = ExampleStore.open("store")
    with pytest.raises(KeyboardInterrupt):
        dpads.train(store, **SMALL, out="run", on_progress=stop_at(3))
    result = dpads_command("train", "run.partial/config.toml", "--out", "run", "--resume")
    assert result.exit_code == 0, result.output
    assert dpads.Run.load("run").record.replayed > 0


def test_what_changed_of_a_runs_identity_is_told_in_words() -> None:
    saved = {"threads": 2, "plan": {"a": 1}, "jax": {"devices": ["cpu", "cpu"], "flags": {}}}
    assert differences(saved, saved) == []
    assert differences(saved, {**saved, "threads": 1, "plan": {"a": 2}}) == ["plan", "threads"]
    fewer = {**saved, "jax": {"devices": ["cpu"], "flags": {}}}
    assert differences(saved, fewer) == ["the number of JAX's devices (2 then, 1 now)"]
    others = {**saved, "jax": {"devices": ["cpu", "gpu"], "flags": {"XLA_FLAGS": "x"}}}
    assert differences(saved, others) == ["jax devices", "jax flags"]
    assert differences(saved, {**saved, "jax": None}) == ["jax"]
    assert differences({}, {"sums": 6}) == ["sums"]
