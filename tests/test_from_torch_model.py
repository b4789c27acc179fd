"""What a converted module is: its parameters, its identity, training, and the way back to torch."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import ROWS
from torch import nn
from torch_users import Pooling, Sequences, clipped_by_autograd, columns_of, schema_for

import dpads
from dpads.errors import ConfigError
from dpads.models.torch_converted import Converted
from dpads.models.user_module import TorchModule

SIMPLE = dpads.FeatureSchema(task="ctr", label="y", categorical=["a", "b"], buckets=ROWS)


class Simple(nn.Module):
    """Two embeddings; columns as arguments."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.a = nn.Embedding(ROWS, 2, padding_idx=padding_idx)
        self.b = nn.Embedding(ROWS, 2)
        self.out = nn.Linear(2, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.a(a) * self.b(b))
        return logits


def arguments(columns: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return columns["a"], columns["b"]


def batch_of(**ids: Any) -> dpads.SparseBatch:
    size = len(next(iter(ids.values())))
    return dpads.SparseBatch.from_arrays(ids=ids, labels=np.arange(size) % 2)


def full_batch(seed: int = 0, size: int = 9, schema: Any = None) -> dpads.SparseBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 6, (2, size))
    ends = [np.concatenate([[0], np.cumsum(each)]) for each in lengths]
    return dpads.SparseBatch.from_arrays(
        ids={
            **{name: rng.integers(0, ROWS, size) for name in "abc"},
            "s": (rng.integers(0, ROWS, ends[0][-1]), ends[0], rng.uniform(0, 2, ends[0][-1])),
            "m": (rng.integers(0, ROWS, ends[1][-1]), ends[1], None),
        },
        dense=rng.normal(size=(size, 2)),
        labels=rng.integers(0, 2, size),
    )


def test_starts_with_the_modules_own_parameters_and_leaves_the_module_alone() -> None:
    module = Simple()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    description = dpads.models.from_torch(module, SIMPLE, inputs=arguments)
    with torch.no_grad():
        for value in module.parameters():
            value += 1.0  # too late for the description
    first, second = description.init(SIMPLE), description.init(SIMPLE)
    assert set(first.tables) == {"a", "b"}
    for name, value in {**first.tables, **first.dense}.items():
        key = f"{name}.weight" if name in first.tables else name
        np.testing.assert_array_equal(value, before[key].numpy())
        value += 1.0  # every model has parameters of its own
    np.testing.assert_array_equal(second.dense["out.bias"], before["out.bias"].numpy())
    assert all(value.requires_grad and value.grad is None for value in module.parameters())


def test_a_module_that_was_trained_before_keeps_its_gradients() -> None:
    module = Simple()
    module(torch.tensor([1]), torch.tensor([2])).sum().backward()
    kept = module.out.weight.grad
    dpads.models.from_torch(module, SIMPLE, inputs=arguments)
    assert module.out.weight.grad is kept


def test_a_missing_id_reads_nothing() -> None:
    model = dpads.models.from_torch(Simple(), SIMPLE, inputs=arguments).init(SIMPLE)
    out = dpads.clipped_gradients(model, batch_of(a=[-1, 2], b=[3, -1]), l2_clip_norm=1.0)
    np.testing.assert_array_equal(out.tables["a"][0], [2])  # its gradient is b's row, which is zero
    np.testing.assert_array_equal(out.tables["a"][1], np.zeros((1, 2)))
    np.testing.assert_array_equal(out.tables["b"][0], [3])
    np.testing.assert_array_equal(out.dense["out.weight"], np.zeros((1, 2)))


