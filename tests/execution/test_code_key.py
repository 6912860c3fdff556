"""Keys of values: two that differ never have the same one, or a program that resumes takes another call's result."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest

from p2pcompute.execution.code_key import value_key


class Word(str):
    pass


class Row(list[int]):
    pass


class Slotted:
    __slots__ = ("__dict__", "size")

    def __init__(self, size: int) -> None:
        self.size = size


class Plain:
    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Counter("a"), Counter("b")),
        (OrderedDict(a=1), OrderedDict(a=2)),
        (Word("a"), Word("b")),
        (Row([1]), Row([2])),
        (ValueError("a"), ValueError("b")),
        (np.ma.masked_array([1, 2], [False, True]), np.ma.masked_array([1, 3], [False, True])),
        (Slotted(1), Slotted(2)),
        (Plain(1), Plain(2)),
        (10**5000, 10**5000 + 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_among_the_attributes_counts(one: Any, other: Any) -> None:
    assert value_key(one) != value_key(other)
    assert value_key([one]) == value_key([one])


def test_what_holds_itself_ends() -> None:
    row: Any = Row([1])
    row.append(row)
    row.owner = row
    assert value_key(row) == value_key(row)
