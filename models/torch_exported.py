"""A trained model as one torch module: from the columns of a log, ids hashed, to predictions.

Its inputs have the names of the log's columns, B rows each:

    categorical column   int64[B]       row of the column's table, -1 for none
    bag                  int64[B, L]    likewise, lists filled up with -1 to one length
    weights of a bag     float32[B, L]  a factor per id; what stands beside -1 is not read
    numeric column       float64[B]     as in the log, NaN where it is missing: the transform is inside
    exposure             float32[B]
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from dpads.models.base import Model
from dpads.models.calibration import Buckets, Calibration, ScaleAndBias
from dpads.models.layout import Slot
from dpads.models.output import LARGEST_LOGIT, Output
from dpads.models.user_module import TorchModule
from dpads.schema import FeatureSchema, Numeric

LARGEST_COUNT = torch.finfo(torch.float32).max


class ExportedModel(nn.Module):
    """Tables, tower and output of a trained model; needs nothing but torch to run.

    Args:
        model: whose parameters are copied.

    Attributes:
        tower: float32[B, width] -> float32[B], the model's tower; or a user's module, tables included.
        table_names: names of `tables`, in order; not of a user's module.
        tables: float32[rows, dim] each.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.schema: FeatureSchema = model.schema
        self.output: Output = model.output
        self.slots: list[Slot] = []
        if isinstance(model.description, TorchModule):
            # A user's module reads its columns itself.
            self.tower: nn.Module = copy.deepcopy(model.description.reader(model))
            self.is_reader = True
        else:
            self._copy_tables(model)
            self.tower = copy.deepcopy(model.tower.module)
            self.is_reader = False
        self.requires_grad_(False)
        self.eval()

    def _copy_tables(self, model: Model) -> None:
        """Tables, and who reads them."""
        self.table_names = list(model.tables)
        copies = [torch.from_numpy(table.copy()) for table in model.tables.values()]
        self.tables = nn.ParameterList([nn.Parameter(t, requires_grad=False) for t in copies])
        slots = [slot for group in model.layout.groups for slot in group.slots]
        self.slots = sorted(slots, key=lambda slot: slot.column)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities, or expected counts over each row's exposure.

        Args:
            inputs: the columns by name, as the head of this module says.

        Returns:
            float32[B].
        """
        numbers = {item.column: _number(item, inputs[item.column]) for item in self.schema.numeric}
        if self.is_reader:
            logits = self.tower({**inputs, **numbers})
        else:
            columns = [self._pooled(slot, inputs) for slot in self.slots]
            columns += [values[:, None] for values in numbers.values()]
            logits = self.tower(torch.cat(columns, dim=1))
        own = self._logits(logits.reshape(-1).double())
        if self.schema.task != "count":
            return torch.sigmoid(own).float()
        means = torch.exp(own.clamp(max=LARGEST_LOGIT))
        if self.schema.exposure is not None:
            means = inputs[self.schema.exposure].double() * means
        return means.clamp(max=LARGEST_COUNT).float()

    def _pooled(self, slot: Slot, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A field's columns of the feature matrix, float32[B, dim]; padding reads nothing."""
        field, ids = slot.field, inputs[slot.field.name]
        present = ids >= 0
        table = self.tables[self.table_names.index(slot.table)]
        rows = torch.where(present[..., None], functional.embedding(ids.clamp(min=0), table), 0.0)
        if not field.is_bag:
            return rows
        if field.weights is not None:
            factors = torch.where(present, inputs[field.weights], 0.0)
            rows = rows * factors[..., None]
        pooled = rows.sum(dim=1)
        if field.pooling == "mean":
            pooled = pooled / present.sum(dim=1, keepdim=True).clamp(min=1)
        return pooled

    def _logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What `Output.logits` does, on tensors."""
        output = self.output
        moved = output.offset - math.log(output.positive_weight / output.negative_weight)
        own = logits + moved
        if output.calibration is not None:
            own = _calibrated(output.calibration, own)
        return own + math.log(output.negatives_kept)


def _number(numeric: Numeric, values: torch.Tensor) -> torch.Tensor:
    """A numeric column after its missing value, clip and transform, float32[B]."""
    raw = values.double()
    raw = torch.where(torch.isnan(raw), numeric.missing, raw)
    if numeric.clip is not None:
        raw = raw.clamp(*numeric.clip)
    if numeric.transform == "signed_log1p":
        raw = torch.sign(raw) * torch.log1p(torch.abs(raw))
    return raw.float()


def _calibrated(calibration: Calibration, logits: torch.Tensor) -> torch.Tensor:
    """What `apply` of a calibration does; piecewise lines as sums of clamps, which every format knows."""
    if isinstance(calibration, ScaleAndBias):
        return logits * calibration.scale + calibration.bias
    assert isinstance(calibration, Buckets)
    nodes, values = calibration.nodes, calibration.values
    inside = logits.clamp(nodes[0], nodes[-1])
    own = logits - inside + values[0]
    for k in range(len(nodes) - 1):
        slope = (values[k + 1] - values[k]) / (nodes[k + 1] - nodes[k])
        own = own + slope * (inside.clamp(nodes[k], nodes[k + 1]) - nodes[k])
    return own
