"""What the tests of private selection share: four candidates on the small log, trained in this process."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dpads
from dpads import run_files as files
from dpads.config import parse_config
from dpads.private_selection import Selection
from dpads.private_selection_worker import CandidateTask
from dpads.record import describe_model, parameters_of
from dpads.sweep_config import SweepConfig
from dpads.training import Performance

SCHEMA = {
    "task": "ctr",
    "label": "click",
    "numeric": ["past_clicks", "past_views", "page_depth"],
    "categorical": ["device", "hour", "region", "site", "campaign"],
    "bags": ["interests"],
    "buckets": 200,
}
RATES = [0.25, 0.5, 1.0, 2.0]
Runner = Callable[[CandidateTask], float]


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    """A sweep of four learning rates on the small log, as SWEEP.toml gives it."""
    base: dict[str, Any] = {
        "data": {"train": str(folder / "train-store"), "test": 0.2},
        "schema": SCHEMA,
        "model": {"name": "logistic"},
        "privacy": {"epsilon": 8.0, "dataset_size": 2400},
        "training": {"expected_batch_size": 300, "epochs": 1},
    }
    return {
        "base": base,
        "axes": {"training.table_optimizer.learning_rate": RATES},
        "tune": {"mean_trials": 3.0},
        **changes,
    }


def rate_of(task: CandidateTask) -> float:
    """Which candidate a task is."""
    return float(task.config.split("learning_rate = ")[1].split(",")[0].split(" ")[0])


def selection(config: SweepConfig, runner: Runner) -> Selection:
    """A selection whose candidates are trained in this process, by `runner`."""

    @contextmanager
    def make(_: int, __: Callable[[], float]) -> Iterator[Runner]:
        yield runner

    return Selection(config, Performance(threads=1), make)


def quick(scores: dict[float, float]) -> Runner:
    """A runner that trains nothing: a candidate's score is known, its model is untrained."""

    def run(task: CandidateTask) -> float:
        config = parse_config(tomllib.loads(task.config), base=Path("/"))
        model, slot = config.model.init(config.schema), Path(task.slot)
        files.write_bytes(slot / files.PARAMETERS, *parameters_of(model))
        files.write_text(slot / files.MODEL, describe_model(model))
        (slot / "facts.json").write_text(json.dumps({"executed": 8}))
        return scores[rate_of(task)]

    return run


def stop(_: CandidateTask) -> float:
    """A runner that is interrupted."""
    raise KeyboardInterrupt


def carry_out(config: SweepConfig, out: Path, runner: Runner) -> dpads.Run:
    return selection(config, runner).carry_out(out, None, None, None)


def number_drawn(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Makes the law draw this number, once."""
    drawn: list[int] = []

    def draw(*_: object) -> int:
        assert not drawn, "the number was drawn again"
        drawn.append(number)
        return number

    monkeypatch.setattr("dpads.private_selection_state.draw_number", draw)
