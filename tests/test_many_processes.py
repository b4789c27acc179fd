"""A run of several processes is one run: the same batches, noise, ledger, statement and model."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from processes import done, ended, group
from safetensors.numpy import load_file

import dpads
from dpads import synthetic
from dpads.verifying import verify

CONFIG = """
[data]
train = "store"
test = 0.2
[schema]
task = "ctr"
label = "click"
numeric = ["past_clicks"]
categorical = ["device", "hour", "region", "site", "campaign"]
bags = ["interests"]
buckets = 50
user = "user"
[model]
name = "logistic"
[privacy]
noise_multiplier = 1.0
delta = 1e-6
[training]
backend = "jax"
expected_batch_size = 100
epochs = 0.3
"""
USERS = ["--set", "privacy.unit=user", "--set", "privacy.max_examples_per_unit=3"]
MLP = ["--set", 'model={ name = "mlp", embedding_dim = 3, hidden = [6] }']
RARE = ["--set", "privacy.dataset_size=200000", "--set", "training.epochs=0.003"]
COUNTED = ["--set", 'prior.kind="dp_count"', "--set", 'selection.kind="noisy_count"']


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    log = pl.from_arrow(synthetic.click_log(2500, seed=1).table)
    assert isinstance(log, pl.DataFrame)
    users = np.random.default_rng(2).integers(0, 900, len(log)).astype(str)
    log.with_columns(user=users).write_parquet(folder / "log.parquet")
    (folder / "ads.toml").write_text(CONFIG)
    store = folder / "store"
    dpads.prepare(folder / "log.parquet", folder / "ads.toml", out=store, shards=4)
    return folder


def statement_of(run: Path) -> dict[str, Any]:
    """The statement, but for when it was made, the last bits of what it is about, and how many devices."""
    data = json.loads((run / "statement.json").read_text())
    for name in ("created_at", "statement_id", "digest", "section_digests"):
        del data[name]
    del data["subject"]["artifacts"], data["transparency"]["versions"]["jax devices"]
    return dict(data)


def assert_one_run(first: Path, second: Path) -> None:
    """Both have the same parameters to rounding, and say the same to the letter."""
    mine, others = (load_file(run / "model.safetensors") for run in (first, second))
    assert set(mine) == set(others)
    for name, value in mine.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert (first / "ledger.jsonl").read_bytes() == (second / "ledger.jsonl").read_bytes()
    assert statement_of(first) == statement_of(second)
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (first, second)]
    assert metrics[0]["auc"] == pytest.approx(metrics[1]["auc"], abs=1e-6)
    # the recalibration's noise is bound to its sums, which the last bit of a logit may change
    losses = [own["before_recalibration"]["log_loss"] for own in metrics]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert verify(second).ok


def test_two_processes_of_two_devices_are_one_run(folder: Path) -> None:
    done(1, "ads.toml", "--out", "one", folder=folder)
    outputs = done(2, "ads.toml", "--out", "two", folder=folder, devices=2)
    assert_one_run(folder / "one", folder / "two")
    assert "two: model, statement.md" in outputs[0]
    assert "Process 1: done. Process 0 writes the run." in outputs[1]
    assert not (folder / "two.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "more"),
    [
        (4, 1, USERS),
        (2, 1, [*MLP, *COUNTED, "--set", "training.reference=true"]),
        (1, 2, USERS),
        (1, 8, [*MLP, *USERS]),
        (2, 1, RARE),
        (3, 1, [*MLP, *USERS, "--set", "training.table_noise=dense"]),
    ],
    ids=["four", "counts, reference", "two devices", "eight devices", "mostly empty", "dense"],
)
def test_any_number_of_processes_is_one_run(
    folder: Path, count: int, devices: int, more: list[str]
) -> None:
    name = f"{count}-{devices}-{len(more)}"
    done(1, "ads.toml", "--out", f"{name}-alone", *more, folder=folder)
    done(count, "ads.toml", "--out", name, *more, folder=folder, devices=devices)
    assert_one_run(folder / f"{name}-alone", folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_dies_stops_the_others_and_the_run_goes_on(folder: Path, lost: int) -> None:
    name = f"lost-{lost}"
    words = ["ads.toml", "--set", "training.epochs=20", "--set", "privacy.noise_multiplier=9.0"]
    both = group(2, *words, "--out", name, folder=folder)
    progress = folder / f"{name}.partial" / "checkpoints" / "progress"
    deadline = time.monotonic() + 120
    while not progress.exists() or np.frombuffer(progress.read_bytes(), np.int64)[0] < 20:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    both[lost].send_signal(signal.SIGKILL)
    other = ended(both[1 - lost], seconds=60)
    ended(both[lost])
    assert other.code == 1
    assert "RUN.partial, with --resume, and training goes on" in other.output
    assert "Traceback" not in other.output
    assert not (folder / name).exists()
    done(2, *words, "--out", name, "--resume", folder=folder)
    done(1, *words, "--out", f"{name}-alone", folder=folder)
    mine, others = (load_file(folder / f / "model.safetensors") for f in (name, f"{name}-alone"))
    for key, value in mine.items():
        np.testing.assert_allclose(others[key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    replayed = json.loads((folder / name / "run.json").read_text())["replayed"]
    assert replayed >= 20
    assert verify(folder / name).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "says"),
    [
        (["--set", "training.init_seed=8"], "Expected the same [training] in all 2 processes"),
        (["--set", "data.train=other"], "Expected the same store in all 2 processes"),
    ],
    ids=["configuration", "store"],
)
def test_processes_that_differ_are_refused(folder: Path, last: list[str], says: str) -> None:
    if not (folder / "other").exists():
        log = pl.read_parquet(folder / "log.parquet")
        log.head(2000).write_parquet(folder / "less.parquet")
        dpads.prepare(folder / "less.parquet", folder / "ads.toml", out=folder / "other", shards=2)
    both = [ended(one, 60) for one in group(2, "ads.toml", "--out", "d", folder=folder, last=last)]
    assert [one.code for one in both] == [2, 2] or 2 in [one.code for one in both]
    assert any(says in one.output for one in both)
    assert not any("Traceback" in one.output for one in both)
    assert not (folder / "d").exists()
