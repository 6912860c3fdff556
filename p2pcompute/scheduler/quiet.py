"""Since when a running task has printed nothing and has not said how far it is, and used no CPU: it may stand still.

Whoever looks at a task that is "running" for hours wants to know whether it works.  Its node looks at what its tasks
have printed and used every QUIET_LOOK_S, so that the answer is right to that much.  This is told to people, and nothing
is decided by it: one that waits for something may be right to.

Pure.  Bounds: one entry for each task that runs here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

QUIET_LOOK_S: Final = 10.0
Said = tuple[int, int, bytes]
"""Bytes printed to stdout and stderr so far, and how far the task says that it is."""
NOTHING: Final[Said] = (0, 0, b"")
CPU_SHARE_MIN: Final = 0.02
"""Who uses less than this part of a core stands still: what watches a sandbox uses 0.6 % itself."""


@dataclass(frozen=True, slots=True)
class Silence:
    """What is told of a task that says nothing."""

    quiet_s: float
    """For how long it has said no more."""
    idle_s: float | None = None
    """For how long it has used no CPU, up to QUIET_LOOK_S while it does; None where that is not known."""


class Quiet:
    """The running tasks of one node."""

    __slots__ = ("_looked", "_seen", "_used")

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Said, float]] = {}
        self._looked = 0.0
        self._used: dict[int, tuple[float, float, float | None]] = {}
        """Run → when its CPU time was looked at last, what it was, and when it was last seen to grow."""

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

    def note_used(self, now: float, run_id: int, cpu_s: float) -> None:
        """Note the CPU time that a task has used so far, by any count that grows with it, seconds."""
        known = self._used.get(run_id)
        if known is None:
            self._used[run_id] = now, cpu_s, None
            return
        then, before, at = known
        is_used = cpu_s - before >= CPU_SHARE_MIN * (now - then)
        self._used[run_id] = now, cpu_s, now if is_used else then if at is None else at

    def idle_s(self, now: float, run_id: int) -> float | None:
        """Return for how long a task has used no CPU; None while that is not known."""
        at = self._used[run_id][2] if run_id in self._used else None
        return None if at is None else max(0.0, now - at)

    def keep(self, run_ids: Container[int]) -> None:
        """Forget all other tasks."""
        self._used = {run_id: known for run_id, known in self._used.items() if run_id in run_ids}
        self._seen = {run_id: known for run_id, known in self._seen.items() if run_id in run_ids}
