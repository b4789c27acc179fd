"""Milliseconds and memory per step in JAX: dpads beside the step without privacy, and what peers do.

    python benchmarks/jax_steps.py --peer-python PEERS/bin/python
    python benchmarks/jax_steps.py --cells small:1e8x65536            # on a GPU, where JAX finds one

writes jax_steps.md and jax_steps.json beside this file (on a GPU jax_steps_gpu.md and .json). The model, ids
and optimizers are those of steps.py; jax_steps_variants.py has the steps. jax-privacy runs in an environment
of its own, as peers.py says. Every variant is a process of its own; they take turns on the same batches, and
ratios are paired, medians over the turns. A step of dpads includes the Poisson draw; the batches of the
others have one size. Steps follow each other as a run's do: the host prepares the next one while the device
computes, and the clock ends when the last has ended.

On a GPU each process then traces a few further steps: how long the device was busy by its own events, and
which share of its memory's bandwidth that is. What a step has to move is counted by hand (`moved_bytes`), and
the bandwidth is what a copy of a large array reaches on the same device.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jax_steps_variants
import numpy as np
import peers_steps
from jax_steps_device import device_time
from steps import DIM, FIELDS, NUMBERS, batches, len_cores
from turns import Variant, over, result_of, serve, take_turns, unwatched

HERE: Final = Path(__file__).parent
CELLS: Final = (
    "small:1e5x1024",
    "small:1e5x4096",
    "small:1e6x4096",
    "small:1e7x4096",
    "ads:1e5x4096",
    "ads:1e6x4096",
    "ads:1e7x4096",
)
SPARSE: Final = "JAX without privacy, sparse"
LAZY: Final = "dpads, JAX, lazy noise"
DENSE: Final = "dpads, JAX, dense noise"
TORCH: Final = "dpads, PyTorch, lazy noise"
VMAP: Final = "vmap, gradients by the whole table"
JAX_PRIVACY: Final = "jax-privacy"
VARIANTS: Final = (SPARSE, LAZY, DENSE, TORCH, VMAP, JAX_PRIVACY)
PER_EXAMPLE_LIMIT: Final = (
    10e9  # bytes of per-example gradients a step: at 1e10 a step takes some seconds
)
HEADER: Final = (
    "| tower | rows | batch | variant | ms a step | times without privacy | examples a second "
    "| peak memory, GB |"
)
MOST_DENSE: Final = 10_000_000  # rows whose noise each step draws anew


@dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        tower: of steps.py.
        rows: of all tables.
        size: examples in a batch.
    """

    tower: str
    rows: int
    size: int

    @classmethod
    def of(cls, text: str) -> Cell:
        """From TOWER:ROWSxBATCH."""
        tower, _, sizes = text.partition(":")
        rows, size = sizes.split("x")
        return cls(tower, int(float(rows)), int(size))

    def __str__(self) -> str:
        """As `of` takes it."""
        return f"{self.tower}:{self.rows}x{self.size}"


def left_out(variant: str, cell: Cell, peer_python: str | None) -> str | None:
    """Why a variant is not measured in a cell; None where it is."""
    per_example = 4 * cell.rows * DIM * cell.size
    if variant in (VMAP, JAX_PRIVACY):
        if cell.tower != "small":
            return "measured with the small tower"
        if per_example > PER_EXAMPLE_LIMIT:
            return f"its per-example gradients write {per_example / 1e9:,.0f} GB a step"
    if variant == JAX_PRIVACY and peer_python is None:
        return "no environment with jax-privacy was given"
    if variant == DENSE and cell.rows > MOST_DENSE:
        return f"{cell.rows:,} rows would draw noise in every step"
    return None


def serve_variant(variant: str, cell: Cell) -> None:
    """A variant's process."""
    own, tower, rows, size = jax_steps_variants, cell.tower, cell.rows, cell.size
    step, wait = {
        SPARSE: lambda: own.sparse(tower, rows),
        LAZY: lambda: own.dpads(tower, rows, size, "lazy", "jax"),
        DENSE: lambda: own.dpads(tower, rows, size, "dense", "jax"),
        TORCH: lambda: own.dpads(tower, rows, size, "lazy", "torch"),
        VMAP: lambda: own.dense_gradients(tower, rows, size),
        JAX_PRIVACY: lambda: (peers_steps.jax_privacy(rows, size), lambda: None),
    }[variant]()
    packages = ["jax", "numpy", *(["jax_privacy"] if variant == JAX_PRIVACY else [])]
    watched = unwatched if variant == TORCH else device_time
    serve(step, lambda turn: batches(rows, size, seed=turn), packages, wait, watched)


def measure(cell: Cell, turns: int, peer_python: str | None) -> dict[str, Any]:
    """All variants of a cell."""
    reasons = {name: left_out(name, cell, peer_python) for name in VARIANTS}
    interpreters = {JAX_PRIVACY: peer_python or sys.executable}
    what = ("--cells", str(cell), "--variant")
    variants = [
        Variant(name, [interpreters.get(name, sys.executable), __file__, *what, name])
        for name in VARIANTS
        if reasons[name] is None
    ]
    take_turns(variants, turns)
    reasons |= {variant.name: variant.failure for variant in variants}
    results = {
        variant.name: {
            **result_of(variant),
            "over_sparse": over(variant, variants[0].times),
            "of_device": variant.extra,
        }
        for variant in variants
        if variant.failure is None
    }
    return {
        **asdict(cell),
        "table_gb": 4 * cell.rows * DIM / 1e9,
        "moved_gb": moved_bytes(cell) / 1e9,
        "variants": results,
        "left_out": {name: reason for name, reason in reasons.items() if reason is not None},
        "packages": sorted({text for variant in variants for text in variant.packages}),
    }


