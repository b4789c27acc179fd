"""A user's function in JAX: what is refused, and what tells one from another."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from brute_force import schema_of
from jax import lax
from jax import numpy as jnp
from jax_functions import DIM, description_of, model_of, stacked

from dpads.errors import ConfigError
from dpads.models.base import describe
from dpads.models.jax_function import JaxFunction, from_jax
from dpads.models.jax_layers import linear


def refused(apply: Any, params: Any, match: str) -> None:
    """The function is refused, and the message says why."""
    with pytest.raises(ConfigError, match=match):
        from_jax(apply, params, schema_of(), embedding_dim=DIM)


SCALE = {"scale": np.ones(())}


def test_a_function_of_the_batch_is_refused() -> None:
    refused(
        lambda p, e, d: e["a"] * p["scale"], SCALE, "one logit for the one example.*without an axis"
    )


def test_a_parameter_that_nothing_reads_is_refused() -> None:
    params = {**SCALE, "nothing": np.ones(3)}
    refused(lambda p, e, d: e["a"].sum() * p["scale"], params, '"nothing" does not change')
    refused(
        lambda p, e, d: (
            p["nothing"].sum() * 0
            + e["a"].sum() * p["scale"]
            + 0 * linear({"x.weight": jnp.ones((1, DIM), jnp.float32)}, "x", e["a"])[0]
        ),
        {**SCALE, "x.weight": np.ones((1, DIM)), "nothing": np.ones(3)},
        '"x.weight" does not change',
    )


SEEN: list[Any] = []


@jax.custom_batching.custom_vmap
def centred(x: Any) -> Any:
    """Takes the mean over the batch away, by a rule for how it is mapped."""
    return x


@centred.def_vmap
def _centred(size: int, batched: Any, x: Any) -> Any:
    return x - x.mean(axis=0), True


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        (
            lambda x: jax.pure_callback(
                lambda v: v, jax.ShapeDtypeStruct((), jnp.float32), x, vmap_method="sequential"
            ),
            "callback",
        ),
        (lambda x: jax.debug.print("{}", x) or x, "[Dd]ebug"),
        (lambda x: jax.experimental.io_callback(lambda v: v, jax.ShapeDtypeStruct((), jnp.float32), x), "IO"),
        (centred, "custom_vmap"),
        (jax.jit(lambda x: centred(x)), "custom_vmap"),
    ],
    ids=["pure_callback", "debug", "io_callback", "custom_vmap", "within jit"],
)  # fmt: skip
def test_code_that_jax_cannot_see_is_refused(inner: Any, name: str) -> None:
    refused(lambda p, e, d: inner(e["a"].sum()) * p["scale"], SCALE, name)


def with_rule(factor: float, seen: Any = None) -> Any:
    """A function whose gradient is what the user says it is."""

    @jax.custom_vjp
    def double(x: Any) -> Any:
        return 2.0 * x

    def backward(_: Any, grad: Any) -> tuple[Any]:
        if seen is not None:
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            grad = jax.pure_callback(seen, shape, grad, vmap_method="expand_dims")
        return (factor * grad,)

    double.defvjp(lambda x: (2.0 * x, None), backward)
    return lambda p, e, d: double(e["a"].sum()) * p["scale"]


def test_code_in_the_rule_of_a_gradient_is_refused_too() -> None:
    refused(with_rule(2.0, lambda grad: grad), SCALE, "callback")


def test_another_rule_for_a_gradient_is_another_function() -> None:
    first, same, other = (
        from_jax(with_rule(factor), SCALE, schema_of(), embedding_dim=DIM)
        for factor in (2.0, 2.0, 1.9999)
    )
    assert first == same
    assert first.code != other.code


def test_examples_that_meet_in_a_way_that_no_name_shows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dpads.models import jax_user_checks

    monkeypatch.setattr(jax_user_checks, "OUTSIDE", re.compile("nothing at all"))
    refused(lambda p, e, d: centred(e["a"].sum()) * p["scale"], SCALE, "among other examples")


def test_numbers_drawn_while_tracing_are_refused() -> None:
    draws = np.random.default_rng(0)
    refused(lambda p, e, d: e["a"].sum() * p["scale"] * draws.random(), SCALE, "another program")


def within(kind: str, params: Any, embedded: Any, dense: Any) -> Any:
    """A layer that is called within a transformation of JAX."""
    vectors = stacked(embedded)

    def call(vector: Any) -> Any:
        return linear(params, "layer", vector)

    if kind == "vmap":
        return jax.vmap(call)(vectors).sum()
    if kind == "scan":
        return lax.scan(lambda c, v: (c + call(v), None), jnp.zeros(1), vectors)[0]
    return jax.checkpoint(call)(vectors[0])


LAYER = {"layer.weight": np.ones((1, DIM))}


def test_a_layer_that_is_mapped_is_refused() -> None:
    refused(partial(within, "vmap"), LAYER, "within a transformation of JAX, such as vmap")


@pytest.mark.parametrize("kind", ["scan", "checkpoint"])
def test_the_weights_of_a_layer_in_a_loop_are_no_layers(kind: str) -> None:
    description = from_jax(partial(within, kind), LAYER, schema_of(), embedding_dim=DIM)
    assert description.converted.tower.linears == ()
    assert description.converted.tower.whole == ("layer.weight",)


def test_logits_that_are_not_finite_are_refused() -> None:
    refused(lambda p, e, d: jnp.log(e["a"].sum()) * p["scale"], SCALE, "not finite")


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({}, "map names to arrays"),
        ([np.ones(3)], "map names to arrays, got list.*flatten_dict"),
        ({"a": {"b": np.ones(3)}}, r'params\["a"\].*Flatten'),
        ({"a": np.arange(3)}, "floating-point"),
        ({"a": np.array([np.nan])}, "finite"),
        ({"a": np.ones((0, 3))}, "at least one"),
        ({3: np.ones(3)}, "under a name"),
    ],
)
def test_parameters_that_are_none_are_refused(params: Any, match: str) -> None:
    refused(lambda p, e, d: e["a"].sum(), params, match)


def test_other_arguments_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="to be a function, got int"):
        from_jax(3, SCALE, schema_of())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="to be a FeatureSchema"):
        from_jax(lambda p, e, d: d.sum(), SCALE, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="embedding_dim"):
        from_jax(lambda p, e, d: d.sum(), SCALE, schema_of(), embedding_dim=0)


def test_a_description_is_plain_data_that_cannot_be_trained_from_a_file() -> None:
    own = description_of("layers_alone")
    read = describe(own.to_dict())
    assert read == own
    assert own.matches(read)
    assert isinstance(read, JaxFunction)
    for call in (
        lambda: read.init(schema_of()),
        lambda: read.jax_tower(model_of("layers_alone").layout, "ctr"),
    ):
        with pytest.raises(ConfigError, match=r"which no file holds.*from_jax"):
            call()
    with pytest.raises(ConfigError, match="another schema"):
        own.init(schema_of("count"))
    with pytest.raises(ConfigError, match='Expected backend "jax"'):
        own.init(schema_of(), backend="torch")
    with pytest.raises(ConfigError, match='Expected backend "jax"'):
        own.torch_tower(model_of("layers_alone").layout)


def test_digests_tell_functions_and_parameters_apart() -> None:
    def made(constant: Any, scale: float = 1.0) -> Any:
        def apply(params: Any, embedded: Any, dense: Any) -> Any:
            return (embedded["a"] * constant).sum() * params["scale"]

        return from_jax(apply, {"scale": np.array(scale)}, schema_of(), embedding_dim=DIM)

    first = made(np.arange(3.0))
    assert first == made(np.arange(3.0))
    other = made(np.arange(3.0) + 1.0)
    assert (first.code != other.code, first.structure) == (True, other.structure)
    assert first.matches(other)
    moved = made(np.arange(3.0), 2.0)
    assert (first.code, first.initial != moved.initial) == (moved.code, True)
    assert not first.matches(description_of("no_layers"))


def test_the_digest_of_a_program_is_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import jax_functions as t;"
        "print(t.description_of('layers_and_others').code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.split() == [description_of("layers_and_others").code]
