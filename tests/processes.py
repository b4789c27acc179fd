"""Starting several processes of one run on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("as_process.py")


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    output: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(*arguments: object, folder: Path, devices: int = 1) -> subprocess.Popen[str]:
    """`dpads` with so many devices that the processor pretends to have."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": flags, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def group(
    count: int,
    *arguments: object,
    folder: Path,
    devices: int = 1,
    last: Sequence[object] = (),
) -> list[subprocess.Popen[str]]:
    """`dpads train` in so many processes; one starts as it would alone.

    Args:
        count: of processes.
        arguments: of all of them.
        folder: where they work.
        devices: of each.
        last: more arguments of the last process.
    """
    words = ["train", *arguments]
    if count == 1:
        return [start(*words, folder=folder, devices=devices)]
    words += ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", count]
    return [
        start(
            *words,
            "--process-id",
            i,
            *(last if i == count - 1 else ()),
            folder=folder,
            devices=devices,
        )
        for i in range(count)
    ]


def ended(process: subprocess.Popen[str], seconds: float = 300) -> Ended:
    """Waits for a process; one that does not end in time is ended, and that fails."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{output}") from None
    return Ended(process.returncode, output)


def done(count: int, *arguments: object, folder: Path, devices: int = 1) -> list[str]:
    """What the processes of a run that must succeed printed."""
    found = [ended(one) for one in group(count, *arguments, folder=folder, devices=devices)]
    for one in found:
        assert one.code == 0, "\n---\n".join(other.output for other in found)
    return [one.output for one in found]
