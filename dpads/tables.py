"""Table mechanisms: they own array, history and update of a group of tables. Nothing else reads a table.

A gradient and its noise reach a row in one rounding. Under lazy noise the rows that no gradient touched
get theirs later: until they are brought up to date, array and history tell which rows were touched.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dpads._validate import nearest
from dpads.errors import ConfigError, RunError
from dpads.kernels import lazy
from dpads.kernels.moves import Move, move_others
from dpads.kernels.workers import Task, get_workers, over
from dpads.noise import RunKeys, to_public_grid
from dpads.optimizers import Sgd
from dpads.row_sums import RowSums
from dpads.schedules import learning_rates

TableNoise = Literal["lazy", "dense"]
FLUSH_ROWS = 1 << 20
ROWS_AT_A_TIME = 2048
_NO_HISTORY = np.empty(0, np.int32)


class TableUpdate:
    """The update theta <- d_t theta - eta_t (g + z) / B of all tables, fixed before training.

    Args:
        optimizer: schedule and decoupled weight decay.
        iterations: T.
        noise_stddev: noise_multiplier * l2_clip_norm, of the sum.
        divisor: B, the expected batch size.
    """

    def __init__(
        self, optimizer: Sgd, *, iterations: int, noise_stddev: float, divisor: float
    ) -> None:
        self.rates = learning_rates(optimizer.schedule, optimizer.learning_rate, iterations)
        self.decays = 1.0 - self.rates * optimizer.weight_decay
        self.divisor = divisor
        self.noise_scale = noise_stddev / divisor
        self.missed = lazy.tabulate(self.rates**2, self.decays)

    @property
    def leaves_rows_alone(self) -> bool:
        """Whether a row that no gradient touches keeps its value: neither noise nor decay."""
        return self.noise_scale == 0.0 and bool(np.all(self.decays == 1.0))


class TableMechanism(ABC):
    """Owns the tables of one group while they are trained.

    Args:
        name: the group, part of the noise address.
        array: float32[rows, dim], changed in place.
        update: of the run.
        keys: of the run.

    Guarantees:
        - Every coordinate of every row receives N(0, (eta_t noise_stddev / B)^2) in every iteration t,
          rows that nobody touched and batches that nobody joined included.
        - No address serves two variances or two gradients.
        - Rows that `select` leaves out are zero and stay so: nobody reads them, no noise is needed.
    """

    def __init__(
        self, name: str, array: NDArray[np.float32], update: TableUpdate, keys: RunKeys
    ) -> None:
        self.name = name
        self.iteration = 0
        self._selected: NDArray[np.bool_] | None = None
        self._array = array
        self._update = update
        self._key = keys.key("table_noise", name)

    def select(self, selected: NDArray[np.bool_]) -> None:
        """Trains some rows alone, before the first iteration; the others are set to zero.

        Args:
            selected: bool[rows], the output of a private mechanism, or public.
        """
        self._selected = selected
        self._array[~selected] = 0.0

    @abstractmethod
    def bring_up_to_date(self, rows: NDArray[np.int64]) -> None:
        """Makes distinct rows carry all noise and decay of the iterations before the present one."""

    def step(self, clipped: RowSums) -> None:
        """Applies one iteration's clipped sum and moves to the next iteration.

        Raises:
            RunError: all iterations of the schedule have been taken.
        """
        get_workers().run(self.update(clipped))
        self.advance()

    @abstractmethod
    def update(self, clipped: RowSums) -> list[Task]:
        """The tasks that apply one iteration's clipped sum, in any order, each once; then `advance`.

        Raises:
            RunError: all iterations of the schedule have been taken.
        """

    def advance(self) -> None:
        """Moves to the next iteration."""
        self.iteration += 1

    @property
    @abstractmethod
    def history(self) -> NDArray[np.int32]:
        """int32[rows], the first iteration whose noise each row lacks; secret."""

    @abstractmethod
    def restore(self, history: NDArray[np.int32], iteration: int) -> None:
        """Sets the state that a checkpoint kept; the array is restored by its owner."""

    def flush(self, on_rows: Callable[[int], None] | None = None) -> None:
        """Brings every row up to date.

        Args:
            on_rows: called with the number of rows done since its last call.
        """
        for start in range(0, len(self._array), FLUSH_ROWS):
            end = min(start + FLUSH_ROWS, len(self._array))
            self.bring_up_to_date(self._trained(start, end))
            if on_rows is not None:
                on_rows(end - start)

    def _trained(self, first: int, last: int) -> NDArray[np.int64]:
        """The rows first:last but those that are left out."""
        if self._selected is None:
            return np.arange(first, last)
        return np.flatnonzero(self._selected[first:last]) + first

    def hide_low_bits(self) -> None:
        """Rounds all rows to a public grid, after `flush` and before anything leaves: post-processing.

        The last bits of a float32 would tell rows that gradients touched from rows that had noise alone.
        """
        variance = lazy.missed_variance(self._update.missed, 0, self.iteration)
        stddev = self._update.noise_scale * math.sqrt(variance)

        def round_rows(first: int, last: int) -> None:
            to_public_grid(self._array[first:last], stddev)

        over(len(self._array), FLUSH_ROWS, round_rows)

    def _move(self) -> Move:
        """How this iteration moves a row; draws have the addresses (row, iteration + 1)."""
        rate = self._rate()
        return Move(
            factor=-rate / self._update.divisor,
            decay=float(self._update.decays[self.iteration]),
            stddev=rate * self._update.noise_scale,
            step=self.iteration + 1,
            key=self._key,
        )

    def _moves(self, clipped: RowSums, history: NDArray[np.int32]) -> list[Task]:
        """Tasks that move the touched rows."""
        move = self._move()

        def task(first: int) -> Task:
            last = min(first + ROWS_AT_A_TIME, len(clipped.rows))
            return lambda: clipped.move(self._array, history, first, last, move)

        return [task(first) for first in range(0, len(clipped.rows), ROWS_AT_A_TIME)]

    def _rate(self) -> float:
        """The present learning rate."""
        if self.iteration >= len(self._update.rates):
            raise RunError(
                f"All {len(self._update.rates)} iterations of the schedule have been taken. "
                "Train anew with more; further iterations would not be accounted for."
            )
        return float(self._update.rates[self.iteration])


class LazyTables(TableMechanism):
    """The law of dense noise at a cost proportional to the rows touched."""

    def __init__(
        self, name: str, array: NDArray[np.float32], update: TableUpdate, keys: RunKeys
    ) -> None:
        super().__init__(name, array, update, keys)
        self._history = np.zeros(len(array), np.int32)
        self._stddevs = np.zeros(lazy.RECENT)
        self._decays = np.zeros(lazy.RECENT)
        self._recent_at = -1  # the iteration that the two arrays belong to
        self._up_to_date: NDArray[np.int64] | None = (
            None  # rows brought up to date in this iteration
        )

    @property
    def history(self) -> NDArray[np.int32]:
        """The first iteration whose noise each row lacks."""
        return self._history

    def bring_up_to_date(self, rows: NDArray[np.int64]) -> None:
        """One draw per row for everything that it missed, at the address (row, present iteration)."""
        if self._update.leaves_rows_alone:
            return
        scale, missed = self._update.noise_scale, self._update.missed
        if self._recent_at != self.iteration:
            lazy.recent_intervals(missed, self.iteration, scale, self._stddevs, self._decays)
            self._recent_at = self.iteration
        lazy.catch_up(
            self._array,
            self._history,
            rows,
            self.iteration,
            self._key,
            scale,
            missed,
            self._stddevs,
            self._decays,
        )
        self._up_to_date = rows

    def update(self, clipped: RowSums) -> list[Task]:
        """Moves the touched rows; the noise of the others follows when they are next read."""
        if clipped.rows is not self._up_to_date:
            self.bring_up_to_date(clipped.rows)
        kept = _NO_HISTORY if self._update.leaves_rows_alone else self._history
        return self._moves(clipped, kept)

    def advance(self) -> None:
        """Moves to the next iteration: rows are behind again."""
        self._up_to_date = None
        super().advance()

    def restore(self, history: NDArray[np.int32], iteration: int) -> None:
        """Sets history and iteration."""
        self._history[...] = history
        self._up_to_date = None
        self.iteration = iteration


class DenseTables(TableMechanism):
    """Noise to every row in every iteration: slow, obvious, the law that lazy noise must have."""

    @property
    def history(self) -> NDArray[np.int32]:
        """Every row is up to date."""
        return np.full(len(self._array), self.iteration, np.int32)

    def bring_up_to_date(self, rows: NDArray[np.int64]) -> None:
        """Nothing is ever missing."""

    def update(self, clipped: RowSums) -> list[Task]:
        """Decay and noise on every row; on the touched ones in one rounding with their gradient."""
        move = self._move()
        if move.stddev > 0.0 or move.decay != 1.0:
            but = clipped.rows
            if self._selected is not None:
                but = np.sort(np.concatenate([but, np.flatnonzero(~self._selected)]))
            move_others(self._array, but, move)
        return self._moves(clipped, _NO_HISTORY)

    def restore(self, history: NDArray[np.int32], iteration: int) -> None:
        """Sets the iteration; the history follows from it."""
        self.iteration = iteration


MECHANISMS: dict[str, type[TableMechanism]] = {"lazy": LazyTables, "dense": DenseTables}


def check_table_noise(name: str) -> TableNoise:
    """The name of a table mechanism.

    Raises:
        ConfigError: there is none of that name.
    """
    for known in get_args(TableNoise):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f'Unknown table_noise "{name}".' + nearest(str(name), get_args(TableNoise)))
