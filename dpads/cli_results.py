"""Commands on a finished run: evaluate, predict, statement."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpads.cli_screen import JsonOption, console, print_json, print_markdown, print_metrics, say

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
DataArgument = Annotated[
    list[str], typer.Argument(metavar="DATA", help="A store, or logs as for prepare.")
]


class StatementFormat(StrEnum):
    """How a statement is written."""

    MD = "md"
    JSON = "json"


def evaluate(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[
        Path | None, typer.Option(help="Write the metrics to this JSON file, which must not exist.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print metrics on labelled rows: an exact read, which the run's ledger then says."""
    from dpads.record import new_file, to_json, write_text
    from dpads.run import Run
    from dpads.run_data import opened

    if out is not None:
        new_file(out)
    loaded = Run.load(run)
    with console(stderr=True).status("evaluating"), opened(data, loaded.model.schema) as store:
        values = loaded.evaluate(store).to_dict()
    if out is not None:
        write_text(out, to_json(values))
    if json_:
        print_json(values)
    elif out is None:
        print_metrics("Metrics", {"model": values})
    say(
        "These metrics are exact reads of rows that may be training rows: the run's statement now says so, "
        "and its claim rests on their staying inside."
    )


def predict(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Parquet file to write, which must not exist.")],
) -> None:
    """Write predictions, one per row of the input and in its order; no label is needed."""
    from dpads.record import new_file
    from dpads.run import Run
    from dpads.run_data import opened, write_predictions

    new_file(out, suffix=".parquet")
    loaded = Run.load(run)
    rows = opened(data, loaded.model.schema, labelled=False)
    with console(stderr=True).status("predicting"), rows as store:
        predictions = loaded.predict(store)
    write_predictions(out, predictions)
    typer.echo(f"{out}: {len(predictions):,} predictions")


def statement(
    run: RunArgument,
    format_: Annotated[
        StatementFormat, typer.Option("--format", help="Markdown for people, JSON for machines.")
    ] = StatementFormat.MD,
) -> None:
    """Print what is guaranteed about the model, on which assumptions, and what is not covered."""
    from dpads.run import Run

    result = Run.load(run).statement()
    if format_ is StatementFormat.JSON:
        typer.echo(result.to_json())
    else:
        print_markdown(result.to_markdown())
