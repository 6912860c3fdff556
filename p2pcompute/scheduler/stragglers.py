"""Tasks that hold up the end of a job, and who should do them too.

When a job has nothing more to give, an idle node may be given a task that another one has:

    - one that is *late*: it takes STRAGGLER_FACTOR times as long as it should.  Whoever holds it may be stuck, or lie,
      so any node may have it.
    - one that this node should end much sooner, although it begins anew, because it is faster.

How long a task still takes is not known.  It is assumed to take as long again as it has, and no less than a task of its
job does: what has run for long will run for long, as measured run times do.  One that was given together with others
may have to wait for all of them.  How fast a node is comes from the tasks of the same job that ended there.

Nodes that had a task before go on with it, up to HOLDERS_MAX together.  So a node is compared with whoever of them
should be done first: at the end of a job nodes have nothing else to do, and the first result ends the others' runs.
Each one more must promise more, or slow ones that were free a moment earlier would take all places: the third is to
end within 4/5 of the time that is left, the fourth within 3/5, the fifth within 2/5.  A node whose heartbeat is overdue
is not reckoned with: it may be gone, although its lease lasts for long yet.

Pure.

Source: Zaharia et al. 2008 (LATE: the longest time to the end first, on fast nodes only).  Deviation: progress is not
reported, so the time to the end is guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2pcompute.limits import JOB_NODES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

STRAGGLER_FACTOR: Final = 3.0
STRAGGLER_S_MIN: Final = 5.0
"""A lease is late after so many times the time that its tasks should take, and no earlier than this; a copy must end so
much sooner than the original to be worth it."""
HEARTBEATS_MISSED: Final = 1.5
"""A node is not reckoned with when it has not been heard of for so many times what passes between two heartbeats."""
UNKNOWN_TASK_S: Final = 3600.0
"""How long a task may take while none of its job has ended."""
SLOWNESS_WEIGHT: Final = 0.1
"""Least weight of a new run time in the mean of a node; the first ones weigh all the same."""
SLOWNESS_MIN: Final = 0.01
"""Nodes are taken to be no faster than this."""
TRIED_MAX: Final = 64
"""Tasks looked at for one idle node."""
HOLDERS_MAX: Final = 5
"""Nodes that may have one task at the end of a job.  With two a task that went to the first node that was free stays
there, however fast those are that are free a moment later: 540 nodes whose speeds are log-normal (sigma 0.8) then need
1.15 times as long as the work takes on all of them, with three 1.08, with five or eight 1.07."""


@dataclass(frozen=True, slots=True)
class Run:
    """One node's attempt at a task."""

    held_s: float
    """Since it was given to it."""
    slowness: float
    """Of the node, over that of a mean one."""
    depth: int = 1
    """Tasks that its slot does one after the other, this one last."""
    is_heard: bool = True
    """Its last heartbeat came when it was due."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A task that another node might do too."""

    index: int
    work_s: float
    """All of it, in time of a mean node, by the guess."""
    ends_in_s: float
    """On the node that should have it first."""
    is_late: bool
    """Any node may have it."""
    holders: int
    """Nodes that have it."""

    @property
    def slowness_max(self) -> float:
        """A bound: it is for no node that is slower."""
        if self.is_late:
            return math.inf
        if self.holders >= HOLDERS_MAX or self.work_s <= 0:
            return -math.inf
        promised_s = self.ends_in_s * (HOLDERS_MAX - self.holders + 1) / HOLDERS_MAX
        return min(self.ends_in_s - STRAGGLER_S_MIN, promised_s) / self.work_s

    def is_for(self, slowness: float) -> bool:
        """Whether a node of this slowness should have it too."""
        return slowness <= self.slowness_max


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


def straggler(index: int, attempt: int, run: Run, task_s: float | None, former: Sequence[Run] = ()) -> Straggler:
    """Judge one lease.

    Args:
        run: of the node that has it.
        task_s: mean run time of the tasks of its job; None: none has ended.
        former: of nodes that had it before, and go on with it.
    """
    runs = [one for one in (run, *former) if one.is_heard]
    late = not runs or is_late(run.held_s, attempt, run.depth, patience_s(task_s))
    if task_s is None or not runs:
        return Straggler(index, 0.0, 0.0, late, len(runs))
    before_s = [(one.depth - 1) * task_s for one in runs]
    spent_s = [one.held_s / one.slowness for one in runs]
    done_s = max(0.0, *(spent - before for spent, before in zip(spent_s, before_s, strict=True)))
    work_s = done_s + max(task_s, done_s)
    ends_in_s = min(
        (before + work_s - spent) * one.slowness for one, spent, before in zip(runs, spent_s, before_s, strict=True)
    )
    return Straggler(index, work_s, ends_in_s, late, len(runs))


class Slowness:
    """How long each node takes for tasks of one job, over how long they take on average; one forgotten is average."""

    def __init__(self) -> None:
        self._by_node: dict[bytes, tuple[float, int]] = {}
        """Node → mean of its ratios, and how many there were; the last JOB_NODES_MAX."""

    def note(self, node: bytes, runtime_s: float, mean_s: float) -> None:
        """A task has ended well on a node.

        Args:
            mean_s: of all nodes; above 0.
        """
        before, count = self._by_node.get(node, (0.0, 0))
        weight = max(SLOWNESS_WEIGHT, 1 / (count + 1))
        self._by_node[node] = before + weight * (runtime_s / mean_s - before), count + 1
        if len(self._by_node) > JOB_NODES_MAX:
            del self._by_node[next(iter(self._by_node))]

    def of(self, node: bytes) -> float:
        """Return a node's slowness; 1 while nothing is known."""
        return max(SLOWNESS_MIN, self._by_node.get(node, (1.0, 0))[0])
