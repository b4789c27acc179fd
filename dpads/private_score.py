"""A candidate's noisy score: how well it predicts units that no candidate was trained on.

The score is minus the mean loss of the units that were set aside, each unit's sum of losses clamped to
[-bound, bound], with Gaussian noise. One unit moves the sum by at most the bound, whether it is added,
removed or emptied; the divisor is a public constant, never the number of units that were set aside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.events import EventTree, gaussian
from dpads.accounting.mechanism import PrivacySpec
from dpads.kernels.gaussian import normals
from dpads.models.base import Model
from dpads.noise import to_public_grid
from dpads.store import ExampleStore
from dpads.units import units_of

WORST: Final = -math.inf  # the score of a candidate that failed
READ_UNITS: Final = 1 << 15


@dataclass(frozen=True, kw_only=True)
class ScoreMechanism:
    """How scores are released; all of it is public.

    Attributes:
        bound: one unit moves the sum of losses by at most this much.
        noise_multiplier: stddev of the noise over the bound.
        expected_units: the divisor: how many units are set aside on average.
    """

    bound: float
    noise_multiplier: float
    expected_units: float

    def event(self) -> EventTree:
        """What one score costs a unit that was set aside."""
        return gaussian(self.noise_multiplier)

    def release(
        self,
        model: Model,
        aside: ExampleStore,
        privacy: PrivacySpec,
        key: NDArray[np.uint32],
    ) -> float:
        """The noisy score of a model.

        Args:
            model: trained without the units that are set aside.
            aside: the rows of those units, capped where the promise names a cap.
            privacy: who the units are.
            key: uint32[8], secret, of this score alone: one key never serves two models.

        Returns:
            Higher is better; `WORST` where a parameter is not a finite number, which is known without a
            look at the rows.

        Guarantees:
            - One unit more or less, whatever its rows hold, moves the sum by at most the bound: a loss that
              is not a number counts as the bound.
            - The sum is the exact sum of the clamped losses, rounded once.
        """
        if not _finite(model):
            return WORST
        total = math.fsum(clamped_losses(model, aside, privacy, self.bound))
        stddev = self.noise_multiplier * self.bound
        noisy = np.array([total + stddev * float(normals(key, 0, 1)[0])])
        return -float(to_public_grid(noisy, stddev)[0]) / self.expected_units


def clamped_losses(
    model: Model, aside: ExampleStore, privacy: PrivacySpec, bound: float
) -> NDArray[np.float64]:
    """Each unit's sum of losses, clamped; secret.

    Args:
        model: whose losses.
        aside: the rows.
        privacy: who the units are.
        bound: of a unit's sum, in magnitude.

    Returns:
        float64[units].
    """
    units = units_of(aside, privacy)
    result = np.empty(units.number)
    for first in range(0, units.number, READ_UNITS):
        batch = units.read(np.arange(first, min(first + READ_UNITS, units.number)))
        with np.errstate(over="ignore", invalid="ignore"):
            losses = model.losses(batch)
            if batch.unit_offsets is not None:
                losses = np.add.reduceat(losses, batch.unit_offsets[:-1])
            clamped = np.clip(losses, -bound, bound)
        # Select, never multiply: a loss that is not a number is the worst that a unit can report.
        result[first : first + len(clamped)] = np.where(np.isnan(losses), bound, clamped)
    return result


def _finite(model: Model) -> bool:
    """Whether every parameter is a finite number; parameters are released, so this reads no rows."""
    arrays = [*model.arrays.values(), *model.dense.values()]
    return all(bool(np.isfinite(array).all()) for array in arrays)
