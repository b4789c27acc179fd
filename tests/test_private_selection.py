"""Private selection: drawn once and sealed, scores clamped and noised, one model leaves."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from private_selections import (
    RATES,
    carry_out,
    document,
    number_drawn,
    quick,
    rate_of,
)
from scipy import stats

import dpads
from dpads.accounting.events import gaussian
from dpads.accounting.ledger import Ledger
from dpads.batch import SparseBatch
from dpads.errors import CheckpointError, ConfigError, RunError
from dpads.models.base import Model
from dpads.private_score import WORST, ScoreMechanism, clamped_losses
from dpads.private_selection import NOTHING
from dpads.private_selection_law import draw_number
from dpads.private_selection_plan import Candidates
from dpads.private_selection_state import SealedFolder, SealedState
from dpads.private_selection_worker import (
    CandidateTask,
    open_tuning_rows,
    train_candidate,
)
from dpads.store import ExampleStore
from dpads.sweep_config import SweepConfig, parse_sweep


@pytest.fixture
def candidates(train_store: ExampleStore, log_folder: Path) -> SweepConfig:
    """Four candidates."""
    return parse_sweep(document(log_folder), base=log_folder)


# The law


@pytest.mark.parametrize(
    ("shape", "law"),
    [
        ("poisson", stats.poisson(6.0)),
        (1.0, stats.geom(1.0 / 6.0)),
        (0.0, stats.logser(0.945974573157)),  # its mean is 6
    ],
)
def test_the_number_of_candidates_follows_the_law_that_is_accounted(
    shape: float | str, law: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert law.mean() == pytest.approx(6.0, rel=1e-5)
    bits = np.random.default_rng(5)
    monkeypatch.setattr("secrets.randbits", lambda n: int.from_bytes(bits.bytes(n // 8), "little"))
    draws = np.array([draw_number(shape, 6.0) for _ in range(3000)])
    edges = np.array([0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 20])
    seen = np.array([*(draws == e for e in edges[:7])]).sum(axis=1)
    expected = law.pmf(edges[:7]) * len(draws)
    keep = expected > 5
    rest = len(draws) - seen[keep].sum(), len(draws) - expected[keep].sum()
    result = stats.chisquare([*seen[keep], rest[0]], [*expected[keep], rest[1]])
    assert result.pvalue > 1e-3
    assert draws.mean() == pytest.approx(6.0, abs=5 * law.std() / math.sqrt(len(draws)))


def test_a_law_of_another_mean_is_told_apart() -> None:
    """The chi-square above has the power to see a mean that is a tenth off."""
    seen = stats.poisson(6.6).pmf(np.arange(7)) * 3000
    expected = stats.poisson(6.0).pmf(np.arange(7)) * 3000
    rest = 3000 - seen.sum(), 3000 - expected.sum()
    assert stats.chisquare([*seen, rest[0]], [*expected, rest[1]]).pvalue < 1e-6


def test_nothing_may_be_drawn_under_poisson_alone() -> None:
    assert 0 in {draw_number("poisson", 1.0) for _ in range(200)}
    assert 0 not in {draw_number(shape, 1.5) for shape in (0.0, 0.5, 1.0) for _ in range(100)}


def test_each_candidate_is_as_likely_as_any_other() -> None:
    states = (SealedState(seed=os.urandom(32).hex(), done=i % 7) for i in range(4000))
    counts = np.bincount([state.candidate(5) for state in states], minlength=5)
    assert stats.chisquare(counts).pvalue > 1e-6


# What is sealed


def test_what_was_drawn_is_never_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = SealedFolder.create(tmp_path / "sealed")
    number_drawn(monkeypatch, 4)
    first = sealed.drawn("poisson", 3.0)
    again = SealedFolder(tmp_path / "sealed").drawn("poisson", 3.0)
    assert first == again
    (tmp_path / "sealed" / "state").unlink()
    with pytest.raises(CheckpointError, match="privacy is spent"):
        SealedFolder(tmp_path / "sealed").drawn("poisson", 3.0)


# Scores


SCORE = ScoreMechanism(bound=6.0, noise_multiplier=1.5, expected_units=300.0)
EXAMPLES = dpads.PrivacySpec(noise_multiplier=1.0)


@pytest.fixture
def model(train_store: ExampleStore) -> Model:
    return dpads.models.Logistic().init(train_store.schema)


def key(number: int) -> Any:
    return SealedState(seed="07" * 32, done=number).score_key()


def with_losses(model: Model, monkeypatch: pytest.MonkeyPatch, odd: float) -> None:
    """Makes the first example's loss an odd one and all others 0.1."""
    first = [True]

    def losses(batch: SparseBatch) -> Any:
        values = np.full(batch.num_examples, 0.1)
        if first[0]:
            values[0] = odd
        return values

    monkeypatch.setattr(model, "losses", losses)


