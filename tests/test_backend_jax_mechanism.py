"""What the checks of a run in JAX stand on, beside the kernels: its trainer against torch's, with one key."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import dpads
from dpads import training
from dpads.accounting.ledger import Ledger
from dpads.plan import Plan, resolve
from dpads.training import Performance, Trainer, TrainingSettings

MLP = dpads.models.Mlp(embedding_dim=3, hidden=(6,))


@pytest.fixture
def same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are bound to the backend; here both get the same."""
    monkeypatch.setattr(training, "digest_of", lambda _: "both")


def plan_of(batch: int, sampling_prob: float, iterations: int) -> Plan:
    spec = dpads.PrivacySpec(
        noise_multiplier=1.0, delta=1e-6, sampling_prob=sampling_prob, iterations=iterations
    )
    return resolve(spec, expected_batch_size=batch, epochs=None, l2_clip_norm=0.5)


def trainer_of(backend: str, store: dpads.ExampleStore, plan: Plan, **settings: Any) -> Trainer:
    values = {"noise_seed": 3, "table_optimizer": dpads.Sgd(learning_rate=1.0), **settings}
    how = TrainingSettings(backend=backend, **values)
    return Trainer(store, MLP, plan, how, Performance(), Ledger())


@pytest.mark.slow
@pytest.mark.usefixtures("same_keys")
def test_batches_of_any_size_are_those_of_torch(
    train_store: dpads.ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, read = set(), dpads.ExampleStore.read

    def noted(self: dpads.ExampleStore, rows: Any) -> Any:
        sizes.add(len(rows))
        return read(self, rows)

    monkeypatch.setattr(dpads.ExampleStore, "read", noted)
    both = []
    for backend in ("torch", "jax"):
        trainer = trainer_of(backend, train_store, plan_of(2, 3e-4, 12))
        trainer.run()
        both.append(trainer.model.state())
    assert 0 in sizes
    assert len(sizes) > 2
    for name, value in both[0].items():
        np.testing.assert_allclose(both[1][name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_what_leaves_stands_on_a_public_grid(
    train_store: dpads.ExampleStore, table_noise: str
) -> None:
    trainer = trainer_of("jax", train_store, plan_of(40, 0.01, 12), table_noise=table_noise)
    trainer.run()
    stddev = 1.0 / 40 * 0.5 * np.sqrt(12)
    grid = 2.0 ** (np.floor(np.log2(stddev)) - 10)
    for value in trainer.model.tables.values():
        steps = value.astype(np.float64) / grid
        assert np.array_equal(steps, np.rint(steps))
        assert len(np.unique(steps)) > 200  # and yet no coarser than a thousandth of the noise


@pytest.mark.slow
def test_weights_are_inside_the_loss_as_in_torch(train_store: dpads.ExampleStore) -> None:
    """A weight scales the gradient before it is clipped, so that clipped sums feel its bound alone."""
    model = MLP.init(train_store.schema)
    model.output = dataclasses.replace(model.output, positive_weight=3.0, negative_weight=0.5)
    batch = train_store.read(np.arange(60))
    weights = np.random.default_rng(0).uniform(0.0, 4.0, 60).astype(np.float32)
    batch = dataclasses.replace(batch, weights=weights)
    for bound in (np.inf, 0.2):
        torch, jax = (
            dpads.clipped_gradients(model, batch, l2_clip_norm=bound, backend=backend)
            for backend in ("torch", "jax")
        )
        np.testing.assert_allclose(jax.norms, torch.norms, rtol=1e-4)
        assert torch.norms.max() > 0.2 > torch.norms.min()
        for name, value in torch.dense.items():
            np.testing.assert_allclose(jax.dense[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_runs_never_share_noise(train_store: dpads.ExampleStore) -> None:
    plan, found = plan_of(40, 0.01, 2), []
    for backend in ("torch", "jax", "jax"):
        trainer = trainer_of(backend, train_store, plan, noise_seed=None)
        trainer.run()
        found.append(trainer.model.tables["site"])
    start = MLP.init(train_store.schema).tables["site"]
    drawn = [(value - start).ravel() for value in found]
    for one, other in ((0, 1), (1, 2)):
        assert abs(np.corrcoef(drawn[one], drawn[other])[0, 1]) < 0.2
