"""Noisy sums beside training, such as counts and calibrations, and their shares of the budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dpads._validate import nearest
from dpads.accounting import events
from dpads.errors import ConfigError

BEFORE_TRAINING = ("dp_count", "selection")
"""The kinds that come before training, in the order in which they are released."""

AFTER_TRAINING = ("recalibration",)
"""The kinds that come after it."""

KINDS = (*BEFORE_TRAINING, *AFTER_TRAINING)

WORDS: Mapping[str, str] = {
    "dp_count": "a noisy count for where its output starts",
    "selection": "a noisy count that selects rows of its tables",
    "recalibration": "a noisy recalibration",
}
"""Each kind in a few words."""

_LARGEST_MU = 10.0  # a release is never less noisy than its norm bound's tenth, whatever its share
_LARGEST_EPSILON = 500.0  # past it nothing is protected, and exp(epsilon) comes near float64's end


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A release that a configuration asks for.

    Attributes:
        kind: One of `KINDS`.
        share: The part of the budget, in (0, 1): of mu^2, mu being the parameter of Gaussian
            differential privacy of the whole (epsilon, delta).
        l2_clip_norm: The largest norm of one unit's vector.

    Raises:
        ConfigError: A value out of range.
    """

    kind: str
    share: float
    l2_clip_norm: float

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        check_share("share", self.share)
        _check_positive("l2_clip_norm", self.l2_clip_norm)


@dataclass(frozen=True, kw_only=True)
class Release(Wanted):
    """A release with its noise.

    Attributes:
        noise_multiplier: stddev of the noise on every coordinate of the sum over l2_clip_norm.

    Raises:
        ConfigError: A value out of range.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("noise_multiplier", self.noise_multiplier)

    @property
    def noise_stddev(self) -> float:
        """stddev of the noise on every coordinate of the sum."""
        return self.noise_multiplier * self.l2_clip_norm

    def event(self) -> events.EventTree:
        """What the release costs, sensitivity slack included."""
        return events.gaussian(self.noise_multiplier)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Release:
        """Reads what `to_dict` wrote.

        Raises:
            ConfigError: A value out of range, or a key missing or unknown.
        """
        if set(values) != {item.name for item in dataclasses.fields(cls)}:
            raise ConfigError(
                "Expected a release with kind, share, l2_clip_norm and noise_multiplier, got others."
            )
        return cls(**values)


AnyRelease = TypeVar("AnyRelease", bound=Wanted)


def composed_with(
    releases: Sequence[Release],
    training: events.EventTree,
    carried: events.EventTree | None = None,
    *,
    finished: bool = True,
) -> events.EventTree:
    """A run's whole event, in the order of its ledger.

    Args:
        releases: In the order of `KINDS`.
        training: The event of the training alone.
        carried: What the runs have spent whose model this one starts from.
        finished: Whether what comes after training is counted; what is reserved counts.
    """
    before = [release.event() for release in releases if release.kind in BEFORE_TRAINING]
    after = [release.event() for release in releases if release.kind in AFTER_TRAINING]
    parts = [*([] if carried is None else [carried]), *before, training]
    return events.composed([*parts, *(after if finished else [])])


def in_order(wanted: Sequence[AnyRelease]) -> tuple[AnyRelease, ...]:
    """The releases in the order in which they are made.

    Raises:
        ConfigError: One is wanted twice, or their shares leave nothing to training.
    """
    kinds = [item.kind for item in wanted]
    if len(set(kinds)) != len(kinds):
        raise ConfigError(f"Expected every release once, got {', '.join(kinds)}.")
    total = math.fsum(item.share for item in wanted)
    if total >= 1.0:
        raise ConfigError(
            "Expected shares of the budget that leave some of it to training, got "
            f"{' + '.join(f'{item.kind} {item.share:g}' for item in wanted)} = {total:g}. Lower them: a "
            "hundredth is enough for a calibration."
        )
    return tuple(sorted(wanted, key=lambda item: KINDS.index(item.kind)))


def with_noise(wanted: Wanted, mu: float) -> Release:
    """A release with the noise of its share of a budget.

    Args:
        wanted: The release.
        mu: Of the whole budget, training included.
    """
    own = min(math.sqrt(wanted.share) * mu, _LARGEST_MU)
    return Release(**dataclasses.asdict(wanted), noise_multiplier=1.0 / own)


def mu_of(epsilon: float, delta: float) -> float:
    """The parameter of the Gaussian mechanism that is exactly (epsilon, delta)-private.

    It decides how much noise a share of the budget is; what that costs is composed exactly, with
    everything else.

    Examples:
        >>> round(mu_of(1.0, 1e-6), 4)
        0.2367

    References:
        Dong, Roth and Su (2022), arXiv 1905.02383, Corollary 2.13.
    """
    import numpy as np

    from dpads.accounting.notions import mu_of as solved

    at = np.array([min(epsilon, _LARGEST_EPSILON)])
    return float(solved(at, np.array([delta]))[0])


def check_share(name: str, value: object) -> float:
    """A share of the budget, in (0, 1).

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1.0:
        raise ConfigError(
            f"Expected {name} in (0, 1), got {value!r}. It is the part of the privacy budget that is "
            "reserved, for example 0.01."
        )
    return float(value)


def _check_kind(kind: str) -> None:
    """A known kind."""
    if kind not in KINDS:
        raise ConfigError(
            f"Expected a release to be one of {', '.join(KINDS)}, got {kind!r}."
            + nearest(str(kind), KINDS)
        )


def _check_positive(name: str, value: object) -> None:
    """A number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ConfigError(f"Expected {name} of a release to be a number > 0, got {value!r}.")
