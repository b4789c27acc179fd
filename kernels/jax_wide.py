"""Float64 in JAX, which hands back float32 unless it is told otherwise, and sums by unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def wide(values: jax.Array) -> jax.Array:
    """The values in float64.

    Raises:
        TypeError: outside `jax.enable_x64(True)`, where JAX would hand back float32.
    """
    with_more_bits = values.astype(np.float64)
    if with_more_bits.dtype != np.float64:
        raise TypeError(
            "Expected to be traced within jax.enable_x64(True), got 32-bit JAX: clip factors would not be "
            "certified. Trace and call the step within that context."
        )
    return with_more_bits


def by_unit(values: jax.Array, units: jax.Array | None, num_units: int) -> jax.Array:
    """LayerSums of examples' numbers by unit, float64[U]."""
    if units is None:
        return values
    return (
        jnp.zeros(num_units, values.dtype)
        .at[units]
        .add(values, mode="drop", indices_are_sorted=True)
    )