def test_the_row_of_padding_reads_nothing_and_has_no_gradient() -> None:
    model = dpads.models.from_torch(Simple(3), SIMPLE, inputs=arguments).init(SIMPLE)
    model.tables["a"][3] = 99.0  # as noise leaves it
    out = dpads.clipped_gradients(model, batch_of(a=[3, 4], b=[1, 1]), l2_clip_norm=1.0)
    np.testing.assert_array_equal(out.tables["a"][0], [4])
    assert model.predict(batch_of(a=[3], b=[1]))[0] == pytest.approx(
        float(torch.sigmoid(torch.from_numpy(model.dense["out.bias"])))
    )


def test_an_embedding_that_is_not_trained_is_a_constant_of_the_tower() -> None:
    module = Simple()
    module.b.requires_grad_(False)
    description = dpads.models.from_torch(module, SIMPLE, inputs=arguments)
    model = description.init(SIMPLE)
    assert set(model.tables) == {"a"}
    batch = batch_of(a=[1, 2, 2], b=[0, 5, 6])
    norms, total = clipped_by_autograd(module, SIMPLE, batch, 0.5, arguments)
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.5)
    np.testing.assert_allclose(out.norms, norms, rtol=1e-5)
    np.testing.assert_allclose(out.dense["out.weight"], total["out.weight"], rtol=1e-5, atol=1e-7)


def test_ids_beyond_what_float32_holds_are_exact() -> None:
    rows = 2**25

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Embedding(rows, 1)
            self.out = nn.Linear(1, 1)

        def forward(self, columns: Any) -> torch.Tensor:
            odd = (columns["a"] % 2).to(self.out.weight.dtype)[:, None]
            logits: torch.Tensor = self.out(self.a(columns["a"]) * (odd + 1.0))
            return logits

    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=rows)
    module = Wide()
    model = dpads.models.from_torch(module, schema).init(schema)
    batch = batch_of(a=[rows - 1, rows - 2, 2**24 + 1, 0])
    found = model.tower.logits(model.features(batch))
    with torch.no_grad():
        wanted = module({"a": torch.tensor([rows - 1, rows - 2, 2**24 + 1, 0])})[:, 0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_module_that_is_one_embedding_has_no_dense_part() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["t"], buckets=ROWS)
    bag = nn.EmbeddingBag(ROWS, 1, mode="sum")
    description = dpads.models.from_torch(bag, schema, inputs=lambda columns: columns["t"][:2])
    model = description.init(schema)
    assert model.dense == {}
    model.tables["embedding"][...] = 0.0
    batch = dpads.SparseBatch.from_arrays(ids={"t": ([1, 1, 2], [0, 2, 3], None)}, labels=[0, 1])
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=10.0)
    np.testing.assert_allclose(out.norms, [1.0, 0.5])
    np.testing.assert_array_equal(out.tables["embedding"][0], [1, 2])
    assert isinstance(description.to_torch(model), nn.EmbeddingBag)


