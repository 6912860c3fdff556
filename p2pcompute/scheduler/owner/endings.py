"""How a task ends, and with the last one its job; what has to be done about it.

Every way out of the state "open" is in here, and the way back to "ready" from a lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Final

from p2pcompute.host.runs import Outcome
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import Effects, Lease, OwnedJob, TaskEnd
from p2pcompute.scheduler.checkpoints import Checkpoints
from p2pcompute.scheduler.fairness import FairOrder
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.printed import LostAttempt
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.terms import HaltWhen, HaltWhy

DURATIONS_MIN: Final = 10
"""The mean duration of an owner's job is that of so many ends, and of one more for each node that takes part: in a
large group the last ten come within a tenth of a second, and say little."""
TASK_S_MIN = 2e-5
"""Shortest duration assumed of a task: keeps batches finite."""
DEADLINE = "deadline"
"""Why a job was stopped whose time was over."""


class Endings:
    """The books of all jobs of one owner."""

    def __init__(self, acceptance: Acceptance | None = None) -> None:
        """Args:
        acceptance: decides whose results are believed; None: everybody's.
        """
        self.acceptance = acceptance or Acceptance()
        self.jobs: dict[bytes, OwnedJob] = {}
        self.order = FairOrder()
        """Unfinished jobs."""
        self.checkpoints = Checkpoints()
        self._preferring: dict[bytes, None] = {}
        """Jobs that prefer some nodes."""
        self._effects = Effects()

    @property
    def has_effects(self) -> bool:
        """Whether `take_effects` would return anything."""
        effects = self._effects
        return bool(
            effects.facts
            or effects.ends
            or effects.stops
            or effects.completed
            or effects.banned
            or effects.wanted
            or effects.lost
        )

    def take_effects(self) -> Effects:
        """Return what has to be done since the last call."""
        effects, self._effects = self._effects, Effects()
        return effects

    # --- tasks ----------------------------------------------------------------------------------------

    def _release(self, job: OwnedJob, index: int) -> Lease | None:
        lease = job.leases.pop(index, None)
        if lease is not None:
            job.share(lease.thief)[0] -= 1
            self.order.charge(job.envelope.job_id, -lease.charged_s)
        return lease

    def _note_lost(self, job: OwnedJob, index: int, lease: Lease, why: str, outcome: Outcome | None = None) -> None:
        self._effects.lost.append(
            LostAttempt(
                job_id=job.envelope.job_id,
                index=index,
                generation=job.ledger.generation(index),
                attempt=lease.attempt,
                thief=lease.thief,
                why=why,
                outcome=outcome,
            )
        )

    def _requeue(self, job: OwnedJob, index: int, *, is_last: bool = False) -> None:
        """Put an open task without a lease at the head (or the end), unless it was to be cancelled."""
        if job.checked is not None and self.acceptance.keeps(job, index):
            return
        if job.is_own and (job.is_cancelled or job.halted or index in job.cancelling):
            self.cancel_one(job, index)
        else:
            job.ready.append(index) if is_last else job.ready.appendleft(index)

    def _accept(self, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, digest: bytes) -> None:
        generation = job.ledger.generation(index)
        state = TaskState.DONE if job.is_own else TaskState.CLAIMED
        if job.is_own:
            job.ledger.accept(index, generation)
        else:
            job.ledger.claim(index, generation, is_good=True)
        job.share(thief)[1] += 1
        if index not in job.accepted_digests:
            self._note_duration(job, outcome, thief)
        self._fact(job, FactKind.ACCEPT, [index, generation, digest])
        self._ended(job, index, state, outcome, thief)

    @staticmethod
    def _note_duration(job: OwnedJob, outcome: Outcome, thief: bytes) -> None:
        runtime_s = max(outcome.runtime_s, TASK_S_MIN)
        job.timed_count += 1
        weight = 1 / min(job.timed_count, DURATIONS_MIN + len(job.by_thief))
        job.task_s = (job.task_s or 0.0) + weight * (runtime_s - (job.task_s or 0.0))
        job.slowness.note(thief, runtime_s, job.task_s)

    def _fail(self, job: OwnedJob, index: int, outcome: Outcome | None, thief: bytes, why: str) -> None:
        generation = job.ledger.generation(index)
        reason = why or (outcome.error.strip()[-500:] if outcome else "") or "failed"
        state = TaskState.FAILED if job.is_own else TaskState.CLAIMED_FAILED
        if job.is_own:
            job.ledger.fail(index, generation, reason)
        else:
            job.ledger.claim(index, generation, is_good=False)
        job.share(thief)[2] += 1
        self._fact(job, FactKind.FAIL, [index, generation, reason])
        self._ended(job, index, state, outcome, thief)

    def cancel_one(self, job: OwnedJob, index: int) -> None:
        """End one open task as cancelled."""
        generation = job.ledger.generation(index)
        job.ledger.cancel(index, generation)
        self._fact(job, FactKind.CANCEL, [index, generation])
        self._ended(job, index, TaskState.CANCELLED, None, LOCAL)

    def _ended(self, job: OwnedJob, index: int, state: TaskState, outcome: Outcome | None, thief: bytes) -> None:
        self._release(job, index)
        if state is not TaskState.DONE and job.checked is not None:
            self.acceptance.ended_otherwise(job, index)
        for lease in job.former.pop(index, ()):
            if lease.thief != thief:
                self._effects.stops.append((lease.thief, job.envelope.job_id, [index], True))
        payload = job.payloads.pop(index, b"")
        job.near.pop(index, None)
        self.checkpoints.ended(job.envelope.job_id, index)
        job.avoid.pop(index, None)
        job.wrong_for.pop(index, None)
        job.cancelling.pop(index, None)
        job.deaths.pop(index, None)
        # Those of members, who are told that each is the first, are known by their failures only.
        tried = job.failures.pop(index, 0) + (state is TaskState.DONE)
        attempts = max(job.attempts.pop(index, 0), tried)
        generation, seq = job.ledger.generation(index), len(job.ledger.finished)
        self._effects.ends.append(
            TaskEnd(job.envelope.job_id, index, generation, state, outcome, thief, attempts, seq, payload)
        )
        if state is not TaskState.CANCELLED:
            self._check_halt(job)
        self._check_complete(job)

    # --- jobs -----------------------------------------------------------------------------------------

    def _check_complete(self, job: OwnedJob) -> None:
        if job.ledger.is_complete:
            job_id = job.envelope.job_id
            job.has_ended = True
            if job_id in self.order:
                self.order.discard(job_id)
                self._effects.completed.append(job_id)

    def _check_halt(self, job: OwnedJob) -> None:
        halt, counts = job.halt, job.ledger.counts
        if halt is None or job.halted:
            return
        done = counts[TaskState.DONE] + counts[TaskState.CLAIMED]
        failed = counts[TaskState.FAILED] + counts[TaskState.CLAIMED_FAILED]
        reached = {HaltWhy.DONE: done + failed, HaltWhy.SUCCESS: done, HaltWhy.FAIL: failed}[halt.why]
        if halt.is_percent:
            if job.ledger.total is None:
                return
            needed = max(1, ceil(job.ledger.total * halt.count / 100))
        else:
            needed = halt.count
        if reached >= needed:
            self._stop(job, str(halt), kill=halt.when is HaltWhen.NOW)

    def _stop(self, job: OwnedJob, why: str, *, kill: bool) -> None:
        """End a job early."""
        job.halted = why
        if job.is_own:
            self._cancel_indices(job, job.ledger.open_indices(), kill=kill)
        else:
            self._rest(job, kill=kill)

    def _rest(self, job: OwnedJob, *, kill: bool) -> None:
        """Give nothing more out of another node's job: only its owner, when it is back, may cancel what is open."""
        job_id = job.envelope.job_id
        self._preferring.pop(job_id, None)
        self.order.discard(job_id)
        by_thief: dict[bytes, list[int]] = {}
        for index, lease in job.leases.items():
            by_thief.setdefault(lease.thief, []).append(index)
        self._effects.stops.extend((thief, job_id, held, kill) for thief, held in by_thief.items())

    def _cancel_indices(self, job: OwnedJob, indices: Sequence[int] | range, *, kill: bool) -> int:
        cancelled = 0
        by_thief: dict[bytes, list[int]] = {}
        for index in indices:
            if index >= job.ledger.size or job.ledger.state(index) is not TaskState.OPEN:
                continue
            lease = job.leases.get(index)
            if lease is not None:
                by_thief.setdefault(lease.thief, []).append(index)
            if not kill and (lease is not None or job.is_unheard):
                job.cancelling[index] = None
                continue
            self.cancel_one(job, index)
            cancelled += 1
        for thief, held in by_thief.items():
            self._effects.stops.append((thief, job.envelope.job_id, held, kill))
        return cancelled

    # --- what has to be done --------------------------------------------------------------------------

    def _fact(self, job: OwnedJob, kind: FactKind, entry: Any) -> None:
        if not job.is_own:
            return
        facts = self._effects.facts
        if kind in (FactKind.HELD, FactKind.CHECKED):  # their place does not matter: few facts, few signatures
            for known in facts:
                if known[0] == job.envelope.job_id and known[1] is kind:
                    known[2].append(entry)
                    return
            facts.insert(0, (job.envelope.job_id, kind, [entry]))
            return
        if facts and facts[-1][0] == job.envelope.job_id and facts[-1][1] is kind:
            facts[-1][2].append(entry)
        else:
            facts.append((job.envelope.job_id, kind, [entry]))

    def note(self, job: OwnedJob, kind: FactKind, entry: list[Any]) -> None:
        """Journal what was decided."""
        self._fact(job, kind, entry)

    def stop(self, thief: bytes, job: OwnedJob, indices: list[int], *, kill: bool) -> None:
        """Have a node drop tasks."""
        self._effects.stops.append((thief, job.envelope.job_id, indices, kill))

    def load(self, job: OwnedJob, index: int) -> None:
        """The payload of a task that has ended is wanted again."""
        self._effects.wanted.append((job.envelope.job_id, index))

    def banned(self, installation: bytes, why: str) -> None:
        """Somebody gets no more work."""
        self._effects.banned.append((installation, why))

    def settled_checked(self, job: OwnedJob, index: int, digests: list[bytes]) -> None:
        """What was claimed of a task need not be kept any longer."""
        self._effects.settled.append((job.envelope.job_id, index, digests))
