"""The executor that a process shares: made at the first use, closed at its exit."""

from __future__ import annotations

import os
import threading

from p2pcompute.api.executor import MeshExecutor

_lock = threading.Lock()
_executor: tuple[int, MeshExecutor] | None = None
"""(process id, executor): a forked child makes its own."""


def shared_executor() -> MeshExecutor:
    global _executor
    with _lock:
        if _executor is None or _executor[0] != os.getpid() or _executor[1].is_closed:
            _executor = (os.getpid(), MeshExecutor())
        return _executor[1]
