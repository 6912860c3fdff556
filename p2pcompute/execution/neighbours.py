"""Rounded results that differ by no more than a step of rounding.

Two machines that compute nearly the same number may round it to two neighbours, whichever way numbers are rounded, so
that neither of them has erred.  This is no equality: it does not carry over from one value to a third, so values are
compared with one only, that which a trusted node found.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

from p2pcompute.execution.codec import CannotDecode, decode
from p2pcompute.execution.spec import fence_of

_STEPS: Final = 1.5
"""Neighbours are one step apart; the rest is for the binary form of decimal numbers."""


def are_alike(spec: bytes, one: bytes, other: bytes) -> bool:
    """Return whether two encoded values are as good as each other, though they differ, by a job's encoded spec."""
    digits = fence_of(spec)[1]
    return digits > 0 and are_neighbours(one, other, digits)


def are_neighbours(one: bytes, other: bytes, digits: int) -> bool:
    """Return whether two encoded values are the same but for numbers that are at most a step of rounding apart.

    Args:
        one: as `codec.encode` gives it; bytes that are something else have no neighbours.
        digits: significant ones to which both were rounded.
    """
    if len(one) != len(other):
        return False
    try:
        return _are_near(decode(one), decode(other), digits)
    except CannotDecode:
        return False


def _are_near(one: Any, other: Any, digits: int) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is float:
        return _is_step(one, other, digits)
    if kind is complex:
        return _is_step(one.real, other.real, digits) and _is_step(one.imag, other.imag, digits)
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(_are_near, one, other, [digits] * len(one)))
    if kind is dict:
        return list(one) == list(other) and all(_are_near(one[key], other[key], digits) for key in one)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(one, numpy.ndarray | numpy.generic):
        if one.dtype != other.dtype or one.shape != other.shape or one.dtype.kind not in "fc":
            return one.dtype == other.dtype and bool(numpy.array_equal(one, other))
        return _are_near(one.reshape(-1).tolist(), other.reshape(-1).tolist(), digits)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(one, pandas.DataFrame | pandas.Series):
        return _are_near_frames(one, other, digits)
    try:
        return bool(one == other)
    except ValueError:  # what is compared part by part, and is none of the above
        return False


def _are_near_frames(one: Any, other: Any, digits: int) -> bool:
    """Whether two tables, or columns, have the same labels and types, and numbers that are near."""
    if one.shape != other.shape or not one.index.equals(other.index):
        return False
    if one.ndim == 2:
        places = range(one.shape[1])
        is_same = one.columns.equals(other.columns)
        return is_same and all(_are_near_frames(one.iloc[:, at], other.iloc[:, at], digits) for at in places)
    if one.dtype != other.dtype or one.name != other.name:
        return False
    if getattr(one.dtype, "kind", "") not in "fc" or not hasattr(one.dtype, "newbyteorder"):  # pandas' own types
        return bool(one.equals(other))
    return _are_near(one.to_numpy().tolist(), other.to_numpy().tolist(), digits)


def _is_step(one: float, other: float, digits: int) -> bool:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return True
    most = max(abs(one), abs(other))
    if not math.isfinite(most) or math.isnan(one) or math.isnan(other):
        return False
    step = 10.0 ** (math.floor(math.log10(most)) - digits + 1)
    return abs(one - other) <= _STEPS * step
