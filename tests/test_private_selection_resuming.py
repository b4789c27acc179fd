"""Private selection: what was interrupted goes on as it began, or is refused and costs nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from private_selections import (
    RATES,
    carry_out,
    document,
    number_drawn,
    quick,
    rate_of,
    selection,
    stop,
)

import dpads
from dpads.errors import CheckpointError, ConfigError
from dpads.private_score import WORST
from dpads.private_selection import Selection
from dpads.private_selection_process import CandidateProcess
from dpads.private_selection_state import locked
from dpads.private_selection_worker import CandidateTask, StoppedError, train_candidate
from dpads.store import ExampleStore
from dpads.sweep_config import SweepConfig, parse_sweep
from dpads.training import Performance, Trainer
from dpads.tune_config import TuneConfig

STEP = Trainer.step


def cut_off(self: Trainer) -> None:
    """A step that is interrupted, the second time without a checkpoint before it."""
    if self.iteration == 5:
        self.save()
    if self.iteration == 7:
        raise KeyboardInterrupt
    STEP(self)


@pytest.fixture
def candidates(train_store: ExampleStore, log_folder: Path) -> SweepConfig:
    """Four candidates."""
    return parse_sweep(document(log_folder), base=log_folder)


@pytest.fixture
def task(candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CandidateTask:
    """What a candidate is asked; its slot is there."""
    seen: list[CandidateTask] = []

    def note(task: CandidateTask) -> float:
        seen.append(task)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        number_drawn(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            carry_out(candidates, tmp_path / "asked", note)
    return seen[0]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_interrupted_it_goes_on_with_the_same_draw(
    candidates: SweepConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each start is cut off in the middle of the next candidate; the last one ends."""
    number_drawn(monkeypatch, 5)
    tasks: list[tuple[float, str, str]] = []
    steps = iter((0, 1, 1, 2, 99))
    scores = dict(zip(RATES, (-0.4, -0.3, -0.2, -0.1), strict=True))
    for allowed in steps:
        left = [allowed]

        def run(task: CandidateTask, left: list[int] = left) -> float:
            tasks.append((rate_of(task), task.score_key, Path(task.slot).name))
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return quick(scores)(task)

        if allowed < 99:
            with pytest.raises(KeyboardInterrupt):
                carry_out(candidates, tmp_path / "run", run)
        else:
            run_ = carry_out(candidates, tmp_path / "run", run)
    order = list(dict.fromkeys(tasks))  # one that was cut off comes again, as it was
    assert len(order) == 5
    assert len({score_key for _, score_key, _ in order}) == 5
    best = max(order, key=lambda item: scores[item[0]])
    assert run_.config.training.table_optimizer.learning_rate == best[0]


def test_a_resumption_that_asks_for_something_else_is_refused(
    candidates: SweepConfig, tmp_path: Path
) -> None:
    always = dataclasses.replace(candidates, tune=TuneConfig(mean_trials=3.0, law="geometric"))
    with pytest.raises(KeyboardInterrupt):
        carry_out(always, tmp_path / "run", stop)
    with pytest.raises(ConfigError, match="tune"):
        carry_out(candidates, tmp_path / "run", stop)
    shutil.rmtree(tmp_path / "run.partial" / "sealed")
    with pytest.raises(CheckpointError, match="privacy is spent"):
        carry_out(always, tmp_path / "run", stop)


def test_what_is_refused_before_the_draw_leaves_nothing(
    candidates: SweepConfig, tmp_path: Path
) -> None:
    base = dataclasses.replace(
        candidates.base, privacy=dataclasses.replace(candidates.base.privacy, epsilon=1e-4)
    )
    with pytest.raises(dpads.BudgetError):
        carry_out(dataclasses.replace(candidates, base=base), tmp_path / "run", lambda task: 0.0)
    assert not list(tmp_path.iterdir())


