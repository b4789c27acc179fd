"""Folders of sweeps as `dpads sweep` leaves them, without training anything, and their pages."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
from headless import Headless

from dpads.accounting import events
from dpads.accounting.ledger import Ledger

DELTA = 1e-6
ATTACK = (
    "\"'><script>window.attacked = 1</script><img src=x onerror=window.attacked=1>{{ 1 }}"
    + "w" * 150
)
LEARNING_RATE = "training.table_optimizer.learning_rate"


def sweep_folder(
    folder: Path,
    *,
    epsilons: Sequence[float] = (1.0, 3.0, 10.0, math.inf),
    batches: Sequence[int] = (256, 1024),
    models: Sequence[str] = ("mlp",),
    learning_rates: Sequence[float] = (0.5, 1.0),
    seeds: Sequence[int] = (1, 2, 3),
    units: Sequence[tuple[str, int | None]] = (("example", None),),
    task: str = "ctr",
    rows: str = "private",
    references: bool = False,
    failed: Sequence[int] = (),
    error: str = "RunError: the disk is full",
    iterations: int = 40,
) -> Path:
    """Writes sweep.json, results.parquet and ledger.jsonl.

    Args:
        folder: Where to; created.
        failed: The numbers of trials that failed.
        references: Whether noise-free trials were added, one per model, unit and seed.
        error: Why they failed.
        iterations: Of each trial.
    """
    folder.mkdir(parents=True)
    loss = "poisson_log_loss" if task == "count" else "auc_loss"
    chance = random.Random(5)
    settings = list(product(epsilons, batches, models, learning_rates, seeds, units))
    asked = [(*setting, False) for setting in settings]
    if references:
        asked += [
            (math.inf, batches[0], model, learning_rates[0], seed, unit, True)
            for model, seed, unit in product(models, seeds, units)
        ]
    results, trials = [], []
    ledger = Ledger(folder / "ledger.jsonl")
    for number, (epsilon, batch, model, rate, seed, (unit, cap), added) in enumerate(asked, 1):
        name, noisy = f"{number:04d}", math.isfinite(epsilon)
        details = {
            "trial": name, "relation": "add_or_remove_one", "delta": DELTA, "unit": unit, "cap": cap
        }  # fmt: skip
        multiplier = (0.4 + 1.1 / epsilon) * (batch / 256) ** 0.4 if noisy else 0.0
        prob = batch / 40_000
        if rows == "private":
            if noisy:
                event = events.dp_sgd(multiplier, prob, iterations)
                ledger.append(
                    kind="tuning", description=f"trial {name}", rows="train",
                    treatment="covered_by_accounting", dp_event=event, details=details,
                )  # fmt: skip
            else:
                ledger.append(
                    kind="reference", description=f"trial {name}, without noise", rows="train",
                    treatment="not_covered", details=details,
                )  # fmt: skip
            ledger.append(
                kind="evaluation", description=f"metrics of trial {name}",
                rows="train_and_test" if len(seeds) > 1 else "test", treatment="not_covered",
                details={"trial": name},
            )  # fmt: skip
        trials.append(
            {
                "trial": name,
                "reference": added,
                "settings": {
                    "privacy.epsilon": epsilon if noisy else "inf",
                    "training.init_seed": seed,
                },
            }
        )
        increase = 0.35 * (epsilon**-0.7 if noisy else 0) * (1024 / batch) ** 0.5
        increase += abs(math.log(rate)) * 0.12 + (0.02 if batch > 512 and not noisy else 0.0)
        increase = 0.0 if added else increase + abs(chance.gauss(0, 0.012))
        value = {"mlp": 0.21, "logistic": 0.235}.get(model, 0.25) * (1 + increase)
        row: dict[str, Any] = {
            "trial": name,
            "status": "failed" if number in failed else "done",
            "error": error if number in failed else None,
            "reference": not noisy,
            "model": json.dumps({"name": model}) if len(models) > 1 else None,
            "model.name": model,
            "privacy.unit": unit,
            "privacy.max_examples_per_unit": cap,
            "privacy.epsilon": epsilon,
            "privacy.l2_clip_norm": 1.0 if noisy else math.inf,
            "training.expected_batch_size": batch,
            "training.epochs": 2.0,
            LEARNING_RATE: rate,
            "training.tower_optimizer.learning_rate": 1e-3,
            "training.init_seed": seed,
            "data.split_seed": seed,
        }
        wide = 0.006
        measured: dict[str, Any] = {
            loss: value, f"{loss}_low": value - wide, f"{loss}_high": value + wide,
            "calibration": 1 + chance.gauss(0, 0.01) + 0.05 / (epsilon if noisy else 20),
            "relative_increase": increase,
            "relative_increase_low": increase - wide / 0.21,
            "relative_increase_high": increase + wide / 0.21,
        }  # fmt: skip
        if task != "count":
            measured |= {
                "auc": 1 - value, "log_loss": value * 0.8, "ece": 0.004 + 0.02 / max(epsilon, 0.1),
                "normalized_entropy": 0.8 + 0.3 * increase,
            }  # fmt: skip
        cost = {
            "noise_multiplier": multiplier, "sampling_prob": prob, "iterations": iterations,
            "epsilon": epsilon, "delta": DELTA, "seconds": 20 + 0.02 * batch + chance.random(),
            "memory_bytes": int(2e8 + 4e5 * batch), "run": f"trials/{name}",
        }  # fmt: skip
        row |= {key: None if number in failed else v for key, v in measured.items()} | cost
        results.append(row)
    axes = ["privacy.epsilon", "training.expected_batch_size", LEARNING_RATE, "training.init_seed"]
    axes += ["model"] * (len(models) > 1) + ["data.split_seed"] * (len(seeds) > 1)
    axes += ["privacy.unit"] * (len(units) > 1)
    (folder / "sweep.json").write_text(
        json.dumps(
            {
                "format": 1, "dpads_version": "0.1.0", "created_at": "2026-11-21T13:00:00Z",
                "task": task, "loss": loss, "rows": rows, "axes": axes, "trials": trials,
                "seconds": 4321.5, "workers": 2, "threads": 1,
            }
        )
    )  # fmt: skip
    pl.DataFrame(results, infer_schema_length=None).write_parquet(folder / "results.parquet")
    return folder


def open_page(browser: Headless, file: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Opens a report and waits until its pictures are drawn."""
    browser.open(file, width=width, scheme=scheme)
    until = time.monotonic() + 30
    while browser.value("document.documentElement.dataset.charts") != "drawn":
        assert time.monotonic() < until, "the pictures were not drawn"
        time.sleep(0.05)
    assert browser.reports("Log.entryAdded", "Runtime.consoleAPICalled") == []
    assert browser.reports("Runtime.exceptionThrown") == []
    requests = {
        request["request"]["url"] for request in browser.reports("Network.requestWillBeSent")
    }
    assert {url for url in requests if not url.startswith("data:")} == {file.resolve().as_uri()}


def said(page: Path) -> str:
    """The page without Vega's own script and ours, which stand at its end."""
    text, _, scripts = page.read_text().partition("\n<script>")
    assert len(scripts) > 500_000
    return text
