"""The kernels in JAX agree with the float64 reference and with numba, whatever the batch and its padding."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from brute_force import ROWS, batches, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax_kernel_places import (
    LARGE,
    SMALL,
    Sizes,
    device_places,
    fill,
    linear_sums,
    row_sums,
)

import dpads
from dpads.kernels import clip, jax_linear, jax_moves, jax_ops, reference
from dpads.kernels.lookup import Places
from dpads.kernels.partial_sums import SUMMED_AT_A_TIME, PartialSums
from dpads.models import Mlp

IN, OUT = 3, 2
SCHEMAS = {
    "bags": schema_of(),
    "shared": dpads.FeatureSchema(
        task="ctr",
        label="y",
        categorical=["a", "b", "c"],
        tables={"shared": ["b", "c"]},
        buckets=ROWS,
    ),
    "apart": dpads.FeatureSchema(task="ctr", label="y", categorical=["a", "b", "c"], buckets=ROWS),
}


class Case:
    """A batch's places in one group, random gradients, and factors of one linear layer."""

    def __init__(self, data: Any, kind: str) -> None:
        schema = SCHEMAS[kind]
        self.dim = 1 if kind == "apart" else 3  # few shapes: each is compiled
        batch = data.draw(batches(schema))
        self.layout = Mlp(embedding_dim=self.dim, hidden=(2,)).layout(schema)
        self.group = self.layout.groups[0]
        self.slots, self.num_rows = len(self.group.slots), self.group.num_rows
        self.places = self.group.places(batch)
        self.segments = batch.unit_offsets
        self.offsets = self.segments
        if self.offsets is None:
            self.offsets = np.arange(batch.num_examples + 1)
        self.regular = kind != "bags" and data.draw(st.booleans())
        self.pairs = "none"
        if kind != "apart" or self.segments is not None:
            self.pairs = data.draw(st.sampled_from(["all", "repeated"]))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        width = self.slots * self.dim
        self.grads = rng.normal(size=(batch.num_examples, width)).astype(np.float32)
        self.inputs = rng.normal(size=(batch.num_examples, IN)).astype(np.float32)
        self.outs = rng.normal(size=(batch.num_examples, OUT)).astype(np.float32)
        self.array = rng.normal(size=(self.num_rows, self.dim)).astype(np.float32)

    @property
    def num_units(self) -> int:
        return len(self.offsets) - 1

    @property
    def units(self) -> np.ndarray | None:
        if self.segments is None:
            return None
        return np.repeat(np.arange(self.num_units, dtype=np.int32), np.diff(self.segments))

    def on_device(self, sizes: Sizes) -> dict[str, Any]:
        """Arguments of `clipped`."""
        units = self.units
        return {
            "grads": fill(self.grads, sizes.examples, 0, np.float32),
            "inputs": fill(self.inputs, sizes.examples, 0, np.float32),
            "outs": fill(self.outs, sizes.examples, 0, np.float32),
            "places": device_places(
                self.places,
                self.dim,
                self.slots,
                units,
                sizes,
                regular=self.regular,
                pairs=self.pairs,
            ),
            "units": None if units is None else fill(units, sizes.examples, sizes.units, np.int32),
            "longest": np.int32(np.diff(self.offsets).max(initial=1)),
            "num_units": sizes.examples if units is None else sizes.units,
            "slots": self.slots,
            "num_rows": sizes.rows,
        }

    def clipped(self, l2_clip_norm: float, sizes: Sizes = SMALL) -> dict[str, np.ndarray]:
        """Norms, factors and sums of the real units and rows."""
        with jax.enable_x64(True):
            found = clipped(**self.on_device(sizes), l2_clip_norm=l2_clip_norm)
        found = {name: np.asarray(value) for name, value in found.items()}
        rows = len(set(self.places.rows.tolist()))
        assert np.all(found["rows"][rows:] == 0.0)
        for name in ("squares", "parts", "norms", "factors"):
            found[name] = found[name][: self.num_units]
        for name, count in (("rows", rows), ("spread", len(self.grads))):
            found[name] = found[name][:count]
        return found


