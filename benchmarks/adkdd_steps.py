"""Times one step of the AdKDD model, with noise and without, the sides taking turns."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Final

import adkdd_opacus
from adkdd_setting import DELTA, Setting

import dpads
from dpads.accounting.ledger import Ledger
from dpads.plan import resolve
from dpads.training import Trainer, TrainingSettings

BATCHES: Final = (1024, 2048, 4096, 8192, 16_384)  # the trials' among them
WARM_UP: Final = 5
STEPS: Final = 30


def measure(train: dpads.ExampleStore, public_size: int) -> list[dict[str, float]]:
    """Median milliseconds a step at epsilon 3, drawing the batch included.

    The sides take turns, step by step, so that a busy machine slows them alike.
    """
    rows = adkdd_opacus.Rows(train)
    results = []
    for size in BATCHES:
        setting = Setting(
            learning_rate=4.0, schedule="constant", l2_clip_norm=4.0, batch_size=size, epochs=40
        )
        sides = {
            "dpads": dpads_steps(train, setting, 3.0, public_size),
            "Opacus": adkdd_opacus.Training(rows, setting, 3.0, seed=0).steps(),
            "dpads without privacy": dpads_steps(train, setting, None, public_size),
            "PyTorch without privacy": adkdd_opacus.Training(rows, setting, None, seed=0).steps(),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(WARM_UP + STEPS):
            for side, steps in sides.items():
                seconds[side].append(next(steps))
        medians = {
            side: 1e3 * statistics.median(values[WARM_UP:]) for side, values in seconds.items()
        }
        results.append({"batch_size": float(size), **medians})
        print(f"batch {size}: {medians}", flush=True)
    return results


def dpads_steps(
    train: dpads.ExampleStore, setting: Setting, epsilon: float | None, public_size: int
) -> Iterator[float]:
    """Takes steps of the trainer that `dpads.train` uses; yields the seconds of each."""
    optimizer = dpads.Sgd(learning_rate=setting.learning_rate, schedule=setting.schedule)
    privacy = dpads.PrivacySpec(
        epsilon=epsilon,
        noise_multiplier=0.0 if epsilon is None else None,
        delta=DELTA,
        dataset_size=public_size,
    )
    trainer = Trainer(
        train,
        dpads.models.Logistic(),
        resolve(
            privacy,
            expected_batch_size=setting.batch_size,
            epochs=setting.epochs,
            l2_clip_norm=math.inf if epsilon is None else setting.l2_clip_norm,
        ),
        TrainingSettings(table_optimizer=optimizer, tower_optimizer=optimizer),
        dpads.Performance(),
        Ledger(),
    )
    for _ in itertools.repeat(None):
        begin = time.perf_counter()
        trainer.step()
        yield time.perf_counter() - begin
