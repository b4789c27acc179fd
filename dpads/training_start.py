"""Parameters that training starts from, where those are not made by init_seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpads.models.base import Description, Model
from dpads.schema import FeatureSchema
from dpads.training_settings import TrainingSettings


@dataclass(frozen=True)
class StartModel:
    """The final parameters of an earlier run of the same model on the same columns.

    Attributes:
        state: {"tables.<name>" or "dense.<name>": float32 array}, as `Model.state` has them.
        offset: of the model's output: the tower learnt beside it.
        digest: SHA-256 of the file that they are from; keys are bound to it.
    """

    state: Mapping[str, NDArray[np.float32]]
    offset: float
    digest: str

    def put_into(self, model: Model) -> None:
        """Overwrites a model's parameters.

        Raises:
            ConfigError: they are another model's.
        """
        model.load_state(self.state)
        model.output = dataclasses.replace(model.output, offset=self.offset)

    def rows_in_use(self, model: Model) -> dict[str, NDArray[np.bool_]]:
        """The rows that are not zero, {table of the schema: bool[rows]}; what an earlier selection left."""
        found = {table: np.zeros(n, np.bool_) for table, n in model.schema.table_rows.items()}
        for group in model.layout.groups:
            for slot in group.slots:
                used = np.any(self.state[f"tables.{slot.table}"] != 0.0, axis=1)
                rows = found[slot.field.table]
                size = min(len(rows), len(used))
                rows[:size] |= used[:size]
        return found


def initial_model(
    description: Description,
    schema: FeatureSchema,
    settings: TrainingSettings,
    start: StartModel | None,
    on_rows: Callable[[int, int], None],
) -> Model:
    """The model as training begins.

    Args:
        description: of the model.
        schema: of the rows.
        settings: of the training: backend, init_seed, weights of classes.
        start: parameters to start from; None for those that init_seed makes.
        on_rows: called with the rows of tables that are made, and how many there are.
    """
    model = description.init(
        schema, seed=settings.init_seed, backend=settings.backend, on_rows=on_rows
    )
    model.output = dataclasses.replace(
        model.output,
        positive_weight=settings.positive_weight,
        negative_weight=settings.negative_weight,
    )
    if start is not None:
        start.put_into(model)
    return model
