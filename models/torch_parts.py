"""`SumOfParts` without torch's cost per operation: compiled forward and backward of each part of a tower.

The torch modules are the definition; these are the same sums.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dpads.batch import Targets
from dpads.kernels import feedforward, parts
from dpads.kernels.blas import times, times_transposed
from dpads.kernels.torch_ops import find_blas, single_threaded
from dpads.models.gradients import FactoredGradients, LinearFactors
from dpads.models.torch_interactions import (
    CrossAndDeep,
    Deep,
    DotsAndDeep,
    Pairs,
    SumOfParts,
    Wide,
)
from dpads.models.torch_losses import losses_of
from dpads.models.torch_stack import blocks_of, flatten

Matrix = NDArray[np.float32]


class Memory(threading.local):
    """Arrays of any content, kept between the calls of a thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Matrix] = {}

    def take(self, name: str, *shape: int) -> Matrix:
        """An array; this thread's next call with the same name may return the same memory."""
        size = int(np.prod(shape))
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, np.float32)
        return kept[:size].reshape(shape)


class Chunk:
    """What the parts of one chunk of examples share.

    Args:
        features: float32[n, width].
        split: widths of the embedded, the linear and the numeric columns.
        memory: of the tower.
    """

    def __init__(self, features: Matrix, split: tuple[int, int, int], memory: Memory) -> None:
        self.features, self.split, self.memory = features, split, memory
        self.logits = memory.take("logits", len(features))
        self.by_logits = memory.take("by_logits", len(features))
        self.inputs = features
        if split[1]:  # layers read all columns but the linear ones, which are in the middle
            self.inputs = memory.take("inputs", len(features), split[0] + split[2])
            parts.take_inputs(features, split[0], split[1], self.inputs)

    def take(self, name: str, width: int) -> Matrix:
        """A matrix with a row an example."""
        return self.memory.take(name, len(self.features), width)


class Part(ABC):
    """The compiled form of one part; it adds to the logits, and to the gradients by the features."""

    @abstractmethod
    def forward(self, chunk: Chunk) -> None:
        """Adds to the chunk's logits."""

    @abstractmethod
    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """Adds to the gradients by the features; returns the factors of its layers."""


class WidePart(Part):
    """Of `Wide`."""

    def __init__(self, name: str, module: Wide) -> None:
        self._name = name
        self._weight, self._bias = module.linear.weight.numpy()[0], module.linear.bias.numpy()

    def forward(self, chunk: Chunk) -> None:
        """Linear columns and numbers."""
        embedded, linear, _ = chunk.split
        features, weight = chunk.features, self._weight
        parts.wide_forward(features, embedded, linear, weight, self._bias, chunk.logits)

    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """Gradients by them."""
        embedded, linear, _ = chunk.split
        by_logits = chunk.by_logits
        parts.wide_backward(by_logits, embedded, linear, self._weight, feature_grads)
        numbers = np.ascontiguousarray(chunk.features[:, embedded + linear :])
        name = f"{self._name}.linear"
        return [LinearFactors(f"{name}.weight", f"{name}.bias", numbers, by_logits[:, None])]


class PairsPart(Part):
    """Of `Pairs`."""

    def __init__(self, module: Pairs) -> None:
        self._fields, self._dim = module.shape

    def forward(self, chunk: Chunk) -> None:
        """Dot products."""
        sums = chunk.take("sums", self._dim)
        parts.pairs_forward(chunk.features, self._fields, sums, chunk.logits)

    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """No layers."""
        sums = chunk.take("sums", self._dim)
        parts.pairs_backward(chunk.features, self._fields, sums, chunk.by_logits, feature_grads)
        return []


