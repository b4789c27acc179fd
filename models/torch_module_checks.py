"""What a torch module must show before it becomes a tower, tried on made-up rows.

Parameters are moved at random while it is tried: where a layer starts at zero, nothing would be seen of those
before it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.batch import Targets
from dpads.errors import ConfigError, RunError
from dpads.models.gradients import DenseSums
from dpads.models.torch_losses import example_losses

if TYPE_CHECKING:
    from dpads.models.torch_module_tower import ModuleTower

SIZES = (256, 192, 144, 128, 96, 64, 48, 32, 16, 8, 4, 2)
KEPT_SIZES = 3
TOLERANCE = 1e-3  # of float32 against float64
SCALES = np.array([1.0, 10.0, 100.0, 1e4])  # of made-up rows
MIXED_ROWS = 16
MIXES = (
    "The module mixes the examples of a batch: an example alone gets another logit, or another gradient, "
    "than among others, so that clipping would not bound what one example does. Leave out what reads across "
    "the batch; LayerNorm and GroupNorm take examples one at a time."
)
CHECKED_ROWS = 6
NO_GROUPS = np.empty(0, np.int64)

Bits = NDArray[np.uint32]


def check_module(tower: ModuleTower, rows: NDArray[np.float32]) -> None:
    """Checks that examples do not mix, that nothing is random, and the gradients one example at a time.

    Args:
        tower: whose blocks have as many rows.
        rows: float32[n, width], n >= CHECKED_ROWS.

    Raises:
        ConfigError: one of them is not so.
    """
    for name, layer in tower.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f'Layer "{name}" is {type(layer).__name__}: it mixes the examples of a batch. Replace it by '
                "LayerNorm or GroupNorm (opacus.validators.ModuleValidator.fix does)."
            )
    with moved(tower):
        logits = tower.logits(rows)
        if not np.array_equal(logits, tower.logits(rows), equal_nan=True):
            raise ConfigError(
                "The module gives other logits when it is called again: it draws random numbers or changes "
                "itself. Train without dropout (its p = 0, or module.eval()); noise takes its place."
            )
        _check_mixing(tower, rows, np.float32)
        try:
            _check_mixing(tower, rows, np.float64)
        except RunError:
            raise
        except RuntimeError:
            pass  # forward names float32 itself
        _check_gradients(tower, rows)


def _check_mixing(
    tower: ModuleTower, rows: NDArray[np.float32], dtype: type[np.floating[Any]]
) -> None:
    """Compares logits of single rows with those of 2, 16 and 256, alike and of all sizes."""
    kept = tower.blocks
    scaled = np.concatenate([rows[:MIXED_ROWS] * np.float32(scale) for scale in SCALES])
    sizes = np.repeat(SCALES, len(rows[:MIXED_ROWS]))
    order = np.random.default_rng(3).permutation(len(scaled))
    together = [np.resize(order, 256), *(np.full(256, i) for i in order[:8])]
    together += [*order[:16].reshape(-1, 2)]
    for scale in SCALES:
        of_one = np.flatnonzero(sizes == scale)
        together += [np.resize(of_one, 256), of_one]
    try:
        tower.blocks = (1,)
        alone = tower.logits(scaled.astype(dtype)).astype(np.float64)
        bound = 1e-3 if dtype is np.float32 else 1e-8
        finite = np.abs(np.where(np.isfinite(alone), alone, 0.0))
        # what is large may cancel: rounding is of the size of what a scale's logits are at most
        largest = np.array([finite[sizes == size].max() for size in sizes])
        allowed = bound * (1.0 + largest) * np.where(sizes > 100.0, 10.0, 1.0)
        for places in together:
            tower.blocks = (len(places),)
            found = tower.logits(scaled[places].astype(dtype))
            with np.errstate(invalid="ignore"):
                error = np.abs(found - alone[places])
            same = (found == alone[places]) | (np.isnan(found) & np.isnan(alone[places]))
            if not (same | (error <= allowed[places])).all():
                raise ConfigError(MIXES)
    finally:
        tower.blocks = kept


def _check_gradients(tower: ModuleTower, rows: NDArray[np.float32]) -> None:
    """Compares gradients with autograd's on one example at a time."""
    rng = np.random.default_rng(1)
    count = len(rows)
    targets = Targets(rng.integers(0, 2, count).astype(np.float32), None, None)
    by_features = np.empty_like(rows)
    found = tower.gradients(rows, targets, by_features)
    squares, parts = np.zeros(count), np.zeros(count)
    found.add_square_norms(np.arange(count + 1), squares, parts)
    size = sum(value.size for value in tower.parameters.values())
    wrong = dict.fromkeys(("features", "norms", *tower.parameters), 0)
    for number in range(CHECKED_ROWS):
        features, expected = _autograd(tower, rows[number], targets.part(number, number + 1))
        sums = DenseSums.over(np.zeros(size), tower.parameters)
        found.add_clipped((np.arange(count) == number).astype(np.float32), NO_GROUPS, sums)
        scale = max(float(np.linalg.norm(value)) for value in (features, *expected.values()))
        pairs: dict[str, tuple[Any, Any]] = {
            "features": (by_features[number], features),
            "norms": (
                np.sqrt(squares[number]),
                np.sqrt(sum(float(np.sum(value**2)) for value in expected.values())),
            ),
            **{name: (sums.parts[name], value) for name, value in expected.items()},
        }
        for name, (one, other) in pairs.items():
            error = float(np.linalg.norm(np.subtract(one, other)))
            bound = TOLERANCE * (float(np.linalg.norm(other)) + 1e-3 * scale + 1e-6)
            wrong[name] += not error <= bound  # also where it is NaN
    for name, times in wrong.items():
        if times > 1:  # a kink, such as ReLU's, may come to lie between float32 and float64 once
            what = name if name in ("features", "norms") else f'parameter "{name}"'
            raise ConfigError(
                f"The gradients of {what} are not those of autograd one example at a time. Something in "
                "forward is out of sight: a parameter that is used in several ways, operations outside "
                "of torch's graph, or a value that is written to after a layer has read it."
            )


