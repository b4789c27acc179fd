"""The losses of the tasks in JAX, and their derivatives by the logits: those of `torch_losses`."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import numpy as jnp

from dpads.kernels.feedforward import LARGEST_LOG_COUNT
from dpads.schema import Task


class JaxTargets(NamedTuple):
    """What the losses need beside the logits: `dpads.batch.Targets` on the device.

    Attributes:
        labels: float32[B].
        weights: float32[B], zero for padding, or None.
        exposure: float32[B], positive, or None.
        offset: added to every logit.
    """

    labels: jax.Array
    weights: jax.Array | None
    exposure: jax.Array | None
    offset: jax.Array | float = 0.0


def example_losses(task: Task, logits: jax.Array, targets: JaxTargets) -> jax.Array:
    """Per-example losses in the precision of the logits: logistic, or Poisson without log y!."""
    dtype = logits.dtype
    labels, logits = targets.labels.astype(dtype), logits + jnp.asarray(targets.offset, dtype)
    if task == "count":
        if targets.exposure is not None:
            logits = logits + jnp.log(targets.exposure.astype(dtype))
        inside = jnp.minimum(logits, LARGEST_LOG_COUNT)  # exp grows linearly beyond the bound
        losses = jnp.exp(inside) * (1.0 + (logits - inside)) - labels * logits
    else:
        losses = jax.nn.softplus(logits) - labels * logits
    return losses if targets.weights is None else losses * targets.weights.astype(dtype)


def loss_gradients(task: Task, logits: jax.Array, targets: JaxTargets) -> jax.Array:
    """Derivatives of the examples' losses by their logits, float32[B]; zero where the weight is zero.

    Computed in float64, as in `kernels.feedforward.loss_gradients`: 64-bit numbers must be enabled.
    """
    labels = targets.labels.astype(jnp.float64)
    wide = logits.astype(jnp.float64) + jnp.asarray(targets.offset, jnp.float64)
    if task == "count":
        if targets.exposure is not None:
            wide = wide + jnp.log(targets.exposure.astype(jnp.float64))
        means = jnp.exp(jnp.minimum(wide, LARGEST_LOG_COUNT))
    else:
        means = jax.nn.sigmoid(wide)
    values = means - labels
    if targets.weights is not None:
        weights = targets.weights.astype(jnp.float64)
        values = jnp.where(weights == 0.0, 0.0, values * weights)
    return values.astype(jnp.float32)
