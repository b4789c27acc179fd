"""The reliability plot: observed against predicted, on the diagonal where a model is calibrated.

Scales are logarithmic where predictions differ much, as click probabilities do. What lies beyond an
end, such as bins in which nothing was observed, is drawn at the end as an open mark.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from dpads.reliability import Bin
from dpads.sweep_charts import KINDS, PLAIN, VEGA_LITE

if TYPE_CHECKING:
    import altair as alt

# Above this ratio of the largest to the smallest prediction, scales are logarithmic.
MOST_LINEAR: Final = 8.0
# Below it, predictions are nearly one number: the horizontal scale is theirs alone.
NEARLY_EQUAL: Final = 1.5
HOW_TO_READ: Final = (
    "Bins of equally many rows; bars are 95 % intervals.",
    "Above the dashed line predictions are too low, below it too high.",
)
SUFFIXES: Final = (".png", ".svg")
SIDE: Final = 420  # pixels
BEFORE: Final = "before recalibration"
AFTER: Final = "the model"


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What a reliability plot shows.

    Attributes:
        title: of the plot.
        notes: sentences beneath it, each on a line of its own.
        bins: what was predicted and observed, by the name of each model.
        counts: whether predictions are expected counts.
    """

    title: str
    notes: Sequence[str]
    bins: Mapping[str, Sequence[Bin]]
    counts: bool

    @property
    def note(self) -> str:
        """All sentences."""
        return " ".join(self.notes)

    @property
    def legend(self) -> str:
        """What tells the models apart."""
        return "model"

    @property
    def what(self) -> str:
        """What is predicted."""
        return "count" if self.counts else "rate"

    @property
    def x_title(self) -> str:
        """What the horizontal axis shows."""
        return f"predicted {self.what}"

    @property
    def y_title(self) -> str:
        """What the vertical axis shows."""
        return f"observed {self.what}"

    @property
    def points(self) -> list[tuple[str, Bin]]:
        """Every bin with its model's name."""
        return [(name, item) for name, bins in self.bins.items() for item in bins]

    @property
    def all_bins(self) -> list[Bin]:
        """The bins of all models."""
        return [item for bins in self.bins.values() for item in bins]

    @property
    def is_log(self) -> bool:
        """Whether the scales are logarithmic."""
        predicted = [item.predicted for item in self.all_bins]
        return min(predicted) > 0.0 and max(predicted) > MOST_LINEAR * min(predicted)

    @property
    def is_narrow(self) -> bool:
        """Whether predictions are nearly one number."""
        predicted = [item.predicted for item in self.all_bins]
        return 0.0 < max(predicted) <= NEARLY_EQUAL * min(predicted)

    @property
    def ticks(self) -> list[float]:
        """Where the grid runs: 1, 2, 5 and their tenfolds, or round steps."""
        low, high = self.extent
        if not self.is_log:
            return _round_steps(low, high)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [m * 10.0**k for k in decades for m in (1.0, 2.0, 5.0)]
        inside = [round(value, 12) for value in every if low <= value <= high]
        return inside if len(inside) <= 9 else [v for v in inside if f"{v:e}".startswith("1")]

    @property
    def extent(self) -> tuple[float, float]:
        """Ends of both scales: they hold all predictions and what was observed, bars as far as they fit."""
        bins = self.all_bins
        values = [item.predicted for item in bins] + [item.observed for item in bins]
        top = max(values)
        if self.is_narrow:  # one line of marks, with room for bars up to three times as high
            top = max(top, min(max(item.high for item in bins), 3.0 * top))
        if not self.is_log:
            return 0.0, top * 1.08 if top > 0.0 else 1.0
        bottom = min(value for value in values if value > 0.0)
        # Rare bins reach far down: a decade below what was predicted is as far as anybody looks.
        bottom = max(bottom, min(item.predicted for item in bins) / 10.0)
        return bottom / 1.35, top * 1.35

    @property
    def x_extent(self) -> tuple[float, float]:
        """Ends of the horizontal scale: those of both, or of the predictions where they hardly differ."""
        if not self.is_narrow:
            return self.extent
        predicted = [item.predicted for item in self.all_bins]
        low, high = min(predicted), max(predicted)
        room = max(0.1 * (high - low), 0.001 * high)
        return low - room, high + room

    @property
    def x_ticks(self) -> list[float]:
        """Where the grid runs on the horizontal scale."""
        return _round_steps(*self.x_extent) if self.is_narrow else self.ticks


