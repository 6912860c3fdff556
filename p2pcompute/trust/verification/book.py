"""What all methods share: the interface, the books about tasks, and what follows from a claim.

A *claim* is a worker's answer to a task, known by its digest.  Tasks are numbered 0, 1, …; numbers below 0 are
known-answer checks, which belong to no job.  A worker claims a task once; a second, different claim is equivocation.

Invariants: nobody is handed a task that he has claimed or holds; a final task keeps its digest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from p2pcompute.errors import InvariantViolation

if TYPE_CHECKING:
    import random

Worker = bytes
"""A worker's installation key."""
Digest = bytes

DRAWS_MAX: Final = 64
"""Tasks of one level that a worker passes over, because it has claimed them, before the next level is tried."""


class Basis(StrEnum):
    """Why a result is accepted."""

    UNCHECKED = "unchecked"
    AGREED = "agreed"
    """The method's own rule about claims that agree."""
    TRUSTED = "trusted"
    """A trusted node computed it."""
    OUTVOTED = "outvoted"
    """Claims disagree, no trusted node could decide, and one value is far more credible than all others."""


class Why(StrEnum):
    """Why a worker is banned."""

    SHARED_WRONG = "a wrong value that two workers shared"
    FAULTY = "too many wrong values"
    EQUIVOCATION = "two answers to one task"
    FAILED_CHECK = "a known answer was wrong"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A result may be used."""

    index: int
    digest: Digest
    basis: Basis


@dataclass(frozen=True, slots=True)
class Revoked:
    """An accepted result is to be believed no longer; the task is computed again."""

    index: int


@dataclass(frozen=True, slots=True)
class Recheck:
    """An accepted result is checked once more, because one of those who vouch for it was wrong elsewhere."""

    index: int


@dataclass(frozen=True, slots=True)
class AskTrusted:
    """A trusted node has to compute this task; its digest goes to `verdict`."""

    index: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Claims about this task are void and those that are left, if any, agree: no trusted node is wanted any more."""

    index: int


@dataclass(frozen=True, slots=True)
class Nondeterministic:
    """Two runs by trusted nodes differ: nobody is to blame, and the task cannot be checked by comparing."""

    index: int


@dataclass(frozen=True, slots=True)
class Banned:
    """A worker gets no more work; what rests on it is computed again."""

    worker: Worker
    why: Why


Effect = Accepted | Revoked | Recheck | AskTrusted | Withdrawn | Nondeterministic | Banned


class Task:
    """The claims about one task."""

    __slots__ = ("accepted", "claims", "is_final", "lane", "lent")

    def __init__(self, lane: int = 0) -> None:
        self.lane = lane
        """Of which job it is: who asks is given tasks of one lane at a time."""
        self.claims: dict[Worker, Digest] = {}
        """In the order in which they came."""
        self.lent: dict[Worker, bool] = {}
        """Who computes it now, and whether somebody had claimed it when that began."""
        self.accepted: Digest | None = None
        self.is_final = False
        """Nothing can change the accepted value any more."""