@pytest.mark.parametrize("odd", [1e30, math.inf, math.nan, -1e30, -math.inf])
def test_one_unit_moves_a_score_by_at_most_the_bound(
    model: Model, train_store: ExampleStore, monkeypatch: pytest.MonkeyPatch, odd: float
) -> None:
    grid = 2 * 6.0 * 1.5 / 1024
    with_losses(model, monkeypatch, 0.0)  # as without the unit
    without = SCORE.release(model, train_store, EXAMPLES, key(0))
    with_losses(model, monkeypatch, odd)
    present = SCORE.release(model, train_store, EXAMPLES, key(0))
    assert abs(present - without) * SCORE.expected_units == pytest.approx(6.0, abs=grid)


def test_a_loss_that_is_no_number_is_the_worst_a_unit_can_report(
    model: Model, train_store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(model, monkeypatch, math.nan)
    assert clamped_losses(model, train_store, EXAMPLES, 6.0)[0] == 6.0


def test_a_users_losses_are_summed_before_they_are_clamped(
    click_log: Any, log_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = dataclasses.replace(click_log.schema, user="user")
    store = dpads.prepare(log_folder / "train.parquet", schema, out=tmp_path / "users")
    spec = dpads.PrivacySpec(noise_multiplier=1.0, unit="user", max_examples_per_unit=50)
    store = store.capped(50, seed=1)
    model = dpads.models.Logistic().init(store.schema)
    monkeypatch.setattr(model, "losses", lambda batch: np.full(batch.num_examples, 0.4))
    assert store.user_offsets is not None
    sizes = np.diff(store.user_offsets)
    assert clamped_losses(model, store, spec, 1.0) == pytest.approx(np.minimum(0.4 * sizes, 1.0))


def test_scores_have_the_noise_that_is_accounted(
    model: Model, train_store: ExampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = train_store.split(0.01, seed=3)[1]
    monkeypatch.setattr(model, "losses", lambda batch: np.full(batch.num_examples, 0.5))
    scores = np.array([SCORE.release(model, few, EXAMPLES, key(i)) for i in range(800)])
    noise = scores * SCORE.expected_units + 0.5 * len(few)
    assert abs(noise.mean()) < 5 * 9.0 / math.sqrt(len(noise))
    ratios = {scale: (noise**2).sum() / (9.0 * scale) ** 2 for scale in (0.85, 1.0, 1.15)}
    chances = {
        scale: 2 * min(stats.chi2(800).cdf(ratio), stats.chi2(800).sf(ratio))
        for scale, ratio in ratios.items()
    }
    assert chances[1.0] > 1e-3 > max(chances[0.85], chances[1.15])
    assert SCORE.event() == gaussian(1.5)


def test_one_score_has_one_noise_and_two_scores_have_two(
    model: Model, train_store: ExampleStore
) -> None:
    first, again, other = (SCORE.release(model, train_store, EXAMPLES, key(i)) for i in (0, 0, 1))
    assert first == again != other


def test_a_model_that_is_not_finite_has_the_worst_score(
    model: Model, train_store: ExampleStore
) -> None:
    model.dense["bias" if "bias" in model.dense else next(iter(model.dense))][...] = np.nan
    assert SCORE.release(model, train_store, EXAMPLES, key(0)) == WORST


def test_no_candidate_trains_on_the_units_of_scores_or_tests(
    candidates: SweepConfig, tmp_path: Path
) -> None:
    asked = Candidates.of(candidates)
    rows = open_tuning_rows(asked.base, tmp_path, 0.1, 1000, None)
    parts = [set(part.input_rows) for part in (rows.fitted, rows.aside, rows.all.test)]  # type: ignore[union-attr]
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])
    assert set(rows.all.train.input_rows) == parts[0] | parts[1]
    assert len(rows.aside) == pytest.approx(0.1 * len(rows.all.train), rel=0.25)


# The selection


@pytest.fixture(scope="module")
def selected(
    train_store: ExampleStore, log_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A selection of four candidates; what each call was and gave."""
    seen: list[tuple[CandidateTask, float, list[str]]] = []
    out = tmp_path_factory.mktemp("tune") / "run"
    partial = out.with_name("run.partial")

    def train(task: CandidateTask) -> float:
        ledger = Ledger.load(partial / "ledger.jsonl")
        assert [entry.kind for entry in ledger.entries] == ["tuning"]
        score = train_candidate(task)
        inside = sorted(str(path.relative_to(partial)) for path in partial.glob("*"))
        inside += sorted(path.name for path in (partial / "sealed").glob("*"))
        seen.append((task, score, inside))
        return score

    with pytest.MonkeyPatch.context() as patch:
        number_drawn(patch, 4)
        config = parse_sweep(document(log_folder), base=log_folder)
        run = carry_out(config, out, train)
    return {"run": run, "seen": seen, "out": out}


def test_the_best_score_is_selected_and_nothing_else_is_left(selected: dict[str, Any]) -> None:
    run, seen = selected["run"], selected["seen"]
    best = max(seen, key=lambda item: item[1])
    assert run.config.training.table_optimizer.learning_rate == rate_of(best[0])
    assert len({score for _, score, _ in seen}) == len(seen) == 4
    assert {path.name for path in selected["out"].iterdir()} == {
        "run.json", "model.safetensors", "model.json", "ledger.jsonl", "metrics.json",
        "statement.json", "statement.md", "config.toml",
    }  # fmt: skip
    assert [path.name for path in selected["out"].parent.iterdir()] == ["run"]


def test_nothing_that_can_be_listed_tells_how_many_there_are(selected: dict[str, Any]) -> None:
    assert len({tuple(inside) for _, _, inside in selected["seen"]}) == 1
    times = {path.stat().st_mtime_ns for path in selected["out"].rglob("*")}
    assert len(times) == 1
    told = "".join(path.read_text() for path in selected["out"].glob("*.json*"))
    assert "run_number" not in told
    for _, score, _ in selected["seen"]:
        assert repr(score) not in told


def test_the_ledger_covers_the_selection_and_names_the_selected_run(
    selected: dict[str, Any],
) -> None:
    entries = selected["run"].ledger.entries
    kinds = [entry.kind for entry in entries]
    assert kinds == ["tuning", "selected_training", "training_finished", "evaluation"]
    tuning, chosen, finished, evaluation = entries
    assert tuning.dp_event is not None
    assert tuning.dp_event["kind"] == "repeat_and_select"
    parts = tuning.dp_event["event"]["events"]
    assert chosen.details["dp_event"] in parts
    assert tuning.details["score"]["dp_event"] in parts
    assert finished.details["executed"] == selected["run"].plan.mechanism.iterations
    assert evaluation.treatment == "not_covered"


def test_the_statement_states_the_budget_and_verifies(selected: dict[str, Any]) -> None:
    statement = selected["run"].statement()
    assert statement.epsilon is not None
    assert 7.0 < statement.epsilon <= 8.0
    assert dpads.verify(selected["out"]).ok


def test_a_candidate_that_fails_has_the_worst_score_and_is_not_replaced(
    candidates: SweepConfig,
    selected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number_drawn(monkeypatch, 6)
    calls: list[float] = []

    def run(task: CandidateTask) -> float:
        calls.append(rate_of(task))
        assert len(calls) <= 6
        if len(calls) != 3:
            return WORST
        return quick(dict.fromkeys(RATES, -50.0))(task)

    found = carry_out(candidates, tmp_path / "run", run)
    assert len(calls) == 6
    assert found.config.training.table_optimizer.learning_rate == calls[2]


def test_no_candidate_and_none_that_works_look_the_same(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, left = [], []
    for number in (0, 3):
        with monkeypatch.context() as patch:
            number_drawn(patch, number)
            out = tmp_path / str(number)
            left_to_try = iter(range(number))

            def fail(task: CandidateTask, left_to_try: Iterator[int] = left_to_try) -> float:
                next(left_to_try)
                return WORST

            with pytest.raises(RunError, match="nothing was selected") as error:
                carry_out(candidates, out, fail)
        told.append(str(error.value).replace(str(out), ""))
        left.append(sorted(path.name for path in out.iterdir()))
        assert [entry.kind for entry in Ledger.load(out / "ledger.jsonl").entries] == ["tuning"]
        with pytest.raises(ConfigError, match="exists already"):  # it is not drawn again
            carry_out(candidates, out, lambda task: 0.0)
    assert told[0] == told[1]
    assert NOTHING in told[0]
    assert "/ledger.jsonl says what it cost" in told[0]
    assert "another selection on these rows, under another --out, adds its own cost" in told[0]
    assert left[0] == left[1] == ["ledger.jsonl"]


def test_the_number_is_drawn_once_the_ledger_says_what_it_costs(
    candidates: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> int:
        entries = Ledger.load(tmp_path / "run.partial" / "ledger.jsonl").entries
        assert [entry.kind for entry in entries] == ["tuning"]
        raise KeyboardInterrupt

    monkeypatch.setattr("dpads.private_selection_state.draw_number", draw)
    with pytest.raises(KeyboardInterrupt):
        carry_out(candidates, tmp_path / "run", lambda task: 0.0)
