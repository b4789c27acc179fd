"""Kernels agree with the float64 reference, whatever the shapes and the number of threads."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from brute_force import ROWS, batches, schema_of
from hypothesis import given
from hypothesis import strategies as st

from dpads.errors import SchemaError
from dpads.kernels import clip, lookup, reference
from dpads.kernels.merge import like, merge_runs, sort_places
from dpads.models import Mlp
from dpads.schedules import learning_rates
from dpads.schema import FeatureSchema


def _places(data: Any, dim: int) -> tuple[Any, Any, Any]:
    schema = schema_of()
    batch = data.draw(batches(schema))
    layout = Mlp(embedding_dim=dim, hidden=(2,)).layout(schema)
    return batch, layout, layout.groups[0].places(batch)


@given(data=st.data())
def test_pool_equals_reference(data: Any) -> None:
    dim = data.draw(st.integers(1, 5))
    batch, layout, places = _places(data, dim)
    array = (
        np.random.default_rng(0).normal(size=(layout.groups[0].num_rows, dim)).astype(np.float32)
    )
    found = np.zeros((batch.num_examples, layout.width), np.float32)
    expected = np.zeros((batch.num_examples, layout.width))
    lookup.pool(array, places, 0, found)
    reference.pool(array, places, 0, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(data=st.data())
def test_square_norms_and_sums_equal_reference(data: Any) -> None:
    dim = data.draw(st.integers(1, 5))
    batch, layout, places = _places(data, dim)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    grads = rng.normal(size=(batch.num_examples, layout.width)).astype(np.float32)
    offsets = batch.unit_offsets
    if offsets is None:
        offsets = np.arange(batch.num_examples + 1)
    units = len(offsets) - 1
    squares, parts = np.zeros(units), np.zeros(units)
    clip.square_norms_merged(grads, places, 0, dim, offsets, squares, parts)
    inputs = rng.normal(size=(batch.num_examples, 4)).astype(np.float32)
    linear, linear_parts = np.zeros(units), np.zeros(units)
    clip.linear_square_norms(inputs, grads, 1.0, offsets, linear, linear_parts)
    factors = rng.choice([0.0, 0.25, 1.0], size=units).astype(np.float32)
    spread = np.empty(batch.num_examples, np.float32)
    clip.spread_to_examples(factors, offsets, spread)
    runs = merge_runs(places.rows)
    sums = np.empty((len(runs.rows), dim))
    half = len(sums) // 2
    by_row = like(places)
    for first in range(0, len(places.rows), 3):
        last = min(first + 3, len(places.rows))
        sort_places(places, runs, first, last, by_row)
    clip.merged_sum(grads, by_row, spread, runs, 0, sums[:half])
    clip.merged_sum(grads, by_row, spread, runs, half, sums[half:])
    holed = np.where(spread[:, None] == 0, np.float32(np.nan), grads)
    again = np.empty_like(sums)
    clip.merged_sum(holed, by_row, spread, runs, 0, again)
    np.testing.assert_array_equal(again, sums)
    total: dict[int, Any] = {int(row): np.zeros(dim) for row in runs.rows}
    for u, (first, last) in enumerate(pairwise(offsets)):
        rows = reference.unit_table_gradient(grads, places, dim, first, last)
        assert squares[u] == pytest.approx(
            sum((g**2).sum() for g in rows.values()), rel=1e-9, abs=1e-12
        )
        assert squares[u] >= sum((g**2).sum() for g in rows.values()) * (1 - 1e-15)
        weight, bias = reference.unit_linear_gradient(inputs, grads, first, last)
        expected = (weight**2).sum() + (bias**2).sum()
        assert linear[u] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert linear[u] >= expected * (1 - 1e-12)
        for row, value in rows.items():
            total[row] += float(factors[u]) * value
    for row, value in zip(runs.rows, sums, strict=True):
        np.testing.assert_allclose(value, total[int(row)], rtol=1e-12, atol=1e-12)


@given(rows=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 1)), max_size=200))
def test_merge_runs_is_a_stable_sort(rows: list[int]) -> None:
    array = np.array(rows, np.int64)
    runs = merge_runs(array)
    assert np.array_equal(runs.order, np.argsort(array, kind="stable"))
    unique, starts = np.unique(np.sort(array), return_index=True)
    assert np.array_equal(runs.rows, unique)
    assert np.array_equal(runs.starts, [*starts, len(array)])


@pytest.mark.parametrize("whole", [True, False])
def test_examples_that_cannot_repeat_a_row_take_the_short_way_with_the_same_result(
    whole: bool,
) -> None:
    rng = np.random.default_rng(0)
    size, fields, dim = 50, 4, 3
    rows = (rng.integers(0, ROWS, (size, fields)) + ROWS * np.arange(fields)).reshape(-1)
    places = lookup.Places(
        rows,
        np.tile(np.arange(fields) * dim, size).astype(np.int32),
        np.ones(size * fields, np.float32),
        np.repeat(np.arange(size), fields).astype(np.int32),
        np.arange(size + 1) * fields,
    )
    kept = np.ones(len(rows), bool) if whole else rng.random(len(rows)) < 0.9
    offsets = np.concatenate([[0], np.cumsum(kept.reshape(size, fields).sum(axis=1))])
    places = lookup.Places(*(part[kept] for part in places[:-1]), offsets)
    grads = rng.normal(size=(size, 2 + fields * dim)).astype(np.float32)
    short, long, parts = np.zeros(size), np.zeros(size), np.zeros(size)
    clip.square_norms_distinct(grads[10:], places, 10, dim, fields, short[10:])
    clip.square_norms_distinct(grads[:10], places, 0, dim, fields, short[:10])
    clip.square_norms_merged(grads, places, 0, dim, np.arange(size + 1), long, parts)
    np.testing.assert_allclose(short, long, rtol=1e-12)


@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0, 1.0 + 1e-7, 3.0, 1e30, np.inf, np.nan])
def test_clip_factors(norm: float) -> None:
    norms, factors = np.empty(1), np.empty(1, np.float32)
    clip.clip_factors(np.array([norm**2]), np.zeros(1), 1.0, 2.0**-4, norms, factors)
    if not np.isfinite(norm):
        assert (factors[0], norms[0]) == (0.0, np.inf)
        return
    assert float(factors[0]) * norm <= 1.0
    assert factors[0] == pytest.approx(reference.clip_factor([np.array([norm])], 1.0), rel=1e-6)


def test_a_group_beyond_32_bit_row_addresses_is_refused() -> None:
    columns = ["a", "b", "c"]
    schema = FeatureSchema(task="ctr", label="y", categorical=columns, buckets=2**31 - 1)
    with pytest.raises(SchemaError, match="fewer buckets"):
        Mlp(embedding_dim=4, hidden=(2,)).layout(schema)


def test_the_cosine_schedule_keeps_its_digits_at_the_end() -> None:
    steps = 1_000_000
    rates = learning_rates("cosine", 0.5, steps)
    with mpmath.workdps(40):
        for t in (0, steps // 2, steps - 60, steps - 2, steps - 1):
            exact = mpmath.cos(mpmath.pi * t / (2 * steps)) ** 2 / 2
            assert float(rates[t] / exact) == pytest.approx(1.0, abs=1e-12)


def test_only_linear_and_relu_layers_in_turn_are_a_stack() -> None:
    from torch import nn

    from dpads.models.torch_stack import Stack

    def linear(width_out: int, *, bias: bool = True) -> nn.Module:
        return nn.Linear(3, width_out, bias=bias).requires_grad_(False)

    flat = nn.Flatten(0)
    stacks = [
        nn.Sequential(linear(1), flat),
        nn.Sequential(linear(3), nn.ReLU(), linear(1), flat),
    ]
    others = [
        nn.Sequential(linear(3), linear(1), flat),
        nn.Sequential(linear(3), nn.Tanh(), linear(1), flat),
        nn.Sequential(linear(3), nn.ReLU(), linear(2), flat),
        nn.Sequential(linear(3, bias=False), nn.ReLU(), linear(1), flat),
        nn.Sequential(nn.ReLU(), linear(1), flat),
        nn.Sequential(linear(1), nn.ReLU()),
        linear(1),
    ]
    for module, is_stack in [(m, True) for m in stacks] + [(m, False) for m in others]:
        names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        assert (Stack.of(module, names) is not None) == is_stack
