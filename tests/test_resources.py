"""What training takes of memory: estimated from sizes, held against what is there, measured."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from safetensors.numpy import save

import dpads
from dpads import private_selection_worker, recipe_batch, record, run_files
from dpads.accounting.ledger import Ledger
from dpads.config import parse_config
from dpads.errors import ConfigError
from dpads.plan import resolve
from dpads.resources import (
    IMPORTS,
    MemoryEstimate,
    available_memory,
    check_memory,
    estimate_memory,
)
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer, TrainingSettings

ROOT = Path(__file__).parents[1]
MEGABYTE = 1_000_000
MODEL = dpads.models.Mlp(embedding_dim=16, hidden=(64, 32))
SCHEMA = dpads.FeatureSchema(
    task="ctr", label="y", numeric=["n"], categorical=["a", "b"], bags=["c"], buckets=10_000
)


def estimate(**changes: object) -> MemoryEstimate:
    arguments = {"expected_batch_size": 1024, **changes}
    return estimate_memory(MODEL, SCHEMA, **arguments)  # type: ignore[arg-type]


def test_tables_and_history_are_exact() -> None:
    assert estimate().tables == 3 * 10_000 * 16 * 4
    assert estimate().history == 3 * 10_000 * 4
    dense = estimate(table_noise="dense")
    assert (dense.history, dense.checkpoint) == (0, 3 * 10_000 * 4)
    assert estimate().total == sum(dataclasses.asdict(estimate()).values())
    assert estimate().to_dict()["total"] == estimate().total


def test_the_tower_is_counted_by_its_parameters() -> None:
    width = 3 * 16 + 1
    parameters = width * 64 + 64 + 64 * 32 + 32 + 32 + 1
    assert estimate().optimizer == 16 * parameters


def test_the_batch_part_grows_with_the_batch_and_not_with_the_tables() -> None:
    small, large = estimate().batch, estimate(expected_batch_size=16 * 1024).batch
    assert 5 * small < large < 16 * small
    more_rows = dataclasses.replace(SCHEMA, buckets=10_000_000)
    assert estimate_memory(MODEL, more_rows, expected_batch_size=1024).batch == small
    pieces = estimate(expected_batch_size=1 << 20, physical_batch_size=1024)
    assert pieces.batch < estimate(expected_batch_size=1 << 20).batch / 10


def test_every_model_can_be_estimated_without_allocating_it() -> None:
    schema = dataclasses.replace(SCHEMA, buckets=1_000_000_000)
    estimate_memory(MODEL, schema, expected_batch_size=1024)  # loads torch
    tracemalloc.start()
    try:
        for model in (MODEL, dpads.models.Logistic(), dpads.models.Mlp(hidden=(20_000, 20_000))):
            assert estimate_memory(model, schema, expected_batch_size=1024).tables >= 12e9
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()


def machine(root: Path, files: dict[str, object]) -> Path:
    """A made-up /proc and /sys."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return root


MEMINFO = "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n"
TOP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, None, id="nothing known"),
        pytest.param({"proc/meminfo": MEMINFO}, 5_120_000, id="machine"),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a/b",
                f"{TOP}/a/b/memory.max": "max",
                f"{TOP}/a/b/memory.current": 10,
                f"{TOP}/a/memory.max": 2_000_000,
                f"{TOP}/a/memory.current": 1_500_000,
                f"{TOP}/a/memory.stat": "anon 7\ninactive_file 300000",
            },
            800_000,
            id="version 2, the parent's limit, cached files left out",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "9:cpu:/x\n4:cpuset,memory:/of/the/host",
                f"{TOP}/memory/memory.limit_in_bytes": 3_000_000,
                f"{TOP}/memory/memory.usage_in_bytes": 1_000_000,
            },
            2_000_000,
            id="version 1 in a container",
        ),
        pytest.param(
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:memory:/",
                f"{TOP}/memory/memory.limit_in_bytes": 9_223_372_036_854_771_712,
                f"{TOP}/memory/memory.usage_in_bytes": 1,
            },
            5_120_000,
            id="version 1 without a limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/",
                f"{TOP}/memory.max": 100,
                f"{TOP}/memory.current": 200,
            },
            0,
            id="over the limit",
        ),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, files: dict[str, object], expected: int | None
) -> None:
    assert available_memory(machine(tmp_path, files)) == expected


