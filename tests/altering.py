"""What tests of verification share: statements, every leaf of them, and how to alter one digit."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from statement_runs import EVERYTHING, PUBLIC, another, run_inputs, statement_of

from dpads.accounting.canonical import digest
from dpads.accounting.statement import joint_statement
from dpads.accounting.verification import verify_statement

Path = tuple[str | int, ...]
Statement = dict[str, Any]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value that is no container, with its path."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from leaves(part, (*path, number))
    else:
        yield path, value


def renewed(record: Statement) -> Statement:
    """A run's record with the digest that belongs to what it says now."""
    bare = {key: value for key, value in record.items() if key != "digest"}
    return {**bare, "digest": digest(bare)}


def containers(value: Any, path: Path = ()) -> Iterator[Path]:
    """The path of everything, containers included."""
    yield path
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        yield from containers(part, (*path, key))


def numbers(data: Mapping[str, Any]) -> list[tuple[Path, float]]:
    """Every number of a statement."""
    return [
        (p, v) for p, v in leaves(data) if isinstance(v, int | float) and not isinstance(v, bool)
    ]


def get(data: Any, path: Path) -> Any:
    """What is at a path."""
    for key in path:
        data = data[key]
    return data


def put(data: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    result: Any = copy.deepcopy(dict(data))
    get(result, path[:-1])[path[-1]] = value
    return dict(result)


def drop(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy without what is at a path."""
    result: Any = copy.deepcopy(dict(data))
    del get(result, path[:-1])[path[-1]]
    return dict(result)


def altered(value: float, *, last: bool) -> float:
    """The number with its first digit, or its last, replaced by the next one that makes another."""
    found = re.fullmatch(r"([0-9.]+)(.*)", repr(value))
    assert found is not None
    digits, rest = found.groups()
    places = [i for i, c in enumerate(digits) if c.isdigit()]
    place = places[-1] if last else next((i for i in places if digits[i] != "0"), places[-1])
    for step in range(1, 10):
        digit = str((int(digits[place]) + step) % 10)
        other = type(value)(digits[:place] + digit + digits[place + 1 :] + rest)
        if other != value:
            return other
    raise AssertionError(f"no digit of {value!r} changes it")


def text_of(path: Path) -> str:
    """A path as verification writes it."""
    return "/".join(str(part) for part in path)


@cache
def statement_text(name: str) -> str:
    """A statement of `statement_runs`, or of two of its runs, in JSON."""
    if name == "joint":
        runs = [
            run_inputs(run="a", human=EVERYTHING),
            another(run_inputs(run="b", reference=True, privacy={**PUBLIC, "epsilon": 1.0})),
        ]
        return joint_statement(runs).to_json()
    return statement_of(name).to_json()


def statement(name: str = "capped") -> Statement:
    """A statement as plain data, free to change."""
    return dict(json.loads(statement_text(name)))


def failure(data: Mapping[str, Any] | str | bytes) -> str:
    """The first item that does not hold; "" where everything does."""
    found = verify_statement(data)
    assert found.ok == (found.first_failure is None)
    return "" if found.first_failure is None else str(found.first_failure)
