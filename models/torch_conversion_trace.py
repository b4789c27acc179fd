"""Finds out which columns each call of an embedding reads, by calling the module on made-up rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dpads.errors import ConfigError
from dpads.models.torch_conversion import (
    Embedding,
    InputsFunction,
    Lookup,
    call,
    table_names,
    visiting,
    without_tables,
)
from dpads.models.torch_conversion_layout import Source
from dpads.models.torch_conversion_made_up import made_up
from dpads.models.torch_conversion_recording import Candidates, Recording, Seen
from dpads.models.torch_fields import Inputs

SIZES = (
    61,
    40,
)  # examples of the made-up batches: many, so that no two columns are equal by chance
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Operations that only reshape, and those that turn a logit into a prediction.
RESHAPING = (
    "View",
    "Reshape",
    "UnsafeView",
    "Squeeze",
    "Unsqueeze",
    "Select",
    "Slice",
    "Clone",
    "T",
)
PREDICTING = ("Sigmoid", "LogSigmoid", "Softmax", "LogSoftmax", "Exp", "Softplus")


@dataclass(frozen=True)
class Trace:
    """What the calls read.

    Attributes:
        sources: {embedding: the source of each call, in order}.
        tables: {embedding: its table}.
        rows: {table: its rows}.
    """

    sources: Mapping[str, tuple[Source, ...]]
    tables: Mapping[str, str]
    rows: Mapping[str, int]

    @property
    def every(self) -> list[Source]:
        """All sources."""
        return list(itertools.chain.from_iterable(self.sources.values()))


def trace(
    module: nn.Module,
    embeddings: Mapping[str, Embedding],
    inputs: Inputs,
    function: InputsFunction | None,
) -> Trace:
    """Calls a copy of the module on made-up rows.

    Raises:
        ConfigError: forward fails; or a call reads no column, or another one in another batch; or an
            embedding is never called, or its weight used outside of it; or the output is not one logit
            an example; or forward draws random numbers, or writes to a buffer.
    """
    tables = table_names(embeddings)
    rows = {tables[name]: layer.num_embeddings for name, layer in embeddings.items()}
    dims = {tables[name]: layer.embedding_dim for name, layer in embeddings.items()}
    anchors = {table: torch.zeros((), requires_grad=True) for table in rows}
    weights = {table: anchors[table].expand(rows[table], dims[table]) for table in rows}
    twin = without_tables(module, tables, weights)
    passes = []
    for seed, size in enumerate(SIZES):
        batch = made_up(inputs, size, seed)
        fields = inputs.shown(batch)
        recording = Recording(batch, inputs, fields)
        with unchanged(twin), failures_named(size), visiting(recording), torch.enable_grad():
            output = call(twin, function, fields)
        check_output(output, size)
        _check_logit(output, inputs)
        _check_weights(output, anchors)
        passes.append(recording.seen)
    sources = _settle(passes)
    for name in embeddings:
        if name not in sources:
            raise ConfigError(
                f'Embedding "{name}" is never called in forward, so that its table would only collect '
                "noise. Leave it out, or set its weight's requires_grad to False."
            )
    _check_rows(inputs, rows, sources)
    return Trace(sources, tables, rows)


def _settle(passes: Sequence[Sequence[Seen]]) -> dict[str, tuple[Source, ...]]:
    """The one source of every call, in order, by embedding."""
    names = [[seen.lookup.name for seen in one] for one in passes]
    if any(one != names[0] for one in names):
        raise ConfigError(
            "forward calls its embeddings in another order, or another number of times, in another batch. "
            "Let it take the same way for all examples."
        )
    found: dict[str, list[Source]] = {}
    for calls in zip(*passes, strict=True):
        lookup = calls[0].lookup
        fitting = []
        for axis in calls[0].by_axis:
            merged: Candidates | None = calls[0].by_axis[axis]
            for other in calls[1:]:
                more = other.by_axis.get(axis)
                merged = None if merged is None or more is None else merged.and_in(more)
            if merged is not None and merged.is_possible:
                fitting.append((axis, merged))
        if len(fitting) != 1 or any(
            len(s) > 1 for s in (*fitting[0][1].ids, *fitting[0][1].weights)
        ):
            raise ConfigError(
                f'Embedding "{lookup.name}": expected every call to read the same columns of the schema in '
                "every batch, and nobody could tell which these are. Pass ids as they are in the columns."
            )
        found.setdefault(lookup.name, []).append(_source(lookup, *fitting[0]))
    return {name: tuple(sources) for name, sources in found.items()}


def _source(lookup: Lookup, axis: int, what: Candidates) -> Source:
    """The only source among candidates."""
    return Source(
        table=lookup.table,
        dim=lookup.embedding_dim,
        ids=tuple(next(iter(one)) for one in what.ids),
        bag=min(what.bags, default=None),
        shape=what.shape,
        axis=axis,
        pooling=lookup.mode,
        weights=tuple(next(iter(one)) for one in what.weights),
        weighted=what.weighted and bool(what.bags),
        padding_idx=lookup.padding_idx,
    )


def _check_rows(
    inputs: Inputs, rows: Mapping[str, int], sources: Mapping[str, Sequence[Source]]
) -> None:
    """Refuses tables with fewer rows than their columns have ids, and columns that share one unsaid."""
    owners = {field.name: field.table for field in inputs.schema.fields}
    shared: dict[str, tuple[str, str]] = {}
    for name, of_embedding in sources.items():
        for source in of_embedding:
            fields = (
                [inputs.id_columns[c] for c in source.ids] if source.bag is None else [source.bag]
            )
            for field in fields:
                if inputs.rows_of(field) > rows[source.table]:
                    raise ConfigError(
                        f'Embedding "{name}" has {rows[source.table]} rows, but column "{field}" has ids '
                        f'below {inputs.rows_of(field)}. Set buckets = {{ "{owners[field]}" = '
                        f"{rows[source.table]} }} in the schema, or give the embedding more rows."
                    )
                first = shared.setdefault(source.table, (field, owners[field]))
                if first[1] != owners[field]:
                    raise ConfigError(
                        f'Embedding "{name}" is read by columns "{first[0]}" and "{field}", whose ids the '
                        f"schema hashes apart. Let them share a table in the schema: tables = {{ shared = "
                        f'["{first[0]}", "{field}"] }}.'
                    )
            padded = any(field in inputs.lengths for field in fields)
            if padded and source.padding_idx not in (None, inputs.padding):
                raise ConfigError(
                    f'Embedding "{name}" has padding_idx {source.padding_idx}, but bags are padded with id '
                    f"{inputs.padding}. Pass padding={source.padding_idx} to from_torch."
                )


@contextmanager
def failures_named(size: int) -> Iterator[None]:
    """Says what forward was called on, where it fails."""
    try:
        yield
    except ConfigError:
        raise
    except FAILURES as error:
        if size == 1:
            raise ConfigError(
                f"forward failed on one example by itself: {type(error).__name__}: {error}. Let it take a "
                "batch of any size, such as squeeze(1) in the place of squeeze()."
            ) from error
        raise ConfigError(
            f"forward failed on a made-up batch of {size} examples: {type(error).__name__}: {error}. By "
            "default it is called on one mapping from column to tensor: int64[B] for categorical fields, "
            "float32[B] for numeric ones, RaggedBag or int64[B, positions] for bags. Pass inputs=, a "
            "function from that mapping to what forward takes (a tuple is several arguments)."
        ) from error


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Refuses a pass that draws random numbers or writes to buffers."""
    state = torch.random.get_rng_state()
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    yield
    if not torch.equal(state, torch.random.get_rng_state()):
        torch.random.set_rng_state(state)
        raise ConfigError(
            "forward draws random numbers, as dropout does in training, so that nothing could be computed "
            "again after an interruption. Call module.eval() before the conversion, or leave them out."
        )
    for name, value in module.named_buffers():
        if name not in buffers or not torch.equal(buffers[name], value):
            raise ConfigError(
                f'forward writes to buffer "{name}", which carries what it saw of one batch into the next. '
                "Leave it out, or compute the buffer beforehand."
            )


