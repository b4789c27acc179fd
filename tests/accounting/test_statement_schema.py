"""The schema: every field of it is filled by a run, and the parts of a statement agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from statement_runs import STATEMENTS, statement_of

from dpads.accounting import events
from dpads.accounting.canonical import digest
from dpads.accounting.headline import headline_of
from dpads.accounting.limits import limitations_of
from dpads.accounting.nist import nist_view_of
from dpads.accounting.public import public_copy
from dpads.accounting.sealing import first_altered, sealed
from dpads.accounting.statement import GuaranteeStatement, check_schema, load_schema

SCHEMA = load_schema()
# Events are trees of their own, checked where they are built; these two have free keys.
FREE = {"#/$defs/event", "versions", "section_digests"}


def fields_of(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every property that the schema names, as a path; items of lists are `[]`."""
    reference = schema.get("$ref")
    if reference in FREE or path.rpartition(".")[2] in FREE:
        return
    if reference is not None:
        schema = SCHEMA["$defs"][reference.rpartition("/")[2]]
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from fields_of(part, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield f"{path}[]"
        yield from fields_of(schema["items"], f"{path}[]")


def filled_in(value: Any, path: str = "") -> Iterator[str]:
    """Every path of a statement that holds something."""
    if isinstance(value, dict):
        for name, part in value.items():
            if part not in (None, "", [], {}):
                yield f"{path}.{name}"
            yield from filled_in(part, f"{path}.{name}")
    elif isinstance(value, list):
        for part in value:
            yield f"{path}[]"
            yield from filled_in(part, f"{path}[]")


def test_every_field_of_the_schema_is_filled_by_a_run() -> None:
    filled = {path for name in STATEMENTS for path in filled_in(statement_of(name).data)}
    wanted = set(fields_of(SCHEMA))
    assert len(wanted) > 200
    assert wanted <= filled


def test_one_run_fills_every_field_that_people_supply() -> None:
    statement = statement_of("everything")
    assert statement.data["missing"] == []
    assert "*missing*" not in statement.to_markdown()
    assert {"G1", "G1p", "G1r", "G1z", "G1g", "G2", "G2p"} == {
        g["id"] for g in statement.data["guarantees"]
    }


@pytest.mark.parametrize("name", STATEMENTS)
def test_headline_limits_and_nist_view_follow_from_the_other_items(name: str) -> None:
    data = statement_of(name).data
    rest = {
        key: value
        for key, value in data.items()
        if key not in ("headline", "limitations", "nist_view", "section_digests", "digest")
    }
    assert headline_of(rest) == data["headline"]
    assert limitations_of(rest) == data["limitations"]
    assert nist_view_of(rest) == data["nist_view"]


@pytest.mark.parametrize("name", STATEMENTS)
def test_events_are_those_of_the_entries_and_accesses_point_at_them(name: str) -> None:
    data = statement_of(name).data
    accounting = data["accounting"]
    every = [e["dp_event"] for e in accounting["entries"] for _ in range(e["count"])]
    assert events.composed(every) == accounting["dp_event"]
    assert digest(accounting["dp_event"]) == accounting["dp_event_sha256"]
    assert {e["run"] for e in accounting["entries"]} <= set(range(len(data["ledgers"])))
    ids = [e["id"] for e in accounting["entries"]]
    assert ids == [f"E{number + 1}" for number in range(len(ids))]
    accesses = data["definition"]["data_accesses"]
    named = [a["dp_event"] for a in accesses if "dp_event" in a]
    for item in accounting.get("selected", []):  # they name the entry that covers them
        named.remove(item["covered_by"])
    assert sorted(named) == sorted(ids)
    for group in accounting.get("group_events", []):
        assert events.for_group(accounting["dp_event"], group["group_size"]) == group["dp_event"]
        assert digest(group["dp_event"]) == group["dp_event_sha256"]
    stated = {g["group_size"] for g in data["guarantees"] if g["group_size"] > 1}
    assert stated == {g["group_size"] for g in accounting.get("group_events", [])}


def test_equal_neighbours_on_a_ledger_are_one_entry() -> None:
    entries = statement_of("counted").data["accounting"]["entries"]
    assert [(e["id"], e["kind"], e["count"]) for e in entries] == [
        ("E1", "training", 1),
        ("E2", "dp_count", 2),
    ]
    accesses = statement_of("counted").data["definition"]["data_accesses"]
    assert "(2 times)" in next(a["description"] for a in accesses if a.get("dp_event") == "E2")


def test_the_law_of_a_secret_number_of_runs_is_stated() -> None:
    tuning = statement_of("best of some").data["accounting"]["tuning"]
    assert tuning == {
        "method": "repeat_and_select",
        "runs": 1,
        "run_count_distribution": "truncated_negative_binomial",
        "mean": 5.0,
        "shape": 0.5,
        "only_best_released": True,
    }
    assert {g["covers"] for g in statement_of("best of some").data["guarantees"]} == {
        "tuning_and_final_model"
    }


@pytest.mark.parametrize("name", STATEMENTS)
def test_digests_name_the_item_that_was_altered(name: str) -> None:
    data = statement_of(name).data
    assert first_altered(data) is None
    assert set(data["section_digests"]) == set(data) - {"section_digests", "digest"}
    for key, value in data.items():
        if key not in ("section_digests", "digest"):
            assert first_altered({**data, key: [value]}) == key
    other = {**data["section_digests"], "headline": "0" * 64}
    assert first_altered({**data, "section_digests": other}) == "headline"
    assert first_altered({**data, "digest": "0" * 64}) == "digest"
    # whoever makes all digests anew is not found by them: they detect alteration, not forgery
    assert first_altered(sealed({**data, "headline": "x"})) is None


@pytest.mark.parametrize("name", STATEMENTS)
def test_public_copies_say_the_same_without_what_touches_private_data(name: str) -> None:
    internal = statement_of(name)
    public = internal.public()
    check_schema(public.data)
    assert GuaranteeStatement.from_json(public.to_json()).data == public.data
    assert public.data["visibility"] == "public"
    for item in ("claim_level", "headline", "guarantees", "accounting", "statement_id", "ledgers"):
        assert public.data[item] == internal.data[item]
    assert public.epsilon == internal.epsilon
    assert public.data["digest"] != internal.data["digest"]
    assert not any(e["touches_private_data"] for c in public.data["checks"] for e in c["evidence"])
    assert len(public.data["checks"]) == len(internal.data["checks"])
    assert public.public().data == public.data
    adjacency = public.data["definition"]["adjacency"]
    assert (adjacency["dataset_size"] is None) == (adjacency["dataset_size_status"] == "private")
    assert "public copy" in public.to_markdown()


def test_what_touches_private_data_is_in_the_internal_copy_alone() -> None:
    internal = statement_of("two runs")
    assert "keyed fingerprints" in internal.to_json()
    assert "keyed fingerprints" not in internal.public().to_json()


def test_a_public_copy_keeps_no_count_that_is_private_and_no_check_without_evidence() -> None:
    data = statement_of("two runs").data
    data["definition"]["adjacency"].update(dataset_size_status="private", dataset_size=12345)
    for check in data["checks"]:
        for evidence in check["evidence"]:
            evidence["touches_private_data"] = True
    copy = public_copy(data)
    assert copy["definition"]["adjacency"]["dataset_size"] is None
    check_schema(copy)
    assert all(len(c["evidence"]) == 1 for c in copy["checks"] if c["evidence"])


def test_the_schema_forbids_a_meaning_where_nothing_is_claimed() -> None:
    from dpads.errors import VerificationError

    data = statement_of("fixed seed").data
    meaning = statement_of("public size").data["meaning"]
    with pytest.raises(VerificationError):
        check_schema({**data, "meaning": meaning})
