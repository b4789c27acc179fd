"""Per-example gradients of a tower in factored form, and the clipped sums that come of them; secret."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.kernels import clip, whole
from dpads.kernels.blas import Blas

_NO_BIAS = np.empty(0)
_NO_GROUPS = np.empty(0, np.int64)


@dataclass(frozen=True)
class DenseSums:
    """Sums over examples of the gradients of a tower's parameters.

    Attributes:
        flat: float64[parameters], all of them, one after another.
        parts: {parameter: float64 array}, views of `flat` in order.
    """

    flat: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]

    @classmethod
    def over(
        cls, flat: NDArray[np.float64], parameters: Mapping[str, NDArray[np.float32]]
    ) -> DenseSums:
        """Sums shaped as the parameters, in given memory."""
        parts, at = {}, 0
        for name, value in parameters.items():
            parts[name] = flat[at : at + value.size].reshape(value.shape)
            at += value.size
        return cls(flat, parts)


class ChunkGradients(ABC):
    """The gradients of a chunk of examples with respect to a tower's parameters."""

    @abstractmethod
    def add_square_norms(
        self,
        unit_offsets: NDArray[np.int64],
        squares: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """Adds each unit's squared norm over all parameters.

        Args:
            unit_offsets: int64[U + 1], the units' examples within the chunk.
            squares: float64[U], added to; an upper bound of the exact value.
            parts: float64[U], the sum of the norms of parts that may cancel is added to it.
        """

    @abstractmethod
    def add_clipped(
        self, factors: NDArray[np.float32], groups: NDArray[np.int64], sums: DenseSums
    ) -> None:
        """Adds the sum of the gradients times their factors.

        Args:
            factors: float32[n]; examples whose factor is zero are left out, finite or not.
            groups: int64[g + 1], bounds of groups of examples that may be summed in float32; empty for
                float64 sums.
            sums: added to.
        """


@dataclass(frozen=True)
class LinearFactors:
    """Per-example factors of one linear layer: its gradient is `output_grads[i] inputs[i]^T`.

    Attributes:
        weight: name of the weight, shaped [out, in].
        bias: name of the bias, or None.
        inputs: float32[n * positions, in].
        output_grads: float32[n * positions, out].
        positions: vectors that each example passes through the layer; its gradient is their sum.
    """

    weight: str
    bias: str | None
    inputs: NDArray[np.float32]
    output_grads: NDArray[np.float32]
    positions: int = 1


@dataclass(frozen=True)
class FactoredGradients(ChunkGradients):
    """Gradients of any set of linear layers.

    Attributes:
        linears: the layers.
        blas: what multiplies.
    """

    linears: tuple[LinearFactors, ...]
    blas: Blas

    def add_square_norms(
        self,
        unit_offsets: NDArray[np.int64],
        squares: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """Layer by layer."""
        for layer in self.linears:
            bias = 0.0 if layer.bias is None else 1.0
            offsets = unit_offsets * layer.positions
            clip.linear_square_norms(
                layer.inputs, layer.output_grads, bias, offsets, squares, parts
            )

    def add_clipped(
        self, factors: NDArray[np.float32], groups: NDArray[np.int64], sums: DenseSums
    ) -> None:
        """Layer by layer."""
        for layer in self.linears:
            weight = sums.parts[layer.weight]
            several = layer.positions > 1  # parts of one example may cancel: float64 then
            clip.add_clipped_layer(
                self.blas,
                layer.output_grads,
                layer.inputs,
                np.repeat(factors, layer.positions) if several else factors,
                _NO_GROUPS if several else groups,
                np.empty_like(layer.output_grads),
                np.empty(weight.shape, np.float32),
                weight,
                _NO_BIAS if layer.bias is None else sums.parts[layer.bias],
            )


@dataclass(frozen=True)
class WholeGradients(ChunkGradients):
    """Gradients that stand in memory whole.

    Attributes:
        values: {parameter: float32[n, size]}.
    """

    values: Mapping[str, NDArray[np.float32]]

    def add_square_norms(
        self,
        unit_offsets: NDArray[np.int64],
        squares: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """Parameter by parameter."""
        for value in self.values.values():
            whole.add_square_norms(value, unit_offsets, squares, parts)

    def add_clipped(
        self, factors: NDArray[np.float32], groups: NDArray[np.int64], sums: DenseSums
    ) -> None:
        """Parameter by parameter, in float64."""
        for name, value in self.values.items():
            whole.add_clipped(value, factors, sums.parts[name].reshape(-1))


@dataclass(frozen=True)
class JointGradients(ChunkGradients):
    """Gradients of several sets of parameters.

    Attributes:
        members: of each set.
    """

    members: tuple[ChunkGradients, ...]

    def add_square_norms(
        self,
        unit_offsets: NDArray[np.int64],
        squares: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """Set by set."""
        for member in self.members:
            member.add_square_norms(unit_offsets, squares, parts)

    def add_clipped(
        self, factors: NDArray[np.float32], groups: NDArray[np.int64], sums: DenseSums
    ) -> None:
        """Set by set."""
        for member in self.members:
            member.add_clipped(factors, groups, sums)
