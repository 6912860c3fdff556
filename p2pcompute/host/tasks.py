"""Supervised asyncio tasks: no orphan, no unseen exception, a fixed order of cancellation.

Deviations: `asyncio.TaskGroup` keeps its tasks in a set, whose order depends on addresses and so breaks
replay in the simulator; this scope keeps them in insertion order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class TaskScope:
    """Owns the tasks of one service.

    An exception that leaves a task is our bug: it goes to `on_error`, and the others live on.  `close`
    cancels in reverse order of start and waits for all.
    """

    def __init__(self, name: str, on_error: Callable[[str, BaseException], None] | None = None) -> None:
        self._name = name
        self._on_error = on_error
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closed = False

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task.  After `close` the coroutine is closed unrun and a cancelled task is returned."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine, name=f"{self._name}.{name}")
        if self._closed:
            task.cancel()
            return task
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._report(task.get_name(), error)

    def report(self, name: str, error: BaseException) -> None:
        """Report a bug that a task survived, as if it had left a task called `name`."""
        self._report(f"{self._name}.{name}", error)

    def _report(self, name: str, error: BaseException) -> None:
        if self._on_error is not None:
            self._on_error(name, error)
        else:
            asyncio.get_running_loop().call_exception_handler({"message": f"{name} failed", "exception": error})

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel all and wait.  Safe to call twice, and from one of the tasks (which is left out)."""
        self._closed = True
        current = asyncio.current_task()
        tasks = [task for task in reversed(self._tasks) if task is not current]
        for task in tasks:
            task.cancel()
        for task in tasks:
            try:
                await task
            except asyncio.CancelledError:
                if current is not None and current.cancelling():
                    raise
            except Exception:  # noqa: BLE001 - already reported by _ended
                continue
