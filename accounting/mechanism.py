"""The promise that is wanted and the mechanism that keeps it, as plain numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from dpads._validate import nearest
from dpads.accounting import calibration, events
from dpads.accounting.accountant import check_delta
from dpads.accounting.schemes import SAMPLERS, SamplingScheme, scheme_of
from dpads.errors import ConfigError

UNITS = ("example", "user")

LARGEST_ITERATIONS = 10**9
"""More are refused: a month at 400 a second, and what accountants were tried at."""
LARGEST_UNITS = 10**12
"""More units in a data set are refused."""
LARGEST_BATCH = 2**20
"""More units in a batch are refused: the rounding of its sums would come near the sensitivity's slack."""
SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM = 2.0**-60, 2.0**60
"""Clip norms under which float32 products of gradients neither overflow nor lose their digits."""
LARGEST_BATCH_ROWS = 2**24
"""More rows in a batch of users are refused, likewise."""


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """The promise that is wanted: the keys of [privacy] but l2_clip_norm.

    Attributes:
        epsilon: The TOTAL budget. Give this or noise_multiplier, never both.
        noise_multiplier: stddev of the noise over l2_clip_norm, at least 2^-10; 0 trains without
            privacy.
        delta: The chance that the guarantee may fail; default: min(1e-8, 0.1 / units) rounded
            down to a power of ten.
        dataset_size: A public number of units. Without it the store's own count is used, under
            the zero-out relation, and "the number of units is public" becomes an assertion.
        unit: What one unit of privacy is: "example" (one row of the log) or "user".
        max_examples_per_unit: Rows kept of one user; needed when unit = "user". With unit =
            "example" and a user column it caps users too, and a guarantee for users follows.
        sampling_prob: The chance that one unit joins one batch; goes with iterations.
        iterations: Number of batches; goes with sampling_prob.
        sampler: "poisson"; "truncated_poisson", which never draws more than max_batch_size units;
            or "fixed_order", plain passes without amplification. The last two are accounted under
            zero-out alone, with a number of units that is public.
        max_batch_size: The most units in a batch of "truncated_poisson"; default: the mean and six
            standard deviations.

    Raises:
        ConfigError: A value out of range, both or neither of epsilon and noise_multiplier, an
            unknown unit or sampler, or keys that do not go together.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    dataset_size: int | None = None
    unit: str = "example"
    max_examples_per_unit: int | None = None
    sampling_prob: float | None = None
    iterations: int | None = None
    sampler: str = "poisson"
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ConfigError(
                "Expected epsilon or noise_multiplier, got both. One follows from the other: "
                "drop noise_multiplier to meet a budget, or epsilon to fix the noise."
            )
        if self.epsilon is not None:
            _store(self, "epsilon", calibration.check_epsilon(self.epsilon))
        elif self.noise_multiplier is not None:
            _store(self, "noise_multiplier", _noise_multiplier(self.noise_multiplier))
        else:
            raise ConfigError(
                "Expected epsilon or noise_multiplier, got neither. Set epsilon to the budget, for "
                "example 3.0; noise_multiplier = 0 trains without privacy and says so."
            )
        if self.delta is not None:
            _store(self, "delta", check_delta(self.delta))
        if self.dataset_size is not None:
            _store(self, "dataset_size", _units("dataset_size", self.dataset_size))
        if self.unit not in UNITS:
            raise ConfigError(
                f"Expected unit to be one of {', '.join(UNITS)}, got {self.unit!r}."
                + nearest(str(self.unit), UNITS)
            )
        if self.max_examples_per_unit is not None:
            cap = whole_number("max_examples_per_unit", self.max_examples_per_unit)
            _store(self, "max_examples_per_unit", cap)
        elif self.unit == "user":
            raise ConfigError(
                'Expected max_examples_per_unit with unit = "user", got none. It is how many rows '
                "of one user are kept, for example 4; without a cap no user-level guarantee exists."
            )
        if (self.sampling_prob is None) != (self.iterations is None):
            given, absent = "sampling_prob", "iterations"
            if self.sampling_prob is None:
                given, absent = absent, given
            raise ConfigError(
                f"Expected {absent} beside {given}: together they replace dataset_size and epochs."
            )
        if self.sampling_prob is not None:
            _store(self, "sampling_prob", _sampling_prob(self.sampling_prob))
            _store(self, "iterations", _iterations(self.iterations))
        _check_sampler(self.sampler)
        if self.max_batch_size is not None:
            if self.sampler != "truncated_poisson":
                raise ConfigError(
                    'Expected max_batch_size with sampler = "truncated_poisson" alone, got sampler = '
                    f'"{self.sampler}". Other samplers never cut a batch: leave it out.'
                )
            _store(self, "max_batch_size", _units("max_batch_size", self.max_batch_size))
        if self.sampler == "fixed_order" and self.sampling_prob is not None:
            raise ConfigError(
                'Expected no sampling_prob with sampler = "fixed_order", got one: units come in '
                "order, not by chance. Use epochs, or another sampler."
            )

    @property
    def rows_per_unit(self) -> int:
        """The most rows that one unit has in training."""
        return (self.max_examples_per_unit or 1) if self.unit == "user" else 1

    def to_dict(self) -> dict[str, Any]:
        """The keys that were given, as plain data."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True, kw_only=True)
