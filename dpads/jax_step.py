"""One private iteration as pure functions of arrays, to be compiled: clip and sum, then noise and move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import lax
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.clipping import LOWEST_FLOOR, ClippedSum
from dpads.jax_batches import DeviceBatch, Sizes, device_batch, examples_at_a_time, padded
from dpads.jax_optimizers import moved
from dpads.kernels import jax_moves, jax_ops
from dpads.models.base import Model
from dpads.models.jax_losses import JaxTargets
from dpads.models.jax_towers import JaxTower, TowerGradients
from dpads.models.layout import Layout
from dpads.row_sums import KnownSums, Reads

Arrays = dict[str, jax.Array]


class State(NamedTuple):
    """What an iteration moves.

    Attributes:
        tables: {group: float32[rows, dim]}.
        params: {parameter: float32}, of the tower.
        moments: of the tower's optimizer.
    """

    tables: Arrays
    params: Arrays
    moments: optax.OptState


class Missed(NamedTuple):
    """What the touched rows of a group missed until they are read.

    Attributes:
        stddevs: float64[R].
        decays: float64[R].
    """

    stddevs: jax.Array
    decays: jax.Array


class Keys(NamedTuple):
    """Keys of the noise, uint32[8] each; arguments, so that no compiled program holds them.

    Attributes:
        tables: {group: key}.
        tower: {parameter: key}.
    """

    tables: Arrays
    tower: Arrays


class Numbers(NamedTuple):
    """Public numbers of an iteration, float64 unless said otherwise.

    Attributes:
        now: uint32[2], the iteration.
        following: uint32[2], the one after it: the address of what touched rows draw.
        table_factor: of sums: - rate / divisor.
        table_decay: of rows.
        table_stddev: rate * noise_stddev / divisor.
        tower_rate: learning rate.
    """

    now: jax.Array
    following: jax.Array
    table_factor: float
    table_decay: float
    table_stddev: float
    tower_rate: float


class Sums(NamedTuple):
    """Sums of clipped gradients; secret.

    Attributes:
        rows: {group: float64[R, dim]}, of touched rows.
        dense: {parameter: float64}.
    """

    rows: Arrays
    dense: Arrays


@dataclass(frozen=True)
class Step:
    """The functions of one run; everything that is not an argument is public.

    Attributes:
        tower: the model's.
        layout: of the features.
        at_a_time: examples that pass through the tower at a time.
        l2_clip_norm: C.
        floor: of `kernels.clip.clip_factors`.
        noise_stddev: of the sums.
        divisor: of noisy sums.
        grid: of the tower's noisy sums; 0 without noise.
        optimizer: of the tower.
        weight_decay: of the tower, decoupled.
        dense_noise: whether every row gets its noise in every iteration.
    """

    tower: JaxTower
    layout: Layout
    at_a_time: int
    l2_clip_norm: float
    floor: float
    noise_stddev: float
    divisor: float
    grid: float
    optimizer: optax.GradientTransformationExtraArgs
    weight_decay: float
    dense_noise: bool

    def clip(
        self, rows: Mapping[str, jax.Array], params: Arrays, batch: DeviceBatch, num_units: int
    ) -> tuple[Sums, jax.Array]:
        """Clipped sums over a batch, and the units' norms before clipping, float64[U].

        Args:
            rows: {group: float32[R, dim]}, the touched rows, up to date.
            params: of the tower.
            batch: padded.
            num_units: U, padding included; static.
        """
        features = self._features(rows, batch)
        found = self._gradients(params, features, batch.targets)
        squares, parts = jnp.zeros(num_units), jnp.zeros(num_units)
        by_group = {}
        for group in self.layout.groups:
            first, slots = min(slot.column for slot in group.slots), len(group.slots)
            grads = found.feature_grads[:, first : first + group.dim * slots]
            by_group[group.name] = grads
            places = batch.places[group.name]
            more = jax_ops.square_norms(grads, places, slots, batch.units, num_units)
            squares, parts = squares + more[0], parts + more[1]
        for layer in self.tower.linears:
            more = jax_ops.linear_square_norms(
                *found.factors[layer.name],
                layer.bias,
                _units_of_vectors(layer.positions, batch.units, len(features)),
                num_units,
                batch.longest * layer.positions,
            )
            squares, parts = squares + more[0], parts + more[1]
        whole = self.tower.clip_whole(
            params, features, batch.targets, batch.units, squares, parts, self._factors
        )
        norms, factors = jax_ops.clip_factors(
            whole.squares, whole.parts, self.l2_clip_norm, self.floor
        )
        of_example = jax_ops.example_factors(factors, batch.units)
        sums, dense = {}, dict(whole.sums)
        for group in self.layout.groups:
            sums[group.name] = jax_ops.row_sums(
                by_group[group.name], batch.places[group.name], len(group.slots), of_example
            )
        for layer in self.tower.linears:
            of_vector = jnp.repeat(of_example, layer.positions)
            weight, bias = jax_ops.linear_sums(*found.factors[layer.name], of_vector)
            dense[f"{layer.name}.weight"] = weight
            if layer.bias:
                dense[f"{layer.name}.bias"] = bias
        return Sums(sums, dense), norms

    def read(
        self,
        tables: Mapping[str, jax.Array],
        touched: Mapping[str, jax.Array],
        missed: Mapping[str, Missed] | None,
        keys: Keys,
        now: jax.Array,
    ) -> Arrays:
        """Rows with all noise and decay of the iterations before the present one, {group: float32[R, dim]}.

        Args:
            tables: of the groups.
            touched: uint32[R], rows of each.
            missed: what they missed; None where nothing ever is.
            keys: of the noise.
            now: uint32[2], the present iteration.
        """
        rows = {name: jax_moves.take_rows(tables[name], at) for name, at in touched.items()}
        if missed is None:
            return rows
        return {
            name: jax_moves.caught_up(values, touched[name], *missed[name], keys.tables[name], now)
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
            name: jax_moves.put_rows(tables[name], at, rows[name]) for name, at in touched.items()
        }

    def move(
        self,
        state: State,
        rows: Mapping[str, jax.Array],
        sums: Sums,
        touched: Mapping[str, jax.Array],
        keys: Keys,
        numbers: Numbers,
    ) -> State:
        """Adds the iteration's noise to the sums and moves everything by them."""
        noisy = self.noise_stddev > 0
        tables = {}
        for name, at in touched.items():
            how = (
                sums.rows[name],
                numbers.table_factor,
                numbers.table_decay,
                numbers.table_stddev if noisy else None,
                keys.tables[name],
                numbers.following,
            )
            if self.dense_noise:
                tables[name] = jax_moves.move_all(state.tables[name], at, *how)
            else:
                values = jax_moves.moved_rows(rows[name], at, *how)
                tables[name] = jax_moves.put_rows(state.tables[name], at, values)
        gradients = {}
        for name, total in sums.dense.items():
            if noisy:
                gradients[name] = jax_moves.noisy_mean(
                    total, keys.tower[name], numbers.now, self.noise_stddev, self.grid, self.divisor
                )
            else:
                gradients[name] = (total / self.divisor).astype(jnp.float32)
        updates, moments = self.optimizer.update(gradients, state.moments, state.params)
        params = moved(state.params, updates, numbers.tower_rate, self.weight_decay)
        return State(tables, params, moments)

    def whole(
        self,
        state: State,
        batch: DeviceBatch,
        missed: Mapping[str, Missed] | None,
        keys: Keys,
        numbers: Numbers,
        num_units: int,
    ) -> State:
        """An iteration on a batch that is read whole; every row is read and written once."""
        touched = {name: places.touched for name, places in batch.places.items()}
        rows = self.read(state.tables, touched, missed, keys, numbers.now)
        sums, _ = self.clip(rows, state.params, batch, num_units)
        return self.move(state, rows, sums, touched, keys, numbers)

    def _factors(self, squares: jax.Array, parts: jax.Array) -> jax.Array:
        """Clip factors of some units."""
        return jax_ops.clip_factors(squares, parts, self.l2_clip_norm, self.floor)[1]

    def _features(self, rows: Mapping[str, jax.Array], batch: DeviceBatch) -> jax.Array:
        """float32[B, width]."""
        size = len(batch.dense)
        parts = [
            jax_ops.pool_touched(rows[group.name], batch.places[group.name], size, len(group.slots))
            for group in self.layout.groups
        ]
        return jnp.concatenate([*parts, batch.dense], axis=1)

    def _gradients(
        self, params: Arrays, features: jax.Array, targets: JaxTargets
    ) -> TowerGradients:
        """The tower's, over examples of one number at a time: their bits are their own."""
        count = len(features) // self.at_a_time
        if count == 1:
            return self.tower.gradients(params, features, targets)

        def chunks(values: jax.Array) -> jax.Array:
            return values.reshape(count, self.at_a_time, *values.shape[1:])

        of_example = targets._replace(offset=0.0)
        of_example = jax.tree.map(lambda v: chunks(v) if jnp.ndim(v) else v, of_example)

        def some(number: jax.Array) -> TowerGradients:
            own = jax.tree.map(lambda v: v[number] if jnp.ndim(v) else v, of_example)
            return self.tower.gradients(
                params, chunks(features)[number], own._replace(offset=targets.offset)
            )

        found: TowerGradients = lax.map(some, jnp.arange(count))
        return TowerGradients(
            *jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:]), tuple(found))
        )


