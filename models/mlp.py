"""The ads paper's network: embeddings and numbers, concatenated, through fully connected ReLU layers.

Denison et al. 2022, "Private Ad Modeling with DP-SGD", arXiv 2211.11896: embedding width int(2 V^0.25) for a
vocabulary of V (here the configured number of buckets), four hidden layers of 598.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dpads.errors import ConfigError
from dpads.models.base import Description
from dpads.models.layout import Layout, TableGroup, build_layout
from dpads.schema import FeatureSchema


@dataclass(frozen=True)
class Mlp(Description):
    """Embeddings into a multi-layer perceptron.

    Attributes:
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: a width is not a positive integer.
    """

    name: ClassVar[str] = "mlp"
    embedding_dim: int | Literal["auto"] = 16
    hidden: tuple[int, ...] = (598, 598, 598, 598)

    def __post_init__(self) -> None:
        if self.embedding_dim != "auto" and not _positive(self.embedding_dim):
            raise ConfigError(
                f'Expected embedding_dim to be a positive integer or "auto", got {self.embedding_dim!r}.'
            )
        if not all(_positive(width) for width in self.hidden):
            raise ConfigError(
                f"Expected hidden to list positive integers, got {list(self.hidden)!r}."
            )

    def layout(self, schema: FeatureSchema) -> Layout:
        """One table per field or shared name; tables of equal width share an array."""
        dims = {
            table: int(2 * rows**0.25) if self.embedding_dim == "auto" else self.embedding_dim
            for table, rows in schema.table_rows.items()
        }
        return build_layout(schema, [("", dims)])

    def table_stddev(self, group: TableGroup) -> float:
        """0.05: small against the noise that a row collects, large enough to break symmetry."""
        return 0.05

    def torch_tower(self, layout: Layout) -> Any:
        """Linear and ReLU, in turn; the last layer gives the logit."""
        from dpads.models import torch_layers

        return torch_layers.mlp(layout.width, self.hidden)


def _positive(value: object) -> bool:
    """Whether the value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
