"""Groups: published numbers, closed forms, and a cache that is never trusted blindly."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from closed_forms import exact_gaussian
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom, norm

from dpads.accounting import events, group
from dpads.accounting.accountant import PrivacyLoss, Relation, delta_of, epsilon_of
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.event_forms import to_dp_event
from dpads.accounting.group import group_profile, refusal_of
from dpads.accounting.mixtures import mixture_distribution
from dpads.accounting.precision import compose, composition_error
from dpads.accounting.relation import neighboring_relation
from dpads.errors import ConfigError, InputError

SLACK = 1 + events.SENSITIVITY_SLACK
ADD, ZERO, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.ZERO_OUT, Relation.REPLACE_ONE
GOLDEN_RUN = events.dp_sgd(0.766 * SLACK, 0.00178706, 2798)
SMALL_RUN = events.dp_sgd(1.0, 0.1, 10)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dpads"


@pytest.mark.parametrize(("group_size", "expected"), [(4, 9.70), (16, 31.50)])
@pytest.mark.parametrize("relation", [ADD, ZERO])
def test_golden_user_with_at_most_k_examples(
    group_size: int, expected: float, relation: Relation
) -> None:
    (loss,) = group_profile(GOLDEN_RUN, group_size, relation, [1e-10])
    assert (loss.accountant, loss.rdp_epsilon) == ("pld", None)
    assert loss.epsilon == pytest.approx(expected, abs=5e-3)


def test_a_larger_group_costs_more_up_to_where_nothing_is_left() -> None:
    costs = [group_profile(GOLDEN_RUN, k, ADD, [1e-10])[0].epsilon for k in (2, 4, 32, 64, 2000)]
    assert costs == sorted(costs)
    assert costs[0] > epsilon_of(GOLDEN_RUN, 1e-10, ADD).epsilon
    assert costs[3] == pytest.approx(164.51, abs=0.05)
    assert costs[-1] == math.inf


@pytest.mark.parametrize("group_size", [2, 5])
def test_a_group_costs_no_more_than_the_general_lemma_allows(group_size: int) -> None:
    # Any (epsilon, delta) gives (k epsilon, delta (e^(k epsilon) - 1) / (e^epsilon - 1)).
    for epsilon in (0.2, 0.7, 1.5):
        one = delta_of(SMALL_RUN, epsilon, ADD)
        lemma = one * math.expm1(group_size * epsilon) / math.expm1(epsilon)
        grouped = events.for_group(SMALL_RUN, group_size)
        assert delta_of(grouped, group_size * epsilon, ADD) <= lemma * (1 + 1e-3) + 1e-12


def _hockey_stick(stddev: float, weights: dict[int, float], epsilon: float, removed: bool) -> float:
    """One iteration's delta: the two tails' difference where the densities' ratio crosses."""
    sign = 1.0 if removed else -1.0

    def excess(x: float) -> float:
        logs = [math.log(w) + (2 * j * x - j * j) / (2 * stddev**2) for j, w in weights.items()]
        return sign * float(logsumexp(logs)) - epsilon

    far = 60.0 * stddev
    if excess(-far) * excess(far) > 0:  # the loss never comes so high
        return 0.0
    at = brentq(excess, -far, far, xtol=1e-14)
    tail = norm.sf if removed else norm.cdf
    plain = float(tail(at, 0.0, stddev))
    mixed = math.fsum(w * float(tail(at, j, stddev)) for j, w in weights.items())
    upper, lower = (mixed, plain) if removed else (plain, mixed)
    return upper - math.exp(epsilon) * lower


@pytest.mark.parametrize(
    ("stddev", "sampling_prob", "group_size"), [(1.0, 0.1, 3), (0.7, 0.01, 4), (2.0, 0.5, 2)]
)
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 2.5])
def test_one_iteration_is_the_difference_of_its_tails(
    stddev: float, sampling_prob: float, group_size: int, epsilon: float
) -> None:
    weights = {j: float(binom.pmf(j, group_size, sampling_prob)) for j in range(group_size + 1)}
    exact = max(_hockey_stick(stddev, weights, epsilon, removed) for removed in (True, False))
    grouped = events.for_group(events.dp_sgd(stddev * SLACK, sampling_prob, 1), group_size)
    bound = delta_of(grouped, epsilon, ADD)
    assert exact * (1 - 1e-8) <= bound <= exact * 1.001 + 1e-14


