"""Group privacy: one event as it looks to a user who has several units, kept in a disk cache.

A group is wholly in one data set and wholly out of (or emptied in) the other, which is what a
guarantee for users compares. The price is a privacy loss distribution of a mixture, which takes
seconds to tens of seconds; its figures are kept in `$XDG_CACHE_HOME/dpads` (or `~/.cache/dpads`)
under the digest of everything that they follow from. They hold no private data. A digest detects
damage, not forgery: whoever checks a claim recomputes (`cached=False`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dpads.accounting import events
from dpads.accounting.accountant import PrivacyLoss, check_delta, check_relation, epsilon_of
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.events import EventTree
from dpads.accounting.relation import Relation
from dpads.errors import ConfigError, InputError

_CODE = (
    "accountant", "canonical", "event_forms", "events", "grid", "group", "mixtures", "pld",
    "precision", "relation", "renyi",
)  # fmt: skip
_BOUNDS = ("epsilon", "pld_epsilon", "rdp_epsilon")


def group_profile(
    event: EventTree,
    group_size: int,
    relation: Relation,
    deltas: Sequence[float],
    on_progress: Callable[[int, int], None] | None = None,
    cached: bool = True,
) -> tuple[PrivacyLoss, ...]:
    """What an event costs a group of units that is wholly in or wholly out, at several deltas.

    Args:
        event: An event of one unit.
        group_size: The most units of one group, at least 2: of one, `accountant.profile` tells.
        relation: The neighbouring relation, add-or-remove or zero-out, of the whole group.
        deltas: The deltas, each in (0, 1).
        on_progress: Called with the number of deltas done and of all, before each and at the end.
        cached: Whether figures of an earlier call may be read from disk; False recomputes.

    Returns:
        One loss per delta, largest delta first. Infinite where nothing is protected.

    Raises:
        ConfigError: A delta or the group size is out of range, or no bound is proved under this
            relation.
        InputError: The event holds a sampler for which no group bound is implemented, or is
            malformed.
    """
    group_size = _check_size(group_size)
    relation = Relation(relation)
    reason = refusal_of(event, group_size, relation)
    if reason is not None:
        raise InputError(reason) if relation is not Relation.REPLACE_ONE else ConfigError(reason)
    grouped = events.for_group(event, group_size)
    wanted = sorted({check_delta(delta) for delta in deltas}, reverse=True)
    losses = []
    for done, delta in enumerate(wanted):
        if on_progress is not None:
            on_progress(done, len(wanted))
        losses.append(_loss(grouped, group_size, delta, relation, cached=cached))
    if on_progress is not None:
        on_progress(len(wanted), len(wanted))
    return tuple(losses)


def refusal_of(event: EventTree, group_size: int, relation: Relation) -> str | None:
    """Why no bound can be stated for groups; None where one can.

    Raises:
        ConfigError: The sampler needs another relation.
        InputError: The event is malformed, or group_size is no whole number >= 1.
    """
    to_dp_event(event)
    events.for_group(events.NO_OP, group_size)
    check_relation(event, relation)
    if relation is Relation.REPLACE_ONE:
        return (
            "No group guarantee is stated under replace_one: it was proved for groups that are added "
            "or removed, or emptied (zero_out)."
        )
    try:
        events.for_group(event, group_size)
    except InputError as error:
        return str(error)
    return None


def _check_size(group_size: object) -> int:
    """The size of a group that is not a single unit."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 2:
        raise ConfigError(
            f"Expected group_size to be a whole number >= 2, got {group_size!r}. The guarantee of "
            "one unit is the event's own."
        )
    return group_size


def _loss(
    grouped: EventTree, group_size: int, delta: float, relation: Relation, *, cached: bool
) -> PrivacyLoss:
    """One loss, from the cache where it is there and sound."""
    key = digest([grouped, group_size, delta, str(relation), _versions()])
    file = _file(key)
    if cached and file is not None:
        loss = _read(file, key, delta, relation)
        if loss is not None:
            return loss
    loss = epsilon_of(grouped, delta, relation)
    if file is not None:
        _write(file, key, loss)
    return loss


def _file(key: str) -> Path | None:
    """The file of a key; None where there is no place for caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "dpads" / f"group-{key}.json"
    try:
        return Path.home() / ".cache" / "dpads" / f"group-{key}.json"
    except RuntimeError:  # no home directory
        return None


@lru_cache(maxsize=1)
def _versions() -> list[str]:
    """What figures follow from besides their arguments: the code and the libraries."""
    from importlib.metadata import version

    import numpy as np

    folder = Path(__file__).parent
    code = hashlib.sha256()
    for name in _CODE:
        code.update((folder / f"{name}.py").read_bytes())
    bits = str(np.finfo(np.longdouble).nmant)
    return [code.hexdigest(), bits, *(version(p) for p in ("dp-accounting", "numpy", "scipy"))]


def _read(file: Path, key: str, delta: float, relation: Relation) -> PrivacyLoss | None:
    """A loss from a cache file, or None where the file is missing, damaged or another's."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or set(data) != {"key", "loss", "sha256"}:
        return None
    loss = data["loss"]
    if not isinstance(loss, dict) or set(loss) != {"accountant", *_BOUNDS}:
        return None
    if data["key"] != key or data["sha256"] != _seal(key, loss):
        return None
    bounds = {name: _bound(loss[name]) for name in _BOUNDS}
    epsilon = bounds["epsilon"]
    if epsilon is None or epsilon not in (bounds["pld_epsilon"], bounds["rdp_epsilon"]):
        return None
    return PrivacyLoss(
        epsilon=epsilon,
        delta=delta,
        relation=relation,
        accountant=str(loss["accountant"]),
        pld_epsilon=bounds["pld_epsilon"],
        rdp_epsilon=bounds["rdp_epsilon"],
    )


def _write(file: Path, key: str, loss: PrivacyLoss) -> None:
    """Puts a loss where `_read` finds it, in one step; a cache that cannot be written is none."""
    content: dict[str, Any] = {"accountant": loss.accountant}
    for name in _BOUNDS:
        value = getattr(loss, name)
        content[name] = None if value is None else repr(value)
    data = {"key": key, "loss": content, "sha256": _seal(key, content)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".group-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(canonical_bytes(data))
        Path(name).replace(file)


def _seal(key: str, loss: object) -> str | None:
    """The digest that a file's content must have."""
    try:
        return digest([key, loss])
    except ValueError:  # infinities and NaN, which are never written as numbers
        return None


def _bound(text: object) -> float | None:
    """A bound from its text (JSON has no infinity); None where it is none."""
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    return value if value >= 0.0 else None
