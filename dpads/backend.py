"""What a backend does: it keeps a run's parameters while they are trained, and moves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.drawing import Piece
from dpads.hosts import Hosts
from dpads.kernels.workers import Task
from dpads.models.base import Model
from dpads.noise import RunKeys
from dpads.plan import Plan
from dpads.training_settings import TrainingSettings


@dataclass(frozen=True)
class Mechanics:
    """What one iteration is made of, fixed before training.

    Attributes:
        plan: the mechanism.
        settings: optimizers and table noise.
        keys: of the run.
    """

    plan: Plan
    settings: TrainingSettings
    keys: RunKeys

    @property
    def noise_stddev(self) -> float:
        """Of the noise on a sum of clipped gradients."""
        mechanism = self.plan.mechanism
        if mechanism.noise_multiplier == 0.0:
            return 0.0
        return mechanism.noise_multiplier * mechanism.l2_clip_norm

    @property
    def divisor(self) -> float:
        """Of a noisy sum: the expected batch size."""
        return float(self.plan.mechanism.expected_batch_size)


OPTIMIZER = "optimizer."  # begins the names of its moments in a checkpoint


class Backend(ABC):
    """A model's parameters in training.

    Attributes:
        model: its arrays are the present parameters after `flush`, `state` and `restore`.

    Guarantees:
        - Every coordinate of every row and parameter receives the noise of every iteration, once.
    """

    model: Model

    @abstractmethod
    def select(self, selected: Mapping[str, NDArray[np.bool_]]) -> None:
        """Trains some rows alone, before the first iteration: {group: bool[rows]}."""

    def check_pieces(self) -> None:  # noqa: B027 (most can)
        """Refuses batches in pieces where this backend takes them whole.

        Raises:
            ConfigError: it does.
        """

    @abstractmethod
    def step(self, iteration: int, pieces: Iterator[Piece], meanwhile: Task) -> None:
        """One iteration: clip, sum, add noise, move.

        Args:
            iteration: iterations follow one another from 0, or from the one restored.
            pieces: of the batch, one at least, possibly without examples.
            meanwhile: done at the same time: the next batch is drawn and read.
        """

    @abstractmethod
    def flush(self, on_rows: Callable[[int], None]) -> None:
        """Brings every row of every table up to date, fit to leave.

        Args:
            on_rows: called with the number of rows done since its last call.
        """

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint keeps; nothing is flushed."""

    def _kept(
        self, histories: Mapping[str, NDArray[Any]], moments: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Everything by the names of a checkpoint, the model's arrays as they are now."""
        return {
            **{f"array.{name}": value for name, value in self.model.arrays.items()},
            **{f"dense.{name}": value for name, value in self.model.dense.items()},
            **{f"history.{name}": value for name, value in histories.items()},
            **{f"{OPTIMIZER}{name}": value for name, value in moments.items()},
        }

    def _put_parameters(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Sets the model's arrays to those of a checkpoint; the moments that it has are returned."""
        for name, value in self.model.arrays.items():
            value[...] = arrays[f"array.{name}"]
        for name, value in self.model.dense.items():
            value[...] = arrays[f"dense.{name}"]
        return {
            key.removeprefix(OPTIMIZER): value
            for key, value in arrays.items()
            if key.startswith(OPTIMIZER)
        }

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]], iteration: int) -> None:
        """Sets what `state` returned after so many iterations."""


def backend_of(model: Model, mechanics: Mechanics, hosts: Hosts) -> Backend:
    """Where a run's parameters are kept and moved.

    Args:
        model: with its initial parameters.
        mechanics: of the run; its settings name the backend.
        hosts: the run's processes.
    """
    if mechanics.settings.backend == "jax":
        from dpads.jax_backend import JaxBackend

        return JaxBackend(model, mechanics, hosts)
    from dpads.torch_backend import TorchBackend

    return TorchBackend(model, mechanics)
