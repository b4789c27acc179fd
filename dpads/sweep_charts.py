"""Drawing the pictures of a sweep with Vega-Altair: for the page, and as files.

On the page colours are variables of its style sheet, so that one drawing is right in the light, in
the dark and on paper; legends are the page's own. Files carry plain colours and their own legend.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpads.sweep_figures import Figure
from dpads.sweep_places import Places, tip_titles, y_axis, y_scale

if TYPE_CHECKING:
    import altair as alt

SHAPES: Final = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left",
)  # fmt: skip
# Kinds: hues that stay apart for colour-blind readers, each at least 3 to 1 on white.
KINDS: Final = (
    "#0b62c4", "#b65200", "#0b7a6b", "#a3226f", "#6b4fb3", "#5c6b00", "#3f4a59", "#b3261e",
)  # fmt: skip
# Ordered values: from dark blue to orange, lightness rising all the way.
RAMP: Final = (
    "#15107f", "#43129b", "#6a14a2", "#8d1f9d", "#ab2f8d", "#c4447a", "#d65a65", "#dd6f4d",
)  # fmt: skip
PLAIN: Final = {"ink": "#18202c", "quiet": "#536071", "line": "#d5dce5"}
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
VEGA_LITE: Final = "6.4"


@dataclass(frozen=True)
class Look:
    """Where a chart's colours come from.

    Attributes:
        is_page: Whether it is drawn on the page.
    """

    is_page: bool

    def colour(self, name: str) -> str:
        """One of the page's own colours: ink, quiet or line."""
        return f"var(--{name})" if self.is_page else PLAIN[name]

    def series(self, figure: Figure) -> list[str]:
        """The colour of each line."""
        if figure.lines == ("",):
            return ["var(--kind-0)" if self.is_page else KINDS[0]]
        names = colour_names(figure)
        if self.is_page:
            return [f"var(--{name})" for name in names]
        palettes = {"ramp": RAMP, "kind": KINDS}
        return [palettes[name[:4]][int(name[5:])] for name in names]


def colour_names(figure: Figure) -> list[str]:
    """The style sheet's name of each line's colour, such as "ramp-3"."""
    count = len(figure.lines)
    if not figure.is_ordered or count == 1:
        return [f"kind-{i}" for i in range(count)]
    return [f"ramp-{round(i * (len(RAMP) - 1) / (count - 1))}" for i in range(count)]


def page_spec(figure: Figure) -> dict[str, Any]:
    """The chart as a Vega specification for the page."""
    import vl_convert

    chart = _chart(figure, Look(is_page=True)).properties(width="container", height=300)
    spec: dict[str, Any] = vl_convert.vegalite_to_vega(chart.to_dict(), vl_version=VEGA_LITE)
    return spec


def write_files(figure: Figure, folder: Path) -> list[Path]:
    """Writes FOLDER/<name>.svg and .png, and returns their paths."""
    import vl_convert

    from dpads.run_files import write_bytes

    chart = _chart(figure, Look(is_page=False)).properties(width=560, height=340)
    spec = chart.to_dict()
    folder.mkdir(mode=0o700, exist_ok=True)
    svg, png = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    write_bytes(svg, drawn.encode())
    write_bytes(png, vl_convert.svg_to_png(drawn, scale=2.0))
    return [svg, png]


