"""The DHT of one group as the node uses it: joins, keeps the table alive, finds, puts and gets.

Performs what the cores decide, on the host's clock and a datagram port: answers what peers ask, pings whom the
cores say, and tells of those who come and go (`peers`).  Whom to look for besides is in `joining`, whether others can
reach this node in `calls`, lookups in `queries`.  One timer waits for whatever is due first.

At rest a node of a large group sends about one message in ten seconds: what is rare of it is advertised for as long as
it has been up (within bounds; old nodes stay longest), what is common not at all.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from p2pcompute.dht.calls import Calls
from p2pcompute.dht.capacity import CapacityIndex, Feature
from p2pcompute.dht.contacts import Contact, id_of, place_of
from p2pcompute.dht.exchange import DatagramPort, DhtCounters, Exchange, Verified
from p2pcompute.dht.index import Outcome
from p2pcompute.dht.joining import Joining, Place, jittered
from p2pcompute.dht.keeper import Keeper
from p2pcompute.dht.lookup import Lookup
from p2pcompute.dht.messages import (
    RUN_BYTES,
    Ack,
    AckStatus,
    Bye,
    Call,
    Find,
    Get,
    Message,
    Nodes,
    Ping,
    Pong,
    Put,
    Query,
    Register,
    Registered,
    Ring,
    cut_contacts,
    shown_name,
)
from p2pcompute.dht.peers import Peers, PeersChange
from p2pcompute.dht.publications import Publications
from p2pcompute.dht.queries import Queries, ignore, reachable
from p2pcompute.dht.reach import Reach
from p2pcompute.dht.records import Record, RecordStore, make_record
from p2pcompute.dht.tokens import WriteTokens
from p2pcompute.host.interfaces import Address, Host, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    AD_TTL_S,
    DHT_GOODBYE_S,
    DHT_HAND_ON_S,
    DHT_K,
    DHT_NEWCOMERS_MAX,
    DHT_PING_S,
    DHT_REQUEST_S,
    DHT_VERIFICATIONS_MAX,
    RECORD_TTL_S_MAX,
)

_PAUSE_S_MAX = 300.0
_EXPIRE_S = 60.0
"""Records are dropped at most so long after they have ended; they are not told from then on in any case."""
_ADVERTISE_AFTER_S = 60.0
"""What this node has is advertised so long after it was said: then what most contacts have is known."""
_OBSERVED_MAX = 32
"""Contacts whose view of our address is kept."""


class Dht:
    """This node in the DHT of one group."""

    __slots__ = (
        "_advertise_at", "_began", "_calls", "_clock", "_crypto", "_exchange", "_expire_at",
        "_first_contact_at", "_group_id", "_identity", "_is_advertising", "_is_founder", "_is_publishing", "_joining",
        "_keeper", "_last_contact_at", "_name", "_net", "_newcomers", "_observed", "_own_id", "_peers", "_port",
        "_publications", "_puzzle_bits", "_queries", "_reach", "_rng", "_run", "_scope", "_started", "_stopped",
        "_table", "_timer", "_timer_at", "_tokens", "_verifying", "counters", "index", "is_open", "on_contact",
        "on_contact_gone", "on_contact_silent",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        identity: Identity,
        port: DatagramPort,
        scope: TaskScope,
        *,
        group_id: bytes,
        name: str,
        is_open: bool = False,
        is_founder: bool = False,
        puzzle_bits: int = 0,
    ) -> None:
        """Make it; nothing is sent before `start`.

        Args:
            port: sends datagrams of this group; what arrives for the group is to be given to `receive`.
            scope: owns the tasks; when it is closed, the DHT stops without a goodbye.
            name: shown to peers.
            is_open: anybody may be in the group, under as many identities as he likes.
            puzzle_bits: of the puzzle that a key has to solve to count in this group (see `puzzle`); 0: none.
            is_founder: the first of the group is a server before anybody can prove it.
        """
        self._net = host.net
        self._is_founder = is_founder
        self._puzzle_bits = puzzle_bits
        self._clock = host.clock
        self._crypto = host.crypto
        self._rng = host.rng.stream("dht")
        self._identity = identity
        self._own_id = id_of(identity.public_key)
        self._port = port
        self._scope = scope
        self._group_id = group_id
        self._name = shown_name(name)
        self.is_open = is_open
        self.counters = DhtCounters()
        self.on_contact: Callable[[Contact], None] = lambda contact: None
        """Called when a peer was verified and entered the table."""
        self.on_contact_gone: Callable[[Contact], None] = lambda contact: None
        """Called when a peer was evicted or has said goodbye."""
        self.on_contact_silent: Callable[[Contact], None] = lambda contact: None
        """Called after that when it was evicted because it does not answer."""
        self._keeper = Keeper(self._clock, self._crypto, self.counters)
        self._tokens = WriteTokens(self._crypto.random_bytes)
        self._reset()

    def _reset(self) -> None:
        self._exchange: Exchange | None = None
        self._run = b""
        self._reach = Reach(self._net.local_addresses(), is_presumed=self._is_founder)
        self._peers = Peers(self._own_id, is_open=self.is_open)
        self._table = self._peers.servers
        self._publications = Publications()
        self._is_publishing = False
        self._queries = Queries(
            self._clock, self._scope, self._ask, self._timeouts, self._table, self._keeper, self.counters
        )
        self.index = CapacityIndex(
            self._clock,
            self._rng,
            self._ask,
            self._timeouts,
            self._table,
            self._queries,
            self.counters,
            is_open=self.is_open,
        )
        self._calls = Calls(
            self._clock,
            self._net,
            self._rng,
            self._ask,
            self._ping,
            self._reach,
            self._peers,
            self._queries,
            self.counters,
        )
        self._joining = Joining(
            self._clock,
            self._rng,
            self._ask,
            self._table,
            self._queries,
            self.counters,
            stretch=self._stretch,
            check_reach=self._calls.check,
            verify_heard=self._verify_heard,
        )
        self._verifying: dict[bytes, None] = {}
        self._stopped: asyncio.Future[None]
        self._newcomers: dict[bytes, Contact] = {}
        self._observed: dict[bytes, Address] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._is_advertising = False
        self._advertise_at = math.inf
        self._began = 0.0
        self._started = 0.0
        self._first_contact_at: float | None = None
        self._last_contact_at: float | None = None
        self._expire_at = 0.0

    # --- life ---

    async def start(self, contacts: Sequence[Contact], addresses: Sequence[Address]) -> None:
        """Take part, and join in the background: first by saved contacts, then by addresses.

        Returns at once; `on_contact` tells of those that answer.  Addresses are tried again as long as nobody
        answers.
        """
        self._reset()
        self._run = self._crypto.random_bytes(RUN_BYTES)
        self._exchange = Exchange(
            self._clock,
            self._crypto,
            self._identity,
            self._port,
            self.counters,
            group_id=self._group_id,
            run=self._run,
            reach=self._reach,
            puzzle_bits=self._puzzle_bits,
            is_contact=self._peers.is_at,
            on_request=self._on_request,
            on_reply=self._on_reply,
            on_timeout=self._on_timeout,
            on_rtt=self._peers.on_rtt,
        )
        now = self._clock.now()
        self._began = self._started = now
        self._expire_at = now + DHT_PING_S
        self._joining.remember(addresses)
        self._scope.spawn(self._live(self._exchange), "live")
        self._on_timer()
        own_key = self._identity.public_key
        saved = [(contact.key, contact.address) for contact in contacts if contact.key != own_key]
        self._scope.spawn(self._joining.first_join(saved), "join")

    def adopt(self, contacts: Iterable[tuple[Contact, bytes]], *, uptime_s: float, is_reachable: bool = True) -> None:
        """Take contacts (with the run of each) as verified just now, their round trips as measured, and this node as up
        for so long, and as reachable or not.

        For simulations that begin in the steady state; a real node has to hear from a contact first.
        """
        now = self._clock.now()
        contacts = list(contacts)
        self._table.adopt(contacts, now)
        for contact, _ in contacts:
            if contact.rtt_s is not None and self._exchange is not None:
                self._exchange.believe(contact.rtt_s)
        for contact in self._table.nearest(self._own_id, 1):
            self._first_contact_at = self._last_contact_at = now
            self.on_contact(contact)
        if is_reachable:
            self._reach.presume()
        self._began = now - uptime_s
        self._joining.be_at_rest()
        self._wake()

    @property
    def last_lookup(self) -> tuple[int, int]:
        """Requests and hops of the lookup that ended last."""
        return self._queries.last_lookup

    @property
    def run(self) -> bytes:
        """Drawn at the start: peers tell this life of the node from others by it."""
        return self._run

    async def leave(self) -> None:
        """Say goodbye to all contacts, wait DHT_GOODBYE_S at most until they have heard it, and stop."""
        if self._exchange is None:
            return
        try:
            await self._queries.ask_all(self._peers.all(), [Bye()], timeout_s=DHT_GOODBYE_S)
        finally:
            self._stop()

    def _stop(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exchange is not None:
            exchange.close()
            if not self._stopped.done():
                self._stopped.set_result(None)

    def receive(self, body: bytes, source: Address) -> None:
        """Take in a datagram body of this group.  Never raises for what is in it."""
        if self._exchange is not None:
            self._exchange.receive(body, source)

    # --- questions ---

    def contacts(self, count: int | None = None) -> list[Contact]:
        """Return the verified contacts, or the `count` nearest, nearest to the own id first, without clients."""
        return self._table.nearest(self._own_id, len(self._table) if count is None else count)

    def clients(self) -> list[Contact]:
        """Return the verified peers that cannot be reached from outside and call this node; nearest first."""
        return self._peers.clients.contacts()

    @property
    def is_client(self) -> bool:
        """Whether this node cannot be reached from outside, as far as is known: it asks others, and nobody asks it."""
        return self._reach.is_client

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to ask."""
        return not len(self._table)

    @property
    def first_contact_s(self) -> float | None:
        """Seconds from the start to the first verified contact; None while there was none."""
        return None if self._first_contact_at is None else self._first_contact_at - self._started

    @property
    def last_contact_s(self) -> float | None:
        """Seconds from the start to the contact that was added last; None while there was none."""
        return None if self._last_contact_at is None else self._last_contact_at - self._started

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip of requests to all peers, in seconds; None before the first."""
        return None if self._exchange is None else self._exchange.rtt_s

    def observed_address(self) -> Address | None:
        """Return the address at which most contacts see this node; None before the first answer."""
        counted = Counter(self._observed.values()).most_common(1)
        return counted[0][0] if counted else None

    def keys(self) -> list[bytes]:
        """Return the keys of all contacts and clients, in no particular order."""
        return self._peers.keys()

    @property
    def contact_count(self) -> int:
        """How many contacts and clients there are."""
        return len(self._peers)

    def __contains__(self, key: bytes) -> bool:
        return key in self._peers

    def knows(self, key: bytes) -> Contact | None:
        """Return the verified contact, or client, with this key."""
        return self._peers.get(key)

    @property
    def records(self) -> RecordStore:
        """The records kept here, for others and for this node."""
        return self._keeper.records

    @property
    def patience(self) -> float:
        """How much more rarely than in a group of up to k nodes a contact is heard of; at least 1."""
        return self._table.patience

    @property
    def is_link_down(self) -> bool:
        """Whether the silence of many contacts in a row says that our own link is down."""
        return self._table.is_link_down

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless table and records are consistent."""
        self._peers.check_invariants()
        self._reach.check_invariants()
        self.records.check_invariants()
        self.index.check_invariants()

    def describe_capacity(self, bits: int, features: Sequence[Feature]) -> None:
        """Say what this node has from now on (see `CapacityIndex.describe`), and advertise what is rare of it."""
        self.index.describe(bits, features)
        self._advertise_at = min(self._advertise_at, self._clock.now() + jittered(self._rng, _ADVERTISE_AFTER_S))
        self._wake()

    async def join(self, addresses: Sequence[Address]) -> int:
        """Contact addresses of members and, while few are known, look around from whoever answers.

        Returns:
            The number of contacts verified during this call.  At most DHT_REQUEST_S when nobody answers.
        """
        began = self._clock.now()
        self._joining.remember(addresses)
        places: list[Place] = [(None, address) for address in dict.fromkeys(addresses)]
        if not await self._joining.join(places, only_if_small=True):
            return 0
        return sum(contact.seen >= began for contact in self._table.contacts())

    async def find(self, key: bytes) -> list[Contact]:
        """Return at most k verified contacts nearest to a key of 20 bytes, nearest first, without this node."""
        return self._known((await self._queries.find(key)).result())

    async def put(self, record: Record) -> int:
        """Have a record kept where it belongs: at all nodes as near to its key as the k-th nearest is expected, and at
        the DHT_PUT_K nearest that answer; this one included.

        Returns:
            How many nodes are known to hold it now; of more than a few, the last ones are not waited for.
        """
        return await self._queries.put(record, is_client=self.is_client)

    def publish(self, salt: bytes, value: bytes, *, ttl_s: float = RECORD_TTL_S_MAX) -> None:
        """Have a record of this node's kept where it belongs from now on, for as long as this node takes part: it is
        put again when half of its life is over.  What was published under this salt before is replaced.

        Raises:
            LocalProtocolError: too many, or something is out of bounds (our bug).
        """
        self._publications.publish(salt, value, ttl_s=ttl_s, now=self._clock.now())
        self._wake()

    def withdraw(self, salt: bytes) -> None:
        """Publish it no more: it ends with the life of its last record."""
        self._publications.withdraw(salt)

    async def get(self, key: bytes) -> list[Record]:
        """Return the newest valid record of each publisher under a key, ordered by publisher.

        Ends when DHT_FOUND_ENOUGH holders have answered; a miss asks everybody with whom it may be.
        """
        return await self._queries.get(key)

    # --- upkeep ---

    async def _live(self, exchange: Exchange) -> None:
        """Last until this life ends.  Leaves no timer and no request behind when cancelled."""
        self._stopped = asyncio.get_running_loop().create_future()
        try:
            await self._stopped
        finally:
            if self._exchange is exchange:
                self._stop()

    def _on_timer(self) -> None:
        """Do what is due, and come back when the next thing is."""
        self._timer = None
        if self._exchange is not None:
            self._upkeep(self._clock.now(), self._stretch())
            self._wake()

    def _wake(self) -> None:
        """See to it that `_on_timer` comes in time for what is due first."""
        if self._exchange is None:
            return
        now = self._clock.now()
        due = min(self._joining.next_due(), self._advertise_at)
        due = min(due, self._peers.next_due(stretch=self._stretch()) or now + _PAUSE_S_MAX)
        if len(self._publications) and not self._is_publishing:
            due = min(due, self._publications.next_due() or due)
        due = min(max(due, now), now + _PAUSE_S_MAX)
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._clock.call_later(due - now, self._on_timer)

    def _wakes_for_newcomer(self) -> bool:
        """Whether `_on_timer` comes in time for a contact that has just come: of up to k each has its own time."""
        is_soon = self._timer is not None and self._timer_at <= self._clock.now() + DHT_PING_S
        return is_soon and len(self._table) <= DHT_K

    def _upkeep(self, now: float, stretch: float) -> None:
        """Do what is due; all of it more rarely while others cannot keep up."""
        for contact in self._peers.due(now, stretch=stretch):
            self._ping(contact)
        self._joining.retry(now, self._ping)
        if self._joining.take_refresh(now):
            self._scope.spawn(self._refresh(), "refresh")
        if now >= self._advertise_at:
            self._advertise_at = now + jittered(self._rng, self._ad_ttl_s() / 2)
            if not self._is_advertising and self.index.is_used and not self.is_client:
                self._is_advertising = True
                self._scope.spawn(self._advertise(), "advertise")
        if len(self._publications) and not self._is_publishing and (self._publications.next_due() or now) <= now:
            self._is_publishing = True
            self._scope.spawn(self._publish_due(), "publish")
        if now >= self._expire_at:
            self._expire_at = now + _EXPIRE_S
            self._keeper.expire()
            self.index.registrar.expire(now)

    def _ad_ttl_s(self) -> float:
        """In a large group ads of nodes that have been up for long live longer: every trace of sessions has a falling
        hazard rate, so these will stay, and refreshing is what costs most at rest."""
        if len(self._table) <= DHT_K:
            return AD_TTL_S
        return min(RECORD_TTL_S_MAX, max(AD_TTL_S, self._clock.now() - self._began))

    async def _refresh(self) -> None:
        try:
            await self._joining.refresh()
        finally:
            self._wake()

    async def _advertise(self) -> None:
        try:
            await self.index.advertise(self._ad_ttl_s())
        finally:
            self._is_advertising = False

    async def _publish_due(self) -> None:
        """Put what is due, one after the other."""
        clock = self._clock
        try:
            while (one := self._publications.take_due(clock.now())) is not None:
                wall = clock.wall()
                record = make_record(
                    self._identity.sign_envelope,
                    self._identity.public_key,
                    salt=one.salt,
                    seq=self._publications.next_seq(one, wall),
                    wall=wall,
                    ttl_s=one.ttl_s,
                    value=one.value,
                )
                kept = await self.put(record)
                self.counters.records_published += 1
                is_taken = kept > (not self.is_client) or not len(self._table)  # its own copy goes with this node
                self._publications.on_put(one, is_taken=is_taken, now=clock.now(), rng=self._rng)
        finally:
            self._is_publishing = False
            self._wake()

    # --- what peers ask ---

    def _on_request(self, request: Verified) -> None:
        sender, run = request.statement.sender, request.statement.run
        message = request.message
        self._calls.on_request(request.address.host)
        if isinstance(message, Bye):
            self.counters.goodbyes_received += 1
            self._apply(self._peers.on_goodbye(sender, run))
            self._answer(request, Ack(AckStatus.OK))
            return
        if self._table.has_left(sender, run):
            self.counters.dropped_departed += 1
            return
        match message:
            case Ping():
                self._answer(request, Pong(request.address, self._name, self.index.class_bits))
            case Find():
                self._answer(request, self._nodes(message.key, request))
            case Get():
                page = self._keeper.page(message.key, message.offset)
                self._answer(request, page or self._nodes(message.key, request))
            case Put():
                if not self._may_put(request, message):
                    self.counters.puts_without_token += 1
                    self._answer(request, Ack(AckStatus.TOKEN, 0, self._token(request, message.key)))
                elif (ack := self._keeper.take_part(sender, request.statement.transaction, message)) is not None:
                    self._answer(request, ack)
            case Register():
                if self._may_put(request, message):
                    self._answer(request, self.index.on_register(request, message))
                else:
                    self.counters.puts_without_token += 1
                    self._answer(request, Registered(Outcome.TOKEN, (), self._token(request, message.key)))
            case Query():
                self._answer(request, self.index.on_query(request, message))
            case Call():
                self._answer(request, self._calls.on_call(request))
            case Ring():
                self._answer(request, self._calls.on_ring(sender, message))
            case _:
                raise AssertionError(f"{message} is no request")
        self._verify(sender, request.address, is_client=request.statement.is_client)

    def _answer(self, request: Verified, message: Message) -> None:
        if self._exchange is not None:
            self._exchange.answer(request, message)

    def _nodes(self, key: bytes, request: Verified) -> Nodes:
        near = self._queries.near(key, exclude=id_of(request.statement.sender))
        contacts = cut_contacts(reachable(near, request.address), self._name)
        return Nodes(self._name, contacts, self._token(request, key), self.index.class_bits)

    def _token(self, request: Verified, key: bytes) -> bytes:
        return self._tokens.issue(request.address, request.statement.sender, key, now=self._clock.now())

    def _may_put(self, request: Verified, put: Put | Register) -> bool:
        """Whether what is sent to the sender's address reaches it: it is a contact there, or has a token."""
        sender, address = request.statement.sender, request.address
        if self._peers.is_at(sender, address):
            return True
        return self._tokens.accepts(put.token, address, sender, put.key, now=self._clock.now())

    # --- what we ask ---

    def _ask(
        self,
        key: bytes | None,
        address: Address,
        messages: Sequence[Message],
        done: Callable[[Message | None], None],
        timeout_s: float | None = None,
        *,
        is_once: bool = False,
    ) -> None:
        if self._exchange is None:
            done(None)
        else:
            self._exchange.ask(key, address, messages, done, timeout_s=timeout_s, is_once=is_once)

    def _stretch(self) -> float:
        """By how much longer than usual to wait, and how much more rarely to ask, while others cannot keep up."""
        return 1.0 if self._exchange is None else self._exchange.stretch

    def _timeouts(self, only_loopback: bool) -> tuple[float, float]:
        """Soft and hard timeout of a request to a peer of which nothing is known."""
        exchange = self._exchange
        if exchange is None:
            return DHT_REQUEST_S, DHT_REQUEST_S
        return exchange.soft_s(loopback=only_loopback), exchange.hard_s

    def _ping(self, contact: Contact) -> None:
        self._ask(contact.key, contact.address, [Ping()], ignore)

    def _verify(self, key: bytes, address: Address, *, is_client: bool = False) -> None:
        """Ping a sender that is not where it says that it belongs, or not at this address, so that its reply brings it
        there; one that was asked something just now will reply to that."""
        if key in self._verifying:
            return
        if not self._peers.wants(key, address, is_client=is_client, is_self_client=self.is_client):
            return
        if self._exchange is not None and self._exchange.is_answering(key, address):
            return
        if self._is_verifying_enough():
            self.counters.verifications_skipped += 1
            return
        self._verifying[key] = None

        def done(reply: Message | None) -> None:
            self._verifying.pop(key, None)

        self._ask(key, address, [Ping()], done)

    def _is_verifying_enough(self) -> bool:
        """Fewer at once while others cannot keep up: each of those who are asked asks back."""
        return len(self._verifying) * self._stretch() >= DHT_VERIFICATIONS_MAX

    def _verify_heard(self, lookup: Lookup) -> None:
        for contact in lookup.unasked():
            if self._is_verifying_enough():
                return
            self._verify(contact.key, contact.address)

    def _known(self, contacts: Sequence[Contact]) -> list[Contact]:
        """The same contacts, with what the table knows of them."""
        return [self._table.get(contact.id) or contact for contact in contacts]

    # --- what replies do to the table ---

    def _on_reply(self, reply: Verified) -> None:
        statement, message = reply.statement, reply.message
        if isinstance(message, Pong):
            self._note_observed(place_of(statement.sender).key, message.observed)
            if self._reach.on_word(reply.address, message.observed) and self._reach.is_seen_afar:
                self._ask(statement.sender, reply.address, [Ping()], ignore)  # it has to hear that we are near
        was_alone = not len(self._table)
        changes = self._peers.on_reply(
            statement.sender,
            reply.address,
            is_client=statement.is_client,
            is_self_client=self.is_client,
            run=statement.run,
            now=self._clock.now(),
            name=message.name if isinstance(message, Pong | Nodes) else None,
            rtt_s=reply.rtt_s,
        )
        if isinstance(message, Pong | Nodes) and message.class_bits is not None:
            self._table.on_class(statement.sender, message.class_bits)
        self._apply(changes)
        if changes[1].change.added and not self._wakes_for_newcomer():
            self._wake()
        if was_alone and len(self._table):
            self._joining.on_first_contact()
            self._wake()
        if self._observed and statement.sender not in self:
            self._observed.pop(statement.sender, None)

    def _note_observed(self, key: bytes, address: Address) -> None:
        """Keep at which address a peer sees this node: the same object for all who see it there."""
        self._observed.pop(key, None)
        self._observed[key] = next((known for known in self._observed.values() if known == address), address)
        if len(self._observed) > _OBSERVED_MAX:
            del self._observed[next(iter(self._observed))]

    def _on_timeout(self, key: bytes, address: Address, sent: float) -> None:
        changes = self._peers.on_failure(key, address, sent=sent, now=self._clock.now())
        self._joining.remember([contact.address for contact in changes[0].change.removed])
        self._apply(changes)
        for one in changes:
            for contact in one.change.removed:
                self.on_contact_silent(contact)
        self._wake()  # who is silent is tried again before the others

    def _apply(self, changes: Iterable[PeersChange]) -> None:
        """Perform what changes ask for and tell of them."""
        for one in changes:
            if one.change.probe is not None:
                self._ping(one.change.probe)
            for contact in one.change.removed:
                if contact.key != one.moved:
                    self.counters.contacts_removed += 1
                    self._observed.pop(contact.key, None)
                    self.on_contact_gone(contact)
            if one.change.added:
                self._last_contact_at = self._clock.now()
                if self._first_contact_at is None:
                    self._first_contact_at = self._last_contact_at
            for contact in one.change.added:
                if not one.is_client:
                    self._welcome(contact)
                if contact.key != one.moved:
                    self.counters.contacts_added += 1
                    self.on_contact(contact)

    def _welcome(self, newcomer: Contact) -> None:
        """See to it that a newcomer gets the records that belong to it."""
        if not len(self.records) or len(self._newcomers) >= DHT_NEWCOMERS_MAX:
            return
        self._newcomers[newcomer.key] = newcomer
        if len(self._newcomers) == 1:
            self._scope.spawn(self._hand_on(), "hand on")

    async def _hand_on(self) -> None:
        await self._clock.sleep(jittered(self._rng, DHT_HAND_ON_S))
        while self._newcomers:
            key = next(iter(self._newcomers))
            await self._queries.hand_on(self._newcomers[key])
            self._newcomers.pop(key, None)
