"""The scheduler's rule: who gets which tasks, and how many.

whose turn     jobs in the order of `fairness`: slot time had, by weight; priorities inside a submitter.  Jobs that
               prefer some nodes wait for these for a second (`choose_preferred`).
who may        the job's own conditions (`_may_run`), and whether this node has failed what others did well
               (`_is_broken`).
how many       a task per slot until it is known how long they take, then a second of work, at most half of what is
               ready (`batch_size`).
which          the first that are ready, those before others whose inputs the node has; not those that failed there
               while there is another node for them (`_pick_ready`).
nothing left   an idle node is given a task that takes too long elsewhere (`copy`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from p2pcompute.limits import (
    BATCH_TARGET_S,
    GRANT_BYTES_MAX,
    GRANT_TASKS_MAX,
    HEARTBEAT_FRACTION,
    THIEVES_MAX,
)
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.books import Grant, Lease, OwnedJob
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner.leases import Leases
from p2pcompute.scheduler.stealing import LOCAL, Fit, Thief, lease_s_min
from p2pcompute.scheduler.stragglers import (
    HEARTBEATS_MISSED,
    HOLDERS_MAX,
    SLOWNESS_MIN,
    TRIED_MAX,
    Run,
    Straggler,
    straggler,
)
from p2pcompute.scheduler.terms import JobEnvelope

AVOID_S = 30.0
"""How long a task waits at most for another node before it may run again on one that it should leave."""
PREFER_S = 1.0
"""How long a new job waits for the nodes that it prefers before others get its tasks."""
NEAR_MAX = 64
"""Ready tasks among which those are looked for whose inputs a thief has."""
SKIP_MAX = 64
"""Tasks passed over in one choice because they failed on this thief."""
LOCAL_PARTS_MAX = 64
"""With several jobs, this node's own worker gets a batch in so many parts at most, each of another job."""
BREAKER_COUNT = 3
"""Tasks in a row that failed on a node and ended well on others, after which it is given little."""
BREAKER_S_MIN = 10.0
BREAKER_S_MAX = 600.0
"""Pause before such a node is tried with one more task: doubled up to this, until a task ends well there."""


@dataclass(slots=True)
class _Breaker:
    """What speaks against a node."""

    count: int = 0
    until: float = 0.0
    pause_s: float = BREAKER_S_MIN


