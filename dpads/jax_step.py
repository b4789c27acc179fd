"""One private iteration as pure functions of arrays, to be compiled: what each of the devices does.

rows of its block -> caught up -> all devices' rows -> clip, sum over its units
-> sums of all devices -> rows of its block, and the tower everywhere: noise, move
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax
from jax import numpy as jnp

from dpads.jax_batches import DeviceBatch
from dpads.jax_clip import Arrays, Clip, Sums
from dpads.jax_hosts import CUT, WHOLE, Axis
from dpads.jax_optimizers import moved
from dpads.kernels import jax_moves
from dpads.models.jax_losses import JaxTargets


class State(NamedTuple):
    """What an iteration moves.

    Attributes:
        tables: {group: float32[rows, dim]}, a block of rows on each device.
        params: {parameter: float32}, of the tower.
        moments: of the tower's optimizer.
    """

    tables: Arrays
    params: Arrays
    moments: optax.OptState


class Missed(NamedTuple):
    """What the rows of a group that are read missed until then.

    Attributes:
        stddevs: float64[R].
        decays: float64[R].
    """

    stddevs: Any
    decays: Any


class Fixed(NamedTuple):
    """What is the same in all iterations; arguments, so that no compiled program holds a key.

    Attributes:
        tables: {group: uint32[8]}, keys of the noise.
        tower: {parameter: uint32[8]}, likewise.
        selected: {group: bool[rows]}, the rows that are trained, of groups of which others are not.
    """

    tables: Arrays
    tower: Arrays
    selected: Arrays


class Numbers(NamedTuple):
    """Public numbers of an iteration, float64 unless said otherwise.

    Attributes:
        now: uint32[2], the iteration.
        following: uint32[2], the one after it: the address of what moved rows draw.
        table_factor: of sums: - rate / divisor.
        table_decay: of rows.
        table_stddev: rate * noise_stddev / divisor.
        tower_rate: learning rate.
    """

    now: Any
    following: Any
    table_factor: Any
    table_decay: Any
    table_stddev: Any
    tower_rate: Any


# Which arguments lie where.
STATE = State._make((CUT, WHOLE, WHOLE))
FIXED = Fixed._make((WHOLE, WHOLE, CUT))
BATCH = DeviceBatch._make(
    (CUT, CUT, JaxTargets._make((CUT, CUT, CUT, WHOLE)), CUT, WHOLE, CUT, CUT)
)


@dataclass(frozen=True)
class Step:
    """What a device does in the iterations of one run; everything that is not an argument is public.

    Attributes:
        clip: clips and sums.
        axis: the devices.
        noise_stddev: of the sums.
        divisor: of noisy sums.
        grid: of the tower's noisy sums; 0 without noise.
        optimizer: of the tower.
        weight_decay: of the tower, decoupled.
        dense_noise: whether every row gets its noise in every iteration.
    """

    clip: Clip
    axis: Axis
    noise_stddev: float
    divisor: float
    grid: float
    optimizer: optax.GradientTransformationExtraArgs
    weight_decay: float
    dense_noise: bool

    def whole(
        self,
        state: State,
        batch: DeviceBatch,
        touched: Mapping[str, jax.Array],
        missed: Mapping[str, Missed] | None,
        fixed: Fixed,
        numbers: Numbers,
    ) -> State:
        """An iteration on a batch that is read whole; every row is read and written once.

        Args:
            state: donated.
            batch: this device's share.
            touched: {group: uint32[R]}, the rows of this device's blocks that anybody reads, rising;
                padding is beyond every block.
            missed: what they missed; None where nothing ever is.
            fixed: of the run.
            numbers: of the iteration.
        """
        rows = self.read(state.tables, touched, missed, fixed, numbers.now)
        sums, _ = self.clip.sums(
            {name: self.axis.all_rows(values) for name, values in rows.items()},
            state.params,
            batch,
        )
        own = {name: self.axis.own_rows(values) for name, values in sums.rows.items()}
        dense = {name: self.axis.total(value) for name, value in sums.dense.items()}
        return self.move(state, rows, Sums(own, dense), touched, fixed, numbers)

    def read(
        self,
        tables: Mapping[str, jax.Array],
        touched: Mapping[str, jax.Array],
        missed: Mapping[str, Missed] | None,
        fixed: Fixed,
        now: jax.Array,
    ) -> Arrays:
        """Rows with all noise and decay of the iterations before the present one, {group: float32[R, dim]}.

        Args:
            tables: of the groups.
            touched: as in `whole`.
            missed: likewise.
            fixed: of the run.
            now: uint32[2], the present iteration.
        """
        rows = {
            name: jax_moves.take_rows(tables[name], self._here(tables[name], at))
            for name, at in touched.items()
        }
        if missed is None:
            return rows
        return {
            name: jax_moves.caught_up(values, touched[name], *missed[name], fixed.tables[name], now)
            for name, values in rows.items()
        }

    def put(
        self,
        tables: Mapping[str, jax.Array],
        touched: Mapping[str, jax.Array],
        rows: Mapping[str, jax.Array],
    ) -> Arrays:
        """The tables with rows replaced."""
        return {
            name: jax_moves.put_rows(tables[name], self._here(tables[name], at), rows[name])
            for name, at in touched.items()
        }

    def move(
        self,
        state: State,
        rows: Mapping[str, jax.Array],
        sums: Sums,
        touched: Mapping[str, jax.Array],
        fixed: Fixed,
        numbers: Numbers,
    ) -> State:
        """Adds the iteration's noise to the sums over all devices, and moves everything by them."""
        noisy = self.noise_stddev > 0
        tables = {}
        for name, at in touched.items():
            table = state.tables[name]
            how = (
                sums.rows[name],
                numbers.table_factor,
                numbers.table_decay,
                numbers.table_stddev if noisy else None,
                fixed.tables[name],
                numbers.following,
            )
            moved_rows = jax_moves.moved_rows(rows[name], at, *how)
            if self.dense_noise:
                table = jax_moves.move_others(
                    table, self._first(table), *how[2:], fixed.selected.get(name)
                )
            tables[name] = jax_moves.put_rows(table, self._here(table, at), moved_rows)
        if noisy:
            gradients = jax_moves.noisy_means(
                sums.dense, fixed.tower, numbers.now, self.noise_stddev, self.grid, self.divisor
            )
        else:
            gradients = {
                name: (total / self.divisor).astype(jnp.float32)
                for name, total in sums.dense.items()
            }
        updates, moments = self.optimizer.update(gradients, state.moments, state.params)
        params = moved(state.params, updates, numbers.tower_rate, self.weight_decay)
        return State(tables, params, moments)

    def _first(self, table: jax.Array) -> jax.Array | int:
        """The number of the first row of this device's block."""
        return self.axis.first_row(len(table))

    def _here(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        """Rows' places in this device's block; at its end or beyond for padding."""
        return rows.astype(jnp.int64) - self._first(table)
