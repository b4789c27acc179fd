"""Plain data that somebody else wrote: read strictly, compared value by value.

A statement may come from anybody. Whatever is in the file, reading it ends with plain data or with
a `VerificationError`: never with a number that Python and the next reader understand differently
(a key that is there twice, NaN, an integer beyond every float), and never with a traceback.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from dpads.errors import VerificationError

LARGEST_TEXT = 16 * 2**20
"""Bytes of JSON beyond which nothing is read: a statement has some ten thousand."""

_LARGEST_INTEGER = 2**63
_DEEPEST = 32
_SHOWN = 60
_ABSENT = object()


def parse_json(text: str | bytes) -> Any:
    """Strict JSON.

    Args:
        text: The text, or its bytes.

    Returns:
        Plain data: every number finite and within 64 bits, every key once, nested 32 deep at most.

    Raises:
        VerificationError: It is anything else; the message says where.
    """
    if len(text) > LARGEST_TEXT:
        raise VerificationError(
            f"Expected JSON of at most {LARGEST_TEXT:,} bytes, got {len(text):,}."
        )
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise VerificationError("Expected JSON, got something else.") from None
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Refuses what JSON does not have, and numbers that readers understand differently.

    Raises:
        VerificationError: The value holds such a thing; the message says where.
    """
    for path, part in _walk(value, (), _DEEPEST):
        where = path_text(path)
        if isinstance(part, float) and not math.isfinite(part):
            raise VerificationError(f"{where}: expected a finite number.")
        if isinstance(part, int) and abs(part) >= _LARGEST_INTEGER:
            raise VerificationError(f"{where}: expected an integer of at most 64 bits.")
        if part is not None and not isinstance(part, bool | int | float | str | list | dict):
            raise VerificationError(f"{where}: expected JSON, got {type(part).__name__}.")


@dataclass(frozen=True)
class Difference:
    """Where two values first differ.

    Attributes:
        item: Keys and positions from the outside in, joined by slashes.
        stated: What is there, as text for a message.
        expected: What belongs there, likewise.
    """

    item: str
    stated: str
    expected: str

    def __str__(self) -> str:
        return f"{self.stated} is stated, {self.expected} recomputed"


def first_difference(
    stated: Any,
    expected: Any,
    path: tuple[str | int, ...] = (),
    *,
    at_least: frozenset[str] = frozenset(),
) -> Difference | None:
    """The first place where two values differ, in the expected value's order; None if nowhere.

    1 and 1.0 are equal, as they are in JSON; true and 1 are not.

    Args:
        stated: What somebody wrote.
        expected: What belongs there.
        path: Where both are.
        at_least: Keys under which a stated number may be larger than the expected one.
    """
    if isinstance(stated, Mapping) and isinstance(expected, Mapping):
        keys = [str(key) for key in dict.fromkeys([*expected, *stated])]
        pairs = [(k, stated.get(k, _ABSENT), expected.get(k, _ABSENT)) for k in keys]
        return _first_of(pairs, path, at_least)
    if isinstance(stated, list) and isinstance(expected, list):
        sides = zip_longest(stated, expected, fillvalue=_ABSENT)
        parts = ((number, one, other) for number, (one, other) in enumerate(sides))
        return _first_of(parts, path, at_least)
    if isinstance(stated, bool) == isinstance(expected, bool):
        numbers = isinstance(stated, int | float) and isinstance(expected, int | float)
        if stated == expected or (numbers and stated > expected and not at_least.isdisjoint(path)):
            return None
    return Difference(path_text(path), _shown(stated, expected), _shown(expected, stated))


def _first_of(
    pairs: Iterable[tuple[str | int, Any, Any]],
    path: tuple[str | int, ...],
    at_least: frozenset[str],
) -> Difference | None:
    """The first difference among parts of two values."""
    for key, stated, expected in pairs:
        found = first_difference(stated, expected, (*path, key), at_least=at_least)
        if found is not None:
            return found
    return None


def path_text(path: Sequence[str | int]) -> str:
    """Keys and positions joined by slashes; what cannot be printed is escaped."""
    return printable("/".join(str(part) for part in path)) or "the whole"


def printable(text: str) -> str:
    """A text that cannot move the cursor, colour the screen or fail to be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any, beside: Any) -> str:
    """A value in a message: a long text from just before the place where it differs."""
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if not isinstance(value, str):
        return json.dumps(value)
    start = 0
    if isinstance(beside, str) and len(value) > _SHOWN:
        same = next((i for i, (a, b) in enumerate(zip(value, beside, strict=False)) if a != b), 0)
        start = max(0, same - _SHOWN // 3)
    part = value[start : start + _SHOWN]
    before, after = "..." if start else "", "..." if start + _SHOWN < len(value) else ""
    return f'"{before}{printable(part)}{after}"'


def _walk(
    value: Any, path: tuple[str | int, ...], levels: int
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every part of a value with its path, refusing what is nested too deep."""
    if levels < 0:
        raise VerificationError(f"Expected JSON nested at most {_DEEPEST} deep.")
    yield path, value
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise VerificationError(f"{path_text(path)}: expected texts as keys.")
            yield from _walk(part, (*path, key), levels - 1)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _walk(part, (*path, number), levels - 1)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of whose keys is there once."""
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise VerificationError(
            f"{printable(twice)}: the key is there twice, and readers would take one or the other."
        )
    return result


def _no_constant(name: str) -> Any:
    """NaN and the infinities, which JSON does not have."""
    raise VerificationError(f"Expected JSON, which has no {name}.")
