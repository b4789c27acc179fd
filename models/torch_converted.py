"""A user's torch module, converted: what it became, its initial parameters, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpads.errors import ConfigError
from dpads.models.base import ROWS_AT_A_TIME, Description, Model
from dpads.models.torch_conversion import (
    Embedding,
    FeatureModule,
    InputsFunction,
    Lookup,
    empty_weight,
    without_tables,
)
from dpads.models.torch_conversion_checks import check_named
from dpads.models.torch_conversion_digests import code_of, initial_of, structure_of
from dpads.models.torch_conversion_export import Reader
from dpads.models.torch_conversion_layout import Read, ReadLayout, build_read_layout
from dpads.models.torch_conversion_reference import check_conversion
from dpads.models.torch_conversion_trace import Trace, trace
from dpads.models.torch_fields import Inputs
from dpads.models.torch_module_tower import ModuleTower
from dpads.schema import FeatureSchema

PREFIX = "inner."  # where a `FeatureModule` has the user's module


@dataclass(frozen=True)
class Converted:
    """A module that was taken apart and checked.

    Attributes:
        class_name: the module's class.
        structure: SHA-256 of what parameters must fit.
        code: SHA-256 of the code of its classes.
        initial: SHA-256 of the initial parameters.
        inputs: the columns.
        function: from tensors by column to what forward takes.
        found: what the embeddings' calls read.
        layout: feature columns.
        template: the module, its embeddings replaced; never called.
        shells: the embeddings without their weights.
        tables: {table: float32[rows, dim]}, initial.
    """

    class_name: str
    structure: str
    code: str
    initial: str
    inputs: Inputs
    function: InputsFunction | None
    found: Trace
    layout: ReadLayout
    template: nn.Module
    shells: Mapping[str, Embedding]
    tables: Mapping[str, NDArray[np.float32]]

    @property
    def schema(self) -> FeatureSchema:
        """The schema that it was converted for."""
        return self.inputs.schema

    def feature_module(self) -> FeatureModule:
        """A copy of the module as a function of the feature matrix, with its initial parameters."""
        return _feature_module(
            copy.deepcopy(self.template), self.inputs, self.function, self.layout, self.found
        )

    def model(
        self, description: Description, on_rows: Callable[[int, int], None] | None = None
    ) -> Model:
        """The model with its initial parameters."""
        arrays, done = {}, 0
        total = sum(group.num_rows for group in self.layout.groups)
        for group in self.layout.groups:
            array = arrays[group.name] = np.empty((group.num_rows, group.dim), np.float32)
            for table, base in group.bases.items():
                values = self.tables[table]
                for first in range(0, len(values), ROWS_AT_A_TIME):
                    part = values[first : first + ROWS_AT_A_TIME]
                    array[base + first : base + first + len(part)] = part
                    done += len(part)
                    if on_rows is not None:
                        on_rows(done, total)
        tower = _tower(self.inputs, self.feature_module())
        return Model(description, self.schema, self.layout, tower, arrays)

    def to_torch(self, model: Model) -> nn.Module:
        """The user's module with the parameters of a model."""
        memo: dict[int, Any] = {}
        values = model.tables
        weights: dict[str, nn.Parameter] = {}
        for lookup in self.template.modules():
            if isinstance(lookup, Lookup):
                shell = self.shells[lookup.name]
                if lookup.table not in weights:
                    array = torch.from_numpy(values[lookup.table].copy())
                    if lookup.padding_idx is not None:
                        array[lookup.padding_idx] = 0.0
                    weights[lookup.table] = nn.Parameter(array)
                weight = weights[lookup.table]
                memo[id(lookup.weight)] = weight
                memo[id(lookup)] = copy.deepcopy(shell, {id(shell.weight): weight})
        module = copy.deepcopy(self.template, memo)
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in model.dense.items():
                own[name].copy_(torch.from_numpy(value))
        return module

    def reader(self, model: Model) -> nn.Module:
        """A module from tensors by column to the tower's logits."""
        feature_module = self.feature_module()
        own = dict(feature_module.inner.named_parameters())
        with torch.no_grad():
            for name, value in model.dense.items():
                own[name].copy_(torch.from_numpy(value))
        tables = {name: torch.from_numpy(value.copy()) for name, value in model.tables.items()}
        return Reader(feature_module, self.layout, tables)


def convert(
    module: nn.Module,
    schema: FeatureSchema,
    function: InputsFunction | None,
    lengths: Mapping[str, int],
    padding: int,
) -> Converted:
    """Takes a module apart and checks it; `from_torch` says what is refused.

    Raises:
        ConfigError: the module cannot be trained privately or exactly.
    """
    if not isinstance(schema, FeatureSchema):
        raise ConfigError(f"Expected schema to be a FeatureSchema, got {type(schema).__name__}.")
    if function is not None and not callable(function):
        raise ConfigError(f"Expected inputs to be a function, got {type(function).__name__}.")
    embeddings = check_named(module)
    inputs = Inputs(schema, lengths, padding)
    found = trace(module, embeddings, inputs, function)
    layout = build_read_layout(inputs, found.rows, found.every)
    weights = {
        found.tables[name]: empty_weight(layer.num_embeddings, layer.embedding_dim)
        for name, layer in embeddings.items()
    }
    template = without_tables(module, found.tables, weights)
    check_conversion(
        module,
        embeddings,
        found,
        inputs,
        function,
        layout,
        _feature_module(copy.deepcopy(template), inputs, function, layout, found),
        partial(_tower, inputs),
    )
    tables = {
        found.tables[name]: layer.weight.detach().numpy().copy()
        for name, layer in embeddings.items()
    }
    kind = type(module)
    return Converted(
        class_name=f"{kind.__module__}.{kind.__qualname__}",
        structure=structure_of(template, inputs, found, layout),
        code=code_of(template, function),
        initial=initial_of(template, tables),
        inputs=inputs,
        function=function,
        found=found,
        layout=layout,
        template=template,
        shells={name: _shell(layer) for name, layer in embeddings.items()},
        tables=tables,
    )


def _feature_module(
    inner: nn.Module,
    inputs: Inputs,
    function: InputsFunction | None,
    layout: ReadLayout,
    found: Trace,
) -> FeatureModule:
    """The module over the feature matrix."""
    where = layout.reads
    reads: dict[str, tuple[Read, ...]] = {
        name: tuple(where[source] for source in sources) for name, sources in found.sources.items()
    }
    return FeatureModule(inner, inputs, function, layout.embedded, reads).train(inner.training)


def _tower(
    inputs: Inputs, module: FeatureModule, example_rows: NDArray[np.float32] | None = None
) -> ModuleTower:
    """The tower of a module; it refuses parameters by the names that the user gave them."""
    width = module.embedded + inputs.width
    try:
        return ModuleTower(
            module, inputs.schema.task, width, prefix=PREFIX, example_rows=example_rows
        )
    except ConfigError as error:
        raise ConfigError(str(error).replace(f'"{PREFIX}', '"')) from None


def _shell(layer: Embedding) -> Embedding:
    """An embedding without its weight."""
    nothing = nn.Parameter(torch.empty(0), requires_grad=layer.weight.requires_grad)
    return copy.deepcopy(layer, {id(layer.weight): nothing})
