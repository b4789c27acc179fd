"""A user's function of one example as a tower in JAX, its parameters layers of ours or not.

    linear(params, name, x)     the layer's gradients stay in factors, as in the built-in towers
    other parameters            vmap(grad) over a chunk of examples: clipped and summed, then forgotten

JAX maps the function over the examples: it is given one and sees no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from numpy.typing import NDArray

from dpads.errors import ConfigError
from dpads.models.jax_layers import JaxLinear, Parameters, linear
from dpads.models.jax_losses import JaxTargets, loss_gradients
from dpads.models.jax_towers import JaxTower, Values
from dpads.models.jax_whole import Rows, chunk_of
from dpads.models.layout import Layout
from dpads.schema import Task

# (parameters, embedded {field: float32[dim]}, dense float32[K]) -> logit float32[] or float32[1]
UserFunction: TypeAlias = Callable[[Values, Mapping[str, jax.Array], jax.Array], jax.Array]
OneExample: TypeAlias = Callable[[Values, jax.Array], jax.Array]


@dataclass(frozen=True, kw_only=True)
class UserTower(JaxTower):
    """The tower of a function of one example.

    Attributes:
        one: (parameters, features float32[width]) -> logit float32[].
        sizes: shapes of all parameters by name, in order.
    """

    one: OneExample
    sizes: Mapping[str, tuple[int, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name, in order."""
        return dict(self.sizes)

    def whole_gradients(
        self, params: Values, features: jax.Array, targets: JaxTargets
    ) -> dict[str, jax.Array]:
        """Each example's gradients by the parameters of `whole`, float32[n, *shape]."""
        own = {name: params[name] for name in self.whole}

        def of_one(row: Rows) -> dict[str, jax.Array]:
            logit, backward = jax.vjp(lambda own: self.one({**params, **own}, row.features), own)
            target = JaxTargets(*row[1:], offset=targets.offset)
            found: dict[str, jax.Array] = backward(loss_gradients(self.task, logit, target))[0]
            return found

        rows = Rows(features, targets.labels, targets.weights, targets.exposure)
        return jax.vmap(of_one)(rows)

    def _noted(
        self, params: Values, features: jax.Array, taps: Values
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and what each layer read."""

        def of_one(row: jax.Array, taps: Values) -> tuple[jax.Array, dict[str, jax.Array]]:
            noted = Parameters(params, taps)
            logit = self.one(noted, row)
            if set(noted.inputs) != set(taps):
                raise ConfigError(
                    "apply called other layers than when the model was made. Let it take the same way "
                    "whenever it is called."
                )
            return logit, noted.inputs

        try:
            return jax.vmap(of_one)(features, taps)
        except jax.errors.UnexpectedTracerError:
            raise ConfigError(
                "linear(params, name, x) was called within a transformation of JAX, such as vmap, out of "
                "which its inputs cannot be taken. Call it outside, with all vectors of the example in x, "
                '[positions, in]; or write x @ params[name + ".weight"].T there.'
            ) from None


def user_tower(
    function: UserFunction, layout: Layout, task: Task, params: Mapping[str, NDArray[np.float32]]
) -> UserTower:
    """The tower of a user's function; its layers are found by tracing it.

    Raises:
        ConfigError: a parameter is not read, or what is returned is not one logit.
    """
    columns = {
        slot.field.name: slice(slot.column, slot.column + group.dim)
        for group in layout.groups
        for slot in group.slots
    }

    def one(params: Values, row: jax.Array) -> jax.Array:
        embedded = {name: row[column] for name, column in columns.items()}
        # as where the user wrote it: numbers that name no type have 32 bits
        with jax.enable_x64(False):
            logit = jnp.asarray(function(params, embedded, row[layout.embedded :]), jnp.float32)
        if logit.shape not in ((), (1,)):
            raise ConfigError(
                f"Expected apply to return one logit for the one example it is given, got shape "
                f"{list(logit.shape)}. JAX maps it over the batch: write it without an axis of examples."
            )
        return logit.reshape(())

    def forward(params: Values, features: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: one(params, row))(features)

    sizes = {name: tuple(value.shape) for name, value in params.items()}
    linears = find_layers(one, sizes, layout.width)
    own = {name for layer in linears for name in layer.shapes}
    size = sum(int(np.prod(shape)) for name, shape in sizes.items() if name not in own)
    return UserTower(forward, linears, task, chunk_of(size), one=one, sizes=sizes)


class _Watched(Parameters):
    """Parameters whose layers read copies of them: what else is read shows in the program."""

    def __init__(self, values: Values, copies: Values) -> None:
        super().__init__(values, {})
        self.copies = copies
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def through(self, layer: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        """Notes the call; outputs of the copies."""
        del outputs
        self.calls.append((layer, inputs.shape))
        return linear(self.copies, layer, inputs)


def find_layers(
    one: OneExample, sizes: Mapping[str, tuple[int, ...]], width: int
) -> tuple[JaxLinear, ...]:
    """The layers that are called once, and whose parameters nothing else reads.

    Raises:
        ConfigError: a parameter is not read at all.
    """
    calls: list[tuple[str, tuple[int, ...]]] = []

    def watched(values: Values, copies: Values, row: jax.Array) -> jax.Array:
        seen = _Watched(values, copies)
        logit = one(seen, row)
        calls.extend(seen.calls)
        return logit

    values = {name: jnp.zeros(shape, jnp.float32) for name, shape in sizes.items()}
    read = _read(jax.make_jaxpr(watched)(values, values, jnp.zeros(width, jnp.float32)))
    names = list(sizes)  # of the arguments: JAX sorts the keys of mappings
    half = sorted(names)
    directly = {name for name, used in zip(half, read, strict=False) if used}
    by_layers = {name for name, used in zip(half, read[len(half) :], strict=False) if used}
    for name in names:
        if name not in directly | by_layers:
            raise ConfigError(
                f'Parameter "{name}" does not change what apply returns: noise alone would move it. Leave it '
                "out."
            )
    found = {}
    for name, shape in calls:
        layer = JaxLinear(
            name,
            shape[-1],
            sizes[f"{name}.weight"][0],
            bias=f"{name}.bias" in sizes,
            positions=int(np.prod(shape[:-1])),
        )
        once = [other for other, _ in calls].count(name) == 1
        if once and layer.positions and not directly & set(layer.shapes):
            found[name] = layer
    order = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return tuple(found[name] for name in order if name in found)


def _read(program: ClosedJaxpr) -> list[bool]:
    """For each argument whether the results may depend on it."""
    jaxpr = program.jaxpr
    needed = {value for value in jaxpr.outvars if not isinstance(value, Literal)}
    for step in reversed(jaxpr.eqns):
        if any(value in needed for value in step.outvars):
            needed |= {value for value in step.invars if not isinstance(value, Literal)}
    return [value in needed for value in jaxpr.invars]