class Rule(Leases):
    """Decides who gets what."""

    def __init__(
        self, fit_of: Callable[[JobEnvelope], Fit | None] | None = None, acceptance: Acceptance | None = None
    ) -> None:
        super().__init__(fit_of, acceptance)
        self._overdue: dict[bytes, list[Straggler]] = {}
        """Tasks that take too long, of jobs with nothing else to give; as of the last `tick`."""
        self._overdue_for: dict[bytes, float] = {}
        """The slowness of the slowest node that any of them may be for."""
        self._breakers: dict[bytes, _Breaker] = {}
        """By installation."""
        self.copies_count = 0
        """Tasks that were given to a second node because they took too long."""
        self.broken_count = 0
        """Nodes that were found to fail what others do well."""

    def choose(self, now: float, thief: Thief) -> Grant | None:
        """Return what this thief gets now: tasks of the first job in the order of `fairness` that has some for it, or
        None.

        The batch is about BATCH_TARGET_S of work for the thief, the first one a task per slot, and at most half of what
        is ready, so that late thieves find something.  Tasks that failed on this thief go to others while there are
        any.

        With very many workers batches grow with their number, and are of different lengths, so that the owner's message
        rate stays bounded and even; who comes when all turns of this moment are taken waits for one (`pause_s`).
        """
        self.remember(now, thief)
        if self._is_broken(now, thief) or self._must_wait(now, thief):
            return None
        for job_id in self.order.in_order(self._has_ready, first=thief.installation):
            job = self.jobs[job_id]
            if job_id in self._preferring or not self._may_run(now, job, thief):
                continue
            chosen = self._pick(now, job, thief, self.batch_size(job, thief))
            if chosen:
                return self._grant(now, job, thief, chosen)
        for job_id in list(self.acceptance.ended):
            job = self.jobs[job_id]
            chosen = self._pick(now, job, thief, 1) if self._may_run(now, job, thief) else []
            if chosen:
                return self._grant(now, job, thief, chosen)
        return None

    def batch_size(self, job: OwnedJob, thief: Thief) -> int:
        """Return how many tasks of `job` one grant to `thief` holds: at least 1."""
        slots = thief.slots if job.fit is None else max(1, thief.slots // job.fit.slots(thief.key, thief.slots))
        size, want, batch_s = slots, max(1, thief.want), BATCH_TARGET_S
        available = job.ready_count + self.acceptance.extra_count(job)
        if self.crowd > 1:  # the thief does not know how many there are; not all may come back at once
            spread = self.crowd * (0.5 + int.from_bytes(thief.key[-2:]) / 65536)
            batch_s, want = batch_s * spread, max(want, round(want * spread))
        # Those that end first are the short ones: what they took says little until half of the slots have ended one.
        if job.task_s is not None and 2 * job.timed_count >= len(job.by_thief) * slots:
            tasks = batch_s * slots / (job.task_s * job.slowness.of(thief.key))
            size = max(slots, ceil(tasks) if self.crowd > 1 else int(tasks))
        if thief.installation in self._breakers and self._breakers[thief.installation].until:
            size = 1
        if thief.is_local:  # small grants cost nothing here, and the turn comes round the sooner
            size = max(1, size // min(len(self.order) or 1, LOCAL_PARTS_MAX))
        size = min(size, want, GRANT_TASKS_MAX)
        if len(self.thieves) > 1 and job.held_until is None:
            size = min(size, ceil(available / 2))
        slots_max = job.envelope.terms.slots_max
        if slots_max is not None:
            size = min(size, slots_max - len(job.leases))
        return min(size, available)

    @property
    def has_ready(self) -> bool:
        """Whether any job has a task for whoever comes."""
        return any(self._has_ready(job_id) for job_id in self.order) or bool(self.acceptance.ended)

    def _has_ready(self, job_id: bytes) -> bool:
        job = self.jobs[job_id]
        return job.ready_count > 0 or self.acceptance.has_extra(job)

    def demands(self) -> list[tuple[Fit | None, int]]:
        """Return, of each job with tasks that are ready, take too long or wait for checks, what it asks of nodes (None:
        nothing) and how many tasks those are."""
        counts = {
            job_id: max(0, job.ready_count) + self.acceptance.waiting_count(job)
            for job_id in self.order
            for job in (self.jobs[job_id],)
        }
        for job_id, stragglers in self._overdue.items():
            counts[job_id] = counts.get(job_id, 0) + len(stragglers)
        return [(self.jobs[job_id].fit, count) for job_id, count in counts.items() if count and job_id in self.jobs]

    # --- who may --------------------------------------------------------------------------------------

    def _must_wait(self, now: float, thief: Thief) -> bool:
        """Whether it is not a node's turn yet, because there is a crowd."""
        return not thief.is_local and self.pause_s(now) > 0

    def _may_run(self, now: float, job: OwnedJob, thief: Thief) -> bool:
        terms = job.envelope.terms
        if now < job.grants_from:
            return False
        if thief.only_own and job.envelope.submitter != thief.installation:
            return False
        if job.unfit and job.unfit.get(thief.key, now) > now:
            return False
        if self.is_confined(job) and not thief.is_local:
            return False
        if terms.python is not None and terms.python != thief.python:
            return False
        if not thief.is_local and not self.acceptance.may_run(job, thief.installation):
            return False
        return job.fit is None or job.fit.may_have(thief.key, thief.installation)

    def _believes(self, job: OwnedJob, thief: Thief) -> bool:
        return thief.is_local or self.acceptance.believes(job, thief.installation)

    def _is_avoided(self, now: float, job: OwnedJob, index: int, thief: Thief) -> bool:
        is_for_trusted = self.acceptance.is_for_trusted(now, job, index)
        if is_for_trusted and not self._believes(job, thief):
            return True
        if index in job.wrong_for and self._is_wrong(thief, job.wrong_for[index]):
            return self.has_right_one(now, job, index)
        avoided = job.avoid.get(index)
        if avoided is None or thief.installation not in avoided[0] or now >= avoided[1]:
            return False
        return self.has_other(now, job, avoided[0], are_believed=is_for_trusted)

    def has_other(self, now: float, job: OwnedJob, nodes: Collection[bytes], *, are_believed: bool = False) -> bool:
        """Whether a node besides these (installations) may run tasks of a job, and asked for work lately or is at work
        for it; with `are_believed` one whose word is believed."""
        return any(
            other.installation not in nodes
            and (now - seen < AVOID_S * 2 or job.by_thief.get(other.key, (0,))[0] > 0)
            and self._may_run(now, job, other)
            and (not are_believed or self._believes(job, other))
            for other, seen in self.thieves.values()
        )

    def _is_wrong(self, thief: Thief, wrong: Collection[str | bytes]) -> bool:
        """Whether a task would fail on a node as it has on others like it, or there."""
        return thief.installation in wrong or self.machine_of(thief.key) in wrong

    def may_judge(self, now: float, job: OwnedJob, thief: Thief) -> bool:
        """Whether a node that is believed can decide what others say of a job: it may run it."""
        return self._may_run(now, job, thief)

    def has_right_one(self, now: float, job: OwnedJob, index: int, *, are_believed: bool = False) -> bool:
        """Whether a node may run a task on which it need not fail as it has on others."""
        wrong = job.wrong_for[index]
        like = {one.installation for one, _seen in self.thieves.values() if self._is_wrong(one, wrong)}
        return self.has_other(now, job, like, are_believed=are_believed)

    # --- which ----------------------------------------------------------------------------------------

    def _pick(self, now: float, job: OwnedJob, thief: Thief, count: int) -> list[int]:
        if not self._believes(job, thief):
            return self.acceptance.pick(now, job, thief, count, lambda most: self._pick_ready(now, job, thief, most))
        if job.checked is None:
            return self._pick_ready(now, job, thief, count)
        return (
            self.acceptance.pick_disputed(job, count)
            or self._pick_ready(now, job, thief, count)
            or self.acceptance.pick_claimed(job, thief, count)
        )

    def _pick_ready(self, now: float, job: OwnedJob, thief: Thief, count: int) -> list[int]:
        chosen: dict[int, None] = {}
        skipped: dict[int, None] = {}
        total_bytes = 0
        if job.near:
            self._near_first(job, thief)
        while job.ready and len(chosen) < count and len(skipped) < SKIP_MAX:
            index = job.ready.popleft()
            if index in chosen or index in job.leases or job.ledger.state(index) is not TaskState.OPEN:
                continue
            if job.checked is not None and index in job.checked.held:
                continue
            is_held_there = job.checked is not None and job.checked.is_lent_to(index, thief.key)  # it takes too long
            if is_held_there or self._is_avoided(now, job, index, thief):
                skipped[index] = None
                continue
            saved = self.checkpoints.get(job.envelope.job_id, index, job.ledger.generation(index))
            total_bytes += len(job.payloads[index]) + (0 if saved is None else len(saved.cookie))
            if chosen and total_bytes > GRANT_BYTES_MAX:
                job.ready.appendleft(index)
                break
            chosen[index] = None
        job.ready.extendleft(reversed(skipped))
        return list(chosen)

    @staticmethod
    def _near_first(job: OwnedJob, thief: Thief) -> None:
        """Among the next ready tasks put those first whose inputs the thief has, and those last whose inputs another
        node has.  Nothing waits for a node: who is here works."""
        next_ones = [job.ready.popleft() for _ in range(min(NEAR_MAX, len(job.ready)))]
        next_ones.sort(key=lambda index: 1 if (key := job.near.get(index)) is None else 0 if key == thief.key else 2)
        job.ready.extendleft(reversed(next_ones))

    # --- jobs that prefer some nodes ------------------------------------------------------------------

    @property
    def has_preferring(self) -> bool:
        """Whether any job here prefers some nodes."""
        return bool(self._preferring)

    def is_holding(self, now: float) -> bool:
        """Whether a job waits for the nodes that it prefers."""
        jobs = (self.jobs[job_id] for job_id in self._preferring)
        return any(job.ready_count > 0 and job.held_until is not None and now < job.held_until for job in jobs)

    def choose_preferred(self, now: float, thieves: Sequence[Thief], others: Sequence[bytes]) -> Iterator[Grant]:
        """Yield what the thieves get of jobs that prefer some nodes, the most preferred thief of each job first.

        For PREFER_S after its first task became ready a job waits for its most preferred node, and for those of which
        is not known yet whether they are.

        Args:
            thieves: nodes that wait for work, this one included when it has room.
            others: further nodes that could ask.
        """
        served: dict[bytes, None] = {}
        for job_id in list(self._preferring):
            job = self.jobs[job_id]
            if not self._has_ready(job_id) or job.fit is None:
                continue
            if job.held_until is None:
                job.held_until = now + PREFER_S
            able = [
                (job.fit.rank(thief.key), thief)
                for thief in thieves
                if thief.key not in served and self._may_run(now, job, thief) and self._is_its_turn(now, job_id, thief)
            ]
            # What is computed again as a check waits for nobody: the most preferred node has perhaps computed it.
            is_holding = job.ready_count > 0 and now < job.held_until and not self.is_confined(job)
            least = self._best_rank(job.fit, [thief.key for _rank, thief in able], others) if is_holding else -inf
            for rank, thief in sorted(able, key=lambda pair: -(pair[0] or 0.0)):
                if self._must_wait(now, thief):
                    continue
                chosen = self._pick(now, job, thief, self.batch_size(job, thief)) if (rank or 0.0) >= least else []
                if chosen:
                    served[thief.key] = None
                    yield self._grant(now, job, thief, chosen)

    def _is_its_turn(self, now: float, job_id: bytes, thief: Thief) -> bool:
        """Whether no job that takes any node comes before this one that prefers some."""
        for other in self.order.in_order(self._has_ready, first=thief.installation):
            if other == job_id:
                return True
            if other not in self._preferring and self._may_run(now, self.jobs[other], thief):
                return False
        return True

    @staticmethod
    def _best_rank(fit: Fit, able: Sequence[bytes], others: Sequence[bytes]) -> float:
        """Return the rank of the most preferred node; infinity while one that could be is not known."""
        best = -inf
        for key in [*able, *others]:
            rank = fit.rank(key)
            if rank is None and (key == LOCAL or fit.may_have(key, key)):
                return inf
            if rank is not None and (key in able or fit.may_have(key, key)):
                best = max(best, rank)
        return best

    # --- tasks that take too long ---------------------------------------------------------------------

    def copy(self, now: float, thief: Thief) -> Grant | None:
        """Return what an idle thief gets when there is nothing to choose: a task that takes too long on another node.

        That node goes on with it if it has begun; the first good result counts.  So one that keeps its leases for ever
        keeps nothing from others.
        """
        if not thief.is_idle or self._is_broken(now, thief) or self._must_wait(now, thief):
            return None
        for job_id, stragglers in list(self._overdue.items()):
            job = self.jobs.get(job_id)
            if job is None or (slowness := job.slowness.of(thief.key)) > self._overdue_for[job_id]:
                continue  # most often: hundreds that wait are no faster than those that have the tasks
            if not self._may_run(now, job, thief) or not self._believes(job, thief):
                continue
            for one in stragglers[:TRIED_MAX]:
                index, lease = one.index, job.leases.get(one.index)
                if lease is None or index not in job.payloads or index in job.cancelling or not one.is_for(slowness):
                    continue
                former = job.former.get(index, ())
                if any(had.thief == thief.key for had in (lease, *former)) or self._is_avoided(now, job, index, thief):
                    continue
                job.tell(now, index, f"attempt {lease.attempt} takes too long on {lease.thief.hex()[:8]}")
                self._effects.stops.append((lease.thief, job_id, [index], False))
                self._release(job, index)
                job.former[index] = (*former, lease)[-HOLDERS_MAX:]
                stragglers.remove(one)
                self.copies_count += 1
                return self._grant(now, job, thief, [index])
        return None

    @property
    def has_overdue(self) -> bool:
        """Whether a task takes so long that an idle node may be given it too."""
        return bool(self._overdue)

    def _find_overdue(self, now: float) -> None:
        self._overdue, self._overdue_for = {}, {}
        for job_id, job in self.jobs.items():
            if job.halted and not job.is_own:
                continue
            if job.ready_count <= 0 and job.leases and job.envelope.terms.slots_max is None:
                found = [self._straggler(now, job, index, lease) for index, lease in job.leases.items()]
                # Those first that would end last, of several that were given together those that were named last: the
                # others may have begun.  What nobody could end much sooner is left out.
                found = [one for one in reversed(found) if one.is_for(SLOWNESS_MIN)]
                if found:
                    self._overdue[job_id] = sorted(found, key=lambda one: (not one.is_late, -one.ends_in_s))
                    self._overdue_for[job_id] = max(one.slowness_max for one in found)

    def _straggler(self, now: float, job: OwnedJob, index: int, lease: Lease) -> Straggler:
        silent_s = HEARTBEATS_MISSED * HEARTBEAT_FRACTION * lease_s_min(self.pace_s)
        run, *former = (
            Run(
                now - one.since,
                job.slowness.of(one.thief),
                one.depth,
                one.thief == LOCAL or now - max(one.since, one.heard) < silent_s,
            )
            for one in (lease, *job.former.get(index, ()))
        )
        return straggler(index, lease.attempt, run, job.task_s, former)

    # --- nodes that fail what others do well ----------------------------------------------------------

    def _is_broken(self, now: float, thief: Thief) -> bool:
        """Whether a node fails what others do well, and is not to be tried again yet."""
        return self.rests_s(now, thief) > 0

    def rests_s(self, now: float, thief: Thief) -> float:
        """Return for how long a node gets nothing because it failed what others do well; 0: it does not."""
        breaker = self._breakers.get(thief.installation)
        return 0.0 if breaker is None else max(0.0, breaker.until - now)

    def _note_good(self, now: float, job: OwnedJob, index: int, installation: bytes) -> None:
        """A task has ended well on a node: it works, and the task's failures elsewhere were not the task's fault."""
        self._breakers.pop(installation, None)
        job.failed_in_row.pop(installation, None)
        for other in job.avoid.get(index, ((), 0.0))[0]:
            if other == installation:
                continue
            breaker = self._breakers.setdefault(other, _Breaker())
            breaker.count += 1
            if breaker.count >= BREAKER_COUNT:
                self.broken_count += breaker.count == BREAKER_COUNT
                breaker.until = now + breaker.pause_s
                breaker.pause_s = min(BREAKER_S_MAX, breaker.pause_s * 2)
            if len(self._breakers) > THIEVES_MAX:
                del self._breakers[next(iter(self._breakers))]
