"""The pictures of a sweep that are about its mechanism and its machine: noise, seconds, memory."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from dpads.sweep_figures import Figure, Point
from dpads.sweep_rows import (
    BATCH,
    CAP,
    MOST_LINES,
    UNIT,
    Row,
    SweepRows,
    distinct,
    epsilon_of_row,
    grouped,
    key_words,
    value_words,
)

# What the noise multiplier depends on, beside epsilon and the batch size.
_OF_THE_MECHANISM = ("training.epochs", "privacy.delta", "privacy.dataset_size", UNIT, CAP)


def noise_figures(sweep: SweepRows) -> list[Figure]:
    """The noise multiplier, and the noise of the averaged gradient, against the batch size.

    Where one batch size was tried they are against epsilon. Trials of one unit, delta and number of
    epochs are shown, those of which there are most.
    """
    rows = [row for row in sweep.noisy if row.get("noise_multiplier")]
    if not rows:
        return []
    fixed = [key for key in _OF_THE_MECHANISM if _varies_beside_batch(rows, key)]
    most = Counter(tuple(row.get(key) for key in fixed) for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if tuple(row.get(key) for key in fixed) == most]
    note = f"Only trials of {sweep.settings_words(rows[0], fixed)} are shown." if fixed else ""
    by_batch = len({row[BATCH] for row in rows}) > 1
    levels = distinct(epsilon_of_row(row) for row in rows)
    has_lines = by_batch and 2 <= len(levels) <= MOST_LINES
    x_title = "expected batch size, logarithmic" if by_batch else "epsilon, logarithmic"

    def place(row: Row) -> tuple[int, float]:
        x = float(row[BATCH]) if by_batch else epsilon_of_row(row)
        return (levels.index(epsilon_of_row(row)) if has_lines else 0), x

    def figure(
        name: str, title: str, words: str, y_title: str, value: Callable[[Row], float]
    ) -> Figure:
        return Figure(
            name=name,
            title=title,
            note=" ".join(text for text in (words, note) if text),
            x_title=x_title,
            y_title=y_title,
            legend="Epsilon" if has_lines else "",
            lines=tuple(value_words(level) for level in levels) if has_lines else ("",),
            is_ordered=True,
            points=tuple(
                Point(
                    x=x,
                    y=statistics.fmean(value(row) for row in found),
                    line=line,
                    trials=tuple(row["trial"] for row in found),
                )
                for (line, x), found in sorted(grouped(rows, place).items())
            ),
            is_log=True,
        )

    against = "batch size" if by_batch else "epsilon"
    figures = [
        figure(
            "noise-multiplier",
            f"Noise multiplier against {against}",
            "The noise's standard deviation over the clip norm, in the sum over a batch.",
            "noise multiplier, logarithmic",
            lambda row: float(row["noise_multiplier"]),
        ),
        figure(
            "noise-per-example",
            f"Noise of the averaged gradient against {against}",
            "Noise multiplier over expected batch size: the noise that one averaged gradient "
            "carries, in units of the clip norm. This is what a larger batch buys.",
            "noise multiplier / batch size, logarithmic",
            lambda row: float(row["noise_multiplier"]) / float(row[BATCH]),
        ),
    ]
    return figures if by_batch else figures[:1]


def cost_figures(sweep: SweepRows) -> list[Figure]:
    """Seconds of training and memory, against what varied of batch size and epsilon."""
    figures = [
        _cost_figure(sweep, "seconds", "Time of training", _time_scale),
        _cost_figure(sweep, "memory_bytes", "Peak memory", _memory_scale),
    ]
    return [figure for figure in figures if figure is not None]


def _cost_figure(
    sweep: SweepRows,
    column: str,
    title: str,
    scale_of: Callable[[float], tuple[float, str]],
) -> Figure | None:
    """One cost; None where it was not measured."""
    rows = [row for row in sweep.done if row.get(column)]
    if not rows:
        return None
    by_batch = len({row[BATCH] for row in rows}) > 1
    kinds = [key for key in ("training.epochs",) if _varies_beside_batch(rows, key)]

    def name_of(row: Row) -> str:
        words = [sweep.model_of(row)] if len(sweep.model_labels) > 1 else []
        words += [f"{key_words(key)} {value_words(row.get(key))}" for key in kinds]
        if by_batch:
            words.append("without noise" if row["reference"] else "private")
        return ", ".join(words)

    lines = tuple(sorted({name_of(row) for row in rows}))
    if not 2 <= len(lines) <= MOST_LINES:
        lines = ("",)
    unit, unit_name = scale_of(max(row[column] for row in rows))

    def place(row: Row) -> tuple[int, float]:
        x = float(row[BATCH]) if by_batch else epsilon_of_row(row)
        return (0 if lines == ("",) else lines.index(name_of(row))), x

    def point(line: int, x: float, found: Sequence[Row]) -> Point:
        values = [row[column] / unit for row in found]
        several = len(values) > 1
        return Point(
            x=x,
            y=statistics.fmean(values),
            low=min(values) if several else None,
            high=max(values) if several else None,
            line=line,
            trials=tuple(row["trial"] for row in found),
        )

    points = tuple(
        point(line, x, found) for (line, x), found in sorted(grouped(rows, place).items())
    )
    workers = int(sweep.document.get("workers") or 1)
    together = f" Up to {workers} trials ran side by side." if workers > 1 else ""
    if column == "seconds":
        together += " The first trial of each worker also loads and compiles."
    has_infinity = any(math.isinf(p.x) for p in points)
    epsilon = f"epsilon, logarithmic{' (∞: trained without noise)' if has_infinity else ''}"
    return Figure(
        name="seconds" if column == "seconds" else "memory",
        title=f"{title} against {'batch size' if by_batch else 'epsilon'}",
        note=f"Marks are means over all trials there, bars run from the least to the most.{together}",
        x_title="expected batch size, logarithmic" if by_batch else epsilon,
        y_title=unit_name,
        legend="Trials" if len(lines) > 1 else "",
        lines=lines,
        is_ordered=False,
        points=points,
        from_zero=True,
        decimals=3,
    )


def _varies_beside_batch(rows: Sequence[Row], key: str) -> bool:
    """Whether a setting differs among trials of one batch size: it may have been set with it."""
    return any(
        len({row.get(key) for row in found}) > 1
        for found in grouped(rows, lambda row: row[BATCH]).values()
    )


def _time_scale(most: float) -> tuple[float, str]:
    """A unit of time that suits: its seconds, its name."""
    if most >= 7200:
        return 3600.0, "hours"
    return (60.0, "minutes") if most >= 180 else (1.0, "seconds")


def _memory_scale(most: float) -> tuple[float, str]:
    """A unit of memory that suits: its bytes, its name."""
    return (2.0**30, "GiB") if most >= 2**30 else (2.0**20, "MiB")
