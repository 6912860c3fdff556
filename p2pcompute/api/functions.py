"""What is sent for a function, found again without pickling it anew.

A function is sent once; it is sent again when something that it captures was bound to another object: its defaults,
closure, and the globals that it and the user's own functions below it name.  Changing an object in place (appending to
a global list) is not noticed: what was sent is the state at the first call.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any, Final

from p2pcompute.api.options import TaskOptions
from p2pcompute.api.pickling import ship
from p2pcompute.execution.calls import Chunk, call_shipped
from p2pcompute.execution.locking import Requirements, find_requirements
from p2pcompute.execution.modules import global_names, is_own_path

KNOWN_MAX: Final = 256
"""Functions that an executor recognises; the one sent first is forgotten and pickled anew at its next use."""
CODE_BESIDE_ARGUMENTS_BYTES_MAX: Final = 16 * 1024
"""A callable object that is pickled at each call travels with its arguments up to this; a larger one becomes a job."""
CHANGES_MAX: Final = 4
"""After so many changes of what it captures a function is taken for one that captures something new at each call."""
_WALK_MAX: Final = 1000
"""References that are watched; what is beyond them counts as fixed."""
_MISSING: Final = object()
_EMPTY_CELL: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class Shipment:
    """A callable as it is sent."""

    name: str
    code: bytes
    modules_zip: bytes | None
    zipped_names: tuple[str, ...]
    options: TaskOptions
    key: bytes
    """The same for the same content and options: one job."""


@dataclass(slots=True, eq=False)
class _Known:
    """A function that was sent, and what must still be the same for it to be the same."""

    shipment: Shipment
    beside: bytes
    """Its pickle, when that travels with each call."""
    ships_count: int
    """How often a function of this code was sent."""
    function: FunctionType
    contents: tuple[Any, ...]
    """Of its closure's cells."""
    references: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    """(globals, name, object) of all that it and the functions below it name."""
    cells: list[tuple[CellType, Any]] = field(default_factory=list)
    """Of the functions below it."""

    def is_same(self, function: FunctionType) -> bool:
        """True when sending `function` would send the same."""
        own = self.function
        if function is not own and not self._is_twin(function):
            return False
        closure = function.__closure__
        if closure is not None:
            for cell, content in zip(closure, self.contents, strict=True):
                if _content(cell) is not content:
                    return False
        for mapping, name, value in self.references:
            if mapping.get(name, _MISSING) is not value:
                return False
        return all(_content(cell) is content for cell, content in self.cells)

    def _is_twin(self, function: FunctionType) -> bool:
        """True for another object made by the same `def` or `lambda`, as in a loop."""
        own = self.function
        return (
            function.__code__ is own.__code__
            and function.__globals__ is own.__globals__
            and _are_identical(function.__defaults__ or (), own.__defaults__ or ())
            and _are_identical((function.__kwdefaults__ or {}).items(), (own.__kwdefaults__ or {}).items())
            and function.__dict__ == own.__dict__ == {}
        )


def _are_identical(some: Any, others: Any) -> bool:
    some, others = list(some), list(others)
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        if isinstance(one, tuple) and isinstance(other, tuple):
            if not (len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))):
                return False
        elif one is not other:
            return False
    return True


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY_CELL


