"""How functions, arguments and results travel: cloudpickle, with the user's own modules.

The submitter's side.  Modules that other nodes cannot have (see `modules`) travel inside the pickle, or as a zip
when they are large, when a function imports one while it runs, or when one holds something that cannot be pickled.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from typing import Any, ClassVar, Final

import cloudpickle

from p2pcompute.errors import TaskError, UsageError
from p2pcompute.execution.calls import cached
from p2pcompute.execution.code_key import key_of
from p2pcompute.execution.codec import CannotDecode, decode, is_encoded
from p2pcompute.execution.loading import is_script_module, load_file_function
from p2pcompute.execution.modules import (
    UserModule,
    find_own_module,
    imports_of,
    late_imports,
    own_modules,
    pack,
    source_bytes,
    with_imports,
)
from p2pcompute.execution.unpicklable import unpicklable
from p2pcompute.limits import MODULES_BY_VALUE_BYTES_MAX

__all__ = [
    "RemoteTraceback",
    "ShippedFunction",
    "dump_args",
    "dump_chunk",
    "dump_value",
    "key_of",
    "load_exception",
    "load_file_function",
    "load_value",
    "ship",
]

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN_ITEMS_MAX: Final = 1000
_NAME_OPCODE: Final = b"\x8c"
"""SHORT_BINUNICODE of pickle protocol 4 and above: how the name of a module is written."""

_registry = threading.RLock()
"""cloudpickle's registry of modules to pickle by value is one per process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedFunction:
    """A function ready to be sent."""

    code: bytes
    """Pickle of the callable."""
    modules_zip: bytes | None
    """Sources that the worker process puts on sys.path; the same bytes for the same sources."""
    module_names: tuple[str, ...]
    """The user's own modules that travel along, sorted: for --dry-run."""

    @property
    def zipped_names(self) -> tuple[str, ...]:
        """Modules that the worker process can import."""
        return self.module_names if self.modules_zip is not None else ()


