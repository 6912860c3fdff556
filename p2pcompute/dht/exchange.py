"""Requests and replies over datagrams: transactions, timeouts, resending, checks of what arrives.

Owns the unanswered requests of a node.  A reply counts only if its transaction, its source address, its type and
its key are those of a request that waits, and its proof holds; cheap checks come first.  A request is sent
again after the soft timeout, half a second at most, then at doubled intervals up to that, so that a lost datagram
does not look like a dead peer.  When an answer comes to each of the times that a request was sent, or after it was
given up, nothing was lost: somebody is too busy to keep up, this machine perhaps, and what is sent again makes it
worse.  Then all waiting is stretched.  What comes too late still counts as heard.

Source: RFC 3708 for telling by what comes twice that nothing was lost; RFC 3522 for what else it tells.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from p2pcompute.dht.contacts import Contact, id_of, is_loopback
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
    DHT_LOOPBACK_RESEND_S_MIN,
    DHT_LOOPBACK_SOFT_S_MIN,
    DHT_REQUEST_S,
    DHT_REQUESTS_MAX,
    DHT_STRANGERS_BURST,
    DHT_STRANGERS_PER_S,
    DHT_UNASKED_BURST,
    DHT_UNASKED_PER_S,
)
from p2pcompute.transport.rate import TokenBuckets, source_of

_TIMER_SLACK_S = 1e-6
_RESEND_GAP_S_MAX = 0.5
"""With 10 % loss each way, a live peer misses all of the 4 to 6 sends of a request in 1 case of 800 or fewer."""
_STRAIN_MIN = 0.25
_STRAIN_MAX = 8.0
_STRAIN_GROWTH = 1.3
_STRAIN_SHRINK = 0.9
"""Waiting is stretched when to more than a quarter of all requests answers come that are too many or too late; five
of them say nothing yet, as somebody may just be far away.  Without it, 30 nodes that start on a machine which is busy
with something else never come to rest: every request is sent five times, and none is answered in time."""
_HARD_STRETCH_MAX = 4.0
"""Who asks does not wait longer; an answer that comes later still counts as heard."""
_ENDED_MAX = 512
"""Requests that ended and to which another answer may come."""


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
    dropped_strangers: int = 0
    """Requests of others than contacts beyond DHT_STRANGERS_PER_S."""
    dropped_signature: int = 0
    """The signature, or the tag, is not the sender's."""
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
    replies_late: int = 0
    """Replies to requests that had been given up, or were answered before though sent again."""
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
    ads_displaced: int = 0
    """Ads of others that had to yield to a new one: its source has fewer here, or the draw was for it."""
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


class _Pending(Struct):
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


class _Ended(NamedTuple):
    """A request that was answered though it was sent again, or given up."""

    address: Address
    key: bytes | None
    replies: tuple[MessageType, ...]
    rtt_s: float | None
    """From its first sending to its answer; None when it was given up."""


