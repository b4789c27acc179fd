"""What one row may put into a noisy sum over labels: its label, exposure and weight, cut at public bounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.mechanism import PrivacySpec
from dpads.batch import SparseBatch
from dpads.private_sums_config import RecalibrationConfig
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore
from dpads.units import units_of

READ_ROWS: Final = 1 << 16


@dataclass(frozen=True)
class LabelBounds:
    """Public bounds of one row.

    Attributes:
        is_count: whether labels are counts.
        largest_label: of a row; 1 where labels are 0 or 1.
        largest_exposure: rows of more count as rows of that much at the same rate.
        largest_weight: rows of more weight count as rows of that much; None where there are no weights.
    """

    is_count: bool
    largest_label: float
    largest_exposure: float
    largest_weight: float | None

    @classmethod
    def of(cls, schema: FeatureSchema, bounds: RecalibrationConfig) -> LabelBounds:
        """The bounds of a configuration; weights that nothing bounds are left out."""
        is_count = schema.task == "count"
        return cls(
            is_count=is_count,
            largest_label=bounds.label_bound(schema),
            largest_exposure=float(bounds.largest_exposure) if is_count else 1.0,
            largest_weight=None if schema.weight is None else bounds.largest_weight,
        )

    def exposure(self, batch: SparseBatch) -> NDArray[np.float64]:
        """Exposures of rows, cut; 1 where there are none, float64[n]."""
        if not self.is_count or batch.exposure is None:
            return np.full(batch.num_examples, 1.0)
        return np.minimum(batch.exposure.astype(np.float64), self.largest_exposure)

    def label(self, batch: SparseBatch) -> NDArray[np.float64]:
        """Labels of rows, less where exposure was cut, then cut themselves, float64[n]."""
        labels = batch.labels.astype(np.float64)
        if self.is_count and batch.exposure is not None:
            labels *= self.exposure(batch) / batch.exposure.astype(np.float64)
        return np.clip(labels, 0.0, self.largest_label)

    def weight(self, batch: SparseBatch) -> NDArray[np.float64]:
        """Weights of rows over the largest, at most 1, float64[n]."""
        if self.largest_weight is None or batch.weights is None:
            return np.ones(batch.num_examples)
        return np.clip(batch.weights.astype(np.float64) / self.largest_weight, 0.0, 1.0)


def unit_batches(
    store: ExampleStore, privacy: PrivacySpec, bounds: LabelBounds
) -> Iterator[tuple[SparseBatch, NDArray[np.float64]]]:
    """All units in turn, each whole in one batch, and what each row counts for.

    A row counts for its weight over the number of its unit's rows: so a unit's vector is at most as long
    as one row's may be, whatever its labels, and no unit has to be cut because of them.

    Args:
        store: the rows, capped where the promise names a cap.
        privacy: who the units are.
        bounds: of a row.

    Yields:
        The batch (`unit_offsets` where units are users) and float64[n], in [0, 1].
    """
    units = units_of(store, privacy)
    at_a_time = max(1, READ_ROWS // privacy.rows_per_unit)
    for first in range(0, units.number, at_a_time):
        batch = units.read(np.arange(first, min(first + at_a_time, units.number)))
        counts = bounds.weight(batch)
        if batch.unit_offsets is not None:
            sizes = np.diff(batch.unit_offsets)
            counts = counts / np.repeat(sizes, sizes)
        yield batch, counts