class Pools:
    """Open tasks by level, lowest first, drawn at random.

    Entries may be stale: who draws says which level a task has now, and an entry that is elsewhere by now is dropped.
    """

    def __init__(self) -> None:
        self._levels: list[list[int]] = []

    def put(self, index: int, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append([])
        self._levels[level].append(index)

    @property
    def is_empty(self) -> bool:
        return not any(self._levels)

    def holds(self, index: int, level: int) -> bool:
        return level < len(self._levels) and index in self._levels[level]

    def draw(
        self, verifier: Verifier, worker: Worker, rng: random.Random, *, from_: int = 0, up_to: int | None = None
    ) -> int | None:
        """Take out a task that `verifier` wants computed by `worker`; None if there is none.

        Args:
            from_: the lowest level that will do.
            up_to: the highest one; None: any.
        """
        highest = len(self._levels) - 1
        for at in range(from_, (highest if up_to is None else min(up_to, highest)) + 1):
            pool = self._levels[at]
            aside: list[int] = []
            found: int | None = None
            while pool and len(aside) < DRAWS_MAX:
                place = int(rng.random() * len(pool))
                index, pool[place] = pool[place], pool[-1]
                pool.pop()
                if verifier.level(index) != at:
                    continue
                if verifier.may_take(worker, index):
                    found = index
                    break
                aside.append(index)
            pool += aside
            if found is not None:
                return found
        return None


Begin = Callable[[], int | None]
"""Takes the next task that nobody has begun from where the caller keeps these, and returns its number (`append`)."""


class Verifier(ABC):
    """Decides who computes what and what is believed, for the tasks of one submitter.

    Tasks that nobody has begun are either kept here (`add`), or by the caller: he numbers a task (`append`) when `take`
    asks him for one.  Then those that are returned unclaimed are his again.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.accepted_count = 0
        self.keeps_originals = True
        """Tasks that nobody has claimed are handed out from here."""
        self.allows: Callable[[Worker, int], bool] = lambda _worker, _index: True
        """What else keeps a worker from a copy of a task."""
        self._pools: dict[int, Pools] = {}
        """By lane."""
        self._effects: list[Effect] = []

    # --- what every method has --------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """Whether every task is accepted; a revocation may change that."""
        return self.accepted_count == len(self.tasks)

    def add(self, count: int) -> None:
        """Add so many tasks behind those that are there."""
        for index in range(len(self.tasks), len(self.tasks) + count):
            self.tasks.append(Task())
            self._pool(0).put(index, 0)

    def append(self, lane: int) -> int:
        """Number a task whose original the caller hands out; returns the number."""
        self.tasks.append(Task(lane))
        return len(self.tasks) - 1

    def restore(
        self, index: int, claims: dict[Worker, Digest], blind: tuple[Worker, ...], accepted: Digest | None
    ) -> None:
        """Know again, after a restart, what was claimed of a task, by workers that have joined, and what is accepted.

        Args:
            blind: who of them has no weight.
        """
        task = self.tasks[index]
        task.claims = dict(claims)
        if accepted is not None:
            task.accepted = accepted
            self.accepted_count += 1
        self._offer(index)

    def wants_copies(self, lane: int) -> bool:
        """Whether tasks of this lane may want to be computed once more."""
        return lane in self._pools and not self._pools[lane].is_empty

    def drop(self, index: int) -> None:
        """Nobody wants this task any more: it was cancelled, or has failed."""
        task = self.tasks[index]
        if task.accepted is None:
            self.accepted_count += 1
            task.accepted = b""
        task.is_final = True

    @abstractmethod
    def join(self, now: float, worker: Worker) -> bool:
        """Let a worker take part; False: not now, because too many are new."""

    @abstractmethod
    def is_banned(self, worker: Worker) -> bool:
        """Whether this worker gets no more work."""

    def pardon(self, worker: Worker) -> None:  # noqa: B027 - where nobody is banned there is nothing to do
        """Let a worker that is banned begin anew; what it claimed is erased already."""

    @abstractmethod
    def take(
        self, now: float, worker: Worker, rng: random.Random, lane: int = 0, begin: Begin | None = None
    ) -> int | None:
        """Return the task that a worker computes next, or None.  It holds the task until it claims or returns it.

        Args:
            lane: where it is taken from.
            begin: gives a task that nobody has begun; None: they are kept here.
        """

    def is_blind(self, worker: Worker, index: int) -> bool:
        """Whether a worker's claim, which has not been taken, would have no weight: it was not given the task."""
        return worker not in self.tasks[index].lent

    @abstractmethod
    def claim(self, now: float, worker: Worker, index: int, digest: Digest) -> list[Effect]:
        """Take a worker's answer; returns what follows, in order."""

    def returned(self, now: float, worker: Worker, index: int) -> None:
        """A worker that holds a task will not answer."""
        if index >= 0 and self.tasks[index].lent.pop(worker, None) is not None:
            self._offer(index)

    def taken_back(self, now: float, worker: Worker, index: int) -> None:
        """A worker that holds a task, or was to hold it, is not to answer."""
        self.returned(now, worker, index)

    def late(self, now: float, worker: Worker, index: int) -> None:
        """A worker takes too long for a task that it holds: others may be given it as well."""
        self.returned(now, worker, index)

    def verdict(self, now: float, index: int, digest: Digest) -> list[Effect]:
        """Take the answer of a trusted node, to an `AskTrusted` or of its own accord; returns what follows."""
        task = self.tasks[index]
        if not task.is_final:
            if task.accepted not in (None, digest):
                self._effects.append(Revoked(index))
            self._accept(index, digest, Basis.TRUSTED)
            task.is_final = True
        return self.take_effects()

    # --- for methods ------------------------------------------------------------------------------

    @abstractmethod
    def level(self, index: int) -> int | None:
        """How many copies a task has, when it wants another one; None: it does not."""

    def may_take(self, worker: Worker, index: int) -> bool:
        """Whether a worker may compute a task: it has not claimed it and does not hold it."""
        task = self.tasks[index]
        return worker not in task.claims and worker not in task.lent and self.allows(worker, index)

    def _pool(self, lane: int) -> Pools:
        pools = self._pools.get(lane)
        if pools is None:
            pools = self._pools[lane] = Pools()
        return pools

    def _offer(self, index: int) -> None:
        """Put a task where it is drawn from, if it wants to be computed."""
        level = self.level(index)
        if level is not None and (level or self.keeps_originals or self.tasks[index].claims):
            self._pool(self.tasks[index].lane).put(index, level)

    def _accept(self, index: int, digest: Digest, basis: Basis) -> None:
        task = self.tasks[index]
        self.accepted_count += task.accepted is None
        task.accepted = digest
        self._effects.append(Accepted(index, digest, basis))

    def _unaccept(self, index: int) -> None:
        self.tasks[index].accepted = None
        self.accepted_count -= 1

    def take_effects(self) -> list[Effect]:
        """Return what followed since it was asked last: `take` accepts what it finds to be credible by now."""
        effects, self._effects = self._effects, []
        return effects

    def check_invariants(self) -> None:
        """Raise InvariantViolation when the books do not agree."""
        if self.accepted_count != sum(task.accepted is not None for task in self.tasks):
            raise InvariantViolation("the count of accepted tasks is wrong")
        for index, task in enumerate(self.tasks):
            if any(worker in task.claims for worker in task.lent):
                raise InvariantViolation(f"task {index} is computed again by somebody who has claimed it")
            if task.is_final and task.accepted is None:
                raise InvariantViolation(f"task {index} is final and not accepted")
            level = self.level(index)
            if level is None or not (level or self.keeps_originals or task.claims):
                continue
            if not self._pool(task.lane).holds(index, level):
                raise InvariantViolation(f"task {index} wants another copy and nobody gets it")


def votes(claims: dict[Worker, Digest]) -> dict[Digest, list[Worker]]:
    """Return digest → those who claim it, in order of arrival."""
    groups: dict[Digest, list[Worker]] = {}
    for worker, digest in claims.items():
        groups.setdefault(digest, []).append(worker)
    return groups
