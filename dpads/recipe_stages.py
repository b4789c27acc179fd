"""The stages of the recipe: what each asks, tries and decides. Nothing here reads a row.

References:
    Ponomareva et al. (2023), "How to DP-fy ML", arXiv 2303.00654 v3, section 5.4: tune without noise
    first, make the batch as large as the time allows, take the smallest clip norm that costs little,
    let the budget set the noise, then tune learning rates with noise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dpads.config import Config
from dpads.config_toml import to_document
from dpads.errors import ConfigError
from dpads.resources import check_memory, estimate_memory

TABLE_RATE: Final = "training.table_optimizer.learning_rate"
TOWER_RATE: Final = "training.tower_optimizer.learning_rate"
CLIP: Final = "privacy.l2_clip_norm"
BATCH: Final = "training.expected_batch_size"
EPOCHS: Final = "training.epochs"
NOISE: Final = "privacy.noise_multiplier"

REFERENCE_FACTORS: Final = (
    (0.25, 1.0, 4.0),
    (0.3, 1.0, 3.0),
)  # of the tables' and the tower's rate
CLIP_FACTORS: Final = (0.03, 0.1, 0.3, 1.0, 3.0)
CLIP_RATE_FACTORS: Final = (1.0, 4.0)  # clipped gradients are shorter, so steps may be longer
FIRST_FACTORS: Final = (0.25, 1.0, 4.0)
ROUND_TRIALS: Final = 2
TOLERANCE: Final = 0.01

RowsName = Literal["public", "private", "synthetic", "none"]
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage found, as recipe.json holds it.

    Attributes:
        name: of its folder.
        title: for people.
        question: what it answers.
        rows: what it was computed on.
        decision: what follows, in words.
        chosen: values by dotted key.
        columns: heads of the evidence.
        evidence: rows of it.
        sweep: the folder of its trials, relative to the recipe's.
    """

    name: str
    title: str
    question: str
    rows: RowsName
    decision: str
    chosen: Mapping[str, Any]
    columns: Sequence[str]
    evidence: Sequence[Sequence[Any]]
    sweep: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Tried:
    """A trial that finished.

    Attributes:
        settings: values by dotted key.
        loss: the headline loss on test rows.
        trial: its name.
    """

    settings: Mapping[str, Any]
    loss: float
    trial: str = field(compare=False, default="")


def reference_settings(config: Config) -> list[Values]:
    """Learning rates around the configuration's, for tables and tower each."""
    table, tower = _rates(config)
    return [
        {TABLE_RATE: _round(table * first), TOWER_RATE: _round(tower * second)}
        for first, second in itertools.product(*REFERENCE_FACTORS)
    ]


def clip_settings(config: Config) -> list[Values]:
    """Clip norms around the configuration's, each at the present learning rates and at longer steps."""
    table, tower = _rates(config)
    return [
        {
            CLIP: _round(config.l2_clip_norm * clip),
            TABLE_RATE: _round(table * longer),
            TOWER_RATE: tower,
        }
        for clip, longer in itertools.product(CLIP_FACTORS, CLIP_RATE_FACTORS)
    ]


def smallest_harmless(tried: Sequence[Tried], tolerance: float = TOLERANCE) -> Tried:
    """The smallest clip norm whose best loss is within the tolerance of the best of all.

    Args:
        tried: trials that differ in clip norm, and maybe in learning rates.
        tolerance: a fraction of the best loss's magnitude.

    Examples:
        >>> trials = [Tried({CLIP: c}, loss) for c, loss in ((0.1, 0.3), (1.0, 0.2009), (10.0, 0.2))]
        >>> smallest_harmless(trials).settings[CLIP]
        1.0
    """
    best = min(item.loss for item in tried)
    harmless = [item for item in tried if item.loss <= best + tolerance * abs(best)]
    return min(harmless, key=lambda item: (item.settings[CLIP], item.loss))


