"""dpads beside Opacus on the AdKDD 2021 log: the same model, rows, budget and number of trials.

    python benchmarks/adkdd.py                      # reads ../shared/data, or the folder in DPADS_DATA

writes adkdd.md and adkdd.json beside this file. benchmarks/README.md says what is compared and why.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import adkdd_opacus
import adkdd_steps
import adkdd_table
import adkdd_trials as trials_of
from adkdd_setting import DELTA, METRICS, Outcome, Setting, scores_of

import dpads

HERE: Final = Path(__file__).parent
SEEDS: Final = (0, 1, 2)
REPEATS: Final = 2  # of every training on a seed's rows
EPSILONS: Final = (1.0, 3.0, 8.0, None)  # None: no noise, no clipping
TEST_SHARE: Final = 0.2
# A split of the training rows needs coins of its own: the same seed would give the same side.
VALIDATION_SEED: Final = 1000
ROWS: Final = 71_567  # of the published log: a public number

# About a power of two near the cardinality that the log's description gives each column, and less
# for the two columns that are mostly ids seen once: 57,472 rows in all.
BUCKETS: Final = {
    "hash_0": 4096, "hash_1": 16, "hash_2": 16, "hash_3": 256, "hash_4": 16, "hash_5": 8,
    "hash_6": 32, "hash_7": 32, "hash_8": 32, "hash_9": 16, "hash_10": 2048, "hash_11": 64,
    "hash_12": 1024, "hash_13": 128, "hash_14": 32768, "hash_15": 16, "hash_16": 512,
    "hash_17": 16384, "hash_18": 8,
}  # fmt: skip
SCHEMA: Final = dpads.FeatureSchema(
    task="ctr", label="click", categorical=list(BUCKETS), buckets=BUCKETS
)

Runner = Callable[
    [dpads.ExampleStore, dpads.ExampleStore, Setting, float | None, int, int], Outcome
]


def run_dpads(
    train: dpads.ExampleStore,
    judged: dpads.ExampleStore,
    setting: Setting,
    epsilon: float | None,
    seed: int,
    public_size: int,
) -> Outcome:
    """Trains through the public interface; the noise key comes from the operating system."""
    begin = time.perf_counter()
    run = dpads.train(
        train,
        model=dpads.models.Logistic(),
        privacy=dpads.PrivacySpec(
            epsilon=epsilon,
            noise_multiplier=0.0 if epsilon is None else None,
            delta=DELTA,
            dataset_size=public_size,
        ),
        l2_clip_norm=setting.l2_clip_norm,
        expected_batch_size=setting.batch_size,
        epochs=setting.epochs,
        table_optimizer=dpads.Sgd(
            learning_rate=setting.learning_rate,
            schedule=setting.schedule,
            weight_decay=setting.weight_decay,
        ),
        tower_optimizer=dpads.Sgd(learning_rate=setting.learning_rate, schedule=setting.schedule),
        init_seed=seed,
    )
    seconds = time.perf_counter() - begin
    return Outcome(
        scores=scores_of(run.evaluate(judged)),
        iterations=run.plan.mechanism.iterations,
        seconds=seconds,
        noise_multiplier=run.plan.mechanism.noise_multiplier,
        epsilon=None if epsilon is None else run.plan.loss.epsilon,
    )


def run_opacus(
    train: dpads.ExampleStore,
    judged: dpads.ExampleStore,
    setting: Setting,
    epsilon: float | None,
    seed: int,
    public_size: int,
) -> Outcome:
    """Trains with Opacus, which takes its sampling rate from the loader; without a budget in PyTorch."""
    return adkdd_opacus.run(train, judged, setting, epsilon, seed)


def tune(
    runner: Runner, settings: tuple[Setting, ...], epsilon: float | None, store: dpads.ExampleStore
) -> tuple[Setting, list[dict[str, Any]]]:
    """Trains every setting on part of seed 0's training rows; the least log loss on the rest wins."""
    train, _ = store.split(TEST_SHARE, SEEDS[0])
    fitted, validation = train.split(TEST_SHARE, VALIDATION_SEED)
    size = round(ROWS * (1 - TEST_SHARE) ** 2)
    trials = []
    for setting in settings:
        outcome = runner(fitted, validation, setting, epsilon, SEEDS[0], size)
        trials.append({"setting": setting.to_dict(), **vars(outcome)})
        print(f"    {setting}: validation {shown(outcome)}", flush=True)
    losses = [trial["scores"]["log_loss"] for trial in trials]
    return settings[losses.index(min(losses))], trials


