"""Curves on a canvas: every value stands where its axis says, and labels keep apart."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpads.accounting.pictures import HEIGHT, WIDTH, Picture, profile_picture, rdp_picture

DELTAS = (1e-5, 1e-6, 1e-8, 1e-10, 1e-12)
LETTER = 8.2  # width of a digit at 13 units, in a wide font


def read_off(picture: Picture, place: float, *, log: bool, horizontal: bool) -> float:
    """The value at a place, read off the axis between its outermost labels."""
    ticks = [t for t in (picture.x_ticks if horizontal else picture.y_ticks) if t.text]
    low, high = ticks[0], ticks[-1]
    share = (place - low.place) / (high.place - low.place)
    if log:
        logs = math.log10(float(low.text)), math.log10(float(high.text))
        return float(10 ** (logs[0] + share * (logs[1] - logs[0])))
    return float(low.text) + share * (float(high.text) - float(low.text))


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=6, unique=True))
def test_points_of_a_profile_stand_where_the_axes_say(epsilons: list[float]) -> None:
    deltas = [10.0 ** -(5 + i) for i in range(len(epsilons))]
    profile = [{"epsilon": e, "delta": d} for e, d in zip(epsilons, deltas, strict=True)]
    picture = profile_picture(profile, deltas[1])
    assert len(picture.points) == len(profile)
    for point, item in zip(picture.points, reversed(profile), strict=True):
        delta = read_off(picture, point.x, log=True, horizontal=True)
        assert delta == pytest.approx(item["delta"], rel=0.02)
        epsilon = read_off(picture, point.y, log=False, horizontal=False)
        assert epsilon == pytest.approx(item["epsilon"], abs=1e-3 * max(0.01, *epsilons))
        assert picture.left <= point.x <= picture.right
        assert picture.top <= point.y <= picture.bottom
    assert picture.mark is not None
    assert picture.mark.point is picture.points[-2]


@given(
    st.lists(st.floats(1e-3, 1e7), min_size=3, max_size=3),
    st.lists(st.integers(1, 300), min_size=3, max_size=3, unique=True),
)
def test_labels_keep_apart_and_on_the_canvas(epsilons: list[float], powers: list[int]) -> None:
    points = zip(epsilons, sorted(powers), strict=True)
    picture = profile_picture([{"epsilon": e, "delta": 10.0**-p} for e, p in points], None)
    labels = [t for t in picture.x_ticks if t.text]
    for one, other in pairwise(labels):
        assert other.place - one.place > LETTER * max(len(one.text), len(other.text)) * 0.9
    assert labels[-1].place + LETTER * len(labels[-1].text) / 2 <= WIDTH + 4
    for one, other in pairwise(t for t in picture.y_ticks if t.text):
        assert one.place - other.place > 15
    assert max(LETTER * len(t.text) for t in picture.y_ticks) <= picture.left - 8
    assert picture.bottom < HEIGHT


def test_the_claims_point_is_marked_and_no_other() -> None:
    profile = [{"epsilon": 1.0 + i, "delta": d} for i, d in enumerate(DELTAS)]
    for i, delta in enumerate(DELTAS):
        mark = profile_picture(profile, delta).mark
        assert mark is not None
        assert mark.point.text == f"epsilon {1 + i:.2f} at delta {delta:g}".replace("e-0", "e-")
    assert profile_picture(profile, 1e-7).mark is None
    assert profile_picture(profile, None).mark is None


def test_a_loss_of_nothing_has_a_picture_too() -> None:
    picture = profile_picture([{"epsilon": 0.0, "delta": d} for d in DELTAS], 1e-8)
    assert {p.y for p in picture.points} == {picture.bottom}


def test_renyi_curves_stand_on_logarithmic_axes() -> None:
    orders, values = [1.1, 2.0, 16.0, 1024.0], [0.004, 0.02, 1.0, 70_000.0]
    picture = rdp_picture(orders, values)
    assert picture is not None
    for point, order, value in zip(picture.points, orders, values, strict=True):
        assert read_off(picture, point.x, log=True, horizontal=True) == pytest.approx(
            order, rel=0.02
        )
        assert read_off(picture, point.y, log=True, horizontal=False) == pytest.approx(
            value, rel=0.05
        )
    assert picture.path.count("L") == len(orders) - 1


def test_a_curve_of_fewer_than_two_points_has_no_picture() -> None:
    assert rdp_picture([2.0], [1.0]) is None
    assert rdp_picture([2.0, 3.0, 4.0], [0.0, 0.0, 1.0]) is None
