"""The table of ads_models.py, from the trials beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import polars as pl
from ads_models_tasks import TASKS, WORDS

MODELS: Final = ("logistic", "fm", "mlp", "deepfm", "dcn", "dlrm")
SETTING: Final = ("epochs", "rate", "decay")
HEAD: Final = """# Every model on every task

Written by `python benchmarks/ads_models.py`; [README.md](README.md) says what is compared. Three random 80/20
splits. A cell has the mean over the splits of the AUC (of claims: the Poisson log loss, without log y!), its
standard error after ±, and how much more loss the private model leaves than the same model without noise on
the same split: of 1 - AUC, or of the Poisson log loss. Settings are the best of those tried, chosen on the
test rows for every cell alike, references included; no epsilon covers that choice. All trials are in
[ads_models/](ads_models/), each with the 95 % interval of its AUC by DeLong.
"""


def loss_of(task: str) -> str:
    """The loss that a task is compared by."""
    return "poisson_log_loss" if task == "claims" else "auc_loss"


def best(trials: pl.DataFrame, task: str, *setting: str) -> pl.DataFrame:
    """The trials of the setting with the least mean loss."""
    loss = loss_of(task)
    # A rate at which a split diverges has no loss there.
    whole = trials.group_by(*setting).agg(
        pl.col(loss).mean(), pl.col(loss).null_count().alias("lost")
    )
    means = whole.filter(pl.col("lost") == 0).sort(loss)
    if means.is_empty():
        return means
    first = means.row(0, named=True)
    return trials.filter(*(pl.col(name) == first[name] for name in setting)).sort("split")


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(squares / len(values))


def shown(task: str, trials: pl.DataFrame) -> str:
    """A cell's metric and calibration."""
    name = "poisson_log_loss" if task == "claims" else "auc"
    mean, error = mean_and_error(trials[name].to_list())
    calibration = trials["calibration"].mean()
    parts = [f"{mean:.4f} ± {error:.4f}"]
    if task != "claims":
        parts.append(f"log loss {trials['log_loss'].mean():.4f}")
    return ", ".join([*parts, f"calibration {calibration:.2f}"])


def increase(task: str, trials: pl.DataFrame, reference: pl.DataFrame) -> str:
    """The relative increase of the loss, paired by split."""
    pairs = zip(trials[loss_of(task)], reference[loss_of(task)], strict=True)
    mean, error = mean_and_error([(mine - theirs) / abs(theirs) for mine, theirs in pairs])
    return f"{100 * mean:+.1f} ± {100 * error:.1f} %"


def section(task: str, trials: pl.DataFrame, references: pl.DataFrame) -> list[str]:
    """One task's table."""
    epsilons = sorted(trials["epsilon"].unique())
    names = ["without noise" if math.isinf(e) else f"epsilon {e:g}" for e in epsilons]
    lines = [
        f"## {WORDS[task]}",
        "",
        "| model | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for model in MODELS:
        own = trials.filter(pl.col("model") == model)
        cells: dict[float, Any] = {
            epsilon: best(own.filter(pl.col("epsilon") == epsilon), task, *SETTING)
            for epsilon in epsilons
        }
        texts = []
        for epsilon, cell in cells.items():
            text = "diverged" if cell.is_empty() else shown(task, cell)
            if not math.isinf(epsilon) and not cells[math.inf].is_empty():
                text += f"; {increase(task, cell, cells[math.inf])}"
            texts.append(text)
        lines.append(f"| {model} | " + " | ".join(texts) + " |")
    own = references.filter(pl.col("task") == task)
    for name in sorted(own["reference"].unique()):
        cell = best(own.filter(pl.col("reference") == name), task, "setting")
        blank = " | ".join("" for _ in epsilons[:-1])
        lines.append(f"| {name} | {blank} | {shown(task, cell)} |")
    return [*lines, ""]


def write_table(folder: Path, out: Path) -> None:
    """Writes the page."""
    references = pl.read_csv(folder / "references.csv")
    lines = [HEAD]
    for task in TASKS:
        path = folder / f"{task}.csv"
        if path.exists():
            lines += section(task, pl.read_csv(path), references)
    out.write_text("\n".join(lines))
