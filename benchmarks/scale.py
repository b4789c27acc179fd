"""What one machine carries: a table of 10^8 rows, a store of 50 million examples, normals a second.

    python benchmarks/scale.py          # about 4 minutes on 2 cores, 8 GB of memory, 9 GB of disk
    python benchmarks/scale.py --examples 1e6 --rows 1e6 --out FOLDER

writes scale.md and scale.json. Every part runs in a process of its own. The store's rows are made up and
written by the store's own writer; its file may be larger than the system's file cache, and then the disk
is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from steps import DIM, FIELDS, NUMBERS, batches, dpads_step, len_cores, peak_gb

HERE: Final = Path(__file__).parent
BATCH: Final = 4096
STEPS: Final = 300


def memory_now() -> dict[str, float]:
    """GB of this process' own memory, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    facts = {line.split(":")[0]: line.split() for line in lines}
    return {
        "own": int(facts["RssAnon"][1]) / 2**20,
        "files": int(facts["RssFile"][1]) / 2**20,
    }


def measure_table(rows: int) -> dict[str, Any]:
    """Steps on large tables: memory against the rule, seconds to make and to finish them."""
    import numba
    import torch

    imports = peak_gb()
    begin = time.perf_counter()
    step = dpads_step(rows, BATCH, "small", 0.8, 40)
    making = time.perf_counter() - begin
    times = []
    for batch in islice(batches(rows, BATCH, seed=0), 30):
        begin = time.perf_counter()
        step(batch)
        times.append(1e3 * (time.perf_counter() - begin))
    trainer = step.__closure__[1].cell_contents  # type: ignore[index]
    begin = time.perf_counter()
    trainer._flush()
    flushing = time.perf_counter() - begin
    held = FIELDS * (rows // FIELDS)
    return {
        "rows": held,
        "packages": f"torch {torch.__version__}, numba {numba.__version__}",
        "step_ms": statistics.median(times[10:]),
        "making_s": making,
        "flushing_s": flushing,
        "imports_gb": imports,
        "peak_gb": peak_gb(),
        "tables_gb": 4 * DIM * held / 2**30,
        "rule_gb": 1.1 * 4 * DIM * held / 2**30 + 8 * held / 2**30 + imports,
    }


def write_store(examples: int, folder: Path) -> None:
    """A store of made-up rows."""
    import pyarrow as pa

    import dpads
    from dpads import preparing
    from dpads.store_writing import RecordSink

    schema = dpads.FeatureSchema(
        task="ctr",
        label="y",
        numeric=[f"n{i}" for i in range(NUMBERS)],
        categorical=[f"c{i}" for i in range(FIELDS)],
        buckets=1_000_000 // FIELDS,
    )
    arrow = preparing._stored_schema(schema, labelled=True)
    folder.mkdir()
    feed = batches(1_000_000, 1 << 17, seed=0)
    kept = list(islice(feed, 4))  # ids are used again in another order; what is measured is reading
    with RecordSink(folder / preparing.DATA, arrow) as sink:
        for at in range(0, examples, 1 << 17):
            count = min(1 << 17, examples - at)
            batch = kept[(at >> 17) % len(kept)]
            ids = np.roll(batch.scalar_ids, at >> 17, axis=0)[:count].reshape(-1)
            columns = {
                "ids": pa.FixedSizeListArray.from_arrays(pa.array(ids), FIELDS),
                "dense": pa.FixedSizeListArray.from_arrays(
                    pa.array(batch.dense[:count].reshape(-1)), NUMBERS
                ),
                "label": pa.array(batch.labels[:count]),
                "input_row": pa.array(np.arange(at, at + count)),
            }
            arrays = [columns[field.name].cast(field.type) for field in arrow]
            sink.add(pa.RecordBatch.from_arrays(arrays, schema=arrow))
        sink.finish()
    preparing._write_meta(folder)


def measure_store(examples: int) -> dict[str, Any]:
    """Iterations from a store on disk: memory beside its size, and the time of a step."""
    import dpads
    from dpads.accounting.ledger import Ledger
    from dpads.plan import PrivacySpec, resolve
    from dpads.training import Performance, Trainer, TrainingSettings

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        write_store(examples, folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**30
        begin = time.perf_counter()
        rows = dpads.ExampleStore.open(folder)
        opening = time.perf_counter() - begin
        spec = PrivacySpec(
            noise_multiplier=0.8, delta=1e-9, sampling_prob=BATCH / examples, iterations=STEPS
        )
        plan = resolve(spec, expected_batch_size=BATCH, epochs=None, l2_clip_norm=1.0)
        model = dpads.models.Mlp(embedding_dim=DIM, hidden=(128, 64))
        trainer = Trainer(rows, model, plan, TrainingSettings(), Performance(), Ledger())
        times, most = [], {"own": 0.0, "files": 0.0}
        for _ in range(STEPS):
            begin = time.perf_counter()
            trainer.step()
            times.append(1e3 * (time.perf_counter() - begin))
            most = {key: max(value, most[key]) for key, value in memory_now().items()}
    return {
        "examples": examples,
        "store_gb": size,
        "opening_s": opening,
        "step_ms": statistics.median(times[STEPS // 2 :]),
        "own_gb": most["own"],
        "files_gb": most["files"],
    }


def measure_normals() -> dict[str, Any]:
    """Standard normals a second on one core, at the width of a row."""
    from dpads.kernels import workers
    from dpads.kernels.gaussian import fill_normals
    from dpads.kernels.keys import derive_key

    workers.set_threads(1)
    key, rows = derive_key(bytes(32), "benchmark"), np.arange(1 << 16)
    out = np.empty((len(rows), DIM), np.float32)
    rates = []
    for step in range(30):
        begin = time.perf_counter()
        fill_normals(key, rows, step, out)
        rates.append(out.size / (time.perf_counter() - begin))
    return {"normals_per_second": statistics.median(rates[5:])}


def table_of(found: dict[str, Any], machine: str) -> str:
    """The figures as Markdown."""
    table, rows = found["table"], found["store"]
    normals = found["normals"]["normals_per_second"] / 1e6
    lines = [
        "# What one machine carries",
        "",
        f"`python benchmarks/scale.py`; {machine}. Batches of {BATCH:,}, the small tower of steps.py, width",
        f"{DIM}.",
        "",
        f"| {table['rows']:,} table rows | |",
        "|---|---|",
        f"| made in | {table['making_s']:.1f} s |",
        f"| a private step | {table['step_ms']:.1f} ms |",
        f"| finished in (missed noise of every row, rounding) | {table['flushing_s']:.1f} s |",
        f"| peak memory | {table['peak_gb']:.2f} GB |",
        f"| of which tables | {table['tables_gb']:.2f} GB |",
        f"| 1.1 x tables + 8 bytes a row + imports | {table['rule_gb']:.2f} GB |",
        "",
        f"| {rows['examples']:,} examples on disk | |",
        "|---|---|",
        f"| the store | {rows['store_gb']:.1f} GB |",
        f"| opened and checked in | {rows['opening_s']:.1f} s |",
        f"| a private step | {rows['step_ms']:.0f} ms |",
        f"| own memory, at most | {rows['own_gb']:.2f} GB |",
        f"| pages of the file in it, at most | {rows['files_gb']:.2f} GB |",
        "",
        f"Normals from ChaCha20: {normals:,.0f} million float32 a second on one core.",
        "",
        "A file beyond the system's cache is read from the disk at random, three places an example.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures every part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=float, default=1e8)
    parser.add_argument("--examples", type=float, default=5e7)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--part", choices=["table", "store", "normals"], help="measure here")
    arguments = parser.parse_args()
    if arguments.part:
        parts = {
            "table": lambda: measure_table(int(arguments.rows)),
            "store": lambda: measure_store(int(arguments.examples)),
            "normals": measure_normals,
        }
        print(json.dumps(parts[arguments.part]()))
        return
    found = {}
    for part in ("normals", "table", "store"):
        command = [sys.executable, __file__, "--part", part, "--rows", str(arguments.rows)]
        command += ["--examples", str(arguments.examples)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[part] = json.loads(done.stdout)
        print(part, done.stdout.strip(), flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "numpy"))
    machine = (
        f"{platform.machine()}, {len_cores()} cores, Python {platform.python_version()}, {packages}"
    )
    text = json.dumps({"machine": machine, **found}, indent=1)
    (arguments.out / "scale.json").write_text(text + "\n")
    (arguments.out / "scale.md").write_text(table_of(found, machine))


if __name__ == "__main__":
    main()
