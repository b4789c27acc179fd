"""Rows of a table that is cut into blocks, a block a device: which are where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.jax_batches import padded


@dataclass(frozen=True)
class Rows:
    """Some rows of a table, device by device.

    Attributes:
        numbers: int64[k], distinct, rising.
        bounds: int64[devices + 1], device d has numbers[bounds[d]:bounds[d + 1]].
    """

    numbers: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.int64], devices: int, block: int) -> Rows:
        """Rows by number.

        Args:
            numbers: int64[k], distinct, rising.
            devices: their number.
            block: rows of the table that each device has.
        """
        return cls(numbers, np.searchsorted(numbers, np.arange(devices + 1) * block))

    @property
    def most(self) -> int:
        """The most that any device has."""
        return int(np.diff(self.bounds).max())

    def arranged(self, values: NDArray[Any], size: int, nothing: float) -> NDArray[Any]:
        """A value for each row, padded to one size on every device, [devices * size, ...].

        Args:
            values: [k, ...].
            size: at least `most`.
            nothing: the value of padding.
        """
        parts = [
            padded(values[begin:end], size, nothing)
            for begin, end in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def positions(self, of: NDArray[np.int64], size: int) -> NDArray[np.int32]:
        """Where some of the rows stand in what `arranged` returns, int32.

        Args:
            of: int64, numbers of rows that are among these.
            size: as for `arranged`.
        """
        # one process on one device reads these rows and no others, in every step: nothing to look for
        within = np.arange(len(of)) if of is self.numbers else np.searchsorted(self.numbers, of)
        device = np.searchsorted(self.bounds[1:], within, side="right")
        found: NDArray[np.int32] = (within - self.bounds[device] + device * size).astype(np.int32)
        return found
