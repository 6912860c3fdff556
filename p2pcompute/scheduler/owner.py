"""The owner's core: which task goes to whom, and what becomes of it.

Pure: time is passed in, what is to be done comes back from `take_effects`.  The scheduler's rule is
`OwnerCore.choose`, in the order of `fairness`; everything else keeps the books that it reads.

    open task = leased, or ready.  It is leased from the grant on; the lease ends by a result, by expiry, when its
    node is lost or restarted, or when the grant was not acknowledged.

Invariants: a task has at most one lease; a leased task is open; the number of ready tasks is open - leased.
Losing a node never counts against a task; a failure of the task itself does, `retries` times.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any

from p2pcompute.errors import InvariantViolation
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus
from p2pcompute.limits import (
    ATTEMPTS_MAX,
    BATCH_TARGET_S,
    GRANT_ACK_S,
    GRANT_BYTES_MAX,
    GRANT_TASKS_MAX,
    JOB_SKEW_S_MAX,
    LEASE_BATCH_FACTOR,
    LEASE_S_MIN,
    POISON_NODES,
    RUNTIME_DRIFT_MAX,
    STORY_EVENTS_MAX,
    THIEVES_MAX,
)
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.checked import CheckedJob
from p2pcompute.scheduler.checkpoints import Checkpoints, Saved
from p2pcompute.scheduler.fairness import FairOrder, Standing
from p2pcompute.scheduler.ledger import GENERATION_MAX, FactKind, JobLedger, TaskState
from p2pcompute.scheduler.stealing import LOCAL, Fit, Thief
from p2pcompute.scheduler.stragglers import (
    SLOWNESS_MIN,
    TRIED_MAX,
    Slowness,
    Straggler,
    is_late,
    patience_s,
    straggler,
)
from p2pcompute.scheduler.terms import Halt, HaltWhen, HaltWhy, JobEnvelope, parse_halt
from p2pcompute.trust.levels import Level

AVOID_S = 30.0
"""How long a task waits at most for another node before it may run again on one that it should leave."""
ELSEWHERE_S = 1.0
"""How long a failed task waits for another node at first: one that is free has asked for work by then."""
PREFER_S = 1.0
"""How long a new job waits for the nodes that it prefers before others get its tasks."""
UNFIT_S = 10.0
"""How long a node that declined because it does not fit is not offered the job again: what it has may change."""
NEAR_MAX = 64
"""Ready tasks among which those are looked for whose inputs a thief has."""
SKIP_MAX = 64
"""Tasks passed over in one choice because they failed on this thief."""
DURATION_WEIGHT = 0.1
"""Weight of a new duration in the moving average (EWMA) of a job."""
WITH_NODE = "with-node"
"""Cause of a death that its node found when it came back: the node's own process died while the task ran."""
CROWD = 500
"""Thieves with which grants of BATCH_TARGET_S are few enough; with more of them, grants are larger in proportion."""
LOCAL_PARTS_MAX = 64
"""With several jobs, this node's own worker gets a batch in so many parts at most, each of another job."""
NODE_DEATHS_MAX = 30
"""Nodes that died while a task ran, after which it has failed where no other node may run it."""
MOVED = "moved"
"""Cause of an attempt that has saved its state because it wants to go on elsewhere."""
BREAKER_COUNT = 3
"""Tasks in a row that failed on a node and ended well on others, after which it is given little."""
BREAKER_S_MIN = 10.0
BREAKER_S_MAX = 600.0
"""Pause before such a node is tried with one more task: doubled up to this, until a task ends well there."""
DEADLINE = "deadline"
"""Why a job was stopped whose time was over."""
TASK_S_MIN = 2e-5
"""Shortest duration assumed of a task: keeps batches finite."""


@dataclass(slots=True)
class Lease:
    is_resumed: bool = field(default=False, kw_only=True)
    """It goes on from what an earlier attempt has saved."""
    has_saved: bool = field(default=False, kw_only=True)
    thief: bytes
    boot: bytes
    attempt: int
    expires: float
    since: float = inf
    depth: int = 1
    """Tasks that its slot does one after the other, as far as we know."""
    width: int = 1
    """Slots that the task takes there."""
    charged_s: float = 0.0
    """Slot time that the job was charged for it, before it is known how long it takes."""
    installation: bytes = b""
    is_found: bool = field(default=False, kw_only=True)
    """Its holder told of it, who may have begun before `since`."""
    is_late: bool = field(default=False, kw_only=True)
    """It takes too long: others may begin the task as if it did not exist (`Acceptance`)."""


@dataclass(slots=True)
class _Breaker:
    """What speaks against a node."""

    count: int = 0
    until: float = 0.0
    pause_s: float = BREAKER_S_MIN


@dataclass(frozen=True, slots=True)
class GrantedTask:
    index: int
    generation: int
    attempt: int
    payload: bytes
    cookie: bytes = b""
    cookie_blob: BlobRef | None = None
    """What an earlier attempt has saved, inline or as a blob."""

    @property
    def size(self) -> int:
        """Bytes that it takes in a message, about."""
        return len(self.payload) + len(self.cookie)


