"""Training runs: from rows and a configuration to a run's folder, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dpads import run_files as files
from dpads._validate import expect_kind
from dpads.accounting.earlier import GIVEN_WITH, given_entry
from dpads.accounting.facts import HumanFacts
from dpads.accounting.ledger import Ledger
from dpads.backend_packages import load_backend
from dpads.config import Config, DataConfig, ReferenceConfig, TrainingConfig
from dpads.config_toml import differing_keys, to_toml
from dpads.errors import CheckpointError, ConfigError, RunError
from dpads.hosts import Hosts, hosts_of
from dpads.models import UsersModel
from dpads.models.base import Description
from dpads.optimizers import Adam, Optimizer, Sgd
from dpads.plan import Plan, PrivacySpec
from dpads.private_sums_config import PriorConfig, RecalibrationConfig, SelectionConfig
from dpads.run import Run, expect_store
from dpads.run_data import RunRows, open_run_rows
from dpads.run_hosts import check_configuration, shared_ledger
from dpads.run_job import Job, RunProgress
from dpads.store import ExampleStore
from dpads.training import Performance, RowProgress
from dpads.training_start import StartModel
from dpads.warm_start import Start, open_start


def train(
    store: ExampleStore,
    *,
    model: Description,
    privacy: PrivacySpec,
    l2_clip_norm: float = 1.0,
    expected_batch_size: int = 1024,
    epochs: float = 5,
    backend: Literal["torch", "jax"] = "torch",
    table_noise: Literal["lazy", "dense"] = "lazy",
    table_optimizer: Optimizer = Sgd(),  # noqa: B008 (frozen)
    tower_optimizer: Optimizer = Adam(),  # noqa: B008 (frozen)
    test: ExampleStore | float | None = None,
    init_seed: int = 7,
    split_seed: int | None = None,
    noise_seed: int | None = None,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    reference: bool | ReferenceConfig = False,
    start_from: Run | str | Path | None = None,
    start_from_public: bool = False,
    prior: PriorConfig = PriorConfig(),  # noqa: B008 (frozen)
    recalibration: RecalibrationConfig = RecalibrationConfig(),  # noqa: B008 (frozen)
    selection: SelectionConfig = SelectionConfig(),  # noqa: B008 (frozen)
    statement: Mapping[str, str] | None = None,
    performance: Performance = Performance(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_rows: Callable[[RowProgress], None] | None = None,
    on_statement: Callable[[int, int], None] | None = None,
) -> Run:
    """Trains a model under differential privacy.

    Args:
        store: the training rows.
        model: what to train, such as `dpads.models.Mlp(embedding_dim=16, hidden=(64,))`.
        privacy: the promise that is wanted.
        l2_clip_norm: bound of one unit's gradient; inf only with noise_multiplier = 0.
        expected_batch_size: units per iteration in expectation; gradients are divided by it.
        epochs: passes over the units in expectation.
        backend: "torch", on the processor, or "jax", on what JAX finds: processor, GPU or TPU. Without
            noise both train the same, but for rounding; with noise the law is the same.
        table_noise: "lazy" or "dense": the same law, two costs.
        table_optimizer: how tables move: `Sgd`.
        tower_optimizer: how the dense part moves: `Sgd`, `Adam` or `AdamBC`.
        test: rows to compute metrics on after training, or a fraction of the units to split off.
        init_seed: of initial parameters; public and harmless.
        split_seed: of the split and of the cap on users' rows, likewise; None: init_seed.
        noise_seed: for tests only: makes noise reproducible and voids the claim.
        positive_weight: factor of the losses of positive examples, before they are clipped; binary tasks.
            Predictions take it back.
        negative_weight: likewise of negative ones.
        reference: also train without noise and clipping, to compare with: an access that the
            guarantee does not cover. A `ReferenceConfig` gives it optimizers of its own.
        start_from: an earlier run of the same model on the same columns, or its folder: training starts
            from its final parameters, and its ledger is carried on: `privacy.epsilon` is the total.
        start_from_public: whether you vouch that the earlier run's rows are nobody's data that this
            guarantee is about; then nothing is carried on.
        prior: where the model's output starts.
        recalibration: the calibration that is fitted to noisy sums after a private training; by default
            scale and bias, with a fiftieth of the budget.
        selection: which rows of the tables are trained.
        statement: facts for the statement that only people know, by name.
        performance: threads and memory; changes neither privacy nor, but for rounding, the result.
        out: the run's folder, which must not exist; None keeps the run in memory.
        on_progress: called a few times a second.
        on_rows: called while large tables are made and finished.
        on_statement: called with how much of a guarantee for users is computed, and of how much.

    Returns:
        The run.

    Raises:
        ConfigError: a value is out of range, `out` exists, or the model is for another backend.
        MissingDependencyError: the backend's packages are not installed.
        BudgetError: the budget does not allow one iteration.
        StoreError: `test` has another schema than `store`, or one of them has no labels.

    Guarantees:
        - The privacy loss is at most `privacy.epsilon`, and the statement says what it is.
        - Every access to private rows is on the ledger before it happens.
        - `out` appears whole or not at all.
    """
    if not isinstance(model, Description):
        raise ConfigError(
            f"Expected a model such as dpads.models.Logistic(), got {type(model).__name__}. "
            'dpads.models.describe({"name": "logistic"}) reads what a [model] table says; '
            "dpads.models.from_torch(module, schema) takes a torch module of yours, "
            "dpads.models.from_jax(apply, params, schema) a function in JAX."
        )
    expect_store("store", store)
    if test is not None and not isinstance(test, float):
        expect_store("test", test)
    expect_kind("performance", performance, Performance, "dpads.Performance(threads=2)")
    if out is not None:
        expect_kind("out", out, (str, Path), '"runs/a"')
    if not isinstance(reference, ReferenceConfig):
        wanted, own = (
            reference,
            ReferenceConfig(table_optimizer=table_optimizer, tower_optimizer=tower_optimizer),
        )
    else:
        wanted, own = True, reference
    config = Config(
        data=DataConfig(
            # a configuration's relative paths would start from the run's folder
            train=(str(store.path.absolute()),),
            test=(str(test.path.absolute()),) if isinstance(test, ExampleStore) else test,
            split_seed=split_seed,
        ),
        schema=store.schema,
        model=model,
        privacy=privacy,
        l2_clip_norm=l2_clip_norm,
        training=TrainingConfig(
            expected_batch_size=expected_batch_size,
            epochs=epochs,
            backend=backend,
            table_noise=table_noise,
            table_optimizer=table_optimizer,
            tower_optimizer=tower_optimizer,
            init_seed=init_seed,
            noise_seed=noise_seed,
            positive_weight=positive_weight,
            negative_weight=negative_weight,
            reference=wanted,
            start_from=_folder_of(start_from),
            start_from_public=start_from_public,
        ),
        reference=own,
        prior=prior,
        recalibration=recalibration,
        selection=selection,
        statement=HumanFacts.from_mapping(statement or {}),
    )
    return train_config(
        config,
        store=store,
        test=test if isinstance(test, ExampleStore) else None,
        performance=performance,
        out=out,
        on_progress=on_progress,
        on_rows=on_rows,
        on_statement=on_statement,
    )


def train_config(
    config: Config,
    *,
    store: ExampleStore | None = None,
    test: ExampleStore | None = None,
    performance: Performance = Performance(),  # noqa: B008 (frozen)
    out: str | Path | None = None,
    resume: bool = False,
    first: Sequence[Mapping[str, Any]] = (),
    on_prepare: Callable[[int], None] | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[RunProgress], None] | None = None,
    on_rows: Callable[[RowProgress], None] | None = None,
    on_statement: Callable[[int, int], None] | None = None,
) -> Run:
    """Trains as a configuration says.

    Args:
        config: the configuration.
        store: the training rows, opened already; None opens config.data.train, and logs among
            them are prepared into a store that lives as long as the run is partial.
        test: likewise the test rows, where config.data.test is not a fraction.
        performance: threads and memory.
        out: the run's folder, which must not exist; None keeps the run in memory. Of several processes the
            first one writes it.
        resume: go on with what an interrupted run left beside `out`.
        first: fields of the entries that the run's ledger begins with: what was done to the same rows
            before, or is done beside this run.
        on_prepare: called with the number of examples of a log that are prepared so far.
        on_plan: called once with the mechanism, before anything is learnt from a row.
        on_progress: called a few times a second.
        on_rows: called while large tables are made and finished.
        on_statement: called with how much of a guarantee for users is computed, and of how much.

    Returns:
        The run.

    Raises:
        ConfigError: a value is out of range, `out` exists, or an interrupted run is beside it; or
            there is nothing to resume, or it began with another configuration.
        MissingDependencyError: the backend's packages are not installed.
        CheckpointError: what an interrupted run left is damaged.
        DataError: a log is not what the schema says.
        StoreError: a store is damaged, has no labels or has another schema than the configuration.
    """
    if config.training.reference and config.data.test is None:
        raise ConfigError(
            "training.reference compares on test rows, and there are none. Set data.test."
        )
    load_backend(config)
    hosts = hosts_of(config.training.backend)
    check_configuration(config, hosts)
    if hosts.of_first(b"whole" if resume and _is_whole(out) else b"") and not hosts.is_first:
        raise RunError(
            "The run was whole already: process 0 gives it its name. Nothing is left to do."
        )
    if out is None or not hosts.is_first:
        with tempfile.TemporaryDirectory(prefix="dpads-") as name:
            ledger = shared_ledger(Ledger(), hosts)
            start = open_start(config, ledger if ledger.entries else None)
            rows = _open_rows(config, store, test, Path(name), on_prepare, start, hosts)
            _begin(ledger, [*_starting(config, start, rows), *first])
            if on_plan is not None:
                on_plan(rows.plan)
            run = Job(
                config,
                rows,
                _model_of(start),
                performance,
                on_progress,
                on_rows,
                on_statement,
                hosts,
            ).carry_out(ledger, None)
            hosts.wait()  # or the first process would be left alone with its files
            return run
    target = Path(out)
    made: list[Path] = []
    if resume:
        partial = interrupted(config, target)
        if files.is_run(partial):  # everything was done but the renaming
            files.finish_partial(partial, target)
            return Run.load(target)
        begun = partial / files.LEDGER
        start = open_start(config, Ledger.load(begun) if begun.exists() else None)
    else:
        start = open_start(config)
        partial, made = files.start_partial(target)
    path = partial / files.LEDGER
    ledger = Ledger.load(path) if path.exists() else Ledger(path)
    try:
        if not resume:
            files.write_text(partial / files.CONFIG, to_toml(config))
        prepared = partial / files.PREPARED
        prepared.mkdir(mode=0o700, exist_ok=True)
        shared_ledger(ledger, hosts)
        rows = _open_rows(config, store, test, prepared, on_prepare, start, hosts)
        _begin(ledger, [*_starting(config, start, rows), *first])
        if on_plan is not None:
            on_plan(rows.plan)
        run = Job(
            config, rows, _model_of(start), performance, on_progress, on_rows, on_statement, hosts
        ).carry_out(ledger, partial)
    except BaseException:
        if not has_begun(ledger, first):  # nothing was read to learn from: nothing to account for
            files.drop_partial(partial, made)
        raise
    files.finish_partial(partial, target)
    hosts.wait()
    run.path, run.ledger = target, Ledger.load(target / files.LEDGER)
    return run


def _is_whole(out: str | Path | None) -> bool:
    """Whether an interrupted run has done everything but to take its name."""
    return out is not None and files.is_run(files.partial_of(Path(out)))


def has_begun(ledger: Ledger, first: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run's ledger announces a use of its rows beside the entries that it began with."""
    given = ("earlier_run", "upstream")
    own = [e for e in ledger.entries if e.kind not in given and "carried" not in e.details]
    return len(own) > len(first)


