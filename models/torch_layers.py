"""Pieces of torch towers; initial weights are set by `build_tower`, so nothing is drawn here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn


class Linear(nn.Linear):
    """A linear layer whose parameters `build_tower` draws; zero inputs are fine.

    Args:
        width_in: inputs.
        width_out: outputs.
        starts_at_zero: whether the initial weight is zero.
    """

    def __init__(self, width_in: int, width_out: int, *, starts_at_zero: bool = False) -> None:
        super().__init__(width_in, width_out)
        self.starts_at_zero = starts_at_zero

    def reset_parameters(self) -> None:
        """Draws nothing."""


class SumPlusLinear(nn.Module):
    """Sum of the embedded columns plus a linear layer on the numeric ones: float[B, width] -> float[B]."""

    def __init__(self, embedded: int, num_numeric: int) -> None:
        super().__init__()
        self.embedded = embedded
        self.linear = Linear(num_numeric, 1, starts_at_zero=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits."""
        numeric = self.linear(features[:, self.embedded :]).squeeze(1)
        logits: torch.Tensor = features[:, : self.embedded].sum(dim=1) + numeric
        return logits


def mlp(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear and ReLU layers down to one logit: float[B, width] -> float[B]."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, size in enumerate(hidden):
        layers[f"hidden{number}"] = Linear(width, size)
        layers[f"relu{number}"] = nn.ReLU()
        width = size
    layers["output"] = Linear(width, 1)
    layers["squeeze"] = nn.Flatten(0)
    return nn.Sequential(layers)
