"""Content key of a function: the same in every process as long as its code and what it refers to are the same.

Covers bytecode, constants and names recursively, defaults, closure, and the globals that it names: functions and
classes of the user's own modules by content, library ones by name, data by value.  Never addresses, file names or
line numbers, so moving a function within its file changes nothing.

Deviations: bytecode differs between Python minors, and so does the key; an object that can be neither walked nor
pickled counts by its type only; what is beyond VALUES_MAX values counts by its pickle, in which it matters whether
equal data is one object or two.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable, Iterator
from functools import _lru_cache_wrapper, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from p2pcompute.execution.modules import is_own_path, referenced

_DEPTH_MAX: Final = 200
VALUES_MAX: Final = 50_000
"""Values that are walked: data that is reached on many ways is met once on each of them, and that doubles."""
_MADE_IN_PYTHON: Final = 1 << 9
"""Of the flags of a class: it was made while the program ran (Py_TPFLAGS_HEAPTYPE)."""
_SKIPPED_CLASS_NAMES: Final = frozenset(
    {"__dict__", "__weakref__", "__module__", "__firstlineno__", "__static_attributes__", "__doc__"}
)


def key_of(function: Callable[..., Any]) -> bytes:
    """Return the 32-byte content key of a callable."""
    return value_key(function)


def value_key(value: Any) -> bytes:
    """Return the 32-byte content key of any value: of data, the same bytes for equal data in every process."""
    walker = _Walker()
    walker.add(value, 0)
    return walker.digest()


class _Walker:
    """Feeds a hash with an unambiguous encoding of what it meets: tag, length, content."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._seen: dict[int, int] = {}
        self._path: dict[int, int] = {}
        self._kept: list[Any] = []
        """Keeps what was seen alive, so that an id is never reused."""
        self._left = VALUES_MAX

    def digest(self) -> bytes:
        return self._hash.digest()

    def _put(self, tag: str, data: bytes = b"") -> None:
        self._hash.update(struct.pack(">8sQ", tag.encode(), len(data)))
        self._hash.update(data)

    def add(self, value: Any, depth: int) -> None:
        """Add any value."""
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes() if type(value).__module__ == "builtins":
                self._put(type(value).__name__, _plain_bytes(value))
                return
        if isinstance(value, FunctionType | type | ModuleType):
            known = self._seen.get(id(value))
            if known is not None:
                self._put("again", known.to_bytes(8, "big"))
                return
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._add_object(value, depth + 1)
            return
        self._left -= 1
        if self._left < 0:
            self._add_pickle(value)
            return
        # Whether equal data is one object or two depends on how it came to be: only a cycle counts.
        if id(value) in self._path or depth > _DEPTH_MAX:
            self._put("cycle", (depth - self._path.get(id(value), depth)).to_bytes(8, "big"))
            return
        self._path[id(value)] = depth
        self._add_object(value, depth + 1)
        del self._path[id(value)]

    def _add_object(self, value: Any, depth: int) -> None:
        match value:
            case tuple() | list() if type(value) in (tuple, list):
                self._put(type(value).__name__, len(value).to_bytes(8, "big"))
                for item in value:
                    self.add(item, depth)
            case set() | frozenset() if type(value) in (set, frozenset):
                self._put(type(value).__name__, b"".join(sorted(_digest_of(item) for item in value)))
            case dict() if type(value) is dict:
                self._put("dict", len(value).to_bytes(8, "big"))
                for key, item in value.items():
                    self.add(key, depth)
                    self.add(item, depth)
            case CodeType():
                self._add_code(value, depth)
            case FunctionType():
                self._add_function(value, depth)
            case MethodType():
                self._put("method")
                self.add(value.__func__, depth)
                self.add(value.__self__, depth)
            case partial():
                self._put("partial")
                for part in (value.func, value.args, value.keywords):
                    self.add(part, depth)
            case _lru_cache_wrapper():
                self._put("cached")  # its pickle is its name; how much it remembers changes no result
                self.add(value.__wrapped__, depth)
            case type():
                self._add_class(value, depth)
            case ModuleType():
                self._put("module", value.__name__.encode())
                path = getattr(value, "__file__", None) or ""
                if is_own_path(path):
                    self._put("source", _source(path))
            case BuiltinFunctionType():
                self._put("builtin", f"{value.__module__}.{value.__qualname__}".encode())
            case _:
                self._add_instance(value, depth)

    def _add_code(self, code: CodeType, depth: int) -> None:
        self._put("code", code.co_code)
        for number in (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags):
            self._put("number", number.to_bytes(8, "big"))
        self._put("name", code.co_name.encode())
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._put("names", "\0".join(names).encode())
        self._put("table", getattr(code, "co_exceptiontable", b""))
        self._put("consts", len(code.co_consts).to_bytes(8, "big"))
        for constant in code.co_consts:
            self.add(constant, depth)

    def _add_function(self, function: FunctionType, depth: int) -> None:
        file_name = function.__code__.co_filename
        is_own = function.__module__ == "__main__" or is_own_path(file_name) or file_name.startswith("<")
        if not is_own and "<locals>" not in function.__qualname__:
            self._put("library", f"{function.__module__}.{function.__qualname__}".encode())
            return
        self._put("function")
        self._add_code(function.__code__, depth)
        for name, value in referenced(function):
            self._put("uses", name.encode())
            self.add(value, depth)

    def _add_class(self, cls: type, depth: int) -> None:
        self._put("class", f"{cls.__module__}.{cls.__qualname__}".encode())
        functions = [item for item in vars(cls).values() if isinstance(item, FunctionType)]
        if cls.__module__ != "__main__" and not any(is_own_path(item.__code__.co_filename) for item in functions):
            return
        for base in cls.__bases__:
            self.add(base, depth)
        for name, item in sorted(vars(cls).items()):
            if name not in _SKIPPED_CLASS_NAMES:
                self._put("member", name.encode())
                inner = getattr(item, "__func__", None) or getattr(item, "fget", None) or item
                self.add(inner, depth)

    def _add_instance(self, value: Any, depth: int) -> None:
        self.add(type(value), depth)
        state = getattr(value, "__dict__", None)
        if not isinstance(state, dict):
            self._add_pickle(value)
        elif _is_all_in_attributes(type(value)):
            self.add(state, depth)
        else:
            self._add_parts(value, state, depth)

    def _add_parts(self, value: Any, state: dict[str, Any], depth: int) -> None:
        """Add what an instance is made from again: its attributes are not all of it."""
        try:
            made: Any = value.__reduce_ex__(5)
            parts = [list(part) if isinstance(part, Iterator) else part for part in made]
        except Exception:  # noqa: BLE001 - the object's own code
            self._put("opaque")
            self.add(state, depth)
            return
        self.add(made if isinstance(made, str) else parts, depth)

    def _add_pickle(self, value: Any) -> None:
        try:
            self._put("pickle", pickle.dumps(value, 5))
        except Exception:  # noqa: BLE001 - pickling runs the object's own code
            self._put("opaque")


def _is_all_in_attributes(cls: type) -> bool:
    """Whether instances hold nothing but attributes: no text, number or items of a base, no slots, no memory of C's."""
    if any(getattr(cls, name) is not getattr(object, name) for name in ("__reduce_ex__", "__reduce__")):
        return False
    slots = [name for base in cls.__mro__ for name in vars(base).get("__slots__", ())]
    if any(name not in ("__dict__", "__weakref__") for name in slots):
        return False
    base: type | None = cls
    while base is not None and base.__flags__ & _MADE_IN_PYTHON:
        base = base.__base__
    return base is object


def _plain_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    text = hex(value) if isinstance(value, int) else repr(value)  # decimal digits of an int are limited
    return text.encode("utf-8", "backslashreplace")


def _digest_of(value: Any) -> bytes:
    walker = _Walker()
    walker.add(value, 0)
    return walker.digest()


def _source(path: str) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=32).digest()
    except OSError:
        return b""
