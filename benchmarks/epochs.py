"""Seconds per epoch: dpads private, from its store on disk, beside deepctr-torch without privacy.

    python benchmarks/epochs.py --peer-python PEERS/bin/python
    python benchmarks/epochs.py --logs adkdd                          # one log only

writes epochs.md and epochs.json beside this file. deepctr-torch runs in an environment of its own, and is
left out without one; `--no-deps`, because its package asks for more than its training loop uses:

    python -m venv PEERS
    PEERS/bin/pip install torch numpy scikit-learn tqdm && PEERS/bin/pip install --no-deps deepctr-torch

Criteo's sample and the AdKDD log are read from ../shared/data, or the folder in DPADS_DATA, and left out
where absent; the third log is made up like the batches of steps.py. Both sides train the same network
(embedding width 16, hidden layers 128 and 64) on the same rows of the same tables with SGD throughout, and
take turns, each in a fresh process that warms up first. The clock of dpads runs from opening the store to
the last row's noise; that of deepctr-torch is `fit` on arrays that are in memory already, without metrics
and without its L2 penalties. Ratios are paired: the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from steps import DIM, FIELDS, NUMBERS, TOWERS, batches, len_cores, peak_gb

HERE: Final = Path(__file__).parent
HIDDEN: Final = TOWERS["small"]
MADE_UP_EXAMPLES, MADE_UP_ROWS = 500_000, 1_000_000
WARM_ITERATIONS: Final = 5
PEER_SCRIPT: Final = HERE / "epochs_deepctr.py"
ARRAYS: Final = "arrays.npz"

HEADER: Final = (
    "| log | examples | fields + numbers | table rows | batch | dpads private, s | deepctr-torch, s "
    "| dpads / deepctr-torch | drawing + reading | merging ids | peak memory, GB: dpads, deepctr-torch |"
)


@dataclass(frozen=True)
class Log:
    """A log to train on.

    Attributes:
        title: in the table.
        batch: examples.
        file: in the folder of real logs; None for the made-up one.
    """

    title: str
    batch: int
    file: str | None


LOGS: Final = {
    "criteo": Log("Criteo 1 TB, opening", 1024, "criteo_1tb_day0_10k.tsv.gz"),
    "adkdd": Log("Criteo AdKDD 2021", 1024, "criteo_adkdd2021.parquet"),
    "made-up": Log("made up, Zipf(1.1)", 4096, None),
}


def prepare(name: str, folder: Path, source: Path | None, examples: int) -> None:
    """Encodes a log into folder/store, and into one file of arrays for the other side."""
    import dpads

    if name == "adkdd":
        import adkdd

        schema = adkdd.SCHEMA
    elif name == "criteo":
        schema = dpads.FeatureSchema.from_dict({"preset": "criteo-display", "buckets": 4096})
    else:
        source, schema = made_up(folder, examples)
    assert source is not None
    store = dpads.prepare(source, schema, out=folder / "store")
    everything = store.read(np.arange(store.num_examples))
    np.savez(
        folder / ARRAYS,
        ids=everything.scalar_ids,
        dense=everything.dense,
        labels=everything.labels,
        rows=np.array([schema.table_rows[field.table] for field in schema.fields]),
    )
    facts = {
        "examples": store.num_examples,
        "fields": len(schema.fields),
        "numbers": everything.dense.shape[1],
        "table_rows": sum(schema.table_rows.values()),
    }
    print(json.dumps(facts))


def made_up(folder: Path, examples: int) -> tuple[Path, Any]:
    """Writes a log of the batches that steps.py measures with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import dpads

    batch = next(batches(MADE_UP_ROWS, examples, seed=0))
    columns = {f"c{i}": batch.scalar_ids[:, i] for i in range(FIELDS)}
    columns |= {f"n{i}": batch.dense[:, i] for i in range(NUMBERS)}
    columns["y"] = batch.labels.astype(np.int8)
    pq.write_table(pa.table(columns), folder / "log.parquet")
    schema = dpads.FeatureSchema(
        task="ctr",
        label="y",
        numeric=[f"n{i}" for i in range(NUMBERS)],
        categorical=[f"c{i}" for i in range(FIELDS)],
        buckets=MADE_UP_ROWS // FIELDS,
    )
    return folder / "log.parquet", schema


