"""Custody, performed: replicas of jobs, takeover, return, and looking on by a ticket.

Each keeper of a job *pulls* what it lacks from another one (`Message.SYNC`): the owner's facts, in their sequence, with
how tasks ended, and the claims that the other took for the owner.  Custodians ask the owner, and wait at it for news;
while it is away they ask one another; who comes to coordinate a job asks all others.  What is kept of another node's
job lies in the journal as the owner's own does, so everything that shows jobs shows it too.

Only facts that the owner signed are kept.  Rows and files come from trusted keepers; a good result is taken only with
its worker's signature.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from p2pcompute.errors import (
    NodeUnavailable,
    P2pcError,
    RemoteError,
    RemoteProtocolError,
    StoreError,
    TrustError,
    UsageError,
)
from p2pcompute.host.interfaces import Address, BlobRef, Host
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import job_alias
from p2pcompute.limits import (
    CLAIMS_BYTES_MAX,
    CUSTODY_AFTER_S,
    CUSTODY_BEAT_S,
    CUSTODY_BYTES_MAX,
    CUSTODY_CACHE_SHARE,
    CUSTODY_GRACE_S,
    CUSTODY_JOBS_MAX,
    CUSTODY_KEEP_S,
    READERS_MAX,
    RECOVERY_GRACE_S,
    SYNC_PAUSE_S,
)
from p2pcompute.scheduler import messages
from p2pcompute.scheduler.custody import EPOCH_JUMP_MAX, NEVER, Charge, Outlook, coordinator_of, first_task, next_epoch
from p2pcompute.scheduler.custody_news import News, Waiters, read_fact
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.messages import (
    CLAIMS_CONTENT_TYPE,
    FACT_CONTENT_TYPE,
    FACT_KEYS,
    Message,
    Row,
    SyncAsked,
    Synced,
    decode_outcome,
    outcome_blobs,
    output_digest,
    parse_claims,
    parse_job,
)
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.terms import JobEnvelope, open_job
from p2pcompute.scheduler.tickets import Ticket, check_ticket, format_ticket, sign_ticket
from p2pcompute.scheduler.worker_service import Fetch, Inputs
from p2pcompute.store.journal import JobRecord, Journal, ResultRecord
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.wire.envelope import open_envelope, unverified_payload
from p2pcompute.wire.fields import named

SYNC_TIMEOUT_S: Final = CUSTODY_BEAT_S + 10.0
JOB_S: Final = 10.0
ADDRESSES_IN_TICKET: Final = 3
"""Of each keeper."""
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 10.0
"""Pause between attempts to reach a keeper: doubled up to this, with jitter."""
RETRY_OVER_S_MAX: Final = 60.0
"""The same when only the owner's word is missing."""
HEARD_LOOK_S: Final = 0.1
"""Pause between looks at whether custodians have told what they took: a cancellation waits for it."""
KNOCK_S: Final = 2.0
"""A coordinator that is to be replaced gets so long to answer."""
CLAIMED_STATES: Final = (TaskState.CLAIMED, TaskState.CLAIMED_FAILED)
_BY_OWNER: Final = tuple(kind for kind in FactKind if kind is not FactKind.CLAIMS)


@dataclass(slots=True)
class CustodyCounters:
    """What happened to jobs that several nodes keep."""

    kept_count: int = 0
    refused_full_count: int = 0
    """Jobs that were not taken, because there is no room."""
    takeovers_count: int = 0
    returns_count: int = 0
    """Jobs that were taken back, or given to a coordinator with a higher epoch."""
    relayed_count: int = 0
    """Results that came from a custodian and counted."""
    forged_count: int = 0
    blobs_missing_count: int = 0
    """Files of others' jobs that could not be fetched, or for which there is no room."""


