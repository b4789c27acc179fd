"""The four tasks of ads_models.py: real logs, what is read of them, and how they are trained."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final

import polars as pl

HERE: Final = Path(__file__).parent
DATA: Final = Path(os.environ.get("DPADS_DATA", str(HERE.parents[1] / "shared/data"))).absolute()
TASKS: Final = ("click", "sale", "install", "claims")
WORDS: Final = {
    "click": "AdKDD 2021, click (9.9 % positive)",
    "sale": "AdKDD 2021, sale (0.41 % positive: 59 in a test split)",
    "install": "TalkingData, install (0.24 % positive: 34 in a test split)",
    "claims": "freMTPL2, number of claims with exposure",
}


def base_of(task: str, logs: Path) -> dict[str, Any]:
    """The configuration that a task's trials start from, as plain data.

    Args:
        task: one of TASKS.
        logs: where columns that a log lacks are added.
    """
    if task in ("click", "sale"):
        document = tomllib.loads((HERE / "ads_paper" / f"{task}.toml").read_text())
        document["data"]["train"] = str(DATA / "criteo_adkdd2021.parquet")
        document["training"] |= {"expected_batch_size": 4096, "epochs": 40}
        return document
    return _install(logs) if task == "install" else _claims()


def _install(logs: Path) -> dict[str, Any]:
    """App installs after clicks; the hour of the click is a column of its own."""
    path = logs.absolute() / "talkingdata.parquet"
    if not path.exists():
        logs.mkdir(parents=True, exist_ok=True)
        log = pl.read_parquet(DATA / "talkingdata.parquet").drop("attributed_time")
        log.with_columns(pl.col("click_time").dt.hour().alias("hour")).write_parquet(path)
    return {
        "data": {"train": str(path), "test": 0.2},
        "schema": {
            "task": "cvr",
            "label": "is_attributed",
            "categorical": ["ip", "app", "device", "os", "channel", "hour"],
            "buckets": {
                "ip": 16384, "app": 512, "device": 512, "os": 256, "channel": 256, "hour": 32,
            },
        },
        "model": {"name": "logistic"},
        "privacy": {"delta": 1e-6, "epsilon": 1.0, "dataset_size": 57_151, "l2_clip_norm": 1.0},
        "training": {"expected_batch_size": 4096, "epochs": 40},
    }  # fmt: skip


def _claims() -> dict[str, Any]:
    """Motor insurance: claims per policy and time insured."""
    return {
        "data": {"train": str(DATA / "fremtpl2.parquet"), "test": 0.2},
        "schema": {
            "task": "count",
            "label": "ClaimNb",
            "exposure": "Exposure",
            "categorical": [
                "Area", "VehPower", "VehBrand", "VehGas", "Region", "VehAge", "DrivAge", "BonusMalus",
            ],
            "numeric": ["Density"],
            "buckets": {
                "Area": 16, "VehPower": 32, "VehBrand": 32, "VehGas": 8, "Region": 64, "VehAge": 128,
                "DrivAge": 128, "BonusMalus": 256,
            },
        },
        "model": {"name": "logistic"},
        "privacy": {"delta": 1e-7, "epsilon": 1.0, "dataset_size": 379_458, "l2_clip_norm": 1.0},
        "training": {"expected_batch_size": 8192, "epochs": 10},
    }  # fmt: skip