@partial(jax.jit, static_argnames=("slots", "num_units", "num_rows"))
def clipped(
    grads: Any,
    inputs: Any,
    outs: Any,
    places: Any,
    units: Any,
    longest: Any,
    num_units: int,
    slots: int,
    num_rows: int,
    l2_clip_norm: Any,
) -> dict[str, Any]:
    """A unit's gradient over a group of tables and one linear layer jointly, clipped and summed."""
    squares, parts = jax_ops.square_norms(grads, places, slots, units, num_units)
    of_layer = jax_linear.linear_square_norms(inputs, outs, True, units, num_units, longest)
    squares, parts = squares + of_layer[0], parts + of_layer[1]
    norms, factors = jax_ops.clip_factors(squares, parts, l2_clip_norm, 2.0**-12)
    spread = jax_ops.example_factors(factors, units)
    weight, bias = linear_sums(inputs, outs, spread)
    rows = row_sums(grads, places, slots, spread, num_rows)
    return {
        "squares": squares,
        "parts": parts,
        "norms": norms,
        "factors": factors,
        "spread": spread,
        "rows": rows,
        "weight": weight,
        "bias": bias,
    }


def unit_gradient(case: Case, first: int, last: int) -> list[np.ndarray]:
    """By the reference: all touched rows' parts, then weight and bias."""
    rows = reference.unit_table_gradient(case.grads, case.places, case.dim, first, last)
    whole = np.zeros((case.num_rows, case.dim))
    for row, value in rows.items():
        whole[row] = value
    return [whole, *reference.unit_linear_gradient(case.inputs, case.outs, first, last)]


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
@settings(max_examples=40)
def test_clipped_sums_equal_the_reference_and_numba(kind: str, data: Any) -> None:
    case, bound = Case(data, kind), data.draw(st.sampled_from([0.5, 3.0, np.inf]))
    found = case.clipped(bound)
    total = [np.zeros((case.num_rows, case.dim)), np.zeros((OUT, IN)), np.zeros(OUT)]
    for u, (first, last) in enumerate(pairwise(case.offsets)):
        parts = unit_gradient(case, first, last)
        square = sum(float((part**2).sum()) for part in parts)
        assert found["squares"][u] == pytest.approx(square, rel=1e-9, abs=1e-12)
        assert found["squares"][u] >= square * (1 - 1e-14)
        factor = reference.clip_factor(parts, bound)
        assert found["factors"][u] == pytest.approx(factor, rel=1e-6)
        assert np.all(found["spread"][first:last] == found["factors"][u])
        for sums, part in zip(total, parts, strict=True):
            sums += float(found["factors"][u]) * part
    touched = sorted(set(case.places.rows.tolist()))
    np.testing.assert_allclose(found["rows"], total[0][touched], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["weight"], total[1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["bias"], total[2], rtol=1e-12, atol=1e-12)
    squares, parts = np.zeros(case.num_units), np.zeros(case.num_units)
    offsets = case.offsets
    clip.square_norms_merged(case.grads, case.places, 0, case.dim, offsets, squares, parts)
    clip.linear_square_norms(case.inputs, case.outs, 1.0, offsets, squares, parts)
    np.testing.assert_allclose(found["squares"], squares, rtol=1e-12, atol=1e-14)
    if case.pairs == "all":
        np.testing.assert_allclose(found["parts"], parts, rtol=1e-12, atol=1e-14)
    else:  # what cannot cancel is no part
        assert np.all(found["parts"] <= parts * (1 + 1e-12))


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
@settings(max_examples=20)
def test_padding_changes_no_bit(kind: str, data: Any) -> None:
    case = Case(data, kind)
    small, large = case.clipped(1.0), case.clipped(1.0, LARGE)
    for name, value in small.items():
        np.testing.assert_array_equal(value, large[name], err_msg=name)


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
@settings(max_examples=40)
def test_a_unit_that_is_not_finite_changes_no_bit_of_the_others(kind: str, data: Any) -> None:
    case = Case(data, kind)
    if not len(case.grads):
        return
    i = data.draw(st.integers(0, len(case.grads) - 1))
    unit = i if case.units is None else int(case.units[i])
    first, last = case.offsets[unit], case.offsets[unit + 1]
    whole = case.clipped(0.5)
    for matrix in (case.grads, case.inputs, case.outs):
        matrix[first:last] = 0.0
    without = case.clipped(0.5)
    bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    which = data.draw(st.sampled_from(["grads", "inputs", "outs"]))
    if which == "grads" and case.places.offsets[i] == case.places.offsets[i + 1]:
        which = "outs"  # nothing of the example's table gradient is read
    case.grads[first:last] = 1.0
    case.inputs[first:last] = case.outs[first:last] = 1.0
    matrix = getattr(case, which)
    matrix[i] = bad
    found = case.clipped(0.5)
    assert (found["factors"][unit], found["norms"][unit]) == (0.0, np.inf)
    for name in ("rows", "weight", "bias"):
        np.testing.assert_array_equal(found[name], without[name])
    others = np.arange(case.num_units) != unit
    np.testing.assert_array_equal(found["factors"][others], whole["factors"][others])
    np.testing.assert_array_equal(found["norms"][others], whole["norms"][others])


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
@settings(max_examples=40)
def test_a_unit_more_or_less_moves_the_sums_by_the_sensitivity_at_most(
    kind: str, data: Any
) -> None:
    case = Case(data, kind)
    bound = data.draw(st.sampled_from([0.1, 1.0]))
    for matrix in (case.grads, case.inputs, case.outs):
        matrix *= np.float32(data.draw(st.sampled_from([1.0, 1e-3, 1e15])))
    if not case.num_units:
        return
    unit = data.draw(st.integers(0, case.num_units - 1))
    first, last = case.offsets[unit], case.offsets[unit + 1]
    whole = case.clipped(bound)
    for matrix in (case.grads, case.inputs, case.outs):
        matrix[first:last] = 0.0
    without = case.clipped(bound)
    moved = sum(
        float(((whole[name] - without[name]) ** 2).sum()) for name in ("rows", "weight", "bias")
    )
    assert np.sqrt(moved) <= bound * (1.0 + 1e-9)


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
@settings(max_examples=40)
def test_pool_equals_the_reference_and_reads_no_padding(kind: str, data: Any) -> None:
    case = Case(data, kind)
    expected = np.zeros((len(case.grads), case.slots * case.dim))
    reference.pool(case.array, case.places, 0, expected)
    for sizes in (SMALL, LARGE):
        places = case.on_device(sizes)["places"]
        values = np.full((sizes.rows, case.dim), np.nan, np.float32)
        read = sorted(set(case.places.rows.tolist()))
        values[: len(read)] = case.array[read]
        found = np.asarray(_pool_touched(values, places, sizes.examples, case.slots))
        assert np.all(found[len(expected) :] == 0.0)
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-5, atol=1e-5)


