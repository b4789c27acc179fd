"""The curves of a sweep's report: what stands for an epsilon, and what each metric is there.

Only trials that protect the same unit are ever put on one line, and settings that differ in
nothing but seeds are averaged.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from dpads.accounting.wording import listed, rows_words
from dpads.sweep_figures import Figure, Point
from dpads.sweep_rows import (
    BATCH,
    CAP,
    METRIC_WORDS,
    MODEL,
    MODEL_NAME,
    MOST_LINES,
    SEEDS,
    UNIT,
    Row,
    SweepRows,
    distinct,
    epsilon_of_row,
    grouped,
    key_words,
    value_words,
)

INCREASE: Final = "relative_increase"
# Lone trials that did badly must not flatten the curves: beyond this much more room they are left out.
_ROOM_FOR_DOTS = 0.6


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The setting that stands for one epsilon on one line.

    Attributes:
        x: The epsilon.
        line: The line.
        rows: Its trials, one per seed.
        candidates: How many settings were tried there.
    """

    x: float
    line: int
    rows: Sequence[Row]
    candidates: int


@dataclass(frozen=True)
class Curves:
    """Every picture of a sweep.

    Attributes:
        sweep: The trials.
    """

    sweep: SweepRows

    @cached_property
    def has_baseline(self) -> bool:
        """Whether trials were compared with a noise-free one of their own split."""
        return any(row.get(INCREASE) is not None for row in self.sweep.noisy)

    @cached_property
    def batch_lines(self) -> bool:
        """Whether lines are batch sizes."""
        return 2 <= len({row[BATCH] for row in self.shown}) <= MOST_LINES

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models that curves are made of."""
        found = {self.sweep.model_of(row) for row in self.shown}
        return tuple(label for label in self.sweep.model_labels.values() if label in found)

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """The name of every line."""
        if self.batch_lines:
            return tuple(map(value_words, distinct(row[BATCH] for row in self.shown)))
        return self.models if 2 <= len(self.models) <= MOST_LINES else ("",)

    @property
    def legend(self) -> str:
        """What tells lines apart."""
        if self.lines == ("",):
            return ""
        return "Expected batch size" if self.batch_lines else "Model"

    def line_of(self, row: Row) -> int:
        """Which line a trial is on."""
        if self.lines == ("",):
            return 0
        name = value_words(row[BATCH]) if self.batch_lines else self.sweep.model_of(row)
        return self.lines.index(name)

    def panel_of(self, row: Row) -> str:
        """Which picture a trial is in, where one cannot hold them all; empty where one can."""
        words = []
        if self.batch_lines and 2 <= len(self.models) <= MOST_LINES:
            words.append(self.sweep.model_of(row))
        if len({self.sweep.group_of(other) for other in self.shown}) > 1:
            cap = row.get(CAP)
            words.append(
                f"unit {row[UNIT]}" + ("" if cap is None else f" (at most {rows_words(cap)})")
            )
        return ", ".join(words)

    @cached_property
    def chosen_over(self) -> tuple[str, ...]:
        """What else varied: of settings that differ in these, the best stands for an epsilon."""
        shown = {UNIT, CAP}
        if self.batch_lines:
            shown.add(BATCH)
        if 2 <= len(self.models) <= MOST_LINES:
            shown |= {MODEL, MODEL_NAME}
        return tuple(k for k in self.sweep.other_axes if k not in shown)

    @cached_property
    def competing(self) -> tuple[str, ...]:
        """What of it differs among the settings of one mark; the rest came with the line itself."""
        places = grouped(self.shown, self._place).values()
        return tuple(
            key for key in self.chosen_over if any(len({r.get(key) for r in p}) > 1 for p in places)
        )

    @property
    def measure(self) -> str:
        """The column that settings are chosen by: the smaller, the better."""
        return INCREASE if self.has_baseline else self.sweep.loss

    @cached_property
    def shown(self) -> list[Row]:
        """The trials that curves are made of: not those that ran only to be compared with."""
        return [
            row
            for row in self.sweep.done
            if row["trial"] not in self.sweep.added_references and row.get(self.measure) is not None
        ]

    @cached_property
    def chosen(self) -> Mapping[str, Sequence[Chosen]]:
        """By panel, the best setting at each epsilon of each line."""
        panels: dict[str, list[Chosen]] = {}
        places = grouped(self.shown, self._place)
        for (panel, line, x), rows in places.items():
            settings = grouped(rows, lambda row: tuple(row.get(key) for key in self.chosen_over))
            # A setting of which a seed failed would be compared on other splits than the rest.
            most = max(len(seeds) for seeds in settings.values())
            whole = [seeds for seeds in settings.values() if len(seeds) == most]
            best = min(whole, key=lambda seeds: statistics.fmean(r[self.measure] for r in seeds))
            panels.setdefault(panel, []).append(
                Chosen(x=x, line=line, rows=best, candidates=len(settings))
            )
        return {
            panel: sorted(panels[panel], key=lambda c: (c.line, c.x)) for panel in sorted(panels)
        }

    def _place(self, row: Row) -> tuple[str, int, float]:
        """The panel, the line and the epsilon of a trial."""
        return self.panel_of(row), self.line_of(row), epsilon_of_row(row)

    @cached_property
    def chosen_trials(self) -> frozenset[str]:
        """The trials that stand on curves."""
        every = (chosen for panel in self.chosen.values() for chosen in panel)
        return frozenset(row["trial"] for chosen in every for row in chosen.rows)

    def figures_of(self, metric: str) -> list[Figure]:
        """A metric against epsilon, a picture per panel."""
        figures = [
            figure
            for panel, chosen in self.chosen.items()
            if (figure := self._figure_of(metric, panel, chosen)) is not None
        ]
        values = [value for figure in figures for value in figure.values]
        return [replace(figure, extent=(min(values), max(values))) for figure in figures]

    def _figure_of(self, metric: str, panel: str, chosen: Sequence[Chosen]) -> Figure | None:
        """One metric of one panel; None where no trial has it."""
        points = [p for c in chosen if (p := self._point(c, metric)) is not None]
        if not points:
            return None
        is_main = metric == self.measure
        trials = [r for r in self.shown if self.panel_of(r) == panel] if is_main else []
        dots = [
            Point(
                x=epsilon_of_row(row),
                y=row[metric],
                low=row.get(f"{metric}_low"),
                high=row.get(f"{metric}_high"),
                line=self.line_of(row),
                trials=(row["trial"],),
                settings=self._settings(row),
            )
            for row in trials
        ]
        kept = _within_reach(points, dots, _rule(metric))
        words = METRIC_WORDS.get(metric, metric)
        title, y_title = f"{_capital(words)} against epsilon", words
        if metric == INCREASE:
            title = "Loss over the non-private model"
            loss = METRIC_WORDS.get(self.sweep.loss, self.sweep.loss)
            y_title = f"relative increase of the {loss}"
        elif metric == "calibration":
            y_title = "sum of predictions / sum of labels"
        shown = f"{title}: {panel}" if panel else title
        name = "privacy-utility" if is_main else metric.replace("_", "-")
        return Figure(
            name=name + self._suffixes[panel],
            title=shown,
            note=self._note(chosen, dots, kept, metric),
            x_title=_epsilon_title([*points, *kept]),
            y_title=y_title,
            legend=self.legend,
            lines=self.lines,
            is_ordered=self.batch_lines,
            points=tuple(points),
            dots=tuple(kept),
            rule=_rule(metric),
            is_percent=metric == INCREASE,
        )

    def _point(self, chosen: Chosen, metric: str) -> Point | None:
        """The mean over seeds with one standard error, or one seed with its own interval."""
        rows = [row for row in chosen.rows if row.get(metric) is not None]
        if not rows:
            return None
        values = [row[metric] for row in rows]
        mean = statistics.fmean(values)
        low, high = rows[0].get(f"{metric}_low"), rows[0].get(f"{metric}_high")
        if len(values) > 1:
            error = statistics.stdev(values) / math.sqrt(len(values))
            low, high = mean - error, mean + error
        return Point(
            x=chosen.x,
            y=mean,
            low=low,
            high=high,
            line=chosen.line,
            trials=tuple(row["trial"] for row in rows),
            settings=self._settings(rows[0], seeds=len(rows) == 1),
        )

    def _settings(self, row: Row, *, seeds: bool = True) -> str:
        """What else the trial was set to."""
        varied = [key for key in SEEDS if seeds and self.sweep.varies(key)]
        return self.sweep.settings_words(row, [*self.chosen_over, *varied])

    def _note(
        self, chosen: Sequence[Chosen], dots: Sequence[Point], kept: Sequence[Point], metric: str
    ) -> str:
        """How the picture came about."""
        sentences = [_interval_words(chosen, metric)]
        if metric != self.measure:
            return sentences[0]
        most = max(c.candidates for c in chosen)
        if most > 1:
            sentences.append(
                f"Each mark is the best of up to {most} settings tried there "
                f"({listed([key_words(key) for key in self.competing])}), by "
                f"{'their mean over seeds' if _seeds(chosen)[1] > 1 else 'its loss'}; "
                "it was chosen on the same test rows, which flatters it."
            )
        if dots:
            left_out = len(dots) - len(kept)
            outside = f"; {left_out} lie above the picture and are in the table" if left_out else ""
            sentences.append(f"Faint dots are single trials{outside}.")
        return " ".join(sentences)

    @cached_property
    def _suffixes(self) -> Mapping[str, str]:
        """What each panel adds to a file's name: safe and distinct, whatever users call models."""
        found: dict[str, str] = {}
        for place, panel in enumerate(self.chosen, start=1):
            slug = re.sub(r"[^a-z0-9]+", "-", panel.lower()).strip("-")[:40]
            suffix = f"-{slug}" if slug else ""
            if suffix in found.values() or (panel and not slug):
                suffix += f"-{place}"
            found[panel] = suffix
        return found


