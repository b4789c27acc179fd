"""[tune]: how `dpads tune` draws, scores and selects; the table of a SWEEP.toml, read by type and range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dpads._validate import nearest
from dpads.accounting.events import LARGEST_SHAPE
from dpads.accounting.tuning import SELECTION_SHAPES
from dpads.errors import ConfigError

LARGEST_SHARE: Final = 0.5
MOST_TRIALS: Final = 1000.0


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """[tune]: private selection. Every number is public and fixed before anything is drawn.

    Attributes:
        mean_trials: mean number of candidates that are trained, at most 1,000; how many are is drawn and
            never shown.
        law: of their number: "poisson", "geometric", "logarithmic", or the shape of a truncated
            negative binomial. Poisson needs the fewest trials: 10 on average meet a given one of ten
            candidates with chance 0.63, for which the geometric law needs 15.5 and the logarithmic 80, at
            an epsilon that is within a fifth of Poisson's.
        score_share: share of the training units that no candidate trains on: scores are computed on them.
        score_bound: the sum of one unit's losses counts for at most this much in a score.
        score_seed: public; it decides which units are set aside, and must not be the seed of the test split.
    """

    mean_trials: float = 10.0
    law: str | float = "poisson"
    score_share: float = 0.1
    score_bound: float = 6.0
    score_seed: int = 1000

    def __post_init__(self) -> None:
        if not _is_number(self.mean_trials) or not 1.0 <= self.mean_trials <= MOST_TRIALS:
            raise ConfigError(
                f"Expected tune.mean_trials to be a number in [1, {MOST_TRIALS:g}], got "
                f"{self.mean_trials!r}: each one is a training of its own, and all share one budget."
            )
        named = isinstance(self.law, str) and self.law in SELECTION_SHAPES
        if not named and not (_is_number(self.law) and 0.0 <= float(self.law) <= LARGEST_SHAPE):
            known = ", ".join(f'"{name}"' for name in SELECTION_SHAPES)
            raise ConfigError(
                f"Expected tune.law to be {known} or a number in [0, {LARGEST_SHAPE:g}], got {self.law!r}."
                + (nearest(self.law, SELECTION_SHAPES) if isinstance(self.law, str) else "")
            )
        if not _is_number(self.score_share) or not 0.0 < self.score_share <= LARGEST_SHARE:
            raise ConfigError(
                f"Expected tune.score_share to be a number in (0, {LARGEST_SHARE}], got {self.score_share!r}."
            )
        if not _is_number(self.score_bound) or not 0.0 < self.score_bound < math.inf:
            raise ConfigError(
                f"Expected tune.score_bound to be a finite number > 0, got {self.score_bound!r}."
            )
        seed: object = self.score_seed
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(
                f"Expected tune.score_seed to be an integer >= 0, got {self.score_seed!r}."
            )

    @property
    def shape(self) -> float | str:
        """The law as an event holds it: "poisson" or a truncated negative binomial's shape."""
        return SELECTION_SHAPES[self.law] if isinstance(self.law, str) else float(self.law)

    @property
    def chance_of_nothing(self) -> float:
        """How likely it is that the law draws no candidate: the budget is spent and nothing is selected.

        Under Poisson exp(-mean_trials): 0.05 at 3 trials, 5e-5 at 10. Under every other law 0. That all
        candidates fail is not part of it.

        Examples:
            >>> TuneConfig(mean_trials=3.0).chance_of_nothing
            0.049787068367863944
            >>> TuneConfig(mean_trials=3.0, law="geometric").chance_of_nothing
            0.0
        """
        return math.exp(-self.mean_trials) if self.shape == "poisson" else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_table` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_table(cls, table: object) -> TuneConfig:
        """Reads the [tune] table of a SWEEP.toml.

        Raises:
            ConfigError: a key is unknown (the nearest known ones are named) or a value is wrong.

        Examples:
            >>> TuneConfig.from_table({"mean_trials": 20, "law": "geometric"}).shape
            1.0
        """
        if not isinstance(table, Mapping):  # a document says anything
            raise ConfigError(f"[tune]: expected a table, got {table!r}.")
        known = [item.name for item in dataclasses.fields(cls)]
        for key in table:
            if key not in known:
                raise ConfigError(f'Unknown key "tune.{key}".' + nearest(str(key), known))
        return cls(**table)


def _is_number(value: object) -> bool:
    """Whether it is a number that is none of Python's truth values."""
    return isinstance(value, int | float) and not isinstance(value, bool)
