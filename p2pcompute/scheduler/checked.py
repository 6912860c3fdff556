"""What an owner keeps about tasks that members compute: claims that wait, leases, and what is known of nodes.

Books only; `acceptance` decides.  A node's `Record` outlives this life of the owner (`pack`, `unpack`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from p2pcompute.host.runs import Outcome
from p2pcompute.limits import EVIDENCE_MAX
from p2pcompute.scheduler.ledger import FactKind
from p2pcompute.scheduler.terms import ERROR_PPB, JobTerms
from p2pcompute.trust.verification import METHODS, Method
from p2pcompute.trust.verification.book import Digest, Verifier, Worker

if TYPE_CHECKING:
    from p2pcompute.scheduler.owner import Lease, OwnedJob


@dataclass(frozen=True, slots=True)
class Rule:
    """How results are checked: jobs with the same one share what is known of workers."""

    method: Method
    error_ppb: int
    """Accepted probability of a wrong result, in billionths."""
    replicas: int | None
    """Instead of that: so many claims have to agree."""

    @classmethod
    def of(cls, terms: JobTerms) -> Rule | None:
        """Return the rule that a job asks for; None: members are believed."""
        if terms.verify == "none":
            return None
        method = next(known for known in METHODS if known == (terms.verify or "arbitrate"))  # terms are checked
        return cls(method, ERROR_PPB if terms.error_ppb is None else terms.error_ppb, terms.replicas)


@dataclass(frozen=True, slots=True)
class Event:
    """Something remarkable about a node."""

    at: int
    """Unix seconds."""
    job_id: bytes
    index: int
    what: str


@dataclass(slots=True)
class Record:
    """What is known here of a node whose results were checked."""

    claims: int = 0
    agreed: int = 0
    """Of its claims, those that agreed with another one, or with a trusted node."""
    wrong: int = 0
    """Those that a trusted node contradicted."""
    banned: str = ""
    """Why it gets no more work."""
    banned_at: int = 0
    """Unix seconds."""
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVIDENCE_MAX))
    memory: dict[Rule, list[int]] = field(default_factory=dict)
    """What the verifiers of an earlier life knew of it."""
    pardons: int = 0
    """Bans that were ended.  The facts of a job still have what was erased then: claims of such a node are not taken up
    after a restart."""

    def pack(self) -> list[Any]:
        """Return what is stored."""
        events = [[event.at, event.job_id, event.index, event.what] for event in self.events]
        memory = [[rule.method, rule.error_ppb, rule.replicas, known] for rule, known in self.memory.items()]
        return [self.claims, self.agreed, self.wrong, self.banned, self.banned_at, events, memory, self.pardons]

    @classmethod
    def unpack(cls, row: list[Any]) -> Record:
        """Return what was stored."""
        claims, agreed, wrong, banned, banned_at, events, memory, *later = row
        return cls(
            claims,
            agreed,
            wrong,
            banned,
            banned_at,
            deque((Event(*event) for event in events), maxlen=EVIDENCE_MAX),
            {Rule(method, ppb, replicas): known for method, ppb, replicas, known in memory},
            later[0] if later else 0,
        )


@dataclass(slots=True)
class Output:
    """What somebody claims."""

    outcome: Outcome
    thief: bytes
    size: int


class CheckedJob:
    """The books about a job of which members compute tasks."""

    __slots__ = ("arbitrations", "asked", "attempts", "check_of", "claimed_at", "failures", "held", "job", "lane",
                 "leases", "numbers", "outputs", "payloads", "rechecks", "rule", "signed", "verifier")  # fmt: skip

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
        """(task, node) → how often it was given to it."""
        self.outputs: dict[int, dict[Digest, Output]] = {}
        """What is claimed of tasks that are not accepted."""
        self.payloads: dict[int, bytes] = {}
        """Of all numbered tasks: they may have to be computed again."""
        self.arbitrations: dict[int, None] = {}
        """Tasks that a trusted node has to compute before anything else."""
        self.asked: dict[int, None] = {}
        """Those for which that has not been done."""
        self.signed: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        """(task, installation) → under which lease it claimed it first in this life of the owner."""
        self.check_of: dict[int, int] = {}
        """Tasks that are known-answer checks, and the numbers of these."""
        self.claimed_at: dict[int, float] = {}
        """When a task was claimed last."""
        self.rechecks: dict[int, None] = {}
        """Tasks that are done, and checked once more."""
        self.failures: dict[int, int] = {}
        """How often members said that a task had failed."""

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


class Decider(Protocol):
    """What `OwnerCore` does when something is decided here."""

    jobs: dict[bytes, OwnedJob]

    def accept_checked(self, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, digest: Digest) -> None:
        """A task is done, with this result of this node."""

    def reopen(self, job: OwnedJob, index: int, payload: bytes, why: str) -> bool:
        """An accepted result is believed no longer; False when the task cannot be run again."""

    def requeue_checked(self, job: OwnedJob, index: int) -> None:
        """An open task is held no longer."""

    def unlease(self, job: OwnedJob, index: int) -> None:
        """End the lease that the owner keeps of a task."""

    def released_checked(self, job: OwnedJob, lease: Lease) -> None:
        """A node computes a task no more."""

    def failed_checked(
        self, now: float, job: OwnedJob, index: int, outcome: Outcome, thief: bytes, installation: bytes
    ) -> None:
        """A member says that it could not compute a task, which is open and held no longer."""

    def settled_checked(self, job: OwnedJob, index: int, digests: list[Digest]) -> None:
        """What was claimed of a task need not be kept any longer."""

    def load(self, job: OwnedJob, index: int) -> None:
        """The inputs of a task that is done are wanted again."""

    def disputed(self, job: OwnedJob, index: int, why: str) -> None:
        """Nobody can say which of several results of a task is right."""

    def note(self, job: OwnedJob, kind: FactKind, entry: list[Any]) -> None:
        """Journal a fact."""

    def stop(self, thief: bytes, job: OwnedJob, indices: list[int], *, kill: bool) -> None:
        """Have a node drop tasks."""

    def banned(self, installation: bytes, why: str) -> None:
        """Somebody gets no more work."""
