"""The short measurement: its made-up batches, its trainers, and when smaller tables may stand in."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import dpads
from dpads import benching, benching_costs, benching_trainer, resources
from dpads.benching import compare_steps, criteo_like, measure_grid
from dpads.benching_costs import (
    LARGEST_SAMPLE,
    DiskRates,
    disk_rates,
    private_step_seconds,
    sampled_schema,
    table_bytes,
    table_seconds,
)
from dpads.benching_trainer import TimedTrainer, made_up_batches
from dpads.errors import ConfigError
from dpads.resources import estimate_memory
from dpads.training import TrainingSettings

MODEL = dpads.models.Mlp(embedding_dim=4, hidden=(8,))
SCHEMA = dpads.FeatureSchema(
    task="count",
    label="y",
    numeric=["n"],
    categorical=["a", "b"],
    bags=[{"column": "c", "pooling": "sum", "weights": "v"}, {"column": "d", "pooling": "mean"}],
    buckets={"a": 100, "b": 2, "c": 50, "d": 1000},
    weight="w",
    exposure="e",
)


def test_made_up_batches_fit_any_schema_and_never_repeat() -> None:
    model = MODEL.init(SCHEMA)
    first, second = islice(made_up_batches(SCHEMA, 500), 2)
    for batch in (first, second):
        model.check_batch(batch)
        assert batch.num_examples == 500
        assert model.losses(batch).shape == (500,)
    assert not np.array_equal(first.scalar_ids, second.scalar_ids)
    assert not np.array_equal(first.dense, second.dense)


def test_ids_follow_zipfs_law() -> None:
    ids = benching_trainer.zipf_ids(np.random.default_rng(0), 1000, 400_000)
    counts = np.bincount(ids, minlength=1000)
    assert counts.min() > 0
    assert len(counts) == 1000
    # each rank holds the mass of [rank, rank + 1) under x^-1.1
    edges = np.arange(1, 1002, dtype=float) ** -0.1
    expected = 400_000 * (edges[:-1] - edges[1:]) / (edges[0] - edges[-1])
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max())


@pytest.mark.parametrize("model", [MODEL, dpads.models.Logistic()], ids=["mlp", "logistic"])
@pytest.mark.parametrize("noise", ["lazy", "dense"])
def test_a_timed_trainer_really_trains(model: dpads.models.Mlp, noise: str) -> None:
    trainer = TimedTrainer(
        model,
        SCHEMA,
        TrainingSettings(table_noise=noise),
        expected_batch_size=50,
        num_examples=1000,
        noise_multiplier=1.0,
    )
    before = trainer._trainer.model.state()
    assert trainer.seconds(list(islice(made_up_batches(SCHEMA, 50), 4))) > 0
    assert trainer._trainer.iteration == 4
    after = trainer._trainer.model.state()
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    trainer.finish()
    at_end = trainer._trainer.model.state()
    assert all(not np.array_equal(at_end[name], before[name]) for name in before)


@pytest.mark.slow
def test_steps_in_jax_are_timed_to_their_end() -> None:
    """Steps return before they are done; here each draws noise for millions of rows."""
    import jax

    large = dataclasses.replace(SCHEMA, buckets=10**6)
    trainer = TimedTrainer(
        MODEL,
        large,
        TrainingSettings(backend="jax", table_noise="dense"),
        expected_batch_size=50,
        num_examples=1000,
        noise_multiplier=1.0,
    )
    assert trainer.seconds(list(islice(made_up_batches(large, 50), 2))) > 0
    assert all(array.is_ready() for array in jax.live_arrays())
    trainer._in_jax = False
    trainer.seconds(list(islice(made_up_batches(large, 50), 2)))
    assert not all(array.is_ready() for array in jax.live_arrays())


def test_the_criteo_like_schema_shares_the_rows_out() -> None:
    assert sum(criteo_like(2600).table_rows.values()) == 2600
    with pytest.raises(ConfigError, match="at least 52 rows"):
        criteo_like(51)


def test_steps_are_compared_at_every_size() -> None:
    seen: list[tuple[int, int]] = []
    cells = measure_grid(
        MODEL, [2600, 5200], [16, 32], seconds=0.0, on_cell=lambda *at: seen.append(at)
    )
    assert seen == [(2600, 16), (2600, 32), (5200, 16), (5200, 32)]
    assert [(cell.rows, cell.expected_batch_size) for cell in cells] == seen
    for cell in cells:
        assert cell.private_ms > 0
        assert cell.without_noise_ms > 0
        figures = cell.to_dict()
        assert figures["examples_per_second"] == pytest.approx(
            1e3 * cell.expected_batch_size / cell.private_ms
        )
        assert figures["memory_bytes"]["tables"] == 4 * 4 * cell.rows


def test_all_sizes_are_checked_before_the_first_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = estimate_memory(MODEL, criteo_like(2600), expected_batch_size=16)
    seen: list[tuple[int, int]] = []

    def measure(rows: list[int], room: int) -> int:
        monkeypatch.setattr(resources, "available_memory", lambda _root: room)
        monkeypatch.setattr(resources, "_kilobytes", lambda *_: 0)
        return len(
            measure_grid(MODEL, rows, [16], seconds=0.0, on_cell=lambda *at: seen.append(at))
        )

    both = 2 * (one.tables + one.optimizer + one.batch) + one.history + one.imports
    assert measure([2600], both) == 1
    seen.clear()
    with pytest.raises(
        ConfigError, match=r"Expected two models, .*got 2,600 rows at batch size 16"
    ):
        measure([2600], both - 1)
    with pytest.raises(ConfigError, match=r"got 26,000,000 rows .* Use fewer --rows"):
        measure([2600, 26_000_000], both)
    assert not seen


def test_a_batch_larger_than_the_usual_log_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "EXAMPLES", 10)
    assert compare_steps(MODEL, SCHEMA, expected_batch_size=20, seconds=0.0).private_ms > 0


def test_large_tables_are_measured_by_smaller_ones() -> None:
    large = dataclasses.replace(SCHEMA, buckets={"a": 10**9, "b": 2, "c": 50, "d": 10**8})
    sample = sampled_schema(MODEL, large)
    assert sample is not None
    rows = sample.table_rows
    assert (rows["b"], rows["c"]) == (2, 50)
    assert rows["a"] // rows["d"] == 10
    assert 0.99 * LARGEST_SAMPLE < 16 * sum(rows.values()) < 1.01 * LARGEST_SAMPLE
    assert sampled_schema(MODEL, SCHEMA) is SCHEMA


def test_where_the_size_decides_nothing_stands_in() -> None:
    large = dataclasses.replace(SCHEMA, buckets=10**8)
    auto = dpads.models.Mlp(embedding_dim="auto", hidden=(8,))
    assert sampled_schema(auto, large) is None
    assert table_seconds(auto, large, TrainingSettings()) is None
    dense = TrainingSettings(table_noise="dense")
    for model, settings in ((auto, TrainingSettings()), (MODEL, dense)):
        assert (
            private_step_seconds(
                model, large, settings, expected_batch_size=10, num_examples=100,
                noise_multiplier=1.0, l2_clip_norm=1.0, seconds=0.0,
            )
            is None
        )  # fmt: skip


def test_making_and_finishing_tables_is_scaled_up_to_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = dataclasses.replace(SCHEMA, buckets=10**6)
    whole = table_seconds(MODEL, large, TrainingSettings())
    monkeypatch.setattr(benching_costs, "FINISHED_SAMPLE", table_bytes(MODEL, large) // 4)
    sampled = table_seconds(MODEL, large, TrainingSettings())
    assert whole is not None
    assert sampled is not None
    assert 0.1 < sampled / whole < 10
    # where nothing smaller can stand in, tables that are small enough stand for themselves
    auto = dpads.models.Mlp(embedding_dim="auto", hidden=(8,))
    small = dataclasses.replace(SCHEMA, buckets=10**5)
    assert sampled_schema(auto, small, most=benching_costs.FINISHED_SAMPLE) is None
    assert table_seconds(auto, small, TrainingSettings()) is not None


def test_files_take_as_long_as_their_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = DiskRates(write=2.0, checksum=1.0)
    assert rates.seconds(10, 20, 0.0) == 10 * 3 + 20 * 2
    assert rates.seconds(10, 20, 1201.0) == 10 * 3 + 3 * 20 * 2  # two on the way
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benching_costs, "WRITTEN_AT_A_TIME", 1000)
    for schema in (SCHEMA, dataclasses.replace(SCHEMA, buckets=2)):
        measured = disk_rates(MODEL, schema, seconds=0.01)
        assert measured.write > 0
        assert measured.checksum > 0
    assert not list(tmp_path.iterdir())
