"""The JAX backend: tables and tower on a device, one compiled step.

    host     draw -> read -> places, distinct rows -> what each row missed
    device   catch rows up -> pool -> tower -> norms, factors -> sums -> noise -> move

History stays on the host, which knows the rows of a batch before the device reads them. Sums are float64
throughout; products in the tower have one shape, so that an example's bits do not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.backend import Backend, Mechanics
from dpads.clipping import LOWEST_FLOOR, cancellation_floor
from dpads.drawing import Piece
from dpads.jax_batches import DeviceBatch, Sizes, bucket, device_batch, examples_at_a_time, padded
from dpads.jax_optimizers import restored, saved, transformation_of
from dpads.jax_step import Keys, Missed, Numbers, State, Step, Sums
from dpads.kernels import lazy
from dpads.kernels.jax_random import step_words
from dpads.kernels.merge import merge_runs
from dpads.kernels.workers import Task, get_workers
from dpads.models.base import Model
from dpads.noise import public_grid
from dpads.optimizers import check_table_optimizer
from dpads.schedules import learning_rates
from dpads.tables import FLUSH_ROWS, TableUpdate

OPTIMIZER = "optimizer."


class JaxBackend(Backend):
    """Training on a device that JAX knows.

    Args:
        model: with its initial parameters.
        mechanics: of the run.

    Raises:
        ConfigError: the model has no tower in JAX, or sums over a batch would round by more than the
            sensitivity's slack.
    """

    def __init__(self, model: Model, mechanics: Mechanics) -> None:
        self.model = model
        plan, settings, keys = mechanics.plan, mechanics.settings, mechanics.keys
        mechanism, stddev = plan.mechanism, mechanics.noise_stddev
        units, rows = mechanism.expected_batch_size, plan.privacy.rows_per_unit
        floor = LOWEST_FLOOR
        if stddev > 0:
            floor = cancellation_floor(model.tower, units, rows, at_a_time=units * rows)
        config = settings.tower_optimizer
        noise_scale = stddev / mechanics.divisor
        tower = model.description.jax_tower(model.layout, model.schema.task)
        self._step = Step(
            tower=tower,
            layout=model.layout,
            at_a_time=examples_at_a_time(units * rows),
            l2_clip_norm=mechanism.l2_clip_norm,
            floor=floor,
            noise_stddev=stddev,
            divisor=mechanics.divisor,
            grid=public_grid(stddev) if stddev > 0 else 0.0,
            optimizer=transformation_of(config, noise_scale**2),
            weight_decay=config.weight_decay,
            dense_noise=settings.table_noise == "dense",
        )
        self._tower_rates = learning_rates(
            config.schedule, config.learning_rate, mechanism.iterations
        )
        self._update = TableUpdate(
            check_table_optimizer(settings.table_optimizer),
            iterations=mechanism.iterations,
            noise_stddev=stddev,
            divisor=mechanics.divisor,
        )
        self._keys = Keys(
            {name: jnp.asarray(keys.key("table_noise", name)) for name in model.arrays},
            {name: jnp.asarray(keys.key("tower_noise", name)) for name in tower.shapes},
        )
        # Under dense noise every row is up to date; without noise and decay too, whatever the history says.
        self._keeps_history = not (self._step.dense_noise or self._update.leaves_rows_alone)
        self._sizes = Sizes()
        self._iteration = 0
        self._selected: dict[str, NDArray[np.bool_]] = {}
        self._history = {
            name: np.zeros(len(array), np.int32) for name, array in model.arrays.items()
        }
        self._recent_at = -1
        self._stddevs, self._decays = np.zeros(lazy.RECENT), np.zeros(lazy.RECENT)
        self._whole = jax.jit(self._step.whole, donate_argnums=0, static_argnames="num_units")
        self._clip = jax.jit(self._step.clip, static_argnames="num_units")
        self._read = jax.jit(self._step.read)
        self._put = jax.jit(self._step.put, donate_argnums=0)
        self._move = jax.jit(self._step.move, donate_argnums=0)
        with jax.enable_x64(True):
            self._state = self._on_device()

    def select(self, selected: Mapping[str, NDArray[np.bool_]]) -> None:
        """Rows that are left out are zero and nobody reads them."""
        self._selected = dict(selected)
        for name, rows in selected.items():
            self.model.arrays[name][~rows] = 0.0
        with jax.enable_x64(True):
            self._state = self._state._replace(tables=self._tables_on_device())

    def step(self, iteration: int, pieces: Iterator[Piece], meanwhile: Task) -> None:
        """One iteration; the next batch is drawn and read while the device works."""
        first = next(pieces)
        second = next(pieces, None)
        with jax.enable_x64(True):
            numbers = self._numbers()
            if second is None:
                batch, units = self._batch(first)
                missed = self._missed(first, _touched(batch))
                self._state = self._whole(
                    self._state, batch, missed, self._keys, numbers, num_units=units
                )
                for name, reads in first.reads.items():
                    self._note(name, reads.runs.rows)
            else:
                self._step_in_pieces(_chained([first, second], pieces), numbers)
        get_workers().run([meanwhile])
        self._iteration += 1

    def flush(self, on_rows: Callable[[int], None]) -> None:
        """Catches every row up, some at a time, rounds to the public grid, and copies to the model."""
        with jax.enable_x64(True):
            for name, history in self._history.items():
                for start in range(0, len(history), FLUSH_ROWS):
                    end = min(start + FLUSH_ROWS, len(history))
                    self._flush_rows(name, start, end)
                    on_rows(end - start)
                self._hide_low_bits(name)
        self._to_model()

    def state(self) -> dict[str, NDArray[Any]]:
        """Parameters, histories and moments."""
        self._to_model()
        return {
            **{f"array.{name}": value for name, value in self.model.arrays.items()},
            **{f"dense.{name}": value for name, value in self.model.dense.items()},
            **{f"history.{name}": value for name, value in self._history.items()},
            **{f"{OPTIMIZER}{name}": v for name, v in saved(self._state.moments).items()},
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], iteration: int) -> None:
        """Part by part."""
        for name, value in self.model.arrays.items():
            value[...] = arrays[f"array.{name}"]
        for name, value in self.model.dense.items():
            value[...] = arrays[f"dense.{name}"]
        for name, history in self._history.items():
            history[...] = arrays[f"history.{name}"]
        moments = {
            key.removeprefix(OPTIMIZER): value
            for key, value in arrays.items()
            if key.startswith(OPTIMIZER)
        }
        self._iteration = iteration
        with jax.enable_x64(True):
            state = self._on_device()
            self._state = state._replace(moments=restored(state.moments, moments))

    def _step_in_pieces(self, pieces: Iterator[Piece], numbers: Numbers) -> None:
        """An iteration on a batch that does not fit at once; sums are merged by row on the host."""
        found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
        dense: dict[str, Any] = {}
        for piece in pieces:
            batch, units = self._batch(piece)
            touched = _touched(batch)
            missed = self._missed(piece, touched)
            rows = self._read(self._state.tables, touched, missed, self._keys, numbers.now)
            sums, _ = self._clip(rows, self._state.params, batch, num_units=units)
            if missed is not None:  # another piece may read them again
                tables = self._put(self._state.tables, touched, rows)
                self._state = self._state._replace(tables=tables)
            for name, value in sums.dense.items():
                dense[name] = dense[name] + np.asarray(value) if name in dense else np.array(value)
            for name, values in sums.rows.items():
                own = piece.reads[name].runs.rows
                found.setdefault(name, []).append((own, np.asarray(values)[: len(own)]))
        merged: dict[str, jax.Array] = {}
        touched = {}
        for name, some in found.items():
            runs = merge_runs(np.concatenate([own for own, _ in some]))
            values = np.concatenate([value for _, value in some])[runs.order]
            total = np.add.reduceat(values, runs.starts[:-1]) if len(values) else values
            size = self._sizes.of(f"merged rows of {name}", len(runs.rows))
            merged[name] = jnp.asarray(padded(total, size, 0.0))
            touched[name] = _numbers_of(runs.rows, size, len(self._history[name]))
            self._note(name, runs.rows)
        rows = self._read(self._state.tables, touched, None, self._keys, numbers.now)
        self._state = self._move(
            self._state, rows, Sums(merged, dense), touched, self._keys, numbers
        )

    def _batch(self, piece: Piece) -> tuple[DeviceBatch, int]:
        """The piece as the device takes it, and its number of units, padding included."""
        model = self.model
        return device_batch(
            piece.batch,
            piece.reads,
            model.layout,
            model.output,
            self._step.at_a_time,
            self._sizes,
        )

    def _numbers(self) -> Numbers:
        """Of the present iteration."""
        rate = float(self._update.rates[self._iteration])
        return Numbers(
            now=jnp.asarray(step_words(self._iteration)),
            following=jnp.asarray(step_words(self._iteration + 1)),
            table_factor=-rate / self._update.divisor,
            table_decay=float(self._update.decays[self._iteration]),
            table_stddev=rate * self._update.noise_scale,
            tower_rate=float(self._tower_rates[self._iteration]),
        )

    def _missed(self, piece: Piece, touched: Mapping[str, jax.Array]) -> dict[str, Missed] | None:
        """What the rows of a piece missed, noted as made up for. None where nothing is ever missed."""
        if not self._keeps_history:
            return None
        found = {}
        for name, numbers in touched.items():
            rows = piece.reads[name].runs.rows
            found[name] = self._missed_by(name, rows, len(numbers))
            self._history[name][rows] = self._iteration
        return found

    def _missed_by(self, name: str, rows: NDArray[np.int64], size: int) -> Missed:
        """What some rows missed, padded."""
        scale, table = self._update.noise_scale, self._update.missed
        if self._recent_at != self._iteration:
            lazy.recent_intervals(table, self._iteration, scale, self._stddevs, self._decays)
            self._recent_at = self._iteration
        stddevs, decays = np.zeros(len(rows)), np.ones(len(rows))
        since = self._history[name][rows]
        lazy.missed_by(
            since, self._iteration, scale, table, self._stddevs, self._decays, stddevs, decays
        )
        return Missed(
            jnp.asarray(padded(stddevs, size, 0.0)), jnp.asarray(padded(decays, size, 1.0))
        )

    def _note(self, name: str, rows: NDArray[np.int64]) -> None:
        """Notes that rows have the noise of the present iteration."""
        if self._keeps_history:
            self._history[name][rows] = self._iteration + 1

    def _flush_rows(self, name: str, start: int, end: int) -> None:
        """Catches rows start:end up."""
        if not self._keeps_history:
            return
        history = self._history[name]
        rows = np.arange(start, end)
        if name in self._selected:
            rows = np.flatnonzero(self._selected[name][start:end]) + start
        rows = rows[history[rows] < self._iteration]
        size = bucket(len(rows))
        missed = self._missed_by(name, rows, size)
        tables = self._state.tables
        touched = {name: _numbers_of(rows, size, len(history))}
        of_one, now = {name: tables[name]}, jnp.asarray(step_words(self._iteration))
        values = self._read(of_one, touched, {name: missed}, self._keys, now)
        self._state = self._state._replace(tables={**tables, **self._put(of_one, touched, values)})
        history[rows] = self._iteration

    def _hide_low_bits(self, name: str) -> None:
        """Rounds all rows to a public grid: post-processing, as `TableMechanism.hide_low_bits`."""
        variance = lazy.missed_variance(self._update.missed, 0, self._iteration)
        stddev = self._update.noise_scale * math.sqrt(variance)
        if stddev > 0.0:
            tables = self._state.tables
            rounded = _rounded(tables[name], np.float32(public_grid(stddev)))
            self._state = self._state._replace(tables={**tables, name: rounded})

    def _tables_on_device(self) -> dict[str, jax.Array]:
        """The model's arrays."""
        return {name: jnp.array(value) for name, value in self.model.arrays.items()}

    def _on_device(self) -> State:
        """The model's parameters, and moments that nothing has moved."""
        params = {name: jnp.array(value) for name, value in self.model.dense.items()}
        moments = self._step.optimizer.init(params)
        return State(self._tables_on_device(), params, moments)

    def _to_model(self) -> None:
        """Copies the parameters to the model's own arrays."""
        for name, value in self._state.tables.items():
            self.model.arrays[name][...] = np.asarray(value)
        for name, value in self._state.params.items():
            self.model.dense[name][...] = np.asarray(value)


@jax.jit
def _rounded(table: jax.Array, grid: jax.Array) -> jax.Array:
    """Multiples of a power of two."""
    return jnp.rint(table / grid) * grid


def _numbers_of(rows: NDArray[np.int64], size: int, nothing: int) -> jax.Array:
    """Row numbers, uint32[size]."""
    return jnp.asarray(padded(rows.astype(np.uint32), size, nothing))


def _touched(batch: DeviceBatch) -> dict[str, jax.Array]:
    """The distinct rows of each group."""
    return {name: places.touched for name, places in batch.places.items()}


def _chained(some: list[Piece], rest: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces in order; each is let go before the next is read."""
    some.reverse()
    while some:
        yield some.pop()
    yield from rest