def trainer_of(store: Any, batch: int, iterations: int) -> Any:
    """A trainer for some iterations."""
    import dpads
    from dpads.accounting.ledger import Ledger
    from dpads.plan import resolve
    from dpads.training import Performance, Trainer, TrainingSettings

    privacy = dpads.PrivacySpec(
        noise_multiplier=0.8,
        delta=1e-8,
        sampling_prob=batch / store.num_examples,
        iterations=iterations,
    )
    return Trainer(
        store,
        dpads.models.Mlp(embedding_dim=DIM, hidden=HIDDEN),
        resolve(privacy, expected_batch_size=batch, epochs=None, l2_clip_norm=1.0),
        TrainingSettings(tower_optimizer=dpads.Sgd(learning_rate=1e-3)),
        Performance(),
        Ledger(),
    )


def dpads_epoch(folder: Path, batch: int) -> None:
    """One private epoch from the store, in this process; then what its batches cost to prepare."""
    import dpads

    path = folder / "store"
    warm = dpads.ExampleStore.open(path)
    iterations = -(-warm.num_examples // batch)
    trainer_of(warm, batch, min(WARM_ITERATIONS, iterations)).run()
    begin = time.perf_counter()
    store = dpads.ExampleStore.open(path)
    opening = time.perf_counter() - begin
    trainer = trainer_of(store, batch, iterations)
    begin = time.perf_counter()
    trainer.run()
    seconds = opening + time.perf_counter() - begin
    parts = preparation(store, trainer.model, batch, iterations)
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb(), "opening": opening, **parts}))


def preparation(store: Any, model: Any, batch: int, iterations: int) -> dict[str, float]:
    """Seconds that one thread takes to draw and read an epoch's batches, and to merge their ids.

    The trainer does so beside the noise of the iteration before, on one thread of its pool.
    """
    from dpads.kernels.workers import get_workers
    from dpads.row_sums import batch_reads
    from dpads.sampling import PoissonSampler

    key = np.arange(8, dtype=np.uint32)
    sampler = PoissonSampler(batch / store.num_examples, iterations, key)
    parts = {"drawing": 0.0, "reading": 0.0, "merging": 0.0}

    def epoch() -> None:
        for iteration in range(iterations):
            begin = time.perf_counter()
            units = sampler.units(iteration, store.num_examples)
            drawn = time.perf_counter()
            examples = store.read(units)
            read = time.perf_counter()
            batch_reads(model, examples)
            parts["merging"] += time.perf_counter() - read
            parts["reading"] += read - drawn
            parts["drawing"] += drawn - begin

    # inside a task of the pool kernels stay on the task's thread
    get_workers().run([epoch, lambda: None])
    return parts


def told(command: list[str]) -> dict[str, Any]:
    """What a process prints on its last line of JSON."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[1]} failed:\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    reply: dict[str, Any] = json.loads(lines[-1])
    return reply


def measure(
    name: str, source: Path | None, turns: int, examples: int, peer_python: str | None
) -> dict[str, Any]:
    """One log; all work happens in other processes, or they would inherit this one's peak memory."""
    log = LOGS[name]
    own: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dpads-epochs-") as folder:
        here = [sys.executable, __file__, "--logs", name, "--folder", folder]
        here += ["--examples", str(examples)]
        facts = told([*here, "--side", "prepare", *(["--source", str(source)] if source else [])])
        there = [str(PEER_SCRIPT), str(Path(folder) / ARRAYS), str(log.batch), str(DIM)]
        there += [str(width) for width in HIDDEN]
        for turn in range(turns):
            sides = [(own, [*here, "--side", "dpads"])]
            if peer_python is not None:
                sides.append((peer, [peer_python, *there]))
            for results, command in sides if turn % 2 else sides[::-1]:
                results.append(told(command))

    def median(results: list[dict[str, Any]], key: str) -> float:
        return statistics.median(result[key] for result in results)

    names = ("seconds", "peak_gb", "opening", "drawing", "reading", "merging")
    cell = {"log": name, "batch": log.batch, **facts}
    cell["dpads"] = {key: median(own, key) for key in names}
    cell["drawing_and_reading_share"] = statistics.median(
        (one["drawing"] + one["reading"]) / one["seconds"] for one in own
    )
    cell["merging_share"] = statistics.median(one["merging"] / one["seconds"] for one in own)
    if peer:
        cell["deepctr_torch"] = {key: median(peer, key) for key in ("seconds", "peak_gb")}
        cell["ratio"] = statistics.median(
            one["seconds"] / other["seconds"] for one, other in zip(own, peer, strict=True)
        )
        cell["packages"] = peer[0]["packages"]
    return cell


