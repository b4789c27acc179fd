"""A statement recomputed by a stranger, from nothing but the statement.

Whatever follows from something else in the statement is computed again first, so that a changed
number is found also where somebody renewed the digests after changing it. What follows from nothing
else (a clip norm, a name, a file's hash) is covered by the digests of its section: they show that it
was altered, not that it was forged. A run's folder settles those too: see `dpads.verifying`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dpads.accounting.agreement import agreements
from dpads.accounting.findings import Finding, Verification
from dpads.accounting.foreign import check_plain, parse_json
from dpads.accounting.remaking import remade
from dpads.accounting.sealing import first_altered
from dpads.accounting.sections import SCHEMA_VERSION
from dpads.accounting.statement import load_schema
from dpads.errors import DpadsError, VerificationError

__all__ = ["Finding", "Verification", "verify_statement"]


def verify_statement(
    data_or_text: Mapping[str, Any] | str | bytes,
    *,
    on_progress: Callable[[str], None] | None = None,
) -> Verification:
    """Recomputes everything that follows from something else in a statement.

    A guarantee for users may take tens of seconds: it is computed again, never read from a cache.

    Where dpads, dp-accounting, NumPy and SciPy are of the versions that made the statement, every
    figure has to be equal. Where one is not, a figure may also be larger than the recomputed one: it
    is an upper bound, and another version's may be looser. It may never be smaller.

    Args:
        data_or_text: The statement as plain data, or as JSON.
        on_progress: Called with what is recomputed next, in a few words.

    Returns:
        What was recomputed; it names the first item that does not hold. Nothing is raised, whatever
        the input is.

    Guarantees:
        - An altered number is found: recomputed where anything else in the statement determines it,
          by the digests where nothing does.
        - A figure that is smaller than the recomputed one never holds.
    """
    try:
        data = _plain(data_or_text)
    except VerificationError as error:
        return Verification((Finding("the statement", False, str(error)),))
    return Verification(tuple(_findings(data, on_progress or _silent)))


def _silent(_: str) -> None:
    """Progress that nobody watches."""


def _plain(data_or_text: Mapping[str, Any] | str | bytes) -> dict[str, Any]:
    """A statement as strict JSON has it."""
    if isinstance(data_or_text, Mapping):
        data = dict(data_or_text)
        check_plain(data)
        return data
    value = parse_json(data_or_text)
    if not isinstance(value, dict):
        raise VerificationError("Expected an object in JSON, got something else.")
    return value


def _findings(data: Mapping[str, Any], on_progress: Callable[[str], None]) -> Iterator[Finding]:
    """Form first: everything else needs it."""
    form = form_of(data)
    yield form
    if form.held:
        yield from recomputed(data, on_progress)


def recomputed(data: Mapping[str, Any], on_progress: Callable[[str], None]) -> Iterator[Finding]:
    """What follows from something else, up to the first failure; then the digests.

    Args:
        data: A statement that its schema accepts.
        on_progress: Called with what is recomputed next, in a few words.
    """
    on_progress("recomputing the event")
    yield from until_it_fails(_from_itself(data, on_progress))
    altered = first_altered(data)
    if altered is None:
        note = (
            "every item is what was sealed; of clip norm, divisor and names nothing else shows it"
        )
        yield Finding("section_digests", True, note)
    elif altered == "digest":
        yield Finding(altered, False, "it is not that of the other items.")
    else:
        yield Finding(altered, False, "it was altered: section_digests has another's digest.")


def _from_itself(data: Mapping[str, Any], on_progress: Callable[[str], None]) -> Iterator[Finding]:
    """What follows from something else: first what is quick and names the number."""
    yield from agreements(data)
    yield from remade(data, on_progress)


def until_it_fails(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Findings up to the first failure, on which the others would build; refusals are failures."""
    from dp_accounting.privacy_accountant import UnsupportedEventError

    try:
        for finding in findings:
            yield finding
            if not finding.held:
                return
    except VerificationError as error:
        item, colon, note = str(error).partition(": ")
        yield Finding(item if colon else "the statement", False, note if colon else str(error))
    except (DpadsError, UnsupportedEventError, ArithmeticError, MemoryError) as error:
        yield Finding(
            "accounting/dp_event",
            False,
            f"it cannot be accounted ({type(error).__name__}): {error}",
        )


def form_of(data: Mapping[str, Any]) -> Finding:
    """Whether the statement is as the schema has it; if not, the first field that is not."""
    from jsonschema import Draft202012Validator, validators

    stated = data.get("schema_version")
    if stated != SCHEMA_VERSION:
        return Finding(
            "schema_version",
            False,
            f'expected "{SCHEMA_VERSION}", the version that this dpads verifies, got '
            f"{stated!r:.50}.",
        )
    whole = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole)
    strict = validators.extend(Draft202012Validator, type_checker=whole)
    errors = strict(load_schema()).iter_errors(data)
    first = min(errors, key=lambda e: [str(part) for part in e.absolute_path], default=None)
    if first is None:
        return Finding("schema_version", True, "no field is unknown, missing or of another kind")
    where = "/".join(str(part) for part in first.absolute_path)
    return Finding(where or "the statement", False, f"{first.message:.300}")


def _is_whole(_: Any, value: object) -> bool:
    """An integer is one in Python too: 3.0, which JSON Schema would accept, is none."""
    return isinstance(value, int) and not isinstance(value, bool)
