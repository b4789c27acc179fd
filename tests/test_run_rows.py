"""Seeds of the split, and what is told of the plan before rows are read."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from small_runs import SMALL

import dpads
from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.config import load_config
from dpads.errors import ConfigError
from dpads.plan import Plan
from dpads.run_training import train_config
from dpads.store import ExampleStore


def test_split_seed_alone_says_which_rows_are_tested(train_store: ExampleStore) -> None:
    def fingerprints(init_seed: int, split_seed: int | None) -> tuple[str, str | None]:
        run = dpads.train(
            train_store, **SMALL, test=0.5, init_seed=init_seed, split_seed=split_seed
        )
        return run.record.train_fingerprint, run.record.test_fingerprint

    same = fingerprints(1, None)
    assert fingerprints(1, 1) == fingerprints(2, 1) == same
    assert fingerprints(1, 2) != same
    with pytest.raises(
        ConfigError, match=r"split_seed to be a whole number in \[0, 2\^63\), got -1"
    ):
        fingerprints(1, -1)


def test_the_plan_is_told_before_the_ledger_opens(
    train_store: ExampleStore, tmp_path: Path
) -> None:
    told: list[Plan] = []

    def refuse(plan: Plan) -> None:
        assert not (tmp_path / "run.partial" / "ledger.jsonl").exists()
        told.append(plan)
        raise ConfigError("not this one")

    config = dpads.train(train_store, **SMALL).config
    with pytest.raises(ConfigError, match="not this one"):
        train_config(config, store=train_store, out=tmp_path / "run", on_plan=refuse)
    assert not (tmp_path / "run.partial").exists()  # nothing was read: nothing is left
    plans: list[Plan] = []
    run = train_config(config, store=train_store, out=tmp_path / "run", on_plan=plans.append)
    assert plans == told == [run.plan]
    assert Ledger.load(tmp_path / "run/ledger.jsonl").joint_event() == plans[0].event()


def test_a_disk_that_fills_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    files.write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    assert path.read_text() == "old"


def test_a_run_trained_again_from_its_folder_tests_the_same_rows(
    train_store: ExampleStore, tmp_path: Path
) -> None:
    run = dpads.train(
        train_store, **SMALL, test=0.5, init_seed=1, split_seed=5, out=tmp_path / "run"
    )
    again = train_config(load_config(tmp_path / "run" / "config.toml"))
    assert again.record.test_fingerprint == run.record.test_fingerprint
