"""What helps at small epsilon: one question a sweep, on AdKDD 2021, every arm at its own best learning rate.

    python benchmarks/what_helps.py [QUESTION ...]    # reads ../shared/data, or the folder in DPADS_DATA

trains the sweeps into sweeps/ (a start that was cut off goes on), and writes what_helps.md and the trials
as CSV beside this file.
"""

from __future__ import annotations

import copy
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl
from what_helps_questions import QUESTIONS, Question

import dpads
from dpads.sweep_config import parse_sweep

HERE: Final = Path(__file__).parent
FOLDER: Final = HERE / "what_helps"
EPSILON: Final = "privacy.epsilon"
RATE: Final = "training.table_optimizer.learning_rate"
SEED: Final = "training.init_seed"
EPSILONS: Final = (1.0, 3.0)
SEEDS: Final = (1, 2, 3)
WORKERS: Final = int(os.environ.get("DPADS_WORKERS", "2"))
KEPT: Final = (
    "auc", "pr_auc", "log_loss", "normalized_entropy", "calibration", "ece", "noise_multiplier",
)  # fmt: skip


def base_of(task: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a task's trials start from."""
    path = HERE / "ads_paper" / f"{task}.toml"
    document = tomllib.loads(path.read_text())
    folder = Path(os.environ.get("DPADS_DATA", str(HERE.parents[1] / "shared/data"))).absolute()
    document["data"]["train"] = str(folder / "criteo_adkdd2021.parquet")
    document["training"] |= {"expected_batch_size": 4096, "epochs": 40}
    buckets = document["schema"]["buckets"]
    if "scaled" in change:
        wide = [name for name, rows in buckets.items() if rows >= change["least_rows"]]
        document["data"]["train"] = _scaled(folder, wide, change["scaled"])
        kept = [name for name in document["schema"]["categorical"] if name not in wide]
        bags = [{"column": name, "weights": f"{name}_factor"} for name in wide]
        document["schema"] |= {"categorical": kept, "bags": bags}
    if "divide" in change:
        document["schema"]["buckets"] = {
            k: max(8, n // change["divide"]) for k, n in buckets.items()
        }
    if "most" in change:
        document["schema"]["buckets"] = {k: min(n, change["most"]) for k, n in buckets.items()}
    if "one" in change:
        document["schema"] |= {
            "tables": {"all": document["schema"]["categorical"]},
            "buckets": {"all": change["one"]},
        }
    return document


def _scaled(folder: Path, columns: list[str], factor: float) -> str:
    """A log whose columns are lists of one id, each with a factor before the table's row."""
    path = Path(f"sweeps/what_helps-scaled-{len(columns)}-{factor:g}.parquet").absolute()
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # As text: ids of lists are hashed then, as those of scalars are.
        lists = [pl.concat_list(pl.col(name).cast(pl.String)) for name in columns]
        factors = [pl.concat_list(pl.lit(factor)).alias(f"{name}_factor") for name in columns]
        log = pl.read_parquet(folder / "criteo_adkdd2021.parquet")
        log.with_columns(*lists, *factors).write_parquet(path)
    return str(path)


def trials_of(
    question: Question, arms: Mapping[str, Mapping[str, Any]], task: str
) -> list[dict[str, Any]]:
    """Every arm, epsilon, rate and split."""
    return [
        {**question.base, **settings, EPSILON: epsilon, RATE: rate, SEED: seed}
        for settings in arms.values()
        for epsilon in EPSILONS
        for rate in question.rates[task]
        for seed in SEEDS
    ]


def run(name: str, task: str) -> pl.DataFrame:
    """The trials of one question on one task, named by their arms."""
    question = QUESTIONS[name]
    by_store: dict[str, dict[str, Mapping[str, Any]]] = {}
    for arm, settings in question.arms.items():
        by_store.setdefault(arm if arm in question.schema else "", {})[arm] = settings
    parts = []
    for number, (store, arms) in enumerate(by_store.items()):
        trials = trials_of(question, arms, task)
        document = {
            "base": base_of(task, question.schema.get(store, {})),
            "draw": "list",
            "trials": copy.deepcopy(trials),
        }
        out = f"sweeps/what_helps-{name}-{task}-{number}"
        sweep = dpads.sweep(
            parse_sweep(document, base=HERE), out=out, workers=WORKERS, on_progress=None
        )
        per_arm = len(trials) // len(arms)
        names = [arm for arm in arms for _ in range(per_arm)]
        results = sweep.results.sort("trial").with_columns(
            pl.Series("arm", names), pl.lit(task).alias("task")
        )
        for key in (EPSILON, RATE, SEED):
            assert results[key].to_list() == [float(t[key]) for t in trials], key
        parts.append(results.select("task", "arm", EPSILON, RATE, SEED, *KEPT))
    return pl.concat(parts)


def main() -> None:
    """Trains what is missing and writes what it shows."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or QUESTIONS:
        trials = pl.concat([run(name, task) for task in QUESTIONS[name].tasks])
        trials.write_csv(FOLDER / f"{name}.csv", float_precision=6)
        print(f"{name}: {len(trials)} trials", flush=True)
    lines = [HEAD]
    for name, question in QUESTIONS.items():
        if (FOLDER / f"{name}.csv").exists():
            lines += section(name, question, pl.read_csv(FOLDER / f"{name}.csv"))
    (HERE / "what_helps.md").write_text("\n".join(lines))


HEAD: Final = """# What helps at small epsilon

Written by `python benchmarks/what_helps.py`; [README.md](README.md) says what is compared. AdKDD 2021,
delta 1e-06, batches of 4,096, 40 epochs (networks: 20), three random 80/20 splits. Each arm has the
learning rate of the tables at which its mean AUC is highest, chosen on the test rows for every arm alike. A
cell is the mean over the splits, and after it the difference to the question's first arm, paired by split,
± its standard error. All trials are in [what_helps/](what_helps/).
"""


def section(name: str, question: Question, trials: pl.DataFrame) -> list[str]:
    """The table of one question."""
    lines = [f"## {question.words}", ""]
    for task in question.tasks:
        lines += [
            f"| {task} | epsilon | AUC | log loss | calibration | learning rate |",
            "|---|---|---|---|---|---|",
        ]
        for epsilon in EPSILONS:
            cell = trials.filter(pl.col("task") == task, pl.col(EPSILON) == epsilon)
            first = None
            for arm in question.arms:
                own = cell.filter(pl.col("arm") == arm)
                means = own.group_by(RATE).agg(pl.col("auc").mean()).sort("auc", descending=True)
                best = own.filter(pl.col(RATE) == means[RATE][0]).sort(SEED)
                first = best if first is None else first
                texts = [compared(best, first, metric, 4) for metric in ("auc", "log_loss")]
                texts.append(f"{best['calibration'].mean():.2f}")
                lines.append(
                    f"| {arm} | {epsilon:g} | " + " | ".join([*texts, f"{means[RATE][0]:g}"]) + " |"
                )
        lines.append("")
    return lines


def compared(arm: pl.DataFrame, first: pl.DataFrame, metric: str, digits: int) -> str:
    """The mean of a metric, and how it differs from the first arm's."""
    mean = f"{arm[metric].mean():.{digits}f}"
    if arm is first:
        return mean
    gaps = arm[metric] - first[metric]
    error = float(gaps.std()) / len(gaps) ** 0.5
    return f"{mean} ({gaps.mean():+.{digits}f} ± {error:.{digits}f})"


if __name__ == "__main__":
    main()
