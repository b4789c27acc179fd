"""Pictures of curves as plain numbers: where points, ticks and labels stand. No drawing here.

A template turns a `Picture` into SVG. Everything is in the units of one canvas, y downwards, and
rounded, so that the same statement gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpads.accounting.headline import number

WIDTH = 380.0
HEIGHT = 270.0
_TOP, _RIGHT, _BOTTOM = 34.0, 22.0, 50.0
_DIGIT = 8.0
_MOST_LABELS = 6
_LEAST = 0.01  # epsilon is printed with two decimals


@dataclass(frozen=True)
class Tick:
    """One line of the grid.

    Attributes:
        place: Where it stands on the canvas.
        text: What is written beside it; empty where there is no room.
    """

    place: float
    text: str


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        x: Place on the canvas.
        y: Place on the canvas, downwards.
        text: Both of its values in words.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Mark:
    """The point that the claim names, and where its label stands.

    Attributes:
        point: The point.
        x: Place of the label.
        y: Place of the label.
        anchor: Which end of the label stands there: "start" or "end".
    """

    point: Point
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Picture:
    """A curve in its axes.

    Attributes:
        x_label: What the horizontal axis shows.
        y_label: What the vertical axis shows.
        left: Left end of the axes.
        right: Right end of the axes.
        top: Upper end of the axes.
        bottom: Lower end of the axes.
        x_ticks: Vertical lines of the grid.
        y_ticks: Horizontal lines of the grid.
        points: The curve, in the order of the horizontal axis.
        mark: The point that the claim names, if it is on the curve.
    """

    x_label: str
    y_label: str
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    mark: Mark | None

    @property
    def path(self) -> str:
        """The curve as an SVG path."""
        return "M" + "L".join(f"{p.x:g} {p.y:g}" for p in self.points)


@dataclass(frozen=True)
class _Axis:
    """Values on a linear or a logarithmic axis."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]
    every: int

    def fraction(self, value: float) -> float:
        """Where a value stands between the ends, 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def texts(self) -> list[str]:
        """The label of each tick."""
        return [
            number(tick).replace("e+0", "e") if i % self.every == 0 else ""
            for i, tick in enumerate(self.ticks)
        ]


def profile_picture(profile: Sequence[Mapping[str, Any]], delta: float | None) -> Picture:
    """Epsilon against delta, the latter on a logarithmic axis.

    Args:
        profile: Points with the keys "epsilon" and "delta".
        delta: The delta that the claim names; None marks no point.
    """
    points = sorted((float(p["delta"]), float(p["epsilon"])) for p in profile)
    words = [f"epsilon {epsilon:.2f} at delta {number(d)}" for d, epsilon in points]
    marked = next((i for i, (d, _) in enumerate(points) if d == delta), None)
    return _picture(
        points,
        words,
        labels=("delta", "epsilon"),
        axes=(_log_axis([d for d, _ in points]), _linear_axis([e for _, e in points])),
        marked=marked,
    )


def rdp_picture(orders: Sequence[float], values: Sequence[float]) -> Picture | None:
    """The Renyi divergence against its order, both on logarithmic axes.

    Returns:
        The picture; None where fewer than two values can stand on a logarithmic axis.
    """
    points = sorted((float(o), float(v)) for o, v in zip(orders, values, strict=True) if v > 0)
    if len(points) < 2:
        return None
    words = [f"at most {value:g} at order {number(order)}" for order, value in points]
    return _picture(
        points,
        words,
        labels=("order", "Renyi divergence"),
        axes=(_log_axis([o for o, _ in points]), _log_axis([v for _, v in points])),
        marked=None,
    )


def _picture(
    values: Sequence[tuple[float, float]],
    words: Sequence[str],
    *,
    labels: tuple[str, str],
    axes: tuple[_Axis, _Axis],
    marked: int | None,
) -> Picture:
    """Puts values into their axes."""
    x_axis, y_axis = axes
    left = 12.0 + _DIGIT * max(len(text) for text in y_axis.texts())
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def across(value: float) -> float:
        return round(left + (right - left) * x_axis.fraction(value), 2)

    def down(value: float) -> float:
        return round(bottom - (bottom - _TOP) * y_axis.fraction(value), 2)

    points = tuple(
        Point(across(x), down(y), text) for (x, y), text in zip(values, words, strict=True)
    )
    return Picture(
        x_label=labels[0],
        y_label=labels[1],
        left=left,
        right=right,
        top=_TOP,
        bottom=bottom,
        x_ticks=_ticks(x_axis, across),
        y_ticks=_ticks(y_axis, down),
        points=points,
        mark=None if marked is None else _mark(points[marked], left, right),
    )


def _ticks(axis: _Axis, place: Callable[[float], float]) -> tuple[Tick, ...]:
    """The lines of the grid with their labels."""
    pairs = zip(axis.ticks, axis.texts(), strict=True)
    return tuple(Tick(place(value), text) for value, text in pairs)


def _mark(point: Point, left: float, right: float) -> Mark:
    """The claim's point; its label goes above the falling curve, to the side with more room."""
    if point.x - left < 0.55 * (right - left):
        return Mark(point, round(point.x + 10, 2), round(point.y - 12, 2), "start")
    return Mark(point, right, round(point.y - 34, 2), "end")


def _log_axis(values: Sequence[float]) -> _Axis:
    """Whole decades around the values."""
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = math.ceil(math.log10(max(values)) - 1e-9)
    high = max(high, low + 1)
    ticks = tuple(float(f"1e{power}") for power in range(low, high + 1))
    return _Axis(ticks[0], ticks[-1], True, ticks, math.ceil(len(ticks) / _MOST_LABELS))


def _linear_axis(values: Sequence[float]) -> _Axis:
    """From zero to a round number above the values."""
    most = max(*values, _LEAST)
    power = 10.0 ** math.floor(math.log10(most))
    step = next(s * power for s in (0.2, 0.25, 0.5, 1.0, 2.0) if s * power * 5 >= most)
    count = math.ceil(most / step - 1e-9)
    ticks = tuple(float(f"{i * step:.6g}") for i in range(count + 1))
    return _Axis(0.0, ticks[-1], False, ticks, 1)
