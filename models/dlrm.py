"""DLRM: numbers become one more vector, pairs of vectors are multiplied, ReLU layers follow.

    v_0 = bottom(numbers)      logit(x) = top(v_0, <v_i, v_j> for all i > j)

Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091, section 2. Without numbers there is no v_0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.errors import SchemaError
from dpads.models.base import Description
from dpads.models.fields import check_dim, check_flag, check_widths, lay_out
from dpads.models.layout import Layout, TableGroup
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Dlrm(Description):
    """Dot products of the fields' vectors, then ReLU layers.

    Attributes:
        embedding_dim: length of the vectors.
        bottom: widths of the layers between the numbers and their vector.
        top: widths of the hidden layers after the dot products.
        wide: whether a linear model is added to the logit.

    Raises:
        ConfigError: a width is not a positive integer.
    """

    name: ClassVar[str] = "dlrm"
    embedding_dim: int = 16
    bottom: tuple[int, ...] = (128,)
    top: tuple[int, ...] = (400, 400)
    wide: bool = False

    def __post_init__(self) -> None:
        check_dim(self.embedding_dim, auto=False)
        check_widths("bottom", self.bottom)
        check_widths("top", self.top)
        check_flag("wide", self.wide)

    def layout(self, schema: FeatureSchema) -> Layout:
        """A vector per field and, where it is wide, a weight.

        Raises:
            SchemaError: there are fewer than two vectors to multiply.
        """
        if len(schema.fields) + (len(schema.numeric) > 0) < 2:
            raise SchemaError(
                'Expected two categorical columns for model "dlrm", or one and a numeric one: it multiplies '
                'vectors with each other. Take "mlp" or "logistic" for a single column.'
            )
        return lay_out(schema, self.embedding_dim, linear=self.wide)

    def table_stddev(self, group: TableGroup) -> float:
        """Weights start at zero, vectors as those of `Mlp`."""
        return 0.0 if group.is_linear else 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """Dot products between ReLU layers, and the linear part where there is one."""
        from dpads.models.torch_interactions import DotsAndDeep, SumOfParts, Wide

        wide = {"wide": Wide(layout)} if self.wide else {}
        core = DotsAndDeep(layout, self.embedding_dim, self.bottom, self.top)
        return SumOfParts(layout, {**wide, "dlrm": core})

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_interactions import DotsAndDeep, Wide
        from dpads.models.jax_towers import sum_of

        wide = [Wide(layout)] if self.wide else []
        core = DotsAndDeep(layout, self.embedding_dim, self.bottom, self.top)
        return sum_of(layout, task, *wide, core)
