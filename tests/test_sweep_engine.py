"""Worker processes: each trial once, a death fails one trial alone, and nothing outlives its sweep."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import TOO_LARGE, announced, sweep_of, tasks_of

import dpads
from dpads import sweep_engine
from dpads.config_toml import to_toml
from dpads.errors import RunError
from dpads.store import ExampleStore
from dpads.sweep_engine import TrialEvent, run_trials
from dpads.sweep_trial import TrialTask, run_trial


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The worker processes, as they are started."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def start(*arguments: Any, **keys: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **keys))
        return started[-1]

    monkeypatch.setattr(sweep_engine.subprocess, "Popen", start)
    return started


@pytest.fixture
def make(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> Callable[[dict[str, Any]], list[TrialTask]]:
    """Makes a sweep's tasks, on stores."""

    def tasks(axes: dict[str, Any]) -> list[TrialTask]:
        config = sweep_of(axes)
        found = []
        for trial, task in zip(config.trials, tasks_of(config, tmp_path), strict=True):
            data = dataclasses.replace(
                trial.config.data, train=(str(train_store.path),), test=(str(test_store.path),)
            )
            text = to_toml(dataclasses.replace(trial.config, data=data))
            found.append(dataclasses.replace(task, config=text))
        return found

    return tasks


def test_a_failure_and_a_death_end_no_other_trial(
    make: Callable[[dict[str, Any]], list[TrialTask]],
    processes: list[subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    (good, long), (large, bug) = (
        make({"training.epochs": [2, 200]}),
        make({"model": [TOO_LARGE], "training.init_seed": [1, 2]}),
    )
    tasks = [
        dataclasses.replace(long, name="long", folder=str(tmp_path / "trials" / "long")),
        dataclasses.replace(large, name="large", folder=str(tmp_path / "trials" / "large")),
        # An error that nobody foresaw.
        dataclasses.replace(
            bug, name="bug", folder=str(tmp_path / "trials" / "bug"), config="no TOML"
        ),
        dataclasses.replace(good, name="good", folder=str(tmp_path / "trials" / "good")),
    ]
    events: list[TrialEvent] = []

    def watch(event: TrialEvent) -> None:
        events.append(event)
        if event.trial == "long" and 0 < event.iteration < event.iterations:
            processes[0].kill()

    outcomes = {outcome.name: outcome for outcome in run_trials(tasks, workers=1, on_event=watch)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "long": "failed", "large": "failed", "bug": "failed", "good": "done",
    }  # fmt: skip
    assert "killed by SIGKILL, as systems do where memory is short" in str(outcomes["long"].error)
    assert "memory that this process can have" in str(outcomes["large"].error)
    assert "ended with exit code 1 (TOMLDecodeError)" in str(outcomes["bug"].error)
    assert "Traceback" in (tmp_path / "trials" / "bug.log").read_text()
    assert [outcomes[name].began for name in ("long", "large", "bug")] == [True, False, False]
    assert len(processes) == 3  # both deaths were made good
    assert all(process.poll() is not None for process in processes)
    assert [event.trial for event in events if event.kind == "started"] == list(outcomes)
    # What the dead worker left goes on where it was.
    again = run_trial(tasks[0])
    assert again.status == "done"
    assert announced(tmp_path)["long", "tuning"] == 1
    assert dpads.Run.load(tasks[0].folder).record.replayed > 0


# A worker as it is, but for its trials, which never end.
ENDLESS = """
import json, sys, time
sys.path[:] = json.loads(sys.argv[1])
from types import SimpleNamespace
from dpads import sweep_worker

def endless(task, report):
    while True:
        report(SimpleNamespace(iteration=1, iterations=2))
        time.sleep(0.01)

sweep_worker.importlib = SimpleNamespace(import_module=lambda name: None)
sweep_worker.run_trial = endless
sweep_worker.main(int(sys.argv[2]))
"""


def test_an_interrupted_sweep_leaves_no_process(
    make: Callable[[dict[str, Any]], list[TrialTask]],
    processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_engine, "_CODE", ENDLESS)

    def interrupt(event: TrialEvent) -> None:
        if event.kind == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(make({"training.epochs": [2, 3]}), workers=2, on_event=interrupt)
    assert [process.poll() for process in processes] == [0, 0]


def test_a_worker_that_cannot_start_says_why(
    make: Callable[[dict[str, Any]], list[TrialTask]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_engine, "_CODE", "raise SystemExit('no such thing')")
    with pytest.raises(RunError, match=r"(?s)No worker process could be started.*no such thing"):
        run_trials(make({"training.epochs": [2, 3]}), workers=2)


def test_workers_limit_their_libraries_threads(
    make: Callable[[dict[str, Any]], list[TrialTask]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, str]] = []

    class RefusedError(Exception):
        pass

    def refuse(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env)
        raise RefusedError

    monkeypatch.setattr(sweep_engine.subprocess, "Popen", refuse)
    task = dataclasses.replace(make({"training.epochs": [2]})[0], threads=3)
    with pytest.raises(RefusedError):
        run_trials([task], workers=1)
    assert [given[0][name] for name in sweep_engine.THREAD_LIMITS] == ["3"] * 4
    assert given[0].get("OPENBLAS_NUM_THREADS") == os.environ.get("OPENBLAS_NUM_THREADS")


def test_no_trials_need_no_worker() -> None:
    assert run_trials([], workers=2) == []
