"""Gaussian noise on the tower's clipped sum. Only a `NoiseMechanism` makes a `PrivateGradient`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.clipping import ClippedSum
from dpads.kernels.gaussian import normals
from dpads.kernels.keys import derive_key


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


class NoiseMechanism:
    """Adds N(0, noise_stddev^2) to every coordinate of the tower's sum and divides by a constant.

    Args:
        keys: of the run.
        noise_stddev: noise_multiplier * l2_clip_norm, of the sum.
        divisor: fixed in advance, the expected batch size.
    """

    def __init__(self, keys: RunKeys, *, noise_stddev: float, divisor: float) -> None:
        self._keys = keys
        self._noise_stddev = noise_stddev
        self._divisor = divisor

    def privatize(self, total: ClippedSum, iteration: int) -> PrivateGradient:
        """Noise at the address (tower_noise, parameter, iteration), in float64 before rounding."""
        values = {}
        for name, clipped in total.dense.items():
            noisy = clipped
            if self._noise_stddev > 0.0:
                draws = normals(self._keys.key("tower_noise", name), iteration, clipped.size)
                noisy = clipped + self._noise_stddev * draws.reshape(clipped.shape).astype(
                    np.float64
                )
            values[name] = (noisy / self._divisor).astype(np.float32)
        return PrivateGradient(values, iteration)