_pool_touched = jax.jit(jax_ops.pool_touched, static_argnums=(2, 3))


def _clip_factors(squares: Any, parts: Any, bound: float, floor: float) -> Any:
    with jax.enable_x64(True):
        found = jax.jit(jax_ops.clip_factors)(squares, parts, bound, floor)
        return tuple(np.asarray(value) for value in found)


@pytest.mark.parametrize("bound", [1.0, 0.3, 1e-6, 1e12, np.inf])
def test_clip_factors_are_numbas(bound: float) -> None:
    rng = np.random.default_rng(0)
    lengths = [0.0, 0.5, 1.0, 1 + 1e-16, 1 + 1e-7, 3.0, 1e30, 1e31, 1e40, np.inf, np.nan]
    squares = np.array([*lengths, *np.exp(rng.normal(0, 5, 200))]) ** 2 * min(bound, 1e9) ** 2
    parts = np.where(rng.random(len(squares)) < 0.5, 0.0, 40.0 * np.sqrt(squares))
    for floor in (2.0**-12, 2.0**-4):
        norms, factors = np.empty(len(squares)), np.empty(len(squares), np.float32)
        clip.clip_factors(squares, parts, bound, floor, norms, factors)
        found = _clip_factors(squares, parts, bound, floor)
        np.testing.assert_array_equal(found[0], norms)
        np.testing.assert_array_equal(found[1], factors)
        assert np.all(found[1][np.isfinite(squares)] * norms[np.isfinite(squares)] <= bound)


@pytest.mark.parametrize("pairs", ["all", "repeated"])
def test_units_whose_parts_cancel_are_clipped_by_their_parts(pairs: str) -> None:
    # two examples of one user, gradients (g, -g) up to the last bits: the norm is rounding alone
    grads = np.array([[1e3], [-1e3 + 2.0**-14]], np.float32)
    places = Places(
        np.array([2, 2]),
        np.zeros(2, np.int32),
        np.ones(2, np.float32),
        np.array([0, 1], np.int32),
        np.array([0, 1, 2]),
    )
    units = np.zeros(2, np.int32)
    device = device_places(places, 1, 1, units, Sizes(2, 2, 1, 1), pairs=pairs)
    with jax.enable_x64(True):
        squares, parts = jax.jit(jax_ops.square_norms, static_argnums=(2, 4))(
            grads, device, 1, units, 1
        )
    assert parts[0] == pytest.approx(2e3, rel=1e-6)
    assert squares[0] == pytest.approx(2.0**-28, rel=1e-4)
    _, factors = _clip_factors(squares, parts, 0.1, 2.0**-4)
    assert factors[0] == pytest.approx(0.1 / (2e3 / 16), rel=1e-4)


