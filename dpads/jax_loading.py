"""From a process' piece of a batch to arrays on its devices, of sizes that all processes agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from dpads.drawing import Piece
from dpads.jax_batches import DeviceBatch, Loading, Sizes, most_needed, shares_of, side_by_side
from dpads.jax_hosts import Devices
from dpads.jax_rows import Rows
from dpads.models.base import Model


@dataclass(frozen=True)
class Loaded:
    """A piece on the devices.

    Attributes:
        batch: each device's share.
        rows: {group: the rows that any process reads}.
        size_of: {group: how many of them a device has, padding included}.
        touched: {group: uint32[devices * size], their numbers}.
    """

    batch: DeviceBatch
    rows: Mapping[str, Rows]
    size_of: Mapping[str, int]
    touched: Mapping[str, jax.Array]


class Loader:
    """Loads the pieces of one run.

    Args:
        model: whose tables are read.
        devices: of all processes.
        at_a_time: examples in a chunk of a device's.

    Attributes:
        blocks: {group: rows that each device has}.
        selected: {group: bool[rows]}, of groups of which only some rows are trained.
        sizes: the same in all processes.
    """

    def __init__(self, model: Model, devices: Devices, at_a_time: int) -> None:
        self._model, self._devices, self._at_a_time = model, devices, at_a_time
        self.blocks = {
            name: -(-len(array) // devices.count) for name, array in model.arrays.items()
        }
        self.selected: dict[str, NDArray[np.bool_]] = {}
        self.sizes = Sizes()

    def rows(self, group: str, numbers: NDArray[np.int64]) -> Rows:
        """Rows of a group, device by device."""
        return Rows.of(numbers, self._devices.count, self.blocks[group])

    def touched(self, group: str, rows: Rows, size: int) -> jax.Array:
        """The rows' numbers on their devices, uint32; padding is beyond every block."""
        beyond = self.blocks[group] * self._devices.count
        numbers = rows.arranged(rows.numbers.astype(np.uint32), size, beyond)
        return self._devices.cut(self._devices.own(numbers))

    def load(self, piece: Piece) -> Loaded:
        """Every process loads its piece at the same time, one without examples included.

        Raises:
            ProcessLostError: another process has gone.
        """
        shares = shares_of(piece, self._model, self.selected, self._devices.local)
        loadings = [Loading(share, self._model.layout, self._at_a_time) for share in shares]
        needs = self._agreed(most_needed([of_one.needs() for of_one in loadings]))
        rows = {
            name: self.rows(name, self._of_all(own.runs.rows)) for name, own in piece.reads.items()
        }
        size_of = {name: self.sizes.of(f"rows of {name}", own.most) for name, own in rows.items()}
        read = {name: size * self._devices.count for name, size in size_of.items()}
        ready = []
        for share, loading in zip(shares, loadings, strict=True):
            positions = {
                name: rows[name].positions(own.runs.rows, size_of[name])
                for name, own in share.reads.items()
            }
            ready.append(loading.arrays(self._model.output, needs, positions, read, self.sizes))
        return Loaded(
            batch=self._on_devices(side_by_side(ready)),
            rows=rows,
            size_of=size_of,
            touched={name: self.touched(name, own, size_of[name]) for name, own in rows.items()},
        )

    def _agreed(self, needs: dict[str, int]) -> dict[str, int]:
        """The most that any process needs."""
        found = self._devices.hosts.gather(np.array(list(needs.values()), np.int64)).max(axis=0)
        return dict(zip(needs, found.tolist(), strict=True))

    def _of_all(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that any process reads, rising."""
        if self._devices.hosts.count == 1:
            return rows
        of_each = self._devices.hosts.gather_each(rows.astype(np.uint32))
        return np.unique(np.concatenate(of_each)).astype(np.int64)

    def _on_devices(self, batch: DeviceBatch) -> DeviceBatch:
        """The arrays of this process' devices as arrays of all devices; numbers stay what they are."""
        if self._devices.count == 1:
            return batch
        together: DeviceBatch = jax.tree.map(
            lambda value: self._devices.cut(value) if np.ndim(value) else value, batch
        )
        return together
