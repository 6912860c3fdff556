"""What tasks of the embedded library call: wrappers that are known on every node, so only their content travels."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

PARTIAL_RESULTS = "_p2pc_partial"
"""Attribute of an exception that left a chunk: pickle of the results of the calls before it."""
_LOADED_MAX = 16
"""Callables that `call_shipped` remembers."""

_loaded: dict[bytes, Any] = {}


class Chunk:
    """Calls `func` for each row of some columns; the value is the list of results."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, *columns: list[Any]) -> list[Any]:
        if len(columns) == 1:
            calls = map(self.func, columns[0])
        else:
            calls = map(self.func, *columns)
        results: list[Any] = []
        try:
            results.extend(calls)
        except Exception as error:
            if results:
                _attach(error, results)
            raise
        return results


class Spread:
    """Calls `func` with the items of one row as its arguments."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, row: Sequence[Any]) -> Any:
        return self.func(*row)


def _attach(error: BaseException, results: list[Any]) -> None:
    """Let the results before the failure travel with it, where both can."""
    import cloudpickle

    try:
        setattr(error, PARTIAL_RESULTS, cloudpickle.dumps(results))
    except Exception:  # noqa: BLE001 - unpicklable results or an exception without attributes: they are left out
        return


def call_shipped(code: bytes, *args: Any, **kwargs: Any) -> Any:
    """Call a pickled callable that comes with its arguments."""
    import pickle

    function = _loaded.get(code)
    if function is None:
        if len(_loaded) >= _LOADED_MAX:
            del _loaded[next(iter(_loaded))]
        function = _loaded[code] = pickle.loads(code)
    return function(*args, **kwargs)
