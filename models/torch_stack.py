"""Towers that are linear and ReLU layers in turn, down to one logit: two kernel calls a chunk."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.batch import Targets
from dpads.kernels import feedforward
from dpads.kernels.blas import row_blocks
from dpads.kernels.torch_ops import find_blas, single_threaded
from dpads.models.gradients import (
    ChunkGradients,
    DenseSums,
    FactoredGradients,
    LinearFactors,
)
from dpads.models.torch_layers import SumPlusLinear
from dpads.models.torch_losses import losses_of


class Stack:
    """The layers, their parameters in one array.

    Args:
        linears: the layers by name, in order; their parameters become views of the array.
    """

    def __init__(self, linears: Mapping[str, nn.Linear]) -> None:
        layers = list(linears.values())
        widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
        self.widths = np.array(widths, np.int64)
        self._parameters = flatten(layers)
        with single_threaded():
            self._blocks = np.stack([blocks_of(a, b) for a, b in pairwise(widths)])
        self._memory = threading.local()

    @classmethod
    def of(cls, module: nn.Module, names: list[str]) -> Stack | None:
        """The module as a stack, or None where it is something else."""
        if not isinstance(module, nn.Sequential) or not names:
            return None
        *body, last, squeeze = module
        linears = [layer for layer in (*body[::2], last) if isinstance(layer, nn.Linear)]
        relus = [layer for layer in body[1::2] if type(layer) is nn.ReLU]
        if (
            len(linears) + len(relus) + 1 == len(module)
            and len(relus) == len(linears) - 1
            and all(layer.bias is not None for layer in linears)
            and linears[-1].out_features == 1
            and isinstance(squeeze, nn.Flatten)
        ):
            return cls(dict(zip(names, linears, strict=True)))
        return None

    def gradients(
        self,
        features: NDArray[np.float32],
        targets: Targets,
        feature_grads: NDArray[np.float32],
        *,
        counts: bool,
    ) -> ChunkGradients:
        """One forward and one backward pass; this thread's next call uses the memory again."""
        total = len(features) * int(self.widths[1:].sum())
        activations = self.scratch("activations", total)
        output_grads = self.scratch("output_grads", total)
        losses = losses_of(targets, counts=counts)
        feedforward.forward_backward(
            find_blas(),
            self._blocks,
            self._parameters,
            self.widths,
            features,
            losses,
            activations,
            output_grads,
            feature_grads,
        )
        return StackGradients(self, features, activations, output_grads)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32[n], with the bits that they have in `gradients`."""
        values = self.scratch("activations", len(features) * int(self.widths[1:].sum()))
        feedforward.forward(
            find_blas(), self._blocks, self._parameters, self.widths, features, False, values
        )
        return values[len(values) - len(features) :].copy()

    def scratch(self, name: str, size: int) -> NDArray[np.float32]:
        """Memory of the calling thread, of any content."""
        kept: NDArray[np.float32] | None = getattr(self._memory, name, None)
        if kept is None or len(kept) < size:
            kept = np.empty(size, np.float32)
            setattr(self._memory, name, kept)
        return kept[:size]


def flatten(layers: list[nn.Linear]) -> NDArray[np.float32]:
    """Weights and biases in one array, of which the layers' parameters become views."""
    values = [value for layer in layers for value in (layer.weight, layer.bias)]
    whole = np.concatenate([value.numpy().reshape(-1) for value in values])
    at = 0
    for value in values:
        kept = whole[at : at + value.numel()].reshape(tuple(value.shape))
        value.data = torch.from_numpy(kept)
        at += value.numel()
    return whole


@cache
def blocks_of(width_in: int, width_out: int) -> NDArray[np.int64]:
    """`row_blocks` of a layer, tried once."""
    return row_blocks(find_blas(), width_in, width_out)


def sum_logits(module: SumPlusLinear, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of a sum of features and a linear layer, float32[n]."""
    weight, bias = module.linear.weight.numpy()[0], float(module.linear.bias)
    logits = np.empty(len(features), np.float32)
    feedforward.sum_forward(weight, bias, features, logits)
    return logits


def sum_gradients(
    module: SumPlusLinear,
    name: str,
    features: NDArray[np.float32],
    targets: Targets,
    feature_grads: NDArray[np.float32],
    *,
    counts: bool,
) -> ChunkGradients:
    """One forward and one backward pass of a sum of features and a linear layer; a row's bits are its own."""
    weight, bias = module.linear.weight.numpy()[0], float(module.linear.bias)
    grads = np.empty(len(features), np.float32)
    losses = losses_of(targets, counts=counts)
    feedforward.sum_forward_backward(weight, bias, features, losses, grads, feature_grads)
    numeric = np.ascontiguousarray(features[:, module.embedded :])
    factors = LinearFactors(f"{name}.weight", f"{name}.bias", numeric, grads[:, None])
    return FactoredGradients((factors,), find_blas())


@dataclass(frozen=True)
class StackGradients(ChunkGradients):
    """Gradients of all layers of a stack.

    Attributes:
        stack: whose they are.
        features: float32[n, width].
        activations: float32, of every layer, as `feedforward` lays them out.
        output_grads: float32, likewise.
    """

    stack: Stack
    features: NDArray[np.float32]
    activations: NDArray[np.float32]
    output_grads: NDArray[np.float32]

    def add_square_norms(
        self,
        unit_offsets: NDArray[np.int64],
        squares: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """All layers in one call."""
        feedforward.add_square_norms(
            self.stack.widths,
            self.features,
            self.activations,
            self.output_grads,
            unit_offsets,
            squares,
            parts,
        )

    def add_clipped(
        self, factors: NDArray[np.float32], groups: NDArray[np.int64], sums: DenseSums
    ) -> None:
        """All layers in one call."""
        widths = self.stack.widths
        feedforward.add_clipped(
            find_blas(),
            widths,
            self.features,
            self.activations,
            self.output_grads,
            factors,
            groups,
            self.stack.scratch("scaled", len(factors) * int(widths[1:].max())),
            self.stack.scratch("product", int((widths[1:] * widths[:-1]).max())),
            sums.flat,
        )
