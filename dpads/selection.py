"""Rows of tables that are worth training: those whose noisy number of units passes a threshold.

A row that few units read is moved by noise more than by gradients. One Gaussian release tells which rows
enough units read: every unit adds one at each row that it reads, whatever the field and however often, scaled
down where there are more rows than its bound allows. What passes the threshold is a selection, and everything
done with it is post-processing: the other rows are zero vectors in training and in predictions, and get no
noise.

    unit reads rows 3, 3, 8 of "url" and 5 of "ad"  ->  1 at url:3, url:8, ad:5
    sum over units + noise on every row >= threshold  ->  bool per row
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.accounting.mechanism import PrivacySpec
from dpads.accounting.releases import Release
from dpads.batch import SparseBatch
from dpads.errors import SchemaError
from dpads.hosts import ALONE, Hosts
from dpads.kernels.presence import presences
from dpads.models.layout import TableGroup, build_layout
from dpads.noise import RunKeys
from dpads.private_sums import UnitVectors, noisy_sum
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.units import units_of

PREFIX = "selection."
READ_ROWS = 1 << 16


class Presence:
    """Which rows of the schema's tables each unit reads, all tables in one vector.

    Args:
        schema: the columns.

    Attributes:
        size: coordinates, one a row of every table.

    Raises:
        SchemaError: no column is looked up in a table.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        if not schema.fields:
            raise SchemaError(
                "Expected categorical columns or bags to select rows of tables for, got a schema without. "
                'Leave [selection] out, or set kind = "none".'
            )
        self._group = build_layout(schema, [("", dict.fromkeys(schema.table_rows, 1))]).groups[0]
        self.size = self._group.num_rows

    def vectors(self, batch: SparseBatch) -> UnitVectors:
        """The vectors of a batch's units; secret."""
        places = self._group.places(batch)
        bounds = places.offsets
        if batch.unit_offsets is not None:
            bounds = bounds[batch.unit_offsets]
        offsets, rows = presences(places.rows, bounds)
        return UnitVectors(offsets, rows, np.ones(len(rows)))

    def selected(self, noisy: NDArray[np.float64], threshold: float) -> Selection:
        """The rows whose noisy number of units is at least the threshold."""
        passes = noisy >= threshold
        return Selection(
            {
                table: passes[base : base + self._group.rows[table]]
                for table, base in self._group.bases.items()
            }
        )


@dataclass(frozen=True)
class Selection:
    """The rows that are trained; output of a private mechanism.

    Attributes:
        tables: {table of the schema: bool[rows]}.
    """

    tables: Mapping[str, NDArray[np.bool_]]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each table are trained."""
        return {table: int(rows.sum()) for table, rows in self.tables.items()}

    def of_group(self, group: TableGroup) -> NDArray[np.bool_]:
        """Which rows of a group's array are trained, bool[rows].

        Parts of a model that look ids up in tables of their own, such as the linear part beside a deep one,
        share the selection of the schema's table. Rows beyond that table's are read by nobody.
        """
        of_schema = {slot.table: slot.field.table for slot in group.slots}
        found = np.zeros(group.num_rows, np.bool_)
        for name, base in group.bases.items():
            rows = self.tables[of_schema[name]][: group.rows[name]]
            found[base : base + len(rows)] = rows
        return found

    def with_rows(self, further: Mapping[str, NDArray[np.bool_]]) -> Selection:
        """The selection and further rows, {table of the schema: bool[rows]}."""
        return Selection({table: rows | further[table] for table, rows in self.tables.items()})

    def to_arrays(self) -> dict[str, NDArray[np.uint8]]:
        """One bit a row, for a checkpoint."""
        return {PREFIX + table: np.packbits(rows) for table, rows in self.tables.items()}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.uint8]], schema: FeatureSchema
    ) -> Selection | None:
        """What `to_arrays` wrote; None where there is none."""
        if not any(name.startswith(PREFIX) for name in arrays):
            return None
        return cls(
            {
                table: np.unpackbits(np.asarray(arrays[PREFIX + table]), count=rows).astype(bool)
                for table, rows in schema.table_rows.items()
            }
        )


def noisy_selection(
    release: Release,
    store: ExampleStore,
    privacy: PrivacySpec,
    threshold: float,
    keys: RunKeys,
    ledger: Ledger,
    hosts: Hosts = ALONE,
    *,
    beside_earlier: bool = False,
) -> Selection:
    """Selects rows of the tables by a noisy count of the units that read them.

    Args:
        release: "selection", from the plan.
        store: the training rows, capped.
        privacy: who the units are.
        threshold: units that a row must have, by its noisy count; public.
        keys: of the run.
        ledger: gets the entry.
        hosts: the run's processes, each with its own rows.
        beside_earlier: whether the rows that an earlier run trained are trained too, for the entry.

    Returns:
        The selection; nothing else is kept of the counts.

    Raises:
        SchemaError: no column is looked up in a table.

    Guarantees:
        - No row is read before the entry is durable, and none is used but through the noisy counts.
        - Every row of every table has noise of its own, those that nobody reads included.
    """
    presence = Presence(store.schema)
    units = units_of(store, privacy)
    at_a_time = max(1, READ_ROWS // privacy.rows_per_unit)

    def read() -> Iterator[UnitVectors]:
        for first in range(0, units.number, at_a_time):
            yield presence.vectors(
                units.read(np.arange(first, min(first + at_a_time, units.number)))
            )

    text = (
        f"A noisy count of units for each of {presence.size:,} rows of tables; those of at least "
        f"{threshold:g}{', and those that the earlier run trained,' if beside_earlier else ''} are trained"
    )
    noisy = noisy_sum(release, presence.size, keys, ledger, text, read, hosts)
    return presence.selected(noisy, threshold)
