"""The selected run: its model from its slot, every file written anew."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.evaluation import evaluate_model, no_metrics
from dpads.plan import training_words
from dpads.private_selection_plan import Prepared
from dpads.private_selection_worker import FACTS
from dpads.record import load_model
from dpads.run import Run, note_evaluation
from dpads.run_job import declare_upstream, record_of
from dpads.training import Performance


def selected_run(
    prepared: Prepared, candidate: int, slot: Path, ledger: Ledger, performance: Performance
) -> Run:
    """The run of the selected candidate; its test metrics are the only look at the test rows.

    Args:
        prepared: the candidates.
        candidate: which one.
        slot: where its model is.
        ledger: of the selection; entries about the selected run are appended, each once.
        performance: what it was trained with.
    """
    config = prepared.candidates[candidate]
    plan = prepared.plans[candidate]
    model, facts = load_model(slot), files.read_json(slot / FACTS)
    declare_upstream(ledger, config)
    noted = {entry.kind for entry in ledger.entries}
    if "selected_training" not in noted:
        ledger.append(
            kind="selected_training",
            description=f"{training_words(plan)}: the run that was selected",
            rows="train",
            treatment="covered_by_accounting",
            details={"dp_event": plan.event()},
        )
    if "training_finished" not in noted:
        ledger.append(
            kind="training_finished",
            description=f"{facts['executed']} iterations ran",
            rows="train",
            treatment="covered_by_accounting",
            details={"executed": facts["executed"]},
        )
    rows = prepared.rows.all
    metrics = no_metrics(config.schema.task, "no test rows were given")
    if rows.test is not None:
        if "evaluation" not in noted:
            note_evaluation(ledger, rows.test_rows)
        metrics = evaluate_model(model, rows.test)
    record = record_of(
        config,
        rows,
        plan,
        model,
        performance,
        executed=facts["executed"],
        replayed=None,  # it would tell whether the selected one was the one that was interrupted
        reference=False,
    )
    return Run(
        model=model,
        plan=plan,
        record=record,
        config=config,
        ledger=ledger,
        metrics=metrics.to_dict(),
    )


def even_times(folder: Path) -> None:
    """Gives every file of a folder one time: differences would tell how long the work took."""
    now = time.time_ns()
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, ns=(now, now))
