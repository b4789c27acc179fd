"""The command that sweeps: many trials on the same rows, their results and what they cost together."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from dpads.cli_screen import (
    JsonOption,
    WorkersOption,
    console,
    duration,
    print_json,
    print_table,
    say,
    whole_number,
)

if TYPE_CHECKING:
    from dpads.sweep_progress import SweepProgress
    from dpads.sweeping import Sweep


class EngineName(StrEnum):
    """Who runs the trials."""

    LOCAL = "local"
    RAY = "ray"


def sweep(
    config: Annotated[
        Path,
        typer.Argument(metavar="SWEEP", help="TOML file: a base configuration and what varies."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sweep; one that was begun there goes on. Default: sweeps/SWEEP."
        ),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Processes on this machine, or tasks of a Ray cluster.")
    ] = EngineName.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of the Ray cluster. Default: the one that Ray finds, or one on this machine.",
        ),
    ] = None,
    workers: WorkersOption = None,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Threads of each trial. Default: the cores over the workers.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try trials again that failed. Where training was lost, its privacy is spent again.",
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Train one model for each setting, side by side; compare them, and say what looking at all costs.

    Started again, it goes on where it was. The exit code is 1 where a trial failed.
    """
    from dpads.sweeping import sweep as run_sweep

    folder = out or Path("sweeps") / config.stem
    latest: list[SweepProgress] = []
    try:
        with _watching() as (prepared, watch):

            def show(at: SweepProgress) -> None:
                latest[:] = [at]
                watch(at)

            result = run_sweep(
                config,
                out=folder,
                engine=engine.value,
                address=address,
                workers=workers,
                threads=threads,
                retry_failed=retry_failed,
                on_prepare=prepared,
                on_progress=show,
                on_note=say,
            )
    except KeyboardInterrupt:
        words = ["dpads", "sweep", str(config), "--out", str(folder)]
        words += [] if engine is EngineName.LOCAL else ["--engine", engine.value]
        words += [] if address is None else ["--address", address]
        words += [] if workers is None else ["--workers", str(workers)]
        done = f"{latest[0].done} of {latest[0].total} trials are done. " if latest else ""
        say(f"Interrupted. {done}Go on with: {shlex.join(words)}")
        raise typer.Exit(1) from None
    failed = _print_json(result) if json_ else _print(result)
    if failed:
        raise typer.Exit(1)


def _print_json(result: Sweep) -> int:
    """Everything for programs; how many trials failed."""
    rows = result.results.to_dicts()
    print_json(
        {
            "sweep": str(result.path),
            "report": str(result.path / "report.html"),
            "trials": [
                {key: "inf" if value == float("inf") else value for key, value in row.items()}
                for row in rows
            ],
            "cost": [cost.to_dict() for cost in result.costs],
        }
    )
    return sum(row["status"] == "failed" for row in rows)


def _print(result: Sweep) -> int:
    """The table of trials and what they cost; how many failed."""
    from dpads.evaluation import HEADLINE_LOSS

    rows = result.results.to_dicts()
    loss = HEADLINE_LOSS[result.config.base.schema.task]
    varied = [key for key in result.config.axes if len({str(row[key]) for row in rows}) > 1]
    axes = varied or list(result.config.axes)
    increase = "relative_increase"
    compared = any(row[increase] is not None for row in rows)
    # Where positives are rare, AUC alone looks better than it is.
    beside = ["pr_auc", "normalized_entropy"] if loss == "auc_loss" else []
    print_table(
        "Trials (exact reads of test rows, not covered)",
        [
            "trial",
            *map(_head, axes),
            loss.replace("_", " "),
            "95 %",
            *(name.replace("ed_", "ed\n").replace("_", " ") for name in beside),
            *(["over\nno noise"] if compared else []),
            "spent",
        ],
        [
            [
                row["trial"],
                *(_setting(key, row) for key in axes),
                row["status"] if row[loss] is None else f"{row[loss]:.4f}",
                _interval(row, loss),
                *("–" if row[name] is None else f"{row[name]:.4f}" for name in beside),
                *([_percent(row[increase])] if compared else []),
                _epsilon(row["epsilon"]),
            ]
            for row in rows
        ],
        caption="spent: epsilon of the trial alone",
    )
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        typer.echo(f"{row['trial']} failed: {row['error']}")
    for line in cost_lines(result):
        typer.echo(line)
    names = ("report.html", "results.parquet", "trials", "ledger.jsonl")
    left = [name for name in names if (result.path / name).exists()]
    typer.echo(f"\n{result.path}: {', '.join(left)}")
    return len(failed)


