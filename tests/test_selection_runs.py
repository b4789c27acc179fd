"""Runs that train selected rows alone: a release before the first batch, zeros where nothing was selected."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_runs import SMALL, kinds, stop_at
from store_logs import WITH_USER, log, make

import dpads
from dpads import synthetic
from dpads.accounting import events
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import Release
from dpads.checkpoint import CheckpointFolder
from dpads.config import load_config
from dpads.errors import ConfigError, SchemaError
from dpads.kernels.lookup import pool
from dpads.noise import RunKeys
from dpads.private_sums import noisy_sum
from dpads.private_sums_config import wanted_releases
from dpads.row_sums import batch_reads
from dpads.run_training import train_config
from dpads.selection import Presence, Selection, noisy_selection
from dpads.store import ExampleStore
from dpads.training import Performance
from dpads.units import units_of
from dpads.verifying import verify

NOISE = dpads.PrivacySpec(noise_multiplier=1.0, delta=1e-8, dataset_size=3000)
SELECTION = dpads.SelectionConfig(kind="noisy_count", threshold=60.0)
MLP = dpads.models.Mlp(embedding_dim=3, hidden=(4,))
NO_FIT = dpads.RecalibrationConfig(kind="none")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ExampleStore:
    folder = tmp_path_factory.mktemp("log")
    clicks = synthetic.click_log(3000, seed=4, buckets=400)
    clicks.write(folder / "log.parquet")
    return dpads.prepare(folder / "log.parquet", clicks.schema, out=folder / "store")


def train(store: ExampleStore, out: Path | None = None, **keys: Any) -> dpads.Run:
    given = {"privacy": NOISE, "selection": SELECTION, "performance": Performance(threads=1)}
    return dpads.train(store, **{**SMALL, **given, "out": out, **keys})


def units_with(store: ExampleStore, privacy: dpads.PrivacySpec = NOISE) -> np.ndarray:
    """How many units have each row of the tables, one table after another, by the definition."""
    schema = store.schema
    counts = {table: np.zeros(rows) for table, rows in schema.table_rows.items()}
    units = units_of(store, privacy)
    for unit in range(units.number):
        batch = units.read(np.array([unit]))
        found: dict[str, set[int]] = {table: set() for table in counts}
        for item in schema.fields:
            ids = batch.bags[item.name].values if item.is_bag else None
            if ids is None:
                ids = batch.scalar_ids[:, batch.field_names.index(item.name)]
            found[item.table] |= {int(row) for row in ids if row >= 0}
        for table, rows in found.items():
            counts[table][sorted(rows)] += 1.0
    return np.concatenate(list(counts.values()))


def whole(selection: Selection | None) -> np.ndarray:
    """The selection of all tables, one after another."""
    assert selection is not None
    return np.concatenate(list(selection.tables.values()))


def test_noise_is_on_every_count_at_the_stated_scale(store: ExampleStore) -> None:
    """Accepts the right scale and rejects 0.9 and 1.1 of it; counts that are zero have noise too."""
    release = Release(kind="selection", share=0.1, l2_clip_norm=100.0, noise_multiplier=0.5)
    exact, presence = units_with(store), Presence(store.schema)
    units = units_of(store, NOISE).read(np.arange(3000))
    noises = []
    for seed in range(30):
        keys = RunKeys(bytes([seed]) * 32, "digest")
        noises.append(
            noisy_sum(
                release, presence.size, keys, Ledger(), "counts", lambda: [presence.vectors(units)]
            )
            - exact
        )
    noise = np.array(noises) / release.noise_stddev
    for part in (noise, noise[:, exact == 0.0]):
        assert part.size > 5000
        assert stats.kstest(part.ravel(), "norm").pvalue > 1e-4
        for wrong in (0.9, 1.1):
            assert stats.kstest(wrong * part.ravel(), "norm").pvalue < 1e-4


@pytest.mark.parametrize("unit", ["example", "user"])
def test_rows_are_selected_by_how_many_units_have_them(
    store: ExampleStore, tmp_path: Path, unit: str
) -> None:
    """With next to no noise and no clipping, exactly those at the threshold and above."""
    privacy, rows = NOISE, store
    if unit == "user":
        privacy = dataclasses.replace(NOISE, unit="user", max_examples_per_unit=4)
        rows = make(log(900, seed=4, users=150), WITH_USER, tmp_path).capped(4, seed=0)
    exact = units_with(rows, privacy)
    threshold = float(np.median(exact[exact > 1])) - 0.5
    release = Release(kind="selection", share=0.1, l2_clip_norm=1e3, noise_multiplier=1e-6)
    ledger = Ledger()
    found = noisy_selection(release, rows, privacy, threshold, RunKeys(b"k" * 32, "d"), ledger)
    assert np.array_equal(whole(found), exact >= threshold)
    assert 5 < whole(found).sum() < 0.9 * len(exact)
    assert kinds(ledger) == ["selection"]
    assert ledger.entries[0].dp_event == events.gaussian(1e-6)


def test_a_unit_with_one_id_a_field_is_not_cut(store: ExampleStore) -> None:
    schema = store.schema
    scalars = dataclasses.replace(schema, bags=())
    wanted = wanted_releases(scalars, dpads.PriorConfig(), SELECTION, NO_FIT)
    assert wanted[0].l2_clip_norm == pytest.approx(len(scalars.categorical) ** 0.5)


def trained_rows(run: dpads.Run) -> dict[str, np.ndarray]:
    return {table: array.any(axis=1) for table, array in run.model.tables.items()}


@pytest.mark.parametrize("model", [dpads.models.Logistic(), MLP, dpads.models.DeepFm()])
@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_a_run_trains_the_selected_rows_alone(
    store: ExampleStore, tmp_path: Path, model: Any, table_noise: str
) -> None:
    run = train(store, tmp_path / "run", model=model, table_noise=table_noise, recalibration=NO_FIT)
    assert kinds(run.ledger) == ["selection", "training", "training_finished"]
    exact = units_with(store)
    stddev = run.plan.releases[0].noise_stddev
    of_schema = {slot.table: slot.field.table for g in run.model.layout.groups for slot in g.slots}
    kept: dict[str, np.ndarray] = {}
    for table, rows in trained_rows(run).items():
        known = kept.setdefault(of_schema[table], rows)
        # Of parts that share a table the same; one number of a linear part may be zero by chance.
        assert not (rows & ~known).any()
        assert (known & ~rows).sum() <= 2
    selected = np.concatenate([kept[table] for table in store.schema.table_rows])
    sure = np.abs(exact - 60.0) > 6 * stddev
    assert np.array_equal(selected[sure], exact[sure] >= 60.0)
    assert 5 < selected.sum() < 0.8 * len(selected)
    composed = events.composed([run.plan.releases[0].event(), run.plan.mechanism.event()])
    assert run.plan.event() == run.ledger.joint_event() == composed
    run.statement()
    for path in (tmp_path / "run", tmp_path / "run" / "statement.json"):
        assert all(finding.held for finding in verify(path).findings)


def test_the_budget_pays_for_the_counts(store: ExampleStore) -> None:
    privacy = dataclasses.replace(NOISE, noise_multiplier=None, epsilon=2.0)
    with_counts = train(store, privacy=privacy)
    without = train(store, privacy=privacy, selection=dpads.SelectionConfig())
    assert 1.9 < with_counts.plan.loss.epsilon <= 2.0
    assert (
        with_counts.plan.mechanism.noise_multiplier > without.plan.mechanism.noise_multiplier * 1.02
    )


def test_nothing_of_the_counts_is_kept(store: ExampleStore, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").rglob("*")}
    assert names == {
        "run.json", "model.json", "model.safetensors", "ledger.jsonl", "metrics.json",
        "statement.json", "statement.md", "config.toml",
    } | {name for name in names if name.endswith(".html")}  # fmt: skip
    entry = next(e for e in run.ledger.entries if e.kind == "selection")
    assert entry.details == {}
    assert (
        "60" in entry.description
    )  # the threshold is public, how many passed it stands in the model


@pytest.mark.parametrize("iteration", [1, 9])
def test_a_cut_off_run_goes_on_with_its_selection(
    store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    """The one that its checkpoint keeps: rows are not counted again."""
    keys = {"noise_seed": 5, "model": MLP}
    expected = train(store, **keys)
    often = Performance(threads=1, checkpoint_seconds=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path / "run", **keys, performance=often, on_progress=stop_at(iteration))
    partial = tmp_path / "run.partial"
    checkpoint = CheckpointFolder(partial / "checkpoints").load()
    assert Selection.from_arrays(checkpoint.arrays, store.schema) is not None
    monkeypatch.setattr(Presence, "vectors", None)
    run = train_config(
        load_config(partial / "config.toml"),
        store=store,
        performance=often,
        out=tmp_path / "run",
        resume=True,
    )
    assert kinds(run.ledger) == kinds(expected.ledger)
    for name, value in expected.model.state().items():
        assert np.array_equal(run.model.state()[name], value)


def test_what_is_cut_off_while_it_counts_counts_the_same_again(
    store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"noise_seed": 5}
    expected = train(store, **keys)

    def cut(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Presence, "vectors", cut)
        with pytest.raises(KeyboardInterrupt):
            train(store, tmp_path / "run", **keys)
    ledger = Ledger.load(tmp_path / "run.partial" / "ledger.jsonl")
    assert kinds(ledger) == ["selection"]
    run = train_config(
        load_config(tmp_path / "run.partial" / "config.toml"),
        store=store,
        performance=Performance(threads=1),
        out=tmp_path / "run",
        resume=True,
    )
    assert kinds(run.ledger) == kinds(expected.ledger)
    for name, value in expected.model.state().items():
        assert np.array_equal(run.model.state()[name], value)


def test_without_noise_every_row_is_trained_and_nothing_is_counted(store: ExampleStore) -> None:
    free = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=3000)
    run = train(store, privacy=free, l2_clip_norm=float("inf"))
    assert kinds(run.ledger) == ["training", "training_finished"]
    exact, trained = units_with(store), np.concatenate(list(trained_rows(run).values()))
    rare = (exact >= 5) & (exact < 50)
    assert rare.sum() > 100
    assert trained[rare].mean() > 0.95


def test_predictions_need_no_selection(store: ExampleStore) -> None:
    """A row that was left out is a zero vector to whoever reads the model."""
    run = train(store, model=MLP)
    selection = trained_rows(run)
    batch = store.read(np.arange(500))
    masks = {
        g.name: np.concatenate([selection[t] for t in g.rows]) for g in run.model.layout.groups
    }
    features = np.zeros((500, run.model.layout.width), np.float32)
    features[:, run.model.layout.embedded :] = batch.dense
    for name, reads in batch_reads(run.model, batch, masks).items():
        pool(run.model.arrays[name], reads.places, 0, features)
    np.testing.assert_array_equal(features, run.model.features(batch))


def test_rows_that_an_earlier_run_trained_stay(store: ExampleStore, tmp_path: Path) -> None:
    first = train(store, tmp_path / "a")
    rare = dataclasses.replace(SELECTION, threshold=1e6)
    later = train(store, selection=rare, start_from=first)
    assert {name: rows.sum() for name, rows in trained_rows(later).items()} == {
        name: rows.sum() for name, rows in trained_rows(first).items()
    }
    assert sum(rows.sum() for rows in trained_rows(later).values()) > 5
    (text,) = (e.description for e in later.ledger.entries if e.kind == "selection")
    assert "and those that the earlier run trained, are trained" in text


def test_a_schema_without_tables_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=["n"])
    (tmp_path / "log.csv").write_text("y,n\n" + "0,1.5\n1,0.5\n" * 100)
    rows = dpads.prepare(tmp_path / "log.csv", schema, out=tmp_path / "store")
    with pytest.raises(SchemaError, match="to select rows of tables for"):
        train(rows, tmp_path / "run", expected_batch_size=20)
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("threshold", [0.0, -3.0, float("nan"), float("inf"), True])
def test_a_threshold_is_a_number_of_units(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        dpads.SelectionConfig(kind="noisy_count", threshold=threshold)
