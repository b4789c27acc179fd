"""What peers get wrong where ads models live, each shown on the peer itself and right in dpads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dpads
from dpads.sampling import PoissonSampler

EMPTY_BATCHES = 0.02  # chance of joining for each of 64 units: 27 % of the batches are empty


def bag_gradient(ids: list[int], rows: int) -> NDArray[np.float64]:
    """dpads' unclipped gradient of one example's logit with respect to the rows of its bag."""
    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["s"], buckets=rows)
    model = dpads.models.Logistic().init(schema)
    batch = dpads.SparseBatch.from_arrays(ids={"s": (ids, [0, len(ids)], None)}, labels=[0])
    found, values = dpads.clipped_gradients(model, batch, l2_clip_norm=math.inf).tables["s"]
    result = np.zeros(rows)
    result[found] = values[:, 0] / 0.5  # the loss's gradient at logit 0 and label 0
    return result


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:opacus", "ignore:Full backward hook")
class TestOpacus:
    """Opacus 1.6 really run."""

    def test_bag_drops_repeated_ids_and_holds_a_gradient_of_every_row(self) -> None:
        import torch
        from opacus import GradSampleModule

        bag = torch.nn.EmbeddingBag(5, 1, mode="sum")
        module: Any = GradSampleModule(bag)
        module(torch.tensor([1, 1, 2]), torch.tensor([0])).sum().backward()
        autograd = bag.weight.grad
        assert autograd is not None
        assert autograd[:, 0].tolist() == [0, 2, 1, 0, 0]
        assert module._module.weight.grad_sample[0, :, 0].tolist() == [0, 1, 1, 0, 0]
        assert bag_gradient([1, 1, 2], 5).tolist() == [0, 2, 1, 0, 0]

        many: Any = GradSampleModule(torch.nn.EmbeddingBag(1000, 3, mode="sum"))
        many(torch.tensor([1, 2] * 7), torch.arange(0, 14, 2)).sum().backward()
        assert many._module.weight.grad_sample.shape == (7, 1000, 3)  # 14 rows were used

    def test_embedding_ignores_padding_idx(self) -> None:
        import torch
        from opacus import GradSampleModule

        table = torch.nn.Embedding(5, 1, padding_idx=0)
        module: Any = GradSampleModule(table)
        module(torch.tensor([[0, 1]])).sum().backward()
        assert table.weight.grad is not None
        assert table.weight.grad[:, 0].tolist() == [0, 1, 0, 0, 0]
        assert module._module.weight.grad_sample[0, :, 0].tolist() == [1, 1, 0, 0, 0]
        assert bag_gradient([-1, 1], 5).tolist() == [0, 1, 0, 0, 0]  # -1 is padding

    def test_ghost_mode_refuses_a_table_used_twice(self) -> None:
        import torch

        table = torch.nn.Embedding(5, 1)

        class Two(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = table

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                both: torch.Tensor = self.table(ids[:, :1]) + self.table(ids[:, 1:])
                return both.sum((1, 2))

        model, _, _, _ = private(Two(), torch.zeros((8, 2), dtype=torch.int64))
        with pytest.raises(NotImplementedError, match="Parameter tying is not supported"):
            model(torch.zeros((8, 2), dtype=torch.int64))

        schema = dpads.FeatureSchema(
            task="ctr", label="y", categorical=["a", "b"], tables={"t": ["a", "b"]}, buckets=5
        )
        batch = dpads.SparseBatch.from_arrays(ids={"a": [3], "b": [3]}, labels=[0])
        out = dpads.clipped_gradients(
            dpads.models.Logistic().init(schema), batch, l2_clip_norm=math.inf
        )
        rows, values = out.tables["t"]
        assert rows.tolist() == [3]
        assert values[:, 0].tolist() == [1.0]  # 0.5 from either field

    def test_ghost_mode_refuses_sparse_gradients(self) -> None:
        import torch

        ids = torch.ones((8, 2), dtype=torch.int64)
        model, optimizer, criterion, _ = private(embedding(sparse=True), ids)
        criterion(model(ids), torch.zeros(8)).backward()
        with pytest.raises(RuntimeError, match=r"add\(sparse, dense\) is not supported"):
            optimizer.step()

    def test_an_empty_poisson_batch_crashes_ghost_mode(self) -> None:
        import torch

        model, _, criterion, _ = private(embedding(), torch.ones((8, 2), dtype=torch.int64))
        none = torch.zeros((0, 2), dtype=torch.int64)
        with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
            criterion(model(none), torch.zeros(0)).backward()

    def test_sampling_rate_of_a_loaders_length_is_wrong_under_a_weighted_sampler(self) -> None:
        import torch
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

        # Ten rare clicks, drawn often: what people do against imbalance.
        size = 640
        weights = torch.full((size,), 1e-3)
        weights[:10] = 1e3
        rows = TensorDataset(
            torch.arange(size), torch.ones((size, 2), dtype=torch.int64), torch.zeros(size)
        )
        torch.manual_seed(0)
        loader = DataLoader(
            rows, batch_size=64, sampler=WeightedRandomSampler(weights.tolist(), size)
        )
        module = embedding()
        engine = PrivacyEngine()
        model, optimizer, loader = engine.make_private(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        criterion: Any = torch.nn.BCEWithLogitsLoss()
        joined = 0
        for numbers, ids, labels in loader:
            optimizer.zero_grad()
            criterion(model(ids), labels).backward()
            optimizer.step()
            joined += int((numbers == 0).any())
        [(_, sample_rate, steps)] = engine.accountant.history
        assert sample_rate == 0.1
        assert joined == steps  # row 0 was in every batch

    def test_prints_the_poisson_epsilon_for_shuffled_batches(self) -> None:
        import torch
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        criterion: Any = torch.nn.BCEWithLogitsLoss()
        spent = []
        for poisson in (True, False):
            rows = TensorDataset(torch.ones((640, 2), dtype=torch.int64), torch.zeros(640))
            module = embedding()
            engine = PrivacyEngine()
            model, optimizer, loader = engine.make_private(
                module=module,
                optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
                data_loader=DataLoader(rows, batch_size=8, shuffle=True),
                noise_multiplier=0.7,
                max_grad_norm=1.0,
                poisson_sampling=poisson,
            )
            for ids, labels in loader:
                optimizer.zero_grad()
                criterion(model(ids), labels).backward()
                optimizer.step()
            spent.append(engine.get_epsilon(1e-6))
        assert spent[0] == spent[1]
        from dpads.accounting.accountant import Relation, epsilon_of
        from dpads.accounting.events import fixed_order

        honest = epsilon_of(fixed_order(0.7, passes=1), 1e-6, Relation.ZERO_OUT).epsilon
        assert honest > 1.5 * spent[1]

    def test_ghost_mode_agrees_where_it_can_be_used(self) -> None:
        """Distinct ids, no padding, no shared table: the sums are the same."""
        import torch

        rng = np.random.default_rng(0)
        fields = [f"c{i}" for i in range(6)]
        schema = dpads.FeatureSchema(task="ctr", label="y", categorical=fields, buckets=20)
        model = dpads.models.Logistic().init(schema)
        weights = rng.normal(size=(6, 20)).astype(np.float32)
        for table, row in zip(model.tables.values(), weights, strict=True):
            table[:, 0] = row
        ids = rng.integers(0, 20, (50, 6))
        labels = rng.integers(0, 2, 50)
        batch = dpads.SparseBatch.from_arrays(
            ids={name: ids[:, i] for i, name in enumerate(fields)}, labels=labels
        )
        ours = dpads.clipped_gradients(model, batch, l2_clip_norm=0.8)

        places = torch.from_numpy(np.c_[ids + 20 * np.arange(6), np.full(50, 120)])
        module = embedding(rows=121)
        with torch.no_grad():
            module.table.weight[:120, 0] = torch.from_numpy(weights.ravel())
            module.table.weight[120] = 0.0
        theirs, _, criterion, _ = private(module, places, max_grad_norm=0.8)
        criterion(theirs(places), torch.from_numpy(labels).float()).backward()
        total = module.table.weight.grad
        assert total is not None
        for i, name in enumerate(fields):
            rows, values = ours.tables[name]
            np.testing.assert_allclose(
                values[:, 0], total[20 * i + rows, 0].numpy(), rtol=2e-5, atol=1e-6
            )
        [bias] = [value for name, value in ours.dense.items() if name.endswith("bias")]
        np.testing.assert_allclose(bias, total[120].numpy(), rtol=2e-5)


def embedding(*, rows: int = 5, sparse: bool = False) -> Any:
    """A model that sums the weights of its ids."""
    import torch

    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(rows, 1, sparse=sparse)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = self.table(ids).sum((1, 2))
            return total

    return Sum()


def private(module: Any, ids: Any, max_grad_norm: float = 1.0) -> Any:
    """Model, optimizer, criterion and loader of Opacus' ghost mode."""
    import torch
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    rows = TensorDataset(ids, torch.zeros(len(ids)))
    return PrivacyEngine().make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        criterion=torch.nn.BCEWithLogitsLoss(),
        data_loader=DataLoader(rows, batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        grad_sample_mode="ghost",
    )