def moved_bytes(cell: Cell) -> float:
    """Bytes that a private step has to move at least, the tower's own aside.

    Rows that the batch reads are read and written; features are written and read, their gradients written and
    read for norms and for sums; sums of rows, float64, are written and read.
    """
    batch = next(batches(cell.rows, cell.size, seed=0))
    rows = sum(len(np.unique(column)) for column in batch.scalar_ids.T)
    features = cell.size * (FIELDS * DIM + NUMBERS)
    return float(rows * DIM * (2 * 4 + 2 * 8) + features * 5 * 4)


def table_of(cells: list[dict[str, Any]], machine: str) -> str:
    """The cells as Markdown."""
    how = (
        f"`python benchmarks/jax_steps.py`; {machine}. Medians of interleaved steps, ratios of pairs; peak "
        "memory is of a process of its own, its libraries and compiler included."
    )
    lines = [
        "# Milliseconds per step in JAX",
        "",
        how,
        "",
        HEADER,
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        begin = f"| {cell['tower']} | {cell['rows']:.0e} | {cell['size']:,}"
        for name in VARIANTS:
            if name in cell["left_out"]:
                lines.append(f"{begin} | {name} | left out: {cell['left_out'][name]} | | | |")
                continue
            result = cell["variants"][name]
            ms = result["median_ms"]
            lines.append(
                f"{begin} | {name} | {ms:,.1f} | {result['over_sparse']:.2f} "
                f"| {1e3 * cell['size'] / ms:,.0f} | {result['peak_gb']:.2f} |"
            )
    lines += ["", *flatness(cells)]
    if any("busy_ms" in result["of_device"] for result in results_of(cells)):
        lines += ["", *device_lines(cells)]
    return "\n".join([*lines, ""])


def results_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all variants of all cells."""
    return [result for cell in cells for result in cell["variants"].values()]


def flatness(cells: list[dict[str, Any]]) -> list[str]:
    """What more rows cost a step: ratios of medians between cells that differ in nothing else."""
    lines = []
    for tower, size in dict.fromkeys((cell["tower"], cell["size"]) for cell in cells):
        same = [cell for cell in cells if (cell["tower"], cell["size"]) == (tower, size)]
        first = min(same, key=lambda cell: cell["rows"])
        for cell in same:
            if cell is first:
                continue
            parts = [
                f"{cell['variants'][name]['median_ms'] / first['variants'][name]['median_ms']:.2f} ({name})"
                for name in (LAZY, DENSE, SPARSE)
                if name in cell["variants"] and name in first["variants"]
            ]
            lines.append(
                f"Tower {tower}, batches of {size:,}: {cell['rows']:.0e} rows take "
                f"{', '.join(parts)} times what {first['rows']:.0e} take."
            )
    return lines


def device_lines(cells: list[dict[str, Any]]) -> list[str]:
    """What a GPU told."""
    lines = [
        "| tower | rows | batch | variant | ms busy a step | GB a step has to move | share of bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        for name, result in cell["variants"].items():
            device = result["of_device"]
            if "busy_ms" not in device:
                continue
            share = 1e12 * cell["moved_gb"] / device["busy_ms"] / device["copy_bytes_per_second"]
            lines.append(
                f"| {cell['tower']} | {cell['rows']:.0e} | {cell['size']:,} | {name} "
                f"| {device['busy_ms']:.2f} | {cell['moved_gb']:.3f} | {share:.0%} |"
            )
    return lines


def main() -> None:
    """Measures the cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="TOWER:ROWSxBATCH")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--peer-python", help="interpreter of an environment with jax-privacy")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the table")
    parser.add_argument("--variant", choices=VARIANTS, help="serve one variant of a cell here")
    arguments = parser.parse_args()
    wanted = [Cell.of(text) for text in arguments.cells]
    if arguments.variant:
        serve_variant(arguments.variant, wanted[0])
        return
    cells = []
    for cell in wanted:
        cells.append(measure(cell, arguments.turns, arguments.peer_python))
        print(json.dumps(cells[-1]), flush=True)
    packages = sorted({text for cell in cells for text in cell.pop("packages")})
    devices = {found.get("device") for found in (r["of_device"] for r in results_of(cells))}
    gpus = sorted(device for device in devices if device)
    machine = (
        f"{platform.machine()}, {len_cores()} cores, {''.join(f'{gpu}, ' for gpu in gpus)}"
        f"Python {platform.python_version()}, {', '.join(packages)}"
    )
    name = "jax_steps_gpu" if gpus else "jax_steps"
    report = json.dumps({"machine": machine, "cells": cells}, indent=1)
    (arguments.out / f"{name}.json").write_text(report + "\n")
    (arguments.out / f"{name}.md").write_text(table_of(cells, machine))


if __name__ == "__main__":
    main()
