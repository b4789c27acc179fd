"""Checkpoints: the whole state of a run in one atomic step. They are secret and never released.

A checkpoint holds keys and rows whose pending updates carry no noise yet.
The folder has mode 0700, files 0600.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.errors import CheckpointError
from dpads.tensor_files import map_tensors, tensor_parts

ARRAYS = "state.safetensors"
FACTS = "state.json"
PROGRESS = "progress"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run between two iterations.

    Attributes:
        facts: plain data: iteration, master key, settings that fix the numbers.
        arrays: parameters, optimizer moments, histories; none before the first iteration, where the
            initial ones are meant.
    """

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class CheckpointFolder:
    """Where one run keeps its latest checkpoint.

    Args:
        path: the folder; made with mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        self._progress: NDArray[np.int64] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes aside, makes it durable, renames, then drops the older ones."""
        name = f"{int(checkpoint.facts['iteration']):010d}-{int(checkpoint.facts['saves']):06d}"
        partial = self.path / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        facts = partial / FACTS
        facts.touch(mode=0o600)
        facts.write_text(json.dumps(dict(checkpoint.facts), sort_keys=True), encoding="utf-8")
        arrays = partial / ARRAYS
        arrays.touch(mode=0o600)
        with arrays.open("wb") as file:
            for part in tensor_parts(checkpoint.arrays):
                file.write(part)
        for path in (facts, arrays, partial):
            _make_durable(path)
        partial.rename(self.path / name)
        _make_durable(self.path)
        for older in self._names():
            if older < name:
                shutil.rmtree(self.path / older)

    def load(self) -> Checkpoint:
        """The latest whole checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        from safetensors import SafetensorError

        names = self._names()
        if not names:
            raise CheckpointError(f"{self.path}: no checkpoint to resume from. Train anew.")
        folder = self.path / names[-1]
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            return Checkpoint(facts, map_tensors(folder / ARRAYS))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: the checkpoint is damaged ({type(error).__name__}). Train anew."
            ) from error

    def note_progress(self, iteration: int) -> None:
        """Notes, in memory shared with the disk, that an iteration was begun: how far replays reach."""
        if self._progress is None:
            file = self.path / PROGRESS
            if not file.exists():
                file.touch(mode=0o600)
                file.write_bytes(bytes(16))
            self._progress = np.memmap(file, np.int64, "r+", shape=(2,))
        self._progress[0] = iteration
        self._progress[1] = max(int(self._progress[1]), iteration)

    def progress(self) -> tuple[int, int]:
        """The last iteration begun before the run was cut off, and the furthest one ever begun."""
        file = self.path / PROGRESS
        if not file.exists():
            return 0, 0
        last, furthest = np.frombuffer(file.read_bytes(), np.int64)
        return int(last), int(furthest)

    def remove(self) -> None:
        """Deletes everything: the run has ended, its keys and unflushed state are not needed again."""
        self._progress = None
        shutil.rmtree(self.path)

    def _names(self) -> list[str]:
        """Whole checkpoints, oldest first."""
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and p.suffix != ".partial")


def _make_durable(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
