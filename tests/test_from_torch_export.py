"""A user's torch module leaves as a torch program and as ONNX, tables included, and agrees to 1e-6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch_users import USERS, schema_for

import dpads
from dpads.exporting import export_model, model_inputs
from dpads.predicting import predict_frame


def rows(size: int) -> pl.DataFrame:
    """A log with nulls in columns and inside lists, and lists of any length."""
    rng = np.random.default_rng(0)

    def some(count: int) -> list[str | None]:
        return [str(x) if x else None for x in rng.integers(0, 6, count)]

    lengths = rng.integers(0, 5, size)
    return pl.DataFrame(
        {
            **{name: some(size) for name in "abc"},
            "n0": rng.normal(size=size),
            "n1": rng.normal(size=size),
            "s": [some(k) for k in lengths],
            "w": [list(rng.uniform(0, 2, k)) for k in lengths],
            "m": [some(k) for k in rng.integers(0, 6, size)],
        }
    )


@pytest.mark.parametrize(
    "kind",
    [
        # its lists are padded, as those of the attention are, which takes as long
        pytest.param(kind, marks=[pytest.mark.slow] if kind.__name__ == "Sequences" else [])
        for kind in USERS
    ],
    ids=lambda kind: kind.__name__,
)
def test_files_agree_with_the_model(kind: type[nn.Module], tmp_path: Path) -> None:
    schema = schema_for(kind, "ctr")
    lengths: Any = kind.lengths
    model = dpads.models.from_torch(kind(), schema, lengths=lengths).init(schema)
    rng = np.random.default_rng(1)
    for value in [*model.tables.values(), *model.dense.values()]:
        value += rng.normal(0, 0.3, value.shape).astype(np.float32)
    frame = rows(60)
    wanted = predict_frame(model, frame)["prediction"].to_numpy()
    assert len(set(wanted.tolist())) > 30
    inputs = model_inputs(model, frame)
    export_model(model, tmp_path / "m.pt2", ".pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    found = program(inputs={name: torch.from_numpy(value) for name, value in inputs.items()})
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6, atol=1e-6)
    runtime = pytest.importorskip("onnxruntime")
    export_model(model, tmp_path / "m.onnx", ".onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, inputs)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