def bundle() -> str:
    """Vega's JavaScript as one script that fetches nothing, the same for every chart of a page."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return script


def json_text(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _chart(figure: Figure, look: Look) -> Any:
    """All layers of one picture."""
    import altair as alt

    axis = Places.of(figure)
    x = alt.X(
        "x:Q", scale=alt.Scale(type="log", domain=list(axis.domain), nice=False), axis=axis.drawn()
    )
    y = alt.Y("y:Q", scale=y_scale(figure), axis=y_axis(figure, is_titled=not look.is_page))
    names = list(figure.lines)
    legend = None
    if not look.is_page and len(names) > 1:
        legend = alt.Legend(
            title=figure.legend, orient="right", symbolSize=70, symbolOpacity=1, labelLimit=240
        )
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(domain=names, range=look.series(figure)),
        sort=names,
        legend=legend,
    )
    shape = alt.Shape(
        "line:N",
        scale=alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))]),
        sort=names,
        legend=legend,
    )
    points = [axis.datum(figure, point) for point in figure.points]
    tips = [
        alt.Tooltip(f"{key}:N", title=title)
        for key, title in tip_titles(figure).items()
        if any(datum[key] for datum in [*points, *(axis.datum(figure, d) for d in figure.dots)])
    ]
    layers: list[alt.Chart] = []
    if figure.rule is not None:
        layers += _rule_layers(figure, axis, look, x, y)
    if figure.dots:
        dots = alt.Chart(_data([axis.datum(figure, dot) for dot in figure.dots]))
        layers.append(
            dots.mark_circle(size=26, opacity=0.35).encode(x=x, y=y, color=colour, tooltip=tips)
        )
    if figure.is_joined:
        joined = [
            datum
            for datum, point in zip(points, figure.points, strict=True)
            if math.isfinite(point.x)
        ]
        layers.append(
            alt.Chart(_data(joined))
            .mark_line(strokeWidth=2, strokeJoin="round")
            .encode(x=x, y=y, color=colour)
        )
    bars = [datum for datum in points if datum["low"] is not None]
    if bars:
        layers.append(
            alt.Chart(_data(bars))
            .mark_rule(strokeWidth=1.6, strokeCap="round")
            .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour)
        )
    layers.append(
        alt.Chart(_data(points))
        .mark_point(filled=True, size=64, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, tooltip=tips)
    )
    layers += _chosen_layers(points, figure, axis, look, x, y)
    return _dressed(alt.layer(*layers), figure, look)


def _chosen_layers(
    points: Sequence[dict[str, Any]],
    figure: Figure,
    places: Places,
    look: Look,
    x: alt.X,
    y: alt.Y,
) -> list[alt.Chart]:
    """A ring around the marks that decisions fell on."""
    import altair as alt

    marked = [datum for datum, p in zip(points, figure.points, strict=True) if p.is_chosen]
    if not marked:
        return []
    base = alt.Chart(_data(marked))
    ring = base.mark_point(filled=False, size=260, strokeWidth=2, color=look.colour("ink"))
    # Beside the mark, where no bar runs; near the right end there is room on the left alone.
    low, high = (math.log(end) for end in places.domain)
    texts = []
    for datum in marked:
        is_left = (math.log(datum["x"]) - low) / (high - low) < 0.75
        text = alt.Chart(_data([datum])).mark_text(
            align="left" if is_left else "right",
            baseline="middle",
            dx=14 if is_left else -14,
            fontSize=12,
            fontWeight=600,
            color=look.colour("ink"),
        )
        texts.append(text.encode(x=x, y=y, text=alt.value("chosen")))
    return [ring.encode(x=x, y=y), *texts]


def _data(values: list[dict[str, Any]]) -> alt.Data:
    """Rows that stand in the chart itself."""
    import altair as alt

    return alt.Data(values=values)  # type: ignore[no-untyped-call]


def _rule_layers(figure: Figure, axis: Places, look: Look, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The value to compare with, dashed, and its name."""
    import altair as alt

    assert figure.rule is not None
    value, name = figure.rule
    at = _data([{"x": axis.domain[0], "end": axis.domain[1], "y": value, "name": name}])
    line = alt.Chart(at).mark_rule(strokeDash=[4, 4], strokeWidth=1.2, color=look.colour("quiet"))
    is_left, is_above = _free_place(figure, axis, value)
    text = alt.Chart(at).mark_text(
        align="left" if is_left else "right",
        baseline="bottom" if is_above else "top",
        dx=2 if is_left else -2,
        dy=-4 if is_above else 4,
        fontSize=11.5,
        color=look.colour("quiet"),
    )
    named = text.encode(x=x if is_left else alt.X("end:Q"), y=y, text="name:N")
    return [line.encode(x=x, x2="end:Q", y=y), named]


def _free_place(figure: Figure, axis: Places, value: float) -> tuple[bool, bool]:
    """Where fewest marks are in the way of a rule's name: on the left or not, above it or not."""
    low, high = figure.extent or (min(figure.values), max(figure.values))
    near = 0.13 * (high - low)
    ends = [math.log(end) for end in axis.domain]

    def in_the_way(place: tuple[bool, bool]) -> int:
        is_left, is_above = place
        count = 0
        for point in (*figure.points, *figure.dots):
            share = (math.log(axis.place(point)) - ends[0]) / (ends[1] - ends[0])
            distance = (point.y - value) * (1 if is_above else -1)
            count += (share < 0.45) == is_left and -0.02 * (high - low) <= distance <= near
        return count

    return min([(True, True), (False, True), (True, False), (False, False)], key=in_the_way)


def _dressed(chart: alt.LayerChart | alt.FacetChart, figure: Figure, look: Look) -> Any:
    """The chart with its title, fonts and colours."""
    import altair as alt

    ink, quiet, line = look.colour("ink"), look.colour("quiet"), look.colour("line")
    # On the page the caption is the page's; a file has to say itself what it shows.
    title = (
        alt.Title(_capital(figure.y_title), fontSize=12.5, fontWeight="normal", color=quiet)
        if look.is_page
        else alt.Title(
            figure.title,
            subtitle=textwrap.wrap(figure.note, 100),
            fontSize=15,
            subtitleFontSize=12,
            subtitleLineHeight=16,
            subtitlePadding=6,
            color=ink,
        )
    )
    return (
        chart.properties(
            title=title,
            background="transparent" if look.is_page else "#ffffff",
            padding=4 if look.is_page else 14,
        )
        .configure(font=_FONT if look.is_page else "sans-serif")
        .configure_view(stroke=None)
        .configure_title(anchor="start", frame="bounds", offset=12, subtitleColor=quiet)
        .configure_axis(
            labelColor=quiet, titleColor=quiet, gridColor=line, domainColor=line, tickColor=line,
            labelFontSize=12, titleFontSize=12.5, titleFontWeight="normal", labelOverlap="greedy",
        )
        .configure_axisX(grid=False, titlePadding=8, titleAnchor="end")
        .configure_axisY(domain=False, ticks=False, labelPadding=6)
        .configure_legend(
            labelColor=ink, titleColor=quiet, labelFontSize=12, titleFontSize=12,
            titleFontWeight="normal",
        )
    )  # fmt: skip


def _capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