class CustodyService:
    """Keeps the jobs of others, and sees to it that others keep ours."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        channels: Channels,
        journal: Journal,
        scope: TaskScope,
        owner: OwnerService,
        *,
        peers: Mapping[bytes, Sequence[Address]],
        wake: Callable[[], None],
        inputs: Inputs,
        fetch: Fetch,
        redirect: Callable[[JobEnvelope, int], None],
    ) -> None:
        """Args:
        inputs: (spec, payload) → blobs that the task needs.
        fetch: brings blobs here from another node.
        redirect: makes this node's own worker report a job to the coordinator that this epoch names.
        """
        self._host = host
        self._identity = identity
        self._key = identity.public_key
        self._channels = channels
        self._journal = journal
        self._scope = scope
        self._owner = owner
        self._peers = peers
        self._wake = wake
        self._inputs = inputs
        self._fetch = fetch
        self._redirect = redirect
        self._rng = host.rng.stream("scheduler.custody")
        self.charges: dict[bytes, Charge] = {}
        """Jobs that others keep too, our own and theirs."""
        self.counters = CustodyCounters()
        self.waiters = Waiters(host.clock)
        self._news = News(journal, owner.core.checkpoints, self._key)
        self._is_closed = False
        owner.commits.on_kept = self.waiters.wake
        self.may_keep: Callable[[JobEnvelope], bool] = lambda _job: True
        """Says whether the submitter of a job may have it kept here."""
        self.installation_of: Callable[[bytes], bytes | None] = lambda key: key
        """Whose a key is; None: it was not met."""
        channels.on_message(Message.CUSTODY, self._on_custody)
        channels.on_request(Message.SYNC, self._on_sync)

    @property
    def kept_bytes(self) -> int:
        """Of what is kept for others."""
        books = [book for book in self._owner.books.values() if not book.job.is_own]
        saved = self._owner.core.checkpoints
        return sum(book.kept_bytes + saved.size_of(book.job.envelope.job_id) for book in books)

    @property
    def room_bytes(self) -> int:
        """How much more may be."""
        share = int(self._host.store.blobs.bytes_max * CUSTODY_CACHE_SHARE)
        return min(CUSTODY_BYTES_MAX, share) - self.kept_bytes

    # --- life -------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Take up the jobs of earlier lives: ask who coordinates ours, go on keeping those of others."""
        now, wall = self._host.clock.now(), self._host.clock.wall()
        for job_id, book in list(self._owner.books.items()):
            job = book.job
            if not job.is_own and wall - (book.record.finished or book.record.submitted) > CUSTODY_KEEP_S:
                if not job.ledger.counts[TaskState.OPEN]:
                    await self._owner.forget(job_id)
                continue
            charge = self._charge(job_id)
            if charge is None:
                continue
            if not job.is_own:
                self._mind(now, charge, book)
            elif not job.ledger.is_complete:
                job.grants_from = now + CUSTODY_GRACE_S
                self._host.clock.call_later(CUSTODY_GRACE_S, self._wake)
                charge.unheard = dict.fromkeys(charge.others(self._key))

    def close(self) -> None:
        self._is_closed = True
        self.waiters.wake_all()

    @property
    def is_busy(self) -> bool:
        """Whether a job that others keep too is unfinished."""
        return any(not self._is_over(job_id) for job_id in self.charges)

    def _is_over(self, job_id: bytes) -> bool:
        book = self._owner.books.get(job_id)
        return book is None or book.job.ledger.is_complete

    def is_needed(self, key: bytes) -> bool:
        """Whether a channel to this peer serves a job that both keep."""
        return any(
            key in charge.job.coordinators and not self._is_over(job_id) for job_id, charge in self.charges.items()
        )

    def outlook(self, job_id: bytes) -> Outlook | None:
        """Say who coordinates a job that is kept here for another node; None: it is our own, or over."""
        charge, book = self.charges.get(job_id), self._owner.books.get(job_id)
        if charge is None or book is None or book.job.is_own or book.job.ledger.is_complete:
            return None
        now = self._host.clock.now()
        return charge.outlook(now, self._key, lambda key: self._channels.get(key) is not None)

    def _charge(self, job_id: bytes) -> Charge | None:
        """Return the charge of a job that is kept here; None when nobody else keeps it."""
        charge = self.charges.get(job_id)
        book = self._owner.books.get(job_id)
        if charge is None and book is not None:
            job = book.job.envelope
            if len(job.coordinators) < 2 and book.job.is_own:
                return None
            rank = job.coordinators.index(self._key) if self._key in job.coordinators else None
            charge = Charge(job=job, rank=rank, heard=self._host.clock.now(), is_acting=book.job.is_own)
            charge.epoch = book.job.epoch
            self.charges[job_id] = charge
        return charge

    def tick(self, now: float) -> None:
        """Do what is due."""
        for job_id, kept in self._owner.books.items():
            if job_id not in self.charges and not kept.job.ledger.is_complete:
                self._charge(job_id)
        for job_id, charge in list(self.charges.items()):
            book = self._owner.books.get(job_id)
            if book is None or self._is_settled(charge, book):
                del self.charges[job_id]
            elif book.job.is_own:
                self._invite(now, charge, book)
            elif charge.rank is not None:
                self._mind(now, charge, book)

    def _is_settled(self, charge: Charge, book: JobBook) -> bool:
        """Whether nothing is left to be done for a job; who asks for it is answered all the same."""
        if charge.collecting or charge.is_following or charge.is_fetching or charge.is_fetching_saved:
            return False
        return book.job.ledger.is_complete if book.job.is_own else self._is_judged(charge)

    def _invite(self, now: float, charge: Charge, book: JobBook) -> None:
        """Ask the custodians of our job to keep it, as long as they do not."""
        wall = self._host.clock.wall()
        if book.job.ledger.is_complete or wall - book.record.submitted < CUSTODY_AFTER_S:
            return
        for key in charge.others(self._key):
            last = max(charge.synced.get(key, NEVER), charge.asked.get(key, NEVER))
            if now - last > CUSTODY_BEAT_S * 1.5:
                channel = self._channels.get(key)
                if channel is not None:
                    charge.asked[key] = now
                    channel.send(Message.CUSTODY, [charge.job.job_id])
                elif key in self._peers:
                    self._channels.dial(key, self._peers.get(key, ()))

    def _mind(self, now: float, charge: Charge, book: JobBook) -> None:
        """See to a job that is kept here for another node."""
        if not self.may_keep(charge.job):
            charge.is_acting = False
            if charge.job.job_id in self._owner.core.jobs:
                self._owner.core.release(charge.job.job_id)
            self._scope.spawn(self._owner.drop_replica(charge.job.job_id), "drop")
            return
        if self._is_judged(charge):
            return
        self._follow(charge)
        if book.job.ledger.is_complete:
            return
        if charge.is_acting:
            if now - charge.beat >= CUSTODY_BEAT_S:
                charge.beat = now
                self._announce(charge)
        elif charge.is_overdue(now) and not charge.is_settling:
            charge.is_settling = True
            self._scope.spawn(self._take_over(charge, book), "takeover")

    # --- who coordinates --------------------------------------------------------------------------

    def _announce(self, charge: Charge) -> None:
        """Tell all peers who coordinates the job."""
        for channel in self._channels.all():
            channel.send(Message.COORDINATOR, [charge.job.job_id, charge.epoch])

    def channel_opened(self, channel: Channel) -> None:
        """Tell a peer what we coordinate instead of others, and ask custodians to keep what is ours."""
        key, now = channel.peer.key, self._host.clock.now()
        for job_id, charge in self.charges.items():
            book = self._owner.books.get(job_id)
            if book is None or book.job.ledger.is_complete:
                continue
            if charge.is_acting and charge.epoch:
                channel.send(Message.COORDINATOR, [job_id, charge.epoch])
            if book.job.is_own and key in charge.job.terms.custodians:
                charge.asked.pop(key, None)
                charge.synced.pop(key, None)
                self._invite(now, charge, book)
                if charge.epoch or charge.unheard:
                    self._collect(charge, key)

    def leaving(self, key: bytes) -> None:
        """A peer says that it leaves."""
        now = self._host.clock.now()
        for charge in self.charges.values():
            if charge.coordinator == key and not charge.is_acting:
                charge.leaving(now)

    def _on_custody(self, channel: Channel, body: Any) -> None:
        """The owner asks us to keep its job."""
        job_id = messages.parse_job_id(body)
        charge = self.charges.get(job_id)
        if charge is not None:
            if charge.rank and channel.peer.key == charge.job.signer:
                self._follow(charge)
            return
        if job_id in self._owner.books:
            return
        kept = sum(not book.job.is_own for book in self._owner.books.values())
        if kept >= CUSTODY_JOBS_MAX or self.room_bytes <= 0 or self._is_closed:
            self.counters.refused_full_count += 1
            return
        self._scope.spawn(self._keep(channel, job_id), "keep")

    async def _keep(self, channel: Channel, job_id: bytes, ticket: bytes = b"") -> Charge | None:
        """Begin to keep another node's job; None when we are not to."""
        try:
            answer = await channel.request(Message.JOB, [job_id], timeout_s=JOB_S)
            job = open_job(self._host.crypto, parse_job(answer), wall=self._host.clock.wall(), is_new=not ticket)
            if job.job_id != job_id or not (ticket or self._key in job.terms.custodians):
                raise RemoteProtocolError("not a job to be kept here")
            if not ticket and not self.may_keep(job):
                raise TrustError("its submitter may not submit")
        except P2pcError:
            if ticket:
                raise
            return None
        if job_id in self._owner.books or self._is_closed:
            return self._charge(job_id)
        wall = job.terms.created_ms / 1000
        alias = job_alias(job_id, self._owner.aliases)
        record = JobRecord(job_id=job_id, envelope=job.raw, alias=alias, submitted=wall)
        self._owner.add_replica(record, job).room.set()
        try:
            await self._host.store.commit([self._journal.job_write(record)])
        except StoreError:  # the disk takes nothing: whoever asked does so again
            with contextlib.suppress(StoreError):
                await self._owner.drop_replica(job_id)
            if ticket:
                raise
            return None
        self.counters.kept_count += 1
        charge = self._charge(job_id)
        if charge is not None and not ticket:
            self._follow(charge)
        self._wake()
        return charge

    # --- tickets ----------------------------------------------------------------------------------

    def ticket(self, job_id: bytes, *, expires_wall: float, own_addresses: Sequence[Address]) -> str:
        """Return a ticket for one of our jobs.

        Raises:
            UsageError: there is no such job.
            TrustError: it is another node's.
        """
        job = self._owner.own_book(job_id).job.envelope
        raw = sign_ticket(self._identity, job_id, expires_wall=expires_wall)
        keepers = [(key, tuple(self._peers.get(key, ()))[:ADDRESSES_IN_TICKET]) for key in job.terms.custodians]
        own = (self._key, tuple(own_addresses)[:ADDRESSES_IN_TICKET])
        return format_ticket(Ticket(job_id, raw, (own, *keepers)))

    async def attach(self, ticket: Ticket) -> None:
        """Look on at a job: bring here what is kept of it, now and as it goes on.

        Raises:
            NodeUnavailable: nobody who keeps it can be reached.
            TrustError: the ticket is not good.
        """
        job_id = ticket.job_id
        book = self._owner.books.get(job_id)
        if book is not None and (book.job.is_own or self._key in book.job.envelope.coordinators):
            return
        if book is None and sum(not one.job.is_own for one in self._owner.books.values()) >= CUSTODY_JOBS_MAX:
            self.counters.refused_full_count += 1
            raise UsageError(
                "too many jobs of others are kept here",
                f"the limit is {CUSTODY_JOBS_MAX}",
                "p2pc prune",
                code="jobs-full",
            )
        trouble = ""
        for key, addresses in ticket.keepers:
            try:
                channel = self._channels.get(key) or await self._channels.connect(
                    key, [*self._peers.get(key, ()), *addresses]
                )
                charge = self._charge(job_id) or await self._keep(channel, job_id, ticket.raw)
                if charge is None:
                    continue
                charge.ticket, charge.addresses = ticket.raw, dict(ticket.keepers)
                while not await self._pull(charge, key, wait_s=0.0):
                    pass
            except RemoteError as error:
                if error.code == TrustError.default_code:
                    await self._owner.drop_replica(job_id)
                    raise TrustError(error.what, "", "ask for a new one: p2pc show --ticket") from error
                trouble = error.what
            except (P2pcError, TimeoutError) as error:
                trouble = str(error)
            else:
                self._follow(charge)
                return
        if book is None:
            await self._owner.drop_replica(job_id)
        raise NodeUnavailable(
            "no node that keeps this job can be reached",
            trouble,
            "start one of them, or join its group: p2pc join",
            code="no-keeper",
        )

    def told(self, channel: Channel, job_id: bytes, epoch: int) -> None:
        """A peer says which epoch of a job it knows."""
        charge = self.charges.get(job_id)
        key = channel.peer.key
        if charge is None:
            return
        if key in charge.job.coordinators:
            is_acting = coordinator_of(charge.job, epoch) == key
            self._heard(charge, key, epoch, is_acting=is_acting)
        elif charge.epoch < epoch <= charge.epoch + EPOCH_JUMP_MAX and charge.goes_before(epoch):
            # A worker that has worked for a custodian refuses our grants: that custodian may never come back.
            self._reclaim(charge, epoch)

    def _reclaim(self, charge: Charge, epoch: int) -> None:
        """Coordinate a job in spite of an epoch that is not ours."""
        charge.epoch = next_epoch(epoch, charge.rank or 0, len(charge.job.coordinators))
        self._owner.books[charge.job.job_id].job.epoch = charge.epoch
        self.counters.returns_count += 1
        if charge.rank:
            self._redirect(charge.job, charge.epoch)
        self._announce(charge)

    def _heard(self, charge: Charge, key: bytes, epoch: int, *, is_acting: bool) -> None:
        """Another keeper says which epoch it knows, and whether it coordinates the job."""
        book = self._owner.books.get(charge.job.job_id)
        if book is None or key not in charge.job.coordinators or epoch > charge.epoch + EPOCH_JUMP_MAX:
            return
        now = self._host.clock.now()
        if book.job.is_own:
            if is_acting or epoch > charge.epoch:
                if epoch >= charge.epoch:
                    self._reclaim(charge, epoch)
                if is_acting:
                    self._collect(charge, key)
            return
        if charge.hear(now, key, epoch):
            book.job.epoch = charge.epoch
            if charge.is_acting and charge.coordinator != self._key:
                self._step_down(charge, book)
            elif not charge.is_acting:
                self._redirect(charge.job, charge.epoch)
        elif charge.is_acting and is_acting and epoch < charge.epoch:
            self._announce(charge)
            self._collect(charge, key)

    async def _take_over(self, charge: Charge, book: JobBook) -> None:
        """Coordinate a job: its coordinator has not been heard of for too long."""
        job_id, ledger = charge.job.job_id, book.job.ledger
        try:
            if await self._knock(charge):
                return
            await self._owner.committed()
            payloads: dict[int, bytes] = {}
            claims: list[Any] = []
            is_cancelled = False
            async for raw in self._journal.facts(job_id):
                kind, body = read_fact(raw)
                if kind == FactKind.TASKS:
                    for index, payload in enumerate(body[1], body[0]):
                        if index < ledger.size and ledger.state(index) is TaskState.OPEN:
                            payloads[index] = payload
                elif kind == FactKind.CLAIMS:
                    claims += body
                elif kind in (FactKind.CANCEL_ALL, FactKind.RETRY):
                    is_cancelled = kind == FactKind.CANCEL_ALL
            async for raw in self._journal.relays(job_id):
                claims += read_fact(raw)[1]
            payloads = await self._runnable(charge, payloads)
            now = self._host.clock.now()
            if not charge.is_overdue(now) or ledger.is_complete or self._is_closed:
                return
            book.job.epoch = charge.take_over()
            charge.beat = now
            self.counters.takeovers_count += 1
            begin_at = first_task(ledger.size, charge.rank or 1, len(charge.job.terms.custodians))
            self._owner.core.adopt(
                now,
                book.job,
                payloads,
                claims,
                now + RECOVERY_GRACE_S,
                begin_at=begin_at,
                is_cancelled=is_cancelled,
            )
            self._announce(charge)
            self._redirect(charge.job, charge.epoch)
            self._collect_all(charge)
            self._host.clock.call_later(RECOVERY_GRACE_S, self._wake)
            self._wake()
        except StoreError:
            return  # the next tick tries again
        finally:
            charge.is_settling = False

    async def _knock(self, charge: Charge) -> bool:
        """Whether the coordinator is there after all: it may be we who were away."""
        try:
            async with self._host.clock.timeout(KNOCK_S):
                await self._pull(charge, charge.coordinator, wait_s=0.0)
        except (P2pcError, TimeoutError):
            return False
        return not charge.is_overdue(self._host.clock.now())

    async def _runnable(self, charge: Charge, payloads: dict[int, bytes]) -> dict[int, bytes]:
        """Return those of the tasks whose inputs are here."""
        has: dict[BlobRef, bool] = {}
        found = {}
        for index, payload in payloads.items():
            is_here = True
            for ref in self._inputs(charge.job.spec, payload):
                if ref not in has:
                    has[ref] = await self._host.store.blobs.has(ref)
                is_here = is_here and has[ref]
            if is_here:
                found[index] = payload
        return found

    def _step_down(self, charge: Charge, book: JobBook) -> None:
        """Somebody else coordinates the job now."""
        charge.is_acting = False
        self.counters.returns_count += 1
        self._owner.core.release(charge.job.job_id)
        self._redirect(charge.job, charge.epoch)
        self._announce(charge)
        self._follow(charge)
        self._wake()

    # --- pulling ----------------------------------------------------------------------------------

    def _follow(self, charge: Charge) -> None:
        """Keep a replica up to date, in the background."""
        if not charge.is_following and not self._is_closed:
            charge.is_following = True
            self._scope.spawn(self._follow_all(charge), "follow")

    async def _follow_all(self, charge: Charge) -> None:
        pause_s = RETRY_S_MIN
        sources = charge.others(self._key)
        turn = 0
        try:
            while charge.job.job_id in self._owner.books:
                owner = charge.job.signer
                key = owner if self._channels.get(owner) is not None else sources[turn % len(sources)]
                try:
                    is_all = await self._pull(charge, key, wait_s=CUSTODY_BEAT_S)
                except (P2pcError, TimeoutError):
                    turn += 1
                    await self._host.clock.sleep(pause_s * (0.5 + self._rng.random()))
                    pause_s = min(RETRY_OVER_S_MAX if self._is_over(charge.job.job_id) else RETRY_S_MAX, pause_s * 2)
                    continue
                pause_s = RETRY_S_MIN
                if is_all and self._is_judged(charge):
                    return
                await self._host.clock.sleep(SYNC_PAUSE_S)
        finally:
            charge.is_following = False

    def _is_judged(self, charge: Charge) -> bool:
        """Whether the owner has nothing more to say."""
        book = self._owner.books.get(charge.job.job_id)
        if book is None:
            return True
        ledger = book.job.ledger
        return ledger.is_complete and not any(ledger.counts[state] for state in CLAIMED_STATES)

    async def all_heard(self, job_id: bytes) -> None:
        """Wait until the custodians of our job have told what they took while this node was away; those who do not are
        waited for no longer than before tasks are given out again.
        """
        clock = self._host.clock
        limit = clock.now() + CUSTODY_GRACE_S
        while not self._is_closed and clock.now() < limit:
            charge, book = self.charges.get(job_id), self._owner.books.get(job_id)
            if charge is None or book is None or not book.job.is_own:
                return
            if not charge.collecting and (not charge.unheard or clock.now() >= book.job.grants_from):
                return
            await clock.sleep(HEARD_LOOK_S)

    def _collect_all(self, charge: Charge) -> None:
        for key in charge.others(self._key):
            self._collect(charge, key)

    def _collect(self, charge: Charge, key: bytes) -> None:
        """Fetch what another keeper took while somebody else, or nobody, coordinated the job."""
        if key not in charge.collecting and not self._is_closed:
            charge.collecting[key] = None
            self._scope.spawn(self._collect_one(charge, key), "collect")

    async def _collect_one(self, charge: Charge, key: bytes) -> None:
        try:
            while charge.is_acting and not await self._pull(charge, key, wait_s=0.0):
                pass
        except RemoteError as error:
            if error.code != "no-job":
                return
        except (P2pcError, TimeoutError):
            return  # it comes back, or it does not
        finally:
            charge.collecting.pop(key, None)
        charge.unheard.pop(key, None)
        book = self._owner.books.get(charge.job.job_id)
        if book is not None and book.job.is_own and not charge.unheard:
            book.job.grants_from = 0.0
        self._wake()

    async def _pull(self, charge: Charge, key: bytes, *, wait_s: float) -> bool:
        """Ask another keeper once; True when it has told all that it had.

        Raises:
            P2pcError: it cannot be reached, or its answer is wrong.
        """
        job_id = charge.job.job_id
        addresses = [*self._peers.get(key, ()), *charge.addresses.get(key, ())]
        channel = self._channels.get(key) or await self._channels.connect(key, addresses)
        book = self._owner.book(job_id)
        claims, claim_rows = charge.relays.get(key, (0, 0))
        process, saved = charge.saved.get(key, (b"", 0))
        asked = SyncAsked(
            job_id=job_id,
            ticket=charge.ticket,
            facts=book.next_fact,
            rows=charge.rows,
            claims=claims,
            claim_rows=claim_rows,
            epoch=charge.epoch,
            is_acting=charge.is_acting,
            taken=0 if book.job.is_own else book.next_relay,
            saved=saved if process == channel.instance else 0,
            wait_s=wait_s,
        )
        answer = await channel.request(Message.SYNC, asked.body(), timeout_s=SYNC_TIMEOUT_S)
        synced = messages.parse_synced(answer)
        self._heard(charge, key, synced.epoch, is_acting=synced.is_acting)
        book = self._owner.book(job_id)  # it may have been pruned meanwhile
        try:
            if not book.job.is_own and not charge.is_acting and book.next_fact == asked.facts:
                self._take_facts(charge, book, synced)
            if charge.relays.get(key, (0, 0)) == (asked.claims, asked.claim_rows):
                await self._take_claims(charge, book, key, synced)
                whole = len(synced.claims) - (1 if synced.claims and synced.claim_rows_next else 0)
                charge.relays[key] = (asked.claims + whole, synced.claim_rows_next)
            if not charge.is_acting or book.job.is_own:
                self._take_saved(charge, book, channel, synced)
        except RemoteProtocolError:
            self.counters.forged_count += 1
            raise
        await self._owner.committed()
        if book.unfetched and not charge.is_fetching:
            charge.is_fetching = True
            self._scope.spawn(self._fetch_blobs(charge, book, key), "custody blobs")
        return synced.is_all

    def _take_facts(self, charge: Charge, book: JobBook, synced: Synced) -> None:
        """Keep rows and facts that the owner has written."""
        ledger = book.job.ledger
        for row in synced.rows:
            record, outcome = self._record(row)
            self._owner.keep_row(book, row.index, row.generation, record, outcome)
        for raw in synced.facts:
            kind, body = self._check_fact(charge.job, raw)
            ledger.fold(kind, body)
            book.job.is_checked |= kind == FactKind.HELD
            self._owner.keep_fact(book, raw, kind, body)
        charge.rows = synced.rows_next
        if synced.facts or synced.rows:
            book.kept_bytes += sum(map(len, synced.facts)) + sum(len(row.outcome) for row in synced.rows)
            self._owner.replica_changed(book)

    def _take_saved(self, charge: Charge, book: JobBook, channel: Channel, synced: Synced) -> None:
        """Keep copies of what tasks have saved: the owner's word, or that of a trusted node which acts for it.

        The owner takes what is further on than its own from any custodian that it trusts.
        """
        peer = channel.peer
        is_owner = peer.key == charge.job.signer
        may_tell = (synced.is_acting or book.job.is_own) and self._owner.core.is_trusted(peer.installation)
        if not is_owner and not may_tell:
            return
        for index, saved in synced.saved:
            charge.saved_blobs.pop(index, None)
            if saved is not None and not is_owner:
                saved = replace(saved, by=tuple(dict.fromkeys([*saved.by, peer.installation])))
            if saved is not None and saved.blob is not None:
                charge.saved_blobs[index] = saved
            else:
                self._owner.save_copy(book, index, saved)
        charge.saved[peer.key] = (channel.instance, synced.saved_next)
        if charge.saved_blobs and not charge.is_fetching_saved and not self._is_closed:
            charge.is_fetching_saved = True
            self._scope.spawn(self._fetch_saved(charge, book, peer.key), "custody checkpoints")

    async def _fetch_saved(self, charge: Charge, book: JobBook, key: bytes) -> None:
        """Bring large cookies here one after the other; what was kept before stays until the new one is here."""
        blobs = self._host.store.blobs
        try:
            while charge.saved_blobs:
                index = next(iter(charge.saved_blobs))
                saved = charge.saved_blobs.pop(index)
                assert saved.blob is not None
                if not book.job.is_own and saved.size > self.room_bytes:
                    self.counters.blobs_missing_count += 1
                    continue
                blobs.pin([saved.blob])
                try:
                    if not await blobs.has(saved.blob):
                        await self._fetch([saved.blob], key, self._peers.get(key, ()))
                    if index not in charge.saved_blobs and self._owner.books.get(charge.job.job_id) is book:
                        self._owner.save_copy(book, index, saved)
                except (P2pcError, TimeoutError):
                    self.counters.blobs_missing_count += 1
                finally:
                    blobs.unpin([saved.blob])
        finally:
            charge.is_fetching_saved = False

    def _check_fact(self, job: JobEnvelope, raw: bytes) -> tuple[int, Any]:
        """Return a fact of the owner, or claims of a worker that the owner has taken.

        Raises:
            RemoteProtocolError: signed by nobody who may, or malformed.
        """
        payload = unverified_payload(raw)
        if isinstance(payload, dict) and "claims" in payload:
            opened = open_envelope(self._host.crypto, raw, CLAIMS_CONTENT_TYPE, bytes_max=CLAIMS_BYTES_MAX)
            job_id, claims = parse_claims(opened.payload)
            if job_id != job.job_id:
                raise RemoteProtocolError("claims of another job")
            return FactKind.CLAIMS, [[*claim, opened.signer] for claim in claims]
        opened = open_envelope(self._host.crypto, raw, FACT_CONTENT_TYPE, signer=job.signer)
        payload = named(opened.payload, FACT_KEYS, "fact")
        if payload["job"] != job.job_id:
            raise RemoteProtocolError("not a fact of this job")
        if payload["kind"] not in _BY_OWNER:
            raise RemoteProtocolError("a fact of an unknown kind")
        return payload["kind"], payload["body"]

    def _record(self, row: Row) -> tuple[ResultRecord, Outcome | None]:
        outcome = decode_outcome(row.outcome) if row.outcome else None
        record = ResultRecord(
            state=row.state,
            node_key=b"" if row.node_key == self._key else row.node_key,
            node_name=row.node_name,
            attempts=row.attempts,
            outcome=row.outcome,
            payload=row.payload,
        )
        return record, outcome

    async def _take_claims(self, charge: Charge, book: JobBook, key: bytes, synced: Synced) -> None:
        """Take results that another keeper took; they are judged here, if anywhere."""
        rows = {(row.index, row.generation): row for row in synced.claimed}
        for raw in synced.claims:
            opened = open_envelope(self._host.crypto, raw, CLAIMS_CONTENT_TYPE, bytes_max=CLAIMS_BYTES_MAX)
            job_id, claims = parse_claims(opened.payload)
            if job_id != charge.job.job_id:
                raise RemoteProtocolError("claims of another job")
            good, bad = [], []
            for claim in claims:
                row = rows.get((claim[0], claim[1]))
                if row is None or not row.outcome or not self._owner.wants(job_id, claim):
                    continue
                outcome = decode_outcome(row.outcome)
                if str(outcome.status) != claim[3] or output_digest(outcome) != claim[4]:
                    continue  # of another attempt
                if outcome.status is OutcomeStatus.OK:
                    good.append((claim, outcome))
                elif row.state == TaskState.CLAIMED_FAILED:
                    bad.append((claim, outcome))
            refs = dict.fromkeys(ref for _claim, outcome in good + bad for ref in outcome_blobs(outcome))
            blobs = self._host.store.blobs
            blobs.pin(refs)
            try:
                missing = [ref for ref in refs if not await blobs.has(ref)]
                if missing:
                    await self._fetch(missing, key, self._peers.get(key, ()))
                by = self.installation_of(opened.signer) or opened.signer
                good = await self._owner.readable(job_id, by, good)
                bad = await self._owner.readable(job_id, by, bad)
                if good:
                    self.counters.relayed_count += self._owner.intake(
                        opened.signer, by, job_id, raw, good, relayed_by=key
                    )
                if book.job.is_own:
                    for claim, outcome in bad:
                        row = rows[claim[0], claim[1]]
                        self._owner.core.judge_failed(
                            job_id, row.index, row.generation, row.attempts, outcome, opened.signer
                        )
                await self._owner.committed()
            finally:
                blobs.unpin(refs)
        self._wake()

    async def _fetch_blobs(self, charge: Charge, book: JobBook, key: bytes) -> None:
        """Bring here what tasks and results of a kept job name; one that only looks on needs no inputs."""
        wanted, book.unfetched = book.unfetched, {}
        try:
            for ref in wanted:
                if await self._host.store.blobs.has(ref):
                    book.kept_bytes += ref.size
                    continue
                if ref.size > self.room_bytes:
                    self.counters.blobs_missing_count += 1
                    continue
                try:
                    await self._fetch([ref], key, self._peers.get(key, ()))
                    book.kept_bytes += ref.size
                except (P2pcError, TimeoutError):
                    self.counters.blobs_missing_count += 1
                    book.unfetched[ref] = None
        finally:
            charge.is_fetching = False

    # --- being asked ------------------------------------------------------------------------------

    async def _on_sync(self, channel: Channel, body: Any) -> Any:
        asked = messages.parse_sync(body)
        key, now = channel.peer.key, self._host.clock.now()
        book = self._owner.books.get(asked.job_id)
        if book is None:
            raise TrustError("no such job here", code="no-job")
        job = book.job.envelope
        charge = self._charge(asked.job_id)
        is_keeper = key in job.coordinators
        if not is_keeper:
            check_ticket(self._host.crypto, asked.ticket, job, wall=self._host.clock.wall())
            book.readers[key] = None
            if len(book.readers) > READERS_MAX:
                del book.readers[next(iter(book.readers))]
        if charge is not None and is_keeper:
            charge.synced[key] = now
            self._heard(charge, key, asked.epoch, is_acting=asked.is_acting)
            if charge.is_acting and asked.taken > charge.relays.get(key, (0, 0))[0]:
                self._collect(charge, key)
        answer = await self._answer(charge, book, asked, is_keeper=is_keeper)
        is_waiting = asked.wait_s and not answer.has_news and not self._is_closed
        if is_waiting and await self.waiters.wait(asked.job_id, asked.wait_s):
            answer = await self._answer(charge, book, asked, is_keeper=is_keeper)
        return answer.body()

    async def _answer(self, charge: Charge | None, book: JobBook, asked: SyncAsked, *, is_keeper: bool) -> Synced:
        is_acting = book.job.is_own or (charge is not None and charge.is_acting)
        epoch = 0 if charge is None else charge.epoch
        return await self._news.of(book, asked, epoch=epoch, is_acting=is_acting, is_keeper=is_keeper)
