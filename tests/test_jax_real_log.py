"""The JAX backend on a real log: what the torch backend trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpads
from dpads import training
from dpads.accounting.ledger import Ledger
from dpads.plan import resolve
from dpads.training import Performance, Trainer, TrainingSettings

pytestmark = pytest.mark.slow
MODELS = [
    dpads.models.Logistic(),
    dpads.models.Mlp(embedding_dim="auto", hidden=(128, 64)),
    dpads.models.Dcn(embedding_dim=8, cross_layers=2, hidden=(64,)),
    dpads.models.Fm(embedding_dim=8),
]


@pytest.fixture(scope="module")
def adkdd(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dpads.ExampleStore:
    out = tmp_path_factory.mktemp("adkdd") / "store"
    columns = [f"hash_{n}" for n in range(12)]
    schema = dpads.FeatureSchema(task="ctr", label="click", categorical=columns, buckets=10_000)
    return dpads.prepare(real_data / "criteo_adkdd2021.parquet", schema, out=out)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["no noise", "noise"])
def test_fifty_iterations_are_those_of_torch(
    adkdd: dpads.ExampleStore, model: Any, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "digest_of", lambda _: "both")
    plan = resolve(
        dpads.PrivacySpec(noise_multiplier=noise, delta=1e-6, sampling_prob=0.01, iterations=50),
        expected_batch_size=1024,
        epochs=None,
        l2_clip_norm=1.0,
    )
    found = []
    for backend in ("torch", "jax"):
        settings = TrainingSettings(
            backend=backend,
            noise_seed=3,
            table_optimizer=dpads.Sgd(learning_rate=0.5),
            tower_optimizer=dpads.Sgd(learning_rate=0.1),
        )
        trainer = Trainer(adkdd, model, plan, settings, Performance(), Ledger())
        trainer.run()
        found.append(trainer.model.state())
    # noisy tables are rounded to a grid of 1e-5: the last bit of a sum may decide between two points
    tolerance = 1e-5 if noise == 0.0 else 2e-5
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=0.0, atol=tolerance, err_msg=name)
        assert not value.size or np.abs(value).max() > 1e-3  # something was learnt, or noised
