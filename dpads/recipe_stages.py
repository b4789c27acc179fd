"""The stages of the recipe: what each asks, tries and decides. Nothing here reads a row.

References:
    Ponomareva et al. (2023), "How to DP-fy ML", arXiv 2303.00654 v3, section 5.4: tune without noise
    first, make the batch as large as the time allows, take the smallest clip norm that costs little,
    let the budget set the noise, then tune learning rates with noise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from dpads.config import Config
from dpads.config_toml import to_document
from dpads.recipe_choice import (
    CLIP,
    TABLE_RATE,
    TOWER_RATE,
    Tried,
    Values,
    best_of,
    rounded,
)

BATCH: Final = "training.expected_batch_size"
EPOCHS: Final = "training.epochs"
NOISE: Final = "privacy.noise_multiplier"

# Where rows are public these grids go on beyond an edge that the best is at.
REFERENCE_FACTORS: Final = (
    (0.25, 1.0, 4.0),
    (0.3, 1.0, 3.0),
)  # of the tables' and the tower's rate
CLIP_FACTORS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
CLIP_RATE_FACTORS: Final = (1.0, 4.0)  # clipped gradients are shorter, so steps may be longer
FIRST_FACTORS: Final = (0.25, 1.0, 4.0)
ROUND_TRIALS: Final = 2

RowsName = Literal["public", "private", "synthetic", "none"]


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


def reference_settings(config: Config) -> list[Values]:
    """Learning rates around the configuration's, for tables and tower each."""
    table, tower = _rates(config)
    return [
        {TABLE_RATE: rounded(table * first), TOWER_RATE: rounded(tower * second)}
        for first, second in itertools.product(*REFERENCE_FACTORS)
    ]


def clip_settings(config: Config) -> list[Values]:
    """Clip norms around the configuration's, each at the present learning rates and at longer steps."""
    table, tower = _rates(config)
    return [
        {
            CLIP: rounded(config.l2_clip_norm * clip),
            TABLE_RATE: rounded(table * longer),
            TOWER_RATE: tower,
        }
        for clip, longer in itertools.product(CLIP_FACTORS, CLIP_RATE_FACTORS)
    ]


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
        grid = [{TABLE_RATE: rounded(table * f), TOWER_RATE: tower} for f in FIRST_FACTORS]
        return grid[:trials] if trials >= len(grid) else [grid[1], *grid[:1], *grid[2:]][:trials]
    best = best_of(tried).settings
    known = [(item.settings[TABLE_RATE], item.settings[TOWER_RATE]) for item in tried]
    near = [
        {
            TABLE_RATE: rounded(best[TABLE_RATE] * first),
            TOWER_RATE: rounded(best[TOWER_RATE] * second),
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


def _rates(config: Config) -> tuple[float, float]:
    """Learning rates of tables and tower."""
    training = config.training
    return training.table_optimizer.learning_rate, training.tower_optimizer.learning_rate
