"""How trials of a recipe are compared, and where a grid goes on. Nothing here reads a row.

Among models that predict no worse than the average rate (normalized entropy at most 1), where there is one,
the headline loss decides; of those within one standard error of the lowest, the smallest learning rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TABLE_RATE: Final = "training.table_optimizer.learning_rate"
TOWER_RATE: Final = "training.tower_optimizer.learning_rate"
CLIP: Final = "privacy.l2_clip_norm"

ENTROPY: Final = "normalized_entropy"
SHOWN: Final = ("pr_auc", "log_loss", ENTROPY, "calibration")  # beside the headline loss
TOLERANCE: Final = 0.01
EXTENSIONS: Final = 3  # of a grid whose best value is at its edge
WIDER: Final = "-wider-"
_NORMAL_95: Final = 1.96

Values = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """A trial that finished.

    Attributes:
        settings: values by dotted key.
        loss: the headline loss on test rows.
        trial: its name.
        standard_error: of the loss; 0 where no interval is known.
        metrics: those of SHOWN that the task has.
    """

    settings: Mapping[str, Any]
    loss: float
    trial: str = field(compare=False, default="")
    standard_error: float = field(compare=False, default=0.0)
    metrics: Mapping[str, float | None] = field(compare=False, default_factory=dict)

    @property
    def is_worse_than_average(self) -> bool:
        """Whether always predicting the average rate has a lower log loss."""
        return is_worse_than_average(self.metrics)


@dataclass(frozen=True)
class Grid:
    """How a grid is decided, and along what it goes on.

    Attributes:
        keys: whose edges matter.
        choose: the best of what was tried.
        across: keys whose values are all tried again beyond an edge.
    """

    keys: Sequence[str]
    choose: Callable[[Sequence[Tried]], Tried]
    across: Sequence[str] = ()


def tried_of(
    settings: Mapping[str, Any], measured: Mapping[str, Any], loss: str, trial: str
) -> Tried | None:
    """A trial by its metrics.json; None where its headline loss is not defined."""
    value = measured.get(loss)
    if value is None:
        return None
    low, high = measured.get("intervals", {}).get(loss) or (value, value)
    return Tried(
        settings,
        float(value),
        trial,
        (high - low) / 2.0 / _NORMAL_95,
        {name: measured[name] for name in SHOWN if name in measured},
    )


def best_of(tried: Sequence[Tried]) -> Tried:
    """The trial that is chosen among those that differ in learning rates.

    Args:
        tried: at least one.

    Examples:
        >>> trials = [Tried({TABLE_RATE: r}, loss, "", 0.02) for r, loss in ((1.0, 0.21), (8.0, 0.2))]
        >>> best_of(trials).settings[TABLE_RATE]
        1.0
    """
    fair = _fair(tried)
    lowest = min(fair, key=lambda item: item.loss)
    near = [item for item in fair if item.loss <= lowest.loss + lowest.standard_error]
    return min(near, key=_rates_first)


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
    fair = _fair(tried)
    best = min(item.loss for item in fair)
    clip = min(item.settings[CLIP] for item in fair if item.loss <= best + tolerance * abs(best))
    return best_of([item for item in fair if item.settings[CLIP] == clip])


def edges(settings: Mapping[str, Any], tried: Sequence[Tried], keys: Sequence[str]) -> Values:
    """The next value beyond the grid for each key whose chosen value is the smallest or largest tried."""
    found = {}
    for key in keys:
        values = sorted({item.settings[key] for item in tried})
        if len(values) > 1 and settings[key] == values[-1]:
            found[key] = rounded(values[-1] * values[-1] / values[-2])
        elif len(values) > 1 and settings[key] == values[0]:
            found[key] = rounded(values[0] * values[0] / values[1])
    return found


def beyond(
    chosen: Tried, tried: Sequence[Tried], keys: Sequence[str], across: Sequence[str] = ()
) -> list[Values]:
    """What to try next where the best is at an edge of the grid; nothing where it is inside.

    Args:
        chosen: the best so far.
        tried: all so far.
        keys: along which the grid goes on, by the same factor.
        across: whose values are all tried again at the new ones; of the rest the best is kept.
    """
    following = edges(chosen.settings, tried, keys)
    if not following:
        return []
    choices = {
        key: sorted({item.settings[key] for item in tried})
        if key in across
        else [value, *([following[key]] if key in following else [])]
        for key, value in chosen.settings.items()
    }
    settings = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    return [item for item in settings if any(item[key] == following[key] for key in following)]


def edge_words(
    chosen: Tried, tried: Sequence[Tried], keys: Sequence[str], rows: str, *, goes_on: bool = False
) -> str:
    """What follows where a chosen value is the smallest or largest that was tried."""
    found = edges(chosen.settings, tried, keys)
    if not found:
        return ""
    words = f" At the edge of what was tried: {', '.join(found)}; "
    if goes_on:
        return words + "the grid goes on there."
    words += "better values may lie beyond."
    if rows == "private":
        words += " The grid stays: each further look at private rows counts."
    return words


def grid_words(chosen: Tried, loss: str) -> str:
    """What was chosen and why, in words."""
    settings, words = chosen.settings, loss.replace("_", " ")
    rates = f"{number(settings[TABLE_RATE])} (tables) and {number(settings[TOWER_RATE])} (tower)"
    if CLIP in settings:
        return (
            f"{number(settings[CLIP])}: the smallest whose {words} is within {TOLERANCE:.0%} of the best, "
            f"with learning rates {rates} and {words} {chosen.loss:.4f}."
        )
    return (
        f"learning rates {rates}, with {words} {chosen.loss:.4f}: the smallest rates within one standard "
        "error of the best."
    )


def average_words(chosen: Tried) -> str:
    """A warning where always predicting the average rate would do better."""
    return f" CAREFUL: {worse_words(chosen.metrics)}." if chosen.is_worse_than_average else ""


def is_worse_than_average(metrics: Mapping[str, Any]) -> bool:
    """Whether a model's log loss is above that of always predicting the average rate."""
    entropy = metrics.get(ENTROPY)
    return entropy is not None and bool(entropy > 1.0)


