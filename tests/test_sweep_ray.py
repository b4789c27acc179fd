"""The Ray engine: what it refuses, in bounded time, and a sweep on a real local cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_cases import TOO_LARGE, announced, base

import dpads
from dpads import sweep_ray
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


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(60)", "nothing that is Ray's within 0.2 s"),
        ("raise ConnectionError('not here')", "ConnectionError: not here"),
        ("", None),
    ],
)
def test_nobody_is_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, code: str, reason: str | None
) -> None:
    monkeypatch.setattr(sweep_ray, "_PROBE", code)
    monkeypatch.setattr(sweep_ray, "PROBE_SECONDS", 0.2 if reason and "within" in reason else 60.0)
    assert sweep_ray._refusal("auto") == reason


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
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two cores, reachable from this machine alone; it is ended by its own process.

    `ray stop` would end every cluster of the machine. A token in the home folder of whoever runs the tests
    is none of theirs: this cluster asks for none.
    """
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    place = ["--node-ip-address=127.0.0.1", f"--port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    with (tmp_path / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [*command, *options, *place], env=environment, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 120
        while b"Ray runtime started" not in (tmp_path / "ray.log").read_bytes():
            assert head.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


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
def test_without_a_cluster_one_is_started_and_said_so(config: SweepConfig, tmp_path: Path) -> None:
    """In a process and a home folder of its own: Ray keeps a token there, and a mode in the process."""
    pytest.importorskip("ray")
    file, out = tmp_path / "sweep.toml", tmp_path / "s"
    file.write_text(config.to_toml())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "dpads", "sweep", str(file), "--out", str(out)]
    done = subprocess.run(
        [*command, "--engine", "ray", "--workers", "2"],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one is started here for this sweep alone" in done.stderr
    assert set(dpads.Sweep.open(out).results["status"]) == {"done"}
