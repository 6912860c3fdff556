"""Finding the object that keeps something from being pickled, and saying so."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import IOBase
from types import FunctionType, GeneratorType, MethodType
from typing import Any, Final

from p2pcompute.errors import UsageError
from p2pcompute.execution.modules import referenced

_DEPTH_MAX: Final = 8
_TRIES_MAX: Final = 2000
"""Objects that are tried before we settle for the one found so far."""

_KNOWN: Final[tuple[tuple[type | tuple[type, ...], str, str], ...]] = (
    (IOBase, "an open file", "pass its name and open it inside the function"),
    (socket.socket, "an open socket", "connect inside the function"),
    (sqlite3.Connection, "an open database connection", "connect inside the function"),
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Semaphore, threading.Event),
        "a lock",
        "tasks share no memory, so make it inside the function or leave it out",
    ),
    (threading.Thread, "a thread", "start it inside the function"),
    (threading.local, "thread-local data", "make it inside the function"),
    (GeneratorType, "a generator", "pass a list, or make the generator inside the function"),
)


def _describe(value: Any) -> tuple[str, str]:
    """Return what an object is and what to do about it."""
    for types, what, fix in _KNOWN:
        if isinstance(value, types):
            return what, fix
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"an object of type {name}", "make it inside the function, or pass plain data instead"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, part) of what an object is made of."""
    if isinstance(value, MethodType):
        yield "", value.__func__
        yield "self", value.__self__
    elif isinstance(value, FunctionType):
        yield from referenced(value)
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{key!r:.40}]", item
    elif isinstance(value, list | tuple | set | frozenset):
        for position, item in enumerate(value):
            yield f"[{position}]", item
    elif isinstance(value, partial):
        yield "", value.func
        yield from ((f"argument {position}", item) for position, item in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, type):
        yield from vars(value).items()
    elif hasattr(value, "__dict__"):
        for name, item in list(vars(value).items()):
            yield f".{name}", item


def find_culprit(value: Any, dumps: Callable[[Any], bytes]) -> tuple[list[str], Any]:
    """Return the way to the innermost part of `value` that cannot be pickled, and that part."""
    way: list[str] = []
    seen: dict[int, None] = {id(value): None}
    tries = 0
    for _ in range(_DEPTH_MAX):
        for where, part in _parts(value):
            if id(part) in seen:
                continue
            seen[id(part)] = None
            tries += 1
            if tries > _TRIES_MAX:
                return way, value
            try:
                dumps(part)
            except Exception:  # noqa: BLE001 - whatever it raises, this part is to blame
                if where:
                    way.append(where)
                value = part
                break
        else:
            return way, value
    return way, value


def _path(way: list[str]) -> str:
    text = ""
    for step in way:
        text += step if not text or step.startswith((".", "[")) else f" → {step}"
    return text


def unpicklable(subject: str, value: Any, dumps: Callable[[Any], bytes], error: BaseException) -> UsageError:
    """Return the error for something that cannot travel.

    Args:
        subject: what it is for people: "the function 'work'", "the arguments".
    """
    way, culprit = find_culprit(value, dumps)
    what, fix = _describe(culprit)
    where = f"{_path(way)!r}, which is {what}" if way else what
    return UsageError(
        f"{subject} cannot be sent to other nodes: it holds {where}",
        f"{type(error).__name__}: {error}",
        fix,
        code="unpicklable",
    )
