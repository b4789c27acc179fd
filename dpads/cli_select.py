"""Commands that choose a model: select, tune, recipe."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpads.cli_screen import (
    GroupProgress,
    JsonOption,
    WorkersOption,
    console,
    duration,
    print_json,
    print_markdown,
    print_metrics,
    say,
    watching,
    whole_number,
)
from dpads.run_files import read_json

if TYPE_CHECKING:
    from dpads.sweep_progress import SweepProgress

PLAIN_SECONDS = 60.0  # between lines about elapsed time where there is no terminal
LIKELY = 1e-3  # from which on a chance that nothing is selected is said

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
    from dpads.run_files import LEDGER, partial_of
    from dpads.sweep_config import load_sweep
    from dpads.training_settings import Performance
    from dpads.tune_config import TuneConfig

    config = load_sweep(sweep)
    chance = (config.tune or TuneConfig()).chance_of_nothing
    if chance > LIKELY and not partial_of(out).exists():
        say(
            f"With a chance of {chance:.2g} the law draws no candidate: then nothing is selected, and the "
            'budget is spent all the same. A larger tune.mean_trials makes that rarer; law = "geometric" '
            "rules it out."
        )
    try:
        with _terminated_like_interrupted(), _elapsed() as tell:
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


def recipe(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="The configuration to start from; its epsilon is the total."
        ),
    ],
    public: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help='Rows for the stages without noise: logs, a store, or the word "synthetic" for rows made up '
            "from the schema. Default: the private rows, which no guarantee then covers.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the recipe; one that was begun there goes on. Default: recipes/CONFIG."
        ),
    ] = None,
    hours: Annotated[
        float,
        typer.Option(
            help="That all trials with noise together may take; 19 trials without noise, or some more, come "
            "on top, about as long each."
        ),
    ] = 1.0,
    trials: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="Trials with noise, which share the budget."
        ),
    ] = 8,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    json_: JsonOption = False,
) -> None:
    """Find batch size, clip norm, noise and learning rates step by step, and train within one budget."""
    from dpads.recipe_choice import is_worse_than_average, worse_words
    from dpads.recipes import RECIPE
    from dpads.recipes import recipe as carry_out

    target = out or Path("recipes") / config.stem
    try:
        with _stages() as tell:
            run = carry_out(
                config,
                out=target,
                public=public,
                hours=hours,
                trials=trials,
                workers=workers,
                threads=threads,
                on_progress=tell,
            )
    except KeyboardInterrupt:
        words = ["dpads", "recipe", str(config), "--out", str(target), "--hours", f"{hours:g}"]
        words += ["--trials", str(trials)] + ([] if public is None else ["--public", public])
        say(f"Interrupted. Stages that are whole are kept. Go on with: {shlex.join(words)}")
        raise typer.Exit(1) from None
    document = read_json(target / RECIPE)
    if json_:
        print_json({"recipe": str(target), **document, "metrics": run.metrics})
        return
    for stage in document["stages"]:
        typer.echo(f"{stage['title']} ({_ROWS[stage['rows']]}). {stage['decision']}")
    print_metrics("Test metrics (exact reads, not covered)", {"the model": run.metrics})
    if is_worse_than_average(run.metrics):
        say(
            f"CAREFUL: the model {worse_words(run.metrics)}. Do not serve it: give the recipe a larger "
            "epsilon or more rows, fewer buckets, or smaller learning rates to begin from."
        )
    print_markdown(run.statement().headline)
    typer.echo(f"\n{target}: report.html, recipe.json, config.toml, model/")


_ROWS = {
    "public": "on public rows",
    "private": "on private rows",
    "synthetic": "on made-up rows",
    "none": "no rows read",
}


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Ends on SIGTERM as on Ctrl-C: processes are ended, and it is said how to go on."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _stages() -> Iterator[Callable[[str, SweepProgress | None], None]]:
    """Shows the stage and where its trials stand."""
    screen = console(stderr=True)
    if screen.is_terminal:
        with screen.status("starting") as status:
            yield lambda title, at: status.update(_stage_words(title, at))
        return
    shown = ""

    def tell(title: str, at: SweepProgress | None) -> None:
        nonlocal shown
        words = _stage_words(title, at)
        if words != shown:
            shown = words
            say(words)

    yield tell


def _stage_words(title: str, at: SweepProgress | None) -> str:
    """A stage and its trials."""
    if at is None:
        return title
    failed = f", {at.failed} failed" if at.failed else ""
    return f"{title}: {at.done} of {at.total} trials{failed}"


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
