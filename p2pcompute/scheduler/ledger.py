"""The ledger of one job: a pure fold of grow-only signed facts to task states.

A fact is never changed or removed, and the state does not depend on the order in which facts arrive or how
often, so replicas merge by union.  Leases are the owner's volatile business and are not in here.

    state of a task at its highest generation g:
        an acceptance at g        → DONE
        else a failure at g       → FAILED
        else a cancellation at g  → CANCELLED
        else a good claim at g    → CLAIMED
        else a last bad one at g  → CLAIMED_FAILED
        else                      → OPEN
    a retry fact raises g.

A claim is what a worker says.  At the job's owner it is judged at once, so only replicas have the two claimed states:
such a task is not run again, and waits for the owner's word.

Memory: two bytes and two 8-byte numbers a task, plus what is unusual (failures, retries) in sparse tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from p2pcompute.errors import InvariantViolation, RemoteProtocolError
from p2pcompute.limits import JOB_TASKS_MAX


class TaskState(IntEnum):
    OPEN = 0
    CANCELLED = 1
    FAILED = 2
    DONE = 3
    CLAIMED = 4
    CLAIMED_FAILED = 5


class FactKind(IntEnum):
    TASKS = 1
    """[first index, [payload, …]], and the generation in which they begin when it is not 0"""
    SEAL = 2
    """[total]"""
    CLAIMS = 3
    """[[index, generation, attempt, status, digest], …], by the worker"""
    ACCEPT = 4
    """[[index, generation, digest], …], by the owner"""
    FAIL = 5
    """[[index, generation, reason], …], by the owner"""
    CANCEL = 6
    """[[index, generation], …]; generation is the one that is cancelled"""
    RETRY = 7
    """[[index, new generation], …]"""
    CANCEL_ALL = 8
    """[]: the submitter gave the job up; what is open is cancelled unless a later RETRY revives it."""

    VOID = 9
    """[[index, generation, attempt], …], by the owner: bad ends among the claims before that did not count, because
    their worker no longer held the task or had told them before"""
    HELD = 10
    """[[index, generation, attempt, node, its installation, digest, is blind], …], by the owner: good claims of
    members, which are weighed against others (`acceptance`); a blind one has no weight"""
    CHECKED = 11
    """[[index, generation, digest, why], …], by the owner: what is accepted next, and on whose word"""
    REVOKE = 12
    """[[index, new generation, why], …], by the owner: what was accepted is believed no longer"""


GENERATION_MAX: Final = 200
_STATES: Final = tuple(TaskState)
_RANK: Final = (0, 3, 4, 5, 2, 1)
"""By state: the higher one wins at the same generation."""
_VERDICTS: Final = {(TaskState.CLAIMED, TaskState.DONE), (TaskState.CLAIMED_FAILED, TaskState.FAILED)}
"""(before, after) of changes that say nothing new to who watches: the claim was right."""


@dataclass(frozen=True, slots=True)
class Change:
    """A task entered a state."""

    index: int
    generation: int
    state: TaskState


class JobLedger:
    """States of the tasks of one job.

    Invariants: `counts` agrees with the states; a task that is not OPEN is in `finished` once per generation in
    which it ended (twice when a claim proved wrong); the total is fixed once sealed and no index is at or above it.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.size = 0
        """Tasks added: indices 0 … size-1, without holes."""
        self.counts = [0] * len(_STATES)
        self.finished: array[int] = array("Q")
        """Indices in the order in which they ended; a position in it is an event number."""
        self.reasons: dict[int, str] = {}
        self._seqs: array[int] = array("Q")
        self._states = bytearray()
        self._generations = bytearray()
        self._early: dict[int, list[tuple[int, TaskState, str]]] = {}

    # --- reading ----------------------------------------------------------------------------------

    def state(self, index: int) -> TaskState:
        return _STATES[self._states[index]]

    def generation(self, index: int) -> int:
        return self._generations[index]

    def seq(self, index: int) -> int:
        """Return the number, from 1, of the task's latest end; 0 while it has not ended."""
        return self._seqs[index]

    def is_open(self, index: int, generation: int) -> bool:
        """True when the task exists, is at this generation and has not ended."""
        return index < self.size and self._generations[index] == generation and self._states[index] == TaskState.OPEN

    def is_claimed(self, index: int, generation: int) -> bool:
        """True when the task's end at this generation was told and not judged."""
        if index >= self.size or self._generations[index] != generation:
            return False
        return self._states[index] in (TaskState.CLAIMED, TaskState.CLAIMED_FAILED)

    @property
    def is_complete(self) -> bool:
        """Sealed, and every task has ended."""
        return self.total is not None and self.size == self.total and self.counts[TaskState.OPEN] == 0

    def open_indices(self) -> list[int]:
        return [index for index, state in enumerate(self._states) if state == TaskState.OPEN]

    # --- facts ------------------------------------------------------------------------------------

    def add_tasks(self, first: int, count: int, generation: int = 0) -> list[int]:
        """Fold a TASKS fact; returns the indices that are new, lowest first.

        Facts of later batches may arrive before earlier ones: the hole is closed when those arrive.

        Raises:
            RemoteProtocolError: beyond the sealed total or JOB_TASKS_MAX.
        """
        end = first + count
        if first < 0 or not 0 <= generation <= GENERATION_MAX:
            raise RemoteProtocolError("a fact about tasks that cannot exist")
        if end > JOB_TASKS_MAX or (self.total is not None and end > self.total):
            raise RemoteProtocolError("more tasks than the job may have")
        if first > self.size:
            raise RemoteProtocolError("a batch of tasks is missing before this one")
        new = list(range(max(first, self.size), end))
        if new:
            self._states.extend(bytes(len(new)))
            self._seqs.frombytes(bytes(8 * len(new)))
            self._generations.extend(bytes([generation]) * len(new))
            self.size = end
            self.counts[TaskState.OPEN] += len(new)
            for index in new if self._early else ():
                for entered, state, reason in self._early.pop(index, ()):
                    self._enter(index, entered, state, reason)
        return new

    def seal(self, total: int) -> None:
        """Fold a SEAL fact: the job has exactly `total` tasks."""
        if self.total is None:
            if total < self.size:
                raise RemoteProtocolError("a job sealed below the tasks it has")
            self.total = total
        elif self.total != total:
            raise RemoteProtocolError("a job sealed twice with different totals")

    def accept(self, index: int, generation: int) -> Change | None:
        return self._enter(index, generation, TaskState.DONE, "")

    def fail(self, index: int, generation: int, reason: str) -> Change | None:
        return self._enter(index, generation, TaskState.FAILED, reason)

    def cancel(self, index: int, generation: int) -> Change | None:
        return self._enter(index, generation, TaskState.CANCELLED, "cancelled")

    def claim(self, index: int, generation: int, *, is_good: bool) -> Change | None:
        """Note that a worker has told an end of the task which its owner has not judged."""
        return self._enter(index, generation, TaskState.CLAIMED if is_good else TaskState.CLAIMED_FAILED, "")

    def retry(self, index: int, generation: int) -> Change | None:
        """Fold a RETRY fact: the task starts again under `generation`."""
        return self._enter(index, generation, TaskState.OPEN, "")

    def _enter(self, index: int, generation: int, state: TaskState, reason: str) -> Change | None:
        if not (0 <= index < JOB_TASKS_MAX and 0 <= generation <= GENERATION_MAX):
            raise RemoteProtocolError("a fact about a task that cannot exist")
        if index >= self.size:
            self._early.setdefault(index, []).append((generation, state, reason))
            return None
        current = self._generations[index]
        old = self._states[index]
        if generation < current or (generation == current and _RANK[state] <= _RANK[old]):
            return None
        self._generations[index] = generation
        self._states[index] = state
        self.counts[old] -= 1
        self.counts[state] += 1
        if reason:
            self.reasons[index] = reason
        else:
            self.reasons.pop(index, None)
        is_told = generation == current and (old, state) in _VERDICTS
        if state is not TaskState.OPEN and not is_told:
            self.finished.append(index)
            self._seqs[index] = len(self.finished)
        return Change(index, generation, state)

    def fold(self, kind: int, body: Any) -> list[Change]:
        """Fold one fact as it is stored; the one place that knows all kinds.

        Raises:
            RemoteProtocolError: the fact is malformed.
        """
        try:
            match FactKind(kind):
                case FactKind.TASKS:
                    self.add_tasks(body[0], len(body[1]), *body[2:])
                    return []
                case FactKind.SEAL:
                    self.seal(body[0])
                    return []
                case FactKind.CLAIMS | FactKind.CANCEL_ALL | FactKind.VOID | FactKind.HELD | FactKind.CHECKED:
                    return []
                case FactKind.ACCEPT:
                    return _changes(self.accept(index, generation) for index, generation, _digest in body)
                case FactKind.FAIL:
                    return _changes(self.fail(index, generation, reason) for index, generation, reason in body)
                case FactKind.CANCEL:
                    return _changes(self.cancel(index, generation) for index, generation in body)
                case FactKind.RETRY:
                    return _changes(self.retry(index, generation) for index, generation in body)
                case FactKind.REVOKE:
                    return _changes(self.retry(index, generation) for index, generation, _why in body)
        except (TypeError, ValueError, IndexError) as error:
            raise RemoteProtocolError("a malformed fact", str(error)) from error

    def check_invariants(self) -> None:
        """Raise InvariantViolation when an invariant does not hold."""
        counts = [0] * len(_STATES)
        for state in self._states:
            counts[state] += 1
        if counts != self.counts or len(self._generations) != len(self._states) or self.size != len(self._states):
            raise InvariantViolation(f"ledger counts {self.counts} are not {counts}")
        if self.total is not None and self.size > self.total:
            raise InvariantViolation("more tasks than the sealed total")


def _changes(items: Iterable[Change | None]) -> list[Change]:
    return [item for item in items if item is not None]


def ranges(indices: Sequence[int]) -> str:
    """Return sorted indices as people write them: "3-9,12"."""
    parts: list[str] = []
    start = previous = -2
    for index in [*indices, -1]:
        if index == previous + 1 and previous >= 0:
            previous = index
            continue
        if previous >= 0:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = index
    return ",".join(parts)
