"""Milliseconds and memory per private training step: dpads beside the other libraries that could take it.

    python benchmarks/peers.py --peer-python PEERS/bin/python
    python benchmarks/peers.py --cells 1e5x1024                       # some cells only

writes peers.md and peers.json beside this file. jax-privacy runs in an environment of its own, of the
same Python version, and is left out without one:

    python -m venv PEERS && PEERS/bin/pip install jax-privacy

The model, ids and optimizers are those of steps.py, small tower (peers_steps.py says where a library needs
another). Every variant of a cell is a process of its own, so that peak memory is its alone; they take
turns, one computing at a time, on the same batches of a turn. Ratios are paired: the median over the turns.
A variant whose step takes more than a second is measured three times, a single step each time.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import peers_steps
from steps import DIM, batches, len_cores
from turns import Variant, over, result_of, take_turns
from turns import serve as serve_turns

HERE: Final = Path(__file__).parent
# The last cell is for Opacus' hooks alone, which fit into no other.
CELLS: Final = ("1e5x1024", "1e6x4096", "1e7x1024", "1e5x512")
BASE: Final = "dpads, lazy noise"
JAX: Final = "jax-privacy"
HOOKS: Final = "Opacus, hooks"
VARIANTS: Final = (
    BASE,
    "dpads, dense noise",
    "PyTorch, dense gradients, no privacy",
    "Opacus, ghost clipping",
    HOOKS,
    JAX,
)
HOOKS_LIMIT: Final = 12e9  # bytes
JAX_LIMIT: Final = 10e9  # bytes written a step: at 1e10 a step takes some seconds
HEADER: Final = (
    "| rows | batch | variant | ms a step | times dpads | examples a second | peak memory, GB |"
)


def left_out(variant: str, rows: int, size: int, peer_python: str | None) -> str | None:
    """Why a variant is not measured in a cell; None where it is."""
    per_example = 4 * rows * DIM * size
    if variant == HOOKS and 2 * per_example > HOOKS_LIMIT:
        return f"its per-example gradients need about {2 * per_example / 1e9:,.0f} GB"
    if variant == JAX and peer_python is None:
        return "no environment with jax-privacy was given"
    if variant == JAX and per_example > JAX_LIMIT:
        return f"its per-example gradients write {per_example / 1e9:,.0f} GB a step"
    return None


def serve(variant: str, rows: int, size: int) -> None:
    """A variant's process: takes the turns that it reads, and prints the milliseconds per step."""
    step = {
        BASE: lambda: peers_steps.dpads(rows, size, "lazy"),
        "dpads, dense noise": lambda: peers_steps.dpads(rows, size, "dense"),
        "PyTorch, dense gradients, no privacy": lambda: peers_steps.pytorch(rows, size),
        "Opacus, ghost clipping": lambda: peers_steps.opacus(rows, size, "ghost"),
        HOOKS: lambda: peers_steps.opacus(rows, size, "hooks"),
        JAX: lambda: peers_steps.jax_privacy(rows, size),
    }[variant]()
    names = ("jax_privacy", "jax") if variant == JAX else ("torch", "numba", "opacus")
    serve_turns(step, lambda turn: batches(rows, size, seed=turn), names)


def measure(rows: int, size: int, turns: int, peer_python: str | None) -> dict[str, Any]:
    """One cell."""
    reasons = {name: left_out(name, rows, size, peer_python) for name in VARIANTS}
    interpreters = {JAX: peer_python or sys.executable}
    what = ("--cells", f"{rows}x{size}", "--variant")
    variants = [
        Variant(name, [interpreters.get(name, sys.executable), __file__, *what, name])
        for name in VARIANTS
        if reasons[name] is None
    ]
    take_turns(variants, turns)
    reasons |= {variant.name: variant.failure for variant in variants}
    base = variants[0].times
    results = {}
    for variant in variants:
        if variant.failure is None:
            results[variant.name] = {**result_of(variant), "over_dpads": over(variant, base)}
    return {
        "rows": rows,
        "batch": size,
        "table_gb": 4 * rows * DIM / 1e9,
        "variants": results,
        "left_out": {name: reason for name, reason in reasons.items() if reason is not None},
        "packages": sorted({text for variant in variants for text in variant.packages}),
    }


def table_of(cells: list[dict[str, Any]], machine: str) -> str:
    """The cells as Markdown."""
    how = (
        f"`python benchmarks/peers.py`; {machine}. Medians of interleaved steps, ratios of pairs; peak "
        "memory is of a process of its own, its libraries included."
    )
    lines = [
        "# dpads beside other libraries",
        "",
        how,
        "",
        HEADER,
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        start = f"| {cell['rows']:.0e} | {cell['batch']:,}"
        for name in VARIANTS:
            if name in cell["left_out"]:
                lines.append(f"{start} | {name} | left out: {cell['left_out'][name]} | | | |")
                continue
            result = cell["variants"][name]
            lines.append(
                f"{start} | {name} | {result['median_ms']:,.1f} | {result['over_dpads']:.2f} "
                f"| {1e3 * cell['batch'] / result['median_ms']:,.0f} | {result['peak_gb']:.2f} |"
            )
    lines.append("")
    sizes = {f"{cell['rows']:.0e}": cell["table_gb"] for cell in cells}
    parts = [f"{gigabytes:.2g} GB at {rows} rows" for rows, gigabytes in sizes.items()]
    lines += [f"The tables themselves take {', '.join(parts)}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measures the cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), metavar="ROWSxBATCH")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--peer-python", help="interpreter of an environment with jax-privacy")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the table")
    parser.add_argument("--variant", choices=VARIANTS, help="serve one variant of a cell here")
    arguments = parser.parse_args()
    pairs = [cell.split("x") for cell in arguments.cells]
    sizes = [(int(float(rows)), int(size)) for rows, size in pairs]
    if arguments.variant:
        serve(arguments.variant, *sizes[0])
        return
    cells = []
    for rows, size in sizes:
        cells.append(measure(rows, size, arguments.turns, arguments.peer_python))
        print(json.dumps(cells[-1]), flush=True)
    packages = sorted({text for cell in cells for text in cell.pop("packages")})
    machine = (
        f"{platform.machine()}, {len_cores()} cores, Python {platform.python_version()}, "
        f"numpy {version('numpy')}, {', '.join(packages)}"
    )
    report = json.dumps({"machine": machine, "cells": cells}, indent=1)
    (arguments.out / "peers.json").write_text(report + "\n")
    (arguments.out / "peers.md").write_text(table_of(cells, machine))


if __name__ == "__main__":
    main()
