"""The user's own module in float64, one example at a time: what a conversion is checked against.

Its embeddings keep their own forward; only their weights hold no more rows than the made-up examples read,
so that tables of any size can be checked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.batch import SparseBatch, Targets
from dpads.errors import ConfigError
from dpads.models.base import Tower
from dpads.models.gradients import DenseSums
from dpads.models.output import Output
from dpads.models.torch_conversion import (
    Embedding,
    FeatureModule,
    InputsFunction,
    call,
    copied,
    in_precision_of,
)
from dpads.models.torch_conversion_layout import ReadLayout
from dpads.models.torch_conversion_made_up import made_up
from dpads.models.torch_conversion_trace import Trace, check_output, failures_named
from dpads.models.torch_fields import FieldTensors, Inputs, RaggedBag
from dpads.models.torch_losses import example_losses
from dpads.schema import Task

EXAMPLES = 16
SEED = 11
TOLERANCE = 1e-3  # of float32 against float64
KINKS = 1  # examples where a kink, such as ReLU's, may lie between float32 and float64
NO_GROUPS = np.empty(0, np.int64)

MakeTower = Callable[[FeatureModule, NDArray[np.float32]], Tower]


@dataclass(frozen=True)
class Rows:
    """The rows of one table that made-up examples read, moved at random.

    Attributes:
        ids: int64[k], distinct, rising.
        values: float32[k, dim].
        padding_idx: the id that reads nothing, or None.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    padding_idx: int | None


