"""The torch backend of a tower: torch evaluates it, compiled kernels differentiate it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.batch import Targets
from dpads.errors import ConfigError
from dpads.kernels.gaussian import normals
from dpads.kernels.keys import derive_key
from dpads.kernels.torch_ops import over_alone
from dpads.models.base import Tower
from dpads.models.gradients import ChunkGradients
from dpads.models.torch_interactions import SumOfParts
from dpads.models.torch_layers import SumPlusLinear
from dpads.models.torch_losses import example_losses
from dpads.models.torch_module_tower import ModuleTower
from dpads.models.torch_parts import CompiledParts
from dpads.models.torch_stack import Stack, sum_gradients, sum_logits
from dpads.schema import Task


class TorchTower(Tower):
    """A torch module of a built-in model, whose gradients compiled kernels compute.

    Args:
        module: float[B, width] -> float[B]: a stack of linear and ReLU layers, a `SumPlusLinear`, or a
            `SumOfParts`.
        task: which loss.

    Attributes:
        module: as given.

    Raises:
        ConfigError: the module is something else.

    Guarantees:
        - No layer mixes examples, and an example's bits do not depend on the others in the batch.
    """

    module: nn.Module

    def __init__(self, module: nn.Module, task: Task) -> None:
        self.module = module
        self._task = task
        module.requires_grad_(False)
        self._compiled = _compile(module)
        self._parameters = {
            name: value.detach().numpy() for name, value in module.named_parameters()
        }

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views of the parameters by name."""
        return self._parameters

    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Logits, [B]: in float32 those of the compiled forward pass, a row's bits its own."""
        result: NDArray[Any] = np.empty(len(features), features.dtype)
        if features.dtype != np.float32:
            with torch.no_grad():
                result[...] = self._at(features)(torch.from_numpy(features)).numpy()
            return result
        features = np.ascontiguousarray(features)

        def chunk(first: int, last: int) -> None:
            result[first:last] = self._compiled_logits(features[first:last])

        over_alone(len(features), self.examples_at_a_time, chunk)
        return result

    def losses(self, features: NDArray[Any], targets: Targets) -> NDArray[Any]:
        """Losses, [B], weights included."""
        with torch.no_grad():
            logits = self._at(features)(torch.from_numpy(features))
            values: NDArray[Any] = example_losses(self._task, logits, targets).numpy()
        return values

    def gradients(
        self,
        features: NDArray[np.float32],
        targets: Targets,
        feature_grads: NDArray[np.float32],
    ) -> ChunkGradients:
        """One forward and one backward pass."""
        counts = self._task == "count"
        if self._compiled is not None:
            return self._compiled.gradients(features, targets, feature_grads, counts=counts)
        assert isinstance(self.module, SumPlusLinear)
        return sum_gradients(self.module, "linear", features, targets, feature_grads, counts=counts)

    def _compiled_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a chunk, float32[n]."""
        if self._compiled is not None:
            return self._compiled.logits(features)
        assert isinstance(self.module, SumPlusLinear)
        return sum_logits(self.module, features)

    def _at(self, features: NDArray[Any]) -> nn.Module:
        """The module in the precision of the features."""
        if features.dtype == np.float32:
            return self.module
        return copy.deepcopy(self.module).double()


def _compile(module: nn.Module) -> Stack | CompiledParts | None:
    """The module's compiled form; None for the sum of features, which is a function."""
    if isinstance(module, SumPlusLinear):
        return None
    if isinstance(module, SumOfParts):
        return CompiledParts(module)
    stack = Stack.of(module, [n for n, m in module.named_modules() if isinstance(m, nn.Linear)])
    if stack is None:
        layers = ", ".join(type(layer).__name__ for layer in module.children())
        raise ConfigError(
            "Expected a tower of linear and ReLU layers in turn, the last with one output, got "
            f"{layers}. Other layers may mix examples, or round one example by the others beside it."
        )
    return stack


def build_tower(module: nn.Module, task: Task, width: int, master: bytes) -> Tower:
    """The tower of a module whose parameters are all of linear layers, and are drawn here.

    Args:
        module: float[B, width] -> float[B].
        task: which loss.
        width: columns of the feature matrix.
        master: the public key of the initial parameters.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            _initialise(name, layer, master)
    if isinstance(module, SumPlusLinear | SumOfParts | nn.Sequential):
        return TorchTower(module, task)
    return ModuleTower(module, task, width)


def _initialise(name: str, layer: nn.Linear, master: bytes) -> None:
    """He initialisation at addressed normals: weights N(0, 2 / in), biases zero."""
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        if getattr(layer, "starts_at_zero", False):
            layer.weight.zero_()
            return
        count = layer.weight.numel()
        draws = normals(derive_key(master, "tower", name), 0, count)
        scale = math.sqrt(2.0 / max(layer.in_features, 1))
        layer.weight.copy_(
            torch.from_numpy(draws.reshape(tuple(layer.weight.shape)) * np.float32(scale))
        )
