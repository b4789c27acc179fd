"""What the processes of a run settle before and between iterations, beside the sums of its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.checkpoint import Checkpoint
from dpads.hosts import Hosts

# Parts of a run's identity that every process must have; threads and processors may differ.
SHARED = (
    "plan",
    "settings",
    "model",
    "schema",
    "store",
    "start",
    "physical_batch_size",
    "versions",
)


def shared_digest(identity: Mapping[str, Any], digest: str, hosts: Hosts) -> str:
    """The digest that all processes bind their keys to: that of process 0.

    Args:
        identity: of this process.
        digest: of it.
        hosts: of the run.

    Raises:
        ConfigError: the processes differ in what makes the numbers.
    """
    if hosts.count > 1:
        hosts.check_same({name: json.dumps(identity[name], sort_keys=True) for name in SHARED})
    return hosts.of_first(digest.encode()).decode()


def first_of(count: int, hosts: Hosts) -> tuple[int, int]:
    """The global number of this process' first unit, and how many units all processes have.

    Args:
        count: units of this process.
        hosts: of the run, in the order of their shards.
    """
    counts = hosts.gather(np.array([count], np.int64))[:, 0]
    return int(counts[: hosts.number].sum()), int(counts.sum())


def shared_checkpoint(checkpoint: Checkpoint | None, hosts: Hosts) -> Checkpoint:
    """The checkpoint that process 0 has read, in every process; None elsewhere."""
    if hosts.count == 1:
        assert checkpoint is not None
        return checkpoint
    forms = {}
    arrays: Mapping[str, NDArray[Any]] = {} if checkpoint is None else checkpoint.arrays
    for name, array in arrays.items():
        forms[name] = (array.dtype.str, array.shape)
    facts = {} if checkpoint is None else dict(checkpoint.facts)
    known = json.loads(hosts.of_first(json.dumps({"facts": facts, "arrays": forms}).encode()))
    found = {}
    for name, (kind, shape) in known["arrays"].items():
        data = hosts.of_first(b"" if checkpoint is None else arrays[name].tobytes())
        found[name] = np.frombuffer(data, np.dtype(kind)).reshape(shape)
    return Checkpoint(known["facts"], found)
