"""Runs of a user's torch module: training, the run's folder, resumption."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import stop_at
from torch import nn

import dpads
from dpads.errors import ConfigError
from dpads.models.user_module import TorchModule
from dpads.run_training import train_config
from dpads.store import ExampleStore


class User(nn.Module):
    """A table for every categorical column, one of them with padding, and two layers."""

    def __init__(self, schema: dpads.FeatureSchema) -> None:
        super().__init__()
        self.categorical = list(schema.categorical)
        self.numeric = [item.column for item in schema.numeric]
        first = self.categorical[0]
        self.tables = nn.ModuleDict(
            {
                name: nn.Embedding(
                    schema.table_rows[name], 4, padding_idx=0 if name == first else None
                )
                for name in self.categorical
            }
        )
        self.norm = nn.LayerNorm(4 * len(self.categorical) + len(self.numeric))
        self.out = nn.Linear(4 * len(self.categorical) + len(self.numeric), 1)

    def forward(self, columns: Any) -> torch.Tensor:
        parts = [self.tables[name](columns[name]) for name in self.categorical]
        parts += [columns[name][:, None] for name in self.numeric]
        logits: torch.Tensor = self.out(self.norm(torch.cat(parts, dim=1)))
        return logits


def describe(schema: dpads.FeatureSchema, seed: int = 1) -> TorchModule:
    torch.manual_seed(seed)
    return dpads.models.from_torch(User(schema), schema)


SETTINGS: dict[str, Any] = {
    "privacy": dpads.PrivacySpec(epsilon=3.0, delta=1e-6, dataset_size=3000),
    "expected_batch_size": 300,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def folder(train_store: ExampleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the module."""
    out = tmp_path_factory.mktemp("torch") / "run"
    dpads.train(train_store, model=describe(train_store.schema), out=out, **SETTINGS)
    return out


def test_a_run_is_loaded_with_its_module(folder: Path, train_store: ExampleStore) -> None:
    # Other initial parameters: what counts is that the trained ones fit.
    run = dpads.Run.load(folder, model=describe(train_store.schema, seed=99))
    facts = json.loads((folder / "model.json").read_text())["model"]
    assert facts["name"] == "torch"
    assert facts["module"].endswith("User")
    predictions = run.predict(train_store)
    assert np.isfinite(predictions).all()
    trained = run.to_torch()
    assert isinstance(trained, User)
    first = trained.tables[trained.categorical[0]]
    assert not bool(first.weight[0].any())
    assert bool(first.weight[1].any())
    np.testing.assert_array_equal(
        trained.out.weight.detach().numpy(), run.model.dense["out.weight"]
    )


def test_without_the_module_everything_else_is_there(
    folder: Path, train_store: ExampleStore
) -> None:
    run = dpads.Run.load(folder)
    assert "epsilon" in run.statement().to_json()
    for use in (lambda: run.predict(train_store), lambda: run.model):
        with pytest.raises(ConfigError, match=r"dpads\.Run\.load\(path, model="):
            use()


def test_another_module_is_refused(folder: Path, train_store: ExampleStore) -> None:
    torch.manual_seed(0)
    module = User(train_store.schema)
    module.norm = nn.LayerNorm(module.norm.normalized_shape, eps=1e-3)
    other = dpads.models.from_torch(module, train_store.schema)
    with pytest.raises(ConfigError, match="its layers"):
        dpads.Run.load(folder, model=other)
    with pytest.raises(ConfigError, match="torch module"):
        dpads.Run.load(folder, model=dpads.models.Logistic())


def test_a_resumed_run_is_the_same_to_the_bit(train_store: ExampleStore, tmp_path: Path) -> None:
    description = describe(train_store.schema)
    settings = {
        **SETTINGS,
        "noise_seed": 5,
        "performance": dpads.Performance(checkpoint_seconds=1e-9),
    }
    whole = dpads.train(train_store, model=description, out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        dpads.train(
            train_store, model=description, out=tmp_path / "cut", on_progress=stop_at(3), **settings
        )
    performance = settings["performance"]
    with pytest.raises(ConfigError, match=r"model\.initial differ"):
        train_config(
            dataclasses.replace(whole.config, model=describe(train_store.schema, seed=2)),
            store=train_store,
            out=tmp_path / "cut",
            resume=True,
            performance=performance,
        )
    resumed = train_config(
        whole.config, store=train_store, out=tmp_path / "cut", resume=True, performance=performance
    )
    for name, value in whole.model.state().items():
        np.testing.assert_array_equal(value, resumed.model.state()[name], err_msg=name)


def test_lazy_and_dense_tables_agree_without_noise(train_store: ExampleStore) -> None:
    description = describe(train_store.schema)
    privacy = dpads.PrivacySpec(noise_multiplier=0.0, dataset_size=train_store.num_examples)
    settings = {"privacy": privacy, "expected_batch_size": train_store.num_examples, "epochs": 3}
    lazy, dense = (
        dpads.train(
            train_store, model=description, table_noise=noise, l2_clip_norm=math.inf, **settings
        )
        for noise in ("lazy", "dense")
    )
    for name, value in lazy.model.state().items():
        np.testing.assert_allclose(value, dense.model.state()[name], atol=1e-6, err_msg=name)
