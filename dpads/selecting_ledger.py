"""What a sweep's winner owes to the other trials: entries for its ledger, from those of all trials.

Costs add up where trials do not depend on one another's results. A sweep's file fixes all of its trials,
so all private ones are charged: whoever looks at results and stops early saves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dpads import run_files as files
from dpads.accounting.canonical import canonical_bytes
from dpads.accounting.events import EventTree, composed
from dpads.accounting.ledger import Ledger, LedgerEntry
from dpads.accounting.releases import KINDS as RELEASES
from dpads.errors import ConfigError, InputError, RunError
from dpads.run_data import resolve_plan
from dpads.sweep_folder import SWEEP_TOML

if TYPE_CHECKING:
    from dpads.run import Run
    from dpads.sweep_config import Trial
    from dpads.sweeping import Sweep

_OWN_TRAINING: Final = ("trial", "training", "training_finished", *RELEASES)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training with noise that a sweep made, or may still make.

    Attributes:
        trial: whose it is.
        event: what it costs.
        relation: between neighbours.
        began: whether it was announced; else the sweep's file plans it.
        anew: whether it repeats one that was lost.
    """

    trial: str
    event: EventTree
    relation: str
    began: bool = True
    anew: bool = False


def check_comparable(sweep: Sweep) -> None:
    """Refuses a sweep whose private trials' guarantees do not add up to one.

    Raises:
        ConfigError: they differ in unit, cap or public number of units.
    """
    specs = [trial.config.privacy for trial in sweep.trials if not trial.reference]
    _same("privacy.unit", [spec.unit for spec in specs])
    _same("privacy.max_examples_per_unit", [spec.max_examples_per_unit for spec in specs])
    _same("privacy.dataset_size", [spec.dataset_size for spec in specs])


def trainings_of(sweep: Sweep, units: int | None) -> list[Training]:
    """Every training with noise that a sweep announced, and every one that its file plans besides.

    Args:
        sweep: the sweep.
        units: the number of units that the winner's plan was resolved with.

    Raises:
        ConfigError: they differ in the neighbouring relation, or nobody can tell what one that never
            began would cost.

    Guarantees:
        - Each private trial of the file is among them, whether it ran or not.
    """
    found = [
        Training(
            trial=str(entry.details["trial"]),
            event=entry.dp_event,
            relation=str(entry.details["relation"]),
            anew=entry.details.get("attempt", 1) > 1,
        )
        for entry in sweep.ledger.entries
        if entry.kind == "tuning" and entry.dp_event is not None
    ]
    began = {training.trial for training in found}
    rest = [t for t in sweep.trials if not t.reference and t.name not in began]
    found += [_planned(trial, units) for trial in rest]
    _same("the neighbouring relation", [training.relation for training in found])
    return found


def _planned(trial: Trial, units: int | None) -> Training:
    """What a trial that never began costs when it runs."""
    config = trial.config
    try:
        plan = resolve_plan(config, config.privacy, config.l2_clip_norm, units)
    except InputError as error:
        raise ConfigError(
            f"Trial {trial.name} never began, and what it costs cannot be told: {error} Start the sweep "
            "again to run it."
        ) from None
    return Training(trial=trial.name, event=plan.event(), relation=str(plan.relation), began=False)


def _same(key: str, values: Sequence[object]) -> None:
    """A `ConfigError` where trials differ in what a guarantee is about."""
    if len(set(values)) > 1:
        known = " and ".join(sorted({str(value) for value in values}))
        raise ConfigError(
            f"Expected private trials that share {key}, got {known}: what they cost does not add up to one "
            "guarantee. Run a sweep for each."
        )


def check_winner(winner: Run, trial: Trial, trainings: Sequence[Training]) -> None:
    """Refuses a folder that is not the trial's that was announced.

    Raises:
        RunError: its ledger holds another training than the sweep's.
    """
    announced = [t.event for t in trainings if t.trial == trial.name and t.began]
    own = [e.dp_event for e in winner.ledger.entries if e.kind in ("training", *RELEASES)]
    if not announced or composed([e for e in own if e is not None]) != announced[-1]:
        raise RunError(
            f"{winner.path}: its ledger holds another training than the sweep announced for trial "
            f"{trial.name}: a folder was exchanged. Nothing is selected; restore the trial's own."
        )


