"""The short measurement: its made-up batches, its trainers, and when smaller tables may stand in."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

import dpads
from dpads import benching
from dpads.benching import (
    LARGEST_SAMPLE,
    TimedTrainer,
    compare_steps,
    criteo_like,
    made_up_batches,
    measure_grid,
    private_step_seconds,
    sampled_schema,
)
from dpads.errors import ConfigError
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
    ids = benching._zipf(np.random.default_rng(0), 1000, 400_000)
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


def test_a_batch_larger_than_the_usual_log_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "EXAMPLES", 10)
    assert compare_steps(MODEL, SCHEMA, expected_batch_size=20, seconds=0.0).private_ms > 0


def test_large_tables_are_measured_by_smaller_ones() -> None:
    large = dataclasses.replace(SCHEMA, buckets={"a": 10**9, "b": 2, "c": 50, "d": 10**8})
    sample = sampled_schema(MODEL, large, "lazy")
    assert sample is not None
    rows = sample.table_rows
    assert (rows["b"], rows["c"]) == (2, 50)
    assert rows["a"] // rows["d"] == 10
    assert 0.99 * LARGEST_SAMPLE < 16 * sum(rows.values()) < 1.01 * LARGEST_SAMPLE
    assert sampled_schema(MODEL, SCHEMA, "lazy") is SCHEMA


def test_where_the_size_decides_nothing_stands_in() -> None:
    large = dataclasses.replace(SCHEMA, buckets=10**8)
    assert sampled_schema(MODEL, large, "dense") is None
    auto = dpads.models.Mlp(embedding_dim="auto", hidden=(8,))
    assert sampled_schema(auto, large, "lazy") is None
    assert (
        private_step_seconds(
            auto, large, TrainingSettings(), expected_batch_size=10, num_examples=100,
            noise_multiplier=1.0, l2_clip_norm=1.0, seconds=0.0,
        )
        is None
    )  # fmt: skip
