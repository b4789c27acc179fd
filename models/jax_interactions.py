"""How features meet each other, in JAX: the same parts, names and sums as in `torch_interactions`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jax import numpy as jnp

from dpads.models.jax_layers import (
    PRECISION,
    JaxLinear,
    chain,
    linear,
    mlp,
    mlp_layers,
    relu_layers,
)
from dpads.models.layout import Layout

Values: TypeAlias = Mapping[str, jax.Array]


class Columns(NamedTuple):
    """The feature matrix in parts.

    Attributes:
        embedded: float32[B, fields * dim].
        linear: float32[B, fields], or float32[B, 0] where the model has no linear tables.
        numeric: float32[B, K].
    """

    embedded: jax.Array
    linear: jax.Array
    numeric: jax.Array

    @property
    def inputs(self) -> jax.Array:
        """What a deep part reads, float32[B, fields * dim + K]."""
        return jnp.concatenate([self.embedded, self.numeric], axis=1)


class Part(ABC):
    """A part of a tower's logit.

    Attributes:
        linears: its linear layers, in the order of the torch tower's.
    """

    linears: tuple[JaxLinear, ...] = ()

    @abstractmethod
    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits, float32[B]."""


class SumOfParts:
    """The logit as a sum: float32[B, width] -> float32[B].

    Args:
        layout: of the columns.
        parts: of the logit.
    """

    def __init__(self, layout: Layout, *parts: Part) -> None:
        self._cuts = (layout.embedded - layout.linear, layout.embedded)
        self._parts = parts
        self.linears = tuple(layer for part in parts for layer in part.linears)

    def __call__(self, params: Values, features: jax.Array) -> jax.Array:
        """Logits."""
        first, last = self._cuts
        columns = Columns(features[:, :first], features[:, first:last], features[:, last:])
        return sum(
            (part(params, columns) for part in self._parts[1:]), self._parts[0](params, columns)
        )


class Wide(Part):
    """A linear model: the sum of the fields' weights, and a linear layer on the numbers."""

    def __init__(self, layout: Layout) -> None:
        self.linears = (JaxLinear("wide.linear", layout.num_numeric, 1),)

    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits."""
        numeric = linear(params, self.linears[0].name, columns.numeric)[:, 0]
        return columns.linear.sum(axis=1) + numeric


class Pairs(Part):
    """Dot products of all pairs of fields, summed: half of (sum of v)^2 - sum of v^2."""

    def __init__(self, layout: Layout) -> None:
        self._shape = (layout.slots, (layout.embedded - layout.linear) // max(layout.slots, 1))

    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits."""
        vectors = columns.embedded.reshape(-1, *self._shape)
        pairs = jnp.square(vectors.sum(axis=1)) - jnp.square(vectors).sum(axis=1)
        return 0.5 * pairs.sum(axis=1)


class Deep(Part):
    """A multi-layer perceptron on the embedded fields and the numbers."""

    def __init__(self, layout: Layout, hidden: Sequence[int]) -> None:
        self.linears = mlp_layers("deep.layers.", layout.width - layout.linear, hidden)

    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits."""
        return mlp(params, self.linears, columns.inputs)


class CrossAndDeep(Part):
    """DCN v2: cross layers and ReLU layers side by side, and one linear layer on both."""

    def __init__(self, layout: Layout, cross_layers: int, hidden: Sequence[int]) -> None:
        width = layout.width - layout.linear
        self._cross = chain("dcn.cross", [width] * (cross_layers + 1))
        self._hidden = chain("dcn.hidden", [width, *hidden])
        ends = width + hidden[-1] if hidden else width
        self._output = JaxLinear("dcn.output", ends, 1)
        self.linears = (*self._cross, *self._hidden, self._output)

    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits."""
        start = ends = columns.inputs
        for layer in self._cross:
            ends = start * linear(params, layer.name, ends) + ends
        if self._hidden:
            deep = relu_layers(params, self._hidden, start)
            ends = jnp.concatenate([ends, deep], axis=1)
        return linear(params, self._output.name, ends)[:, 0]


class DotsAndDeep(Part):
    """DLRM: numbers through ReLU layers to a vector, dot products of all pairs of vectors, ReLU layers."""

    def __init__(self, layout: Layout, dim: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        self._shape = (layout.slots, dim)
        sizes = [layout.num_numeric, *bottom, dim] if layout.num_numeric else []
        self._bottom = chain("dlrm.bottom", sizes)
        vectors = layout.slots + (layout.num_numeric > 0)
        self._pairs = np.stack(np.tril_indices(vectors, -1)).astype(np.int32)
        width = vectors * (vectors - 1) // 2 + (dim if sizes else 0)
        self._top = mlp_layers("dlrm.top.", width, top)
        self.linears = (*self._bottom, *self._top)

    def __call__(self, params: Values, columns: Columns) -> jax.Array:
        """Its part of the logits."""
        vectors = columns.embedded.reshape(-1, *self._shape)
        beside = []
        if self._bottom:
            numbers = relu_layers(params, self._bottom, columns.numeric)
            vectors = jnp.concatenate([numbers[:, None], vectors], axis=1)
            beside = [numbers]
        dots = jnp.einsum("bik,bjk->bij", vectors, vectors, precision=PRECISION)
        pairs = dots[:, self._pairs[0], self._pairs[1]]
        return mlp(params, self._top, jnp.concatenate([*beside, pairs], axis=1))
