"""Towers in JAX against the torch towers, and their factors against autodiff one example at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp
from models_under_test import MODELS, TASKS, model_of

import dpads
from dpads.batch import Targets
from dpads.errors import ConfigError
from dpads.models.gradients import DenseSums
from dpads.models.jax_losses import JaxTargets, example_losses, loss_gradients


def name_of(description: Any) -> str:
    return str(description.name) + "-wide" * getattr(description, "wide", False)


every_model = pytest.mark.parametrize("description", MODELS, ids=name_of)
every_task = pytest.mark.parametrize("task", TASKS)
# All models for clicks, and wide parts and counts with some of them: the others are sums of the same parts.
QUICK = {
    *((d.name, "ctr") for d in MODELS),
    ("mlp-wide", "ctr"),
    ("mlp", "count"),
    ("dcn", "count"),
}
every_tower = pytest.mark.parametrize(
    ("description", "task"),
    [
        pytest.param(
            description,
            task,
            id=f"{name_of(description)}-{task}",
            marks=[] if (name_of(description), task) in QUICK else pytest.mark.slow,
        )
        for description in MODELS
        for task in TASKS
    ],
)


@cache
def jitted(description: Any, task: str, numeric: int) -> Any:
    """The JAX tower of a model, all that it computes, and gradients of one example's loss, compiled."""
    model = model_of(description, task, numeric)
    tower = description.jax_tower(model.layout, task)

    def loss(params: Any, row: Any, targets: Any) -> Any:
        return tower.losses(params, row[None], targets)[0]

    def everything(params: Any, features: Any, targets: Any) -> Any:
        found = tower.gradients(params, features, targets)
        return tower.logits(params, features), tower.losses(params, features, targets), found

    return tower, jax.jit(everything), jax.jit(jax.grad(loss, argnums=(0, 1)))


def on_device(targets: Any) -> Any:
    """Targets as JAX arrays."""
    weights, exposure = (
        None if v is None else jnp.asarray(v) for v in (targets.weights, targets.exposure)
    )
    return JaxTargets(jnp.asarray(targets.labels), weights, exposure, np.float32(targets.offset))


@st.composite
def problems(draw: Any, description: Any, task: str) -> Any:
    """A model with random parameters, features, and targets; a few sizes, since each is compiled."""
    numeric = draw(st.sampled_from([0, 2]))
    model = model_of(description, task, numeric)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    spread = draw(st.sampled_from([0.1, 0.5]))
    for value in model.dense.values():
        value[...] = rng.normal(0, spread, value.shape)
    size = draw(st.sampled_from([0, 5]))
    features = rng.normal(0, draw(st.sampled_from([0.1, 1.0])), (size, model.layout.width))
    labels = rng.poisson(1.5, size) if task == "count" else rng.integers(0, 2, size)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size) if numeric else None
    exposure = None if task != "count" or numeric else rng.uniform(0.1, 5.0, size)
    parts = [None if v is None else v.astype(np.float32) for v in (labels, weights, exposure)]
    targets = Targets(parts[0], parts[1], parts[2], draw(st.sampled_from([0.0, -1.5])))
    return model, features.astype(np.float32), targets


