"""What processes tell each other, with threads in their place: every thread is a process."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from host_threads import together

import dpads
from dpads import training
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import Release
from dpads.checkpoint import Checkpoint, CheckpointFolder
from dpads.drawing import BatchSource
from dpads.errors import ConfigError, RunError, StoreError
from dpads.hosts import ALONE, Alone, Hosts
from dpads.noise import RunKeys
from dpads.plan import resolve
from dpads.private_sums import UnitVectors, noisy_sum
from dpads.private_sums_config import (
    PriorConfig,
    RecalibrationConfig,
    SelectionConfig,
    wanted_releases,
)
from dpads.run_hosts import shared_ledger
from dpads.training import Performance, Trainer, TrainingSettings
from dpads.training_hosts import (
    check_one_model,
    check_part,
    first_of,
    own_label,
    shared_checkpoint,
    shared_digest,
)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_arrays_of_any_length_reach_everybody_in_order(count: int) -> None:
    def work(hosts: Hosts) -> Any:
        own = np.arange(2 * hosts.number, dtype=np.uint32)
        return [part.tolist() for part in hosts.gather_each(own)], hosts.sum(np.array([1, 2]))

    for each, total in together(count, work):
        assert each == [list(range(2 * i)) for i in range(count)]
        assert total.tolist() == [count, 2 * count]


def test_alone_is_the_case_of_one() -> None:
    assert ALONE.is_first
    assert [part.tolist() for part in ALONE.gather_each(np.arange(3))] == [[0, 1, 2]]
    assert ALONE.sum(np.array([4])).tolist() == [4]
    assert ALONE.of_first(b"x") == b"x"
    assert first_of(7, ALONE) == (0, 7)


def test_units_follow_one_another_across_processes() -> None:
    sizes = [5, 0, 9]
    found = together(3, lambda hosts: first_of(sizes[hosts.number], hosts))
    assert found == [(0, 14), (5, 14), (5, 14)]


def test_processes_have_random_words_of_their_own_for_groups() -> None:
    labels = together(3, own_label)
    assert labels[0] == ()  # one process alone has the words of the first
    keys = [RunKeys(bytes(32), "x").key("grouping", *own).tolist() for own in labels]
    assert len({tuple(key) for key in keys}) == 3


def test_processes_that_differ_are_named() -> None:
    def work(hosts: Hosts) -> None:
        hosts.check_same({"schema": "a", "configuration": "b" if hosts.number != 2 else "c"})

    for error in together(4, work):
        assert isinstance(error, ConfigError)
        assert "the same configuration in all 4 processes; process 2 and process 0 differ" in str(
            error
        )
    assert together(2, lambda hosts: hosts.check_same({"schema": "a"})) == [None, None]


IDENTITY = {
    "plan": {"iterations": 3}, "settings": {}, "model": {}, "schema": "s", "store": "f", "start": None,
    "physical_batch_size": None, "versions": {}, "threads": 2, "processor": "p", "jax": {}, "torch": "t",
    "environment": {}, "sums": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(IDENTITY) - {"threads"}))
def test_keys_are_bound_to_one_identity(name: str) -> None:
    def same(hosts: Hosts) -> str:  # threads may differ: the first process' count
        own = {**IDENTITY, "threads": hosts.number}
        return shared_digest(own, f"digest {hosts.number}", hosts)

    assert together(2, same) == ["digest 0", "digest 0"]

    def other(hosts: Hosts) -> str:
        return shared_digest({**IDENTITY, name: hosts.number}, "digest", hosts)

    assert all(
        isinstance(error, ConfigError) and name in str(error) for error in together(2, other)
    )


def test_a_checkpoint_reaches_everybody_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 2)).astype(np.float32),
        "b": np.arange(4, dtype=np.int32),
        "c": np.zeros(0, np.uint8),
    }
    facts = {"iteration": 3, "master": "00"}

    def work(hosts: Hosts) -> Checkpoint:
        return shared_checkpoint(Checkpoint(facts, arrays) if hosts.is_first else None, hosts)

    for found in together(3, work):
        assert found.facts == facts
        assert set(found.arrays) == set(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found.arrays[name], value)
            assert found.arrays[name].dtype == value.dtype


def test_a_ledger_that_goes_on_goes_on_everywhere() -> None:
    def work(hosts: Hosts) -> str:
        ledger = Ledger()
        if hosts.is_first:
            ledger.append(
                kind="upstream",
                description="x",
                rows="train",
                treatment="not_covered",
                details={"a": 1},
            )
        return shared_ledger(ledger, hosts).head

    heads = together(3, work)
    assert len(set(heads)) == 1
    assert heads[0] != Ledger().head


def test_noise_is_added_once_to_the_sum_of_all() -> None:
    release = Release(kind="dp_count", l2_clip_norm=1.0, noise_multiplier=2.0, share=0.1)
    keys = RunKeys(bytes(32), "x")
    vectors = [
        UnitVectors(np.array([0, 1, 2]), np.array([0, 1]), np.array([0.5, 0.25])),
        UnitVectors(np.array([0, 1]), np.array([1]), np.array([1.0])),
    ]

    def work(hosts: Hosts) -> list[float]:
        own = vectors[hosts.number : hosts.number + 1] if hosts.count > 1 else vectors
        return noisy_sum(release, 2, keys, Ledger(), "a count", lambda: own, hosts).tolist()

    assert together(2, work) == [work(ALONE)] * 2


def test_different_models_at_the_end_fail() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5)

    def work(hosts: Hosts) -> None:
        model = dpads.models.Mlp(embedding_dim=2, hidden=(3,)).init(schema, seed=hosts.number)
        check_one_model(model, hosts)

    assert all(isinstance(error, RunError) for error in together(2, work))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "y": rng.integers(0, 2, 60),
            "a": rng.integers(0, 9, 60).astype(str),
            "u": rng.integers(0, 20, 60).astype(str),
        }
    )
    frame.write_parquet(folder / "log.parquet")
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5, user="u")
    dpads.prepare(folder / "log.parquet", schema, out=folder / "store", shards=4)
    return folder / "store"


def test_every_process_has_its_own_part(store: Path) -> None:
    def own(hosts: Hosts) -> None:
        part = dpads.ExampleStore.open(store, part=(hosts.number, hosts.count))
        check_part(part, hosts)

    for count in (1, 2, 3, 4):
        assert together(count, own) == [None] * count

    def first(hosts: Hosts) -> None:
        check_part(dpads.ExampleStore.open(store, part=(0, hosts.count)), hosts)

    error = together(2, first)[1]
    assert "expected the shards of process 1 of 2, got part (0, 2)" in str(error)

    def whole(hosts: Hosts) -> None:
        check_part(dpads.ExampleStore.open(store), hosts)

    assert all(isinstance(error, StoreError) for error in together(2, whole))


def test_a_trainer_begins_with_that_check(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = resolve(
        dpads.PrivacySpec(noise_multiplier=1.0, delta=1e-6, sampling_prob=0.1, iterations=2),
        expected_batch_size=4,
        epochs=None,
        l2_clip_norm=1.0,
    )
    mine = threading.local()
    monkeypatch.setattr(training, "hosts_of", lambda _: mine.hosts)

    def work(hosts: Hosts) -> None:
        mine.hosts = hosts
        rows = dpads.ExampleStore.open(store)  # all of them, in both
        settings = TrainingSettings(backend="jax")
        Trainer(rows, dpads.models.Logistic(), plan, settings, Performance(), Ledger())

    for error in together(2, work):
        assert isinstance(error, StoreError)
        assert "expected the shards of process" in str(error)


def test_a_user_in_two_processes_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(hosts: Hosts) -> None:
        part = dpads.ExampleStore.open(store, part=(hosts.number, hosts.count))
        border = part.border_users()
        assert border is not None
        borders[hosts.number] = border
        hosts.wait()
        if hosts.number == 2:  # begins with the user that process 1 ends with
            monkeypatch.setattr(part, "border_users", lambda: (borders[1][1], border[1]))
        check_part(part, hosts)

    borders: dict[int, Any] = {}
    for error in together(4, work):
        assert isinstance(error, StoreError)
        assert "a user's rows are in the shards of process 2 and of one before it" in str(error)


class Noting(Alone):
    """One process that notes when it waits for the others."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def wait(self) -> None:
        self._notes.append("wait")


