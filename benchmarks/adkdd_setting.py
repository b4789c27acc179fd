"""What one training run of the AdKDD benchmark is told, and what it hands back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

Schedule: TypeAlias = Literal["constant", "linear"]
Optimizer: TypeAlias = Literal["sgd", "adam"]

DELTA: Final = 1e-6
METRICS: Final = ("auc", "log_loss", "normalized_entropy", "calibration")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What tuning chooses among; both sides read it alike.

    Attributes:
        optimizer: "sgd" or, where a side has it, "adam"; of the tables and of the bias.
        learning_rate: of iteration 0.
        schedule: "constant", or "linear" down to zero.
        weight_decay: of the tables.
        l2_clip_norm: bound of one example's gradient; unused without privacy.
        batch_size: expected, in examples.
        epochs: passes over the training rows, in expectation.
    """

    optimizer: Optimizer = "sgd"
    learning_rate: float
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    l2_clip_norm: float = math.inf
    batch_size: int
    epochs: int

    def __str__(self) -> str:
        """One cell of the table."""
        parts = [f"{self.optimizer} {self.learning_rate:g} {self.schedule}"]
        if self.weight_decay:
            parts.append(f"decay {self.weight_decay:g}")
        if math.isfinite(self.l2_clip_norm):
            parts.append(f"clip {self.l2_clip_norm:g}")
        return ", ".join([*parts, f"batch {self.batch_size}", f"{self.epochs} epochs"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity."""
        values = asdict(self)
        return values | {"l2_clip_norm": None} if math.isinf(self.l2_clip_norm) else values


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run reached.

    Attributes:
        scores: metrics on the rows that it was judged by.
        iterations: steps taken.
        seconds: wall time of training, planning included.
        noise_multiplier: 0 without privacy.
        epsilon: what the side's own accountant says was spent; None without privacy.
    """

    scores: dict[str, float]
    iterations: int
    seconds: float
    noise_multiplier: float
    epsilon: float | None


def scores_of(metrics: dict[str, float | None]) -> dict[str, float]:
    """The metrics of the table."""
    return {name: float(metrics[name] or 0.0) for name in METRICS}
