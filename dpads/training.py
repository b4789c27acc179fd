"""The private training loop: a state machine whose states are whole iterations."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpads.accounting.ledger import Ledger
from dpads.backend import Mechanics, backend_of
from dpads.checkpoint import Checkpoint, CheckpointFolder
from dpads.drawing import BatchSource
from dpads.errors import CheckpointError, ConfigError, RunError
from dpads.hosts import hosts_of
from dpads.kernels.keys import fresh_master_key
from dpads.kernels.workers import set_threads
from dpads.models.base import Description, Model
from dpads.noise import RunKeys
from dpads.plan import Plan
from dpads.release_stages import ReleaseStages
from dpads.resources import check_memory, estimate_memory
from dpads.rounding import check_pieces
from dpads.sampling import Grouping, sampler_of
from dpads.selection import Selection
from dpads.store import ExampleStore
from dpads.training_entries import close_training, open_training
from dpads.training_hosts import (
    check_one_model,
    check_part,
    first_of,
    own_label,
    shared_checkpoint,
    shared_digest,
)
from dpads.training_identity import differences, digest_of, run_identity
from dpads.training_settings import Performance, Progress, RowProgress, TrainingSettings
from dpads.training_start import StartModel, initial_model
from dpads.units import units_of

__all__ = ["Performance", "Progress", "RowProgress", "Trainer", "TrainingSettings"]

PROGRESS_SECONDS = 0.2
REPORTED_ROWS = 1 << 23  # smaller tables are made and finished within a second


class Trainer:
    """Trains one model under one plan.

    Args:
        store: the training rows.
        description: the model.
        plan: the mechanism, resolved.
        settings: optimizers, table noise, seeds.
        performance: threads and memory.
        ledger: receives the training entry before the first iteration.
        checkpoint_dir: where checkpoints go; None keeps none. Of several processes the first one has it.
        on_rows: called while large tables are made and finished.
        start: parameters to start from; None for those that init_seed makes.

    Raises:
        ConfigError: the model will not fit into memory, or a user has more rows than the plan allows.

    Guarantees:
        - What runs is what is on the ledger: the sampler that draws gives the event, and the entry is
          durable before the first batch is drawn.
        - The run stops before the iteration that would exceed the plan's budget.
        - A resumed run replays the iterations after its checkpoint to the bit, or refuses to start.
        - Several processes (`dpads.hosts`) are one run: one master key, one sampler over all units, one
          model.
    """

    def __init__(
        self,
        store: ExampleStore,
        description: Description,
        plan: Plan,
        settings: TrainingSettings,
        performance: Performance,
        ledger: Ledger,
        checkpoint_dir: Path | None = None,
        on_rows: Callable[[RowProgress], None] | None = None,
        start: StartModel | None = None,
    ) -> None:
        self._on_rows, self._start = on_rows, start
        master = fresh_master_key()
        if settings.noise_seed is not None:
            master = hashlib.sha256(f"dpads.noise_seed.v1:{settings.noise_seed}".encode()).digest()
        self._setup(store, description, plan, settings, performance, ledger, checkpoint_dir, master)
        self.save()  # keys are kept before they are used: what is cut off draws the same noise again
        self._begin()

    def _setup(
        self,
        store: ExampleStore,
        description: Description,
        plan: Plan,
        settings: TrainingSettings,
        performance: Performance,
        ledger: Ledger,
        checkpoint_dir: Path | None,
        master: bytes,
    ) -> None:
        """Builds every part of the mechanism from the plan's numbers."""
        store.check_labels()
        set_threads(performance.threads)
        self._store = store
        self._plan = plan
        self._settings = settings
        self._performance = performance
        self._ledger = ledger
        self._folder = None if checkpoint_dir is None else CheckpointFolder(checkpoint_dir)
        self._saves = 0
        self._whole = True  # whether no iteration was cut off half-way
        self._hosts = hosts = hosts_of(settings.backend)
        check_part(store, hosts)
        self._keeps = bool(hosts.of_first(b"" if self._folder is None else b"kept"))
        self._master = master = hosts.of_first(master)
        start = self._start
        self._identity = run_identity(
            store, description, plan, settings, performance, None if start is None else start.digest
        )
        digest = shared_digest(self._identity, digest_of(self._identity), hosts)
        keys = RunKeys(master, digest)
        self._stages = ReleaseStages(plan, store, settings, keys, ledger, start, hosts)
        self.selection: Selection | None = None
        mechanism = plan.mechanism
        mechanics = Mechanics(plan, settings, keys)
        check_memory(
            estimate_memory(
                description,
                store.schema,
                expected_batch_size=mechanism.expected_batch_size * plan.privacy.rows_per_unit,
                physical_batch_size=performance.physical_batch_size,
                table_noise=settings.table_noise,
                backend=settings.backend,
                counted=plan.release("selection") is not None,
            )
        )
        if performance.physical_batch_size is not None and mechanics.noise_stddev > 0:
            check_pieces(
                mechanism.expected_batch_size,
                plan.privacy.rows_per_unit,
                performance.physical_batch_size,
            )
        model = initial_model(
            description,
            store.schema,
            settings,
            start,
            lambda done, total: self._report_rows("initialising", done, total),
        )
        self._backend = backend_of(model, mechanics, hosts)
        if performance.physical_batch_size is not None:
            self._backend.check_pieces()
        units = units_of(store, plan.privacy)
        self._batches = BatchSource(
            units,
            model,
            sampler_of(mechanism, keys),
            Grouping.for_batches_of(
                mechanics.divisor / hosts.count, keys.key("grouping", *own_label(hosts))
            ),
            performance.physical_batch_size,
            *first_of(units.number, hosts),
        )
        self.iteration = 0
        self.replayed = 0
        self._replay_until = 0

    @classmethod
    def resume(
        cls,
        checkpoint_dir: Path | None,
        store: ExampleStore,
        description: Description,
        plan: Plan,
        settings: TrainingSettings,
        performance: Performance,
        ledger: Ledger,
        on_rows: Callable[[RowProgress], None] | None = None,
        start: StartModel | None = None,
    ) -> Trainer:
        """Goes on from the latest checkpoint; the iterations since are replayed to the bit.

        Of several processes the first one has the folder.

        Raises:
            CheckpointError: there is no whole checkpoint, or something that changes the numbers
                differs from when it was written; the message names it.
        """
        folder = None if checkpoint_dir is None else CheckpointFolder(checkpoint_dir)
        hosts = hosts_of(settings.backend)
        checkpoint = shared_checkpoint(None if folder is None else folder.load(), hosts)
        digest = None if start is None else start.digest
        identity = run_identity(store, description, plan, settings, performance, digest)
        saved = checkpoint.facts["identity"]
        different = differences(saved, identity)
        if different and hosts.is_first:
            raise CheckpointError(
                f"{checkpoint_dir}: the run cannot be resumed, because {', '.join(different)} changed since "
                "the checkpoint: the same noise would protect other gradients. Restore them, or train anew."
            )
        trainer = cls.__new__(cls)
        trainer._on_rows, trainer._start = on_rows, start
        master = bytes.fromhex(checkpoint.facts["master"])
        trainer._setup(
            store, description, plan, settings, performance, ledger, checkpoint_dir, master
        )
        trainer._restore(checkpoint)
        reached = (0, 0) if folder is None else folder.progress()
        last, furthest = json.loads(hosts.of_first(json.dumps(reached).encode()))
        trainer.replayed = int(checkpoint.facts["replayed"]) + max(0, last - trainer.iteration)
        trainer._replay_until = furthest
        trainer._begin()
        trainer.save()  # or a second crash before the next checkpoint would forget these replays
        return trainer

    @property
    def model(self) -> Model:
        """The model; its parameters are the present ones after `finish` and `read_model`."""
        return self._backend.model

    @property
    def executed(self) -> int:
        """Iterations done, replays not counted twice."""
        return self.iteration

    @property
    def planned(self) -> int:
        """Iterations that the plan and its budget allow."""
        return min(self._plan.mechanism.iterations, self._plan.allowed_iterations)

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Trains to the end, brings every row up to date, closes the ledger's entry and recalibrates."""
        begin = last_report = last_save = time.monotonic()
        first = self.iteration
        warming_up = (
            True  # the first iteration compiles and loads: it says nothing about the others' speed
        )
        while self.iteration < self.planned:
            self.step()
            now = time.monotonic()
            if warming_up and self.iteration < self.planned:
                begin, first, warming_up = now, self.iteration, False
            elif on_progress is not None and (
                now - last_report >= PROGRESS_SECONDS or self.iteration == self.planned
            ):
                on_progress(self._progress(first, now - begin))
                last_report = now
            if self._agreed(now - last_save >= self._performance.checkpoint_seconds):
                self.save()
                last_save = time.monotonic()
        self.finish()
        self._stages.finish(self.model)

    def step(self) -> None:
        """One iteration: draw, clip, sum, add noise, move.

        Raises:
            ConfigError: the plan allows no further iteration.
            RunError: an earlier iteration was cut off half-way.
        """
        self._check_whole()
        if self.iteration >= self.planned:
            raise ConfigError(
                f"All {self.planned} iterations that the plan allows are done. "
                "Train anew with a larger budget."
            )
        if self._folder is not None:
            self._folder.note_progress(self.iteration + 1)
        self._whole = False
        set_threads(self._performance.threads)  # another run of this process may have set others
        pieces = self._batches.pieces(self._batches.take(self.iteration))
        self._backend.step(self.iteration, pieces, self._prepare_next)
        self.iteration += 1
        self._whole = True

    def _agreed(self, due: bool) -> bool:
        """Whether a checkpoint is due, as process 0 sees it."""
        if not self._keeps:
            return False
        return bool(self._hosts.gather(np.array([due]))[0, 0])

    def _check_whole(self) -> None:
        """Refuses to go on from half an iteration: the same noise would protect other gradients."""
        if not self._whole:
            raise RunError(
                f"Iteration {self.iteration} was cut off half-way, and nobody can tell which parameters had "
                "moved. Resume from the last checkpoint."
            )

    def _prepare_next(self) -> None:
        """Draws and reads the next batch while this iteration's noise is made."""
        if self.iteration + 1 < self.planned:
            self._batches.prepare(self.iteration + 1)

    def read_model(self) -> Model:
        """An unplanned read of the present model: logged and committed before anything leaves.

        Every row is brought up to date in the one true state and a checkpoint follows, so that a resumption
        starts at or after the read and no noise is drawn twice.

        Raises:
            CheckpointError: iterations that a cut-off run had begun are being replayed. A read among
                them would make the replay another one: the same addresses would serve other variances.
        """
        self._check_whole()
        if self.iteration < self._replay_until:
            raise CheckpointError(
                f"The run replays what was cut off, up to iteration {self._replay_until}, and is at "
                f"{self.iteration}. Read the model once it is there."
            )
        self._ledger.append(
            kind="unplanned_read",
            description=f"The model was read at iteration {self.iteration}, inside the training entry.",
            rows="train",
            treatment="covered_by_accounting",
        )
        self._flush()
        self.save()
        return self.model

    def finish(self) -> None:
        """Brings every row up to date and notes on the ledger how many iterations ran."""
        self._check_whole()
        self._flush()
        check_one_model(self.model, self._hosts)
        self.save()
        close_training(self._ledger, self._plan.mechanism, self.executed, self.replayed)

    def discard_checkpoints(self) -> None:
        """Deletes keys and checkpoints, once the model is safe elsewhere."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _flush(self) -> None:
        """Brings every row of every table up to date, fit to leave."""
        total = sum(len(array) for array in self.model.arrays.values())
        done = 0

        def report(rows: int) -> None:
            nonlocal done
            done += rows
            self._report_rows("finishing", done, total)

        self._whole = False
        self._backend.flush(report)
        self._whole = True

    def _report_rows(
        self, stage: Literal["initialising", "finishing"], done: int, total: int
    ) -> None:
        """Tells whoever watches, where it takes long enough to be told."""
        if self._on_rows is not None and total >= REPORTED_ROWS:
            self._on_rows(RowProgress(stage, done, total))

    def save(self) -> None:
        """Writes a checkpoint, where a folder for them was given; it flushes nothing."""
        self._check_whole()
        if not self._keeps:
            return
        self._saves += 1
        facts = {
            "identity": self._identity,
            "iteration": self.iteration,
            "master": self._master.hex(),
            "replayed": self.replayed,
            "saves": self._saves,
        }
        arrays: dict[str, NDArray[Any]] = {}
        if self.iteration > 0:  # before, everything is as `init_seed` or `start` makes it
            arrays = self._backend.state()
        if self.selection is not None:
            arrays |= self.selection.to_arrays()
        if self._folder is not None:
            self._folder.save(Checkpoint(facts, arrays))
        self._hosts.wait()  # nobody goes on before it is on disk

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Sets the state that a checkpoint kept."""
        self.iteration = int(checkpoint.facts["iteration"])
        self._saves = int(checkpoint.facts["saves"])
        arrays = checkpoint.arrays
        self.selection = Selection.from_arrays(arrays, self._store.schema)
        if self.iteration > 0:
            self._backend.restore(arrays, self.iteration)

    def _begin(self) -> None:
        """What comes before the first batch; a run that goes on does it again, to the bit."""
        self.selection = self._stages.begin(self.model, self.selection)
        if self.selection is not None:
            groups = self.model.layout.groups
            selected = {group.name: self.selection.of_group(group) for group in groups}
            self._batches.selected.update(selected)
            self._backend.select(selected)
        open_training(self._ledger, self._plan.mechanism, self._batches.sampler)
        self._hosts.wait()  # nobody draws before the entry is durable

    def _progress(self, first: int, seconds: float) -> Progress:
        """Speed since the run began."""
        rate = (self.iteration - first) / max(seconds, 1e-9)
        examples = rate * float(self._plan.mechanism.expected_batch_size)
        return Progress(
            self.iteration, self.planned, examples, (self.planned - self.iteration) / rate
        )
