"""What an owner knows of its jobs, and what it has to do about them.  Data only."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.runs import Outcome
from p2pcompute.limits import JOB_NODES_MAX, STORY_EVENTS_MAX, VERIFY_LENDS_FREE, VERIFY_LENDS_PER_TASK
from p2pcompute.scheduler.checked import Output, Rule
from p2pcompute.scheduler.ledger import FactKind, JobLedger, TaskState
from p2pcompute.scheduler.printed import LostAttempt
from p2pcompute.scheduler.stealing import Fit
from p2pcompute.scheduler.stragglers import Slowness
from p2pcompute.scheduler.terms import Halt, JobEnvelope, parse_halt
from p2pcompute.trust.verification.book import Digest, Verifier, Worker


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
    heard: float = field(default=-inf, kw_only=True)
    """When its holder last said that it has it."""
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
    manifest: bytes = b""
    """The owner's word for these tasks (`manifests`), without which they cannot be given on."""


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
    lost: list[LostAttempt] = field(default_factory=list)
    """What these have printed is all that is left of them."""


@dataclass(slots=True)
class Refusals:
    """Tasks of a job that a node was given in a row and has not begun."""

    count: int = 0
    why: str = ""
    """Of the last one."""


class OwnedJob:
    """The owner's books about one job."""

    def __init__(self, envelope: JobEnvelope, fit: Fit | None = None) -> None:
        self.envelope = envelope
        self.fit = fit
        """None: any node will do."""
        self.held_until: float | None = None
        """Of a job that prefers some nodes: until when others wait for these; None before its first task was ready."""
        self.unfit: dict[bytes, float] = {}
        """Nodes that declined because they do not fit, and until when they are believed; and those in `refusals`."""
        self.ledger = JobLedger()
        self.payloads: dict[int, bytes] = {}
        """Payloads of open tasks."""
        self.near: dict[int, bytes] = {}
        """Where the inputs of open tasks are already: the node that made the largest of them."""
        self.ready: deque[int] = deque()
        """Open tasks without a lease, head first; may hold stale and repeated entries, checked when popped."""
        self.leases: dict[int, Lease] = {}
        self.former: dict[int, tuple[Lease, ...]] = {}
        """Of a task that was given to another node because it took too long: leases of those who may still run it,
        up to HOLDERS_MAX."""
        self.attempts: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        """Failures of the task itself, at its current generation, those included that members tell of."""
        self.deaths: dict[int, dict[tuple[bytes, int], bool]] = {}
        """Where the task's runner died: (installation, attempt) → whether its node died with it."""
        self.avoid: dict[int, tuple[list[bytes], float]] = {}
        self.wrong_for: dict[int, set[str | bytes]] = {}
        """Open tasks that fail the same way whenever they are tried: on these installations, and on machines of these
        kinds, as `Leases.machine_of` names them."""
        self.refusals: dict[bytes, Refusals] = {}
        """Node → tasks that it has not begun since it began one; the last JOB_NODES_MAX."""
        self.failed_in_row: dict[bytes, int] = {}
        """Installation → tasks that failed there since one ended well there; the last JOB_NODES_MAX."""
        self.stories: dict[int, deque[tuple[float, str]]] = {}
        self.task_s: float | None = None
        """How long tasks took, the last ones."""
        self.timed_count = 0
        """Of how many that is known."""
        self.slowness = Slowness()
        self.halt: Halt | None = parse_halt(envelope.terms.halt)
        self.halted = ""
        """What stopped it early: its rule, or DEADLINE."""
        self.is_revived = False
        """Tasks of it were started again: its deadline does not count any more."""
        self.is_cancelled = False
        self.cancelling: dict[int, None] = {}
        """Tasks that end as cancelled unless their running attempt succeeds: leased ones; all while `is_unheard`."""
        self.is_unheard = False
        """It comes from an earlier life: who holds its tasks has not had the time to say so."""
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
        """Key → [leased, done, failed]; JOB_NODES_MAX, and those that hold a task."""
        self.checked: CheckedJob | None = None
        """Books about what members of the group compute; None while none has."""
        self.accepted_digests: dict[int, bytes] = {}
        """What was accepted of tasks in there."""
        self.accepted_why: dict[int, str] = {}
        """Why, as `trust.verification.book.Basis` has it; of those that are accepted no longer it means nothing."""
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
        share = self.by_thief.get(thief)
        if share is None:
            if len(self.by_thief) >= JOB_NODES_MAX:
                idle = next((key for key, (leased, _done, _failed) in self.by_thief.items() if not leased), None)
                if idle is not None:
                    del self.by_thief[idle]
            share = self.by_thief[thief] = [0, 0, 0]
        return share