@dataclass(frozen=True, kw_only=True)
class DrawnReliability:
    """A reliability plot ready for a report's page; has what `report_page.Drawn` has.

    Attributes:
        figure: what it shows.
        id: its place on the page.
        spec: its Vega specification as JSON that may stand in a script element.
        files: where it was written too, relative to the page.
    """

    figure: Reliability
    id: str
    spec: str
    files: Sequence[str]

    @property
    def keys(self) -> list[tuple[str, str, str]]:
        """The legend: each model's name, colour and shape; empty where there is one."""
        names = list(self.figure.bins)
        return [(n, f"kind-{i}", "circle") for i, n in enumerate(names)] if len(names) > 1 else []

    @property
    def heads(self) -> list[tuple[str, str]]:
        """The heads of the numbers, each with "number" or "words"."""
        names = ["predicted", "observed", "95 % interval", "rows"]
        own = [(self.figure.legend, "words")] if len(self.figure.bins) > 1 else []
        return own + [(name, "number") for name in names]

    def cells(self, point: tuple[str, Bin]) -> list[str]:
        """The numbers of a bin, in the order of the heads."""
        name, item = point
        ends = f"{item.low:.4g} to {item.high:.4g}"
        cells = [f"{item.predicted:.4g}", f"{item.observed:.4g}", ends, f"{item.rows:,}"]
        return ([name] if len(self.figure.bins) > 1 else []) + cells


def draw_reliability(plot: Reliability, folder: Path) -> DrawnReliability:
    """Draws a plot for a page and as FOLDER/plots/reliability.svg and .png."""
    import vl_convert

    from dpads.report_page import PLOTS
    from dpads.sweep_charts import json_text

    colours = {name: f"var(--kind-{i})" for i, name in enumerate(plot.bins)}
    inks = {name: f"var(--{name})" for name in PLAIN}
    drawn = chart(plot, colours, inks, has_legend=False)
    sized = drawn.properties(width="container", height=SIDE, background="transparent")
    spec = vl_convert.vegalite_to_vega(sized.to_dict(), vl_version=VEGA_LITE)
    (folder / PLOTS).mkdir(mode=0o700, exist_ok=True)
    files = [f"{PLOTS}/reliability{suffix}" for suffix in reversed(SUFFIXES)]
    for file in files:
        write_plot(plot, folder / file)
    return DrawnReliability(figure=plot, id="reliability", spec=json_text(spec), files=files)


def chart(
    plot: Reliability,
    colours: Mapping[str, str],
    inks: Mapping[str, str],
    *,
    has_legend: bool = True,
) -> Any:
    """The plot as an Altair chart.

    Args:
        plot: what it shows.
        colours: of the models, by name.
        inks: colours by name: ink, quiet and line.
        has_legend: whether it says itself which colour is whose.
    """
    import altair as alt

    low, high = plot.extent
    left, right = plot.x_extent
    kind: Literal["log", "linear"] = "log" if plot.is_log else "linear"
    form = "~g" if plot.counts else "~%"
    scale = alt.Scale(type=kind, domain=[low, high], nice=False)
    across = alt.Scale(type=kind, domain=[left, right], nice=False)
    x = alt.X(
        "predicted:Q",
        scale=across,
        axis=alt.Axis(format=form, values=plot.x_ticks),
        title=plot.x_title,
    )
    axis = alt.Axis(format=form, values=plot.ticks)
    y = alt.Y("y:Q", scale=scale, axis=axis, title=plot.y_title)
    names = list(plot.bins)
    legend = None
    if has_legend and len(names) > 1:
        legend = alt.Legend(title=None, orient="top", symbolSize=70, labelLimit=SIDE)
    colour = alt.Color(
        "model:N",
        scale=alt.Scale(domain=names, range=[colours[name] for name in names]),
        sort=names,
        legend=legend,
    )
    data = [_datum(name, item, low, high) for name, bins in plot.bins.items() for item in bins]
    ends = [{"predicted": value, "y": value} for value in (left, right)]
    diagonal = _rows(ends).mark_line(strokeDash=[4, 4], strokeWidth=1.2, color=inks["quiet"])
    bars = _rows(data).mark_rule(strokeWidth=1.4, strokeCap="round", opacity=0.75)
    inside = _rows([row for row in data if not row["beyond"]])
    marks = inside.mark_point(filled=True, size=52, opacity=1)
    beyond = _rows([row for row in data if row["beyond"]])
    open_marks = beyond.mark_point(filled=False, size=52, strokeWidth=1.6, shape="triangle-down")
    tips = [
        alt.Tooltip(f"{key}:N", title=title)
        for key, title in (
            ("model", "model"),
            ("rows", "rows"),
            ("predicted_text", "predicted"),
            ("observed_text", "observed"),
        )
        if key != "model" or len(names) > 1
    ]
    layers = [
        diagonal.encode(x=x, y=y),
        bars.encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
        marks.encode(x=x, y=y, color=colour, tooltip=tips),
        open_marks.encode(x=x, y=y, color=colour, tooltip=tips),
    ]
    return (
        alt.layer(*layers)
        .properties(width=SIDE, height=SIDE)
        .configure(font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=inks["quiet"], titleColor=inks["quiet"], gridColor=inks["line"],
            domainColor=inks["line"], tickColor=inks["line"], labelFontSize=12, titleFontSize=12.5,
            titleFontWeight="normal", labelOverlap="greedy", titlePadding=8,
        )
        .configure_legend(labelColor=inks["ink"], labelFontSize=12)
    )  # fmt: skip


