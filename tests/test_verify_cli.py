"""`dpads verify` and `dpads statement`: what a reviewer types, sees and gets back as an exit code."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from altering import altered, containers, numbers, put, renewed, text_of
from cli_calls import CONFIG, done, dpads_command
from typer.testing import CliRunner

import dpads
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.sealing import sealed
from dpads.cli import app
from dpads.verifying import verify

FILES = (
    "run.json",
    "ledger.jsonl",
    "statement.json",
    "model.json",
    "model.safetensors",
    "statement.md",
)


@pytest.fixture(scope="module")
def folder(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs and two runs on the same rows."""
    folder = tmp_path_factory.mktemp("verify")
    for name in ("train.parquet", "test.parquet"):
        shutil.copy(log_folder / name, folder)
    config = folder / "config.toml"
    config.write_text(CONFIG)
    done("prepare", folder / "train.parquet", "--schema", config, "--out", folder / "store")
    for name in ("a", "b"):
        done("train", config, "--out", folder / name, "--set", "data.train=store")
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A run, free to change."""
    return Path(shutil.copytree(folder / "a", tmp_path / "run"))


def failure(path: Path) -> str:
    """The first item of a run that does not hold; "" where everything does."""
    first = verify(path).first_failure
    return "" if first is None else str(first)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file, and renews run.json's digest as a forger would."""
    data = json.loads(path.read_text())
    data = change(data) or data
    if path.name == "run.json":
        data = renewed(data)
    path.write_text(json.dumps(data))


def test_a_run_and_its_statement_hold(run: Path, tmp_path: Path) -> None:
    text = done("verify", run)
    lines = text.splitlines()
    assert {line.split()[0] for line in lines} == {"holds"}
    items = [line.split()[1].rstrip(":") for line in lines]
    for item in (
        *FILES[1:],
        "guarantees/0",
        "checks",
        "claim_level",
        "headline",
        "section_digests",
    ):
        assert item in items
    assert any("epsilon 3.00 at delta 1e-08" in line for line in lines)
    assert done("verify", run / "statement.json").count("holds") == len(lines) - 6
    public = tmp_path / "public.json"
    done("statement", run, "--format", "json", "--public", "--out", public)
    assert "FAILS" not in done("verify", public)
    assert dpads.verify(run).ok


def test_a_run_still_holds_after_it_was_evaluated(folder: Path, run: Path) -> None:
    done("evaluate", run, folder / "test.parquet")
    assert failure(run) == ""
    shutil.copytree(run, run.with_name("copied"))
    assert failure(run.with_name("copied")) == ""


def test_json_has_every_item(run: Path) -> None:
    found = json.loads(done("verify", run, "--json"))
    assert found["ok"] is True
    assert found["first_failure"] is None
    assert found["items"][0] == {
        "item": "ledger.jsonl", "held": True, "note": "a chain of 4 entries",
    }  # fmt: skip
    (run / "model.json").write_text("{}")
    result = dpads_command("verify", run, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["first_failure"].startswith("model.json: ")


def _cut(run: Path) -> None:
    ledger = run / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))


def _without_a_line(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(lines[0] + lines[2])


def _rewritten_ledger(run: Path) -> None:
    """A whole new chain, made by somebody who knows how, without the last entry's access."""
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_bytes().splitlines()]
    lines[-1]["entry"]["rows"] = "none"
    bare = {key: lines[-1][key] for key in ("entry", "index", "previous")}
    lines[-1] = {**bare, "sha256": digest(bare)}
    (run / "ledger.jsonl").write_bytes(b"".join(canonical_bytes(line) + b"\n" for line in lines))


def _swapped_model(run: Path) -> None:
    shutil.copy(run.parent / "other.safetensors", run / "model.safetensors")


def _fewer_iterations(run: Path) -> None:
    edit(run / "run.json", lambda d: d.update(executed=19))