class Functions:
    """The callables of one executor with one set of options.  Not thread-safe: its owner holds a lock."""

    def __init__(self, options: TaskOptions) -> None:
        self._options = options
        self._known: dict[tuple[int, bool], _Known] = {}
        """By the address of the code object, which `_Known.function` keeps alive, and whether it is for chunks."""
        self._fixed: dict[tuple[Any, bool], Shipment] = {}
        """Built-in functions and classes of libraries: they never change."""
        self._call_shipped: Shipment | None = None

    def find(self, function: Callable[..., Any], *, chunked: bool = False) -> tuple[Shipment, bytes]:
        """Return what to send for `function`, and its pickle when that has to travel with each call (else b"").

        Raises:
            UsageError: it is not callable or cannot be pickled; the message names what is to blame.
        """
        if type(function) is FunctionType:
            key = (id(function.__code__), chunked)
            known = self._known.get(key)
            if known is None or not known.is_same(function):
                known = self._learn(function, key, 1 if known is None else known.ships_count + 1)
            return known.shipment, known.beside
        if _is_fixed(function):
            shipment = self._fixed.get((function, chunked))
            if shipment is None:
                if len(self._fixed) >= KNOWN_MAX:
                    del self._fixed[next(iter(self._fixed))]
                shipment = self._fixed[function, chunked] = self._ship(function, chunked)
            return shipment, b""
        shipment = self._ship(function, chunked)
        return (shipment, b"") if chunked else self._beside(shipment)

    def _beside(self, shipment: Shipment) -> tuple[Shipment, bytes]:
        """Let a callable travel with its arguments, where it is small: no job of its own for each that differs."""
        if shipment.modules_zip is not None or len(shipment.code) > CODE_BESIDE_ARGUMENTS_BYTES_MAX:
            return shipment, b""
        if self._call_shipped is None:
            self._call_shipped = self._ship(call_shipped, False, name=shipment.name)
        return self._call_shipped, shipment.code

    def _learn(self, function: FunctionType, key: tuple[int, bool], ships_count: int) -> _Known:
        shipment, beside = self._ship(function, key[1]), b""
        if ships_count > CHANGES_MAX and not key[1]:
            shipment, beside = self._beside(shipment)
        contents = tuple(_content(cell) for cell in function.__closure__ or ())
        known = _Known(shipment, beside, ships_count, function, contents)
        _walk(function, known)
        self._known.pop(key, None)
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = known
        return known

    def _ship(self, function: Callable[..., Any], chunked: bool, name: str = "") -> Shipment:
        shipped = ship(Chunk(function) if chunked and callable(function) else function)
        content = hashlib.blake2b(digest_size=32)
        for part in (shipped.code, shipped.modules_zip or b"", self._options.identity().encode()):
            content.update(len(part).to_bytes(8, "big"))
            content.update(part)
        return Shipment(
            name or name_of(function),
            shipped.code,
            shipped.modules_zip,
            shipped.zipped_names,
            self._options,
            content.digest(),
        )


def requirements_of(options: TaskOptions, *, is_of_script: bool = True) -> Requirements | None:
    """Return where the packages of calls with these options are listed; None: they need none of their own.

    Args:
        is_of_script: what the running script says of itself counts.

    Raises:
        UsageError: what the options name cannot be read.
    """
    main = getattr(sys.modules.get("__main__"), "__file__", None) if is_of_script else None
    return find_requirements(os.fspath(options.deps), Path(main) if main else None, is_beside=False)


def name_of(function: Any) -> str:
    """Return what people call a callable."""
    for candidate in (function, getattr(function, "func", None), type(function)):
        name = getattr(candidate, "__qualname__", None)
        if isinstance(name, str):
            return name.rpartition("<locals>.")[2]
    return "function"


def _is_fixed(function: Any) -> bool:
    """True for what is pickled by name and cannot be changed."""
    if isinstance(function, BuiltinFunctionType):
        return isinstance(function.__self__, ModuleType)
    return isinstance(function, type) and function.__module__ == "builtins"


def _walk(function: FunctionType, known: _Known) -> None:
    """Collect what `function` names, and what the user's own functions among that name."""
    waiting, seen = [function], {id(function)}
    while waiting:
        current = waiting.pop()
        for name in global_names(current.__code__):
            value = current.__globals__.get(name, _MISSING)
            if value is _MISSING and hasattr(builtins, name):
                continue
            if len(known.references) >= _WALK_MAX:
                return
            known.references.append((current.__globals__, name, value))
            _follow(value, waiting, seen)
        for cell in current.__closure__ or ():
            value = _content(cell)
            if current is not function:
                known.cells.append((cell, value))
            _follow(value, waiting, seen)


def _follow(value: Any, waiting: list[FunctionType], seen: set[int]) -> None:
    if type(value) is FunctionType and id(value) not in seen:
        seen.add(id(value))
        if value.__module__ == "__main__" or is_own_path(value.__code__.co_filename):
            waiting.append(value)
