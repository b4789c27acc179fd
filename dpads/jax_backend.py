"""The JAX backend: tables and tower on devices, one compiled step.

    host      draw -> read -> places, distinct rows -> what each row missed
    devices   catch rows up -> pool -> tower -> norms, factors -> sums -> noise -> move

History stays on the hosts, which know the rows of a batch before a device reads them; every process has all
of it. Sums are float64 but within groups of units; products in the tower have one shape, so that an example's
bits do not depend on the others.
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
from dpads.drawing import Piece
from dpads.errors import ConfigError
from dpads.hosts import Hosts
from dpads.jax_batches import bucket
from dpads.jax_chunks import MOST_AT_A_TIME, MOST_AT_ONCE, examples_at_a_time
from dpads.jax_clip import Clip, Sums
from dpads.jax_hosts import CUT, WHOLE, Devices, noticing_losses
from dpads.jax_loading import Loaded, Loader
from dpads.jax_optimizers import restored, saved, transformation_of
from dpads.jax_rows import Rows
from dpads.jax_step import BATCH, FIXED, STATE, Fixed, Missed, Numbers, State, Step
from dpads.kernels import lazy
from dpads.kernels.jax_random import step_words
from dpads.kernels.merge import merge_runs
from dpads.kernels.workers import Task, get_workers
from dpads.models.base import Model
from dpads.noise import public_grid
from dpads.optimizers import check_table_optimizer
from dpads.rounding import LOWEST_FLOOR, cancellation_floor
from dpads.schedules import learning_rates
from dpads.tables import FLUSH_ROWS, TableUpdate


class JaxBackend(Backend):
    """Training on the devices that JAX knows, those of other processes included.

    Args:
        model: with its initial parameters, the same in every process.
        mechanics: of the run.
        hosts: its processes.

    Raises:
        ConfigError: the model has no tower in JAX, or sums over a batch would round by more than the
            sensitivity's slack.
    """

    def __init__(self, model: Model, mechanics: Mechanics, hosts: Hosts) -> None:
        self.model = model
        self._devices = Devices(hosts)
        plan, settings, keys = mechanics.plan, mechanics.settings, mechanics.keys
        mechanism, stddev = plan.mechanism, mechanics.noise_stddev
        units, rows = mechanism.expected_batch_size, plan.privacy.rows_per_unit
        config = settings.tower_optimizer
        tower = model.description.jax_tower(model.layout, model.schema.task)
        devices, floor = self._devices.count, LOWEST_FLOOR
        most = MOST_AT_A_TIME if jax.default_backend() == "cpu" else MOST_AT_ONCE
        at_a_time = examples_at_a_time(-(-units * rows // devices), most, rows)
        if stddev > 0:
            floor = cancellation_floor(
                model.tower,
                units,
                rows,
                lambda units: tower.additions(units * rows, at_a_time) + devices,
            )
        self._step = Step(
            clip=Clip(
                tower=tower,
                layout=model.layout,
                l2_clip_norm=mechanism.l2_clip_norm,
                floor=floor,
            ),
            axis=self._devices.axis,
            noise_stddev=stddev,
            divisor=mechanics.divisor,
            grid=public_grid(stddev) if stddev > 0 else 0.0,
            optimizer=transformation_of(config, (stddev / mechanics.divisor) ** 2),
            weight_decay=config.weight_decay,
            dense_noise=settings.table_noise == "dense",
        )
        self._loader = Loader(model, self._devices, at_a_time)
        self._tower_rates = learning_rates(
            config.schedule, config.learning_rate, mechanism.iterations
        )
        self._update = TableUpdate(
            check_table_optimizer(settings.table_optimizer),
            iterations=mechanism.iterations,
            noise_stddev=stddev,
            divisor=mechanics.divisor,
        )
        # Under dense noise every row is up to date; without noise and decay too, whatever the history says.
        self._keeps_history = not (self._step.dense_noise or self._update.leaves_rows_alone)
        self._iteration = 0
        self._history = {
            name: np.zeros(len(array), np.int32) for name, array in model.arrays.items()
        }
        self._recent_at = -1
        self._stddevs, self._decays = np.zeros(lazy.RECENT), np.zeros(lazy.RECENT)
        compiled = self._devices.compiled
        self._whole = compiled(
            self._step.whole, (STATE, BATCH, CUT, CUT, FIXED, WHOLE), STATE, donate=(0,)
        )
        self._read = compiled(self._step.read, (CUT, CUT, CUT, FIXED, WHOLE), CUT)
        self._put = compiled(self._step.put, (CUT, CUT, CUT), CUT, donate=(0,))
        self._clip = jax.jit(self._step.clip.sums)
        self._move = jax.jit(self._step.move, donate_argnums=0)
        with jax.enable_x64(True):
            whole = self._devices.whole
            self._fixed = Fixed(
                {name: whole(keys.key("table_noise", name)) for name in model.arrays},
                {name: whole(keys.key("tower_noise", name)) for name in tower.shapes},
                {},
            )
            self._state = self._on_device()

    def select(self, selected: Mapping[str, NDArray[np.bool_]]) -> None:
        """Rows that are left out are zero and nobody reads them."""
        self._loader.selected.update(selected)
        for name, rows in selected.items():
            self.model.arrays[name][~rows] = 0.0
        with jax.enable_x64(True):
            self._state = self._state._replace(tables=self._tables_on_device())
            on_device = {name: self._blocks(rows) for name, rows in selected.items()}
            self._fixed = self._fixed._replace(selected=on_device)

    def check_pieces(self) -> None:
        """Several devices take a batch whole: whether one has pieces would depend on its secret coins."""
        if self._devices.count > 1:
            raise ConfigError(
                f"Expected batches that {self._devices.count} devices take whole, got physical_batch_size. "
                "Leave it out: each device has a part of the batch already."
            )

    def step(self, iteration: int, pieces: Iterator[Piece], meanwhile: Task) -> None:
        """One iteration; the next batch is drawn and read while the devices work.

        Raises:
            ProcessLostError: another process has gone.
        """
        first = next(pieces)
        second = next(pieces, None)
        with jax.enable_x64(True), noticing_losses(self._devices.hosts.count):
            numbers = self._numbers()
            if second is None:
                loaded = self._loader.load(first)
                missed = self._missed(loaded)
                self._state = self._whole(
                    self._state,
                    loaded.batch,
                    loaded.touched,
                    missed,
                    self._fixed,
                    numbers,
                )
                for name, rows in loaded.rows.items():
                    self._note(name, rows.numbers)
            else:
                self._step_in_pieces(_chained([first, second], pieces), numbers)
        get_workers().run([meanwhile])
        self._iteration += 1

    def flush(self, on_rows: Callable[[int], None]) -> None:
        """Catches every row up, some at a time, rounds to the public grid, and copies to the model."""
        with jax.enable_x64(True), noticing_losses(self._devices.hosts.count):
            for name, history in self._history.items():
                block = self._loader.blocks[name]
                for start in range(0, block, FLUSH_ROWS):
                    end = min(start + FLUSH_ROWS, block)
                    self._flush_rows(name, start, end)
                    on_rows(
                        min(len(history), end * self._devices.count)
                        - min(len(history), start * self._devices.count)
                    )
                self._hide_low_bits(name)
            self._to_model()

    def state(self) -> dict[str, NDArray[Any]]:
        """Parameters, histories and moments."""
        with jax.enable_x64(True):
            self._to_model()
            moments = saved(jax.tree.map(self._devices.fetch, self._state.moments))
        return self._kept(self._history, moments)

    def restore(self, arrays: Mapping[str, NDArray[Any]], iteration: int) -> None:
        """Part by part."""
        moments = self._put_parameters(arrays)
        for name, history in self._history.items():
            history[...] = arrays[f"history.{name}"]
        self._iteration = iteration
        with jax.enable_x64(True):
            state = self._on_device()
            known = jax.tree.map(self._devices.whole, restored(state.moments, moments))
            self._state = state._replace(moments=known)

    def _step_in_pieces(self, pieces: Iterator[Piece], numbers: Numbers) -> None:
        """An iteration on a batch that does not fit at once; sums are merged by row on the host."""
        found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = {}
        dense: dict[str, Any] = {}
        for piece in pieces:
            loaded = self._loader.load(piece)
            missed = self._missed(loaded)
            rows = self._read(self._state.tables, loaded.touched, missed, self._fixed, numbers.now)
            sums, _ = self._clip(rows, self._state.params, loaded.batch)
            if missed is not None:  # another piece may read them again
                tables = self._put(self._state.tables, loaded.touched, rows)
                self._state = self._state._replace(tables=tables)
            for name, value in sums.dense.items():
                dense[name] = dense[name] + np.asarray(value) if name in dense else np.array(value)
            for name, values in sums.rows.items():
                own = loaded.rows[name].numbers
                found.setdefault(name, []).append((own, np.asarray(values)[: len(own)]))
        merged: dict[str, Any] = {}
        touched = {}
        for name, some in found.items():
            runs = merge_runs(np.concatenate([own for own, _ in some]))
            values = np.concatenate([value for _, value in some])[runs.order]
            total = np.add.reduceat(values, runs.starts[:-1]) if len(values) else values
            rows_of = self._loader.rows(name, runs.rows)
            size = self._loader.sizes.of(f"merged rows of {name}", rows_of.most)
            merged[name] = rows_of.arranged(total, size, 0.0)
            touched[name] = self._loader.touched(name, rows_of, size)
            self._note(name, runs.rows)
        rows = self._read(self._state.tables, touched, None, self._fixed, numbers.now)
        self._state = self._move(
            self._state, rows, Sums(merged, dense), touched, self._fixed, numbers
        )

    def _numbers(self) -> Numbers:
        """Of the present iteration."""
        rate = float(self._update.rates[self._iteration])
        return Numbers(
            now=step_words(self._iteration),
            following=step_words(self._iteration + 1),
            table_factor=np.float64(-rate / self._update.divisor),
            table_decay=np.float64(self._update.decays[self._iteration]),
            table_stddev=np.float64(rate * self._update.noise_scale),
            tower_rate=np.float64(self._tower_rates[self._iteration]),
        )

    def _missed(self, loaded: Loaded) -> dict[str, Missed] | None:
        """What the rows of a piece missed, noted as made up for. None where nothing is ever missed."""
        if not self._keeps_history:
            return None
        found = {}
        for name, rows in loaded.rows.items():
            found[name] = self._missed_by(name, rows, loaded.size_of[name])
            self._history[name][rows.numbers] = self._iteration
        return found

    def _missed_by(self, name: str, rows: Rows, size: int) -> Missed:
        """What some rows missed, padded."""
        scale, table = self._update.noise_scale, self._update.missed
        if self._recent_at != self._iteration:
            lazy.recent_intervals(table, self._iteration, scale, self._stddevs, self._decays)
            self._recent_at = self._iteration
        stddevs, decays = np.zeros(len(rows.numbers)), np.ones(len(rows.numbers))
        since = self._history[name][rows.numbers]
        lazy.missed_by(
            since, self._iteration, scale, table, self._stddevs, self._decays, stddevs, decays
        )
        return Missed(
            self._cut(rows.arranged(stddevs, size, 0.0)),
            self._cut(rows.arranged(decays, size, 1.0)),
        )

    def _cut(self, values: NDArray[Any]) -> jax.Array:
        """What `Rows.arranged` returned, on the devices."""
        return self._devices.cut(self._devices.own(values))

    def _note(self, name: str, rows: NDArray[np.int64]) -> None:
        """Notes that rows have the noise of the present iteration."""
        if self._keeps_history:
            self._history[name][rows] = self._iteration + 1

    def _flush_rows(self, name: str, start: int, end: int) -> None:
        """Catches rows start:end of every block up."""
        if not self._keeps_history:
            return
        history, selected = self._history[name], self._loader.selected.get(name)
        block = self._loader.blocks[name]
        starts = np.arange(self._devices.count) * block
        numbers = np.concatenate([np.arange(first + start, first + end) for first in starts])
        numbers = numbers[numbers < len(history)]
        if selected is not None:
            numbers = numbers[selected[numbers]]
        rows = self._loader.rows(name, numbers[history[numbers] < self._iteration])
        size = bucket(rows.most)
        missed = self._missed_by(name, rows, size)
        tables = self._state.tables
        touched = {name: self._loader.touched(name, rows, size)}
        of_one, now = {name: tables[name]}, step_words(self._iteration)
        values = self._read(of_one, touched, {name: missed}, self._fixed, now)
        self._state = self._state._replace(tables={**tables, **self._put(of_one, touched, values)})
        history[rows.numbers] = self._iteration

    def _hide_low_bits(self, name: str) -> None:
        """Rounds all rows to a public grid: post-processing, as `TableMechanism.hide_low_bits`."""
        variance = lazy.missed_variance(self._update.missed, 0, self._iteration)
        stddev = self._update.noise_scale * math.sqrt(variance)
        if stddev > 0.0:
            tables = self._state.tables
            rounded = _rounded(tables[name], np.float32(public_grid(stddev)))
            self._state = self._state._replace(tables={**tables, name: rounded})

    def _blocks(self, values: NDArray[Any]) -> jax.Array:
        """A value for each row of a table, cut into blocks; rows beyond the table's are zero."""
        short = -len(values) % self._devices.count
        padded = np.pad(values, [(0, short)] + [(0, 0)] * (values.ndim - 1))
        return self._cut(padded)

    def _tables_on_device(self) -> dict[str, jax.Array]:
        """The model's arrays."""
        return {name: self._blocks(value) for name, value in self.model.arrays.items()}

    def _on_device(self) -> State:
        """The model's parameters, and moments that nothing has moved."""
        params = {name: self._devices.whole(value) for name, value in self.model.dense.items()}
        moments = self._step.optimizer.init(dict(self.model.dense))
        return State(
            self._tables_on_device(),
            params,
            jax.tree.map(lambda value: self._devices.whole(np.asarray(value)), moments),
        )

    def _to_model(self) -> None:
        """Copies the parameters to the model's own arrays."""
        for name, value in self._state.tables.items():
            own = self.model.arrays[name]
            own[...] = self._devices.fetch(value)[: len(own)]
        for name, value in self._state.params.items():
            self.model.dense[name][...] = self._devices.fetch(value)


@jax.jit
def _rounded(table: jax.Array, grid: jax.Array) -> jax.Array:
    """Multiples of a power of two."""
    return jnp.rint(table / grid) * grid


def _chained(some: list[Piece], rest: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces in order; each is let go before the next is read."""
    some.reverse()
    while some:
        yield some.pop()
    yield from rest
