"""The Renyi filter of a recipe on disk: what is spent is written down before it is, and for which folder.

The tuning entry on the recipe's ledger is the one charge of the recipe. Folders that its trials were spent
for have an identity, so that none of them is lost without notice: a model that was lost is spent all the
same, and training it again would be another one under the same charge.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dpads.accounting.events import EventTree
from dpads.accounting.filters import RenyiFilter
from dpads.accounting.ledger import Ledger
from dpads.accounting.relation import Relation
from dpads.errors import CheckpointError, DpadsError, RunError
from dpads.run_files import LEDGER, is_run, partial_of, read_json, to_json, write_text
from dpads.sweep_folder import LOCK, TRIALS
from dpads.sweep_trial import read_outcome

FILTER: Final = "filter.json"
MARKER: Final = ".recipe"
STAGES: Final = "stages"
MODEL: Final = "model"

_ANEW: Final = (
    "Begin anew under another --out, which is a charge of its own; what ran here is spent all the same, and "
    "belongs to it."
)


class FilterFile:
    """A filter whose spending survives a crash.

    Args:
        folder: of the recipe.

    Raises:
        CheckpointError: its file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILTER
        try:
            facts = read_json(self._path)
            self._budget = RenyiFilter(
                order=facts["order"], rdp=facts["rdp"], relation=Relation(facts["relation"])
            )
            self._spent: list[dict[str, Any]] = []
            for item in facts["spent"]:
                self._budget.spend(item["dp_event"])
                self._spent.append({key: item[key] for key in ("trial", "dp_event", "folder")})
        except (RunError, LookupError, TypeError, ValueError):
            raise CheckpointError(
                f"{self._path}: missing or damaged, so nobody can tell what is spent. {_ANEW}"
            ) from None

    @classmethod
    def create(cls, folder: Path, budget: RenyiFilter) -> FilterFile:
        """Writes a filter of which nothing is spent."""
        facts = {
            "order": budget.order,
            "rdp": budget.rdp,
            "relation": str(budget.relation),
            "spent": [],
        }
        write_text(folder / FILTER, to_json(facts))
        return cls(folder)

    @property
    def spent(self) -> Sequence[EventTree]:
        """The events that were spent, in order."""
        return [item["dp_event"] for item in self._spent]

    @property
    def folders(self) -> dict[str, str]:
        """The identities of the stages' folders that trials were spent for."""
        return {item["trial"].partition("/")[0]: item["folder"] for item in self._spent}

    def event(self) -> EventTree:
        """The fixed total."""
        return self._budget.event()

    def spend(self, name: str, event: EventTree, folder: str) -> None:
        """Takes a run out of the total, durably, once for each name.

        Args:
            name: STAGE/NUMBER.
            event: of the run.
            folder: the identity of the folder that it is spent for.

        Raises:
            BudgetError: it does not fit; nothing was spent.
            RunError: the name was spent for another event or folder.
        """
        own = {"trial": name, "dp_event": event, "folder": folder}
        for item in self._spent:
            if item["trial"] == name:
                if item != own:
                    raise RunError(
                        f"{self._path}: {name} was spent for another mechanism or folder. {_ANEW}"
                    )
                return
        self._budget.spend(event)
        self._spent.append(own)
        budget = self._budget
        facts = {"order": budget.order, "rdp": budget.rdp, "relation": str(budget.relation)}
        write_text(self._path, to_json({**facts, "spent": self._spent}))


def check_kept(folder: Path, ledger: Ledger, *, is_settled: bool) -> None:
    """Refuses a recipe of which something is lost that privacy was spent for.

    Args:
        folder: of the recipe.
        ledger: of the recipe.
        is_settled: whether recipe.json has the stage that fixes the noise.

    Raises:
        CheckpointError: it is lost, or ledger and filter disagree.
    """
    charged = [entry.dp_event for entry in ledger.entries if entry.kind == "tuning"]
    path = folder / FILTER
    if path.exists() or charged or is_settled:
        budget = FilterFile(folder)
        # The filter is written first: only one of which nothing is spent may lack its charge.
        if charged != [budget.event()] and (charged or budget.spent or is_settled):
            raise CheckpointError(
                f"{folder}: the ledger and the filter disagree about the total. Go on with the version "
                f"of dpads that began it, or: {_ANEW}"
            )
        for name, identity in budget.folders.items():
            _check_stage(folder / STAGES / name, identity)
    model = folder / MODEL
    if is_run(model):
        count = len(ledger.entries)
        if not charged or Ledger.load(model / LEDGER).entries[:count] != ledger.entries:
            raise CheckpointError(
                f"{model}: it was charged on another ledger than {LEDGER}. {_ANEW}"
            )


def stage_folder(folder: Path, name: str, trials: int, rows: str) -> str:
    """The folder of a stage's sweep, with a ledger of its own, made where there is none.

    Args:
        folder: of the recipe.
        name: of the stage.
        trials: how many it has.
        rows: what they train on: "private", "public" or "synthetic".

    Returns:
        Its identity.

    Raises:
        CheckpointError: there is one of something else.
    """
    stage = folder / STAGES / name
    if stage.exists():
        return _identity(stage)
    identity = secrets.token_hex(16)
    aside = stage.with_name(f".{name}")
    if aside.exists():
        shutil.rmtree(aside)  # an earlier start was cut off before it gave it its name
    aside.mkdir(mode=0o700, parents=True)
    (aside / LOCK).touch(0o600)
    write_text(aside / MARKER, identity + "\n")
    Ledger(aside / LEDGER).append(
        kind="trial",
        description="This sweep is a stage of a recipe; what its trials may cost is on the recipe's ledger",
        rows="train",
        treatment="not_covered" if rows == "private" else "public_data_only",
        details={"recipe": identity, "trials": trials},
    )
    aside.rename(stage)
    return identity


def check_unspent(stage: Path) -> None:
    """Refuses a stage's folder whose trials ran though nothing was spent for it."""
    if any(entry.kind == "tuning" for entry in Ledger.load(stage / LEDGER).entries):
        raise CheckpointError(f"{stage}: trials ran here that {FILTER} does not know. {_ANEW}")


def _check_stage(stage: Path, identity: str) -> None:
    """Refuses a stage's folder that is not the one that was spent for, or lacks a trial that ran."""
    if not stage.exists() or _identity(stage) != identity:
        raise CheckpointError(
            f"{stage}: missing or another one, although its trials are spent. Training them again would "
            f"be other models under the same charge. {_ANEW}"
        )
    for entry in Ledger.load(stage / LEDGER).entries:
        if entry.kind != "tuning":
            continue
        run = stage / TRIALS / entry.details["trial"]
        outcome = read_outcome(run)
        never_began = outcome is not None and not outcome.began
        # What a run's ledger begins with is there before the trial is on this one.
        if not (run.exists() or (partial_of(run) / LEDGER).exists() or never_began):
            raise CheckpointError(
                f"{run}: missing, although it was trained. Its privacy is spent and its model lost. {_ANEW}"
            )


def _identity(stage: Path) -> str:
    """What a stage's marker and its ledger both say.

    Raises:
        CheckpointError: they do not.
    """
    try:
        marker = (stage / MARKER).read_text(encoding="utf-8").strip()
        entry = Ledger.load(stage / LEDGER).entries[0]
        if entry.details["recipe"] == marker:
            return marker
    except (OSError, LookupError, DpadsError):
        pass
    raise CheckpointError(f"{stage}: its ledger or its marker is missing or damaged. {_ANEW}")
