"""The table of trials on a sweep's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpads.accounting.accountant import round_up
from dpads.sweep_curves import INCREASE, Curves
from dpads.sweep_rows import (
    BATCH,
    CAP,
    EPSILON,
    METRIC_WORDS,
    MODEL,
    MODEL_NAME,
    SEEDS,
    UNIT,
    Row,
    epsilon_of_row,
    key_words,
    lowest,
    value_words,
)

_METRICS = (
    "auc", "pr_auc", "log_loss", "normalized_entropy", "calibration", "ece", "rmse",
)  # fmt: skip
_METRIC_NAMES = {
    "auc": "AUC",
    "pr_auc": "PR AUC",
    "log_loss": "log loss",
    "ece": "ECE",
    "rmse": "RMSE",
}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What is written.
        sort: What rows are sorted by: a number or a text; None comes last.
        note: What is written smaller beneath, such as an interval.
    """

    text: str
    sort: float | str | None
    note: str = ""

    @property
    def key(self) -> str:
        """The value as a script reads it: exact, "Infinity" for infinity, empty for none."""
        if self.sort is None:
            return ""
        if isinstance(self.sort, str):
            return self.sort
        return repr(self.sort) if math.isfinite(self.sort) else "Infinity"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Its name in `results.parquet`.
        title: Its head.
        is_number: Whether its cells are numbers.
        cells: One per trial.
    """

    key: str
    title: str
    is_number: bool
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Line:
    """One trial.

    Attributes:
        trial: Its name.
        status: done, failed or interrupted.
        error: Why it failed.
        marks: What is special about it, in words.
        cells: Its cells, column by column.
    """

    trial: str
    status: str
    error: str
    marks: Sequence[str]
    cells: Sequence[Cell]

    @property
    def look(self) -> str:
        """The row's look: only failures have one of their own."""
        return "failed" if self.status == "failed" else ""


@dataclass(frozen=True)
class TrialTable:
    """The trials of a sweep as text.

    Attributes:
        columns: What is said of each trial, beside its name and status.
        lines: The trials.
    """

    columns: Sequence[Column]
    lines: Sequence[Line]


def trial_table(curves: Curves) -> TrialTable:
    """The table of all trials that have begun."""
    rows = curves.sweep.rows
    columns = [_column(*spec, rows) for spec in _specs(curves)]
    columns = [column for column in columns if any(cell.text for cell in column.cells)]
    best = {row["trial"] for row in lowest(curves.sweep, curves.sweep.noisy)}
    lines = []
    for place, row in enumerate(rows):
        marks = ["lowest loss"] if row["trial"] in best else []
        if row["trial"] in curves.sweep.added_references:
            marks.append("baseline")
        elif row["trial"] in curves.chosen_trials and curves.competing:
            marks.append("on a curve")
        lines.append(
            Line(
                row["trial"],
                str(row["status"]),
                str(row.get("error") or ""),
                marks,
                [column.cells[place] for column in columns],
            )
        )
    return TrialTable(columns, lines)


_Spec = tuple[str, str, bool, Callable[[Row], Cell]]


def _specs(curves: Curves) -> list[_Spec]:
    """Every column that may be shown: settings that varied, metrics, mechanism, costs."""
    sweep = curves.sweep
    settings = [k for k in (MODEL, UNIT, CAP, BATCH) if k in sweep.axes or sweep.varies(k)]
    settings += [k for k in sweep.axes if k not in (*settings, EPSILON, MODEL_NAME)]
    settings += [k for k in SEEDS if k not in settings and sweep.varies(k)]
    if len(sweep.model_labels) > 1 and MODEL not in settings:
        settings.insert(0, MODEL)
    loss = METRIC_WORDS.get(sweep.loss, sweep.loss)
    specs: list[_Spec] = [
        ("epsilon asked", "epsilon", True, lambda r: _setting(epsilon_of_row(r))),
        (sweep.loss, loss, True, _measured(sweep.loss, lambda v: f"{v:.4f}")),
        (INCREASE, "over the non-private model", True, _measured(INCREASE, _percent)),
    ]
    for key in settings:
        if key == MODEL:
            specs.append(
                (key, "model", False, lambda r: Cell(sweep.model_of(r), sweep.model_of(r)))
            )
        else:
            is_number = all(not isinstance(value, str) for value in sweep.values(key))
            specs.append((key, key_words(key), is_number, _setting_of(key)))
    specs += [
        (
            key,
            _METRIC_NAMES.get(key, key.replace("_", " ")),
            True,
            _measured(key, lambda v: f"{v:.4f}"),
        )
        for key in _METRICS
    ]
    specs += [
        (
            "noise_multiplier",
            "noise multiplier",
            True,
            _measured("noise_multiplier", lambda v: f"{v:.4g}"),
        ),
        ("epsilon", "epsilon accounted", True, _measured("epsilon", _epsilon)),
        ("delta", "delta", True, _measured("delta", value_words)),
        ("iterations", "iterations", True, _measured("iterations", lambda v: f"{int(v):,}")),
        ("seconds", "seconds", True, _measured("seconds", lambda v: f"{v:,.1f}")),
        (
            "memory_bytes",
            "memory, MiB",
            True,
            _measured("memory_bytes", lambda v: f"{v / 2**20:,.0f}"),
        ),
    ]
    return specs


def _column(
    key: str, title: str, is_number: bool, cell: Callable[[Row], Cell], rows: Sequence[Row]
) -> Column:
    """A column of all trials."""
    return Column(key, title, is_number, [cell(row) for row in rows])


def _setting(value: Any) -> Cell:
    """A setting's cell."""
    return Cell(value_words(value), value)


def _setting_of(key: str) -> Callable[[Row], Cell]:
    """Cells of one setting."""
    return lambda row: _setting(row.get(key))


def _measured(key: str, text: Callable[[Any], str]) -> Callable[[Row], Cell]:
    """Cells of one result, with its interval where it has one."""

    def cell(row: Row) -> Cell:
        value = row.get(key)
        if value is None:
            return Cell("", None)
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        note = "" if low is None or high is None else f"{text(low)} to {text(high)}"
        return Cell(text(value), value, note)

    return cell


def _percent(share: float) -> str:
    """A relative change."""
    return f"{100 * share:+.1f} %"


def _epsilon(value: float) -> str:
    """An accounted epsilon, rounded up."""
    return "infinity" if math.isinf(value) else f"{round_up(value):.2f}"