def test_a_candidate_that_was_cut_off_goes_on_to_the_bit_with_the_same_noise(
    task: CandidateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(task, slot=str(tmp_path / "first"))
    (tmp_path / "first").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train_candidate(task)
    shutil.copytree(tmp_path / "first", tmp_path / "second")

    def no_key() -> bytes:
        raise AssertionError("the candidate drew noise anew")

    monkeypatch.setattr("dpads.training.fresh_master_key", no_key)
    again = [
        train_candidate(dataclasses.replace(task, slot=str(tmp_path / name)))
        for name in ("first", "second", "second")
    ]
    assert len(set(again)) == 1
    models = {(tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "second")}
    assert len(models) == 1


# Another machine, other rows


def other_processor(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr("dpads.training_identity.processor", lambda: "another")


def other_version(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setattr(dpads, "__version__", "0.0.1")


def other_blas(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.setenv("OPENBLAS_CORETYPE", "Prescott")


def other_store(patch: pytest.MonkeyPatch, folder: Path) -> None:
    exchange(patch, folder, "train")


def other_test_store(patch: pytest.MonkeyPatch, folder: Path) -> None:
    exchange(patch, folder, "test")


def exchange(patch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """Puts another store of the same rows into a store's place, until the patch is undone."""
    opened = ExampleStore.open

    def other(path: Any, **how: Any) -> ExampleStore:
        return opened(folder / "other" / name if Path(path).name == name else path, **how)

    patch.setattr(ExampleStore, "open", other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_processor, "the kind of processor"),
        (other_version, r"dpads \(was .*, is 0.0.1\)"),
        (other_blas, r"OPENBLAS_CORETYPE \(was None, is Prescott\)"),
        (other_store, "the training store"),
        (other_test_store, "the test store"),
    ],
)
def test_a_start_that_cannot_go_on_to_the_bit_is_refused_and_nothing_is_lost(
    train_store: ExampleStore,
    test_store: ExampleStore,
    log_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], None],
    words: str,
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    for name in ("train", "test"):
        shutil.copytree(log_folder / f"{name}-store", tmp_path / name)
        log = log_folder / f"{name}.parquet"
        dpads.prepare(log, train_store.schema, out=tmp_path / "other" / name)
    asked = document(log_folder)
    asked["base"]["data"] = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    asked["base"]["privacy"]["dataset_size"] = 3000
    config = parse_sweep(asked, base=log_folder)
    number_drawn(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        carry_out(config, tmp_path / "run", stop)
    before = contents(tmp_path / "run.partial")

    def never(_: CandidateTask) -> float:
        raise AssertionError("a candidate went on")

    with monkeypatch.context() as patch:
        change(patch, tmp_path)
        with pytest.raises(CheckpointError, match=words) as error:
            carry_out(config, tmp_path / "run", never)
    assert "another --out" in str(error.value)
    assert "ledger.jsonl" in str(error.value)
    assert contents(tmp_path / "run.partial") == before
    carry_out(config, tmp_path / "run", quick(dict.fromkeys(RATES, -0.5)))


def test_threads_are_those_of_the_first_start(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def start(cores: int, threads: int | None = None) -> None:
        for module in ("private_selection_start", "training_settings", "training_identity"):
            monkeypatch.setattr(f"dpads.{module}.available_cores", lambda: cores)

        def note(task: CandidateTask) -> float:
            seen.append(task.threads)
            raise KeyboardInterrupt

        made = selection(candidates, note)
        Selection(candidates, Performance(threads=threads), made._make_runner).carry_out(
            tmp_path / "run", None, None, None
        )

    number_drawn(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        start(3)
    before = contents(tmp_path / "run.partial")
    with pytest.raises(ConfigError, match=r"begun with 3 threads.*2 cores.*another --out"):
        start(2)
    with pytest.raises(ConfigError, match="threads differ"):
        start(8, threads=4)
    assert contents(tmp_path / "run.partial") == before
    with pytest.raises(KeyboardInterrupt):
        start(8)
    assert seen == [3, 3]


def test_a_start_that_was_cut_off_before_anything_was_asked_begins_anew(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.partial").mkdir()
    number_drawn(monkeypatch, 1)
    assert carry_out(candidates, tmp_path / "run", quick(dict.fromkeys(RATES, -0.5))).path


def test_cut_off_while_cleaning_up_it_leaves_no_secrets_and_one_result(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number_drawn(monkeypatch, 1)
    with monkeypatch.context() as patch:
        patch.setattr("dpads.private_selection._clean", stop)
        with pytest.raises(KeyboardInterrupt):
            carry_out(candidates, tmp_path / "run", quick(dict.fromkeys(RATES, -0.5)))
    assert carry_out(candidates, tmp_path / "run", stop).path == tmp_path / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_candidate_of_another_identity_is_stopped_before_it_trains(task: CandidateTask) -> None:
    other = {**task.identity, "store": "another"}
    with pytest.raises(StoppedError, match="the training store"):
        train_candidate(dataclasses.replace(task, identity=other))
    assert not list(Path(task.slot).iterdir())


def test_rows_that_are_gone_and_a_full_memory_are_no_failures_of_a_candidate(
    task: CandidateTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = task.base.replace("train-store", "no-store")
    with pytest.raises(StoppedError, match="no-store"):
        train_candidate(dataclasses.replace(task, base=gone))
    monkeypatch.setattr("dpads.resources.available_memory", lambda _: 1)
    with pytest.raises(StoppedError, match="fits"):
        train_candidate(task)
    assert not list(Path(task.slot).iterdir())


def test_a_folder_that_another_process_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="Another process ended"), locked(tmp_path / "gone"):
        pass
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("fcntl.flock", lambda *_: shutil.rmtree(tmp_path / "here"))
    with pytest.raises(ConfigError, match="Another process ended"), locked(tmp_path / "here"):
        pass


# What a selected run must not tell


def test_nobody_can_tell_whether_the_selected_run_was_the_interrupted_one(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal randomness, the folders of an interrupted selection and of a whole one are equal."""
    monkeypatch.setattr("dpads.private_selection_state.os.urandom", bytes)
    monkeypatch.setattr("dpads.training.fresh_master_key", lambda: bytes(32))
    monkeypatch.setattr("secrets.token_hex", lambda count: "5e" * count)
    monkeypatch.setattr("dpads.run_files.now", lambda: "2026-01-01T00:00:00Z")
    for name in ("whole", "interrupted"):
        with monkeypatch.context() as patch:
            number_drawn(patch, 1)
            if name == "interrupted":
                patch.setattr(Trainer, "step", cut_off)
                with pytest.raises(KeyboardInterrupt):
                    carry_out(candidates, tmp_path / name, train_candidate)
                patch.setattr(Trainer, "step", STEP)
            run = carry_out(candidates, tmp_path / name, train_candidate)
        assert run.record.replayed is None
        for path in (tmp_path / name).glob("*.jsonl"):
            assert "replayed" not in path.read_text()
            assert "ran again" not in path.read_text()
        assert dpads.verify(tmp_path / name).ok
    assert contents(tmp_path / "whole") == contents(tmp_path / "interrupted")


def test_the_selected_run_is_dated_at_the_end_of_the_whole(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[float] = []
    number_drawn(monkeypatch, 3)
    monkeypatch.setattr("dpads.run_files.now", lambda: f"2026-01-01T00:00:0{len(done)}Z")

    def train(task: CandidateTask) -> float:
        quick(dict.fromkeys(RATES, 0.0))(task)
        done.append(-float(len(done)))  # the first is the best
        return done[-1]

    run = carry_out(candidates, tmp_path / "run", train)
    assert run.record.created_at == "2026-01-01T00:00:03Z"


KILLED_ONCE = """
import os, pathlib, signal
import dpads.training
from dpads.private_selection_worker import serve
from dpads.training import Trainer

killed, step = pathlib.Path({mark!r}), Trainer.step

def no_key():
    raise AssertionError("the candidate drew noise anew")

def until_killed(self):
    if self.iteration == 5:
        self.save()
    if self.iteration == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)

if killed.exists():
    dpads.training.fresh_master_key = no_key
else:
    killed.touch()
    Trainer.step = until_killed
serve()
"""


@pytest.mark.slow
def test_a_candidate_whose_process_is_killed_goes_on_from_its_checkpoint(
    task: CandidateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = KILLED_ONCE.format(mark=str(tmp_path / "killed"))
    monkeypatch.setattr("dpads.private_selection_process.PROGRAM", program)
    with locked(tmp_path) as lock, CandidateProcess(lock, lambda: 0.5) as run:
        score = run(task)
    assert (tmp_path / "killed").exists()
    assert score > WORST
    assert train_candidate(task) == score  # once more from the last checkpoint
