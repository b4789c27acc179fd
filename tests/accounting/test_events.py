"""Event trees: built with the slack, rebuilt from files that somebody else wrote."""

from __future__ import annotations

import json
import math
from typing import Any

import dp_accounting as dp
import pytest

from dpads.accounting import events
from dpads.accounting.canonical import canonical_bytes, digest
from dpads.accounting.event_forms import to_dp_event
from dpads.errors import InputError

GAUSSIAN = {"kind": "gaussian", "noise_multiplier": 1.0}


def test_dp_sgd_event_has_the_sensitivity_slack() -> None:
    event = events.dp_sgd(0.8, 0.01, 100)
    inner = event["event"]["event"]
    assert inner["noise_multiplier"] == 0.8 / (1 + 2**-10)
    assert to_dp_event(event) == dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(0.8 / (1 + 2**-10))), 100
    )


@pytest.mark.parametrize(
    "event",
    [
        events.dp_sgd(1.0, 0.1, 5),
        events.dp_sgd(1.0, 1.0, 5),
        events.dp_sgd(0.0, 0.1, 5),
        events.dp_sgd(1.0, 0.1, 0),
        events.fixed_order(1.0, 3),
        events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30),
        events.for_group(events.dp_sgd(1.0, 0.1, 5), 4),
        events.composed([events.gaussian(2.0), events.dp_sgd(1.0, 0.1, 5)]),
        events.worst_of([events.gaussian(2.0), events.dp_sgd(1.0, 0.1, 5)]),
        events.renyi_filter(order=8, rdp=1),
    ],
    ids=lambda e: e["kind"],
)
def test_every_event_survives_json(event: events.EventTree) -> None:
    again = json.loads(canonical_bytes(event))
    assert again == event
    assert to_dp_event(again) == to_dp_event(event)
    assert digest(again) == digest(event)


def test_no_sampling_is_the_plain_gaussian() -> None:
    assert events.dp_sgd(1.0, 1.0, 7) == events.self_composed(events.gaussian(1.0), 7)


def test_no_iterations_and_no_noise_are_named() -> None:
    assert events.dp_sgd(1.0, 0.5, 0) == events.NO_OP
    assert events.leaves(events.dp_sgd(0.0, 0.5, 3)) == [events.NON_PRIVATE]
    assert events.composed([]) == events.NO_OP


def test_composing_counts_equal_neighbours() -> None:
    run = events.dp_sgd(1.0, 0.1, 5)
    assert events.composed([run] * 20) == events.self_composed(run, 20)
    assert events.iterations_of(events.composed([run, run, events.gaussian(3.0)])) == 11


def test_group_of_a_poisson_sample_is_the_binomial_mixture() -> None:
    event = events.for_group(events.dp_sgd(1.0, 0.25, 5), 2)["event"]
    assert event["sensitivities"] == [0.0, 1.0, 2.0]
    assert event["sampling_probs"] == pytest.approx([0.5625, 0.375, 0.0625])
    assert math.fsum(event["sampling_probs"]) >= 1.0 - 2**-53


def test_group_of_a_plain_gaussian_divides_the_noise_by_the_group() -> None:
    assert events.for_group(events.gaussian(3.0), 3)["noise_multiplier"] == pytest.approx(
        1.0 / (1 + 2**-10)
    )
    both = events.composed([events.gaussian(3.0), events.dp_sgd(1.0, 0.1, 5)])
    kinds = [leaf["kind"] for leaf in events.leaves(events.for_group(both, 3))]
    assert kinds == ["gaussian", "mixture_of_gaussians"]


def test_group_of_what_has_no_group_bound_is_refused() -> None:
    truncated = events.truncated_poisson(1.0, 0.1, 5, dataset_size=100, max_batch_size=30)
    with pytest.raises(InputError, match="No group guarantee"):
        events.for_group(truncated, 2)


def test_a_choice_merges_equal_parts_and_of_one_part_is_that_part() -> None:
    small, large = events.dp_sgd(1.0, 0.1, 5), events.dp_sgd(2.0, 0.1, 7)
    assert events.worst_of([small, small]) == small
    assert events.worst_of([]) == events.worst_of([events.NO_OP]) == events.NO_OP
    two = events.worst_of([small, large, small])
    assert two == {"kind": "worst_of", "events": [small, large]}
    assert events.worst_of([two, events.NO_OP, large]) == two