def judge(
    runner: Runner, setting: Setting, epsilon: float | None, store: dpads.ExampleStore
) -> list[dict[str, Any]]:
    """Trains the winner on each seed's training rows and judges it on the test rows.

    A seed's scores are means over trainings that differ in noise and sampling alone.
    """
    tests = []
    for seed in SEEDS:
        train, test = store.split(TEST_SHARE, seed)
        size = round(ROWS * (1 - TEST_SHARE))
        outcomes = [
            runner(train, test, setting, epsilon, seed + 100 * repeat, size)
            for repeat in range(REPEATS)
        ]
        for outcome in outcomes:
            print(f"    seed {seed}: test {shown(outcome)}", flush=True)
        scores = {name: statistics.mean(o.scores[name] for o in outcomes) for name in METRICS}
        tests.append({"seed": seed, "scores": scores, "runs": [vars(o) for o in outcomes]})
    return tests


def shown(outcome: Outcome) -> str:
    """A run in a line of progress."""
    scores = ", ".join(f"{name} {outcome.scores[name]:.4f}" for name in METRICS)
    return f"{scores} ({outcome.seconds:.1f} s)"


def compare(store: dpads.ExampleStore) -> dict[str, Any]:
    """Tunes and judges both sides at every budget."""
    results = []
    for epsilon in EPSILONS:
        sides: dict[str, tuple[Runner, tuple[Setting, ...]]] = (
            {
                "dpads": (run_dpads, trials_of.DPADS_FREE),
                "PyTorch": (run_opacus, trials_of.PYTORCH_FREE),
            }
            if epsilon is None
            else {
                "dpads": (run_dpads, trials_of.DPADS_PRIVATE[epsilon]),
                "Opacus": (run_opacus, trials_of.OPACUS_PRIVATE[epsilon]),
            }
        )
        result: dict[str, Any] = {"epsilon": epsilon, "sides": {}}
        for side, (runner, settings) in sides.items():
            print(f"epsilon {epsilon or 'infinity'}, {side}", flush=True)
            winner, trials = tune(runner, settings, epsilon, store)
            tests = judge(runner, winner, epsilon, store)
            result["sides"][side] = {
                "winner": winner.to_dict(),
                "winner_text": str(winner),
                "trials": trials,
                "tests": tests,
            }
        results.append(result | {"difference": difference(result["sides"])})
    return {"results": results}


def difference(sides: dict[str, Any]) -> dict[str, dict[str, float | bool]]:
    """Paired over the seeds, first side minus second, signed so that more is better."""
    ours, theirs = (side["tests"] for side in sides.values())
    result: dict[str, dict[str, float | bool]] = {}
    for name, sign in (("auc", 1.0), ("log_loss", -1.0)):
        gaps = [
            sign * (a["scores"][name] - b["scores"][name])
            for a, b in zip(ours, theirs, strict=True)
        ]
        mean, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
        result[name] = {"mean": mean, "standard_error": error, "not_inferior": mean >= -error}
    return result


def main() -> None:
    """Runs everything and writes the table."""
    data = Path(os.environ.get("DPADS_DATA", HERE.parents[1] / "shared" / "data"))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dpads-adkdd-") as folder:
        log = data / "criteo_adkdd2021.parquet"
        store = dpads.prepare(log, SCHEMA, out=Path(folder) / "store")
        report = compare(store)
        train, _ = store.split(TEST_SHARE, SEEDS[0])
        report["steps"] = adkdd_steps.measure(train, round(ROWS * (1 - TEST_SHARE)))
    report["configuration"] = {
        "log": "criteo_adkdd2021.parquet",
        "label": "click",
        "model": "logistic: one weight per row of each column's table, and a bias",
        "buckets": BUCKETS,
        "delta": DELTA,
        "seeds": SEEDS,
        "repeats": REPEATS,
        "test_share": TEST_SHARE,
        "validation": f"{TEST_SHARE} of seed 0's training rows; the least log loss wins",
        "optimizers_of_the_bias": "those of the tables, without weight decay in dpads",
    }
    report["environment"] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numba", "numpy", "opacus", "torch")},
        "dpads": dpads.__version__,
        "minutes": round((time.perf_counter() - begin) / 60, 1),
    }
    table = adkdd_table.render(report)
    (HERE / "adkdd.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (HERE / "adkdd.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
