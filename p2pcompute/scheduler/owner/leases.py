"""Who has asked for work, who has which task, and until when; what running tasks have saved.

Leases are not in the ledger: they are the owner's volatile business.  After a restart workers tell by heartbeat what
they still hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus
from p2pcompute.limits import (
    ATTEMPTS_MAX,
    BATCH_TARGET_S,
    GRANT_ACK_S,
    GRANT_BURST_S,
    GRANTS_PER_S_MAX,
    LEASE_BATCH_FACTOR,
    LEASE_S_MIN,
    THIEVES_MAX,
)
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import Grant, GrantedTask, Lease, OwnedJob
from p2pcompute.scheduler.checkpoints import Saved
from p2pcompute.scheduler.owner.jobs import Jobs
from p2pcompute.scheduler.stealing import LOCAL, Fit, Thief, lease_s_min
from p2pcompute.scheduler.terms import JobEnvelope
from p2pcompute.trust.levels import Level

UNFIT_S = 10.0
"""How long a node that declined because it does not fit is not offered the job again: what it has may change."""
CROWD = 400
"""Thieves with which grants of BATCH_TARGET_S are few enough; with more of them, grants are larger in proportion."""


@dataclass(slots=True)
class _PendingGrant:
    grant: Grant
    deadline: float


class Leases(Jobs):
    """Lends tasks to nodes, and takes them back."""

    def __init__(
        self, fit_of: Callable[[JobEnvelope], Fit | None] | None = None, acceptance: Acceptance | None = None
    ) -> None:
        super().__init__(fit_of, acceptance)
        self.thieves: dict[bytes, tuple[Thief, float]] = {}
        """Key → last request and when; the candidates for "another node"."""
        self.machine_of: Callable[[bytes], str] = lambda _key: ""
        """What programs a node's machine takes ("linux x86_64"), by its key or LOCAL; empty: not known."""
        self._pending: dict[int, _PendingGrant] = {}
        self._next_grant = 1
        self._turn_at = 0.0
        """With a crowd: when the next grant would be due if they left one after the other."""

    def remember(self, now: float, thief: Thief) -> None:
        """Note that this thief waits for work now: a candidate for tasks that another node failed."""
        self.thieves.pop(thief.key, None)
        self.thieves[thief.key] = (thief, now)
        if len(self.thieves) > THIEVES_MAX:
            del self.thieves[next(iter(self.thieves))]

    @property
    def pace_s(self) -> float:
        """How far apart the results of one worker should come, seconds; 0: as they come."""
        return min(LEASE_S_MIN, BATCH_TARGET_S * self.crowd) if self.crowd > 1 else 0.0

    @property
    def crowd(self) -> float:
        """By how much batches are larger because there are so many thieves, from 1: what they send stays bounded."""
        return max(1.0, len(self.thieves) / CROWD)

    def pause_s(self, now: float) -> float:
        """Return for how long no other node is given anything, because there is a crowd; 0: who asks may have tasks.

        A grant brings a request, its acknowledgement and results; those who wait say nothing.
        """
        if self.crowd <= 1 or self._turn_at <= now + GRANT_BURST_S:
            return 0.0
        return self._turn_at - now - GRANT_BURST_S

    # --- given ----------------------------------------------------------------------------------------

    def _grant(self, now: float, job: OwnedJob, thief: Thief, chosen: list[int]) -> Grant:
        expected_s = (job.task_s or 0.0) * len(chosen) / thief.slots
        lease_s = max(lease_s_min(self.pace_s), LEASE_BATCH_FACTOR * expected_s)
        depth = ceil(len(chosen) / thief.slots)
        width = 1 if job.fit is None else job.fit.slots(thief.key, thief.slots)
        charged_s = width * (BATCH_TARGET_S if job.task_s is None else job.task_s)
        tasks = []
        for index in chosen:
            attempt = job.attempts.get(index, 0) + 1
            expires = inf if thief.is_local else now + lease_s
            lease = Lease(
                thief.key, thief.boot, attempt, expires, now, depth, width, charged_s, installation=thief.installation
            )
            if self.acceptance.is_extra(job, index):
                attempt, payload = self.acceptance.lend(job, index, lease)
                job.share(thief.key)[0] += 1
                tasks.append(GrantedTask(index, job.ledger.generation(index), attempt, payload))
                continue
            job.attempts[index] = attempt
            job.leases[index] = lease
            job.share(thief.key)[0] += 1
            if attempt > 1:
                job.tell(now, index, f"attempt {attempt} leased to {thief.key.hex()[:8]}")
            tasks.append(self._granted(now, job, index, attempt))
        job_id = job.envelope.job_id
        self.order.charge(job_id, charged_s * len(chosen))
        grant = Grant(
            self._next_grant,
            thief.request_id,
            thief.key,
            job_id,
            LOCAL,
            lease_s,
            tuple(tasks),
            job.epoch,
            may_pass=job.checked is None,
            pace_s=self.pace_s,
        )
        self._next_grant += 1
        if not thief.is_local:
            self._pending[grant.grant_id] = _PendingGrant(grant, now + GRANT_ACK_S)
            self._turn_at = max(self._turn_at, now) + 1 / GRANTS_PER_S_MAX
        return grant

    def _granted(self, now: float, job: OwnedJob, index: int, attempt: int) -> GrantedTask:
        """A task for its new holder, with what an earlier attempt has saved."""
        generation = job.ledger.generation(index)
        saved = self.checkpoints.get(job.envelope.job_id, index, generation)
        if saved is not None and not all(map(self.is_trusted, saved.by)):
            self.checkpoints.drop(job.envelope.job_id, index)
            saved = None
        if saved is None:
            return GrantedTask(index, generation, attempt, job.payloads[index])
        job.leases[index].is_resumed = True
        job.tell(now, index, f"attempt {attempt} goes on from what attempt {saved.attempt} has saved")
        return GrantedTask(index, generation, attempt, job.payloads[index], saved.cookie, saved.blob)

    def acknowledged(
        self, now: float, thief: bytes, grant_id: int, is_accepted: bool, *, is_unfit: bool = False
    ) -> None:
        """The thief has the grant, or declines it.  Unknown grants (returned, repeated) are ignored: a late
        acknowledgement is made good by the thief's next heartbeat.

        Args:
            is_unfit: it declines because it does not meet the job's requirement now.
        """
        pending = self._pending.get(grant_id)
        if pending is None or pending.grant.thief != thief:
            return
        del self._pending[grant_id]
        if not is_accepted:
            job = self.jobs.get(pending.grant.job_id)
            if is_unfit and job is not None:
                job.unfit = {key: until for key, until in job.unfit.items() if until > now}
                job.unfit[thief] = now + UNFIT_S
            self._return_grant(now, pending.grant)

    def _return_grant(self, now: float, grant: Grant) -> None:
        job = self.jobs.get(grant.job_id)
        if job is None:
            return
        for task in reversed(grant.tasks):
            if self.acceptance.returned(now, job, task.index, grant.thief, attempt=task.attempt):
                continue
            lease = job.leases.get(task.index)
            if lease is not None and lease.thief == grant.thief and lease.attempt == task.attempt:
                job.attempts[task.index] = task.attempt - 1
                self._release(job, task.index)
                self._requeue(job, task.index)

    # --- held -----------------------------------------------------------------------------------------

    def holders(self, job_id: bytes, index: int) -> list[Lease]:
        """Return the leases of those who have a task now, whose result counts for itself first."""
        job = self.jobs.get(job_id)
        if job is None:
            return []
        found = [job.leases[index]] if index in job.leases else []
        return found + (list(job.checked.leases.get(index, {}).values()) if job.checked is not None else [])

    def heartbeat(
        self,
        now: float,
        thief: bytes,
        boot: bytes,
        job_id: bytes,
        held: Sequence[tuple[int, int, int]],
        *,
        moved_from: bytes | None = None,
        installation: bytes = b"",
    ) -> list[int]:
        """Renew the leases of (index, generation, attempt) that `thief` says it holds.

        A task that nobody holds (after our restart, or a grant that we took back too early) is leased to the thief
        as it says; one that `moved_from` holds (a steal between workers) is transferred.  Neither to members whose
        results are checked: who may choose what it computes chooses whom it is compared with.

        Returns:
            Indices that the thief should drop unless it has started them; ended tasks are stopped by an effect.
        """
        job = self.jobs.get(job_id)
        if job is None:
            return [index for index, _generation, _attempt in held]
        drop: list[int] = []
        ended: list[int] = []
        is_believed = thief == LOCAL or self.acceptance.believes(job, installation)
        least_s = lease_s_min(self.pace_s)
        lease_s = inf if thief == LOCAL else max(least_s, LEASE_BATCH_FACTOR * (job.task_s or 0.0))
        known = self.thieves.get(thief)
        depth = ceil(len(held) / (known[0].slots if known is not None else 1))
        for index, generation, attempt in held:
            lease = job.leases.get(index)
            if self.acceptance.heartbeat(now, job, thief, boot, lease_s, index):
                continue
            if not job.ledger.is_open(index, generation):
                if lease is None or lease.thief != thief:
                    ended.append(index)
                # Else it was started again and is on its way to the thief anew, which drops the former by itself.
                continue
            if (lease is None or lease.thief != thief) and not is_believed:
                drop.append(index)
                if lease is not None and lease.thief == moved_from:
                    self._lose(now, job, index, "its node gave it to a member")
            elif lease is None and job.checked is not None and index in job.checked.held:
                drop.append(index)
            elif lease is None:
                job.leases[index] = Lease(thief, boot, attempt, now + lease_s, now, depth, is_found=True)
                job.attempts[index] = max(job.attempts.get(index, 0), attempt)
                job.share(thief)[0] += 1
            elif lease.thief == thief:
                lease.expires, lease.heard = now + lease_s, now
                lease.boot = boot
            elif lease.thief == moved_from and lease.attempt == attempt:
                self._release(job, index)
                job.leases[index] = Lease(thief, boot, attempt, now + lease_s, now, depth, is_found=True)
                job.share(thief)[0] += 1
            else:
                drop.append(index)
                for former in job.former.get(index, ()):
                    if former.thief == thief:
                        former.heard = now
        if ended:
            self._effects.stops.append((thief, job_id, ended, True))
        return drop

    def returned(self, now: float, thief: bytes, job_id: bytes, indices: Sequence[int]) -> None:
        """A holder hands back tasks that it has not started (it leaves, or we asked)."""
        job = self.jobs.get(job_id)
        if job is None:
            return
        for index in reversed(indices):
            if self.acceptance.returned(now, job, index, thief):
                continue
            lease = job.leases.get(index)
            if lease is None or lease.thief != thief:
                self._forget_former(job, index, thief)
                continue
            self._release(job, index)
            job.attempts[index] = max(0, job.attempts.get(index, 1) - 1)
            self._requeue(job, index)

    def peer_lost(self, now: float, thief: bytes, *, boot: bytes | None = None) -> int:
        """End the leases of a node that is gone, or of its earlier life when `boot` is its new one.

        Returns:
            How many tasks went back to the head of their queues.
        """
        returned = 0
        for job in self.jobs.values():
            lost = [
                index
                for index, lease in job.leases.items()
                if lease.thief == thief and (boot is None or lease.boot != boot)
            ]
            for index in list(job.former):
                self._forget_former(job, index, thief)
            for index in reversed(lost):
                self._lose(now, job, index, "its node is gone")
            returned += len(lost) + self.acceptance.peer_lost(now, job, thief, boot)
        if boot is None:
            self.thieves.pop(thief, None)
        return returned

    @staticmethod
    def _forget_former(job: OwnedJob, index: int, thief: bytes) -> None:
        """A node that had a task before does not go on with it."""
        if index in job.former:
            job.former[index] = tuple(lease for lease in job.former[index] if lease.thief != thief)

    def _lose(self, now: float, job: OwnedJob, index: int, why: str) -> None:
        lease = self._release(job, index)
        if lease is not None:
            job.tell(now, index, f"attempt {lease.attempt} lost: {why}")
            self._note_lost(job, index, lease, why)
        if self._is_spent(job, index):
            self._fail(job, index, None, lease.thief if lease else LOCAL, f"given up after {ATTEMPTS_MAX} attempts")
        else:
            self._requeue(job, index)

    def _is_spent(self, job: OwnedJob, index: int) -> bool:
        """Whether a task has had as many attempts as it may since it got on last."""
        return job.attempts.get(index, 0) - self.checkpoints.attempt(job.envelope.job_id, index) >= ATTEMPTS_MAX

    # --- checkpoints ----------------------------------------------------------------------------------

    def may_save(self, thief: bytes, installation: bytes, job_id: bytes, index: int, saved: Saved) -> bool:
        """Whether a node has the lease of this attempt, so that what it saved is taken.

        Only of trusted nodes: who goes on from a cookie believes it, and checking copies begin from scratch.
        """
        job = self.jobs.get(job_id)
        lease = None if job is None else job.leases.get(index)
        if job is None or lease is None or not job.ledger.is_open(index, saved.generation):
            return False
        is_holder = lease.thief == thief and lease.attempt == saved.attempt
        return is_holder and (thief == LOCAL or self.is_trusted(installation))

    def is_trusted(self, installation: bytes) -> bool:
        return self.acceptance.level_of(installation) is Level.TRUSTED

    def save(self, thief: bytes, installation: bytes, job_id: bytes, index: int, saved: Saved) -> bool:
        """Keep what an attempt has saved for the next one; False: it does not have the lease, or there is no room."""
        if not self.may_save(thief, installation, job_id, index, saved):
            return False
        lease = self.jobs[job_id].leases[index]
        before = self.checkpoints.get(job_id, index, saved.generation)
        known = before.by if before is not None and (lease.is_resumed or lease.has_saved) else ()
        by = tuple(dict.fromkeys([*known, *([installation] if thief != LOCAL else ())]))
        if not self.checkpoints.keep(job_id, index, replace(saved, by=by)):
            return False
        lease.has_saved = True
        return True

    def _judge_saved(self, job: OwnedJob, index: int, lease: Lease, outcome: Outcome) -> bool:
        """Drop what was saved where it has led to a bad end; True when that end is not the task's fault."""
        job_id, generation = job.envelope.job_id, job.ledger.generation(index)
        has_failed = outcome.status in (OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT)
        if lease.is_resumed and (has_failed or (outcome.status is OutcomeStatus.DIED and not lease.has_saved)):
            self.checkpoints.begin_from_scratch(job_id, index, generation)
            return has_failed and outcome.cause != FAILS_ALWAYS
        if has_failed:
            self.checkpoints.drop(job_id, index)
        return False
