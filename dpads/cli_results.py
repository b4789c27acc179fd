"""Commands on a finished run: evaluate, predict, export, statement, verify."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpads.cli_screen import (
    JsonOption,
    console,
    fail,
    measuring,
    print_calibration,
    print_json,
    print_markdown,
    print_metrics,
    print_table,
    say,
)
from dpads.errors import ConfigError, VerificationError

if TYPE_CHECKING:
    from dpads.accounting.findings import Finding

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
DataArgument = Annotated[
    list[str], typer.Argument(metavar="DATA", help="A store, or logs as for prepare.")
]


class ExportFormat(StrEnum):
    """What a model is exported as."""

    ONNX = "onnx"
    TORCH = "torch"


class StatementFormat(StrEnum):
    """How a statement is written."""

    MD = "md"
    JSON = "json"
    HTML = "html"


def evaluate(
    run: RunArgument,
    data: DataArgument,
    out: Annotated[
        Path | None, typer.Option(help="Write the metrics to this JSON file, which must not exist.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the reliability plot into this .png or .svg, which must not exist."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print metrics on labelled rows: an exact read, which the run's ledger then says."""
    from dpads.report_reliability import SUFFIXES, plot_of, write_plot
    from dpads.run import Run
    from dpads.run_data import opened
    from dpads.run_files import new_file, to_json, write_text

    if out is not None:
        new_file(out)
    if plot is not None:
        if plot.suffix not in SUFFIXES:
            raise ConfigError(f"{plot}: expected a name that ends with {' or '.join(SUFFIXES)}.")
        new_file(plot)
    loaded = Run.load(run)
    with console(stderr=True).status("evaluating"), opened(data, loaded.model.schema) as store:
        values = loaded.evaluate(store).to_dict()
    if out is not None:
        write_text(out, to_json(values))
    if plot is not None and values.get("calibration_table"):
        counts = loaded.model.schema.task == "count"
        write_plot(plot_of(values, title="Reliability on labelled rows", counts=counts), plot)
    if json_:
        print_json(values)
    elif out is None:
        print_metrics("Metrics", {"model": values})
        print_calibration(values.get("calibration_table", ()))
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
    from dpads.predicting import predict_logs
    from dpads.run import Run
    from dpads.run_data import write_predictions
    from dpads.run_files import new_file
    from dpads.store import ExampleStore

    new_file(out, suffix=".parquet")
    loaded = Run.load(run)
    with console(stderr=True).status("predicting"):
        if len(data) == 1 and Path(data[0]).is_dir():
            count = write_predictions(out, [loaded.predict(ExampleStore.open(data[0]))])
        else:
            count = write_predictions(out, predict_logs(loaded.model, data))
    typer.echo(f"{out}: {count:,} predictions")


def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(help="File to write, which must not exist: .onnx, or .pt2 for torch.")
    ],
    format_: Annotated[
        ExportFormat | None,
        typer.Option(
            "--format",
            help="An ONNX model, or a program that torch.export.load reads. Default: as --out ends.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write the model for other programs; it takes the log's columns, their ids hashed to rows of tables."""
    from dpads.exporting import ONNX, TORCH, check_exportable, describe_inputs, export_model
    from dpads.record import ModelMissingError
    from dpads.run import Run
    from dpads.run_files import new_file

    if format_ is None:
        if out.suffix not in (ONNX, TORCH):
            raise ConfigError(
                f"{out}: expected a name that ends with {ONNX}, or {TORCH} for torch."
            )
        suffix = out.suffix
    else:
        suffix = ONNX if format_ is ExportFormat.ONNX else TORCH
    new_file(out, suffix=suffix)
    loaded = Run.load(run)
    check_exportable(loaded.config.model)
    try:
        loaded.model  # noqa: B018 (looks whether there is one)
    except ModelMissingError as error:
        raise ConfigError(f"{error} Then export_onnx(path) writes it.") from None
    with console(stderr=True).status("exporting"):
        export_model(loaded.model, out, suffix)
    inputs = describe_inputs(loaded.model.schema)
    if json_:
        print_json({"file": str(out), "inputs": inputs})
        return
    rows = []
    for item in inputs:
        size = f"{item['rows']:,}" if "rows" in item else "–"
        rows.append([item["name"], item["type"], f"[{', '.join(item['shape'])}]", size])
    print_table("Inputs", ["", "type", "shape", "rows of its table"], rows)
    typer.echo(f"{out}: written")


def statement(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folder of a run. Several runs on the same rows are stated together.",
        ),
    ],
    format_: Annotated[
        StatementFormat,
        typer.Option("--format", help="Markdown or one HTML page for people, JSON for machines."),
    ] = StatementFormat.MD,
    public: Annotated[
        bool,
        typer.Option(
            "--public", help="Leave out what was read off private rows: the copy to release."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write to this file, which must not exist, and do not print."),
    ] = None,
) -> None:
    """Print what is guaranteed about the model, on which assumptions, and what is not covered."""
    from dpads.report import build_joint_statement
    from dpads.run import Run
    from dpads.run_files import new_file, write_text

    if out is not None:
        new_file(out)
    loaded = [Run.load(run) for run in runs]
    with measuring() as show:

        def groups(done: int, of: int) -> None:
            show(f"computing the guarantee for users: {done} of {of} deltas")

        if len(loaded) == 1:
            result = loaded[0].statement(groups)
        else:
            result = build_joint_statement(loaded, on_progress=groups)
    if public:
        result = result.public()
    if format_ is StatementFormat.JSON:
        text = result.to_json()
    elif format_ is StatementFormat.HTML:
        from dpads.accounting.page import to_html

        text = to_html(result.data)
    else:
        text = result.to_markdown()
    if out is not None:
        write_text(out, text)
        say(f"{out}: written")
    elif format_ is StatementFormat.MD:
        print_markdown(text)
    else:
        typer.echo(text)


def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN|STATEMENT", help="Folder of a run, or a statement in JSON."),
    ],
    json_: JsonOption = False,
) -> None:
    """Recompute everything that is claimed; end with 1 and name the first item that does not hold."""
    from dpads.verifying import verify as verify_path

    with measuring() as show:
        result = verify_path(path, on_progress=show)
    if json_:
        print_json(result.to_dict())
    else:
        _print_findings(result.findings)
    first = result.first_failure
    if first is not None:
        fail(VerificationError(str(first)))
        raise typer.Exit(1)


def _print_findings(findings: Sequence[Finding]) -> None:
    """What was recomputed: a table on a terminal, a line for each item elsewhere."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = console()
    if not screen.is_terminal:
        for found in findings:
            typer.echo(f"{'holds' if found.held else 'FAILS'}  {found}")
        return
    table = Table("Recomputed", "", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for found in findings:
        # As text, not as markup: a statement may come from anybody.
        mark = Text("holds", style="green") if found.held else Text("fails", style="bold red")
        table.add_row(Text(found.item, overflow="fold"), mark, Text(found.note))
    screen.print(table)
