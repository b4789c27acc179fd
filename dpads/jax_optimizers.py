"""Tower optimizers of the JAX backend, through optax: all that comes after the noise is post-processing."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
import optax
from jax import numpy as jnp
from numpy.typing import NDArray

from dpads.optimizers import Adam, AdamBC, Optimizer, Sgd


def transformation_of(
    config: Optimizer, noise_variance: float
) -> optax.GradientTransformationExtraArgs:
    """What an optimizer makes of private gradients, before learning rate and weight decay.

    Args:
        config: the optimizer.
        noise_variance: of one coordinate of the gradients, public.
    """
    if isinstance(config, Sgd):
        return optax.with_extra_args_support(optax.identity())
    if isinstance(config, AdamBC):
        return optax.with_extra_args_support(scale_by_adambc(config, noise_variance))
    return optax.with_extra_args_support(_scale_by_adam(config))


def _scale_by_adam(config: Adam) -> optax.GradientTransformation:
    """Adam's direction."""
    return optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.stability)


def scale_by_adambc(config: AdamBC, noise_variance: float) -> optax.GradientTransformation:
    """Adam's direction with the noise's variance taken off the second moment.

    Args:
        config: averages and floor.
        noise_variance: of one coordinate of the gradients.

    References:
        Tang, Shpilevskiy and Lecuyer 2023, arXiv 2312.14334 v1, algorithm 1.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        # Two trees: buffers that are given away cannot be shared.
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByAdamState)
        mu = optax.tree.update_moment(updates, state.mu, config.beta1, 1)
        nu = optax.tree.update_moment(updates, state.nu, config.beta2, 2)
        count = state.count + 1
        means = optax.tree.bias_correction(mu, config.beta1, count)
        squares = optax.tree.bias_correction(nu, config.beta2, count)
        moved = jax.tree.map(
            lambda m, v: m / jnp.sqrt(jnp.maximum(v - noise_variance, config.floor)), means, squares
        )
        return moved, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def moved(
    params: Mapping[str, jax.Array],
    updates: Mapping[str, jax.Array],
    rate: jax.Array | float,
    decay: float,
) -> dict[str, jax.Array]:
    """(1 - rate decay) params - rate updates, in float64 and rounded once.

    Args:
        params: float32.
        updates: from the transformation.
        rate: float64, the learning rate.
        decay: decoupled weight decay.
    """
    return {
        name: (
            (1.0 - rate * decay) * value.astype(jnp.float64)
            - rate * updates[name].astype(jnp.float64)
        ).astype(jnp.float32)
        for name, value in params.items()
    }


def saved(state: optax.OptState) -> dict[str, NDArray[np.generic]]:
    """Moments as a checkpoint keeps them: "steps", "<parameter>.mean", "<parameter>.square"."""
    if not isinstance(state, optax.ScaleByAdamState):
        return {"steps": np.zeros(1, np.int32)}
    found: dict[str, NDArray[np.generic]] = {"steps": np.array([state.count], np.int32)}
    for name in state.mu:
        found[f"{name}.mean"] = np.asarray(state.mu[name])
        found[f"{name}.square"] = np.asarray(state.nu[name])
    return found


def restored(state: optax.OptState, arrays: Mapping[str, NDArray[np.generic]]) -> optax.OptState:
    """The state of `saved`'s arrays, shaped as another."""
    if not isinstance(state, optax.ScaleByAdamState):
        return state
    return state._replace(
        count=jnp.asarray(arrays["steps"][0], jnp.int32),
        mu={name: jnp.asarray(arrays[f"{name}.mean"]) for name in state.mu},
        nu={name: jnp.asarray(arrays[f"{name}.square"]) for name in state.nu},
    )
