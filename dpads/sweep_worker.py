"""A worker process of a sweep: takes trials on standard input until it ends."""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any

from dpads.sweep_trial import TrialTask, run_trial

if TYPE_CHECKING:
    from dpads.run_job import RunProgress


def main(events: int) -> None:
    """Works until standard input ends, which also ends a trial that is under way.

    Args:
        events: descriptor that events are written to, a line of JSON each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started the sweep decides
    tasks: queue.SimpleQueue[TrialTask] = queue.SimpleQueue()
    send(events, {"event": "ready"})
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    # Now rather than in the first trial, whose seconds would not compare with the others'.
    importlib.import_module("dpads.run_training")
    importlib.import_module("dpads.models.torch_tower")
    while True:
        task = tasks.get()

        def report(at: RunProgress) -> None:
            where = {"iteration": at.iteration, "iterations": at.iterations}
            send(events, {"event": "progress", "at": where})

        outcome = run_trial(task, report)
        send(events, {"event": "finished", "outcome": outcome.to_dict()})


def send(events: int, message: dict[str, Any]) -> None:
    """Writes one event; where nobody reads any more, the sweep is gone and so is its worker."""
    line = json.dumps(message).encode() + b"\n"
    try:
        while line:
            line = line[os.write(events, line) :]
    except BrokenPipeError:
        os._exit(1)


def _listen(tasks: queue.SimpleQueue[TrialTask]) -> None:
    """Passes tasks on; at the end of standard input the process ends, whatever it is doing.

    What is cut off is resumed from its checkpoint, as after a crash.
    """
    rest = b""
    # Not by sys.stdin: an interpreter that ends with an error would wait for its lock.
    while data := os.read(0, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            tasks.put(TrialTask(**json.loads(line)))
    os._exit(0)