@given(data=st.data())
@settings(max_examples=40)
def test_layers_that_read_several_vectors_an_example(data: Any) -> None:
    positions, size = 3, 5
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inputs = rng.normal(size=(size * positions, IN)).astype(np.float32)
    outs = rng.normal(size=(size * positions, OUT)).astype(np.float32)
    cuts = data.draw(st.none() | st.lists(st.integers(0, size), min_size=2, max_size=2))
    offsets = np.arange(size + 1) if cuts is None else np.array([0, *sorted(cuts), size])
    count = len(offsets) - 1
    units = None if cuts is None else np.repeat(np.arange(count, dtype=np.int32), np.diff(offsets))
    longest = np.int32(np.diff(offsets).max())
    factors = rng.choice(np.array([0.0, 0.5, 1.0], np.float32), size)
    with jax.enable_x64(True):
        squares, parts = jax.jit(jax_linear.linear_square_norms, static_argnums=(2, 4, 6))(
            inputs, outs, True, units, count, longest, positions
        )
        weight, bias = jax.jit(linear_sums, static_argnums=3)(inputs, outs, factors, positions)
    expected, expected_parts = np.zeros(count), np.zeros(count)
    clip.linear_square_norms(inputs, outs, 1.0, offsets * positions, expected, expected_parts)
    np.testing.assert_allclose(squares, expected, rtol=1e-12)
    np.testing.assert_allclose(parts, expected_parts, rtol=1e-12)
    left = np.repeat(factors, positions)[:, None] * outs.astype(np.float64)
    np.testing.assert_allclose(weight, left.T @ inputs, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(bias, left.sum(axis=0), rtol=1e-12, atol=1e-12)


@given(data=st.data())
@settings(max_examples=30)
def test_groups_are_summed_in_float32_and_large_ones_in_float64(data: Any) -> None:
    counts = data.draw(st.lists(st.sampled_from([0, 1, 5, 96, 97, 230]), min_size=9, max_size=9))
    size = 9 * 256
    used = sum(counts)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    inputs = rng.normal(size=(size, IN)).astype(np.float32)
    outs = rng.normal(size=(size, OUT)).astype(np.float32)
    factors = rng.choice(np.array([0.0, 0.3, 1.0], np.float32), size)
    factors[used:] = 0.0
    inputs[factors == 0.0] = np.nan
    outs[factors == 0.0] = np.inf
    groups = np.cumsum([0, *counts]).astype(np.int32)
    with jax.enable_x64(True):
        weight, bias = _linear_sums(inputs, outs, factors, 1, groups)
        exact, exact_bias = _linear_sums(inputs, outs, factors)
    # each group by itself: float32 products where it is small, and nothing is rounded where it is large
    expected = np.zeros((OUT, IN))
    for first, last in pairwise(groups):
        own = factors[first:last] != 0.0
        right, scale = inputs[first:last][own], factors[first:last][own, None]
        left = outs[first:last][own]
        if last - first <= 96:
            expected += ((scale * left).T @ right).astype(np.float64)
        else:
            expected += (scale.astype(np.float64) * left).T @ right.astype(np.float64)
    np.testing.assert_allclose(weight, expected, rtol=1e-12, atol=96 * 2.0**-22)
    np.testing.assert_allclose(weight, exact, rtol=1e-12, atol=96 * 2.0**-22)
    np.testing.assert_allclose(bias, exact_bias, atol=used * 2.0**-24)
    if all(count > 96 or count == 0 for count in counts):
        np.testing.assert_allclose(weight, exact, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(bias, exact_bias, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("width_in", "width_out"), [(1, 1), (1, 50), (2, 3), (13, 1), (40, 7)])
def test_a_groups_bits_do_not_depend_on_what_stands_before_it(
    width_in: int, width_out: int
) -> None:
    """A unit more in another group moves it, up to the end of the chunk."""
    size, count = 1104, 71
    rng = np.random.default_rng(width_in)
    own = [rng.normal(size=(count, width)).astype(np.float32) for width in (width_in, width_out)]
    found = []
    for begin in (0, 1, 500, size - count - 1, size - count):
        arrays = [rng.normal(size=(size, values.shape[1])).astype(np.float32) for values in own]
        for array, values in zip(arrays, own, strict=True):
            array[begin : begin + count] = values
        factors = np.zeros(size, np.float32)
        factors[begin : begin + count] = 0.3
        groups = np.array([0, begin, begin + count, size], np.int32)
        with jax.enable_x64(True):
            found.append(_linear_sums(*arrays, factors, 1, groups))
    for weight, bias in found:
        np.testing.assert_array_equal(weight, found[0][0])
        np.testing.assert_array_equal(bias, found[0][1])


_linear_sums = jax.jit(linear_sums, static_argnums=3)


def test_rounding_in_groups_stays_within_the_slack() -> None:
    # 96 gradients of norm C, all alike: float32 sums move by less than (n^2 / 2 + n) 2^-24 C
    inputs, factors = np.full((96, 1), 1 / 3, np.float32), np.full(96, 0.7, np.float32)
    groups = np.array([0, 96], np.int32)
    with jax.enable_x64(True):
        found = float(_linear_sums(inputs, inputs, factors, 1, groups)[0][0, 0])
        exact = float(_linear_sums(inputs, inputs, factors)[0][0, 0])
    assert 0 < abs(found - exact) < (96**2 / 2 + 96) * 2.0**-24 * exact / 96


def test_sums_lose_nothing_of_many_small_terms() -> None:
    # float32 sums of these would be off by 1e-5; one product in float32 by 1e-8
    size = 4096
    rng = np.random.default_rng(1)
    grads = (1.0 + rng.random((size, 1)) * 1e-3).astype(np.float32)
    factors = rng.random(size).astype(np.float32)
    places = Places(
        np.zeros(size, np.int64),
        np.zeros(size, np.int32),
        np.full(size, 0.3, np.float32),
        np.arange(size, dtype=np.int32),
        np.arange(size + 1),
    )
    device = device_places(places, 1, 1, None, Sizes(size, size, 1, size))
    with jax.enable_x64(True):
        rows = jax.jit(row_sums, static_argnums=(2, 4))(grads, device, 1, factors, 1)
        weight, bias = jax.jit(linear_sums)(grads, grads, factors)
    wide = grads[:, 0].astype(np.float64)
    expected = float((factors.astype(np.float64) * float(np.float32(0.3)) * wide).sum())
    assert float(rows[0, 0]) == pytest.approx(expected, rel=1e-12)
    assert float(weight[0, 0]) == pytest.approx(float((factors * wide * wide).sum()), rel=1e-12)
    assert float(bias[0]) == pytest.approx(float((factors * wide).sum()), rel=1e-12)


def test_no_array_has_the_size_of_batch_times_rows_or_batch_times_parameters() -> None:
    rows, dim, size, slots, wide = 1_000_000, 16, 1024, 4, 256
    length = size * slots

    def of(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    places = jax_ops.DevicePlaces(
        None,
        of(np.float32, length),
        None,
        of(np.int32, length),
        of(np.int32, length),
        of(np.int32, length),
        sums=PartialSums(of(np.int32, length), (of(np.int32, 2 * length // SUMMED_AT_A_TIME),)),
    )

    def step(table: Any, touched: Any, places: Any, outs: Any, units: Any, groups: Any) -> Any:
        read = jax_moves.take_rows(table, touched)
        features = jax_ops.pool_touched(read, places, size, slots)
        inputs = jax.numpy.tile(features, (1, wide // (slots * dim)))
        found = clipped(features, inputs, outs, places, units, 4, size, slots, length, 1.0)
        more = linear_sums(inputs, outs, found["spread"], 1, groups)
        moved = read + found["rows"].astype(np.float32)
        return jax_moves.put_rows(table, touched, moved), found["weight"], more

    with jax.enable_x64(True):
        arguments = (of(np.float32, rows, dim), of(np.uint32, length), places)
        arguments += (of(np.float32, size, wide),)
        arguments += (of(np.int32, size), of(np.int32, 20))
        compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= rows * dim * 4  # the table is changed in place
    # 20 MB beside it: gradients of single examples would be 270 MB, the smallest copy of the table 64 MB
    assert memory.temp_size_in_bytes < 20e6


def test_nothing_is_certified_in_32_bits() -> None:
    with (
        pytest.warns(UserWarning, match="float64"),
        pytest.raises(TypeError, match=r"enable_x64"),
    ):
        jax.jit(jax_ops.clip_factors)(np.ones(1), np.zeros(1), 1.0, 0.0)