class Verified(Struct, frozen=True):
    """A message that is its sender's, and its source."""

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
        is_contact: Callable[[bytes, Address], bool],
        on_request: Callable[[Verified], None],
        on_reply: Callable[[Verified], None],
        on_timeout: Callable[[bytes, Address, float], None],
        on_rtt: Callable[[bytes, float], None],
    ) -> None:
        """Start without requests.

        Args:
            reach: says what this node is to whom it sends to, and is told who that was.
            puzzle_bits: keys that do not solve a puzzle of so many bits do not count.
            is_contact: whether a key is that of a contact at this address.
            on_request: given each verified request.
            on_reply: given each verified reply, before the request's own callback.
            on_timeout: given key, address and time of sending of a request that was never answered; only for
                requests to a known key.
            on_rtt: given key and round trip in seconds of a peer, when it turns out later that its answer was to the
                first sending of a request.
        """
        self._clock = clock
        self._crypto = crypto
        self._identity = identity
        self._own_id = id_of(identity.public_key)
        self._port = port
        self._counters = counters
        self._group_id = group_id
        self._run = run
        self._reach = reach
        self._puzzle_bits = puzzle_bits
        self._is_contact = is_contact
        self._strangers = TokenBuckets(rate_per_s=DHT_STRANGERS_PER_S, burst=DHT_STRANGERS_BURST, sources_max=1)
        self._on_request = on_request
        self._on_reply = on_reply
        self._on_timeout = on_timeout
        self._on_rtt = on_rtt
        self._pending: dict[bytes, _Pending] = {}
        self._asked: dict[tuple[bytes | None, Address], float] = {}
        """Key and address of those requests, and when the last one was first sent."""
        self._answered: dict[str, None] = {}
        """Sources that have answered a request: what is sent there is wanted.  The last DHT_ANSWERED_MAX that began to;
        one that was forgotten begins anew."""
        self._unasked = TokenBuckets(
            rate_per_s=DHT_UNASKED_PER_S, burst=DHT_UNASKED_BURST, sources_max=DHT_ANSWERED_MAX
        )
        self._ended: dict[bytes, _Ended] = {}
        self._is_closed = False
        self._loopback_rtt = RttEstimate(soft_s_min=DHT_LOOPBACK_SOFT_S_MIN, resend_s_min=DHT_LOOPBACK_RESEND_S_MIN)
        self._network_rtt = RttEstimate()
        self._strain = _STRAIN_MIN

    @property
    def stretch(self) -> float:
        """By how much all waiting is longer than it would be if everybody kept up; at least 1."""
        return max(1.0, self._strain)

    def soft_s(self, *, loopback: bool = False) -> float:
        """Return the soft timeout of a request to a peer of which nothing is known."""
        return self.stretch * (self._loopback_rtt if loopback else self._network_rtt).soft_s

    @property
    def hard_s(self) -> float:
        """When a request is given up: after DHT_REQUEST_S while everybody keeps up, and _HARD_STRETCH_MAX times that at
        most."""
        return min(self.stretch, _HARD_STRETCH_MAX) * DHT_REQUEST_S

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
        timeout_s: float | None = None,
        is_once: bool = False,
    ) -> None:
        """Send a request and have `done` called once: with the reply, or None when there is none.

        Args:
            key: the peer's public key; None for a PING to an address whose owner is not known.
            messages: one, or all parts of a PUT, under one transaction.
            timeout_s: hard timeout; None: `hard_s`.
            is_once: do not send it again when no answer comes.
        """
        if self._is_closed or len(self._pending) >= DHT_REQUESTS_MAX:
            self._counters.requests_refused_full += not self._is_closed
            done(None)
            return
        transaction = self._crypto.random_bytes(TRANSACTION_BYTES)
        datagrams = [self._encode(message, transaction, key, address) for message in messages]
        now = self._clock.now()
        timeout_s = self.hard_s if timeout_s is None else timeout_s
        pending = _Pending(
            datagrams=datagrams,
            address=address,
            key=key,
            replies=REPLIES[type_of(messages[0])],
            sent=now,
            hard_at=now + timeout_s,
            gap_s=timeout_s if is_once else self._gap_s(self._estimate(address).resend_s),
            done=done,
        )
        self._pending[transaction] = pending
        self._asked[key, address] = now
        self._counters.requests_sent += 1
        self._send(pending)
        self._arm(transaction, pending, now)

    def is_answering(self, key: bytes, address: Address) -> bool:
        """Whether an answer of this peer, or of whoever is at this address, is to be expected right now."""
        soft_ago = self._clock.now() - self._estimate(address).soft_s
        return any(self._asked.get((one, address), -math.inf) > soft_ago for one in (key, None))

    def answer(self, request: Verified, message: Message) -> None:
        """Send the reply to a request, to where it came from."""
        statement, address = request.statement, request.address
        self._reach.on_sent(address.host, self._clock.now())
        self._port.send(self._encode(message, statement.transaction, statement.sender, address), address)

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
        self._asked.clear()
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
        pending: _Pending | _Ended | None = None
        if not is_request:
            pending = self._match(statement, address) or self._match_late(statement, address)
            if pending is None:
                return
        elif not self._is_contact(statement.sender, address) and not self._strangers.take("", self._clock.now()):
            self._counters.dropped_strangers += 1
            return
        if not self._is_proven(statement):
            self._counters.dropped_signature += 1
            return
        message = decode_body(statement.type, statement.body)
        if self._puzzle_bits:
            message = self._without_unsolved(message)
        if pending is None:
            self._on_request(Verified(message, statement, address))
            return
        if isinstance(pending, _Ended):
            self._on_answered(address)
            self._on_reply(Verified(message, statement, address))
            return
        self._drop(statement.transaction, pending)
        self._on_answered(address)
        if pending.timer is not None:
            pending.timer.cancel()
        self._on_reply(Verified(message, statement, address, self._measure(statement.transaction, pending)))
        pending.done(message)

    def _is_proven(self, statement: Statement) -> bool:
        """Whether a statement is by the holder of the key that it names."""
        said = signing_input(self._group_id, statement.signed)
        if statement.recipient == ANYONE:
            return self._crypto.verify(statement.sender, said, statement.proof)
        return hmac.compare_digest(self._identity.tag(statement.sender, said), statement.proof)

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
        return pending if pending is not None and _fits(statement, address, pending) else None

    def _match_late(self, statement: Statement, address: Address) -> _Ended | None:
        """The request that was given up and to which this is an answer; once."""
        ended = self._ended.get(statement.transaction)
        if ended is None or not _fits(statement, address, ended):
            self._counters.dropped_unexpected += 1
            return None
        del self._ended[statement.transaction]
        self._counters.replies_late += 1
        self._strain = min(self._strain * _STRAIN_GROWTH, _STRAIN_MAX)
        if ended.rtt_s is None:
            return ended
        self._estimate(address).add(ended.rtt_s)
        if ended.key is not None:
            self._on_rtt(ended.key, ended.rtt_s)
        return None

    def _end(self, transaction: bytes, pending: _Pending, rtt_s: float | None) -> None:
        """Remember a request to which another answer may come."""
        self._ended[transaction] = _Ended(pending.address, pending.key, pending.replies, rtt_s)
        if len(self._ended) > _ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _measure(self, transaction: bytes, pending: _Pending) -> float | None:
        """The round trip, unless the request was sent more than once (Karn).  If each of these is answered, the first
        answer was one to the first of them (Eifel)."""
        if pending.sends > 1:
            self._end(transaction, pending, self._clock.now() - pending.sent)
            return None
        self._strain = max(self._strain * _STRAIN_SHRINK, _STRAIN_MIN)
        rtt_s = self._clock.now() - pending.sent
        self._estimate(pending.address).add(rtt_s)
        return rtt_s

    def _estimate(self, address: Address) -> RttEstimate:
        return self._loopback_rtt if is_loopback(address.host) else self._network_rtt

    def _encode(self, message: Message, transaction: bytes, to: bytes | None, address: Address) -> bytes:
        """The datagram of a message to the holder of a key, or to whoever is there."""
        identity = self._identity
        return encode_statement(
            message,
            transaction=transaction,
            sender=identity.public_key,
            recipient=ANYONE if to is None else id_of(to),
            run=self._run,
            group_id=self._group_id,
            prove=identity.sign if to is None else partial(identity.tag, to),
            is_client=self._reach.is_client_to(address),
        )

    def _gap_s(self, wanted_s: float) -> float:
        """From one sending of a request to the next.  It is stretched twice, so that the longer an answer may take, the
        less often a request is sent."""
        stretch = self.stretch
        return stretch * stretch * min(wanted_s, _RESEND_GAP_S_MAX)

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
        if source in self._answered:
            return  # to move it to the end at each answer makes a dict of twice the size
        self._answered[source] = None
        if len(self._answered) > DHT_ANSWERED_MAX:
            del self._answered[next(iter(self._answered))]

    def _drop(self, transaction: bytes, pending: _Pending) -> None:
        """Wait no longer for an answer."""
        del self._pending[transaction]
        if self._asked.get((pending.key, pending.address)) == pending.sent:
            del self._asked[pending.key, pending.address]

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
            pending.gap_s = self._gap_s(2 * pending.gap_s)
            self._counters.requests_resent += 1
            self._send(pending)
            self._arm(transaction, pending, now)
            return
        self._drop(transaction, pending)
        self._counters.requests_timed_out += 1
        self._end(transaction, pending, None)
        if pending.key is not None:
            self._on_timeout(pending.key, pending.address, pending.sent)
        pending.done(None)


def _fits(statement: Statement, address: Address, request: _Pending | _Ended) -> bool:
    return (
        request.address == address
        and statement.type in request.replies
        and (request.key is None or request.key == statement.sender)
    )