def _begin(ledger: Ledger, first: Sequence[Mapping[str, Any]]) -> None:
    """Puts the first entries on a ledger, those that it lacks."""
    for fields in first[len(ledger.entries) :]:
        ledger.append(**fields)


def _starting(config: Config, start: Start | None, rows: RunRows) -> list[Mapping[str, Any]]:
    """The entries of what training starts from, where that is not made by init_seed."""
    entries = [] if start is None else start.entries_beside(rows.train, config.data)
    if isinstance(config.model, UsersModel):
        entries.append(given_entry(GIVEN_WITH[config.model.name]))
    return entries


def _open_rows(
    config: Config,
    store: ExampleStore | None,
    test: ExampleStore | None,
    folder: Path,
    on_prepare: Callable[[int], None] | None,
    start: Start | None,
    hosts: Hosts,
) -> RunRows:
    """The rows of a run, with a plan whose guarantee goes with that of what it starts from."""
    carried = None if start is None else start.carried
    earlier = None if start is None else start.rows
    rows = open_run_rows(config, store, test, folder, on_prepare, carried, earlier, hosts)
    if start is not None:
        start.check_plan(rows.plan)
        start.check_rows(rows.train, config.data)
    return rows


def _model_of(start: Start | None) -> StartModel | None:
    """The parameters to start from."""
    return None if start is None else start.model