class CheckedJob:
    """The books about a job of which members compute tasks."""

    __slots__ = ("arbitrations", "asked", "attempts", "check_of", "claimed_at", "held", "job", "judge_at", "lane",
                 "leases", "numbers", "outputs", "payloads", "rechecks", "rule", "signed", "since", "verifier",
                 "weighed")  # fmt: skip

    def __init__(self, job: OwnedJob, rule: Rule, verifier: Verifier, lane: int) -> None:
        self.job = job
        self.rule = rule
        self.verifier = verifier
        self.lane = lane
        self.numbers: dict[int, int] = {}
        """Task → its number in the verifier."""
        self.held: dict[int, None] = {}
        """Open tasks that members have begun, the first first."""
        self.leases: dict[int, dict[bytes, Lease]] = {}
        """Task → who computes it for the sake of checking, or began it as a member."""
        self.attempts: dict[tuple[int, bytes], int] = {}
        """(task, node) → how often it was given to it; up to `lends_max`."""
        self.outputs: dict[int, dict[Digest, Output]] = {}
        """What is claimed of tasks that are not accepted."""
        self.payloads: dict[int, bytes] = {}
        """Of all numbered tasks: they may have to be computed again."""
        self.arbitrations: dict[int, None] = {}
        """Tasks that a trusted node has to compute before anything else."""
        self.asked: dict[int, None] = {}
        """Those for which that has not been done."""
        self.signed: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        """(task, installation) → under which lease it claimed it first in this life of the owner; of those who were not
        asked up to `lends_max`."""
        self.check_of: dict[int, int] = {}
        """Tasks that are known-answer checks, and the numbers of these."""
        self.claimed_at: dict[int, float] = {}
        """When a task was claimed last."""
        self.rechecks: dict[int, None] = {}
        """Tasks that are done, and checked once more."""
        self.since = inf
        """When `tick` saw these books first."""
        self.judge_at = -inf
        """When a node whose word is the truth, and that may run the job, was last seen to ask for work."""
        self.weighed = 0
        """Up to which of those that are held claims were weighed last, at the end of the job."""

    @property
    def lends_max(self) -> int:
        """How many attempts of members, and claims, are remembered.

        None is forgotten before its job: a node that got a number a second time would seem to have signed two results
        under one lease.
        """
        return VERIFY_LENDS_FREE + VERIFY_LENDS_PER_TASK * self.job.ledger.size

    def all_leases(self) -> Iterator[Lease]:
        """Yield the leases that are kept here."""
        for leases in self.leases.values():
            yield from leases.values()

    def is_lent_to(self, index: int, thief: bytes) -> bool:
        return thief in self.leases.get(index, ())

    def claims_of(self, index: int) -> dict[Worker, Digest]:
        """Return who claims what of a numbered task."""
        return self.verifier.tasks[self.numbers[index]].claims

    def accused(self) -> Counter[Worker]:
        """Return how many conflicts that nobody has decided each member is in."""
        return Counter(worker for index in self.asked for worker in self.claims_of(index))

    def is_computed(self, index: int) -> bool:
        """Whether somebody computes a task who does not take too long for it."""
        return any(not lease.is_late for lease in self.leases.get(index, {}).values())
