"""Axes of a sweep: which keys they may be, and the settings that a grid or a random draw makes of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dpads._validate import nearest
from dpads.accounting.mechanism import PrivacySpec
from dpads.config import TrainingConfig
from dpads.errors import ConfigError
from dpads.models.base import REGISTRY
from dpads.optimizers import OPTIMIZERS
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig

MOST_TRIALS: Final = 10_000
SCALES: Final = ("linear", "log")
LINKED: Final = (
    "privacy", "training", "prior", "recalibration", "selection", "training.table_optimizer",
    "training.tower_optimizer",
)  # fmt: skip
"""Axes whose values are tables of keys that are set together."""
_DIGITS: Final = 4  # of what is drawn between two bounds
_DRAWS_PER_TRIAL: Final = 200  # before a random draw gives up finding settings that are new

Settings = dict[str, Any]


def known_axes() -> tuple[str, ...]:
    """Every dotted key that may be an axis."""

    def keys(prefix: str, kind: Any) -> list[str]:
        return [f"{prefix}.{item.name}" for item in dataclasses.fields(kind)]

    models = [key for kind in REGISTRY.values() if kind.in_files for key in keys("model", kind)]
    optimizers = [
        key
        for table in ("training.table_optimizer", "training.tower_optimizer")
        for kind in OPTIMIZERS.values()
        for key in (f"{table}.name", *keys(table, kind))
    ]
    found = [
        "model",
        "model.name",
        *models,
        *keys("privacy", PrivacySpec),
        "privacy.l2_clip_norm",
        *keys("training", TrainingConfig),
        *keys("prior", PriorConfig),
        *keys("recalibration", RecalibrationConfig),
        *keys("selection", SelectionConfig),
        *optimizers,
        "data.split_seed",
    ]
    return tuple(dict.fromkeys(key for key in found if key not in _REFUSED))


_REFUSED: Final = {
    "training.noise_seed": "two trials would share noise, and their guarantees would be void. Every trial "
    "draws its own keys from the operating system; vary training.init_seed instead.",
    "training.start_from": "trials of a sweep are accounted for together, and earlier runs are outside.",
    "training.start_from_public": "trials of a sweep do not start from earlier runs.",
    "training.reference": "say `reference = true` at the top of the sweep: one model without noise and "
    "clipping is then trained for all trials that it can be compared with.",
}


def check_axis(key: str) -> None:
    """Refuses what no axis can be.

    Raises:
        ConfigError: the key is unknown (the nearest known ones are named) or cannot vary.
    """
    known = known_axes()
    if key in known:
        return
    if key in _REFUSED:
        raise ConfigError(f'"{key}" cannot be an axis: {_REFUSED[key]}')
    first = key.partition(".")[0]
    if first in ("schema", "data", "reference", "statement"):
        why = {
            "schema": "the store is prepared once for all trials",
            "data": "the store is prepared once for all trials; of [data], split_seed alone can vary",
            "reference": "all models without noise share [reference]",
            "statement": "it says facts, not settings",
        }[first]
        raise ConfigError(f'"{key}" cannot be an axis: {why}. Make another sweep for it.')
    raise ConfigError(f'Unknown axis "{key}".' + nearest(key, known))


@dataclass(frozen=True)
class Range:
    """What a random draw takes a number from.

    Attributes:
        low: smallest value.
        high: largest value.
        scale: "linear", or "log" for what is spread over orders of magnitude.
    """

    low: float
    high: float
    scale: str

    @classmethod
    def read(cls, table: Mapping[str, Any], key: str) -> Range:
        """Reads { low, high, scale }.

        Raises:
            ConfigError: a key is missing or unknown, or the bounds do not fit.
        """
        for name in table:
            if name not in ("low", "high", "scale"):
                raise ConfigError(
                    f'axes.{key}: unknown key "{name}".' + nearest(name, ("low", "high", "scale"))
                )
        low, high, scale = table.get("low"), table.get("high"), table.get("scale", "linear")
        for value in (low, high):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value):  # type: ignore[arg-type]
                raise ConfigError(
                    f"axes.{key}: expected low and high to be finite numbers, got {dict(table)}."
                )
        assert low is not None
        assert high is not None
        if not low < high:
            raise ConfigError(f"axes.{key}: expected low < high, got {low} and {high}.")
        if scale not in SCALES:
            raise ConfigError(f'axes.{key}: unknown scale "{scale}".' + nearest(str(scale), SCALES))
        if scale == "log" and low <= 0:
            raise ConfigError(f'axes.{key}: expected low > 0 with scale = "log", got {low}.')
        return cls(low, high, scale)

    def draw(self, source: random.Random) -> int | float:
        """A value; a whole number where both bounds are."""
        if self.scale == "log":
            value = math.exp(source.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = source.uniform(self.low, self.high)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return min(self.high, max(self.low, round(value)))
        return min(self.high, max(self.low, float(f"{value:.{_DIGITS}g}")))


@dataclass(frozen=True)
class Axis:
    """What varies: a key, or a table of keys that are set together.

    Attributes:
        values: the settings that each value means; none where numbers are drawn from a range.
        range: the range.
        key: dotted.
    """

    key: str
    values: tuple[Settings, ...] = ()
    range: Range | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that it sets."""
        return tuple(dict.fromkeys(key for value in self.values for key in value)) or (self.key,)

    def draw(self, source: random.Random) -> Settings:
        """One of the values, or a number."""
        if self.range is None:
            return source.choice(self.values)
        return {self.key: self.range.draw(source)}


