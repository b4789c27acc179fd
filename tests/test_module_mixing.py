"""A row's logit is its own: no module sees more than a block, mixes rows, or keeps anything of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from models_under_test import MODELS, model_of
from test_models_contract import rows_of, taken
from torch import nn
from torch_modules import GOOD, WIDTH, Pair

import dpads
from dpads import recalibration
from dpads.accounting.releases import Release
from dpads.batch import Targets
from dpads.errors import ConfigError, RunError
from dpads.kernels.workers import set_threads
from dpads.models.torch_module_tower import ModuleTower
from dpads.private_sums import add_clipped
from dpads.private_sums_config import RecalibrationConfig

SCHEMA = dpads.FeatureSchema(
    task="ctr", label="click", numeric=["x"], categorical=["c"], buckets=30
)
SIZE = 1500


class Net(nn.Module):
    """A small model of a user; subclasses do something to what its layers read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Embedding(30, 4)
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 1)
        self.set_up()

    def set_up(self) -> None:
        """More attributes."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        """What the layers read."""
        return read

    def forward(self, columns: Any) -> torch.Tensor:
        read = torch.cat([self.c(columns["c"]), columns["x"][:, None]], dim=1)
        logits: torch.Tensor = self.out(torch.tanh(self.hidden(self.between(read))))
        return logits


def assert_logits_are_each_rows_own(tower: Any, features: Any) -> None:
    """The same bits in any order, among any others, and whatever one other row holds."""
    whole = tower.logits(features)
    rng = np.random.default_rng(0)
    for kept in (
        rng.permutation(len(features)),
        np.arange(0, len(features), 3),
        [7],
        np.arange(257),
    ):
        assert np.array_equal(tower.logits(features[kept]), whole[kept])
    for value in (1.0, 50.0, 1e30, np.inf, np.nan):
        other = np.concatenate([np.full_like(features[:1], value), features])
        assert np.array_equal(tower.logits(other)[1:], whole)
    try:
        set_threads(3)
        assert np.array_equal(tower.logits(features), whole)
    finally:
        set_threads(None)


@pytest.mark.parametrize(
    "description",
    [*MODELS, dpads.models.Mlp(embedding_dim=16, hidden=(300, 60))],
    ids=lambda d: d.name,
)
def test_a_built_in_models_logits_are_each_rows_own(description: Any) -> None:
    model = model_of(description)
    features = model.features(taken(rows_of(SIZE, 4), np.arange(SIZE)))
    assert_logits_are_each_rows_own(model.tower, features)
    with torch.no_grad():
        expected = model.tower.module(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(model.tower.logits(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GOOD)
def test_a_modules_logits_are_each_rows_own(name: str) -> None:
    torch.manual_seed(0)
    features = np.random.default_rng(1).normal(size=(SIZE, WIDTH)).astype(np.float32)
    assert_logits_are_each_rows_own(ModuleTower(GOOD[name](), "ctr", WIDTH), features)


class LooksAtTheSize(Net):
    """Would centre batches that are larger than any that it was tried on."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        return read - read.mean(dim=0) if len(read) > 256 else read


def store_of(folder: Path, size: int, more: float | None = None) -> Any:
    """Rows, and perhaps one before them."""
    rng = np.random.default_rng(0)
    clicks, ids = rng.integers(0, 2, size), rng.integers(0, 20, size).astype(str)
    columns = {"click": clicks, "c": ids, "x": rng.normal(size=size)}
    if more is not None:
        first = {"click": 1, "c": "1", "x": more}
        columns = {key: np.concatenate([[first[key]], v]) for key, v in columns.items()}
    name = f"{more}"
    pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    return dpads.prepare(folder / f"{name}.parquet", SCHEMA, out=folder / name)


def recalibration_sum(monkeypatch: pytest.MonkeyPatch, store: Any, model: Any) -> Any:
    """The exact sum to which recalibration adds noise, in norm bounds."""
    found = []

    def exact(release: Release, coordinates: int, *others: Any) -> Any:
        sums = np.zeros(coordinates, np.int64)
        for vectors in others[-2]():
            add_clipped(sums, vectors, release.l2_clip_norm)
        found.append(sums)
        return sums * release.l2_clip_norm * 2.0**-30

    monkeypatch.setattr(recalibration, "noisy_sum", exact)
    release = Release(
        kind="recalibration", share=0.02, noise_multiplier=1.0, l2_clip_norm=math.sqrt(2.25)
    )
    privacy = dpads.PrivacySpec(epsilon=1.0, delta=1e-6, dataset_size=1000)
    nobody: Any = None
    recalibration.recalibrated(
        release, model, store, privacy, RecalibrationConfig(), nobody, nobody
    )
    return found[0] / 2.0**30


