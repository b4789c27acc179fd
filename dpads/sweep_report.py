"""The report of a sweep: one page that needs nothing else, and every picture of it as a file."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpads.reliability import from_plain
from dpads.report_page import Drawn, draw, span_words, write_page
from dpads.report_reliability import HOW_TO_READ, DrawnReliability, Reliability, draw_reliability
from dpads.sweep_costs import cost_figures, noise_figures
from dpads.sweep_curves import INCREASE, Curves
from dpads.sweep_looks import Looks, looked_at
from dpads.sweep_rows import (
    EPSILON,
    METRIC_WORDS,
    SEEDS,
    TASK_WORDS,
    SweepRows,
    epsilon_of_row,
    key_words,
    lowest,
    value_words,
)
from dpads.sweep_table import trial_table


@dataclass(frozen=True)
class Section:
    """Pictures that belong together.

    Attributes:
        id: Its place on the page.
        title: Its head.
        lead: What to look for.
        drawings: The pictures.
    """

    id: str
    title: str
    lead: str
    drawings: Sequence[Drawn | DrawnReliability]


def write_report(folder: Path) -> Path:
    """Writes FOLDER/report.html and FOLDER/plots/ from what a sweep left there.

    Args:
        folder: The sweep's folder, with sweep.json, results.parquet and, where rows are private,
            ledger.jsonl.

    Returns:
        The page's path.

    Raises:
        RunError: A file of the sweep is missing, or another format wrote it.

    Guarantees:
        - The page fetches nothing, and runs no script but Vega's and its own.
        - Every text of users is escaped.
        - A joint epsilon is stated only of what the ledger covers; what it does not is named.
    """
    folder = Path(folder)
    sweep = SweepRows.read(folder)
    curves = Curves(sweep)
    looks = looked_at(folder, sweep) if sweep.is_private else Looks()
    return write_page(
        folder,
        "sweep.html.j2",
        document=sweep.document,
        task=TASK_WORDS.get(sweep.task, sweep.task),
        loss=METRIC_WORDS.get(sweep.loss, sweep.loss),
        is_private=sweep.is_private,
        axes=[(key_words(key), sweep.axis_words(key), key) for key in sweep.axes],
        counts=_counts(sweep),
        facts=_facts(curves, looks),
        warnings=_warnings(curves),
        curves=curves,
        sections=_sections(curves, folder),
        table=trial_table(curves),
        looks=looks,
        versions=_versions(sweep, folder),
    )


def _sections(curves: Curves, folder: Path) -> list[Section]:
    """Every section that has pictures to show."""
    sweep = curves.sweep
    utility = curves.figures_of(curves.measure)
    if curves.has_baseline:
        lead = "What privacy costs in utility: the loss of each model over that of the non-private one."
    else:
        lead = (
            "The loss of each model. No non-private model of the same kind and split was trained."
        )
    calibration = [
        figure
        for metric in ("calibration", "ece", "normalized_entropy")
        for figure in curves.figures_of(metric)
    ]
    return [
        Section("utility", "Privacy against utility", lead, draw(utility, folder)),
        Section(
            "noise",
            "Noise",
            "What each epsilon takes. At equal epsilon and epochs a larger batch needs more noise, but "
            "less than in proportion: the noise of the averaged gradient falls.",
            draw(noise_figures(sweep), folder),
        ),
        Section(
            "calibration",
            "Calibration",
            "Whether predictions are right on average, for the settings of the curves above.",
            [*_reliability(sweep, folder), *draw(calibration, folder)],
        ),
        Section(
            "cost",
            "Cost",
            "What the machine paid for each trial.",
            draw(cost_figures(sweep), folder),
        ),
    ]


def _reliability(sweep: SweepRows, folder: Path) -> list[DrawnReliability]:
    """The reliability plot of the best trial with noise, and of the best without."""
    bins = {}
    for name, rows in (
        ("lowest loss with noise", lowest(sweep, sweep.noisy)),
        ("lowest loss without noise", lowest(sweep, sweep.noise_free)),
    ):
        file = folder / str(rows[0].get("run") or "") / "metrics.json" if rows else None
        if file is None or not file.is_file():
            continue
        table = json.loads(file.read_text(encoding="utf-8")).get("calibration_table")
        if table:
            bins[f"{name}, trial {rows[0]['trial']}"] = from_plain(table)
    if not bins:
        return []
    counts = sweep.task == "count"
    plot = Reliability(title="Reliability", notes=HOW_TO_READ, bins=bins, counts=counts)
    return [draw_reliability(plot, folder)]


def _counts(sweep: SweepRows) -> dict[str, Any]:
    """How many trials there are, and what became of them."""
    planned = len(sweep.document["trials"])
    found = Counter(str(row["status"]) for row in sweep.rows)
    left = planned - len(sweep.rows)
    words = [f"{found[status]} {status}" for status in ("failed", "interrupted") if found[status]]
    words += [f"{left} not begun"] if left > 0 else []
    return {
        "done": found["done"],
        "all": planned,
        "added": len(sweep.added_references),
        "note": ", ".join(words) or "none failed",
    }


def _facts(curves: Curves, looks: Looks) -> list[tuple[str, str, str]]:
    """What a reader wants to know first: name, figure, note."""
    sweep, facts = curves.sweep, []
    keys = [key for key in sweep.other_axes if key != EPSILON]
    for name, rows in (
        ("Lowest loss with noise", lowest(sweep, sweep.noisy)),
        ("Lowest loss without noise", lowest(sweep, sweep.noise_free)),
    ):
        if rows:
            mean = statistics.fmean(row[sweep.loss] for row in rows)
            words = [
                f"mean over {len(rows)} seeds" if len(rows) > 1 else f"trial {rows[0]['trial']}"
            ]
            if not rows[0]["reference"]:
                words.append(f"epsilon {value_words(epsilon_of_row(rows[0]))}")
            words += [sweep.settings_words(rows[0], keys)] if keys else []
            facts.append((name, f"{mean:.4f}", ", ".join(words)))
    if sweep.is_private and looks.problem is None:
        if len(looks.joint) == 1:
            joint = looks.joint[0]
            note = f"at delta {joint.delta}, {joint.models} models with noise; metrics not included"
            facts.append(("Joint epsilon", joint.epsilon, note))
        of = f"of {looks.entries:,} entries of the sweep's ledger"
        facts.append(("Looks not covered", f"{looks.not_covered:,}", of))
    seconds, workers = sweep.document["seconds"], sweep.document["workers"]
    facts.append(("Time", span_words(seconds), f"{workers} trials side by side"))
    return facts


def _warnings(curves: Curves) -> list[str]:
    """What makes the curves less than they look."""
    sweep = curves.sweep
    found = []
    if not sweep.done:
        found.append("No trial is done: there is nothing to draw yet.")
    lone = [row for row in sweep.noisy if curves.has_baseline and row.get(INCREASE) is None]
    if lone:
        found.append(
            f"{len(lone)} finished trials have no non-private model of their own seeds and split: "
            "they are in the table and on no curve."
        )
    if curves.shown and not any(sweep.varies(seed) for seed in SEEDS):
        found.append(
            "One seed: how much of a difference is chance is not known. Sweep training.init_seed too."
        )
    return found


def _versions(sweep: SweepRows, folder: Path) -> Mapping[str, str]:
    """Versions of what decided the numbers, as the first finished trial recorded them."""
    own = {"dpads": str(sweep.document["dpads_version"])}
    for row in sweep.done:
        record = folder / str(row.get("run") or "") / "run.json"
        if record.is_file():
            return {**json.loads(record.read_text(encoding="utf-8"))["versions"], **own}
    return own
