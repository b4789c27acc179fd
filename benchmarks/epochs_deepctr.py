"""The other side of epochs.py: one epoch of deepctr-torch's own training loop, in its own environment.

    python epochs_deepctr.py ARRAYS BATCH DIM HIDDEN...

Its Wide & Deep model without the wide part is the multi-layer perceptron of dpads. Its loss is a sum over
the batch, so that the learning rate is small.
"""

from __future__ import annotations

import json
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

WARM_BATCHES = 5


def model_of(rows: list[int], numbers: int, dim: int, hidden: tuple[int, ...]) -> Any:
    """The network, compiled with SGD and without penalties or metrics."""
    # Importing deepctr-torch asks a package index for its newest version; without `requests` it gives up.
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import WDL

    features: list[Any] = [
        SparseFeat(f"c{i}", count, embedding_dim=dim) for i, count in enumerate(rows)
    ]
    features += [DenseFeat(f"n{i}", 1) for i in range(numbers)]
    model = WDL(
        [], features, dnn_hidden_units=hidden, l2_reg_linear=0, l2_reg_embedding=0, init_std=0.05
    )
    model.compile(torch.optim.SGD(model.parameters(), lr=1e-6), "binary_crossentropy")
    return model


def main() -> None:
    """Trains on a few batches, then for one epoch, and prints its seconds."""
    path, batch, dim, *hidden = sys.argv[1], *map(int, sys.argv[2:])
    with np.load(path) as arrays:
        ids, dense, labels = arrays["ids"], arrays["dense"], arrays["labels"]
        rows = arrays["rows"].tolist()
    columns = {f"c{i}": ids[:, i] for i in range(ids.shape[1])}
    columns |= {f"n{i}": dense[:, i] for i in range(dense.shape[1])}
    model = model_of(rows, dense.shape[1], dim, tuple(hidden))
    few = {name: column[: WARM_BATCHES * batch] for name, column in columns.items()}
    model.fit(few, labels[: WARM_BATCHES * batch], batch_size=batch, epochs=1, verbose=0)
    begin = time.perf_counter()
    model.fit(columns, labels, batch_size=batch, epochs=1, verbose=0)
    seconds = time.perf_counter() - begin
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_gb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    packages = f"deepctr-torch {version('deepctr-torch')} on torch {version('torch')}"
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb, "packages": packages}))


if __name__ == "__main__":
    main()
