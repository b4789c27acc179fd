"""Linear layers in JAX whose per-example gradients stay in two factors.

    outputs = inputs W^T + b + tap      gradient of an example by W: (gradient by tap) inputs^T

A tap is zero: it is there so that one backward pass gives the gradient by every layer's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from dpads.errors import ConfigError

# Products of float32, as torch's: some devices would else round their operands to ten bits.
PRECISION = lax.Precision.HIGHEST


@dataclass(frozen=True)
class JaxLinear:
    """A linear layer of a tower; its parameters are "<name>.weight", [out, in], and "<name>.bias".

    Attributes:
        name: as the torch tower's layer.
        width_in: inputs.
        width_out: outputs.
        bias: whether it has one.
        positions: vectors that each example passes through the layer; its gradient is their sum.
    """

    name: str
    width_in: int
    width_out: int
    bias: bool = True
    positions: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its parameters by name."""
        weight = {f"{self.name}.weight": (self.width_out, self.width_in)}
        return {**weight, f"{self.name}.bias": (self.width_out,)} if self.bias else dict(weight)


class LayerFactors(NamedTuple):
    """Per-example factors of one linear layer: its gradient is `output_grads[i] inputs[i]^T`.

    Attributes:
        inputs: float32[n * positions, in].
        output_grads: float32[n * positions, out].
    """

    inputs: jax.Array
    output_grads: jax.Array


class Parameters(dict[str, jax.Array]):
    """A tower's parameters in a forward pass whose linear layers are to be differentiated.

    Args:
        values: by name.
        taps: {layer: zeros, of as many elements as its outputs}.

    Attributes:
        inputs: {layer: what it read}, filled by `linear`.
    """

    def __init__(self, values: Mapping[str, jax.Array], taps: Mapping[str, jax.Array]) -> None:
        super().__init__(values)
        self.taps = dict(taps)
        self.inputs: dict[str, jax.Array] = {}

    def through(self, layer: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
        """Notes what a layer read; its outputs with the tap, where it has one.

        Raises:
            ConfigError: the layer was called before.
        """
        if layer not in self.taps:
            return outputs
        if layer in self.inputs:
            raise ConfigError(
                f'Layer "{layer}" was called twice for one example, and once when the model was made. Let '
                "apply take the same way whenever it is called."
            )
        self.inputs[layer] = inputs.astype(jnp.float32)
        return outputs + self.taps[layer].reshape(outputs.shape)


def linear(params: Mapping[str, jax.Array], name: str, inputs: jax.Array) -> jax.Array:
    """A linear layer: `inputs W^T + b`.

    Args:
        params: with "<name>.weight", [out, in], and perhaps "<name>.bias", [out].
        name: of the layer.
        inputs: float32[..., in].

    Returns:
        float32[..., out].
    """
    outputs = jnp.matmul(inputs, params[f"{name}.weight"].T, precision=PRECISION)
    bias = params.get(f"{name}.bias")
    if bias is not None:
        outputs = outputs + bias
    return params.through(name, inputs, outputs) if isinstance(params, Parameters) else outputs


def chain(prefix: str, widths: Sequence[int]) -> tuple[JaxLinear, ...]:
    """Layers "<prefix>.0", "<prefix>.1", ... from width to width."""
    sizes = enumerate(pairwise(widths))
    return tuple(JaxLinear(f"{prefix}.{number}", a, b) for number, (a, b) in sizes)


def mlp_layers(prefix: str, width: int, hidden: Sequence[int]) -> tuple[JaxLinear, ...]:
    """The layers of `torch_layers.mlp`: "<prefix>hidden0", ..., "<prefix>output"."""
    names = [*(f"{prefix}hidden{number}" for number in range(len(hidden))), f"{prefix}output"]
    sizes = pairwise([width, *hidden, 1])
    return tuple(JaxLinear(name, a, b) for name, (a, b) in zip(names, sizes, strict=True))


def mlp(
    params: Mapping[str, jax.Array], layers: Sequence[JaxLinear], inputs: jax.Array
) -> jax.Array:
    """Linear and ReLU layers down to one logit: float32[B, width] -> float32[B]."""
    *body, last = layers
    return linear(params, last.name, relu_layers(params, body, inputs))[:, 0]


def relu_layers(
    params: Mapping[str, jax.Array], layers: Sequence[JaxLinear], inputs: jax.Array
) -> jax.Array:
    """Linear layers, ReLU after each."""
    for layer in layers:
        inputs = jax.nn.relu(linear(params, layer.name, inputs))
    return inputs