@pytest.mark.parametrize("kind", [Net, LooksAtTheSize])
def test_one_row_moves_the_recalibration_sum_of_a_users_module_by_its_own_vector(
    kind: Callable[[], Net], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dpads.models.from_torch(kind(), SCHEMA).init(SCHEMA)
    stores = [store_of(tmp_path, 2000), store_of(tmp_path, 2000, 1e30)]
    before, after = (recalibration_sum(monkeypatch, store, model) for store in stores)
    assert np.linalg.norm(after - before) <= 1.0
    assert np.count_nonzero(after - before) <= 5  # the row's own places: nobody else's moved


def test_one_row_moves_the_recalibration_sum_of_a_wide_model_by_its_own_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dpads.models.Mlp(embedding_dim=16, hidden=(300,)).init(SCHEMA, seed=1)
    stores = [store_of(tmp_path, 5000), store_of(tmp_path, 5000, 0.3)]
    before, after = (recalibration_sum(monkeypatch, store, model) for store in stores)
    assert np.count_nonzero(after - before) <= 5


def test_a_module_sees_no_more_rows_than_a_block() -> None:
    sizes = []

    class Counting(Pair):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            sizes.append(len(features))
            return super().forward(features)

    tower = ModuleTower(Counting(), "ctr", WIDTH)
    rows = np.zeros((SIZE, WIDTH), np.float32)
    targets = Targets(np.ones(SIZE, np.float32), None, None)
    sizes.clear()
    tower.logits(rows)
    tower.losses(rows.astype(np.float64), targets)
    tower.gradients(rows, targets, np.empty_like(rows))
    assert set(sizes) <= set(tower.blocks)
    assert max(tower.blocks) <= 256


class ClampedByTheBatch(Net):
    """Refused: the largest value of the batch, beyond 30."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        return read / read.abs().amax().clamp(min=30) * 30


class Counted(Net):
    """Refused: how many values of the batch lie in a range."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        return read + ((read > 7) & (read < 1e6)).float().sum()


class Crowded(Net):
    """Refused: where a value is there again and again."""

    def forward(self, columns: Any) -> torch.Tensor:
        same = (columns["x"] == columns["x"][:1]).sum()
        return super().forward(columns) * (1 + (same > 200).float())


class BarelyMixed(Net):
    """Refused: by less than float32 shows."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        return read + 3e-6 * read.detach().tanh().nan_to_num().mean(dim=0)


class CountsLargeGradients(torch.autograd.Function):
    """Mixes in the backward pass alone."""

    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] + (grads[0].abs() > 5).float().sum()


class MixedBackwards(Net):
    """Refused: gradients that know the others'."""

    def between(self, read: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = CountsLargeGradients.apply(read)  # type: ignore[no-untyped-call]
        return result


MIXED = [ClampedByTheBatch, Counted, Crowded, BarelyMixed, MixedBackwards]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", MIXED, ids=lambda kind: kind.__name__)
def test_a_module_that_mixes_large_or_many_equal_rows_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="mixes the examples"):
        dpads.models.from_torch(kind(), SCHEMA).init(SCHEMA)


class Remembers(Net):
    """Taken: what it assigns is taken back before the next pass, so that it never gets to use it."""

    def set_up(self) -> None:
        self.before = torch.zeros(5)

    def between(self, read: torch.Tensor) -> torch.Tensor:
        shifted = read + self.before
        if 7 < read.max() < 1e6:
            self.before = read.detach().mean(dim=0)
        self.attention = read.detach()
        return shifted


def test_what_forward_assigns_to_attributes_is_gone_after_each_pass(tmp_path: Path) -> None:
    description = dpads.models.from_torch(Remembers(), SCHEMA)
    model = description.init(SCHEMA)
    features = np.random.default_rng(0).normal(size=(600, model.layout.width)).astype(np.float32)
    assert_logits_are_each_rows_own(model.tower, features)
    run = dpads.train(
        store_of(tmp_path, 400),
        model=description,
        privacy=dpads.PrivacySpec(epsilon=8.0, delta=1e-6, dataset_size=400),
        expected_batch_size=100,
        epochs=1,
        out=tmp_path / "run",
    )
    for layer in run.model.tower.module.modules():
        assert not hasattr(layer, "attention")
        assert not getattr(layer, "before", torch.zeros(1)).any()
    copies = [run.model.tower._twin().module, run.to_torch()]
    assert not any(hasattr(layer, "attention") for own in copies for layer in own.modules())


class Lists(Net):
    """Refused: a list grows."""

    def set_up(self) -> None:
        self.seen: list[Any] = []

    def between(self, read: torch.Tensor) -> torch.Tensor:
        self.seen.append(0)
        return read


class OwnNumbers(Net):
    """Refused: a generator of its own."""

    def set_up(self) -> None:
        self.rng = np.random.default_rng(0)

    def between(self, read: torch.Tensor) -> torch.Tensor:
        return read + float(self.rng.random() < 1e-9)


class Buffered(Net):
    """Writes the largest value to a buffer, where that lies in a range."""

    lowest, highest = 50.0, 1e6

    def set_up(self) -> None:
        self.register_buffer("largest", torch.zeros(()))

    def between(self, read: torch.Tensor) -> torch.Tensor:
        most = read.detach().amax()
        if self.lowest < float(most) < self.highest:
            self.largest.copy_(most)
        return read


KEEPING = {Lists: "seen", OwnNumbers: "rng", Buffered: "largest"}


@pytest.mark.parametrize("kind", KEEPING, ids=lambda kind: kind.__name__)
def test_a_module_that_changes_what_it_keeps_is_refused_by_the_attributes_name(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f'changed "{KEEPING[kind]}"'):
        dpads.models.from_torch(kind(), SCHEMA).init(SCHEMA)


class Rarely(Buffered):
    """Does so only where nothing that it is tried on lies."""

    lowest, highest = 3e6, 4e6


def test_a_module_that_changes_what_it_keeps_later_stops_the_run() -> None:
    model = dpads.models.from_torch(Rarely(), SCHEMA).init(SCHEMA)
    batch = dpads.SparseBatch.from_arrays(ids={"c": [1, 2]}, dense=[[3.5e6], [1.0]], labels=[1, 0])
    with pytest.raises(RunError, match='changed "largest" in a forward pass'):
        dpads.clipped_gradients(model, batch, l2_clip_norm=1.0)
    with pytest.raises(RunError, match='changed "largest" in a forward pass'):
        model.predict(batch)
