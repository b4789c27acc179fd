"""README and guides are run: their Python, their commands, their configuration and their links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from processes import ended, free_port, start
from small_recipes import small_grids
from typer.testing import CliRunner

from dpads import cli_bench
from dpads.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "guides").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[tuple[str, str]]:
    """Each `$ command` of a console block with the output that the document shows."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2].strip("\n")) for part in parts]


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def assert_processes_end(block: str, folder: Path) -> None:
    """Commands that belong together are started together, at a port that is free."""
    port = f":{free_port()}"
    started = [
        start(*shlex.split(re.sub(r":\d{4,5}\b", port, command))[1:], folder=folder)
        for command, _ in commands(block)
    ]
    found = [ended(one) for one in started]
    for one, (command, shown) in zip(found, commands(block), strict=True):
        assert one.code == 0, f"{command}\n{one.output}"
        for line in lines_of(shown):
            assert re.sub(r":\d{4,5}\b", port, line) in one.output


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_reader_can_follow_it(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BENCH_SECONDS", "PLAN_SECONDS"):
        monkeypatch.setattr(cli_bench, name, 0.01)
    small_grids(monkeypatch)
    namespace: dict[str, Any] = {}
    ran = 0
    for language, body in BLOCK.findall(document.read_text()):
        if language == "toml":
            named = re.match(r"# (\S+\.toml)$", body, re.MULTILINE)
            Path(named[1] if named else "ads.toml").write_text(body)
        elif language == "python":
            exec(compile(body, document.name, "exec"), namespace)  # noqa: S102 (the documents are ours)
            ran += 1
        elif language == "text":
            continue  # what somebody would see, or would run on several machines
        elif language == "console" and "--process-id" in body:
            assert_processes_end(body, tmp_path)
            ran += 1
        elif language == "sh":
            targets = (ROOT / "Makefile").read_text()
            for name in re.findall(r"^make (\S+)", body, re.MULTILINE):
                assert f"\n{name}: " in targets
                ran += 1
        else:
            assert language == "console", language
            for command, shown in commands(body):
                words = shlex.split(command)
                assert words[0] == "dpads"
                result = CliRunner(env={"COLUMNS": "100"}).invoke(app, words[1:])
                assert result.exit_code == 0, f"{command}\n{result.output}"
                ran += 1
                # the one output that nothing random and no clock enters
                if words[1] == "plan" and "--config" not in words and shown:
                    assert lines_of(result.stdout) == lines_of(shown)
    assert ran >= 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def test_every_command_is_documented() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"dpads {name}" in text or f"make {name}" in text or f"dpads.{name}(" in text, name
