"""Signed requests and replies over datagrams: transactions, timeouts, resending, checks of what arrives.

Owns the unanswered requests of a node.  A reply counts only if its transaction, its source address, its type and
its key are those of a request that waits, and its signature holds; cheap checks come first.  A request is sent
again after the soft timeout, half a second at most, then at doubled intervals up to that, so that a lost datagram
does not look like a dead peer.  When most answers come to requests that were sent again, it is not loss: somebody is
too busy to keep up, this machine perhaps, and what is sent again makes it worse.  Then all waiting is stretched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from p2pcompute.dht.contacts import Contact, is_loopback, place_of
from p2pcompute.dht.lookup import RttEstimate
from p2pcompute.dht.messages import (
    ANYONE,
    REPLIES,
    TRANSACTION_BYTES,
    Ads,
    Called,
    Message,
    MessageType,
    Nodes,
    Registered,
    Statement,
    decode_body,
    decode_statement,
    encode_statement,
    signing_input,
    type_of,
)
from p2pcompute.dht.puzzle import is_solved
from p2pcompute.dht.reach import Reach
from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Address, Clock, Crypto, Timer
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import (
    DHT_ANSWERED_MAX,
    DHT_LOOPBACK_SOFT_S_MIN,
    DHT_REQUEST_S,
    DHT_REQUESTS_MAX,
    DHT_UNASKED_BURST,
    DHT_UNASKED_PER_S,
)
from p2pcompute.transport.rate import TokenBuckets, source_of

_TIMER_SLACK_S = 1e-6
_RESEND_GAP_S_MAX = 0.5
"""With 10 % loss each way, a live peer misses all of the 4 to 6 sends of a request in 1 case of 800 or fewer."""
_STRETCH_MAX = 8.0
_STRETCH_GROWTH = 1.5
_STRETCH_SHRINK = 0.8
"""Waiting is stretched when more than a third of all answers come to requests that were sent again: with 20 % loss each
way it would be that many.  Without it, 30 nodes that start on a machine which is busy with something else never come to
rest: every request is sent five times, and none is answered in time."""


class DatagramPort(Protocol):
    """Where datagrams of one group go out; those that come in are given to `Dht.receive`."""

    def send(self, body: bytes, to: Address) -> None:
        """Send or drop; never raises for the network."""


@dataclass(slots=True)
class DhtCounters:
    """What the DHT of one group did since its node started.  Metrics: p2pcompute_dht_<field>."""

    datagrams_received: int = 0
    """Statements given to us by the transport, whatever became of them."""
    dropped_malformed: int = 0
    """Not a statement, or a body against the protocol."""
    dropped_own: int = 0
    """Our own statements that came back."""
    dropped_recipient: int = 0
    """Meant for another node."""
    dropped_signature: int = 0
    """The signature does not hold."""
    dropped_puzzle: int = 0
    """By a key that does not solve the puzzle of the group."""
    dropped_unexpected: int = 0
    """Replies to no request of ours, or from another address or key, or of another type."""
    dropped_departed: int = 0
    """Requests by a node that has said goodbye."""
    dropped_parts: int = 0
    """Parts of puts that were forgotten or did not fit together."""
    requests_sent: int = 0
    requests_resent: int = 0
    requests_withheld: int = 0
    """Not sent, or not again, because nobody at that address has ever answered and it had its share."""
    requests_timed_out: int = 0
    requests_refused_full: int = 0
    """Requests not sent because DHT_REQUESTS_MAX were waiting."""
    verifications_skipped: int = 0
    """Unknown senders not pinged back because DHT_VERIFICATIONS_MAX were."""
    contacts_added: int = 0
    contacts_removed: int = 0
    """Evicted or gone with a goodbye."""
    goodbyes_received: int = 0
    lookups: int = 0
    lookup_requests: int = 0
    lookup_hops: int = 0
    """Of all lookups together, those of the own upkeep included; see `Lookup.hops`."""
    records_stored: int = 0
    records_repeated: int = 0
    """Puts of exactly what is held already."""
    records_stale: int = 0
    """Puts refused because a newer record is held: the publisher's clock was set back, or somebody replays."""
    records_oversize: int = 0
    records_malformed: int = 0
    """Puts refused because it is no record."""
    records_forged: int = 0
    """Puts refused because nobody signed it, or another than whose place it would take."""
    records_future: int = 0
    """Puts refused as issued further ahead than RECORD_SKEW_S_MAX."""
    records_expired: int = 0
    """Puts refused as expired."""
    records_full: int = 0
    """Puts refused for lack of room."""
    puts_without_token: int = 0
    """Puts by nodes that had not shown that they are at their address; they were given a token."""
    records_published: int = 0
    """Puts of what this node keeps alive."""
    records_handed_on: int = 0
    """Records given to newcomers to whom they belong."""
    records_invalid: int = 0
    """Records in answers to a get that did not pass the checks."""
    ads_kept: int = 0
    """Registrations taken in, each renewal counted."""
    ads_refused: int = 0
    """Registrations refused: no room, or too many of that source."""
    ads_placed: int = 0
    """Registrations of this node that others took in."""
    queries_answered: int = 0
    searches: int = 0
    search_requests: int = 0
    """Queries sent for all searches together."""
    checks: int = 0
    """Contacts that were asked to have this node called."""
    calls_served: int = 0
    """Nodes that were called, or had somebody called, on request."""
    calls_refused: int = 0
    """Requests for it beyond DHT_CALLS_MAX."""


