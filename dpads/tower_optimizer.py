"""Moves the tower's parameters; takes private gradients and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.kernels.optimizers import adam_step, adambc_step, sgd_step
from dpads.models.base import Tower
from dpads.noise import PrivateGradient
from dpads.optimizers import AdamBC, Optimizer, Sgd
from dpads.schedules import learning_rates


class TowerOptimizer:
    """SGD, Adam or DP-AdamBC with decoupled weight decay over a tower, with a schedule fixed in advance.

    torch's own optimizers do the same; they cost a second of imports and half a millisecond a step.

    Args:
        tower: whose parameters move.
        config: the optimizer.
        iterations: of the schedule.
        noise_scale: standard deviation of the noise in one coordinate of the gradients, a public number:
            noise_stddev / divisor.
    """

    def __init__(
        self, tower: Tower, config: Optimizer, *, iterations: int, noise_scale: float
    ) -> None:
        self._config = config
        self._noise_variance = noise_scale * noise_scale
        self._rates = learning_rates(config.schedule, config.learning_rate, iterations)
        # Views of the tower's memory: to write to them moves the tower.
        self._parameters = {name: value.reshape(-1) for name, value in tower.parameters.items()}
        self._steps = 0
        self._moments: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        if not isinstance(config, Sgd):
            self._moments = {
                name: (np.zeros_like(value), np.zeros_like(value))
                for name, value in self._parameters.items()
            }

    def apply(self, gradient: PrivateGradient) -> None:
        """One step at the learning rate of the gradient's iteration."""
        rate, config = float(self._rates[gradient.iteration]), self._config
        self._steps += 1
        for name, parameters in self._parameters.items():
            values = gradient.values[name].reshape(-1)
            if isinstance(config, Sgd):
                sgd_step(parameters, values, rate, config.weight_decay)
            elif isinstance(config, AdamBC):
                adambc_step(
                    parameters,
                    values,
                    *self._moments[name],
                    self._steps,
                    rate,
                    config.beta1,
                    config.beta2,
                    self._noise_variance,
                    config.floor,
                    config.weight_decay,
                )
            else:
                adam_step(
                    parameters,
                    values,
                    *self._moments[name],
                    self._steps,
                    rate,
                    config.beta1,
                    config.beta2,
                    config.stability,
                    config.weight_decay,
                )

    def state(self) -> dict[str, NDArray[Any]]:
        """Moments of every parameter, "<parameter>.mean" and "<parameter>.square"; the steps so far."""
        state: dict[str, NDArray[Any]] = {"steps": np.array([self._steps], np.int32)}
        for name, (mean, square) in self._moments.items():
            state |= {f"{name}.mean": mean, f"{name}.square": square}
        return state

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Sets what `state` returned."""
        self._steps = int(state["steps"][0])
        for name, (mean, square) in self._moments.items():
            mean[...] = state[f"{name}.mean"]
            square[...] = state[f"{name}.square"]
