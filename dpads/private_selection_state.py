"""What private selection keeps secret while it runs: how many candidates there are, which, and how good.

    sealed/        0700
      state        0600, always of one size, replaced as a whole
      a/ b/        0700, two slots: the best candidate so far, and the one that is trained

Nothing in the folder's listing tells how many candidates there are or which; all of it is deleted at the end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dpads.errors import CheckpointError, ConfigError
from dpads.kernels.keys import KEY_BYTES, derive_key
from dpads.private_score import WORST
from dpads.private_selection_law import draw_number

STATE: Final = "state"
STATE_BYTES: Final = 4096
SLOTS: Final = ("a", "b")
LOCK: Final = "lock"


@dataclass(frozen=True, kw_only=True)
class SealedState:
    """Where a selection stands; secret.

    Attributes:
        seed: 32 bytes in hexadecimal, from the operating system; candidates and score noise follow from it.
        number: how many candidates there are; None while it is not drawn.
        done: how many of them have a score.
        begun: whether the next one has begun.
        best: the slot of the best so far; None where none has a score.
        best_candidate: its place in the list of candidates.
        best_score: its score.
    """

    seed: str
    number: int | None = None
    done: int = 0
    begun: bool = False
    best: Literal["a", "b"] | None = None
    best_candidate: int = 0
    best_score: float = WORST

    @property
    def complete(self) -> bool:
        """Whether every candidate has a score."""
        return self.number is not None and self.done >= self.number

    @property
    def slot(self) -> str:
        """The slot of the candidate that is trained: the one that the best is not in."""
        return SLOTS[1] if self.best == SLOTS[0] else SLOTS[0]

    def candidate(self, candidates: int) -> int:
        """Which of so many candidates is trained now: uniform, and the same after an interruption."""
        message = f"dpads.candidate.v1:{self.done}".encode()
        digest = hmac.new(bytes.fromhex(self.seed), message, hashlib.sha512).digest()
        return int.from_bytes(digest) % candidates  # 512 bits: the bias is nothing

    def score_key(self) -> NDArray[np.uint32]:
        """The key of this candidate's score, uint32[8], the same after an interruption."""
        return derive_key(bytes.fromhex(self.seed), "score_noise", str(self.done))

    def scored(self, candidate: int, score: float) -> SealedState:
        """The state after this candidate's score: it replaces the best one if it is better."""
        after = dataclasses.replace(self, done=self.done + 1, begun=False)
        if not score > self.best_score:
            return after
        best: Literal["a", "b"] = "b" if self.slot == "b" else "a"
        return dataclasses.replace(
            after, best=best, best_candidate=candidate, best_score=float(score)
        )


class SealedFolder:
    """The folder of a selection's secrets.

    Args:
        path: the folder; `create` makes one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> SealedFolder:
        """Makes the folder, with nothing drawn yet."""
        path.mkdir(mode=0o700)
        folder = cls(path)
        for name in SLOTS:
            (path / name).mkdir(mode=0o700)
        folder.save(SealedState(seed=os.urandom(KEY_BYTES).hex()))
        return folder

    def load(self) -> SealedState:
        """The state.

        Raises:
            CheckpointError: it is missing or damaged: what was drawn is lost, and nothing may be drawn again.
        """
        try:
            return SealedState(**json.loads((self.path / STATE).read_bytes()))
        except (OSError, ValueError, TypeError):
            raise CheckpointError(
                f"{self.path}: missing or damaged, although a selection began. Its privacy is spent and what "
                "it drew is lost; draw anew under another --out."
            ) from None

    def save(self, state: SealedState) -> None:
        """Replaces the state, durably."""
        text = json.dumps(dataclasses.asdict(state)).encode()
        aside = self.path / f".{STATE}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.ljust(STATE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path / STATE)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def drawn(self, shape: float | str, mean: float) -> SealedState:
        """The state with its number of candidates, which is drawn the first time and never again."""
        state = self.load()
        if state.number is None:
            state = dataclasses.replace(state, number=draw_number(shape, mean))
            self.save(state)
        return state

    def begin(self, state: SealedState) -> SealedState:
        """The state with the next candidate begun: its slot is empty, or holds its own checkpoint."""
        if state.begun:
            return state
        slot = self.path / state.slot
        shutil.rmtree(slot, ignore_errors=True)
        slot.mkdir(mode=0o700)
        begun = dataclasses.replace(state, begun=True)
        self.save(begun)
        return begun


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds a folder's lock; its descriptor may be handed to a child, which holds it too.

    Raises:
        ConfigError: somebody else holds it, or has ended and removed the folder.
    """
    path = folder / LOCK
    gone = ConfigError(
        f"{folder}: gone since this command began. Another process ended its work here: look for its result."
    )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        raise gone from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: it is being worked on already. Wait until that has ended, or stop it first."
            ) from None
        # Opened before it was removed, and held since: a lock that nobody else will find.
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise gone
        yield descriptor
    finally:
        os.close(descriptor)


def plain_score(score: float) -> Any:
    """A score as JSON has it: None for the worst."""
    return None if score == WORST else score