def _less_noise_of_a_release(run: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["mechanism"]["releases"][0]["noise_multiplier"] *= 0.5

    edit(run / "statement.json", change)


def _another_release(run: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["plan"]["releases"][0]["noise_multiplier"] *= 0.5

    edit(run / "run.json", change)


def _no_release(run: Path) -> None:
    edit(run / "run.json", lambda d: d["plan"].update(releases=[]))


def _more_than_planned(run: Path) -> None:
    edit(run / "run.json", lambda d: d.update(executed=21))


def _another_plan(run: Path) -> None:
    edit(run / "run.json", lambda d: d["plan"]["mechanism"].update(l2_clip_norm=2.0))


def _another_clip_norm(run: Path) -> None:
    """Nothing else in a statement determines the clip norm: the run's record does."""
    edit(run / "statement.json", lambda d: sealed(put(d, ("mechanism", "clipping", "norm"), 0.5)))


def _another_epsilon(run: Path) -> None:
    place = ("guarantees", 0, "value", "epsilon")
    edit(run / "statement.json", lambda d: sealed(put(d, place, 2.99)))


def _page(run: Path) -> None:
    page = (run / "statement.md").read_text()
    (run / "statement.md").write_text(page.replace("(3.00,", "(1.00,"))


def _another_page(run: Path) -> None:
    (run / "statement.html").write_text("<p>Perfectly private.</p>")


def _more_noise(run: Path) -> None:
    """The record is changed: the statement is not what it makes."""
    edit(run / "run.json", lambda d: d["plan"]["mechanism"].update(noise_multiplier=9.0))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "ledger.jsonl: it does not|ledgers/0/entries: 4 is stated, 3 recomputed"),
        (_without_a_line, "ledger.jsonl: ledger.jsonl, line 2: it does not follow"),
        (_rewritten_ledger, "ledgers/0/head: "),
        (_swapped_model, "model.safetensors: it is another file than was trained"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors: there is no such"),
        (lambda run: (run / "model.json").write_text("{}"), "model.json: it is another file"),
        (_fewer_iterations, "run.json/executed: 19 is stated, 20 on the ledger"),
        (_more_than_planned, "run.json/executed: 21 ran, 20 were announced"),
        (_another_plan, "mechanism/clipping/norm: 1.0 is stated, 2.0 recomputed"),
        (_another_clip_norm, "mechanism/clipping/norm: 0.5 is stated, 1.0 recomputed"),
        (_another_epsilon, "guarantees/0/value/epsilon: 2.99 is stated, 3.0 recomputed"),
        (_more_noise, "mechanism/noise/noise_multiplier: "),
        (_less_noise_of_a_release, "mechanism/releases/0/noise_multiplier: "),
        (_another_release, "mechanism/releases/0/noise_multiplier: "),
        (_no_release, "mechanism/releases: "),
        (_page, "statement.md: it says something else"),
        (_another_page, "statement.html: it says something else"),
        (lambda run: (run / "statement.json").unlink(), "statement.json: there is no such file"),
        (lambda run: (run / "statement.json").write_text("{"), "statement.json: Expected JSON"),
        (lambda run: (run / "ledger.jsonl").unlink(), "ledger.jsonl: "),
        (lambda run: (run / "ledger.jsonl").write_text("[" * 100_000 + "\n"), "ledger.jsonl: "),
        (lambda run: (run / "ledger.jsonl").write_bytes(b"\xff\n"), "ledger.jsonl: "),
        (lambda run: (run / "run.json").write_text("[]"), "run.json: no record of a run"),
        (
            lambda run: (run / "run.json").write_text('{"format": 1}'),
            "run.json: no record of a run",
        ),
        (lambda run: edit(run / "statement.json", lambda d: {**d, "x": 1}), "the statement: Addit"),
    ],
)
def test_damage_is_found_and_named(
    folder: Path, run: Path, damage: Callable[[Path], object], says: str
) -> None:
    shutil.copy(folder / "b" / "model.safetensors", run.parent / "other.safetensors")
    damage(run)
    result = dpads_command("verify", run)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert any(last.startswith(f"error: {part}") for part in says.split("|")), last
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILS")]
    assert failed[0].split(maxsplit=1)[1] == last.removeprefix("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True], ids=["digests left", "digests renewed"])
def test_beside_a_run_no_number_of_its_statement_can_be_altered(run: Path, forged: bool) -> None:
    kept = (run / "statement.json").read_text()
    data = json.loads(kept)
    for path, value in numbers(data):
        other = put(data, path, altered(value, last=True))
        (run / "statement.json").write_text(json.dumps(sealed(other) if forged else other))
        first = verify(run).first_failure
        assert first is not None, path
        if "rdp_values" not in path:
            assert first.item == text_of(path)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 8))]
)
def test_no_damage_to_any_file_raises(run: Path, seed: int) -> None:
    draw = random.Random(seed)
    kept = {name: (run / name).read_bytes() for name in FILES}
    for _ in range(25):
        name = draw.choice(FILES)
        data = bytearray(kept[name])
        for _ in range(draw.choice([1, 1, 3])):
            start = draw.randrange(len(data))
            piece = draw.choice(
                [
                    b"",
                    b"0",
                    b"9",
                    b"{",
                    b"null",
                    b"NaN",
                    b'"',
                    b"[]",
                    b"\xff",
                    b"-1",
                    b"1e999",
                    b"true",
                ]
            )
            data[start : start + draw.choice([0, 1, 1, 40])] = piece
        (run / name).write_bytes(bytes(data))
        assert not verify(run).ok or bytes(data) == kept[name], (name, seed)
        (run / name).write_bytes(kept[name])
    assert verify(run).ok


