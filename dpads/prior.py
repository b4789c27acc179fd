"""Where a model's output starts: at zero, at a public rate, or at one that was counted with noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dpads.accounting.ledger import Ledger
from dpads.accounting.mechanism import PrivacySpec
from dpads.accounting.releases import Release
from dpads.hosts import ALONE, Hosts
from dpads.label_sums import LabelBounds, unit_batches
from dpads.models.output import Output
from dpads.noise import RunKeys
from dpads.private_sums import UnitVectors, noisy_sum
from dpads.private_sums_config import COUNTING, PriorConfig, RecalibrationConfig
from dpads.schema import FeatureSchema
from dpads.store import ExampleStore

_LEAST_RATE = 1e-6
_COORDINATES = 2  # labels, rows


def public_offset(prior: PriorConfig, schema: FeatureSchema, output: Output) -> float:
    """The offset that a configuration names, 0 where it names none.

    Raises:
        ConfigError: the rate is no probability, and the task is one of probabilities.
    """
    prior.check_schema(schema)
    if prior.kind != "public" or prior.rate is None:
        return 0.0
    return offset_of(prior.rate, schema, output)


def offset_of(rate: float, schema: FeatureSchema, output: Output) -> float:
    """The logit of a rate; of counts its logarithm. Losses weighted by class move it as they do."""
    if schema.task == "count":
        return math.log(rate)
    weighted = math.log(output.positive_weight / output.negative_weight)
    return math.log(rate) - math.log1p(-rate) + weighted


def counted_offset(
    release: Release,
    store: ExampleStore,
    privacy: PrivacySpec,
    bounds: RecalibrationConfig,
    output: Output,
    keys: RunKeys,
    ledger: Ledger,
    hosts: Hosts = ALONE,
) -> float:
    """The offset from a noisy count of rows and labels.

    Args:
        release: "dp_count", from the plan.
        store: the training rows, capped.
        privacy: who the units are.
        bounds: of labels, exposures and weights.
        output: whose offset it will be.
        keys: of the run.
        ledger: gets the entry.
        hosts: the run's processes, each with its own rows.

    Returns:
        The logit (of counts the logarithm) of noisy labels over noisy rows; 0 where there are too few to
        tell from the noise.

    Guarantees:
        - No row is read before the entry is durable, and none is used but through the noisy sums.
    """
    schema = store.schema
    limits = LabelBounds.of(schema, bounds)

    def read() -> Iterator[UnitVectors]:
        for batch, shares in unit_batches(store, privacy, limits):
            values = np.empty((batch.num_examples, _COORDINATES))
            exposure = limits.exposure(batch)
            values[:, 0] = limits.label(batch)
            values[:, 1] = COUNTING * limits.largest_label * exposure / limits.largest_exposure
            offsets = batch.unit_offsets
            if offsets is None:
                offsets = np.arange(batch.num_examples + 1)
            yield UnitVectors(
                offsets * _COORDINATES,
                np.tile(np.arange(_COORDINATES), batch.num_examples),
                (values * shares[:, None]).reshape(-1),
            )

    labels, rows = noisy_sum(
        release,
        _COORDINATES,
        keys,
        ledger,
        f"A noisy count of rows and labels, where the model's output starts, with a share of "
        f"{release.share:g} of the budget",
        read,
        hosts,
    )
    per_row = COUNTING * limits.largest_label / limits.largest_exposure
    if rows <= 2.0 * release.noise_stddev:
        return 0.0
    rate = max(float(labels), release.noise_stddev) * per_row / float(rows)
    most = 1.0 - _LEAST_RATE if schema.task != "count" else math.inf
    return offset_of(min(max(rate, _LEAST_RATE), most), schema, output)
