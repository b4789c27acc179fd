"""Samplers own their event: what is drawn is what is accounted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.events import EventTree, dp_sgd
from dpads.errors import ConfigError
from dpads.kernels.clip import MEAN_GROUP
from dpads.kernels.poisson import draw_groups, poisson_units


@dataclass(frozen=True)
class PoissonSampler:
    """Every unit joins every batch independently with probability `sampling_prob`.

    Attributes:
        sampling_prob: in (0, 1].
        iterations: batches that may be drawn.
        key: uint32[8], secret.

    Raises:
        ConfigError: sampling_prob is not in (0, 1].

    Guarantees:
        - A unit's coins depend on (key, iteration, the unit's global number) alone up to its block of
          2^16 units, never on threads or physical batches.
        - Batches are never truncated, and may be empty.
    """

    sampling_prob: float
    iterations: int
    key: NDArray[np.uint32]

    def __post_init__(self) -> None:
        if not 0.0 < self.sampling_prob <= 1.0:
            raise ConfigError(
                f"Expected sampling_prob in (0, 1], got {self.sampling_prob}. It is the chance that one "
                "unit joins a batch: expected_batch_size / number of units."
            )

    def units(self, iteration: int, num_units: int) -> NDArray[np.int64]:
        """The units of one batch, rising, possibly none: int64[k].

        Raises:
            ConfigError: the iteration is not one of those accounted for.
        """
        if not 0 <= iteration < self.iterations:
            raise ConfigError(f"Expected an iteration in [0, {self.iterations}), got {iteration}.")
        chosen: NDArray[np.int64] = poisson_units(
            self.key, iteration, self.sampling_prob, num_units
        )
        return chosen

    def event(self, noise_multiplier: float) -> EventTree:
        """The event of all iterations with the Gaussian mechanism."""
        return dp_sgd(noise_multiplier, self.sampling_prob, self.iterations)


@dataclass(frozen=True)
class Grouping:
    """Puts the units of a batch into groups at random, whose gradients are summed in float32.

    A unit's group is independent of the data and of the other units. So a unit more or less changes the
    rounding of one group and of no other, and the sum by little more than the clip norm.

    Attributes:
        groups: their number, public.
        key: uint32[8].
    """

    groups: int
    key: NDArray[np.uint32]

    @classmethod
    def for_batches_of(cls, expected_batch_size: float, key: NDArray[np.uint32]) -> Grouping:
        """Groups of `MEAN_GROUP` units on average."""
        return cls(max(1, round(expected_batch_size / MEAN_GROUP)), key)

    def order(
        self, units: NDArray[np.int64], iteration: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The units group by group, rising within one; and the bounds of groups, int64[groups + 1]."""
        drawn = draw_groups(self.key, iteration, len(units), self.groups)
        bounds = np.zeros(self.groups + 1, np.int64)
        np.cumsum(np.bincount(drawn, minlength=self.groups), out=bounds[1:])
        return units[np.argsort(drawn, kind="stable")], bounds
