"""Runs whose model is a user's torch module: saved, loaded with and without the module, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import done, dpads_command
from small_runs import SMALL
from torch import nn

import dpads
from dpads.errors import ConfigError
from dpads.exporting import export_model
from dpads.store import ExampleStore
from dpads.synthetic import SyntheticLog


class Net(nn.Module):
    """Two embeddings, a bag and a number through a layer with normalisation."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.device = nn.Embedding(200, width)
        self.site = nn.Embedding(200, width, padding_idx=0)
        self.interests = nn.EmbeddingBag(200, width, mode="sum")
        self.norm = nn.LayerNorm(3 * width + 1)
        self.out = nn.Linear(3 * width + 1, 1)

    def forward(self, columns: Any) -> torch.Tensor:
        bag = columns["interests"]
        parts = [
            self.device(columns["device"]),
            self.site(columns["site"]),
            self.interests(bag.values, bag.offsets),
            columns["page_depth"].unsqueeze(1),
        ]
        return self.out(self.norm(torch.cat(parts, dim=1))).squeeze(1)


@pytest.fixture(scope="module")
def schema(click_log: SyntheticLog) -> dpads.FeatureSchema:
    return dpads.FeatureSchema(
        task="ctr", label="click", numeric=["page_depth"], categorical=["device", "site"],
        bags=["interests"], buckets=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(
    schema: dpads.FeatureSchema, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExampleStore:
    out = tmp_path_factory.mktemp("module") / "store"
    return dpads.prepare(log_folder / "train.parquet", schema, out=out)


@pytest.fixture(scope="module")
def run(
    store: ExampleStore, schema: dpads.FeatureSchema, tmp_path_factory: pytest.TempPathFactory
) -> dpads.Run:
    out = tmp_path_factory.mktemp("module") / "run"
    model = dpads.models.from_torch(Net(), schema)
    return dpads.train(store, **{**SMALL, "model": model}, out=out)


def test_it_is_loaded_with_the_module(
    run: dpads.Run, store: ExampleStore, schema: dpads.FeatureSchema
) -> None:
    assert run.path is not None
    again = dpads.Run.load(run.path, model=dpads.models.from_torch(Net(), schema))
    np.testing.assert_array_equal(again.predict(store), run.predict(store))


def test_without_the_module_all_but_the_model_is_there(
    run: dpads.Run, store: ExampleStore, tmp_path: Path
) -> None:
    assert run.path is not None
    bare = dpads.Run.load(run.path)
    assert bare.statement().data == run.statement().data
    assert "TorchModule" in repr(bare)
    with pytest.raises(
        ConfigError, match=r"dpads\.Run\.load\(path, model=dpads\.models\.from_torch"
    ):
        bare.predict(store)
    assert dpads.verify(run.path).ok
    assert done("statement", run.path).startswith("# ")
    result = dpads_command("predict", run.path, store.path, "--out", tmp_path / "p.parquet")
    assert result.exit_code == 2
    assert "from_torch" in result.stderr
    result = dpads_command("export", run.path, "--out", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "from_torch" in result.stderr
    assert "Then export_onnx(path) writes it." in result.stderr
    assert not list(tmp_path.iterdir())


def test_another_module_is_refused(
    run: dpads.Run, schema: dpads.FeatureSchema, train_store: ExampleStore, tmp_path: Path
) -> None:
    assert run.path is not None
    with pytest.raises(ConfigError, match="its layers or columns differ"):
        dpads.Run.load(run.path, model=dpads.models.from_torch(Net(width=5), schema))
    with pytest.raises(ConfigError, match="torch module"):
        dpads.Run.load(run.path, model=dpads.models.Logistic())
    other = dpads.train(train_store, **SMALL, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="Leave it out"):
        dpads.Run.load(tmp_path / "run", model=dpads.models.from_torch(Net(), schema))
    with pytest.raises(ConfigError, match="export_torch"):
        other.to_torch()


def test_the_users_module_comes_back_trained(run: dpads.Run) -> None:
    module = run.to_torch()
    assert isinstance(module, Net)
    assert not module.site.weight[0].any()
    assert not torch.equal(module.out.weight, Net().out.weight)


def test_it_is_exported_with_what_the_model_adds(
    run: dpads.Run, click_log: SyntheticLog, tmp_path: Path
) -> None:
    frame = click_log.table[3000:]
    want = run.predict(frame)["prediction"].to_numpy()
    inputs = run.export_inputs(frame)
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    np.testing.assert_allclose(run.export_torch()(tensors).numpy(), want, rtol=1e-6, atol=1e-6)
    export_model(run.model, tmp_path / "m.pt2", ".pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    np.testing.assert_allclose(program(inputs=tensors).numpy(), want, rtol=1e-6, atol=1e-6)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(run.export_onnx(tmp_path / "m.onnx"))
    np.testing.assert_allclose(session.run(None, inputs)[0], want, rtol=1e-6, atol=1e-6)