def _autograd(
    tower: ModuleTower, row: NDArray[np.float32], targets: Targets
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Gradients of one example's loss, by its features and by the tower's parameters, from the definition."""
    for dtype in (torch.float64, torch.float32):
        module = copy.deepcopy(tower.module).to(dtype)
        features = torch.from_numpy(row[None]).to(dtype).requires_grad_()
        try:
            logits = module(features)
        except RuntimeError:
            if dtype is torch.float32:
                raise
            continue  # forward names float32 itself
        values = [value for value in module.parameters() if value.requires_grad]
        loss = example_losses(tower.task, logits, targets).sum()
        first, *others = torch.autograd.grad(loss, [features, *values], materialize_grads=True)
        named = zip(tower.parameters, others, strict=True)
        return first[0].numpy(), {name: value.numpy() for name, value in named}
    raise AssertionError("float32 either returned or raised")


def find_blocks(tower: ModuleTower, rows: NDArray[np.float32]) -> tuple[int, ...]:
    """Numbers of rows, falling, with which an example's bits are its own; (1,) where there are none.

    Raises:
        ConfigError: the neighbours of an example change more of it than rounding.
    """
    found: list[int] = []
    larger = (rows[2 + n] * np.float32(scale) for n, scale in enumerate(SCALES[1:]))
    tried = [*rows[:2], *larger]
    with moved(tower):
        tower.blocks = (1,)
        alone = [_values(tower, row[None]) for row in tried]
        expected: list[list[Bits]] = []
        for size in SIZES:
            far = not found or size <= found[-1] // 3
            if size > tower.examples_at_a_time or len(found) == KEPT_SIZES or not far:
                continue
            tower.blocks = (size,)
            own = expected or [
                [_bits(array[:1]) for array in _values(tower, np.tile(row, (size, 1)))]
                for row in tried
            ]
            alike = [_alike(tower, *each, size) for each in zip(tried, alone, own, strict=True)]
            if all(alike):
                found.append(size)
                expected = own
    return tuple(found) or (1,)


def _alike(
    tower: ModuleTower,
    row: NDArray[np.float32],
    alone: list[NDArray[np.float32]],
    expected: list[Bits],
    size: int,
) -> bool:
    """Whether a row has the expected bits everywhere in a block, whatever its neighbours are.

    Raises:
        ConfigError: it has other numbers than alone.
    """
    rng = np.random.default_rng(size)
    others = rng.normal(size=(size, len(row))) * rng.choice(SCALES, (size, 1))
    others = others.astype(np.float32)
    odd = [np.float32(value) for value in (0.0, np.inf, -np.inf, np.nan, 3e38)]
    for place, value in zip(rng.permutation(size), odd, strict=False):
        others[place] = value
    even = np.arange(size) % 2 == 0
    alike = True
    for kept in (np.ones(size, bool), even, ~even, rng.random(size) < 0.5, np.arange(size) == 0):
        block = np.where(kept[:, None], row, others)
        weights = np.where(kept, 1.0, rng.choice(SCALES, size)).astype(np.float32)
        found = _values(tower, block, weights)
        for one, by_itself, bits in zip(found, alone, expected, strict=True):
            alike = alike and bool((_bits(one[kept]) == bits).all())
            scale = float(np.max(np.abs(by_itself), initial=0.0, where=np.isfinite(by_itself)))
            bound = TOLERANCE * (1.0 + scale)
            if not np.allclose(one[kept], by_itself, rtol=TOLERANCE, atol=bound, equal_nan=True):
                raise ConfigError(MIXES)
    return alike


def _values(
    tower: ModuleTower, block: NDArray[np.float32], weights: NDArray[np.float32] | None = None
) -> list[NDArray[np.float32]]:
    """All that comes of the examples of a block, float32[n, ...] each: logits, gradients, factors."""
    by_features = np.empty_like(block)
    targets = Targets(np.ones(len(block), np.float32), weights, None)
    found = tower.gradients(block, targets, by_features)
    logits: NDArray[np.float32] = tower.logits(block)
    return [logits, by_features, *found.by_example(len(block))]


def _bits(array: NDArray[np.float32]) -> Bits:
    """Numbers as bits, uint32[n, ...]."""
    return np.ascontiguousarray(array).view(np.uint32)


@contextmanager
def moved(tower: ModuleTower) -> Iterator[None]:
    """Parameters moved at random by about what keeps the size of activations."""
    rng = np.random.default_rng(2)
    kept = {name: value.copy() for name, value in tower.parameters.items()}
    try:
        for value in tower.parameters.values():
            inputs = value[0].size if value.ndim > 1 else 16
            value[...] += 0.5 * rng.normal(size=value.shape) / np.sqrt(max(inputs, 1))
        yield
    finally:
        for name, value in tower.parameters.items():
            value[...] = kept[name]