def cost_lines(result: Sweep) -> list[str]:
    """What a sweep costs and what of it may leave, a sentence each."""
    from dpads.accounting.accountant import round_up

    lines = []
    for cost in result.costs:
        which = "private trial costs"
        if cost.trials > 1:
            which = f"{cost.trials} private trials together cost"
        cap = "" if cost.cap is None else f", at most {cost.cap} rows of a user"
        lines.append(
            f"The {which} epsilon {round_up(cost.epsilon):.2f} at delta {cost.delta:g} (unit "
            f"{cost.unit}{cap}, {cost.relation.replace('_', '-')})."
        )
    if len(lines) > 1:
        lines.append("Figures of unlike units are not added up.")
    bare = sum(entry.kind == "reference" for entry in result.ledger.entries)
    if bare and result.config.rows == "private":
        models = "1 model" if bare == 1 else f"{bare} models"
        lines.append(f"No guarantee covers the {models} trained without noise on private rows.")
    lines.append(
        "Models, metrics and this table are for inside: none of them is released by a sweep."
    )
    return lines


def _head(key: str) -> str:
    """An axis as the head of a column: which table it is of where its last word does not tell."""
    table, _, name = key.rpartition(".")
    owner = table.rpartition(".")[2].removesuffix("_optimizer")
    return f"{owner} {name}".replace("_", " ") if "optimizer" in table else name.replace("_", " ")


def _setting(key: str, row: Mapping[str, Any]) -> str:
    """A setting in a cell; a model by its name and what tells it from others."""
    value = row[key]
    if key == "model":
        table = json.loads(value)
        rest = [f"{name} {item}" for name, item in table.items() if name != "name"]
        return " ".join([str(table["name"]), *rest])
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> str:
    """A relative increase."""
    return "–" if value is None else f"{100 * value:+.1f} %"


def _interval(row: Mapping[str, Any], name: str) -> str:
    """The interval of a metric."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _epsilon(value: float | None) -> str:
    """An epsilon, rounded up."""
    from dpads.accounting.accountant import round_up

    if value is None:
        return "–"
    if value == float("inf"):
        return "inf"
    return f"{round_up(value, 5):g}" if value < 0.1 else f"{round_up(value):.2f}"


Watch: TypeAlias = "tuple[Callable[[int], None], Callable[[SweepProgress], None]]"


@contextmanager
def _watching() -> Iterator[Watch]:
    """Shows on standard error where a sweep stands: bars on a terminal, a line for each trial elsewhere."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield _plain()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}"),
        console=screen,
        expand=True,
        transient=True,
    ) as bars:
        whole = bars.add_task("starting", total=None, facts="")
        shown: dict[str, Any] = {}

        def prepared(examples: int) -> None:
            bars.update(whole, description="preparing", facts=f"{examples:,} examples")

        def watch(at: SweepProgress) -> None:
            bars.update(
                whole, description="trials", total=at.total, completed=at.done + at.failed,
                facts=_facts(at),
            )  # fmt: skip
            names = {one.trial for one in at.running}
            for name in [name for name in shown if name not in names]:
                bars.remove_task(shown.pop(name))
            for one in at.running:
                if one.trial not in shown:
                    shown[one.trial] = bars.add_task(f"  {one.trial}", total=None, facts="starting")
                if one.iterations:
                    bars.update(
                        shown[one.trial], total=one.iterations, completed=one.iteration,
                        facts=f"{one.iteration:,}/{one.iterations:,} iterations",
                    )  # fmt: skip

        yield prepared, watch


def _plain() -> Watch:
    """A line when something has ended."""
    shown = ""
    preparing = False

    def prepared(_: int) -> None:
        nonlocal preparing
        if not preparing:
            say("preparing the logs")
        preparing = True

    def watch(at: SweepProgress) -> None:
        nonlocal shown
        now = f"{at.done + at.failed} {at.doing}"
        if now != shown:
            shown = now
            say(f"trials: {_facts(at)}")

    return prepared, watch


def _facts(at: SweepProgress) -> str:
    """Trials done, running, failed, the time left, and what is done after them."""
    parts = [f"{at.done}/{at.total} done"]
    if at.running:
        parts.append(f"{len(at.running)} running")
    if at.failed:
        parts.append(f"{at.failed} failed")
    if at.seconds_left is not None and at.done + at.failed < at.total:
        parts.append(f"{duration(at.seconds_left)} left")
    if at.doing is not None:
        parts.append(at.doing)
    return ", ".join(parts)
