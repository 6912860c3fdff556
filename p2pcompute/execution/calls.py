"""What tasks of the embedded library call: wrappers that are known on every node, so only their content travels.

Arguments may hold what is not there yet or has its own way to the worker: the values of other calls, and objects that
are shared.  In the pickle of the arguments such a part is a number (`input_value`); the parts come beside it, inline or
as files in the task's directory (`load_call`).  A function may also return a `Call`: what is to be called next, whose
value stands for its own.
"""

from __future__ import annotations

from typing import Generic, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

T = TypeVar("T")
PARTIAL_RESULTS = "_p2pc_partial"
"""Attribute of an exception that left a chunk: pickle of the results of the calls before it."""
SHARED_PREFIX = "p2pc-shared-"
"""Begins the names of files whose content several tasks use."""
INPUT_PREFIX = "p2pc-input-"
_LOADED_MAX = 16
"""Callables that `call_shipped` remembers."""
_SHARED_MAX = 4
"""Shared objects that a worker process remembers."""

_loaded: dict[bytes, Any] = {}
_shared: dict[str, Any] = {}
_parts: list[_Part] = []
"""Of the call whose arguments are being unpickled."""
_collecting: dict[int, Collected] = {}
"""By thread."""


class Chunk:
    """Calls `func` for each row of some columns; the value is the list of results."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, *columns: list[Any]) -> Any:
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
        if any(type(result) is Call for result in results):
            return Call(list, (results,), {})
        return results


class Spread:
    """Calls `func` with the items of one row as its arguments."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func

    def __call__(self, row: Sequence[Any]) -> Any:
        return self.func(*row)


def cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a function under `functools.lru_cache`, with a cache of its own on each node."""
    import functools

    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = functools.lru_cache(**parameters)
    return decorate(function)


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


# --- parts of arguments -------------------------------------------------------------------------------


class Collected:
    """Gathers the parts that the pickle of some arguments refers to, while it is made; by one thread."""

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def __enter__(self) -> Collected:
        from _thread import get_ident

        self._thread = get_ident()
        self._outer = _collecting.get(self._thread)
        _collecting[self._thread] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            del _collecting[self._thread]
        else:
            _collecting[self._thread] = self._outer

    @staticmethod
    def reduce(part: Any) -> Any:
        """Return what pickles `part`, or None when no arguments are being pickled."""
        from _thread import get_ident

        collected = _collecting.get(get_ident())
        if collected is None:
            return None
        for number, known in enumerate(collected.parts):
            if known is part:
                return input_value, (number,)
        collected.parts.append(part)
        return input_value, (len(collected.parts) - 1,)


class _Part:
    """One part as it came: its value as its task has returned it, or the name of the file that holds it."""

    def __init__(self, content: bytes | str) -> None:
        self._content = content
        self._value: Any = self

    def value(self) -> Any:
        if self._value is self:
            self._value = _read(self._content)
        return self._value


def _read(content: bytes | str) -> Any:
    import pickle

    from p2pcompute.execution.codec import decode, is_encoded

    if isinstance(content, bytes):
        return decode(content) if is_encoded(content) else pickle.loads(content)
    if content in _shared:
        return _shared[content]
    with open(content, "rb") as file:
        data = file.read()
    value = decode(data) if is_encoded(data) else pickle.loads(data)
    if content.startswith(SHARED_PREFIX):
        value = Shared(value)
        if len(_shared) >= _SHARED_MAX:
            del _shared[next(iter(_shared))]
        _shared[content] = value
    return value


class BoundCall:
    """Arguments with their parts; in the worker it is unpickled as (args, kwargs)."""

    def __init__(self, contents: Sequence[bytes | str], data: bytes, code: bytes = b"") -> None:
        self.contents = tuple(contents)
        self.data = data
        self.code = code
        """Goes before the arguments when it is not empty, for `call_shipped`."""

    def __reduce__(self) -> Any:
        return load_call, (self.contents, self.data, self.code)


def load_call(contents: Sequence[bytes | str], data: bytes, code: bytes) -> Any:
    """Return (args, kwargs) of a call with these parts."""
    import pickle

    global _parts
    outer, _parts = _parts, [_Part(content) for content in contents]
    try:
        args, kwargs = pickle.loads(data)
    finally:
        _parts = outer
    return ((code, *args) if code else args), kwargs


def input_value(number: int) -> Any:
    """Return a part of the arguments that are being unpickled."""
    return _parts[number].value()


class Shared(Generic[T]):
    """An object that many calls use: it travels once to each node.  Made by `MeshExecutor.share`."""

    def __init__(self, value: T, home: Any = None, ref: Any = None) -> None:
        self._value = value
        self.home = home
        """Of the executor; None in a task."""
        self.ref = ref
        """Its pickle, as a blob."""

    def get(self) -> T:
        """Return the object.  A worker process hands the same one to all its calls: do not change it."""
        return self._value

    def __reduce__(self) -> Any:
        return (Collected.reduce(self) if self.home is not None else None) or (Shared, (self._value,))


# --- calls that follow --------------------------------------------------------------------------------


class CallCycle(ValueError):
    """A call is among its own arguments, or among those of a call that it waits for."""


class Call:
    """A call that is to be made.  A function that runs on the mesh and returns one has the value of that call.

    Arguments may be further calls, also inside lists and the like.  Made by `p2pcompute.call`.
    """

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.func = func
        self.args = tuple(args)
        self.kwargs = kwargs
        self._is_packing = False

    def __reduce__(self) -> Any:
        return Collected.reduce(self) or self.packed().__reduce__()

    def packed(self) -> PackedCall:
        """Return it as it travels.

        Raises:
            CallCycle: it is among its own arguments.
            TypeError: a future is: it is known to its executor only.
        """
        import cloudpickle

        if self._is_packing:
            raise CallCycle("a call waits for its own value")
        self._is_packing = True
        try:
            with Collected() as collected:
                data = cloudpickle.dumps((self.args, self.kwargs))
            if not all(isinstance(part, Call) for part in collected.parts):
                raise TypeError("futures and shared objects cannot be arguments of call(): give them to submit()")
            code = cloudpickle.dumps(self.func)
            name = getattr(self.func, "__qualname__", type(self.func).__qualname__)
            inputs = tuple(call.packed() for call in collected.parts)
            return PackedCall(name.rpartition("<locals>.")[2], code, data, inputs)
        finally:
            self._is_packing = False


class PackedCall:
    """A `Call` on its way: nothing of it is unpickled before the worker that makes it."""

    def __init__(self, name: str, code: bytes, data: bytes, inputs: tuple[PackedCall, ...]) -> None:
        self.name = name
        self.code = code
        """Pickle of the callable."""
        self.data = data
        """Pickle of (args, kwargs), which refers to `inputs` by their numbers."""
        self.inputs = inputs

    def __reduce__(self) -> Any:
        return PackedCall, (self.name, self.code, self.data, self.inputs)


def call(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
    """Return a call for a function on the mesh to return, so that its own value is that of the call.

    So a task makes further tasks, and nothing waits for them: ``return call(sum, [call(part, n) for n in range(9)])``.
    """
    return Call(func, args, kwargs)