def others_charged(
    sweep: Sweep, winner: Trial, trainings: Sequence[Training]
) -> list[dict[str, Any]]:
    """Ledger entries of what the other trainings cost."""
    # The last try is the one that the winner's own ledger has; earlier ones were lost, and charged.
    own = [training for training in trainings if training.trial == winner.name][-1]
    retrained = sum(training.anew for training in trainings)
    details: dict[str, Any] = {
        # The sweep's file fixed every mechanism in advance: that is why costs may be added up.
        "sweep": files.sha256((sweep.path / SWEEP_TOML).read_bytes()),
        "trials": sum(not trial.reference for trial in sweep.trials),
        **({"retrained": retrained} if retrained else {}),
    }
    splits = {trial.name: trial.config.split_seed for trial in sweep.trials}
    anew = ", one that was made anew after a loss among them" if retrained == 1 else ""
    if retrained > 1:
        anew = f", {retrained} that were made anew after a loss among them"
    entries = [
        {
            "kind": "tuning",
            "description": f"Another trial of the sweep was trained{anew}"
            if training.began
            else "Another trial of the sweep, which had not begun: its file plans it",
            "rows": "train" if splits[training.trial] == splits[winner.name] else "train_and_test",
            "treatment": "covered_by_accounting",
            "dp_event": training.event,
            "details": details,
        }
        for training in trainings
        if training is not own
    ]
    # Equal ones side by side are listed as one.
    key = "rows", "description"
    return sorted(entries, key=lambda e: (*(e[k] for k in key), canonical_bytes(e["dp_event"])))


def own_entries(winner: Run, compared: bool) -> Iterator[dict[str, Any]]:
    """The winner's own entries; metrics that were read again may have chosen it among the others."""
    evaluated = False
    for entry in winner.ledger.entries:
        fields = entry.to_dict()
        if entry.kind == "trial":  # the others are charged here
            continue
        if entry.kind == "evaluation":
            if evaluated and compared:
                fields["details"] = {**entry.details, "chose_configuration": True}
            evaluated = True
        yield fields


def looks_at_others(sweep: Sweep, winner: Run, trial: Trial) -> Iterator[dict[str, Any]]:
    """What stands on the ledgers of other trials beyond what the sweep announced of them.

    Raises:
        VerificationError: one of these ledgers was altered, or is torn.
    """
    declared = {e.description for e in winner.ledger.entries if e.kind == "upstream"}
    for other in sweep.trials:
        folder = sweep.folder_of(other.name)
        tries = [folder, *sorted(folder.parent.glob(f"{other.name}.*/"))]
        for place in tries:
            if place == sweep.folder_of(trial.name) or not (place / files.LEDGER).is_file():
                continue
            for entry in _further(Ledger.load(place / files.LEDGER).entries):
                if entry.kind == "upstream" and entry.description in declared:
                    continue
                declared |= {entry.description} if entry.kind == "upstream" else set()
                yield _of_another(entry)


def _further(entries: Sequence[LedgerEntry]) -> Iterator[LedgerEntry]:
    """A trial's entries but its training and its first evaluation, which the sweep's ledger has."""
    evaluated = False
    for entry in entries:
        if entry.kind in _OWN_TRAINING:
            continue
        if entry.kind == "evaluation" and not evaluated:
            evaluated = True
            continue
        yield entry


def _of_another(entry: LedgerEntry) -> dict[str, Any]:
    """An entry of another trial as one of the winner's."""
    fields = entry.to_dict()
    if entry.kind != "upstream":
        fields["description"] = f"Another trial of the sweep: {entry.description}"
    if entry.kind == "evaluation":
        fields["details"] = {**entry.details, "chose_configuration": True}
    return fields