class DpSgdConfig:
    """The mechanism, exactly.

    Attributes:
        l2_clip_norm: Largest norm of one unit's gradient; infinite only without noise.
        noise_multiplier: stddev of the noise on the sum over l2_clip_norm, at least 2^-10; 0 is no
            privacy.
        sampling_prob: The chance that one unit joins one batch, in (0, 1].
        iterations: Number of batches.
        expected_batch_size: The constant, in units, that noisy sums are divided by.
        sampler: "poisson", "truncated_poisson" or "fixed_order"; in fixed order sampling_prob is
            the share of the units in one batch, and no chance.
        units: The public number of units; needed but for "poisson".
        max_batch_size: The most units in a batch; of "truncated_poisson" alone.

    Raises:
        ConfigError: A value out of range, or keys that do not go together.
    """

    l2_clip_norm: float
    noise_multiplier: float
    sampling_prob: float
    iterations: int
    expected_batch_size: int
    sampler: str = "poisson"
    units: int | None = None
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        _store(self, "noise_multiplier", _noise_multiplier(self.noise_multiplier))
        _store(self, "l2_clip_norm", _clip_norm(self.l2_clip_norm, self.noise_multiplier))
        _store(self, "sampling_prob", _sampling_prob(self.sampling_prob))
        _store(self, "iterations", _iterations(self.iterations))
        size = whole_number("expected_batch_size", self.expected_batch_size)
        if size > LARGEST_BATCH:
            raise ConfigError(
                f"Expected expected_batch_size to be at most {LARGEST_BATCH:,} units, got {size:,}. Use "
                "a smaller batch."
            )
        _store(self, "expected_batch_size", size)
        _check_sampler(self.sampler)
        if (self.max_batch_size is not None) != (self.sampler == "truncated_poisson"):
            raise ConfigError(
                'Expected max_batch_size exactly with sampler = "truncated_poisson", got sampler = '
                f'"{self.sampler}" and max_batch_size = {self.max_batch_size}.'
            )
        for name in ("units", "max_batch_size"):
            if getattr(self, name) is not None:
                _store(self, name, _units(name, getattr(self, name)))
        scheme_of(self.to_dict())

    @property
    def scheme(self) -> SamplingScheme:
        """How units come into batches; it owns the event."""
        return scheme_of(self.to_dict())

    def event(self, iterations: int | None = None) -> events.EventTree:
        """What iterations do to privacy, sensitivity slack included; by default all of them."""
        count = self.iterations if iterations is None else iterations
        return self.scheme.event(self.noise_multiplier, count)

    @property
    def noise_per_coordinate(self) -> float:
        """stddev of the noise on one coordinate of the averaged gradient; 0 without noise."""
        if self.noise_multiplier == 0.0:
            return 0.0
        return self.noise_multiplier * self.l2_clip_norm / self.expected_batch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: no clipping is None."""
        values = dataclasses.asdict(self)
        if math.isinf(self.l2_clip_norm):
            values["l2_clip_norm"] = None
        return values


def _store(target: object, name: str, value: object) -> None:
    """Sets a field of a frozen dataclass while it is built, so that 1 and 1.0 give equal bytes."""
    object.__setattr__(target, name, value)


def _check_sampler(given: object) -> None:
    """One of the samplers."""
    if given not in SAMPLERS:
        raise ConfigError(
            f"Expected sampler to be one of {', '.join(SAMPLERS)}, got {given!r}."
            + nearest(str(given), SAMPLERS)
        )


def whole_number(name: str, value: object) -> int:
    """A whole number >= 1; NumPy's integers are welcome, booleans and floats are not."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ConfigError(f"Expected {name} to be a whole number >= 1, got {value!r}.")
    return int(value)