@dataclass(slots=True)
class _Pending:
    datagrams: list[bytes]
    address: Address
    key: bytes | None
    replies: tuple[MessageType, ...]
    sent: float
    hard_at: float
    gap_s: float
    done: Callable[[Message | None], None]
    sends: int = 1
    timer: Timer | None = None


class Verified(NamedTuple):
    """A message whose signature holds, and its source."""

    message: Message
    statement: Statement
    address: Address
    rtt_s: float | None = None
    """Round trip, for a reply to a request that was sent once."""


class Exchange:
    """The requests of one run of one node in one group."""

    def __init__(
        self,
        clock: Clock,
        crypto: Crypto,
        identity: Identity,
        port: DatagramPort,
        counters: DhtCounters,
        *,
        group_id: bytes,
        run: bytes,
        reach: Reach,
        puzzle_bits: int = 0,
        on_request: Callable[[Verified], None],
        on_reply: Callable[[Verified], None],
        on_timeout: Callable[[bytes, Address, float], None],
    ) -> None:
        """Start without requests.

        Args:
            reach: says what this node is to whom it sends to, and is told who that was.
            puzzle_bits: keys that do not solve a puzzle of so many bits do not count.
            on_request: given each verified request.
            on_reply: given each verified reply, before the request's own callback.
            on_timeout: given key, address and time of sending of a request that was never answered; only for
                requests to a known key.
        """
        self._clock = clock
        self._crypto = crypto
        self._identity = identity
        self._own_id = place_of(identity.public_key).id
        self._port = port
        self._counters = counters
        self._group_id = group_id
        self._run = run
        self._reach = reach
        self._puzzle_bits = puzzle_bits
        self._on_request = on_request
        self._on_reply = on_reply
        self._on_timeout = on_timeout
        self._pending: dict[bytes, _Pending] = {}
        self._answered: dict[str, None] = {}
        """Sources that have answered a request: what is sent there is wanted.  The last DHT_ANSWERED_MAX."""
        self._unasked = TokenBuckets(
            rate_per_s=DHT_UNASKED_PER_S, burst=DHT_UNASKED_BURST, sources_max=DHT_ANSWERED_MAX
        )
        self._is_closed = False
        self._loopback_rtt = RttEstimate(soft_s_min=DHT_LOOPBACK_SOFT_S_MIN)
        self._network_rtt = RttEstimate()
        self._stretch = 1.0

    def soft_s(self, *, loopback: bool = False) -> float:
        """Return the soft timeout of a request to a peer of which nothing is known."""
        return self._stretch * (self._loopback_rtt if loopback else self._network_rtt).soft_s

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip over all peers, on this machine's loopback if that was all; None before the first."""
        return self._loopback_rtt.srtt_s if self._network_rtt.srtt_s is None else self._network_rtt.srtt_s

    def believe(self, rtt_s: float) -> None:
        """Take in a round trip that another life of this node has measured."""
        self._network_rtt.add(rtt_s)

    def ask(
        self,
        key: bytes | None,
        address: Address,
        messages: Sequence[Message],
        done: Callable[[Message | None], None],
        *,
        timeout_s: float = DHT_REQUEST_S,
        is_once: bool = False,
    ) -> None:
        """Send a request and have `done` called once: with the reply, or None when there is none.

        Args:
            key: the peer's public key; None for a PING to an address whose owner is not known.
            messages: one, or all parts of a PUT, under one transaction.
            timeout_s: hard timeout.
            is_once: do not send it again when no answer comes.
        """
        if self._is_closed or len(self._pending) >= DHT_REQUESTS_MAX:
            self._counters.requests_refused_full += not self._is_closed
            done(None)
            return
        transaction = self._crypto.random_bytes(TRANSACTION_BYTES)
        recipient = ANYONE if key is None else place_of(key).id
        datagrams = [self._encode(message, transaction, recipient, address) for message in messages]
        now = self._clock.now()
        pending = _Pending(
            datagrams=datagrams,
            address=address,
            key=key,
            replies=REPLIES[type_of(messages[0])],
            sent=now,
            hard_at=now + timeout_s,
            gap_s=timeout_s if is_once else self._stretch * min(self._estimate(address).resend_s, _RESEND_GAP_S_MAX),
            done=done,
        )
        self._pending[transaction] = pending
        self._counters.requests_sent += 1
        self._send(pending)
        self._arm(transaction, pending, now)

    def answer(self, request: Verified, message: Message) -> None:
        """Send the reply to a request, to where it came from."""
        statement, address = request.statement, request.address
        self._reach.on_sent(address.host, self._clock.now())
        self._port.send(self._encode(message, statement.transaction, place_of(statement.sender).id, address), address)

    def receive(self, datagram: bytes, address: Address) -> None:
        """Take in a datagram of this group.  Whatever is wrong with it is counted, and it is dropped."""
        if self._is_closed:
            return
        self._counters.datagrams_received += 1
        try:
            self._receive(decode_statement(datagram), address)
        except RemoteProtocolError:
            self._counters.dropped_malformed += 1

    def close(self) -> None:
        """Forget all requests: those that wait get no reply."""
        self._is_closed = True
        pending, self._pending = self._pending, {}
        for request in pending.values():
            if request.timer is not None:
                request.timer.cancel()
        for request in pending.values():
            request.done(None)

    # --- parts ---

    def _receive(self, statement: Statement, address: Address) -> None:
        is_request = statement.type in REPLIES
        if statement.sender == self._identity.public_key:
            self._counters.dropped_own += 1
            return
        is_first_contact = statement.type is MessageType.PING and statement.recipient == ANYONE
        if statement.recipient != self._own_id and not is_first_contact:
            self._counters.dropped_recipient += 1
            return
        if not is_solved(statement.sender, self._puzzle_bits):
            self._counters.dropped_puzzle += 1
            return
        pending = None if is_request else self._match(statement, address)
        if not is_request and pending is None:
            self._counters.dropped_unexpected += 1
            return
        signed = signing_input(self._group_id, statement.signed)
        if not self._crypto.verify(statement.sender, signed, statement.signature):
            self._counters.dropped_signature += 1
            return
        message = decode_body(statement.type, statement.body)
        if self._puzzle_bits:
            message = self._without_unsolved(message)
        if pending is None:
            self._on_request(Verified(message, statement, address))
            return
        del self._pending[statement.transaction]
        self._on_answered(address)
        if pending.timer is not None:
            pending.timer.cancel()
        self._on_reply(Verified(message, statement, address, self._measure(pending)))
        pending.done(message)

    def _without_unsolved(self, message: Message) -> Message:
        """The same message without contacts that do not count in this group."""
        if isinstance(message, Ads):
            message = replace(message, found=self._solved(message.found))
        if isinstance(message, Nodes | Registered | Ads | Called):
            message = replace(message, contacts=self._solved(message.contacts))
        return message

    def _solved(self, contacts: tuple[Contact, ...]) -> tuple[Contact, ...]:
        return tuple(contact for contact in contacts if is_solved(contact.key, self._puzzle_bits))

    def _match(self, statement: Statement, address: Address) -> _Pending | None:
        pending = self._pending.get(statement.transaction)
        if pending is None or pending.address != address or statement.type not in pending.replies:
            return None
        return pending if pending.key in (None, statement.sender) else None

    def _measure(self, pending: _Pending) -> float | None:
        """The round trip, unless the request was sent more than once (Karn)."""
        if pending.sends > 1:
            self._stretch = min(self._stretch * _STRETCH_GROWTH, _STRETCH_MAX)
            return None
        self._stretch = max(self._stretch * _STRETCH_SHRINK, 1.0)
        rtt_s = self._clock.now() - pending.sent
        self._estimate(pending.address).add(rtt_s)
        return rtt_s

    def _estimate(self, address: Address) -> RttEstimate:
        return self._loopback_rtt if is_loopback(address.host) else self._network_rtt

    def _encode(self, message: Message, transaction: bytes, recipient: bytes, address: Address) -> bytes:
        return encode_statement(
            message,
            transaction=transaction,
            sender=self._identity.public_key,
            recipient=recipient,
            run=self._run,
            group_id=self._group_id,
            sign=self._identity.sign,
            is_client=self._reach.is_client_to(address),
        )

    def _send(self, pending: _Pending) -> None:
        """Send a request; but little to an address that only others have named, or that may be a forged source."""
        now = self._clock.now()
        source = source_of(pending.address.host, pending.address.port)
        if source not in self._answered and not self._unasked.take(source, now):
            self._counters.requests_withheld += 1
            return
        self._reach.on_sent(pending.address.host, now)
        for datagram in pending.datagrams:
            self._port.send(datagram, pending.address)

    def _on_answered(self, address: Address) -> None:
        source = source_of(address.host, address.port)
        self._answered.pop(source, None)
        self._answered[source] = None
        if len(self._answered) > DHT_ANSWERED_MAX:
            del self._answered[next(iter(self._answered))]

    def _arm(self, transaction: bytes, pending: _Pending, now: float) -> None:
        delay_s = max(0.0, min(pending.gap_s, pending.hard_at - now))
        pending.timer = self._clock.call_later(delay_s, partial(self._on_timer, transaction))

    def _on_timer(self, transaction: bytes) -> None:
        pending = self._pending.get(transaction)
        if pending is None:
            return
        now = self._clock.now()
        if now < pending.hard_at - _TIMER_SLACK_S:
            pending.sends += 1
            pending.gap_s = min(2 * pending.gap_s, self._stretch * _RESEND_GAP_S_MAX)
            self._counters.requests_resent += 1
            self._send(pending)
            self._arm(transaction, pending, now)
            return
        del self._pending[transaction]
        self._counters.requests_timed_out += 1
        if pending.key is not None:
            self._on_timeout(pending.key, pending.address, pending.sent)
        pending.done(None)
