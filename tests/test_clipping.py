"""The clipped sum is what autograd gives one unit at a time in float64, and at most C a unit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force import as_dense, batches, clipped, perturb, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st

import dpads

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


@pytest.mark.parametrize("rows", [1024, 4_608, 4_609, 16_384, 16_385, 65_536, 65_537])
def test_neighbouring_batches_of_aligned_gradients_differ_by_at_most_the_sensitivity(
    rows: int,
) -> None:
    # Aligned, nearly equal gradients of norm C are the worst case: roundings go one way. Taking a unit from
    # the front regroups all others.
    from dpads.clipping import CHUNK
    from dpads.kernels import clip
    from dpads.kernels.torch_ops import find_blas

    for seed in range(4):
        rng = np.random.default_rng(seed)
        spread = 10 ** -rng.uniform(2, 5) * rng.random((rows, 1))
        right = ((1 - spread) * np.ones((rows, 64)) / 8).astype(np.float32)
        left = np.full((rows, 1), rng.uniform(0.9, 1), np.float32)
        sums = []
        for start in (0, 1):
            total, scratch = np.zeros((1, 64)), np.empty((CHUNK, 1), np.float32)
            for first in range(start, rows, CHUNK):
                part = left[first : first + CHUNK]
                clip.add_clipped_layer(
                    find_blas(),
                    part,
                    right[first : first + CHUNK],
                    np.ones(len(part), np.float32),
                    clip.span_of(rows - start),
                    scratch[: len(part)],
                    np.empty((1, 64), np.float32),
                    total,
                    np.empty(0),
                )
            sums.append(total)
        own = float(np.linalg.norm(left[0].astype(float)) * np.linalg.norm(right[0].astype(float)))
        assert np.linalg.norm(sums[0] - sums[1]) <= own + 2.0**-11


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
