"""What the tests of runs share: a small run, and how to cut one off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dpads
from dpads.accounting.ledger import Ledger
from dpads.run_job import RunProgress

MODEL = dpads.models.Logistic()
PRIVACY = dpads.PrivacySpec(epsilon=3.0, dataset_size=3000)
SMALL: dict[str, Any] = {
    "model": MODEL,
    "privacy": PRIVACY,
    "expected_batch_size": 300,
    "epochs": 2,
}


def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in ledger.entries]


def stop_at(iteration: int) -> Callable[[RunProgress], None]:
    """A progress callback at which somebody presses Ctrl-C."""

    def stop(at: RunProgress) -> None:
        if at.stage == "training" and at.iteration >= iteration:
            raise KeyboardInterrupt

    return stop