class Layers:
    """Linear layers with ReLU between them, in given memory.

    Args:
        linears: the layers by the names of their parameters.
        last_relu: whether ReLU follows the last one too.
    """

    def __init__(self, linears: Mapping[str, nn.Linear], *, last_relu: bool = False) -> None:
        self.names, layers = list(linears), list(linears.values())
        self.widths = np.array(
            [layers[0].in_features, *(layer.out_features for layer in layers)], np.int64
        )
        self._last_relu = last_relu
        self._parameters = flatten(layers)
        self._blocks = np.stack([blocks_of(int(a), int(b)) for a, b in pairwise(self.widths)])

    def forward(self, chunk: Chunk, inputs: Matrix) -> Matrix:
        """What the last layer gives, float32[n, widths[-1]]."""
        values = chunk.take(f"{self.names[0]}.values", int(self.widths[1:].sum())).reshape(-1)
        feedforward.forward(
            find_blas(),
            self._blocks,
            self._parameters,
            self.widths,
            inputs,
            self._last_relu,
            values,
        )
        return self._last(values, len(inputs))

    def backward(
        self, chunk: Chunk, inputs: Matrix, by_last: Matrix, by_inputs: Matrix
    ) -> list[LinearFactors]:
        """Writes the gradients by the inputs; returns the factors."""
        total, count = int(self.widths[1:].sum()), len(inputs)
        values = chunk.take(f"{self.names[0]}.values", total).reshape(-1)
        grads = chunk.take(f"{self.names[0]}.grads", total).reshape(-1)
        self._last(grads, count)[...] = by_last
        feedforward.backward(
            find_blas(),
            self._blocks,
            self._parameters,
            self.widths,
            self._last_relu,
            values,
            grads,
            by_inputs,
        )
        found, read, at = [], inputs, 0
        for name, width in zip(self.names, self.widths[1:].tolist(), strict=True):
            here = slice(at, at + count * width)
            layer_grads = grads[here].reshape(count, width)
            found.append(LinearFactors(f"{name}.weight", f"{name}.bias", read, layer_grads))
            read, at = values[here].reshape(count, width), here.stop
        return found

    def values(self, chunk: Chunk) -> Matrix:
        """What `forward` returned for the chunk."""
        values = chunk.take(f"{self.names[0]}.values", int(self.widths[1:].sum())).reshape(-1)
        return self._last(values, len(chunk.features))

    def _last(self, values: Matrix, count: int) -> Matrix:
        """The last layer's part of the values of all."""
        width = int(self.widths[-1])
        return values[len(values) - count * width :].reshape(count, width)


class DeepPart(Part):
    """Of `Deep`."""

    def __init__(self, name: str, module: Deep) -> None:
        self._layers = Layers(linears_of(f"{name}.layers", module.layers))

    def forward(self, chunk: Chunk) -> None:
        """Through all layers."""
        parts.add_to(self._layers.forward(chunk, chunk.inputs), chunk.logits[:, None])

    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """And back."""
        by_inputs = chunk.take("by_inputs", chunk.inputs.shape[1])
        found = self._layers.backward(chunk, chunk.inputs, chunk.by_logits[:, None], by_inputs)
        parts.add_inputs(by_inputs, *chunk.split[:2], feature_grads)
        return found


class CrossPart(Part):
    """Of `CrossAndDeep`."""

    def __init__(self, name: str, module: CrossAndDeep) -> None:
        self._names = [f"{name}.cross.{number}" for number in range(len(module.cross))]
        cross = [layer for layer in module.cross if isinstance(layer, nn.Linear)]
        self._weights = [layer.weight.numpy() for layer in cross]
        self._biases = [layer.bias.numpy() for layer in cross]
        width = cross[0].in_features
        self._blocks = blocks_of(width, width)
        hidden = linears_of(f"{name}.hidden", module.hidden)
        self._hidden = Layers(hidden, last_relu=True) if hidden else None
        self._output = Layers({f"{name}.output": module.output})

    def forward(self, chunk: Chunk) -> None:
        """Cross layers and hidden layers, joined."""
        before, width = chunk.inputs, chunk.inputs.shape[1]
        for number, weight in enumerate(self._weights):
            outputs, after = chunk.take(f"cross{number}", width), chunk.take(f"x{number}", width)
            times_transposed(find_blas(), self._blocks[0], before, weight, outputs)
            parts.cross_forward(chunk.inputs, before, outputs, self._biases[number], after)
            before = after
        ends = before
        if self._hidden is not None:
            deep = self._hidden.forward(chunk, chunk.inputs)
            ends = chunk.take("ends", width + deep.shape[1])
            parts.join(before, deep, ends)
        parts.add_to(self._output.forward(chunk, ends), chunk.logits[:, None])

    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """And back, the cross layers from the last to the first."""
        width, last = chunk.inputs.shape[1], len(self._weights) - 1
        by_inputs, by_after = chunk.take("by_inputs", width), chunk.take("by_after", width)
        found = []
        if self._hidden is None:
            by_inputs[...] = 0.0
            ends = chunk.take(f"x{last}", width)
            found += self._output.backward(chunk, ends, chunk.by_logits[:, None], by_after)
        else:
            deep = int(self._hidden.widths[-1])
            ends, by_ends = chunk.take("ends", width + deep), chunk.take("by_ends", width + deep)
            found += self._output.backward(chunk, ends, chunk.by_logits[:, None], by_ends)
            by_deep = chunk.take("by_deep", deep)
            parts.part_from(by_ends, by_after, by_deep)
            found += self._hidden.backward(chunk, chunk.inputs, by_deep, by_inputs)
        by_before = chunk.take("by_before", width)
        for number in range(last, -1, -1):
            outputs, grads = chunk.take(f"cross{number}", width), chunk.take(f"by{number}", width)
            parts.cross_backward(chunk.inputs, outputs, by_after, grads, by_inputs)
            times(find_blas(), self._blocks[1], grads, self._weights[number], by_before)
            parts.add_to(by_before, by_after)
            read = chunk.take(f"x{number - 1}", width) if number else chunk.inputs
            name = self._names[number]
            found.append(LinearFactors(f"{name}.weight", f"{name}.bias", read, grads))
        parts.add_to(by_after, by_inputs)
        parts.add_inputs(by_inputs, *chunk.split[:2], feature_grads)
        return found