def write_plot(plot: Reliability, path: Path) -> None:
    """Writes the plot; the file's name says whether as .png or .svg."""
    import altair as alt
    import vl_convert

    from dpads.run_files import write_bytes

    kinds = dict(zip(plot.bins, KINDS, strict=False))
    colours = {**kinds, AFTER: KINDS[0], BEFORE: "#9aa7b8"}
    drawn = chart(plot, colours, PLAIN).properties(
        title=alt.Title(
            plot.title,
            subtitle=[line for text in plot.notes for line in textwrap.wrap(text, 76)],
            anchor="start",
            frame="group",
            fontSize=15,
            subtitleFontSize=12,
            subtitleLineHeight=16,
            subtitlePadding=6,
            offset=12,
            color=PLAIN["ink"],
            subtitleColor=PLAIN["quiet"],
        ),
        background="#ffffff",
        padding=16,
    )
    svg = vl_convert.vegalite_to_svg(drawn.to_dict(), vl_version=VEGA_LITE)
    if path.suffix == ".svg":
        write_bytes(path, svg.encode())
    else:
        write_bytes(path, vl_convert.svg_to_png(svg, scale=2.0))


def _datum(name: str, item: Bin, low: float, high: float) -> dict[str, Any]:
    """A bin as a row of data; what is beyond an end of the scale stands at it."""

    def held(value: float) -> float:
        return min(max(value, low), high)

    return {
        "model": name,
        "predicted": item.predicted,
        "y": held(item.observed),
        "low": held(item.low),
        "high": held(item.high),
        "beyond": not low <= item.observed <= high,
        "rows": f"{item.rows:,}",
        "predicted_text": f"{item.predicted:.4g}",
        "observed_text": f"{item.observed:.4g} ({item.low:.4g} to {item.high:.4g})",
    }


def _round_steps(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two numbers, about six of them."""
    raw = (high - low) / 6.0
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1.0, 2.0, 5.0, 10.0) if unit * m >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, int(high / step) + 1)]


def _rows(values: list[dict[str, Any]]) -> alt.Chart:
    """A chart of rows that stand in it."""
    import altair as alt

    return alt.Chart(alt.Data(values=values))  # type: ignore[no-untyped-call]


def plot_of(metrics: Mapping[str, Any], *, title: str, counts: bool) -> Reliability:
    """The plot of what metrics.json holds.

    Args:
        metrics: with a calibration table, and perhaps that from before the recalibration.
        title: of the plot.
        counts: whether predictions are expected counts.
    """
    from dpads.reliability import from_plain

    before = metrics.get("before_recalibration") or {}
    bins = {AFTER: from_plain(metrics["calibration_table"])}
    if before.get("calibration_table"):  # first: the other lies above it
        bins = {BEFORE: from_plain(before["calibration_table"]), **bins}
    return Reliability(title=title, notes=notes_of(metrics), bins=bins, counts=counts)


def notes_of(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics beside the plot, with their intervals, and how to read it."""
    words = {
        "auc": "AUC",
        "pr_auc": "PR AUC",
        "normalized_entropy": "normalized entropy",
        "log_loss": "log loss",
        "poisson_log_loss": "Poisson log loss",
        "calibration": "predictions over labels",
    }
    parts = []
    for name, word in words.items():
        value = metrics.get(name)
        if value is None:
            continue
        ends = metrics.get("intervals", {}).get(name)
        parts.append(f"{word} {value:.4f}" + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""))
    return [f"{', '.join(parts)}; in brackets 95 % intervals.", *HOW_TO_READ]
