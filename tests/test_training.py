"""The training loop: what runs is what is accounted, resumption is to the bit, budgets stop runs."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_tables import recorder

import dpads
from dpads.accounting.ledger import Ledger
from dpads.checkpoint import CheckpointFolder
from dpads.errors import CheckpointError, ConfigError, RunError
from dpads.plan import Plan, PrivacySpec, resolve
from dpads.sampling import PoissonSampler
from dpads.training import Performance, Progress, Trainer, TrainingSettings

MLP = dpads.models.Mlp(embedding_dim=4, hidden=(6,))
UNITS = 400


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("log")
    log = dpads.synthetic.click_log(UNITS, seed=3)
    log.write(folder / "log.parquet")
    return dpads.prepare(folder / "log.parquet", log.schema, out=folder / "store")


def plan_of(iterations: int = 12, batch: int = 40, noise: float = 1.0, **keys: Any) -> Plan:
    spec = PrivacySpec(
        noise_multiplier=noise,
        delta=1e-6,
        sampling_prob=keys.pop("sampling_prob", batch / UNITS),
        iterations=iterations,
    )
    return resolve(spec, expected_batch_size=batch, epochs=None, **keys)


def settings_of(**keys: Any) -> TrainingSettings:
    return TrainingSettings(
        **{"noise_seed": 11, "table_optimizer": dpads.Sgd(weight_decay=0.1), **keys}
    )


def trainer_of(store: Any, plan: Plan | None = None, **keys: Any) -> Trainer:
    return Trainer(
        store,
        keys.pop("model", MLP),
        plan or plan_of(),
        keys.pop("settings", settings_of()),
        keys.pop("performance", Performance(threads=1)),
        keys.pop("ledger", Ledger()),
        keys.pop("checkpoint_dir", None),
    )


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
@pytest.mark.parametrize("model", [MLP, dpads.models.Logistic()], ids=lambda m: m.name)
def test_one_noiseless_iteration_is_the_clipped_sum_over_the_divisor(
    store: Any, table_noise: str, model: Any
) -> None:
    rate, clip, divisor = 0.3, 0.5, 25
    sgd = dpads.Sgd(learning_rate=rate)
    settings = settings_of(table_noise=table_noise, table_optimizer=sgd, tower_optimizer=sgd)
    plan = plan_of(1, divisor, 0.0, sampling_prob=1.0, l2_clip_norm=clip)
    trainer = trainer_of(store, plan, settings=settings, model=model)
    before = trainer.model.state()
    expected = dpads.clipped_gradients(
        trainer.model, store.read(np.arange(UNITS)), l2_clip_norm=clip
    )
    trainer.run()
    after = trainer.model.state()
    for name, value in expected.dense.items():
        moved = before[f"dense.{name}"] - rate * value / divisor
        np.testing.assert_allclose(after[f"dense.{name}"], moved, rtol=1e-5, atol=1e-6)
    for name, (rows, value) in expected.tables.items():
        moved = before[f"tables.{name}"].copy()
        moved[rows] -= rate * value / divisor
        np.testing.assert_allclose(after[f"tables.{name}"], moved, rtol=1e-5, atol=1e-6)


def test_physical_batches_change_the_result_by_rounding_alone(store: Any) -> None:
    # noise keys are bound to the physical batch size, so the comparison is without noise
    states = []
    for size in (None, 7, 1):
        performance = Performance(threads=1, physical_batch_size=size)
        trainer = trainer_of(store, plan_of(noise=0.0), performance=performance)
        trainer._batches.sampler = PoissonSampler(0.1, 12, np.arange(8, dtype=np.uint32))
        trainer.run()
        states.append(trainer.model.state())
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(states[2][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_batches_that_nobody_joined_add_noise_and_count(store: Any, table_noise: str) -> None:
    plan = plan_of(iterations=5, sampling_prob=1e-12)
    ledger = Ledger()
    settings = settings_of(table_noise=table_noise)
    trainer = trainer_of(store, plan, ledger=ledger, settings=settings)
    before = trainer.model.state()
    trainer.run()
    assert trainer.executed == 5
    after = trainer.model.state()
    moved = [np.mean(after[name] != before[name]) for name in before if before[name].size]
    assert min(moved) > 0.999  # a draw below half a unit in the last place moves nothing
    assert ledger.entries[-1].details == {"executed": 5, "replayed": 0}


@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_noise_on_the_tower_has_the_accounted_scale(store: Any, table_noise: str) -> None:
    iterations, noise, clip, batch = 9, 1.7, 0.3, 40
    sgd = dpads.Sgd(learning_rate=0.5, schedule="linear")
    draws: dict[str, list[Any]] = {"dense": [], "tables": []}
    for seed in range(40):
        settings = settings_of(
            tower_optimizer=sgd, table_optimizer=sgd, noise_seed=seed, table_noise=table_noise
        )
        plan = plan_of(iterations, batch, noise, sampling_prob=1e-12, l2_clip_norm=clip)
        trainer = trainer_of(store, plan, settings=settings)
        before = trainer.model.state()
        trainer.run()
        for name, value in trainer.model.state().items():
            draws[name.partition(".")[0]].append((value - before[name]).ravel()[:3000])
    rates = 0.5 * (1 - np.arange(iterations) / iterations)
    stddev = noise * clip / batch * np.sqrt((rates**2).sum())
    for values in draws.values():
        sample = np.concatenate(values).astype(np.float64) / stddev

        def holds(scale: float, sample: Any = sample) -> bool:
            n = sample.size
            return bool(
                abs((scale * sample).mean()) < 5 / np.sqrt(n)
                and abs((scale * sample).var() - 1) < 5 * np.sqrt(2 / n)
                and stats.kstest(scale * sample, "norm").pvalue > 1e-6
            )

        assert holds(1.0)
        assert not holds(0.9)
        assert not holds(1.1)


def test_runs_without_a_noise_seed_never_share_noise(store: Any) -> None:
    states = []
    for _ in range(2):
        settings = settings_of(noise_seed=None, table_optimizer=dpads.Sgd())
        trainer = trainer_of(store, plan_of(sampling_prob=1e-12), settings=settings)
        trainer.run()
        states.append(trainer.model.state())
    for name, value in states[0].items():
        if value.size > 1000:
            start = MLP.init(store.schema).state()[name]
            both = [(state[name] - start).ravel() for state in states]
            assert abs(np.corrcoef(both)[0, 1]) < 6 / np.sqrt(value.size)


def test_the_ledger_is_written_before_the_first_coin(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    ledger = Ledger()
    original: Callable[..., Any] = PoissonSampler.units_between

    def units(self: Any, *arguments: Any) -> Any:
        seen.append(len(ledger.entries))
        return original(self, *arguments)

    monkeypatch.setattr(PoissonSampler, "units_between", units)
    plan = plan_of()
    trainer_of(store, plan, ledger=ledger).run()
    assert seen == [1] * 12
    assert [entry.kind for entry in ledger.entries] == ["training", "training_finished"]
    # the event on the ledger, of the sampler that drew, is the plan's
    assert ledger.entries[0].dp_event == plan.event() == ledger.joint_event()


def test_a_run_stops_before_the_iteration_that_would_exceed_its_budget(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "allowed_iterations", property(lambda self: 4))
    trainer = trainer_of(store)
    trainer.run()
    assert trainer.executed == 4
    with pytest.raises(ConfigError, match="All 4 iterations"):
        trainer.step()


def test_progress_has_no_number_from_private_rows(store: Any) -> None:
    seen: list[Progress] = []
    trainer_of(store).run(seen.append)
    assert seen[-1].iteration == seen[-1].iterations == 12
    fields = {f.name for f in dataclasses.fields(Progress)}
    assert fields == {"iteration", "iterations", "examples_per_second", "seconds_left"}


def resumed(store: Any, folder: Path, ledger: Ledger, **keys: Any) -> Trainer:
    return Trainer.resume(
        folder,
        keys.pop("store", store),
        MLP,
        keys.pop("plan", plan_of()),
        keys.pop("settings", settings_of()),
        keys.pop("performance", Performance(threads=1)),
        ledger,
    )


@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_a_resumed_run_ends_with_the_same_parameters_to_the_bit(
    store: Any, tmp_path: Path, table_noise: str
) -> None:
    settings = settings_of(table_noise=table_noise)
    whole = trainer_of(store, settings=settings)
    whole.run()
    ledger = Ledger()
    cut = trainer_of(store, settings=settings, ledger=ledger, checkpoint_dir=tmp_path / "c")
    for _ in range(5):
        cut.step()
    cut.save()
    for _ in range(4):
        cut.step()
    again = resumed(store, tmp_path / "c", ledger, settings=settings)
    assert again.iteration == 5
    again.run()
    assert same(again.model.state(), whole.model.state())
    assert (again.executed, again.replayed) == (12, 4)
    assert [e.kind for e in ledger.entries] == ["training", "training_finished"]
    # cut off between the end and the writing of the run: nothing is trained or noted again
    last = resumed(store, tmp_path / "c", ledger, settings=settings)
    last.run()
    assert same(last.model.state(), whole.model.state())
    assert [e.kind for e in ledger.entries] == ["training", "training_finished"]


def test_replays_of_two_crashes_are_both_counted(store: Any, tmp_path: Path) -> None:
    ledger = Ledger()
    trainer = trainer_of(store, ledger=ledger, checkpoint_dir=tmp_path / "c")
    for _ in range(7):
        trainer.step()
    again = resumed(store, tmp_path / "c", ledger)
    for _ in range(4):
        again.step()
    last = resumed(store, tmp_path / "c", ledger)
    last.run()
    assert (last.executed, last.replayed) == (12, 11)


@pytest.mark.parametrize("table_noise", ["lazy", "dense"])
def test_what_leaves_stands_on_a_public_grid(store: Any, table_noise: str) -> None:
    # low bits of floats would tell rows that gradients touched from rows that had noise alone
    trainer = trainer_of(
        store, settings=settings_of(table_noise=table_noise, table_optimizer=dpads.Sgd())
    )
    trainer.run()
    stddev = 1.0 / 40 * 0.5 * np.sqrt(12)
    grid = 2.0 ** (np.floor(np.log2(stddev)) - 10)
    for value in trainer.model.tables.values():
        steps = value.astype(np.float64) / grid
        assert np.array_equal(steps, np.rint(steps))
        assert len(np.unique(steps)) > 500  # and yet no coarser than a thousandth of the noise


def test_a_random_life_of_a_run_never_uses_an_address_twice(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = recorder(monkeypatch)
    for seed in range(6):
        record.clear()
        rng = np.random.default_rng(seed)
        folder, ledger = tmp_path / str(seed), Ledger()
        settings = settings_of(noise_seed=seed)
        trainer = trainer_of(store, settings=settings, ledger=ledger, checkpoint_dir=folder)
        released: list[Any] = []
        while trainer.iteration < trainer.planned:
            action = rng.choice(["train", "train", "predict", "save", "crash"])
            if action == "train":
                trainer.step()
            elif action == "predict":
                before = trainer.iteration
                if before < trainer._replay_until:
                    with pytest.raises(CheckpointError, match="replays what was cut off"):
                        trainer.read_model()
                    continue
                released.append(trainer.read_model().predict(store.read(np.arange(50))))
                # whatever happens now, a resumption starts at or after the read
                assert int(CheckpointFolder(folder).load().facts["iteration"]) >= before
            elif action == "save":
                trainer.save()
            else:
                trainer = resumed(store, folder, ledger, settings=settings)
        trainer.run()
        # an address may come again in a replay, but then with the same variance: the same draw
        served: dict[tuple[bytes, int, int], float] = {}
        for *address, variance in record:
            key = (address[0], address[1], address[2])
            assert served.setdefault(key, variance) == variance
        assert sum(e.kind == "unplanned_read" for e in ledger.entries) == len(released)


def test_a_read_that_is_not_committed_would_use_an_address_twice(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the recorder sees the bug that committing prevents: flush without checkpoint, then resume
    record = recorder(monkeypatch)
    ledger = Ledger()
    trainer = trainer_of(store, ledger=ledger, checkpoint_dir=tmp_path / "c")
    for _ in range(3):
        trainer.step()
    trainer.save()
    trainer.step()
    trainer._flush()
    trainer.step()
    trainer.step()
    resumed(store, tmp_path / "c", ledger).run()
    served: dict[Any, set[float]] = {}
    for *address, variance in record:
        served.setdefault(tuple(address), set()).add(variance)
    assert any(len(variances) > 1 for variances in served.values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"performance": Performance(threads=1, physical_batch_size=9)}, "physical_batch_size"),
        ({"settings": settings_of(init_seed=5)}, "settings"),
        ({"plan": plan_of(iterations=13)}, "plan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resuming_with_other_settings_is_refused_by_name(
    store: Any, tmp_path: Path, change: Any, named: str
) -> None:
    ledger = Ledger()
    trainer_of(store, ledger=ledger, checkpoint_dir=tmp_path / "c").step()
    with pytest.raises(CheckpointError, match=f"because {named} changed"):
        resumed(store, tmp_path / "c", ledger, **change)


def test_settings_that_change_the_numbers_change_the_noise_keys(store: Any) -> None:
    # same master key, other clip norm: the noise must be another, or the difference would reveal sums
    states = []
    for clip in (1.0, 2.0):
        plan = plan_of(sampling_prob=1e-12, l2_clip_norm=clip)
        trainer = trainer_of(store, plan, settings=settings_of(table_optimizer=dpads.Sgd()))
        before = trainer.model.state()
        trainer.run()
        name = max(before, key=lambda n: before[n].size)
        states.append((trainer.model.state()[name] - before[name]).ravel() / clip)
    assert abs(np.corrcoef(states)[0, 1]) < 5 / np.sqrt(states[0].size)


def test_checkpoints_are_private_and_go_when_discarded(store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trainer = trainer_of(store, checkpoint_dir=folder)
    trainer.step()
    trainer.save()
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert len(files) == 3  # arrays, facts, progress: older checkpoints are gone
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in files)
    folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in folders)
    trainer.run()
    trainer.discard_checkpoints()
    assert not folder.exists()


def test_a_torn_checkpoint_is_not_used(store: Any, tmp_path: Path) -> None:
    ledger = Ledger()
    folder = tmp_path / "c"
    trainer = trainer_of(store, ledger=ledger, checkpoint_dir=folder)
    trainer.step()
    trainer.save()
    (folder / "9999999999-000009.partial").mkdir()  # a crash while writing
    assert resumed(store, folder, ledger).iteration == 1
    whole = next(p for p in folder.iterdir() if p.is_dir() and p.suffix != ".partial")
    data = (whole / "state.safetensors").read_bytes()
    (whole / "state.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        resumed(store, folder, ledger)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resumed(store, tmp_path / "none", ledger)


def test_the_kernels_do_not_depend_on_threads_in_a_whole_run(store: Any) -> None:
    # logistic regression has no matrix product to speak of: whole runs agree to rounding
    states = []
    for threads in (1, 2):
        trainer = trainer_of(
            store,
            plan_of(noise=0.0),
            model=dpads.models.Logistic(),
            performance=Performance(threads=threads),
        )
        trainer._batches.sampler = PoissonSampler(0.1, 12, np.arange(8, dtype=np.uint32))
        trainer.run()
        states.append(trainer.model.state())
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Performance(threads=0), "threads to be a positive integer"),
        (lambda: Performance(physical_batch_size=-1), "physical_batch_size to be a positive"),
        (lambda: Performance(checkpoint_seconds=0), "checkpoint_seconds to be positive"),
        (lambda: settings_of(table_noise="lasy"), 'Did you mean "lazy"'),
        (lambda: settings_of(table_optimizer=dpads.Adam()), "linear in the noise"),
        (lambda: settings_of(init_seed=-1), "init_seed to be an integer >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_large_tables_report_how_far_they_are(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import dpads.training

    monkeypatch.setattr(dpads.training, "REPORTED_ROWS", 1)
    seen: list[dpads.training.RowProgress] = []
    trainer = Trainer(
        store, MLP, plan_of(2), settings_of(), Performance(), Ledger(), on_rows=seen.append
    )
    rows = sum(len(array) for array in trainer.model.arrays.values())
    assert [at.stage for at in seen] == ["initialising"] * len(trainer.model.tables)
    assert seen[-1].rows == seen[-1].total == rows
    trainer.run()
    assert {at.stage for at in seen} == {"initialising", "finishing"}
    assert seen[-1] == dpads.training.RowProgress("finishing", rows, rows)


def test_the_batch_drawn_ahead_is_the_one_that_the_sampler_draws(store: Any) -> None:
    plan = plan_of(8)
    trainer = trainer_of(store, plan)
    drawn = []
    pieces = trainer._batches.pieces

    def spy(ready: Any) -> Any:
        drawn.append((ready.iteration, ready.units))
        return pieces(ready)

    trainer._batches.pieces = spy  # type: ignore[method-assign]
    for t in range(8):
        if t == 5:
            trainer._batches._ahead = None  # as after a resumption: drawn anew
        trainer.step()
    assert [iteration for iteration, _ in drawn] == list(range(8))
    for iteration, units in drawn:
        np.testing.assert_array_equal(units, trainer._batches.sampler.units(iteration, UNITS))


@pytest.mark.parametrize("where", ["_backend.step", "_prepare_next"])
def test_nothing_goes_on_from_half_an_iteration(store: Any, tmp_path: Path, where: str) -> None:
    trainer = trainer_of(store, checkpoint_dir=tmp_path / "c")
    trainer.step()
    trainer.save()

    def fails(*_: Any) -> None:
        raise OSError("the disk went away")

    *owner, name = where.split(".")
    part = attrgetter(*owner)(trainer) if owner else trainer
    setattr(part, name, fails)
    with pytest.raises(OSError, match="went away"):
        trainer.step()
    delattr(part, name)
    for go_on in (trainer.step, trainer.save, trainer.read_model, trainer.finish, trainer.run):
        with pytest.raises(RunError, match="Resume from the last checkpoint"):
            go_on()
    resumed = Trainer.resume(
        tmp_path / "c", store, MLP, plan_of(), settings_of(), Performance(threads=1), Ledger()
    )
    resumed.run()
    whole = trainer_of(store)
    whole.run()
    assert same(resumed.model.state(), whole.model.state())
