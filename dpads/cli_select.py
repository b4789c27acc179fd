"""Commands that choose a model: select, tune, recipe."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dpads.cli_screen import (
    GroupProgress,
    JsonOption,
    console,
    duration,
    print_json,
    print_markdown,
    print_metrics,
    say,
    watching,
    whole_number,
)

PLAIN_SECONDS = 60.0  # between lines about elapsed time where there is no terminal

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        parser=whole_number,
        metavar="N",
        help="Threads that work; it changes nothing about privacy. Default: one for each core that "
        "the process may use.",
    ),
]


def select(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP_DIR", help="The folder of a sweep.")],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC", help="What to choose by. Default: the task's headline loss."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; it must not exist. Default: SWEEP_DIR/selected."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make the winner of a sweep a run whose statement charges it for every trial."""
    from dpads.selecting import SELECTED, choose
    from dpads.selecting import select as select_run
    from dpads.sweeping import Sweep

    opened = Sweep.open(sweep)
    with watching() as watch:
        run = select_run(
            opened,
            by=by,
            out=out,
            on_statement=lambda done, total: watch(GroupProgress(done, total)),
        )
    choice = choose(opened, by)
    headline = run.statement().headline
    target = out or sweep / SELECTED
    if json_:
        print_json(
            {
                "run": str(target),
                "trial": choice.trial.name,
                "by": choice.by,
                "mean": choice.mean,
                "seeds": choice.seeds,
                "settings_compared": choice.settings,
                "scored_rows": choice.rows,
                "score_covered": False,
                "headline": headline,
                "metrics": run.metrics,
            }
        )
        return
    typer.echo(choice.in_words)
    print_metrics("Test metrics (exact reads, not covered)", {"the winner": run.metrics})
    print_markdown(headline)
    typer.echo(f"\n{target}: model, statement.md, metrics.json, ledger.jsonl")


def tune(
    sweep: Annotated[
        Path,
        typer.Argument(metavar="SWEEP", help="A sweep in TOML: its trials are the candidates."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the run; it must not exist. An interrupted selection beside it goes on."
        ),
    ],
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Select a model privately: the best of a random, secret number of candidates, and nothing else.

    privacy.epsilon of the base is what all of it costs.
    """
    from dpads.private_selection import tune as tune_run
    from dpads.record import LEDGER, partial_of
    from dpads.sweep_config import load_sweep
    from dpads.training_settings import Performance

    config = load_sweep(sweep)
    try:
        with _elapsed() as tell:
            run = tune_run(
                config, out=out, performance=Performance(threads=threads), on_progress=tell
            )
    except KeyboardInterrupt:
        if (partial_of(out) / LEDGER).exists():
            words = ["dpads", "tune", str(sweep), "--out", str(out)]
            words += [] if threads is None else ["--threads", str(threads)]
            say(f"Interrupted. Go on with: {shlex.join(words)}")
        else:
            say("Interrupted before anything was drawn: nothing is spent.")
        raise typer.Exit(1) from None
    headline = run.statement().headline
    if json_:
        print_json({"run": str(out), "headline": headline, "metrics": run.metrics})
        return
    typer.echo(
        "One model was selected by noisy scores on training units that no candidate trains on; scores and "
        "selection are covered by the guarantee."
    )
    print_metrics("Test metrics (exact reads, not covered)", {"the selected": run.metrics})
    print_markdown(headline)
    typer.echo(f"\n{out}: model, statement.md, metrics.json, ledger.jsonl")


@contextmanager
def _elapsed() -> Iterator[Callable[[float], None]]:
    """Shows that the work goes on and for how long, and nothing else."""
    screen = console(stderr=True)
    if screen.is_terminal:
        with screen.status("selecting") as status:
            yield lambda seconds: status.update(f"selecting, {duration(seconds)} so far")
        return
    say("selecting")
    told = 0.0

    def tell(seconds: float) -> None:
        nonlocal told
        if seconds - told >= PLAIN_SECONDS:
            told = seconds
            say(f"selecting: {duration(seconds)} so far")

    yield tell
