"""Gaussian noise on the tower's clipped sum. Only a `NoiseMechanism` makes a `PrivateGradient`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.clipping import ClippedSum
from dpads.kernels.gaussian import NORMALS_PER_ROW, noisy_mean
from dpads.kernels.keys import derive_key
from dpads.kernels.workers import Task, get_workers


@dataclass(frozen=True)
class RunKeys:
    """Keys of one run's random streams.

    The digest covers everything that changes the numbers, so that two runs with one master key but
    other settings draw other noise: no address serves two gradients.

    Attributes:
        master: 32 secret bytes.
        digest: hexadecimal SHA-256 of mechanism, schedule, store, code version and threads.
    """

    master: bytes
    digest: str

    def key(self, *labels: str) -> NDArray[np.uint32]:
        """The ChaCha key of one stream, uint32[8]."""
        return derive_key(self.master, self.digest, *labels)


@dataclass(frozen=True)
class PrivateGradient:
    """A noisy averaged gradient of the tower; everything done with it is post-processing.

    Attributes:
        values: {parameter: float32 array}, (sum + noise) / divisor.
        iteration: whose noise it carries.
    """

    values: Mapping[str, NDArray[np.float32]]
    iteration: int


# Grid of released numbers, as a part of the noise's standard deviation: 2^10 steps a standard deviation are
# 2^14 float32 numbers a step, and whatever the last bits of a sum of floats would tell is rounded away.
GRID_BITS = 10


NOISED_AT_A_TIME = 1 << 16  # coordinates, a multiple of NORMALS_PER_ROW


def public_grid(noise_stddev: float) -> float:
    """The spacing of released numbers under this noise."""
    return float(2.0 ** (math.floor(math.log2(noise_stddev)) - GRID_BITS))


def to_public_grid(values: NDArray[Any], noise_stddev: float) -> NDArray[Any]:
    """Rounds noisy numbers to multiples of a public power of two, about 2^-10 of their noise.

    Noise made of floats reaches some floats and not others, which can tell whether a number is the sum of one
    draw or of several, or of which sum it is a noisy form (Mironov 2012). Rounding is post-processing.

    Args:
        values: any shape; rounded in place.
        noise_stddev: of the noise in them, public; 0 leaves them as they are.

    Returns:
        The values.
    """
    if noise_stddev > 0.0:
        grid = public_grid(noise_stddev)
        np.divide(values, grid, out=values)
        np.rint(values, out=values)
        np.multiply(values, grid, out=values)
    return values


class NoiseMechanism:
    """Adds N(0, noise_stddev^2) to every coordinate of the tower's sum and divides by a constant.

    Args:
        keys: of the run.
        noise_stddev: noise_multiplier * l2_clip_norm, of the sum.
        divisor: fixed in advance, the expected batch size.
    """

    def __init__(self, keys: RunKeys, *, noise_stddev: float, divisor: float) -> None:
        self._key = cache(partial(keys.key, "tower_noise"))
        self._noise_stddev = noise_stddev
        self._divisor = divisor

    def privatize(self, total: ClippedSum, iteration: int) -> PrivateGradient:
        """Noise at the address (tower_noise, parameter, iteration), in float64, then on a public grid."""
        gradient, tasks = self.prepare(total, iteration)
        get_workers().run(tasks)
        return gradient

    def prepare(self, total: ClippedSum, iteration: int) -> tuple[PrivateGradient, list[Task]]:
        """A gradient without values yet, and the tasks that write them, in any order, each once."""
        values, tasks = {}, []
        for name, clipped in total.dense.items():
            values[name] = np.empty(clipped.shape, np.float32)
            flat, out = clipped.reshape(-1), values[name].reshape(-1)
            key = self._key(name)
            tasks += [
                self._task(flat, first, key, iteration, out)
                for first in range(0, len(flat), NOISED_AT_A_TIME)
            ]
        return PrivateGradient(values, iteration), tasks

    def _task(
        self,
        sums: NDArray[np.float64],
        first: int,
        key: NDArray[np.uint32],
        iteration: int,
        out: NDArray[np.float32],
    ) -> Task:
        """The noise of one stretch of coordinates."""
        part = slice(first, first + NOISED_AT_A_TIME)

        def task() -> None:
            if self._noise_stddev > 0.0:
                noisy_mean(
                    sums[part],
                    first // NORMALS_PER_ROW,
                    key,
                    iteration,
                    self._noise_stddev,
                    public_grid(self._noise_stddev),
                    self._divisor,
                    out[part],
                )
            else:
                np.divide(sums[part], self._divisor, out=out[part], casting="same_kind")

        return task
