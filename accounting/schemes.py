"""How units come into batches: each scheme owns its event and the relations it was proved for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from dpads.accounting import events
from dpads.accounting.relation import Relation
from dpads.errors import ConfigError

SAMPLERS = ("poisson", "truncated_poisson", "fixed_order")

STDDEVS_ABOVE_THE_MEAN = 6.0
"""A truncated batch may be no smaller: at 6 truncation costs next to nothing, at 3 it ruins epsilon."""

_ZERO_OUT = frozenset({Relation.ZERO_OUT})


@dataclass(frozen=True)
class PoissonScheme:
    """Every unit joins every batch on its own coin.

    Attributes:
        sampling_prob: The chance that one unit joins one batch, in (0, 1].
    """

    sampling_prob: float

    kind: ClassVar[str] = "poisson"
    relations: ClassVar[frozenset[Relation]] = frozenset(Relation)

    def event(self, noise_multiplier: float, iterations: int) -> events.EventTree:
        """What a number of iterations does to privacy."""
        return events.dp_sgd(noise_multiplier, self.sampling_prob, iterations)


@dataclass(frozen=True)
class TruncatedPoissonScheme:
    """Poisson batches of which at most `max_batch_size` units, chosen at random, are kept.

    Attributes:
        sampling_prob: The chance that one unit joins one batch before it is cut, in (0, 1].
        dataset_size: The number of units, public.
        max_batch_size: The most units in a batch.

    Raises:
        ConfigError: The cap is below the mean and six standard deviations of the public size.
    """

    sampling_prob: float
    dataset_size: int
    max_batch_size: int

    kind: ClassVar[str] = "truncated_poisson"
    relations: ClassVar[frozenset[Relation]] = _ZERO_OUT

    def __post_init__(self) -> None:
        least = smallest_cap(self.dataset_size, self.sampling_prob)
        if self.max_batch_size < least:
            raise ConfigError(
                f"Expected max_batch_size to be at least {least}, the mean of the batch and "
                f"{STDDEVS_ABOVE_THE_MEAN:g} standard deviations, got {self.max_batch_size}: each "
                "batch that is cut costs privacy. Raise it, or leave it out."
            )

    def event(self, noise_multiplier: float, iterations: int) -> events.EventTree:
        """What a number of iterations does to privacy."""
        if self.max_batch_size >= self.dataset_size:  # nothing can ever be cut
            return events.dp_sgd(noise_multiplier, self.sampling_prob, iterations)
        return events.truncated_poisson(
            noise_multiplier,
            self.sampling_prob,
            iterations,
            dataset_size=self.dataset_size,
            max_batch_size=self.max_batch_size,
        )


@dataclass(frozen=True)
class FixedOrderScheme:
    """Plain passes: the units in stored order, cut into batches of one size.

    Attributes:
        batches_per_pass: Batches that hold every unit once.
    """

    batches_per_pass: int

    kind: ClassVar[str] = "fixed_order"
    relations: ClassVar[frozenset[Relation]] = _ZERO_OUT

    def event(self, noise_multiplier: float, iterations: int) -> events.EventTree:
        """What a number of iterations does to privacy: a pass that was begun counts whole."""
        if iterations == 0:
            return dict(events.NO_OP)
        return events.fixed_order(noise_multiplier, -(-iterations // self.batches_per_pass))


SamplingScheme: TypeAlias = PoissonScheme | TruncatedPoissonScheme | FixedOrderScheme


def scheme_of(mechanism: Mapping[str, Any]) -> SamplingScheme:
    """The scheme of a mechanism's plain data (`DpSgdConfig.to_dict()`).

    Raises:
        ConfigError: A number is missing or out of range.
    """
    kind, units = mechanism["sampler"], mechanism["units"]
    if kind == "poisson":
        return PoissonScheme(mechanism["sampling_prob"])
    if units is None:
        raise ConfigError(
            f'Expected a public number of units with sampler = "{kind}", got none. Set '
            "privacy.dataset_size to the number of units in the training rows."
        )
    if kind == "fixed_order":
        return FixedOrderScheme(-(-units // mechanism["expected_batch_size"]))
    return TruncatedPoissonScheme(mechanism["sampling_prob"], units, mechanism["max_batch_size"])


def smallest_cap(units: int, sampling_prob: float) -> int:
    """The smallest batch that a Poisson batch may be cut to; the number of units at most."""
    mean = units * sampling_prob
    stddev = math.sqrt(mean * (1.0 - sampling_prob))
    return min(units, math.ceil(mean + STDDEVS_ABOVE_THE_MEAN * stddev))
