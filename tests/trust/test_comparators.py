"""Comparators: if they broke, honest machines would contradict one another, or wrong values pass for right ones."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.trust.verification.comparators import Comparator

EXACT, NINE = Comparator(), Comparator(9)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(one=st.binary(), other=st.binary())
def test_exact_tells_any_two_outputs_apart(one: bytes, other: bytes) -> None:
    assert (EXACT.digest(one) == EXACT.digest(other)) == (one == other)


@given(value=finite)
def test_rounding_is_done_once_and_for_all(value: float) -> None:
    rounded = float(f"{value:.8e}")
    assert NINE.digest(value) == NINE.digest(rounded)


@given(value=st.floats(1e-300, 1e300))
def test_what_differs_in_a_digit_that_counts_differs(value: float) -> None:
    assert NINE.digest(value) != NINE.digest(value * (1 + 1e-8))


def test_noise_of_another_order_of_a_sum_is_no_difference() -> None:
    parts = [math.sin(number) * 10 ** (number % 7) for number in range(1000)]
    one, other = sum(parts), sum(reversed(parts))
    assert one != other
    assert NINE.digest({"total": [one, 3, "x"]}) == NINE.digest({"total": (other, 3, "x")})
    assert Comparator(15).digest(1.0) != Comparator(15).digest(1.00000000000001)


def test_zeros_and_not_a_number_are_one_value_each() -> None:
    odd = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]
    assert NINE.digest(-0.0) == NINE.digest(0.0) == NINE.digest(-0.0 * 5)
    assert NINE.digest([odd]) == NINE.digest([float("nan")]) != NINE.digest([float("inf")])
    assert NINE.digest(float("inf")) != NINE.digest(float("-inf"))


def test_a_whole_number_is_not_a_float() -> None:
    assert NINE.digest(1) != NINE.digest(1.0)
    assert NINE.digest(10**15 + 1) != NINE.digest(10**15)


@pytest.mark.parametrize("text", ["exact", "rounded:1", "rounded:15"])
def test_a_comparator_is_known_by_its_name(text: str) -> None:
    assert str(Comparator.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "Exact", "rounded", "rounded:", "rounded:0", "rounded:16", "rounded:1e1", "tolerance:3"]
)
def test_others_are_refused_and_what_is_allowed_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="exact, or rounded:N"):
        Comparator.parse(text)