@dataclass(frozen=True, slots=True)
class Grant:
    """Tasks that a victim hands to a thief."""

    grant_id: int
    request_id: int
    thief: bytes
    job_id: bytes
    owner: bytes
    """Key of the owner; LOCAL when it is the granting node itself."""
    lease_s: float
    tasks: tuple[GrantedTask, ...]
    epoch: int = 0
    may_pass: bool = True
    """Whether the thief may let others steal them: not where it matters who computes what."""
    pace_s: float = 0.0
    """The thief sends results at most once in this time, while it has more of them to come."""


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """A task ended: what watchers and the journal get."""

    job_id: bytes
    index: int
    generation: int
    state: TaskState
    outcome: Outcome | None
    """None for tasks cancelled before they ran."""
    thief: bytes
    attempts: int
    seq: int
    """Its place, from 1, in the order in which the job's tasks ended."""
    payload: bytes


@dataclass(slots=True)
class Effects:
    """What the service has to do, in this order."""

    facts: list[tuple[bytes, FactKind, list[Any]]] = field(default_factory=list)
    """(job, kind, entries) to journal, signed by the owner."""
    ends: list[TaskEnd] = field(default_factory=list)
    stops: list[tuple[bytes, bytes, list[int], bool]] = field(default_factory=list)
    """(thief, job, indices, kill): tasks that a holder should drop; with `kill` also when they run."""
    completed: list[bytes] = field(default_factory=list)
    """Jobs whose last task has ended."""
    revoked: list[tuple[bytes, int, int]] = field(default_factory=list)
    """(job, index, generation): results that were accepted and are believed no longer."""
    banned: list[tuple[bytes, str]] = field(default_factory=list)
    """(installation, why)"""
    settled: list[tuple[bytes, int, list[bytes]]] = field(default_factory=list)
    """(job, index, digests): claims whose outputs need not be kept."""
    wanted: list[tuple[bytes, int]] = field(default_factory=list)
    """(job, index): tasks whose payloads are wanted again."""


class OwnedJob:
    """The owner's books about one job."""

    def __init__(self, envelope: JobEnvelope, fit: Fit | None = None) -> None:
        self.envelope = envelope
        self.fit = fit
        """None: any node will do."""
        self.held_until: float | None = None
        """Of a job that prefers some nodes: until when others wait for these; None before its first task was ready."""
        self.unfit: dict[bytes, float] = {}
        """Nodes that declined because they do not fit, and until when they are believed."""
        self.ledger = JobLedger()
        self.payloads: dict[int, bytes] = {}
        """Payloads of open tasks."""
        self.near: dict[int, bytes] = {}
        """Where the inputs of open tasks are already: the node that made the largest of them."""
        self.ready: deque[int] = deque()
        """Open tasks without a lease, head first; may hold stale and repeated entries, checked when popped."""
        self.leases: dict[int, Lease] = {}
        self.former: dict[int, bytes] = {}
        """Of a task that was given to another node because it took too long: who may still run it."""
        self.attempts: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        """Failures of the task itself, at its current generation."""
        self.deaths: dict[int, dict[tuple[bytes, int], bool]] = {}
        """Where the task's runner died: (installation, attempt) → whether its node died with it."""
        self.avoid: dict[int, tuple[list[bytes], float]] = {}
        self.failed_in_row: dict[bytes, int] = {}
        """Installation → tasks that failed there since one ended well there."""
        self.stories: dict[int, deque[tuple[float, str]]] = {}
        self.task_s: float | None = None
        self.slowness = Slowness()
        self.halt: Halt | None = parse_halt(envelope.terms.halt)
        self.halted = ""
        """What stopped it early: its rule, or DEADLINE."""
        self.is_revived = False
        """Tasks of it were started again: its deadline does not count any more."""
        self.is_cancelled = False
        self.cancelling: dict[int, None] = {}
        """Leased tasks that end as cancelled unless their running attempt succeeds."""
        self.generation = 0
        """In which new tasks begin."""
        self.is_own = True
        """False for another node's job that is kept here: its ends are claims, and nothing is decided about it."""
        self.is_checked = False
        """Of another node's job: its owner checks what members of the group say."""
        self.epoch = 0
        """Fences leases; see `custody`."""
        self.grants_from = 0.0
        """Nothing is granted before this."""
        self.retried = 0
        self.by_thief: dict[bytes, list[int]] = {}
        """Key → [leased, done, failed]."""
        self.checked: CheckedJob | None = None
        """Books about what members of the group compute; None while none has."""
        self.accepted_digests: dict[int, bytes] = {}
        """What was accepted of tasks in there."""
        self.revoked_count = 0
        self.revoked_late = 0
        """Of those: when the job had ended before, so that somebody may have used them."""
        self.has_ended = False
        """Every task had ended once."""
        self.nondeterministic = 0
        """Tasks of which two trusted nodes found different results."""

    @property
    def ready_count(self) -> int:
        held = 0 if self.checked is None else len(self.checked.held)
        return self.ledger.counts[TaskState.OPEN] - len(self.leases) - held

    def tell(self, now: float, index: int, what: str) -> None:
        story = self.stories.setdefault(index, deque(maxlen=STORY_EVENTS_MAX))
        story.append((now, what))

    def share(self, thief: bytes) -> list[int]:
        return self.by_thief.setdefault(thief, [0, 0, 0])


