"""What a run that starts from an earlier one may claim: which rows it knows, what it carries, who says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from altering import renewed
from small_runs import SMALL

import dpads
from dpads import synthetic
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.config import load_config
from dpads.config_toml import to_toml
from dpads.errors import ConfigError, VerificationError
from dpads.plan import Plan
from dpads.record import RunRecord
from dpads.report import build_statement
from dpads.run_files import read_json
from dpads.run_training import train_config
from dpads.store import ExampleStore
from dpads.training import Performance
from dpads.verifying import verify

FIXED = dpads.PrivacySpec(noise_multiplier=1.5, delta=1e-8, dataset_size=3000)
FREE: dict[str, Any] = {
    "privacy": dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000),
    "l2_clip_norm": float("inf"),
}
ADA = {"asserted_by": "Ada Lovelace", "tuning": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days' logs, each with a store."""
    folder = tmp_path_factory.mktemp("days")
    for day in "ab":
        log = synthetic.click_log(3000, seed=ord(day), buckets=200)
        log.write(folder / f"{day}.parquet")
        dpads.prepare(folder / f"{day}.parquet", log.schema, out=folder / f"store_{day}")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> ExampleStore:
    return ExampleStore.open(folder / "store_a")


@pytest.fixture(scope="module")
def other(folder: Path) -> ExampleStore:
    return ExampleStore.open(folder / "store_b")


def train(store: ExampleStore, out: Path | None = None, **keys: Any) -> dpads.Run:
    given = {"privacy": FIXED, "performance": Performance(threads=1), "statement": ADA, "out": out}
    return dpads.train(store, **{**SMALL, **given, **keys})


@pytest.fixture(scope="module")
def first(store: ExampleStore, tmp_path_factory: pytest.TempPathFactory) -> dpads.Run:
    """A run on a whole store."""
    return train(store, tmp_path_factory.mktemp("first") / "run")


def failure(path: Path) -> str:
    found = verify(path).first_failure
    return "" if found is None else f"{found.item}: {found.note}"


def check_of(run: dpads.Run, name: str) -> dict[str, Any]:
    return next((c for c in run.statement().data["checks"] if c["id"] == name), {})


# Rows that are called public.


def test_rows_that_this_run_trains_on_are_not_public(
    store: ExampleStore, other: ExampleStore, tmp_path: Path
) -> None:
    train(store, tmp_path / "free", **FREE)
    keys = {"start_from": tmp_path / "free", "start_from_public": True}
    part, rest = store.split(0.3, seed=5)
    for rows, more in (
        (store, {}),
        (store, {"test": 0.2}),
        (part, {"test": rest}),
        (ExampleStore.open(store.path), {}),
    ):
        with pytest.raises(ConfigError, match=r"start_from_public.*the same store"):
            train(rows, tmp_path / "run", **keys, **more)
    run = train(other, tmp_path / "run", **keys)
    assert run.statement().claim_level == "conditional"
    details = run.ledger.entries[0].details
    assert (
        details["earlier"]["parameters"]
        == dpads.Run.load(tmp_path / "free").record.artifacts["model.safetensors"]
    )
    assert details["trained_on"][0]["rows"] == store.fingerprint
    assert not failure(tmp_path / "run")


def test_a_part_of_the_store_is_known_again(store: ExampleStore, tmp_path: Path) -> None:
    part, rest = store.split(0.3, seed=5)
    train(part, tmp_path / "free", **FREE)
    for rows in (store, rest):
        with pytest.raises(ConfigError, match=r"start_from_public.*the same store"):
            train(rows, start_from=tmp_path / "free", start_from_public=True)


