"""Factorization machines: a linear model plus a dot product for every pair of fields.

    logit(x) = w0 + sum_i w_i x_i + sum_(i < j) <v_i, v_j> x_i x_j

Rendle 2010, "Factorization Machines" (ICDM), equation 1. A bag counts as one field: its pooled vector.
Numbers are in the linear part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.models.base import Description
from dpads.models.fields import check_dim, lay_out
from dpads.models.layout import Layout, TableGroup
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Fm(Description):
    """A factorization machine of degree two.

    Attributes:
        embedding_dim: length of the vectors.

    Raises:
        ConfigError: it is not a positive integer.
    """

    name: ClassVar[str] = "fm"
    embedding_dim: int = 16

    def __post_init__(self) -> None:
        check_dim(self.embedding_dim, auto=False)

    def layout(self, schema: FeatureSchema) -> Layout:
        """A vector and a weight per field."""
        return lay_out(schema, self.embedding_dim, linear=True)

    def table_stddev(self, group: TableGroup) -> float:
        """Weights start at zero; vectors do not, or nothing would tell their coordinates apart."""
        return 0.0 if group.is_linear else 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """The linear part plus the pairs."""
        from dpads.models.torch_interactions import Pairs, SumOfParts, Wide

        return SumOfParts(layout, {"wide": Wide(layout), "pairs": Pairs(layout)})

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_interactions import Pairs, Wide
        from dpads.models.jax_towers import sum_of

        return sum_of(layout, task, Wide(layout), Pairs(layout))
