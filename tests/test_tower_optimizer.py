"""The tower's optimizers move parameters as torch's own do, and go on where a checkpoint left them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dpads
from dpads.noise import PrivateGradient
from dpads.optimizers import Optimizer
from dpads.schedules import learning_rates
from dpads.tower_optimizer import TowerOptimizer

STEPS = 40


class Parameters:
    """Stands in for a tower."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.parameters = {
            "weight": rng.normal(size=(5, 3)).astype(np.float32),
            "bias": rng.normal(size=5).astype(np.float32),
        }


def gradients(t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    scale = 10.0 ** rng.integers(-6, 3)
    return {
        "weight": (scale * rng.normal(size=(5, 3))).astype(np.float32),
        "bias": (scale * rng.normal(size=5)).astype(np.float32),
    }


@pytest.mark.parametrize(
    "config",
    [
        dpads.Sgd(learning_rate=0.3),
        dpads.Sgd(learning_rate=0.3, schedule="cosine", weight_decay=0.01),
        dpads.Adam(learning_rate=0.02),
        dpads.Adam(learning_rate=0.02, schedule="linear", weight_decay=0.1),
    ],
)
def test_steps_are_those_of_torch(config: Optimizer) -> None:
    tower, expected = Parameters(), Parameters()
    own = TowerOptimizer(tower, config, iterations=STEPS)  # type: ignore[arg-type]
    tensors = {n: torch.nn.Parameter(torch.from_numpy(v)) for n, v in expected.parameters.items()}
    kind: Any = torch.optim.SGD
    options: dict[str, Any] = {}
    if isinstance(config, dpads.Adam):
        kind = torch.optim.AdamW
        options = {"betas": (config.beta1, config.beta2), "eps": config.stability}
    reference = kind(
        tensors.values(), lr=config.learning_rate, weight_decay=config.weight_decay, **options
    )
    rates = learning_rates(config.schedule, config.learning_rate, STEPS)
    for t in range(STEPS):
        own.apply(PrivateGradient(gradients(t), t))
        reference.param_groups[0]["lr"] = float(rates[t])
        for name, value in gradients(t).items():
            tensors[name].grad = torch.from_numpy(value)
        reference.step()
        for name, value in tower.parameters.items():
            np.testing.assert_allclose(value, expected.parameters[name], rtol=2e-5, atol=2e-6)


def test_a_restored_optimizer_goes_on_to_the_bit() -> None:
    first, second = Parameters(), Parameters()
    config = dpads.Adam(learning_rate=0.02)
    whole = TowerOptimizer(first, config, iterations=STEPS)  # type: ignore[arg-type]
    cut = TowerOptimizer(second, config, iterations=STEPS)  # type: ignore[arg-type]
    for t in range(STEPS):
        whole.apply(PrivateGradient(gradients(t), t))
        if t == STEPS // 2:
            state = {name: value.copy() for name, value in cut.state().items()}
            cut = TowerOptimizer(second, config, iterations=STEPS)  # type: ignore[arg-type]
            cut.restore(state)
        cut.apply(PrivateGradient(gradients(t), t))
    for name, value in first.parameters.items():
        assert np.array_equal(value, second.parameters[name])
