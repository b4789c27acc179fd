"""Kill -9 in the middle of a sweep of twenty trials, then start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from small_runs import kinds
from sweep_cases import announced, base, digests

import dpads
from dpads.config_toml import toml_value

TRIALS = 20
SECONDS = 120.0


def start(file: Path, out: Path) -> subprocess.Popen[bytes]:
    """`dpads sweep` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dpads.__file__).parents[1])}
    command = [sys.executable, "-m", "dpads", "sweep", str(file), "--out", str(out), "--json"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def wait_for(condition: object, process: subprocess.Popen[bytes]) -> None:
    """Looks until something holds."""
    assert callable(condition)
    until = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)


def test_no_trial_is_lost_none_is_paid_twice_and_what_had_ended_stays(
    log_folder: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "sweep.toml", tmp_path / "s"
    axes = {
        "privacy.epsilon": [1, 3],
        "training.init_seed": [1, 2, 3, 4, 5],
        "training.epochs": [10, 30],
    }
    file.write_text(f"base = {toml_value(base(log_folder))}\naxes = {toml_value(axes)}\n")
    with start(file, out) as first:
        wait_for(lambda: len(list(out.glob("trials/*.json"))) >= 6, first)
        # Two trials under way, one of them training.
        wait_for(lambda: list(out.glob("trials/*.partial/checkpoints/progress")), first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    before = digests(out)
    ended = {name.split("/")[1] for name in before}
    assert 6 <= len(ended) < TRIALS
    assert max(announced(out).values()) == 1
    cut = {path.stem for path in out.glob("trials/*.partial")}
    assert cut

    with start(file, out) as second:
        printed, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0
    assert len(json.loads(printed)["trials"]) == TRIALS
    swept = dpads.Sweep.open(out)
    assert swept.results["trial"].to_list() == [trial.name for trial in swept.trials]
    assert set(swept.results["status"]) == {"done"}
    after = digests(out)
    assert {name: after[name] for name in before} == before
    once = {(t.name, kind): 1 for t in swept.trials for kind in ("tuning", "evaluation")}
    assert announced(out) == once
    for trial in swept.trials:
        run = dpads.Run.load(swept.folder_of(trial.name))
        assert kinds(run.ledger) == ["training", "training_finished", "evaluation"]
        assert run.record.executed == run.plan.mechanism.iterations
        assert trial.name in cut or run.record.replayed == 0
    (cost,) = swept.costs
    assert cost.trials == TRIALS
    assert not list(out.glob("trials/*.partial"))
