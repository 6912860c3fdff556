"""What attempts have printed that came to no end that counts: their node was lost, they were evicted, or tried again.

While a task runs, its worker tells the owner with its heartbeats what it has printed lately.  When the attempt is lost,
what came that way, or with its end, is kept beside the job.  What tasks on the owner's own node print is kept there
while they run, since after a kill -9 nobody else could tell.  Pure.

Bounds: the last PRINTED_TAIL_BYTES_MAX of a stream; of running attempts PRINTED_BYTES_MAX in all, then the one not
heard of for longest goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2pcompute.host.runs import Outcome
from p2pcompute.limits import PRINTED_BYTES_MAX, PRINTED_TAIL_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream."""

    start: int = 0
    """Where it begins in all that was printed."""
    data: bytes = b""

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def cut(self) -> Tail:
        """Return what is kept of it."""
        excess = max(0, len(self.data) - PRINTED_TAIL_BYTES_MAX)
        return Tail(self.start + excess, self.data[excess:])

    def then(self, later: Tail) -> Tail:
        """Return it with what was printed later."""
        joins = self.start <= later.start <= self.end
        return Tail(self.start, self.data[: later.start - self.start] + later.data).cut() if joins else later.cut()


Tails = tuple[Tail, Tail]
"""Of stdout and stderr."""
NOTHING: Tails = (Tail(), Tail())


def tails_of(outcome: Outcome) -> Tails:
    """Return the end of what came with an outcome, where it is no file."""
    return Tail(0, outcome.stdout).cut(), Tail(0, outcome.stderr).cut()


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempt:
    """An attempt that came to no end that counts."""

    job_id: bytes
    index: int
    generation: int
    attempt: int
    thief: bytes
    why: str
    outcome: Outcome | None = None


class Printed:
    """What running attempts have printed, as far as it was told."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[bytes, int], tuple[int, Tails]] = {}
        """(job, task) → its attempt and what that printed; heard of last at the end."""
        self._bytes = 0
        self.dropped_count = 0
        """Attempts of which nothing is kept any more because there was no room."""

    def heard(self, job_id: bytes, index: int, attempt: int, tails: Tails) -> None:
        """A worker says what an attempt has printed since it said so last."""
        before = self.take(job_id, index, attempt)
        after = (before[0].then(tails[0]), before[1].then(tails[1]))
        self._attempts[job_id, index] = (attempt, after)
        self._bytes += size_of(after)
        while self._bytes > PRINTED_BYTES_MAX:
            oldest = next(iter(self._attempts))
            self._bytes -= size_of(self._attempts.pop(oldest)[1])
            self.dropped_count += 1

    def get(self, job_id: bytes, index: int, attempt: int) -> Tails:
        """Return what an attempt has printed; nothing when another one was heard of last."""
        known, tails = self._attempts.get((job_id, index), (attempt, NOTHING))
        return tails if known == attempt else NOTHING

    def take(self, job_id: bytes, index: int, attempt: int) -> Tails:
        """Return what an attempt has printed, and forget it; nothing when another one was heard of last."""
        known, tails = self._attempts.pop((job_id, index), (attempt, NOTHING))
        self._bytes -= size_of(tails)
        return tails if known == attempt else NOTHING


def size_of(tails: Tails) -> int:
    return len(tails[0].data) + len(tails[1].data)


def tails_body(tails: Tails) -> list[Any]:
    """Return how they travel and are stored."""
    return [tails[0].start, tails[0].data, tails[1].start, tails[1].data]
