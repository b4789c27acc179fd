"""The command line: `dpads COMMAND`. Exit code 0, 1 (the run failed) or 2 (wrong use, bad input)."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import dpads
from dpads import cli_bench, cli_data, cli_results, cli_select, cli_sweep, cli_train
from dpads.cli_screen import fail
from dpads.errors import InputError, RunError


class _Group(TyperGroup):
    """Turns what dpads raises on purpose into a line and an exit code."""

    def get_params(self, ctx: Any) -> Any:
        return _plain_flags(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _plain_flags(command.get_params(ctx))
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            fail(error)
            raise typer.Exit(2) from None
        except BrokenPipeError:  # whoever read the output has seen enough: click ends quietly
            raise
        except (RunError, OSError) as error:
            fail(error)
            raise typer.Exit(1) from None


def _plain_flags(parameters: list[Any]) -> list[Any]:
    """The parameters; the help shows no type beside those that take no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    name="dpads",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train click, conversion and conversion-count models under differential privacy, and "
    "state exactly what is guaranteed about them.",
    epilog="Exit code: 0 done, 1 the run failed, 2 wrong use or bad input.",
)
app.command()(cli_train.demo)
app.command()(cli_data.prepare)
app.command()(cli_data.plan)
app.command()(cli_train.train)
app.command()(cli_sweep.sweep)
app.command()(cli_select.select)
app.command()(cli_select.tune)
app.command()(cli_select.recipe)
app.command()(cli_results.evaluate)
app.command()(cli_results.predict)
app.command()(cli_results.export)
app.command()(cli_results.statement)
app.command()(cli_results.verify)
app.command()(cli_bench.bench)


def _version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        typer.echo(dpads.__version__)
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of `dpads` itself; the help text is the application's."""


def main() -> None:
    """Runs the command line and ends the process."""
    app(prog_name="dpads")
