"""Tasks that hold up the end of a job, and who should do them too.

When a job has nothing more to give, an idle node may be given a task that another one has:

    - one that is *late*: it takes STRAGGLER_FACTOR times as long as it should.  Whoever holds it may be stuck, or lie,
      so any node may have it.
    - one that this node should end much sooner, although it begins anew, because it is faster.

How long a task still takes is not known.  It is assumed to take as long again as it has, and no less than a task of its
job does: what has run for long will run for long, as measured run times do.  One that was given together with others
may have to wait for all of them.  How fast a node is comes from the tasks of
the same job that ended there.

Pure.

Source: Zaharia et al. 2008 (LATE: the longest time to the end first, on fast nodes only).  Deviation: progress is not
reported, so the time to the end is guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

STRAGGLER_FACTOR: Final = 3.0
STRAGGLER_S_MIN: Final = 5.0
"""A lease is late after so many times the time that its tasks should take, and no earlier than this; a copy must end so
much sooner than the original to be worth it."""
UNKNOWN_TASK_S: Final = 3600.0
"""How long a task may take while none of its job has ended."""
SLOWNESS_WEIGHT: Final = 0.2
"""Weight of a new run time in the moving average (EWMA) of a node."""
SLOWNESS_MIN: Final = 0.01
"""Nodes are taken to be no faster than this."""
TRIED_MAX: Final = 64
"""Tasks looked at for one idle node."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A task that another node might do too."""

    index: int
    done_s: float
    """Work that it has had, in time of a mean node."""
    left_s: float
    """Work that it still needs, by the guess."""
    slowness: float
    """Of its node, over that of a mean one."""
    is_late: bool
    is_copied: bool
    """Two nodes have it already."""
    waits_s: float = 0.0
    """Work that comes before it where it is."""

    @property
    def ends_in_s(self) -> float:
        return (self.waits_s + self.left_s) * self.slowness

    @property
    def slowness_max(self) -> float:
        """A bound: it is for no node that is slower."""
        if self.is_late:
            return math.inf
        work_s = self.done_s + self.left_s
        return -math.inf if self.is_copied or work_s <= 0 else (1 + 1e-9) * (self.ends_in_s - STRAGGLER_S_MIN) / work_s

    def is_for(self, slowness: float) -> bool:
        """Whether a node of this slowness should have it too."""
        if self.is_late:
            return True
        return not self.is_copied and self.ends_in_s - (self.done_s + self.left_s) * slowness >= STRAGGLER_S_MIN


def patience_s(task_s: float | None) -> float:
    """Return how long one task of a job may take before it is late, seconds.

    Args:
        task_s: mean run time of its tasks; None: none has ended.
    """
    return UNKNOWN_TASK_S if task_s is None else STRAGGLER_FACTOR * task_s


def is_late(held_s: float, attempt: int, depth: int, patience: float) -> bool:
    """Return whether a lease takes too long.

    Args:
        held_s: since it began.
        attempt: from 1; each one has more time than the one before.
        depth: tasks that its slot does one after the other.
        patience: for one of them, seconds.
    """
    return held_s >= max(1, attempt) * max(STRAGGLER_S_MIN, depth * patience)


def straggler(
    index: int, held_s: float, attempt: int, depth: int, task_s: float | None, slowness: float, *, is_copied: bool
) -> Straggler:
    """Judge one lease."""
    late = is_late(held_s, attempt, depth, patience_s(task_s))
    if task_s is None:
        return Straggler(index, 0.0, 0.0, slowness, late, is_copied)
    worked_s, before_s = held_s / slowness, (depth - 1) * task_s
    done_s = max(0.0, worked_s - before_s)
    return Straggler(index, done_s, max(task_s, done_s), slowness, late, is_copied, max(0.0, before_s - worked_s))


class Slowness:
    """How long each node takes for tasks of one job, over how long they take on average."""

    def __init__(self) -> None:
        self._by_node: dict[bytes, float] = {}

    def note(self, node: bytes, runtime_s: float, mean_s: float) -> None:
        """A task has ended well on a node.

        Args:
            mean_s: of all nodes; above 0.
        """
        before = self._by_node.get(node)
        ratio = runtime_s / mean_s
        self._by_node[node] = ratio if before is None else before + SLOWNESS_WEIGHT * (ratio - before)

    def of(self, node: bytes) -> float:
        """Return a node's slowness; 1 while nothing is known."""
        return max(SLOWNESS_MIN, self._by_node.get(node, 1.0))
