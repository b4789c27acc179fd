"""Noise and cost of a budget over batch sizes and epochs, before any data is touched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dpads.accounting.releases import Release, Wanted
from dpads.plan import PrivacySpec, resolve
from dpads.private_sums_config import COUNTING, RecalibrationConfig

# What a private training without any configuration releases beside it, where labels are 0 or 1.
DEFAULT_RELEASES: Final = (
    Wanted(
        kind="recalibration",
        share=RecalibrationConfig().share,
        l2_clip_norm=math.sqrt(2.0 + COUNTING**2),
    ),
)


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One line of `plan_table`: what a batch size and a number of epochs cost.

    Attributes:
        expected_batch_size: Units in a batch on average, and the divisor.
        epochs: Passes over the data on average.
        iterations: Number of batches.
        sampling_prob: The chance that one unit joins one batch.
        noise_multiplier: stddev of the noise on the sum over l2_clip_norm.
        noise_per_coordinate: stddev of the noise on one coordinate of the averaged gradient.
        epsilon: What everything costs, at most the target.
        releases: What is released beside training, each with its share and its noise.
    """

    expected_batch_size: int
    epochs: float
    iterations: int
    sampling_prob: float
    noise_multiplier: float
    noise_per_coordinate: float
    epsilon: float
    releases: tuple[Release, ...] = ()


def plan_table(
    examples: int,
    *,
    epsilon: float,
    delta: float | None = None,
    batch_sizes: Iterable[int] = (256, 1024, 4096, 16384),
    epochs: Iterable[float] = (1, 5),
    l2_clip_norm: float = 1.0,
    sampler: str = "poisson",
    wanted: Sequence[Wanted] | None = None,
) -> list[PlanRow]:
    """Noise and cost of a budget over batch sizes and epochs, before any data is touched.

    Args:
        examples: The public number of units.
        epsilon: The budget, > 0.
        delta: The delta of the budget; default as in `PrivacySpec`.
        batch_sizes: Expected batch sizes, in units.
        epochs: Passes over the data.
        l2_clip_norm: Largest norm of one unit's gradient; it only scales noise_per_coordinate.
        sampler: As in `PrivacySpec`.
        wanted: Releases beside training; None: the recalibration that is there by default.

    Returns:
        One row per batch size and number of epochs, in that order.

    Raises:
        ConfigError: A value out of range, or a batch larger than the number of examples.
        BudgetError: The budget is too small.
    """
    privacy = PrivacySpec(epsilon=epsilon, delta=delta, dataset_size=examples, sampler=sampler)
    passes = tuple(epochs)
    beside = DEFAULT_RELEASES if wanted is None else tuple(wanted)
    rows = []
    for size in batch_sizes:
        for count in passes:
            plan = resolve(
                privacy,
                expected_batch_size=size,
                epochs=count,
                l2_clip_norm=l2_clip_norm,
                wanted=beside,
            )
            rows.append(
                PlanRow(
                    expected_batch_size=size,
                    epochs=float(count),
                    iterations=plan.mechanism.iterations,
                    sampling_prob=plan.mechanism.sampling_prob,
                    noise_multiplier=plan.mechanism.noise_multiplier,
                    noise_per_coordinate=plan.mechanism.noise_per_coordinate,
                    epsilon=plan.loss.epsilon,
                    releases=plan.releases,
                )
            )
    return rows
