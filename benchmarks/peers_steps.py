"""One training step of the model of steps.py in each library of peers.py; what they import stays inside.

Opacus wraps a single optimizer, so that its tower moves by SGD too, which costs less than Adam. Its ghost
mode refuses sparse gradients. jax-privacy clips whole per-example gradients; one example at a time
(`microbatch_size=1`) was its fastest setting by a factor of five and more, and keeps memory small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from steps import DIM, FIELDS, NUMBERS, TOWERS, dpads_step, torch_step

TOWER: Final = "small"
NOISE: Final = 0.8  # noise multiplier; the clip norm is 1
TABLE_RATE, TOWER_RATE = 0.5, 1e-3
MOST_STEPS: Final = 10_000  # the plan's iterations
WIDTHS: Final = (FIELDS * DIM + NUMBERS, *TOWERS[TOWER], 1)

Step = Callable[[Any], None]


def dpads(rows: int, size: int, table_noise: str) -> Step:
    """dpads, private."""
    return dpads_step(rows, size, TOWER, NOISE, MOST_STEPS, table_noise)


def pytorch(rows: int, size: int) -> Step:
    """PyTorch without privacy, its table's gradient dense."""
    return torch_step(rows, size, TOWER, sparse=False)


def opacus(rows: int, size: int, mode: str) -> Step:
    """Opacus, its norms found by ghost clipping or from per-example gradients."""
    import torch
    from opacus import PrivacyEngine
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    warnings.filterwarnings("ignore", module="opacus|torch")
    per_table = rows // FIELDS

    class Network(nn.Module):
        """Embeddings and numbers, concatenated, through fully connected ReLU layers."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(per_table * FIELDS, DIM)
            layers: list[nn.Module] = []
            for width, following in pairwise(WIDTHS):
                layers += [nn.Linear(width, following), nn.ReLU()]
            self.tower = nn.Sequential(*layers[:-1])

        def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
            """Logits."""
            features = torch.cat([self.table(ids).flatten(1), dense], 1)
            logits: torch.Tensor = self.tower(features).squeeze(1)
            return logits

    network = Network()
    groups = [
        {"params": list(network.table.parameters()), "lr": TABLE_RATE},
        {"params": list(network.tower.parameters()), "lr": TOWER_RATE},
    ]
    # The loader tells Opacus the expected batch size; the batches come from elsewhere.
    loader = DataLoader(TensorDataset(torch.zeros(size)), batch_size=size)
    made: Any = PrivacyEngine().make_private(
        module=network,
        optimizer=torch.optim.SGD(groups),
        criterion=nn.BCEWithLogitsLoss(),
        data_loader=loader,
        noise_multiplier=NOISE,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    model, optimizer = made[0], made[1]
    loss_of: Any = made[2] if mode == "ghost" else nn.BCEWithLogitsLoss()
    bases = torch.arange(FIELDS) * per_table

    def step(batch: Any) -> None:
        ids = torch.from_numpy(batch.scalar_ids).long() + bases
        optimizer.zero_grad()
        logits = model(ids, torch.from_numpy(batch.dense))
        loss_of(logits, torch.from_numpy(batch.labels)).backward()
        optimizer.step()

    return step


def jax_privacy(rows: int, size: int) -> Step:
    """jax-privacy's clipped gradients and Gaussian noise; SGD on the table and Adam on the tower by optax."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax_privacy import clipped_grad
    from jax_privacy.noise_addition import gaussian_privatizer

    per_table = rows // FIELDS
    rng = np.random.default_rng(0)
    parameters: Any = {
        "table": jnp.asarray(rng.standard_normal((per_table * FIELDS, DIM), np.float32)),
        "tower": [
            (jnp.asarray(rng.uniform(-0.05, 0.05, shape).astype(np.float32)), jnp.zeros(shape[1]))
            for shape in pairwise(WIDTHS)
        ],
    }
    bases = np.arange(FIELDS, dtype=np.int32) * per_table

    def loss(parameters: Any, ids: Any, dense: Any, labels: Any) -> Any:
        hidden = jnp.concatenate([parameters["table"][ids].reshape(len(ids), -1), dense], 1)
        for weights, bias in parameters["tower"][:-1]:
            hidden = jax.nn.relu(hidden @ weights + bias)
        weights, bias = parameters["tower"][-1]
        logits = (hidden @ weights + bias)[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    gradient_of = clipped_grad(
        loss, l2_clip_norm=1.0, batch_argnums=(1, 2, 3), normalize_by=size, microbatch_size=1
    )
    optimizer = optax.chain(
        gaussian_privatizer(stddev=NOISE * gradient_of.sensitivity(), prng_key=0),
        optax.partition(
            {"table": optax.sgd(TABLE_RATE), "tower": optax.adam(TOWER_RATE)},
            {"table": "table", "tower": "tower"},
        ),
    )
    state = optimizer.init(parameters)

    def move(parameters: Any, state: Any, ids: Any, dense: Any, labels: Any) -> Any:
        gradient = gradient_of(parameters, ids, dense, labels)
        updates, state = optimizer.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state

    compiled = jax.jit(move, donate_argnums=(0, 1))

    def step(batch: Any) -> None:
        nonlocal parameters, state
        ids = batch.scalar_ids + bases
        parameters, state = compiled(parameters, state, ids, batch.dense, batch.labels)
        jax.block_until_ready(parameters)

    return step
