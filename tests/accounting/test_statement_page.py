"""The statement for people: every item of section 5.3.3, whole tables, nothing invented."""

from __future__ import annotations

import re
from typing import Any

import pytest
from statement_runs import EVERYTHING, RUNS, run_inputs, statement_of

from dpads.accounting.facts import ASKED_FOR, HumanFacts
from dpads.accounting.statement import make_statement
from dpads.errors import ConfigError

# What "How to DP-fy ML" asks to report, section 5.3.3: where it is in JSON and in Markdown.
ITEMS = {
    "1 setting": (("dp_setting", "model"), "Central differential privacy"),
    "2a accesses": (("definition", "data_accesses"), "### 2a. Uses of the data"),
    "2b output": (("definition", "mechanism_output", "formally_protected"), "Formally protected"),
    "2c unit": (("definition", "unit_of_privacy", "definition"), "The unit is one example"),
    "2c users": (
        ("definition", "unit_of_privacy", "contribution_bound"),
        "Rows of one user: not bounded",
    ),
    "2c content": (("definition", "protected_content"), "The full example is protected"),
    "2d adjacency": (("definition", "adjacency", "relation"), "add_or_remove_one"),
    "3a accounting": (("accounting", "type"), "PLD gives the smaller bound"),
    "3b assumptions": (("checks",), "### 3b. Assumptions, and whether they hold"),
    "3c model": (("guarantees",), "### 3c. Formal statement"),
    "3c profile": (("guarantees",), "The privacy profile"),
    "3c rdp": (("guarantees",), "Renyi divergences at some orders"),
    "3c meaning": (("meaning", "text"), "What it means for one example"),
    "3a entries": (("accounting", "entries"), "| E1 | training | 1 | 347 x Gaussian"),
    "3c tuning": (("accounting", "tuning", "method"), "Tuning: not declared"),
    "4 transparency": (("transparency", "reproduce_accounting"), "## 4. Code, and how to check"),
    "4 libraries": (("transparency", "versions"), "dp-accounting 0.6.0"),
    "clipping norm": (("mechanism", "clipping", "norm"), "joint L2 norm 1.0"),
    "normaliser": (("mechanism", "clipping", "expected_batch_size"), "the constant 1024"),
    "sampling": (("mechanism", "sampler", "sampling_probability"), "probability 0.0144225352112"),
    "float noise": (("limitations",), "float32 Gaussian"),
    "audit": (("limitations",), "No empirical audit was made"),
    "nist": (("nist_view",), "## 8. NIST SP 800-226"),
    "ledgers": (("ledgers",), "| Ledger | Entries | Head |"),
}


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_section_5_3_3_is_reported(item: str) -> None:
    statement = statement_of("public size")
    path, words = ITEMS[item]
    value: Any = statement.data
    for key in path:
        value = value[key]
    assert value not in (None, "", [], {})
    assert words in " ".join(statement.to_markdown().split())


def test_pages_have_wrapped_lines_and_whole_tables() -> None:
    hostile = {
        **EVERYTHING,
        "model_name": "a | b <script>`x`",
        "upstream": "first line\nsecond | line",
    }
    page = make_statement(run_inputs(human=hostile)).to_markdown()
    assert "<script" not in page
    assert page.endswith("\n")
    assert "\n\n\n" not in page
    columns = 0
    for line in page.splitlines():
        assert line == line.rstrip()
        if line.startswith("|"):
            count = len(re.findall(r"(?<!\\)\|", line))
            assert columns in (0, count), line
            columns = count
        else:
            columns = 0
            words = line.split()
            assert len(line) <= 100 or len(max(words, key=len)) > 60, line


@pytest.mark.parametrize("name", RUNS)
def test_only_checkpoints_whose_rows_were_brought_up_to_date_are_covered(name: str) -> None:
    statement = statement_of(name)
    page = " ".join(statement.to_markdown().split())
    covered = (
        "every noisy gradient, every checkpoint whose rows were brought up to date, and the final "
        "model"
    )
    assert "all its checkpoints" not in page
    hides = statement.data["accounting"]["tuning"]["method"] == "repeat_and_select"
    counted = statement.data["accounting"]["tuning"]["method"] in ("composition", "renyi_filter")
    whose = " of each run that is stated here" if hides else " of each run" if counted else ""
    ends = ", with a private selection's best score; of its other runs nothing" if hides else ""
    seen = " of the runs that are stated here; of the other runs of a private selection nothing"
    assert f"The adversary may see {covered}{seen if hides else ''}." in page
    assert (f"Covered: {covered}{whose}{ends}" in page) == bool(statement.data["guarantees"])
    protected = statement.data["definition"]["mechanism_output"]["formally_protected"]
    assert protected.startswith(f"{covered}{whose}{ends}")
    assert "; not the checkpoints that an interrupted run goes on" in protected
    view = statement.data["dp_setting"]["adversary_view"]
    assert view == "all_noisy_gradients_and_checkpoints_" + (
        "of_the_runs_that_are_shown" if hides else "brought_up_to_date"
    )


def test_what_people_did_not_supply_is_printed_as_missing() -> None:
    statement = statement_of("public size")
    assert [m["key"] for m in statement.data["missing"]] == list(ASKED_FOR)
    page = statement.to_markdown()
    for key, text in ASKED_FOR.items():
        assert f"**{key}**" in page
        assert text.split()[0] in page
    assert statement.data["subject"]["publisher"] is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"asserted_bye": "Ada"}, '"asserted_by"'),
        ({"tuning": "no"}, "not_accounted"),
        ({"publisher": ""}, "publisher"),
        ({"publisher": 3}, "publisher"),
    ],
)
def test_statement_tables_that_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HumanFacts.from_mapping(table)