def close(found: Any, expected: Any, what: str = "") -> None:
    """Equal to what float32 can hold; sums may round by the size of the largest."""
    largest = float(np.abs(expected).max(initial=1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * largest, err_msg=what)


@every_tower
@given(data=st.data())
@settings(max_examples=15)
def test_equals_the_torch_tower_and_autodiff_one_example_at_a_time(
    description: Any, task: str, data: Any
) -> None:
    """Logits, losses, gradients by the features, and each example's gradient by the parameters."""
    model, features, targets = data.draw(problems(description, task))
    tower, everything, by_example = jitted(description, task, model.layout.num_numeric)
    params = {name: jnp.asarray(value) for name, value in model.dense.items()}
    device = on_device(targets)
    with jax.enable_x64(True):
        logits, losses, found = everything(params, features, device)
    wide = features.astype(np.float64)
    close(logits, model.tower.logits(wide))
    close(losses, model.tower.losses(wide, targets))
    expected = np.empty_like(features)
    factored = model.tower.gradients(features, targets, expected)
    close(found.feature_grads, expected)
    assert {value.dtype.name for value in jax.tree.leaves(found)} == {"float32"}

    for number in range(len(features)):
        target = (None if v is None else v[number : number + 1] for v in device[:3])
        by_params, by_row = by_example(params, features[number], JaxTargets(*target, device.offset))
        close(found.feature_grads[number], by_row)
        sums = DenseSums.over(np.zeros(sum(v.size for v in params.values())), model.dense)
        alone = (np.arange(len(features)) == number).astype(np.float32)
        factored.add_clipped(alone, np.empty(0, np.int64), sums)
        for layer in tower.linears:
            inputs, output_grads = (np.asarray(v)[number] for v in found.factors[layer.name])
            for name, own in (("weight", np.outer(output_grads, inputs)), ("bias", output_grads)):
                close(own, sums.parts[f"{layer.name}.{name}"], layer.name)
                close(own, by_params[f"{layer.name}.{name}"], layer.name)


@every_model
@pytest.mark.parametrize("numeric", [0, 2])
def test_parameters_are_those_of_the_torch_tower(description: Any, numeric: int) -> None:
    model = model_of(description, "ctr", numeric)
    shapes = description.jax_tower(model.layout, "ctr").shapes
    assert list(shapes.items()) == [(name, v.shape) for name, v in model.dense.items()]


def random_tower(description: Any, task: str, size: int) -> Any:
    """A tower, random parameters, features and targets."""
    model = model_of(description, task, 2)
    rng = np.random.default_rng(0)
    for value in model.dense.values():
        value[...] = rng.normal(0, 0.3, value.shape)
    features = rng.normal(size=(size, model.layout.width)).astype(np.float32)
    exposure = np.ones(size, np.float32) if task == "count" else None
    labels = rng.integers(0, 2, size).astype(np.float32)
    return dict(model.dense), features, Targets(labels, np.ones(size, np.float32), exposure)


@every_tower
def test_an_examples_bits_are_its_own(description: Any, task: str) -> None:
    """In chunks of one size: in any order, among any others, finite or not; padding adds zeros."""
    tower, *_ = jitted(description, task, 2)
    chunk, size = 32, 96
    params, features, targets = random_tower(description, task, size)

    def chunked(params: Any, features: Any, targets: Any) -> Any:
        cut = jax.tree.map(
            lambda v: v.reshape(-1, chunk, *v.shape[1:]), (features, targets._replace(offset=()))
        )
        found = lax.map(
            lambda some: tower.gradients(params, some[0], some[1]._replace(offset=0.0)), cut
        )
        return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), found)

    gradients = jax.jit(chunked)

    def bits(features: Any, targets: Any) -> Any:
        with jax.enable_x64(True):
            found = gradients(params, features, on_device(targets))
        return [np.asarray(value) for value in jax.tree.leaves(found)]

    whole = bits(features, targets)
    order = np.random.default_rng(1).permutation(size)
    for kept in (order, order[:32], order[32:]):
        exposure = None if targets.exposure is None else targets.exposure[kept]
        some = Targets(targets.labels[kept], targets.weights[kept], exposure)
        found = bits(features[kept], some)
        assert all(np.array_equal(a, b[kept]) for a, b in zip(found, whole, strict=True))
    for value in (np.nan, np.inf, 3e38):
        odd = features.copy()
        odd[::5] = value
        found = bits(odd, targets)
        kept = np.arange(size) % 5 != 0
        assert all(np.array_equal(a[kept], b[kept]) for a, b in zip(found, whole, strict=True))
    padded = features.copy()
    padded[80:], targets.labels[80:], targets.weights[80:] = 0.0, 0.0, 0.0
    found = bits(padded, targets)
    assert all(np.array_equal(a[:80], b[:80]) for a, b in zip(found, whole, strict=True))
    assert not found[0][80:].any()
    assert all(np.isfinite(value).all() for value in found)
    with jax.enable_x64(True):
        last = gradients(params, padded, on_device(targets)).factors.values()
    assert not any(np.asarray(factors.output_grads)[80:].any() for factors in last)


@every_task
def test_loss_gradients_are_the_losses_derivatives(task: str) -> None:
    """Also where the exponential of counts is cut, and where the weight is zero."""
    logits = np.array([-200.0, -80.0, -1.0, 0.0, 0.5, 30.0, 79.0, 81.0, 200.0], np.float32)
    size = len(logits)
    targets = JaxTargets(
        np.arange(size, dtype=np.float32) % 2,
        np.where(np.arange(size) == 4, 0.0, 1.5).astype(np.float32),
        np.linspace(0.5, 2.0, size, dtype=np.float32) if task == "count" else None,
        np.float32(0.25),
    )
    with jax.enable_x64(True):
        found = loss_gradients(task, jnp.asarray(logits), targets)
        wide = jnp.asarray(logits.astype(np.float64))
        expected = jax.grad(lambda z: example_losses(task, z, targets).sum())(wide)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-14)
    with jax.enable_x64(True):
        nothing = jnp.full(size, np.nan, jnp.float32)
        assert loss_gradients(task, nothing, targets)[4] == 0.0


def test_no_array_has_a_gradient_for_every_example() -> None:
    """The largest array of a step on many examples is a layer's vectors or its weight."""
    description = dpads.models.Dcn(embedding_dim=8, cross_layers=2, hidden=(64, 32), wide=True)
    model = model_of(description, "ctr", 2)
    tower = description.jax_tower(model.layout, "ctr")
    size = 512
    targets = JaxTargets(np.ones(size, np.float32), None, None)
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(tower.gradients)(
            dict(model.dense), np.zeros((size, model.layout.width), np.float32), targets
        )
    widest = max(model.layout.width, 64 + model.layout.width)
    largest = max(value.aval.size for eqn in jaxpr.eqns for value in eqn.outvars)
    assert largest <= size * widest


def test_a_model_without_one_names_those_that_have_one() -> None:
    description = dpads.models.TorchModule(module="m.M", structure="", code="", initial="")
    with pytest.raises(ConfigError, match=r"dcn, deepfm, dlrm, fm,.* logistic, mlp.*got \"torch\""):
        description.jax_tower(model_of(MODELS[0]).layout, "ctr")