def _folder_of(start_from: Run | str | Path | None) -> str | None:
    """The folder of a run to start from.

    Raises:
        ConfigError: the run is only in memory, or it is no run.
    """
    if start_from is None:
        return None
    if isinstance(start_from, Run):
        if start_from.path is None:
            raise ConfigError(
                "start_from: expected a run with a folder, got one that is only in memory. Write it with "
                "run.save(path), or train it with out=."
            )
        start_from = start_from.path
    if not isinstance(start_from, str | Path):
        raise ConfigError(
            f"start_from: expected a run or its folder, got {type(start_from).__name__}."
        )
    return str(Path(start_from).expanduser().absolute())


def interrupted(config: Config, target: Path) -> Path:
    """The folder of an interrupted run, if this configuration may go on with it.

    Raises:
        ConfigError: there is none, it began with another configuration, or `target` exists.
        CheckpointError: nobody can tell what it began with.
    """
    files.refuse_existing(target)
    partial = files.partial_of(target)
    if not partial.is_dir():
        raise ConfigError(f"{partial}: nothing to resume. Train without --resume.")
    try:
        changed = differing_keys((partial / files.CONFIG).read_text(encoding="utf-8"), config)
    except (FileNotFoundError, ValueError):
        raise CheckpointError(
            f"{partial / files.CONFIG}: missing or damaged, so nobody can tell what was begun. "
            "Move the folder away and train anew."
        ) from None
    if changed:
        differ = "differs" if len(changed) == 1 else "differ"
        raise ConfigError(
            f"{partial}: the interrupted run began with another configuration: {', '.join(changed)} "
            f"{differ}. Go on with the one in its {files.CONFIG}, or train anew under another --out."
        )
    return partial