@pytest.mark.parametrize(
    ("stddev", "sampling_prob", "group_size"),
    [(0.766, 0.00178706, 4), (2.0, 1e-3, 4), (1.0, 0.3, 3), (0.8, 1e-7, 5)],
)
def test_mixture_is_dp_accountings_where_that_is_sound(
    stddev: float, sampling_prob: float, group_size: int
) -> None:
    one = events.for_group(events.dp_sgd(stddev * SLACK, sampling_prob, 1), group_size)["event"]
    arguments = (stddev, one["sensitivities"], one["sampling_probs"])
    ours = mixture_distribution(*arguments, 1e-3)
    theirs = dp.pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
        *arguments, value_discretization_interval=1e-3
    )
    for epsilon in np.linspace(0.0, 8.0, 20):
        expected = theirs.get_delta_for_epsilon(epsilon)
        assert ours.get_delta_for_epsilon(epsilon) == pytest.approx(expected, rel=1e-8, abs=1e-20)


@pytest.mark.parametrize("sampling_prob", [1e-9, 2e-10, 1e-14])
def test_a_tiny_sampling_probability_is_not_lost(sampling_prob: float) -> None:
    # dp-accounting 0.6.0 reads a chance within 1e-8 of 0 as 0: its delta at epsilon 0 is 5e-19 here.
    grouped = events.for_group(events.dp_sgd(0.8 * SLACK, sampling_prob, 1), 4)
    exact = 4 * sampling_prob * math.erf(1 / (0.8 * math.sqrt(8)))
    assert exact * (1 - 1e-6) <= delta_of(grouped, 0.0, ADD) <= exact * (1 + 1e-3) + 2e-15


@pytest.mark.parametrize("group_size", [2, 7, 40, 1000])
@pytest.mark.parametrize("sampling_prob", [5e-324, 1e-300, 1e-20, 1e-5, 0.02, 0.5, 1.0])
def test_how_many_join_is_rounded_up(group_size: int, sampling_prob: float) -> None:
    one = events.for_group(
        {
            "kind": "poisson_sampled",
            "sampling_prob": sampling_prob,
            "event": {"kind": "gaussian", "noise_multiplier": 1.0},
        },
        group_size,
    )
    to_dp_event(one)
    sizes, weights = one["sensitivities"], one["sampling_probs"]
    assert math.fsum(weights) == pytest.approx(1.0, abs=1e-15)
    assert sizes[-1] == group_size
    for at_least in range(1, group_size + 1):
        stated = math.fsum(w for s, w in zip(sizes, weights, strict=True) if s >= at_least)
        true = float(binom.sf(at_least - 1, group_size, sampling_prob))
        assert stated >= max(true * (1 - 1e-13), 1e-301)
        assert stated <= true * (1 + 1e-9) + 1e-31
    assert all(w >= 0 for w in weights)


@pytest.mark.parametrize("group_size", [2, 5])
@pytest.mark.parametrize("delta", [1e-6, 1e-10])
@pytest.mark.parametrize(
    ("event", "mu"),
    [
        (events.gaussian(4.0 * SLACK), 0.25),
        (events.self_composed(events.gaussian(8.0 * SLACK), 9), 0.375),
        (events.fixed_order(2.0 * SLACK, 1), 0.5),
        (events.fixed_order(6.0 * SLACK, 4), 1 / 3),
    ],
)
def test_closed_form_of_groups_under_plain_gaussians(
    event: events.EventTree, mu: float, group_size: int, delta: float
) -> None:
    # In a fixed order the worst place for a group is one batch, where it moves the sum by its size.
    (loss,) = group_profile(event, group_size, ZERO, [delta])
    exact = exact_gaussian(1.0 / mu, delta, float(group_size))
    assert exact - 1e-9 <= loss.epsilon <= exact * 1.0005 + 2e-3