def _iterations(value: object) -> int:
    """A number of iterations."""
    count = whole_number("iterations", value)
    if count > LARGEST_ITERATIONS:
        raise ConfigError(
            f"Expected iterations to be at most {LARGEST_ITERATIONS:,}, got more. Use fewer, with a "
            "larger sampling_prob if they are to see as many units."
        )
    return count


def _units(name: str, value: object) -> int:
    """A number of units."""
    count = whole_number(name, value)
    if count > LARGEST_UNITS:
        raise ConfigError(
            f"Expected {name} to be at most {LARGEST_UNITS:,} units, got more. Give the number of "
            "units in the training rows, or a public number near it."
        )
    return count


def number(name: str, value: object, expected: str) -> float:
    """A real number that is not NaN."""
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise ConfigError(f"Expected {name} {expected}, got {value!r}.")
    return float(value)


def _noise_multiplier(given: object) -> float:
    """A noise multiplier: 0, or finite and large enough to be accounted."""
    value = number("noise_multiplier", given, "to be a finite number >= 0")
    if not 0.0 <= value < math.inf:
        raise ConfigError(
            f"Expected noise_multiplier to be a finite number >= 0, got {given!r}. It is the "
            "noise's stddev over l2_clip_norm; 0 trains without privacy."
        )
    if 0.0 < value < events.SMALLEST_NOISE_MULTIPLIER:
        raise ConfigError(
            f"Expected noise_multiplier to be 0 or at least 2^-10, got {given!r}: noise so small "
            "protects nothing that can be accounted. Use about 1, or 0 to train without privacy."
        )
    return value


def _clip_norm(given: object, noise_multiplier: float) -> float:
    """A clip norm: > 0, infinite only where there is no noise."""
    value = number("l2_clip_norm", given, "to be a number > 0")
    if value <= 0.0:
        raise ConfigError(f"Expected l2_clip_norm to be a number > 0, got {given!r}.")
    if math.isinf(value) and noise_multiplier > 0.0:
        raise ConfigError(
            "Expected a finite l2_clip_norm, got inf: noise protects only what is bounded. Use a "
            "finite norm, for example 1.0, or noise_multiplier = 0."
        )
    if noise_multiplier > 0.0 and not SMALLEST_CLIP_NORM <= value <= LARGEST_CLIP_NORM:
        raise ConfigError(
            f"Expected l2_clip_norm from 2^-60 to 2^60, got {given!r}: sums of float32 gradients would "
            "leave the range in which their rounding is bounded. Use about 1."
        )
    return value


def _sampling_prob(given: object) -> float:
    """A sampling probability in (0, 1]."""
    value = number("sampling_prob", given, "in (0, 1]")
    if not 0.0 < value <= 1.0:
        raise ConfigError(
            f"Expected sampling_prob in (0, 1], got {given!r}. It is the chance that one unit "
            "joins a batch: expected_batch_size / number of units."
        )
    return value
