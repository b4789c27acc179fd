"""Recalibration: scale and bias of a trained model's logit, or buckets of it, from one noisy sum.

The model is private already, so that a row's logit is a function of its features and of what is released.
The logit is cut into public nodes; each row tells the two nodes beside it by how much its label exceeds
what the model predicts, and that it is there, and the first once more to a total. All rows' numbers are
summed with noise, once, and a calibration is fitted to the noisy sums.

On rare positives clipping shrinks positives more than negatives, so that the model learns to predict too
little: bids are made of probabilities, and this is what puts them right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.accounting.mechanism import PrivacySpec
from dpads.accounting.releases import Release
from dpads.hosts import ALONE, Hosts
from dpads.label_sums import LabelBounds, unit_batches
from dpads.models.base import Model
from dpads.models.calibration import Calibration
from dpads.noise import RunKeys
from dpads.private_sums import UnitVectors, noisy_sum
from dpads.private_sums_config import RecalibrationConfig
from dpads.recalibration_fit import (
    NODES,
    SPACING,
    Means,
    Seen,
    fit_buckets,
    fit_scale_and_bias,
)
from dpads.store import ExampleStore

COORDINATES: Final = 1 + 2 * len(NODES)  # the total, residuals, rows
_PLACES: Final = 5  # of one row: the total, and two nodes, each with a residual and a count


def recalibrated(
    release: Release,
    model: Model,
    store: ExampleStore,
    privacy: PrivacySpec,
    config: RecalibrationConfig,
    keys: RunKeys,
    ledger: Ledger,
    hosts: Hosts = ALONE,
) -> Calibration:
    """A calibration of a model, from one noisy sum over its training rows.

    Args:
        release: "recalibration", from the plan.
        model: finished: every row of its tables is brought up to date and rounded.
        store: the training rows, capped.
        privacy: who the units are.
        config: what to fit, and the bounds of labels, exposures and weights.
        keys: of the run.
        ledger: gets the entry.
        hosts: the run's processes, each with its own rows.

    Returns:
        The calibration; nearly the identity where the rows show nothing beyond the noise.

    Guarantees:
        - No row is read before the entry is durable, and none is used but through the noisy sums.
        - A row's vector is at most release.l2_clip_norm long, so is a unit's, and none has to be cut.
    """
    bounds = LabelBounds.of(store.schema, config)
    has_exposure = store.schema.exposure is not None
    means = Means(
        store.schema.task, bounds.largest_label, bounds.largest_exposure if has_exposure else None
    )

    def read() -> Iterator[UnitVectors]:
        for batch, counts in unit_batches(store, privacy, bounds):
            exposure = bounds.exposure(batch)
            logits = model.output.uncalibrated(
                model.tower.logits(model.features(batch)).astype(np.float64)
            )
            labels = bounds.label(batch)
            yield row_vectors(logits, labels * counts, exposure * counts, means, batch.unit_offsets)

    kind = config.resolved(store.schema)
    sums = noisy_sum(
        release,
        COORDINATES,
        keys,
        ledger,
        f"A noisy sum of labels less predictions, and of rows, in all and along {len(NODES)} fixed nodes of "
        f"the trained model's logit, to which a calibration ({kind.replace('_', ' ')}) is fitted, with a "
        f"share of {release.share:g} of the budget",
        read,
        hosts,
    )
    seen = Seen(
        total=float(sums[0]),
        residuals=sums[1 : 1 + len(NODES)],
        rows=sums[1 + len(NODES) :] / means.per_row,
        residual_stddev=release.noise_stddev,
        rows_stddev=release.noise_stddev / means.per_row,
        means=means,
    )
    return fit_buckets(seen) if kind == "buckets" else fit_scale_and_bias(seen)


def row_vectors(
    logits: NDArray[np.float64],
    labels: NDArray[np.float64],
    exposure: NDArray[np.float64],
    means: Means,
    unit_offsets: NDArray[np.int64] | None,
) -> UnitVectors:
    """Each row's residual and count, shared between the two nodes beside its logit, and the total residual.

    Args:
        logits: float64[n]; beyond the first and the last node they count as there, and one that is not
            a number makes its unit count as nothing.
        labels: float64[n], cut, times what the row counts for.
        exposure: float64[n], likewise.
        means: what is subtracted at a node.
        unit_offsets: int64[units + 1], or None where every row is a unit.
    """
    inside = np.clip(np.nan_to_num(logits), NODES[0], NODES[-1])
    places = (inside - NODES[0]) / SPACING
    lower = np.minimum(places.astype(np.int64), len(NODES) - 2)
    upper = places - lower
    entries = np.empty((len(logits), _PLACES), np.int64)
    values = np.empty((len(logits), _PLACES))
    rows = exposure * means.per_row
    subtracted = means.subtracted(NODES)
    for column, (node, hat) in ((1, (lower, 1.0 - upper)), (2, (lower + 1, upper))):
        entries[:, column] = 1 + node
        values[:, column] = hat * (labels - exposure * subtracted[node])
        entries[:, column + 2], values[:, column + 2] = 1 + node + len(NODES), rows * hat
    entries[:, 0], values[:, 0] = 0, values[:, 1] + values[:, 2]
    values[np.isnan(logits)] = np.nan
    offsets = np.arange(len(logits) + 1) if unit_offsets is None else unit_offsets
    return UnitVectors(offsets * _PLACES, entries.reshape(-1), values.reshape(-1))
