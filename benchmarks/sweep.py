"""What a sweep costs beside its trials: twenty of them side by side, against each of them alone.

    python benchmarks/sweep.py                    # about 3 minutes on two free cores
    python benchmarks/sweep.py --epochs 5 --out FOLDER

writes sweep.md and sweep.json. The log is AdKDD's where ../shared/data (or DPADS_DATA) has it, else a
synthetic one. A trial's own compute is what it takes from plan to statement when it has the machine for
itself and one thread; the ratio is the sweep's wall time, from reading its file to the last byte of the
report, over the sum of these divided by the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROWS: Final = 200_000
AXES: Final = {
    "privacy.epsilon": [1, 3],
    "training.expected_batch_size": [4096, 8192],
    "training.init_seed": [1, 2, 3, 4, 5],
}


def base(folder: Path, epochs: float) -> dict[str, Any]:
    """The configuration that all trials start from."""
    from dpads.synthetic import click_log

    log = HERE.parents[1] / "shared" / "data"
    real = Path(os.environ.get("DPADS_DATA", log)) / "criteo_adkdd2021.parquet"
    if real.is_file():
        from adkdd import SCHEMA  # type: ignore[import-not-found]

        data, schema = real, SCHEMA.to_dict()
    else:
        drawn = click_log(ROWS, seed=1)
        data, schema = drawn.write(folder / "log.parquet"), drawn.schema.to_dict()
    return {
        "data": {"train": str(data), "test": 0.2, "split_seed": 1},
        "schema": {key: value for key, value in schema.items() if value},
        "model": {"name": "logistic"},
        "privacy": {"epsilon": 1.0, "delta": 1e-6},
        "training": {"epochs": epochs, "table_optimizer": {"learning_rate": 1.0}},
    }


def measure(epochs: float, folder: Path) -> dict[str, Any]:
    """Both ways, on stores prepared before."""
    import dpads
    from dpads.kernels.workers import available_cores
    from dpads.sweep_config import parse_sweep
    from dpads.sweep_trial import read_outcome

    cores = available_cores()
    document = base(folder, epochs)
    store = dpads.prepare(
        document["data"]["train"],
        dpads.FeatureSchema.from_dict(document["schema"]),
        out=folder / "rows",
    )
    document["data"]["train"] = str(store.path)
    document["privacy"]["dataset_size"] = round(0.0008 * store.num_examples) * 1000
    config = parse_sweep({"base": document, "axes": AXES}, base=folder)
    found: dict[str, Any] = {
        "rows": store.num_examples,
        "trials": len(config.trials),
        "cores": cores,
    }
    for name, workers in (("alone", 1), ("together", cores)):
        begin = time.perf_counter()
        swept = dpads.sweep(config, out=folder / name, workers=workers, threads=1)
        wall = time.perf_counter() - begin
        outcomes = [read_outcome(swept.folder_of(trial.name)) for trial in swept.trials]
        whole = [outcome.wall_seconds or 0.0 for outcome in outcomes if outcome]
        training = [outcome.seconds or 0.0 for outcome in outcomes if outcome]
        begin = time.perf_counter()
        swept.report()
        found[name] = {
            "wall_s": wall,
            "trials_s": sum(whole),
            "median_trial_s": statistics.median(whole),
            "median_beside_training_s": statistics.median(
                a - b for a, b in zip(whole, training, strict=True)
            ),
            "report_s": time.perf_counter() - begin,
        }
    ideal = found["alone"]["trials_s"] / cores
    found |= {"ideal_s": ideal, "ratio": found["together"]["wall_s"] / ideal}
    return found


def table_of(found: dict[str, Any], machine: str) -> str:
    """sweep.md."""
    alone, together = found["alone"], found["together"]

    def row(what: str, name: str, digits: int = 1) -> str:
        return f"| {what} | {alone[name]:.{digits}f} s | {together[name]:.{digits}f} s |"

    ideal, ratio = f"{found['ideal_s']:.1f} s", f"**{found['ratio']:.2f} times**"
    lines = [
        "# What a sweep costs beside its trials",
        "",
        f"`python benchmarks/sweep.py`; {machine}. {found['trials']} trials of a logistic model on",
        f"{found['rows']:,} examples, one thread each.",
        "",
        "| | one at a time | side by side |",
        "|---|---|---|",
        row("wall time of the sweep", "wall_s"),
        row("trials, from plan to statement, summed", "trials_s"),
        row("a trial (median)", "median_trial_s", 2),
        row("of which calibration, metrics, statement, files", "median_beside_training_s", 2),
        row("the report, written again", "report_s"),
        "",
        f"Side by side on {found['cores']} cores: {together['wall_s']:.1f} s, {ratio} the {ideal} that the",
        "trials' own compute takes when it is spread without loss.",
        "",
        "The wall time has everything in it: reading the sweep, starting workers and their imports, the",
        "trials, results after each, composing the ledger, the report.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.epochs, Path(folder))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "numpy"))
    machine = f"{platform.machine()}, {found['cores']} cores, Python {platform.python_version()}, {packages}"
    text = json.dumps({"machine": machine, "epochs": arguments.epochs, **found}, indent=1)
    (arguments.out / "sweep.json").write_text(text + "\n")
    (arguments.out / "sweep.md").write_text(table_of(found, machine))
    print(table_of(found, machine))


if __name__ == "__main__":
    main()
