"""Private selection: what is sealed, processes of candidates, what is refused, and kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_calls import dpads_command
from private_selections import (
    SCHEMA,
    carry_out,
    document,
    number_drawn,
)
from scipy import stats

import dpads
from dpads.errors import ConfigError, RunError
from dpads.private_score import WORST
from dpads.private_selection import tune
from dpads.private_selection_plan import Candidates, Prepared
from dpads.private_selection_process import CandidateProcess, Watch
from dpads.private_selection_state import STATE_BYTES, SealedFolder, SealedState, locked
from dpads.private_selection_worker import CandidateTask, open_tuning_rows, train_candidate
from dpads.store import ExampleStore
from dpads.sweep_config import parse_sweep
from dpads.training import Performance


def test_the_sealed_folder_looks_the_same_whatever_is_in_it(tmp_path: Path) -> None:
    sealed = SealedFolder.create(tmp_path / "sealed")
    state = sealed.load()
    for number in (None, 0, 3, 100_000):
        changed = dataclasses.replace(state, number=number, done=99, best_score=-0.1, best="a")
        sealed.save(changed)
        assert sealed.load() == changed
        listing = sorted(path.name for path in (tmp_path / "sealed").iterdir())
        assert listing == ["a", "b", "state"]
        facts = (tmp_path / "sealed" / "state").stat()
        assert (facts.st_size, stat.S_IMODE(facts.st_mode)) == (STATE_BYTES, 0o600)
    for folder in (tmp_path / "sealed", tmp_path / "sealed" / "a", tmp_path / "sealed" / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_best_keeps_its_slot_and_a_worse_or_failed_one_loses_its(tmp_path: Path) -> None:
    state = SealedState(seed="00" * 32, number=9)
    state = state.scored(2, -0.5)
    assert (state.best, state.best_candidate, state.slot) == ("a", 2, "b")
    assert state.scored(1, -0.6).best == "a"
    assert state.scored(1, WORST).best == "a"
    better = state.scored(3, -0.4)
    assert (better.best, better.best_candidate, better.slot) == ("b", 3, "a")
    assert SealedState(seed="00" * 32).scored(1, WORST).best is None


def test_a_candidate_that_has_not_begun_finds_an_empty_slot(tmp_path: Path) -> None:
    sealed = SealedFolder.create(tmp_path / "sealed")
    left = tmp_path / "sealed" / "a" / "checkpoints"
    left.mkdir()
    state = sealed.begin(sealed.load())  # what an earlier candidate left is not its own
    assert not left.exists()
    left.mkdir()
    assert sealed.begin(state) == sealed.load() == state
    assert left.exists()  # what it left itself is


def test_two_processes_cannot_work_on_one_selection(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="worked on already"), locked(tmp_path):
        pass


# The process


def some_task() -> CandidateTask:
    return CandidateTask(
        config="", base="", prepared="", slot="", score_share=0.1, score_seed=1, score={},
        score_key="", threads=1, physical_batch_size=None, identity={},
    )  # fmt: skip


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.stdin.readline(); sys.exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import sys; sys.stdin.readline(); print('{\"score\": -0', end='', flush=True)",
        "raise ValueError",
    ],
)
def test_a_process_that_dies_is_a_candidate_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, program: str
) -> None:
    monkeypatch.setattr("dpads.private_selection_process.PROGRAM", program)
    with locked(tmp_path) as lock, CandidateProcess(lock, lambda: 0.05) as run:
        assert run(some_task()) == WORST
        assert run(some_task()) == WORST  # and the next one has a process of its own
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("end", "score"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -0.5),
        ("os.kill(os.getpid(), signal.SIGTERM)", -0.5),
        ("sys.exit(1)", WORST),  # it would fail again
    ],
)
def test_a_process_that_is_killed_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, score: float
) -> None:
    program = (
        "import os, pathlib, signal, sys; line = sys.stdin.readline(); "
        f"here = pathlib.Path({str(tmp_path / 'begun')!r}); again = here.exists(); here.touch()\n"
        f"if not again: {end}\n"
        "print('{\"score\": -0.5}', flush=True); sys.stdin.read()"
    )
    monkeypatch.setattr("dpads.private_selection_process.PROGRAM", program)
    with locked(tmp_path) as lock, CandidateProcess(lock, lambda: 0.05) as run:
        assert run(some_task()) == score


def test_a_machine_that_stops_the_work_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"stopped": "No space left on device"})
    program = f"import sys; sys.stdin.readline(); print('{answer}', flush=True); sys.stdin.read()"
    monkeypatch.setattr("dpads.private_selection_process.PROGRAM", program)
    with (
        locked(tmp_path) as lock,
        CandidateProcess(lock, lambda: 0.05) as run,
        pytest.raises(RunError, match="No space left on device"),
    ):
        run(some_task())


def test_progress_comes_at_even_times_whenever_candidates_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("dpads.private_selection_process.time.monotonic", lambda: now[0])
    told: list[float] = []
    watch = Watch(told.append)
    for at in (100.1, 100.5, 100.6, 100.61, 101.7, 101.71, 102.2):
        now[0] = at
        assert 0.0 < watch.wait() <= 0.5
    assert told == [0.5, 1.5, 2.0]


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {"privacy.epsilon": [1.0, 2.0]}}, "privacy.epsilon"),
        ({"axes": {"privacy.noise_multiplier": [1.0, 2.0]}}, "privacy.noise_multiplier"),
        ({"axes": {"privacy.delta": [1e-8, 1e-9]}}, "privacy.delta"),
        ({"axes": {"data.split_seed": [1, 2]}}, "data.split_seed"),
        ({"axes": {"training.init_seed": [1, 2]}, "reference": True}, "noise"),
        ({"axes": {"training.init_seed": [1, 2]}, "rows": "public"}, "private"),
        ({"tune": {"score_seed": 7}}, "score_seed"),
        ({"tune": {"mean_trial": 7}}, "mean_trials"),
        ({"tune": {"law": "normal"}}, "poisson"),
        ({"tune": {"score_share": 0.9}}, "score_share"),
        ({"tune": {"score_bound": 0.0}}, "score_bound"),
        ({"tune": {"mean_trials": 0.5}}, "mean_trials"),
        ({"tune": {"mean_trials": 1001.0}}, "1000.*each one is a training"),
    ],
)
def test_what_one_guarantee_cannot_cover_is_refused(
    log_folder: Path, train_store: ExampleStore, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Candidates.of(parse_sweep(document(log_folder, **changes), base=log_folder))


def test_candidates_of_other_seeds_have_one_split(
    log_folder: Path, train_store: ExampleStore
) -> None:
    axes = {"training.init_seed": [1, 2], "privacy.l2_clip_norm": [0.5, 1.0]}
    asked = Candidates.of(parse_sweep(document(log_folder, axes=axes), base=log_folder))
    assert {config.split_seed for config in asked.configs} == {asked.base.split_seed}
    assert {config.training.init_seed for config in asked.configs} == {1, 2}


@pytest.mark.parametrize("unit", ["example", "user"])
def test_without_a_public_number_of_units_the_count_before_units_are_set_aside_is_used(
    click_log: Any, log_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    asked = document(log_folder, axes={"model": [{"name": "logistic"}, {"name": "mlp"}]})
    asked["base"]["privacy"] = {"epsilon": 20.0}
    asked["base"]["training"]["expected_batch_size"] = 50
    if unit == "user":
        schema = dataclasses.replace(click_log.schema, user="user")
        dpads.prepare(log_folder / "train.parquet", schema, out=tmp_path / "users")
        asked["base"]["data"]["train"] = str(tmp_path / "users")
        asked["base"]["schema"] = {**SCHEMA, "user": "user"}
        asked["base"]["privacy"] |= {"unit": "user", "max_examples_per_unit": 5}
    number_drawn(monkeypatch, 1)
    config = parse_sweep(asked, base=log_folder)
    run = carry_out(config, tmp_path / "run", train_candidate)
    assert run.plan.relation == "zero_out"
    rows = open_tuning_rows(Candidates.of(config).base, tmp_path, 0.1, 1000, None)
    assert run.plan.dataset_size == rows.all.train.num_units(unit)
    assert run.plan.dataset_size > rows.fitted.num_units(unit)
    assert dpads.verify(tmp_path / "run").ok


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mean_trials": 3.0}, True),
        ({"mean_trials": 10.0}, False),
        ({"mean_trials": 3.0, "law": "geometric"}, False),
    ],
)
def test_a_chance_that_nothing_is_drawn_is_said_before_anything_is(
    log_folder: Path,
    train_store: ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
    said: bool,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RunError("here it would begin")

    monkeypatch.setattr("dpads.private_selection.tune", refuse)
    config = parse_sweep(document(log_folder, tune=how), base=log_folder)
    (tmp_path / "sweep.toml").write_text(config.to_toml())
    result = dpads_command("tune", tmp_path / "sweep.toml", "--out", tmp_path / "run")
    words = result.output.partition("here it would begin")[0]
    assert ("chance of 0.05" in words and "geometric" in words) == said
    assert config.tune is not None
    assert config.tune.chance_of_nothing == pytest.approx(
        stats.poisson(how["mean_trials"]).pmf(0) if "law" not in how else 0.0
    )


@pytest.mark.parametrize(("size", "units"), [(2000, 200.0), (None, None)])
def test_the_divisor_of_scores_is_no_number_of_units_that_were_set_aside(
    log_folder: Path,
    train_store: ExampleStore,
    tmp_path: Path,
    size: int | None,
    units: float | None,
) -> None:
    asked = document(log_folder, tune={"score_share": 0.1})
    asked["base"]["privacy"] = {"epsilon": 20.0, "dataset_size": size}
    if size is None:
        del asked["base"]["privacy"]["dataset_size"]
    config = Candidates.of(parse_sweep(asked, base=log_folder))
    prepared = Prepared.make(config, Performance(threads=1), tmp_path, None)
    if units is None:  # then the count before units are set aside is public
        units = 0.1 * len(prepared.rows.all.train)
    assert prepared.score["expected_units"] == pytest.approx(units)


@pytest.mark.slow
def test_the_command_selects_in_processes_of_its_own(
    log_folder: Path, train_store: ExampleStore, tmp_path: Path
) -> None:
    text = parse_sweep(
        document(log_folder, tune={"mean_trials": 2.0, "law": "geometric"}), base=log_folder
    ).to_toml()
    (tmp_path / "sweep.toml").write_text(text)
    result = dpads_command("tune", tmp_path / "sweep.toml", "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)) == {"run", "headline", "metrics"}
    assert dpads.verify(tmp_path / "run").ok


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_leaves_nobody_at_work_and_goes_on_without_another_draw(
    log_folder: Path,
    train_store: ExampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: signal.Signals,
) -> None:
    asked = document(log_folder, tune={"mean_trials": 6.0, "law": 50.0})
    asked["base"]["training"]["epochs"] = 400
    config = parse_sweep(asked, base=log_folder)
    (tmp_path / "sweep.toml").write_text(config.to_toml())
    process = subprocess.Popen(
        [sys.executable, "-m", "dpads", "tune", str(tmp_path / "sweep.toml"), "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(dpads.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / "run.partial"
    progress = partial / "sealed" / "a" / "checkpoints" / "progress"
    until = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(end)
    told = process.communicate()[1]
    if end == signal.SIGKILL:
        assert told == "selecting\n"
    else:
        assert " ".join(told.split()).endswith("sweep.toml --out run")
        assert process.returncode == 1
    state = SealedFolder(partial / "sealed").load()
    assert state.number is not None
    while time.monotonic() < until:  # the candidate's process ends with its parent
        try:
            with locked(partial):
                break
        except ConfigError:
            time.sleep(0.05)

    def draw(*_: object) -> int:
        raise AssertionError("drawn again")

    monkeypatch.setattr("dpads.private_selection_state.draw_number", draw)
    run = tune(tmp_path / "sweep.toml", out=tmp_path / "run")
    assert dpads.verify(tmp_path / "run").ok
    assert run.ledger.entries[2].details["executed"] == run.plan.mechanism.iterations
    assert not partial.exists()


def test_the_candidates_process_splits_as_the_selection_does(
    log_folder: Path, train_store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = document(log_folder, axes={"training.init_seed": [3, 4]})
    asked["base"]["data"]["split_seed"] = 5
    number_drawn(monkeypatch, 1)
    run = carry_out(parse_sweep(asked, base=log_folder), tmp_path / "run", train_candidate)
    assert run.config.split_seed == dpads.Run.load(tmp_path / "run").config.split_seed == 5
