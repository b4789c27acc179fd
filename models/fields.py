"""What descriptions of models share: widths, checks, and the linear part beside a deep one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from dpads.errors import ConfigError
from dpads.models.layout import LINEAR, Layout, build_layout
from dpads.schema import FeatureSchema

EmbeddingDim: TypeAlias = int | Literal["auto"]


def lay_out(schema: FeatureSchema, embedding_dim: EmbeddingDim, *, linear: bool) -> Layout:
    """A vector per field and, for a linear part, a weight per field.

    Args:
        schema: the columns.
        embedding_dim: width of every table, or "auto" for int(2 * buckets^0.25) per table.
        linear: whether there is a linear part.
    """
    dims = {
        table: int(2 * rows**0.25) if embedding_dim == "auto" else embedding_dim
        for table, rows in schema.table_rows.items()
    }
    weights = [(LINEAR, dict.fromkeys(dims, 1))] if linear else []
    return build_layout(schema, [("", dims), *weights])


def check_dim(value: EmbeddingDim, *, auto: bool = True) -> None:
    """Refuses a width of tables that is none.

    Raises:
        ConfigError: it is neither a positive integer nor, where that is possible, "auto".
    """
    if auto and value == "auto":
        return
    if not is_positive(value):
        other = ' or "auto"' if auto else ", the same for all fields, whose vectors are multiplied"
        raise ConfigError(f"Expected embedding_dim to be a positive integer{other}, got {value!r}.")


def check_widths(name: str, values: Sequence[int]) -> None:
    """Refuses widths of layers that are none.

    Raises:
        ConfigError: one of them is not a positive integer.
    """
    if not all(is_positive(width) for width in values):
        raise ConfigError(f"Expected {name} to list positive integers, got {list(values)!r}.")


def check_flag(name: str, value: object) -> None:
    """Refuses what is neither true nor false.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"Expected {name} to be true or false, got {value!r}.")


def is_positive(value: object) -> bool:
    """Whether the value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
