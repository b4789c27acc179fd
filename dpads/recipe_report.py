"""The report of a recipe: each stage with its question, its evidence and its decision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dpads.errors import RunError
from dpads.report_page import REPORT, Drawn, draw, write_page
from dpads.sweep_figures import Figure, Point
from dpads.sweep_rows import (
    METRIC_WORDS,
    MOST_LINES,
    RESULTS,
    SWEEP,
    Row,
    SweepRows,
    distinct,
    key_words,
    value_words,
)

RECIPE: Final = "recipe.json"
FORMAT: Final = 1

ROWS_WORDS: Final[Mapping[str, str]] = {
    "private": "on private rows",
    "public": "on rows declared public",
    "synthetic": "on made-up rows",
    "none": "reads no rows",
}
_LEVELS: Final[Mapping[str, str]] = {"formal": "good", "conditional": "care", "none": "bad"}
# What a picture of a stage has on its horizontal axis, the first that varied.
_PREFERRED: Final = (
    "privacy.l2_clip_norm",
    "training.expected_batch_size",
    "training.table_optimizer.learning_rate",
    "training.tower_optimizer.learning_rate",
    "privacy.noise_multiplier",
    "privacy.epsilon",
)


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One row of a stage's evidence.

    Attributes:
        cells: Its texts.
        is_chosen: Whether the decision fell on it.
    """

    cells: Sequence[str]
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class StageView:
    """A stage as the page shows it.

    Attributes:
        id: Its place on the page.
        title: What it is called.
        question: What it answers.
        rows: What it was computed on.
        is_uncovered: Whether it trained without noise on private rows.
        decision: What follows.
        chosen: What was chosen, name and value.
        columns: Heads of the evidence, each with "number" or "words".
        evidence: Its rows.
        drawings: Its pictures.
        report: Where the report of its trials is; None where there is none.
    """

    id: str
    title: str
    question: str
    rows: str
    is_uncovered: bool
    decision: str
    chosen: Sequence[tuple[str, str]]
    columns: Sequence[tuple[str, str]]
    evidence: Sequence[EvidenceRow]
    drawings: Sequence[Drawn]
    report: str | None


def write_recipe_report(folder: Path) -> Path:
    """Writes FOLDER/report.html and FOLDER/plots/ from what a recipe left there.

    Args:
        folder: The recipe's folder, with recipe.json and, where stages trained, their sweeps.

    Returns:
        The page's path.

    Raises:
        RunError: recipe.json is missing, or another format wrote it.

    Guarantees:
        - The page fetches nothing, and runs no script but Vega's and its own.
        - Every text of users is escaped.
        - What is claimed is the statement's headline, word for word.
    """
    folder = Path(folder)
    document = _document(folder)
    stages = [_stage(stage, place, folder) for place, stage in enumerate(document["stages"], 1)]
    claim = document.get("claim")
    level = next(
        (level for level in _LEVELS if str(claim).startswith(f"Claim level: {level}")), None
    )
    return write_page(
        folder,
        "recipe.html.j2",
        document=document,
        claim=claim,
        level=level,
        look=_LEVELS.get(str(level), "care"),
        stages=stages,
        settled=_settled(document["stages"]),
    )


def _document(folder: Path) -> Mapping[str, Any]:
    """recipe.json."""
    if not (folder / RECIPE).is_file():
        raise RunError(
            f"Expected {RECIPE} in the recipe's folder {folder}, found none. Run `dpads recipe` first."
        )
    document: Mapping[str, Any] = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    if document.get("format") != FORMAT:
        raise RunError(
            f"Expected {folder / RECIPE} in format {FORMAT}, got {document.get('format')!r}. Report it "
            "with the version of dpads that wrote it."
        )
    return document


def _stage(stage: Mapping[str, Any], place: int, folder: Path) -> StageView:
    """One stage, its pictures drawn."""
    chosen: Mapping[str, Any] = stage["chosen"]
    sweep = _sweep_of(stage, folder)
    figure = None if sweep is None else stage_figure(sweep, chosen, f"stage-{place}")
    rows: Sequence[Sequence[Any]] = stage["evidence"]
    marked = _marked(stage["columns"], rows, chosen)
    report = None if stage["sweep"] is None else f"{stage['sweep']}/{REPORT}"
    trained_bare = sweep is not None and any(row["reference"] for row in sweep.rows)
    return StageView(
        id=f"stage-{place}",
        title=stage["title"],
        question=stage["question"],
        rows=ROWS_WORDS.get(stage["rows"], stage["rows"]),
        is_uncovered=stage["rows"] == "private" and trained_bare,
        decision=stage["decision"],
        chosen=[(key_words(key), value_words(value)) for key, value in chosen.items()],
        columns=[
            (name, "number" if all(_is_number(row[i]) for row in rows) else "words")
            for i, name in enumerate(stage["columns"])
        ],
        evidence=[
            EvidenceRow(cells=[_cell(value) for value in row], is_chosen=i in marked)
            for i, row in enumerate(rows)
        ],
        drawings=[] if figure is None else draw([figure], folder),
        report=report if report is not None and (folder / report).is_file() else None,
    )


