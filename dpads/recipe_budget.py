"""The Renyi filter of a recipe on disk: what is spent is written down before it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from dpads.accounting.events import EventTree
from dpads.accounting.filters import RenyiFilter
from dpads.accounting.relation import Relation
from dpads.errors import CheckpointError, RunError
from dpads.record import read_json, to_json, write_text

FILTER: Final = "filter.json"


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
                self._spent.append(item)
        except (RunError, LookupError, TypeError, ValueError):
            raise CheckpointError(
                f"{self._path}: missing or damaged, so nobody can tell what is spent. Begin anew under "
                "another --out; what ran so far is spent too."
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

    def event(self) -> EventTree:
        """The fixed total."""
        return self._budget.event()

    def spend(self, name: str, event: EventTree) -> None:
        """Takes a run out of the total, durably, once for each name.

        Raises:
            BudgetError: it does not fit; nothing was spent.
            RunError: the name was spent for another event.
        """
        for item in self._spent:
            if item["trial"] == name:
                if item["dp_event"] != event:
                    raise RunError(f"{self._path}: {name} was spent for another mechanism.")
                return
        self._budget.spend(event)
        self._spent.append({"trial": name, "dp_event": event})
        budget = self._budget
        facts = {"order": budget.order, "rdp": budget.rdp, "relation": str(budget.relation)}
        write_text(self._path, to_json({**facts, "spent": self._spent}))
