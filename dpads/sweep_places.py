"""Where things stand in a drawing: ends of axes, labels, and marks side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpads.sweep_figures import Figure, Point
from dpads.sweep_rows import value_words

if TYPE_CHECKING:
    import altair as alt

_TICK_GAP = 0.09  # of the axis, between two labels
_DODGE = 0.011  # of the axis, between the marks of two lines at one place


@dataclass(frozen=True)
class Places:
    """The horizontal axis: where values stand, infinity included.

    Attributes:
        title: What it shows.
        domain: Its ends.
        ticks: Where labels stand.
        infinity: Where infinity stands; None where it is not needed.
        step: The factor between the marks of two neighbouring lines at one place.
        lines: How many lines there are.
    """

    title: str
    domain: tuple[float, float]
    ticks: tuple[float, ...]
    infinity: float | None
    step: float
    lines: int

    @classmethod
    def of(cls, figure: Figure) -> Places:
        """The axis of a picture."""
        places = sorted({p.x for p in (*figure.points, *figure.dots)})
        finite = [place for place in places if math.isfinite(place)] or [1.0]
        low, high = finite[0], finite[-1]
        room = max(high / low, 4.0)
        infinity = None
        if len(places) > 0 and math.isinf(places[-1]):
            infinity = high * room**0.17
        last = infinity or high
        margin = (last / low if last > low else 4.0) ** 0.05
        domain = (low / margin, last * margin)
        span = math.log(domain[1] / domain[0])
        ticks = _thinned(finite, span)
        if infinity is not None:
            ticks.append(infinity)
        return cls(
            figure.x_title,
            domain,
            tuple(ticks),
            infinity,
            math.exp(_DODGE * span),
            len(figure.lines),
        )

    def drawn(self) -> alt.Axis:
        """The axis for Altair."""
        import altair as alt

        label = "format(datum.value, datum.value >= 1000 ? ',d' : '.3~g')"
        if self.infinity is not None:
            label = f"datum.value > {self.infinity * 0.99} ? '∞' : {label}"
        return alt.Axis(title=self.title, values=list(self.ticks), labelExpr=label, tickSize=4)

    def place(self, point: Point) -> float:
        """Where a point stands: lines that meet at one place stand side by side."""
        x = point.x if self.infinity is None or math.isfinite(point.x) else self.infinity
        return float(x * self.step ** (point.line - (self.lines - 1) / 2))

    def datum(self, figure: Figure, point: Point) -> dict[str, Any]:
        """A point as Vega reads it: places, and texts for its tooltip."""
        return {
            "x": self.place(point),
            "y": point.y,
            "low": point.low,
            "high": point.high,
            "line": figure.lines[point.line],
            "where": value_words(point.x),
            "value": figure.value_text(point.y),
            "bar": figure.interval_text(point),
            "settings": point.settings,
            "trials": _trials_words(point.trials),
        }


def tip_titles(figure: Figure) -> dict[str, str]:
    """The rows of a tooltip."""
    return {
        "line": figure.legend,
        "where": figure.x_title.partition(",")[0],
        "value": figure.y_title.partition(",")[0],
        "bar": "interval",
        "settings": "settings",
        "trials": "trials",
    }


def _trials_words(trials: Sequence[str]) -> str:
    """The trials behind a mark, some of them where they are many."""
    if len(trials) <= 6:
        return ", ".join(trials)
    return f"{', '.join(trials[:5])} and {len(trials) - 5} more"


def _thinned(values: Sequence[float], span: float) -> list[float]:
    """Those values whose labels have room, first and last always among them."""
    kept = [values[0]]
    for value in values[1:-1]:
        gap = min(math.log(value / kept[-1]), math.log(values[-1] / value))
        if gap / span >= _TICK_GAP:
            kept.append(value)
    return kept if len(values) == 1 else [*kept, values[-1]]


def y_scale(figure: Figure) -> alt.Scale:
    """The vertical scale with room for every bar."""
    import altair as alt

    low, high = figure.extent or (min(figure.values), max(figure.values))
    if figure.is_log:
        room = max(high / low, 1.2) ** 0.08
        return alt.Scale(type="log", domain=[low / room, high * room], nice=False)
    if figure.from_zero:
        return alt.Scale(domain=[0, high * 1.08 or 1.0], nice=True)
    room = 0.07 * ((high - low) or abs(high) or 1.0)
    return alt.Scale(domain=[low - room, high + room], nice=False, zero=False)


def y_axis(figure: Figure, *, is_titled: bool) -> alt.Axis:
    """The vertical axis; where it is not titled, its name stands above it."""
    import altair as alt

    title = figure.y_title if is_titled else None
    if figure.is_percent:
        return alt.Axis(
            title=title, tickCount=6, labelExpr="format(100 * datum.value, '~r') + ' %'"
        )
    if figure.is_log:
        return alt.Axis(title=title, values=_log_ticks([p.y for p in figure.points]), format=",~r")
    return alt.Axis(title=title, tickCount=6, format=",~r")


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round places of a logarithmic axis, fewer of each decade where there are many decades."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < 2 else (1, 3) if high - low < 4 else (1,)
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    return [step * 10.0**decade for decade in decades for step in steps]
