"""Recomputing what a run or a statement claims: what `dpads verify` does.

A statement alone shows whether everything in it follows from the rest (`dpads.accounting.verification`).
A run's folder says more: what its statement was made of. So its ledger's chain and its files are
checked, the statement is made again from run.json and ledger.jsonl, and the pages from the statement.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpads import run_files as files
from dpads.accounting.earlier import GIVEN_WITH
from dpads.accounting.findings import Finding, Verification
from dpads.accounting.foreign import LARGEST_TEXT, first_difference, parse_json
from dpads.accounting.ledger import Ledger
from dpads.accounting.remaking import compared, made_by, other_versions
from dpads.accounting.statement import GuaranteeStatement
from dpads.accounting.verification import form_of, recomputed, until_it_fails, verify_statement
from dpads.errors import ConfigError, DpadsError, VerificationError
from dpads.plan import Plan
from dpads.record import RunRecord
from dpads.report import build_statement

__all__ = ["Finding", "Verification", "verify"]

# What reading plain data of the wrong shape can end with.
_UNREADABLE = (
    DpadsError, ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip


def verify(path: str | Path, *, on_progress: Callable[[str], None] | None = None) -> Verification:
    """Recomputes everything that a run's folder, or a statement alone, claims.

    Args:
        path: the folder of a run, or a statement in JSON.
        on_progress: called with what is recomputed next: a guarantee for users may take tens of
            seconds.

    Returns:
        What was recomputed, in order; it names the first item that does not hold.

    Raises:
        ConfigError: there is neither at that path.

    Guarantees:
        - A number that was altered in a statement does not hold, and its item is named.
        - A line that was altered in a ledger, moved, cut off or taken out does not hold.
        - A ledger and a plan that disagree on earlier runs, or a configuration with them, do not hold.
        - A model's file that is not the one that was trained does not hold.

    Examples:
        >>> verify("absent")
        Traceback (most recent call last):
        ...
        dpads.errors.ConfigError: absent: expected the folder of a run, or a statement in JSON.
    """
    path, watch = Path(path), on_progress or _silent
    if path.is_dir() and files.is_run(path):
        return Verification(tuple(_of_run(path, watch)))
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected the folder of a run, or a statement in JSON.{files.hint_of(path)}"
        )
    return verify_statement(_read(path), on_progress=on_progress)


def _silent(_: str) -> None:
    """Progress that nobody watches."""


def _of_run(folder: Path, watch: Callable[[str], None]) -> Iterator[Finding]:
    """Files, then the statement as they have it, then the statement by itself, then its pages."""
    ledger, record = None, None
    try:
        ledger = Ledger.load(folder / files.LEDGER)
        yield Finding(files.LEDGER, True, f"a chain of {len(ledger.entries)} entries")
    except _UNREADABLE as error:
        yield Finding(files.LEDGER, False, _reason(error, folder))
    try:
        record = RunRecord.from_dict(_object(folder / files.RUN))
        plan = Plan.from_dict(record.plan)
        if ledger is not None:
            yield _ran(record, plan, ledger)
            yield from _started(folder, ledger)
        yield from _artifacts(folder, record)
    except _UNREADABLE as error:
        yield Finding(files.RUN, False, f"no record of a run: {_reason(error, folder)}")
        record = None
    try:
        data = _object(folder / files.STATEMENT_JSON)
    except VerificationError as error:
        yield Finding(files.STATEMENT_JSON, False, _reason(error, folder))
        return
    form = form_of(data)
    yield form
    if not form.held:
        return
    if record is not None and ledger is not None:
        yield from until_it_fails(_from_files(data, plan, record, ledger, watch))
    held = True
    for finding in recomputed(data, watch):
        held = held and finding.held
        yield finding
    if held:
        yield from _pages(folder, data)


def _ran(record: RunRecord, plan: Plan, ledger: Ledger) -> Finding:
    """Iterations that ran are those that the ledger closed with, and no more than announced."""
    planned = plan.mechanism.iterations
    if record.executed > planned:
        return Finding(
            f"{files.RUN}/executed", False, f"{record.executed} ran, {planned} were announced."
        )
    closed = [entry.details for entry in ledger.entries if entry.kind == "training_finished"]
    if len(closed) != 1:
        return Finding(files.LEDGER, False, f"{len(closed)} entries say that training finished.")
    for key in ("executed", "replayed"):
        stated = getattr(record, key)
        different = first_difference(stated, closed[0].get(key), (files.RUN, key))
        if different is not None:
            return Finding(
                different.item,
                False,
                f"{different.stated} is stated, {different.expected} on the ledger",
            )
    return Finding(f"{files.RUN}/executed", True, f"{record.executed} of {planned} announced")


def _started(folder: Path, ledger: Ledger) -> Iterator[Finding]:
    """What training started from is the same in the configuration and on the ledger."""
    path = folder / files.CONFIG
    try:
        training = tomllib.loads(_read(path).decode()).get("training", {})
    except (OSError, ValueError):
        yield Finding(
            files.CONFIG, False, "missing or damaged: it says what training started from."
        )
        return
    noted = [
        entry.treatment == "public_data_only"
        for entry in ledger.entries
        if entry.kind == "earlier_run" and entry.description not in GIVEN_WITH.values()
    ]
    starts = training.get("start_from") is not None
    wanted = [training.get("start_from_public", False)] if starts else []
    if noted == wanted:
        if starts:
            yield Finding(
                files.CONFIG, True, "it starts from what the ledger has as an earlier run"
            )
        return
    what = "an" if starts else "no"
    called = " on public rows" if wanted == [True] else ""
    yield Finding(
        files.CONFIG,
        False,
        f"it starts from {what} earlier run{called}, and {files.LEDGER} says otherwise.",
    )


def _artifacts(folder: Path, record: RunRecord) -> Iterator[Finding]:
    """The released files are those that training wrote."""
    names = (files.PARAMETERS, files.MODEL)
    if set(record.artifacts) != set(names):
        yield Finding(f"{files.RUN}/artifacts", False, f"expected {' and '.join(names)}.")
        return
    for name in names:
        path = folder / name
        if not path.is_file():
            yield Finding(name, False, "there is no such file.")
            continue
        with path.open("rb") as file:
            held = hashlib.file_digest(file, "sha256").hexdigest() == record.artifacts[name]
        note = (
            "it is the file that was released" if held else "it is another file than was trained."
        )
        yield Finding(name, held, note)


def _from_files(
    data: Mapping[str, Any],
    plan: Plan,
    record: RunRecord,
    ledger: Ledger,
    watch: Callable[[str], None],
) -> Iterator[Finding]:
    """The statement is what run.json and ledger.jsonl make it."""

    def groups(done: int, of: int) -> None:
        watch(f"computing the guarantee for users: {done} of {of} deltas")

    watch("making the statement again")
    try:
        again = build_statement(
            plan, record, ledger, created_at=data["created_at"], on_progress=groups
        )
    except _UNREADABLE as error:
        yield Finding(files.RUN, False, f"no statement follows from it: {error}")
        return
    others = other_versions(data)
    for finding in compared(data, again.data, others, first="ledgers"):
        if not finding.held:
            yield finding
            return
    different = first_difference(data["checks"], again.data["checks"], ("checks",))
    if different is not None:
        yield Finding(different.item, False, f"{different}{made_by(others)}")
        return
    yield Finding(files.STATEMENT_JSON, True, f"what {files.RUN} and {files.LEDGER} make it")


def _pages(folder: Path, data: Mapping[str, Any]) -> Iterator[Finding]:
    """The pages for people say what the statement says."""
    from dpads.accounting.page import to_html

    for name, render in ((files.STATEMENT_MD, _markdown), ("statement.html", to_html)):
        path = folder / name
        if not path.is_file():
            continue
        held = path.read_bytes() == render(data).encode()
        yield Finding(
            name, held, "it says what statement.json says" if held else "it says something else."
        )


def _markdown(data: Mapping[str, Any]) -> str:
    """The statement for people."""
    return GuaranteeStatement(data).to_markdown()


def _object(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    if not path.is_file():
        raise VerificationError("there is no such file.")
    value = parse_json(_read(path))
    if not isinstance(value, dict):
        raise VerificationError("Expected an object in JSON, got something else.")
    return value


def _read(path: Path) -> bytes:
    """A file, no further than anybody would read."""
    with path.open("rb") as file:
        return file.read(LARGEST_TEXT + 1)


def _reason(error: Exception, folder: Path) -> str:
    """What went wrong, without the folder's path."""
    if isinstance(error, DpadsError):
        return str(error).replace(f"{folder}/", "")
    return f"it has another shape ({type(error).__name__})."
