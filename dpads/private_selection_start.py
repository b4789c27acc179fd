"""How a private selection begins and goes on: what it was asked, on which rows, by which machine.

A candidate that was interrupted goes on to the bit or not at all. So whatever every candidate's numbers
depend on is kept when the selection begins, and compared before what is sealed is touched: a start that
cannot go on is refused, and costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dpads import run_files as files
from dpads.errors import CheckpointError, ConfigError, RunError
from dpads.kernels.workers import available_cores
from dpads.private_selection_worker import differences
from dpads.training import Performance

ASKED: Final = "asked.json"
IDENTITY: Final = "identity.json"


def settle(partial: Path, asked: Mapping[str, Any], performance: Performance) -> Performance:
    """Keeps what is asked, or checks that it is what the selection was begun with.

    Args:
        partial: the selection's folder.
        asked: plain data that must not change.
        performance: as asked; the number of threads need not be said again.

    Returns:
        The performance that every candidate is trained with, its number of threads explicit.

    Raises:
        ConfigError: something else is asked, or the machine has fewer cores than the selection needs.
        CheckpointError: what was asked is missing or damaged.
    """
    begun = (partial / files.LEDGER).exists()
    kept = _kept(partial / ASKED) if begun or (partial / ASKED).exists() else dict(asked)
    threads = performance.threads or (begun and kept.get("threads")) or available_cores()
    now = {**asked, "threads": threads}
    ignored = () if begun else ("threads",)  # nothing was trained with them
    changed = sorted(key for key in now if key not in ignored and now[key] != kept.get(key))
    if changed:
        raise ConfigError(
            f"{partial}: an interrupted selection was asked for something else: {', '.join(changed)} "
            "differ. Start it as it was started, or name another --out."
        )
    if threads > available_cores():
        raise ConfigError(
            f"{partial}: the selection was begun with {threads} threads, on which its numbers depend, and "
            f"this process may use {available_cores()} cores. {_remedy(partial)}"
        )
    if not begun:
        files.write_text(partial / ASKED, files.to_json(now))
    return dataclasses.replace(performance, threads=threads)


def check_identity(partial: Path, identity: Mapping[str, Any]) -> None:
    """Keeps what every candidate's numbers depend on, or checks that it has not changed.

    Args:
        partial: the selection's folder.
        identity: see `shared_identity`.

    Raises:
        CheckpointError: it changed, and the message says in what; or what was kept is missing or damaged.
    """
    path = partial / IDENTITY
    if not (partial / files.LEDGER).exists():
        files.write_text(path, files.to_json(identity))
        return
    different = differences(_kept(path), identity)
    if different:
        raise CheckpointError(
            f"{partial}: the selection cannot go on, because since it began this changed: {different}. The "
            f"noise that was drawn would protect other gradients. {_remedy(partial)}"
        )


def _kept(path: Path) -> dict[str, Any]:
    """What was kept when the selection began."""
    try:
        kept: dict[str, Any] = files.read_json(path)
    except RunError:
        raise CheckpointError(
            f"{path}: missing or damaged, so nobody can tell what was begun. Draw anew under another --out."
        ) from None
    return kept


def _remedy(partial: Path) -> str:
    """What to do where a selection cannot go on as things are."""
    return (
        "Restore that and start the same command again; nothing was lost. Or name another --out: that is "
        f"another selection, whose cost comes on top of what {partial / files.LEDGER} says."
    )