def worse_words(metrics: Mapping[str, Any]) -> str:
    """What is wrong with a model of normalized entropy above 1."""
    return f"predicts worse than the average rate: normalized entropy {metrics[ENTROPY]:.3g}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def number(value: float) -> str:
    """A number in a decision."""
    return "infinity" if math.isinf(value) else f"{value:.4g}"


def rounded(value: float) -> float:
    """Four digits: settings are typed again by people."""
    return float(f"{value:.4g}")


def evidence(keys: Sequence[str], loss: str, tried: Sequence[Tried]) -> dict[str, Any]:
    """Columns and rows of a stage's evidence: what varied, the headline loss and how well rates are met."""
    shown = [name for name in SHOWN if any(name in item.metrics for item in tried)]
    return {
        "columns": [
            *(key.partition(".")[2].replace("_", " ") for key in keys),
            *(name.replace("_", " ") for name in (loss, *shown)),
        ],
        "evidence": [
            [
                *(item.settings[key] for key in keys),
                *(
                    None if value is None else rounded(value)
                    for value in (item.loss, *(item.metrics.get(name) for name in shown))
                ),
            ]
            for item in tried
        ],
    }


def _fair(tried: Sequence[Tried]) -> Sequence[Tried]:
    """Those that predict no worse than the average rate; all where there is none."""
    return [item for item in tried if not item.is_worse_than_average] or tried


def _rates_first(item: Tried) -> tuple[float, float, float]:
    """Order by learning rates: the tables', then the tower's."""
    settings = item.settings
    return settings.get(TABLE_RATE, 0.0), settings.get(TOWER_RATE, 0.0), item.loss
