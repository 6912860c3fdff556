"""A node in memory for the tests of the daemon: obeys `NodeFacade`, runs nothing; tests end its tasks by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from p2pcompute.daemon.main import RunningNode
from p2pcompute.errors import TrustError, UsageError
from p2pcompute.execution.spec import JobSpec
from p2pcompute.host.interfaces import Attribute, BlobStore, Clock
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.identity.keys import ROLES
from p2pcompute.ids import job_alias
from p2pcompute.node.comfort_service import ComfortSettings
from p2pcompute.node.facade import (
    AdmittedView,
    BeliefView,
    DescribedView,
    DhtStatus,
    EvidenceView,
    ExplanationView,
    IdleView,
    InviteState,
    InviteView,
    JobView,
    JoinView,
    NearbyView,
    NodeShare,
    NodeStatus,
    OpenInviteView,
    PeerView,
    PolicyView,
    PruneReport,
    TaskDone,
    TaskView,
    TicketView,
    TrustView,
)
from p2pcompute.node.placement import needs_of
from p2pcompute.resources.explaining import Machine, explain
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.matching import Known
from p2pcompute.resources.questions import Findings, Found, Query
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.trust.groups import MEMBER_ROLES
from p2pcompute.trust.levels import Level
from p2pcompute.trust.policy import GroupPolicy

OWN_KEY = bytes(range(32))
PEER_KEY = bytes(range(1, 33))
Listener = Callable[[Sequence[TaskDone]], None]


@dataclass
class FakeJob:
    job_id: bytes
    alias: str
    terms: JobTerms
    spec: JobSpec
    note: str
    tasks: list[TaskView] = field(default_factory=list)
    ends: list[TaskView] = field(default_factory=list)
    is_sealed: bool = False
    is_cancelled: bool = False
    listeners: list[Listener] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """Sizes of the calls of add_tasks."""

    @property
    def view(self) -> JobView:
        def count(state: str) -> int:
            return sum(task.state == state for task in self.tasks)

        is_over = self.is_sealed and not count("waiting") and not count("running")
        state = "waiting" if not self.ends else "running"
        if is_over:
            state = "failed" if count("failed") else "cancelled" if count("cancelled") else "done"
        return JobView(
            job_id=self.job_id,
            alias=self.alias,
            name=self.terms.name,
            state=state,
            total=len(self.tasks) if self.is_sealed else None,
            added=len(self.tasks),
            done=count("done"),
            failed=count("failed"),
            running=count("running"),
            waiting=count("waiting"),
            cancelled=count("cancelled"),
            submitted=1_700_000_000.25,
            finished=1_700_000_010.0 if is_over else None,
            by_node=(NodeShare(node="nova", public_key=OWN_KEY, done=count("done")),),
            exit_code=int(state == "failed") if is_over else None,
            note=self.note,
            last_seq=len(self.ends),
        )


class FakeNode:
    def __init__(self, directory: Path) -> None:
        self._clock = RealClock()
        self._blobs = FileBlobs(directory / "blobs")
        self.by_id: dict[bytes, FakeJob] = {}
        self.gate: asyncio.Event | None = None
        """When set, add_tasks waits for it: a node that has enough to do."""
        self.submit_error: Exception | None = None
        """What a submission gets."""
        self.drain_gate: asyncio.Event | None = None
        self.stops: list[bool] = []
        self.started = 0
        self.finished_calls: list[int] = []
        self.bug: Exception | None = None
        self.group = "home"
        self.is_alone = True
        self.paused = False
        self.queries: list[Query] = []
        self.answered = 1
        """Nodes that say yes or no to a question."""
        self.condition = asyncio.Event()
        """Set: what is waited for is true."""
        self.watched = 0

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    async def start(self) -> None:
        self.started += 1

    async def stop(self, *, drain: bool = True) -> None:
        self.stops.append(drain)
        if drain and self.drain_gate is not None:
            await self.drain_gate.wait()

    async def close(self) -> None:
        self._blobs.shut()

    def status(self) -> NodeStatus:
        if self.bug is not None:
            raise self.bug
        return NodeStatus(
            name="nova",
            public_key=OWN_KEY,
            state="idle",
            uptime_s=1.5,
            port=7878,
            is_on_network=not self.is_alone,
            group_name=self.group,
            group_id=b"\1" * 32,
            is_alone=self.is_alone,
            members_known=2,
            slots_total=8,
            slots_busy=0,
            jobs_running=len(self.by_id),
            jobs_waiting=0,
            dht=DhtStatus(contacts=1, first_contact_s=0.25, lookups=2),
        )

    def peers(self) -> Sequence[PeerView]:
        return [
            PeerView(name="nova", public_key=OWN_KEY, state="self", slots=8, busy=0, path="self"),
            PeerView(
                name="atlas",
                public_key=PEER_KEY,
                state="not seen",
                seen_s=12.0,
                slots=4,
                busy=0,
                path="LAN 1 ms",
                address="192.0.2.7:7878",
                version="9.9.9",
                python="3.11",
                invited_by="nova",
            ),
        ]

    def nearby(self) -> Sequence[NearbyView]:
        return [NearbyView(name="studio", public_key=PEER_KEY, address="192.0.2.31:7878")]

    async def describe(self, key: bytes, *, age_s: float = 0.0) -> DescribedView:
        for peer in self.peers():
            if peer.public_key == key:
                is_self = peer.state == "self"
                trouble = "" if is_self else "the channel is gone"
                return DescribedView(
                    peer=peer, attributes=self._attributes(), age_s=0.0 if is_self else 30.0, trouble=trouble
                )
        raise UsageError("there is no such node in the group", code="no-such-node")

    async def explain(self, job: bytes | tuple[JobTerms, JobSpec], *, until_possible: bool = False) -> ExplanationView:
        terms, spec = (self.by_id[job].terms, self.by_id[job].spec) if isinstance(job, bytes) else job
        needs, wall = needs_of(terms, spec), self._clock.wall()
        peers = tuple(self.peers())
        machines = tuple(
            Machine(peer.name, Known(self._attributes(), wall) if peer.state == "self" else None) for peer in peers
        )
        return ExplanationView(needs=needs, peers=peers, report=explain(needs, machines), machines=machines)

    def _attributes(self) -> dict[str, Attribute]:
        wall = self._clock.wall()
        return {"cpus": Attribute(8.0, wall), "has": Attribute(("ffmpeg",), wall - 5, 300.0)}

    async def find(self, query: Query) -> Findings:
        self.queries.append(query)
        found = [Found(key=OWN_KEY, attributes=self._attributes(), age_s=0.0, rank=2.0)]
        answered = self.answered
        return Findings(found=found, candidates=3, answered=answered, unknown=1, silent=1, asked=1, took_s=0.25)

    async def when(self, expression: Expression) -> Found:
        self.watched += 1
        try:
            await self.condition.wait()
        finally:
            self.watched -= 1
        return Found(key=PEER_KEY, attributes=self._attributes(), age_s=0.0)

    async def submit_job(self, terms: JobTerms, spec: JobSpec, *, client_note: str = "") -> bytes:
        if self.submit_error is not None:
            raise self.submit_error
        job_id = hashlib.blake2b(f"{len(self.by_id)}".encode(), digest_size=32).digest()
        alias = job_alias(job_id, {job.alias for job in self.by_id.values()})
        self.by_id[job_id] = FakeJob(job_id, alias, terms, spec, client_note)
        return job_id

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        if self.gate is not None:
            await self.gate.wait()
        job = self.by_id[job_id]
        if job.is_sealed:
            raise UsageError("the job takes no more tasks", "it is sealed", code="job-sealed")
        first = len(job.tasks)
        job.batches.append(len(payloads))
        job.tasks += [TaskView(first + at, 0, "waiting", payload=payload) for at, payload in enumerate(payloads)]
        return first

    async def seal_job(self, job_id: bytes) -> None:
        self.by_id[job_id].is_sealed = True
        self._tell(job_id, [])

    async def cancel(self, job_id: bytes, *, indices: Sequence[int] | None = None, now: bool = False) -> None:
        job = self.by_id[job_id]
        for index in range(len(job.tasks)) if indices is None else indices:
            if job.tasks[index].state == "waiting":
                self.end(job_id, index, None, state="cancelled")

    async def retry(self, job_id: bytes, *, indices: Sequence[int] | None = None, failed_only: bool = True) -> int:
        job = self.by_id[job_id]
        chosen = [
            task
            for task in job.tasks
            if (indices is None or task.index in indices) and (task.state == "failed" or not failed_only)
        ]
        for task in chosen:
            job.tasks[task.index] = replace(task, generation=task.generation + 1, state="waiting", outcome=None)
        self._tell(job_id, [])
        return len(chosen)

    async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
        return PruneReport(jobs=1, freed_bytes=1000)

    def jobs(self) -> Sequence[JobView]:
        return [job.view for job in reversed(self.by_id.values())]

    def job(self, ref: str) -> JobView:
        for job in reversed(self.by_id.values()):
            if ref in ("last", job.alias) or job.job_id.hex().startswith(ref):
                return job.view
        raise UsageError(f'there is no job "{ref}"', "", "see: p2pc jobs", code="no-job")

    async def tasks(
        self, job_id: bytes, *, states: Collection[str] | None = None, after: int = -1, limit: int = 1000
    ) -> Sequence[TaskView]:
        found = [
            task for task in self.by_id[job_id].tasks if task.index > after and (states is None or task.state in states)
        ]
        return found[:limit]

    def belief(self, job_id: bytes, task: TaskView) -> BeliefView | None:
        return BeliefView(True, "this node ran it") if task.state == "done" else None

    async def finished(self, job_id: bytes, *, after: int, limit: int) -> Sequence[TaskDone]:
        self.finished_calls.append(after)
        return self.by_id[job_id].ends[after : after + limit]

    def watch(self, job_id: bytes, listener: Listener) -> Callable[[], None]:
        listeners = self.by_id[job_id].listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    async def evidence(self, key: bytes) -> EvidenceView:
        return EvidenceView()

    async def bundle(self, job_id: bytes) -> bytes:
        return b"bundle of " + job_id

    def ticket(self, job_id: bytes) -> TicketView:
        return TicketView(text=f"p2pc-job-{job_id.hex()}", expires=1_700_000_600.0)

    async def attach(self, ticket: str) -> JobView:
        return self.job(ticket.removeprefix("p2pc-job-"))

    async def invite(
        self, *, uses: int, expires_s: float, words: int = 0, roles: Sequence[str] = MEMBER_ROLES, is_mine: bool = False
    ) -> InviteView:
        self.is_alone = False
        return InviteView(
            id=b"\1" * 8,
            token="" if words else "p2pc1-token",
            code="7-crossover-clockwork-tobacco" if words else "",
            addresses=("192.0.2.10:7878",),
            expires=1_700_000_600.0,
            group=self.group,
            uses=uses,
            handle="7",
        )

    def invite_state(self, invitation: bytes) -> InviteState:
        if invitation != b"\1" * 8:
            raise UsageError("this invitation is not known here")
        return InviteState(
            ending="used",
            admitted=(AdmittedView(PEER_KEY, "atlas", "192.0.2.20:7878"),),
            tries_left=2,
            refused=("192.0.2.66:1: these are not the words of this invitation, 2 more wrong attempts",),
        )

    def open_invites(self) -> Sequence[OpenInviteView]:
        return [
            OpenInviteView(
                id=b"\1" * 8, handle="7", uses_left=1, expires=1_700_000_600.0, is_mine=False, roles=MEMBER_ROLES
            )
        ]

    def withdraw_invite(self, invitation: bytes) -> bool:
        return invitation == b"\1" * 8

    async def join(self, token: str, *, name: str | None = None) -> JoinView:
        if token == "void":
            raise TrustError("nova did not accept that token", "it was used", "make a new one: p2pc invite --token")
        self.group, self.is_alone = "home-lab", False
        return JoinView(group=self.group, inviter="nova", inviter_key=PEER_KEY, address="192.0.2.20:7878")

    async def pause(self, for_s: float | None, *, now: bool) -> IdleView:
        self.paused = True
        return await self.idle()

    async def resume(self) -> bool:
        was_paused, self.paused = self.paused, False
        return was_paused

    async def idle(self) -> IdleView:
        return IdleView(
            profile="laptop",
            others_share=0.0 if self.paused else 0.9,
            own_runs=not self.paused,
            why="by you" if self.paused else "",
            since_s=1_700_000_000.0,
            resumes="You resume it: p2pc resume." if self.paused else "",
            rules=(("battery = off", "on mains", "ok"),),
            standing_still=0,
        )

    async def set_comfort(self, *, profile: str, in_use: str, idle: str, battery: str, hours: str) -> IdleView:
        ComfortSettings(profile, in_use=in_use, idle=idle, battery=battery, hours=hours)
        return await self.idle()

    def trust(self) -> Sequence[TrustView]:
        return [self._trust]

    def set_level(self, key: bytes, level: Level, *, reason: str) -> TrustView:
        self._trust = replace(self._trust, key=key, level=level, reason=reason)
        return self._trust

    def remove(self, key: bytes, *, reason: str) -> TrustView:
        if key != self._trust.key:
            raise UsageError("no such member", code="no-such-node")
        self._trust = replace(self._trust, roles=None, reason=reason, is_removed=True)
        return self._trust

    def set_roles(self, key: bytes, roles: Sequence[str], *, reason: str) -> TrustView:
        self._trust = replace(self._trust, key=key, roles=tuple(roles), reason=reason)
        return self._trust

    def name_heir(self, key: bytes) -> TrustView:
        self._trust = replace(self._trust, key=key, roles=ROLES)
        return self._trust

    def policy(self) -> PolicyView:
        return PolicyView(group=self.group, in_force=self._policy, may_change=True, own_accept=self._own_accept)

    def set_own_accept(self, condition: str) -> PolicyView:
        self._own_accept = condition
        return self.policy()

    def set_policy(self, policy: GroupPolicy) -> PolicyView:
        self._policy = policy
        return self.policy()

    _policy = GroupPolicy()
    _own_accept = ""
    _trust = TrustView(key=b"\2" * 32, name="atlas", level=Level.MEMBER, roles=MEMBER_ROLES)

    async def leave(self) -> None:
        self.group, self.is_alone = "home", True

    # --- for tests --------------------------------------------------------------------------------

    def end(self, job_id: bytes, index: int, outcome: Outcome | None, *, state: str = "") -> None:
        """End one task and tell the listeners."""
        job = self.by_id[job_id]
        if not state:
            state = "done" if outcome is not None and outcome.status is OutcomeStatus.OK else "failed"
        ended = replace(
            job.tasks[index],
            state=state,
            outcome=outcome,
            node_key=OWN_KEY,
            node_name="nova",
            attempts=1,
            seq=len(job.ends) + 1,
        )
        job.tasks[index] = ended
        job.ends.append(ended)
        self._tell(job_id, [ended])

    def _tell(self, job_id: bytes, ends: Sequence[TaskDone]) -> None:
        for listener in list(self.by_id[job_id].listeners):
            listener(ends)


def ok(stdout: bytes = b"", **more: object) -> Outcome:
    return Outcome(
        status=OutcomeStatus.OK,
        stdout=stdout,
        exit_code=0,
        runtime_s=0.5,
        started_wall=1_700_000_000.0,
        **more,  # type: ignore[arg-type]
    )


def _is_a_node(node: FakeNode) -> RunningNode:
    """mypy checks here that the fake is what the daemon asks for."""
    return node
