"""A user's functions in JAX, small, of each kind: what is a layer of ours, and what is not."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from brute_force import schema_of
from jax import lax
from jax import numpy as jnp

from dpads.models.jax_function import from_jax
from dpads.models.jax_layers import linear

DIM = 3
rng = np.random.default_rng(0)


def given_params(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Parameters by name; two underscores are a point."""
    return {name.replace("__", "."): 0.5 * rng.normal(size=s) for name, s in shapes.items()}


def stacked(embedded: Any) -> Any:
    """The fields' vectors, [5, DIM]."""
    return jnp.stack([embedded[name] for name in "abcsm"])


def joined(embedded: Any, dense: Any) -> Any:
    """All that an example has, [5 * DIM + K]."""
    return jnp.concatenate([stacked(embedded).ravel(), dense])


def layers_alone(params: Any, embedded: Any, dense: Any) -> Any:
    """Every parameter is a layer's; one has no bias."""
    hidden = jnp.tanh(linear(params, "hidden", joined(embedded, dense)))
    return linear(params, "output", hidden)


def layers_and_others(params: Any, embedded: Any, dense: Any) -> Any:
    """A normalisation between layers, and a product that is none."""
    hidden = linear(params, "hidden", joined(embedded, dense))
    hidden = hidden - hidden.mean()
    hidden = hidden / jnp.sqrt(jnp.square(hidden).mean() + 1e-3) * params["gain"]
    outside = jnp.matmul(params["outside"], dense, precision="highest")
    return linear(params, "output", jax.nn.relu(hidden))[0] + outside.sum()


def several_positions(params: Any, embedded: Any, dense: Any) -> Any:
    """Attention over the fields: layers that read five vectors an example."""
    vectors = stacked(embedded)
    scores = jnp.matmul(linear(params, "query", vectors), vectors.T, precision="highest")
    mixed = jnp.matmul(jax.nn.softmax(scores), vectors, precision="highest")
    return linear(params, "value", mixed).sum() + dense.sum()


def used_twice(params: Any, embedded: Any, dense: Any) -> Any:
    """A layer that is called twice, and one whose weight is read by itself too."""
    twice = linear(params, "shared", embedded["a"]) + linear(params, "shared", embedded["b"])
    return (linear(params, "tied", twice) * params["tied.weight"][0]).sum() + dense.sum()


def no_layers(params: Any, embedded: Any, dense: Any) -> Any:
    """Nothing is a layer; a loop goes through the fields."""

    def step(carry: Any, vector: Any) -> Any:
        return jnp.tanh(carry * params["decay"] + vector), None

    end, _ = lax.scan(step, jnp.zeros_like(embedded["a"]), stacked(embedded))
    return (end * params["output"]).sum() + params["bias"]


FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "layers_alone": (
        layers_alone,
        given_params(hidden__weight=(4, 17), output__weight=(1, 4), output__bias=(1,)),
    ),
    "layers_and_others": (
        layers_and_others,
        given_params(
            hidden__weight=(4, 17), hidden__bias=(4,), gain=(4,), outside=(3, 2),
            output__weight=(1, 4), output__bias=(1,),
        ),
    ),
    "several_positions": (
        several_positions,
        given_params(query__weight=(DIM, DIM), query__bias=(DIM,), value__weight=(1, DIM)),
    ),
    "used_twice": (
        used_twice,
        given_params(shared__weight=(2, DIM), shared__bias=(2,), tied__weight=(2, 2)),
    ),
    "no_layers": (no_layers, given_params(decay=(DIM,), output=(DIM,), bias=())),
}  # fmt: skip
LAYERS = {
    "layers_alone": ({"hidden": 1, "output": 1}, ()),
    "layers_and_others": ({"hidden": 1, "output": 1}, ("gain", "outside")),
    "several_positions": ({"query": 5, "value": 5}, ()),
    "used_twice": ({}, ("shared.weight", "shared.bias", "tied.weight")),
    "no_layers": ({}, ("decay", "output", "bias")),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@cache
def description_of(name: str, task: str = "ctr") -> Any:
    """Converted once."""
    function, params = FUNCTIONS[name]
    return from_jax(function, params, schema_of(task), embedding_dim=DIM)


@cache
def model_of(name: str, task: str = "ctr") -> Any:
    """A model, made once: tests set all parameters themselves, by `perturb`."""
    return description_of(name, task).init(schema_of(task))