def test_ids_may_have_the_examples_at_another_axis() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = nn.Embedding(ROWS, 3, padding_idx=0)
            self.mix = nn.Parameter(torch.randn(4, 1, 3))

        def forward(self, columns: Any) -> torch.Tensor:
            logits: torch.Tensor = (self.t(columns["t"].t()) * self.mix).sum(dim=(0, 2))
            return logits

    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["t"], buckets=ROWS)
    module = SequenceFirst()
    module.lengths = {"t": 4}
    model = dpads.models.from_torch(module, schema, lengths={"t": 4}).init(schema)
    bag = ([1, 1, 2, 0, 6], [0, 2, 2, 5], None)
    batch = dpads.SparseBatch.from_arrays(ids={"t": bag}, labels=[0, 1, 0])
    norms, total = clipped_by_autograd(module, schema, batch, 0.3)
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.3)
    np.testing.assert_allclose(out.norms, norms, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(out.dense["mix"], total["mix"], rtol=1e-4, atol=1e-6)


def test_equal_calls_share_their_columns() -> None:
    class Twice(Simple):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(self.a(a) * self.b(b) + self.a(a))
            return logits

    module = Twice()
    description = dpads.models.from_torch(module, SIMPLE, inputs=arguments)
    assert description.layout(SIMPLE).embedded == 4
    batch = batch_of(a=[1, 2], b=[0, 5])
    norms, _ = clipped_by_autograd(module, SIMPLE, batch, 1.0, arguments)
    out = dpads.clipped_gradients(description.init(SIMPLE), batch, l2_clip_norm=1.0)
    np.testing.assert_allclose(out.norms, norms, rtol=1e-5)


@pytest.mark.parametrize("kind", [Pooling, Sequences])
def test_to_torch_gives_the_users_module_back(kind: Any) -> None:
    torch.manual_seed(0)
    module = kind()
    schema = schema_for(kind, "ctr")
    description = dpads.models.from_torch(module, schema, lengths=kind.lengths)
    model = description.init(schema)
    rng = np.random.default_rng(1)
    for value in [*model.tables.values(), *model.dense.values()]:
        value += rng.normal(0, 0.3, value.shape).astype(
            np.float32
        )  # also rows of padding, as noise does
    back = description.to_torch(model)
    assert type(back) is kind
    assert set(back.state_dict()) == set(module.state_dict())
    for (name, one), other in zip(back.named_modules(), module.modules(), strict=True):
        assert type(one) is type(other), name
        if isinstance(one, nn.Embedding | nn.EmbeddingBag) and one.padding_idx is not None:
            assert not bool(one.weight[one.padding_idx].any()), name
    batch = full_batch()
    found = model.tower.logits(model.features(batch))
    with torch.no_grad():
        double = copy.deepcopy(back).double()
        wanted = [
            float(double(columns_of(schema, batch, i, kind.lengths)))
            for i in range(batch.num_examples)
        ]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert dpads.models.from_torch(back, schema, lengths=kind.lengths).matches(description)
    with torch.no_grad():
        back.out.weight += 1.0
    assert np.allclose(model.tower.logits(model.features(batch)), found)


@pytest.mark.parametrize("kind", [Pooling, Sequences])
def test_reader_computes_the_towers_logits_from_columns(kind: Any) -> None:
    schema = schema_for(kind, "ctr")
    description = dpads.models.from_torch(kind(), schema, lengths=kind.lengths)
    model = description.init(schema)
    rng = np.random.default_rng(1)
    for value in [*model.tables.values(), *model.dense.values()]:
        value += rng.normal(0, 0.3, value.shape).astype(np.float32)
    batch = full_batch()
    columns = {
        name: torch.from_numpy(batch.scalar_ids[:, k]).long() for k, name in enumerate("abc")
    }
    columns |= {f"n{k}": torch.from_numpy(batch.dense[:, k].copy()) for k in range(2)}
    for name, bag in batch.bags.items():
        ids = torch.full((batch.num_examples, 9), -1)
        factors = torch.full(
            (batch.num_examples, 9), torch.nan
        )  # what stands beside -1 is not read
        for i in range(batch.num_examples):
            part = slice(bag.offsets[i], bag.offsets[i + 1])
            places = np.sort(rng.permutation(9)[: part.stop - part.start])  # missing ids in between
            ids[i, places] = torch.from_numpy(bag.values[part])
            if bag.weights is not None:
                factors[i, places] = torch.from_numpy(bag.weights[part])
        columns[name] = ids
        if bag.weights is not None:
            columns["w"] = factors
    with torch.no_grad():
        found = description.reader(model)(columns).numpy()
    np.testing.assert_allclose(
        found, model.tower.logits(model.features(batch)), rtol=1e-5, atol=1e-6
    )


def test_the_description_is_plain_data_that_names_the_module() -> None:
    description = dpads.models.from_torch(Simple(), SIMPLE, inputs=arguments)
    again = dpads.models.describe(description.to_dict())
    assert again == description
    assert again.to_dict() == description.to_dict()
    assert description.module.endswith("test_from_torch_model.Simple")
    assert isinstance(again, TorchModule)
    assert again.matches(description)
    for use in (again.init, again.layout):
        with pytest.raises(ConfigError, match=r"from_torch\(module, schema\)"):
            use(SIMPLE)


def test_another_schema_is_refused() -> None:
    description = dpads.models.from_torch(Simple(), SIMPLE, inputs=arguments)
    other = dpads.FeatureSchema(task="count", label="y", categorical=["a", "b"], buckets=ROWS)
    with pytest.raises(ConfigError, match="another schema"):
        description.init(other)
    with pytest.raises(ConfigError, match="backend"):
        description.init(SIMPLE, backend="jax")


def test_digests_tell_structure_code_and_parameters_apart() -> None:
    class Other(Simple):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.out(self.a(a) + self.b(b))
            return logits

    def of(module: nn.Module, function: Any = arguments) -> TorchModule:
        return dpads.models.from_torch(module, SIMPLE, inputs=function)

    torch.manual_seed(0)
    module = Simple()
    base = of(module)
    assert of(copy.deepcopy(module)) == base
    with torch.no_grad():
        moved = copy.deepcopy(module)
        moved.b.weight[0, 0] += 1e-6
    assert (of(moved).structure, of(moved).code) == (base.structure, base.code)
    assert of(moved).initial != base.initial
    assert of(moved).matches(base)
    swapped = of(module, lambda columns: (columns["b"], columns["a"]))
    assert swapped.structure != base.structure
    assert swapped.code != base.code
    assert not swapped.matches(base)
    Other.__qualname__ = "Simple"
    other = Other()
    other.load_state_dict(module.state_dict())
    assert of(other).code != base.code
    frozen = copy.deepcopy(module)
    frozen.out.bias.requires_grad_(False)
    assert of(frozen).structure != base.structure
    padded = Simple(0)
    assert of(padded).structure != base.structure


def test_digests_know_tensors_and_functions_that_layers_hold() -> None:
    class Holding(Simple):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            for value in self.parameters():
                nn.init.normal_(value)
            self.shift, self.steps = torch.zeros(2), [np.zeros(3), torch.ones(2)]
            self.scale: Any = lambda value: value
            self.power = functools.partial(pow, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return super().forward(a, b)

    def of(**changes: Any) -> TorchModule:
        module = Holding()
        for name, value in changes.items():
            setattr(module, name, value)
        return dpads.models.from_torch(module, SIMPLE, inputs=arguments)

    def times(factor: float) -> Any:
        return lambda value: value * factor

    base = of()
    assert of() == base
    assert of(shift=torch.ones(2)).structure != base.structure
    assert of(steps=[np.ones(3), torch.ones(2)]).structure != base.structure
    assert of(steps=[np.zeros(3), torch.zeros(2)]).structure != base.structure
    assert of(scale=lambda value: value * 3).code != base.code
    assert of(scale=times(2.0)).code != of(scale=times(3.0)).code
    assert of(scale=times(2.0)).code == of(scale=times(2.0)).code
    assert of(power=functools.partial(pow, 3)).code != base.code
    hooked = Holding()
    hooked.out.register_forward_hook(lambda layer, given, output: None)
    assert dpads.models.from_torch(hooked, SIMPLE, inputs=arguments).code != base.code


def test_memory_is_estimated_without_allocating() -> None:
    from dpads.resources import estimate_memory

    description = dpads.models.from_torch(Simple(), SIMPLE, inputs=arguments)
    estimate = estimate_memory(description, SIMPLE, expected_batch_size=64)
    assert estimate.tables == 4 * 2 * ROWS * 2


def test_a_conversion_is_made_once_and_used_often(monkeypatch: pytest.MonkeyPatch) -> None:
    description = dpads.models.from_torch(Simple(), SIMPLE, inputs=arguments)
    assert isinstance(description.converted, Converted)
    assert TorchModule.converted is None
