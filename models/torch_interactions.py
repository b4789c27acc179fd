"""How features meet each other in the towers of factorization machines, DCN and DLRM.

A tower is a sum of parts. Every part reads the columns of the feature matrix by what they are:

    ┌ embedded: a vector of width dim per field ┬ linear: a weight per field ┬ numeric ┐
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from dpads.models.layout import Layout
from dpads.models.torch_layers import Linear, mlp


class Columns(NamedTuple):
    """The feature matrix in parts.

    Attributes:
        embedded: float[B, fields * dim].
        linear: float[B, fields], or float[B, 0] where the model has no linear tables.
        numeric: float[B, K].
    """

    embedded: torch.Tensor
    linear: torch.Tensor
    numeric: torch.Tensor

    @property
    def inputs(self) -> torch.Tensor:
        """What a deep part reads, float[B, fields * dim + K]."""
        return torch.cat([self.embedded, self.numeric], dim=1)


class SumOfParts(nn.Module):
    """The logit as a sum: float[B, width] -> float[B].

    Args:
        layout: of the columns.
        parts: `Columns` -> float[B] each.
    """

    def __init__(self, layout: Layout, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.widths = [layout.embedded - layout.linear, layout.linear, layout.num_numeric]
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits."""
        columns = Columns(*torch.split(features, self.widths, dim=1))
        return torch.stack([part(columns) for part in self.children()]).sum(dim=0)


class Wide(nn.Module):
    """A linear model: the sum of the fields' weights, and a linear layer on the numbers."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.linear = Linear(layout.num_numeric, 1, starts_at_zero=True)

    def forward(self, columns: Columns) -> torch.Tensor:
        """Its part of the logits."""
        logits: torch.Tensor = columns.linear.sum(dim=1) + self.linear(columns.numeric).squeeze(1)
        return logits


class Pairs(nn.Module):
    """Dot products of all pairs of fields, summed: half of (sum of v)^2 - sum of v^2.

    Rendle 2010, lemma 3.1.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.shape = (layout.slots, (layout.embedded - layout.linear) // max(layout.slots, 1))

    def forward(self, columns: Columns) -> torch.Tensor:
        """Its part of the logits."""
        vectors = torch.unflatten(columns.embedded, 1, self.shape)
        pairs = vectors.sum(dim=1).square() - vectors.square().sum(dim=1)
        return 0.5 * pairs.sum(dim=1)


class Deep(nn.Module):
    """A multi-layer perceptron on the embedded fields and the numbers."""

    def __init__(self, layout: Layout, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = mlp(layout.width - layout.linear, hidden)

    def forward(self, columns: Columns) -> torch.Tensor:
        """Its part of the logits."""
        logits: torch.Tensor = self.layers(columns.inputs)
        return logits


class CrossAndDeep(nn.Module):
    """DCN v2: cross layers and ReLU layers side by side, and one linear layer on both.

    x[l + 1] = x[0] * (W[l] x[l] + b[l]) + x[l], equation 1 of Wang et al. 2021.
    """

    def __init__(self, layout: Layout, cross_layers: int, hidden: Sequence[int]) -> None:
        super().__init__()
        width = layout.width - layout.linear
        self.cross = nn.ModuleList([Linear(width, width) for _ in range(cross_layers)])
        sizes = [width, *hidden]
        self.hidden = nn.ModuleList([Linear(a, b) for a, b in pairwise(sizes)])
        self.output = Linear(width + sizes[-1] if hidden else width, 1)

    def forward(self, columns: Columns) -> torch.Tensor:
        """Its part of the logits."""
        start = crossed = deep = columns.inputs
        for layer in self.cross:
            crossed = start * layer(crossed) + crossed
        for layer in self.hidden:
            deep = layer(deep).relu()
        ends = torch.cat([crossed, deep], dim=1) if len(self.hidden) else crossed
        logits: torch.Tensor = self.output(ends).squeeze(1)
        return logits


class DotsAndDeep(nn.Module):
    """DLRM: numbers through ReLU layers to a vector, dot products of all pairs of vectors, ReLU layers.

    Naumov et al. 2019, section 2: what the upper layers read is the numbers' vector and the dot products.
    """

    def __init__(self, layout: Layout, dim: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        super().__init__()
        self.shape = (layout.slots, dim)
        sizes = [layout.num_numeric, *bottom, dim] if layout.num_numeric else []
        self.bottom = nn.ModuleList([Linear(a, b) for a, b in pairwise(sizes)])
        vectors = layout.slots + (layout.num_numeric > 0)
        self.pairs: torch.Tensor
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1), persistent=False)
        self.top = mlp(vectors * (vectors - 1) // 2 + (dim if sizes else 0), top)

    def forward(self, columns: Columns) -> torch.Tensor:
        """Its part of the logits."""
        vectors = torch.unflatten(columns.embedded, 1, self.shape)
        beside = []
        if len(self.bottom):
            numbers = columns.numeric
            for layer in self.bottom:
                numbers = layer(numbers).relu()
            vectors = torch.cat([numbers.unsqueeze(1), vectors], dim=1)
            beside = [numbers]
        dots = torch.bmm(vectors, vectors.transpose(1, 2))
        logits: torch.Tensor = self.top(
            torch.cat([*beside, dots[:, self.pairs[0], self.pairs[1]]], dim=1)
        )
        return logits