def test_nobody_goes_on_before_entries_and_checkpoints_are_durable(
    train_store: dpads.ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(training, "hosts_of", lambda _: Noting(notes))
    for kind, name, note in (
        (BatchSource, "_draw", "draw"),
        (CheckpointFolder, "save", "save"),
        (Ledger, "append", "entry"),
    ):
        real = getattr(kind, name)

        def noted(self: Any, *args: Any, real: Any = real, note: str = note, **more: Any) -> Any:
            found = real(self, *args, **more)
            notes.append(note)
            return found

        monkeypatch.setattr(kind, name, noted)
    checked: list[Any] = []
    monkeypatch.setattr(training, "check_one_model", lambda model, _: checked.append(model))
    plan = resolve(
        dpads.PrivacySpec(noise_multiplier=1.0, delta=1e-6, sampling_prob=0.01, iterations=2),
        expected_batch_size=30,
        epochs=None,
        l2_clip_norm=1.0,
        wanted=wanted_releases(
            train_store.schema, PriorConfig(), SelectionConfig(), RecalibrationConfig()
        ),
    )
    trainer = Trainer(
        train_store,
        dpads.models.Logistic(),
        plan,
        TrainingSettings(),
        Performance(),
        Ledger(),
        tmp_path / "checkpoints",
    )
    trainer.run()
    assert checked == [trainer.model]
    for before, after in itertools.pairwise(notes):
        if before in ("entry", "save"):
            assert after == "wait" or before == after == "entry", notes
    assert notes.count("draw") == 2
    assert notes.index("wait") < notes.index("draw")


def test_what_devices_there_are_is_part_of_a_runs_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    from dpads.training_identity import jax_facts

    found = [jax_facts()]
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag")
    found.append(jax_facts())
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: [*devices, *devices])
    found.append(jax_facts())
    assert len({json.dumps(facts) for facts in found}) == 3
    assert "process 0" in found[0]["devices"][0]
