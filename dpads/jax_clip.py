"""Per-unit clipped gradients of a batch as pure functions of arrays, to be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.clipping import ClippedSum
from dpads.jax_batches import DeviceBatch, Loading, Share, Sizes, padded
from dpads.jax_chunks import MOST_AT_A_TIME, examples_at_a_time
from dpads.kernels import jax_linear, jax_ops
from dpads.models.base import Model
from dpads.models.jax_layers import LayerFactors
from dpads.models.jax_losses import JaxTargets
from dpads.models.jax_towers import JaxTower, TowerGradients
from dpads.models.layout import Layout, TableGroup
from dpads.rounding import LOWEST_FLOOR
from dpads.row_sums import KnownSums, Reads

Arrays = dict[str, jax.Array]


class Sums(NamedTuple):
    """Sums of clipped gradients; secret.

    Attributes:
        rows: {group: float64[R, dim]}, of the rows that are read.
        dense: {parameter: float64}.
    """

    rows: Arrays
    dense: Arrays


@dataclass(frozen=True)
class Clip:
    """How a run clips; everything is public.

    Attributes:
        tower: the model's.
        layout: of the features.
        l2_clip_norm: C.
        floor: of `kernels.clip.clip_factors`.
    """

    tower: JaxTower
    layout: Layout
    l2_clip_norm: float
    floor: float

    def sums(
        self, rows: Mapping[str, jax.Array], params: Arrays, batch: DeviceBatch
    ) -> tuple[Sums, jax.Array]:
        """Clipped sums over a batch, and the units' norms before clipping, float64[K, B] as they stand there.

        Of a chunk nothing is kept but its part of the sums.

        Args:
            rows: {group: float32[R, dim]}, the rows that are read, up to date.
            params: of the tower.
            batch: padded.
        """
        groups, places = self.layout.groups, batch.places
        per_chunk = (
            {name: of_group._replace(sums=None) for name, of_group in places.items()},
            {name: of_group.numbers for name, of_group in places.items()},
            batch.dense,
            batch.targets[:3],
            batch.units,
            batch.groups,
        )

        def add(number: jax.Array, so_far: tuple[Arrays, Arrays, jax.Array]) -> Any:
            of_rows, dense, norms = so_far
            here, numbers, values, targets, units, bounds = jax.tree.map(
                lambda v: lax.dynamic_index_in_dim(v, number, keepdims=False), per_chunk
            )
            features = self._features(rows, here, values)
            of_examples = JaxTargets._make((*targets, batch.targets.offset))
            found = self.tower.gradients(params, features, of_examples)
            squares, parts = self._squares(found, here, units, batch.longest)
            whole = self.tower.clip_whole(
                params, features, of_examples, units, squares, parts, dense, self._factors
            )
            own_norms, factors = jax_ops.clip_factors(
                whole.squares, whole.parts, self.l2_clip_norm, self.floor
            )
            of_example = jax_ops.example_factors(factors, units)
            more = {}
            for group in groups:
                name, grads = group.name, _part_of(group, found.feature_grads)
                vectors = jax_ops.clipped_vectors(grads, here[name], len(group.slots), of_example)
                more[name] = jax_ops.add_vectors(of_rows[name], numbers[name], vectors)
            layers = self._linear_sums(dense, found.factors, of_example, bounds)
            norms = lax.dynamic_update_index_in_dim(norms, own_norms, number, 0)
            return more, {**whole.sums, **layers}, norms

        nothing = {
            group.name: jax_ops.zero_sums(places[group.name], len(rows[group.name]), group.dim)
            for group in groups
        }
        zeros = {name: jnp.zeros(shape) for name, shape in self.tower.shapes.items()}
        start = (nothing, zeros, jnp.zeros(batch.dense.shape[:2]))
        of_rows, dense, norms = lax.fori_loop(0, batch.chunks[0], add, start)
        of_rows = {
            name: jax_ops.carried(value, places[name], len(rows[name]))
            for name, value in of_rows.items()
        }
        return Sums(of_rows, dense), norms

    def _squares(
        self,
        found: TowerGradients,
        places: Mapping[str, jax_ops.DevicePlaces],
        units: jax.Array | None,
        longest: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Squares of the units' norms over tables and layers, and sums of the norms of their parts."""
        number = len(found.feature_grads)  # of units too, at most
        squares, parts = jnp.zeros(number), jnp.zeros(number)
        for group in self.layout.groups:
            grads = _part_of(group, found.feature_grads)
            more = jax_ops.square_norms(grads, places[group.name], len(group.slots), units, number)
            squares, parts = squares + more[0], parts + more[1]
        for layer in self.tower.linears:
            more = jax_linear.linear_square_norms(
                *found.factors[layer.name], layer.bias, units, number, longest, layer.positions
            )
            squares, parts = squares + more[0], parts + more[1]
        return squares, parts

    def _linear_sums(
        self,
        sums: Arrays,
        factors_of: Mapping[str, LayerFactors],
        of_example: jax.Array,
        groups: jax.Array | None,
    ) -> Arrays:
        """Sums over the layers' parameters, with those of a chunk."""
        found = {}
        for layer in self.tower.linears:
            names = f"{layer.name}.weight", f"{layer.name}.bias"
            bias = sums[names[1]] if layer.bias else jnp.zeros(layer.width_out)
            found[names[0]], bias = jax_linear.linear_sums(
                (sums[names[0]], bias),
                *factors_of[layer.name],
                of_example,
                layer.positions,
                groups,
            )
            if layer.bias:
                found[names[1]] = bias
        return found

    def _factors(self, squares: jax.Array, parts: jax.Array) -> jax.Array:
        """Clip factors of some units."""
        return jax_ops.clip_factors(squares, parts, self.l2_clip_norm, self.floor)[1]

    def _features(
        self,
        rows: Mapping[str, jax.Array],
        places: Mapping[str, jax_ops.DevicePlaces],
        dense: jax.Array,
    ) -> jax.Array:
        """float32[B, width]."""
        parts = [
            jax_ops.pool_touched(rows[group.name], places[group.name], len(dense), len(group.slots))
            for group in self.layout.groups
        ]
        return jnp.concatenate([*parts, dense], axis=1)