class Reference:
    """The user's module in float64, with parameters moved at random.

    Args:
        module: the user's; it is copied.
        embeddings: its trainable embeddings.
        tables: {embedding: its table}.
        rows: of each table.
        dense: {parameter: float32 array}, the other trainable parameters.
        function: from tensors by column to what forward takes.
    """

    def __init__(
        self,
        module: nn.Module,
        embeddings: Mapping[str, Embedding],
        tables: Mapping[str, str],
        rows: Mapping[str, Rows],
        dense: Mapping[str, NDArray[np.float32]],
        function: InputsFunction | None,
    ) -> None:
        memo: dict[int, Any] = {}
        self.tables = {
            name: nn.Parameter(torch.from_numpy(own.values).double()) for name, own in rows.items()
        }
        for name, layer in embeddings.items():
            weight = self.tables[tables[name]]
            memo[id(layer.weight)] = weight
            memo[id(layer)] = _compact(layer, weight, rows[tables[name]])
        self._module = copied(module, memo).double()
        self._function = function
        values = dict(self._module.named_parameters())
        self.dense = {name: values[name] for name in dense}
        with torch.no_grad():
            for name, array in dense.items():
                values[name].copy_(torch.from_numpy(array))

    def logits(self, fields: FieldTensors, size: int) -> torch.Tensor:
        """Logits, float64[n]."""
        with failures_named(size), in_precision_of(torch.empty(0, dtype=torch.float64)):
            output = call(self._module, self._function, fields)
        if not (size == 1 and output.numel() == 1):
            check_output(output, size)
        return output.reshape(size)

    def gradients(
        self, fields: FieldTensors, task: Task, targets: Targets
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """Gradients of one example's loss: {table: float64[k, dim]}, {parameter: float64 array}."""
        loss = example_losses(task, self.logits(fields, 1), targets).sum()
        values = [*self.tables.values(), *self.dense.values()]
        found = [
            _plain(grad)
            for grad in torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        ]
        count = len(self.tables)
        return (
            dict(zip(self.tables, found[:count], strict=True)),
            dict(zip(self.dense, found[count:], strict=True)),
        )


def check_conversion(
    module: nn.Module,
    embeddings: Mapping[str, Embedding],
    found: Trace,
    inputs: Inputs,
    function: InputsFunction | None,
    layout: ReadLayout,
    twin: FeatureModule,
    make_tower: MakeTower,
) -> None:
    """Compares the converted module with the user's own, one example at a time.

    Args:
        module: the user's.
        embeddings: its trainable embeddings.
        found: what their calls read.
        inputs: the columns.
        function: from tensors by column to what forward takes.
        layout: of the conversion.
        twin: the module over the feature matrix; its parameters are moved.
        make_tower: makes the tower of a module, with example rows.

    Raises:
        ConfigError: examples mix in the module, or the two disagree; or the tower refuses the module.
    """
    rng = np.random.default_rng(SEED)
    batch = made_up(inputs, EXAMPLES, SEED)
    rows = _rows(embeddings, found, layout, batch, inputs.padding, rng)
    dense = _moved(twin, rng)
    own = Reference(module, embeddings, found.tables, rows, dense, function)
    fields = inputs.shown(batch, torch.float64)
    single = [_example(inputs, fields, number) for number in range(EXAMPLES)]
    _check_mixing(own, fields, single)
    features, places = _features(layout, batch, rows)
    tower = make_tower(twin, features)
    targets = Output().targets(batch)
    by_features = np.empty_like(features)
    gradients = tower.gradients(features, targets, by_features)
    size = sum(value.size for value in tower.parameters.values())
    wrong: dict[str, int] = {}
    for number in range(EXAMPLES):
        wanted_tables, wanted = own.gradients(
            single[number], inputs.schema.task, targets.part(number, number + 1)
        )
        sums = DenseSums.over(np.zeros(size), tower.parameters)
        gradients.add_clipped((np.arange(EXAMPLES) == number).astype(np.float32), NO_GROUPS, sums)
        got_tables = {table: np.zeros_like(value) for table, value in wanted_tables.items()}
        for table, row, column, coef in places[number]:
            dim = got_tables[table].shape[-1]
            got_tables[table][row] += coef * by_features[number, column : column + dim]
        got = {**got_tables, **sums.parts}
        expected = {**wanted_tables, **wanted}
        scale = max(float(np.linalg.norm(value)) for value in expected.values())
        for name, value in expected.items():
            error = float(np.linalg.norm(got[name] - value))
            bound = TOLERANCE * (float(np.linalg.norm(value)) + 1e-3 * scale + 1e-6)
            wrong[name] = wrong.get(name, 0) + (not error <= bound)  # also where it is NaN
    for name, times in wrong.items():
        if times > KINKS:
            kind = "embedding" if name in rows else "parameter"
            raise ConfigError(
                f'The per-example gradients of {kind} "{name}" are not those of autograd on the module '
                "itself, one example at a time. Something in forward is out of sight: hooks, values that "
                "are detached or written to, or an embedding's weight used directly. Leave it out."
            )


def _compact(layer: Embedding, weight: nn.Parameter, rows: Rows) -> nn.Module:
    """A copy of an embedding that holds few rows and is called with the ids of all."""
    twin = copy.deepcopy(layer, {id(layer.weight): weight})
    twin.num_embeddings = len(rows.ids)
    if rows.padding_idx is not None:
        twin.padding_idx = int(np.searchsorted(rows.ids, rows.padding_idx))
    known = torch.from_numpy(rows.ids)

    def translate(
        _: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (torch.searchsorted(known, args[0].long().contiguous()), *args[1:]), keywords
        return args, {
            **keywords,
            "input": torch.searchsorted(known, keywords["input"].long().contiguous()),
        }

    twin.register_forward_pre_hook(translate, with_kwargs=True)
    return twin


def _rows(
    embeddings: Mapping[str, Embedding],
    found: Trace,
    layout: ReadLayout,
    batch: SparseBatch,
    padding: int,
    rng: np.random.Generator,
) -> dict[str, Rows]:
    """The rows that a batch reads, moved at random."""
    bases = {name: base for group in layout.groups for name, base in group.bases.items()}
    read = {group.name: group.places(batch).rows for group in layout.groups}
    owners = {table: group for group in layout.groups for table in group.rows}
    rows = {}
    for name, layer in embeddings.items():
        table = found.tables[name]
        if table in rows:
            continue
        local = read[owners[table].name] - bases[table]
        local = local[(local >= 0) & (local < layer.num_embeddings)]
        more = [min(padding, layer.num_embeddings - 1), layer.padding_idx]
        ids = np.unique(np.concatenate([local, [row for row in more if row is not None]]))
        values = layer.weight.detach()[torch.from_numpy(ids)].numpy()
        values = (values + rng.normal(0, 0.3, values.shape)).astype(np.float32)
        if layer.padding_idx is not None:
            values[np.searchsorted(ids, layer.padding_idx)] = 0.0
        rows[table] = Rows(ids, values, layer.padding_idx)
    return rows


def _moved(twin: FeatureModule, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Moves the trainable parameters by about what keeps the size of activations, and copies them."""
    values = {}
    with torch.no_grad():
        for name, value in twin.inner.named_parameters():
            if value.requires_grad:
                inputs = value[0].numel() if value.dim() > 1 else 16
                step = np.asarray(rng.normal(0, 0.5 / max(inputs, 1) ** 0.5, tuple(value.shape)))
                value.add_(torch.from_numpy(step).float())
                values[name] = value.numpy().copy()
    return values


def _example(inputs: Inputs, fields: FieldTensors, number: int) -> FieldTensors:
    """The tensors of one example."""
    own: dict[str, torch.Tensor | RaggedBag] = {}
    for name, value in fields.items():
        if isinstance(value, RaggedBag):
            ends = [*value.offsets.tolist(), len(value.values)]
            part = slice(ends[number], ends[number + 1])
            weights = None if value.weights is None else value.weights[part]
            own[name] = RaggedBag(value.values[part], torch.zeros(1, dtype=torch.int64), weights)
        else:
            own[name] = value[number : number + 1]
    return own


def _check_mixing(own: Reference, fields: FieldTensors, single: list[FieldTensors]) -> None:
    """Refuses a module in which the other examples of the batch change an example's logit."""
    with torch.no_grad():
        together = own.logits(fields, EXAMPLES).numpy()
        alone = np.array([float(own.logits(one, 1)) for one in single])
    if not np.isfinite(alone).all():
        raise ConfigError(
            "forward returns logits that are not finite on made-up rows, whose numbers are of either sign "
            "unless the schema clips them. Say which numbers a column has, such as dpads.Numeric(column, "
            "clip=(0, 1e9)), or let forward take any."
        )
    if not np.allclose(together, alone, rtol=1e-5, atol=1e-5):
        raise ConfigError(
            "forward mixes the examples of a batch: an example gets another logit among others than by "
            "itself, as with in-batch negatives, statistics of the batch or a softmax over it. Clipping "
            "would then not bound what one example does. Compute every logit from its own example."
        )


def _features(
    layout: ReadLayout, batch: SparseBatch, rows: Mapping[str, Rows]
) -> tuple[NDArray[np.float32], list[list[tuple[str, int, int, float]]]]:
    """The feature matrix, and for every example the places (table, row among `rows`, column, factor)."""
    matrix = np.zeros((batch.num_examples, layout.width))
    matrix[:, layout.embedded :] = layout.numbers(batch)
    listed: list[list[tuple[str, int, int, float]]] = [[] for _ in range(batch.num_examples)]
    for group in layout.groups:
        tables = list(group.bases)
        bases = np.array(list(group.bases.values()))
        places = group.places(batch)
        for row, column, coef, number in zip(
            places.rows, places.columns, places.coefs, places.examples, strict=True
        ):
            table = tables[int(np.searchsorted(bases, row, side="right")) - 1]
            own = rows[table]
            at = int(np.searchsorted(own.ids, row - group.bases[table]))
            matrix[number, column : column + group.dim] += coef * own.values[at].astype(np.float64)
            listed[number].append((table, at, int(column), float(coef)))
    return matrix.astype(np.float32), listed


def _plain(grad: torch.Tensor) -> NDArray[np.float64]:
    """A gradient as an array, also where the embedding made it sparse."""
    array: NDArray[np.float64] = (grad.to_dense() if grad.is_sparse else grad).numpy()
    return array
