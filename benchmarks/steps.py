"""Milliseconds per training step: dpads with and without privacy beside PyTorch with sparse gradients.

    python benchmarks/steps.py                      # the whole grid: about 20 minutes on 2 cores, 14 GB
    python benchmarks/steps.py --rows 1e6 --batch 4096 --tower small

writes steps.md and steps.json beside this file. 26 fields, embedding width 16, 13 numbers, ids from Zipf's
law with exponent 1.1 over each table, SGD on tables and Adam on the tower, float32, libraries at their
defaults. The variants of a cell take turns: some steps in a row on new batches, of which the first is not
timed, for it meets the caches and waiting threads of another variant. Ratios are paired: the median over the
turns. A step of dpads includes the Poisson draw; drawing up the made-up batch is outside every clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

HERE: Final = Path(__file__).parent
FIELDS, NUMBERS, DIM, ZIPF = 26, 13, 16, 1.1
TOWERS: Final = {"small": (128, 64), "ads": (598, 598, 598, 598)}
ROWS: Final = (100_000, 1_000_000, 10_000_000, 100_000_000)
BATCHES: Final = (1024, 4096, 16384)
EXAMPLES: Final = 37_000_000  # a public size that gives realistic sampling probabilities


BLOCK, WARM_TURNS = 4, 2  # steps of one variant in a row
PARTED = 12  # further private steps whose parts are timed
PARTS: Final = ("catch-up", "chunks", "update and next batch")

HEADER: Final = (
    "| tower | rows | batch | private | without noise | PyTorch sparse | private / PyTorch "
    "| private / without noise | private, examples a second |"
)


def batches(rows: int, size: int, seed: int) -> Iterator[Any]:
    """Batches that never repeat, as dpads reads them from a store."""
    import dpads

    per_table = rows // FIELDS
    names = tuple(f"c{i}" for i in range(FIELDS))
    rng = np.random.default_rng(seed)
    chances = np.cumsum(np.arange(1, per_table + 1) ** -ZIPF)
    while True:
        draws = rng.random((size, FIELDS)) * chances[-1]
        ids = np.searchsorted(chances, draws).astype(np.int32)
        dense = rng.standard_normal((size, NUMBERS), np.float32)
        labels = (rng.random(size) < 0.03).astype(np.float32)
        yield dpads.SparseBatch(names, ids, {}, dense, labels)


class Feed:
    """Stands in for a store: hands out the batch of the turn."""

    def __init__(self, schema: Any) -> None:
        self.schema, self.num_examples, self.fingerprint = schema, EXAMPLES, "made up"
        self.part = (0, 1)
        self.batch: Any = None

    def check_labels(self) -> None:
        """Made-up batches have labels."""

    def border_users(self) -> None:
        """They have no users."""

    def read(self, rows: Any) -> Any:
        """As many examples as a Poisson batch has; the made-up ones again where it has more."""
        pick = np.arange(len(rows)) % self.batch.num_examples
        return dataclasses.replace(
            self.batch,
            scalar_ids=self.batch.scalar_ids[pick],
            dense=self.batch.dense[pick],
            labels=self.batch.labels[pick],
        )


def trainer_of(
    rows: int,
    size: int,
    tower: str,
    noise: float,
    turns: int,
    table_noise: str = "lazy",
    backend: str = "torch",
) -> tuple[Any, Feed]:
    """A `Trainer`, private or not, and what it reads."""
    import dpads
    from dpads.accounting.ledger import Ledger
    from dpads.plan import PrivacySpec, resolve
    from dpads.training import Performance, Trainer, TrainingSettings

    schema = dpads.FeatureSchema(
        task="ctr",
        label="y",
        numeric=[f"n{i}" for i in range(NUMBERS)],
        categorical=[f"c{i}" for i in range(FIELDS)],
        buckets=rows // FIELDS,
    )
    spec = PrivacySpec(
        noise_multiplier=noise, delta=1e-8, sampling_prob=size / EXAMPLES, iterations=turns
    )
    plan = resolve(
        spec, expected_batch_size=size, epochs=None, l2_clip_norm=1.0 if noise else math.inf
    )
    feed = Feed(schema)
    model = dpads.models.Mlp(embedding_dim=DIM, hidden=TOWERS[tower])
    settings = TrainingSettings(table_noise=table_noise, backend=backend)
    return Trainer(feed, model, plan, settings, Performance(), Ledger()), feed  # type: ignore[arg-type]


def dpads_step(
    rows: int, size: int, tower: str, noise: float, turns: int, table_noise: str = "lazy"
) -> Callable[[Any], None]:
    """One iteration of `Trainer`, private or not."""
    trainer, feed = trainer_of(rows, size, tower, noise, turns, table_noise)

    def step(batch: Any) -> None:
        feed.batch = batch
        trainer.step()

    return step


def torch_step(rows: int, size: int, tower: str, sparse: bool = True) -> Callable[[Any], None]:
    """The same model in PyTorch: gradients of one table sparse or not, SGD there and Adam on the tower."""
    import torch
    from torch import nn

    per_table = rows // FIELDS
    table = nn.Embedding(per_table * FIELDS, DIM, sparse=sparse)
    bases = torch.arange(FIELDS) * per_table
    widths = [FIELDS * DIM + NUMBERS, *TOWERS[tower]]
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
    optimizers = [
        torch.optim.SGD(table.parameters(), lr=0.5),
        torch.optim.Adam(network.parameters(), lr=1e-3),
    ]
    loss_of = nn.BCEWithLogitsLoss()

    def step(batch: Any) -> None:
        ids = torch.from_numpy(batch.scalar_ids).long() + bases
        for optimizer in optimizers:
            optimizer.zero_grad()
        features = torch.cat([table(ids).reshape(size, -1), torch.from_numpy(batch.dense)], 1)
        loss_of(network(features).squeeze(1), torch.from_numpy(batch.labels)).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def measure(rows: int, size: int, tower: str, turns: int) -> dict[str, Any]:
    """One cell of the grid, in this process."""
    steps = (WARM_TURNS + turns) * BLOCK + PARTED
    variants = {
        "private": dpads_step(rows, size, tower, 0.8, steps),
        "non-private": dpads_step(rows, size, tower, 0.0, steps),
        "PyTorch": torch_step(rows, size, tower),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    feed = batches(rows, size, seed=0)
    for turn in range(WARM_TURNS + turns):
        order = list(variants) if turn % 2 else list(variants)[::-1]
        block = list(islice(feed, BLOCK))
        for name in order:
            # the first step of a block meets the caches and waiting threads of another variant
            variants[name](block[0])
            begin = time.perf_counter()
            for batch in block[1:]:
                variants[name](batch)
            if turn >= WARM_TURNS:
                times[name].append(1e3 * (time.perf_counter() - begin) / (BLOCK - 1))

    parts = parts_of(variants["private"], islice(feed, PARTED))

    def ratio(first: str, second: str) -> float:
        pairs = zip(times[first], times[second], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "rows": rows,
        "batch": size,
        "tower": tower,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "minimum_ms": {name: min(values) for name, values in times.items()},
        "private_over_pytorch": ratio("private", "PyTorch"),
        "private_over_non_private": ratio("private", "non-private"),
        "private_parts_ms": parts,
        "peak_gb_of_all_three": peak_gb(),
    }


def parts_of(step: Callable[[Any], None], feed: Iterator[Any]) -> dict[str, float]:
    """Median milliseconds of the three stretches of a private step that the pool's threads share.

    catch-up: missed noise of the rows that the batch reads. chunks: lookup, tower, norms, clipped sums.
    update and next batch: tables, the tower's noise and optimizer, drawing and sorting the next batch.
    """
    from dpads.kernels.workers import Workers

    whole, spans = Workers.run, list[float]()

    def timed(self: Workers, tasks: Any) -> None:
        begin = time.perf_counter()
        whole(self, tasks)
        spans.append(1e3 * (time.perf_counter() - begin))

    found: dict[str, list[float]] = {name: [] for name in (*PARTS, "rest")}
    Workers.run = timed  # type: ignore[method-assign]
    try:
        for batch in feed:
            spans.clear()
            begin = time.perf_counter()
            step(batch)
            total = 1e3 * (time.perf_counter() - begin)
            if len(spans) > len(PARTS):  # large towers: the threads' sums are added by all threads
                spans[1:3] = [spans[1] + spans[2]]
            if len(spans) == len(PARTS):
                for name, span in zip(PARTS, spans, strict=True):
                    found[name].append(span)
                found["rest"].append(total - sum(spans))
    finally:
        Workers.run = whole  # type: ignore[method-assign]
    return {name: statistics.median(values) for name, values in found.items() if values}


def peak_gb() -> float:
    """The most memory that this process has had; `ru_maxrss` would begin at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def table_of(cells: list[dict[str, Any]], machine: str) -> str:
    """The grid as Markdown."""
    lines = [
        "# Milliseconds per training step",
        "",
        f"`python benchmarks/steps.py`; {machine}. Medians of interleaved steps, ratios of pairs.",
        "",
        HEADER,
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        ms = cell["median_ms"]
        lines.append(
            f"| {cell['tower']} | {cell['rows']:.0e} | {cell['batch']:,} | {ms['private']:.1f} "
            f"| {ms['non-private']:.1f} | {ms['PyTorch']:.1f} | {cell['private_over_pytorch']:.2f} "
            f"| {cell['private_over_non_private']:.2f} | {1e3 * cell['batch'] / ms['private']:,.0f} |"
        )
    lines.append("")
    for tower in dict.fromkeys(cell["tower"] for cell in cells):
        ratios = [c["private_over_pytorch"] for c in cells if c["tower"] == tower]
        mean = statistics.geometric_mean(ratios)
        lines.append(
            f"Tower {tower}: private / PyTorch is {mean:.2f} in the geometric mean over {len(ratios)} cells, "
            f"from {min(ratios):.2f} to {max(ratios):.2f}."
        )
        lines.append("")
    lines += [
        "Parts of a private step, milliseconds: missed noise of the rows that are read; chunks of",
        "examples through lookup, tower, norms and sums; update of tables and tower beside the next",
        "batch's draw; the rest.",
        "",
        "| tower | rows | batch | catch-up | chunks | update | rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in [cell for cell in cells if cell["private_parts_ms"]]:
        times = " | ".join(f"{value:.1f}" for value in cell["private_parts_ms"].values())
        lines.append(f"| {cell['tower']} | {cell['rows']:.0e} | {cell['batch']:,} | {times} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures the grid, each cell in a process of its own, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=float, nargs="*", default=list(ROWS))
    parser.add_argument("--batch", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--tower", nargs="*", default=list(TOWERS), choices=list(TOWERS))
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--cell", action="store_true", help="measure one cell here and print it")
    arguments = parser.parse_args()
    if arguments.cell:
        rows, size, tower = int(arguments.rows[0]), arguments.batch[0], arguments.tower[0]
        print(json.dumps(measure(rows, size, tower, arguments.turns)))
        return
    cells = []
    for tower in arguments.tower:
        for rows in arguments.rows:
            for size in arguments.batch:
                heavy = tower == "ads" and size > 4096
                turns = max(5, arguments.turns // 2) if heavy else arguments.turns
                command = [sys.executable, __file__, "--cell", "--rows", str(rows)]
                command += ["--batch", str(size), "--tower", tower, "--turns", str(turns)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cells.append(json.loads(done.stdout))
                print(json.dumps(cells[-1]), flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "numpy"))
    machine = (
        f"{platform.machine()}, {len_cores()} cores, Python {platform.python_version()}, {packages}"
    )
    (HERE / "steps.json").write_text(
        json.dumps({"machine": machine, "cells": cells}, indent=1) + "\n"
    )
    (HERE / "steps.md").write_text(table_of(cells, machine))


def len_cores() -> int:
    """Cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