def rounds_of(config: Config, trials: int, tried: Sequence[Tried]) -> list[Values]:
    """The next learning rates to try with noise: a grid first, then around the best so far.

    Args:
        config: with the rates that the stages before chose.
        trials: how many are left.
        tried: all trials with noise so far.

    Returns:
        At most `trials` settings that were not tried; none where nothing new is near.
    """
    table, tower = _rates(config)
    if not tried:
        grid = [{TABLE_RATE: _round(table * f), TOWER_RATE: tower} for f in FIRST_FACTORS]
        return grid[:trials] if trials >= len(grid) else [grid[1], *grid[:1], *grid[2:]][:trials]
    best = min(tried, key=lambda item: item.loss).settings
    known = [(item.settings[TABLE_RATE], item.settings[TOWER_RATE]) for item in tried]
    near = [
        {
            TABLE_RATE: _round(best[TABLE_RATE] * first),
            TOWER_RATE: _round(best[TOWER_RATE] * second),
        }
        for first, second in _steps()
    ]
    fresh = [item for item in near if (item[TABLE_RATE], item[TOWER_RATE]) not in known]
    return fresh[: min(trials, ROUND_TRIALS)]


def _steps() -> Iterator[tuple[float, float]]:
    """Factors of both rates, nearest last."""
    for step in (3.0, 2.0, 1.4):
        yield 1.0, step
        yield 1.0, 1.0 / step
        yield step, 1.0
        yield 1.0 / step, 1.0


def batch_sizes(config: Config, dataset_size: int) -> list[int]:
    """Powers of two of the configured batch, up to all units, as far as memory goes."""
    sizes, size = [], config.training.expected_batch_size
    while size <= dataset_size:
        try:
            check_memory(
                estimate_memory(
                    config.model,
                    config.schema,
                    expected_batch_size=size * config.privacy.rows_per_unit,
                    table_noise=config.training.table_noise,
                )
            )
        except ConfigError:
            break
        sizes.append(size)
        size *= 2
    return sizes


def largest_in_time(
    sizes: Sequence[int],
    iterations: int,
    seconds: float,
    step_seconds: Callable[[int], float | None],
) -> tuple[int, list[tuple[int, float | None, float | None]]]:
    """The largest batch with which one trial's iterations fit into a time.

    Args:
        sizes: rising; the first is taken in any case.
        iterations: of a trial, the same at each size: larger batches see more rows.
        seconds: that a trial may take.
        step_seconds: measures a step at a size; None where it cannot.

    Returns:
        The size, and for each measured one: size, seconds a step, seconds a trial.
    """
    found, chosen = [], sizes[0]
    for size in sizes:
        step = step_seconds(size)
        total = None if step is None else step * iterations
        found.append((size, step, total))
        if total is None or total > seconds:
            break
        chosen = size
    return chosen, found


def with_values(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain data with values put in by dotted key."""
    document: dict[str, Any] = to_document(config)
    for key, value in values.items():
        *path, last = key.split(".")
        table = document
        for name in path:
            table = table.setdefault(name, {})
        table[last] = value
    return document


def number(value: float) -> str:
    """A number in a decision."""
    return "infinity" if math.isinf(value) else f"{value:.4g}"


def at_edge(settings: Mapping[str, Any], tried: Sequence[Tried], keys: Sequence[str]) -> str:
    """A warning where a chosen value is the smallest or largest that was tried."""
    edges = []
    for key in keys:
        values = sorted({item.settings[key] for item in tried})
        if len(values) > 1 and settings[key] in (values[0], values[-1]):
            edges.append(key)
    if not edges:
        return ""
    return f" At the edge of what was tried: {', '.join(edges)}; better values may lie beyond."


def _rates(config: Config) -> tuple[float, float]:
    """Learning rates of tables and tower."""
    training = config.training
    return training.table_optimizer.learning_rate, training.tower_optimizer.learning_rate


def _round(value: float) -> float:
    """Four digits: settings are typed again by people."""
    return float(f"{value:.4g}")
