"""The clipped sum is what autograd gives one unit at a time in float64, and at most C a unit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from brute_force import as_dense, batches, clipped, perturb, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dpads
from dpads.kernels import clip
from dpads.models.torch_layers import Linear
from dpads.models.torch_tower import TorchTower

MODELS = [dpads.models.Logistic(), dpads.models.Mlp(embedding_dim=3, hidden=(5, 4))]
TASKS = ["ctr", "count"]


@pytest.mark.parametrize("description", MODELS, ids=lambda d: d.name)
@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_equals_autograd_one_unit_at_a_time(description: Any, task: str, data: Any) -> None:
    schema = schema_of(task, numeric=data.draw(st.sampled_from([0, 2])))
    batch = data.draw(batches(schema))
    clip = data.draw(st.sampled_from([0.1, 1.0, 30.0, float("inf")]))
    model = perturb(description.init(schema, seed=0), data.draw(st.integers(0, 100)))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip)
    norms, total = clipped(model, batch, clip)
    np.testing.assert_allclose(out.norms, norms, rtol=2e-5, atol=1e-6)
    found = as_dense(model, out)
    assert set(found) == set(total)
    scale = max([1.0, *(float(np.abs(t).max(initial=0.0)) for t in total.values())])
    for name, expected in total.items():
        np.testing.assert_allclose(
            found[name], expected, rtol=1e-4, atol=2e-6 * scale, err_msg=name
        )


@pytest.mark.parametrize("description", MODELS, ids=lambda d: d.name)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_unit_adds_at_most_the_clip_norm(description: Any, data: Any) -> None:
    schema = schema_of()
    batch = data.draw(batches(schema))
    model = perturb(description.init(schema, seed=0), 1)
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.25)
    norm = np.sqrt(sum(float((v**2).sum()) for v in as_dense(model, out).values()))
    assert norm <= 0.25 * max(batch.num_units, 0) * (1 + 1e-9) + 1e-12


def test_products_with_few_digits_do_not_round_beyond_the_clip_norm() -> None:
    # A factor times a tiny output gradient is no normal float32; an activation of 1e38 makes rounding count.
    schema = dpads.FeatureSchema(
        task="ctr", label="y", numeric=[dpads.Numeric("n", transform="identity")], weight="v"
    )
    model = dpads.models.Logistic().init(schema)
    rng = np.random.default_rng(0)
    for clip_norm in (1.0, 1e-4, 1e-6):
        for _ in range(100):
            batch = dpads.SparseBatch.from_arrays(
                ids={},
                dense=[[rng.uniform(1, 3) * 1e38]],
                labels=[0],
                weights=[clip_norm * 10 ** rng.uniform(-12, -9) * 0.5],
            )
            out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip_norm)
            square = sum(float((v.astype(float) ** 2).sum()) for v in out.dense.values())
            assert np.sqrt(square) <= clip_norm * (1 + 1e-9)


def test_units_whose_parts_cancel_are_clipped_by_their_parts_too() -> None:
    # What is left of a unit may be far below C, while its parts, which a sum rounds, are far above.
    squares, parts = np.array([1e-12, 1e-12, 4.0]), np.array([0.0, 400.0, 4.0])
    norms, factors = np.empty(3), np.empty(3, np.float32)
    clip.clip_factors(squares, parts, 1.0, 2.0**-4, norms, factors)
    np.testing.assert_allclose(norms, [1e-6, 1e-6, 2.0])
    np.testing.assert_allclose(factors, [1.0, 16 / 400, 0.5], rtol=1e-6)
    assert (factors * parts <= 16.0).all()


def test_repeated_ids_in_a_bag_are_merged_before_squaring() -> None:
    # Opacus 1.6.0 drops the repeat: for bag [1, 1, 2] autograd gives row 1 twice the gradient of row 2.
    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["s"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"s": ([1, 1, 2], [0, 3], None)}, labels=[0])
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=float("inf"))
    rows, values = out.tables["s"]
    assert rows.tolist() == [1, 2]
    np.testing.assert_allclose(values[:, 0], [1.0, 0.5])
    # LazyDP's ||b|| * sqrt(number of ids) would be 0.5 * sqrt(3 + 1): the true norm is larger.
    np.testing.assert_allclose(out.norms, [0.5 * np.sqrt(4 + 1 + 1)])


def test_padding_contributes_nothing() -> None:
    # Opacus 1.6.0's embedding hooks ignore padding_idx.
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"a": [-1, -1]}, labels=[0, 1])
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
    assert len(out.tables["a"][0]) == 0
    np.testing.assert_allclose(out.norms, [0.5, 0.5])


def test_an_empty_batch_gives_zeros() -> None:
    schema = schema_of()
    for description in MODELS:
        model = description.init(schema)
        empty = np.zeros(0, np.int64)
        bag = (empty, np.zeros(1, np.int64), np.zeros(0, np.float32))
        batch = dpads.SparseBatch.from_arrays(
            ids={"a": empty, "b": empty, "c": empty, "s": bag, "m": (empty, [0], None)},
            dense=np.zeros((0, 2)),
            labels=[],
        )
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
        assert len(out.norms) == 0
        assert all(not v.any() for v in as_dense(model, out).values())


@pytest.mark.parametrize("description", MODELS, ids=lambda d: d.name)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit(
    description: Any, value: float
) -> None:
    schema = schema_of()
    rng = np.random.default_rng(3)
    size = 40
    ids: dict[str, Any] = {name: rng.integers(-1, 7, size) for name in "abc"}
    ids["s"] = (rng.integers(0, 7, 2 * size), np.arange(size + 1) * 2, rng.uniform(0, 2, 2 * size))
    ids["m"] = (rng.integers(0, 7, 2 * size), np.arange(size + 1) * 2, None)
    dense = rng.normal(size=(size, 2))
    labels = rng.integers(0, 2, size)
    model = perturb(description.init(schema), 5)
    for at in (0, 17, 39):
        bad = dense.copy()
        bad[at] = value
        keep = np.ones(size)
        keep[at] = 0.0  # a loss weight of zero: the same batch with a unit that adds zero
        out = dpads.clipped_gradients(
            model,
            dpads.SparseBatch.from_arrays(ids=ids, dense=bad, labels=labels),
            l2_clip_norm=1.0,
        )
        without = dpads.clipped_gradients(
            model,
            dpads.SparseBatch.from_arrays(ids=ids, dense=dense, labels=labels, weights=keep),
            l2_clip_norm=1.0,
        )
        if np.isfinite(out.norms[at]):
            assert value == 3e38  # large but finite: clipped like any other
            continue
        first, second = as_dense(model, out), as_dense(model, without)
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_rows_that_nearly_cancel_stay_within_the_sensitivity() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=["n"], categorical=["a"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    rng = np.random.default_rng(0)
    for _ in range(50):
        big = float(10 ** rng.uniform(3, 18))
        count = int(rng.integers(2, 30)) * 2
        weights = rng.uniform(0.5, 2, count)  # products with clip factors then round differently
        labels = np.tile([0, 1], count // 2)
        rest = 1 + 10 ** rng.uniform(-6.5, -3) * rng.normal(size=count)
        batch = dpads.SparseBatch.from_arrays(
            ids={"a": rng.integers(0, 5, count)},
            dense=(big * rest / weights)[:, None],
            labels=labels,
            weights=weights,
            unit_offsets=[0, count],
        )
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
        norm = np.sqrt(sum(float((v**2).sum()) for v in as_dense(model, out).values()))
        assert norm <= 1 + 2.0**-10


def rising(count: int) -> Any:
    """Gradients whose float32 sum in this order rounds every time, and in no other: half of them bring the
    partial sum just beyond a power of two, each of the rest is a little more than half of its last bit."""
    half = count // 2
    if half == 0:
        return np.ones(count)
    unit = 2.0**-23 * half
    return np.r_[np.full(half, 1 + 0.5 / half), np.full(count - half, 1.02 * unit / 2)]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("pattern", ["aligned", "crossing"])
@pytest.mark.parametrize("size", [100, 4096, 16_384, 65_536])
def test_neighbouring_batches_of_aligned_gradients_differ_by_at_most_the_sensitivity(
    size: int, pattern: str, grouped: bool
) -> None:
    from dpads.clipping import clip_batch
    from dpads.kernels.keys import derive_key
    from dpads.row_sums import batch_reads
    from dpads.sampling import Grouping

    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=[f"n{i}" for i in range(8)])
    model = dpads.models.Logistic().init(schema)
    grouping = Grouping.for_batches_of(size, derive_key(bytes(32), "groups"))
    _, bounds = grouping.order(np.arange(size), 0)
    sizes = np.diff(bounds) if grouped else np.full(-(-size // 256), 256)
    values = np.concatenate([rising(n) for n in sizes])[:size]
    if pattern == "aligned":
        values = 1 - 1e-3 * np.random.default_rng(size).random(size)
    clip = 0.5 * np.sqrt(8 * (2 * values.max()) ** 2 + 1) * 1.0000001

    def total(kept: Any, bounds: Any) -> Any:
        batch = dpads.SparseBatch.from_arrays(
            ids={}, dense=np.repeat(2 * values[kept, None], 8, axis=1), labels=np.ones(len(kept))
        )
        groups = bounds if grouped else None
        sums = clip_batch(model, batch, batch_reads(model, batch), clip, groups=groups)[0]
        return np.concatenate([value.ravel() for value in sums.dense.values()])

    whole = total(np.arange(size), bounds)
    for at in (0, size // 2, size - 1):
        without = np.delete(np.arange(size), at)
        fewer = bounds - (bounds > at)  # the unit leaves its group, and no other changes
        assert np.linalg.norm(whole - total(without, fewer)) <= clip * (1 + 2.0**-10)


def test_the_bound_on_a_groups_rounding_stays_below_the_slack() -> None:
    from dpads.kernels.clip import LARGEST_GROUP

    assert (LARGEST_GROUP**2 + 2 * LARGEST_GROUP) * 2.0**-24 + 2.0**-22 < 2.0**-10


def test_units_are_grouped_at_random_and_independently_of_each_other() -> None:
    from scipy import stats

    from dpads.kernels.clip import LARGEST_GROUP, MEAN_GROUP
    from dpads.kernels.keys import derive_key
    from dpads.sampling import Grouping

    grouping = Grouping.for_batches_of(7200, derive_key(bytes(32), "groups"))
    assert grouping.groups == 7200 // MEAN_GROUP
    units = np.sort(np.random.default_rng(0).choice(10**6, 7200, replace=False))
    counts = []
    for iteration in range(40):
        order, bounds = grouping.order(units, iteration)
        assert np.array_equal(np.sort(order), units)
        assert (bounds[0], bounds[-1]) == (0, len(units))
        for first, last in pairwise(bounds):
            assert (np.diff(order[first:last]) > 0).all()
        counts.append(np.diff(bounds))
    assert stats.chisquare(np.concatenate(counts)).pvalue > 1e-4
    assert (np.concatenate(counts) > LARGEST_GROUP).mean() < 0.01
    assert not np.array_equal(counts[0], counts[1])
    nobody, bounds = grouping.order(units[:0], 0)
    assert len(nobody) == 0
    assert not bounds.any()


def test_neighbouring_sums_of_a_whole_model_differ_by_at_most_the_sensitivity() -> None:
    from dpads.clipping import clip_batch
    from dpads.row_sums import batch_reads

    size = 65_536
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=["n"], categorical=["a"], buckets=3)
    rng = np.random.default_rng(0)
    for description in (dpads.models.Logistic(), dpads.models.Mlp(embedding_dim=4, hidden=(16,))):
        model = description.init(schema, seed=1)
        ids, dense, labels = np.ones(size, int), rng.uniform(2, 9, (size, 1)), np.zeros(size)
        for at in (0, 30_000, size - 1):
            kept = np.delete(np.arange(size), at)
            sums = []
            for rows in (np.arange(size), kept):
                batch = dpads.SparseBatch.from_arrays(
                    ids={"a": ids[rows]}, dense=dense[rows], labels=labels[rows]
                )
                sums.append(clip_batch(model, batch, batch_reads(model, batch), 1.0)[0])
            first, second = sums
            square = sum(((first.dense[n] - second.dense[n]) ** 2).sum() for n in first.dense)
            for name in first.groups:
                square += ((first.groups[name].values - second.groups[name].values) ** 2).sum()
            assert np.sqrt(square) <= 1 + 2.0**-10


@pytest.mark.parametrize("exponent", [20, 30, 36, 37, 38, 38.5])
def test_gradients_of_any_size_stay_within_the_clip_norm(exponent: float) -> None:
    # below the normal float32 numbers a clip factor loses its digits: such a unit is left out
    schema = dpads.FeatureSchema(
        task="ctr", label="y", bags=[dpads.Bag("s", weights="w")], buckets=5, weight="v"
    )
    model = dpads.models.Logistic().init(schema)
    rng = np.random.default_rng(0)
    for factor in (1e0, 1e4, 1e7, 1e8):
        weights = [10**exponent * rng.uniform(0.5, 1)]
        batch = dpads.SparseBatch.from_arrays(
            ids={"s": ([1], [0, 1], weights)}, labels=[0], weights=[factor * rng.uniform(0.5, 1)]
        )
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
        norm = np.sqrt(sum(float((v**2).sum()) for v in as_dense(model, out).values()))
        assert norm <= 1 + 2.0**-10


def test_physical_batches_do_not_change_the_sum() -> None:
    from dpads.clipping import add_sums, clip_batch
    from dpads.row_sums import batch_reads

    schema = schema_of()
    rng = np.random.default_rng(8)
    size = 30
    ids = {name: rng.integers(-1, 7, size) for name in "abc"}
    bag = rng.integers(-1, 7, (size, 2))
    model = perturb(MODELS[1].init(schema), 2)
    dense, labels = rng.normal(size=(size, 2)), rng.integers(0, 2, size)

    def total(rows: Any) -> Any:
        flat = bag[rows].reshape(-1)
        offsets = np.arange(len(rows) + 1) * 2
        batch = dpads.SparseBatch.from_arrays(
            ids={
                **{n: v[rows] for n, v in ids.items()},
                "s": (flat, offsets, None),
                "m": (flat, offsets, None),
            },
            dense=dense[rows],
            labels=labels[rows],
        )
        return clip_batch(model, batch, batch_reads(model, batch), 1.0)[0]

    whole = total(np.arange(size))
    parts = add_sums(
        add_sums(total(np.arange(11)), total(np.arange(11, 11))), total(np.arange(11, size))
    )
    for name, value in whole.dense.items():
        np.testing.assert_allclose(parts.dense[name], value, rtol=1e-5, atol=1e-6)
    for name, sums in whole.groups.items():
        assert np.array_equal(parts.groups[name].rows, sums.rows)
        np.testing.assert_allclose(parts.groups[name].values, sums.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), "1"])
def test_a_clip_norm_that_is_not_positive_is_refused(clip: Any) -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"a": [1]}, labels=[0])
    with pytest.raises(dpads.ConfigError, match="positive l2_clip_norm"):
        dpads.clipped_gradients(model, batch, l2_clip_norm=clip)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 512, 513, 700])
@pytest.mark.parametrize("numeric", [0, 3])
def test_batches_of_any_size_with_and_without_numbers(size: int, numeric: int) -> None:
    # products are made over spans of 64 examples, eight at a time: every remainder, and no columns at all
    names = [f"n{k}" for k in range(numeric)]
    schema = dpads.FeatureSchema(task="ctr", label="y", numeric=names, categorical=["a"], buckets=5)
    rng = np.random.default_rng(size)
    for description in MODELS:
        model = perturb(description.init(schema), 1)
        batch = dpads.SparseBatch.from_arrays(
            ids={"a": rng.integers(0, 5, size)},
            dense=rng.normal(size=(size, numeric)),
            labels=rng.integers(0, 2, size),
        )
        out = as_dense(model, dpads.clipped_gradients(model, batch, l2_clip_norm=0.5))
        for name, expected in clipped(model, batch, 0.5)[1].items():
            np.testing.assert_allclose(out[name], expected, rtol=1e-4, atol=1e-4)


def test_ids_beyond_the_table_and_missing_fields_are_refused() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"a": [5]}, labels=[0])
    with pytest.raises(dpads.DataError, match='table "a", below 5'):
        dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
    with pytest.raises(dpads.DataError, match='no scalar field "a"'):
        dpads.clipped_gradients(
            model, dpads.SparseBatch.from_arrays(ids={"b": [1]}, labels=[0]), l2_clip_norm=1.0
        )


def test_two_scalar_fields_of_one_table_are_merged_before_squaring() -> None:
    columns = ["a", "b"]
    schema = dpads.FeatureSchema(
        task="ctr", label="y", categorical=columns, tables={"t": columns}, buckets=5
    )
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"a": [3, 3], "b": [3, 4]}, labels=[0, 0])
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
    np.testing.assert_allclose(out.norms, [np.sqrt(1.0 + 0.25), np.sqrt(0.25 * 3)])


def test_a_layer_that_mixes_examples_is_refused() -> None:
    # affine=False has no parameters, and divides by what the batch's other units are
    for layer in (nn.BatchNorm1d(8, affine=False), nn.Softmax(0), nn.GELU()):
        module = nn.Sequential(Linear(8, 8), layer, Linear(8, 1), nn.Flatten(0))
        with pytest.raises(dpads.ConfigError, match=f"linear and ReLU.*{type(layer).__name__}"):
            TorchTower(module, "ctr")


def test_groups_of_another_batch_are_refused() -> None:
    from dpads.clipping import clip_batch
    from dpads.row_sums import batch_reads

    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=5)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"a": [1, 2]}, labels=[0, 1])
    with pytest.raises(dpads.DataError, match="all 2 examples"):
        clip_batch(model, batch, batch_reads(model, batch), 1.0, groups=np.array([0, 3]))
