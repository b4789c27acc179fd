"""The host's view of a user's JAX tower: NumPy parameters and numbers, for evaluation and tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from dpads.batch import Targets
from dpads.models.base import Tower
from dpads.models.gradients import (
    FactoredGradients,
    JointGradients,
    LinearFactors,
    WholeGradients,
)
from dpads.models.jax_losses import JaxTargets, example_losses
from dpads.models.jax_user_tower import UserTower
from dpads.models.jax_whole import WHOLE_BYTES

BLOCK = 256  # rows that pass through the function at a time: an example's bits are those in such a block


class HostTower(Tower):
    """A user's function under the interface of all towers.

    Args:
        module: the function.
        parameters: float32, by name; copied.

    Attributes:
        module: as given.
    """

    module: UserTower

    def __init__(self, module: UserTower, parameters: Mapping[str, NDArray[np.float32]]) -> None:
        self.module = module
        self._parameters = {name: np.array(value) for name, value in parameters.items()}
        self.positions = max((layer.positions for layer in module.linears), default=1)
        whole = 4 * sum(self._parameters[name].size for name in module.whole)
        few = int(1024 / math.sqrt(self.positions))
        self.examples_at_a_time = max(min(few, WHOLE_BYTES // max(whole, 1)), 1)
        self._logits = jax.jit(module.logits)
        self._losses = jax.jit(partial(example_losses, module.task))
        self._gradients = jax.jit(module.gradients)
        self._whole = jax.jit(module.whole_gradients)

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views of the parameters by name."""
        return self._parameters

    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Logits, [B], of blocks of one size, computed in float32."""
        result: NDArray[Any] = np.empty(len(features), features.dtype)
        with jax.enable_x64(True):
            for here, rows in _blocks(features, BLOCK):
                result[here] = np.asarray(self._logits(self._parameters, rows))[: _size(here)]
        return result

    def losses(self, features: NDArray[Any], targets: Targets) -> NDArray[Any]:
        """Losses, [B], weights included, in the precision of `features` from there on."""
        logits, result = self.logits(features), np.empty(len(features), features.dtype)
        with jax.enable_x64(True):
            for first in range(0, len(features), BLOCK):
                here = slice(first, min(first + BLOCK, len(features)))
                some = _padded(targets.part(here.start, here.stop), BLOCK)
                block = np.pad(logits[here], (0, BLOCK - _size(here)))
                result[here] = np.asarray(self._losses(block, some))[: _size(here)]
        return result

    def gradients(
        self,
        features: NDArray[np.float32],
        targets: Targets,
        feature_grads: NDArray[np.float32],
    ) -> JointGradients:
        """One forward and one backward pass for layers, and one for all other parameters."""
        from dpads.kernels.torch_ops import find_blas

        count, module = len(features), self.module
        layers = tuple(
            LinearFactors(
                f"{layer.name}.weight",
                f"{layer.name}.bias" if layer.bias else None,
                np.empty((count * layer.positions, layer.width_in), np.float32),
                np.empty((count * layer.positions, layer.width_out), np.float32),
                layer.positions,
            )
            for layer in module.linears
        )
        whole = {
            name: np.empty((count, self._parameters[name].size), np.float32)
            for name in module.whole
        }
        with jax.enable_x64(True):
            for here, rows in _blocks(features, BLOCK):
                some = _padded(targets.part(here.start, here.stop), BLOCK)
                found = self._gradients(self._parameters, rows, some)
                feature_grads[here] = np.asarray(found.feature_grads)[: _size(here)]
                for layer, own in zip(module.linears, layers, strict=True):
                    at = slice(here.start * own.positions, here.stop * own.positions)
                    factors = found.factors[layer.name]
                    own.inputs[at] = np.asarray(factors.inputs)[: _size(at)]
                    own.output_grads[at] = np.asarray(factors.output_grads)[: _size(at)]
            for here, rows in _blocks(features, module.chunk) if whole else ():
                some = _padded(targets.part(here.start, here.stop), module.chunk)
                for name, value in self._whole(self._parameters, rows, some).items():
                    own_rows = np.asarray(value)[: _size(here)]
                    whole[name][here] = own_rows.reshape(_size(here), whole[name].shape[1])
        return JointGradients((FactoredGradients(layers, find_blas()), WholeGradients(whole)))


def _size(here: slice) -> int:
    """Rows of a stretch."""
    return int(here.stop - here.start)


def _blocks(features: NDArray[Any], size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Stretches of examples, and their rows, zeros after them."""
    for first in range(0, len(features), size):
        here = slice(first, min(first + size, len(features)))
        rows = np.zeros((size, features.shape[1]), np.float32)
        rows[: _size(here)] = features[here]
        yield here, rows


def _padded(targets: Targets, size: int) -> JaxTargets:
    """Targets of a block."""

    def padded(values: NDArray[np.float32] | None, value: float) -> Any:
        if values is None:
            return None
        return np.pad(values, (0, size - len(values)), constant_values=value)

    return JaxTargets(
        padded(targets.labels, 0.0),
        padded(targets.weights, 0.0),
        padded(targets.exposure, 1.0),
        targets.offset,
    )
