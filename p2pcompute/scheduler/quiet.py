"""Since when a running task has printed nothing and has not said how far it is: it may stand still.

Whoever looks at a task that is "running" for hours wants to know whether it works.  Its node looks at what its tasks
have printed every QUIET_LOOK_S, so that the answer is right to that much.  A task that never prints anything may be
busy all the same: this is told to people, and nothing is decided by it.

Pure.  Bounds: one entry for each task that runs here.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

QUIET_LOOK_S: Final = 10.0
Said = tuple[int, int, bytes]
"""Bytes printed to stdout and stderr so far, and how far the task says that it is."""
NOTHING: Final[Said] = (0, 0, b"")


class Quiet:
    """The running tasks of one node."""

    __slots__ = ("_looked", "_seen")

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Said, float]] = {}
        self._looked = 0.0

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at all of them; once for each QUIET_LOOK_S."""
        if now < self._looked + QUIET_LOOK_S:
            return False
        self._looked = now
        return True

    def look(self, now: float, run_id: int, said: Said, began: float) -> float:
        """Note what a task has said so far; returns for how long it has said no more, seconds.

        Args:
            began: when its batch began.
        """
        known = self._seen.get(run_id)
        if known is None or known[0] != said:
            known = self._seen[run_id] = said, began if known is None and said == NOTHING else now
        return max(0.0, now - known[1])

    def keep(self, run_ids: Container[int]) -> None:
        """Forget all other tasks."""
        self._seen = {run_id: known for run_id, known in self._seen.items() if run_id in run_ids}
