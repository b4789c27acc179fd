"""A picture of a report as plain numbers: marks on lines over a logarithmic axis. No drawing here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# With more places than these on an axis, neighbours were drawn at random: no line joins them.
_MOST_JOINED: Final = 15


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark of a picture.

    Attributes:
        x: Its place; infinity is drawn at the end of the axis.
        y: Its value.
        low: Lower end of its bar, None where it has none.
        high: Upper end of its bar.
        line: Which line it belongs to, an index of `Figure.lines`.
        trials: The trials behind it.
        settings: Their settings, in words.
        is_chosen: Whether a decision fell on it.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    line: int = 0
    trials: tuple[str, ...] = ()
    settings: str = ""
    is_chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture: points on lines over a logarithmic axis.

    Attributes:
        name: Of its files and of its place on the page.
        title: What it shows.
        note: How to read it, in sentences.
        x_title: What the horizontal axis shows, with its unit.
        y_title: What the vertical axis shows, with its unit.
        legend: What tells the lines apart.
        lines: The name of each line; one empty name where there is one line.
        is_ordered: Whether the lines' names are ordered values rather than kinds.
        points: The marks that stand on lines.
        dots: Single trials, drawn faintly.
        rule: A value to compare with, and its name.
        is_log: Whether the vertical axis is logarithmic too.
        is_percent: Whether the values are shares, written as percentages.
        from_zero: Whether the vertical axis starts at zero.
        decimals: Significant digits of a value in words.
        extent: The values that the vertical axis has to hold, shared with pictures beside this one;
            None where its own do.
    """

    name: str
    title: str
    note: str
    x_title: str
    y_title: str
    legend: str
    lines: tuple[str, ...]
    is_ordered: bool
    points: tuple[Point, ...]
    dots: tuple[Point, ...] = ()
    rule: tuple[float, str] | None = None
    is_log: bool = False
    is_percent: bool = False
    from_zero: bool = False
    decimals: int = 4
    extent: tuple[float, float] | None = None

    def value_text(self, value: float) -> str:
        """A value of the vertical axis in words."""
        if self.is_percent:
            return f"{100 * value:+.2f} %"
        return f"{value:.{self.decimals}g}".replace("e-0", "e-")

    def interval_text(self, point: Point) -> str:
        """A point's bar in words, empty where it has none."""
        if point.low is None or point.high is None:
            return ""
        return f"{self.value_text(point.low)} to {self.value_text(point.high)}"

    @property
    def is_joined(self) -> bool:
        """Whether lines join the points."""
        return len({p.x for p in self.points}) <= _MOST_JOINED

    @property
    def values(self) -> list[float]:
        """Every value that is drawn."""
        found = [value for p in self.points for value in (p.y, p.low, p.high) if value is not None]
        found += [dot.y for dot in self.dots]
        return found + ([self.rule[0]] if self.rule is not None else [])
