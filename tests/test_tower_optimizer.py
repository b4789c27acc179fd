"""The tower's optimizers move parameters as torch's own do, and go on where a checkpoint left them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dpads
from dpads.accounting.ledger import Ledger
from dpads.errors import ConfigError
from dpads.noise import PrivateGradient
from dpads.optimizers import (
    Optimizer,
    check_table_optimizer,
    optimizer_from_dict,
    optimizer_to_dict,
)
from dpads.plan import PrivacySpec, resolve
from dpads.schedules import learning_rates
from dpads.store import ExampleStore
from dpads.tower_optimizer import TowerOptimizer
from dpads.training import Performance, Trainer, TrainingSettings

STEPS = 40
NOISE = 0.05


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
    own = TowerOptimizer(tower, config, iterations=STEPS, noise_scale=NOISE)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("config", [dpads.Adam(learning_rate=0.02), dpads.AdamBC(floor=1e-4)])
def test_a_restored_optimizer_goes_on_to_the_bit(config: Optimizer) -> None:
    first, second = Parameters(), Parameters()
    whole = TowerOptimizer(first, config, iterations=STEPS, noise_scale=NOISE)  # type: ignore[arg-type]
    cut = TowerOptimizer(second, config, iterations=STEPS, noise_scale=NOISE)  # type: ignore[arg-type]
    for t in range(STEPS):
        whole.apply(PrivateGradient(gradients(t), t))
        if t == STEPS // 2:
            state = {name: value.copy() for name, value in cut.state().items()}
            cut = TowerOptimizer(second, config, iterations=STEPS, noise_scale=NOISE)  # type: ignore[arg-type]
            cut.restore(state)
        cut.apply(PrivateGradient(gradients(t), t))
    for name, value in first.parameters.items():
        assert np.array_equal(value, second.parameters[name])


def one_weight(value: float = 0.0) -> Any:
    """Stands in for a tower of 1,000 equal weights."""
    tower = Parameters()
    tower.parameters = {"weight": np.full(1000, value, np.float32)}
    return tower


def noisy(mean: float, stddev: float, t: int) -> PrivateGradient:
    values = np.random.default_rng(t).normal(mean, stddev, 1000).astype(np.float32)
    return PrivateGradient({"weight": values}, t)


def test_adambc_is_algorithm_1_of_arxiv_2312_14334() -> None:
    config = dpads.AdamBC(
        learning_rate=0.02, schedule="linear", weight_decay=0.1, beta1=0.8, beta2=0.95, floor=1e-3
    )
    tower = Parameters()
    own = TowerOptimizer(tower, config, iterations=STEPS, noise_scale=NOISE)  # type: ignore[arg-type]
    expected = {n: v.astype(np.float64) for n, v in Parameters().parameters.items()}
    m = {n: np.zeros_like(v) for n, v in expected.items()}
    v = {n: np.zeros_like(v) for n, v in expected.items()}
    floored = []
    for t, rate in enumerate(learning_rates("linear", 0.02, STEPS)):
        rng = np.random.default_rng(t)
        values = {
            n: rng.normal(0.02, 1.2 * NOISE, x.shape).astype(np.float32) for n, x in v.items()
        }
        own.apply(PrivateGradient(values, t))
        for name, value in values.items():
            m[name] = 0.8 * m[name] + 0.2 * value
            v[name] = 0.95 * v[name] + 0.05 * value.astype(np.float64) ** 2
            corrected = v[name] / (1.0 - 0.95 ** (t + 1)) - NOISE**2
            floored += (corrected < 1e-3).ravel().tolist()
            step = rate * (m[name] / (1.0 - 0.8 ** (t + 1))) / np.sqrt(np.maximum(corrected, 1e-3))
            expected[name] = (1.0 - rate * 0.1) * expected[name] - step
            np.testing.assert_allclose(tower.parameters[name], expected[name], rtol=2e-5, atol=2e-6)
    assert 0 < sum(floored) < len(floored)  # both branches were taken


def test_without_noise_adambc_is_adam() -> None:
    one, other = one_weight(), one_weight()
    corrected = TowerOptimizer(one, dpads.AdamBC(floor=1e-30), iterations=STEPS, noise_scale=0.0)
    plain = TowerOptimizer(other, dpads.Adam(stability=1e-30), iterations=STEPS, noise_scale=0.0)
    for t in range(STEPS):
        corrected.apply(noisy(0.1, 1.0, t))
        plain.apply(noisy(0.1, 1.0, t))
    np.testing.assert_allclose(
        one.parameters["weight"], other.parameters["weight"], rtol=1e-5, atol=1e-7
    )


def test_adambc_steps_as_if_there_were_no_noise() -> None:
    """Where gradients are equal in every iteration, Adam without noise moves by its learning rate."""
    true_gradient, stddev, steps, rate = 0.5, 1.0, 4000, 1e-3

    def moved(config: Optimizer, noise_scale: float) -> float:
        tower = one_weight()
        own = TowerOptimizer(tower, config, iterations=steps, noise_scale=noise_scale)
        for t in range(steps):
            own.apply(noisy(true_gradient, stddev, t))
            if t == steps // 2 - 1:  # the moments have settled by then
                tower.parameters["weight"][...] = 0.0
        return -float(tower.parameters["weight"].mean()) / (rate * steps / 2)

    options = {"learning_rate": rate, "beta1": 0.9, "beta2": 0.9995}
    corrected = dpads.AdamBC(floor=1e-4, **options)  # type: ignore[arg-type]
    assert moved(corrected, stddev) == pytest.approx(1.0, abs=0.04)
    assert moved(dpads.Adam(**options), stddev) == pytest.approx(0.447, abs=0.01)  # type: ignore[arg-type]
    assert moved(corrected, 0.95 * stddev) < 0.9  # too little is subtracted
    assert moved(corrected, 1.05 * stddev) > 1.1  # too much


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf"), "small"])
def test_a_floor_has_to_be_positive(floor: Any) -> None:
    with pytest.raises(ConfigError, match="positive floor"):
        dpads.AdamBC(floor=floor)


def test_adambc_is_read_from_a_configuration_and_written_back() -> None:
    config = optimizer_from_dict({"name": "adambc", "floor": 1e-6, "learning_rate": 0.01})
    assert config == dpads.AdamBC(floor=1e-6, learning_rate=0.01)
    assert optimizer_from_dict(optimizer_to_dict(config)) == config
    with pytest.raises(ConfigError, match="linear in the noise"):
        check_table_optimizer(config)


def trainer_with(store: ExampleStore, folder: Path | None = None, **keys: Any) -> Trainer:
    """A run of 12 iterations with DP-AdamBC on a tower of several thousand parameters."""
    spec = PrivacySpec(
        noise_multiplier=keys.get("noise_multiplier", 1.0),
        delta=1e-6,
        sampling_prob=0.01,
        iterations=12,
    )
    plan = resolve(
        spec,
        expected_batch_size=keys.get("batch", 8),
        epochs=None,
        l2_clip_norm=keys.get("l2_clip_norm", 1.0),
    )
    settings = TrainingSettings(tower_optimizer=dpads.AdamBC(), noise_seed=5)
    make: Any = Trainer.resume if keys.get("resume") else Trainer
    model = dpads.models.Mlp(embedding_dim=4, hidden=(64, 64))
    parts = (store, model, plan, settings, Performance(threads=1), Ledger())
    return make(folder, *parts) if keys.get("resume") else make(*parts, folder)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("noise_multiplier", "l2_clip_norm", "batch"), [(40.0, 0.5, 8), (20.0, 3.0, 32)]
)
def test_what_a_run_subtracts_is_the_variance_of_its_noise(
    train_store: ExampleStore, noise_multiplier: float, l2_clip_norm: float, batch: int
) -> None:
    """With far more noise than gradient the second moment is the run's public number.

    It is a mean of more than 5 * 10^4 squares, whose standard deviation is 0.6 %.
    """
    trainer = trainer_with(
        train_store, noise_multiplier=noise_multiplier, l2_clip_norm=l2_clip_norm, batch=batch
    )
    moved = trainer._backend._tower
    subtracted = moved._noise_variance
    assert subtracted == pytest.approx((noise_multiplier * l2_clip_norm / batch) ** 2, rel=1e-12)
    for _ in range(trainer.planned):
        trainer.step()
    squares = np.concatenate([square for _, square in moved._moments.values()])
    assert squares.size * trainer.planned > 5e4
    whole = 1.0 - 0.999**trainer.planned
    assert squares.mean(dtype=np.float64) / whole == pytest.approx(subtracted, rel=0.03)


def test_a_run_with_adambc_goes_on_to_the_bit(train_store: ExampleStore, tmp_path: Path) -> None:
    whole, cut = trainer_with(train_store), trainer_with(train_store, tmp_path)
    for _ in range(6):
        whole.step()
        cut.step()
    cut.save()
    again = trainer_with(train_store, tmp_path, resume=True)
    assert again.iteration == 6
    for _ in range(6):
        whole.step()
        again.step()
    for name, value in whole.model.dense.items():
        assert np.array_equal(value, again.model.dense[name])
