"""DCN v2: layers that multiply all features with each other, beside a multi-layer perceptron.

    x0 = (v_1, ..., v_m, numbers)      x[l + 1] = x0 * (W[l] x[l] + b[l]) + x[l]
    logit(x) = w . (x[L], mlp(x0)) + b

Wang et al. 2021, "DCN V2: Improved Deep & Cross Network", arXiv 2008.13535v2, equation 1, the parallel
structure of figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.errors import ConfigError
from dpads.models.base import Description
from dpads.models.fields import (
    EmbeddingDim,
    check_dim,
    check_flag,
    check_widths,
    is_positive,
    lay_out,
)
from dpads.models.layout import Layout, TableGroup
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Dcn(Description):
    """Cross layers beside ReLU layers.

    Attributes:
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.
        cross_layers: their number.
        hidden: widths of the hidden layers; none for cross layers alone.
        wide: whether a linear model is added to the logit.

    Raises:
        ConfigError: a width or number is not a positive integer.
    """

    name: ClassVar[str] = "dcn"
    embedding_dim: EmbeddingDim = 16
    cross_layers: int = 2
    hidden: tuple[int, ...] = (400, 400)
    wide: bool = False

    def __post_init__(self) -> None:
        check_dim(self.embedding_dim)
        check_widths("hidden", self.hidden)
        check_flag("wide", self.wide)
        if not is_positive(self.cross_layers):
            raise ConfigError(
                f"Expected cross_layers to be a positive integer, got {self.cross_layers!r}. "
                "Without any it is an mlp."
            )

    def layout(self, schema: FeatureSchema) -> Layout:
        """A vector per field and, where it is wide, a weight."""
        return lay_out(schema, self.embedding_dim, linear=self.wide)

    def table_stddev(self, group: TableGroup) -> float:
        """Weights start at zero, vectors as those of `Mlp`."""
        return 0.0 if group.is_linear else 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """Cross and ReLU layers, and the linear part where there is one."""
        from dpads.models.torch_interactions import CrossAndDeep, SumOfParts, Wide

        wide = {"wide": Wide(layout)} if self.wide else {}
        core = CrossAndDeep(layout, self.cross_layers, self.hidden)
        return SumOfParts(layout, {**wide, "dcn": core})

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_interactions import CrossAndDeep, Wide
        from dpads.models.jax_towers import sum_of

        wide = [Wide(layout)] if self.wide else []
        return sum_of(layout, task, *wide, CrossAndDeep(layout, self.cross_layers, self.hidden))