def check_output(output: object, size: int) -> None:
    """Refuses anything but one logit an example."""
    wanted = "Expected forward to return one logit an example, of shape [examples] or [examples, 1], got "
    if not isinstance(output, torch.Tensor):
        raise ConfigError(f"{wanted}{type(output).__name__}. Return the tensor of logits alone.")
    if tuple(output.shape) not in {(size,), (size, 1)} or not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        more = ""
        if tuple(output.shape) == (size, size):
            more = " Scores of examples against each other (in-batch negatives) cannot be private."
        raise ConfigError(
            f"{wanted}{kind} {list(output.shape)} for {size} examples.{more} Choose one task's logit."
        )


def _check_logit(output: torch.Tensor, inputs: Inputs) -> None:
    """Refuses predictions where logits are expected."""
    node = output.grad_fn
    while node is not None and node.name().startswith(RESHAPING):
        node = next(
            (following for following, _ in node.next_functions if following is not None), None
        )
    name = "" if node is None else node.name().removesuffix("0").removesuffix("Backward")
    if name in PREDICTING:
        what = (
            "the logarithm of the expected count" if inputs.schema.task == "count" else "the logit"
        )
        raise ConfigError(
            f"forward ends in {name.lower()}; expected {what} itself: dpads computes loss and prediction "
            'from it. Leave the last step out (deepctr-torch: task="regression").'
        )


def _check_weights(output: torch.Tensor, anchors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tables that forward uses other than by calling their embedding."""
    if output.grad_fn is None:
        return
    found = torch.autograd.grad(
        output.sum(), list(anchors.values()), allow_unused=True, retain_graph=False
    )
    for table, grad in zip(anchors, found, strict=True):
        if grad is not None:
            raise ConfigError(
                f'forward uses the weight of embedding "{table}" other than by calling the embedding, such '
                "as F.linear(x, embedding.weight), F.embedding or a penalty on it: then a row would have "
                "gradients that tables do not see. Call the embedding; use a layer of its own for the rest."
            )
