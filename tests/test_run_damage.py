"""Folders of runs that are damaged, altered, or of another version: each is told, nothing is half-read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import SMALL

import dpads
from dpads.errors import InputError, RunError, VerificationError
from dpads.store import ExampleStore


@pytest.fixture(scope="module")
def whole_run(train_store: ExampleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    # With a reference the claim is conditional, which one of the alterations denies.
    dpads.train(train_store, **SMALL, test=0.2, reference=True, out=out)
    return out


@pytest.fixture
def run_copy(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


def replace(path: Path, old: str, new: str) -> None:
    """Alters a text file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "kind", "what"),
    [
        (lambda run: (run / "run.json").unlink(), InputError, "folder of a run"),
        (lambda run: (run / "run.json").write_text("{"), RunError, "run.json: damaged"),
        (lambda run: (run / "run.json").write_text("{}"), RunError, "format 2"),
        (lambda run: (run / "model.safetensors").unlink(), RunError, "model.safetensors: missing"),
        (
            lambda run: (run / "model.safetensors").write_bytes(b"\x08"),
            RunError,
            "model.safetensors: damaged",
        ),
        (lambda run: (run / "model.json").unlink(), RunError, "model.json: missing"),
        (
            lambda run: replace(run / "model.json", '"format": 2', '"format": 3'),
            RunError,
            rf"model\.json: written in format 3 by dpads {re.escape(dpads.__version__)}, a newer version",
        ),
        (
            lambda run: replace(run / "run.json", '"format": 2', '"format": 1'),
            RunError,
            r"run\.json: written in format 1 by dpads .*, an older version.*train anew",
        ),
        (
            lambda run: replace(run / "model.json", '"name": "logistic"', '"name": "transformer"'),
            RunError,
            r'Unknown model "transformer".*written by dpads .*load it with that version',
        ),
        (
            lambda run: replace(run / "model.json", '"offset"', '"offsets"'),
            RunError,
            "disagree",
        ),
        (
            lambda run: (run / "model.json").write_text(
                (run / "model.json").read_text().replace('"buckets": 200', '"buckets": 201')
            ),
            RunError,
            "disagree",
        ),
        (
            lambda run: (run / "ledger.jsonl").write_text(
                (run / "ledger.jsonl").read_text().replace("clipping", "clapping")
            ),
            VerificationError,
            "ledger.jsonl, line 1",
        ),
        (
            lambda run: (run / "statement.json").write_text(
                (run / "statement.json").read_text().replace('"conditional"', '"formal"')
            ),
            VerificationError,
            "digest",
        ),
        (lambda run: (run / "metrics.json").unlink(), RunError, "metrics.json: missing"),
    ],
)
def test_damaged_runs_are_told(
    run_copy: Path, damage: Callable[[Path], object], kind: type[Exception], what: str
) -> None:
    damage(run_copy)
    with pytest.raises(kind, match=what):
        dpads.Run.load(run_copy)
