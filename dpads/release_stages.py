"""What a trainer releases beside training: before the first batch, and after the last."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dpads.accounting.ledger import Ledger
from dpads.hosts import ALONE, Hosts
from dpads.models.base import Model
from dpads.noise import RunKeys
from dpads.plan import Plan
from dpads.prior import counted_offset, public_offset
from dpads.recalibration import recalibrated
from dpads.selection import Selection, noisy_selection
from dpads.store import ExampleStore
from dpads.training_settings import TrainingSettings
from dpads.training_start import StartModel


@dataclass(frozen=True)
class ReleaseStages:
    """The releases of one run.

    Attributes:
        plan: says which there are, and their noise.
        store: the training rows, capped.
        settings: of the training.
        keys: of the run.
        ledger: gets an entry for each, before its rows are read.
        start: what training starts from, where that is not made by init_seed.
        hosts: the run's processes; each reads the rows it has.
    """

    plan: Plan
    store: ExampleStore
    settings: TrainingSettings
    keys: RunKeys
    ledger: Ledger
    start: StartModel | None = None
    hosts: Hosts = ALONE

    def begin(self, model: Model, known: Selection | None) -> Selection | None:
        """Sets the offset of a model's output and selects rows; a run that goes on gets the same to the bit.

        Args:
            model: as training starts.
            known: the selection that a checkpoint kept.

        Returns:
            The rows that are trained; None where all are.
        """
        if self.start is None:
            self._set_offset(model)
        release = self.plan.release("selection")
        if release is None or known is not None:
            return known
        found = noisy_selection(
            release,
            self.store,
            self.plan.privacy,
            self.settings.selection.threshold,
            self.keys,
            self.ledger,
            self.hosts,
            beside_earlier=self.start is not None,
        )
        # What an earlier run has learnt is not thrown away because its rows are rare today.
        return found if self.start is None else found.with_rows(self.start.rows_in_use(model))

    def _set_offset(self, model: Model) -> None:
        """The offset that the prior names or counts."""
        settings = self.settings
        offset = public_offset(settings.prior, self.store.schema, model.output)
        counted = self.plan.release("dp_count")
        if counted is not None:
            offset = counted_offset(
                counted,
                self.store,
                self.plan.privacy,
                settings.recalibration,
                model.output,
                self.keys,
                self.ledger,
                self.hosts,
            )
        model.output = dataclasses.replace(model.output, offset=offset)

    def finish(self, model: Model) -> None:
        """Fits the calibration of a finished model, where the plan has a release for it.

        The noise is bound to the sums that it hides: what is cut off and made again gives the same
        calibration, or one whose noise has nothing in common with the first one's.
        """
        release = self.plan.release("recalibration")
        if release is None:
            return
        calibration = recalibrated(
            release,
            model,
            self.store,
            self.plan.privacy,
            self.settings.recalibration,
            self.keys,
            self.ledger,
            self.hosts,
        )
        model.output = dataclasses.replace(model.output, calibration=calibration)
