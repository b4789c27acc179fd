"""Towers in JAX: logits, losses, and per-example gradients in factors, all to be called under jit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
from jax import numpy as jnp

from dpads.kernels import jax_linear
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
from dpads.models.jax_whole import FactorsOf, Rows, WholeSums, clip_chunks
from dpads.models.layout import Layout
from dpads.schema import Task

Values: TypeAlias = Mapping[str, jax.Array]
Forward: TypeAlias = Callable[[Values, jax.Array], jax.Array]


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
    """A tower whose parameters are all of linear layers; pure functions, no state.

    Attributes:
        forward: (parameters, features float32[B, width]) -> logits float32[B]; its layers are `linear`'s.
        linears: layers whose gradients stay in factors, in the order of the torch tower's.
        task: which loss.
        chunk: examples whose gradients stand in memory whole, where some parameters are no layer's.
    """

    forward: Forward
    linears: tuple[JaxLinear, ...]
    task: Task
    chunk: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters by name, in order."""
        return {name: shape for layer in self.linears for name, shape in layer.shapes.items()}

    @property
    def whole(self) -> tuple[str, ...]:
        """Names of the parameters that belong to none of `linears`; `clip_whole` is for these."""
        known = {name for layer in self.linears for name in layer.shapes}
        return tuple(name for name in self.shapes if name not in known)

    def additions(self, examples: int, at_a_time: int) -> float:
        """Additions in turn behind any number of the tower's clipped sums, at most.

        Args:
            examples: of a batch.
            at_a_time: of them that pass through the tower at once, at most.
        """
        of_whole = 0.0
        if self.whole:
            calls = jax_linear.most_chunks(examples, at_a_time)
            of_whole = self.chunk + calls * (-(-at_a_time // self.chunk) + 2.0)
        of_layers = (
            jax_linear.additions(examples, at_a_time, layer.positions) for layer in self.linears
        )
        return max(of_whole, *of_layers, 0.0)

    def logits(self, params: Values, features: jax.Array) -> jax.Array:
        """Logits, [B]."""
        return self.forward(params, features)

    def losses(self, params: Values, features: jax.Array, targets: JaxTargets) -> jax.Array:
        """Losses, [B], weights included."""
        return example_losses(self.task, self.forward(params, features), targets)

    def gradients(self, params: Values, features: jax.Array, targets: JaxTargets) -> TowerGradients:
        """One forward and one backward pass; 64-bit numbers must be enabled around it.

        Args:
            params: float32, by name.
            features: float32[B, width].
            targets: of the B examples; padding has weight 0.

        Returns:
            Gradients of each example's loss. No array holds more than a vector for each example and position
            of a layer.

        Guarantees:
            - An example of weight 0 and finite activations has zero output_grads and feature_grads.
        """
        taps = {
            layer.name: jnp.zeros((len(features), layer.positions * layer.width_out), jnp.float32)
            for layer in self.linears
        }

        def forward(features: jax.Array, taps: dict[str, jax.Array]) -> tuple[jax.Array, Values]:
            return self._noted(params, features, taps)

        logits, backward, inputs = jax.vjp(forward, features, taps, has_aux=True)
        feature_grads, by_taps = backward(loss_gradients(self.task, logits, targets))
        factors = {
            layer.name: LayerFactors(
                inputs[layer.name].reshape(len(features) * layer.positions, layer.width_in),
                by_taps[layer.name].reshape(len(features) * layer.positions, layer.width_out),
            )
            for layer in self.linears
        }
        return TowerGradients(feature_grads, factors)

    def clip_whole(
        self,
        params: Values,
        features: jax.Array,
        targets: JaxTargets,
        units: jax.Array | None,
        squares: jax.Array,
        parts: jax.Array,
        sums: Values,
        factors_of: FactorsOf,
    ) -> WholeSums:
        """Clips and sums the gradients by the parameters of `whole`, a chunk of examples at a time.

        Args:
            params: float32, by name.
            features: float32[B, width].
            targets: of the B examples.
            units: int32[B], rising, the unit of each example; U or more for padding. None where example i is
                unit i.
            squares: float64[U], the units' squared norms over all other parameters.
            parts: float64[U], sums of the norms of parts that may cancel, of all other parameters.
            sums: {parameter: float64}, of other examples.
            factors_of: (squares float64[k], parts float64[k]) -> clip factors float32[k].

        Returns:
            Squares and parts with these parameters, and their sums with those of clipped gradients: of the
            very vectors that were measured.
        """
        if not self.whole:
            return WholeSums(squares, parts, {})
        rows = Rows(features, targets.labels, targets.weights, targets.exposure)

        def gradients(rows: Rows) -> dict[str, jax.Array]:
            target = JaxTargets(*rows[1:], offset=targets.offset)
            return self.whole_gradients(params, rows.features, target)

        others = WholeSums(squares, parts, {name: sums[name] for name in self.whole})
        return clip_chunks(gradients, rows, units, others, self.chunk, factors_of)

    def whole_gradients(
        self, params: Values, features: jax.Array, targets: JaxTargets
    ) -> dict[str, jax.Array]:
        """Each example's gradients by the parameters of `whole`, [n, *shape]; for few examples at a time."""
        del params, features, targets
        return {}

    def _noted(
        self, params: Values, features: jax.Array, taps: Values
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and what each layer read."""
        noted = Parameters(params, taps)
        return self.forward(noted, features), noted.inputs


def sum_plus_linear(layout: Layout, task: Task) -> JaxTower:
    """Sum of the embedded columns plus a linear layer on the numeric ones."""
    layer = JaxLinear("linear", layout.num_numeric, 1)

    def forward(params: Values, features: jax.Array) -> jax.Array:
        numeric = linear(params, layer.name, features[:, layout.embedded :])[:, 0]
        return features[:, : layout.embedded].sum(axis=1) + numeric

    return JaxTower(forward, (layer,), task)


def perceptron(layout: Layout, task: Task, hidden: Sequence[int]) -> JaxTower:
    """Linear and ReLU layers on all columns."""
    layers = mlp_layers("", layout.width, hidden)

    def forward(params: Values, features: jax.Array) -> jax.Array:
        return mlp(params, layers, features)

    return JaxTower(forward, layers, task)


def sum_of(layout: Layout, task: Task, *found: parts.Part) -> JaxTower:
    """A sum of parts."""
    whole = parts.SumOfParts(layout, *found)
    return JaxTower(whole, whole.linears, task)
