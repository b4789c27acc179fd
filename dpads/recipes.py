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

How it decides: trials that predict worse than the average rate (normalized entropy above 1) lose to any that
do not; among the rest, of those whose headline loss is within one standard error of the lowest the smallest
learning rate wins, and of clip norms the smallest within 1 % of the lowest loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dpads import run_files as files
from dpads.accounting.events import EventTree
from dpads.accounting.filters import RenyiFilter, smallest_noise_multiplier_within
from dpads.accounting.ledger import Ledger
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
from dpads.recipe_batch import (
    batch_evidence,
    batch_sizes,
    check_hours,
    largest_in_time,
    measuring,
)
from dpads.recipe_budget import MODEL, STAGES, FilterFile, check_kept
from dpads.recipe_choice import (
    CLIP,
    EXTENSIONS,
    TABLE_RATE,
    TOWER_RATE,
    WIDER,
    Grid,
    Tried,
    Values,
    average_words,
    best_of,
    beyond,
    capital,
    edge_words,
    evidence,
    grid_words,
    number,
    smallest_harmless,
)
from dpads.recipe_model import chosen_run
from dpads.recipe_stages import (
    BATCH,
    EPOCHS,
    NOISE,
    Stage,
    clip_settings,
    reference_settings,
    rounds_of,
    with_values,
)
from dpads.recipe_trials import StageTrials
from dpads.run import Run
from dpads.run_data import resolve_plan

RECIPE: Final = "recipe.json"
SETTLED: Final = ("1-reference", "2-batch-size", "3-clip-norm", "4-noise")
FORMAT: Final = 1


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
        hours: that all trials with noise together may take on this machine. Those without noise come
            on top and take about as long each: 19, and more where a best value on other rows is at an edge.
        trials: how many trials with noise there are at most.
        workers: trials at a time; default: one for each core.
        threads: of each trial.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_progress: called with a stage's title and where its sweep stands.

    Returns:
        The run that was chosen.

    Raises:
        ConfigError: the configuration lacks what the recipe needs, the hours are too few, or `out` is of
            something else.
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
    if not folder.exists():
        check_hours(start, hours, trials)
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
            if stage.name.partition(WIDER)[0] in SETTLED:
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

    def _stage(self, name: str, find: Callable[[str], list[Stage]]) -> None:
        """A stage before learning rates, unless it is whole."""
        if name not in {stage.name for stage in self._stages}:
            found = find(name)
            self._stages += found
            self._adopt(found[-1].chosen)
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

    def _reference(self, name: str) -> list[Stage]:
        """Stage 1."""
        return self._on_a_grid(
            name,
            "The model without privacy",
            "Which learning rates suit the model without noise and clipping?",
            reference_settings(self._config),
            Grid((TABLE_RATE, TOWER_RATE), best_of),
        )

    def _clip_norm(self, name: str) -> list[Stage]:
        """Stage 3."""
        return self._on_a_grid(
            name,
            "The clip norm",
            "Which is the smallest clip norm that costs little, with noise off?",
            clip_settings(self._config),
            Grid((CLIP,), smallest_harmless, across=(TABLE_RATE,)),
        )

    def _on_a_grid(
        self, name: str, title: str, question: str, settings: Sequence[Values], grid: Grid
    ) -> list[Stage]:
        """A stage without noise, and those that try beyond its grid where rows are not private."""
        rows, config, keys = self._how.noise_free_rows, self._config, tuple(settings[0])
        stages: list[Stage] = []
        tried: list[Tried] = []
        following = list(settings)
        while following:
            place = len(stages)
            own = name if not place else f"{name}{WIDER}{place}"
            heading = title if not place else f"{title}, beyond the edge"
            found = self._trials.noise_free(own, heading, config, following)
            tried += found
            chosen = grid.choose(tried)
            more = rows != "private" and place < EXTENSIONS
            following = beyond(chosen, tried, grid.keys, grid.across) if more else []
            at_edge = edge_words(chosen, tried, grid.keys, rows, goes_on=bool(following))
            stages.append(
                Stage(
                    name=own,
                    title=heading,
                    question=question if not place else "Are values beyond the edge better?",
                    rows=rows,
                    decision=capital(
                        grid_words(chosen, self._loss) + average_words(chosen) + at_edge
                    ),
                    chosen={key: chosen.settings[key] for key in keys},
                    sweep=f"{STAGES}/{own}",
                    **evidence(keys, self._loss, found),
                )
            )
        return stages

    def _batch_size(self, name: str) -> list[Stage]:
        """Stage 2."""
        title = "The batch size"
        self._trials.tell(title)
        config, how = self._config, self._how
        units = config.privacy.dataset_size
        assert units is not None
        iterations = self._plan(1.0).mechanism.iterations
        size, measured = largest_in_time(
            batch_sizes(config, units),
            iterations,
            3600.0 * how.hours / how.trials,
            measuring(config, units),
        )
        epochs, configured = float(f"{iterations * size / units:.6g}"), config.training.epochs
        instead = "" if epochs == configured else f" in place of the configured {configured:g}"
        return [
            Stage(
                name=name,
                title=title,
                question=f"Which is the largest batch with which {how.trials} trials of {iterations:,} "
                f"iterations fit into {how.hours:g} hours?",
                rows="none",
                decision=f"Batches of {size:,} of {units:,} units, {epochs:g} epochs{instead}: as many "
                "iterations as were configured, for at equal iterations a larger batch has less noise for "
                "each unit. Measured on made-up batches.",
                chosen={BATCH: size, EPOCHS: epochs},
                **batch_evidence(measured, how.trials),
            )
        ]

    def _noise(self, name: str) -> list[Stage]:
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
        stage = Stage(
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
        return [stage]

    def _learning_rates(self) -> tuple[str, Tried]:
        """Stage 5 and its refinements: the stage and the trial of the best model."""
        noise = next(s.chosen[NOISE] for s in self._stages if s.name == SETTLED[-1])
        budget, left = FilterFile(self._folder), self._how.trials
        tried: list[tuple[str, Tried]] = []
        settings = rounds_of(self._config, left, [])
        while settings:
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
            every = [item for _, item in tried]
            settings = rounds_of(self._config, left, every)
            if name not in {stage.name for stage in self._stages}:
                self._stages.append(self._rates_stage(name, found, every, is_last=not settings))
                self._save(None)
        best = best_of([item for _, item in tried])
        return next(pair for pair in tried if pair[1] is best)

    def _rates_stage(
        self, name: str, found: list[Tried], tried: list[Tried], *, is_last: bool
    ) -> Stage:
        """What a round with noise found."""
        best = best_of(tried)
        first = len(found) == len(tried)
        return Stage(
            name=name,
            title="Learning rates with noise" if first else "Learning rates with noise, refined",
            question="Which learning rates suit the model under noise?"
            if first
            else "Are others near the best so far better?",
            rows="private",
            decision=f"{'The model' if is_last else 'Best so far'}: {grid_words(best, self._loss)}"
            + average_words(best)
            + (edge_words(best, tried, (TABLE_RATE,), "private") if is_last else ""),
            chosen={key: best.settings[key] for key in (TABLE_RATE, TOWER_RATE)},
            sweep=f"{STAGES}/{name}",
            **evidence((TABLE_RATE, TOWER_RATE), self._loss, found),
        )

    def _event(self, noise_multiplier: float) -> EventTree:
        """The event of a trial with noise."""
        return self._plan(noise_multiplier).event()
