"""The columns that a schema describes, and the checks of their descriptions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dpads._validate import nearest
from dpads.errors import SchemaError

DEFAULT_BUCKETS = 100_000
MIN_BUCKETS = 2
MAX_BUCKETS = 2**31 - 1

Pooling = Literal["sum", "mean"]
Transform = Literal["signed_log1p", "identity"]


@dataclass(frozen=True)
class Numeric:
    """A numeric column: `transform(clip(value))`, `missing` in place of nulls (before both).

    Attributes:
        column: the column's name.
        transform: "signed_log1p", sign(x) * log(1 + |x|), or "identity".
        clip: bounds applied before the transform, or None.
        missing: the raw value that stands for null.
    """

    column: str
    transform: Transform = "signed_log1p"
    clip: tuple[float, float] | None = None
    missing: float = 0.0

    def __post_init__(self) -> None:
        as_name(self.column, "numeric")
        if self.transform not in get_args(Transform):
            raise SchemaError(
                f'numeric column "{self.column}": unknown transform "{self.transform}".'
                + nearest(str(self.transform), get_args(Transform))
            )
        if not _finite(self.missing):
            raise SchemaError(
                f'numeric column "{self.column}": expected a finite number for missing, '
                f"got {self.missing!r}."
            )
        object.__setattr__(self, "missing", float(self.missing))
        if self.clip is not None:
            bounds = as_sequence(self.clip, f'clip of numeric column "{self.column}"')
            if len(bounds) != 2 or not all(map(_finite, bounds)) or not bounds[0] < bounds[1]:
                raise SchemaError(
                    f'numeric column "{self.column}": expected clip = [low, high], finite numbers '
                    f"with low < high, got {list(bounds)}."
                )
            object.__setattr__(self, "clip", (float(bounds[0]), float(bounds[1])))


@dataclass(frozen=True)
class Bag:
    """A list-valued categorical column; ids may repeat.

    Attributes:
        column: the column's name.
        pooling: "sum" or "mean" of the ids' rows; mean leaves padding out.
        weights: a list column of the same lengths, one factor per id (pooling "sum" only).
    """

    column: str
    pooling: Pooling = "sum"
    weights: str | None = None

    def __post_init__(self) -> None:
        as_name(self.column, "bags")
        if self.weights is not None:
            as_name(self.weights, f'weights of bag "{self.column}"')
        if self.pooling not in get_args(Pooling):
            raise SchemaError(
                f'bag "{self.column}": expected pooling "sum" or "mean", got "{self.pooling}".'
            )
        if self.weights is not None and self.pooling != "sum":
            raise SchemaError(
                f'bag "{self.column}": weights work with pooling = "sum" only. '
                "Divide the weights by their sum upstream for a weighted mean."
            )


@dataclass(frozen=True)
class Field:
    """One categorical place of an example and the table it looks up."""

    name: str
    table: str
    is_bag: bool
    pooling: Pooling = "sum"
    weights: str | None = None


def _finite(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_sequence(value: Any, key: str) -> tuple[Any, ...]:
    """A list of anything but the letters of a text."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SchemaError(f"{key} of [schema]: expected a list, got {type(value).__name__}.")
    return tuple(value)


def as_mapping(value: Any, key: str) -> Mapping[str, Any]:
    """A table with names as keys."""
    if not isinstance(value, Mapping):
        raise SchemaError(f"{key} of [schema]: expected a table, got {type(value).__name__}.")
    return {as_name(name, key): item for name, item in value.items()}


def as_name(value: Any, key: str) -> str:
    """A column's or table's name."""
    if not isinstance(value, str) or not value:
        raise SchemaError(f"{key} of [schema]: expected a name, got {value!r}.")
    return value


def as_names(value: Any, key: str) -> tuple[str, ...]:
    """A list of names."""
    return tuple(as_name(name, key) for name in as_sequence(value, key))


def as_share(value: Any, key: str) -> float:
    """A number in (0, 1]."""
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0.0 < value <= 1.0):
        raise SchemaError(
            f"{key} of [schema]: expected a number in (0, 1], got {value!r}. 0.1 says that one in ten "
            "was kept."
        )
    return float(value)


def as_buckets(value: Any) -> int | dict[str, int]:
    """Rows per table: one number, or one per table or column."""
    if isinstance(value, Mapping):
        return {
            name: _bucket(number, name) for name, number in as_mapping(value, "buckets").items()
        }
    return _bucket(value, "every table")


def _bucket(value: Any, what: str) -> int:
    """A number of rows."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise SchemaError(f"buckets of {what}: expected a whole number, got {value!r}.")
    if not MIN_BUCKETS <= value <= MAX_BUCKETS:
        raise SchemaError(
            f"buckets of {what}: expected from {MIN_BUCKETS} to {MAX_BUCKETS}, got {value}."
        )
    return value


def as_column(value: Any, kind: type[Any], key: str) -> Any:
    """A column description from its name, a mapping, or itself."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        return kind(value)
    if isinstance(value, Mapping):
        known = [f.name for f in fields(kind)]
        for name in value:
            if name not in known:
                raise SchemaError(
                    f'Unknown key "{name}" in {key} of [schema].' + nearest(name, known)
                )
        if "column" not in value:
            raise SchemaError(f'Each table in {key} of [schema] needs "column".')
        return kind(**value)
    raise SchemaError(
        f"{key} of [schema]: expected a column name or a table, got {type(value).__name__}."
    )
