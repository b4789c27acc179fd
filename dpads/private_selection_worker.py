"""Where candidates of a private selection are trained: a process of its own, which may fail.

Nothing that happens there is shown: it has no standard output or error, and a crash is a score. What comes
back is the score, or that the machine stopped the work (a full disk), after which it can go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from dpads import record as files
from dpads.accounting.ledger import Ledger
from dpads.config import Config, parse_config
from dpads.errors import RunError
from dpads.private_score import WORST, ScoreMechanism
from dpads.run_data import RunRows, open_run_rows, resolve_plan
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer, TrainingSettings

FACTS: Final = "facts.json"
WATCH_SECONDS: Final = 0.5
PROGRAM: Final = "from dpads.private_selection_worker import serve; serve()"
STOPPED: Final = "stopped"


@dataclass(frozen=True, kw_only=True)
class CandidateTask:
    """One candidate to train and score, as plain data; secret.

    Attributes:
        config: its configuration in TOML, its noise multiplier explicit.
        base: the configuration in TOML by which rows are opened, the same for all candidates.
        prepared: folder of the stores that were made of logs.
        slot: its folder: checkpoints while it trains, then the model.
        score_share: share of the units that are set aside.
        score_seed: which ones.
        score: the score's mechanism.
        score_key: of the score's noise, in hexadecimal.
        threads: as in `Performance`.
        physical_batch_size: likewise.
    """

    config: str
    base: str
    prepared: str
    slot: str
    score_share: float
    score_seed: int
    score: Mapping[str, float]
    score_key: str
    threads: int | None
    physical_batch_size: int | None


Runner = Callable[[CandidateTask], float]


@dataclass(frozen=True)
class TuningRows:
    """The rows of a selection.

    Attributes:
        all: as an ordinary run has them, before units are set aside.
        fitted: the rows to train on.
        aside: the rows to score on, of other units.
    """

    all: RunRows
    fitted: ExampleStore
    aside: ExampleStore


def open_tuning_rows(
    base: Config, prepared: Path, share: float, seed: int, on_prepare: Callable[[int], None] | None
) -> TuningRows:
    """Opens rows and sets units aside, by a keyed hash: nobody's side depends on anybody else."""
    rows = open_run_rows(base, None, None, prepared, on_prepare)
    fitted, aside = rows.train.split(share, seed=seed)
    return TuningRows(rows, fitted, aside)


def train_candidate(task: CandidateTask) -> float:
    """Trains a candidate, or goes on with it, writes its model to its slot and computes its score.

    Returns:
        The noisy score.

    Raises:
        DpadsError: the candidate failed.
        OSError: the machine stopped the work; it may go on with the same task.

    Guarantees:
        - The units that the score reads are no training units.
        - What was cut off goes on from its checkpoint to the bit, or fails; it never draws noise anew.
    """
    rows = _opened(task.base, task.prepared, task.score_share, task.score_seed)
    config, slot = _config(task.config), Path(task.slot)
    # Counted before units are set aside: the same plan as that of a run on all of them.
    units = rows.all.train.num_units(config.privacy.unit)
    plan = resolve_plan(config, config.privacy, config.l2_clip_norm, units)
    performance = Performance(threads=task.threads, physical_batch_size=task.physical_batch_size)
    checkpoints = slot / files.CHECKPOINTS
    how = (
        rows.fitted,
        config.model,
        plan,
        settings_of(config),
        performance,
        Ledger(),
    )
    if any(path.suffix != ".partial" for path in checkpoints.glob("0*")):
        trainer = Trainer.resume(checkpoints, *how)
    else:  # the first one is whole before the first batch is drawn: none was
        trainer = Trainer(*how, checkpoints)
    trainer.run()
    files.write_bytes(slot / files.PARAMETERS, *files.parameters_of(trainer.model))
    files.write_text(slot / files.MODEL, files.describe_model(trainer.model))
    facts = {"executed": trainer.executed, "replayed": trainer.replayed}
    files.write_text(slot / FACTS, files.to_json(facts))
    key = np.frombuffer(bytes.fromhex(task.score_key), np.uint32)
    return ScoreMechanism(**task.score).release(trainer.model, rows.aside, config.privacy, key)


def settings_of(config: Config) -> TrainingSettings:
    """The training settings of a configuration."""
    training = config.training
    return TrainingSettings(
        backend=training.backend,
        table_noise=training.table_noise,
        table_optimizer=training.table_optimizer,
        tower_optimizer=training.tower_optimizer,
        init_seed=training.init_seed,
        noise_seed=training.noise_seed,
    )


def _config(text: str) -> Config:
    """A configuration from its TOML; its paths are absolute."""
    return parse_config(tomllib.loads(text), base=Path("/"))


@lru_cache(maxsize=1)
def _opened(base: str, prepared: str, share: float, seed: int) -> TuningRows:
    """The rows of all candidates, opened once."""
    return open_tuning_rows(_config(base), Path(prepared), share, seed, None)


def serve() -> None:
    """Trains what standard input asks for, one line of JSON a candidate, and answers with a line each.

    It ends with its parent: a candidate that nobody waits for must not go on in secret.
    """
    os.umask(0o077)
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for shown in (1, 2):
        os.dup2(nowhere, shown)
    tasks: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(line)
        os._exit(0)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()
    while True:
        task = CandidateTask(**json.loads(tasks.get()))
        try:
            score = train_candidate(task)
            answer: dict[str, float | str | None] = {"score": None if score == WORST else score}
        except OSError as error:
            answer = {STOPPED: error.strerror or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Watch:
    """Tells at even times how long the work has taken: when candidates begin and end does not show.

    Args:
        on_progress: called with seconds.
    """

    def __init__(self, on_progress: Callable[[float], None] | None) -> None:
        self._on_progress = on_progress
        self._began, self._told = time.monotonic(), 0

    def wait(self) -> float:
        """Tells if it is time; returns the seconds until it is time again."""
        seconds = time.monotonic() - self._began
        due = int(seconds / WATCH_SECONDS)
        if due > self._told:
            self._told = due
            if self._on_progress is not None:
                self._on_progress(due * WATCH_SECONDS)
        return (due + 1) * WATCH_SECONDS - seconds


class CandidateProcess:
    """A process that trains candidates one after another; a crash is a candidate that failed.

    Args:
        lock: descriptor of the selection's lock, which the process holds too while it lives.
        wait: says how long to wait before it is called again, as `Watch.wait` does.
    """

    def __init__(self, lock: int, wait: Callable[[], float]) -> None:
        self._lock, self._wait = lock, wait
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> CandidateProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __call__(self, task: CandidateTask) -> float:
        """Trains and scores a candidate.

        Returns:
            Its score; the worst where it failed, whatever the reason.

        Raises:
            RunError: the machine stopped the work.
        """
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it crashed
            process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
            process.stdin.flush()
            while not select.select([process.stdout], [], [], self._wait())[0]:
                pass
            answer = process.stdout.readline()
        if not answer.endswith("\n"):
            self._end()
            return WORST
        values = json.loads(answer)
        if STOPPED in values:
            raise RunError(
                f"The machine stopped the work: {values[STOPPED]}. Mend that and start the same command "
                "again: it goes on with what was drawn."
            )
        score = values["score"]
        return WORST if score is None else float(score)

    def _started(self) -> subprocess.Popen[str]:
        """A new process, which sees the same library as this one, and no Ctrl-C of this one's terminal."""
        paths = os.pathsep.join(path for path in sys.path if path)
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=(self._lock,),
            start_new_session=True,
        )

    def _end(self) -> None:
        """Ends the process at once; what it was at goes on from its checkpoint."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
