"""What a process finds out before it waits for the others, and how it waits."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_calls import dpads_command
from processes import free_port

import dpads
from dpads import cli_processes, training
from dpads.cli_processes import join_processes, listening_address
from dpads.errors import ConfigError, DpadsError
from dpads.jax_hosts import GO_ON

CONFIG = """
[data]
train = "store"
[schema]
task = "ctr"
label = "click"
categorical = ["device", "hour"]
numeric = ["past_clicks"]
buckets = 50
[model]
name = "logistic"
[privacy]
noise_multiplier = 1.0
delta = 1e-5
[training]
backend = "jax"
expected_batch_size = 64
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("joining")
    (found / "ads.toml").write_text(CONFIG)
    dpads.synthetic.click_log(300, seed=3).write(found / "log.parquet")
    dpads.prepare(found / "log.parquet", found / "ads.toml", out=found / "store", shards=2)
    dpads.prepare(found / "log.parquet", found / "ads.toml", out=found / "uncut")
    (found / "there").mkdir()
    (found / "begun.partial").mkdir()
    return found


@pytest.mark.parametrize(
    ("coordinator", "says"),
    [
        ("localhost", "HOST:PORT with a port from 1 to 65535"),
        ("localhost:", "HOST:PORT with a port from 1 to 65535"),
        (":9876", "HOST:PORT with a port from 1 to 65535"),
        ("127.0.0.1:99999", "HOST:PORT with a port from 1 to 65535"),
        ("127.0.0.1:0", "HOST:PORT with a port from 1 to 65535"),
        ("http://127.0.0.1:9876", 'nobody here knows the host "http://127.0.0.1"'),
        ("no-such-host.invalid:9876", 'nobody here knows the host "no-such-host.invalid"'),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_an_address_that_leads_nowhere_is_refused(coordinator: str, says: str, number: int) -> None:
    with pytest.raises(ConfigError, match=says):
        listening_address(coordinator, number)


def test_process_0_listens_at_the_address_that_is_named_and_refuses_a_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    assert listening_address(f"127.0.0.1:{port}", 0) == f"127.0.0.1:{port}"
    assert listening_address(f"127.0.0.1:{port}", 1) is None
    assert listening_address(f"192.0.2.1:{port}", 0) is None  # of no machine: a gateway's, perhaps
    name = socket.gethostname()
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.1.1", port))],
    )
    assert (
        listening_address(f"{name}-of-debian:{port}", 0) is None
    )  # others know it by another address
    monkeypatch.undo()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ConfigError, match=r"process 0 cannot listen at .* Give a port"):
            listening_address(f"127.0.0.1:{port}", 0)
        assert listening_address(f"127.0.0.1:{port}", 1) is None


@pytest.mark.parametrize(
    ("count", "number", "out", "more", "says"),
    [
        (0, 0, "run", {}, "--num-processes of 1 or more, got 0"),
        (2, 2, "run", {}, "--process-id from 0 to 1"),
        (2, 0, "there", {}, "there: exists already"),
        (2, 0, "begun", {}, "begun.partial: an interrupted run is here"),
        (2, 0, "run", {"resume": True}, "run.partial: nothing to resume"),
        (2, 1, "run", {"set_": ["data.train=absent"]}, "absent"),
        (
            2,
            1,
            "run",
            {"set_": ["data.train=log.parquet"]},
            "expected the folder of a store in shards",
        ),
        (3, 1, "run", {}, "shards"),
        (2, 1, "run", {"set_": ["data.train=uncut"]}, "shards"),
        (2, 0, "run", {"physical_batch_size": 64}, "--physical-batch-size is for one process"),
        (2, 0, "run", {"set_": ["training.backend=torch"]}, 'Expected backend = "jax"'),
    ],
)
def test_what_one_process_can_see_is_said_before_it_waits(
    folder: Path, count: int, number: int, out: str, more: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {"set_": [], "resume": False, "physical_batch_size": None, **more}
    given["set_"] = [word.replace("data.train=", f"data.train={folder}/") for word in given["set_"]]
    with pytest.raises(DpadsError, match=says):
        join_processes(
            f"127.0.0.1:{free_port()}",
            count,
            number,
            config=folder / "ads.toml",
            out=folder / out,
            **given,
        )


def waiting(number: int, seconds: int) -> subprocess.Popen[str]:
    """A process whose partner never comes."""
    program = (
        "from dpads import jax_hosts as h\n"
        "from dpads.cli_processes import ending_for_all\n"
        f"h.START_SECONDS = {seconds}\n"
        "with ending_for_all():\n"
        "    print('waiting', flush=True)\n"
        f"    h.join('127.0.0.1:{free_port()}', None, 2, {number})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [0, 1])
def test_who_waits_in_vain_says_so(number: int) -> None:
    process = waiting(number, seconds=2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: The 2 processes did not meet at 127.0.0.1:" in output
    assert "Traceback" not in output


def test_ctrl_c_ends_the_waiting() -> None:
    process = waiting(0, seconds=300)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Interrupted before training began: nothing was changed." in output
    assert "Traceback" not in output


def test_the_way_on_after_an_interruption_names_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "step", stop)
    group = [
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--num-processes",
        "1",
        "--process-id",
        "0",
    ]
    ended: list[int] = []
    monkeypatch.setattr(cli_processes, "_end", ended.append)
    result = dpads_command("train", folder / "ads.toml", "--out", folder / "cut", *group)
    assert ended[0] == 1
    assert f"--resume {' '.join(group)}" in result.stderr


def test_a_process_that_c_code_aborts_says_what_to_do() -> None:
    program = (
        "import os\n"
        "from dpads.cli_processes import say_when_aborted\n"
        "say_when_aborted()\n"
        "os.abort()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: JAX has ended this process: another one has stopped or hung"
    )
    assert ended.stderr.endswith(f"{GO_ON}\n")
