"""What the processes of a run settle before and between iterations, beside the sums of its steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpads.checkpoint import Checkpoint
from dpads.errors import ConfigError, RunError, StoreError
from dpads.hosts import Hosts
from dpads.models.base import Model
from dpads.store import ExampleStore
from dpads.store_shards import first_straddling

# Parts of a run's identity that every process must have: all but the threads of what is done on the host. The
# tower is moved on every device, so that other processors or flags would move it otherwise in the last bits.
SHARED = (
    "plan", "settings", "model", "schema", "store", "start", "physical_batch_size", "versions", "processor",
    "jax", "torch", "environment", "sums",
)  # fmt: skip


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


def check_part(store: ExampleStore, hosts: Hosts) -> None:
    """Checks that every process has its own shards, and that no user has rows in two processes.

    Args:
        store: the training rows of this process.
        hosts: of the run.

    Raises:
        StoreError: the store is another process' part, or a user straddles.
    """
    if store.part != (hosts.number, hosts.count):
        raise StoreError(
            f"{store.path}: expected the shards of process {hosts.number} of {hosts.count}, got part "
            f"{store.part}. Open them: ExampleStore.open(path, part=({hosts.number}, {hosts.count}))."
        )
    border = store.border_users()
    own = np.zeros((2, 2), np.uint64) if border is None else np.stack(border)
    present = hosts.gather(np.array([border is not None]))[:, 0]
    borders = [
        (first, last) if there else None
        for (first, last), there in zip(hosts.gather(own), present, strict=True)
    ]
    straddling = first_straddling(borders)
    if straddling is not None:
        raise StoreError(
            f"{store.path}: a user's rows are in the shards of process {straddling} and of one before it: "
            "nobody would clip them together. Cut one store into shards: dpads prepare --shards."
        )


def own_label(hosts: Hosts) -> tuple[str, ...]:
    """What tells the random words of a process' own from those of the others; nothing for process 0.

    Units are put into groups by their places in a process' batch. Were the words the same everywhere, a unit
    more in one process could not be seen as the same units in the same groups elsewhere.
    """
    return () if hosts.is_first else (str(hosts.number),)


def first_of(count: int, hosts: Hosts) -> tuple[int, int]:
    """The global number of this process' first unit, and how many units all processes have.

    Args:
        count: units of this process.
        hosts: of the run, in the order of their shards.
    """
    counts = hosts.gather(np.array([count], np.int64))[:, 0]
    return int(counts[: hosts.number].sum()), int(counts.sum())


def check_one_model(model: Model, hosts: Hosts) -> None:
    """Checks that every process ends with the same model, to the bit.

    Raises:
        RunError: they differ: something that all must share, such as the key of the noise, was not shared.
    """
    if hosts.count == 1:
        return
    whole = hashlib.sha256()
    for name, value in sorted(model.state().items()):
        whole.update(name.encode() + np.ascontiguousarray(value).tobytes())
    try:
        hosts.check_same({"model": whole.hexdigest()})
    except ConfigError:
        raise RunError(
            "The processes ended with different models: this run is worth nothing. They compute the tower "
            "each for itself and must get the same bits: start them on machines of one kind."
        ) from None


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
