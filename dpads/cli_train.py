"""Commands that train: train, demo."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpads.cli_processes import ending_for_all, join_processes
from dpads.cli_screen import (
    GroupProgress,
    JsonOption,
    LogProgress,
    print_json,
    print_markdown,
    print_metrics,
    say,
    watching,
    whole_number,
)

if TYPE_CHECKING:
    from dpads.config import DataConfig


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; it must not exist. Default: runs/CONFIG-TIME."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key, such as privacy.epsilon=1; may be given several times. The value "
            "is read as TOML, else as text.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run beside --out.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Threads that work; it changes nothing about privacy. Default: one for each core "
            "that the process may use.",
        ),
    ] = None,
    physical_batch_size: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Examples in memory at a time; it changes nothing about privacy. Default: the "
            "whole batch.",
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Train with other processes (backend = jax): where process 0 can be reached. Start "
            "this command once for each --process-id; the rows are a store in shards.",
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(parser=whole_number, metavar="N", help="How many processes there are."),
    ] = None,
    process_id: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="I",
            help="Which of them this is, from 0; 0 writes the run.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Train a model and write its run: parameters, ledger, metrics, statement."""
    group = (coordinator, num_processes, process_id)
    if any(value is not None for value in group):
        with ending_for_all():
            join_processes(
                *group,
                config=config,
                set_=set_ or (),
                out=out,
                resume=resume,
                physical_batch_size=physical_batch_size,
            )
            _train(config, out, set_, resume, threads, physical_batch_size, json_, group)
    else:
        _train(config, out, set_, resume, threads, physical_batch_size, json_, group)


def _train(
    config: Path,
    out: Path | None,
    set_: list[str] | None,
    resume: bool,
    threads: int | None,
    physical_batch_size: int | None,
    json_: bool,
    group: tuple[str | None, int | None, int | None],
) -> None:
    """`train`, in one process of several or alone."""
    from dpads.config import load_config
    from dpads.errors import ConfigError
    from dpads.run_files import partial_of
    from dpads.run_training import train_config
    from dpads.training_settings import Performance

    process = group[2] or 0
    if resume and out is None:
        raise ConfigError("--resume goes on with a run beside --out: give --out too.")
    target = out or Path("runs") / f"{config.stem}-{datetime.now():%Y%m%d-%H%M%S}"  # noqa: DTZ005
    parsed = load_config(config, set_ or ())
    performance = Performance(threads=threads, physical_batch_size=physical_batch_size)
    if not resume:  # an interrupted run has prepared its logs
        _check_logs(parsed.data)
    try:
        with watching() if process == 0 else nullcontext(_nobody) as watch:
            run = train_config(
                parsed,
                performance=performance,
                out=target,
                resume=resume,
                on_prepare=lambda examples: watch(LogProgress(examples)),
                on_progress=watch,
                on_rows=watch,
                on_statement=lambda done, total: watch(GroupProgress(done, total)),
            )
    except KeyboardInterrupt:
        if partial_of(target).is_dir():
            words = ["dpads", "train", str(config), "--out", str(target), "--resume"]
            words += [word for item in set_ or () for word in ("--set", item)]
            words += [] if threads is None else ["--threads", str(threads)]
            for name, value in zip(
                ("--coordinator", "--num-processes", "--process-id"), group, strict=True
            ):
                words += [] if value is None else [name, str(value)]
            if physical_batch_size is not None:
                words += ["--physical-batch-size", str(physical_batch_size)]
            say(f"Interrupted. Go on with: {shlex.join(words)}")
        else:
            say("Interrupted before training began: nothing was kept.")
        raise typer.Exit(1) from None
    if process > 0:
        say(f"Process {process}: done. Process 0 writes the run.")
        return
    result = run.statement()
    if json_:
        print_json({"run": str(target), "headline": result.headline, "metrics": run.metrics})
        return
    columns = {"this model": run.metrics}
    if "before_recalibration" in run.metrics:
        columns["before recalibration"] = run.metrics["before_recalibration"]
    if "reference" in run.metrics:
        columns["without privacy"] = run.metrics["reference"]
    if parsed.data.test is not None:
        print_metrics("Test metrics (exact reads, not covered)", columns)
    print_markdown(result.headline)
    typer.echo(f"\n{target}: model, statement.md, metrics.json, ledger.jsonl")


def _nobody(_: object) -> None:
    """Progress that process 0 shows."""


def _check_logs(data: DataConfig) -> None:
    """Looks for all logs before the first is read, so that the message can name the key.

    Raises:
        DataError: a key names no log.
    """
    from dpads.errors import DataError
    from dpads.reading import find_logs

    for key, names in (("train", data.train), ("test", data.test)):
        if not isinstance(names, tuple) or (len(names) == 1 and Path(names[0]).is_dir()):
            continue
        try:
            find_logs(names)
        except DataError as error:
            raise DataError(f"data.{key}: {error}") from None


def demo(json_: JsonOption = False) -> None:
    """Train on a synthetic log at epsilon 3; print metrics and the statement. Needs no file."""
    from dpads.cli_demo import run_demo

    say("A synthetic log of ad impressions, 3 % clicks, one model with privacy and one without.")
    with watching() as watch:
        demonstrated = run_demo(watch)
    columns = {
        "epsilon 3": demonstrated.metrics,
        "without privacy": demonstrated.metrics["reference"],
        "the truth": demonstrated.truth,
    }
    if json_:
        print_json({"headline": demonstrated.statement.headline, **columns})
        return
    print_metrics("Test metrics", columns)
    print_markdown(demonstrated.statement.to_markdown())