def test_whoever_looks_for_a_sampler_sees_inside_a_choice() -> None:
    passes = events.fixed_order(1.0, 3)
    tree = events.composed(
        [
            events.repeat_and_select(
                events.worst_of([passes, events.dp_sgd(1.0, 0.1, 9)]), mean=3.0, shape=1.0
            ),
            events.renyi_filter(order=8.0, rdp=0.5),
        ]
    )
    kinds = [leaf["kind"] for leaf in events.leaves(tree)]
    assert kinds == ["fixed_order_pass", "poisson_sampled", "renyi_filter"]
    assert events.kinds_of(tree) == {
        "composed", "repeat_and_select", "worst_of", "self_composed", "fixed_order_pass", "gaussian",
        "poisson_sampled", "renyi_filter",
    }  # fmt: skip
    assert events.iterations_of(tree) == 9 + 1
    counted = events.counted_leaves(events.self_composed(tree["events"][0]["event"], 4))
    assert [(leaf["kind"], count) for leaf, count in counted] == [("worst_of", 4)]


def _nested(depth: int) -> dict[str, Any]:
    event: dict[str, Any] = dict(GAUSSIAN)
    for _ in range(depth):
        event = {"kind": "self_composed", "event": event, "count": 1}
    return event


def _nested_choice(depth: int) -> dict[str, Any]:
    event: dict[str, Any] = dict(GAUSSIAN)
    for _ in range(depth):
        event = {"kind": "worst_of", "events": [event]}
    return event


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        "gaussian",
        {},
        {"kind": 3},
        {"kind": "shuffled"},
        {"kind": "gaussian"},
        {**GAUSSIAN, "extra": 1},
        {**GAUSSIAN, "noise_multiplier": -1.0},
        {**GAUSSIAN, "noise_multiplier": math.nan},
        {**GAUSSIAN, "noise_multiplier": math.inf},
        {**GAUSSIAN, "noise_multiplier": True},
        {**GAUSSIAN, "noise_multiplier": "1"},
        {"kind": "poisson_sampled", "sampling_prob": 0.0, "event": GAUSSIAN},
        {"kind": "poisson_sampled", "sampling_prob": 1.5, "event": GAUSSIAN},
        {"kind": "poisson_sampled", "sampling_prob": 0.5, "event": {"kind": "no_op"}},
        {"kind": "self_composed", "event": GAUSSIAN, "count": 0},
        {"kind": "self_composed", "event": GAUSSIAN, "count": -5},
        {"kind": "self_composed", "event": GAUSSIAN, "count": 2.0},
        {"kind": "self_composed", "event": GAUSSIAN, "count": True},
        {"kind": "composed", "events": []},
        {"kind": "composed", "events": [GAUSSIAN, 7]},
        {"kind": "worst_of", "events": []},
        {"kind": "worst_of", "events": {"0": GAUSSIAN}},
        {"kind": "worst_of", "events": [GAUSSIAN, 7]},
        {"kind": "worst_of", "events": [GAUSSIAN], "weights": [1.0]},
        {"kind": "worst_of", "event": GAUSSIAN},
        {"kind": "renyi_filter", "order": 8.0},
        {"kind": "renyi_filter", "order": 1.0, "rdp": 1.0},
        {"kind": "renyi_filter", "order": math.inf, "rdp": 1.0},
        {"kind": "renyi_filter", "order": 8.0, "rdp": -1.0},
        {"kind": "renyi_filter", "order": 8.0, "rdp": math.nan},
        {"kind": "renyi_filter", "order": "8", "rdp": 1.0},
        {"kind": "renyi_filter", "order": True, "rdp": 1.0},
        _nested_choice(1000),
        {
            "kind": "mixture_of_gaussians",
            "noise_multiplier": 1.0,
            "sensitivities": [0.0, 1.0],
            "sampling_probs": [0.9],
        },
        {
            "kind": "mixture_of_gaussians",
            "noise_multiplier": 1.0,
            "sensitivities": [0.0, 1.0],
            "sampling_probs": [0.9, 0.05],
        },
        _nested(1000),
    ],
)
def test_malformed_trees_are_refused_by_name(event: Any) -> None:
    with pytest.raises(InputError, match=r"event|kind|mixture|sensitivities"):
        to_dp_event(event)


def test_canonical_json_has_no_infinity() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_bytes({"epsilon": math.inf})
    assert canonical_bytes({"b": 1, "a": 2}) == canonical_bytes({"a": 2, "b": 1})
