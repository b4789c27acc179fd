"""Reports as web pages that need nothing else: what the pages of sweeps and recipes share.

Vega's JavaScript stands in the page once. The page's own policy forbids every request, and every
script but the two whose digests it names, so that a model called `<script>` stays a name.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpads import sweep_charts
from dpads.accounting.wording import listed, number
from dpads.run_files import write_text
from dpads.sweep_figures import Figure, Point
from dpads.sweep_rows import value_words

if TYPE_CHECKING:
    from jinja2 import Environment

PLOTS: Final = "plots"
REPORT: Final = "report.html"
_FOLDERS: Final = (("dpads", "templates"), ("dpads.accounting", "templates"))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture ready for a page.

    Attributes:
        figure: What it shows.
        id: Its place on the page.
        spec: Its Vega specification as JSON that may stand in a script element.
        files: Where it was written too, relative to the page.
    """

    figure: Figure
    id: str
    spec: str
    files: Sequence[str]

    @property
    def keys(self) -> list[tuple[str, str, str]]:
        """The legend: each line's name, colour and shape; empty where there is one line."""
        figure = self.figure
        if len(figure.lines) < 2:
            return []
        colours = sweep_charts.colour_names(figure)
        shapes = [
            sweep_charts.SHAPES[i % len(sweep_charts.SHAPES)] for i in range(len(figure.lines))
        ]
        return list(zip(figure.lines, colours, shapes, strict=True))

    @property
    def heads(self) -> list[tuple[str, str]]:
        """The heads of the picture's numbers, each with "number" or "words"."""
        figure = self.figure
        heads = [(figure.legend, "words")] if len(figure.lines) > 1 else []
        heads += [(_name(figure.x_title), "number"), (_name(figure.y_title), "number")]
        if any(p.low is not None for p in figure.points):
            heads.append(("interval", "number"))
        return heads + ([("settings", "words")] if any(p.settings for p in figure.points) else [])

    def cells(self, point: Point) -> list[str]:
        """The numbers of a point, in the order of the heads."""
        figure = self.figure
        cells = [figure.lines[point.line]] if len(figure.lines) > 1 else []
        cells += [value_words(point.x), figure.value_text(point.y)]
        heads = [name for name, _ in self.heads]
        if "interval" in heads:
            cells.append(figure.interval_text(point))
        return cells + ([point.settings] if "settings" in heads else [])


def _name(title: str) -> str:
    """What an axis shows, without how it is drawn."""
    return title.partition(",")[0]


def draw(figures: Sequence[Figure], folder: Path) -> list[Drawn]:
    """Draws pictures for the page and as FOLDER/plots/<name>.svg and .png."""
    drawn = []
    for figure in figures:
        files = sweep_charts.write_files(figure, folder / PLOTS)
        drawn.append(
            Drawn(
                figure=figure,
                id=figure.name,
                spec=sweep_charts.json_text(sweep_charts.page_spec(figure)),
                files=[f"{PLOTS}/{file.name}" for file in files],
            )
        )
    return drawn


def write_page(folder: Path, template: str, **data: Any) -> Path:
    """Writes FOLDER/report.html from a template of this package.

    Args:
        folder: Where it goes.
        template: The template's name.
        data: What the template names; a name that is missing is an error, not a blank.

    Returns:
        The page's path.
    """
    from markupsafe import Markup

    scripts = [_inside_script(_vega()), _inside_script(_template("report.js"))]
    digests = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        environment()
        .get_template(template)
        .render(
            # Both are this package's own or Vega's, never a user's.
            scripts=[Markup(script) for script in scripts],
            policy=Markup(policy),
            **data,
        )
    )
    write_text(folder / REPORT, text)
    return folder / REPORT


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates of reports; what data hold is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    made.filters.update(
        num=number,
        count=lambda value: f"{value:,}",
        listed=listed,
        words=value_words,
        span=span_words,
    )
    made.globals.update(kinds=sweep_charts.KINDS, ramp=sweep_charts.RAMP)
    return made


def span_words(seconds: float) -> str:
    """A span of time as people say it.

    Examples:
        >>> span_words(12.3), span_words(600), span_words(9000)
        ('12 s', '10 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


@lru_cache(maxsize=1)
def _vega() -> str:
    """Vega as one script; it takes a second to put together."""
    return sweep_charts.bundle()


def _template(name: str) -> str | None:
    """A template, or a style sheet of statements, from the packages that hold them."""
    for package, folder in _FOLDERS:
        file = resources.files(package) / folder / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    return None


def _inside_script(text: str | None) -> str:
    """A script that ends where it ends: none of its own texts can close or open an element."""
    assert text is not None
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _sha256(text: str) -> str:
    """The digest that a page's policy names a script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
