"""Towers in JAX: logits, losses, and per-example gradients in factors, all to be called under jit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.kernels.gaussian import normals
from dpads.kernels.keys import derive_key
from dpads.models import jax_interactions as parts
from dpads.models.jax_layers import (
    JaxLinear,
    LayerFactors,
    Parameters,
    linear,
    mlp,
    mlp_layers,
)
from dpads.models.jax_losses import JaxTargets, example_losses, loss_gradients
from dpads.models.layout import Layout
from dpads.schema import Task

Forward = Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]


class TowerGradients(NamedTuple):
    """Per-example gradients of a batch.

    Attributes:
        feature_grads: float32[B, width], of the losses by the features.
        factors: {layer: its factors}.
    """

    feature_grads: jax.Array
    factors: dict[str, LayerFactors]


@dataclass(frozen=True)
class JaxTower:
    """A tower of linear layers and functions without parameters; pure functions, no state.

    Attributes:
        forward: (parameters, features float32[B, width]) -> logits float32[B]; its layers are `linear`'s.
        linears: all layers with parameters, in the order of the torch tower's.
        task: which loss.
    """

    forward: Forward
    linears: tuple[JaxLinear, ...]
    task: Task

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name, in order."""
        return {name: shape for layer in self.linears for name, shape in layer.shapes.items()}

    def logits(self, params: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
        """Logits, [B]."""
        return self.forward(params, features)

    def losses(
        self, params: Mapping[str, jax.Array], features: jax.Array, targets: JaxTargets
    ) -> jax.Array:
        """Losses, [B], weights included."""
        return example_losses(self.task, self.forward(params, features), targets)

    def gradients(
        self, params: Mapping[str, jax.Array], features: jax.Array, targets: JaxTargets
    ) -> TowerGradients:
        """One forward and one backward pass; 64-bit numbers must be enabled around it.

        Args:
            params: float32, by name.
            features: float32[B, width].
            targets: of the B examples; padding has weight 0.

        Returns:
            Gradients of each example's loss. No array holds more than a vector for each example and layer.

        Guarantees:
            - An example of weight 0 and finite activations has zero output_grads and feature_grads.
        """
        taps = {
            layer.name: jnp.zeros((len(features), layer.width_out), jnp.float32)
            for layer in self.linears
        }

        def forward(
            features: jax.Array, taps: dict[str, jax.Array]
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            noted = Parameters(params, taps)
            return self.forward(noted, features), noted.inputs

        logits, backward, inputs = jax.vjp(forward, features, taps, has_aux=True)
        feature_grads, output_grads = backward(loss_gradients(self.task, logits, targets))
        factors = {
            name: LayerFactors(inputs[name], values) for name, values in output_grads.items()
        }
        return TowerGradients(feature_grads, factors)


def initial_parameters(
    linears: Sequence[JaxLinear], master: bytes
) -> dict[str, NDArray[np.float32]]:
    """The initial values of the torch tower, bit for bit: weights N(0, 2 / in), biases zero.

    Args:
        linears: the layers.
        master: the public key of the initial parameters.
    """
    found = {}
    for layer in linears:
        for name, shape in layer.shapes.items():
            value = np.zeros(shape, np.float32)
            if name.endswith(".weight") and not layer.starts_at_zero:
                draws = normals(derive_key(master, "tower", layer.name), 0, value.size)
                scale = np.float32(math.sqrt(2.0 / max(layer.width_in, 1)))
                value[...] = draws.reshape(shape) * scale
            found[name] = value
    return found


def sum_plus_linear(layout: Layout, task: Task) -> JaxTower:
    """Sum of the embedded columns plus a linear layer on the numeric ones."""
    layer = JaxLinear("linear", layout.num_numeric, 1, starts_at_zero=True)

    def forward(params: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
        numeric = linear(params, layer.name, features[:, layout.embedded :])[:, 0]
        return features[:, : layout.embedded].sum(axis=1) + numeric

    return JaxTower(forward, (layer,), task)


def perceptron(layout: Layout, task: Task, hidden: Sequence[int]) -> JaxTower:
    """Linear and ReLU layers on all columns."""
    layers = mlp_layers("", layout.width, hidden)

    def forward(params: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
        return mlp(params, layers, features)

    return JaxTower(forward, layers, task)


def sum_of(layout: Layout, task: Task, *found: parts.Part) -> JaxTower:
    """A sum of parts."""
    whole = parts.SumOfParts(layout, *found)
    return JaxTower(whole, whole.linears, task)