def _sweep_of(stage: Mapping[str, Any], folder: Path) -> SweepRows | None:
    """The trials of a stage; None where it trained nothing, or they are gone."""
    if stage["sweep"] is None:
        return None
    place = folder / stage["sweep"]
    if not all((place / name).is_file() for name in (SWEEP, RESULTS)):
        return None
    return SweepRows.read(place)


def stage_figure(sweep: SweepRows, chosen: Mapping[str, Any], name: str) -> Figure | None:
    """The loss of a stage's trials against what varied, the decision marked.

    Args:
        sweep: The stage's trials.
        chosen: What was chosen, by dotted key.
        name: Of the picture.

    Returns:
        The picture; None where nothing varied that an axis could show.
    """
    varied = [
        key
        for key in dict.fromkeys((*_PREFERRED, *sweep.axes))
        if len(distinct(row.get(key) for row in sweep.done)) > 1
    ]
    across = next(
        (key for key in varied if all(_is_place(row.get(key)) for row in sweep.done)), None
    )
    if across is None:
        return None
    rest = [key for key in varied if key != across]
    levels = distinct(row.get(rest[0]) for row in sweep.done) if rest else []
    by_line = 2 <= len(levels) <= MOST_LINES
    loss = METRIC_WORDS.get(sweep.loss, sweep.loss)

    def point(row: Row) -> Point:
        return Point(
            x=float(row[across]),
            y=float(row[sweep.loss]),
            low=row.get(f"{sweep.loss}_low"),
            high=row.get(f"{sweep.loss}_high"),
            line=levels.index(row[rest[0]]) if by_line else 0,
            trials=(row["trial"],),
            settings=sweep.settings_words(row, rest[1:] if by_line else rest),
            is_chosen=row["trial"] == winner,
        )

    winner = _winner(sweep, chosen)
    points = sorted((point(row) for row in sweep.done), key=lambda p: (p.line, p.x))
    has_bars = any(p.low is not None for p in points)
    return Figure(
        name=name,
        title=f"{loss[:1].upper()}{loss[1:]} against {key_words(across)}",
        note="Every trial of the stage."
        + (" Bars are 95 % intervals over test rows." if has_bars else ""),
        x_title=f"{key_words(across)}, logarithmic",
        y_title=loss,
        legend=_capital(key_words(rest[0])) if by_line else "",
        lines=tuple(value_words(level) for level in levels) if by_line else ("",),
        is_ordered=by_line and all(_is_number(level) for level in levels),
        points=tuple(points),
    )


def _winner(sweep: SweepRows, chosen: Mapping[str, Any]) -> str | None:
    """The trial that the decision fell on: of those with all chosen values the best."""
    known = {key: value for key, value in chosen.items() if any(key in row for row in sweep.done)}
    matching = [
        row for row in sweep.done if all(_is_same(row[key], value) for key, value in known.items())
    ]
    best = min(matching, key=lambda row: float(row[sweep.loss]), default=None)
    return None if best is None or not known else str(best["trial"])


def _marked(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], chosen: Mapping[str, Any]
) -> set[int]:
    """The rows of the evidence that hold the chosen values."""
    places = {}
    for key, value in chosen.items():
        for name in (key.partition(".")[2].replace("_", " "), key_words(key), key):
            if name in columns:
                places[columns.index(name)] = value
                break
    if not places:
        return set()
    return {
        i
        for i, row in enumerate(rows)
        if all(_is_same(row[place], value) for place, value in places.items())
    }


def _settled(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """What was settled in the end: name, value, key and the last stage that set it."""
    last: dict[str, tuple[Any, str]] = {}
    for place, stage in enumerate(stages, 1):
        for key, value in stage["chosen"].items():
            last[key] = (value, f"{place}. {stage['title']}")
    return [(key_words(k), value_words(value), k, title) for k, (value, title) in last.items()]


def _is_number(value: Any) -> bool:
    """Whether it is a number, or the lack of one."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_place(value: Any) -> bool:
    """Whether a logarithmic axis has a place for it."""
    return value is not None and _is_number(value) and value > 0


def _is_same(one: Any, other: Any) -> bool:
    """Whether two settings are equal, numbers but for rounding."""
    if one is None or other is None or not (_is_number(one) and _is_number(other)):
        return bool(one == other)
    return math.isclose(one, other, rel_tol=1e-9)


def _cell(value: Any) -> str:
    """A value of the evidence."""
    return "" if value is None else value_words(value)


def _capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
