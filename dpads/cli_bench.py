"""What training takes on this machine: the command bench, and what `plan` says of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpads.cli_screen import JsonOption, duration, gigabytes, measuring, print_json, print_table

if TYPE_CHECKING:
    from dpads.benching import StepTimes
    from dpads.config import Config
    from dpads.plan import PlanRow
    from dpads.resources import MemoryEstimate

DEFAULT_ROWS = (100_000, 1_000_000, 10_000_000)
DEFAULT_BATCH_SIZES = (1024, 4096)
DEFAULT_HIDDEN = (128, 64)
BENCH_SECONDS = 20.0
PLAN_SECONDS = 1.5  # for each batch size
EPOCH = 10_000_000  # examples


def bench(
    rows: Annotated[
        list[int] | None,
        typer.Option(
            help="Rows of all 26 tables together; may be given several times. Default: 1e5 to 1e7."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            help="Expected batch size; may be given several times. Default: 1024 and 4096."
        ),
    ] = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(help="Width of a hidden layer; given once for each. Default: 128 and 64."),
    ] = None,
    embedding_dim: Annotated[int, typer.Option(help="Width of the tables.")] = 16,
    json_: JsonOption = False,
) -> None:
    """Measure training steps on this machine, in about 20 seconds; needs no file."""
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
        )
    here = machine()
    if json_:
        print_json(
            {
                "machine": here,
                "model": {**model.to_dict(), "fields": FIELDS, "numeric": NUMBERS},
                "cells": [cell.to_dict() for cell in cells],
            }
        )
        return
    print_table(
        f"{FIELDS} fields of width {embedding_dim}, {NUMBERS} numbers, layers of "
        f"{', '.join(map(str, model.hidden))}; {here['cores']} cores",
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
        "Memory: of training, at its peak, estimated.",
    )
    for cell in (max(cells, key=_speed), min(cells, key=_speed))[: len(cells)]:
        typer.echo(
            f"An epoch of {EPOCH // 10**6} million examples takes about "
            f"{duration(EPOCH / cell.examples_per_second)} at {cell.rows:,} rows and batch size "
            f"{cell.expected_batch_size:,}, not counting the disk."
        )


def _speed(cell: StepTimes) -> float:
    """Examples a second."""
    return cell.examples_per_second


@dataclass(frozen=True)
class PlanCost:
    """What one line of a plan takes on this machine.

    Attributes:
        step_seconds: of a private step; None where no small measurement can tell.
        iterations: how many there are.
        memory: at the peak.
        problem: why it will not fit into memory, or None.
    """

    step_seconds: float | None
    iterations: int
    memory: MemoryEstimate
    problem: str | None

    @property
    def seconds(self) -> float | None:
        """The time of all iterations."""
        return None if self.step_seconds is None else self.step_seconds * self.iterations

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "step_ms": None if self.step_seconds is None else 1e3 * self.step_seconds,
            "seconds": self.seconds,
            "memory_bytes": self.memory.to_dict(),
            "fits_into_memory": self.problem is None,
        }


def plan_costs(config: Config, examples: int, rows: Sequence[PlanRow]) -> list[PlanCost]:
    """Time and memory of each line of a plan, from one short measurement for each batch size."""
    from dpads.benching import private_step_seconds
    from dpads.errors import ConfigError
    from dpads.resources import check_memory, estimate_memory
    from dpads.training import TrainingSettings

    training = config.training
    settings = TrainingSettings(
        backend=training.backend,
        table_noise=training.table_noise,
        table_optimizer=training.table_optimizer,
        tower_optimizer=training.tower_optimizer,
    )
    steps: dict[int, float | None] = {}
    costs = []
    with measuring() as show:
        for row in rows:
            batch = row.expected_batch_size
            if batch not in steps:
                show(f"measuring batch size {batch:,}")
                steps[batch] = private_step_seconds(
                    config.model,
                    config.schema,
                    settings,
                    expected_batch_size=batch,
                    num_examples=examples,
                    noise_multiplier=row.noise_multiplier,
                    l2_clip_norm=config.l2_clip_norm,
                    seconds=PLAN_SECONDS,
                )
            memory = estimate_memory(
                config.model,
                config.schema,
                expected_batch_size=batch,
                table_noise=training.table_noise,
            )
            problem = None
            try:
                check_memory(memory)
            except ConfigError as error:
                problem = str(error)
            costs.append(PlanCost(steps[batch], row.iterations, memory, problem))
    return costs


def print_costs(rows: Sequence[PlanRow], costs: Sequence[PlanCost]) -> None:
    """The second table of a plan, and what will not fit."""
    notes = ["step: measured on made-up batches, without reading from a disk."]
    if any(cost.step_seconds is None for cost in costs):
        notes.append(
            "–: the tables are too large for a short measurement, and smaller ones cannot stand in for them "
            'under dense noise or with embedding_dim = "auto".'
        )
    typer.echo()
    print_table(
        "On this machine",
        ["batch size", "epochs", "step", "examples/s", "time", "memory"],
        [
            [
                f"{row.expected_batch_size:,}",
                f"{row.epochs:g}",
                "–" if cost.step_seconds is None else f"{1e3 * cost.step_seconds:.1f} ms",
                "–"
                if cost.step_seconds is None
                else f"{row.expected_batch_size / cost.step_seconds:,.0f}",
                "–" if cost.seconds is None else duration(cost.seconds),
                gigabytes(cost.memory.total),
            ]
            for row, cost in zip(rows, costs, strict=True)
        ],
        caption=" ".join(notes),
    )
    largest = max(costs, key=lambda cost: cost.memory.total)
    if largest.problem is not None:
        typer.echo(largest.problem)
