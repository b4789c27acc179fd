"""From a tower's logit to a prediction: constants of the model that no gradient moves.

    training    z = tower(x) + offset, loss with the weights of its class
    prediction  z - log(positive_weight / negative_weight), calibrated, + log(negatives_kept)

Weights of the classes, and negatives that were left out of the log, move the logit that minimises the loss
by a known constant; predictions take it back (King and Zeng 2001, "Logistic regression in rare events data").
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.batch import SparseBatch, Targets
from dpads.errors import ConfigError
from dpads.models.calibration import Calibration, calibration_from_dict
from dpads.schema import Task

LARGEST_WEIGHT = 1e4  # of a class; the rarest labels of ads are one in ten thousand
LARGEST_LOGIT = 80.0  # exp of it is a float32, and 1 - p is 0 long before


@dataclass(frozen=True, kw_only=True)
class Output:
    """What becomes of a tower's logit.

    Attributes:
        offset: added to every logit, in training and prediction; where the output starts.
        positive_weight: factor of the losses of positive examples; binary tasks.
        negative_weight: likewise of negative ones.
        negatives_kept: the share of negatives that the log still has; binary tasks. Predictions are
            about what it was taken from.
        calibration: fitted after training, or None.

    Raises:
        ConfigError: a number is out of range.
    """

    offset: float = 0.0
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    negatives_kept: float = 1.0
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("positive_weight", "negative_weight"):
            check_class_weight(name, getattr(self, name))
        if not math.isfinite(self.offset):
            raise ConfigError(f"Expected a finite offset, got {self.offset}.")

    def targets(self, batch: SparseBatch) -> Targets:
        """What the losses of a batch need beside the tower's logits."""
        weights = batch.weights
        if self.positive_weight != 1.0 or self.negative_weight != 1.0:
            of_class = np.where(batch.labels > 0, self.positive_weight, self.negative_weight)
            weights = (of_class if weights is None else weights * of_class).astype(np.float32)
        return Targets(batch.labels, weights, batch.exposure, self.offset)

    def uncalibrated(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits of the log's own rates, float64[n], from the tower's: what a calibration is fitted to."""
        return logits + (self.offset - math.log(self.positive_weight / self.negative_weight))

    def logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logits (of counts: logarithms of rates) to predict with, float64[n], from the tower's."""
        own = self.uncalibrated(logits)
        if self.calibration is not None:
            own = self.calibration.apply(own)
        return own + math.log(self.negatives_kept)

    def predict(
        self, task: Task, logits: NDArray[np.float64], exposure: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Probabilities, or expected counts over each row's exposure, float32[n], from the tower's logits."""
        own = self.logits(logits)
        if task == "count":
            duration = 1.0 if exposure is None else exposure.astype(np.float64)
            means = duration * np.exp(np.minimum(own, LARGEST_LOGIT))
            return np.minimum(means, float(np.finfo(np.float32).max)).astype(np.float32)
        return (0.5 * (1.0 + np.tanh(0.5 * own))).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if self.calibration is not None:
            values["calibration"] = self.calibration.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Output:
        """Reads what `to_dict` wrote.

        Raises:
            KeyError: a key is missing or unknown.
            ConfigError: a number is out of range.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        if set(values) != names:
            raise KeyError("output")
        own = dict(values)
        if own["calibration"] is not None:
            own["calibration"] = calibration_from_dict(own["calibration"])
        return cls(**own)


def check_class_weight(name: str, value: Any) -> None:
    """Refuses a factor of a class's losses that is not one.

    Raises:
        ConfigError: it is not a positive number, or far from 1.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 1.0 / LARGEST_WEIGHT <= value <= LARGEST_WEIGHT):
        raise ConfigError(
            f"Expected {name} to be a number from {1.0 / LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, got "
            f"{value!r}. It multiplies the losses of a class before they are clipped; 1 leaves them as "
            "they are, and beyond a few hundred every gradient of the class is clipped to the same "
            "length."
        )
