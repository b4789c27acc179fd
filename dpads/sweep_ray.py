"""Trials on a Ray cluster, whose machines share the sweep's folder."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dpads
from dpads.errors import ConfigError, MissingDependencyError, RunError
from dpads.run_files import partial_of
from dpads.sweep_engine import OnEvent, TrialEvent
from dpads.sweep_trial import TrialOutcome, TrialTask, run_trial

if TYPE_CHECKING:
    from dpads.run_job import RunProgress

CONNECT_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 20.0
CHECK_SECONDS: Final = (
    60.0  # for every machine to look into the folder; a worker may have to start first
)
_POLL_SECONDS: Final = 0.5
# An interpreter of its own tries first: Ray ends the process where a port answers that is not Ray's.
_PROBE: Final = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


def run_trials_on_ray(
    tasks: Sequence[TrialTask],
    *,
    folder: Path,
    address: str | None,
    workers: int | None,
    on_event: OnEvent,
    on_note: Callable[[str], None] = lambda _: None,
) -> list[TrialOutcome]:
    """Runs trials as Ray tasks, each on as many cores as it has threads; Ray repeats none.

    Args:
        tasks: what to do.
        folder: of the sweep, which every machine must see under the same path.
        address: HOST:PORT; None for the cluster that RAY_ADDRESS or Ray itself names, or else one on
            this machine for as long as the sweep runs.
        workers: how many trials run at a time; None for as many as the cluster has cores for.
        on_event: called as by `dpads.sweep_engine.run_trials`.
        on_note: told which cluster it is.

    Returns:
        How each ended, in the order of the tasks.

    Raises:
        ConfigError: the address is none.
        MissingDependencyError: Ray is not installed.
        RunError: no cluster answers, or a machine of it does not see the folder or has another dpads.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            'engine = "ray" needs the package ray. Install it: pip install "dpads[ray]"'
        ) from error
    with _connected(ray, address, on_note):
        _check_machines(ray, folder)
        return _Run(ray, tasks, workers, on_event).carry_out()


@contextmanager
def _connected(ray: Any, address: str | None, on_note: Callable[[str], None]) -> Iterator[None]:
    """A connection to a cluster; one that the caller has made already is used and left as it is."""
    if ray.is_initialized():
        on_note("Ray: the cluster that this process is connected to")
        yield
        return
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address if address is not None else os.environ.get("RAY_ADDRESS")
    if address is not None:
        _probe(address)
        ray.init(address=address, **options)
        on_note(f"Ray: the cluster at {address}")
    elif _refusal("auto") is None:
        ray.init(address="auto", **options)
        on_note("Ray: the cluster on this machine")
    else:
        on_note("Ray: no cluster was named or answers, so one is started here for this sweep alone")
        ray.init(address="local", include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Finds out, in bounded time, whether a cluster answers."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ConfigError(f'address: expected HOST:PORT, got "{address}".')
    advice = (
        "Start one there (`ray start --head`), or give its address; where a cluster asks for a token, Ray's "
        "RAY_AUTH_MODE must be set here too."
    )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"{address}: no Ray cluster answers ({error}). {advice}") from None
    reason = _refusal(address)
    if reason is not None:
        raise RunError(f"{address}: no Ray cluster answers ({reason}). {advice}")


