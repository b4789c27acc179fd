"""`dpads verify` on the folder of a run that was chosen among others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altering import put, renewed
from cli_calls import CONFIG, done, dpads_command

import dpads
from dpads.accounting import events
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.accounting.releases import KINDS as RELEASES
from dpads.accounting.sealing import sealed
from dpads.plan import Plan
from dpads.record import RunRecord
from dpads.report import build_statement
from dpads.verifying import verify

SCORE = events.gaussian(20.0)
COVERED = {"rows": "train", "treatment": "covered_by_accounting"}
Entry = dict[str, Any]


@pytest.fixture(scope="module")
def trained(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary run."""
    folder = tmp_path_factory.mktemp("verify-tuning")
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(log_folder / name, folder)
    (folder / "config.toml").write_text(CONFIG)
    done("train", folder / "config.toml", "--out", folder / "run")
    return folder / "run"


def plan_of(run: Path) -> Plan:
    return Plan.from_dict(json.loads((run / "run.json").read_text())["plan"])


def selection(run: Path, **changes: Any) -> list[Entry]:
    """A private selection among whose runs this one is."""
    choice = events.worst_of([events.dp_sgd(3.0, 0.1, 40), plan_of(run).event(), SCORE])
    return [
        {
            "kind": "tuning",
            "description": "The best of a secret number of runs",
            "dp_event": events.repeat_and_select(choice, mean=10.0, shape="poisson"),
            "details": {
                "selection": "5e" * 16,
                "score": {
                    "measure": "log_loss",
                    "rows": "training_units_set_aside",
                    "dp_event": SCORE,
                },
            },
            **changes,
        }
    ]


def recipe(run: Path, *, rdp: float = 2.0) -> list[Entry]:
    """A filter that this run fits into, and a noise-free stage."""
    return [
        {
            "kind": "tuning",
            "description": "A Renyi filter for every run",
            "dp_event": events.renyi_filter(order=8.0, rdp=rdp),
        },
        {
            "kind": "reference",
            "description": "Runs without noise chose the clip norm",
            "treatment": "not_covered",
            "details": {"chose_configuration": True},
        },
    ]


def sweep(run: Path) -> list[Entry]:
    """What other trials of a sweep cost."""
    other = {
        "kind": "tuning",
        "description": "Another trial of the sweep was trained",
        "dp_event": plan_of(run).event(),
        "details": {"sweep": "a7" * 32, "trials": 4},
    }
    return [other, other, {**other, "dp_event": events.dp_sgd(2.0, 0.1, 10)}]


def noted(
    run: Path, entries: Sequence[LedgerEntry], *, before: Sequence[Entry], selected: bool
) -> Path:
    """The run with another ledger, and the statement that it then has."""
    (run / "ledger.jsonl").unlink()
    ledger = Ledger(run / "ledger.jsonl")
    for entry in before:
        ledger.append(**{**COVERED, **entry})
    for known in entries:
        entry = known.to_dict()
        if selected and known.kind in RELEASES:
            continue  # inside of what the run announces
        if selected and known.kind == "training":
            entry |= {
                "kind": "selected_training",
                "dp_event": None,
                "details": {"dp_event": plan_of(run).event()},
            }
        ledger.append(**entry)
    state(run, ledger)
    return run


def state(run: Path, ledger: Ledger) -> None:
    """Writes the statement that a ledger makes."""
    record = RunRecord.from_dict(json.loads((run / "run.json").read_text()))
    statement = build_statement(plan_of(run), record, ledger, created_at="2026-11-21T12:00:00Z")
    (run / "statement.json").write_text(statement.to_json())
    (run / "statement.md").write_text(statement.to_markdown())


