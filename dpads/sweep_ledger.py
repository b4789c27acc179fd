"""The ledger that the trials of a sweep share, each in a process of its own."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpads.accounting.ledger import Ledger
from dpads.run_files import LEDGER

if TYPE_CHECKING:
    from dpads.plan import Plan

LOCK: Final = ".ledger.lock"


def read_ledger(folder: Path) -> Ledger:
    """The ledger of a sweep's folder, of which no line is half written; empty before the first trial.

    Raises:
        VerificationError: it was altered.
    """
    path = folder / LEDGER
    with locked(folder / LOCK):
        return Ledger.load(path) if path.exists() else Ledger()


def one_of(trials: int, asked: str, rows: str, what: str = "a sweep") -> list[dict[str, Any]]:
    """What the ledger of a trial's own run begins with: its statement is about one of many.

    Args:
        trials: how many share the rows; one alone has nothing to say, nor have those on made-up rows.
        asked: the digest of what was asked for.
        rows: what the training rows are: "private", "public" or "synthetic".
        what: they are trials of.

    Returns:
        Fields of ledger entries.
    """
    if trials < 2 or rows == "synthetic":
        return []
    return [
        {
            "kind": "trial",
            "description": f"This run is one of {trials} trials of {what} on the same rows; what they cost "
            f"together is on the ledger of {what.replace('a ', 'the ', 1)}",
            "rows": "train",
            "treatment": "not_covered" if rows == "private" else "public_data_only",
            "details": {"sweep": asked, "trials": trials},
        }
    ]


def announce_trial(
    ledger: Path, trial: str, plan: Plan, *, rows: str, test_rows: str, anew: bool
) -> None:
    """Puts a trial on the sweep's ledger: its training, and the exact read of its test rows.

    Args:
        ledger: the sweep's, shared by all workers under a lock.
        trial: its name.
        plan: what will run.
        rows: what the training rows are: "private", "public" or "synthetic".
        test_rows: what ledgers call the rows that metrics are computed on.
        anew: whether to charge it once more, if it is there already.
    """
    with locked(ledger.with_name(LOCK)):
        shared = Ledger.load(ledger) if ledger.exists() else Ledger(ledger)
        kinds = [e.kind for e in shared.entries if e.details.get("trial") == trial]
        public = rows != "private"
        outside = "public_data_only" if public else "not_covered"
        kind = "tuning" if plan.is_private else "reference"
        tries = kinds.count(kind) + int(anew or kind not in kinds)
        details: dict[str, Any] = {
            "trial": trial,
            "relation": str(plan.relation),
            "delta": plan.delta,
            "unit": plan.privacy.unit,
            "cap": plan.privacy.max_examples_per_unit,
        }
        if tries > 1:
            details["attempt"] = tries
        if tries > kinds.count(kind):
            shared.append(
                kind=kind,
                description=(
                    f"Trial {trial} of a sweep is trained"
                    if plan.is_private
                    else f"Trial {trial} of a sweep is trained without noise"
                ),
                rows="train",
                treatment="covered_by_accounting" if plan.is_private else outside,
                dp_event=plan.event() if plan.is_private else None,
                details=details,
            )
        if tries > kinds.count("evaluation"):
            shared.append(
                kind="evaluation",
                description=f"Exact metrics of trial {trial} of a sweep",
                rows=test_rows,
                treatment=outside,
                details={key: details[key] for key in ("trial", "attempt") if key in details},
            )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock; others wait for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
