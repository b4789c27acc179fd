"""What was done to the rows before: on every run's ledger, and read back by those who verify."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from private_selections import RATES as CANDIDATES
from private_selections import SCHEMA, carry_out, document, number_drawn, quick
from small_recipes import configuration, recipes_here
from small_runs import SMALL

import dpads
from dpads import training
from dpads.accounting.facts import HumanFacts
from dpads.accounting.ledger import Ledger
from dpads.errors import ConfigError
from dpads.recipes import recipe
from dpads.report import build_joint_statement
from dpads.run_job import declare_upstream
from dpads.sweep_config import parse_sweep
from dpads.synthetic import SyntheticLog

JOINED = "Rows were joined with a table of campaigns."
KEPT = "a share of 0.1 of them was kept"
UNKNOWN = "Nobody declared it."


@pytest.fixture(scope="module")
def thinned(
    click_log: SyntheticLog, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dpads.ExampleStore:
    """The small log with a schema that says that negatives were left out."""
    schema = dataclasses.replace(click_log.schema, negatives_kept=0.1)
    out = tmp_path_factory.mktemp("thinned") / "store"
    return dpads.prepare(log_folder / "train.parquet", schema, out=out)


def upstream(ledger: Ledger) -> list[str]:
    return [entry.description for entry in ledger.entries if entry.kind == "upstream"]


def accesses(statement: Any) -> list[tuple[str, str]]:
    """Who says what was done before."""
    stages = ("collection", "filtering_or_downsampling")
    rows = statement.data["definition"]["data_accesses"]
    return [(row["filled_by"], row["description"]) for row in rows if row["stage"] in stages]


@pytest.mark.parametrize(
    ("said", "who"),
    [({}, ["auto+human", "human"]), ({"upstream": JOINED}, ["human", "auto+human"])],
)
def test_a_declared_rate_is_no_answer_of_a_person_and_verifies(
    thinned: dpads.ExampleStore, tmp_path: Path, said: dict[str, str], who: list[str]
) -> None:
    run = dpads.train(thinned, statement=said, out=tmp_path / "run", **SMALL)
    statement = run.statement()
    assert [by for by, _ in accesses(statement)] == who
    assert KEPT in " ".join(text for _, text in accesses(statement))
    assert any(UNKNOWN in text for _, text in accesses(statement)) == (not said)
    assert ("upstream" in [item["key"] for item in statement.data["missing"]]) == (not said)
    headline = statement.headline
    assert "Not covered: " in headline
    assert "which negatives were left out of the log before it was read; " in headline
    assert "0.1" not in headline
    assert dpads.verify(tmp_path / "run").first_failure is None
    for name, copy in (("own", statement), ("public", statement.public())):
        (tmp_path / f"{name}.json").write_text(copy.to_json())
        assert dpads.verify(tmp_path / f"{name}.json").first_failure is None
    page = (tmp_path / "run" / "statement.md").read_text()
    assert KEPT in " ".join(page.split())


@pytest.mark.parametrize("said", [({}, {}), ({"upstream": JOINED}, {}), ({}, {"upstream": JOINED})])
def test_runs_on_rows_with_a_declared_rate_verify_together(
    thinned: dpads.ExampleStore, tmp_path: Path, said: tuple[dict[str, str], ...]
) -> None:
    runs = [dpads.train(thinned, statement=human, **SMALL) for human in said]
    together = build_joint_statement(runs)
    assert sum(KEPT in text for _, text in accesses(together)) == 1
    (tmp_path / "joint.json").write_text(together.to_json())
    assert dpads.verify(tmp_path / "joint.json").first_failure is None


def test_who_said_it_cannot_be_changed_in_a_statement(
    thinned: dpads.ExampleStore, tmp_path: Path
) -> None:
    statement = dpads.train(thinned, **SMALL).statement()
    data = json.loads(statement.to_json())
    for row in data["definition"]["data_accesses"]:
        if row["filled_by"] == "auto+human" and KEPT in row["description"]:
            row["filled_by"] = "human"
    (tmp_path / "altered.json").write_text(json.dumps(data))
    assert not dpads.verify(tmp_path / "altered.json").ok


def test_a_crash_between_two_declarations_loses_none(log_folder: Path) -> None:
    config = dataclasses.replace(
        configuration(log_folder, schema={"negatives_kept": 0.1}),
        statement=HumanFacts(upstream=JOINED),
    )
    whole = Ledger()
    declare_upstream(whole, config)
    assert upstream(whole)[0] == JOINED
    assert KEPT in upstream(whole)[1]
    for already in (0, 1, 2):
        ledger = Ledger()
        for entry in whole.entries[:already]:
            ledger.append(**entry.to_dict())
        declare_upstream(ledger, config)
        assert ledger.entries == whole.entries


def test_what_is_tuned_says_it_too(
    thinned: dpads.ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = document(
        tmp_path,
        base={
            "data": {"train": str(thinned.path), "test": 0.2},
            "schema": {**SCHEMA, "negatives_kept": 0.1},
            "model": {"name": "logistic"},
            "privacy": {"epsilon": 8.0, "dataset_size": 2400},
            "training": {"expected_batch_size": 300, "epochs": 1},
            "statement": {"upstream": JOINED},
        },
    )
    number_drawn(monkeypatch, 2)
    config = parse_sweep(asked, base=tmp_path)
    run = carry_out(config, tmp_path / "tuned", quick(dict.fromkeys(CANDIDATES, -1.0)))
    first, second = upstream(run.ledger)
    assert first == JOINED
    assert KEPT in second
    assert [by for by, _ in accesses(run.statement())] == ["human", "auto+human"]
    assert dpads.verify(tmp_path / "tuned").first_failure is None


def test_the_model_of_a_recipe_says_it_too(
    thinned: dpads.ExampleStore, log_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes_here(monkeypatch)
    config = configuration(
        log_folder, data={"train": str(thinned.path)}, schema={"negatives_kept": 0.1}
    )
    run = recipe(config, out=tmp_path / "r", trials=4)
    assert [KEPT in text for text in upstream(run.ledger)] == [True]
    assert [by for by, _ in accesses(run.statement())] == ["auto+human", "human"]
    assert dpads.verify(tmp_path / "r" / "model").first_failure is None


def test_declarations_alone_begin_no_run(
    thinned: dpads.ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: object) -> None:
        raise ConfigError("no room")

    monkeypatch.setattr(training, "check_memory", no_room)
    with pytest.raises(ConfigError, match="no room"):
        dpads.train(thinned, statement={"upstream": JOINED}, out=tmp_path / "run", **SMALL)
    assert not list(tmp_path.iterdir())
