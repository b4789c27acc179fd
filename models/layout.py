"""Layout: which arrays hold the tables, and which feature columns each field fills.

The tower of every model reads one matrix, float32[B, width]:

    ┌ group 0: one slot per field ┬ group 1 ┬ ... ┬ numeric features ┐
    0                             │         │     embedded           width

A group is the tables of one width: they share one array, table t starting at row `bases[t]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.errors import DataError, SchemaError
from dpads.kernels import lookup
from dpads.kernels.lookup import Places
from dpads.schema import FeatureSchema, Field

LINEAR = ".linear"  # after the names of tables of a linear part
MAX_GROUP_ROWS = 2**32  # a row is one 32-bit word of its noise address


@dataclass(frozen=True)
class Slot:
    """One use of a table by a field: the feature columns `column : column + dim` of its group."""

    field: Field
    table: str
    column: int


@dataclass(frozen=True)
class TableGroup:
    """Tables of equal width in one array.

    Attributes:
        name: names the group in noise addresses and checkpoints.
        dim: width of the rows.
        rows: rows of each table, in order.
        slots: the uses, in feature order.
    """

    name: str
    dim: int
    rows: Mapping[str, int]
    slots: tuple[Slot, ...]

    @property
    def bases(self) -> dict[str, int]:
        """First row of each table."""
        starts = np.concatenate([[0], np.cumsum(list(self.rows.values()), dtype=np.int64)])
        return {name: int(start) for name, start in zip(self.rows, starts[:-1], strict=True)}

    @property
    def is_linear(self) -> bool:
        """Whether these are the weights of a linear part, one a row, summed in the logit."""
        return self.name == f"tables{LINEAR}.1"

    @property
    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(self.rows.values())

    @property
    def rows_may_repeat(self) -> bool:
        """Whether one example can read a row twice: a bag, or two fields of one table."""
        tables = [slot.table for slot in self.slots]
        return any(slot.field.is_bag for slot in self.slots) or len(set(tables)) < len(tables)

    def places(self, batch: SparseBatch) -> Places:
        """Lists the places where the batch reads this group.

        The batch must fit the model: stores of the model's schema do, others pass `check_ids` first.
        """
        counts = np.zeros(batch.num_examples, np.int64)
        scalars = [slot for slot in self.slots if not slot.field.is_bag]
        bags = [slot for slot in self.slots if slot.field.is_bag]
        known = {name: i for i, name in enumerate(batch.field_names)}
        columns = np.array([known[slot.field.name] for slot in scalars], np.int64)
        lookup.count_scalars(batch.scalar_ids, columns, counts)
        for slot in bags:
            bag = batch.bags[slot.field.name]
            lookup.count_bag(bag.values, bag.offsets, counts)
        places = lookup.empty_places(counts)
        cursor = places.offsets[:-1].copy()
        bases = self.bases
        lookup.place_scalars(
            batch.scalar_ids,
            columns,
            np.array([bases[slot.table] for slot in scalars], np.int64),
            np.array([slot.column for slot in scalars], np.int32),
            places,
            cursor,
        )
        for slot in bags:
            bag = batch.bags[slot.field.name]
            weights = np.empty(0, np.float32) if bag.weights is None else bag.weights
            mean = slot.field.pooling == "mean"
            lookup.place_bag(
                bag.values,
                bag.offsets,
                weights,
                mean,
                bases[slot.table],
                slot.column,
                places,
                cursor,
            )
        return places


@dataclass(frozen=True)
class Layout:
    """Groups of tables and the width of the feature matrix."""

    groups: tuple[TableGroup, ...]
    num_numeric: int

    @property
    def embedded(self) -> int:
        """Feature columns that come from tables."""
        return sum(group.dim * len(group.slots) for group in self.groups)

    @property
    def linear(self) -> int:
        """Those of them that belong to a linear part, the last."""
        return sum(len(group.slots) for group in self.groups if group.is_linear)

    @property
    def slots(self) -> int:
        """Vectors that come from tables, those of a linear part left out."""
        return sum(len(group.slots) for group in self.groups if not group.is_linear)

    @property
    def width(self) -> int:
        """Columns of the feature matrix."""
        return self.embedded + self.num_numeric

    def numbers(self, batch: SparseBatch) -> NDArray[np.float32]:
        """What fills the columns after the embedded ones, float32[B, width - embedded]."""
        return batch.dense


def build_layout(schema: FeatureSchema, parts: Sequence[tuple[str, Mapping[str, int]]]) -> Layout:
    """Lays out tables.

    Args:
        schema: the columns.
        parts: for each part of the model that reads the fields, a suffix of the table names ("" or
            ".linear") and the width of each table.

    Returns:
        One group per part and width, in order of first use.

    Raises:
        SchemaError: the schema has no column that a model could read, a group has too many rows, or two
            parts' tables would have one name.
    """
    if not schema.fields and not schema.numeric:
        raise SchemaError(
            "The schema has neither categorical nor numeric columns. Name at least one."
        )
    groups: list[TableGroup] = []
    column = 0
    table_rows = schema.table_rows
    for suffix, dims in parts:
        for dim in dict.fromkeys(dims[item.table] for item in schema.fields):
            members = [item for item in schema.fields if dims[item.table] == dim]
            slots = []
            for item in members:
                slots.append(Slot(item, item.table + suffix, column))
                column += dim
            rows = {item.table + suffix: table_rows[item.table] for item in members}
            group = TableGroup(f"tables{suffix}.{dim}", dim, rows, tuple(slots))
            if group.num_rows > MAX_GROUP_ROWS:
                raise SchemaError(
                    f"Tables of width {dim} have {group.num_rows:,} rows together; noise has addresses for "
                    f"{MAX_GROUP_ROWS:,}. Configure fewer buckets."
                )
            groups.append(group)
    names = [name for group in groups for name in group.rows]
    for name in names:
        if names.count(name) > 1:
            raise SchemaError(
                f'Two tables would be called "{name}": one of them belongs to the linear part of '
                f'"{name.removesuffix(LINEAR)}". Rename the column.'
            )
    return Layout(tuple(groups), len(schema.numeric))


def check_ids(group: TableGroup, batch: SparseBatch) -> None:
    """Refuses ids beyond their table; for batches that do not come from a store.

    Raises:
        DataError: a field is missing, or an id is not below the table's rows.
    """
    for slot in group.slots:
        present = batch.bags if slot.field.is_bag else batch.field_names
        if slot.field.name not in present:
            kind = "bag" if slot.field.is_bag else "scalar field"
            raise DataError(f'The batch has no {kind} "{slot.field.name}", which the model reads.')
        if slot.field.is_bag:
            ids: NDArray[np.int64] | NDArray[np.int32] = batch.bags[slot.field.name].values
        else:
            ids = batch.scalar_ids[:, batch.field_names.index(slot.field.name)]
        if ids.size and int(ids.max()) >= group.rows[slot.table]:
            raise DataError(
                f'ids["{slot.field.name}"]: expected rows of table "{slot.table}", below '
                f"{group.rows[slot.table]}. Encode with the schema of the model."
            )