def table_of(cells: list[dict[str, Any]], machine: str) -> str:
    """The logs as Markdown."""
    how = (
        f"`python benchmarks/epochs.py`; {machine}. Medians of turns, ratios of pairs. Drawing, reading "
        "and merging are on one thread, as a share of the epoch: the trainer does them beside the noise."
    )
    lines = [
        "# Seconds per epoch",
        "",
        how,
        "",
        HEADER,
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        own, peer = cell["dpads"], cell.get("deepctr_torch")
        theirs, ratio, memory = "not measured", "", f"{own['peak_gb']:.2f}"
        if peer is not None:
            theirs, ratio = f"{peer['seconds']:.2f}", f"{cell['ratio']:.2f}"
            memory += f", {peer['peak_gb']:.2f}"
        lines.append(
            f"| {LOGS[cell['log']].title} | {cell['examples']:,} | {cell['fields']} + {cell['numbers']} "
            f"| {cell['table_rows']:,} | {cell['batch']:,} | {own['seconds']:.2f} | {theirs} | {ratio} "
            f"| {cell['drawing_and_reading_share']:.1%} | {cell['merging_share']:.1%} | {memory} |"
        )
    lines.append("")
    if not all("deepctr_torch" in cell for cell in cells):
        lines += ["deepctr-torch: no environment was given (`--peer-python`).", ""]
    return "\n".join(lines)


def main() -> None:
    """Measures the logs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--logs", nargs="*", default=list(LOGS), choices=list(LOGS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--examples", type=int, default=MADE_UP_EXAMPLES, help="of the made-up log")
    parser.add_argument("--peer-python", help="interpreter of an environment with deepctr-torch")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the table")
    parser.add_argument("--side", choices=("prepare", "dpads"), help="do one part of one log here")
    parser.add_argument("--folder", type=Path, help="of that part")
    parser.add_argument("--source", type=Path, help="log of that part")
    arguments = parser.parse_args()
    if arguments.side == "prepare":
        prepare(arguments.logs[0], arguments.folder, arguments.source, arguments.examples)
        return
    if arguments.side == "dpads":
        dpads_epoch(arguments.folder, LOGS[arguments.logs[0]].batch)
        return
    data = Path(os.environ.get("DPADS_DATA", HERE.parents[1] / "shared" / "data"))
    cells = []
    for name in arguments.logs:
        file = LOGS[name].file
        source = None if file is None else data / file
        if source is not None and not source.exists():
            print(f"{name} is left out: there is no {source}")
            continue
        cells.append(
            measure(name, source, arguments.turns, arguments.examples, arguments.peer_python)
        )
        print(json.dumps(cells[-1]), flush=True)
    packages = [f"{name} {version(name)}" for name in ("torch", "numba", "numpy")]
    theirs = sorted({cell.pop("packages") for cell in cells if "packages" in cell})
    machine = (
        f"{platform.machine()}, {len_cores()} cores, Python {platform.python_version()}, "
        f"{', '.join([*packages, *theirs])}"
    )
    report = json.dumps({"machine": machine, "logs": cells}, indent=1)
    (arguments.out / "epochs.json").write_text(report + "\n")
    (arguments.out / "epochs.md").write_text(table_of(cells, machine))


if __name__ == "__main__":
    main()
