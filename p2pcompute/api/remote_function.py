"""What `p2pcompute.function` makes of a function.

Apart from the executor, which it needs only where a call leaves the process: workers that load such a function, to call
it, import this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from p2pcompute.api.executor import MeshExecutor
    from p2pcompute.api.futures import MeshFuture
    from p2pcompute.api.jobs import Job
    from p2pcompute.api.options import TaskOptions

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function that runs here when it is called, and on the mesh by its methods.  Made by `function`."""

    def __init__(self, fn: Callable[P, R], options: TaskOptions) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._options = options
        self._made: tuple[MeshExecutor, MeshExecutor] | None = None
        """(the shared executor, the same with our options)"""

    def __repr__(self) -> str:
        return f"<p2pcompute.function {getattr(self._fn, '__qualname__', self._fn)!s}>"

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._fn, self._options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._fn(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it on the mesh and wait for the value.

        Raises:
            Exception: what it raised.
            UsageError: it or an argument cannot be sent.
        """
        return self.submit(*args, **kwargs).result()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> MeshFuture[R]:
        """Call it on the mesh and return the future of its value; see `MeshExecutor.submit`."""
        return self._executor().submit(self._fn, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], **options: Any) -> Iterator[R]:
        """See `MeshExecutor.map`; `options` are its `timeout`, `chunksize` and `buffersize`."""
        return self._executor().map(self._fn, *iterables, **options)

    def start_map(self, *iterables: Iterable[Any], name: str | None = None) -> Job[R]:
        """See `MeshExecutor.start_map`."""
        return self._executor().start_map(self._fn, *iterables, name=name)

    def _executor(self) -> MeshExecutor:
        from p2pcompute.api.shared import shared_executor

        shared, made = shared_executor(), self._made
        if made is None or made[0] is not shared:
            made = self._made = (shared, shared.with_task_options(self._options))
        return made[1]
