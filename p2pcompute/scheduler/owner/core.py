"""What changes the owner's books with time; and whether they agree."""

from __future__ import annotations

from collections.abc import Callable

from p2pcompute.errors import InvariantViolation
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner.endings import DEADLINE
from p2pcompute.scheduler.owner.results import Results
from p2pcompute.scheduler.stealing import Fit
from p2pcompute.scheduler.stragglers import (
    is_late,
    patience_s,
)
from p2pcompute.scheduler.terms import JobEnvelope


class OwnerCore(Results):
    """Decides about all jobs of this node."""

    def __init__(
        self, fit_of: Callable[[JobEnvelope], Fit | None] | None = None, acceptance: Acceptance | None = None
    ) -> None:
        """Args:
        fit_of: says where a job may run.
        acceptance: decides whose results are believed; None: everybody's.
        """
        super().__init__(fit_of, acceptance)
        self.acceptance.bind(self)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that `tick`, or a further look at the ready tasks, could change."""
        return bool(self._pending) or any(
            job.leases
            or job.ready_count
            or job.checked
            or (job.envelope.terms.deadline_ms and not job.ledger.is_complete)
            for job in self.jobs.values()
        )

    def tick(self, now: float, wall_ms: float = 0.0) -> None:
        """Take back grants that nobody acknowledged and leases that have expired; stop jobs whose deadline is past.

        Args:
            wall_ms: Unix milliseconds.
        """
        for grant_id in [gid for gid, pending in self._pending.items() if pending.deadline <= now]:
            self._return_grant(now, self._pending.pop(grant_id).grant)
        for job in self.jobs.values():
            expired = [index for index, lease in job.leases.items() if lease.expires <= now]
            for index in reversed(expired):
                self._lose(now, job, index, "its lease ran out")
        for job_id in [job_id for job_id in self.order if self._is_due(job_id, wall_ms)]:
            self._stop(self.jobs[job_id], DEADLINE, kill=True)
        self.acceptance.tick(
            now,
            lambda job, lease, times: is_late(
                (now - lease.since) / times, lease.attempt, lease.depth, patience_s(job.task_s)
            ),
            self.thieves.values(),
        )
        self._find_overdue(now)

    def _is_due(self, job_id: bytes, wall_ms: float) -> bool:
        job = self.jobs[job_id]
        return 0 < job.envelope.terms.deadline_ms <= wall_ms and not job.halted and not job.is_revived

    def check_invariants(self) -> None:
        """Raise InvariantViolation when the books do not agree."""
        for job in self.jobs.values():
            job.ledger.check_invariants()
            leased = dict.fromkeys(job.by_thief, 0)
            for index, lease in job.leases.items():
                leased[lease.thief] = leased.get(lease.thief, 0) + 1
                if job.ledger.state(index) is not TaskState.OPEN:
                    raise InvariantViolation(f"task {index} has ended and is leased: {job.stories.get(index)}")
            self.acceptance.check_invariants(job)
            for lease in () if job.checked is None else job.checked.all_leases():
                leased[lease.thief] = leased.get(lease.thief, 0) + 1
            if leased != {thief: share[0] for thief, share in job.by_thief.items()}:
                raise InvariantViolation(f"shares {job.by_thief} and leases {leased} differ")
            available = {index for index in job.ready if job.ledger.state(index) is TaskState.OPEN}
            available |= set() if job.checked is None else set(job.checked.held)
            missing = [i for i in job.ledger.open_indices() if i not in available and i not in job.leases]
            if missing:
                raise InvariantViolation(f"tasks {missing[:5]} are neither ready nor leased")
            for index in job.ledger.open_indices():
                if index not in job.payloads:
                    raise InvariantViolation(f"open task {index} has no payload")
