"""The report of a sweep, read in headless Chromium: what it draws, says, sorts, hides and never runs."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from headless import Headless, browser_path
from sweep_folders import ATTACK, DELTA, open_page, said, sweep_folder

from dpads.accounting.accountant import Relation, epsilon_of, round_up
from dpads.accounting.events import composed
from dpads.accounting.ledger import Ledger
from dpads.errors import RunError
from dpads.sweep_charts import KINDS, RAMP
from dpads.sweep_costs import noise_figures
from dpads.sweep_curves import INCREASE, Curves
from dpads.sweep_looks import looked_at
from dpads.sweep_report import write_report
from dpads.sweep_rows import SweepRows, value_words

# A small sweep: two epsilons and none, two batch sizes, two learning rates, two seeds.
SMALL: dict[str, Any] = {"epsilons": (1.0, 8.0, math.inf), "seeds": (1, 2), "failed": (3,)}
ROWS = "[...document.querySelectorAll('#trial-table tbody tr')]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = sweep_folder(tmp_path_factory.mktemp("sweep") / "a", **SMALL)
    write_report(made)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headless]:
    program = browser_path()
    if program is None:
        pytest.skip("needs Chromium on PATH (Debian: apt-get install chromium)")
    with Headless(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


def cells(browser: Headless, column: str) -> list[str]:
    """The exact values of a column, in the order of the shown rows."""
    place = (
        "[...document.querySelectorAll('#trial-table thead th')]"
        f".findIndex(h => h.dataset.column === '{column}')"
    )
    shown = f"{ROWS}.filter(r => !r.hidden).map(r => r.cells[{place}].dataset.key)"
    found: list[str] = browser.value(shown)
    return found


def press(browser: Headless, column: str) -> None:
    """Clicks a head of the table."""
    browser.value(
        f"document.querySelector('#trial-table th[data-column=\"{column}\"] button').click()"
    )


def test_the_page_holds_the_values_of_the_results(folder: Path, browser: Headless) -> None:
    open_page(browser, folder / "report.html")
    results = pl.read_parquet(folder / "results.parquet")
    for column in ("auc_loss", "relative_increase", "noise_multiplier", "seconds", "memory_bytes"):
        shown = [float(text) if text else None for text in cells(browser, column)]
        assert shown == results[column].to_list(), column
    asked = [float(text) for text in cells(browser, "epsilon asked")]
    assert asked == results["privacy.epsilon"].to_list()
    failed = browser.value("document.querySelector('tr[data-trial=\"0003\"]').textContent")
    assert "failed" in failed
    assert "RunError: the disk is full" in failed


def test_a_head_sorts_and_says_so_and_the_filter_hides(folder: Path, browser: Headless) -> None:
    open_page(browser, folder / "report.html")
    head = "document.querySelector('#trial-table th[data-column=auc_loss]')"
    press(browser, "auc_loss")
    assert browser.value(f"{head}.getAttribute('aria-sort')") == "ascending"
    up = cells(browser, "auc_loss")
    values = [float(text) for text in up if text]
    assert values == sorted(values)
    assert up[-1] == ""  # what failed has no loss, and stands last in both directions
    press(browser, "auc_loss")
    assert browser.value(f"{head}.getAttribute('aria-sort')") == "descending"
    down = cells(browser, "auc_loss")
    assert [float(text) for text in down if text] == values[::-1]
    assert down[-1] == ""
    sorted_heads = "document.querySelectorAll('#trial-table thead th:not([aria-sort=none])').length"
    assert browser.value(sorted_heads) == 1

    press(browser, "epsilon asked")
    asked = [float(text) for text in cells(browser, "epsilon asked")]
    assert asked == sorted(asked)
    assert asked[-1] == math.inf

    browser.value("document.getElementById('filter').focus()")
    browser("Input.insertText", text="failed DISK")
    assert browser.value(f"{ROWS}.filter(r => !r.hidden).map(r => r.dataset.trial)") == ["0003"]
    assert browser.value("document.getElementById('shown').textContent") == "1 of 24"


def test_heads_are_reached_and_pressed_by_keyboard(folder: Path, browser: Headless) -> None:
    open_page(browser, folder / "report.html")
    browser.value("document.querySelector('#trial-table th[data-column=seconds] button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                windowsVirtualKeyCode=13)  # fmt: skip
    seconds = [float(text) for text in cells(browser, "seconds")]
    assert seconds == sorted(seconds)


def test_every_picture_is_drawn_with_its_marks_and_written_as_files(
    folder: Path, browser: Headless
) -> None:
    open_page(browser, folder / "report.html")
    names = browser.value("[...document.querySelectorAll('main figure')].map(f => f.id.slice(7))")
    assert names == [
        "privacy-utility", "noise-multiplier", "noise-per-example", "calibration", "ece",
        "normalized-entropy", "seconds", "memory",
    ]  # fmt: skip
    curves = Curves(SweepRows.read(folder))
    (utility,) = curves.figures_of(INCREASE)
    for name in names:
        marks = f"#figure-{name} .mark-symbol path"
        count = browser.value(f"document.querySelectorAll('{marks}').length")
        assert count == browser.value(
            f"document.querySelectorAll('#figure-{name} .numbers tbody tr').length"
        ) + (len(utility.dots) if name == "privacy-utility" else 0)
        for kind in ("svg", "png"):
            file = folder / "plots" / f"{name}.{kind}"
            assert f"plots/{name}.{kind}" in browser.value(
                f"document.querySelector('#figure-{name} .foot').textContent"
            )
            assert file.stat().st_size > 5_000
        svg = (folder / "plots" / f"{name}.svg").read_text()
        assert svg.count("<path") > 6
        assert "var(" not in svg
        size = browser.value(
            f"(r => [r.width, r.height])(document.querySelector('#figure-{name} svg.marks')"
            ".getBoundingClientRect())"
        )
        assert min(size) > 200
    assert (folder / "report.html").read_text().count("Vega Embed") <= 1
    assert 1e6 < (folder / "report.html").stat().st_size < 1.6e6


def test_a_mark_tells_its_numbers_when_pointed_at(folder: Path, browser: Headless) -> None:
    open_page(browser, folder / "report.html")
    mark = "[...document.querySelectorAll('#figure-privacy-utility .mark-symbol path')].at(-1)"
    browser.value(f"{mark}.scrollIntoView({{block: 'center'}})")
    x, y = browser.value(
        f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())"
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x + 1, y=y)
    tip = browser.value("document.getElementById('vg-tooltip-element').innerText")
    assert "1,024" in tip
    assert "infinity" in tip
    assert re.search(r"[+-]\d+\.\d\d %", tip)


def test_curves_are_means_over_seeds_of_the_best_setting(folder: Path) -> None:
    results = pl.read_parquet(folder / "results.parquet")
    curves = Curves(SweepRows.read(folder))
    (figure,) = curves.figures_of(INCREASE)
    assert figure.lines == ("256", "1,024")
    rate = "training.table_optimizer.learning_rate"
    for line, batch in enumerate((256, 1024)):
        for epsilon in (1.0, 8.0, math.inf):
            at = results.filter(
                (pl.col("training.expected_batch_size") == batch)
                & (pl.col("privacy.epsilon") == epsilon)
                & (pl.col("status") == "done")
            )
            whole = [
                g for _, g in at.group_by(rate) if len(g) == 2
            ]  # one of 0003's seeds is missing
            best = min((g[INCREASE].to_list() for g in whole), key=statistics.fmean)
            (point,) = [p for p in figure.points if (p.line, p.x) == (line, epsilon)]
            assert point.y == pytest.approx(statistics.fmean(best))
            assert point.low is not None
            assert point.high is not None
            error = statistics.stdev(best) / math.sqrt(2)
            assert (point.low, point.high) == pytest.approx((point.y - error, point.y + error))
    assert "one standard error" in figure.note
    assert "the best of up to 2 settings" in figure.note
    assert "which flatters it" in figure.note


def test_one_seed_shows_the_trials_own_interval(tmp_path: Path) -> None:
    made = sweep_folder(
        tmp_path / "a", epsilons=(1.0, 8.0), batches=(256,), seeds=(1,), task="count"
    )
    sweep = SweepRows.read(made)
    (figure,) = Curves(sweep).figures_of(INCREASE)
    rows = {row["trial"]: row for row in sweep.rows}
    for point in figure.points:
        (trial,) = point.trials
        assert point.low == rows[trial]["relative_increase_low"]
    assert "95 % interval over test rows" in figure.note
    assert "standard error" not in figure.note
    assert [f.name for f in noise_figures(sweep)] == ["noise-multiplier"]
    assert not Curves(sweep).figures_of("ece")
    assert Curves(sweep).figures_of("calibration")


def test_without_a_baseline_the_loss_itself_is_shown(tmp_path: Path) -> None:
    made = sweep_folder(tmp_path / "a", epsilons=(1.0, 8.0), seeds=(1,))
    results = pl.read_parquet(made / "results.parquet")
    increase = [c for c in results.columns if c.startswith(INCREASE)]
    results.with_columns([pl.lit(None, pl.Float64).alias(c) for c in increase]).write_parquet(
        made / "results.parquet"
    )
    text = write_report(made).read_text()
    assert "No non-private model of the same kind and split was trained" in text
    curves = Curves(SweepRows.read(made))
    (figure,) = curves.figures_of(curves.measure)
    assert (figure.name, figure.rule, figure.is_percent) == ("privacy-utility", None, False)


def test_what_protects_others_is_never_on_one_line(tmp_path: Path) -> None:
    units = (("example", None), ("user", 10))
    made = sweep_folder(tmp_path / "a", units=units, models=("mlp", "fm"), epsilons=(1.0, 2.0))
    curves = Curves(SweepRows.read(made))
    figures = curves.figures_of(INCREASE)
    assert len(figures) == 4
    assert len({figure.name for figure in figures}) == 4
    assert len({figure.extent for figure in figures}) == 1
    for figure in figures:
        trials = {t for p in figure.points for t in p.trials}
        rows = [row for row in curves.sweep.rows if row["trial"] in trials]
        assert len({(row["privacy.unit"], row["model.name"]) for row in rows}) == 1
    looks = looked_at(made, curves.sweep)
    assert [joint.unit for joint in looks.joint] == [
        "one example",
        "one user, at most 10 rows kept of each",
    ]


def test_the_joint_epsilon_is_that_of_the_ledger(folder: Path, browser: Headless) -> None:
    sweep = SweepRows.read(folder)
    looks = looked_at(folder, sweep)
    entries = Ledger.load(folder / "ledger.jsonl").entries
    events = [e.dp_event for e in entries if e.dp_event is not None]
    loss = epsilon_of(composed(events), DELTA, Relation.ADD_OR_REMOVE_ONE)
    (joint,) = looks.joint
    assert joint.loss == loss
    assert joint.models == 16  # the one that failed had been announced
    assert (looks.noise_free, looks.evaluations, looks.crosses) == (8, 24, True)
    open_page(browser, folder / "report.html")
    text = browser.value("document.getElementById('looks').innerText")
    assert f"epsilon {round_up(loss.epsilon):.2f} and delta 1e-6" in text
    assert "8 models trained without noise on these rows" in text
    assert "exact reads of training rows of other trials" in text
    assert "no epsilon bounds what this page tells its reader" in text
    top = browser.value("document.getElementById('summary').innerText")
    assert "Internal: not for release" in top


def test_no_figure_is_stated_that_the_ledger_does_not_bear(tmp_path: Path) -> None:
    made = sweep_folder(tmp_path / "a", epsilons=(1.0,), seeds=(1,), learning_rates=(1.0,))
    lines = (made / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    sweep = SweepRows.read(made)

    (made / "ledger.jsonl").write_bytes(b"".join(lines[:2]))  # of the second trial nothing is left
    looks = looked_at(made, sweep)
    assert looks.unlisted == ["0002"]
    assert [joint.models for joint in looks.joint] == [1]

    (made / "ledger.jsonl").write_bytes(b"".join(lines))
    spent = {"kind": "gaussian", "noise_multiplier": 1.0}
    Ledger.load(made / "ledger.jsonl").append(
        kind="dp_count", description="A count", rows="train", treatment="covered_by_accounting",
        dp_event=spent,
    )  # fmt: skip
    looks = looked_at(made, sweep)
    assert [joint.models for joint in looks.joint] == [2]
    assert looks.others == [("A count (no delta is entered, so no figure includes it)", 1)]

    (made / "ledger.jsonl").write_bytes(b"".join(lines[1:]))
    looks = looked_at(made, sweep)
    assert looks.problem is not None
    assert looks.joint == ()
    text = write_report(made).read_text()
    assert "no joint guarantee is stated" in text
    assert "Joint epsilon" not in text

    (made / "ledger.jsonl").unlink()
    assert "found no file" in str(looked_at(made, sweep).problem)


def test_rows_declared_public_need_no_epsilon(tmp_path: Path) -> None:
    made = sweep_folder(tmp_path / "a", epsilons=(1.0,), seeds=(1,), rows="synthetic")
    text = said(write_report(made))
    assert "as declared, nothing private was read. Nobody checked that" in text
    assert "Internal" not in text
    assert "Joint epsilon" not in text


def test_what_users_call_things_stays_text(tmp_path: Path, browser: Headless) -> None:
    made = sweep_folder(
        tmp_path / "a", epsilons=(1.0, math.inf), seeds=(1,), learning_rates=(1.0,),
        models=("mlp", ATTACK), failed=(1,), error=ATTACK,
    )  # fmt: skip
    page = write_report(made)
    assert "<script>window.attacked" not in page.read_text()
    assert "<img" not in said(page)
    open_page(browser, page, width=390)
    assert browser.value("window.attacked") is None
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert ATTACK in browser.value("document.querySelector('#trial-table').textContent")
    assert browser.value("document.querySelectorAll('img').length") == 0
    # The policy names two scripts; whatever else came into the page would not run.
    browser.value("document.body.append(Object.assign(document.createElement('script'),"
                  " {textContent: 'window.attacked = 1'}))")  # fmt: skip
    assert browser.value("window.attacked") is None
    for file in (made / "plots").iterdir():
        assert re.fullmatch(r"[a-z0-9-]+\.(svg|png)", file.name)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_the_page_is_right_on_a_phone_and_in_the_dark(
    folder: Path, browser: Headless, width: int, scheme: str
) -> None:
    open_page(browser, folder / "report.html", width=width, scheme=scheme)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(
        "[...document.querySelectorAll('main *')].every(e => e.closest('.scroll table') || "
        f"e.getBoundingClientRect().right <= {width} + .5)"
    )
    # Nothing that a picture draws is cut off by its own frame.
    assert browser.value(
        "[...document.querySelectorAll('main svg.marks text')].every(t => { const a = "
        "t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect(); return "
        "a.width === 0 || (a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && "
        "a.bottom <= b.bottom + 1); })"
    )
    paper = browser.value(
        "getComputedStyle(document.querySelector('main section')).backgroundColor"
    )
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    texts = browser.value(
        "[...new Set([...document.querySelectorAll('main svg.marks text')]"
        ".map(t => getComputedStyle(t).fill))]"
    )
    marks = browser.value(
        "[...new Set([...document.querySelectorAll('main svg.marks .mark-symbol path')]"
        ".map(t => getComputedStyle(t).fill))]"
    )
    assert texts
    assert len(marks) >= 4
    assert all(contrast(text, paper) >= 4.5 for text in texts)
    assert all(contrast(mark, paper) >= 3 for mark in marks)


def test_colours_of_lines_stand_out_on_white_and_rise_in_order() -> None:
    """At least 3 to 1, what WCAG 2.1 asks of pictures; ordered values by lightness, for any eyes."""
    rgb = [
        f"rgb({', '.join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5))})" for c in (*KINDS, *RAMP)
    ]
    assert all(contrast(colour, "rgb(255, 255, 255)") >= 3 for colour in rgb)
    ramp = [luminance(colour) for colour in rgb[len(KINDS) :]]
    assert ramp == sorted(ramp)


def test_a_printed_page_is_light_and_whole(folder: Path, browser: Headless) -> None:
    browser.open(folder / "report.html", width=1000, scheme="dark", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === "
        "'visible')"
    )
    assert not browser.value("document.getElementById('filter').checkVisibility()")


def test_trials_far_off_do_not_flatten_the_curves(folder: Path) -> None:
    sweep = SweepRows.read(folder)
    rows = [dict(row) for row in sweep.rows]
    on_curves = Curves(sweep).chosen_trials
    lone = next(r for r in rows if r[INCREASE] is not None and r["trial"] not in on_curves)
    lone[INCREASE] = 50.0
    (figure,) = Curves(replace(sweep, rows=rows)).figures_of(INCREASE)
    assert max(figure.values) < 5
    assert "1 lie above the picture and are in the table" in figure.note


def test_a_sweep_that_has_done_nothing_yet_has_a_page(tmp_path: Path) -> None:
    made = sweep_folder(
        tmp_path / "a",
        epsilons=(1.0,),
        batches=(256,),
        seeds=(1,),
        learning_rates=(1.0,),
        failed=(1,),
    )
    text = write_report(made).read_text()
    assert "No trial is done" in text
    assert "data-spec=" not in text


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Expected sweep\.json"):
        write_report(tmp_path)
    made = sweep_folder(tmp_path / "a", epsilons=(1.0,), seeds=(1,))
    document = json.loads((made / "sweep.json").read_text())
    (made / "sweep.json").write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(RunError, match="in format 1, got 2"):
        write_report(made)


def test_values_are_written_as_people_write_them() -> None:
    assert [value_words(v) for v in (0.1 + 0.2, 1024.0, 3e-5, True, "x")] == [
        "0.3", "1,024", "3e-5", "True", "x",
    ]  # fmt: skip


def luminance(colour: str) -> float:
    """Relative luminance of an "rgb(...)" colour, WCAG 2.1."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """How far two colours are apart, 1 to 21."""
    dim, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dim + 0.05)


def test_a_sweep_of_which_nothing_began_is_not_called_altered(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s")
    rows = pl.read_parquet(folder / "results.parquet")
    failed = rows.head(2).with_columns(
        status=pl.lit("failed"),
        error=pl.lit("The budget is too small."),
        auc_loss=pl.lit(None, pl.Float64),
    )
    failed.write_parquet(folder / "results.parquet")
    (folder / "ledger.jsonl").unlink()
    page = write_report(folder).read_text()
    assert "cannot be read" not in page
    assert "The ledger covers no model" in page