def flat_settings(table: Mapping[str, Any], prefix: str = "") -> Settings:
    """Dotted keys of nested tables; a model with its name stays whole.

    Raises:
        ConfigError: a key is none that can vary.
    """
    found: Settings = {}
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not (key == "model" and "name" in value):
            found |= flat_settings(value, f"{key}.")
        else:
            check_axis(key)
            found[key] = value
    return found


def check_separate(axes: Sequence[Axis]) -> None:
    """Checks that no two axes set one key.

    Raises:
        ConfigError: two do.
    """
    for first, second in itertools.combinations(axes, 2):
        for one, other in itertools.product(first.keys, second.keys):
            if one == other or one.startswith(f"{other}.") or other.startswith(f"{one}."):
                raise ConfigError(
                    f"Expected axes that set different keys, got {first.key} and {second.key}, which both "
                    f"set {max(one, other, key=len)}. Leave it out of one."
                )


def read_axes(table: Mapping[str, Any], draw: str, prefix: str = "") -> list[Axis]:
    """The axes in the order of the file.

    Raises:
        ConfigError: an axis is unknown or empty, or no list of values.
    """
    axes: list[Axis] = []
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not {"low", "high"} & set(value):
            if not value:
                raise ConfigError(f"axes.{key}: expected at least one value, got none.")
            axes += read_axes(value, draw, f"{key}.")
            continue
        if key not in LINKED:
            check_axis(key)
        if isinstance(value, Mapping):
            if draw != "random":
                raise ConfigError(
                    f'axes.{key}: bounds are for draw = "random", got draw = "{draw}". List the values.'
                )
            axes.append(Axis(key, range=Range.read(value, key)))
        elif isinstance(value, list | tuple):
            if not value:
                raise ConfigError(f"axes.{key}: expected at least one value, got an empty list.")
            axes.append(Axis(key, tuple(_settings(key, item) for item in value)))
        else:
            raise ConfigError(f"axes.{key}: expected a list of values, got {value!r}.")
    return axes


def _settings(key: str, value: Any) -> Settings:
    """What one value of an axis sets."""
    if key not in LINKED:
        return {key: value}
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(
            f"axes.{key}: expected tables of keys that are set together, got {value!r}."
        )
    return flat_settings(value, f"{key}.")


def grid(axes: Sequence[Axis]) -> Iterator[Settings]:
    """Every combination, the last axis moving fastest.

    Raises:
        ConfigError: there are too many.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_TRIALS:
        raise ConfigError(
            f'Expected at most {MOST_TRIALS:,} trials, got a grid of {count:,}. Use draw = "random", or '
            "fewer values."
        )
    for combination in itertools.product(*(axis.values for axis in axes)):
        yield _together(combination)


def _together(parts: Iterable[Settings]) -> Settings:
    """The settings of all axes."""
    return {key: value for part in parts for key, value in part.items()}


def draw_random(axes: Sequence[Axis], trials: int, seed: int) -> Iterator[Settings]:
    """Settings drawn independently, none of them twice.

    Args:
        axes: lists of values, equally likely, or ranges.
        trials: how many.
        seed: public: it chooses settings, and nothing private depends on it.

    Raises:
        ConfigError: there are not so many different settings.
    """
    source = random.Random(f"dpads.sweep.v1:{seed}")
    seen: set[str] = set()
    for _ in range(_DRAWS_PER_TRIAL * trials):
        if len(seen) == trials:
            return
        drawn = _together(axis.draw(source) for axis in axes)
        if repr(drawn) not in seen:
            seen.add(repr(drawn))
            yield drawn
    if len(seen) < trials:
        raise ConfigError(
            f"Expected {trials} trials with different settings, got axes with {len(seen)} or few more. "
            'Draw fewer, or use draw = "grid".'
        )
