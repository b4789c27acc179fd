"""What a private selection settles before anything is drawn: rows, plans and noise, from public numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dpads.accounting import events
from dpads.accounting.tuning import SelectionNoise, noise_for_selection, selection_refusal
from dpads.backend_packages import load_backend
from dpads.config import Config
from dpads.errors import ConfigError
from dpads.plan import Plan
from dpads.private_selection_worker import TuningRows, check_room, open_tuning_rows
from dpads.run_data import resolve_plan
from dpads.sweep_config import SweepConfig
from dpads.training import Performance
from dpads.tune_config import TuneConfig

_TABLES: Final = ("data", "privacy", "schema", "statement")  # on which a guarantee depends
_ALLOWED: Final = ("privacy.l2_clip_norm",)


@dataclass(frozen=True)
class Candidates:
    """The candidates of a selection, as they were asked for.

    Attributes:
        base: the configuration by which rows are opened; it has some noise multiplier in place of a budget.
        configs: each candidate's configuration, with the budget of the whole selection.
        epsilon: that budget.
        tune: how to draw and score.
    """

    base: Config
    configs: tuple[Config, ...]
    epsilon: float
    tune: TuneConfig

    @classmethod
    def of(cls, sweep: SweepConfig) -> Candidates:
        """The candidates of a sweep.

        Raises:
            ConfigError: one guarantee cannot cover them, or something would show more than the best.
            MissingDependencyError: a candidate's backend is not installed.
        """
        tune = sweep.tune or TuneConfig()
        _check(sweep, tune)
        for trial in sweep.trials:  # or every candidate would fail, and the selection be paid for
            load_backend(trial.config)
        epsilon = sweep.base.privacy.epsilon
        assert epsilon is not None
        # Where the split has no seed of its own it goes by init_seed, in which candidates may differ.
        data = dataclasses.replace(sweep.base.data, split_seed=sweep.base.split_seed)
        base = dataclasses.replace(_noisy(sweep.base, 1.0), data=data)
        configs = tuple(dataclasses.replace(trial.config, data=data) for trial in sweep.trials)
        return cls(base, configs, epsilon, tune)


@dataclass(frozen=True)
class Prepared:
    """What follows from public numbers, before anything is drawn.

    Attributes:
        rows: the rows.
        noise: the accounting of the whole selection.
        candidates: each candidate's configuration, its noise multiplier explicit.
        plans: each candidate's plan.
        score: the score's mechanism as plain data.
    """

    rows: TuningRows
    noise: SelectionNoise
    candidates: tuple[Config, ...]
    plans: tuple[Plan, ...]
    score: dict[str, float]

    @classmethod
    def make(
        cls,
        asked: Candidates,
        performance: Performance,
        folder: Path,
        on_prepare: Callable[[int], None] | None,
    ) -> Prepared:
        """Opens the rows and calibrates; everything that can be refused is refused here.

        Args:
            asked: the candidates.
            performance: threads and memory.
            folder: where stores of logs go.
            on_prepare: called with the number of examples of a log that are prepared so far.

        Raises:
            ConfigError: the sampler is not accounted under selection, or a model will not fit into memory.
            BudgetError: the budget is too small.
            StoreError: a store is damaged, or too small for units to be set aside.
        """
        tune = asked.tune
        rows = open_tuning_rows(asked.base, folder, tune.score_share, tune.score_seed, on_prepare)
        # Counted before units are set aside.
        units = rows.all.train.num_units(asked.base.privacy.unit)
        for config in asked.configs:
            check_room(config, _plan(config, 1.0, units).mechanism, performance)
        plan = rows.all.plan
        reason = selection_refusal(plan.event(), plan.relation)
        if reason is not None:
            raise ConfigError(f"Private selection is not offered here: {reason}. Use dpads sweep.")
        noise = noise_for_selection(
            [_event_of(config, units) for config in asked.configs],
            score=events.gaussian,
            mean=tune.mean_trials,
            shape=tune.shape,
            epsilon=asked.epsilon,
            delta=plan.delta,
            relation=plan.relation,
        )
        pairs = list(zip(asked.configs, noise.noise_multipliers, strict=True))
        return cls(
            rows=rows,
            noise=noise,
            candidates=tuple(_noisy(config, multiplier) for config, multiplier in pairs),
            plans=tuple(_plan(config, multiplier, units) for config, multiplier in pairs),
            score={
                "bound": tune.score_bound,
                "noise_multiplier": noise.score_noise_multiplier,
                # Public, and one number for all candidates: the units there are, times the share.
                "expected_units": tune.score_share
                * plan.mechanism.expected_batch_size
                / plan.mechanism.sampling_prob,
            },
        )


def _plan(config: Config, noise_multiplier: float, units: int) -> Plan:
    """A candidate's plan at a noise multiplier."""
    noisy = _noisy(config, noise_multiplier)
    return resolve_plan(noisy, noisy.privacy, noisy.l2_clip_norm, units)


def _check(sweep: SweepConfig, tune: TuneConfig) -> None:
    """Refuses what one guarantee cannot cover, or what would show more than the best."""
    if sweep.rows != "private":
        raise ConfigError(
            f'Expected rows = "private" to select privately, got "{sweep.rows}". Use dpads sweep.'
        )
    if sweep.reference or any(trial.reference for trial in sweep.trials):
        raise ConfigError(
            "A trial without noise reads private rows outside the guarantee, and private selection shows "
            "nothing beside the best. Leave out reference and infinite epsilons."
        )
    if sweep.base.privacy.epsilon is None:
        raise ConfigError(
            "Expected privacy.epsilon of the base, the budget of the whole selection, got none. Set it, in "
            "place of noise_multiplier."
        )
    for key in sweep.axes:
        table = key.split(".")[0]
        if table in _TABLES and key not in _ALLOWED:
            raise ConfigError(
                f"Expected axes under which all candidates have one guarantee, got {key}. Move it into the "
                "base; model, [training] and privacy.l2_clip_norm may vary."
            )
    if tune.score_seed == sweep.base.split_seed:
        raise ConfigError(
            f"Expected tune.score_seed to differ from the split's seed, got {tune.score_seed} for "
            "both: the units set aside would be those split off for the test."
        )


def _noisy(config: Config, noise_multiplier: float) -> Config:
    """The configuration with an explicit noise multiplier in place of a budget."""
    privacy = dataclasses.replace(
        config.privacy, epsilon=None, noise_multiplier=float(noise_multiplier)
    )
    return dataclasses.replace(config, privacy=privacy)


def _event_of(config: Config, units: int) -> Callable[[float], events.EventTree]:
    """The event of a candidate at any noise multiplier of its training, releases beside it included."""
    return lambda noise: _plan(config, noise, units).event()
