"""What training takes on this machine: the command bench, and what `plan` says of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpads.cli_screen import (
    JsonOption,
    duration,
    gigabytes,
    measuring,
    print_json,
    print_table,
    whole_number,
)

if TYPE_CHECKING:
    from dpads.benching import StepTimes
    from dpads.config import Config
    from dpads.plan_rows import PlanRow
    from dpads.resources import MemoryEstimate
    from dpads.schema import FeatureSchema

DEFAULT_ROWS = (100_000, 1_000_000, 10_000_000)
DEFAULT_BATCH_SIZES = (1024, 4096)
DEFAULT_HIDDEN = (128, 64)
BENCH_SECONDS = 20.0
PLAN_SECONDS = 1.5  # for each batch size, and at most for the disk
EPOCH = 10_000_000  # examples


class BackendName(StrEnum):
    """What trains."""

    TORCH = "torch"
    JAX = "jax"


def bench(
    rows: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Rows of all 26 tables together; may be given several times. Default: 1e5, 1e6 "
            "and 1e7.",
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Expected batch size; may be given several times. Default: 1024 and 4096.",
        ),
    ] = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Width of a hidden layer; given once for each. Default: 128 and 64.",
        ),
    ] = None,
    embedding_dim: Annotated[
        int, typer.Option(parser=whole_number, metavar="N", help="Width of the tables.")
    ] = 16,
    backend: Annotated[
        BackendName, typer.Option(help="What trains: torch, or jax on the devices that it finds.")
    ] = BackendName.TORCH,
    json_: JsonOption = False,
) -> None:
    """Measure training steps on this machine, in about 20 seconds; needs no file.

    The first command on a machine that trains compiles kernels, which takes as long again. JAX compiles
    anew for every size: two minutes in all.
    """
    from dpads.benching import FIELDS, NUMBERS, machine, measure_grid
    from dpads.models import Mlp

    model = Mlp(embedding_dim=embedding_dim, hidden=tuple(hidden or DEFAULT_HIDDEN))
    with measuring() as show:
        cells = measure_grid(
            model,
            rows or list(DEFAULT_ROWS),
            batch_size or list(DEFAULT_BATCH_SIZES),
            seconds=BENCH_SECONDS,
            on_cell=lambda number, batch: show(f"measuring {number:,} rows, batch size {batch:,}"),
            backend=backend,
        )
    here = machine()
    if json_:
        print_json(
            {
                "machine": here,
                "backend": backend,
                "model": {**model.to_dict(), "fields": FIELDS, "numeric": NUMBERS},
                "cells": [cell.to_dict() for cell in cells],
            }
        )
        return
    print_table(
        f"{FIELDS} fields of width {embedding_dim}, {NUMBERS} numbers, layers of "
        f"{', '.join(map(str, model.hidden))}; "
        f"{backend} on {_cores(here) if backend is BackendName.TORCH else _devices(here)}",
        ["rows", "batch size", "private", "no noise", "ratio", "examples/s", "memory"],
        [
            [
                f"{cell.rows:,}",
                f"{cell.expected_batch_size:,}",
                f"{cell.private_ms:.1f} ms",
                f"{cell.without_noise_ms:.1f} ms",
                f"{cell.private_ms / cell.without_noise_ms:.2f}",
                f"{cell.examples_per_second:,.0f}",
                gigabytes(cell.memory.total),
            ]
            for cell in cells
        ],
        caption="Medians of one step; no noise: the same step without noise and clipping. "
        "Memory: of training, at its peak, estimated. "
        f"Rows: {FIELDS} equal tables, so that a number is rounded down to a multiple of {FIELDS}.",
    )
    found = _devices(here)
    typer.echo(f"JAX found {found}." if found else "JAX is not installed.")
    ends = {"Fastest": max(cells, key=_speed), "Slowest": min(cells, key=_speed)}
    typer.echo(f"An epoch of {EPOCH // 10**6} million examples, not counting the disk:")
    for name, cell in list(ends.items())[: len(cells)]:
        label = f"{name}: " if len(cells) > 1 else ""
        typer.echo(
            f"  {label}about {duration(EPOCH / cell.examples_per_second)} at {cell.rows:,} rows and "
            f"batch size {cell.expected_batch_size:,}."
        )


def _cores(machine: Mapping[str, Any]) -> str:
    """The cores, in words."""
    return f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"


def _devices(machine: Mapping[str, Any]) -> str:
    """The devices that JAX found, in words."""
    words = []
    for device in machine["devices"]:
        kind = "" if device["kind"] == device["platform"] else f" ({device['kind']})"
        words.append(f"{device['number']} {device['platform'].upper()}{kind}")
    return " and ".join(words)


def _speed(cell: StepTimes) -> float:
    """Examples a second."""
    return cell.examples_per_second


@dataclass(frozen=True)
class PlanCost:
    """What one line of a plan takes on this machine.

    Attributes:
        step_seconds: of a private step; None where no small measurement can tell.
        table_seconds: in which all rows are made, finished and written; likewise.
        iterations: how many there are.
        memory: at the peak.
        problem: why it will not fit into memory, or None.
    """

    step_seconds: float | None
    table_seconds: float | None
    iterations: int
    memory: MemoryEstimate
    problem: str | None

    @property
    def seconds(self) -> float | None:
        """The time of all iterations and of the tables."""
        if self.step_seconds is None or self.table_seconds is None:
            return None
        return self.step_seconds * self.iterations + self.table_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "step_ms": None if self.step_seconds is None else 1e3 * self.step_seconds,
            "table_seconds": self.table_seconds,
            "seconds": self.seconds,
            "memory_bytes": self.memory.to_dict(),
            "fits_into_memory": self.problem is None,
        }


def plan_costs(config: Config, examples: int, rows: Sequence[PlanRow]) -> list[PlanCost]:
    """Time and memory of each line of a plan, from short measurements of steps, tables and disk.

    Users are taken to have as many examples as they may have at most.
    """
    from dpads.benching_costs import (
        disk_rates,
        private_step_seconds,
        sampled_schema,
        table_seconds,
    )
    from dpads.resources import estimate_memory
    from dpads.training import TrainingSettings

    training, model, schema = config.training, config.model, config.schema
    rows_per_unit = config.privacy.rows_per_unit
    settings = TrainingSettings(
        backend=training.backend,
        table_noise=training.table_noise,
        table_optimizer=training.table_optimizer,
        tower_optimizer=training.tower_optimizer,
    )

    def memory_at(at: FeatureSchema, batch: int) -> MemoryEstimate:
        return estimate_memory(
            model,
            at,
            expected_batch_size=batch * rows_per_unit,
            table_noise=training.table_noise,
            backend=training.backend,
            counted=config.selection.kind != "none",
        )

    sample = sampled_schema(model, schema) or schema
    steps: dict[int, float | None] = {}
    tables = disk = None
    with measuring() as show:
        for row in rows:
            batch = row.expected_batch_size
            if batch in steps or _problem(memory_at(sample, batch)) is not None:
                continue
            show(f"measuring batch size {batch:,}")
            steps[batch] = private_step_seconds(
                model,
                schema,
                settings,
                expected_batch_size=batch * rows_per_unit,
                num_examples=examples * rows_per_unit,
                noise_multiplier=row.noise_multiplier,
                l2_clip_norm=config.l2_clip_norm,
                seconds=PLAN_SECONDS,
            )
        if any(step is not None for step in steps.values()):
            show("measuring how tables are made, finished and written")
            tables = table_seconds(model, schema, settings)
            disk = disk_rates(model, schema, seconds=PLAN_SECONDS)
    costs = []
    for row in rows:
        memory = memory_at(schema, row.expected_batch_size)
        step, finished = steps.get(row.expected_batch_size), None
        if step is not None and tables is not None and disk is not None:
            state = memory.tables + memory.history + memory.checkpoint
            finished = tables + disk.seconds(memory.tables, state, step * row.iterations)
        costs.append(PlanCost(step, finished, row.iterations, memory, _problem(memory)))
    return costs


def _problem(memory: MemoryEstimate) -> str | None:
    """Why a model will not fit into memory, or None."""
    from dpads.errors import ConfigError
    from dpads.resources import check_memory

    try:
        check_memory(memory)
    except ConfigError as error:
        return str(error)
    return None


def print_costs(rows: Sequence[PlanRow], costs: Sequence[PlanCost]) -> None:
    """The second table of a plan."""
    notes = (
        "step: measured on made-up batches. tables: making, finishing and writing all rows. "
        "time: both; reading logs and metrics are not in it."
    )
    if any(cost.step_seconds is None for cost in costs):
        notes += (
            " –: does not fit into memory, or the tables are too large for a short measurement and smaller "
            'ones cannot stand in for them: under dense noise or with embedding_dim = "auto".'
        )
    typer.echo()
    print_table(
        "On this machine",
        ["batch size", "epochs", "step", "examples/s", "tables", "time", "memory"],
        [
            [
                f"{row.expected_batch_size:,}",
                f"{row.epochs:g}",
                "–" if cost.step_seconds is None else f"{1e3 * cost.step_seconds:.1f} ms",
                "–"
                if cost.step_seconds is None
                else f"{row.expected_batch_size / cost.step_seconds:,.0f}",
                _time(cost.table_seconds),
                _time(cost.seconds),
                gigabytes(cost.memory.total),
            ]
            for row, cost in zip(rows, costs, strict=True)
        ],
        caption=notes,
    )


def _time(seconds: float | None) -> str:
    """A time, also of less than a second, or a dash."""
    if seconds is None:
        return "–"
    return duration(seconds) if seconds >= 1.0 else f"{1e3 * seconds:.0f} ms"


def check_costs(costs: Sequence[PlanCost]) -> None:
    """Refuses a plan, once it is printed, that this machine cannot carry out.

    Raises:
        ConfigError: a line does not fit into memory.
    """
    from dpads.errors import ConfigError

    problems = [cost for cost in costs if cost.problem is not None]
    if problems:
        raise ConfigError(max(problems, key=lambda cost: cost.memory.total).problem)