@pytest.mark.parametrize("name", ["train_fingerprint", "test_fingerprint", "train_store"])
def test_what_is_no_digest_of_rows_fails(run: Path, name: str) -> None:
    """Nothing else in the folder says which rows the test rows were: a forger can name others."""
    edit(run / "run.json", lambda d: d | {name: "1fd-160c"})
    failure = verify(run).first_failure
    assert failure is not None
    assert name in failure.note


@pytest.mark.slow
def test_any_value_of_the_record_that_was_changed_fails(run: Path) -> None:
    data = json.loads((run / "run.json").read_text())
    for path, value in numbers(data):
        (run / "run.json").write_text(json.dumps(put(data, path, altered(value, last=True))))
        assert "run.json" in failure(run), path


@pytest.mark.parametrize(
    "shift", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))]
)
@pytest.mark.parametrize("name", ["run.json", "statement.json"])
def test_no_json_in_a_runs_files_raises(run: Path, name: str, shift: int) -> None:
    wrong = [None, "x", [], {}, -1, 10**30]
    data = json.loads((run / name).read_text())
    for number, path in enumerate(p for p in containers(data) if 0 < len(p) <= 3):
        other = put(data, path, wrong[(number + shift) % len(wrong)])
        if name == "statement.json" and len(path) > 1:
            continue
        (run / name).write_text(json.dumps(renewed(other) if name == "run.json" else other))
        verify(run)


@pytest.mark.parametrize("arguments", [["absent"], ["."], ["a.txt/b"], []], ids=str)
def test_a_bad_path_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("")
    result = dpads_command("verify", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_any_file_is_read_as_a_statement(run: Path) -> None:
    for name in ("model.safetensors", "ledger.jsonl", "run.json", "config.toml"):
        result = dpads_command("verify", run / name)
        assert result.exit_code == 1
        assert "error: " in result.stderr


def test_a_terminal_gets_a_table_and_no_markup_of_a_forger(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from dpads import cli_results

    def terminal(*, stderr: bool = False) -> Console:
        return Console(stderr=stderr, force_terminal=True, width=100, color_system=None)

    monkeypatch.setattr(cli_results, "console", terminal)
    edit(run / "statement.json", lambda d: {**d, "[/red][bold]x": "[/]"})
    cli_results._print_findings(verify(run).findings)
    shown = capsys.readouterr().out
    assert "[/red][bold]x" in shown
    assert "fails" in shown
    assert "Recomputed" in shown


def test_several_runs_are_stated_together(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint.json"
    done("statement", folder / "a", folder / "b", "--format", "json", "--out", out)
    data = json.loads(out.read_text())
    assert len(data["ledgers"]) == 2
    alone = json.loads((folder / "a" / "statement.json").read_text())
    epsilon, one = (d["guarantees"][0]["value"]["epsilon"] for d in (data, alone))
    assert one < epsilon < 2 * one
    assert "FAILS" not in done("verify", out)
    text = done("statement", folder / "a", folder / "b").replace("\n>", "")
    assert "2 training runs" in text
    twice = dpads_command("statement", folder / "a", folder / "a")
    assert twice.exit_code == 2
    assert "again" in twice.stderr


def test_statements_in_every_format(folder: Path, tmp_path: Path) -> None:
    run = folder / "a"
    assert done("statement", run).startswith("# ")
    page = done("statement", run, "--format", "html")
    assert page.lstrip().lower().startswith("<!doctype html>")
    internal = json.loads(done("statement", run, "--format", "json"))
    public = json.loads(done("statement", run, "--format", "json", "--public"))
    assert (internal["visibility"], public["visibility"]) == ("internal", "public")
    assert "public copy" in done("statement", run, "--public")
    out = tmp_path / "page.html"
    assert done("statement", run, "--format", "html", "--out", out) == ""
    assert out.read_text().strip() == page.strip()
    again = dpads_command("statement", run, "--out", out)
    assert again.exit_code == 2
    assert "exists" in again.stderr


@pytest.mark.parametrize(
    ("file", "hint"), [("sweep.toml", "trials/0001"), ("recipe.json", "It is a recipe")]
)
def test_a_folder_of_several_runs_is_told_which_one_to_name(
    tmp_path: Path, file: str, hint: str
) -> None:
    (tmp_path / file).write_text("")
    for command in ("verify", "statement"):
        result = CliRunner().invoke(app, [command, str(tmp_path)])
        assert result.exit_code == 2
        assert hint in result.stderr.replace("\n", "")
