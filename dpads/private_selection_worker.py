"""Where candidates of a private selection are trained: a process of its own, which may fail.

Nothing that happens there is shown: it has no standard output or error, and a crash is a score. What comes
back is the score, or that the machine stopped the work (a full disk, rows that are gone), after which it can
go on.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.config import Config, parse_config
from dpads.errors import DpadsError, RunError
from dpads.plan import DpSgdConfig
from dpads.private_score import WORST, ScoreMechanism
from dpads.record import describe_model, parameters_of
from dpads.resources import check_memory, estimate_memory
from dpads.run_data import RunRows, open_run_rows, resolve_plan
from dpads.run_job import settings_of
from dpads.store import ExampleStore
from dpads.training import Performance, Trainer
from dpads.training_identity import run_identity

FACTS: Final = "facts.json"
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
        identity: of the selection; see `shared_identity`.
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
    identity: Mapping[str, Any]


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


def shared_identity(rows: TuningRows, base: Config, performance: Performance) -> dict[str, Any]:
    """What changes the numbers of every candidate alike: rows, code, processor, threads.

    Where it differs from when a candidate began, that one cannot go on: its noise would protect other
    gradients.
    """
    identity = run_identity(rows.fitted, base.model, rows.all.plan, settings_of(base), performance)
    for own in ("plan", "settings", "model"):  # each candidate has its own
        del identity[own]
    return identity | {"test": None if rows.all.test is None else rows.all.test.fingerprint}


def differences(kept: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """In what two of these differ, in words; empty where in nothing."""
    words = []
    for key in sorted(kept.keys() | present.keys()):
        first, second = kept.get(key), present.get(key)
        if first == second:
            continue
        if key in ("versions", "environment"):
            first, second = dict(first or {}), dict(second or {})
            words += [
                f"{name} (was {first.get(name)}, is {second.get(name)})"
                for name in sorted(first.keys() | second.keys())
                if first.get(name) != second.get(name)
            ]
        elif key in ("threads", "physical_batch_size"):
            words.append(f"{key} (was {first}, is {second})")
        else:
            words.append(_WORDS.get(key, key))
    return ", ".join(words)


_WORDS: Final = {
    "store": "the training store",
    "test": "the test store",
    "schema": "the schema",
    "processor": "the kind of processor",
    "torch": "the build of torch",
    "sums": "the order of sums",
}


def check_room(config: Config, mechanism: DpSgdConfig, performance: Performance) -> None:
    """Refuses a model that does not fit into memory, before anything is allocated."""
    estimate = estimate_memory(
        config.model,
        config.schema,
        expected_batch_size=mechanism.expected_batch_size * config.privacy.rows_per_unit,
        physical_batch_size=performance.physical_batch_size,
        table_noise=config.training.table_noise,
        backend=config.training.backend,
        counted=config.selection.kind != "none",
    )
    check_memory(estimate)


class StoppedError(RunError):
    """The machine or the rows are not what candidates need: none of them failed."""


def train_candidate(task: CandidateTask) -> float:
    """Trains a candidate, or goes on with it, writes its model to its slot and computes its score.

    Returns:
        The noisy score.

    Raises:
        DpadsError: the candidate failed.
        StoppedError: rows cannot be opened or are others, or memory is short; it may go on with the
            same task.
        OSError: likewise, of the machine.

    Guarantees:
        - The units that the score reads are no training units.
        - What was cut off goes on from its checkpoint to the bit, or fails; it never draws noise anew.
    """
    config, slot = _config(task.config), Path(task.slot)
    performance = Performance(threads=task.threads, physical_batch_size=task.physical_batch_size)
    try:
        rows = _opened(task.base, task.prepared, task.score_share, task.score_seed)
        # Counted before units are set aside: the same plan as that of a run on all of them.
        units = rows.all.train.num_units(config.privacy.unit)
        plan = resolve_plan(config, config.privacy, config.l2_clip_norm, units)
        check_room(config, plan.mechanism, performance)
    except DpadsError as error:
        raise StoppedError(str(error)) from error
    different = differences(task.identity, shared_identity(rows, _config(task.base), performance))
    if different:
        raise StoppedError(f"since the selection began, this changed: {different}")
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
    files.write_bytes(slot / files.PARAMETERS, *parameters_of(trainer.model))
    files.write_text(slot / files.MODEL, describe_model(trainer.model))
    # How many iterations ran again tells which candidate was interrupted: that is not kept.
    facts = {"executed": trainer.executed}
    files.write_text(slot / FACTS, files.to_json(facts))
    key = np.frombuffer(bytes.fromhex(task.score_key), np.uint32)
    return ScoreMechanism(**task.score).release(trainer.model, rows.aside, config.privacy, key)


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
        except StoppedError as error:
            answer = {STOPPED: str(error)}
        except OSError as error:
            answer = {STOPPED: error.strerror or type(error).__name__}
        except MemoryError:  # as where the kernel ends a process that takes too much
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
