"""The recipe of "How to DP-fy ML" as one command: stages, each a small sweep with its decision and evidence.

    DIR/
      asked.json      what was asked for
      ledger.jsonl    what was done to private rows, before it was
      filter.json     the Renyi filter and what was spent of it
      recipe.json     stages with decisions and evidence; renewed after each
      store/          rows prepared once
      stages/         a sweep's folder for each stage that trains
      model/          the run that was chosen
      config.toml     its configuration

Stages without noise run on public or made-up rows. Without those they run on the private rows: no guarantee
covers that, the ledger says so before they run, and the claim is never formal. Stages with noise depend on
those before them, so their costs are drawn from a Renyi filter whose total is fixed in advance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dpads import record as files
from dpads.accounting.events import EventTree
from dpads.accounting.filters import RenyiFilter, smallest_noise_multiplier_within
from dpads.accounting.ledger import Ledger
from dpads.benching_costs import private_step_seconds
from dpads.config import Config, load_config, parse_config
from dpads.config_toml import to_toml
from dpads.errors import CheckpointError, ConfigError
from dpads.evaluation import HEADLINE_LOSS
from dpads.plan import Plan
from dpads.private_selection_state import locked
from dpads.recipe_ask import (
    ASKED,
    How,
    OnProgress,
    RecipeRows,
    check_asked,
    claim,
    noisy,
    open_recipe_rows,
)
from dpads.recipe_budget import MODEL, STAGES, FilterFile, check_kept
from dpads.recipe_model import chosen_run
from dpads.recipe_stages import (
    BATCH,
    CLIP,
    EPOCHS,
    NOISE,
    TABLE_RATE,
    TOLERANCE,
    TOWER_RATE,
    Stage,
    Tried,
    at_edge,
    batch_sizes,
    clip_settings,
    largest_in_time,
    number,
    reference_settings,
    rounds_of,
    smallest_harmless,
    with_values,
)  # fmt: skip
from dpads.recipe_trials import StageTrials
from dpads.run import Run
from dpads.run_data import resolve_plan
from dpads.training import TrainingSettings

RECIPE: Final = "recipe.json"
SETTLED: Final = ("1-reference", "2-batch-size", "3-clip-norm", "4-noise")
FORMAT: Final = 1
MEASURE_SECONDS: Final = 1.5  # for each batch size


def recipe(
    config: str | Path | Config,
    *,
    out: str | Path,
    public: str | Path | Sequence[str] | None = None,
    hours: float = 1.0,
    trials: int = 8,
    workers: int | None = None,
    threads: int | None = None,
    on_prepare: Callable[[int], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Run:
    """Finds a batch size, a clip norm, noise and learning rates, and trains a model within one budget.

    Args:
        config: the configuration to start from; privacy.epsilon is the total of all trials with noise.
        out: the recipe's folder; one that was begun there goes on.
        public: rows for the stages without noise, of the same schema: logs or a store, or "synthetic" for
            rows made up from the schema. None: the private rows, outside of any guarantee.
        hours: that all trials with noise together may take on this machine. Those without noise, 19 in all,
            come on top and take about as long each.
        trials: how many trials with noise there are at most.
        workers: trials at a time; default: one for each core.
        threads: of each trial.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_progress: called with a stage's title and where its sweep stands.

    Returns:
        The run that was chosen.

    Raises:
        ConfigError: the configuration lacks what the recipe needs, or `out` is of something else.
        BudgetError: the budget is too small for so many trials.
        CheckpointError: something is lost that privacy was spent for.
        RunError: no trial finished.

    Guarantees:
        - All trials with noise together cost at most privacy.epsilon: each is taken out of a total that is on
          the ledger before the first of them begins.
        - What was spent for is never trained again, whatever was deleted since.
        - Every stage without noise on private rows is on the ledger before it runs.
    """
    start = config if isinstance(config, Config) else load_config(config)
    check_asked(start, hours, trials)
    folder = Path(out)
    if folder.exists() and not (folder / ASKED).is_file():
        raise ConfigError(f"{folder}: exists already, and is no recipe. Name another folder.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sources = (str(public),) if isinstance(public, str | Path) else public
    how = How(
        None if sources is None else tuple(sources), hours, trials, workers, threads, on_progress
    )
    with locked(folder):
        claim(folder, start, how)
        return _Recipe(
            folder, start, how, open_recipe_rows(folder, start, how.public, on_prepare)
        ).carry_out()


class _Recipe:
    """One start of a recipe: stages that are whole are not run again."""

    def __init__(self, folder: Path, start: Config, how: How, rows: RecipeRows) -> None:
        self._folder, self._start, self._how = folder, start, how
        self._config = dataclasses.replace(start, data=rows.data)
        kept = files.read_json(folder / RECIPE) if (folder / RECIPE).exists() else {}
        self._created = kept.get("created_at", files.now())
        self._stages = [Stage(**item) for item in kept.get("stages", [])]
        for stage in self._stages:
            if stage.name in SETTLED:
                self._adopt(stage.chosen)
        path = folder / files.LEDGER
        self._ledger = Ledger.load(path) if path.exists() else Ledger(path)
        self._trials = StageTrials(folder, how, rows, self._ledger)
        self._loss = HEADLINE_LOSS[start.schema.task]

    def carry_out(self) -> Run:
        """All stages that are not whole yet, then the model."""
        settled = {stage.name for stage in self._stages}
        check_kept(self._folder, self._ledger, is_settled=SETTLED[-1] in settled)
        for name, find in zip(
            SETTLED, (self._reference, self._batch_size, self._clip_norm, self._noise), strict=True
        ):
            self._stage(name, find)
        stage, best = self._learning_rates()
        run = chosen_run(self._folder, stage, best.trial, self._ledger)
        shown = dataclasses.replace(run.config, data=self._start.data)
        files.write_text(self._folder / files.CONFIG, to_toml(shown))
        self._save(run)
        from dpads.recipe_report import write_recipe_report

        write_recipe_report(self._folder)
        return run

    def _stage(self, name: str, find: Callable[[str], Stage]) -> None:
        """A stage before learning rates, unless it is whole."""
        if name not in {stage.name for stage in self._stages}:
            stage = find(name)
            self._stages.append(stage)
            self._adopt(stage.chosen)
            self._save(None)

    def _adopt(self, chosen: Mapping[str, Any]) -> None:
        """Puts what a stage chose into the configuration; the noise stays apart from the budget."""
        values = {key: value for key, value in chosen.items() if key != NOISE}
        self._config = parse_config(with_values(self._config, values), base=Path("/"))

    def _save(self, run: Run | None) -> None:
        """Renews recipe.json."""
        document = {
            "format": FORMAT,
            "created_at": self._created,
            "stages": [stage.to_dict() for stage in self._stages],
            "statement": None if run is None else f"{MODEL}/{files.STATEMENT_JSON}",
            "claim": None if run is None else run.statement().headline,
        }
        files.write_text(self._folder / RECIPE, files.to_json(document))

    def _plan(self, noise_multiplier: float) -> Plan:
        """The plan of a trial with noise."""
        config = noisy(self._config, noise_multiplier)
        return resolve_plan(config, config.privacy, config.l2_clip_norm, None)

    def _reference(self, name: str) -> Stage:
        """Stage 1."""
        title = "The model without privacy"
        tried = self._trials.noise_free(name, title, self._config, reference_settings(self._config))
        best = min(tried, key=lambda item: item.loss)
        chosen = {key: best.settings[key] for key in (TABLE_RATE, TOWER_RATE)}
        return Stage(
            name=name,
            title=title,
            question="Which learning rates suit the model without noise and clipping?",
            rows=self._how.noise_free_rows,
            decision=f"Learning rates {number(chosen[TABLE_RATE])} (tables) and {number(chosen[TOWER_RATE])} "
            f"(tower), with {self._words} {best.loss:.4f}." + at_edge(chosen, tried, tuple(chosen)),
            chosen=chosen,
            **self._evidence(name, (TABLE_RATE, TOWER_RATE), tried),
        )

    def _batch_size(self, name: str) -> Stage:
        """Stage 2."""
        title = "The batch size"
        self._trials.tell(title)
        config, how = self._config, self._how
        units = config.privacy.dataset_size
        assert units is not None
        iterations = self._plan(1.0).mechanism.iterations
        seconds = 3600.0 * how.hours / how.trials
        training = config.training
        settings = TrainingSettings(
            table_noise=training.table_noise,
            table_optimizer=training.table_optimizer,
            tower_optimizer=training.tower_optimizer,
        )
        rows_per_unit = config.privacy.rows_per_unit

        def measure(size: int) -> float | None:
            return private_step_seconds(
                config.model,
                config.schema,
                settings,
                expected_batch_size=size * rows_per_unit,
                num_examples=units * rows_per_unit,
                noise_multiplier=1.0,
                l2_clip_norm=config.l2_clip_norm,
                seconds=MEASURE_SECONDS,
            )

        sizes = batch_sizes(config, units) or [training.expected_batch_size]
        size, measured = largest_in_time(sizes, iterations, seconds, measure)
        epochs = float(f"{iterations * size / units:.6g}")
        return Stage(
            name=name,
            title=title,
            question=f"Which is the largest batch with which {how.trials} trials of {iterations:,} "
            f"iterations fit into {how.hours:g} hours?",
            rows="none",
            decision=f"Batches of {size:,} of {units:,} units, {epochs:g} epochs: as many iterations as were "
            "configured, for at equal iterations a larger batch has less noise for each unit. Measured on "
            "made-up batches.",
            chosen={BATCH: size, EPOCHS: epochs},
            columns=["expected batch size", "seconds a step", "hours for all trials"],
            evidence=[
                [at, step, None if total is None else total * how.trials / 3600.0]
                for at, step, total in measured
            ],
        )

    def _clip_norm(self, name: str) -> Stage:
        """Stage 3."""
        title = "The clip norm"
        tried = self._trials.noise_free(name, title, self._config, clip_settings(self._config))
        found = smallest_harmless(tried)
        chosen = {key: found.settings[key] for key in (CLIP, TABLE_RATE, TOWER_RATE)}
        return Stage(
            name=name,
            title=title,
            question="Which is the smallest clip norm that costs little, with noise off?",
            rows=self._how.noise_free_rows,
            decision=f"{number(chosen[CLIP])}: the smallest whose {self._words} is within {TOLERANCE:.0%} of "
            f"the best, with learning rates {number(chosen[TABLE_RATE])} (tables) and "
            f"{number(chosen[TOWER_RATE])} (tower)." + at_edge(chosen, tried, (CLIP,)),
            chosen=chosen,
            **self._evidence(name, (CLIP, TABLE_RATE), tried),
        )

    def _noise(self, name: str) -> Stage:
        """Stage 4: the filter is fixed, and on the ledger, before anything with noise runs."""
        title = "The noise"
        self._trials.tell(title)
        plan, trials = self._plan(1.0), self._how.trials
        epsilon = self._config.privacy.epsilon
        assert epsilon is not None
        noise, budget = 1.0, None
        for _ in range(2):  # the order suits the noise that was found with the first one
            planned = [self._plan(noise).event()] * trials
            budget = RenyiFilter.for_budget(epsilon, plan.delta, plan.relation, planned)
            noise = smallest_noise_multiplier_within(budget, self._event, trials)
        assert budget is not None
        charged = [entry.dp_event for entry in self._ledger.entries if entry.kind == "tuning"]
        if charged not in ([], [budget.event()]):
            raise CheckpointError(
                f"{self._folder}: {files.LEDGER} has another total than is planned now. Begin anew under "
                "another --out."
            )
        if not charged:
            FilterFile.create(self._folder, budget)
            self._ledger.append(
                kind="tuning",
                description=f"At most {trials} trials with noise, their learning rates chosen after a "
                "look at earlier ones, within a Renyi filter of a fixed total",
                rows="train",
                treatment="covered_by_accounting",
                dp_event=budget.event(),
            )
        return Stage(
            name=name,
            title=title,
            question=f"Which noise lets {trials} trials cost epsilon {epsilon:g} together?",
            rows="none",
            decision=f"Noise multiplier {number(noise)}, from a Renyi filter of order {budget.order:g} with "
            "a fixed total: later trials depend on earlier ones.",
            chosen={NOISE: noise},
            columns=["trials", "epsilon of all", "delta", "noise multiplier", "epsilon of one"],
            evidence=[[trials, epsilon, plan.delta, noise, self._plan(noise).loss.epsilon]],
        )

    def _learning_rates(self) -> tuple[str, Tried]:
        """Stage 5 and its refinements: the stage and the trial of the best model."""
        noise = next(s.chosen[NOISE] for s in self._stages if s.name == SETTLED[-1])
        budget, left = FilterFile(self._folder), self._how.trials
        tried: list[tuple[str, Tried]] = []
        while settings := rounds_of(self._config, left, [item for _, item in tried]):
            name = f"{len(SETTLED) + 1 + len({stage for stage, _ in tried})}-learning-rates"
            found = self._trials.private(
                name,
                "Learning rates with noise",
                noisy(self._config, noise),
                settings,
                self._event(noise),
                budget,
            )
            tried += [(name, item) for item in found]
            left -= len(settings)
            if name not in {stage.name for stage in self._stages}:
                self._stages.append(self._rates_stage(name, found, [item for _, item in tried]))
                self._save(None)
        return min(tried, key=lambda pair: pair[1].loss)

    def _rates_stage(self, name: str, found: list[Tried], tried: list[Tried]) -> Stage:
        """What a round with noise found."""
        best = min(tried, key=lambda item: item.loss)
        chosen = {key: best.settings[key] for key in (TABLE_RATE, TOWER_RATE)}
        first = len(found) == len(tried)
        return Stage(
            name=name,
            title="Learning rates with noise" if first else "Learning rates with noise, refined",
            question="Which learning rates suit the model under noise?"
            if first
            else "Are others near the best so far better?",
            rows="private",
            decision=f"Best so far: {number(chosen[TABLE_RATE])} (tables) and {number(chosen[TOWER_RATE])} "
            f"(tower), with {self._words} {best.loss:.4f}.",
            chosen=chosen,
            **self._evidence(name, (TABLE_RATE, TOWER_RATE), found),
        )

    @property
    def _words(self) -> str:
        """The loss in words."""
        return self._loss.replace("_", " ")

    def _evidence(self, name: str, keys: Sequence[str], tried: Sequence[Tried]) -> dict[str, Any]:
        """Columns and rows of the evidence, and where it is from."""
        return {
            "columns": [*(key.partition(".")[2].replace("_", " ") for key in keys), self._words],
            "evidence": [[*(item.settings[key] for key in keys), item.loss] for item in tried],
            "sweep": f"{STAGES}/{name}",
        }

    def _event(self, noise_multiplier: float) -> EventTree:
        """The event of a trial with noise."""
        return self._plan(noise_multiplier).event()
