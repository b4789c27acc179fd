"""The Ray engine: what it refuses, in bounded time, and a sweep on a real local cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_cases import TOO_LARGE, announced, base

import dpads
from dpads.errors import ConfigError, MissingDependencyError, RunError
from dpads.store import ExampleStore
from dpads.sweep_config import SweepConfig, parse_sweep

ROOT = Path(dpads.__file__).parents[1]


@pytest.fixture
def config(train_store: ExampleStore, test_store: ExampleStore) -> SweepConfig:
    document = base()
    document["data"] = {"train": str(train_store.path), "test": str(test_store.path)}
    axes = {"privacy.epsilon": [1, 3], "training.init_seed": [1, 2]}
    return parse_sweep({"base": document, "axes": axes}, base=Path())


def test_without_ray_it_says_how_to_install_it(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "dpads\[ray\]"'):
        dpads.sweep(config, out=tmp_path / "s", engine="ray")
    assert not (tmp_path / "s" / "ledger.jsonl").exists()


@pytest.mark.parametrize("address", ["here", "here:", ":6379", "here:port", ""])
def test_what_is_no_address_is_refused(config: SweepConfig, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        dpads.sweep(config, out=tmp_path / "s", engine="ray", address=address)


def test_a_port_where_nobody_listens_is_refused_at_once(
    config: SweepConfig, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RunError, match=f"{address}: no Ray cluster answers"):
            dpads.sweep(config, out=tmp_path / "s", engine="ray", address=address)


@pytest.mark.slow
def test_a_port_that_is_not_rays_is_refused_in_bounded_time(
    config: SweepConfig, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match=address):
            dpads.sweep(config, out=tmp_path / "s", engine="ray", address=address)


@pytest.fixture
def cluster() -> Iterator[str]:
    """A Ray cluster of two cores on this machine, as `ray start --head` makes one."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(Path(sys.executable).parent / "ray")]
    options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run(
        [*command, "start", "--head", f"--port={port}", *options],
        env=environment, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "stop", "--force"], check=False, capture_output=True, timeout=120)


@pytest.mark.slow
def test_trials_run_side_by_side_on_a_cluster(
    config: SweepConfig, tmp_path: Path, cluster: str
) -> None:
    document = {**config.document, "draw": "list", "trials": [
        *({"training.init_seed": seed} for seed in range(1, 6)), {"model": TOO_LARGE},
    ]}  # fmt: skip
    del document["axes"]
    seen: list[int] = []
    swept = dpads.sweep(
        parse_sweep(document, base=Path()),
        out=tmp_path / "s",
        engine="ray",
        address=cluster,
        on_progress=lambda at: seen.append(len(at.running)),
    )
    assert swept.results["status"].to_list() == [*["done"] * 5, "failed"]
    assert "memory" in swept.results["error"][5]
    assert max(seen) == 2
    assert max(announced(swept.path).values()) == 1
    for trial in swept.trials[:5]:
        assert dpads.Run.load(swept.folder_of(trial.name)).record.executed == 20
    again = dpads.sweep(parse_sweep(document, base=Path()), out=swept.path)
    assert again.results.equals(swept.results)


@pytest.mark.slow
def test_without_a_cluster_one_is_started_and_said_so(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notes: list[str] = []
    swept = dpads.sweep(config, out=tmp_path / "s", engine="ray", workers=2, on_note=notes.append)
    assert set(swept.results["status"]) == {"done"}
    assert len(notes) == 1
    assert "one is started here for this sweep alone" in notes[0]