def _refusal(address: str) -> str | None:
    """Why no cluster can be reached, found out in bounded time; None where one can."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"nothing that is Ray's within {PROBE_SECONDS:g} s"
    if tried.returncode == 0:
        return None
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"exit code {tried.returncode}"


def _check_machines(ray: Any, folder: Path) -> None:
    """Checks that every machine sees the sweep's folder and has the same dpads."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token, file = secrets.token_hex(16), folder.absolute() / f".ray-{os.getpid()}"
    file.write_text(token, encoding="utf-8")
    try:
        for node in ray.nodes():
            if not node["Alive"] or not node["Resources"].get("CPU"):
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(num_cpus=0, max_retries=0)(_look).options(scheduling_strategy=there)
            name = node["NodeManagerAddress"]
            try:
                seen, version = ray.get(look.remote(str(file)), timeout=CHECK_SECONDS)
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"{name}: this machine of the cluster cannot run dpads "
                    f"({str(error).strip().splitlines()[-1]}). Install dpads {dpads.__version__} on it."
                ) from None
            if seen != token:
                raise RunError(
                    f"{name}: this machine of the cluster does not see {folder.absolute()}. Put the sweep on "
                    "a file system that all machines share, under the same path (--out)."
                )
            if version != dpads.__version__:
                raise RunError(
                    f"{name}: expected dpads {dpads.__version__} on this machine of the cluster, got "
                    f"{version}. Install the same."
                )
    finally:
        file.unlink()


def _look(file: str) -> tuple[str | None, str]:
    """What a machine sees: a file's text, and its dpads."""
    path = Path(file)
    return path.read_text(encoding="utf-8") if path.is_file() else None, dpads.__version__


def _train(task: TrialTask, board: Any) -> TrialOutcome:
    """One trial, on whichever machine."""

    def report(at: RunProgress) -> None:
        board.put.remote(task.name, at.iteration, at.iterations)

    return run_trial(task, report)


class _Board:
    """Where trials write how far they are; only the latest is kept."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[int, int]] = {}

    def put(self, trial: str, iteration: int, iterations: int) -> None:
        """A trial's progress."""
        self._latest[trial] = iteration, iterations

    def take(self) -> dict[str, tuple[int, int]]:
        """What came since the last look."""
        latest, self._latest = self._latest, {}
        return latest


class _Run:
    """The tasks of one sweep on a cluster."""

    def __init__(
        self, ray: Any, tasks: Sequence[TrialTask], workers: int | None, on_event: OnEvent
    ) -> None:
        self._ray = ray
        self._tasks = tasks
        self._on_event = on_event
        threads = max(task.threads for task in tasks)
        fit = int(ray.cluster_resources().get("CPU", 0)) // threads
        if fit < 1:
            raise RunError(
                f"Expected a cluster with machines of {threads} cores, the threads of a trial, got none."
            )
        self._at_a_time = min(workers or fit, fit)
        self._train = ray.remote(max_retries=0)(_train)
        self._board = ray.remote(num_cpus=0)(_Board).remote()
        self._running: dict[Any, TrialTask] = {}

    def carry_out(self) -> list[TrialOutcome]:
        """Keeps the cluster busy until all have ended."""
        waiting, outcomes = deque(self._tasks), dict[str, TrialOutcome]()
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._at_a_time:
                    self._start(waiting.popleft())
                ended, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
                for reference in ended:
                    outcome = self._outcome(reference)
                    outcomes[outcome.name] = outcome
                    self._on_event(TrialEvent(trial=outcome.name, kind="finished", outcome=outcome))
                self._report()
        finally:
            for reference in self._running:
                self._ray.cancel(reference, force=True)
        return [outcomes[task.name] for task in self._tasks]

    def _start(self, task: TrialTask) -> None:
        """One more trial."""
        reference = self._train.options(num_cpus=task.threads).remote(task, self._board)
        self._running[reference] = task
        self._on_event(TrialEvent(trial=task.name, kind="started"))

    def _report(self) -> None:
        """Passes progress on."""
        names = {task.name for task in self._running.values()}
        for name, (done, of) in self._ray.get(self._board.take.remote()).items():
            if name in names:
                self._on_event(
                    TrialEvent(trial=name, kind="progress", iteration=done, iterations=of)
                )

    def _outcome(self, reference: Any) -> TrialOutcome:
        """How a trial ended, also where its process or machine is gone."""
        task = self._running.pop(reference)
        try:
            outcome: TrialOutcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            return TrialOutcome(
                name=task.name,
                status="failed",
                error=f"its process on the cluster ended ({type(cause).__name__})",
                error_kind="worker",
                began=partial_of(Path(task.folder)).exists(),
            )
        return outcome
