"""Calibrations: increasing maps of a logit, fitted after training and kept with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpads.errors import ConfigError


@dataclass(frozen=True)
class ScaleAndBias:
    """z -> scale * z + bias (Platt 1999).

    Attributes:
        scale: positive, so that the order of predictions stays.
        bias: finite.

    Raises:
        ConfigError: one of them is out of range.
    """

    kind: ClassVar[str] = "scale_and_bias"
    scale: float
    bias: float

    def __post_init__(self) -> None:
        if not (0.0 < self.scale < math.inf and math.isfinite(self.bias)):
            raise ConfigError(
                f"Expected a positive scale and a finite bias, got {self.scale!r} and {self.bias!r}."
            )

    def apply(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated logits, float64[n]."""
        return self.scale * logits + self.bias

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `calibration_from_dict` reads back."""
        return {"kind": self.kind, "scale": self.scale, "bias": self.bias}


@dataclass(frozen=True)
class Buckets:
    """Linear between nodes, of slope one beyond the first and the last.

    Attributes:
        nodes: logits, rising.
        values: calibrated logits at the nodes, not falling.

    Raises:
        ConfigError: there are fewer than two nodes, or they do not rise.
    """

    kind: ClassVar[str] = "buckets"
    nodes: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(first < last for first, last in pairwise(self.nodes))
        ordered = all(first <= last for first, last in pairwise(self.values))
        if len(self.nodes) < 2 or len(self.values) != len(self.nodes) or not (rising and ordered):
            raise ConfigError(
                "Expected nodes that rise, two at least, and as many values that do not fall."
            )

    def apply(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated logits, float64[n]."""
        inside = np.clip(logits, self.nodes[0], self.nodes[-1])
        return np.interp(inside, self.nodes, self.values) + (logits - inside)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `calibration_from_dict` reads back."""
        return {"kind": self.kind, "nodes": list(self.nodes), "values": list(self.values)}


Calibration: TypeAlias = ScaleAndBias | Buckets


def calibration_from_dict(values: Mapping[str, Any]) -> Calibration:
    """Reads what `to_dict` of a calibration wrote.

    Raises:
        KeyError: a key is missing, or the kind is unknown.
        ConfigError: a number is out of range.
    """
    if values["kind"] == ScaleAndBias.kind:
        return ScaleAndBias(values["scale"], values["bias"])
    if values["kind"] == Buckets.kind:
        return Buckets(tuple(values["nodes"]), tuple(values["values"]))
    raise KeyError("kind")