@pytest.fixture(params=["sweep", "selection", "recipe"])
def run(request: pytest.FixtureRequest, trained: Path, tmp_path: Path) -> Path:
    """A run of each kind, free to change."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    make: Mapping[str, Callable[[Path], list[Entry]]] = {
        "sweep": sweep, "selection": selection, "recipe": recipe,
    }  # fmt: skip
    entries = Ledger.load(folder / "ledger.jsonl").entries
    return noted(
        folder, entries, before=make[request.param](folder), selected=request.param != "sweep"
    )


def test_the_folder_and_the_statement_alone_hold(run: Path, tmp_path: Path) -> None:
    assert {line.split()[0] for line in done("verify", run).splitlines()} == {"holds"}
    assert "FAILS" not in done("verify", run / "statement.json")
    public = tmp_path / "public.json"
    done("statement", run, "--format", "json", "--public", "--out", public)
    assert "FAILS" not in done("verify", public)
    page = tmp_path / "page.html"
    done("statement", run, "--format", "html", "--out", page)
    assert page.read_text().lower().startswith("<!doctype html>")
    assert dpads.verify(run).ok


def changed_ledger(run: Path, change: Callable[[list[Entry]], None]) -> None:
    """A whole new chain, made by somebody who knows how; the statement stays."""
    entries = [entry.to_dict() for entry in Ledger.load(run / "ledger.jsonl").entries]
    change(entries)
    (run / "ledger.jsonl").unlink()
    ledger = Ledger(run / "ledger.jsonl")
    for entry in entries:
        ledger.append(**entry)


def test_a_ledger_without_the_first_tuning_entry_does_not_hold(run: Path) -> None:
    changed_ledger(run, lambda entries: entries.pop(0))
    assert dpads_command("verify", run).exit_code == 1
    assert verify(run).first_failure is not None


def test_a_ledger_with_another_event_does_not_hold(run: Path) -> None:
    def quieter(entries: list[Entry]) -> None:
        text = json.dumps(entries[0]["dp_event"])
        for number in ('"mean": 10.0', '"rdp": 2.0', '"count": 20'):
            name, value = number.split(": ")
            text = text.replace(number, f"{name}: {float(value) / 2 if '.' in value else 19}")
        assert text != json.dumps(entries[0]["dp_event"])
        entries[0]["dp_event"] = json.loads(text)

    changed_ledger(run, quieter)
    found = verify(run).first_failure
    assert found is not None
    assert found.item.startswith(("ledgers/0/head", "accounting/"))


def test_a_statement_that_forgets_the_others_does_not_hold(run: Path) -> None:
    data = json.loads((run / "statement.json").read_text())
    forged = put(data, ("accounting", "tuning", "method"), "none_data_independent")
    (run / "statement.json").write_text(json.dumps(sealed(forged)))
    found = verify(run).first_failure
    assert found is not None
    assert found.item == "accounting/tuning/method"


@pytest.mark.parametrize("covered", [True, False])
def test_a_run_that_does_not_fit_into_its_filter_has_no_claim(
    covered: bool, trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    entries = Ledger.load(folder / "ledger.jsonl").entries
    noted(folder, entries, before=recipe(folder, rdp=2.0 if covered else 1e-3), selected=True)
    claim = json.loads((folder / "statement.json").read_text())["claim_level"]
    assert claim == ("conditional" if covered else "none")
    assert verify(folder).ok


def test_a_winner_whose_other_trials_were_dropped_has_no_claim(
    trained: Path, tmp_path: Path
) -> None:
    """A new chain and a new statement of it, by somebody who leaves out what the others cost."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    entries = Ledger.load(folder / "ledger.jsonl").entries
    chose: Entry = {
        "kind": "evaluation",
        "description": "Exact metrics of all trials: this model was chosen",
        "rows": "test",
        "treatment": "not_covered",
        "details": {"chose_configuration": True},
    }
    claims = {}
    for kept in (3, 2, 0):
        noted(folder, entries, before=[*sweep(folder)[:kept], chose], selected=False)
        claims[kept] = json.loads((folder / "statement.json").read_text())["claim_level"]
        assert verify(folder).ok
    assert claims == {3: "conditional", 2: "none", 0: "none"}  # its test rows are declared


@pytest.mark.parametrize("told", [None, 2])
def test_a_run_that_tells_no_replays_holds_where_its_ledger_tells_none(
    told: int | None, trained: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(renewed({**record, "replayed": None})))
    entries = [
        replace(entry, details={**entry.details, "replayed": told})
        if entry.kind == "training_finished"
        else entry
        for entry in Ledger.load(folder / "ledger.jsonl").entries
    ]
    noted(folder, entries, before=selection(folder), selected=True)
    found = verify(folder).first_failure
    assert (None if found is None else found.item) == (
        None if told is None else "run.json/replayed"
    )
