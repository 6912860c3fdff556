"""Rounded numbers that are a step apart: if it broke, an honest machine would be a liar, or a lie be the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest

from p2pcompute.execution.codec import encode
from p2pcompute.execution.neighbours import are_neighbours
from p2pcompute.execution.rounding import rounded


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.333, 0.334),
        (-0.333, -0.334),
        (9.99, 10.0),
        (1.23e300, 1.24e300),
        ([1.0, {"x": (0.667, "a")}], [1.0, {"x": (0.666, "a")}]),
        (0.333 + 1.0j, 0.334 + 1.0j),
        (np.array([1.0, 0.333]), np.array([1.0, 0.334])),
        (float("nan"), float("nan")),
    ],
)
def test_a_step_is_no_difference(one: Any, other: Any) -> None:
    assert are_neighbours(encode(one), encode(other), 3) and are_neighbours(encode(other), encode(one), 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.333, 0.335),
        (0.333, -0.333),
        (0.0, 1e-300),
        (1, 2),
        (1.0, 1),
        ([1.0], [1.0, 1.0]),
        ({"x": 1.0}, {"y": 1.0}),
        ("0.333", "0.334"),
        (float("inf"), 1e308),
        (float("nan"), 1.0),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1.0]), np.array([1.0], dtype="f4")),
    ],
)
def test_all_else_is_one(one: Any, other: Any) -> None:
    assert not are_neighbours(encode(one), encode(other), 3)


def test_what_is_no_value_has_no_neighbours() -> None:
    assert not are_neighbours(b"pickle", b"pickle", 3)
    assert not are_neighbours(encode(1.0)[:-1], encode(1.0)[:-1], 3)


def test_whatever_two_machines_round_that_is_nearly_the_same_is_a_step_apart() -> None:
    for number in range(1, 2000):
        border = (number + 0.5) * 10.0 ** (number % 40 - 20)
        for digits in (2, 6, 12):
            low, high = rounded(border * (1 - 1e-15), digits), rounded(border * (1 + 1e-15), digits)
            assert are_neighbours(encode(low), encode(high), digits), (border, digits)


def test_frames_a_step_apart_are_as_good_as_each_other() -> None:
    """Broken: an honest member is a suspect because a number in its table was rounded the other way."""

    def table(x: float, **more: Any) -> Any:
        columns = {"x": [x, 2.0, float("nan")], "n": [1, 2, 3], "t": ["a", "b", "c"], **more}
        return pandas.DataFrame(columns, index=[5, 6, 7])

    one = table(1.234)
    assert are_neighbours(encode(one), encode(table(1.235)), 4)
    assert are_neighbours(encode([one]), encode([table(1.235)]), 4)
    assert are_neighbours(encode(one["x"]), encode(table(1.235)["x"]), 4)
    other_index = table(1.235)
    other_index.index = [5, 6, 8]
    for other in (
        table(1.237),
        table(1.235, n=[1, 2, 4]),
        table(1.235, t=["a", "b", "d"]),
        table(1.235, n=[1.0, 2.0, 3.0]),
        table(1.235).rename(columns={"x": "y"}),
        other_index,
    ):
        assert not are_neighbours(encode(one), encode(other), 4)
