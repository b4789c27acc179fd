"""What the tests of recipes share: a configuration, and sweeps that run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpads.config import Config, parse_config
from dpads.config_toml import to_toml
from dpads.sweep_config import SweepConfig
from dpads.sweep_ledger import one_of
from dpads.sweep_stores import open_stores
from dpads.sweep_trial import TrialTask, run_trial
from dpads.sweeping import Sweep

DOCUMENT: dict[str, Any] = {
    "schema": {
        "task": "ctr",
        "label": "click",
        "numeric": ["past_clicks", "past_views", "page_depth"],
        "categorical": ["device", "hour", "region", "site", "campaign"],
        "bags": ["interests"],
        "buckets": 200,
    },
    "model": {"name": "logistic"},
    "privacy": {"epsilon": 8.0, "dataset_size": 2400},
    "training": {"expected_batch_size": 300, "epochs": 1},
}
Check = Callable[[Path, SweepConfig], None]


def configuration(folder: Path, **changes: dict[str, Any]) -> Config:
    """The recipe's start on the small log."""
    tables: dict[str, Any] = {
        "data": {"train": str(folder / "train-store"), "test": 0.2},
        **DOCUMENT,
    }
    merged = {name: {**table, **changes.get(name, {})} for name, table in tables.items()}
    return parse_config(merged, base=folder)


class Here:
    """Runs sweeps in this process and remembers them.

    Attributes:
        names: of the stages whose trials ran.
        check: called with the recipe's folder before a sweep's first trial.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.check: Check = lambda folder, asked: None

    def __call__(
        self,
        asked: SweepConfig,
        *,
        out: Path,
        first: Sequence[Mapping[str, Any]] | None,
        **_: object,
    ) -> Sweep:
        self.check(out.parent.parent, asked)
        self.names.append(out.name)
        (out / "trials").mkdir(parents=True, exist_ok=True)
        (out / "sweep.toml").write_text(asked.to_toml())
        stores = open_stores(asked, out / "store", None)
        if first is None:
            first = one_of(len(asked.trials), "", asked.rows)
        for trial in asked.trials:
            run = out / "trials" / trial.name
            if not run.exists():
                outcome = run_trial(
                    TrialTask(
                        name=trial.name,
                        config=to_toml(stores.config_of(trial)),
                        folder=str(run),
                        ledger=str(out / "ledger.jsonl"),
                        rows=asked.rows,
                        test_rows=stores.test_rows,
                        threads=1,
                        first=first,
                    )
                )
                assert outcome.status == "done", outcome.error
        return Sweep(out, asked)


def recipes_here(monkeypatch: pytest.MonkeyPatch) -> Here:
    """Small grids, sweeps in this process, no measurements and no pictures."""
    found = Here()
    monkeypatch.setattr("dpads.recipe_trials.sweep", found)
    small_grids(monkeypatch)
    monkeypatch.setattr("dpads.recipe_batch.private_step_seconds", lambda *_, **__: 1e-3)
    monkeypatch.setattr("dpads.recipe_report.write_recipe_report", lambda folder: None)
    return found


def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trials a stage."""
    monkeypatch.setattr("dpads.recipe_stages.REFERENCE_FACTORS", ((0.5, 1.0), (1.0,)))
    monkeypatch.setattr("dpads.recipe_stages.CLIP_FACTORS", (0.5, 1.0))
    monkeypatch.setattr("dpads.recipe_stages.CLIP_RATE_FACTORS", (1.0,))
    monkeypatch.setattr("dpads.recipes.EXTENSIONS", 0)


def document_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "recipe.json").read_text()))


def spent(folder: Path) -> list[Any]:
    return list(json.loads((folder / "filter.json").read_text())["spent"])