def test_this_machine_has_memory() -> None:
    available = available_memory()
    assert available is None or available > 10 * MEGABYTE


def test_what_does_not_fit_is_refused_with_the_parts_and_a_way_out(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/meminfo": "MemAvailable: 2000000 kB"})
    fits = MemoryEstimate(
        tables=10**9, history=0, optimizer=0, batch=0, checkpoint=0, imports=IMPORTS
    )
    check_memory(fits, root=root)
    with pytest.raises(
        ConfigError, match=r"2\.0 GB .* needs 10\.6 GB \(tables 10\.0, imports 0\.6\)"
    ):
        check_memory(dataclasses.replace(fits, tables=10**10), root=root)
    with pytest.raises(ConfigError, match="fewer buckets or a smaller embedding_dim"):
        check_memory(dataclasses.replace(fits, tables=10**10), root=root)
    with pytest.raises(ConfigError, match="smaller physical_batch_size"):
        check_memory(dataclasses.replace(fits, batch=10**10), root=root)
    check_memory(dataclasses.replace(fits, tables=10**15), root=tmp_path / "no kernel's files")


def test_libraries_that_are_loaded_already_are_not_counted_twice(tmp_path: Path) -> None:
    need = MemoryEstimate(
        tables=10**9, history=0, optimizer=0, batch=0, checkpoint=0, imports=IMPORTS
    )
    files: dict[str, object] = {"proc/meminfo": "MemAvailable: 1200000 kB"}
    with pytest.raises(ConfigError):
        check_memory(need, root=machine(tmp_path, files))
    loaded = machine(tmp_path, {**files, "proc/self/status": "VmRSS: 500000 kB"})
    check_memory(need, root=loaded)
    # but tables that are there already do count
    check_memory(need, root=machine(tmp_path, {"proc/self/status": "VmRSS: 90000000 kB"}))
    with pytest.raises(ConfigError):
        check_memory(dataclasses.replace(need, tables=2 * 10**9), root=loaded)


def test_a_trainer_refuses_an_absurd_table_before_anything_is_allocated(
    train_store: ExampleStore,
) -> None:
    model = dpads.models.Mlp(embedding_dim=200_000_000, hidden=(8,))
    privacy = dpads.PrivacySpec(epsilon=3.0, dataset_size=3000)
    plan = resolve(privacy, expected_batch_size=300, epochs=1)
    ledger = Ledger()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="fits into"):
            Trainer(train_store, model, plan, TrainingSettings(), Performance(), ledger)
        assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert not ledger.entries


