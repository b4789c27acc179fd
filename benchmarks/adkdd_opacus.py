"""The other side of the AdKDD benchmark: Opacus as its guide uses it, plain PyTorch without privacy.

The model is the same: one weight per row of 19 tables, and a bias. It is one `nn.Embedding` of
width one, whose last row every example reads: the bias. Opacus' ghost clipping finds its norms; its
hooks would need a [batch, rows] gradient, which at 57,000 rows is about eight times slower.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from adkdd_setting import DELTA, Outcome, Setting, scores_of
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dpads.evaluation import metrics
from dpads.store import ExampleStore


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Encoded rows; whole batches are gathered at once, which spares Opacus its slowest part.

    Attributes:
        ids: int64[n, 20], rows of one long table; the last column is the bias.
        labels: float32[n].
    """

    def __init__(self, store: ExampleStore) -> None:
        batch = store.read(np.arange(store.num_examples))
        sizes = list(store.schema.table_rows.values())
        bases = np.cumsum([0, *sizes[:-1]])
        ids = np.full((batch.num_examples, len(sizes) + 1), sum(sizes))
        ids[:, :-1] = batch.scalar_ids + bases
        self.ids = torch.from_numpy(ids)
        self.labels = torch.from_numpy(batch.labels)
        self.table_rows = sum(sizes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.ids[row], self.labels[row]

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.tensor(rows, dtype=torch.int64)
        return self.ids[index], self.labels[index]


class Logistic(nn.Module):
    """Sum of looked-up weights; starts at zero."""

    def __init__(self, table_rows: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(table_rows + 1, 1)
        nn.init.zeros_(self.weights.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.weights(ids).sum(dim=(1, 2))
        return logits


class Training:
    """One training run, step by step.

    Args:
        rows: the training rows.
        setting: how to train.
        epsilon: the budget; None trains in plain PyTorch.
        seed: of shuffling, or of Opacus' sampling and noise.
    """

    def __init__(self, rows: Rows, setting: Setting, epsilon: float | None, seed: int) -> None:
        torch.manual_seed(seed)
        self.setting = setting
        self.model: nn.Module = Logistic(rows.table_rows)
        kind = torch.optim.SGD if setting.optimizer == "sgd" else torch.optim.Adam
        self.optimizer: Any = kind(
            self.model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
        )
        self.criterion: Any = nn.BCEWithLogitsLoss()
        self.loader: Any = DataLoader(
            rows, batch_size=setting.batch_size, shuffle=True, collate_fn=tuple
        )
        self.engine: Any = None
        if epsilon is not None:
            self._make_private(epsilon)
        self.iterations = setting.epochs * len(self.loader)
        self.done = 0

    def _make_private(self, epsilon: float) -> None:
        """As Opacus' guide has it: Poisson sampling, its PRV accountant, flat clipping."""
        from opacus import PrivacyEngine

        warnings.filterwarnings("ignore", module="opacus|torch")
        self.engine = PrivacyEngine(accountant="prv")
        private = self.engine.make_private_with_epsilon(
            module=self.model,
            optimizer=self.optimizer,
            criterion=self.criterion,
            data_loader=self.loader,
            target_epsilon=epsilon,
            target_delta=DELTA,
            epochs=self.setting.epochs,
            max_grad_norm=self.setting.l2_clip_norm,
            grad_sample_mode="ghost",
        )
        self.model, self.optimizer, self.criterion, self.loader = private

    def steps(self) -> Iterator[float]:
        """Takes all steps; yields the seconds of each, drawing the batch included."""
        self.model.train()
        for _ in range(self.setting.epochs):
            begin = time.perf_counter()
            for ids, labels in self.loader:
                if self.setting.schedule == "linear":
                    rest = 1.0 - self.done / self.iterations
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.setting.learning_rate * rest
                self.optimizer.zero_grad()
                self.criterion(self.model(ids), labels).backward()
                self.optimizer.step()
                self.done += 1
                yield time.perf_counter() - begin
                begin = time.perf_counter()


def run(
    train: ExampleStore, judged: ExampleStore, setting: Setting, epsilon: float | None, seed: int
) -> Outcome:
    """Trains on one store and computes metrics on another."""
    rows, others = Rows(train), Rows(judged)
    begin = time.perf_counter()
    training = Training(rows, setting, epsilon, seed)
    iterations = sum(1 for _ in training.steps())
    seconds = time.perf_counter() - begin
    training.model.eval()
    with torch.no_grad():
        probabilities = torch.sigmoid(training.model(others.ids).double()).numpy()
    private = training.engine is not None
    return Outcome(
        scores=scores_of(metrics("ctr", others.labels.numpy(), probabilities)),
        iterations=iterations,
        seconds=seconds,
        noise_multiplier=float(training.optimizer.noise_multiplier) if private else 0.0,
        epsilon=float(training.engine.get_epsilon(DELTA)) if private else None,
    )
