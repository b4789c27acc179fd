"""Any torch module as a tower: autograd one unit at a time, one owner a parameter, bits of one's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import as_dense, batches, clipped, perturb, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import PRIVACY
from test_models_contract import rows_of, taken
from torch import nn
from torch_modules import GOOD, REFUSED, WIDTH, Attention, Pair, Squeezed, layers

import dpads
from dpads import rounding
from dpads.batch import Targets
from dpads.clipping import clip_batch
from dpads.errors import ConfigError
from dpads.kernels import clip, whole
from dpads.kernels.workers import set_threads
from dpads.models import torch_module_checks, torch_owners
from dpads.models.torch_module_tower import ModuleTower
from dpads.row_sums import batch_reads
from dpads.store import ExampleStore

every_module = pytest.mark.parametrize("name", GOOD)


@cache
def model_with(name: str, task: Any = "ctr") -> Any:
    """A model whose tower is a module of torch_modules.py."""
    torch.manual_seed(0)
    model = dpads.models.Mlp(embedding_dim=3, hidden=()).init(schema_of(task, numeric=1))
    assert model.layout.width == WIDTH
    model.tower = ModuleTower(GOOD[name](), task, WIDTH)
    return model


@every_module
@pytest.mark.parametrize("task", ["ctr", "count"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_equals_autograd_one_unit_at_a_time(name: str, task: str, data: Any) -> None:
    model = perturb(model_with(name, task), data.draw(st.integers(0, 100)))
    batch = data.draw(batches(model.schema))
    clip = data.draw(st.sampled_from([0.1, 1.0, 30.0, float("inf")]))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=clip)
    norms, total = clipped(model, batch, clip)
    np.testing.assert_allclose(out.norms, norms, rtol=2e-4, atol=1e-5)
    found = as_dense(model, out)
    assert set(found) == set(total)
    scale = max([1.0, *(float(np.abs(t).max(initial=0.0)) for t in total.values())])
    for key, expected in total.items():
        np.testing.assert_allclose(found[key], expected, rtol=1e-3, atol=2e-5 * scale, err_msg=key)


@every_module
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_each_unit_adds_at_most_the_clip_norm(name: str, data: Any) -> None:
    model = perturb(model_with(name), 1)
    batch = data.draw(batches(model.schema))
    out = dpads.clipped_gradients(model, batch, l2_clip_norm=0.25)
    norm = np.sqrt(sum(float((v**2).sum()) for v in as_dense(model, out).values()))
    assert norm <= 0.25 * batch.num_units * (1 + 1e-9) + 1e-12


@every_module
def test_sums_by_groups_are_the_sums(name: str) -> None:
    model = perturb(model_with(name), 4)
    batch = taken(rows_for(200, 9), np.arange(200))
    reads = batch_reads(model, batch)
    groups = np.array([0, 70, 70, 140, 200])  # in float32, but not where parts of an example cancel
    grouped, exact = (clip_batch(model, batch, reads, 0.5, groups=g)[0] for g in (groups, None))
    for key, value in exact.dense.items():
        np.testing.assert_allclose(grouped.dense[key], value, rtol=1e-5, atol=1e-5)


def rows_for(size: int, seed: int, **more: Any) -> dict[str, Any]:
    rows = rows_of(size, seed, **more)
    return {**rows, "dense": rows["dense"][:, :1]}


@every_module
def test_an_examples_bits_are_its_own(name: str) -> None:
    size = 700
    model = perturb(model_with(name), 2)
    rows = rows_for(size, 4)
    whole = dpads.clipped_gradients(model, taken(rows, np.arange(size)), l2_clip_norm=1.0).norms
    rng = np.random.default_rng(0)
    for kept in (rng.permutation(size), np.arange(0, size, 3), [1], [699], np.arange(257)):
        out = dpads.clipped_gradients(model, taken(rows, kept), l2_clip_norm=1.0)
        assert np.array_equal(out.norms, whole[kept])
    try:
        set_threads(3)
        out = dpads.clipped_gradients(model, taken(rows, np.arange(size)), l2_clip_norm=1.0)
    finally:
        set_threads(None)
    assert np.array_equal(out.norms, whole)


@every_module
@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
@pytest.mark.parametrize("units", [False, True])
def test_a_unit_that_is_not_finite_leaves_the_others_unchanged_to_the_bit(
    name: str, value: float, units: bool
) -> None:
    rows = rows_for(40, 3, units=units)
    model = perturb(model_with(name), 5)
    for at in (0, 39):
        bad, keep = rows["dense"].copy(), np.ones(40)
        bad[at] = value
        keep[at - at % 2 : at - at % 2 + 2] = 0.0 if units else keep[at - at % 2 : at - at % 2 + 2]
        keep[at] = 0.0
        outs = [
            dpads.clipped_gradients(
                model, dpads.SparseBatch.from_arrays(**{**rows, **change}), l2_clip_norm=1.0
            )
            for change in ({"dense": bad}, {"weights": keep})
        ]
        if np.isfinite(outs[0].norms[at // 2 if units else at]):
            assert value == 3e38 or name == "heads"  # which does not look at the number
            continue
        first, second = (as_dense(model, out) for out in outs)
        assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_cannot_be_private_is_refused_by_name(kind: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        ModuleTower(kind(), "ctr", WIDTH)


def test_the_comparison_with_autograd_sees_what_owners_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    ModuleTower(layers(), "ctr", WIDTH)
    with monkeypatch.context() as patch:  # outputs that later layers write to
        patch.setattr(torch_owners.Call, "is_changed", property(lambda _: False))
        with pytest.raises(ConfigError, match="are not those of autograd"):
            ModuleTower(layers(), "ctr", WIDTH)
    with monkeypatch.context() as patch:  # a weight that is used once more, in secret
        patch.setattr(torch_owners, "_uses", lambda _: dict.fromkeys(module.parameters(), 1))
        module = PenalisedInSecret()
        with pytest.raises(ConfigError, match=r'parameter "first\.weight" are not those'):
            ModuleTower(module, "ctr", WIDTH)
    with monkeypatch.context() as patch:  # norms that leave something out
        patch.setattr(whole, "add_square_norms", lambda *_: None)
        with pytest.raises(ConfigError, match="norms are not those"):
            ModuleTower(Attention(), "ctr", WIDTH)
    with (
        monkeypatch.context() as patch
    ):  # several vectors of one example taken for several examples
        patch.setattr(clip, "linear_square_norms", one_by_one)
        with pytest.raises(ConfigError, match="norms are not those"):
            ModuleTower(Attention(), "ctr", WIDTH)


def one_by_one(
    inputs: Any, outputs: Any, bias: float, unit_offsets: Any, squares: Any, parts: Any
) -> None:
    """Adds up squares where vectors should be merged first."""
    squared = ((inputs.astype(float) ** 2).sum(1) + bias) * (outputs.astype(float) ** 2).sum(1)
    squares += np.add.reduceat(squared, unit_offsets[:-1])


class PenalisedInSecret(Pair):
    """A penalty."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features) + 0.01 * self.first.weight.square().sum()


