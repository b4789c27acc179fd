"""The files of a run's folder: their names, and how they are written and read.

    RUN/
      run.json            this record
      model.safetensors   the parameters          } with the --public statement, what may be released;
      model.json          what they belong to     } everything else in the folder is internal
      ledger.jsonl        every access to private rows, hash-chained
      metrics.json        test metrics: exact reads of the test rows
      statement.json      what is guaranteed, for machines
      statement.md        what is guaranteed, for people
      config.toml         how to run it again

Nothing is pickled; the folder has mode 0700. A run that has not finished is in RUN.partial, with
checkpoints/, which is secret, prepared/, which holds stores of logs, and config.toml from the start.
run.json is written last: with it, the run is whole and only has to be renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from dpads.errors import ConfigError, RunError
from dpads.preparing import missing_parents, remove_empty
from dpads.tensor_files import Buffer

RUN: Final = "run.json"
PARAMETERS: Final = "model.safetensors"
MODEL: Final = "model.json"
LEDGER: Final = "ledger.jsonl"
METRICS: Final = "metrics.json"
STATEMENT_JSON: Final = "statement.json"
STATEMENT_MD: Final = "statement.md"
CONFIG: Final = "config.toml"
CHECKPOINTS: Final = "checkpoints"
# Only while the run is partial: the reference's metrics, and the stores of logs.
REFERENCE: Final = "reference.json"
PREPARED: Final = "prepared"


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole: a reader sees the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, *parts: Buffer) -> None:
    """Replaces a file as a whole by the parts, one after another; a disk that fills leaves the old one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def to_json(data: Any) -> str:
    """Readable JSON; NaN and infinity are refused."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing. The folder is no whole run.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise RunError(f"{path}: damaged. Restore it from a copy.") from None


def sha256(*parts: Buffer) -> str:
    """SHA-256 of the parts, one after another, in hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def hint_of(path: Path) -> str:
    """Which run to name in place of a folder that holds several; empty where nobody can tell."""
    if (path / "recipe.json").is_file():
        return f" It is a recipe: name its run, {path / 'model'}."
    if (path / "sweep.toml").is_file():
        return (
            f" It is a sweep: name one of its runs, such as {path / 'trials' / '0001'}, or make its winner "
            "a run of its own with dpads select."
        )
    return ""


def is_run(path: Path) -> bool:
    """Whether a folder is a whole run."""
    return (path / RUN).is_file()


def partial_of(out: Path) -> Path:
    """Where a run stays until it is whole."""
    return out.with_name(out.name + ".partial")


def start_partial(out: Path) -> tuple[Path, list[Path]]:
    """Makes the folder where a run stays until it is whole.

    Returns:
        The folder, and the parents that had to be made, for `drop_partial`.

    Raises:
        ConfigError: `out` exists, or an interrupted run is beside it.
        InputError: `out` is to be in what is not a folder.
    """
    check_free(out)
    made = missing_parents(out)
    partial = partial_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir(mode=0o700)
    except FileExistsError:
        raise _is_interrupted(partial) from None
    return partial, made


def drop_partial(partial: Path, made: Sequence[Path]) -> None:
    """Removes a run that did not get far enough to be worth keeping, and parents made for it."""
    shutil.rmtree(partial)
    remove_empty(made)


def finish_partial(partial: Path, out: Path) -> None:
    """Gives a whole run its name, once everything that only the partial run needs is gone."""
    (partial / REFERENCE).unlink(missing_ok=True)
    for name in (PREPARED, CHECKPOINTS):
        if (partial / name).exists():
            shutil.rmtree(partial / name)
    partial.rename(out)


def check_free(out: Path) -> None:
    """Refuses a folder that a new run cannot have.

    Raises:
        ConfigError: it exists, or an interrupted run is beside it.
    """
    refuse_existing(out)
    if partial_of(out).exists():
        raise _is_interrupted(partial_of(out))


def _is_interrupted(partial: Path) -> ConfigError:
    """Says what to do with what an interrupted run left."""
    return ConfigError(
        f"{partial}: an interrupted run is here. Go on with it (--resume), or move it away."
    )


def refuse_existing(out: Path) -> None:
    """Nothing that exists is overwritten.

    Raises:
        ConfigError: it exists.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: exists already. Name another folder, or move it away.")


def new_file(path: Path, *, suffix: str = "") -> None:
    """Checks, before anything long begins, that a file can be written.

    Raises:
        ConfigError: the file exists, its folder does not, or its name ends otherwise.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already. Name another file, or move it away.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder. Make it first.")
    if suffix and path.suffix != suffix:
        raise ConfigError(f"{path}: expected a name that ends with {suffix}.")
