"""The ads paper's network: embeddings and numbers, concatenated, through fully connected ReLU layers.

Denison et al. 2022, "Private Ad Modeling with DP-SGD", arXiv 2211.11896: embedding width int(2 V^0.25) for a
vocabulary of V (here the configured number of buckets), four hidden layers of 598.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dpads.models.base import Description
from dpads.models.fields import EmbeddingDim, check_dim, check_flag, check_widths, lay_out
from dpads.models.layout import Layout, TableGroup
from dpads.schema import FeatureSchema, Task


@dataclass(frozen=True)
class Mlp(Description):
    """Embeddings into a multi-layer perceptron.

    Attributes:
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.
        hidden: widths of the hidden layers.
        wide: whether a linear model is added to the logit: Cheng et al. 2016, "Wide & Deep Learning for
            Recommender Systems", arXiv 1606.07792.

    Raises:
        ConfigError: a width is not a positive integer.
    """

    name: ClassVar[str] = "mlp"
    embedding_dim: EmbeddingDim = 16
    hidden: tuple[int, ...] = (598, 598, 598, 598)
    wide: bool = False

    def __post_init__(self) -> None:
        check_dim(self.embedding_dim)
        check_widths("hidden", self.hidden)
        check_flag("wide", self.wide)

    def layout(self, schema: FeatureSchema) -> Layout:
        """One table per field or shared name; tables of equal width share an array."""
        return lay_out(schema, self.embedding_dim, linear=self.wide)

    def table_stddev(self, group: TableGroup) -> float:
        """0.05: small against the noise that a row collects, large enough to break symmetry."""
        return 0.0 if group.is_linear else 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """Linear and ReLU, in turn; the last layer gives the logit."""
        from dpads.models import torch_layers
        from dpads.models.torch_interactions import Deep, SumOfParts, Wide

        if not self.wide:
            return torch_layers.mlp(layout.width, self.hidden)
        return SumOfParts(layout, {"wide": Wide(layout), "deep": Deep(layout, self.hidden)})

    def jax_tower(self, layout: Layout, task: Task) -> Any:
        """The same in JAX."""
        from dpads.models.jax_interactions import Deep, Wide
        from dpads.models.jax_towers import perceptron, sum_of

        if not self.wide:
            return perceptron(layout, task, self.hidden)
        return sum_of(layout, task, Wide(layout), Deep(layout, self.hidden))