def _units_of_vectors(positions: int, units: jax.Array | None, examples: int) -> jax.Array | None:
    """The unit of every vector that passes through a layer, int32[n * positions]."""
    if positions == 1:
        return units
    own = jnp.arange(examples, dtype=jnp.int32) if units is None else units
    return jnp.repeat(own, positions)


def clip_once(
    model: Model, batch: SparseBatch, reads: Mapping[str, Reads], l2_clip_norm: float
) -> tuple[ClippedSum, NDArray[np.float64]]:
    """`clipping.clip_batch` on a device: the sum, and the units' norms before clipping, float64[U].

    Args:
        model: with a tower in JAX.
        batch: possibly empty.
        reads: from `batch_reads`.
        l2_clip_norm: positive; infinity does not clip.
    """
    tower = model.description.jax_tower(model.layout, model.schema.task)
    step = Step(
        tower=tower,
        layout=model.layout,
        at_a_time=examples_at_a_time(batch.num_examples),
        l2_clip_norm=l2_clip_norm,
        floor=LOWEST_FLOOR,
        noise_stddev=0.0,
        divisor=1.0,
        grid=0.0,
        optimizer=optax.with_extra_args_support(optax.identity()),
        weight_decay=0.0,
        dense_noise=False,
    )
    with jax.enable_x64(True):
        ready, units = device_batch(
            batch, reads, model.layout, model.output, step.at_a_time, Sizes()
        )
        rows = {
            name: jnp.asarray(
                padded(model.arrays[name][reads[name].runs.rows], len(places.touched), 0.0)
            )
            for name, places in ready.places.items()
        }
        params = {name: jnp.asarray(value) for name, value in model.dense.items()}
        sums, norms = jax.jit(step.clip, static_argnames="num_units")(
            rows, params, ready, num_units=units
        )
    groups = {}
    for name, values in sums.rows.items():
        own = reads[name].runs.rows
        groups[name] = KnownSums(own, np.asarray(values)[: len(own)])
    dense = {name: np.asarray(value) for name, value in sums.dense.items()}
    return ClippedSum(dense, groups, l2_clip_norm), np.asarray(norms)[: batch.num_units]