def _seeds(chosen: Sequence[Chosen]) -> tuple[int, int]:
    """The fewest and the most seeds of a mark."""
    counts = [len(c.rows) for c in chosen]
    return min(counts), max(counts)


def _interval_words(chosen: Sequence[Chosen], metric: str) -> str:
    """What the bars are."""
    fewest, most = _seeds(chosen)
    fixed = "; the noise-free model is taken as exact" if metric == INCREASE else ""
    if most == 1:
        has_any = any(c.rows[0].get(f"{metric}_low") is not None for c in chosen)
        if not has_any:
            return "One seed per setting; no interval is known."
        return (
            f"One seed per setting: bars are the trial's own 95 % interval over test rows{fixed}."
        )
    paired = (
        " Each trial is compared with the noise-free model of its own seeds and split."
        if metric == INCREASE
        else ""
    )
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    words = f"Marks are means over {seeds}, bars one standard error either way."
    if fewest == 1:
        words = (
            f"Marks are means over {seeds}, bars one standard error either way; where there is one "
            f"seed, the trial's own 95 % interval over test rows{fixed}."
        )
    return words + paired


def _rule(metric: str) -> tuple[float, str] | None:
    """What a metric is compared with."""
    return {
        INCREASE: (0.0, "non-private model"),
        "calibration": (1.0, "calibrated"),
        "normalized_entropy": (1.0, "always predicting the average"),
    }.get(metric)


def _within_reach(
    points: Sequence[Point], dots: Sequence[Point], rule: tuple[float, str] | None
) -> list[Point]:
    """The dots that do not flatten the curves."""
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    values += [rule[0]] if rule is not None else []
    low, high = min(values), max(values)
    limit = high + _ROOM_FOR_DOTS * (high - low or abs(high) or 1.0)
    return [dot for dot in dots if dot.y <= limit]


def _epsilon_title(points: Sequence[Point]) -> str:
    """The title of an axis of epsilon."""
    if any(math.isinf(p.x) for p in points):
        return "epsilon, logarithmic (∞: trained without noise)"
    return "epsilon, logarithmic"


def _capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
