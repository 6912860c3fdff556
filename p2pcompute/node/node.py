"""The composition root: the only place where identity, group, DHT, scheduler, execution and store meet."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from p2pcompute.errors import P2pcError, RemoteError, TrustError, UsageError
from p2pcompute.execution.neighbours import are_alike
from p2pcompute.execution.progress import parse as parse_progress
from p2pcompute.execution.spec import JobSpec, TaskPayload, blobs_of, decode_payload, decode_spec, encode_spec
from p2pcompute.host.interfaces import Address, Attribute, Attributes, BlobRef, BlobStore, Clock, Host, Value
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import format_device_id, short_device_id
from p2pcompute.limits import CUSTODIANS, GROUP_ACCEPT_CHARS_MAX, TICKET_TTL_S
from p2pcompute.node import views
from p2pcompute.node.bandwidth import LIFETIME_S as BANDWIDTH_LIFETIME_S
from p2pcompute.node.belief import belief
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
    TaskProgress,
    TaskView,
    TicketView,
    TrustView,
)
from p2pcompute.node.joining import Joining
from p2pcompute.node.members import Members
from p2pcompute.node.membership import RENEW, GroupCredentials, clean_name
from p2pcompute.node.network import Network
from p2pcompute.node.placement import ACCEPTS, Placement, are_outputs, is_data
from p2pcompute.node.proofs import bundle_of, evidence_of
from p2pcompute.node.seeds import note as seed_note
from p2pcompute.node.slowness import Course, NodeCourse
from p2pcompute.resources.explaining import Finding
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.matching import ONLY_WASM, Verdict, check_acceptance, only_wasm
from p2pcompute.resources.questions import UNKNOWN_REQUEST, Findings, Found, Query
from p2pcompute.resources.service import Resources
from p2pcompute.scheduler.books import Refusals, TaskEnd
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.messages import decode_outcome
from p2pcompute.scheduler.policies import Policy
from p2pcompute.scheduler.service import Scheduler
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.scheduler.tickets import parse_ticket
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
SOLO_GROUP_NAME = "home"
NO_INPUTS = TaskPayload()
STATE_LIFETIME_S = 10.0
"""How long it may be believed how busy this node is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What a person may choose about a node."""

    name: str
    group_name: str = SOLO_GROUP_NAME
    """Of the group that is founded where there is none."""
    port: int = 0
    """0: chosen at the first start and kept."""
    first_contacts: tuple[Address, ...] = ()
    seeds: tuple[tuple[str, int | None], ...] = ()
    """Domains, or hosts with ports: looked up for first contacts while nobody answers."""
    discover: bool = True
    accepts_others: bool = True
    """False: only this node's own jobs run here."""
    isolation: str = ""
    """How work of others is run: the attribute of this name; empty: nothing is said."""
    accept_if: str = ""
    """Condition over ``job.*`` on which work of others is taken; empty: always."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What its owner says of it: ``label.KEY``, and tags where the value is empty."""
    is_durable: bool = True
    """False for an embedded node that keeps nothing: no journal, no result rows."""
    custodians: int = CUSTODIANS
    """How many nodes keep a job that is submitted here too, where there are so many."""
    policy: Policy | None = None
    """Which of several nodes that wait is given tasks first; None: in turn."""
    is_networked: bool = True
    """False for an embedded node on its own: no socket, no port."""
    gives_network: bool = False
    """Whether tasks of others may reach public addresses from here."""
    grace_s: float = 30.0
    """How long running tasks may take to finish when the node stops."""
    share: Callable[[], float] = lambda: 1.0
    """What part of the cores is for the work of others in this group, where this machine is in several."""
    comfort: ComfortSettings | None = None
    """When the work of others runs; None: always, because nobody sits at this machine."""


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
        self.scheduler.owner.is_data = is_data
        self.scheduler.owner.are_outputs = are_outputs
        self.scheduler.worker.locate = self.network.locate
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
        }

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
        await self.scheduler.start()

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
        trouble = self.scheduler.owner.trouble or self._host.store.blobs.trouble()
        if trouble is not None:
            what = f"{trouble.what} ({trouble.why})" if trouble.why else trouble.what
            notes.append(f"the store takes nothing: {what}; {trouble.fix or 'work goes on when it does'}")
        if self.scheduler.worker.ill_because:
            notes.append(f"no task can run here: {self.scheduler.worker.ill_because}; it is tried again now and then")
        if self.network.dht is not None and self.network.dht.is_link_down:
            notes.append("no peer answers: this machine's network seems to be down")
        elif self.network.dht is not None and self.network.dht.index.is_degraded:
            notes.append("the index of the group is out of reach: questions and jobs go to the nodes known here")
        if self.network.dht is not None and self.network.dht.is_client:
            notes.append(
                "nobody can call this node from outside (NAT or firewall): it works with those that it has called; "
                f"to be reached, forward port {self.network.port} (UDP and TCP) to this machine"
            )
        seeds = tuple(seed.view() for seed in self.network.seeds)
        if self.network.is_lost and self.network.is_on_network:
            notes += filter(None, map(seed_note, seeds))
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
            subject = Subject(envelope.terms, spec, envelope.submitter, reasons, self._course(job))
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
        if worker.ill_because:
            findings.append(Finding("node", Verdict.LATER, f"no task can start: {worker.ill_because}"))
        return await explain_job(self.placement, subject, self.peers(), findings, until_possible=until_possible)

    def _course(self, job_id: bytes) -> Course:
        """Return how a job of this node goes."""
        book, view = self.scheduler.owner.book(job_id), self.job(job_id.hex())
        core, now, nodes = self.scheduler.owner.core, self._host.clock.now(), []
        former = [lease.thief for leases in book.job.former.values() for lease in leases]
        for share in view.by_node:
            thief = LOCAL if share.public_key == self._identity.public_key else share.public_key
            ended, took_s = book.took.get(thief, (0, 0.0))
            known = core.thieves.get(thief)
            refusals = book.job.refusals.get(thief, Refusals())
            nodes.append(
                NodeCourse(
                    key=share.public_key,
                    running=share.running,
                    ended=ended,
                    took_s=took_s,
                    copied=former.count(thief),
                    rests_s=0.0 if known is None else core.rests_s(now, known[0]),
                    refused=refusals.count,
                    refused_why=refusals.why,
                    refused_rests_s=max(0.0, book.job.unfit.get(thief, now) - now),
                )
            )
        checked = book.job.checked
        claimed = [] if checked is None else [index for index in checked.held if index in checked.outputs]
        unchecked = [] if checked is None else [index for index in claimed if index not in checked.asked]
        return Course(
            disputed=0 if checked is None else len(checked.asked),
            unchecked=len(unchecked),
            checks=0 if checked is None else sum(map(checked.is_computed, unchecked)),
            agreed=0 if checked is None else sum(len(checked.claims_of(index)) > 1 for index in unchecked),
            nodes=nodes,
            ended=view.done + view.failed,
            running=view.running,
            waiting=view.waiting,
            retried=view.retried,
            is_sealed=view.total is not None,
            slots_max=book.job.envelope.terms.slots_max,
        )

    # --- facade: jobs -----------------------------------------------------------------------------

    async def submit_job(self, terms: JobTerms, spec: JobSpec, *, client_note: str = "") -> bytes:
        if not terms.custodians and not terms.local_only and self._journal is not None:
            terms = replace(terms, custodians=self._custodians())
        terms = replace(terms, group=self.credentials.group.group_id)
        self._check_believable(terms)
        return await self.scheduler.owner.submit(terms, encode_spec(spec), client_note)

    def _check_believable(self, terms: JobTerms) -> None:
        """Refuse a job of whose results none could ever be believed.

        Raises:
            TrustError: it may run on one node only, which is not trusted.
        """
        if len(terms.on) != 1 or terms.verify == "none" or terms.replicas == 1:
            return
        (key,) = terms.on
        installation = self.credentials.installation_of(key) or key
        if key == self._identity.public_key or self.credentials.levels.level_of(installation) is Level.TRUSTED:
            return
        name = self.name_of(key)
        raise TrustError(
            f"{name} is not trusted, and no other node may check its results",
            "a result of a member is accepted when another one, or a trusted node, finds the same",
            f"p2pc trust set {name} trusted, or believe it this time: --verify none, or name more nodes",
            code="unchecked",
        )

    def _custodians(self) -> tuple[bytes, ...]:
        """Choose who keeps a new job too: installations of the group that are connected, may submit and keep things."""
        able = [channel.peer.key for channel in self.channels.all() if self._may_keep(channel)]
        able = list(dict.fromkeys(able))
        rng = self._host.rng.stream("custodians")
        return tuple(rng.sample(able, min(self._options.custodians, len(able))))

    def _may_keep(self, channel: Channel) -> bool:
        peer = channel.peer
        member = self.credentials.membership_of(peer.installation)
        may_submit = member is not None and "submit" in member.roles
        is_trusted = self.credentials.levels.level_of(peer.installation) is Level.TRUSTED  # it reads all of the job
        return may_submit and is_trusted and peer.key == peer.installation and peer.hello.get("keeps") is True

    async def add_tasks(self, job_id: bytes, payloads: Sequence[bytes]) -> int:
        first = await self.scheduler.owner.add_tasks(job_id, payloads)
        self.scheduler.offers.offer()
        return first

    async def seal_job(self, job_id: bytes) -> None:
        await self.scheduler.owner.seal(job_id)

    async def cancel(self, job_id: bytes, *, indices: Sequence[int] | None = None, now: bool = False) -> None:
        await self.scheduler.owner.cancel(job_id, indices, kill=now)

    async def retry(self, job_id: bytes, *, indices: Sequence[int] | None = None, failed_only: bool = True) -> int:
        count = await self.scheduler.owner.retry(job_id, indices, failed_only=failed_only)
        self.scheduler.offers.offer()
        return count

    async def evidence(self, key: bytes) -> EvidenceView:
        found = await evidence_of(self._host, self._journal, self.scheduler.owner, key)
        return replace(found, proof=found.proof or self.evidence_exchange.get(key))

    async def bundle(self, job_id: bytes) -> bytes:
        await self.scheduler.owner.committed()
        return await bundle_of(self._journal, self.scheduler.owner.book(job_id))

    def ticket(self, job_id: bytes) -> TicketView:
        custody = self.scheduler.custody
        if custody is None:
            raise UsageError("this node keeps no jobs", "it is embedded without a store", None, code="no-store")
        expires = self._host.clock.wall() + TICKET_TTL_S
        addresses = self.network.own_addresses()
        return TicketView(
            text=custody.ticket(job_id, expires_wall=expires, own_addresses=addresses), expires=float(int(expires))
        )

    async def attach(self, ticket: str) -> JobView:
        parsed, custody = parse_ticket(ticket), self.scheduler.custody
        if custody is None:
            raise UsageError("this node keeps no jobs", "it is embedded without a store", None, code="no-store")
        await custody.attach(parsed)
        return self.job(parsed.job_id.hex())

    async def prune(self, *, older_than_s: float, drop_results: bool, dry_run: bool) -> PruneReport:
        """Forget jobs that ended longer ago than this, with the files that only they name.

        `drop_results` removes the result files of the jobs; without it only the records go.
        """
        owner = self.scheduler.owner
        limit = self._host.clock.wall() - older_than_s
        old = [
            job_id
            for job_id, book in owner.books.items()
            if book.record.finished is not None and book.record.finished <= limit
        ]
        freed = 0
        for job_id in old:
            if dry_run:
                freed += await self._named_bytes(job_id) if drop_results else 0
                continue
            refs = await owner.forget(job_id)
            if drop_results:
                freed += await self.blobs.delete(refs)
        return PruneReport(jobs=len(old), freed_bytes=freed)

    async def _named_bytes(self, job_id: bytes) -> int:
        return 0 if self._journal is None else sum([ref.size async for ref in self._journal.pins(job_id)])

    def jobs(self) -> Sequence[JobView]:
        own = [book for book in self.scheduler.owner.books.values() if book.job.is_own]
        books = sorted(own, key=lambda book: book.record.submitted, reverse=True)
        return views.with_shares([self._job_view(book) for book in books])

    def job(self, ref: str) -> JobView:
        book = views.find_job(self.scheduler.owner, ref)
        return self._job_view(book)

    def _job_view(self, book: JobBook) -> JobView:
        view = views.job(book, self._host.clock.now(), self.name_of, self.scheduler.victim.slots_of, self._identity)
        if view.checking:
            doubt, fix = views.doubt(book.job, self.scheduler.owner.core, self._host.clock.now(), self.name_of)
            view = replace(view, doubt=doubt, doubt_fix=fix)
        if book.job.is_own:
            return view
        # What its submitter's programs noted stays there; how to show the tasks is known.
        return replace(view, note=f'{{"kind": "{_spec(book.job.envelope.spec).kind}"}}')

    async def tasks(
        self, job_id: bytes, *, states: Collection[str] | None = None, after: int = -1, limit: int = 1000
    ) -> Sequence[TaskView]:
        owner = self.scheduler.owner
        book = owner.book(job_id)
        ledger = book.job.ledger
        chosen: list[TaskView] = []
        for index in range(after + 1, ledger.size):
            if len(chosen) >= limit:
                break
            state = views.task_state(book.job, index)
            if states is None or state in states:
                chosen.append(await self._task_view(book.job.envelope.job_id, index, state, ledger.seq(index)))
        return chosen

    def _key_of(self, thief: bytes) -> bytes:
        return self._identity.public_key if thief == LOCAL else thief

    async def _task_view(self, job_id: bytes, index: int, state: str, seq: int) -> TaskView:
        owner = self.scheduler.owner
        job = owner.book(job_id).job
        payload = job.payloads.get(index)
        if payload is not None:
            lease = next(iter(owner.core.holders(job_id, index)), None)
            return TaskView(
                index,
                job.ledger.generation(index),
                state,
                node_key=b"" if lease is None else self._key_of(lease.thief),
                node_name="" if lease is None else self.name_of(lease.thief),
                attempts=job.attempts.get(index, 0),
                payload=payload,
            )
        record = await owner.result_of(job_id, index)
        reason = job.ledger.reasons.get(index, "")
        if record is None:
            return TaskView(index, job.ledger.generation(index), state, reason=reason, seq=seq)
        payload = record.payload
        if not payload:
            payload = (await owner.payloads(job_id, [index])).get(index, b"")
        return TaskView(
            index,
            job.ledger.generation(index),
            state,
            outcome=decode_outcome(record.outcome) if record.outcome else None,
            node_key=record.node_key or (self._identity.public_key if record.node_name else b""),
            node_name=record.node_name,
            attempts=record.attempts,
            payload=payload,
            reason=reason,
            seq=seq,
        )

    def belief(self, job_id: bytes, task: TaskView) -> BeliefView | None:
        owner, credentials = self.scheduler.owner, self.credentials
        return belief(
            owner.book(job_id).job,
            task.index,
            task.node_key,
            self._identity.public_key,
            self.name_of,
            lambda key: credentials.level_of(credentials.installation_of(key) or key),
            has_arbiter=owner.core.acceptance.has_arbiter(self._host.clock.now()),
        )

    async def tail(self, job_id: bytes, index: int, *, attempt: int, offsets: tuple[int, int]) -> TailView | None:
        found = await self.scheduler.tail(job_id, index, attempt, offsets)
        if found is None:
            return None
        (stdout_start, stdout), (stderr_start, stderr) = found.stdout, found.stderr
        said = parse_progress(found.progress)
        return TailView(
            node=self.name_of(found.node),
            attempt=found.attempt,
            stdout_start=stdout_start,
            stdout=stdout,
            stderr_start=stderr_start,
            stderr=stderr,
            progress=None if said is None else TaskProgress(*said),
            quiet_s=None if found.silence is None else found.silence.quiet_s,
            idle_s=None if found.silence is None else found.silence.idle_s,
        )

    async def lost_attempts(self, job_id: bytes) -> Sequence[LostAttemptView]:
        return [
            LostAttemptView(
                index=index,
                attempt=attempt,
                node=name,
                why=why,
                stdout_start=stdout.start,
                stdout=stdout.data,
                stderr_start=stderr.start,
                stderr=stderr.data,
            )
            for index, attempt, name, why, (stdout, stderr) in await self.scheduler.owner.lost(job_id)
        ]

    async def finished(self, job_id: bytes, *, after: int, limit: int) -> Sequence[TaskDone]:
        ledger = self.scheduler.owner.book(job_id).job.ledger
        found: list[TaskDone] = []
        for seq in range(after + 1, len(ledger.finished) + 1):
            if len(found) >= limit:
                break
            index = ledger.finished[seq - 1]
            if ledger.state(index) is TaskState.OPEN or ledger.seq(index) != seq:
                continue  # it was retried and ends again under another number
            state = views.STATE_NAMES[ledger.state(index)]
            end = await self._task_view(job_id, index, state, seq)
            if not end.payload:
                break  # its record, which holds or leads to its payload, is on the way to the store
            found.append(end)
        return found

    def watch(self, job_id: bytes, listener: Callable[[Sequence[TaskDone]], None]) -> Callable[[], None]:
        book = self.scheduler.owner.book(job_id)
        job = book.job

        def tell(ends: Sequence[TaskEnd]) -> None:
            listener(
                [
                    TaskView(
                        end.index,
                        end.generation,
                        views.STATE_NAMES[end.state],
                        end.outcome,
                        self._key_of(end.thief) if end.attempts else b"",
                        self.name_of(end.thief),
                        end.attempts,
                        end.payload,
                        job.ledger.reasons.get(end.index, ""),
                        end.seq,
                    )
                    for end in ends
                ]
            )

        book.listeners.append(tell)

        def stop() -> None:
            if tell in book.listeners:
                book.listeners.remove(tell)

        return stop

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


@lru_cache(maxsize=64)
def _spec(raw: bytes) -> JobSpec:
    return decode_spec(raw)


def inputs_of(spec: bytes, payload: bytes) -> list[BlobRef]:
    """Return the blobs that a task needs on the node before it starts.

    A payload that holds neither key under which it could name one is not decoded: that is most of them.

    Raises:
        RemoteProtocolError: the description is malformed.
    """
    if b"_blob" in payload or b"send" in payload:
        return blobs_of(_spec(spec), decode_payload(payload))
    return blobs_of(_spec(spec), NO_INPUTS)
