"""The ads paper's experiment at this size: what epsilon costs, and what larger batches win back.

    python benchmarks/ads_paper.py            # reads ../shared/data, or the folder in DPADS_DATA

trains the sweeps ads_paper/click-sweep.toml and ads_paper/sale-sweep.toml into sweeps/ (a start that was
cut off goes on), and writes ads_paper.md, the trials as CSV and the plots as SVG beside this file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import polars as pl

import dpads
from dpads.sweep_config import SweepConfig, load_sweep, parse_sweep

HERE: Final = Path(__file__).parent
FOLDER: Final = HERE / "ads_paper"
TASKS: Final = ("click", "sale")
EPSILON: Final = "privacy.epsilon"
BATCH: Final = "training.expected_batch_size"
RATE: Final = "training.table_optimizer.learning_rate"
SEED: Final = "training.init_seed"
PLOTS: Final = ("privacy-utility", "noise-per-example", "calibration")
KEPT: Final = (
    "trial", "status", "reference", EPSILON, BATCH, "training.epochs", RATE, SEED, "auc", "auc_low",
    "auc_high", "auc_loss", "log_loss", "normalized_entropy", "pr_auc", "calibration", "ece",
    "relative_increase", "noise_multiplier", "iterations", "epsilon", "delta",
)  # fmt: skip


def sweep_of(task: str) -> SweepConfig:
    """The task's sweep, on the logs that DPADS_DATA names."""
    config = load_sweep(FOLDER / f"{task}-sweep.toml")
    data = os.environ.get("DPADS_DATA")
    if data is None:
        return config
    document = dict(config.document)
    train = str(Path(data).absolute() / "criteo_adkdd2021.parquet")
    document["base"] = {**document["base"], "data": {**document["base"]["data"], "train": train}}
    return parse_sweep(document, base=FOLDER)


def best(trials: pl.DataFrame) -> pl.DataFrame:
    """Per epsilon and batch size, the learning rate with the least mean loss, over the seeds.

    It is chosen on the test rows, for every cell alike; references are left out.
    """
    cells = (
        trials.filter(~pl.col("reference"))
        .group_by(EPSILON, BATCH, RATE)
        .agg(
            pl.col("relative_increase").mean().alias("increase"),
            (pl.col("relative_increase").std() / pl.len().sqrt()).alias("error"),
            pl.col("auc").mean(),
            pl.col("log_loss").mean(),
            pl.col("calibration").mean(),
            pl.col("noise_multiplier").first(),
            pl.len().alias("seeds"),
        )
    )
    return cells.sort("increase").group_by(EPSILON, BATCH, maintain_order=True).first()


def against(trials: pl.DataFrame, cells: pl.DataFrame) -> list[str]:
    """Lines of a table: the largest batch against each other, paired by seed, at equal epsilon."""
    largest = cells[BATCH].max()
    chosen = trials.join(cells.select(EPSILON, BATCH, RATE), on=[EPSILON, BATCH, RATE])
    lines = []
    for (epsilon,), group in chosen.sort(EPSILON).group_by(EPSILON, maintain_order=True):
        top = group.filter(pl.col(BATCH) == largest).select(
            SEED, pl.col("relative_increase").alias("top")
        )
        parts = []
        for (size,), other in group.sort(BATCH).group_by(BATCH, maintain_order=True):
            if size == largest:
                continue
            gaps = other.join(top, on=SEED)["relative_increase"] - other.join(top, on=SEED)["top"]
            parts.append(_percent(float(gaps.mean()), float(gaps.std()) / len(gaps) ** 0.5))
        lines.append(f"| {epsilon:g} | " + " | ".join(parts) + " |")
    return lines


def section(task: str, trials: pl.DataFrame) -> str:
    """What one task showed."""
    cells = best(trials)
    sizes = sorted(cells[BATCH].unique())
    reference = (
        trials.filter("reference")
        .group_by("training.epochs")
        .agg(pl.col("auc").mean(), pl.col("auc").std().alias("spread"), pl.col("auc_loss").mean())
        .sort("auc_loss")
    )
    head = " | ".join(f"batch {size:,}" for size in sizes)
    auc, spread, epochs = (reference[name][0] for name in ("auc", "spread", "training.epochs"))
    lines = [
        f"## {task}",
        "",
        f"Without noise: AUC {auc:.4f} (splits: ± {spread:.4f}), after {epochs:g} epochs.",
        "",
        f"![relative increase of 1 - AUC against epsilon](ads_paper/{task}-privacy-utility.svg)",
        "",
        f"![noise of the averaged gradient against batch size](ads_paper/{task}-noise-per-example.svg)",
        "",
        f"| epsilon | {head} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for epsilon in sorted(cells[EPSILON].unique()):
        row = [f"{epsilon:g}"]
        for size in sizes:
            cell = cells.filter((pl.col(EPSILON) == epsilon) & (pl.col(BATCH) == size)).row(
                0, named=True
            )
            row.append(
                f"{_percent(cell['increase'], cell['error'])}; AUC {cell['auc']:.4f}, calibration "
                f"{cell['calibration']:.2f}, rate {cell[RATE]:g}"
            )
        lines.append("| " + " | ".join(row) + " |")
    others = " | ".join(f"batch {size:,}" for size in sizes[:-1])
    lines += [
        "",
        f"How much more of the loss the smaller batches leave than batch {sizes[-1]:,}, paired by split:",
        "",
        f"| epsilon | {others} |",
        "|---" * len(sizes) + "|",
        *against(trials, cells),
        "",
    ]
    return "\n".join(lines)


def _percent(value: float, error: float) -> str:
    """A relative increase with its standard error."""
    return f"{100 * value:+.1f} ± {100 * error:.1f} %"


def main() -> None:
    """Trains what is missing and writes what it shows."""
    parts = []
    for task in TASKS:
        sweep = dpads.sweep(sweep_of(task), out=f"sweeps/ads_paper-{task}", on_progress=None)
        trials = sweep.results
        trials.select(KEPT).write_csv(FOLDER / f"{task}.csv", float_precision=6)
        for name in PLOTS:
            shutil.copy(sweep.path / "plots" / f"{name}.svg", FOLDER / f"{task}-{name}.svg")
        parts.append(section(task, trials))
        print(f"{task}: {len(trials)} trials", flush=True)
    head = """# The ads paper's experiment on AdKDD 2021

Written by `python benchmarks/ads_paper.py`; [README.md](README.md) says what is compared. Logistic
regression on 19 hashed columns, delta 1e-06, about 560 steps at every batch size, three random 80/20
splits. A cell is the relative increase of 1 - AUC over the model without noise on the same split, mean ±
standard error over the splits, at the learning rate that did best in the cell; then its mean AUC,
calibration and learning rate. All trials are in [click.csv](ads_paper/click.csv) and
[sale.csv](ads_paper/sale.csv).
"""
    (HERE / "ads_paper.md").write_text("\n".join([head, *parts]))


if __name__ == "__main__":
    main()