class Placed(Pair):
    """The last bits know the place, or the neighbours: as rounding may, which is float32's alone."""

    by_neighbours = False

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits = super().forward(features)
        if features.dtype == torch.float64:
            return logits
        if self.by_neighbours:
            return logits + 1e-7 * (logits.detach().roll(1) > 0)
        return logits + 1e-7 * torch.arange(len(logits))


@pytest.mark.parametrize("by_neighbours", [False, True])
def test_modules_whose_bits_know_the_block_go_row_by_row(by_neighbours: bool) -> None:
    torch.manual_seed(0)
    module = Placed()
    module.by_neighbours = by_neighbours
    tower = ModuleTower(module, "ctr", WIDTH)
    rows = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    grads, reverse = np.empty_like(rows), np.empty_like(rows)
    targets = Targets(np.ones(3, np.float32), None, None)
    tower.gradients(rows, targets, grads)
    tower.gradients(rows[::-1].copy(), targets, reverse)
    assert np.array_equal(grads, reverse[::-1])
    assert tower.blocks == (1,)


def test_parameters_that_need_no_gradient_stay_and_names_lose_their_prefix() -> None:
    module = nn.ModuleDict({"inner": Pair()})
    module.inner.first.requires_grad_(False)
    wrapped = Wrapped(module["inner"])
    tower = ModuleTower(wrapped, "ctr", WIDTH, prefix="inner.")
    assert set(tower.parameters) == {"last.weight", "last.bias"}
    assert tower.module is wrapped
    tower.parameters["last.bias"][...] = 3.0
    assert wrapped.inner.last.bias.item() == 3.0


class Wrapped(nn.Module):
    """A module within another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(features)
        return logits


class Forked(Pair):
    """Goes another way where a value is large."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if features[0, 0] == 123.0:
            logits: torch.Tensor = self.last(features).squeeze(1)
            return logits
        return super().forward(features)


def test_a_forward_pass_that_takes_another_way_stops_the_run() -> None:
    tower = ModuleTower(Forked(), "ctr", WIDTH)
    rows = np.full((2, WIDTH), 123.0, np.float32)
    targets = Targets(np.ones(2, np.float32), None, None)
    with pytest.raises(ConfigError, match="same way for all examples"):
        tower.gradients(rows, targets, np.empty_like(rows))