def test_rows_of_a_run_before_the_earlier_one_are_known_again(
    store: ExampleStore, other: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    train(other, tmp_path / "second", start_from=first)
    with pytest.raises(ConfigError, match=r"start_from_public.*the same store"):
        train(store, start_from=tmp_path / "second", start_from_public=True)


def test_rows_that_an_earlier_run_called_public_stay_public(
    store: ExampleStore, other: ExampleStore, tmp_path: Path
) -> None:
    """What the earlier run's guarantee rests on would be false where they are trained on now."""
    train(store, tmp_path / "free", **FREE)
    train(other, tmp_path / "second", start_from=tmp_path / "free", start_from_public=True)
    for rows in (store, store.split(0.3, seed=5)[0]):
        with pytest.raises(ConfigError, match=r"nobody's data.*the same store"):
            train(rows, start_from=tmp_path / "second")
    third = train(other, tmp_path / "third", start_from=tmp_path / "second", test=0.3)
    assert [item["public"] for item in third.ledger.entries[0].details["trained_on"]] == [
        True,
        False,
    ]
    assert evaluated(third) == ["train_and_test"]
    with pytest.raises(ConfigError, match=r"nobody's data.*the same store"):
        train(store, start_from=third)
    assert not failure(tmp_path / "third")


def test_the_same_log_is_known_again_where_it_is_prepared_anew(
    folder: Path, first: dpads.Run, tmp_path: Path
) -> None:
    free = dataclasses.replace(first.config, **FREE)
    log = dataclasses.replace(free.data, train=(str(folder / "a.parquet"),))
    config = dataclasses.replace(free, data=log)
    train_config(config, out=tmp_path / "free", performance=Performance(threads=1))
    training = dataclasses.replace(
        config.training, start_from=str(tmp_path / "free"), start_from_public=True
    )
    private = dataclasses.replace(config, privacy=FIXED, l2_clip_norm=1.0, training=training)
    with pytest.raises(ConfigError, match=r"start_from_public.*the same log"):
        train_config(private, performance=Performance(threads=1))


# What is on the ledger is what was planned with.


def forged(run: dpads.Run, folder: Path, keep: Callable[[LedgerEntry], bool]) -> Path:
    """A copy of a run without some entries: its chain and its statement are made anew."""
    assert run.path is not None
    shutil.copytree(run.path, folder)
    known, ledger = Ledger.load(folder / "ledger.jsonl"), Ledger()
    for entry in known.entries:
        if keep(entry):
            ledger.append(**entry.to_dict())
    (folder / "ledger.jsonl").write_bytes(ledger.to_jsonl())
    record = RunRecord.from_dict(read_json(folder / "run.json"))
    plan = Plan.from_dict(record.plan)
    statement = build_statement(plan, record, ledger, created_at=record.created_at)
    (folder / "statement.json").write_text(statement.to_json())
    (folder / "statement.md").write_text(statement.to_markdown())
    return folder


def without_start(entry: LedgerEntry) -> bool:
    return entry.kind != "earlier_run"


def test_an_earlier_run_that_is_taken_off_the_ledger_takes_the_claim_away(
    other: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    second = train(other, tmp_path / "second", start_from=first)
    assert check_of(second, "initialisation.earlier_accounted")["result"] == "holds"
    path = forged(second, tmp_path / "forged", without_start)
    data = json.loads((path / "statement.json").read_text())
    assert data["claim_level"] == "none"
    assert "the plan was made with" in data["headline"]
    assert "config.toml" in failure(path)
    config = path / "config.toml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("start_from")))
    assert not failure(path)  # consistent now, and without a claim


def test_an_earlier_run_that_no_plan_knows_takes_the_claim_away(
    other: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    second = train(other, tmp_path / "second", start_from=first)
    assert second.path is not None
    shutil.copytree(second.path, tmp_path / "copy")
    record = read_json(tmp_path / "copy" / "run.json")
    del record["plan"]["carried"]
    record = renewed(record)
    (tmp_path / "copy" / "run.json").write_text(json.dumps(record))
    found = RunRecord.from_dict(record)
    statement = build_statement(
        Plan.from_dict(found.plan), found, second.ledger, created_at=found.created_at
    )
    assert statement.claim_level == "none"
    assert "claim_level" in failure(tmp_path / "copy")


def test_the_configuration_says_where_training_started(
    store: ExampleStore, other: ExampleStore, tmp_path: Path
) -> None:
    train(store, tmp_path / "free", **FREE)
    run = train(other, tmp_path / "run", start_from=tmp_path / "free", start_from_public=True)
    assert not failure(tmp_path / "run")
    path = forged(run, tmp_path / "forged", without_start)
    assert "config.toml: it starts from an earlier run" in failure(path)
    (tmp_path / "forged" / "config.toml").unlink()
    assert "config.toml" in failure(path)
    plain = train(other, tmp_path / "plain")
    config = dataclasses.replace(
        plain.config, training=dataclasses.replace(plain.config.training, start_from="/x")
    )
    (tmp_path / "plain" / "config.toml").write_text(to_toml(config))
    assert "config.toml: it starts from an earlier run" in failure(tmp_path / "plain")
    config = load_config(tmp_path / "run" / "config.toml")
    none = dataclasses.replace(config.training, start_from=None, start_from_public=False)
    (tmp_path / "run" / "config.toml").write_text(
        to_toml(dataclasses.replace(config, training=none))
    )
    assert "config.toml: it starts from no earlier run" in failure(tmp_path / "run")


def test_a_ledger_that_was_cut_off_is_no_start(
    store: ExampleStore, other: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    assert first.path is not None
    shutil.copytree(first.path, tmp_path / "run")
    dpads.Run.load(tmp_path / "run").evaluate(store)
    path = tmp_path / "run" / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(VerificationError, match=r"statement\.json.*Restore"):
        train(other, start_from=tmp_path / "run")


# Whose test rows may be training rows.


def evaluated(run: dpads.Run) -> list[str]:
    return [e.rows for e in run.ledger.entries if e.kind == "evaluation"]


def unit_of(run: dpads.Run) -> str:
    return str(run.statement().data["definition"]["unit_of_privacy"]["definition"])


def test_rows_that_the_earlier_run_trained_on_are_no_test_rows(
    store: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    run = train(store, tmp_path / "run", start_from=first, test=0.3)
    assert evaluated(run) == ["train_and_test"]
    assert run.record.test_fingerprint is None
    assert check_of(run, "evaluation.kept_inside")
    assert "not split off" not in run.statement().headline
    assert "one row that this run or an earlier one trained on" in run.statement().headline
    assert "one row that this run or an earlier one trained on" in unit_of(run)
    assert not failure(tmp_path / "run")


def test_test_rows_beside_a_run_on_another_store_are_declared(
    other: ExampleStore, store: ExampleStore, first: dpads.Run, tmp_path: Path
) -> None:
    run = train(other, tmp_path / "run", start_from=first, test=0.3)
    assert evaluated(run) == ["declared_test"]
    check = check_of(run, "evaluation.test_rows_apart")
    assert "nor of one that it starts from" in check["assumption"]
    assert not failure(tmp_path / "run")
    last = train(store, tmp_path / "last", start_from=run, test=0.3)
    assert set(evaluated(last)) == {"train_and_test"}
    assert not failure(tmp_path / "last")


def test_the_same_split_keeps_its_test_rows(store: ExampleStore, tmp_path: Path) -> None:
    a = train(store, tmp_path / "a", test=0.3)
    same = train(store, tmp_path / "b", start_from=a, test=0.3)
    assert evaluated(same) == ["test", "test"]
    assert not failure(tmp_path / "b")
    seeded = train(store, tmp_path / "c", start_from=a, test=0.3, split_seed=9)
    assert evaluated(seeded) == ["train_and_test"] * 2
    assert not failure(tmp_path / "c")
    whole = train(store, tmp_path / "d", start_from=a)
    assert evaluated(whole) == ["train_and_test"]


def test_yesterdays_test_rows_are_todays_training_rows(
    store: ExampleStore, other: ExampleStore, tmp_path: Path
) -> None:
    train(store, tmp_path / "a", test=other)
    run = train(other, tmp_path / "b", start_from=tmp_path / "a")
    assert evaluated(run) == ["train_and_test"]
    assert check_of(run, "evaluation.kept_inside")
    assert not failure(tmp_path / "b")


def test_a_users_rows_are_bounded_in_each_log(tmp_path: Path) -> None:
    lines = [f"{i % 2},{i % 7},{i % 600}" for i in range(3000)]
    (tmp_path / "log.csv").write_text("\n".join(["y,c,u", *lines]) + "\n")
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["c"], user="u", buckets=20)
    store = dpads.prepare(tmp_path / "log.csv", schema, out=tmp_path / "store")
    spec = dpads.PrivacySpec(
        noise_multiplier=3.0, delta=1e-8, dataset_size=600, unit="user", max_examples_per_unit=3
    )
    keys = {"privacy": spec, "expected_batch_size": 60}
    a = train(store, tmp_path / "a", **keys)
    b = train(store, tmp_path / "b", start_from=a, **keys)
    words = "one user (at most 3 rows in each run, this one and the earlier ones)"
    assert words in b.statement().headline
    assert not failure(tmp_path / "b")


# Who chose the configuration.


@pytest.mark.parametrize(
    ("said", "method", "words"),
    [
        (
            None,
            "not_declared",
            "how the configuration was chosen, of this run or of an earlier one",
        ),
        ("not_accounted", "not_accounted", "the other runs"),
        ("public_data", "public_proxy", ""),
    ],
)
def test_the_weakest_answer_to_how_configurations_were_chosen_counts(
    store: ExampleStore, other: ExampleStore, tmp_path: Path,
    said: str | None, method: str, words: str,
) -> None:  # fmt: skip
    people = {"asserted_by": "Bo"} if said is None else {"asserted_by": "Bo", "tuning": said}
    a = train(store, tmp_path / "a", statement=people)
    b = train(other, tmp_path / "b", start_from=a)
    c = train(other, tmp_path / "c", start_from=b)
    for run in (b, c):
        assert run.statement().data["accounting"]["tuning"]["method"] == method
        assert words in run.statement().headline
        assert run.path is not None
        assert not failure(run.path)
        assert not failure(run.path / "statement.json")
    own = train(other, tmp_path / "d", start_from=train(store, tmp_path / "e"), statement=people)
    assert own.statement().data["accounting"]["tuning"]["method"] == method
    assert not failure(tmp_path / "d")
