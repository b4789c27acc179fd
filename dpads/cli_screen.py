"""What the command line shows: tables, progress, errors; plain where there is no terminal."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol, TypeAlias

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from dpads.run_job import RunProgress
    from dpads.training_settings import RowProgress

PLAIN_SECONDS: Final = 10.0  # between progress lines where there is no terminal
BAR_WIDTH: Final = 100  # columns of a terminal from which a bar has room beside the facts
SETTLED_SECONDS: Final = 1.0  # of a stage, before which nobody can tell how long it will take
MOST_DIGITS: Final = 18  # of whole numbers
COMPILING: Final = "compiling kernels (once per machine)"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@dataclass(frozen=True)
class LogProgress:
    """How many examples of a log are prepared; how many there will be is not known yet."""

    examples: int
    stage: str = "preparing"


@dataclass(frozen=True)
class GroupProgress:
    """How far the guarantee for users is computed.

    Attributes:
        done: deltas done.
        total: of how many.
        stage: what is shown.
    """

    done: int
    total: int
    stage: str = "guarantee for users"


Stage: TypeAlias = "RunProgress | RowProgress | LogProgress | GroupProgress"


class Watcher(Protocol):
    """Takes progress reports of all stages."""

    def __call__(self, at: Stage) -> None:
        """Shows where a run stands."""


def whole_number(text: object) -> int:
    """What an option says: 1000000, 1_000_000 or 1e6.

    Raises:
        BadParameter: it is no whole number.
    """
    try:
        number = Decimal(str(text))
    except InvalidOperation:
        number = Decimal("nan")
    small = number.is_finite() and number.adjusted() <= MOST_DIGITS
    if not small or number != int(number):
        raise typer.BadParameter(f'expected a whole number such as 1000000 or 1e6, got "{text}".')
    return int(number)


WorkersOption = Annotated[
    int | None,
    typer.Option(
        parser=whole_number,
        metavar="N",
        help="Trials at a time. Default: one for each core that the process may use.",
    ),
]


def console(*, stderr: bool = False) -> Console:
    """A console on the present standard streams, without colours or boxes where they are files."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """One line about what goes on, beside the results."""
    typer.echo(text, err=True)


def fail(error: Exception) -> None:
    """One readable line about what went wrong."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {error}", err=True)


def print_json(data: Any) -> None:
    """Figures for programs."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = ""
) -> None:
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    # At least as wide as its title, which would be wrapped otherwise.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    screen = console()
    table.min_width = min(len(title), screen.width)
    table.collapse_padding = True  # a plan fits into 80 columns
    table.caption, table.caption_justify = caption or None, "left"
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    if screen.is_terminal:
        screen.print(table)
        return
    with screen.capture() as captured:
        screen.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_markdown(text: str) -> None:
    """Markdown, laid out on a terminal and as it is elsewhere."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.markdown import Markdown

    console().print(Markdown(text))


def print_metrics(title: str, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Metrics side by side, the first column's with their intervals; what is not defined is a dash."""
    from dpads.evaluation import BESIDE_METRICS

    found = dict.fromkeys(name for values in columns.values() for name in values)
    names = [name for name in found if name not in BESIDE_METRICS]
    first, *others = columns.values()
    intervals = first.get("intervals", {})
    rows = [
        [
            name.replace("_", " "),
            _number(first.get(name)),
            _interval(intervals.get(name)),
            *(_number(values.get(name)) for values in others),
        ]
        for name in names
    ]
    own, *others_heads = columns
    heads = [own, "95 % interval", *others_heads]
    reasons = dict.fromkeys(
        reason for values in columns.values() for reason in values.get("undefined", {}).values()
    )
    print_table(title, ["", *heads], rows, caption="; ".join(f"–: {text}" for text in reasons))
    for name, values in columns.items():
        if (values.get("normalized_entropy") or 0.0) > 1.0:
            typer.echo(
                f"{name}: normalized entropy above 1, so it is worse than always predicting the rows' "
                "own rate."
            )


def print_calibration(table: Sequence[Mapping[str, Any]]) -> None:
    """What was predicted against what happened, from the lowest predictions to the highest."""
    if not table:
        return
    lowest = min(item["predicted"] for item in table)
    # Three digits of the smallest prediction, and as many decimals for all.
    digits = min(max(2 - math.floor(math.log10(lowest)), 3), 8) if lowest > 0.0 else 6
    rows = []
    for item in table:
        fits = item["low"] <= item["predicted"] <= item["high"]
        means = (f"{item[name]:.{digits}f}" for name in ("predicted", "observed"))
        ends = f"{item['low']:.{digits}f} to {item['high']:.{digits}f}"
        rows.append(["" if fits else "*", *means, ends, f"{item['rows']:,}"])
    off = sum(row[0] == "*" for row in rows)
    print_table(
        "Calibration, rows in the order of their predictions",
        ["", "predicted", "observed", "95 % interval", "rows"],
        rows,
        caption=f"* not in the interval: {off} of {len(rows)} bins" if off else "",
    )


def _number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float] | None) -> str:
    """Both ends, or a dash."""
    return "–" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def gigabytes(count: float) -> str:
    """A number of bytes."""
    return f"{count / 1e9:,.2f} GB"


