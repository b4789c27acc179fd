"""Every model on every task: what epsilon costs on four real labels, beside other libraries' models.

    python benchmarks/ads_models_references.py    # scikit-learn and deepctr-torch, without privacy
    python benchmarks/ads_models.py [TASK ...]    # reads ../shared/data, or the folder in DPADS_DATA

trains one sweep a task into sweeps/ (a start that was cut off goes on), and writes ads_models.md and the
trials as CSV beside this file. A cell's learning rate is the one with the least mean loss over the splits,
for every cell alike and for the references too.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl
from ads_models_table import write_table
from ads_models_tasks import TASKS, base_of

import dpads
from dpads.sweep_config import parse_sweep

HERE: Final = Path(__file__).parent
FOLDER: Final = HERE / "ads_models"
LOGS: Final = Path("sweeps/ads_models-logs")
WORKERS: Final = int(os.environ.get("DPADS_WORKERS", "2"))
SPLITS: Final = (1, 2, 3)
EPSILONS: Final = (1.0, 3.0, 8.0, float("inf"))
TABLES: Final = "training.table_optimizer"
DEEP: Final[dict[str, Any]] = {"embedding_dim": 8, "hidden": [64, 32]}
MODELS: Final[dict[str, dict[str, Any]]] = {
    "logistic": {"name": "logistic"},
    "fm": {"name": "fm", "embedding_dim": 8},
    "mlp": {"name": "mlp", **DEEP},
    "deepfm": {"name": "deepfm", **DEEP},
    "dcn": {"name": "dcn", **DEEP},
    "dlrm": {"name": "dlrm", "embedding_dim": 8, "bottom": [16], "top": [64, 32]},
}
TOWERS: Final[dict[str, dict[str, Any]]] = {
    "logistic": {"name": "sgd", "learning_rate": 1.0},
    "deep": {"name": "adam", "learning_rate": 0.003},
    "logistic, without noise": {"name": "sgd", "learning_rate": 1.0, "schedule": "linear"},
    "deep, without noise": {"name": "adam", "learning_rate": 0.001, "schedule": "linear"},
}
# Learning rates of the tables, tried for every private cell.
RATES: Final[dict[tuple[str, str], tuple[float, ...]]] = {
    ("click", "logistic"): (0.5, 1.0, 2.0),
    ("sale", "logistic"): (4.0, 8.0, 16.0),
    ("install", "logistic"): (8.0, 16.0),
    ("claims", "logistic"): (3.0, 8.0),
    ("click", "deep"): (1.0, 2.0, 4.0),
    ("sale", "deep"): (4.0, 8.0, 16.0),
    ("install", "deep"): (8.0, 16.0),
    ("claims", "deep"): (2.0,),
}
# Passes over the rows of private training.
EPOCHS: Final[dict[tuple[str, str], int]] = {
    ("click", "logistic"): 40,
    ("sale", "logistic"): 40,
    ("install", "logistic"): 40,
    ("claims", "logistic"): 40,
    ("click", "deep"): 20,
    ("sale", "deep"): 10,
    ("install", "deep"): 10,
    ("claims", "deep"): 5,
}


class WithoutNoise(NamedTuple):
    """What is tried without noise: every combination, in batches of 1,024."""

    epochs: tuple[int, ...]
    rates: tuple[float, ...]
    decays: tuple[float, ...]


WITHOUT_NOISE: Final = {
    ("click", "logistic"): WithoutNoise((80,), (8.0,), (0.875e-4, 1.75e-4)),
    ("sale", "logistic"): WithoutNoise((80,), (16.0,), (0.875e-4, 1.75e-4)),
    ("install", "logistic"): WithoutNoise((100,), (64.0,), (0.875e-5, 1.75e-5)),
    ("claims", "logistic"): WithoutNoise((30,), (1.0, 3.0), (0.0,)),
    ("click", "deep"): WithoutNoise((5, 10), (2.0, 4.0), (0.0, 1e-4)),
    ("sale", "deep"): WithoutNoise((5, 10), (2.0,), (0.0, 1e-4)),
    ("install", "deep"): WithoutNoise((5, 10), (8.0,), (0.0, 1e-5)),
    ("claims", "deep"): WithoutNoise((5,), (0.3, 1.0), (0.0,)),
}
KEPT: Final = (
    "auc", "auc_low", "auc_high", "auc_loss", "pr_auc", "log_loss", "normalized_entropy", "calibration",
    "ece",
    "poisson_log_loss", "noise_multiplier", "iterations", "delta",
)  # fmt: skip


def trials_of(task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model's name and the settings of every trial."""
    for model, table in MODELS.items():
        for epsilon in EPSILONS:
            for settings in _grid(task, model, epsilon):
                for split in SPLITS:
                    common = {
                        "model": table,
                        "privacy.epsilon": epsilon,
                        "training.init_seed": split,
                    }
                    yield model, {**common, **settings}


def _grid(task: str, model: str, epsilon: float) -> Iterator[dict[str, Any]]:
    """What is tried for a cell."""
    kind = "logistic" if model == "logistic" else "deep"
    if epsilon < float("inf"):
        for rate in RATES[task, kind]:
            yield {
                TABLES: {"name": "sgd", "learning_rate": rate},
                "training.epochs": EPOCHS[task, kind],
                "training.tower_optimizer": TOWERS[kind],
            }
        return
    tower = TOWERS[f"{kind}, without noise"]
    for epochs, rate, decay in itertools.product(*WITHOUT_NOISE[task, kind]):
        yield {
            TABLES: {
                "name": "sgd", "learning_rate": rate, "schedule": "linear", "weight_decay": decay,
            },
            "training.epochs": epochs,
            "training.expected_batch_size": 1024,
            "training.tower_optimizer": tower,
        }  # fmt: skip


def run(task: str) -> pl.DataFrame:
    """All trials of a task."""
    trials = list(trials_of(task))
    base = base_of(task, LOGS)
    base.pop("reference", None)
    document = {"base": base, "draw": "list", "trials": [copy.deepcopy(t) for _, t in trials]}
    sweep = dpads.sweep(
        parse_sweep(document, base=HERE),
        out=f"sweeps/ads_models-{task}",
        workers=WORKERS,
        on_progress=None,
    )
    results = sweep.results.sort("trial").with_columns(
        pl.lit(task).alias("task"),
        pl.Series("model", [name for name, _ in trials]),
        pl.Series("rate", [float(t[TABLES]["learning_rate"]) for _, t in trials]),
        pl.Series("decay", [float(t[TABLES].get("weight_decay", 0.0)) for _, t in trials]),
        pl.col("training.init_seed").alias("split"),
        pl.col("training.epochs").alias("epochs"),
        pl.col("privacy.epsilon").alias("epsilon"),
    )
    assert results["split"].to_list() == [t["training.init_seed"] for _, t in trials]
    kept = [name for name in KEPT if name in results.columns]
    return results.select("task", "model", "epsilon", "epochs", "rate", "decay", "split", *kept)


def main() -> None:
    """Trains what is missing and writes what it shows."""
    FOLDER.mkdir(exist_ok=True)
    for task in sys.argv[1:] or TASKS:
        trials = run(task)
        trials.write_csv(FOLDER / f"{task}.csv", float_precision=6)
        print(f"{task}: {len(trials)} trials", flush=True)
    write_table(FOLDER, HERE / "ads_models.md")


if __name__ == "__main__":
    main()
