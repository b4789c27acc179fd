"""Learning-rate schedules, fixed before training, as float64 vectors over iterations."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.errors import ConfigError

ScheduleName = Literal["constant", "linear", "cosine"]


def learning_rates(
    schedule: ScheduleName, learning_rate: float, iterations: int
) -> NDArray[np.float64]:
    """The learning rate of every iteration.

    Args:
        schedule: "constant"; "linear", learning_rate * (1 - t / T); or "cosine",
            learning_rate * cos(pi t / 2T)^2. The last two never reach zero within T iterations.
        learning_rate: positive, that of iteration 0.
        iterations: T.

    Returns:
        float64[T].

    Raises:
        ConfigError: the schedule is unknown.

    Examples:
        >>> learning_rates("linear", 1.0, 4).tolist()
        [1.0, 0.75, 0.5, 0.25]
    """
    t = np.arange(iterations, dtype=np.float64)
    if schedule == "constant":
        return np.full(iterations, learning_rate)
    if schedule == "linear":
        return learning_rate * ((iterations - t) / iterations)
    if schedule == "cosine":
        # sin^2 of the remaining angle: cos^2 of an angle near pi/2 would lose its digits
        return learning_rate * np.sin(0.5 * np.pi * (iterations - t) / iterations) ** 2
    raise ConfigError(f'Unknown schedule "{schedule}".' + nearest(schedule, get_args(ScheduleName)))
