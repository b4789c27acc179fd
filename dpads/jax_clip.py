"""Per-unit clipped gradients of a batch as pure functions of arrays, to be compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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
from dpads.models.jax_losses import JaxTargets
from dpads.models.jax_towers import JaxTower, TowerGradients
from dpads.models.layout import Layout
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
            more = jax_linear.linear_square_norms(
                *found.factors[layer.name],
                layer.bias,
                batch.units,
                num_units,
                batch.longest,
                layer.positions,
            )
            squares, parts = squares + more[0], parts + more[1]
        whole = self.tower.clip_whole(
            params, features, batch.targets, batch.units, squares, parts, self._factors
        )
        norms, factors = jax_ops.clip_factors(
            whole.squares, whole.parts, self.l2_clip_norm, self.floor
        )
        of_example = jax_ops.example_factors(factors, batch.units)
        of_rows, dense = {}, dict(whole.sums)
        for group in self.layout.groups:
            of_rows[group.name] = jax_ops.row_sums(
                by_group[group.name],
                batch.places[group.name],
                len(group.slots),
                of_example,
                len(rows[group.name]),
            )
        for layer in self.tower.linears:
            weight, bias = jax_linear.linear_sums(
                *found.factors[layer.name], of_example, layer.positions, batch.groups
            )
            dense[f"{layer.name}.weight"] = weight
            if layer.bias:
                dense[f"{layer.name}.bias"] = bias
        return Sums(of_rows, dense), norms

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
            *jax.tree.map(
                lambda values: values.reshape(values.shape[0] * values.shape[1], *values.shape[2:]),
                tuple(found),
            )
        )


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
