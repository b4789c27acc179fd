"""The runs that one statement covers: one run, or several on the same rows, composed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from dpads.accounting import accountant, events
from dpads.accounting.compared import is_selection
from dpads.accounting.facts import ASKED_FOR
from dpads.accounting.group import refusal_of
from dpads.accounting.inputs import StatementInputs
from dpads.accounting.ledger import LedgerEntry
from dpads.accounting.relation import Relation
from dpads.errors import ConfigError

_MUST_AGREE: tuple[tuple[str, Callable[[StatementInputs], object]], ...] = (
    ("unit", lambda run: run.unit),
    ("neighbouring relation", lambda run: run.relation),
    ("cap of rows per user (max_examples_per_unit)", lambda run: run.cap),
)


@dataclass(frozen=True)
class Covered:
    """One access that the figures count.

    Attributes:
        id: Its name in the statement: E1, E2, ...
        run: The run's place.
        entry: The ledger's entry, with its event.
        count: How often it stands on the ledger in a row.
    """

    id: str
    run: int
    entry: LedgerEntry
    count: int


@dataclass(frozen=True)
class JointRuns:
    """The runs of a statement.

    Attributes:
        runs: One run, or several on the same training rows.

    Raises:
        ConfigError: No runs, or runs whose guarantees say nothing together; the message names the
            item that differs.

    Guarantees:
        - A run counts once however often it is named, and runs on other rows never count.
    """

    runs: tuple[StatementInputs, ...]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("Expected at least one run for a statement, got none.")
        for index, run in enumerate(self.runs):
            self._check_comparable(index, run)
            for before in range(index):
                self._check_another(before, index)
                self._check_selections(before, index)
        self._check_sizes()

    @property
    def first(self) -> StatementInputs:
        """The first run; what all runs agree on may be read off it."""
        return self.runs[0]

    @property
    def created_at(self) -> str:
        """When the statement was made."""
        return max(run.created_at for run in self.runs)

    @property
    def is_joint(self) -> bool:
        """Whether there are several runs."""
        return len(self.runs) > 1

    @property
    def compared(self) -> list[Covered]:
        """The tuning entries that the figures count."""
        return [item for item in self.entries if item.entry.kind == "tuning"]

    @property
    def counts_others(self) -> bool:
        """Whether the figures count more than one training run."""
        return self.is_joint or bool(self.compared)

    @property
    def hides_runs(self) -> bool:
        """Whether the figures count runs of which nothing may ever be shown."""
        return any(is_selection(item.entry) for item in self.compared)

    @property
    def unit(self) -> str:
        """What one unit of privacy is."""
        return self.first.unit

    @property
    def cap(self) -> int | None:
        """Rows kept of one user, where a cap is configured."""
        return self.first.cap

    @property
    def relation(self) -> Relation:
        """The neighbouring relation."""
        return self.first.relation

    @property
    def delta(self) -> float:
        """The delta of the guarantee: the smallest of the runs', which flatters none of them."""
        return min(run.delta for run in self.runs)

    @property
    def dataset_size(self) -> int | None:
        """The number of units that any run's plan was resolved with."""
        return next((r.dataset_size for r in self.runs if r.dataset_size is not None), None)

    @property
    def dataset_size_status(self) -> str:
        """How the count may be known: what the most open run says of it."""
        said = {run.dataset_size_status for run in self.runs}
        order = ("asserted_public", "public", "private")
        return next(status for status in order if status in said)

    @property
    def default_delta(self) -> float | None:
        """The largest delta at which a tier is named."""
        return None if self.dataset_size is None else accountant.default_delta(self.dataset_size)

    @property
    def user_column(self) -> str | None:
        """The column that tells users apart, where the schema names one."""
        return self.first.user_column

    @cached_property
    def entries(self) -> list[Covered]:
        """What is covered with an event, in the order of the ledgers."""
        found: list[Covered] = []
        for place, run in enumerate(self.runs):
            for entry in run.ledger:
                if entry.dp_event is None:
                    continue
                last = found[-1] if found else None
                if last is not None and (last.run, last.entry) == (place, entry):
                    found[-1] = replace(last, count=last.count + 1)
                else:
                    found.append(Covered(f"E{len(found) + 1}", place, entry, 1))
        return found

    def covering_id(self, place: int) -> str | None:
        """The name of the entry that covers a selected run; None where it has none, or was not."""
        covering = self.runs[place].covering
        same = (i.id for i in self.entries if (i.run, i.entry) == (place, covering))
        return None if covering is None else next(same, None)

    @cached_property
    def event(self) -> events.EventTree:
        """The events of everything that is covered: what is accounted."""
        covered = [e.dp_event for run in self.runs for e in run.ledger if e.dp_event is not None]
        return events.composed(covered)

    @property
    def is_accountable(self) -> bool:
        """Whether something is covered, under a relation that its samplers were proved for."""
        if self.event == events.NO_OP:
            return False
        try:
            accountant.check_relation(self.event, self.relation)
        except ConfigError:
            return False
        return True

    @property
    def group_size(self) -> int | None:
        """Rows of one user, where units are rows, users are capped and a group bound exists."""
        cap = self.cap
        if self.unit != "example" or cap is None or self.user_column is None:
            return None
        if not self.is_accountable or refusal_of(self.event, cap, self.relation) is not None:
            return None
        return cap

    @cached_property
    def loss(self) -> accountant.PrivacyLoss | None:
        """What everything that is covered costs; None where nothing bounds it."""
        if not self.is_accountable:
            return None
        loss = accountant.epsilon_of(self.event, self.delta, self.relation)
        return loss if math.isfinite(loss.epsilon) else None

    def name(self, place: int) -> str:
        """What a run is called among the others."""
        called = self.runs[place].run
        return f"run {place + 1}" if called is None else f'run {place + 1} ("{called}")'

    def said(self, key: str) -> str | None:
        """What people say under a key of [statement]; several answers stand side by side."""
        return self.together(getattr(run.human, key) for run in self.runs)

    @staticmethod
    def together(texts: Iterable[str | None]) -> str | None:
        """Different texts side by side, in the order in which they come; None where none is."""
        return "; ".join(dict.fromkeys(text for text in texts if text is not None)) or None

    def missing(self) -> list[dict[str, str]]:
        """What nobody said of at least one run."""
        keys = {key for run in self.runs for key in run.human.missing()}
        return [{"key": key, "asks_for": why} for key, why in ASKED_FOR.items() if key in keys]

    def _check_comparable(self, index: int, run: StatementInputs) -> None:
        """Refuses a run whose guarantee is about something else than the first run's."""
        for item, value in _MUST_AGREE:
            _agree(item, self.name(index), value(self.first), value(run))
        if run.train_fingerprint != self.first.train_fingerprint:
            raise ConfigError(
                f"Expected all runs on the same training rows, but those of {self.name(index)} are "
                f"others than those of {self.name(0)}: another store, even of the same logs, or another "
                "split_seed. Prepare the logs once (dpads prepare) and train every run from that store; of "
                "these, state each alone, and name the others under [statement] tuning."
            )

    def _check_selections(self, before: int, index: int) -> None:
        """Refuses two runs of one private selection, which shows one."""
        one, other = self.runs[before].covering, self.runs[index].covering
        if one is None or other is None or not (is_selection(one) and is_selection(other)):
            return
        names = (one.details.get("selection"), other.details.get("selection"))
        if names[0] == names[1] or None in names:
            raise ConfigError(
                f"Expected at most one run of a private selection, but {self.name(before)} and "
                f"{self.name(index)} come from one, or nothing says that they do not: its guarantee is that "
                "nothing but its best run is ever shown. State that run alone, or with runs that are "
                "not of the selection."
            )

    def _check_sizes(self) -> None:
        """Refuses two public numbers of the same units."""
        sizes = {run.dataset_size for run in self.runs if run.dataset_size is not None}
        if len(sizes) > 1:
            known = " and ".join(f"{size:,}" for size in sorted(sizes))
            raise ConfigError(
                f"Expected one public number of units for the same rows, got {known}: delta's default "
                "follows from it. Train with one privacy.dataset_size, or state each run alone."
            )

    def _check_another(self, before: int, index: int) -> None:
        """Refuses a run that is there twice, perhaps with more on its ledger since.

        Two runs of one configuration may have equal ledgers; their models never are equal.
        """
        if dict(self.runs[before].artifacts) == dict(self.runs[index].artifacts):
            raise ConfigError(
                f"Expected every run once, but {self.name(index)} is {self.name(before)} again: its "
                "files are the same. Name it once; of two copies, the one with the longer ledger."
            )


def _agree(item: str, name: str, first: object, other: object) -> None:
    """A `ConfigError` where a run differs from the first in what guarantees are about."""
    if first != other:
        raise ConfigError(
            f"Expected the same {item} in all runs, got {first} and, in {name}, {other}: guarantees "
            "that differ in it do not compose. State each run alone."
        )
