"""Logistic regression on hashed features: tables of width one, summed, plus a linear part on the numbers.

    logit(x) = sum over fields of w[field's id] + v . numeric + b

Starts at zero. McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.models.base import Description
from dpads.models.layout import Layout, TableGroup, build_layout
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Logistic(Description):
    """Logistic (or, for counts, log-linear Poisson) regression."""

    name: ClassVar[str] = "logistic"

    def layout(self, schema: FeatureSchema) -> Layout:
        """One table of width one per field."""
        return build_layout(schema, [("", dict.fromkeys(schema.table_rows, 1))])

    def table_stddev(self, group: TableGroup) -> float:
        """Zero: the loss is convex."""
        return 0.0

    def torch_tower(self, layout: Layout) -> Any:
        """Sum of the looked-up weights plus a linear layer on the numbers."""
        from dpads.models import torch_layers

        return torch_layers.SumPlusLinear(layout.embedded, layout.num_numeric)

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_towers import sum_plus_linear

        return sum_plus_linear(layout, task)