def _part_of(group: TableGroup, feature_grads: jax.Array) -> jax.Array:
    """The columns of a group."""
    first = min(slot.column for slot in group.slots)
    return feature_grads[:, first : first + group.dim * len(group.slots)]


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
    clip = Clip(tower, model.layout, l2_clip_norm, LOWEST_FLOOR)
    number, offsets = batch.num_examples, batch.unit_offsets
    longest = 1 if offsets is None else int(np.diff(offsets).max(initial=1))
    sizes, at_a_time = Sizes(), examples_at_a_time(number, MOST_AT_A_TIME, longest)
    loading = Loading(Share(batch, reads, None), model.layout, at_a_time)
    rows = {
        name: padded(model.arrays[name][own.runs.rows], sizes.of(name, len(own.runs.rows)), 0.0)
        for name, own in reads.items()
    }
    ready = loading.arrays(
        model.output,
        loading.needs(),
        {name: np.arange(len(own.runs.rows), dtype=np.int32) for name, own in reads.items()},
        {name: len(values) for name, values in rows.items()},
        sizes,
    )
    with jax.enable_x64(True):
        sums, norms = jax.jit(clip.sums)(rows, dict(model.dense), ready)
    groups = {}
    for name, values in sums.rows.items():
        own = reads[name].runs.rows
        groups[name] = KnownSums(own, np.asarray(values)[: len(own)])
    dense = {name: np.asarray(value) for name, value in sums.dense.items()}
    return ClippedSum(dense, groups, l2_clip_norm), loading.norms(np.asarray(norms))