@dataclass(slots=True)
class _PendingGrant:
    grant: Grant
    deadline: float


class OwnerCore:
    """Decides about all jobs of this node."""

    def __init__(
        self, fit_of: Callable[[JobEnvelope], Fit | None] | None = None, acceptance: Acceptance | None = None
    ) -> None:
        """Args:
        fit_of: says where a job may run.
        acceptance: decides whose results are believed; None: everybody's.
        """
        self._fit_of = fit_of
        self.acceptance = acceptance or Acceptance()
        self.acceptance.bind(self)
        self.group = b""
        """Id of the group that the thieves belong to."""
        self.jobs: dict[bytes, OwnedJob] = {}
        self.thieves: dict[bytes, tuple[Thief, float]] = {}
        """Key → last request and when; the candidates for "another node"."""
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
        self._pending: dict[int, _PendingGrant] = {}
        self._next_grant = 1
        self.checkpoints = Checkpoints()
        self._preferring: dict[bytes, None] = {}
        """Jobs that prefer some nodes."""
        self.order = FairOrder()
        """Unfinished jobs."""
        self._effects = Effects()

    @property
    def has_effects(self) -> bool:
        """Whether `take_effects` would return anything."""
        effects = self._effects
        return bool(
            effects.facts or effects.ends or effects.stops or effects.completed or effects.banned or effects.wanted
        )

    def take_effects(self) -> Effects:
        """Return what has to be done since the last call."""
        effects, self._effects = self._effects, Effects()
        return effects

    # --- jobs -------------------------------------------------------------------------------------

    def add_job(self, envelope: JobEnvelope) -> OwnedJob:
        job = self.jobs.get(envelope.job_id)
        if job is None:
            fit = None if self._fit_of is None else self._fit_of(envelope)
            job = self.jobs[envelope.job_id] = OwnedJob(envelope, fit)
            if fit is not None and fit.has_preference:
                self._preferring[envelope.job_id] = None
            self.order.add(envelope.job_id, Standing.of(envelope))
        return job

    def adopt(
        self, now: float, job: OwnedJob, payloads: dict[int, bytes], claims: Sequence[Any], grants_from: float
    ) -> None:
        """Coordinate another node's job that is kept here; its open tasks are ready, the last first: if the owner is
        not dead but cut off, it goes on from the other end.

        Args:
            claims: [index, generation, attempt, status, …] of ends that were told: what failed before is counted.
            grants_from: until when holders of leases that we do not know may say so.
        """
        ledger = job.ledger
        job.payloads = {i: payload for i, payload in payloads.items() if ledger.state(i) is TaskState.OPEN}
        job.ready = deque(sorted(job.payloads, reverse=True))
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
        self._check_halt(job)

    def is_confined(self, job: OwnedJob) -> bool:
        """Whether a job runs on this node alone: its terms say so, or it is of a group that the others are not in."""
        terms = job.envelope.terms
        return terms.local_only or bool(terms.group and self.group and terms.group != self.group)

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
            job.failed_in_row,
            job.unfit,
            job.former,
        ):
            books.clear()
        job.held_until, job.halted = None, ""

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

    def forget_job(self, job_id: bytes) -> None:
        self._forget_open(job_id)
        self.checkpoints.forget_job(job_id)

    def _forget_open(self, job_id: bytes) -> None:
        job = self.jobs.pop(job_id, None)
        if job is not None:
            self.acceptance.forget(job)
        self._preferring.pop(job_id, None)
        self.order.discard(job_id)

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

    def recover(
        self,
        envelope: JobEnvelope,
        facts: Sequence[tuple[int, Any]],
        outputs: Mapping[tuple[int, bytes], tuple[bytes, Outcome]] | None = None,
    ) -> OwnedJob:
        """Rebuild a job from its journal; its open tasks are ready again, but for those that members have claimed.

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
        if job.is_cancelled:
            self._cancel_indices(job, job.ledger.open_indices(), kill=True)
        self._check_halt(job)
        self._check_complete(job)
        return job

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
        for kind, body in facts:
            if kind == FactKind.ACCEPT:
                for index, generation, digest in body:
                    job.share(good.get((index, generation, digest), LOCAL))[1] += 1
            elif kind == FactKind.FAIL:
                for index, generation, _reason in body:
                    job.share(bad.get((index, generation), LOCAL))[2] += 1
                    job.retried -= (index, generation) in bad

    # --- the rule ---------------------------------------------------------------------------------

    def choose(self, now: float, thief: Thief) -> Grant | None:
        """Return what this thief gets now: tasks of the first job in the order of `fairness` that has some for it, or
        None.

        The batch is about BATCH_TARGET_S of work for the thief (more with very many workers, so that the owner's
        message rate stays bounded), the first one a task per slot, and at most half of what is ready, so that
        late thieves find something.  Tasks that failed on this thief go to others while there are any.
        """
        self.remember(now, thief)
        if self._is_broken(now, thief):
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

    def _has_ready(self, job_id: bytes) -> bool:
        job = self.jobs[job_id]
        return job.ready_count > 0 or self.acceptance.has_extra(job)

    def copy(self, now: float, thief: Thief) -> Grant | None:
        """Return what an idle thief gets when there is nothing to choose: a task that takes too long on another node.

        That node goes on with it if it has begun; the first good result counts.  So one that keeps its leases for ever
        keeps nothing from others.
        """
        if not thief.is_idle or self._is_broken(now, thief):
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
                if lease.thief == thief.key or self._is_avoided(now, job, index, thief):
                    continue
                job.tell(now, index, f"attempt {lease.attempt} takes too long on {lease.thief.hex()[:8]}")
                self._effects.stops.append((lease.thief, job_id, [index], False))
                self._release(job, index)
                job.former[index] = lease.thief
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
                # Those first that would end last; what nobody could end much sooner is left out.
                found = [one for one in found if one.is_for(SLOWNESS_MIN)]
                if found:
                    self._overdue[job_id] = sorted(found, key=lambda one: (not one.is_late, -one.ends_in_s))
                    self._overdue_for[job_id] = max(one.slowness_max for one in found)

    @staticmethod
    def _straggler(now: float, job: OwnedJob, index: int, lease: Lease) -> Straggler:
        held_s, slowness = now - lease.since, job.slowness.of(lease.thief)
        is_copied = index in job.former
        return straggler(index, held_s, lease.attempt, lease.depth, job.task_s, slowness, is_copied=is_copied)

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

    def batch_size(self, job: OwnedJob, thief: Thief) -> int:
        """Return how many tasks of `job` one grant to `thief` holds: at least 1."""
        slots = thief.slots if job.fit is None else max(1, thief.slots // job.fit.slots(thief.key, thief.slots))
        size = slots
        if job.task_s is not None:
            size = max(slots, int(BATCH_TARGET_S * self.crowd * slots / job.task_s))
        if thief.installation in self._breakers and self._breakers[thief.installation].until:
            size = 1
        if thief.is_local:  # small grants cost nothing here, and the turn comes round the sooner
            size = max(1, size // min(len(self.order) or 1, LOCAL_PARTS_MAX))
        available = job.ready_count + self.acceptance.extra_count(job)
        want = max(1, thief.want)
        if self.crowd > 1:  # it does not know how many there are; all must get some, and not all come back at once
            spread = 0.5 + int.from_bytes(thief.key[-2:]) / 65536
            want = max(want, min(round(want * self.crowd * spread), available // len(self.thieves)))
        size = min(size, want, GRANT_TASKS_MAX)
        if len(self.thieves) > 1 and job.held_until is None:
            size = min(size, ceil(available / 2))
        slots_max = job.envelope.terms.slots_max
        if slots_max is not None:
            size = min(size, slots_max - len(job.leases))
        return min(size, available)

    @property
    def crowd(self) -> float:
        """By how much batches are larger because there are so many thieves, from 1: what they send stays bounded."""
        return max(1.0, len(self.thieves) / CROWD)

    def _believes(self, job: OwnedJob, thief: Thief) -> bool:
        return thief.is_local or self.acceptance.believes(job, thief.installation)

    def _may_run(self, now: float, job: OwnedJob, thief: Thief) -> bool:
        terms = job.envelope.terms
        if now < job.grants_from:
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
            if self._is_avoided(now, job, index, thief):
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

    def _is_avoided(self, now: float, job: OwnedJob, index: int, thief: Thief) -> bool:
        if self.acceptance.is_for_trusted(job, index) and not self._believes(job, thief):
            return True
        avoided = job.avoid.get(index)
        if avoided is None or thief.installation not in avoided[0] or now >= avoided[1]:
            return False
        return self._has_other(now, job, avoided[0])

    def _has_other(self, now: float, job: OwnedJob, nodes: Collection[bytes]) -> bool:
        """Whether a node besides these may run tasks of a job, and asked for work lately or is at work for it."""
        return any(
            other.installation not in nodes
            and (now - seen < AVOID_S * 2 or job.by_thief.get(other.key, (0,))[0] > 0)
            and self._may_run(now, job, other)
            for other, seen in self.thieves.values()
        )

    @property
    def has_ready(self) -> bool:
        """Whether any job has a task for whoever comes."""
        return any(self._has_ready(job_id) for job_id in self.order) or bool(self.acceptance.ended)

    def remember(self, now: float, thief: Thief) -> None:
        """Note that this thief waits for work now: a candidate for tasks that another node failed."""
        self.thieves.pop(thief.key, None)
        self.thieves[thief.key] = (thief, now)
        if len(self.thieves) > THIEVES_MAX:
            del self.thieves[next(iter(self.thieves))]

    def _grant(self, now: float, job: OwnedJob, thief: Thief, chosen: list[int]) -> Grant:
        expected_s = (job.task_s or 0.0) * len(chosen) / thief.slots
        lease_s = max(LEASE_S_MIN, LEASE_BATCH_FACTOR * expected_s)
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
            pace_s=BATCH_TARGET_S * self.crowd if self.crowd > 1 else 0.0,
        )
        self._next_grant += 1
        if not thief.is_local:
            self._pending[grant.grant_id] = _PendingGrant(grant, now + GRANT_ACK_S)
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

    # --- checkpoints ------------------------------------------------------------------------------

    def holders(self, job_id: bytes, index: int) -> list[Lease]:
        """Return the leases of those who have a task now, whose result counts for itself first."""
        job = self.jobs.get(job_id)
        if job is None:
            return []
        found = [job.leases[index]] if index in job.leases else []
        return found + (list(job.checked.leases.get(index, {}).values()) if job.checked is not None else [])

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

    def _is_spent(self, job: OwnedJob, index: int) -> bool:
        """Whether a task has had as many attempts as it may since it got on last."""
        return job.attempts.get(index, 0) - self.checkpoints.attempt(job.envelope.job_id, index) >= ATTEMPTS_MAX

    # --- leases -----------------------------------------------------------------------------------

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

    def _release(self, job: OwnedJob, index: int) -> Lease | None:
        lease = job.leases.pop(index, None)
        if lease is not None:
            job.share(lease.thief)[0] -= 1
            self.order.charge(job.envelope.job_id, -lease.charged_s)
        return lease

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
        lease_s = inf if thief == LOCAL else max(LEASE_S_MIN, LEASE_BATCH_FACTOR * (job.task_s or 0.0))
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
                job.leases[index] = Lease(thief, boot, attempt, now + lease_s, now, len(held), is_found=True)
                job.attempts[index] = max(job.attempts.get(index, 0), attempt)
                job.share(thief)[0] += 1
            elif lease.thief == thief:
                lease.expires = now + lease_s
                lease.boot = boot
            elif lease.thief == moved_from and lease.attempt == attempt:
                self._release(job, index)
                job.leases[index] = Lease(thief, boot, attempt, now + lease_s, now, len(held), is_found=True)
                job.share(thief)[0] += 1
            else:
                drop.append(index)
        if ended:
            self._effects.stops.append((thief, job_id, ended, True))
        return drop

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
            for index in reversed(lost):
                self._lose(now, job, index, "its node is gone")
            returned += len(lost) + self.acceptance.peer_lost(now, job, thief, boot)
        if boot is None:
            self.thieves.pop(thief, None)
        return returned

    def _lose(self, now: float, job: OwnedJob, index: int, why: str) -> None:
        lease = self._release(job, index)
        if lease is not None:
            job.tell(now, index, f"attempt {lease.attempt} lost: {why}")
        if self._is_spent(job, index):
            self._fail(job, index, None, lease.thief if lease else LOCAL, f"given up after {ATTEMPTS_MAX} attempts")
        else:
            self._requeue(job, index)

    def _requeue(self, job: OwnedJob, index: int, *, is_last: bool = False) -> None:
        """Put an open task without a lease at the head (or the end), unless it was to be cancelled."""
        if job.checked is not None and self.acceptance.keeps(job, index):
            return
        if job.is_own and (job.is_cancelled or job.halted or index in job.cancelling):
            self.cancel_one(job, index)
        else:
            job.ready.append(index) if is_last else job.ready.appendleft(index)

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

    def _is_due(self, job_id: bytes, wall_ms: float) -> bool:
        job = self.jobs[job_id]
        return 0 < job.envelope.terms.deadline_ms <= wall_ms and not job.halted and not job.is_revived

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

    # --- results ----------------------------------------------------------------------------------

    @staticmethod
    def as_seen(now: float, wall: float, job: OwnedJob, thief: bytes, index: int, outcome: Outcome) -> Outcome:
        """Return another node's outcome with no more run time than went by here since it was given the task; when that
        is not known, since the job was submitted.  Its CPU time is cut by as much.  When it began is taken from its end
        here, if the node told nothing that can be.

        Args:
            wall: Unix seconds.
        """
        lease = job.leases.get(index)
        if (lease is None or lease.thief != thief) and job.checked is not None:
            lease = job.checked.leases.get(index, {}).get(thief)
        if lease is not None and lease.thief == thief and not lease.is_found:
            seen_s = now - lease.since
        else:
            seen_s = wall - job.envelope.terms.created_ms / 1000 + (0.0 if job.is_own else JOB_SKEW_S_MAX)
        most_s = RUNTIME_DRIFT_MAX * max(0.0, seen_s)
        if outcome.runtime_s > most_s:
            outcome = replace(outcome, runtime_s=most_s, cpu_s=outcome.cpu_s * most_s / outcome.runtime_s)
        if outcome.runtime_s and not outcome.started_wall:
            outcome = replace(outcome, started_wall=wall - outcome.runtime_s)
        return outcome

    def result(
        self,
        now: float,
        thief: bytes,
        installation: bytes,
        job_id: bytes,
        index: int,
        generation: int,
        attempt: int,
        outcome: Outcome,
        digest: bytes,
        *,
        relayed_by: bytes | None = None,
        boot: bytes = b"",
    ) -> bool:
        """Take one attempt's end into the books.

        A good result counts whoever brings it and however late (epochs and leases never fence results), once per
        generation.  A bad one counts only from the holder of the lease.

        Returns:
            True when it changed anything; the claim is then worth journaling.
        """
        job = self.jobs.get(job_id)
        if job is None:
            return False
        if thief != LOCAL and not self.acceptance.believes(job, installation):
            return self._claimed(
                now, job, thief, installation, index, generation, (attempt, boot), outcome, digest, relayed_by
            )
        if job.checked is not None and index < job.ledger.size and generation == job.ledger.generation(index):
            if outcome.status is OutcomeStatus.OK:
                if self.acceptance.settled(now, job, thief, installation, index, outcome, digest):
                    return True
            elif self.acceptance.returned(now, job, index, thief, attempt=attempt):
                return self._could_not_settle(job, index, thief, outcome)
        if not job.ledger.is_open(index, generation):
            return False
        lease = job.leases.get(index)
        is_holder = lease is not None and lease.thief == thief and lease.attempt == attempt
        if is_holder or outcome.status is OutcomeStatus.OK:
            self.order.charge(job_id, max(0.0, outcome.runtime_s) * (1 if lease is None else lease.width))
        if outcome.status is OutcomeStatus.OK:
            if lease is not None and not is_holder:
                self._effects.stops.append((lease.thief, job_id, [index], True))
            job.attempts[index] = max(job.attempts.get(index, 0), attempt)
            self._note_good(now, job, index, installation)
            self._accept(job, index, outcome, thief, digest)
            return True
        if outcome.status is OutcomeStatus.DIED and outcome.cause == WITH_NODE:
            return self._died_with_node(now, job, index, installation, attempt, outcome, thief)
        if lease is None or not is_holder:
            return False
        if outcome.status in (OutcomeStatus.KILLED, OutcomeStatus.DIED) and (outcome.value or outcome.value_blob):
            blob = None if outcome.value_blob is None else BlobRef(*outcome.value_blob)
            saved = Saved(cookie=outcome.value, blob=blob, generation=generation, attempt=attempt)
            self.save(thief, installation, job_id, index, saved)
        is_excused = self._judge_saved(job, index, lease, outcome)
        self._release(job, index)
        job.tell(now, index, f"attempt {attempt}: {outcome.status} {outcome.error.strip()[-200:]}".rstrip())
        match outcome.status:
            case OutcomeStatus.FAILED | OutcomeStatus.TIMEOUT if is_excused:
                self._again(now, job, index, installation)
            case OutcomeStatus.FAILED | OutcomeStatus.TIMEOUT:
                job.failures[index] = job.failures.get(index, 0) + 1
                if job.failures[index] > job.envelope.terms.retries or outcome.cause == FAILS_ALWAYS:
                    self._fail(job, index, outcome, thief, "")
                else:
                    self._again(now, job, index, installation)
            case OutcomeStatus.DIED:
                job.deaths.setdefault(index, {})[installation, attempt] = False
                if evidence := self._poison(now, job, index):
                    self._fail(job, index, outcome, thief, evidence)
                else:
                    self._again(now, job, index, installation)
            case OutcomeStatus.REFUSED | OutcomeStatus.NOT_RUN | OutcomeStatus.KILLED:
                if self._is_spent(job, index):
                    self._fail(job, index, outcome, thief, f"given up after {ATTEMPTS_MAX} attempts")
                elif outcome.status is OutcomeStatus.REFUSED:
                    self._again(now, job, index, installation)
                else:
                    could_not = outcome.status is OutcomeStatus.NOT_RUN
                    if could_not or outcome.cause == MOVED:
                        self._avoid(now, job, index, installation)
                    self._requeue(job, index, is_last=could_not)
        return True

    def _claimed(
        self,
        now: float,
        job: OwnedJob,
        thief: bytes,
        installation: bytes,
        index: int,
        generation: int,
        lease_of: tuple[int, bytes],
        outcome: Outcome,
        digest: bytes,
        relayed_by: bytes | None,
    ) -> bool:
        """Take what a member says that it found."""
        if index >= job.ledger.size or generation != job.ledger.generation(index):
            return False
        lease = job.leases.get(index)
        if lease is not None and lease.thief == thief:  # it was trusted when it began
            self._release(job, index)
            self._requeue(job, index)
        self.order.charge(job.envelope.job_id, max(0.0, outcome.runtime_s))
        if outcome.status is OutcomeStatus.OK:
            self._note_duration(job, outcome, thief)
            job.failed_in_row.pop(installation, None)
        return self.acceptance.claimed(
            now, job, thief, installation, index, lease_of, outcome, digest, relayed_by=relayed_by
        )

    # --- what `Acceptance` decides ----------------------------------------------------------------

    def accept_checked(self, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, digest: bytes) -> None:
        """End a task that was held, with this result of this node."""
        self._accept(job, index, outcome, thief, digest)

    def requeue_checked(self, job: OwnedJob, index: int) -> None:
        """An open task is held no longer, and nobody has claimed it."""
        self._requeue(job, index)

    def unlease(self, job: OwnedJob, index: int) -> None:
        """End the lease of a task that members have claimed: whoever had it has told its result, or is not needed."""
        lease = self._release(job, index)
        if lease is not None:
            self._effects.stops.append((lease.thief, job.envelope.job_id, [index], False))

    def released_checked(self, job: OwnedJob, lease: Lease) -> None:
        """A node computes a task no more whose lease `Acceptance` keeps."""
        job.share(lease.thief)[0] -= 1
        self.order.charge(job.envelope.job_id, -lease.charged_s)

    def _could_not_settle(self, job: OwnedJob, index: int, thief: bytes, outcome: Outcome) -> bool:
        """A node that is believed could not compute what others claim to have computed."""
        if outcome.status in (OutcomeStatus.FAILED, OutcomeStatus.TIMEOUT, OutcomeStatus.DIED):
            job.failures[index] = job.failures.get(index, 0) + 1
            if job.ledger.state(index) is TaskState.OPEN and job.failures[index] > job.envelope.terms.retries:
                self._fail(job, index, outcome, thief, "")
        return True

    def failed_checked(
        self, now: float, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, installation: bytes
    ) -> None:
        """A member says that a task which was held has failed: that is believed as far as others may try it too."""
        job.tell(now, index, f"{thief.hex()[:8]} says: {outcome.status} {outcome.error.strip()[-200:]}".rstrip())
        self._again(now, job, index, installation)

    def reopen(self, job: OwnedJob, index: int, payload: bytes, why: str) -> bool:
        """Believe an accepted result no longer; False when the task cannot be run again."""
        generation = job.ledger.generation(index) + 1
        if generation > GENERATION_MAX or job.ledger.retry(index, generation) is None:
            return False
        job.payloads[index] = payload
        job.revoked_count += 1
        job.revoked_late += job.has_ended
        self.note(job, FactKind.REVOKE, [index, generation, why])
        self._effects.revoked.append((job.envelope.job_id, index, generation - 1))
        self.order.add(job.envelope.job_id, Standing.of(job.envelope))
        return True

    def disputed(self, job: OwnedJob, index: int, why: str) -> None:
        """Nobody can say which of several results of a task is right: it has failed."""
        self._fail(job, index, None, LOCAL, why)

    def settled_checked(self, job: OwnedJob, index: int, digests: list[bytes]) -> None:
        """What was claimed of a task need not be kept any longer."""
        self._effects.settled.append((job.envelope.job_id, index, digests))

    def load(self, job: OwnedJob, index: int) -> None:
        """The payload of a task that has ended is wanted again."""
        self._effects.wanted.append((job.envelope.job_id, index))

    def note(self, job: OwnedJob, kind: FactKind, entry: list[Any]) -> None:
        """Journal what was decided."""
        self._fact(job, kind, entry)

    def stop(self, thief: bytes, job: OwnedJob, indices: list[int], *, kill: bool) -> None:
        """Have a node drop tasks."""
        self._effects.stops.append((thief, job.envelope.job_id, indices, kill))

    def banned(self, installation: bytes, why: str) -> None:
        """Somebody gets no more work."""
        self._effects.banned.append((installation, why))

    def _died_with_node(
        self, now: float, job: OwnedJob, index: int, installation: bytes, attempt: int, outcome: Outcome, thief: bytes
    ) -> bool:
        """Count a task's part in the death of a whole node, once for each attempt.  Another may be under way."""
        deaths = job.deaths.setdefault(index, {})
        if (installation, attempt) in deaths:
            return False
        deaths[installation, attempt] = True
        job.tell(now, index, f"{thief.hex()[:8]} died while it ran")
        self._avoid(now, job, index, installation)
        if evidence := self._poison(now, job, index):
            self._fail(job, index, outcome, thief, evidence)
        return True

    def _poison(self, now: float, job: OwnedJob, index: int) -> str:
        """Return the evidence that a task kills what runs it; "" while there is too little, and it is tried again.

        Deaths on POISON_NODES nodes are enough.  Where fewer nodes may run it, so many deaths of its process are; those
        of whole nodes have other causes more often, and NODE_DEATHS_MAX of them are.
        """
        deaths = job.deaths[index]
        nodes = dict.fromkeys(installation for installation, _attempt in deaths)
        if len(nodes) < POISON_NODES:
            is_enough = len(deaths) >= NODE_DEATHS_MAX or list(deaths.values()).count(False) >= POISON_NODES
            if not is_enough or self._has_other(now, job, nodes):
                return ""
        with_node = ", which died with it" if all(deaths.values()) else ""
        return f"its process died {len(deaths)} times on {len(nodes)} node(s){with_node}"

    def _again(self, now: float, job: OwnedJob, index: int, installation: bytes) -> None:
        self._avoid(now, job, index, installation, for_s=self._patience_s(job, installation))
        job.retried += 1
        self._requeue(job, index)

    def _patience_s(self, job: OwnedJob, installation: bytes) -> float:
        """Return how long a task that has failed on a node leaves it free when all others are busy.

        Not long: they may be so for hours.  But where task after task fails while others are at work for the job, it
        may be the node that is at fault, and it would fail all of them before the others have ended one.
        """
        row = job.failed_in_row[installation] = job.failed_in_row.get(installation, 0) + 1
        is_shared = any(
            leased > 0 and key in self.thieves and self.thieves[key][0].installation != installation
            for key, (leased, _done, _failed) in job.by_thief.items()
        )
        return min(AVOID_S, ELSEWHERE_S * 2.0 ** min(row - 1, 16)) if is_shared else ELSEWHERE_S

    @staticmethod
    def _avoid(now: float, job: OwnedJob, index: int, installation: bytes, *, for_s: float = AVOID_S) -> None:
        """Prefer other nodes for this task for a while."""
        nodes = job.avoid.get(index, ([], 0.0))[0]
        if installation not in nodes:
            nodes.append(installation)
        job.avoid[index] = (nodes, now + for_s)

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
        job.task_s = runtime_s if job.task_s is None else job.task_s + DURATION_WEIGHT * (runtime_s - job.task_s)
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

    def _ended(self, job: OwnedJob, index: int, state: TaskState, outcome: Outcome | None, thief: bytes) -> None:
        self._release(job, index)
        if state is not TaskState.DONE and job.checked is not None:
            self.acceptance.ended_otherwise(job, index)
        former = job.former.pop(index, b"")
        if former and former != thief:
            self._effects.stops.append((former, job.envelope.job_id, [index], True))
        payload = job.payloads.pop(index, b"")
        job.near.pop(index, None)
        self.checkpoints.ended(job.envelope.job_id, index)
        job.avoid.pop(index, None)
        job.cancelling.pop(index, None)
        job.deaths.pop(index, None)
        job.failures.pop(index, None)
        attempts = job.attempts.pop(index, 0)
        generation, seq = job.ledger.generation(index), len(job.ledger.finished)
        self._effects.ends.append(
            TaskEnd(job.envelope.job_id, index, generation, state, outcome, thief, attempts, seq, payload)
        )
        if state is not TaskState.CANCELLED:
            self._check_halt(job)
        self._check_complete(job)

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

    # --- cancel and retry -------------------------------------------------------------------------

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

    def _cancel_indices(self, job: OwnedJob, indices: Sequence[int] | range, *, kill: bool) -> int:
        cancelled = 0
        by_thief: dict[bytes, list[int]] = {}
        for index in indices:
            if index >= job.ledger.size or job.ledger.state(index) is not TaskState.OPEN:
                continue
            lease = job.leases.get(index)
            if lease is not None:
                by_thief.setdefault(lease.thief, []).append(index)
                if not kill:
                    job.cancelling[index] = None
                    continue
            self.cancel_one(job, index)
            cancelled += 1
        for thief, held in by_thief.items():
            self._effects.stops.append((thief, job.envelope.job_id, held, kill))
        return cancelled

    def cancel_one(self, job: OwnedJob, index: int) -> None:
        """End one open task as cancelled."""
        generation = job.ledger.generation(index)
        job.ledger.cancel(index, generation)
        self._fact(job, FactKind.CANCEL, [index, generation])
        self._ended(job, index, TaskState.CANCELLED, None, LOCAL)

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
                continue
            self._release(job, index)
            job.attempts[index] = max(0, job.attempts.get(index, 1) - 1)
            self._requeue(job, index)

    def retry(self, job_id: bytes, indices: Sequence[int], payloads: dict[int, bytes]) -> int:
        """Start ended tasks again under a new generation; returns how many."""
        job = self.jobs[job_id]
        count = 0
        for index in indices:
            if index >= job.ledger.size or job.ledger.state(index) is TaskState.OPEN:
                continue
            generation = job.ledger.generation(index) + 1
            if generation > GENERATION_MAX or job.ledger.retry(index, generation) is None:
                continue
            self.acceptance.ended_otherwise(job, index)
            job.accepted_digests.pop(index, None)
            job.payloads[index] = payloads[index]
            self._fact(job, FactKind.RETRY, [index, generation])
            job.ready.append(index)
            count += 1
        if count:
            job.is_cancelled, job.halted, job.is_revived = False, "", True
            self.order.add(job_id, Standing.of(job.envelope))
        return count

    # --- checks -----------------------------------------------------------------------------------

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