class DotsPart(Part):
    """Of `DotsAndDeep`."""

    def __init__(self, name: str, module: DotsAndDeep) -> None:
        self._fields, self._dim = module.shape
        bottom = linears_of(f"{name}.bottom", module.bottom)
        self._bottom = Layers(bottom, last_relu=True) if bottom else None
        self._top = Layers(linears_of(f"{name}.top", module.top))

    def forward(self, chunk: Chunk) -> None:
        """Numbers to their vector, dot products, upper layers."""
        numbers = chunk.take("numbers", 0)
        if self._bottom is not None:
            numeric = chunk.take("numeric", int(self._bottom.widths[0]))
            numeric[...] = chunk.inputs[:, chunk.split[0] :]
            numbers = self._bottom.forward(chunk, numeric)
        dots = chunk.take("dots", int(self._top.widths[0]))
        parts.dots_forward(numbers, chunk.inputs, self._fields, self._dim, dots)
        parts.add_to(self._top.forward(chunk, dots), chunk.logits[:, None])

    def backward(self, chunk: Chunk, feature_grads: Matrix) -> list[LinearFactors]:
        """And back."""
        count, width = chunk.inputs.shape
        dots, by_dots = (chunk.take(n, int(self._top.widths[0])) for n in ("dots", "by_dots"))
        found = self._top.backward(chunk, dots, chunk.by_logits[:, None], by_dots)
        by_inputs, fields, dim = chunk.take("by_inputs", width), self._fields, self._dim
        numbers = by_numbers = np.empty((count, 0), np.float32)
        if self._bottom is not None:
            numbers, by_numbers = self._bottom.values(chunk), chunk.take("by_numbers", dim)
        parts.dots_backward(numbers, chunk.inputs, fields, dim, by_dots, by_numbers, by_inputs)
        if self._bottom is not None:
            numeric = chunk.take("numeric", chunk.split[2])
            by_numeric = chunk.take("by_numeric", chunk.split[2])
            found += self._bottom.backward(chunk, numeric, by_numbers, by_numeric)
            by_inputs[:, chunk.split[0] :] = by_numeric
        parts.add_inputs(by_inputs, *chunk.split[:2], feature_grads)
        return found


class CompiledParts:
    """All parts of a tower.

    Args:
        module: whose parameters become views of arrays here.
    """

    def __init__(self, module: SumOfParts) -> None:
        self._split = (module.widths[0], module.widths[1], module.widths[2])
        with single_threaded():
            self._parts = [_compiled(name, part) for name, part in module.named_children()]
        self._memory = Memory()

    def gradients(
        self, features: Matrix, targets: Targets, feature_grads: Matrix, *, counts: bool
    ) -> FactoredGradients:
        """One forward and one backward pass; this thread's next call uses the memory again."""
        chunk = self._forward(features)
        feature_grads[...] = 0.0
        losses = losses_of(targets, counts=counts)
        feedforward.loss_gradients(losses, chunk.logits, chunk.by_logits)
        found = [factors for part in self._parts for factors in part.backward(chunk, feature_grads)]
        return FactoredGradients(tuple(found), find_blas())

    def logits(self, features: Matrix) -> Matrix:
        """Logits, float32[n], with the bits that they have in `gradients`."""
        return self._forward(features).logits.copy()

    def _forward(self, features: Matrix) -> Chunk:
        """A chunk with its logits."""
        chunk = Chunk(features, self._split, self._memory)
        chunk.logits[...] = 0.0
        for part in self._parts:
            part.forward(chunk)
        return chunk


def _compiled(name: str, module: nn.Module) -> Part:
    """The compiled form of a part."""
    match module:
        case Wide():
            return WidePart(name, module)
        case Pairs():
            return PairsPart(module)
        case Deep():
            return DeepPart(name, module)
        case CrossAndDeep():
            return CrossPart(name, module)
        case DotsAndDeep():
            return DotsPart(name, module)
    raise NotImplementedError(f"{type(module).__name__} has no compiled form.")


def linears_of(prefix: str, module: nn.Module) -> dict[str, nn.Linear]:
    """{name: layer} of the linear layers of a sequence or list, in order."""
    found: dict[str, Any] = dict(module.named_children())
    return {f"{prefix}.{n}": layer for n, layer in found.items() if isinstance(layer, nn.Linear)}