class RemoteTraceback(Exception):
    """Carries the traceback text of the node where a task ran; shown as the cause of the task's exception."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb
        """The text, under the name that `concurrent.futures` gives it."""

    def __str__(self) -> str:
        return f"\n\n{self.tb.rstrip()}\n"


# --- pickling by value --------------------------------------------------------------------------------


@contextlib.contextmanager
def _by_value(names: Sequence[str]) -> Iterator[None]:
    """Pickle what these modules define by value, as far as they are imported."""
    registered = []
    try:
        for name in names:
            module = sys.modules.get(name)
            if module is not None and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        yield
    finally:
        for module in registered:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


def _reduce_cached(value: Any) -> Any:
    """Reduce what `functools.lru_cache` makes, which is pickled by its name: nobody else finds that in a script."""
    module = getattr(value, "__module__", None) or "__main__"
    packages = [module[:end] for end, letter in enumerate(f"{module}.") if letter == "."]
    found: Any = sys.modules.get(module)
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    by_value = {"__main__", *cloudpickle.list_registry_pickle_by_value()}
    if found is value and by_value.isdisjoint(packages):
        return value.__qualname__
    return cached, (value.__wrapped__, value.cache_parameters())


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    dispatch_table: ClassVar[ChainMap[Any, Any]] = ChainMap(
        {_lru_cache_wrapper: _reduce_cached}, cloudpickle.Pickler.dispatch_table
    )


def _mentions(data: bytes, name: str) -> bool:
    encoded = name.encode()
    return len(encoded) < 256 and _NAME_OPCODE + bytes([len(encoded)]) + encoded in data


def _dump(value: Any, own: Mapping[str, UserModule], first: Sequence[str] = ()) -> tuple[bytes, list[str]]:
    """Return the pickle of `value` and the modules in it by value: those that a pickle by reference would name.

    Args:
        own: modules that may travel by value.
        first: names to begin with.
    """
    names = list(first)
    while True:
        with _by_value(names):
            buffer = io.BytesIO()
            _Pickler(buffer).dump(value)
        data = buffer.getvalue()
        more = [name for name in own if name not in names and _mentions(data, name)]
        if not more:
            return data, names
        names += more


def ship(function: Callable[..., Any]) -> ShippedFunction:
    """Return `function` with all that it needs from the user's own modules.

    Raises:
        UsageError: it is not callable, or something that it refers to cannot be pickled; the message names it.
    """
    if not callable(function):
        raise UsageError(
            f"{function!r} is not a function", "it cannot be called", "name a function", code="not-callable"
        )
    with _registry:
        own = own_modules()
        late = late_imports(function)
        error: Exception | None = None
        try:
            code, names = _dump(function, own)
            by_value = [own[name] for name in names]
            if not _needs_zip(by_value, late):
                return ShippedFunction(code=code, modules_zip=None, module_names=tuple(sorted(names)))
        except Exception as caught:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            error = caught
        try:
            return _ship_with_zip(function, own, late)
        except Exception as caught:  # noqa: BLE001 - as above
            error = error or caught
        subject = f"the function {getattr(function, '__qualname__', repr(function))!r}"
        raise unpicklable(subject, function, lambda value: _dump(value, own)[0], error) from error


def _needs_zip(modules: Sequence[UserModule], late: Sequence[str]) -> bool:
    if source_bytes(modules) > MODULES_BY_VALUE_BYTES_MAX:
        return True
    roots = dict.fromkeys(module.root for module in modules)
    inner = [name for module in modules for name in imports_of(module, inner_only=True)]
    return any(find_own_module(name, roots) is not None for name in [*late, *inner])


def _ship_with_zip(function: Callable[..., Any], own: Mapping[str, UserModule], late: Sequence[str]) -> ShippedFunction:
    """Ship with sources in a zip; only a script named on the command line goes by value, since importing it again
    would run it again."""
    scripts = {name: module for name, module in own.items() if is_script_module(name)}
    code, names = _dump(function, scripts)
    start = [module for name, module in own.items() if name not in scripts and _mentions(code, name)]
    inner = [*late, *(name for script in names for name in imports_of(own[script], inner_only=True))]
    roots = [own[script].root for script in names]
    zipped = with_imports(start, inner, roots)
    for name in names:
        zipped.pop(name, None)
    return ShippedFunction(
        code=code,
        modules_zip=pack(zipped.values()) if zipped else None,
        module_names=tuple(sorted([*zipped, *names])),
    )


def _is_plain(values: Sequence[Any]) -> bool:
    """True when no value can refer to a module: builtin scalars, and short lists and tuples of them."""
    return all(
        type(value) in _PLAIN
        or (type(value) in (list, tuple) and len(value) <= _PLAIN_ITEMS_MAX and all(type(v) in _PLAIN for v in value))
        for value in values
    )


def dump_args(
    args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, zipped_names: Sequence[str] = ()
) -> bytes:
    """Return the pickle of one call's (args, kwargs).

    Args:
        zipped_names: `ShippedFunction.zipped_names`; classes of other own modules travel by value.

    Raises:
        UsageError: an argument cannot be pickled; the message names it.
    """
    if not kwargs and _is_plain(args):
        return pickle.dumps((tuple(args), {}), 5)
    return _dump_data((tuple(args), dict(kwargs or {})), zipped_names)


def dump_chunk(calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]], *, zipped_names: Sequence[str] = ()) -> bytes:
    """Return the pickle of several calls, for `TaskPayload.chunk`.

    Raises:
        UsageError: an argument cannot be pickled; the message names it.
    """
    plain = [(tuple(args), dict(kwargs)) for args, kwargs in calls]
    if all(not kwargs and _is_plain(args) for args, kwargs in plain):
        return pickle.dumps(plain, 5)
    return _dump_data(plain, zipped_names)


def dump_value(value: Any) -> bytes:
    """Return the pickle of one value, as `load_value` reads it.

    Raises:
        UsageError: it cannot be pickled; the message names what is to blame.
    """
    return _dump_data(value, ())


def _dump_data(value: Any, zipped_names: Sequence[str]) -> bytes:
    with _registry:
        own = {name: module for name, module in own_modules().items() if name not in zipped_names}
        try:
            return _dump(value, own)[0]
        except Exception as error:
            raise unpicklable("the arguments", value, lambda part: _dump(part, own)[0], error) from error


# --- results ------------------------------------------------------------------------------------------


def load_value(data: bytes, *, is_trusted: bool = True) -> Any:
    """Return what a function returned.

    Args:
        is_trusted: whoever wrote it may run code here, which is what a pickle does.  So it is for results of one's own
            jobs: their owner takes pickles of trusted nodes only (`OwnerService.readable`).

    Raises:
        TaskError: it cannot be rebuilt here, or is a pickle and not trusted.
    """
    try:
        if is_encoded(data):
            return decode(data)
        if not is_trusted:
            raise CannotDecode("it is a pickle, which could run code here, of a node that is not trusted")
        return pickle.loads(data)
    except (Exception, SystemExit) as error:
        raise TaskError(
            "the result of a task cannot be rebuilt here",
            f"{type(error).__name__}: {error}",
            "import what its type needs, or return plain data",
            code="result-unreadable",
        ) from error


def _headline(text: str) -> str:
    """Return the line of a formatted traceback that says what was raised, the outermost of a group of exceptions."""
    found, is_inside = "", False
    lines = [line.removeprefix("  + ").removeprefix("  | ") for line in text.rstrip().splitlines()]
    for line in lines:
        if line.endswith("Traceback (most recent call last):"):
            is_inside = True
        elif is_inside and not line.startswith(" "):
            found, is_inside = line, False
    return found or "".join(lines[-1:])


def load_exception(data: bytes) -> BaseException:
    """Return the exception that a function raised, its remote traceback attached as the cause.  It is a pickle.

    Where the exception itself could not travel, a TaskError stands for it: with the traceback text, which is also its
    cause, so that whoever prints it sees where the call has failed.
    """
    try:
        error, text = pickle.loads(data)
    except (Exception, SystemExit) as caught:  # noqa: BLE001 - unpickling runs the exception's own code
        why = f"{type(caught).__name__}: {caught}"
        return TaskError("a task failed, and its exception cannot be rebuilt here", why)
    why = "the exception itself cannot travel: it cannot be pickled, or not be made again from its arguments"
    found: BaseException = (
        error
        if isinstance(error, BaseException)
        else TaskError(f"a call has raised {_headline(str(text))}", why, remote_traceback=str(text))
    )
    found.__cause__ = RemoteTraceback(str(text))
    return found
