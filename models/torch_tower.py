"""The torch backend of a tower: one forward, one backward, factors of every linear layer."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.batch import Targets
from dpads.errors import ConfigError
from dpads.kernels.feedforward import LARGEST_LOG_COUNT
from dpads.kernels.gaussian import normals
from dpads.kernels.keys import derive_key
from dpads.kernels.torch_ops import find_blas
from dpads.models.base import Tower
from dpads.models.gradients import ChunkGradients, FactoredGradients, LinearFactors
from dpads.models.torch_layers import SumPlusLinear
from dpads.models.torch_stack import Stack, sum_gradients
from dpads.schema import Task


class TorchTower(Tower):
    """A torch module whose only trainable layers are `nn.Linear`.

    Args:
        module: float[B, width] -> float[B]; its parameters are drawn here.
        task: which loss.
        master: the public key of the initial parameters.

    Raises:
        ConfigError: a layer other than `nn.Linear` has parameters, or a layer is used twice.
    """

    def __init__(self, module: nn.Module, task: Task, master: bytes) -> None:
        self._module = module
        self._task = task
        self._linears: dict[str, nn.Linear] = {}
        self._recording = threading.local()
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                self._linears[name] = layer
                _initialise(name, layer, master)
                layer.register_forward_hook(self._recorder(name))
            elif any(True for _ in layer.parameters(recurse=False)):
                raise ConfigError(
                    f'Layer "{name}" ({type(layer).__name__}) has parameters. Towers are made of '
                    "linear layers and activations."
                )
        # Clipping re-uses activations and output gradients, so torch never forms a weight gradient.
        module.requires_grad_(False)
        self._compiled = True  # tests compare with autograd
        self._stack = Stack.of(module, list(self._linears))
        self._parameters = {
            name: value.detach().numpy() for name, value in module.named_parameters()
        }

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views of the parameters by name."""
        return self._parameters

    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Logits, [B]."""
        with torch.no_grad():
            output: NDArray[Any] = self._at(features)(torch.from_numpy(features)).numpy()
        return output

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
        """One forward and one backward pass; autograd stops at activations and features."""
        counts = self._task == "count"
        if self._stack is not None:
            return self._stack.gradients(features, targets, feature_grads, counts=counts)
        if self._compiled and isinstance(self._module, SumPlusLinear):
            return sum_gradients(
                self._module, "linear", features, targets, feature_grads, counts=counts
            )
        recorded: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._recording.calls = recorded
        try:
            leaf = torch.from_numpy(features).requires_grad_(True)
            loss = example_losses(self._task, self._module(leaf), targets).sum()
        finally:
            self._recording.calls = None
        outputs = [output for _, _, output in recorded]
        grads = torch.autograd.grad(loss, [leaf, *outputs])
        feature_grads[...] = grads[0].numpy()
        linears = tuple(
            LinearFactors(
                weight=f"{name}.weight",
                bias=None if self._linears[name].bias is None else f"{name}.bias",
                inputs=np.ascontiguousarray(inputs.detach().numpy()),
                output_grads=np.ascontiguousarray(grad.numpy()),
            )
            for (name, inputs, _), grad in zip(recorded, grads[1:], strict=True)
        )
        return FactoredGradients(linears, find_blas())

    def _recorder(
        self, name: str
    ) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        """A hook that keeps a layer's inputs and output, where this thread records."""

        def hook(_layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            calls = getattr(self._recording, "calls", None)
            if calls is not None:
                calls.append((name, inputs[0], output))

        return hook

    def _at(self, features: NDArray[Any]) -> nn.Module:
        """The module in the precision of the features."""
        if features.dtype == np.float32:
            return self._module
        return copy.deepcopy(self._module).double()


def example_losses(task: Task, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Per-example losses in the precision of the logits: logistic, or Poisson without log y!."""
    labels = torch.from_numpy(targets.labels).to(logits.dtype)
    if task == "count":
        log_mean = logits
        if targets.exposure is not None:
            log_mean = logits + torch.from_numpy(targets.exposure).to(logits.dtype).log()
        # exp grows linearly beyond the bound, so that neither loss nor gradient overflows
        inside = log_mean.clamp(max=LARGEST_LOG_COUNT)
        beyond = log_mean - inside
        losses = inside.exp() * (1.0 + beyond) - labels * log_mean
    else:
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if targets.weights is not None:
        losses = losses * torch.from_numpy(targets.weights).to(logits.dtype)
    return losses


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
