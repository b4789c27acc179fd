"""Sums over rows that a batch reads often: rounding stays that of few additions, however many there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
from jax_kernel_places import row_sums

import dpads
from dpads import rounding
from dpads.accounting.ledger import Ledger
from dpads.kernels import clip, jax_linear, jax_ops
from dpads.kernels.merge import SortedPlaces, merge_runs
from dpads.kernels.partial_sums import ROW_ADDITIONS, SUMMED_AT_A_TIME, partial_sums
from dpads.plan import resolve
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer, TrainingSettings

UNIT = 2.0**-53


@pytest.mark.parametrize("places", [1024, 1025, 1536, 40_000, 2**20 + 1, 3 * 2**20])
def test_every_place_reaches_its_row_by_short_sums(places: int) -> None:
    rng = np.random.default_rng(places)
    rows = 50
    # half of all places read one row, a quarter two others, and some are padding
    runs = np.minimum(rng.geometric(0.5, places) - 1, rows).astype(np.int32)
    runs[rng.random(places) < 0.1] = rows
    found = partial_sums(runs, rows)
    if places <= SUMMED_AT_A_TIME:
        assert found is None
        return
    assert found is not None
    assert len(found.carries) == (2 if places > SUMMED_AT_A_TIME**2 else 1)
    sizes = [rows, *(len(carry) for carry in found.carries)]
    ends = np.cumsum(sizes)
    at, turns = found.places.astype(np.int64), np.zeros(ends[-1] + 1, np.int64)
    np.add.at(turns, at, 1)
    longest = [turns[rows:-1].max()]
    leads_to = np.arange(ends[-1] + 1)
    for carry, begin, end in zip(found.carries, ends[:-1], ends[1:], strict=True):
        # sums are added to later ones, or to rows: in this order none is used before it is whole
        used = turns[begin:end] > 0
        assert np.all((carry[used] < rows) | (carry[used] >= end))
        np.add.at(turns, carry[used], 1)
        leads_to[begin:end] = np.minimum(carry, ends[-1])
    for _ in found.carries:
        at = leads_to[at]
    np.testing.assert_array_equal(np.where(at < rows, at, rows), runs)
    assert max(longest) <= SUMMED_AT_A_TIME
    assert max(turns[:-1]) <= SUMMED_AT_A_TIME


def by_numba(grads: np.ndarray) -> float:
    count = len(grads)
    nothing = np.zeros(count, np.int32)
    places = SortedPlaces(np.arange(count, dtype=np.int32), nothing, np.ones(count, np.float32))
    runs, out = merge_runs(np.zeros(count, np.int64)), np.empty((1, 1))
    clip.merged_sum(grads, places, np.ones(count, np.float32), runs, 0, out)
    return float(out[0, 0])


def by_jax(grads: np.ndarray) -> float:
    count = len(grads)
    runs = np.zeros(count, np.int32)
    places = jax_ops.DevicePlaces(
        slots=None,
        coefs=np.ones(count, np.float32),
        examples=None,
        runs=runs,
        pairs=None,
        pair_units=None,
        sums=partial_sums(runs, 1),
    )
    ones = np.ones(count, np.float32)
    with jax.enable_x64(True):
        found = jax.jit(row_sums, static_argnums=(2, 4))(grads, places, 1, ones, 1)
    return float(found[0, 0])


@pytest.mark.parametrize("total", [by_numba, by_jax])
def test_a_row_that_a_million_places_read_is_summed_within_the_bound(
    total: Callable[[np.ndarray], float],
) -> None:
    # every term but the first is lost where terms are added to a long sum one by one
    grads = np.full((SUMMED_AT_A_TIME**2 + 3, 1), UNIT * 0.99, np.float32)
    grads[0] = 1.0
    exact = math.fsum(grads[:, 0].tolist())
    assert abs(total(grads) - exact) <= ROW_ADDITIONS * UNIT * exact
    assert exact - 1.0 > 100 * ROW_ADDITIONS * UNIT  # what adding one by one would lose


def test_so_many_places_without_partial_sums_are_refused() -> None:
    count = SUMMED_AT_A_TIME + 1
    places = jax_ops.DevicePlaces(
        slots=None,
        coefs=np.ones(count, np.float32),
        examples=None,
        runs=np.zeros(count, np.int32),
        pairs=None,
        pair_units=None,
    )
    ones = np.ones((count, 1), np.float32)
    with jax.enable_x64(True), pytest.raises(ValueError, match="partial sums of 1,025 places"):
        row_sums(ones, places, 1, ones[:, 0], 1)


def test_the_floor_covers_rows_and_towers_of_either_backend() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["tags"], buckets=50)
    description = dpads.models.Mlp(embedding_dim=2, hidden=(3,))
    model = description.init(schema)
    tower = description.jax_tower(model.layout, "ctr")
    for units in (2**6, 2**13, 2**16, 2**20):
        for additions in (None, lambda n: tower.additions(n, 1024) + 4096.0):
            floor = rounding.cancellation_floor(model.tower, units, 1, additions)
            own = (additions or rounding.chunk_additions(model.tower, 1))(units)
            for terms in (ROW_ADDITIONS + rounding.MOST_PIECES, own + rounding.MOST_PIECES):
                moves = 2.0 * terms * UNIT * units / floor  # the sum with a unit, and without
                assert moves <= 2.0**-12
    with pytest.raises(dpads.errors.ConfigError, match="at most 16,777,216 units"):
        rounding.cancellation_floor(model.tower, 2**26, 1)


@pytest.mark.parametrize("how", ["groups", "pieces", "pieces of a GPU"])
def test_sums_over_a_layer_have_no_more_additions_than_they_say(how: str) -> None:
    # as above, in float64 within groups and among them; the float32 of a group is another matter
    count, at_a_time, size = 40_000, 4000, 72
    grads = np.full((count, 1), UNIT * 0.99, np.float32)
    grads[0] = 1.0
    ones: Any = np.ones((count, 1), np.float32)
    bounds = np.array([0, 1, *range(size, at_a_time, size), at_a_time], np.int32)
    groups = {"groups": (1, bounds), "pieces": (1, None)}
    add: Any = jax.jit(jax_linear.linear_sums, static_argnums=4)
    if how == "pieces of a GPU":
        add = jax.jit(partial(jax_linear._in_pieces, size=jax_linear.SUMMED_AT_ONCE))
    with jax.enable_x64(True):
        weight, bias = np.zeros((1, 1)), np.zeros(1)
        for first in range(0, count, at_a_time):  # chunk after chunk
            some = slice(first, first + at_a_time)
            weight, bias = add(
                (weight, bias), ones[some], grads[some], ones[some, 0], *groups.get(how, ())
            )
    exact = math.fsum(grads[:, 0].tolist())
    allowed = jax_linear.additions(count, at_a_time) * UNIT * exact
    assert abs(float(bias[0]) - exact) <= allowed
    assert allowed < (exact - 1.0) / 4
    if how != "groups":
        assert abs(float(weight[0, 0]) - exact) <= allowed


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_unit_whose_parts_cancel_is_clipped_by_its_parts_where_rounding_asks_for_it(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # each user has two rows that pull the bias and a table's row apart, by 500 and 500.5: 1/2 is left of both
    users, clip = 40, 1.0
    rows = {"y": [0, 1] * users, "a": ["one"] * 2 * users, "w": [1000.0, 1001.0] * users}
    frame = pl.DataFrame({**rows, "u": np.repeat(np.arange(users), 2).astype(str)})
    frame.write_parquet(tmp_path / "log.parquet")
    schema = dpads.FeatureSchema(
        task="ctr", label="y", categorical=["a"], weight="w", user="u", buckets=5
    )
    store = dpads.prepare(tmp_path / "log.parquet", schema, out=tmp_path / "store")
    spec = dpads.PrivacySpec(
        noise_multiplier=0.01,
        delta=1e-6,
        unit="user",
        max_examples_per_unit=2,
        sampling_prob=1.0,
        iterations=1,
    )
    plan = resolve(spec, expected_batch_size=users, epochs=None, l2_clip_norm=clip)
    sgd = dpads.Sgd(learning_rate=1.0)
    options = TrainingSettings(
        backend=backend, noise_seed=1, table_optimizer=sgd, tower_optimizer=sgd
    )
    found = {}
    high = rounding.rounding_of(0, users, rounding.HIGHEST_FLOOR)
    for name, largest in (("low", rounding.LARGEST_ROUNDING), ("high", high)):
        monkeypatch.setattr(rounding, "LARGEST_ROUNDING", largest)
        trainer = Trainer(
            store.capped(2, seed=0), dpads.models.Logistic(), plan, options, Performance(), Ledger()
        )
        trainer.run()
        found[name] = float(np.abs(trainer.model.tables["a"]).max())
    # noise moves a row by 0.01 / 40; at the highest floor a unit counts as 2 * 1000.5 / 16 at least
    assert found["low"] == pytest.approx(0.5, abs=0.003)
    assert found["high"] == pytest.approx(0.5 * 16 / 2001, abs=0.003)


def test_batches_in_too_many_pieces_are_refused() -> None:
    assert ROW_ADDITIONS + rounding.MOST_PIECES == 4096
    rounding.check_pieces(40, 1, 1)
    rounding.check_pieces(36_000, 1, 1)  # pieces have a group of 72 at least
    rounding.check_pieces(65_536, 1, 192)
    rounding.check_pieces(512, 8, 1)
    with pytest.raises(
        dpads.errors.ConfigError, match=r"at least 192 for batches of 65,536 .* got 191"
    ):
        rounding.check_pieces(65_536, 1, 191)
    with pytest.raises(dpads.errors.ConfigError, match=r"at least 48 for batches of 16,384"):
        rounding.check_pieces(4096, 4, 47)


def test_a_private_run_in_too_many_pieces_is_refused(train_store: ExampleStore) -> None:
    def train(noise: float) -> None:
        spec = dpads.PrivacySpec(
            noise_multiplier=noise, delta=1e-6, sampling_prob=0.1, iterations=1
        )
        dpads.train(
            train_store,
            model=dpads.models.Logistic(),
            privacy=spec,
            l2_clip_norm=1.0 if noise else math.inf,
            expected_batch_size=60_000,
            performance=Performance(physical_batch_size=10),
        )

    train(0.0)
    with pytest.raises(dpads.errors.ConfigError, match="physical_batch_size to be at least 175"):
        train(1.0)
