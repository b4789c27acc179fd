"""Variants of a step that take turns, each in a process of its own, so that peak memory is its alone.

One computes at a time, on the same batches of a turn: what the machine does beside it meets all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import IO, Any

from steps import BLOCK, WARM_TURNS, peak_gb

SLOW_MS, SLOW_TURNS = 1000.0, 3
WATCHED = 10**6  # the turn whose steps are watched


class Variant:
    """One variant of a cell, in a process that computes when it is told to.

    Args:
        name: for the table.
        command: that `serve`s it.

    Attributes:
        times: milliseconds per step, by turn.
        peak_gb: of the process, so far.
        packages: that it uses.
        extra: what else its process told when it was last asked to watch.
        slow: whether a step takes seconds, so that few are measured.
        failure: why it ended; None while it runs.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        import dpads

        self.name = name
        self.times: dict[int, float] = {}
        self.peak_gb = 0.0
        self.packages: list[str] = []
        self.extra: dict[str, Any] = {}
        self.failure: str | None = None
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as this)
        sources = str(Path(dpads.__file__).parents[1])  # another environment has no dpads
        path = os.pathsep.join(filter(None, (sources, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        first = self._ask(0, 2)  # compiles, and says whether a step takes seconds
        self.slow = first is not None and first > SLOW_MS

    def turn(self, turn: int, measured: bool) -> None:
        """Takes the steps of one turn."""
        time_of_step = self._ask(turn, 1 if self.slow else BLOCK)
        if measured and time_of_step is not None:
            self.times[turn] = time_of_step

    def watch(self) -> None:
        """Takes some more steps, of which the process notes what its clock does not tell."""
        self._ask(WATCHED, 1 if self.slow else BLOCK)

    def _ask(self, turn: int, steps: int) -> float | None:
        """Milliseconds per step; None if the process has ended."""
        if self.failure is not None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(turn, steps, file=self._process.stdin, flush=True)
        line = next((text for text in self._process.stdout if text.startswith("{")), None)
        if line is None:
            self._errors.seek(0)
            last = (self._errors.read().strip() or "no message").splitlines()[-1]
            self.failure = f"its process ended with status {self._process.wait()}: {last}"
            return None
        reply = json.loads(line)
        self.peak_gb, self.packages = reply["peak_gb"], reply["packages"]
        self.extra = reply["extra"]
        return float(reply["ms"])

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()


def take_turns(variants: Sequence[Variant], turns: int) -> None:
    """All turns of a cell, in either order by turns; the processes end."""
    slow_turns = {WARM_TURNS + round(i * (turns - 1) / (SLOW_TURNS - 1)) for i in range(SLOW_TURNS)}
    for turn in range(WARM_TURNS + turns):
        for variant in variants if turn % 2 else variants[::-1]:
            if not variant.slow or turn in slow_turns:
                variant.turn(turn + 1, turn >= WARM_TURNS)
    for variant in variants:
        variant.watch()
        variant.close()


def result_of(variant: Variant) -> dict[str, Any]:
    """What was measured of one that has not failed."""
    return {
        "steps_measured": len(variant.times) * (1 if variant.slow else BLOCK - 1),
        "median_ms": statistics.median(variant.times.values()),
        "minimum_ms": min(variant.times.values()),
        "peak_gb": variant.peak_gb,
    }


def over(variant: Variant, base: Mapping[int, float]) -> float:
    """How many times another's steps a variant's take: the median over the turns."""
    return statistics.median(time / base[turn] for turn, time in variant.times.items())


def unwatched(extra: dict[str, Any]) -> AbstractContextManager[None]:
    """Notes nothing."""
    del extra
    return nullcontext()


def serve(
    step: Callable[[Any], None],
    batches: Callable[[int], Iterator[Any]],
    packages: Sequence[str],
    wait: Callable[[], None] = lambda: None,
    watched: Callable[[dict[str, Any]], AbstractContextManager[None]] = unwatched,
) -> None:
    """A variant's process: takes the turns that it reads, and prints the milliseconds per step.

    Args:
        step: takes a batch.
        batches: of a turn, by its number.
        packages: whose versions are told.
        wait: until what `step` began has ended.
        watched: around the steps of the last turn; it may note what it sees.
    """
    versions = [f"{name} {version(name)}" for name in packages]
    for line in sys.stdin:
        turn, steps = map(int, line.split())
        block = list(islice(batches(turn), steps))
        if steps > 1:
            # the first step of a block meets the caches that other variants left
            step(block.pop(0))
            wait()
        extra: dict[str, Any] = {"steps": len(block)}
        with watched(extra) if turn == WATCHED else nullcontext():
            begin = time.perf_counter()
            for batch in block:
                step(batch)
            wait()
        ms = 1e3 * (time.perf_counter() - begin) / len(block)
        reply = {"ms": ms, "peak_gb": peak_gb(), "packages": versions, "extra": extra}
        print(json.dumps(reply), flush=True)
