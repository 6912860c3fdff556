"""What submitters want: jobs with tasks, cancelled or started again; and how a job goes on from an earlier life.

A job of this node is rebuilt from its journal (`recover`), one of another node, which is kept here, is taken over
(`adopt`) and given back (`release`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import OwnedJob
from p2pcompute.scheduler.fairness import Standing
from p2pcompute.scheduler.ledger import GENERATION_MAX, FactKind, TaskState
from p2pcompute.scheduler.owner.endings import Endings
from p2pcompute.scheduler.stealing import LOCAL, Fit
from p2pcompute.scheduler.terms import JobEnvelope

_SHARE_COLUMN: Final = {TaskState.DONE: 1, TaskState.FAILED: 2}
"""Where a node's ends are counted in its share of a job."""


class Jobs(Endings):
    """Adds jobs to the books, and takes them out."""

    def __init__(
        self, fit_of: Callable[[JobEnvelope], Fit | None] | None = None, acceptance: Acceptance | None = None
    ) -> None:
        """Args:
        fit_of: says where a job may run.
        acceptance: decides whose results are believed; None: everybody's.
        """
        super().__init__(acceptance)
        self._fit_of = fit_of
        self.group = b""
        """Id of the group that the thieves belong to."""
        self._unheard: dict[bytes, None] = {}
        """Jobs of earlier lives whose tasks somebody may hold who has not said so yet."""

    def add_job(self, envelope: JobEnvelope) -> OwnedJob:
        job = self.jobs.get(envelope.job_id)
        if job is None:
            fit = None if self._fit_of is None else self._fit_of(envelope)
            job = self.jobs[envelope.job_id] = OwnedJob(envelope, fit)
            if fit is not None and fit.has_preference:
                self._preferring[envelope.job_id] = None
            self.order.add(envelope.job_id, Standing.of(envelope))
        return job

    def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        """Add tasks behind those that are there; returns the first index.  The caller journals them."""
        job = self.jobs[job_id]
        first = job.ledger.size
        for index, payload in zip(job.ledger.add_tasks(first, len(payloads), job.generation), payloads, strict=True):
            job.payloads[index] = payload
            job.ready.append(index)
        if job.is_cancelled or job.halted:
            self._cancel_indices(job, range(first, job.ledger.size), kill=False)
        return first

    def seal(self, job_id: bytes) -> None:
        """Fix the number of tasks at what there is now.  The caller journals it."""
        job = self.jobs[job_id]
        job.ledger.seal(job.ledger.size)
        self._check_halt(job)
        self._check_complete(job)

    def is_confined(self, job: OwnedJob) -> bool:
        """Whether a job runs on this node alone: its terms say so, or it is of a group that the others are not in."""
        terms = job.envelope.terms
        return terms.local_only or bool(terms.group and self.group and terms.group != self.group)

    def forget_job(self, job_id: bytes) -> None:
        self._forget_open(job_id)
        self.checkpoints.forget_job(job_id)

    def _forget_open(self, job_id: bytes) -> None:
        job = self.jobs.pop(job_id, None)
        if job is not None:
            self.acceptance.forget(job)
        self._preferring.pop(job_id, None)
        self.order.discard(job_id)

    # --- cancel and retry -----------------------------------------------------------------------------

    def cancel(self, job_id: bytes, indices: Sequence[int] | None, *, kill: bool) -> int:
        """Cancel open tasks (all when None).  Without `kill`, tasks that run may finish: only those that have no
        lease end here, and holders are asked to hand back what they have not started.

        Returns:
            How many tasks were cancelled at once.
        """
        job = self.jobs[job_id]
        if indices is None:
            job.is_cancelled = True
            self._effects.facts.append((job_id, FactKind.CANCEL_ALL, []))
            indices = job.ledger.open_indices()
        return self._cancel_indices(job, indices, kill=kill)

    def retry(
        self,
        job_id: bytes,
        indices: Sequence[int],
        payloads: dict[int, bytes],
        by: Mapping[int, bytes] | None = None,
    ) -> int:
        """Start ended tasks again under a new generation; returns how many.

        Args:
            by: who ended them, where that is known: it has not any more.
        """
        job = self.jobs[job_id]
        count = 0
        for index in indices:
            if index >= job.ledger.size or job.ledger.state(index) is TaskState.OPEN:
                continue
            generation, state = job.ledger.generation(index) + 1, job.ledger.state(index)
            if generation > GENERATION_MAX or job.ledger.retry(index, generation) is None:
                continue
            if by and index in by and state in _SHARE_COLUMN:
                _uncount(job, by[index], _SHARE_COLUMN[state])
            self.acceptance.ended_otherwise(job, index)
            job.accepted_digests.pop(index, None)
            job.payloads[index] = payloads[index]
            self._fact(job, FactKind.RETRY, [index, generation])
            job.ready.append(index)
            count += 1
        if count:
            job.is_cancelled, job.halted, job.is_revived = False, "", True
            job.refusals.clear()
            job.unfit.clear()
            self.order.add(job_id, Standing.of(job.envelope))
        return count

    # --- jobs of other nodes that are kept here -------------------------------------------------------

    def adopt(
        self,
        now: float,
        job: OwnedJob,
        payloads: dict[int, bytes],
        claims: Sequence[Any],
        grants_from: float,
        *,
        begin_at: int,
        is_cancelled: bool = False,
    ) -> None:
        """Coordinate another node's job that is kept here; its open tasks are ready.

        Args:
            begin_at: the task that comes first, then those before it, and at last those behind it: other coordinators
                that are not dead but cut off go on from another one (`custody.first_task`).
            claims: [index, generation, attempt, status, …] of ends that were told: what failed before is counted.
            grants_from: until when holders of leases that we do not know may say so.
            is_cancelled: its owner has given it up, and what is open was running then: it may end, and no more.
        """
        ledger = job.ledger
        job.payloads = {i: payload for i, payload in payloads.items() if ledger.state(i) is TaskState.OPEN}
        job.ready = deque(sorted(job.payloads, key=lambda index: (index > begin_at, -index)))
        self._count_claims(job, claims)
        for index in self.checkpoints.tasks(job.envelope.job_id):
            reached = self.checkpoints.attempt(job.envelope.job_id, index)
            job.attempts[index] = max(job.attempts.get(index, 0), reached)
        job.grants_from = grants_from
        self.jobs[job.envelope.job_id] = job
        if job.fit is None and self._fit_of is not None:
            job.fit = self._fit_of(job.envelope)
        if job.fit is not None and job.fit.has_preference:
            self._preferring[job.envelope.job_id] = None
        if not ledger.is_complete:
            self.order.add(job.envelope.job_id, Standing.of(job.envelope))
        job.is_cancelled = is_cancelled
        if is_cancelled:
            self._rest(job, kill=False)
        self._check_halt(job)

    def release(self, job_id: bytes) -> None:
        """Coordinate another node's job no longer; copies of what its tasks have saved are kept."""
        job = self.jobs[job_id]
        self._forget_open(job_id)
        for index in list(job.leases):
            self._release(job, index)
        for books in (
            job.payloads,
            job.ready,
            job.attempts,
            job.failures,
            job.deaths,
            job.avoid,
            job.wrong_for,
            job.failed_in_row,
            job.unfit,
            job.refusals,
            job.former,
        ):
            books.clear()
        job.held_until, job.halted, job.is_cancelled = None, "", False

    def judge_failed(
        self, job_id: bytes, index: int, generation: int, attempts: int, outcome: Outcome | None, thief: bytes
    ) -> bool:
        """Take a custodian's word that a task has failed as often as it may; not while the task is leased here.

        Args:
            attempts: how many there were in all.
        """
        job = self.jobs[job_id]
        if not job.ledger.is_open(index, generation) or index in job.leases:
            return False
        job.attempts[index] = max(job.attempts.get(index, 0), attempts)
        self._fail(job, index, outcome, thief, "")
        return True

    # --- earlier lives --------------------------------------------------------------------------------

    def recover(
        self,
        envelope: JobEnvelope,
        facts: Sequence[tuple[int, Any]],
        outputs: Mapping[tuple[int, bytes], tuple[bytes, Outcome]] | None = None,
    ) -> OwnedJob:
        """Rebuild a job from its journal; its open tasks are ready again, but for those that members have claimed.

        Those of a job that was cancelled, or halted, ran then, and may end: their holders, and custodians who have
        taken their results, have until `settle` to say so.

        Args:
            facts: (kind, body) in the order in which they were written; an entry of CLAIMS ends in its thief.
            outputs: (index, digest) → (node, what it claims), of tasks that were not accepted.
        """
        job = self.add_job(envelope)
        claims: list[Any] = []
        held: dict[int, dict[bytes, tuple[bytes, bool]]] = {}
        void: Counter[tuple[int, int, int]] = Counter()
        for kind, body in facts:
            job.ledger.fold(kind, body)
            job.has_ended = job.has_ended or job.ledger.is_complete
            if kind == FactKind.TASKS:
                job.payloads.update(enumerate(body[1], body[0]))
                job.generation = max([job.generation, *body[2:]])
            elif kind == FactKind.CLAIMS:
                claims += body
            elif kind == FactKind.VOID:
                void.update((index, generation, attempt) for index, generation, attempt in body)
            elif kind == FactKind.HELD:
                for index, _generation, _attempt, _node, installation, digest, is_blind in body:
                    held.setdefault(index, {})[installation] = (digest, is_blind)
            elif kind == FactKind.CHECKED:
                job.accepted_digests.update((index, digest) for index, _generation, digest, _why in body)
                job.accepted_why.update((index, str(why)) for index, _generation, _digest, why in body)
            elif kind == FactKind.REVOKE:
                job.revoked_count += len(body)
                job.revoked_late += len(body) if job.has_ended else 0
                for index, _generation, _why in body:
                    job.accepted_digests.pop(index, None)
            elif kind == FactKind.CANCEL_ALL:
                job.is_cancelled = True
            elif kind == FactKind.RETRY:
                for index, _generation in body:
                    held.pop(index, None)
                    job.accepted_digests.pop(index, None)
                job.is_cancelled, job.is_revived = False, True
        # Workers may hold tasks whose addition was lost with our former life: what takes their indices is not theirs.
        job.generation = min(job.generation + 1, GENERATION_MAX // 2)
        claims = _valid(claims, void) if void else claims
        self._recover_shares(job, facts, claims)
        self._count_claims(job, claims)
        self.acceptance.recover(job, held, outputs or {})
        open_now = set(job.ledger.open_indices())
        job.ready = deque(i for i in job.ledger.open_indices() if job.checked is None or i not in job.checked.held)
        for index in [index for index in job.payloads if index not in open_now]:
            del job.payloads[index]
        if open_now:
            job.is_unheard, self._unheard[envelope.job_id] = True, None
        if job.is_cancelled:
            self._cancel_indices(job, job.ledger.open_indices(), kill=False)
        self._check_halt(job)
        self._check_complete(job)
        return job

    def settle(self, now: float) -> None:
        """Cancel what is to be cancelled of jobs of earlier lives, and which nobody has said that he holds in time.

        For the time from which tasks are granted: what is cancelled here must not be.
        """
        for job_id in [job_id for job_id in self._unheard if self._is_heard(now, job_id)]:
            del self._unheard[job_id]
            job = self.jobs.get(job_id)
            if job is not None:
                job.is_unheard = False
                for index in [index for index in job.cancelling if index not in job.leases]:
                    self.cancel_one(job, index)

    def _is_heard(self, now: float, job_id: bytes) -> bool:
        return job_id not in self.jobs or now >= self.jobs[job_id].grants_from

    @staticmethod
    def _count_claims(job: OwnedJob, claims: Sequence[Any]) -> None:
        """Count attempts and failures of open tasks."""
        for index, generation, attempt, status, _digest, *thief in claims:
            if not job.ledger.is_open(index, generation):
                continue
            job.attempts[index] = max(job.attempts.get(index, 0), attempt)
            if status == OutcomeStatus.DIED:
                # Claims do not say what died; many deaths of nodes have other causes, so this is the milder guess.
                job.deaths.setdefault(index, {}).update(((key, attempt), True) for key in thief)
            if status in (OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT):
                job.failures[index] = job.failures.get(index, 0) + 1

    def _recover_shares(self, job: OwnedJob, facts: Sequence[tuple[int, Any]], claims: Sequence[Any]) -> None:
        """Count again what each node has done, and the retries.  Good results of our own worker are not claimed."""
        good: dict[tuple[int, int, bytes], bytes] = {}
        bad: dict[tuple[int, int], bytes] = {}
        for index, generation, _attempt, status, digest, thief in claims:
            if status == OutcomeStatus.OK:
                good.setdefault((index, generation, digest), thief)
            elif status not in (OutcomeStatus.NOT_RUN, OutcomeStatus.KILLED):
                bad[index, generation] = thief
                job.retried += 1
        ended: dict[int, tuple[bytes, int]] = {}
        for kind, body in facts:
            if kind == FactKind.ACCEPT:
                for index, generation, digest in body:
                    ended[index] = (good.get((index, generation, digest), LOCAL), 1)
                    job.share(ended[index][0])[1] += 1
            elif kind == FactKind.FAIL:
                for index, generation, _reason in body:
                    ended[index] = (bad.get((index, generation), LOCAL), 2)
                    job.share(ended[index][0])[2] += 1
                    job.retried -= (index, generation) in bad
            elif kind == FactKind.RETRY:
                for index, _generation in body:
                    if index in ended:
                        _uncount(job, *ended.pop(index))


def _uncount(job: OwnedJob, thief: bytes, column: int) -> None:
    """A task that a node has ended is to run again: the nodes' counts are those of the job, in sum."""
    share = job.share(thief)
    share[column] = max(0, share[column] - 1)


def _valid(claims: Sequence[Any], void: Counter[tuple[int, int, int]]) -> list[Any]:
    """Return the claims without as many bad ones of each attempt as did not count."""
    valid = []
    left = void.copy()
    for claim in reversed(claims):
        attempt = (claim[0], claim[1], claim[2])
        if claim[3] != OutcomeStatus.OK and left[attempt] > 0:
            left[attempt] -= 1
        else:
            valid.append(claim)
    valid.reverse()
    return valid
