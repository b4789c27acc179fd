"""What the tests of sweeps share: a base configuration, tasks, and how to look at ledgers."""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from cli_calls import CONFIG

from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.sweep_config import SweepConfig, parse_sweep
from dpads.sweep_trial import TrialTask

# No model of this width fits into any memory: a trial that fails.
TOO_LARGE = {"name": "mlp", "embedding_dim": 4, "hidden": [3_000_000, 3_000_000]}


def base(folder: Path | None = None, **tables: dict[str, Any]) -> dict[str, Any]:
    """The small configuration as plain data; with a folder, of its logs."""
    document = tomllib.loads(CONFIG)
    for name, table in tables.items():
        document[name] = {**document.get(name, {}), **table}
    if folder is not None:
        document["data"] = {
            "train": str(folder / "train.parquet"),
            "test": str(folder / "test.parquet"),
        }
    return document


def sweep_of(axes: dict[str, Any], folder: Path | None = None, **keys: Any) -> SweepConfig:
    """A sweep of the small configuration."""
    return parse_sweep({"base": base(folder), "axes": axes, **keys}, base=Path("/nowhere"))


def tasks_of(config: SweepConfig, folder: Path, ledger: bool = True) -> list[TrialTask]:
    """The trials of a sweep whose base names stores, as tasks."""
    return [
        TrialTask(
            name=trial.name,
            config=to_toml(trial.config),
            folder=str(folder / "trials" / trial.name),
            ledger=str(folder / "ledger.jsonl") if ledger else None,
            test_rows="declared_test",
        )
        for trial in config.trials
    ]


def announced(folder: Path) -> Counter[tuple[str, str]]:
    """How often each trial is on the ledger, by kind."""
    entries = Ledger.load(folder / "ledger.jsonl").entries
    return Counter((entry.details["trial"], entry.kind) for entry in entries)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in the folders of whole trials."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "trials").glob("*/*"))
        if file.is_file() and not file.parent.suffix
    }
