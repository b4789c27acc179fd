"""Every built-in model, small: a new one is one line here."""

from __future__ import annotations

from functools import cache
from typing import Any

from brute_force import schema_of

import dpads

MODELS = [
    dpads.models.Logistic(),
    dpads.models.Mlp(embedding_dim=3, hidden=(5, 4)),
    dpads.models.Mlp(embedding_dim=3, hidden=(5,), wide=True),
    dpads.models.Fm(embedding_dim=3),
    dpads.models.DeepFm(embedding_dim=3, hidden=(5, 4)),
    dpads.models.Dcn(embedding_dim="auto", cross_layers=2, hidden=(5,)),
    dpads.models.Dcn(embedding_dim=2, cross_layers=1, hidden=(), wide=True),
    dpads.models.Dlrm(embedding_dim=3, bottom=(4,), top=(5,)),
    dpads.models.Dlrm(embedding_dim=2, bottom=(), top=(), wide=True),
]
TASKS = ["ctr", "cvr", "count"]


@cache
def model_of(description: Any, task: str = "ctr", numeric: int = 2) -> Any:
    """A model over `schema_of`, made once: tests set all parameters themselves, by `perturb`."""
    return description.init(schema_of(task, numeric=numeric), seed=0)
