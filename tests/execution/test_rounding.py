"""Numbers rounded so that results of different machines can be compared."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.execution.codec import encode
from p2pcompute.execution.functions import load_value
from p2pcompute.execution.rounding import rounded
from tests.execution.conftest import Rig


@given(st.floats(), st.integers(1, 15))
def test_twice_is_once(number: float, digits: int) -> None:
    """Broken: a rounded value differs from itself when it is rounded again."""
    once = rounded(number, digits)
    assert encode(rounded(once, digits)) == encode(once)
    if math.isfinite(number) and math.isfinite(once) and abs(number) > 1e-300:
        assert abs(once - number) <= abs(number) * 10.0 ** (1 - digits)


def test_what_is_rounded() -> None:
    """Broken: numbers in containers and arrays differ in their last bits, or others are changed."""
    value = {"a": [0.1 + 0.2, (1 / 3, 7)], "b": np.array([[0.1 + 0.2]]), "c": np.float32(1 / 3), "d": 1 / 3 + 1j / 7}
    same = {
        "a": [0.3, (0.33333333333, 7)],
        "b": np.array([[0.3]]),
        "c": np.float32(0.333333),
        "d": 0.333333 + 0.142857j,
    }
    assert encode(rounded(value, 6)) == encode(rounded(same, 6))
    assert rounded([12345678901234567890, "1.23456", True, None], 3) == [12345678901234567890, "1.23456", True, None]
    assert math.copysign(1, rounded(-0.0, 3)) == 1


class Point(NamedTuple):
    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Fit:
    unit: ClassVar[float] = 1 / 3
    slope: float
    residuals: list[float]


class Bins(dict[str, float]):
    note = "kept"


def test_numbers_in_classes_of_containers() -> None:
    """Broken: a named tuple or data class comes back with all its digits, so no two machines agree on it."""
    value = [Point(1 / 3, "a"), Fit(2 / 3, [1 / 7]), Bins(a=1 / 3), deque([1 / 3], 5), OrderedDict(b=1 / 3)]
    found = rounded(value, 3)
    assert found == [Point(0.333, "a"), Fit(0.667, [0.143]), Bins(a=0.333), deque([0.333], 5), OrderedDict(b=0.333)]
    assert [type(item) for item in found] == [type(item) for item in value] and found[3].maxlen == 5
    assert value[1] == Fit(2 / 3, [1 / 7]) and value[3][0] == 1 / 3, "what the function holds is left as it is"


def test_frames() -> None:
    """Broken: a frame's columns are not rounded, or lose their names."""
    pandas = pytest.importorskip("pandas", reason="runs with pandas, which dev.py test installs")
    frame = pandas.DataFrame({"x": [1 / 3, 2 / 3], "n": [1, 2], "t": ["a", "b"]}, index=[5, 6])
    found = rounded(frame, 3)
    assert found.to_dict() == {"x": {5: 0.333, 6: 0.667}, "n": {5: 1, 6: 2}, "t": {5: "a", 6: "b"}}


@pytest.mark.asyncio(loop_scope="module")
async def test_in_a_worker(shared_rig: Rig) -> None:
    """Broken: the worker returns the numbers as they were."""
    outcome = await shared_rig.call(lambda: [1 / 3, np.float64(2 / 3)], digits=4)
    assert load_value(outcome.value, is_trusted=False) == [0.3333, 0.6667]
    outcome = await shared_rig.call(lambda: [1 / 3, Fraction(1, 3)], digits=4)
    assert load_value(outcome.value) == [0.3333, Fraction(1, 3)], "also beside what is no data"
