"""The losses of the tasks, as torch and as the kernels take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dpads.batch import Targets
from dpads.kernels import feedforward
from dpads.kernels.feedforward import LARGEST_LOG_COUNT
from dpads.schema import Task

_NOTHING = np.empty(0, np.float32)


def example_losses(task: Task, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Per-example losses in the precision of the logits: logistic, or Poisson without log y!."""
    labels = torch.from_numpy(targets.labels).to(logits.dtype)
    logits = logits + targets.offset
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


def losses_of(targets: Targets, *, counts: bool) -> feedforward.Losses:
    """The losses' other operands, as the kernels take them."""
    return feedforward.Losses(
        counts,
        targets.labels,
        _NOTHING if targets.weights is None else targets.weights,
        _NOTHING if targets.exposure is None else targets.exposure,
        targets.offset,
    )
