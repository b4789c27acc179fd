"""The report of a recipe: questions, evidence and decisions, and the claim word for word."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import Headless, browser_path
from sweep_folders import ATTACK, LEARNING_RATE, open_page, said, sweep_folder

from dpads.errors import RunError
from dpads.recipe_report import write_recipe_report

CLAIM = "Claim level: conditional, on 1 assumption. The final model is (3.00, 1e-6)-differentially private."
RATES = (0.25, 0.5, 1.0, 2.0)


def recipe_folder(folder: Path, *, rows: str = "private", **changes: Any) -> Path:
    """A recipe of three stages: one without noise, one that trains nothing, one with noise."""
    for name, epsilon in (("1-reference", math.inf), ("5-learning-rates", 3.0)):
        sweep_folder(
            folder / "stages" / name, epsilons=(epsilon,), batches=(512,), seeds=(1,),
            learning_rates=RATES, rows=rows,
        )  # fmt: skip
    losses = [[rate, 0.2 + abs(math.log(rate))] for rate in RATES]
    rated = {
        "columns": ["table optimizer.learning rate", "AUC loss"],
        "evidence": losses,
        "chosen": {LEARNING_RATE: 1.0},
    }
    stages = [
        {
            "name": "1-reference", "title": "The model without privacy", "rows": rows,
            "question": "Which learning rates suit the model without noise?",
            "decision": "Learning rate 1 (tables), with AUC loss 0.2000.",
            "sweep": "stages/1-reference", **rated,
        },
        {
            "name": "2-batch-size", "title": "The batch size", "rows": "none",
            "question": "Which is the largest batch that the time allows?",
            "decision": "Batches of 512.", "sweep": None,
            "columns": ["expected batch size", "seconds a step", "hours for all trials"],
            "evidence": [[256, 0.01, 0.2], [512, 0.02, 0.4], [1024, 0.05, None]],
            "chosen": {"training.expected_batch_size": 512},
        },
        {
            "name": "5-learning-rates", "title": "Learning rates with noise", "rows": "private",
            "question": "Which learning rates suit the noise?", "decision": "Learning rate 1 (tables).",
            "sweep": "stages/5-learning-rates", **rated,
        },
    ]  # fmt: skip
    document = {
        "format": 1, "created_at": "2026-11-21T14:00:00Z", "stages": stages,
        "statement": "model/statement.json", "claim": CLAIM, **changes,
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipe_folder(tmp_path_factory.mktemp("recipe") / "a")
    write_recipe_report(made)
    return made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headless]:
    program = browser_path()
    if program is None:
        pytest.skip("needs Chromium on PATH (Debian: apt-get install chromium)")
    with Headless(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


def text_of(browser: Headless, place: str) -> str:
    """The visible text of an element."""
    text: str = browser.value(f"document.querySelector('{place}').innerText")
    return text


def test_every_stage_shows_its_question_evidence_and_decision(
    folder: Path, browser: Headless
) -> None:
    open_page(browser, folder / "report.html")
    assert CLAIM in text_of(browser, "#summary")
    assert "Claim level: conditional" in text_of(browser, "#summary-title")
    document = json.loads((folder / "recipe.json").read_text())
    for place, stage in enumerate(document["stages"], 1):
        text = text_of(browser, f"#stage-{place}")
        for key in ("title", "question", "decision"):
            assert stage[key] in text
        rows = browser.value(
            f"document.querySelectorAll('#stage-{place} .evidence tbody tr').length"
        )
        assert rows == len(stage["evidence"])
        marked = f"[...document.querySelectorAll('#stage-{place} tr.chosen')].map(r => r.cells[0].innerText)"
        assert browser.value(marked) == ["512" if place == 2 else "1"]
    settled = text_of(browser, "#settled")
    assert "512" in settled
    assert "3. Learning rates with noise" in settled


def test_pictures_show_the_loss_against_what_varied_and_what_was_chosen(
    folder: Path, browser: Headless
) -> None:
    open_page(browser, folder / "report.html", width=390, scheme="dark")
    figures = browser.value("[...document.querySelectorAll('main figure')].map(f => f.id)")
    assert figures == ["figure-stage-1", "figure-stage-3"]
    for figure in figures:
        drawn = browser.value(f"document.querySelectorAll('#{figure} .mark-symbol path').length")
        assert drawn == len(RATES) + 1  # and a ring around the one that was chosen
        assert "chosen" in browser.value(f"document.querySelector('#{figure} svg').textContent")
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert (folder / "plots" / "stage-1.png").stat().st_size > 5_000


def test_a_stage_without_noise_on_private_rows_is_named(folder: Path, tmp_path: Path) -> None:
    words = (
        "trained without noise on private rows: nothing bounds what its models and figures reveal"
    )
    private = said(folder / "report.html")
    assert f"“The model without privacy” {words}" in private
    assert f"“Learning rates with noise” {words}" not in private
    assert words not in said(write_recipe_report(recipe_folder(tmp_path / "a", rows="public")))


def test_what_is_not_finished_claims_nothing(tmp_path: Path) -> None:
    made = recipe_folder(tmp_path / "a", claim=None, statement=None)
    assert "Not finished: nothing is claimed" in said(write_recipe_report(made))
    made = recipe_folder(tmp_path / "b", claim=None, statement=None, stages=[])
    assert "Nothing yet." in said(write_recipe_report(made))


def test_what_users_call_things_stays_text(tmp_path: Path, browser: Headless) -> None:
    made = recipe_folder(tmp_path / "a")
    document = json.loads((made / "recipe.json").read_text())
    document["claim"] = ATTACK
    for stage in document["stages"]:
        stage |= {"title": ATTACK, "question": ATTACK, "decision": ATTACK, "rows": ATTACK}
        stage["columns"] = [ATTACK] * len(stage["columns"])
        stage["chosen"] = {ATTACK: ATTACK}
    (made / "recipe.json").write_text(json.dumps(document))
    page = write_recipe_report(made)
    assert "<script>window.attacked" not in page.read_text()
    assert "<img" not in said(page)
    open_page(browser, page, width=390)
    assert browser.value("window.attacked") is None
    assert browser.value("document.documentElement.scrollWidth") <= 390
    assert ATTACK in text_of(browser, "#summary")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Expected recipe\.json"):
        write_recipe_report(tmp_path)
    with pytest.raises(RunError, match="in format 1, got 7"):
        write_recipe_report(recipe_folder(tmp_path / "a", format=7))
