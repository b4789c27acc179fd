"""Milliseconds per training step of every model: dpads with privacy beside the same module in PyTorch.

    python benchmarks/models_steps.py                    # 10 minutes on 2 cores, 3 GB
    python benchmarks/models_steps.py --model fm dlrm --batch 4096

writes models_steps.md and models_steps.json beside this file. Batches and turns as in steps.py: 26 fields,
width 16, 13 numbers, Zipf's law, SGD on sparse gradients of tables and Adam on the tower. PyTorch runs
the same module as a tower. Ratios are medians over the turns of one run.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

from steps import BLOCK, DIM, EXAMPLES, FIELDS, NUMBERS, WARM_TURNS, Feed, batches, len_cores

HERE: Final = Path(__file__).parent
ROWS: Final = 1_000_000
BATCHES: Final = (1024, 4096, 16384)
MODELS: Final[dict[str, dict[str, Any]]] = {
    "logistic": {},
    "fm": {"embedding_dim": DIM},
    "deepfm": {"embedding_dim": DIM},
    "dcn": {"embedding_dim": DIM},
    "dlrm": {"embedding_dim": DIM},
    "mlp": {"embedding_dim": DIM, "hidden": [400, 400, 400]},
    "mlp, wide": {"embedding_dim": DIM, "hidden": [400, 400, 400], "wide": True},
}
HEADER: Final = (
    "| model | batch | private | without noise | PyTorch sparse | private / PyTorch "
    "| private / without noise | private, examples a second |"
)


def describe(name: str) -> Any:
    """The model of a row."""
    import dpads

    return dpads.models.describe({"name": name.partition(",")[0], **MODELS[name]})


def schema() -> Any:
    """Fields and numbers as in steps.py."""
    import dpads

    return dpads.FeatureSchema(
        task="ctr",
        label="y",
        numeric=[f"n{i}" for i in range(NUMBERS)],
        categorical=[f"c{i}" for i in range(FIELDS)],
        buckets=ROWS // FIELDS,
    )


def dpads_step(name: str, size: int, noise: float, turns: int) -> Callable[[Any], None]:
    """One iteration of `Trainer`, private or not."""
    from dpads.accounting.ledger import Ledger
    from dpads.plan import PrivacySpec, resolve
    from dpads.training import Performance, Trainer, TrainingSettings

    spec = PrivacySpec(
        noise_multiplier=noise, delta=1e-8, sampling_prob=size / EXAMPLES, iterations=turns
    )
    clip = 1.0 if noise else math.inf
    plan = resolve(spec, expected_batch_size=size, epochs=None, l2_clip_norm=clip)
    feed = Feed(schema())
    settings = TrainingSettings()
    trainer = Trainer(feed, describe(name), plan, settings, Performance(), Ledger())  # type: ignore[arg-type]

    def step(batch: Any) -> None:
        feed.batch = batch
        trainer.step()

    return step


def torch_step(name: str, size: int) -> Callable[[Any], None]:
    """The same tables and tower in PyTorch."""
    import torch
    from torch import nn

    model = describe(name).init(schema())
    module = model.tower.module.train()
    for value in module.parameters():
        value.requires_grad_(True)
    groups = model.layout.groups
    tables = [nn.Embedding(group.num_rows, group.dim, sparse=True) for group in groups]
    bases = torch.arange(FIELDS) * (ROWS // FIELDS)
    optimizers = [
        torch.optim.SGD([table.weight for table in tables], lr=0.5),
        torch.optim.Adam(module.parameters(), lr=1e-3),
    ]
    loss_of = nn.BCEWithLogitsLoss()

    def step(batch: Any) -> None:
        ids = torch.from_numpy(batch.scalar_ids).long() + bases
        for optimizer in optimizers:
            optimizer.zero_grad()
        parts = [table(ids).reshape(size, -1) for table in tables]
        logits = module(torch.cat([*parts, torch.from_numpy(batch.dense)], 1))
        loss_of(logits, torch.from_numpy(batch.labels)).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def measure(name: str, size: int, turns: int) -> dict[str, Any]:
    """One row of the table, in this process."""
    steps = (WARM_TURNS + turns) * BLOCK
    variants = {
        "private": dpads_step(name, size, 0.8, steps),
        "non-private": dpads_step(name, size, 0.0, steps),
        "PyTorch": torch_step(name, size),
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    feed = batches(ROWS, size, seed=0)
    for turn in range(WARM_TURNS + turns):
        block = list(islice(feed, BLOCK))
        for variant in list(variants) if turn % 2 else list(variants)[::-1]:
            variants[variant](block[0])  # meets the caches and waiting threads of another variant
            begin = time.perf_counter()
            for batch in block[1:]:
                variants[variant](batch)
            if turn >= WARM_TURNS:
                times[variant].append(1e3 * (time.perf_counter() - begin) / (BLOCK - 1))

    def ratio(first: str, second: str) -> float:
        return statistics.median(a / b for a, b in zip(times[first], times[second], strict=True))

    return {
        "model": name,
        "batch": size,
        "median_ms": {variant: statistics.median(values) for variant, values in times.items()},
        "private_over_pytorch": ratio("private", "PyTorch"),
        "private_over_non_private": ratio("private", "non-private"),
    }


def table_of(cells: list[dict[str, Any]], machine: str) -> str:
    """All rows as Markdown."""
    lines = [
        "# Milliseconds per training step of every model",
        "",
        f"`python benchmarks/models_steps.py`; {ROWS:,} rows; {machine}.",
        "Medians of interleaved steps, ratios of pairs.",
        "",
        HEADER,
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        ms = cell["median_ms"]
        lines.append(
            f"| {cell['model']} | {cell['batch']:,} | {ms['private']:.1f} | {ms['non-private']:.1f} "
            f"| {ms['PyTorch']:.1f} | {cell['private_over_pytorch']:.2f} "
            f"| {cell['private_over_non_private']:.2f} | {1e3 * cell['batch'] / ms['private']:,.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures every row in a process of its own, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--cell", action="store_true", help="measure one row here and print it")
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(arguments.model[0], arguments.batch[0], arguments.turns)))
        return
    cells = []
    for name in arguments.model:
        for size in arguments.batch:
            command = [sys.executable, __file__, "--cell", "--model", name, "--batch", str(size)]
            command += ["--turns", str(arguments.turns)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cells.append(json.loads(done.stdout))
            print(json.dumps(cells[-1]), flush=True)
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "numba", "numpy"))
    machine = (
        f"{platform.machine()}, {len_cores()} cores, Python {platform.python_version()}, {packages}"
    )
    found = {"machine": machine, "cells": cells}
    (HERE / "models_steps.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "models_steps.md").write_text(table_of(cells, machine))


if __name__ == "__main__":
    main()