@contextmanager
def _telling_of_compilation(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` once if kernels are compiled: the first run on a machine has no cache of them."""
    from numba.core import event

    class Listener(event.Listener):
        told = False

        def on_start(self, _: Any) -> None:
            if not self.told:
                self.told = True
                tell()

        def on_end(self, _: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield


@contextmanager
def measuring() -> Iterator[Callable[[str], None]]:
    """Shows on standard error what is measured: in one place on a terminal, line by line elsewhere."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        with _telling_of_compilation(lambda: say(COMPILING)):
            yield say
        return
    shown = "measuring"
    with screen.status(shown) as status:

        def show(text: str) -> None:
            nonlocal shown
            shown = text
            status.update(text)

        with _telling_of_compilation(lambda: status.update(f"{shown}, {COMPILING}")):
            yield show


@contextmanager
def watching() -> Iterator[Watcher]:
    """Shows progress on standard error: bars on a terminal, a line now and then elsewhere."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        with _telling_of_compilation(lambda: say(COMPILING)):
            yield _PlainWatcher()
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn

    moving: ProgressColumn = SpinnerColumn(finished_text="✓")
    if screen.width >= BAR_WIDTH:
        moving = BarColumn(bar_width=None)
    with Progress(
        TextColumn("{task.description}"),
        moving,
        TextColumn("{task.fields[facts]}"),
        console=screen,
        expand=True,
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}
        began: dict[str, float] = {}
        # What is shown until a stage reports, so that no screen is empty.
        waiting = bars.add_task("starting", total=None, facts="")

        def watch(at: Stage) -> None:
            done, total = _counts(at)
            now = time.monotonic()
            bars.update(waiting, visible=False)
            if at.stage not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=1, total=1)
                tasks[at.stage] = bars.add_task(at.stage, total=total, facts="")
                began[at.stage] = now
            settled = now - began[at.stage] >= SETTLED_SECONDS
            bars.update(tasks[at.stage], completed=done, facts=_facts(at, settled=settled))

        def tell() -> None:
            bars.update(waiting, description=COMPILING, visible=True)

        with _telling_of_compilation(tell):
            yield watch


class _PlainWatcher:
    """A line when a stage begins, now and then, and when it ends."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = 0.0
        self._last = 0.0

    def __call__(self, at: Stage) -> None:
        now = time.monotonic()
        done, total = _counts(at)
        if at.stage != self._stage:
            self._began = now
        due = at.stage != self._stage or now - self._last >= PLAIN_SECONDS
        if due or done == total:
            say(f"{at.stage}: {_facts(at, settled=now - self._began >= SETTLED_SECONDS)}")
            self._stage, self._last = at.stage, now


def _counts(at: Stage) -> tuple[int, int | None]:
    """What is done, and what is to be done in all, where that is known."""
    from dpads.training_settings import RowProgress

    if isinstance(at, LogProgress):
        return at.examples, None
    if isinstance(at, GroupProgress):
        return at.done, at.total
    return (at.rows, at.total) if isinstance(at, RowProgress) else (at.iteration, at.iterations)


def _facts(at: Stage, *, settled: bool = True) -> str:
    """Iterations, speed, time left once it has settled, epsilon spent; or rows; or examples."""
    from dpads.training_settings import RowProgress

    if isinstance(at, LogProgress):
        return f"{at.examples:,} examples"
    if isinstance(at, GroupProgress):
        return f"{at.done} of {at.total} deltas"
    if isinstance(at, RowProgress):
        return f"{at.rows:,}/{at.total:,} rows of tables"
    parts = [
        f"{at.iteration:,}/{at.iterations:,} iterations",
        f"{at.examples_per_second:,.0f} examples/s",
    ]
    if settled:
        parts.append(f"{duration(at.seconds_left)} left")
    if at.epsilon_spent is not None:
        parts.append(f"epsilon {at.epsilon_spent:.2f}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time in the two largest units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