def test_lazydp_norm_under_clips_repeated_ids() -> None:
    """LazyDP takes ||b|| * sqrt(number of ids) for the norm of a bag's gradient."""
    ids = [1] * 64
    gradient = bag_gradient(ids, 3)
    lazydp_norm = 1.0 * math.sqrt(len(ids))
    assert lazydp_norm * math.sqrt(len(ids)) == np.linalg.norm(gradient)
    # Clipped by that norm to 1 it would still be 8 long: noise for sensitivity 1 is 8 times too small.
    assert np.linalg.norm(gradient / lazydp_norm) == 8.0

    schema = dpads.FeatureSchema(task="ctr", label="y", bags=["s"], buckets=3)
    batch = dpads.SparseBatch.from_arrays(ids={"s": (ids, [0, 64], None)}, labels=[0])
    out = dpads.clipped_gradients(dpads.models.Logistic().init(schema), batch, l2_clip_norm=1.0)
    parts = [values for _, values in out.tables.values()] + list(out.dense.values())
    assert math.sqrt(sum(float((part**2).sum()) for part in parts)) <= 1.0


def test_empty_poisson_batches_are_steps_like_any_other(tmp_path: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    log = tmp_path / "log.parquet"
    pq.write_table(pa.table({"y": [0, 1] * 32, "a": [str(i % 7) for i in range(64)]}), log)
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a"], buckets=8)
    store = dpads.prepare(log, schema, out=tmp_path / "store")
    iterations = 60
    run = dpads.train(
        store,
        model=dpads.models.Logistic(),
        privacy=dpads.PrivacySpec(
            noise_multiplier=1.0,
            delta=1e-6,
            sampling_prob=EMPTY_BATCHES,
            iterations=iterations,
            dataset_size=64,
        ),
        expected_batch_size=1,
        table_optimizer=dpads.Sgd(learning_rate=0.1),
        tower_optimizer=dpads.Sgd(learning_rate=0.1),
    )
    sampler = PoissonSampler(EMPTY_BATCHES, iterations, np.arange(8, dtype=np.uint32))
    sizes = [len(sampler.units(t, 64)) for t in range(iterations)]
    assert sizes.count(0) > 5
    assert run.record.executed == iterations
    # Every coordinate moved by noise in every iteration, empty ones included.
    assert all(np.all(array != 0) for array in run.model.tables.values())


def test_every_unit_joins_with_the_probability_of_the_plan() -> None:
    """The sampler that draws gives the event: no loader's length is ever looked at."""
    sampler = PoissonSampler(0.1, 2000, np.arange(8, dtype=np.uint32))
    counts = np.bincount(np.concatenate([sampler.units(t, 50) for t in range(2000)]), minlength=50)
    five_deviations = 5 * math.sqrt(2000 * 0.1 * 0.9)
    assert np.all(np.abs(counts - 200) < five_deviations)
    assert f"{sampler.event(1.0)}".count("'sampling_prob': 0.1") == 1
