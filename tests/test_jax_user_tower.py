"""A user's function in JAX: gradients one unit at a time, and clipped sums in chunks."""

from __future__ import annotations

import dataclasses
import re
from functools import cache, partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from brute_force import as_dense, batches, perturb, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp
from jax_functions import DIM, FUNCTIONS, LAYERS, description_of, every_function, joined, model_of
from test_models_contract import rows_of, taken
from test_module_mixing import assert_logits_are_each_rows_own

import dpads
from dpads.models.jax_function import from_jax
from dpads.models.jax_losses import JaxTargets, example_losses

TASKS = ["ctr", "count"]
FLOOR = 0.5  # of the parts of a unit, so that it is seen to matter
BEFORE = 0.25  # sums of examples of other chunks


@every_function
def test_layers_are_found_where_they_are_used_as_such(name: str) -> None:
    tower = description_of(name).converted.tower
    layers, whole = LAYERS[name]
    assert {layer.name: layer.positions for layer in tower.linears} == layers
    assert tower.whole == whole
    assert tower.shapes == {n: np.shape(v) for n, v in FUNCTIONS[name][1].items()}


def unit_gradients(model: Any, function: Any) -> Any:
    """Gradients of the loss of a unit by every parameter and table, from the definition, in float64."""
    layout = model.layout

    def loss(params: Any, batch: Any, first: int, last: int) -> Any:
        total = jnp.zeros((), jnp.float64)
        for i in range(first, last):
            embedded = {}
            for group in layout.groups:
                for slot in group.slots:
                    table = params["tables." + slot.table]
                    embedded[slot.field.name] = pooled(table, batch, slot.field, i)
            dense = jnp.asarray(batch.dense[i], jnp.float64)
            own = {n.removeprefix("dense."): v for n, v in params.items()}
            logit = jnp.reshape(function(own, embedded, dense), (1,))
            parts = [
                None if v is None else jnp.asarray(v[i : i + 1])
                for v in (batch.labels, batch.weights, batch.exposure)
            ]
            target = JaxTargets(*parts, 0.0)  # type: ignore[arg-type]
            total = total + example_losses(model.schema.task, logit, target)[0]
        return total

    return jax.grad(loss)


def pooled(table: Any, batch: Any, field: Any, i: int) -> Any:
    """What a field of example i reads in a table."""
    if not field.is_bag:
        row = int(batch.scalar_ids[i, batch.field_names.index(field.name)])
        return table[row] if row >= 0 else jnp.zeros(table.shape[1])
    bag = batch.bags[field.name]
    kept = [k for k in range(bag.offsets[i], bag.offsets[i + 1]) if bag.values[k] >= 0]
    weights = [1.0 if bag.weights is None else float(bag.weights[k]) for k in kept]
    rows = [w * table[int(bag.values[k])] for w, k in zip(weights, kept, strict=True)]
    total = sum(rows, jnp.zeros(table.shape[1]))
    return total / len(kept) if field.pooling == "mean" and kept else total


@pytest.mark.parametrize(
    ("name", "task"), [*((n, "ctr") for n in FUNCTIONS), ("no_layers", "count")]
)
@given(data=st.data())
@settings(max_examples=5)
def test_the_kernels_of_the_host_equal_autodiff_one_unit_at_a_time(
    name: str, task: str, data: Any
) -> None:
    model = perturb(model_of(name, task), data.draw(st.integers(0, 100)))
    batch = data.draw(batches(model.schema))
    clip = data.draw(st.sampled_from([0.3, 1.0, float("inf")]))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip)
    offsets = batch.unit_offsets
    if offsets is None:
        offsets = np.arange(batch.num_examples + 1)
    with jax.enable_x64(True):
        gradient = unit_gradients(model, FUNCTIONS[name][0])
        params = {n: jnp.asarray(v, jnp.float64) for n, v in model.state().items()}
        found = [gradient(params, batch, int(a), int(b)) for a, b in pairwise(offsets)]
    found = [{n: np.asarray(v) for n, v in one.items()} for one in found]
    norms = np.array([np.sqrt(sum((g**2).sum() for g in one.values())) for one in found])
    np.testing.assert_allclose(out.norms, norms, rtol=3e-5, atol=1e-6)
    factors = np.minimum(1.0, clip / np.maximum(norms, 1e-30))
    got = as_dense(model, out)
    for key, value in params.items():
        parts = (f * g[key] for f, g in zip(factors, found, strict=True))
        total = sum(parts, np.zeros(value.shape))
        np.testing.assert_allclose(got[key], total, rtol=1e-4, atol=2e-5, err_msg=key)


def factors_of(clip: float, squares: Any, parts: Any) -> Any:
    """The plain law of clipping; not a finite one is left out."""
    norms = jnp.maximum(jnp.sqrt(squares), FLOOR * parts)
    ratios = jnp.where(norms <= clip, 1.0, clip / norms)
    return jnp.where(jnp.isfinite(squares), ratios, 0.0).astype(jnp.float32)


