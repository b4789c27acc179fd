"""`dpads sweep`: what it prints, with which code it ends, and how it shows where it stands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import CONFIG, dpads_command
from rich.console import Console
from sweep_cases import TOO_LARGE

from dpads import cli_sweep, sweeping
from dpads.config_toml import toml_value
from dpads.sweep_progress import WRITING, SweepProgress, TrialProgress

SWEEP = f"""
base = "config.toml"
reference = true
[axes]
privacy.epsilon = [1, 3]
model = [{{ name = "logistic" }}, {toml_value(TOO_LARGE)}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, log_folder: Path) -> Path:
    made = tmp_path_factory.mktemp("cli")
    for name in ("train", "test"):
        (made / f"{name}.parquet").symlink_to(log_folder / f"{name}.parquet")
    (made / "config.toml").write_text(CONFIG)
    (made / "sweep.toml").write_text(SWEEP)
    return made


def test_it_prints_trials_failures_and_what_all_cost(folder: Path) -> None:
    out = folder / "s"
    result = dpads_command("sweep", folder / "sweep.toml", "--out", out, "--workers", 1)
    assert result.exit_code == 1  # a trial failed
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith(" 00")]
    assert [row[0] for row in rows] == ["0001", "0002", "0003", "0004", "0005", "0006"]
    assert rows[0][1] == "1"
    assert rows[0][-1] == "1.00"
    assert "failed" in rows[1]
    heads = next(line for line in lines if line.startswith(" trial"))
    assert all(name in heads for name in ("auc loss", "pr auc", "entropy", "no noise"))
    ends = rows[0].index("to")
    assert all(0.0 < float(cell) < 2.0 for cell in rows[0][ends + 2 : ends + 4])
    assert any(line.startswith("0002 failed: Expected a model that fits") for line in lines)
    assert "The 2 private trials together cost epsilon" in result.stdout
    assert "No guarantee covers the 1 model trained without noise" in result.stdout
    assert "none of them is released" in result.stdout
    assert f"{out}: report.html" in result.stdout.replace("\n", "")
    assert "preparing the logs" in result.stderr
    assert "3 failed" in result.stderr
    *_, adding, writing = result.stderr.replace("\n", " ").split("trials: ")
    assert adding == "3/6 done, 3 failed, adding up what all trials cost "
    assert writing == "3/6 done, 3 failed, writing the report "

    again = dpads_command("sweep", folder / "sweep.toml", "--out", out, "--json")
    assert again.exit_code == 1
    document = json.loads(again.stdout)
    assert document["sweep"] == str(out)
    assert Path(document["report"]).is_file()
    assert [row["status"] for row in document["trials"]].count("failed") == 3
    assert document["trials"][4]["epsilon"] == "inf"
    assert document["cost"][0]["trials"] == 2


def test_bad_input_ends_with_2(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(f'base = "{folder}/config.toml"\n[axes]\nprivacy.epsilom = [1]\n')
    result = dpads_command("sweep", bad, "--out", tmp_path / "s")
    assert result.exit_code == 2
    assert 'Did you mean "privacy.epsilon"' in result.stderr
    assert not (tmp_path / "s").exists()


def test_an_interruption_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, on_progress: Any, **__: Any) -> None:
        on_progress(SweepProgress(3, 0, 6, (TrialProgress("0004", 5, 20),), 12.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "sweep", interrupted)
    result = dpads_command("sweep", folder / "sweep.toml", "--out", "s s", "--workers", "2")
    assert result.exit_code == 1
    assert "Interrupted. 3 of 6 trials are done. Go on with: dpads sweep" in result.stderr
    assert "sweep.toml --out 's s' --workers 2" in result.stderr.replace("\n", " ")
    assert "trials: 3/6 done, 1 running, 12 s left" in result.stderr


def test_a_terminal_shows_a_line_for_each_running_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    monkeypatch.setattr(cli_sweep, "console", lambda **_: screen)
    with cli_sweep._watching() as (prepared, watch):
        prepared(65_536)
        watch(SweepProgress(1, 1, 6, (TrialProgress("0003", 5, 20), TrialProgress("0004")), 75.0))
        watch(SweepProgress(2, 1, 6, (TrialProgress("0004", 7, 20),), 60.0))
    shown = screen.export_text()
    assert "2/6 done, 1 running, 1 failed, 1 min 00 s left" in shown
    assert "0004" in shown
    assert "7/20 iterations" in shown
    with cli_sweep._watching() as (_, watch):
        watch(SweepProgress(5, 1, 6, (), None, WRITING))
    assert "5/6 done, 1 failed, writing the report" in screen.export_text()