MEASURED_RUN = """
import dataclasses, json, sys, tempfile
from pathlib import Path
import dpads
from dpads.resources import estimate_memory

if __name__ == "__main__":
    log = dpads.synthetic.click_log(4000, seed=1, buckets=200)
    schema = dataclasses.replace(log.schema, buckets=int(sys.argv[1]))
    model = dpads.models.Mlp(embedding_dim=16, hidden=(64,))
    with tempfile.TemporaryDirectory() as name:
        log.write(Path(name) / "log.parquet")
        store = dpads.prepare(str(Path(name) / "log.parquet"), schema, out=Path(name) / "store")
        privacy = dpads.PrivacySpec(epsilon=3.0, dataset_size=4000)
        out = Path(name) / "run"
        dpads.train(
            store, model=model, privacy=privacy, expected_batch_size=512, epochs=1, out=out,
            backend=sys.argv[2],
        )
    # not ru_maxrss, which starts at the size of the process that started this one
    (peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    estimate = estimate_memory(model, schema, expected_batch_size=512, backend=sys.argv[2])
    print(json.dumps({"peak": 1024 * int(peak), "estimate": estimate.total}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "buckets", [500_000, pytest.param(4_000_000, marks=pytest.mark.slow)], ids=["small", "large"]
)
def test_the_estimate_is_what_a_run_takes(
    buckets: int, tmp_path: Path, train_store: ExampleStore
) -> None:
    """Training, flushing and writing a run, in a process of its own."""
    # Compiles and caches every kernel, which the first run on a machine needs some 0.4 GB for.
    privacy = dpads.PrivacySpec(epsilon=3.0, dataset_size=3000)
    dpads.train(train_store, model=MODEL, privacy=privacy, expected_batch_size=300, epochs=1)
    figures = measured_run(tmp_path, buckets, "torch")
    assert figures["estimate"] == pytest.approx(figures["peak"], rel=0.25)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("buckets", [1_000, 2_000_000])
def test_the_estimate_is_about_what_a_run_in_jax_takes(buckets: int, tmp_path: Path) -> None:
    figures = measured_run(tmp_path, buckets, "jax")
    assert 0.75 < figures["estimate"] / figures["peak"] < 2.0


def measured_run(folder: Path, buckets: int, backend: str) -> dict[str, int]:
    """The peak of a run in a process of its own, and the estimate."""
    script = folder / "measured.py"
    script.write_text(MEASURED_RUN)
    done = subprocess.run(
        [sys.executable, script, str(buckets), backend],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures: dict[str, int] = json.loads(done.stdout)
    return figures


def test_jax_holds_tables_of_its_own() -> None:
    given = {"expected_batch_size": 1024}
    torch, jax = (estimate_memory(MODEL, SCHEMA, backend=b, **given) for b in ("torch", "jax"))
    assert torch.device == 0
    assert (jax.tables, jax.history) == (torch.tables, torch.history)
    assert jax.device > 2 * jax.tables
    more = dataclasses.replace(SCHEMA, buckets=dict.fromkeys(SCHEMA.table_rows, 10**6))
    rows = sum(more.table_rows.values()) - sum(SCHEMA.table_rows.values())
    grown = estimate_memory(MODEL, more, backend="jax", **given)
    dim = MODEL.embedding_dim
    assert grown.device - jax.device == 2 * 4 * dim * rows  # and no more of the batch
    whole = estimate_memory(MODEL, SCHEMA, backend="jax", expected_batch_size=100_000)
    pieces = estimate_memory(
        MODEL, SCHEMA, backend="jax", expected_batch_size=100_000, physical_batch_size=1024
    )
    assert pieces.device < whole.device / 10


def test_a_model_is_written_without_copying_its_tables() -> None:
    model = MODEL.init(dataclasses.replace(SCHEMA, buckets={"a": 300_000, "b": 7, "c": 9}), seed=1)
    tracemalloc.start()
    try:
        parts = record.parameters_of(model)
        run_files.sha256(*parts)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    finally:
        tracemalloc.stop()
    assert b"".join(bytes(part) for part in parts) == save(
        model.state(), metadata={"format": "dpads"}
    )


def test_counting_rows_takes_memory_before_training() -> None:
    schema = dpads.FeatureSchema(task="ctr", label="y", categorical=["a", "b"], buckets=10**6)
    model = dpads.models.Logistic()
    plain, counted = (
        estimate_memory(model, schema, expected_batch_size=16, counted=flag)
        for flag in (False, True)
    )
    assert counted.total - plain.total == 17 * 2 * 10**6


def test_whoever_asks_before_a_run_counts_the_memory_of_its_selection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = {
        "data": {"train": "log.parquet"},
        "schema": {"task": "ctr", "label": "y", "categorical": ["c"], "buckets": 1000},
        "model": {"name": "logistic"},
        "privacy": {"epsilon": 3.0, "dataset_size": 400},
        "training": {"expected_batch_size": 100, "epochs": 1},
    }
    plain, selecting = (
        parse_config({**tables, **more}, base=Path("/"))
        for more in ({}, {"selection": {"kind": "noisy_count"}})
    )

    def room(memory: MemoryEstimate) -> None:
        if memory.checkpoint > 0:
            raise ConfigError("no room")

    for module in (private_selection_worker, recipe_batch):
        monkeypatch.setattr(module, "check_memory", room)
    mechanism = resolve(plain.privacy, expected_batch_size=100, epochs=1).mechanism
    private_selection_worker.check_room(plain, mechanism, Performance())
    with pytest.raises(ConfigError, match="no room"):
        private_selection_worker.check_room(selecting, mechanism, Performance())
    assert recipe_batch.batch_sizes(plain, 400) == [100, 200, 400]
    assert recipe_batch.batch_sizes(selecting, 400) == [100]