def test_fixed_order_groups_need_zero_out() -> None:
    with pytest.raises(ConfigError, match="zero_out"):
        group_profile(events.fixed_order(2.0, 1), 3, ADD, [1e-6])


def test_a_group_in_several_batches_costs_less_than_in_one() -> None:
    apart = events.composed(
        [events.gaussian(3.0), events.gaussian(3.0 / 2)]
    )  # one and two of three
    together = events.for_group(events.fixed_order(3.0, 1), 3)
    assert epsilon_of(apart, 1e-8, ZERO).epsilon < epsilon_of(together, 1e-8, ZERO).epsilon


@pytest.mark.parametrize(
    "event",
    [
        events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30),
        events.composed(
            [
                events.gaussian(9.0),
                events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30),
            ]
        ),
        events.repeat_and_select(SMALL_RUN, mean=3, shape=1.0),
        events.for_group(SMALL_RUN, 2),
    ],
)
def test_what_has_no_group_bound_is_refused_with_the_reason(event: events.EventTree) -> None:
    assert "No group guarantee" in str(refusal_of(event, 3, ZERO))
    with pytest.raises(InputError, match="No group guarantee"):
        group_profile(event, 3, ZERO, [1e-6])


@pytest.mark.parametrize("event", [SMALL_RUN, events.gaussian(1.0)])
def test_groups_under_replace_one_are_refused(event: events.EventTree) -> None:
    assert refusal_of(event, 3, ADD) is None
    with pytest.raises(ConfigError, match="replace_one"):
        group_profile(event, 3, REPLACE, [1e-6])


@pytest.mark.parametrize("group_size", [1, 0, -3, 2.0, True, "4", None])
def test_a_group_of_one_is_not_a_group(group_size: Any) -> None:
    with pytest.raises(ConfigError, match="group_size"):
        group_profile(SMALL_RUN, group_size, ADD, [1e-6])


@pytest.mark.parametrize("delta", [0, 1, -1e-6, math.nan, True])
def test_deltas_outside_zero_one_are_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        group_profile(SMALL_RUN, 3, ADD, [1e-6, delta])


def test_a_denormal_delta_and_no_noise_have_no_finite_bound() -> None:
    assert group_profile(SMALL_RUN, 3, ADD, [1e-320])[0].epsilon == math.inf
    assert group_profile(events.dp_sgd(0.0, 0.1, 10), 3, ADD, [1e-6])[0].epsilon == math.inf
    assert group_profile(events.NO_OP, 3, ADD, [1e-6])[0].epsilon == 0.0


@pytest.mark.parametrize(
    ("sampling_prob", "noise", "iterations", "group_size"),
    [(0.00178706, 0.766, 2798, 4), (1e-3, 2.0, 20_000, 8), (0.3, 3.0, 50, 3)],
)
def test_float64s_composition_error_of_mixtures_is_within_its_bound(
    sampling_prob: float, noise: float, iterations: int, group_size: int
) -> None:
    event = events.for_group(events.dp_sgd(noise, sampling_prob, iterations), group_size)
    relation = neighboring_relation(ADD)
    float64 = compose(event, relation, 2e-3, extended=False)
    extended = compose(event, relation, 2e-3, extended=True)
    bound = composition_error(iterations, extended=False)
    for epsilon in np.linspace(0.0, 20.0, 40):
        error = float64.get_delta_for_epsilon(epsilon) - extended.get_delta_for_epsilon(epsilon)
        assert abs(float(error)) <= bound


