"""The folder of a sweep: made once, of one sweep alone, used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from dpads.errors import ConfigError, RunError
from dpads.preparing import missing_parents
from dpads.run_files import write_text
from dpads.sweep_config import SweepConfig

SWEEP: Final = "sweep.json"
SWEEP_TOML: Final = "sweep.toml"
TRIALS: Final = "trials"
STORE: Final = "store"
LOCK: Final = ".lock"


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Makes a sweep's folder where there is none, and holds it.

    Raises:
        ConfigError: it is a folder of something else, or no folder.
        RunError: another process runs the sweep.
    """
    missing_parents(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder, found a file. Name another folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise ConfigError(f"{folder}: exists already, and is no sweep. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder}: another process runs this sweep. Wait for it, or end it and start again."
            ) from None
        yield
    finally:
        os.close(descriptor)


def claim_folder(folder: Path, config: SweepConfig) -> None:
    """Writes down what was asked, or checks that the folder is of the same sweep; tidies up after a crash.

    Raises:
        ConfigError: the folder is of another sweep; the message names what differs.
    """
    kept = folder / SWEEP_TOML
    if kept.exists():
        differing = differing_keys(kept.read_text(encoding="utf-8"), config)
        if differing:
            raise ConfigError(
                f"{folder}: here is another sweep: {', '.join(differing)} differ. Name another --out, or "
                f"start the one in its {SWEEP_TOML}."
            )
    else:
        write_text(kept, config.to_toml())
    for left in (folder / STORE).glob("*.partial-*"):
        shutil.rmtree(left)
    (folder / TRIALS).mkdir(mode=0o700, exist_ok=True)


def differing_keys(kept: str, config: SweepConfig) -> list[str]:
    """The dotted keys in which a kept sweep differs from another."""
    first, second = _flat(tomllib.loads(kept)), _flat(tomllib.loads(config.to_toml()))
    return sorted(key for key in first | second if first.get(key) != second.get(key))


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of all tables, dotted."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
