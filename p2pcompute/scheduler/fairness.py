"""Whose turn it is: in which order jobs are served, by the owner that hands tasks out and by the node that runs them.

    1. The work of a machine's own installation comes first on that machine: it is theirs, and lending it out must cost
       its owner no waiting.
    2. Submitters have equal shares, or weighted ones.  Priorities do not count between them: everybody would take the
       highest.
    3. Of the jobs of one submitter those with the higher priority come first, of these the earliest deadline.
    4. Jobs that are equal in all this have equal shares.

Shares are of slot time, not of numbers of tasks: who submits long tasks gets fewer of them.  A share that is not asked
for goes to the others, and is not saved up: who has asked for nothing begins beside the others, not before them.

What a task costs is known only when it has ended, so a guess is charged when it starts and made good at its end.  The
deficit of a submitter or job is what the others have had more; the largest is served next.

Pure.  Bound: as many entries as jobs were added and not discarded, and SUBMITTERS_KEPT_MAX.

Source: deficit round-robin (Shreedhar & Varghese 1996), with costs that are charged afterwards as in surplus
round-robin (Adiseshu et al. 1996); newcomers begin at the present round as in start-time fair queueing (Goyal et al.
1996).
Deviations: the quantum is infinitely small, so what is served next is whoever has had least for his weight.  A node is
in one group, so there is no share of groups above those of submitters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import exp, inf
from typing import Final

from p2pcompute.scheduler.terms import JobEnvelope

SUBMITTERS_KEPT_MAX: Final = 1024
"""Submitters without a job whose past is remembered; beyond it those are forgotten."""
USAGE_TAU_S: Final = 60.0
"""Time constant of the usage from which shares are shown."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides about a job's place besides what it has had."""

    submitter: bytes = b""
    """Installation."""
    priority: int = 0
    """Higher is earlier."""
    deadline: float = inf
    """In any unit, the same for all; inf: none."""

    @staticmethod
    def of(job: JobEnvelope) -> Standing:
        """Return the standing that a job's terms give it."""
        return Standing(job.submitter, job.terms.priority, job.terms.deadline_ms or inf)


@dataclass(slots=True)
class _Flow:
    """A submitter, or a job among those of its submitter."""

    had_s: float = 0.0
    """Slot time over weight, counted from that of others when it began."""
    asks: bool = False
    """It had work when it was last looked at."""


@dataclass(slots=True)
class _Submitter(_Flow):
    round_s: float = 0.0
    """What the job of it that was served last had then: where its newcomers begin."""
    jobs: dict[bytes, _Flow] = field(default_factory=dict)


class FairOrder:
    """The jobs of one node that wait for service."""

    def __init__(self, weight_of: Callable[[bytes], float] | None = None) -> None:
        """Args:
        weight_of: a submitter's weight, above 0; None: all have the same.
        """
        self._weight_of = weight_of
        self._standings: dict[bytes, Standing] = {}
        self._submitters: dict[bytes, _Submitter] = {}
        self._round_s = 0.0

    def __len__(self) -> int:
        return len(self._standings)

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self._standings

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._standings)

    def add(self, job_id: bytes, standing: Standing) -> None:
        """Serve a job, behind those that are equal; one that is there already keeps its place."""
        if job_id not in self._standings:
            self._standings[job_id] = standing
            submitter = self._submitters.setdefault(standing.submitter, _Submitter())
            submitter.jobs[job_id] = _Flow()

    def discard(self, job_id: bytes) -> None:
        """Serve a job no more.  What its submitter has had beyond the present round is remembered."""
        standing = self._standings.pop(job_id, None)
        if standing is None:
            return
        submitter = self._submitters[standing.submitter]
        del submitter.jobs[job_id]
        if len(self._submitters) > len(self._standings) + SUBMITTERS_KEPT_MAX:
            ahead = {key: one for key, one in self._submitters.items() if one.jobs or one.had_s > self._round_s}
            self._submitters = (
                ahead if len(ahead) < len(self._submitters) else {key: one for key, one in ahead.items() if one.jobs}
            )

    def in_order(self, has_work: Callable[[bytes], bool], *, first: bytes | None = None) -> list[bytes]:
        """Return the jobs that have work, whose turn it is first.

        Args:
            first: the submitter whose work comes before all other.
        """
        if len(self._standings) == 1:
            return [job_id for job_id in self._standings if has_work(job_id)]
        places = []
        for key, submitter in self._submitters.items():
            asking = []
            for job_id, job in submitter.jobs.items():
                job.asks, began = has_work(job_id), job.asks
                if job.asks:
                    if not began:
                        job.had_s = max(job.had_s, submitter.round_s)
                    asking.append((job_id, job))
            if asking and not submitter.asks:
                submitter.had_s = max(submitter.had_s, self._round_s)
            submitter.asks = bool(asking)
            for job_id, job in asking:
                standing = self._standings[job_id]
                before = (key != first, submitter.had_s, key)
                places.append(((*before, -standing.priority, standing.deadline, job.had_s), job_id))
        places.sort(key=lambda place: place[0])
        return [job_id for _place, job_id in places]

    def had_s(self, submitter: bytes) -> float:
        """Return what a submitter has had for its weight, on the scale of all: who has least is served next."""
        known = self._submitters.get(submitter)
        return self._round_s if known is None else max(known.had_s, self._round_s)

    def charge(self, job_id: bytes, slot_s: float) -> None:
        """Count slot time for a job and its submitter; below 0: some that was charged before, and not used."""
        standing = self._standings.get(job_id)
        if standing is None:
            return
        submitter = self._submitters[standing.submitter]
        job = submitter.jobs[job_id]
        if slot_s > 0:
            self._round_s = max(self._round_s, submitter.had_s)
            submitter.round_s = max(submitter.round_s, job.had_s)
        job.had_s += slot_s
        submitter.had_s += slot_s / (1.0 if self._weight_of is None else self._weight_of(standing.submitter))


class Usage:
    """Slot time that was used lately: an exponentially decaying sum."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._at = 0.0
        self._value = 0.0

    def add(self, now: float, slot_s: float) -> None:
        self._value = self.at(now) + slot_s
        self._at = now

    def at(self, now: float) -> float:
        """Return the sum at this time; seconds."""
        return self._value * exp(-max(0.0, now - self._at) / USAGE_TAU_S)
