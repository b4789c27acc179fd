"""Files from anywhere: read strictly, compared exactly, shown safely, and never a traceback."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from altering import containers, drop, failure, get, put, statement, statement_text
from hypothesis import given, settings
from hypothesis import strategies as st

from dpads.accounting import foreign
from dpads.accounting.canonical import digest
from dpads.accounting.sealing import sealed
from dpads.accounting.verification import Verification, verify_statement
from dpads.errors import VerificationError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the statement: Expected JSON"),
        ("{", "the statement: Expected JSON"),
        (b"\xff\xfe\x00", "the statement: Expected JSON"),
        (b"PK\x03\x04", "the statement: Expected JSON"),
        ("[]", "the statement: Expected an object"),
        ("null", "the statement: Expected an object"),
        ("{}", "schema_version: "),
        ('{"a": NaN}', "the statement: Expected JSON, which has no NaN"),
        ('{"a": [1e999]}', "a/0: expected a finite number"),
        ('{"a": 123456789012345678901234567890}', "a: expected an integer of at most 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "the statement: Expected JSON"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "c: the key is there twice"),
        ("[" * 40 + "]" * 40, "the statement: Expected JSON nested at most 32 deep"),
        ("[" * 100_000, "the statement: Expected JSON"),
        ('{"a": "\\ud800\\u001b[31m"}', "schema_version: "),
    ],
)  # fmt: skip
def test_what_is_no_statement_is_said_to_be_none(text: str | bytes, says: str) -> None:
    assert says in failure(text)


def test_too_long_a_text_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "LARGEST_TEXT", 100)
    assert "at most 100 bytes" in failure(statement_text("no noise"))
    with pytest.raises(VerificationError, match="got set"):
        foreign.check_plain({"a": {1, 2}})


def test_what_is_shown_cannot_move_the_cursor() -> None:
    data = statement("no noise")
    data["\x1b[2J\ud800"] = 1
    said = failure(data)
    assert said.isprintable()
    assert said.encode()


WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 2**63 - 1, -(10**18), 1e300, -1e300, 1e-320, 0.5, 3.0, "", "x", "\ud800",
    "\x1b[31m[/x]", [], {}, [[]], {"kind": "gaussian"}, [{"a": 1}], "a" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))]
)
def test_nothing_that_is_put_anywhere_raises(seed: int) -> None:
    draw = random.Random(seed)
    names = (
        "capped", "no noise", "joint", "truncated", "everything", "selected privately", "recipe",
        "chosen from a sweep",
    )  # fmt: skip
    bases = {name: statement(name) for name in names}
    places = {name: [p for p in containers(base) if p] for name, base in bases.items()}
    for _ in range(150):
        name = draw.choice(names)
        data, path = bases[name], draw.choice(places[name])
        kind = draw.random()
        if kind < 0.15:
            data = drop(data, path)
        elif kind < 0.3:
            data = put(data, path, copy.deepcopy(get(data, draw.choice(places[name]))))
        else:
            data = put(data, path, draw.choice(WRONG))
        found = verify_statement(sealed(data) if draw.random() < 0.7 else data)
        assert isinstance(found, Verification)
        assert json.dumps(found.to_dict())
        assert str(found.first_failure).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=60)
@given(JSON)
def test_no_json_raises(value: Any) -> None:
    assert failure(json.dumps(value))
    if isinstance(value, dict):
        assert failure(value)
        assert failure({**value, "schema_version": "0.3"})


def test_no_event_that_a_schema_accepts_raises() -> None:
    """Extreme numbers, stated alike wherever they stand: accounted, refused, never a traceback."""
    data = statement("public size")
    for kind in ("gaussian", "mixture_of_gaussians", "repeat_and_select", "composed", "no_op"):
        event = {"kind": kind, "noise_multiplier": 1e-300, "events": [], "event": {"kind": "x"}}
        data["accounting"]["entries"][0]["dp_event"] = event
        data["accounting"]["dp_event"] = event
        data["accounting"]["dp_event_sha256"] = digest(event)
        assert failure(sealed(data)).startswith("accounting/entries/0/dp_event: ")


@pytest.mark.parametrize(
    ("stated", "expected", "says"),
    [
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, "a/2: nothing is stated, 3 recomputed"),
        ({"a": None}, {}, "a: null is stated, nothing recomputed"),
        ({"a": 1}, {"a": True}, "a: 1 is stated, true recomputed"),
        ({"a": {"b": []}}, {"a": {"b": {}}}, "a/b: a list is stated, an object recomputed"),
        (f"{'x' * 99}y", f"{'x' * 99}z", 'the whole: "...XXy" is stated, "...XXz" recomputed'),
        ({"a": 1.0, "b": [2]}, {"a": 1, "b": [2.0]}, ""),
    ],
)  # fmt: skip
def test_where_two_values_differ(stated: Any, expected: Any, says: str) -> None:
    found = foreign.first_difference(stated, expected)
    assert ("" if found is None else f"{found.item}: {found}") == says.replace("XX", "x" * 20)
