"""Numbers rounded to significant digits, so that results of different machines can be compared bit for bit.

Rounding goes by way of decimal text, which is the same on every machine; logarithms are not.  Two numbers that differ
less than that can still lie on different sides of a border between two rounded ones.

Imported by worker processes: imports little.
"""

from __future__ import annotations

import sys
from collections import deque
from copy import copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def rounded(value: Any, digits: int) -> Any:
    """Return a value with the floating-point numbers in it rounded: in containers, data classes, arrays, frames too.

    Attributes of other objects stay as they are, and so do the keys of dicts.

    Args:
        digits: significant ones, from 1.
    """
    kind = type(value)
    if kind is float:
        return _round(value, digits)
    if kind is complex:
        return complex(_round(value.real, digits), _round(value.imag, digits))
    if kind in (list, tuple, set, frozenset):
        return kind(rounded(item, digits) for item in value)
    if kind is dict:
        return {key: rounded(item, digits) for key, item in value.items()}
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and (kind is numpy.ndarray or isinstance(value, numpy.generic)):
        return _round_array(numpy, value, digits)
    if pandas is not None and kind in (pandas.DataFrame, pandas.Series):
        return _round_frame(numpy, value, digits)
    if isinstance(value, (tuple, dict, list, deque)):
        return _round_container(value, digits)
    if hasattr(kind, "__dataclass_fields__"):
        return _round_fields(value, digits)
    return value


def _round_container(value: Any, digits: int) -> Any:
    """Round what is in a container of a class that is derived from a usual one."""
    if isinstance(value, tuple):
        make = getattr(type(value), "_make", None)  # of named tuples
        return value if make is None else make(rounded(item, digits) for item in value)
    twin = copy(value)
    if isinstance(value, dict):
        for key, item in value.items():
            twin[key] = rounded(item, digits)
    else:
        for index, item in enumerate(value):
            twin[index] = rounded(item, digits)
    return twin


def _round_fields(value: Any, digits: int) -> Any:
    twin = copy(value)
    for field in sys.modules["dataclasses"].fields(value):
        if hasattr(value, field.name):  # it may never have been set
            object.__setattr__(twin, field.name, rounded(getattr(value, field.name), digits))
    return twin


def _round(number: float, digits: int) -> float:
    return float(f"{number:.{digits - 1}e}") + 0.0  # no negative zero


def _round_array(numpy: Any, value: Any, digits: int) -> Any:
    if value.dtype.kind == "c":
        parts = [_round_array(numpy, part, digits) for part in (value.real, value.imag)]
        return (parts[0] + 1j * parts[1]).astype(value.dtype)[()]
    if value.dtype.kind != "f":
        return value
    numbers = [_round(number, digits) for number in value.reshape(-1).tolist()]
    array = numpy.array(numbers, dtype=value.dtype).reshape(value.shape)
    return array if isinstance(value, numpy.ndarray) else array[()]


def _round_frame(numpy: Any, value: Any, digits: int) -> Any:
    if value.ndim == 2:
        return value.apply(lambda column: _round_frame(numpy, column, digits))
    if getattr(value.dtype, "kind", "") not in "fc" or not isinstance(value.dtype, numpy.dtype):
        return value
    return type(value)(_round_array(numpy, value.to_numpy(), digits), index=value.index, name=value.name)