@cache
def clip_whole(name: str, task: str, chunk: int, units: bool) -> Any:
    """`clip_whole` with a clip norm, and the gradients that it sums; compiled once."""
    tower = dataclasses.replace(description_of(name, task).converted.tower, chunk=chunk)

    def call(
        clip: Any, params: Any, features: Any, targets: Any, of_unit: Any, *others: Any
    ) -> Any:
        law = partial(factors_of, clip)
        own = of_unit if units else None
        before = {name: jnp.full(tower.shapes[name], BEFORE) for name in tower.whole}
        found = tower.clip_whole(params, features, targets, own, *others, before, law)
        return found, tower.whole_gradients(params, features, targets)

    return jax.jit(call)


@st.composite
def examples(draw: Any, name: str, task: str) -> Any:
    """Parameters, features, targets and units; padding at the end."""
    model = perturb(model_of(name, task), draw(st.integers(0, 100)))
    lengths = draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, 9]), min_size=1, max_size=6))
    size, real = 16, min(sum(lengths), 16)
    seeded = np.random.default_rng(draw(st.integers(0, 100)))
    features = seeded.normal(size=(size, model.layout.width)).astype(np.float32)
    features[real:] = 0.0
    weights = np.where(np.arange(size) < real, seeded.choice([0.5, 1.0, 2.0], size), 0.0)
    labels = seeded.integers(0, 2, size).astype(np.float32)
    exposure = np.where(np.arange(size) < real, 1.5, 1.0).astype(np.float32)
    count = task == "count"
    targets = JaxTargets(labels, weights.astype(np.float32), exposure if count else None, 0.25)
    of_unit = np.repeat(np.arange(len(lengths)), lengths)[:real]
    units = np.full(size, 16, np.int32)
    units[:real] = of_unit
    return model, features, targets, units


