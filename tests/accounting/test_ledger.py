"""The ledger: durable, append-only, and every alteration is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest

from dpads.accounting import events
from dpads.accounting.accountant import Relation, epsilon_of
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.ledger import KINDS, Ledger, LedgerEntry, joint_event
from dpads.errors import InputError, VerificationError

RUN = events.dp_sgd(1.0, 0.01, 100)


def fill(ledger: Ledger) -> Ledger:
    ledger.append(
        kind="training",
        description="100 iterations of DP-SGD",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=RUN,
    )
    ledger.append(
        kind="training_finished",
        description="100 iterations ran",
        rows="train",
        treatment="covered_by_accounting",
        details={"executed": 100, "replayed": 0},
    )
    ledger.append(kind="evaluation", description="exact AUC", rows="test", treatment="not_covered")
    return ledger


def test_what_was_appended_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = fill(Ledger(path))
    loaded = Ledger.load(path)
    assert loaded.entries == ledger.entries
    assert loaded.head == ledger.head
    assert path.read_bytes() == ledger.to_jsonl() == fill(Ledger()).to_jsonl()
    assert len(path.read_text().splitlines()) == 3


def test_a_loaded_ledger_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    fill(Ledger.load(path))
    assert len(Ledger.load(path).entries) == 6


def test_a_saved_copy_is_whole_and_never_overwrites(tmp_path: Path) -> None:
    ledger = fill(Ledger())
    ledger.save(tmp_path / "copy.jsonl")
    assert Ledger.load(tmp_path / "copy.jsonl").entries == ledger.entries
    with pytest.raises(InputError, match="found one"):
        ledger.save(tmp_path / "copy.jsonl")


def test_an_entry_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    assert not path.exists()
    for count in range(1, 4):
        ledger.append(kind="upstream", description="x", rows="none", treatment="not_covered")
        assert path.read_bytes().count(b"\n") == count


def test_every_altered_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        other = b"7" if whole[position : position + 1] != b"7" else b"8"
        path.write_bytes(whole[:position] + other + whole[position + 1 :])
        with pytest.raises(VerificationError, match=r"line [1-3]"):
            Ledger.load(path)


@pytest.mark.parametrize(
    ("order", "line"),
    [
        ((1, 2), 1),
        ((0, 2), 2),
        ((1, 0, 2), 1),
        ((0, 2, 1), 2),
        ((0, 0, 1, 2), 2),
        ((0, 1, 1, 2), 3),
    ],
)
def test_lines_taken_out_moved_or_repeated_are_named(
    tmp_path: Path, order: tuple[int, ...], line: int
) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(VerificationError, match=f"line {line}:"):
        Ledger.load(path)


def test_a_cut_end_shows_in_the_head(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    head = fill(Ledger(path)).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    cut = Ledger.load(path)
    assert cut.head != head
    assert len(cut.entries) == 2


def test_a_torn_line_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(VerificationError, match=r"line 3: .*delete this line"):
        Ledger.load(path)


def test_a_resealed_line_breaks_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    other = Ledger()
    other.append(
        kind="training",
        description="100 iterations of DP-SGD",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=events.dp_sgd(9.0, 0.01, 100),
    )
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(other.to_jsonl() + b"".join(lines[1:]))
    with pytest.raises(VerificationError, match="line 2:"):
        Ledger.load(path)


def test_equal_values_in_other_words_are_not_the_same_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    first = json.loads(path.read_bytes().splitlines()[0])
    path.write_text(json.dumps(first) + "\n")
    with pytest.raises(VerificationError, match="line 1:"):
        Ledger.load(path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    one = fill(Ledger(path))
    two = Ledger.load(path)
    fill(two)
    with pytest.raises(VerificationError, match="Load it again"):
        fill(one)
    assert len(Ledger.load(path).entries) == 6


def test_a_ledger_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    fill(Ledger(path))
    with pytest.raises(InputError, match=r"Ledger\.load"):
        Ledger(path)
    with pytest.raises(InputError, match="no file"):
        Ledger.load(tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "trainin"}, '"training"'),
        ({"rows": "validation"}, "rows"),
        ({"treatment": "covered"}, "treatment"),
        ({"description": " "}, "description"),
        ({"dp_event": None}, "without one"),
        ({"treatment": "not_covered"}, "with one"),
        ({"kind": "evaluation"}, "no event of it"),
        ({"kind": "reference"}, "no event of it"),
        ({"kind": "trial", "details": {"trials": 3}}, "no event of it"),
        ({"kind": "trial", "treatment": "not_covered", "dp_event": None}, "how many"),
        (
            {
                "kind": "trial",
                "treatment": "not_covered",
                "dp_event": None,
                "rows": "test",
                "details": {"trials": 3},
            },
            "of rows",
        ),
        ({"kind": "training_finished"}, "no dp_event"),
        ({"dp_event": {"kind": "gaussian"}}, "missing or unknown keys"),
    ],
)
def test_entries_that_are_refused(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "kind": "training",
        "description": "x",
        "rows": "train",
        "treatment": "covered_by_accounting",
        "dp_event": RUN,
    }
    LedgerEntry(**fields)
    ledger = Ledger()
    with pytest.raises(InputError, match=message):
        ledger.append(**{**fields, **change})
    assert ledger.entries == ()


def test_joint_event_composes_what_is_covered_and_nothing_else() -> None:
    one, two = fill(Ledger()), fill(Ledger())
    assert one.joint_event() == RUN
    assert joint_event([one, two]) == events.self_composed(RUN, 2)
    both = epsilon_of(joint_event([one, two]), 1e-6, Relation.ZERO_OUT).epsilon
    assert both > epsilon_of(RUN, 1e-6, Relation.ZERO_OUT).epsilon
    assert Ledger().joint_event() == events.NO_OP


def test_an_event_that_no_accountant_knows_is_not_swallowed() -> None:
    ledger = Ledger()
    ledger.append(
        kind="selection",
        description="best of twenty",
        rows="train",
        treatment="covered_by_accounting",
        dp_event=events.repeat_and_select(
            events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=90),
            mean=20,
            shape=1.0,
        ),
    )
    with pytest.raises(dp.UnsupportedEventError):
        epsilon_of(ledger.joint_event(), 1e-6, Relation.ZERO_OUT)


def test_every_kind_says_what_it_is() -> None:
    assert {"training", "training_finished", "evaluation", "reference", "upstream"} <= set(KINDS)
    assert all(text for text in KINDS.values())


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"index": 1' + b"0" * 400 + b"}", b'{"index": NaN}', b'"' + b"a" * 9]
)
def test_a_line_that_no_reader_should_parse_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(VerificationError, match="line 1: not JSON"):
        Ledger.load(path)


def test_a_number_beyond_floats_is_refused_in_an_event() -> None:
    for value in (10**400, -(10**400), float("inf"), float("nan")):
        with pytest.raises(InputError, match="noise_multiplier"):
            to_dp_event({"kind": "gaussian", "noise_multiplier": value})


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "evaluation", "rows": "test", "treatment": "data_independent"},
        {"kind": "evaluation", "rows": "test", "treatment": "declared_public"},
        {"kind": "reference", "rows": "test", "treatment": "not_covered"},
        {"kind": "training_finished", "rows": "none", "treatment": "covered_by_accounting"},
        {"kind": "reference", "rows": "none", "treatment": "not_covered"},
        {"kind": "training", "rows": "none", "treatment": "public_data_only"},
        {"kind": "selected_training", "rows": "test", "treatment": "covered_by_accounting"},
        {"kind": "selected_training", "rows": "train", "treatment": "not_covered"},
    ],
)
def test_entries_that_contradict_themselves_are_refused(changed: dict[str, Any]) -> None:
    details = {"dp_event": RUN}
    with pytest.raises(InputError, match="Expected a ledger entry of kind"):
        LedgerEntry(**{"description": "x", "details": details, **changed})


def test_looks_at_public_rows_are_public() -> None:
    for kind, rows in [("reference", "train"), ("reference", "none"), ("evaluation", "test")]:
        entry = LedgerEntry(
            kind=kind, description="x", rows=rows, treatment="public_data_only", details={}
        )
        assert not entry.chose_configuration


def test_a_selected_run_announces_its_event_and_charges_nothing() -> None:
    fields: dict[str, Any] = {
        "kind": "selected_training",
        "description": "the best of some runs",
        "rows": "train",
        "treatment": "covered_by_accounting",
    }
    ledger = Ledger()
    entry = ledger.append(**fields, details={"dp_event": RUN})
    assert entry.announced_event == RUN
    assert ledger.joint_event() == events.NO_OP
    for details in ({}, {"dp_event": None}, {"dp_event": {"kind": "gaussian"}}):
        with pytest.raises(InputError, match=r"event"):
            ledger.append(**fields, details=details)
    with pytest.raises(InputError, match="no dp_event"):
        ledger.append(**fields, dp_event=RUN, details={"dp_event": RUN})
    with pytest.raises(InputError, match="details"):
        LedgerEntry(**fields, details=[("dp_event", RUN)])  # type: ignore[arg-type]
