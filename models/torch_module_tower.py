"""Any torch module as a tower, as long as it treats every example by itself.

    features ── module, with hooks ── logits          one forward pass of a block of rows
    d loss/d features, d loss/d outputs of layers     one backward pass; no gradient of a parameter is summed
    linear layers: factors │ other layers: Opacus' grad samplers │ other parameters: vmap over the module

A block has one of a few fixed numbers of rows, with which an example's bits depend neither on its place nor
on its neighbours: they are tried at construction, on this machine and this very module.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call, grad, vmap

from dpads.batch import Targets
from dpads.errors import ConfigError, RunError
from dpads.kernels import feedforward
from dpads.kernels.torch_ops import find_blas, over_alone, single_threaded
from dpads.models.base import Tower
from dpads.models.gradients import (
    FactoredGradients,
    JointGradients,
    LinearFactors,
    WholeGradients,
)
from dpads.models.torch_losses import example_losses, losses_of
from dpads.models.torch_module_checks import check_module, find_blocks
from dpads.models.torch_module_state import KeptState
from dpads.models.torch_owners import Recorder, find_owners, recordable, sample
from dpads.schema import Task

WHOLE_BYTES = 1 << 26  # of gradients that stand in memory whole, a thread
PIECES = 4  # blocks that a thread takes at a time


class ModuleTower(Tower):
    """A torch module, its per-example gradients computed with autograd.

    Args:
        module: float32[n, width] -> float32[n], logits. It belongs to the tower from here on. Parameters
            that require no gradient stay as they are.
        task: which loss.
        width: columns of the feature matrix.
        prefix: leading part of the parameters' names, left out of those of the tower.
        example_rows: float32[m, width], made-up rows to try the module on; drawn from N(0, 1) by default.

    Attributes:
        module: as given; plain, without hooks.
        blocks: numbers of rows that it is called with, falling.

    Raises:
        ConfigError: a trainable parameter has not exactly one owner, the output is not one logit an
            example, examples mix, two passes differ, or gradients are not those of autograd in float64.

    Guarantees:
        - Every trainable parameter has exactly one owner.
        - An example's bits do not depend on the others in the batch.
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        width: int,
        *,
        prefix: str = "",
        example_rows: NDArray[np.float32] | None = None,
    ) -> None:
        self.module = module
        self.task = task
        for value in module.parameters():
            value.data = value.data.contiguous()
        self._pristine = _same_values(module)
        self._of_thread = threading.local()
        self._layers = recordable(self._pristine)
        self._recorder = Recorder(self._layers)
        self._prefix = prefix
        if example_rows is None:
            example_rows = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
        try:
            with single_threaded():
                self._examine(example_rows)
        except RunError as error:
            raise ConfigError(str(error)) from None

    def _examine(self, rows: NDArray[np.float32]) -> None:
        """Finds the owners of all parameters and tries the module on made-up rows."""
        seven = torch.from_numpy(rows[:7])
        self._owners = find_owners(_same_values(self._pristine), self._recorder, seven)
        self._values = {n: v for n, v in self.module.named_parameters() if v.requires_grad}
        self._parameters = {self._own(n): v.detach().numpy() for n, v in self._values.items()}
        self._vectorises = self._can_vectorise(seven)
        self.positions = max((layer.positions for layer in self._owners.linears), default=1)
        # Sums over a chunk's vectors, and over chunks, round by about as much as each other.
        few = int(1024 / math.sqrt(self.positions))
        whole = 4 * sum(self._values[name].numel() for name in self._whole_names())
        self.examples_at_a_time = max(min(few, WHOLE_BYTES // max(whole, 1)), 1)
        self.blocks: tuple[int, ...] = (len(rows),)
        check_module(self, rows)
        self.blocks = find_blocks(self, rows)

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Views of the trainable parameters by name."""
        return self._parameters

    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Logits, [B], of the same blocks as in `gradients`: the module never sees more rows than these."""
        result: NDArray[Any] = np.empty(len(features), features.dtype)
        pieces = list(self._cut(len(features)))
        single = features.dtype == np.float32
        double = None if single else _Twin(copy.deepcopy(self._pristine).double())

        def run(start: int, end: int) -> None:
            twin = self._twin() if double is None else double
            for first, last, size in pieces[start:end]:
                with torch.no_grad():
                    logits = twin.module(_padded(features[first:last], size))
                result[first:last] = logits.numpy()[: last - first]
                self._settle(twin)

        if single:
            over_alone(len(pieces), PIECES, run)
        else:  # of a copy that belongs to this call
            with single_threaded():
                run(0, len(pieces))
        return result

    def losses(self, features: NDArray[Any], targets: Targets) -> NDArray[Any]:
        """Losses, [B], weights included."""
        logits = torch.from_numpy(self.logits(features))
        values: NDArray[Any] = example_losses(self.task, logits, targets).numpy()
        return values

    def gradients(
        self,
        features: NDArray[np.float32],
        targets: Targets,
        feature_grads: NDArray[np.float32],
    ) -> ModuleGradients:
        """One forward and one backward pass, block by block."""
        count = len(features)
        found = ModuleGradients(
            (
                FactoredGradients(
                    tuple(
                        LinearFactors(
                            self._own(layer.weight),
                            None if layer.bias is None else self._own(layer.bias),
                            np.empty((count * layer.positions, layer.width_in), np.float32),
                            np.empty((count * layer.positions, layer.width_out), np.float32),
                            layer.positions,
                        )
                        for layer in self._owners.linears
                    ),
                    find_blas(),
                ),
                WholeGradients(
                    {
                        self._own(name): np.empty((count, self._values[name].numel()), np.float32)
                        for name in self._whole_names()
                    }
                ),
            )
        )
        for first, last, size in self._cut(count):
            rows = _padded(features[first:last], size)
            part = feature_grads[first:last]
            self._block(rows, targets.part(first, last), part, found, first, last)
        return found

    def _block(
        self,
        rows: torch.Tensor,
        targets: Targets,
        feature_grads: NDArray[np.float32],
        found: ModuleGradients,
        first: int,
        last: int,
    ) -> None:
        """One block of rows, of which the first last - first are examples."""
        rows.requires_grad_()
        used, twin = last - first, self._twin()
        with self._recorder.calls() as calls, torch.enable_grad():
            logits = twin.module(rows)
        by_logits = torch.zeros(len(rows))
        losses = losses_of(targets, counts=self.task == "count")
        feedforward.loss_gradients(losses, logits.detach().numpy()[:used], by_logits.numpy()[:used])
        names = [*(layer.layer for layer in self._owners.linears), *self._owners.sampled]
        if any(len(calls.get(name, ())) != 1 for name in names):
            raise ConfigError(
                "A layer was not used once in a forward pass, as it was when the model was made. Let "
                "forward take the same way for all examples."
            )
        outputs = [calls[name][0].output for name in names]
        by_rows, *by_outputs = torch.autograd.grad(
            logits, [rows, *outputs], by_logits, materialize_grads=True
        )
        feature_grads[...] = by_rows.numpy()[:used]
        whole = found.whole.values
        with torch.no_grad():
            for layer, factors, values in zip(
                self._owners.linears, found.factored.linears, by_outputs, strict=False
            ):
                here = slice(first * layer.positions, last * layer.positions)
                read = calls[layer.layer][0].args[0].detach()[:used]
                factors.inputs[here] = read.reshape(used * layer.positions, layer.width_in).numpy()
                factors.output_grads[here] = (
                    values[:used].reshape(used * layer.positions, layer.width_out).numpy()
                )
            sampled = by_outputs[len(self._owners.linears) :]
            for (name, own), values in zip(self._owners.sampled.items(), sampled, strict=True):
                gradients = sample(self._layers[name], calls[name][0].args[0].detach(), values)
                for key, parameter in own.items():
                    whole[self._own(parameter)][first:last] = gradients[key][:used].reshape(
                        used, -1
                    )
        if self._owners.whole:
            for name, values in self._whole(rows.detach()).items():
                by_row = by_logits[:used, None] * values[:used].reshape(used, -1)
                whole[self._own(name)][first:last] = by_row.numpy()
        self._settle(twin)

    def _whole(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Derivatives of the logits by the parameters that the module as a whole owns, [n, *shape]."""
        own = {name: self._values[name] for name in self._owners.whole}
        if self._vectorises:
            with torch.no_grad():
                return dict(vmap(grad(self._logit), in_dims=(None, 0))(own, rows))
        values = {n: torch.empty(len(rows), *v.shape) for n, v in own.items()}
        for number in range(len(rows)):
            with torch.enable_grad():
                logit = self._twin().module(rows[number : number + 1])[0]
            found = torch.autograd.grad(logit, list(own.values()), materialize_grads=True)
            for name, value in zip(own, found, strict=True):
                values[name][number] = value
        return values

    def _logit(self, parameters: dict[str, nn.Parameter], row: torch.Tensor) -> torch.Tensor:
        """The logit of one row; torch puts parameters into the thread's module meanwhile."""
        module = self._twin().module
        logits: torch.Tensor = functional_call(module, {**parameters}, (row.unsqueeze(0),))
        return logits.squeeze(0)

    def _twin(self) -> _Twin:
        """The calling thread's copy of the module."""
        own: _Twin | None = getattr(self._of_thread, "twin", None)
        if own is None:
            own = self._of_thread.twin = _Twin(_same_values(self._pristine))
        return own

    def _settle(self, twin: _Twin) -> None:
        """Takes back what a pass left in the module.

        Raises:
            RunError: it cannot be taken back.
        """
        changed = twin.state.settle()
        if changed is not None:
            raise RunError(
                f'The module changed "{self._own(changed)}" in a forward pass, which stays from one to the '
                "next: what it computes of an example could then depend on others. Let forward read "
                "attributes and buffers, and change none of them."
            )

    def _can_vectorise(self, rows: torch.Tensor) -> bool:
        """Whether torch can map the module over rows; else it goes through them one by one."""
        self._vectorises = True
        try:
            self._whole(rows)
        except (RuntimeError, ValueError):  # torch has no rule for an operation of the module
            return False
        return True

    def _cut(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(first, last, rows of the block) that cover the examples."""
        at = 0
        for size in self.blocks:
            while count - at >= size:
                yield at, at + size, size
                at += size
        if at < count:
            yield at, count, self.blocks[-1]

    def _whole_names(self) -> list[str]:
        """Parameters whose gradients stand in memory whole."""
        sampled = [name for own in self._owners.sampled.values() for name in own.values()]
        return [*sampled, *self._owners.whole]

    def _own(self, name: str) -> str:
        """The tower's name of a parameter."""
        return name.removeprefix(self._prefix)


class _Twin:
    """A copy of the module, and what it keeps.

    Args:
        module: a copy that nothing has called yet.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = KeptState(module)


def _padded(features: NDArray[Any], size: int) -> torch.Tensor:
    """The rows of a block, zeros after the examples."""
    rows = np.zeros((size, features.shape[1]), features.dtype)
    rows[: len(features)] = features
    return torch.from_numpy(rows)


def _same_values(module: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(value): value for value in shared})


class ModuleGradients(JointGradients):
    """Gradients of a chunk: those in factors, and those that stand in memory whole."""

    members: tuple[FactoredGradients, WholeGradients]

    @property
    def factored(self) -> FactoredGradients:
        """Of linear layers."""
        return self.members[0]

    @property
    def whole(self) -> WholeGradients:
        """Of all others."""
        return self.members[1]

    def by_example(self, count: int) -> list[NDArray[np.float32]]:
        """Everything that belongs to single examples, float32[count, ...] each."""
        factors = [(layer.inputs, layer.output_grads) for layer in self.factored.linears]
        arrays = [*(array for pair in factors for array in pair), *self.whole.values.values()]
        return [array.reshape(count, array.size // max(count, 1)) for array in arrays]
