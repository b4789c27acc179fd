"""One training step of the model of steps.py in JAX: by dpads, without privacy, and as vmap gives it.

Each is a step that takes a batch and does not wait for its end, and a function that does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Final

from steps import DIM, FIELDS, NUMBERS, TOWERS, trainer_of

NOISE: Final = 0.8  # noise multiplier; the clip norm is 1
TABLE_RATE, TOWER_RATE = 0.5, 1e-3
MOST_STEPS: Final = 10_000  # the plan's iterations
AT_A_TIME: Final = 64  # examples whose gradients by the whole table stand in memory

Steps = tuple[Callable[[Any], None], Callable[[], None]]


def dpads(tower: str, rows: int, size: int, table_noise: str, backend: str) -> Steps:
    """An iteration of `Trainer`: the Poisson draw, reading of the next batch, clipping, noise, updates."""
    trainer, feed = trainer_of(rows, size, tower, NOISE, MOST_STEPS, table_noise, backend)

    def step(batch: Any) -> None:
        feed.batch = batch
        trainer.step()

    def wait() -> None:
        if backend == "jax":
            import jax

            jax.block_until_ready(trainer._backend._state)

    return step, wait


def start(tower: str, rows: int) -> Any:
    """Parameters: one table, and the tower's layers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    table = jax.random.normal(jax.random.key(0), (rows // FIELDS * FIELDS, DIM))
    widths = (FIELDS * DIM + NUMBERS, *TOWERS[tower], 1)
    layers = [
        (jnp.asarray(rng.uniform(-0.05, 0.05, shape).astype(np.float32)), jnp.zeros(shape[1]))
        for shape in pairwise(widths)
    ]
    return table, layers


def losses(vectors: Any, layers: Any, dense: Any, labels: Any) -> Any:
    """Of examples whose rows have been looked up."""
    import jax
    import jax.numpy as jnp
    import optax

    hidden = jnp.concatenate([vectors.reshape(len(dense), -1), dense], 1)
    for weights, bias in layers[:-1]:
        hidden = jax.nn.relu(hidden @ weights + bias)
    weights, bias = layers[-1]
    return optax.sigmoid_binary_cross_entropy((hidden @ weights + bias)[:, 0], labels)


def stepping(tower: str, rows: int, move: Callable[..., Any]) -> Steps:
    """A compiled step on (table, layers, moments, key), changed in place, and on a batch's arrays."""
    import jax
    import numpy as np
    import optax

    bases = np.arange(FIELDS, dtype=np.int32) * (rows // FIELDS)
    compiled = jax.jit(move, donate_argnums=0)
    table, layers = start(tower, rows)
    state = (table, layers, optax.adam(TOWER_RATE).init(layers), jax.random.key(1))

    def step(batch: Any) -> None:
        nonlocal state
        state = compiled(state, batch.scalar_ids + bases, batch.dense, batch.labels)

    def wait() -> None:
        jax.block_until_ready(state)

    return step, wait


def moved(layers: Any, moments: Any, gradients: Any) -> Any:
    """Adam on the tower."""
    import optax

    updates, moments = optax.adam(TOWER_RATE).update(gradients, moments)
    return optax.apply_updates(layers, updates), moments


def sparse(tower: str, rows: int) -> Steps:
    """Without privacy: gradients by the rows that are read alone, scattered into the table; one program."""
    import jax

    def move(state: Any, ids: Any, dense: Any, labels: Any) -> Any:
        table, layers, moments, key = state

        def loss(vectors: Any, layers: Any) -> Any:
            return losses(vectors, layers, dense, labels).mean()

        by_row, by_layers = jax.grad(loss, argnums=(0, 1))(table[ids], layers)
        table = table.at[ids].add(-TABLE_RATE * by_row)
        return table, *moved(layers, moments, by_layers), key

    return stepping(tower, rows, move)


def dense_gradients(tower: str, rows: int, size: int) -> Steps:
    """DP-SGD as vmap gives it: each example's gradient by the whole table, some examples at a time."""
    import jax
    import jax.numpy as jnp

    def of_one(parameters: Any, ids: Any, dense: Any, label: Any) -> Any:
        table, layers = parameters
        return losses(table[ids][None], layers, dense[None], label[None])[0]

    def clipped(parameters: Any, ids: Any, dense: Any, labels: Any) -> Any:
        gradients = jax.vmap(jax.grad(of_one), (None, 0, 0, 0))(parameters, ids, dense, labels)
        squares = sum(
            jnp.square(part).reshape(len(part), -1).sum(1) for part in jax.tree.leaves(gradients)
        )
        factors = jnp.minimum(1.0, 1.0 / jnp.sqrt(squares))
        return jax.tree.map(partial(jnp.tensordot, factors, axes=1), gradients)

    def move(state: Any, ids: Any, dense: Any, labels: Any) -> Any:
        *parameters, moments, key = state
        few = min(AT_A_TIME, size)
        pieces = jax.tree.map(lambda v: v.reshape(-1, few, *v.shape[1:]), (ids, dense, labels))

        def add(sums: Any, piece: Any) -> Any:
            return jax.tree.map(jnp.add, sums, clipped(parameters, *piece)), None

        zeros = jax.tree.map(jnp.zeros_like, parameters)
        sums, _ = jax.lax.scan(add, zeros, pieces)
        leaves, tree = jax.tree.flatten(sums)
        key, *keys = jax.random.split(key, len(leaves) + 1)
        noisy = [
            (leaf + NOISE * jax.random.normal(own, leaf.shape)) / size
            for leaf, own in zip(leaves, keys, strict=True)
        ]
        by_table, by_layers = jax.tree.unflatten(tree, noisy)
        table = parameters[0] - TABLE_RATE * by_table
        return table, *moved(parameters[1], moments, by_layers), key

    return stepping(tower, rows, move)
