"""What a peer says of itself in its hello, checked in one place: a field is as it should be, or it is as if it were not
there.

A peer that says nonsense of its slots is a member all the same, of whom less is known.  So builds that say something in
another way still meet; how many fields were left out is counted.  Its name, chain and delegation are `membership`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from p2pcompute.limits import HELLO_BYTES_FIELD_MAX, HELLO_SLOTS_MAX, HELLO_TEXT_CHARS_MAX, PYTHON_NUMBER_MAX

_PORT_MAX: Final = 65535


def _is_count(value: Any, top: int) -> bool:
    return type(value) is int and 0 <= value <= top


def _is_mark(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) <= HELLO_BYTES_FIELD_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= HELLO_TEXT_CHARS_MAX and value.isprintable()


def _is_python(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(part, PYTHON_NUMBER_MAX) for part in value)


_FIELDS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "boot": _is_mark,
    "build": _is_text,
    "python": _is_python,
    "slots": lambda value: _is_count(value, HELLO_SLOTS_MAX),
    "port": lambda value: _is_count(value, _PORT_MAX),
    "keeps": lambda value: isinstance(value, bool),
    "log": _is_mark,
    "proofs": _is_mark,
    "machine": _is_text,
}
"""All that is kept of a hello."""


def checked_hello(hello: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the fields of a hello that are as they should be, and how many were left out because they are not.

    Fields that this build does not know are passed over.
    """
    said = {word: hello[word] for word in _FIELDS if word in hello}
    good = {word: value for word, value in said.items() if _FIELDS[word](value)}
    return good, len(said) - len(good)
