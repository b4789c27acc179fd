"""The recipe's batch size: the largest in the time that was asked for, timed on made-up batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dpads.benching_costs import private_step_seconds
from dpads.config import Config
from dpads.errors import ConfigError
from dpads.recipe_ask import noisy
from dpads.resources import check_memory, estimate_memory
from dpads.run_data import resolve_plan
from dpads.training import TrainingSettings

MEASURE_SECONDS: Final = 1.0  # for each batch size

Measured = tuple[int, float | None, float | None]


def batch_sizes(config: Config, dataset_size: int) -> list[int]:
    """Powers of two of the configured batch, up to all units, as far as memory goes."""
    sizes, size = [], config.training.expected_batch_size
    while size <= dataset_size:
        try:
            check_memory(
                estimate_memory(
                    config.model,
                    config.schema,
                    expected_batch_size=size * config.privacy.rows_per_unit,
                    table_noise=config.training.table_noise,
                    backend=config.training.backend,
                    counted=config.selection.kind != "none",
                )
            )
        except ConfigError:
            break
        sizes.append(size)
        size *= 2
    return sizes or [config.training.expected_batch_size]


def largest_in_time(
    sizes: Sequence[int],
    iterations: int,
    seconds: float,
    step_seconds: Callable[[int], float | None],
) -> tuple[int, list[Measured]]:
    """The largest batch with which one trial's iterations fit into a time.

    Args:
        sizes: rising; the first is taken in any case.
        iterations: of a trial, the same at each size: larger batches see more rows.
        seconds: that a trial may take.
        step_seconds: measures a step at a size; None where it cannot.

    Returns:
        The size, and for each measured one: size, seconds a step, seconds a trial.
    """
    found, chosen = [], sizes[0]
    for size in sizes:
        step = step_seconds(size)
        total = None if step is None else step * iterations
        found.append((size, step, total))
        if total is None or total > seconds:
            break
        chosen = size
    return chosen, found


def measuring(config: Config, units: int) -> Callable[[int], float | None]:
    """What times a step at a batch size; no row is read."""
    training, rows_per_unit = config.training, config.privacy.rows_per_unit
    settings = TrainingSettings(
        backend=training.backend,
        table_noise=training.table_noise,
        table_optimizer=training.table_optimizer,
        tower_optimizer=training.tower_optimizer,
    )

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

    return measure


def check_hours(config: Config, hours: float, trials: int) -> None:
    """Refuses a time that even the smallest batch cannot meet, before anything is trained or charged.

    Raises:
        ConfigError: the message has the time that it would take.
    """
    trial = noisy(config, 1.0)
    iterations = resolve_plan(trial, trial.privacy, trial.l2_clip_norm, None).mechanism.iterations
    units = config.privacy.dataset_size
    assert units is not None
    smallest = batch_sizes(config, units)[:1]
    ((size, _, total),) = largest_in_time(smallest, iterations, 0.0, measuring(config, units))[1]
    if total is not None and total * trials > 3600.0 * hours:
        raise ConfigError(
            f"Expected hours to be enough for {trials} trials of {iterations:,} iterations, got {hours:g}: "
            f"even batches of {size:,} take about {total * trials / 3600.0:.2g} h for {trials} trials. "
            "Give it more hours, or fewer trials or training.epochs."
        )


def batch_evidence(measured: Sequence[Measured], trials: int) -> dict[str, Any]:
    """Columns and rows of the evidence."""
    return {
        "columns": ["expected batch size", "a step", "all trials"],
        "evidence": [
            [size, time_words(step), time_words(None if total is None else total * trials)]
            for size, step, total in measured
        ],
    }


def time_words(seconds: float | None) -> str | None:
    """A time in the unit in which it is read most easily.

    Examples:
        >>> time_words(0.1748), time_words(0.00042), time_words(95.0), time_words(9000.0)
        ('0.17 s', '0.42 ms', '1.6 min', '2.5 h')
    """
    if seconds is None:
        return None
    for least, unit, words in ((3600.0, 3600.0, "h"), (60.0, 60.0, "min"), (0.1, 1.0, "s")):
        if seconds >= least:
            return f"{seconds / unit:.2g} {words}"
    return f"{seconds * 1e3:.2g} ms"