def test_gradients_that_stand_in_memory_whole_make_chunks_smaller() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(WIDTH, 20_000) / 400)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return (features @ self.kernel).sum(dim=1)

    model = dpads.models.Mlp(embedding_dim=3, hidden=()).init(schema_of(numeric=1))
    model.tower = ModuleTower(Large(), "ctr", WIDTH)
    assert 1 <= model.tower.examples_at_a_time < 100
    rows = rows_for(150, 1)
    out = dpads.clipped_gradients(model, taken(rows, np.arange(150)), l2_clip_norm=1.0)
    assert len(out.norms) == 150
    expected = clipped(model, taken(rows, np.arange(2)), 1.0)[0]
    np.testing.assert_allclose(out.norms[:2], expected, rtol=1e-4)


def test_doubles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"float32 on the CPU, got torch\.float64"):
        ModuleTower(Pair().double(), "ctr", WIDTH)


def test_the_sums_of_whole_gradients_merge_a_units_examples_before_squaring() -> None:
    grads = np.array([[3.0, 4.0], [-3.0, -4.0], [1.0, 0.0], [np.inf, 1.0]], np.float32)
    squares, parts = np.zeros(3), np.zeros(3)
    whole.add_square_norms(grads, np.array([0, 2, 3, 4]), squares, parts)
    assert squares[0] < 1e-20
    assert squares[1] == 1.0
    assert np.isinf(squares[2])
    np.testing.assert_allclose(parts[0], 10.0)
    sums = np.zeros(2)
    whole.add_clipped(grads, np.array([1, 1, 0.5, 0], np.float32), sums)
    assert sums.tolist() == [0.5, 0.0]


def test_checks_leave_parameters_as_they_were() -> None:
    torch.manual_seed(0)
    module = Squeezed(nn.Linear(WIDTH, 1))
    before = [value.detach().clone() for value in module.parameters()]
    tower = ModuleTower(module, "ctr", WIDTH)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    with pytest.raises(ZeroDivisionError), torch_module_checks.moved(tower):
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


class Sequence(nn.Module):
    """A linear layer on many vectors of each example."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.each, self.last = nn.Linear(WIDTH, 2), nn.Linear(2, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        steps = torch.linspace(-1, 1, self.positions, dtype=features.dtype)
        vectors = features[:, None, :] * steps[None, :, None]
        logits: torch.Tensor = self.last(self.each(vectors).tanh().mean(dim=1)).squeeze(1)
        return logits


def test_rounding_that_grows_with_the_vectors_of_an_example_stays_within_the_slack(
    train_store: ExampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = ModuleTower(Sequence(256), "ctr", WIDTH)
    assert tower.positions == 256
    assert tower.examples_at_a_time == 64  # products and sums of products round alike
    high, low, most = rounding.HIGHEST_FLOOR, rounding.LOWEST_FLOOR, rounding.LARGEST_ROUNDING

    def rounding_of(tower: Any, units: int, floor: float, rows_per_unit: int = 1) -> float:
        additions = rounding.chunk_additions(tower, rows_per_unit)(units)
        return rounding.rounding_of(additions, units, floor)

    assert rounding_of(tower, 2**20, high) <= most == 2.0**-12
    mlp = dpads.models.Mlp().init(schema_of()).tower
    assert rounding_of(mlp, 2**20, high, 16) < 2.0**-13
    assert rounding.cancellation_floor(mlp, 2**12, 1) == low
    assert rounding.cancellation_floor(tower, 2**20, 1) == high
    for units in (2 ** np.arange(8, 20)).tolist():
        floor = rounding.cancellation_floor(tower, units, 1)
        assert rounding_of(tower, units, floor) <= most
        assert floor == low or rounding_of(tower, units, floor / 2) > most
    tower.examples_at_a_time = 1024  # a chunk of sums over 2^18 vectors
    assert rounding_of(tower, 2**20, high) > 2.0**-10
    with pytest.raises(
        ConfigError, match=r"at most 131,072 units, got .* = 1,048,576.*256 vectors"
    ):
        rounding.cancellation_floor(tower, 2**20, 1)
    rounding.cancellation_floor(tower, 2**17, 1)
    tower.examples_at_a_time, tower.positions = 1, 1 << 14
    with pytest.raises(ConfigError, match="at most 131,072 units"):
        rounding.cancellation_floor(tower, 2**20, 1)
    monkeypatch.setattr(rounding, "LARGEST_ROUNDING", 1e-12)
    with pytest.raises(ConfigError, match="Expected batches of at most"):
        dpads.train(
            train_store, model=dpads.models.Logistic(), privacy=PRIVACY, expected_batch_size=100,
            epochs=1, out=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
