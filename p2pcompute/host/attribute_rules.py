"""What attributes of a node may be: the same rules for what a probe finds here and for what peers send.  Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any, Final

from p2pcompute.host.interfaces import Value
from p2pcompute.limits import ATTRIBUTE_NAME_CHARS_MAX, ATTRIBUTE_TEXT_CHARS_MAX, ATTRIBUTE_WORDS_MAX

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_INT_MAX: Final = 2**63 - 1
"""The largest int of CEL."""


def check_name(name: Any) -> str:
    """Return a name that may stand behind ``node.`` in an expression.

    Raises:
        ValueError: it may not.
    """
    if not isinstance(name, str) or len(name) > ATTRIBUTE_NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        raise ValueError("not the name of an attribute")
    return name


def check_value(value: Any) -> Value:
    """Return a value of an allowed type and size; a list of words becomes a tuple.

    Raises:
        ValueError: it is none.
    """
    if type(value) is bool:
        return value
    if type(value) is int and -_INT_MAX <= value <= _INT_MAX:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is str:
        return _text(value)
    if type(value) in (list, tuple) and len(value) <= ATTRIBUTE_WORDS_MAX:
        words = tuple(_text(word) for word in value)
        if len(set(words)) == len(words):
            return words
    raise ValueError("not the value of an attribute")


def _text(value: Any) -> str:
    """Printable text: it is shown on terminals."""
    if type(value) is not str or len(value) > ATTRIBUTE_TEXT_CHARS_MAX or not value.isprintable():
        raise ValueError("not the text of an attribute")
    return value


def is_beside(name: str, names: Collection[str]) -> bool:
    """Return whether a name is neither the group of others among `names` nor in one that is an attribute itself:
    ``gpu`` and ``gpu.count`` cannot both be."""
    parts = name.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts))}
    return above.isdisjoint(names) and not any(other.startswith(f"{name}.") for other in names)