def test_progress_is_told_from_none_to_all() -> None:
    told: list[tuple[int, int]] = []
    losses = group_profile(
        SMALL_RUN, 2, ADD, [1e-8, 1e-6, 1e-8], on_progress=lambda *at: told.append(at)
    )
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert [loss.delta for loss in losses] == [1e-6, 1e-8]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Grows with the delta of every loss that is computed rather than read."""
    deltas: list[float] = []

    def counted(event: events.EventTree, delta: float, relation: Relation) -> PrivacyLoss:
        deltas.append(delta)
        return epsilon_of(event, delta, relation)

    monkeypatch.setattr(group, "epsilon_of", counted)
    return deltas


def test_figures_are_computed_once(computed: list[float], folder: Path) -> None:
    first = group_profile(SMALL_RUN, 2, ADD, [1e-6, 1e-320])
    again = group_profile(SMALL_RUN, 2, ADD, [1e-6, 1e-320])
    assert first == again
    assert computed == [1e-6, 1e-320]
    assert len(list(folder.iterdir())) == 2
    assert group_profile(SMALL_RUN, 2, ADD, [1e-6, 1e-320], cached=False) == first
    assert len(computed) == 4


def test_every_argument_has_its_own_figure(computed: list[float], folder: Path) -> None:
    other = events.dp_sgd(1.0, 0.1, 11)
    for event, size, relation, delta in (
        (SMALL_RUN, 2, ADD, 1e-6),
        (other, 2, ADD, 1e-6),
        (SMALL_RUN, 3, ADD, 1e-6),
        (SMALL_RUN, 2, ZERO, 1e-6),
        (SMALL_RUN, 2, ADD, 1e-7),
    ):
        group_profile(event, size, relation, [delta])
    assert len(computed) == len(list(folder.iterdir())) == 5


def test_other_code_or_libraries_make_other_figures(
    computed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    group_profile(SMALL_RUN, 2, ADD, [1e-6])
    monkeypatch.setattr(group, "_versions", lambda: ["another"])
    group_profile(SMALL_RUN, 2, ADD, [1e-6])
    assert len(computed) == 2


def test_the_code_that_figures_follow_from_is_all_of_it() -> None:
    reached, left = set[str](), ["group"]
    while left:
        name = left.pop()
        reached.add(name)
        source = Path(group.__file__).with_name(f"{name}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dpads.accounting"):
                parts = str(node.module).split(".")[2:] or [alias.name for alias in node.names]
                left.extend(part for part in parts if part not in reached)
    assert set(group._CODE) == reached


def _damages(content: dict[str, Any]) -> list[bytes]:
    small = {**content["loss"], "epsilon": "0.01"}
    odd = {**content["loss"], "epsilon": None}
    return [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b"\xff\xfe",
        canonical_bytes({**content, "loss": small}),
        canonical_bytes({**content, "key": "0" * 64}),
        canonical_bytes({**content, "loss": odd, "sha256": digest([content["key"], odd])}),
        canonical_bytes({**content, "loss": {}, "sha256": digest([content["key"], {}])}),
        canonical_bytes({"loss": content["loss"]}),
        b'{"key": 1, "loss": NaN, "sha256": ""}',
        canonical_bytes(content)[:-5],
    ]


@pytest.mark.parametrize("damage", range(12))
def test_a_damaged_file_is_recomputed(damage: int, computed: list[float], folder: Path) -> None:
    first = group_profile(SMALL_RUN, 2, ADD, [1e-6])
    (file,) = folder.iterdir()
    sound = file.read_bytes()
    file.write_bytes(_damages(json.loads(sound))[damage])
    assert group_profile(SMALL_RUN, 2, ADD, [1e-6]) == first
    assert computed == [1e-6, 1e-6]
    assert file.read_bytes() == sound


def test_a_forged_figure_is_not_read_by_who_recomputes(folder: Path) -> None:
    (first,) = group_profile(SMALL_RUN, 2, ADD, [1e-6])
    (file,) = folder.iterdir()
    content = json.loads(file.read_bytes())
    content["loss"]["epsilon"] = "0.01"
    content["sha256"] = digest([content["key"], content["loss"]])
    file.write_bytes(canonical_bytes(content))
    assert group_profile(SMALL_RUN, 2, ADD, [1e-6], cached=False) == (first,)


def test_without_a_place_for_caches_figures_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (first,) = group_profile(SMALL_RUN, 2, ADD, [1e-6])
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(blocked))
    assert group_profile(SMALL_RUN, 2, ADD, [1e-6]) == (first,)

    def nowhere() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nowhere)
    assert group_profile(SMALL_RUN, 2, ADD, [1e-6]) == (first,)
