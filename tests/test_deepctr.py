"""Models of the published package deepctr-torch train privately as they are, and are exact.

They take one float32 matrix, with a column per feature, and end in a sigmoid unless task="regression".
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_users import clipped_by_autograd

import dpads
from dpads.errors import ConfigError

ROWS = 12
SCHEMA = dpads.FeatureSchema(
    task="ctr",
    label="y",
    numeric=["I1", "I2"],
    categorical=["C1", "C2", "C3"],
    bags=["tags"],
    buckets=ROWS,
)
LENGTHS = {"tags": 3}


@pytest.fixture(scope="module")
def deepctr() -> ModuleType:
    """The package, imported without its look for updates on the network."""
    if importlib.util.find_spec("deepctr_torch") is None:
        pytest.skip("needs deepctr-torch: pip install --no-deps deepctr-torch==0.3.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: None)
        import deepctr_torch.models  # type: ignore[import-untyped, unused-ignore]
    return deepctr_torch


def features_of(deepctr: ModuleType, bags: bool) -> list[Any]:
    """The columns of the schema as deepctr-torch describes them."""
    kinds = deepctr.inputs
    sparse = [kinds.SparseFeat(name, ROWS, embedding_dim=4) for name in SCHEMA.categorical]
    dense = [kinds.DenseFeat(item.column, 1) for item in SCHEMA.numeric]
    tags = kinds.VarLenSparseFeat(
        kinds.SparseFeat("tags", ROWS, embedding_dim=4), maxlen=LENGTHS["tags"], combiner="mean"
    )
    return [*sparse, *dense, *([tags] if bags else [])]


def matrix_of(module: nn.Module) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """From tensors by column to the one matrix that deepctr-torch takes."""
    index: Mapping[str, tuple[int, int]] = module.feature_index

    def matrix(columns: Mapping[str, Any]) -> torch.Tensor:
        parts = [columns[name] for name in index]
        return torch.cat([part.reshape(len(part), -1).float() for part in parts], dim=1)

    return matrix


def double_matrix_of(module: nn.Module) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    """The same in float64, for autograd."""

    def matrix(columns: Mapping[str, Any]) -> torch.Tensor:
        parts = [columns[name] for name in module.feature_index]
        return torch.cat([part.reshape(len(part), -1).double() for part in parts], dim=1)

    return matrix


def build(deepctr: ModuleType, name: str, bags: bool = True, **options: Any) -> nn.Module:
    """A model with weights that are large enough to see what they do."""
    columns = features_of(deepctr, bags)
    module: nn.Module = getattr(deepctr.models, name)(
        columns, columns, dnn_hidden_units=(8, 6), task="regression", **options
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return module


def schema_of(bags: bool) -> dpads.FeatureSchema:
    """The schema, with or without its bag."""
    if bags:
        return SCHEMA
    return dpads.FeatureSchema.from_dict({**SCHEMA.to_dict(), "bags": []})


def batch_of(schema: dpads.FeatureSchema, size: int = 12) -> dpads.SparseBatch:
    """Rows with repeated ids, padding, empty lists, and users of several rows."""
    rng = np.random.default_rng(2)
    ids: dict[str, Any] = {name: rng.integers(0, ROWS, size) for name in schema.categorical}
    for bag in schema.bags:
        ends = np.concatenate([[0], np.cumsum(rng.integers(0, 5, size))])
        ids[bag.column] = (rng.integers(0, 4, ends[-1]), ends, None)
    return dpads.SparseBatch.from_arrays(
        ids=ids,
        dense=rng.normal(size=(size, 2)),
        labels=rng.integers(0, 2, size),
        unit_offsets=[0, 1, 4, 4, 6, 7, 8, 9, 10, 11, size],
    )


MODELS = [
    ("DeepFM", True, {}),
    ("DeepFM", False, {}),
    ("DCN", True, {"cross_parameterization": "vector"}),
    ("DCN", False, {"cross_parameterization": "matrix"}),
    ("xDeepFM", True, {"cin_layer_size": (4, 3)}),
]


@pytest.mark.parametrize(
    ("name", "bags", "options"),
    [
        # Up to half a minute each. What bags and other layers become is also tested in test_from_torch.py.
        pytest.param(*case, marks=[pytest.mark.slow] if number else [])
        for number, case in enumerate(MODELS)
    ],
)
def test_equals_autograd_one_unit_at_a_time(
    deepctr: ModuleType, name: str, bags: bool, options: dict[str, Any]
) -> None:
    schema, module = schema_of(bags), build(deepctr, name, bags, **options)
    module.lengths = LENGTHS
    lengths = LENGTHS if bags else None
    description = dpads.models.from_torch(module, schema, inputs=matrix_of(module), lengths=lengths)
    model, batch = description.init(schema), batch_of(schema)
    for clip_norm in (0.5, float("inf")):
        out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip_norm)
        inputs = double_matrix_of(module)
        norms, total = clipped_by_autograd(module, schema, batch, clip_norm, inputs)
        np.testing.assert_allclose(out.norms, norms, rtol=1e-4)
        assert set(out.tables) == {key[:-7] for key in total if key[:-7] in model.tables}
        scale = max(float(np.abs(value).max()) for value in total.values())
        for key, expected in total.items():
            if key in out.dense:
                found = out.dense[key].astype(np.float64)
            else:
                found = np.zeros(expected.shape)
                rows, values = out.tables[key.removesuffix(".weight")]
                found[rows] = values
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * scale, err_msg=key)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DeepFM", {}),
        # Like DeepFM; each takes as long as it does.
        pytest.param("DCN", {}, marks=pytest.mark.slow),
        pytest.param("xDeepFM", {"cin_layer_size": (8, 4)}, marks=pytest.mark.slow),
    ],
)
def test_trains_privately_and_comes_back(
    deepctr: ModuleType, name: str, options: dict[str, Any], train_store: Any, test_store: Any
) -> None:
    schema = train_store.schema
    kinds = deepctr.inputs
    columns = [
        kinds.SparseFeat(c, schema.table_rows[c], embedding_dim=4) for c in schema.categorical
    ]
    columns += [kinds.DenseFeat(item.column, 1) for item in schema.numeric]
    module = getattr(deepctr.models, name)(
        columns, columns, dnn_hidden_units=(16,), task="regression", init_std=0.05, **options
    )
    description = dpads.models.from_torch(module, schema, inputs=matrix_of(module))
    run = dpads.train(
        train_store,
        model=description,
        privacy=dpads.PrivacySpec(epsilon=3.0, delta=1e-6, dataset_size=3000),
        expected_batch_size=300,
        epochs=1,
        test=test_store,
    )
    assert run.plan.is_private
    assert run.plan.loss.epsilon <= 3.0
    assert 0.0 < run.metrics["auc"] < 1.0
    trained = description.to_torch(run.model)
    assert type(trained) is type(module)
    before, after = module.state_dict(), trained.state_dict()
    assert set(before) == set(after)
    assert all(bool((before[key] != after[key]).any()) for key in before)


def test_a_sigmoid_at_the_end_is_refused_with_the_remedy(deepctr: ModuleType) -> None:
    module = build(deepctr, "DeepFM", False)
    module.out.task = "binary"
    with pytest.raises(ConfigError, match='deepctr-torch: task="regression"'):
        dpads.models.from_torch(module, schema_of(False), inputs=matrix_of(module))


def test_batch_norm_inside_is_refused_by_name(deepctr: ModuleType) -> None:
    module = build(deepctr, "DeepFM", False, dnn_use_bn=True)
    with pytest.raises(ConfigError, match=r'"dnn.bn.0" is a BatchNorm1d'):
        dpads.models.from_torch(module, schema_of(False), inputs=matrix_of(module))
