"""Renders the results of the AdKDD benchmark as Markdown."""

from __future__ import annotations

import statistics
from typing import Any, Final

from adkdd_setting import METRICS

TITLES: Final = {
    "auc": "AUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "calibration": "calibration",
}


def render(report: dict[str, Any]) -> str:
    """The whole page."""
    configuration, environment = report["configuration"], report["environment"]
    rows = sum(configuration["buckets"].values())
    buckets = ", ".join(f"{name} {size}" for name, size in configuration["buckets"].items())
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("dpads", "opacus", "torch", "numba", "numpy")
    )
    return "\n".join(
        [
            "# AdKDD 2021, click: dpads beside Opacus",
            "",
            "Written by `python benchmarks/adkdd.py`; [README.md](README.md) says what is compared.",
            f"Logistic regression on {len(configuration['buckets'])} hashed columns, {rows:,} table rows,",
            f"delta {configuration['delta']:g}. Test rows: mean ± standard error over three random 80/20",
            f"splits, the same for both sides, {configuration['repeats']} trainings on each.",
            "",
            *_scores(report["results"], report["steps"]),
            "",
            "Calibration is the sum of predictions over the sum of clicks. The step time is the median at",
            "the batch size of the setting that won.",
            "",
            "## Not inferior",
            "",
            "Paired difference over the splits, dpads minus the other side, signed so that more is",
            "better. Not inferior: at least minus one standard error.",
            "",
            *_differences(report["results"]),
            "",
            "## One step",
            "",
            "Median milliseconds at epsilon 3, drawing the batch included, the sides taking turns on",
            f"{environment['cores']} cores.",
            "",
            *_steps(report["steps"]),
            "",
            "## What won",
            "",
            *_winners(report["results"]),
            "",
            "All trials, with their scores on the validation rows, are in [adkdd.json](adkdd.json).",
            "",
            f"Table rows by column: {buckets}.",
            "",
            f"Python {environment['python']}, {versions}; {environment['minutes']} minutes in all.",
            "",
        ]
    )


def _scores(results: list[dict[str, Any]], steps: list[dict[str, float]]) -> list[str]:
    """Metrics of every budget and side."""
    step_times = {row["batch_size"]: row for row in steps}
    lines = [
        "| epsilon | side | " + " | ".join(TITLES[m] for m in METRICS) + " | ms per step |",
        "|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    for result in results:
        for side, found in result["sides"].items():
            cells = [
                _spread(
                    [test["scores"][name] for test in found["tests"]],
                    4 if name != "calibration" else 3,
                )
                for name in METRICS
            ]
            timed = side if result["epsilon"] is not None else f"{side} without privacy"
            step = step_times[found["winner"]["batch_size"]][timed]
            lines.append(
                f"| {_budget(result)} | {side} | " + " | ".join(cells) + f" | {step:.1f} |"
            )
    return lines


def _differences(results: list[dict[str, Any]]) -> list[str]:
    """Paired differences of every budget."""
    lines = ["| epsilon | against | AUC | | log loss | |", "|---|---|---|---|---|---|"]
    for result in results:
        other = list(result["sides"])[1]
        cells = []
        for name in ("auc", "log_loss"):
            gap = result["difference"][name]
            verdict = "not inferior" if gap["not_inferior"] else "INFERIOR"
            cells.append(f"{gap['mean']:+.4f} ± {gap['standard_error']:.4f} | {verdict}")
        lines.append(f"| {_budget(result)} | {other} | " + " | ".join(cells) + " |")
    return lines


def _steps(steps: list[dict[str, float]]) -> list[str]:
    """Step times."""
    sides = [name for name in steps[0] if name != "batch_size"]
    lines = ["| batch | " + " | ".join(sides) + " |", "|---|" + "---|" * len(sides)]
    lines += [
        f"| {row['batch_size']:.0f} | " + " | ".join(f"{row[side]:.1f}" for side in sides) + " |"
        for row in steps
    ]
    return lines


def _winners(results: list[dict[str, Any]]) -> list[str]:
    """The setting that each side's tuning chose."""
    lines = [
        "| epsilon | side | setting | iterations | noise multiplier | epsilon spent |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for side, found in result["sides"].items():
            run = found["tests"][0]["runs"][0]
            noise = f"{run['noise_multiplier']:.3f}" if run["noise_multiplier"] else "none"
            spent = "" if run["epsilon"] is None else f"{run['epsilon']:.3f}"
            lines.append(
                f"| {_budget(result)} | {side} | {found['winner_text']} | {run['iterations']} "
                f"| {noise} | {spent} |"
            )
    return lines


def _budget(result: dict[str, Any]) -> str:
    """A budget as text."""
    return "infinity" if result["epsilon"] is None else f"{result['epsilon']:g}"


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"
