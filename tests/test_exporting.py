"""Exported models say what `predict` says, whatever the model, the task and the output."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from cli_calls import done, dpads_command
from small_runs import SMALL
from store_logs import log

import dpads
from dpads import exporting
from dpads.errors import ConfigError, DataError, MissingDependencyError, RunError
from dpads.exporting import describe_inputs, export_model, model_inputs
from dpads.models import Dcn, DeepFm, Dlrm, Fm, Logistic, Mlp
from dpads.models.base import REGISTRY, Model
from dpads.models.calibration import Buckets, ScaleAndBias
from dpads.models.output import Output
from dpads.models.torch_exported import ExportedModel
from dpads.predicting import predict_frame
from dpads.schema import Bag, FeatureSchema, Numeric
from dpads.store import ExampleStore

AGREEMENT = 1e-6  # of probabilities; of counts, relative to the count
SMALL_MODELS: dict[str, Any] = {
    "logistic": Logistic(),
    "mlp": Mlp(embedding_dim=3, hidden=(8, 5), wide=True),
    "fm": Fm(embedding_dim=3),
    "deepfm": DeepFm(embedding_dim=3, hidden=(8, 5)),
    "dcn": Dcn(embedding_dim=3, cross_layers=2, hidden=(8,), wide=True),
    "dlrm": Dlrm(embedding_dim=3, bottom=(6,), top=(8,)),
}
# Exporting one takes 10 s of CPU: what differs between tasks is quick, what differs between towers slow.
FILE_CASES = [
    ("logistic", "ctr"),
    ("mlp", "count"),
    *(
        pytest.param(name, task, marks=pytest.mark.slow)
        for name, task in (("dcn", "ctr"), ("deepfm", "count"), ("dlrm", "cvr"), ("fm", "count"))
    ),
]
OUTPUTS = {
    "as it starts": Output(),
    "offset": Output(offset=-1.7),
    "weights of classes": Output(positive_weight=5.0, negative_weight=0.5),
    "negatives left out": Output(negatives_kept=0.05),
    "scale and bias": Output(offset=0.4, calibration=ScaleAndBias(0.6, -1.1)),
    "buckets and all": Output(
        offset=-0.7,
        positive_weight=3.0,
        negatives_kept=0.2,
        calibration=Buckets((-1.5, -0.5, 0.0, 0.75), (-3.0, -0.5, -0.5, 2.0)),
    ),
}
# Every kind of column: shared tables, a bag of each pooling, weights, all transforms, an exposure.
KEYS: dict[str, Any] = {
    "label": "y",
    "numeric": [
        "x1",
        Numeric("x2", "identity", clip=(-1.0, 0.5), missing=0.25),
    ],
    "categorical": ["c1", "c2", "c3"],
    "bags": [Bag("tags", weights="w"), Bag("plain", pooling="mean")],
    "tables": {"word": ["c2", "tags"]},
    "buckets": {"word": 40, "plain": 7, "c1": 25, "c3": 30},
    "weight": "factor",
    "user": "uid",
}


def schema_of(task: Any) -> FeatureSchema:
    return FeatureSchema(task=task, exposure="seconds" if task == "count" else None, **KEYS)


def rows() -> pl.DataFrame:
    """A log with nulls everywhere that they may be, lists that are empty, and padding inside lists."""
    frame = log(200, seed=4)
    nulls = [pl.when(pl.int_range(pl.len()) % k != 3).then(n) for k, n in ((7, "x1"), (5, "c1"))]
    return frame.with_columns(
        *nulls,
        x2=pl.when(pl.int_range(pl.len()) % 6 != 1).then("x2"),
        plain=pl.when(pl.int_range(pl.len()) % 4 != 0)
        .then("plain")
        .otherwise(pl.lit(["", "z", "z"])),
        seconds=pl.col("seconds") * 3,
    )


def made(description: Any, task: str, output: Output = Output()) -> Model:  # noqa: B008 (frozen)
    """A model with parameters that are not zero."""
    model: Model = description.init(schema_of(task))
    rng = np.random.default_rng(1)
    for array in (*model.tables.values(), *model.dense.values()):
        array[...] = rng.normal(0.0, 0.25, array.shape)
    model.output = output
    return model


def agree(got: Any, want: Any) -> None:
    assert np.asarray(got).dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=AGREEMENT, atol=AGREEMENT)
    assert len(set(np.asarray(want).tolist())) > 100  # not all the same


def tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def run_onnx(path: Path, arrays: Mapping[str, Any]) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == list(arrays)
    assert [item.name for item in session.get_outputs()] == ["prediction"]
    return session.run(None, dict(arrays))[0]


def test_every_model_of_the_library_is_here() -> None:
    assert set(SMALL_MODELS) == {name for name, kind in REGISTRY.items() if kind.in_files}
    assert len(FILE_CASES) == len(SMALL_MODELS)


@pytest.mark.parametrize("name", sorted(SMALL_MODELS))
@pytest.mark.parametrize("task", ["ctr", "cvr", "count"])
def test_the_torch_module_agrees_for_every_model_task_and_output(name: str, task: str) -> None:
    frame = rows()
    for output in OUTPUTS.values():
        if task == "count":
            output = dataclasses.replace(output, positive_weight=1.0, negatives_kept=1.0)
        model = made(SMALL_MODELS[name], task, output)
        want = predict_frame(model, frame)["prediction"].to_numpy()
        module = ExportedModel(model)
        agree(module(tensors(model_inputs(model, frame))).numpy(), want)


@pytest.mark.parametrize(("name", "task"), FILE_CASES)
def test_files_agree_for_every_model(
    name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX in its runtime, the torch program without a class of ours; on numbers of rows not traced."""
    output = OUTPUTS["buckets and all"]
    if task == "count":
        output = dataclasses.replace(output, positive_weight=1.0, negatives_kept=1.0)
    model, frame = made(SMALL_MODELS[name], task, output), rows()
    want = predict_frame(model, frame)["prediction"].to_numpy()
    inputs = model_inputs(model, frame)
    graph = exporting._program(model)  # it takes seconds: once for both
    monkeypatch.setattr(exporting, "_program", lambda _: graph)
    export_model(model, tmp_path / "m.onnx", ".onnx")
    agree(run_onnx(tmp_path / "m.onnx", inputs), want)
    export_model(model, tmp_path / "m.pt2", ".pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    agree(program(inputs=tensors(inputs)).numpy(), want)
    for count in (0, 1, 2):
        part = model_inputs(model, frame[:count])
        some = run_onnx(tmp_path / "m.onnx", part)
        np.testing.assert_allclose(some, want[:count], rtol=AGREEMENT, atol=AGREEMENT)
        some = program(inputs=tensors(part)).numpy()
        np.testing.assert_allclose(some, want[:count], rtol=AGREEMENT, atol=AGREEMENT)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.pt2"]


def test_counts_beyond_float32_end_where_predictions_do(tmp_path: Path) -> None:
    model, frame = made(Logistic(), "count"), rows()
    model.dense["linear.bias"][...] = 500.0
    want = predict_frame(model, frame)["prediction"].to_numpy()
    got = ExportedModel(model)(tensors(model_inputs(model, frame))).numpy()
    np.testing.assert_allclose(got, want, rtol=AGREEMENT)
    assert np.isfinite(got).all()


def test_nothing_is_pickled_and_the_file_says_what_it_takes(tmp_path: Path) -> None:
    model = made(Mlp(embedding_dim=3, hidden=(4,)), "count")
    export_model(model, tmp_path / "m.pt2", ".pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        for name in archive.namelist():
            start = archive.read(name)[:2]
            assert start != b"PK", name  # torch.save
            assert start[:1] != b"\x80", name  # pickle
    kept = {"dpads": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=kept)
    facts = json.loads(kept["dpads"])
    assert facts["task"] == "count"
    assert facts["inputs"] == describe_inputs(model.schema)
    export_model(model, tmp_path / "m.onnx", ".onnx")
    onnx = pytest.importorskip("onnx")
    props = onnx.load(tmp_path / "m.onnx").metadata_props
    assert [json.loads(item.value) for item in props if item.key == "dpads"] == [facts]


def test_ids_can_be_hashed_from_what_the_file_says() -> None:
    import xxhash

    model, frame = made(Logistic(), "ctr"), rows()
    for item in describe_inputs(model.schema)[:3]:
        ids = model_inputs(model, frame)[item["name"]]
        for raw, row in zip(frame[item["name"]].to_list(), ids.tolist(), strict=True):
            own = xxhash.xxh3_64_intdigest(str(raw).encode(), item["seed"]) % (item["rows"] - 1) + 1
            assert row == (0 if raw is None else own)


def test_inputs_hold_padding_and_raw_numbers() -> None:
    schema = schema_of("ctr")
    frame = rows()
    inputs = model_inputs(made(Logistic(), "ctr"), frame)
    assert list(inputs) == [item["name"] for item in describe_inputs(schema)]
    for item in describe_inputs(schema):
        assert str(inputs[item["name"]].dtype) == item["type"]
        assert inputs[item["name"]].ndim == len(item["shape"])
    lengths = frame["tags"].list.len().to_numpy()
    assert ((inputs["tags"] >= 0).sum(axis=1) == lengths).all()
    assert (inputs["plain"] == -1).any()
    assert np.isnan(inputs["x2"]).sum() == frame["x2"].null_count() > 0
    none = model_inputs(made(Logistic(), "ctr"), frame[:0])
    assert none["tags"].shape == (0, 1)


def test_parameters_are_copies_without_gradients() -> None:
    model = made(Logistic(), "ctr")
    module = ExportedModel(model)
    assert module.table_names == list(model.tables)
    for name, table in zip(module.table_names, module.tables, strict=True):
        np.testing.assert_array_equal(table.numpy(), model.tables[name])
        table.zero_()
        assert model.tables[name].any()
    assert not any(value.requires_grad for value in module.parameters())


def test_a_trained_run_exports_rows_that_nobody_touched(
    train_store: ExampleStore, click_log: Any, tmp_path: Path
) -> None:
    """Lazy noise is brought up to date first: the exported tables are the released ones."""
    run = dpads.train(train_store, **SMALL, out=tmp_path / "run")
    loaded = dpads.Run.load(tmp_path / "run")
    module = loaded.export_torch()
    for name, table in zip(module.table_names, module.tables, strict=True):
        np.testing.assert_array_equal(table.numpy(), run.model.tables[name])
        # Noise lies on a grid, so that one value in some thousands is zero by chance.
        assert np.count_nonzero(table.numpy()) >= 0.97 * table.numel()
    frame = click_log.table[3000:]
    want = loaded.predict(frame)["prediction"].to_numpy()
    agree(module(tensors(loaded.export_inputs(frame))).numpy(), want)
    assert loaded.export_onnx(tmp_path / "m.onnx") == tmp_path / "m.onnx"
    agree(run_onnx(tmp_path / "m.onnx", loaded.export_inputs(frame)), want)


def test_the_command(train_store: ExampleStore, tmp_path: Path) -> None:
    dpads.train(train_store, **SMALL, out=tmp_path / "run")
    text = done("export", tmp_path / "run", "--out", tmp_path / "m.onnx")
    assert "m.onnx: written" in text
    assert "interests" in text
    text = done(
        "export", tmp_path / "run", "--format", "torch", "--out", tmp_path / "m.pt2", "--json"
    )
    assert json.loads(text)["inputs"][0]["name"] == "device"
    torch.export.load(tmp_path / "m.pt2")
    done("export", tmp_path / "run", "--out", tmp_path / "as-it-ends.pt2")
    torch.export.load(tmp_path / "as-it-ends.pt2")
    for out, form in (
        ("m.onnx", "onnx"),
        ("x.pt2", "onnx"),
        ("x.onnx", "torch"),
        ("x.pdf", None),
        ("a/b.onnx", "onnx"),
    ):
        chosen = () if form is None else ("--format", form)
        result = dpads_command("export", tmp_path / "run", *chosen, "--out", tmp_path / out)
        assert result.exit_code == 2, out
    assert {file.name for file in tmp_path.iterdir()} == {
        "run", "m.onnx", "m.pt2", "as-it-ends.pt2"
    }  # fmt: skip


def test_large_parameters_stand_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ONE_FILE", 100)
    model, frame = made(Mlp(embedding_dim=16, hidden=(64, 64)), "cvr"), rows()
    export_model(model, tmp_path / "big.onnx", ".onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"big.onnx", "big.onnx.data"}
    want = predict_frame(model, frame)["prediction"].to_numpy()
    agree(run_onnx(tmp_path / "big.onnx", model_inputs(model, frame)), want)
    (tmp_path / "big.onnx").unlink()
    with pytest.raises(ConfigError, match=r"big\.onnx\.data: exists"):
        export_model(model, tmp_path / "big.onnx", ".onnx")


def test_nothing_is_left_where_an_export_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(Logistic(), "ctr")

    def half(_: Model, path: Path) -> None:
        path.write_bytes(b"half")
        raise TypeError("no such operation\nand much more")

    monkeypatch.setattr(exporting, "_write_onnx", half)
    with pytest.raises(RunError, match=r"does not export to \.onnx: no such operation Use layers"):
        export_model(model, tmp_path / "m.onnx", ".onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dpads\[onnx\]'"):
        export_model(model, tmp_path / "m.onnx", ".onnx")
    assert not list(tmp_path.iterdir())


def test_a_tower_that_fixes_the_number_of_rows_is_refused(tmp_path: Path) -> None:
    """Or it would be exported for the five rows that it is traced with."""

    class Fixed(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features.reshape(len(features), -1).sum(dim=1)

    model = made(Logistic(), "ctr")
    model.tower.module = Fixed()  # type: ignore[attr-defined]
    for suffix in (".onnx", ".pt2"):
        with pytest.raises(RunError, match=r"makes the number of rows a constant.*x\.shape\[0\]"):
            export_model(model, tmp_path / f"m{suffix}", suffix)
    assert not list(tmp_path.iterdir())


def test_inputs_are_checked_as_logs_are() -> None:
    model, frame = made(Logistic(), "count"), rows()
    with pytest.raises(DataError, match='"c1"'):
        model_inputs(model, frame.drop("c1"))
    with pytest.raises(DataError, match=r'"seconds".*above 0'):
        model_inputs(model, frame.with_columns(seconds=0.0))
    with pytest.raises(ConfigError, match="polars frame, got list"):
        model_inputs(model, [1])
