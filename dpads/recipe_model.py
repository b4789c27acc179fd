"""The model of a recipe: its best trial as a run of its own, under the recipe's ledger."""

from __future__ import annotations

from pathlib import Path

from dpads import run_files as files
from dpads.accounting.ledger import Ledger
from dpads.accounting.releases import KINDS as RELEASES
from dpads.errors import RunError
from dpads.plan import training_words
from dpads.recipe_budget import MODEL, STAGES, FilterFile
from dpads.run import Run
from dpads.run_job import declare_upstream
from dpads.sweep_folder import TRIALS


def chosen_run(folder: Path, stage: str, trial: str, ledger: Ledger) -> Run:
    """Makes a trial the recipe's model.

    Args:
        folder: of the recipe.
        stage: whose trial it is.
        trial: its name.
        ledger: of the recipe.

    Returns:
        The run; the one that is there already, if there is one.

    Raises:
        RunError: the trial was not taken out of the filter's total.
    """
    target = folder / MODEL
    if files.is_run(target):
        return Run.load(target)
    chosen = Run.load(folder / STAGES / stage / TRIALS / trial)
    event = chosen.plan.event()
    if event not in FilterFile(folder).spent:
        raise RunError(f"{chosen.path}: it was not taken out of the filter's total.")
    whole = Ledger()
    for entry in ledger.entries:
        whole.append(**entry.to_dict())
    declare_upstream(whole, chosen.config)
    whole.append(
        kind="selected_training",
        description=f"{training_words(chosen.plan)}: the run that was chosen",
        rows="train",
        treatment="covered_by_accounting",
        details={"dp_event": event},
    )
    own = chosen.ledger.entries
    # What comes before its training is what the recipe did until then, and is there already.
    begun = next(place for place, entry in enumerate(own) if entry.kind == "training")
    for entry in own[begun + 1 :]:
        if entry.kind not in RELEASES:  # inside of the run's event, which the filter covers
            whole.append(**entry.to_dict())
    run = Run(
        model=chosen.model,
        plan=chosen.plan,
        record=chosen.record,
        config=chosen.config,
        ledger=whole,
        metrics=chosen.metrics,
    )
    run.save(target)
    return run
