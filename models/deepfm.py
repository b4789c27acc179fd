"""DeepFM: a factorization machine and a multi-layer perceptron that share the fields' vectors.

    logit(x) = w0 + <w, x> + sum_(i < j) <v_i, v_j> + mlp(v_1, ..., v_m, numbers)

Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", arXiv 1703.04247,
equations 1 to 4; three layers of 400, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.models.base import Description
from dpads.models.fields import check_dim, check_widths, lay_out
from dpads.models.layout import Layout, TableGroup
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class DeepFm(Description):
    """A factorization machine beside a multi-layer perceptron.

    Attributes:
        embedding_dim: length of the vectors.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: a width is not a positive integer.
    """

    name: ClassVar[str] = "deepfm"
    embedding_dim: int = 16
    hidden: tuple[int, ...] = (400, 400, 400)

    def __post_init__(self) -> None:
        check_dim(self.embedding_dim, auto=False)
        check_widths("hidden", self.hidden)

    def layout(self, schema: FeatureSchema) -> Layout:
        """A vector and a weight per field."""
        return lay_out(schema, self.embedding_dim, linear=True)

    def table_stddev(self, group: TableGroup) -> float:
        """Weights start at zero, vectors as those of `Mlp`."""
        return 0.0 if group.is_linear else 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """Linear part, pairs, and layers of linear and ReLU."""
        from dpads.models.torch_interactions import Deep, Pairs, SumOfParts, Wide

        parts = {"wide": Wide(layout), "pairs": Pairs(layout), "deep": Deep(layout, self.hidden)}
        return SumOfParts(layout, parts)

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_interactions import Deep, Pairs, Wide
        from dpads.models.jax_towers import sum_of

        return sum_of(layout, task, Wide(layout), Pairs(layout), Deep(layout, self.hidden))
