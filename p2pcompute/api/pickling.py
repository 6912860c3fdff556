"""Arguments on their way out, as fast as they can be: a plain pickle where that means the same on another machine.

A pickle that names only what every machine has (built-in and library classes and functions) needs no cloudpickle.
`_Plain` finds out while it pickles, and gives up at the first class or function of the user's own.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, Final

from p2pcompute.execution.calls import Collected
from p2pcompute.execution.functions import dump_args, dump_value, load_exception, load_value, ship
from p2pcompute.execution.modules import is_own_path

__all__ = ["dump_call", "dump_value", "load_exception", "load_value", "ship"]

_SIMPLE: Final = frozenset({type(None), bool, int, float, str, bytes})
_libraries: dict[str, bool] = {}
"""Module name → every machine with the same installation has it."""


class _Own(Exception):
    """Something of the user's own is in here."""


def _is_library(name: Any) -> bool:
    known = _libraries.get(name)
    if known is None:
        if not isinstance(name, str) or name in ("__main__", "__mp_main__"):
            return False
        module = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        known = module is not None and not (isinstance(path, str) and is_own_path(path))
        known = known or name.partition(".")[0] == "p2pcompute"
        _libraries[name] = known
    return known


class _Plain(pickle.Pickler):
    """Pickles by reference what libraries define, refuses what the user does."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and not _is_library(value.__module__):
            raise _Own
        return NotImplemented


def dump_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], zipped_names: Sequence[str] = ()
) -> tuple[bytes, Sequence[Any]]:
    """Return the pickle of one call's (args, kwargs), and the parts that it refers to: see `execution.calls`.

    Raises:
        UsageError: an argument cannot be pickled; the message names it.
    """
    if not kwargs:
        for value in args:
            if type(value) not in _SIMPLE:
                break
        else:
            return pickle.dumps((args, {}), 5), ()
    buffer = io.BytesIO()
    try:
        with Collected() as collected:
            _Plain(buffer, 5).dump((args, kwargs))
        return buffer.getvalue(), collected.parts
    except Exception:  # noqa: BLE001 - pickling runs the user's code; cloudpickle is tried, and it explains
        with Collected() as collected:
            return dump_args(args, kwargs, zipped_names=zipped_names), collected.parts
