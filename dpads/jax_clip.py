"""Per-unit clipped gradients of a batch as pure functions of arrays, to be compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.batch import SparseBatch
from dpads.clipping import ClippedSum
from dpads.jax_batches import (
    DeviceBatch,
    Loading,
    Share,
    Sizes,
    examples_at_a_time,
    most_needed,
    padded,
)
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
        at_a_time: examples that pass through the tower at a time.
        l2_clip_norm: C.
        floor: of `kernels.clip.clip_factors`.
    """

    tower: JaxTower
    layout: Layout
    at_a_time: int
    l2_clip_norm: float
    floor: float

    def sums(
        self, rows: Mapping[str, jax.Array], params: Arrays, batch: DeviceBatch, num_units: int
    ) -> tuple[Sums, jax.Array]:
        """Clipped sums over a batch, and the units' norms before clipping, float64[U].

        Args:
            rows: {group: float32[R, dim]}, the rows that are read, up to date.
            params: of the tower.
            batch: padded.
            num_units: U, padding included; static.
        """
        if batch.units is None and not self.tower.whole and _regular(batch.places.values()):
            return self._sums_by_chunk(rows, params, batch)
        features = self._features(rows, batch.places, batch.dense)
        found = self._gradients(params, features, batch.targets)
        squares, parts = self._squares(found, batch.places, batch.units, num_units, batch.longest)
        whole = self.tower.clip_whole(
            params, features, batch.targets, batch.units, squares, parts, self._factors
        )
        norms, factors = jax_ops.clip_factors(
            whole.squares, whole.parts, self.l2_clip_norm, self.floor
        )
        of_example = jax_ops.example_factors(factors, batch.units)
        of_rows = {
            group.name: jax_ops.row_sums(
                _part_of(group, found.feature_grads),
                batch.places[group.name],
                len(group.slots),
                of_example,
                len(rows[group.name]),
            )
            for group in self.layout.groups
        }
        dense = self._linear_sums(found.factors, of_example, batch.groups)
        return Sums(of_rows, {**whole.sums, **dense}), norms

    def _sums_by_chunk(
        self, rows: Mapping[str, jax.Array], params: Arrays, batch: DeviceBatch
    ) -> tuple[Sums, jax.Array]:
        """`sums` where each example is a unit with a place in every slot.

        Of a chunk of examples nothing is kept but its part of the rows' sums and the layers' factors.
        """
        groups, places = self.layout.groups, batch.places
        per_example = (
            {name: of_group._replace(sums=None) for name, of_group in places.items()},
            {name: of_group.numbers for name, of_group in places.items()},
            batch.dense,
            batch.targets[:3],
        )
        count = len(batch.dense) // self.at_a_time
        chunks = jax.tree.map(
            lambda v: v.reshape(count, len(v) // count, *v.shape[1:]), per_example
        )

        def add(sums: Arrays, chunk: Any) -> tuple[Arrays, Any]:
            of_chunk, numbers, dense, targets = chunk
            features = self._features(rows, of_chunk, dense)
            of_examples = JaxTargets._make((*targets, batch.targets.offset))
            found = self.tower.gradients(params, features, of_examples)
            squares, parts = self._squares(found, of_chunk, None, len(dense), batch.longest)
            norms, factors = jax_ops.clip_factors(squares, parts, self.l2_clip_norm, self.floor)
            more = {}
            for group in groups:
                name, grads = group.name, _part_of(group, found.feature_grads)
                vectors = jax_ops.clipped_vectors(grads, of_chunk[name], len(group.slots), factors)
                more[name] = jax_ops.add_vectors(sums[name], numbers[name], vectors)
            return more, (norms, factors, found.factors)

        nothing = {
            group.name: jax_ops.zero_sums(places[group.name], len(rows[group.name]), group.dim)
            for group in groups
        }
        sums, kept = lax.scan(add, nothing, chunks)
        norms, factors, of_layers = jax.tree.map(
            lambda v: v.reshape(count * v.shape[1], *v.shape[2:]), kept
        )
        of_rows = {
            name: jax_ops.carried(value, places[name], len(rows[name]))
            for name, value in sums.items()
        }
        return Sums(of_rows, self._linear_sums(of_layers, factors, batch.groups)), norms

    def _squares(
        self,
        found: TowerGradients,
        places: Mapping[str, jax_ops.DevicePlaces],
        units: jax.Array | None,
        num_units: int,
        longest: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Squares of the units' norms over tables and layers, and sums of the norms of their parts."""
        squares, parts = jnp.zeros(num_units), jnp.zeros(num_units)
        for group in self.layout.groups:
            grads = _part_of(group, found.feature_grads)
            more = jax_ops.square_norms(
                grads, places[group.name], len(group.slots), units, num_units
            )
            squares, parts = squares + more[0], parts + more[1]
        for layer in self.tower.linears:
            more = jax_linear.linear_square_norms(
                *found.factors[layer.name], layer.bias, units, num_units, longest, layer.positions
            )
            squares, parts = squares + more[0], parts + more[1]
        return squares, parts

    def _linear_sums(
        self,
        factors_of: Mapping[str, LayerFactors],
        of_example: jax.Array,
        groups: jax.Array | None,
    ) -> Arrays:
        """Sums over the layers' parameters."""
        dense = {}
        for layer in self.tower.linears:
            weight, bias = jax_linear.linear_sums(
                *factors_of[layer.name], of_example, layer.positions, groups
            )
            dense[f"{layer.name}.weight"] = weight
            if layer.bias:
                dense[f"{layer.name}.bias"] = bias
        return dense

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
            *jax.tree.map(
                lambda values: values.reshape(values.shape[0] * values.shape[1], *values.shape[2:]),
                tuple(found),
            )
        )


def _regular(places: Iterable[jax_ops.DevicePlaces]) -> bool:
    """Whether places stand example by example, and no example reads a row twice."""
    return all(of_group.examples is None and of_group.pairs is None for of_group in places)


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
    at_a_time, sizes = examples_at_a_time(batch.num_examples), Sizes()
    clip = Clip(tower, model.layout, at_a_time, l2_clip_norm, LOWEST_FLOOR)
    loading = Loading(Share(batch, reads, None), model.layout)
    needs = most_needed([loading.needs(at_a_time)])
    rows = {
        name: padded(model.arrays[name][own.runs.rows], sizes.of(name, len(own.runs.rows)), 0.0)
        for name, own in reads.items()
    }
    ready, units = loading.arrays(
        model.output,
        at_a_time,
        needs,
        {name: np.arange(len(own.runs.rows), dtype=np.int32) for name, own in reads.items()},
        {name: len(values) for name, values in rows.items()},
        sizes,
    )
    with jax.enable_x64(True):
        sums, norms = jax.jit(clip.sums, static_argnames="num_units")(
            rows, dict(model.dense), ready, num_units=units
        )
    groups = {}
    for name, values in sums.rows.items():
        own = reads[name].runs.rows
        groups[name] = KnownSums(own, np.asarray(values)[: len(own)])
    dense = {name: np.asarray(value) for name, value in sums.dense.items()}
    return ClippedSum(dense, groups, l2_clip_norm), np.asarray(norms)[: batch.num_units]
