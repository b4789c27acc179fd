"""A user's torch module with its embeddings taken out: their calls read columns of the feature matrix.

The module is copied, every trainable embedding in the copy is replaced by a `Lookup`, and the copy is called:

    recording   what a call is given is compared with the columns of made-up rows: which of them does it read?
    reading     a call returns its columns of the feature matrix, whatever it is given
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dpads.errors import ConfigError, RunError
from dpads.models.torch_conversion_layout import Read
from dpads.models.torch_fields import FieldTensors, Inputs

Embedding = nn.Embedding | nn.EmbeddingBag
InputsFunction = Callable[[FieldTensors], Any]


class Visitor(Protocol):
    """What happens at the calls of embeddings."""

    def visit(
        self,
        lookup: Lookup,
        ids: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the call returns."""


_VISITOR: ContextVar[Visitor] = ContextVar("visitor")


@contextmanager
def visiting(visitor: Visitor) -> Iterator[None]:
    """Sends the calls of this thread's embeddings to the visitor."""
    token = _VISITOR.set(visitor)
    try:
        yield
    finally:
        _VISITOR.reset(token)


class Lookup(nn.Module):
    """Stands in for an embedding of the user's module.

    Args:
        name: the embedding's name.
        table: name of its table.
        layer: the embedding.
        weight: what forward finds in the place of the weight.
    """

    def __init__(self, name: str, table: str, layer: Embedding, weight: torch.Tensor) -> None:
        super().__init__()
        self.name = name
        self.table = table
        self.num_embeddings = layer.num_embeddings
        self.embedding_dim = layer.embedding_dim
        self.padding_idx = layer.padding_idx
        self.is_bag = isinstance(layer, nn.EmbeddingBag)
        self.mode = layer.mode if isinstance(layer, nn.EmbeddingBag) else None
        self.include_last_offset = bool(getattr(layer, "include_last_offset", False))
        self.weight = weight

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 (the name torch gives it)
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the visitor says."""
        return _VISITOR.get().visit(self, input, offsets, per_sample_weights)


def embeddings_of(module: nn.Module) -> dict[str, Embedding]:
    """The trainable embeddings by name, each once."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        and any(value.requires_grad for value in layer.parameters(recurse=False))
    }


def table_names(embeddings: Mapping[str, Embedding]) -> dict[str, str]:
    """{embedding: its table}; embeddings that tie their weights share a table, named after the first."""
    owners: dict[int, str] = {}
    return {
        name: owners.setdefault(id(layer.weight), name or "embedding")
        for name, layer in embeddings.items()
    }


def without_tables(
    module: nn.Module, tables: Mapping[str, str], weights: Mapping[str, torch.Tensor]
) -> nn.Module:
    """A copy whose embeddings are `Lookup`s; the tables are not copied.

    Args:
        module: the user's.
        tables: {embedding: its table}.
        weights: {table: what stands in the place of its weight}.

    Raises:
        ConfigError: the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, layer in module.named_modules():
        if name in tables:
            assert isinstance(layer, nn.Embedding | nn.EmbeddingBag)
            table = tables[name]
            memo[id(layer)] = Lookup(name, table, layer, weights[table])
            memo[id(layer.weight)] = weights[table]
    return copied(module, memo)


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module, objects of `memo` replaced.

    Raises:
        ConfigError: it cannot be copied.
    """
    kept = [(value, value.grad) for value in module.parameters() if value.grad is not None]
    try:
        for value, _ in kept:
            value.grad = None
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{type(module).__name__}: expected a module that copy.deepcopy can copy, got: {error}. Give "
            "the module as it is before any forward pass, without tensors of one as attributes."
        ) from error
    finally:
        for value, grad in kept:
            value.grad = grad


def empty_weight(rows: int, dim: int) -> torch.Tensor:
    """A tensor of a table's shape that takes no memory."""
    return torch.zeros(()).expand(rows, dim)


class Reading:
    """Returns columns of the feature matrix.

    Args:
        features: float[n, width].
        reads: {embedding: where each of its calls reads}.
    """

    def __init__(self, features: torch.Tensor, reads: Mapping[str, Sequence[Read]]) -> None:
        self._features = features
        self._reads = reads
        self._done = dict.fromkeys(reads, 0)

    def visit(
        self,
        lookup: Lookup,
        ids: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """The columns of the embedding's next call."""
        reads, number = self._reads[lookup.name], self._done[lookup.name]
        if number >= len(reads):
            raise RunError(_OTHER_WAY)
        self._done[lookup.name] += 1
        read = reads[number]
        source, first = read.source, read.column
        size = self._features.shape[0]
        values = self._features[:, first : first + source.dim * source.stretches]
        if source.pooling is not None:
            return values
        values = values.reshape(size, *source.shape, source.dim)
        return values.movedim(0, source.axis) if source.axis else values

    def check_done(self) -> None:
        """Refuses a pass that took another way than the recorded one."""
        if any(self._done[name] != len(reads) for name, reads in self._reads.items()):
            raise RunError(_OTHER_WAY)


_OTHER_WAY = (
    "forward called an embedding another number of times than when the module was converted. Let it take "
    "the same way for all examples."
)


class FeatureModule(nn.Module):
    """The user's module as a function of the feature matrix: float[n, width] -> float[n].

    Args:
        inner: the module, its embeddings replaced.
        inputs: the columns after the embedded ones.
        function: from tensors by column to what forward takes.
        embedded: columns that embeddings fill.
        reads: {embedding: where each of its calls reads}.
    """

    def __init__(
        self,
        inner: nn.Module,
        inputs: Inputs,
        function: InputsFunction | None,
        embedded: int,
        reads: Mapping[str, Sequence[Read]],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.inputs = inputs
        self.function = function
        self.embedded = embedded
        self.reads = reads

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits."""
        fields = self.inputs.read_back(features[:, self.embedded :])
        reading = Reading(features, self.reads)
        with visiting(reading), in_precision_of(features):
            output = call(self.inner, self.function, fields)
        reading.check_done()
        return output.reshape(features.shape[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureModule:
        """A copy with the same description of columns."""
        inner = copy.deepcopy(self.inner, memo)
        twin = FeatureModule(inner, self.inputs, self.function, self.embedded, self.reads)
        return twin.train(self.training)


def call(module: nn.Module, function: InputsFunction | None, fields: FieldTensors) -> torch.Tensor:
    """Calls a user's module on tensors by column: a tuple is several arguments, anything else is one."""
    arguments = fields if function is None else function(fields)
    output: torch.Tensor = module(*arguments) if isinstance(arguments, tuple) else module(arguments)
    return output


class _Double(TorchFunctionMode):
    """Makes what asks for float32 get float64: modules and `inputs` functions often name it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            return torch.Tensor.double(*args, **(kwargs or {}))
        swapped = tuple(torch.float64 if value is torch.float32 else value for value in args)
        named = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        result = func(*swapped, **named)
        made = not any(isinstance(value, torch.Tensor) for value in args)
        if made and isinstance(result, torch.Tensor) and result.dtype is torch.float32:
            return result.double()
        return result


@contextmanager
def in_precision_of(features: torch.Tensor) -> Iterator[None]:
    """Lets a module compute in float64 where the features are float64, though it names float32."""
    if features.dtype == torch.float64:
        with _Double():
            yield
    else:
        yield
