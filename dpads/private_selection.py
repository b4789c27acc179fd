"""Private selection: the best of a random, secret number of candidates, and nothing else.

Candidates and the law of their number are public. The number is drawn once and sealed, each candidate is
drawn uniformly, trained by DP-SGD without the units that are set aside, and scored on those with noise.
Only the best one leaves. A unit is in training or set aside, never both, so that one run costs it the
larger of the two: `worst_of`. While it works, nothing tells how many candidates there are; how long it
took is seen by whoever waited, and is no part of the guarantee.

    RUN.partial/      0700
      lock            held while somebody works on it
      asked.json      what was asked for
      identity.json   what every candidate's numbers depend on: rows, code, processor
      ledger.jsonl    the tuning entry, before anything is drawn
      prepared/       stores of logs
      sealed/         see `private_selection_state`

References:
    Papernot and Steinke (2022), arXiv 2110.03620 v2, Theorems 2 and 6.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from dpads import run_files as files
from dpads.accounting import events
from dpads.accounting.ledger import Ledger
from dpads.config_toml import to_toml
from dpads.errors import CheckpointError, RunError
from dpads.private_selection_plan import Candidates, Prepared
from dpads.private_selection_process import CandidateProcess, Watch
from dpads.private_selection_run import even_times, selected_run
from dpads.private_selection_start import check_identity, settle
from dpads.private_selection_state import SealedFolder, SealedState, locked
from dpads.private_selection_worker import CandidateTask, Runner, shared_identity
from dpads.run import Run
from dpads.sweep_config import SweepConfig, load_sweep
from dpads.training import Performance

SEALED: Final = "sealed"
RESULT: Final = "result"
DONE: Final = "done"
NOTHING: Final = (
    "nothing was selected. That is one of the outcomes that the law of the number of candidates and their "
    "failures allow, and which of them it was stays sealed. Its privacy is spent"
)

MakeRunner = Callable[[int, Callable[[], float]], AbstractContextManager[Runner]]


def tune(
    sweep: str | Path | SweepConfig,
    *,
    out: str | Path,
    performance: Performance = Performance(),  # noqa: B008 (frozen)
    on_prepare: Callable[[int], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_statement: Callable[[int, int], None] | None = None,
) -> Run:
    """Selects a model privately: the whole selection costs privacy.epsilon of the base configuration.

    A candidate's plan is that of a run on all training units: sampling_prob is expected_batch_size over
    privacy.dataset_size, or over the store's count before units are set aside. So each unit that trains is
    seen as often as configured, a batch holds 1 - score_share of the expected units on average, and the
    divisor is as configured.

    Args:
        sweep: SWEEP.toml, or what `load_sweep` makes of it: its trials are the candidates, its [tune] table
            says how to draw and score. Trials differ in what costs nothing: model, learning rates, batch
            size, epochs, clip norm, init_seed.
        out: the run's folder. Where an interrupted selection is beside it, that one goes on.
        performance: threads and memory. One that goes on takes the threads it was begun with.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_progress: called now and then with the seconds since this call; nothing else is ever told.
        on_statement: called with how much of a guarantee for users is computed, and of how much.

    Returns:
        The selected run.

    Raises:
        ConfigError: an axis would change the guarantee, a value is out of range, `out` exists, or an
            interrupted selection beside it was asked something else, needs more cores, or is worked on.
        BudgetError: the budget is too small.
        RunError: nothing was selected, or the machine stopped the work.
        CheckpointError: what an interrupted selection left is damaged, or it cannot go on here: other
            rows, versions or processor; nothing is lost by that.

    Guarantees:
        - The number of candidates and the candidates are drawn once, after the ledger's entry is durable,
          and neither shown nor drawn again, whatever happens.
        - A candidate that fails has the worst score; it is not left out and not replaced. One whose process
          is killed goes on once before it counts as failed.
        - No candidate is trained twice with fresh noise, and no score has two.
        - Only the selected candidate's files are left.
    """
    config = sweep if isinstance(sweep, SweepConfig) else load_sweep(sweep)
    selection = Selection(config, performance, CandidateProcess)
    return selection.carry_out(Path(out), on_prepare, on_progress, on_statement)


class Selection:
    """One private selection.

    Args:
        sweep: the candidates.
        performance: threads and memory.
        make_runner: makes what trains candidates, of the lock's descriptor and `Watch.wait`; a process of
            its own, but for tests.
    """

    def __init__(
        self, sweep: SweepConfig, performance: Performance, make_runner: MakeRunner
    ) -> None:
        self._performance, self._make_runner = performance, make_runner
        self._candidates = Candidates.of(sweep)
        self._asked = {  # what a resumption must be asked too
            "sweep": sweep.to_toml(),
            "tune": self._candidates.tune.to_dict(),
            "physical_batch_size": performance.physical_batch_size,
        }

    def carry_out(
        self,
        out: Path,
        on_prepare: Callable[[int], None] | None,
        on_progress: Callable[[float], None] | None,
        on_statement: Callable[[int, int], None] | None,
    ) -> Run:
        """Selects; or goes on with what was begun."""
        watch = Watch(on_progress)
        partial = files.partial_of(out)
        if out.exists() and (partial / DONE).is_file():  # cut off while cleaning up
            with locked(partial):
                _clean(partial)
            return _outcome(out)
        files.refuse_existing(out)
        made: list[Path] = []
        if not partial.exists():
            partial, made = files.start_partial(out)
        with locked(partial) as lock:
            files.refuse_existing(out)  # what is here may have ended meanwhile
            self._performance = settle(partial, self._asked, self._performance)
            try:
                stores = partial / files.PREPARED
                stores.mkdir(mode=0o700, exist_ok=True)
                prepared = Prepared.make(self._candidates, self._performance, stores, on_prepare)
            except BaseException:
                if not (partial / files.LEDGER).exists():  # nothing is spent
                    files.drop_partial(partial, made)
                raise
            identity = shared_identity(prepared.rows, self._candidates.base, self._performance)
            check_identity(partial, identity)
            sealed, ledger = self._announce(partial, prepared)
            with self._make_runner(lock, watch.wait) as runner:
                state = self._select(sealed, prepared, partial, runner, identity)
            result = partial / RESULT
            shutil.rmtree(result, ignore_errors=True)
            result.mkdir(mode=0o700)
            if state.best is None:
                ledger.save(result / files.LEDGER)
            else:
                slot = sealed.path / state.best
                run = selected_run(prepared, state.best_candidate, slot, ledger, self._performance)
                run.write(result, on_statement)
            even_times(result)
            (partial / DONE).touch()
            result.rename(out)
            _clean(partial)
        return _outcome(out)

    def _announce(self, partial: Path, prepared: Prepared) -> tuple[SealedFolder, Ledger]:
        """The sealed folder and the ledger, which says what all of it costs before anything is drawn."""
        path = partial / files.LEDGER
        sealed = SealedFolder(partial / SEALED)
        if path.exists():
            ledger = Ledger.load(path)
            if ledger.entries and ledger.entries[0].dp_event != prepared.noise.event:
                raise CheckpointError(
                    f"{path}: the selection was begun under another accounting. Go on with the version of "
                    "dpads that began it."
                )
        else:
            ledger = Ledger(path)
        if not ledger.entries:
            if sealed.path.exists():  # nothing was drawn yet
                shutil.rmtree(sealed.path)
            sealed = SealedFolder.create(sealed.path)
            self._note_tuning(ledger, prepared)
        return sealed, ledger

    def _note_tuning(self, ledger: Ledger, prepared: Prepared) -> None:
        """The entry that covers every candidate."""
        asked, how = self._candidates, self._candidates.tune
        ledger.append(
            kind="tuning",
            description=(
                f"The best of a random, secret number of runs (mean {how.mean_trials:g}, law {how.law}), "
                f"each of one of {len(asked.configs)} configurations, by a noisy score on "
                f"{how.score_share:g} of the training units, which none of them trains on"
            ),
            rows="train",
            treatment="covered_by_accounting",
            dp_event=prepared.noise.event,
            details={
                "selection": secrets.token_hex(16),
                "score": {
                    "measure": "poisson_log_loss"
                    if asked.base.schema.task == "count"
                    else "log_loss",
                    "rows": "training_units_set_aside",
                    "dp_event": events.gaussian(prepared.noise.score_noise_multiplier),
                },
            },
        )

    def _select(
        self,
        sealed: SealedFolder,
        prepared: Prepared,
        partial: Path,
        runner: Runner,
        identity: Mapping[str, Any],
    ) -> SealedState:
        """Trains and scores every candidate that was drawn."""
        how = self._candidates.tune
        state = sealed.drawn(how.shape, how.mean_trials)
        base = to_toml(self._candidates.base)
        while not state.complete:
            state = sealed.begin(state)
            candidate = state.candidate(len(prepared.candidates))
            score = runner(
                CandidateTask(
                    config=to_toml(prepared.candidates[candidate]),
                    base=base,
                    prepared=str(partial / files.PREPARED),
                    slot=str(sealed.path / state.slot),
                    score_share=how.score_share,
                    score_seed=how.score_seed,
                    score=prepared.score,
                    score_key=state.score_key().tobytes().hex(),
                    threads=self._performance.threads,
                    physical_batch_size=self._performance.physical_batch_size,
                    identity=identity,
                )
            )
            state = state.scored(candidate, score)
            sealed.save(state)
        return state


def _clean(partial: Path) -> None:
    """Removes what is not needed any more, its secrets first and its lock last."""
    for name in (SEALED, files.PREPARED):
        if (partial / name).exists():
            shutil.rmtree(partial / name)
    shutil.rmtree(partial)


def _outcome(out: Path) -> Run:
    """The selected run, or the refusal where none was."""
    if not files.is_run(out):
        raise RunError(
            f"{out}: {NOTHING}: {out / files.LEDGER} says what it cost. Keep that file: another selection "
            "on these rows, under another --out, adds its own cost to it. A larger tune.mean_trials makes "
            "this outcome rarer."
        )
    return Run.load(out)
