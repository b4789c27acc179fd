"""Kill -9 in the middle of a sweep, then start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import kinds
from sweep_cases import announced, base, digests

import dpads
from dpads.config_toml import toml_value

SECONDS = 240.0


def start(file: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """`dpads sweep` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dpads.__file__).parents[1])}
    command = [sys.executable, "-m", "dpads", "sweep", str(file), "--out", str(out), "--json"]
    command += ["--workers", str(workers), "--threads", "1"]
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


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_no_trial_is_lost_none_is_paid_twice_and_what_had_ended_stays(
    log_folder: Path, tmp_path: Path, count: int
) -> None:
    file, out = tmp_path / "sweep.toml", tmp_path / "s"
    # The long one runs first, so that it is under way when some of the others have ended.
    trials = [{"training.epochs": 800}, *({"training.init_seed": n} for n in range(1, count))]
    lines = {"base": base(log_folder), "draw": "list", "trials": trials}
    file.write_text("".join(f"{key} = {toml_value(value)}\n" for key, value in lines.items()))
    with start(file, out, 2) as first:
        wait_for(lambda: len(list(out.glob("trials/*.json"))) >= 3, first)
        wait_for(lambda: (out / "trials/0001.partial/checkpoints/progress").exists(), first)
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    before = digests(out)
    ended = {name.split("/")[1] for name in before}
    assert 3 <= len(ended) < count
    assert max(announced(out).values()) == 1
    cut = {path.stem for path in out.glob("trials/*.partial")}
    assert "0001" in cut

    with start(file, out, 1) as second:
        printed, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0
    assert len(json.loads(printed)["trials"]) == count
    swept = dpads.Sweep.open(out)
    assert swept.results["trial"].to_list() == [trial.name for trial in swept.trials]
    assert set(swept.results["status"]) == {"done"}
    after = digests(out)
    assert {name: after[name] for name in before} == before
    once = {(t.name, kind): 1 for t in swept.trials for kind in ("tuning", "evaluation")}
    assert announced(out) == once
    for trial in swept.trials:
        run = dpads.Run.load(swept.folder_of(trial.name))
        own = ["training", "training_finished", "recalibration", "evaluation"]
        assert kinds(run.ledger)[-4:] == own
        assert len(set(kinds(run.ledger))) == len(run.ledger.entries)
        assert run.record.executed == run.plan.mechanism.iterations
        assert trial.name in cut or run.record.replayed == 0
    assert dpads.Run.load(swept.folder_of("0001")).record.replayed > 0
    (cost,) = swept.costs
    assert cost.trials == count
    assert not list(out.glob("trials/*.partial"))