@pytest.mark.parametrize(("name", "task"), [("layers_and_others", "count"), ("no_layers", "ctr")])
@given(data=st.data())
@settings(max_examples=15)
def test_sums_in_chunks_are_those_of_single_units(name: str, task: str, data: Any) -> None:
    """Any number of examples a unit, in one chunk or over several; squares of others count too."""
    model, features, targets, units = data.draw(examples(name, task))
    chunk, clip = data.draw(st.sampled_from([2, 32])), data.draw(st.sampled_from([0.5, 1e9]))
    by_unit = data.draw(st.booleans())
    if not by_unit:
        units = np.where(units < 16, np.arange(16), 16).astype(np.int32)
    others, parts = np.linspace(0.0, 2.0, 16), np.linspace(0.0, 10.0, 16)
    params, tower = dict(model.dense), description_of(name, task).converted.tower
    with jax.enable_x64(True):
        arguments = (clip, params, features, targets, units, others, parts)
        found, each = clip_whole(name, task, chunk, by_unit)(*arguments)
    each = {n: np.asarray(v, np.float64) for n, v in each.items()}
    sums = {n: np.full(v.shape[1:], BEFORE) for n, v in each.items()}
    for unit in range(16):
        own = {n: v[units == unit].sum(axis=0) for n, v in each.items()}
        norms = np.sqrt(sum(np.square(v).reshape(16, -1).sum(axis=1) for v in each.values()))
        spread = norms[units == unit].sum() if (units == unit).sum() > 1 else 0.0
        square = others[unit] + sum(np.square(v).sum() for v in own.values())
        np.testing.assert_allclose(found.squares[unit], square, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(found.parts[unit], parts[unit] + spread, rtol=1e-5, atol=1e-9)
        norm = max(np.sqrt(square), FLOOR * (parts[unit] + spread))
        for n, v in own.items():
            sums[n] += (1.0 if norm <= clip else clip / norm) * v
    assert set(found.sums) == set(tower.whole)
    for n, v in sums.items():
        assert found.sums[n].dtype == np.float64
        np.testing.assert_allclose(found.sums[n], v, rtol=1e-4, atol=1e-5, err_msg=n)


@pytest.mark.parametrize("by_unit", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit(
    value: float, by_unit: bool
) -> None:
    name = "layers_and_others"
    model = perturb(model_of(name), 3)
    features = np.random.default_rng(1).normal(size=(16, model.layout.width)).astype(np.float32)
    units = np.arange(16, dtype=np.int32) // (2 if by_unit else 1)
    weights, labels, zeros = np.ones(16, np.float32), np.ones(16, np.float32), np.zeros(16)
    call = partial(clip_whole(name, "ctr", 4, by_unit), 1.0, dict(model.dense))
    for at in (0, 5, 15):
        bad, left_out = features.copy(), weights.copy()
        bad[at] = value
        left_out[units == units[at]] = 0.0
        with jax.enable_x64(True):
            one, _ = call(bad, JaxTargets(labels, weights, None), units, zeros, zeros)
            other, _ = call(features, JaxTargets(labels, left_out, None), units, zeros, zeros)
        if value == 3e38 and np.isfinite(one.squares).all():
            continue  # large but finite: clipped like any other
        assert not np.isfinite(one.squares[units[at]])
        for n, total in one.sums.items():
            assert np.array_equal(total, other.sums[n])


def test_examples_that_no_weight_marks_as_padding_add_nothing() -> None:
    """Chunks are filled up, where they are not full: what fills them has no weight where none is given."""
    model = perturb(model_of("no_layers"), 3)
    features = np.random.default_rng(1).normal(size=(16, model.layout.width)).astype(np.float32)
    sums = []
    own = np.arange(16, dtype=np.int32)
    for chunk, units in ((16, None), (32, None), (32, own), (16, own)):
        tower = dataclasses.replace(description_of("no_layers").converted.tower, chunk=chunk)
        with jax.enable_x64(True):
            found = tower.clip_whole(
                dict(model.dense),
                jnp.asarray(features),
                JaxTargets(jnp.ones(16, jnp.float32), None, None),
                None if units is None else jnp.asarray(units),
                jnp.zeros(16),
                jnp.zeros(16),
                {name: jnp.zeros(tower.shapes[name]) for name in tower.whole},
                partial(factors_of, 1e9),
            )
        assert found.squares.shape == (16,)
        sums.append(found.sums)
    for other in sums[1:]:
        for n, value in sums[0].items():
            np.testing.assert_allclose(other[n], value, rtol=1e-6, atol=1e-7)


def test_no_array_has_a_gradient_for_every_example() -> None:
    """Gradients that are no layer's stand in memory for a chunk."""
    width = 5 * DIM + 2

    def apply(params: Any, embedded: Any, dense: Any) -> Any:
        return jnp.matmul(params["matrix"], joined(embedded, dense)).sum()

    params = {"matrix": np.ones((2000, width))}
    tower = from_jax(apply, params, schema_of(), embedding_dim=DIM).converted.tower
    size, numbers = 4096, 2000 * width
    assert tower.chunk * numbers * 20 <= 1 << 26
    with jax.enable_x64(True):
        for units in (None, jnp.zeros(size, jnp.int32)):
            program = jax.make_jaxpr(
                partial(tower.clip_whole, factors_of=partial(factors_of, 1.0))
            )(
                {"matrix": jnp.zeros((2000, width), jnp.float32)},
                jnp.zeros((size, width), jnp.float32),
                JaxTargets(jnp.ones(size, jnp.float32), None, None),
                units,
                jnp.zeros(size),
                jnp.zeros(size),
                {"matrix": jnp.zeros((2000, width))},
            )
            shapes = re.findall(r"f(?:32|64)\[([0-9,]+)\]", str(program))
            largest = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)
            assert largest <= (tower.chunk + 1) * numbers


@every_function
def test_logits_are_each_rows_own(name: str) -> None:
    model = perturb(model_of(name), 2)
    features = model.features(taken(rows_of(700, 4), np.arange(700)))
    assert_logits_are_each_rows_own(model.tower, features)


@every_function
@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_the_function(name: str, task: str) -> None:
    model = perturb(model_of(name, task), 2)
    batch = taken(rows_of(300, 4, task), np.arange(300))
    found = model.losses(batch)
    assert found.dtype == np.float64
    features = model.features(batch, np.float64)
    names = [slot.field.name for group in model.layout.groups for slot in group.slots]
    with jax.enable_x64(True):
        params = {n: jnp.asarray(v, jnp.float64) for n, v in model.dense.items()}
        for i in (0, 256, 299):
            row, width = jnp.asarray(features[i]), model.layout.embedded
            embedded = dict(zip(names, row[:width].reshape(-1, DIM), strict=True))
            logit = jnp.reshape(FUNCTIONS[name][0](params, embedded, row[width:]), (1,))
            exposure = None if batch.exposure is None else batch.exposure[i : i + 1]
            target: Any = JaxTargets(batch.labels[i : i + 1], None, exposure)
            expected = example_losses(task, logit, target)[0]  # type: ignore[arg-type]
            np.testing.assert_allclose(found[i], expected, rtol=1e-5)


def test_numbers_that_name_no_type_have_32_bits() -> None:
    """As where the user wrote the function, whatever dpads enables around it."""

    def apply(params: Any, embedded: Any, dense: Any) -> Any:
        assert jnp.zeros(2).dtype == jnp.float32
        start = jnp.zeros(DIM)  # a loop must return what it was given
        end = lax.fori_loop(0, 2, lambda i, v: v + embedded["a"] * jnp.arange(DIM), start)
        return (end * params["scale"]).sum()

    from_jax(apply, {"scale": np.ones(())}, schema_of(), embedding_dim=DIM)


def test_initial_parameters_are_the_functions_own_and_tables_follow_the_seed() -> None:
    description = description_of("layers_alone")
    one, other = (description.init(schema_of(), seed=seed) for seed in (1, 2))
    for name, value in FUNCTIONS["layers_alone"][1].items():
        assert np.array_equal(one.dense[name], np.asarray(value, np.float32))
        one.dense[name][...] = 0.0  # its own copies
        assert np.array_equal(other.dense[name], np.asarray(value, np.float32))
    assert not np.array_equal(one.tables["a"], other.tables["a"])
    assert one.tables["a"].std() == pytest.approx(0.05, rel=0.4)
    assert np.array_equal(
        other.tables["a"], dpads.models.Mlp(embedding_dim=DIM).init(schema_of(), seed=2).tables["a"]
    )
