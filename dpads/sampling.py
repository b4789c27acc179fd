"""Samplers own their event: what is drawn is what is accounted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.events import EventTree
from dpads.accounting.mechanism import DpSgdConfig
from dpads.accounting.schemes import (
    FixedOrderScheme,
    PoissonScheme,
    SamplingScheme,
    TruncatedPoissonScheme,
)
from dpads.errors import ConfigError
from dpads.kernels.clip import MEAN_GROUP
from dpads.kernels.poisson import draw_words, poisson_units
from dpads.noise import RunKeys


class Sampler(ABC):
    """Draws the units of each batch, and says what that does to privacy.

    Attributes:
        scheme: owns the event.
        iterations: batches that may be drawn.
    """

    scheme: SamplingScheme
    iterations: int

    @abstractmethod
    def units(self, iteration: int, num_units: int) -> NDArray[np.int64]:
        """The units of one batch, rising, possibly none: int64[k].

        Raises:
            ConfigError: the iteration is not one of those accounted for, or the number of units is not
                the one accounted for.
        """

    def units_between(
        self, iteration: int, num_units: int, first: int, last: int
    ) -> NDArray[np.int64]:
        """Those of `units` from the first to before the last."""
        drawn = self.units(iteration, num_units)
        return drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, last)]

    def event(self, noise_multiplier: float) -> EventTree:
        """The event of all iterations with the Gaussian mechanism."""
        return self.scheme.event(noise_multiplier, self.iterations)

    def _check(self, iteration: int) -> None:
        """Refuses an iteration that nobody accounted for."""
        if not 0 <= iteration < self.iterations:
            raise ConfigError(f"Expected an iteration in [0, {self.iterations}), got {iteration}.")


@dataclass(frozen=True)
class PoissonSampler(Sampler):
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

    @property
    def scheme(self) -> SamplingScheme:  # type: ignore[override]
        """Poisson."""
        return PoissonScheme(self.sampling_prob)

    def units(self, iteration: int, num_units: int) -> NDArray[np.int64]:
        """Those whose coins say so."""
        return self.units_between(iteration, num_units, 0, num_units)

    def units_between(
        self, iteration: int, num_units: int, first: int, last: int
    ) -> NDArray[np.int64]:
        """Those whose coins say so; no coins of other blocks are drawn."""
        self._check(iteration)
        chosen: NDArray[np.int64] = poisson_units(
            self.key, iteration, self.sampling_prob, num_units, first, last
        )
        return chosen


@dataclass(frozen=True)
class TruncatedPoissonSampler(Sampler):
    """Poisson batches of which at most `scheme.max_batch_size` units are kept, any set of them as likely.

    Attributes:
        scheme: owns the event; holds the number of units.
        iterations: batches that may be drawn.
        key: uint32[8], secret, of the coins.
        cut_key: uint32[8], secret, of the choice whom to keep.
    """

    scheme: TruncatedPoissonScheme
    iterations: int
    key: NDArray[np.uint32]
    cut_key: NDArray[np.uint32]

    def units(self, iteration: int, num_units: int) -> NDArray[np.int64]:
        """Those whose coins say so, at most as many as the cap."""
        _expect_units(self.scheme.dataset_size, num_units, self.scheme.kind)
        whole = PoissonSampler(self.scheme.sampling_prob, self.iterations, self.key)
        drawn = whole.units(iteration, num_units)
        most = self.scheme.max_batch_size
        if len(drawn) <= most:
            return drawn
        lots = draw_words(self.cut_key, iteration, 2 * len(drawn)).view(np.uint64)
        return np.sort(drawn[np.argsort(lots, kind="stable")[:most]])


@dataclass(frozen=True)
class FixedOrderSampler(Sampler):
    """Plain passes: the units in stored order, `batch_size` at a time.

    Attributes:
        scheme: owns the event.
        iterations: batches that may be drawn.
        num_units: the number of units.
        batch_size: units in a batch; the last of a pass may have fewer.
    """

    scheme: FixedOrderScheme
    iterations: int
    num_units: int
    batch_size: int

    def units(self, iteration: int, num_units: int) -> NDArray[np.int64]:
        """The next units in order."""
        self._check(iteration)
        _expect_units(self.num_units, num_units, self.scheme.kind)
        first = iteration % self.scheme.batches_per_pass * self.batch_size
        return np.arange(first, min(first + self.batch_size, num_units))


def sampler_of(mechanism: DpSgdConfig, keys: RunKeys) -> Sampler:
    """The sampler of a mechanism: its event is the mechanism's."""
    scheme, iterations, key = mechanism.scheme, mechanism.iterations, keys.key("sampling")
    if isinstance(scheme, PoissonScheme):
        return PoissonSampler(scheme.sampling_prob, iterations, key)
    if isinstance(scheme, TruncatedPoissonScheme):
        return TruncatedPoissonSampler(scheme, iterations, key, keys.key("truncation"))
    size = mechanism.expected_batch_size
    return FixedOrderSampler(scheme, iterations, mechanism.units or 0, size)


def _expect_units(accounted: int, found: int, kind: str) -> None:
    """Refuses another number of units than the event was made for."""
    if accounted != found:
        raise ConfigError(
            f"Expected privacy.dataset_size to be the number of units in the training rows with sampler = "
            f'"{kind}", got another. Leave it out to use the store\'s own number.'
        )


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
        words = draw_words(self.key, iteration, len(units)).astype(np.int64)
        drawn = (words * self.groups) >> 32  # a bias of 2^-16 between groups harms nothing
        bounds = np.zeros(self.groups + 1, np.int64)
        np.cumsum(np.bincount(drawn, minlength=self.groups), out=bounds[1:])
        return units[np.argsort(drawn, kind="stable")], bounds
