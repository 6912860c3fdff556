"""The composition root: the only place where identity, group, DHT, scheduler, execution and store meet."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from p2pcompute.errors import P2pcError, RemoteError, UsageError
from p2pcompute.execution.neighbours import are_alike
from p2pcompute.execution.spec import JobSpec, decode_spec
from p2pcompute.host.interfaces import Address, Attribute, Attributes, BlobRef, BlobStore, Clock, Host, Value
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import format_device_id, short_device_id
from p2pcompute.limits import GROUP_ACCEPT_CHARS_MAX
from p2pcompute.node import views
from p2pcompute.node.bandwidth import LIFETIME_S as BANDWIDTH_LIFETIME_S
from p2pcompute.node.blob_exchange import BlobExchange
from p2pcompute.node.capacity import Capacity, work_shown
from p2pcompute.node.comfort_service import Comfort, ComfortSettings
from p2pcompute.node.evidence import EvidenceExchange
from p2pcompute.node.explanations import Subject, explain_job
from p2pcompute.node.facade import (
    BeliefView,
    DescribedView,
    DoorView,
    EvidenceView,
    ExplanationView,
    IdleView,
    InviteState,
    InviteView,
    JobView,
    JoinView,
    LostAttemptView,
    NearbyView,
    NodeStatus,
    OpenInviteView,
    PeerView,
    PolicyView,
    PruneReport,
    TailView,
    TaskDone,
    TaskView,
    TicketView,
    TrustView,
)
from p2pcompute.node.inputs import inputs_of
from p2pcompute.node.job_desk import JobDesk
from p2pcompute.node.joining import Joining
from p2pcompute.node.members import Members
from p2pcompute.node.membership import RENEW, GroupCredentials, clean_name
from p2pcompute.node.network import Network
from p2pcompute.node.notes import notes_of
from p2pcompute.node.options import NodeOptions
from p2pcompute.node.placement import ACCEPTS, Placement, are_outputs, is_data
from p2pcompute.resources.explaining import Finding
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.matching import ONLY_WASM, Verdict, check_acceptance, only_wasm
from p2pcompute.resources.questions import UNKNOWN_REQUEST, Findings, Found, Query
from p2pcompute.resources.service import Resources
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.transport.credentials import PeerInfo, group_hint
from p2pcompute.trust.admission import Admission, Entry
from p2pcompute.trust.groups import MEMBER_ROLES, Group, found_group
from p2pcompute.trust.levels import Level, Levels
from p2pcompute.trust.log_file import LogKeeper
from p2pcompute.trust.pins import Pins
from p2pcompute.trust.policy import GroupPolicy
from p2pcompute.trust.verification.book import Why
from p2pcompute.version import VERSION

BOOT_BYTES = 8
STATE_LIFETIME_S = 10.0
"""How long it may be believed how busy this node is."""


class Node:
    """One running node: owner, worker and index at once.  Satisfies `NodeFacade`."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        group: Group | None,
        options: NodeOptions,
        keep_group: Callable[[Group], None],
        on_error: Callable[[str, BaseException], None] | None = None,
        levels: Levels | None = None,
        logs: LogKeeper | None = None,
        admissions: Sequence[Admission] = (),
        pins: Pins | None = None,
    ) -> None:
        """Args:
        group: of an earlier life; None founds one, with this node alone in it.
        levels: how far others are trusted; None: nobody has said anything, and what is said is not kept.
        logs: where the logs of groups are kept; None: in memory.
        admissions: standing ways in which others may be let in; with one, the group is open to others.
        pins: keys that were believed at first sight; None: none, and none are kept.
        keep_group: stores the group whenever it changes.
        on_error: told of an exception that left a background task (a bug of ours).
        """
        self._host = host
        self._identity = identity
        self._options = options
        self._keep_group = keep_group
        self._started_at = host.clock.now()
        self._boot = host.crypto.random_bytes(BOOT_BYTES)
        self._is_draining = False
        self._is_reopening = False
        self._changing = asyncio.Lock()
        """Held while this node moves to another group."""
        self._is_ending = False
        """It is being found out what is not to run here any more."""
        self._own_accepts = options.accept_if if options.accepts_others else "false"
        self._accepts = self._own_accepts
        if group is None:
            group = found_group(identity, host.crypto, options.group_name, host.clock.wall())
            keep_group(group)
        if admissions and not group.is_open_to_others:
            group = group.opened()
            keep_group(group)
        self._scope = TaskScope("node", on_error)
        self.credentials = GroupCredentials(host, identity, group, options.name, self._about, levels, logs)
        self.credentials.admissions += admissions
        self._journal = Journal(host.store) if options.is_durable else None
        self.channels = Channels(host, self.credentials, self._scope)
        self.network = Network(
            host,
            self.credentials,
            self.channels,
            self._journal,
            self._scope,
            discover=options.discover,
            port_wanted=options.port,
            first_contacts=options.first_contacts,
            seeds=options.seeds,
        )
        self.exchange = BlobExchange(host, self.channels, self._scope, self._may_read)
        self.resources = Resources(
            host,
            self.channels,
            self._scope,
            own_key=identity.public_key,
            facts=self._facts,
            peers=self.network.peers,
        )
        self.capacity = Capacity(host, self._scope, self.network, self.resources)
        self.resources.index = self.capacity.search
        self.resources.silent = self.network.silent
        self.placement = Placement(
            host,
            self._scope,
            self.resources,
            own_key=identity.public_key,
            installation=identity.installation,
            accepts=self._accepts,
        )
        self.scheduler = Scheduler(
            host,
            identity,
            self.channels,
            self._journal,
            self._scope,
            boot=self._boot,
            python=(sys.version_info.major, sys.version_info.minor),
            inputs=inputs_of,
            fetch=self._fetch,
            fetch_results=self._fetch,
            name_of=self.name_of,
            peers=self.network.peers,
            own_addresses=self.network.own_addresses,
            accepts_others=options.accepts_others,
            fit_of=self.placement.fit_of,
            level_of=self.credentials.level_of,
            cluster_of=self.credentials.cluster_of,
        )
        self.scheduler.owner.checks.is_data = is_data
        self.scheduler.owner.checks.are_outputs = are_outputs
        self.scheduler.worker.sender.locate = self.network.locate
        self.placement.trusts = lambda who: self.credentials.levels.level_of(who) is Level.TRUSTED
        self.scheduler.victim.policy = options.policy
        self.comfort: Comfort | None = None
        if options.comfort is not None:
            self.comfort = Comfort(
                host, self._scope, self.scheduler, self._journal, options.comfort, share=options.share
            )
        self.joining = Joining(
            host, identity, self.credentials, self.channels, self.network, self._change_group, pins or Pins()
        )
        self.members = Members(host, self.credentials, self.channels, self.network, self.scheduler, self._scope)
        self.evidence_exchange = EvidenceExchange(
            host, self.credentials, self.channels, self._journal, self._scope, self._convict
        )
        self.job_desk = JobDesk(
            host,
            identity,
            self.credentials,
            self.channels,
            self.network,
            self.scheduler,
            self._journal,
            self.evidence_exchange,
            self.name_of,
            custodians=options.custodians,
        )
        self._twin_note = ""
        self.on_warning: Callable[[str], None] = lambda _text: None
        """Called with what whoever runs this node should know, once."""
        self._wire()

    def _wire(self) -> None:
        self.joining.is_out = lambda: bool(self.members.removed_text)
        self.scheduler.owner.on_banned = self._banned
        self.members.on_policy = self._policy_changed
        self._set_conditions(self.members.policy().in_force)
        self.channels.on_open = self._channel_opened
        self.channels.on_lost = self._channel_lost
        self.channels.is_awaited = self.scheduler.worker.is_awaited
        self.channels.on_replaced = self._key_used_elsewhere
        self.channels.on_request(RENEW, self._on_renew)
        self.placement.on_news = self.scheduler.wake
        self.resources.on_news = self.scheduler.wake
        self.resources.on_own_change = self._has_changed
        self.placement.on_needs = self.capacity.seek
        self.scheduler.offers.look_further = self.capacity.seek_any
        self.scheduler.acceptance.are_alike = are_alike
        self.scheduler.owner.core.machine_of = self._machine_of
        self.capacity.worked = lambda: work_shown(self.scheduler.owner.books.values(), self.placement.fit_of)
        self.placement.class_of = self.capacity.class_of
        self.placement.is_stranger = lambda who: self.credentials.level_of(who) is Level.STRANGER
        self.placement.is_own_strange = lambda: self.credentials.is_stranger(self._identity.installation)
        self.placement.is_fenced = self._options.isolation in ("sandbox", "wasm")
        self.credentials.range_of = self.network.range_of
        self.placement.gives_network = self._options.gives_network
        self.scheduler.on_restarted = self.resources.forget
        self.network.on_peer = self._peer_known
        self.network.on_peer_gone = self.scheduler.peer_gone
        self.network.on_change = self._membership_renewed

    async def _reopen(self) -> None:
        """Take part in the group as one that is open to everybody, or is so no more."""
        try:
            async with self._changing:
                if self.network.is_open not in (None, self.credentials.is_open):
                    await self._move(self.credentials.group.opened(), ())
        finally:
            self._is_reopening = False

    def _convict(self, installation: bytes) -> None:
        self.scheduler.acceptance.convict(installation)
        self.scheduler.owner.apply_effects()
        self.scheduler.wake()

    def _banned(self, installation: bytes, why: str) -> None:
        """Tell the others, if there is a proof: what was merely found wrong here is no business of theirs."""
        if why == Why.EQUIVOCATION and not self.evidence_exchange.get(installation):
            self._scope.spawn(self._prove(installation), "prove")

    async def _prove(self, installation: bytes) -> None:
        owner, record = self.scheduler.owner, self.scheduler.acceptance.records.get(installation)
        told = [event.job_id for event in reversed(record.events)] if record is not None else []
        checked = [job_id for job_id, job in owner.core.jobs.items() if job.is_own and job.checked is not None]
        await owner.committed()
        await self.evidence_exchange.prove(installation, dict.fromkeys([*told, *checked]))

    def _set_conditions(self, policy: GroupPolicy) -> None:
        """Take over what this machine's owner and the group say of jobs."""
        self._accepts = "false" if self.members.policy().is_beyond else self._own_accepts
        self.placement.accepts, self.placement.group_accepts = self._accepts, policy.accept

    def _policy_changed(self, policy: GroupPolicy) -> None:
        """Let the policy of the group hold here, also for jobs that are known already."""
        self._set_conditions(policy)
        if not self._is_reopening and self.network.is_open not in (None, self.credentials.is_open):
            self._is_reopening = True
            self._scope.spawn(self._reopen(), "open")
        for job in self.scheduler.owner.core.jobs.values():
            job.fit = self.placement.fit_of(job.envelope)
        if not self._is_ending and self.scheduler.of_others():
            self._is_ending = True
            self._scope.spawn(self._end_refused(), "refused")
        self.scheduler.wake()

    async def _end_refused(self) -> None:
        """End what runs here of jobs that this node would not take now: whose machine it is has the last word."""
        self._is_ending = False
        if refused := await self.placement.refused(self.scheduler.of_others().values()):
            self.scheduler.give_back(refused)

    def _membership_renewed(self) -> None:
        self._keep_group(self.credentials.group)
        self.members.exchange.compare()

    def _about(self) -> dict[str, Any]:
        """What peers learn of this node in a handshake."""
        return {
            "boot": self._boot,
            "build": VERSION,
            "python": [sys.version_info.major, sys.version_info.minor],
            "slots": self._host.runner.slot_count,
            "port": self.network.port,
            "keeps": self._journal is not None,
            "proofs": self.evidence_exchange.digest,
            **({"machine": self._options.machine} if self._options.machine else {}),
        }

    def _machine_of(self, key: bytes) -> str:
        """Return what a node said of its machine."""
        if key == LOCAL:
            return self._options.machine
        channel = self.channels.get(key)
        return str(channel.peer.hello.get("machine", "")) if channel is not None else ""

    def _facts(self) -> Attributes:
        """What this node knows of itself without measuring."""
        worker, wall = self.scheduler.worker.core, self._host.clock.wall()
        static: dict[str, Value] = {
            "id": format_device_id(self._identity.public_key),
            "name": self._options.name,
            "version": VERSION,
            "slots.total": worker.slot_count,
        }
        static["tag"] = tuple(sorted(key for key, value in self._options.labels.items() if not value))
        if self._accepts:
            static[ACCEPTS] = self._accepts
        if self._options.isolation:
            static["isolation"] = self._options.isolation
            static["network"] = "full" if self._options.gives_network else "none"
        static |= {f"label.{key}": value for key, value in self._options.labels.items() if value}
        state: dict[str, Value] = {
            "slots.busy": worker.busy_slots,
            "queue": worker.queued_count,
            "staging": worker.staging_count,
        }
        verdict = self.comfort.verdict if self.comfort is not None else None
        if verdict is not None and verdict.others_share == 0.0 and verdict.why:
            state["paused"] = verdict.why.replace("you are", "its owner is").replace("by you", "by its owner")
        for name, left_s in zip(("slots.ends", "slots.wait"), self.scheduler.outlook(), strict=True):
            if left_s is not None:
                state[name] = round(left_s, 1)
        found = {
            **{name: Attribute(value, wall) for name, value in static.items()},
            **{name: Attribute(value, wall, STATE_LIFETIME_S) for name, value in state.items()},
        }
        speed = self.exchange.meter.measured()
        if speed is not None:
            measured_s = wall - (self._host.clock.now() - speed.at)
            found["bandwidth"] = Attribute(speed.bytes_per_s, measured_s, BANDWIDTH_LIFETIME_S, speed.accuracy)
        return found

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; what an earlier life left unfinished goes on.

        Raises:
            ChannelLost: the port cannot be bound.
            StoreError: the store cannot be read.
        """
        await self._host.runner.start()
        if self.comfort is not None:
            await self.comfort.start()
        if self._options.is_networked:
            await self.evidence_exchange.restore()  # before a peer tells of a proof: what is kept then is all there is
            async with self._changing:
                await self.network.start()
            self.members.records.start()
        else:
            await self.network.restore_names()  # who keeps a job is shown by name
        await self.scheduler.start(is_onlooker=self._options.is_durable and not self._options.is_networked)

    async def stop(self, *, drain: bool = True) -> None:
        """Leave gracefully: hand back what has not started, finish what runs (for `grace_s`), say goodbye.

        Without `drain` running tasks are ended at once; they go on elsewhere from what they have saved.  May be called
        again while a drain lasts.  What the host stands on (store, sockets) is closed by who made it.
        """
        self._is_draining = True
        if self.comfort is not None:
            self.comfort.close()
        await self.scheduler.leave(drain_s=self._options.grace_s if drain else 0.0)
        self.scheduler.close()
        self.joining.close()
        self.members.close()
        await self.network.stop()
        await self.exchange.close()
        await self._scope.close()
        await self._host.runner.close()

    # --- facade: state ----------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        return self._host.clock

    @property
    def blobs(self) -> BlobStore:
        return self._host.store.blobs

    @property
    def identity(self) -> Identity:
        return self._identity

    def name_of(self, key: bytes) -> str:
        """A node's name by its key."""
        if key in (LOCAL, b"", self._identity.public_key):
            return self._options.name
        return self.network.name_of(key) or short_device_id(key)

    def status(self) -> NodeStatus:
        group = self.credentials.group
        worker = self.scheduler.worker.core
        books = self.scheduler.owner.books.values()
        jobs = [book.job for book in books if book.job.is_own and not book.job.ledger.is_complete]
        running = sum(bool(job.leases) for job in jobs)
        notes = [*self.members.notes(), *self.joining.notes()]
        if self._twin_note:
            notes.append(self._twin_note)
        seeds = tuple(seed.view() for seed in self.network.seeds)
        notes += notes_of(self.scheduler, self.network, self._host.store.blobs.trouble(), seeds)
        comfort = self.comfort
        verdict = comfort.verdict if comfort is not None else None
        is_paused = verdict is not None and verdict.others_share == 0.0
        state = "working" if worker.busy_slots else "paused" if is_paused else "idle"
        return NodeStatus(
            name=self._options.name,
            public_key=self._identity.public_key,
            state="draining" if self._is_draining else state,
            uptime_s=self._host.clock.now() - self._started_at,
            port=self.network.port,
            is_on_network=self.network.is_on_network,
            group_name=group.name,
            group_id=group.group_id,
            is_alone=not group.is_open_to_others,
            is_removed=bool(self.members.removed_text),
            members_known=1 + len(self.scheduler.peers) + len(self.network.away()),
            slots_total=worker.slot_count,
            slots_busy=worker.busy_slots,
            jobs_running=running,
            jobs_waiting=len(jobs) - running,
            dht=None if self.network.dht is None else views.dht(self.network.dht),
            seeds=seeds,
            group_hint=group_hint(group.network_key),
            cpu_given_s=self.scheduler.receipts.core.given_s,
            cpu_taken_s=self.scheduler.receipts.core.taken_s,
            notes=tuple(notes),
            paused_because=verdict.why if verdict is not None and is_paused else "",
            paused_since=comfort.since_s if comfort is not None and is_paused else 0.0,
        )

    def peers(self) -> Sequence[PeerView]:
        self.network.ask_for_signs()
        found = views.peers(self._options.name, self._identity, self.scheduler, self.network, self.credentials)
        return found[:1] if self.members.removed_text else found  # the others are none of its group's any more

    def nearby(self) -> Sequence[NearbyView]:
        found = [
            NearbyView(
                name=sighting.announcement.name,
                public_key=key,
                address=str(Address(sighting.addresses[0], sighting.announcement.port)) if sighting.addresses else "",
            )
            for key, sighting in self.network.lan.nearby.items()
        ]
        return sorted(found, key=lambda view: (view.name, view.public_key))

    # --- facade: what nodes have ------------------------------------------------------------------

    async def describe(self, key: bytes, *, age_s: float = 0.0) -> DescribedView:
        peer = next((peer for peer in self.peers() if peer.public_key == key), None)
        if peer is None:
            raise UsageError("there is no such node in the group", "", "see: p2pc peers", code="no-such-node")
        if peer.state == "self":
            return DescribedView(peer=peer, attributes=await self.resources.own(), age_s=0.0)
        trouble = ""
        try:
            await self.resources.describe(key, age_s=age_s)
        except P2pcError as error:
            is_old = isinstance(error, RemoteError) and error.code == UNKNOWN_REQUEST
            trouble = "it runs an earlier version that says nothing of itself" if is_old else str(error)
        known = self.resources.known.get(key)
        if known is None:
            return DescribedView(peer=peer, trouble=trouble)
        age = self._host.clock.now() - known.heard_s
        return DescribedView(peer=peer, attributes=known.attributes, age_s=age, trouble=trouble)

    async def find(self, query: Query) -> Findings:
        return await self.resources.find(query)

    async def when(self, expression: Expression) -> Found:
        return await self.resources.when(expression)

    async def explain(self, job: bytes | tuple[JobTerms, JobSpec], *, until_possible: bool = False) -> ExplanationView:
        findings = []
        if isinstance(job, bytes):
            owned = self.scheduler.owner.book(job).job
            envelope, limit = owned.envelope, owned.envelope.terms.slots_max
            is_limited = limit is not None and len(owned.leases) >= limit
            reached = Finding("jobs", Verdict.LATER, f"{limit} tasks run, and no more at once (-j)")
            spec, reasons = decode_spec(envelope.spec), (reached,) if is_limited else ()
            subject = Subject(envelope.terms, spec, envelope.submitter, reasons, self.job_desk.course(job))
        else:
            subject = Subject(*job, self._identity.installation)
        owner, worker = self.scheduler.owner, self.scheduler.worker
        if self._is_draining:
            findings.append(Finding("node", Verdict.NEVER, "it is stopping"))
        verdict = self.comfort.verdict if self.comfort is not None else None
        if verdict is not None and not verdict.own_runs:
            findings.append(Finding("paused", Verdict.LATER, f"paused: {verdict.why}"))
        if owner.trouble is not None:
            findings.append(Finding("node", Verdict.LATER, f"its store takes nothing: {owner.trouble.what}"))
        if worker.health.ill_because:
            findings.append(Finding("node", Verdict.LATER, f"no task can start: {worker.health.ill_because}"))
        return await explain_job(self.placement, subject, self.peers(), findings, until_possible=until_possible)

    # --- facade: jobs -----------------------------------------------------------------------------

    async def submit_job(self, terms: JobTerms, spec: JobSpec, *, client_note: str = "") -> bytes:
        return await self.job_desk.submit_job(terms, spec, client_note=client_note)

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        return await self.job_desk.add_tasks(job_id, payloads)

    async def seal_job(self, job_id: bytes) -> None:
        await self.job_desk.seal_job(job_id)

    async def cancel(self, job_id: bytes, *, indices: Sequence[int] | None = None, now: bool = False) -> None:
        await self.job_desk.cancel(job_id, indices=indices, now=now)

    async def retry(self, job_id: bytes, *, indices: Sequence[int] | None = None, failed_only: bool = True) -> int:
        return await self.job_desk.retry(job_id, indices=indices, failed_only=failed_only)

    async def evidence(self, key: bytes) -> EvidenceView:
        return await self.job_desk.evidence(key)

    async def bundle(self, job_id: bytes) -> bytes:
        return await self.job_desk.bundle(job_id)

    def ticket(self, job_id: bytes) -> TicketView:
        return self.job_desk.ticket(job_id)

    async def attach(self, ticket: str) -> JobView:
        return await self.job_desk.attach(ticket)

    async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
        return await self.job_desk.prune(older_than_s=older_than_s, drop_results=drop_results, dry_run=dry_run)

    def jobs(self) -> Sequence[JobView]:
        return self.job_desk.jobs()

    def job(self, ref: str) -> JobView:
        return self.job_desk.job(ref)

    async def tasks(
        self, job_id: bytes, *, states: Collection[str] | None = None, after: int = -1, limit: int = 1000
    ) -> Sequence[TaskView]:
        return await self.job_desk.tasks(job_id, states=states, after=after, limit=limit)

    def belief(self, job_id: bytes, task: TaskView) -> BeliefView | None:
        return self.job_desk.belief(job_id, task)

    async def tail(self, job_id: bytes, index: int, *, attempt: int, offsets: tuple[int, int]) -> TailView | None:
        return await self.job_desk.tail(job_id, index, attempt=attempt, offsets=offsets)

    async def lost_attempts(self, job_id: bytes) -> Sequence[LostAttemptView]:
        return await self.job_desk.lost_attempts(job_id)

    async def finished(self, job_id: bytes, *, after: int, limit: int) -> Sequence[TaskDone]:
        return await self.job_desk.finished(job_id, after=after, limit=limit)

    def watch(self, job_id: bytes, listener: Callable[[Sequence[TaskDone]], None]) -> Callable[[], None]:
        return self.job_desk.watch(job_id, listener)

    # --- facade: group ----------------------------------------------------------------------------

    async def invite(
        self, *, uses: int, expires_s: float, words: int = 0, roles: Sequence[str] = MEMBER_ROLES, is_mine: bool = False
    ) -> InviteView:
        return await self.joining.invite(uses=uses, expires_s=expires_s, words=words, roles=roles, is_mine=is_mine)

    def invite_state(self, invitation: bytes) -> InviteState:
        return self.joining.state(invitation)

    def open_invites(self) -> Sequence[OpenInviteView]:
        return self.joining.open_invites()

    def withdraw_invite(self, invitation: bytes) -> bool:
        return self.joining.withdraw(invitation)

    async def doors(self, method: str, via: str) -> Sequence[DoorView]:
        return await self.joining.doors(method, via)

    async def join(self, how: str | Entry, *, name: str | None = None) -> JoinView:
        invitation = self.joining.read(how) if isinstance(how, str) else how
        if name:
            self._options = replace(self._options, name=clean_name(name))
            self.credentials.rename(self._options.name)
        return await self.joining.join(invitation)

    def _comfort(self) -> Comfort:
        if self.comfort is None:
            raise UsageError("this node has no machine of its own", "it lives inside a program", None)
        return self.comfort

    async def pause(self, for_s: float | None, *, now: bool) -> IdleView:
        await self._comfort().pause_work(for_s, now=now)
        return self._comfort().view()

    async def resume(self) -> bool:
        return await self._comfort().resume_work()

    async def idle(self) -> IdleView:
        await self._comfort().look()
        return self._comfort().view()

    async def set_comfort(self, *, profile: str, in_use: str, idle: str, battery: str, hours: str) -> IdleView:
        settings = ComfortSettings(profile, in_use=in_use, idle=idle, battery=battery, hours=hours)
        await self._comfort().change(settings)
        return self._comfort().view()

    def trust(self) -> Sequence[TrustView]:
        return self.members.views()

    def remove(self, key: bytes, *, reason: str) -> TrustView:
        return self.members.remove(key, reason=reason)

    def set_roles(self, key: bytes, roles: Sequence[str], *, reason: str) -> TrustView:
        return self.members.set_roles(key, roles, reason=reason)

    def name_heir(self, key: bytes) -> TrustView:
        return self.members.name_heir(key)

    def policy(self) -> PolicyView:
        return replace(self.members.policy(), own_accept=self._own_accepts)

    def set_own_accept(self, condition: str) -> PolicyView:
        check_acceptance(condition)
        is_only_wasm = self._options.accept_if.startswith(ONLY_WASM) and condition != "false"
        wanted = only_wasm(condition) if is_only_wasm else condition
        if self._options.accepts_others:
            self._own_accepts = check_acceptance(wanted)
            self._policy_changed(self.members.policy().in_force)
        return self.policy()

    def set_policy(self, policy: GroupPolicy) -> PolicyView:
        check_acceptance(policy.accept, what="accept", chars_max=GROUP_ACCEPT_CHARS_MAX)
        self.members.set_policy(policy)
        return self.policy()

    def set_level(self, key: bytes, level: Level, *, reason: str) -> TrustView:
        return self.members.set_level(key, level, reason=reason)

    async def leave(self) -> None:
        if not self.credentials.group.is_open_to_others:
            raise UsageError("this node is in no group with others", "there is nothing to leave", None, code="alone")
        group = found_group(self._identity, self._host.crypto, self._options.group_name, self._host.clock.wall())
        self.credentials.invites.withdraw_all(self._host.clock.now())
        await self._change_group(group, ())

    async def _change_group(self, group: Group, contacts: Sequence[Address]) -> None:
        """Move to another group, or open ours; running work goes on, its channels are made anew."""
        async with self._changing:
            await self._move(group, contacts)

    async def _move(self, group: Group, contacts: Sequence[Address]) -> None:
        for key in list(self.scheduler.peers):
            self.scheduler.peer_gone(key)
        self.resources.known.clear()
        await self.network.stop()
        self.credentials.group = group
        self._keep_group(group)
        self.members.group_changed()
        await self.network.start(contacts)

    async def _on_renew(self, channel: Channel, body: Any) -> Any:
        return self.credentials.answer_renew(channel, body)

    def _has_changed(self) -> None:
        """An application has come or gone on this machine."""
        self.placement.measure_anew()
        self.capacity.node_changed()

    # --- peers ------------------------------------------------------------------------------------

    def _peer_known(self, key: bytes) -> None:
        self.capacity.peers_changed()
        self.scheduler.peer_known(key)

    def _channel_opened(self, channel: Channel) -> None:
        if not self.members.admits(channel):
            return
        self.members.channel_opened(channel)
        self.evidence_exchange.channel_opened(channel)
        self.network.channel_opened(channel)
        self.scheduler.channel_opened(channel)

    def _key_used_elsewhere(self, channel: Channel) -> None:
        """Another process has this node's key: its directory was copied.  Said once; whether it is true a peer says."""
        if not self._twin_note:
            self._twin_note = (
                f"another node runs with this one's key, says {channel.peer.name}: was this node's directory copied?  "
                "Both disturb each other: stop one, and let it join anew from a directory of its own (P2PC_HOME)"
            )
            self.on_warning(self._twin_note)

    def _channel_lost(self, channel: Channel) -> None:
        self.members.exchange.channel_lost(channel)
        self.network.channel_lost(channel)
        self.scheduler.channel_lost(channel)

    async def _fetch(self, refs: Sequence[BlobRef], key: bytes, addresses: Sequence[Address]) -> None:
        await self.exchange.fetch_all(refs, [(key, addresses)])

    def _may_read(self, peer: PeerInfo, _ref: BlobRef) -> bool:
        """Only those with whom this node has a job in common: to others there is nothing here."""
        return peer.installation == self._identity.installation or self.scheduler.shares_job_with(peer.key)
