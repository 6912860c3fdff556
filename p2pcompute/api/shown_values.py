"""Values of functions as a results file shows them.

Some are pickles, and unpickling runs code: the process that writes results reads plain data only, with a reader of its
own that can do no more than build it.
"""

from __future__ import annotations

import json
import pickletools
from pathlib import Path
from typing import Any, Final

from p2pcompute.limits import SHOWN_VALUE_BYTES_MAX, SHOWN_VALUE_CHARS_MAX

_AS_IT_IS: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"},
)
_WORDS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def shown_value(content: bytes | Path, *, is_chunk: bool) -> tuple[str | None, str]:
    """Return a pickled value as (JSON, lines of text as `p2pc result` prints them).

    JSON is None when it is no plain data (text, numbers, truth values, None, lists, tuples and dicts of them), or when
    its pickle is above SHOWN_VALUE_BYTES_MAX or its JSON above SHOWN_VALUE_CHARS_MAX; the text says so then.

    Args:
        is_chunk: it is the list of the values of several calls: a line for each.
    """
    from p2pcompute.execution.codec import decode, is_encoded

    size = content.stat().st_size if isinstance(content, Path) else len(content)
    try:
        if size > SHOWN_VALUE_BYTES_MAX:
            raise ValueError("too large")
        data = content.read_bytes() if isinstance(content, Path) else content
        value = decode(data) if is_encoded(data) else _plain(data)
        text = _json(value)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None, f"<a value of {size} bytes that is not shown here: p2pc result>"
    lines = [_line(one) for one in value] if is_chunk and isinstance(value, list) else [_line(value)]
    return text, "\n".join(lines)


def _line(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _json(value)


def _json(value: Any) -> str:
    """Return JSON; a few bytes of pickle can stand for any number of copies."""
    parts, length = [], 0
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        length += len(part)
        if length > SHOWN_VALUE_CHARS_MAX:
            raise ValueError("too large")
        parts.append(part)
    return "".join(parts)


def _plain(data: bytes) -> Any:
    """Return what a pickle of plain data stands for.

    Raises:
        ValueError, LookupError, TypeError: it is not one.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []

    def take(count: int | None = None) -> list[Any]:
        """Take so many from the top; None: everything above the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        if not 0 <= start <= len(stack):
            raise ValueError("not a pickle")
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _AS_IT_IS:
                stack.append(argument)
            case name if name in _WORDS:
                stack.append(_WORDS[name])
            case name if name in _TUPLES:
                stack.append(tuple(take(_TUPLES[name])))
            case "TUPLE":
                stack.append(tuple(take()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                marks.append(len(stack))
            case "APPEND" | "APPENDS" as name:
                items = take(1 if name == "APPEND" else None)
                if not isinstance(stack[-1], list):
                    raise TypeError("not a list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = take(2 if name == "SETITEM" else None)
                # Hashing a tuple may take for ever, and JSON knows none of these keys.
                if not isinstance(stack[-1], dict) or any(isinstance(key, tuple) for key in items[::2]):
                    raise TypeError("not a dict")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "MEMOIZE":
                memo.append(stack[-1])
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "STOP":
                return stack[-1]
            case name:
                raise ValueError(f"{name} is no plain data")
    raise ValueError("not a pickle")
