"""One trial: an ordinary run, announced before it trains and charged once, however often it is tried."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import kinds
from sweep_cases import TOO_LARGE, announced, sweep_of, tasks_of

import dpads
from dpads import resources, sweep_trial, training
from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.errors import ConfigError
from dpads.store import ExampleStore
from dpads.sweep_ledger import one_of
from dpads.sweep_trial import TrialTask, outcome_file, read_outcome, run_trial


@pytest.fixture
def task(train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path) -> TrialTask:
    return task_of({"privacy.epsilon": [3]}, train_store, test_store, tmp_path)


def task_of(
    axes: dict[str, Any], train: ExampleStore, test: ExampleStore, folder: Path
) -> TrialTask:
    """The only trial of a sweep on stores."""
    config = sweep_of(axes)
    (trial,) = config.trials
    data = dataclasses.replace(trial.config.data, train=(str(train.path),), test=(str(test.path),))
    own = to_toml(dataclasses.replace(trial.config, data=data))
    return dataclasses.replace(tasks_of(config, folder)[0], config=own)


def cut_off(at: object) -> None:
    """What a crash does, without its end of the process."""
    raise KeyboardInterrupt


def test_a_trial_is_an_ordinary_run(task: TrialTask, tmp_path: Path) -> None:
    outcome = run_trial(task)
    assert outcome.status == "done"
    run = dpads.Run.load(task.folder)
    assert run.plan.loss.epsilon == outcome.epsilon
    assert run.metrics["auc"] is not None
    assert dpads.verify(task.folder).first_failure is None
    assert kinds(run.ledger) == ["training", "training_finished", "recalibration", "evaluation"]
    assert outcome.seconds is not None
    assert outcome.wall_seconds is not None
    assert 0 < outcome.seconds < outcome.wall_seconds
    assert read_outcome(Path(task.folder)) == outcome
    tuning, evaluation = Ledger.load(tmp_path / "ledger.jsonl").entries
    assert tuning.dp_event == run.plan.event()
    assert (tuning.kind, tuning.rows, tuning.treatment) == (
        "tuning", "train", "covered_by_accounting",
    )  # fmt: skip
    assert tuning.details == {
        "trial": "0001",
        "relation": "add_or_remove_one",
        "delta": run.plan.delta,
        "unit": "example",
        "cap": None,
    }
    assert (evaluation.kind, evaluation.rows, evaluation.treatment) == (
        "evaluation", "declared_test", "not_covered",
    )  # fmt: skip
    assert "0001" in evaluation.description


@pytest.mark.parametrize(
    ("rows", "treatment"), [("private", "not_covered"), ("synthetic", "public_data_only")]
)
def test_what_trains_without_noise_is_covered_by_nothing(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path, rows: str, treatment: str
) -> None:
    task = task_of({"privacy.epsilon": [math.inf]}, train_store, test_store, tmp_path)
    outcome = run_trial(dataclasses.replace(task, rows=rows))
    assert outcome.status == "done"
    assert outcome.epsilon is None
    entries = Ledger.load(tmp_path / "ledger.jsonl").entries
    assert [(entry.kind, entry.treatment) for entry in entries] == [
        ("reference", treatment),
        ("evaluation", treatment),
    ]


def test_the_trial_is_on_the_ledger_before_it_trains(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = training.Trainer.__init__

    def watch(*arguments: Any, **keys: Any) -> None:
        seen.append(len(Ledger.load(tmp_path / "ledger.jsonl").entries))
        real(*arguments, **keys)

    monkeypatch.setattr(training.Trainer, "__init__", watch)
    run_trial(task)
    assert seen == [2]


def test_what_was_cut_off_goes_on_and_is_charged_once(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_trial(task, cut_off)
    assert Path(f"{task.folder}.partial").is_dir()
    assert run_trial(task).status == "done"
    assert announced(tmp_path) == {("0001", "tuning"): 1, ("0001", "evaluation"): 1}
    run = dpads.Run.load(task.folder)
    assert kinds(run.ledger).count("training") == 1
    assert run.record.replayed > 0


def test_what_was_cut_off_before_it_read_a_row_is_charged_once(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.Trainer, "__init__", cut_off)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a kill runs no handler
    with pytest.raises(TypeError):  # as the first argument of many
        run_trial(task)
    monkeypatch.undo()
    partial = Path(f"{task.folder}.partial")
    assert not (partial / "ledger.jsonl").exists()
    (partial / "config.toml").unlink()
    assert run_trial(task).status == "done"
    assert announced(tmp_path)["0001", "tuning"] == 1


def test_a_model_that_does_not_fit_is_not_charged(
    train_store: ExampleStore, test_store: ExampleStore, tmp_path: Path
) -> None:
    task = task_of({"model": [TOO_LARGE]}, train_store, test_store, tmp_path)
    outcome = run_trial(task)
    assert outcome.status == "failed"
    assert "memory" in str(outcome.error)
    assert not outcome.began
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_trial_that_failed_before_it_trained_is_not_charged_again(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: object) -> None:
        raise ConfigError("no room")

    monkeypatch.setattr(training, "check_memory", no_room)
    outcome = run_trial(task)
    assert (outcome.status, outcome.error, outcome.began) == ("failed", "no room", False)
    assert announced(tmp_path)["0001", "tuning"] == 1
    monkeypatch.undo()
    assert run_trial(dataclasses.replace(task, retry=True)).status == "done"
    assert announced(tmp_path)["0001", "tuning"] == 1


def test_a_trial_of_many_says_so_on_its_own_ledger_once(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = one_of(3, "0" * 64, "private")
    task = dataclasses.replace(task, first=first)
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_trial(task, cut_off)
    assert run_trial(TrialTask(**json.loads(json.dumps(task.to_dict())))).status == "done"
    assert announced(tmp_path) == {("0001", "tuning"): 1, ("0001", "evaluation"): 1}
    run = dpads.Run.load(task.folder)
    assert kinds(run.ledger) == [
        "trial",
        "training",
        "training_finished",
        "recalibration",
        "evaluation",
    ]
    assert run.ledger.entries[0].details == {"sweep": "0" * 64, "trials": 3}
    assert "the 2 other trials of the sweep" in run.statement().headline
    assert dpads.verify(task.folder).ok


def test_one_trial_alone_and_made_up_rows_have_nothing_to_say() -> None:
    assert one_of(1, "", "private") == one_of(5, "", "synthetic") == []
    assert one_of(5, "", "public")[0]["treatment"] == "public_data_only"
    (entry,) = one_of(5, "", "private", "a recipe")
    assert entry["treatment"] == "not_covered"
    assert "5 trials of a recipe" in entry["description"]


def test_what_a_ledger_begins_with_is_no_beginning_of_training(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: object) -> None:
        raise ConfigError("no room")

    task = dataclasses.replace(task, first=one_of(3, "", "private"))
    monkeypatch.setattr(training, "check_memory", no_room)
    assert not run_trial(task).began
    monkeypatch.undo()
    with monkeypatch.context() as killed:
        killed.setattr(training.Trainer, "__init__", cut_off)
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(TypeError):
            run_trial(task)
    assert run_trial(task).status == "done"
    assert announced(tmp_path)["0001", "tuning"] == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_ledger_that_somebody_took_away_is_no_free_trial(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    task = dataclasses.replace(task, first=[] if alone else one_of(3, "", "private"))
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_trial(task, cut_off)
    partial = Path(f"{task.folder}.partial")
    (partial / "ledger.jsonl").unlink()
    if not alone:
        shutil.rmtree(partial / "checkpoints")
    assert run_trial(task).status == "done"
    assert announced(tmp_path)["0001", "tuning"] == 2


@pytest.mark.parametrize("lost", ["checkpoints", "run"])
def test_what_trained_and_was_lost_is_charged_again(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(training, "PROGRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run_trial(task, cut_off)
    partial = Path(f"{task.folder}.partial")
    shutil.rmtree(partial / "checkpoints" if lost == "checkpoints" else partial)
    if lost == "checkpoints":
        failed = run_trial(task)
        assert failed.status == "failed"
        assert "privacy is spent" in str(failed.error)
        assert announced(tmp_path)["0001", "tuning"] == 1
    assert run_trial(dataclasses.replace(task, retry=True)).status == "done"
    assert announced(tmp_path) == {("0001", "tuning"): 2, ("0001", "evaluation"): 2}
    attempts = [e.details.get("attempt") for e in Ledger.load(tmp_path / "ledger.jsonl").entries]
    assert attempts == [None, None, 2, 2]


def test_a_full_disk_fails_the_trial(
    task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = training.Trainer.save

    def full(trainer: training.Trainer) -> None:
        if any(entry.kind == "training" for entry in trainer._ledger.entries):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(trainer)

    monkeypatch.setattr(training.Trainer, "save", full)
    outcome = run_trial(task)
    assert outcome.status == "failed"
    assert outcome.error == "OSError: [Errno 28] No space left on device"
    assert outcome.began
    monkeypatch.undo()
    assert run_trial(dataclasses.replace(task, retry=True)).status == "done"
    # Its keys were kept before the entry: what began goes on, and is charged once.
    assert announced(tmp_path)["0001", "tuning"] == 1


def test_a_trial_is_trained_by_one_process_at_a_time(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_trial, "PATIENCE", 0.2)
    code = (
        "import sys; from pathlib import Path; from dpads.sweep_trial import _alone\n"
        "with _alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dpads.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code, task.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        outcome = run_trial(task)
        assert outcome.status == "failed"
        assert "another process is training this trial" in str(outcome.error)
        other.communicate()
    outcome_file(Path(task.folder)).unlink()
    assert run_trial(task).status == "done"


def test_the_peak_of_memory_is_the_trials_own(task: TrialTask) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell")
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    del ballast
    high = sweep_trial._peak_memory()
    outcome = run_trial(task)
    assert high is not None
    assert outcome.memory_bytes is not None
    assert outcome.memory_bytes < high - 200_000_000


def test_a_damaged_outcome_is_none(task: TrialTask) -> None:
    folder = Path(task.folder)
    folder.parent.mkdir(parents=True)
    assert read_outcome(folder) is None
    outcome_file(folder).write_text("{")
    assert read_outcome(folder) is None
    known = {"name": "0001", "status": "done"}
    outcome_file(folder).write_text(json.dumps({**known, "later": 1}))
    assert read_outcome(folder) == sweep_trial.TrialOutcome(name="0001", status="done")


def test_counting_rows_that_does_not_fit_is_not_charged(
    train_store: ExampleStore,
    test_store: ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What training refuses for the memory of its selection, the check before the charge refuses too."""
    axes = {"selection.kind": ["noisy_count"]}
    task = task_of(axes, train_store, test_store, tmp_path)
    seen: list[bool] = []
    real = resources.estimate_memory

    def estimate(*arguments: Any, counted: bool = False, **keys: Any) -> Any:
        seen.append(counted)
        found = real(*arguments, counted=counted, **keys)
        return dataclasses.replace(found, checkpoint=2**60) if counted else found

    monkeypatch.setattr(resources, "estimate_memory", estimate)
    outcome = run_trial(task)
    assert seen == [True]
    assert (outcome.status, outcome.began) == ("failed", False)
    assert "memory" in str(outcome.error)
    assert not (tmp_path / "ledger.jsonl").exists()
