"""What training puts on the ledger: its most iterations before it begins, how many ran after it."""

from __future__ import annotations

from dpads.accounting.ledger import Ledger
from dpads.accounting.mechanism import DpSgdConfig
from dpads.sampling import Sampler


def open_training(ledger: Ledger, mechanism: DpSgdConfig, sampler: Sampler) -> None:
    """Puts the most iterations there may be on the ledger, unless a run that was cut off has done so."""
    if mechanism.iterations == 0 or any(entry.kind == "training" for entry in ledger.entries):
        return
    private = mechanism.noise_multiplier > 0
    ledger.append(
        kind="training",
        description=f"{mechanism.iterations} iterations of DP-SGD over tower and tables",
        rows="train",
        treatment="covered_by_accounting" if private else "not_covered",
        dp_event=sampler.event(mechanism.noise_multiplier) if private else None,
    )


def close_training(ledger: Ledger, mechanism: DpSgdConfig, executed: int, replayed: int) -> None:
    """Notes how many iterations ran, unless a run that was cut off has noted it already."""
    if any(entry.kind == "training_finished" for entry in ledger.entries):
        return
    private = mechanism.noise_multiplier > 0
    ledger.append(
        kind="training_finished",
        description=f"{executed} iterations ran, {replayed} ran again after a crash",
        rows="train",
        treatment="covered_by_accounting" if private else "not_covered",
        details={"executed": executed, "replayed": replayed},
    )
