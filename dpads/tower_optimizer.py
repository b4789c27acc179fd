"""Moves the tower's parameters; takes private gradients and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpads.models.base import Tower
from dpads.noise import PrivateGradient
from dpads.optimizers import Adam, Optimizer
from dpads.schedules import learning_rates

if TYPE_CHECKING:
    import torch


class TowerOptimizer:
    """torch's SGD or AdamW over a tower, with a schedule fixed in advance.

    Args:
        tower: whose parameters move.
        config: the optimizer.
        iterations: of the schedule.
    """

    def __init__(self, tower: Tower, config: Optimizer, *, iterations: int) -> None:
        import torch

        self._rates = learning_rates(config.schedule, config.learning_rate, iterations)
        # Views of the same memory: a step of torch's optimizer moves the tower.
        self._parameters = {
            name: torch.nn.Parameter(torch.from_numpy(value), requires_grad=False)
            for name, value in tower.parameters.items()
        }
        parameters = list(self._parameters.values())
        self._optimizer: torch.optim.Optimizer
        if isinstance(config, Adam):
            self._optimizer = torch.optim.AdamW(
                parameters,
                lr=config.learning_rate,
                betas=(config.beta1, config.beta2),
                eps=config.stability,
                weight_decay=config.weight_decay,
                fused=True,
            )
        else:
            # Without momentum, decay added to the gradient and decoupled decay are the same update.
            self._optimizer = torch.optim.SGD(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )

    def apply(self, gradient: PrivateGradient) -> None:
        """One step at the learning rate of the gradient's iteration."""
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = float(self._rates[gradient.iteration])
        for name, parameter in self._parameters.items():
            parameter.grad = torch.from_numpy(gradient.values[name])
        self._optimizer.step()

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Moments and counters of every parameter: "<parameter>.<key>"."""
        return {
            f"{name}.{key}": value.numpy().astype(np.float32)
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state[parameter].items()
            if value is not None
        }

    def restore(self, state: dict[str, NDArray[np.float32]]) -> None:
        """Sets what `state` returned."""
        import torch

        for entry, value in state.items():
            name, _, key = entry.rpartition(".")
            self._optimizer.state[self._parameters[name]][key] = torch.from_numpy(value.copy())
