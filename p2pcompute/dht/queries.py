"""Finding, getting and putting: lookups performed, and what is done with those that they find.

A get ends as soon as enough holders have answered; a miss goes on until nobody is left to ask.  A put hands the record
to each peer that answers and is near enough, while the walk goes on; it returns when nearly all have confirmed it.

A record belongs to every node within the expected distance of the k-th nearest (see `size`), and to the nearest that
answer besides.  In a group of up to k contacts it is everybody's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from p2pcompute.dht.contacts import Contact, is_loopback
from p2pcompute.dht.exchange import DhtCounters
from p2pcompute.dht.keeper import Keeper
from p2pcompute.dht.lookup import Lookup
from p2pcompute.dht.messages import Ack, AckStatus, Find, Get, Message, Nodes, Values, blob_digest, parts_of
from p2pcompute.dht.records import Record, newest
from p2pcompute.dht.routing_table import RoutingTable
from p2pcompute.dht.size import GroupSize, radius_of, size_by
from p2pcompute.dht.walk import Answer, walk
from p2pcompute.host.interfaces import Address, Clock
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    DHT_ALPHA,
    DHT_FOUND_ENOUGH,
    DHT_GET_ALPHA,
    DHT_GET_ALPHA_MAX,
    DHT_HAND_ON_MAX,
    DHT_HANDERS,
    DHT_K,
    DHT_NEWS_ASKED,
    DHT_PATHS,
    DHT_PING_S,
    DHT_PUT_ALPHA,
    DHT_PUT_ENOUGH,
    DHT_PUT_K,
    DHT_SEEDS,
)

_RADIUS_S: Final = 10.0
"""The estimate of the group's size is made anew so often, at most."""
_CROWDED: Final = 4
"""So many times as many peers around a key as there should be are no chance: with 20 in the place of 5, 1 in 10 million
keys has them."""
_FAR: Final = 2
"""Beyond so many radii a node is not one of the k nearest of a key."""
_READS_MAX: Final = 2
"""Tries to read a holder's records page by page when they change meanwhile."""


class Ask(Protocol):
    """Sends a request, and calls back once with the reply, or None."""

    def __call__(
        self,
        key: bytes | None,
        address: Address,
        messages: Sequence[Message],
        done: Callable[[Message | None], None],
        timeout_s: float | None = None,
        *,
        is_once: bool = False,
    ) -> None: ...


def ignore(reply: Message | None) -> None:
    """Do nothing more with a reply: the table has been told already."""


class Queries:
    """What one node asks the others."""

    def __init__(
        self,
        clock: Clock,
        scope: TaskScope,
        ask: Ask,
        timeouts: Callable[[bool], tuple[float, float]],
        table: RoutingTable,
        keeper: Keeper,
        counters: DhtCounters,
    ) -> None:
        """Args:
        timeouts: the soft and the hard one of a request to a peer of which nothing is known; True: all are on loopback.
        """
        self._clock = clock
        self._scope = scope
        self._ask = ask
        self._timeouts = timeouts
        self._table = table
        self._keeper = keeper
        self._counters = counters
        self._size = GroupSize()
        self._radius = 0
        self._radius_until = float("-inf")
        self.last_lookup = (0, 0)
        """Requests and hops of the lookup that ended last."""

    # --- the size of the group --------------------------------------------------------------------

    def group_size(self) -> float | None:
        """Estimated number of nodes; None with up to k contacts, who are all there are."""
        if len(self._table) <= DHT_K:
            return None
        return self._size.estimate(size_by(self._table.distances(DHT_K)))

    def radius(self) -> int:
        """Distance from a key within which every node keeps its records; 0 in a group of up to k contacts."""
        if len(self._table) <= DHT_K:
            return 0
        now = self._clock.now()
        if now >= self._radius_until:
            self._radius = radius_of(self.group_size() or len(self._table))
            self._radius_until = now + _RADIUS_S
        return self._radius

    def near(self, key: bytes, *, exclude: bytes) -> list[Contact]:
        """Return what this node tells of the peers near a key, at most k, nearest first.

        They are the nearest; but when these are so crowded that chance cannot be the reason, only half of them, and as
        many of the others within the radius, the farthest first: whoever crafts peers around a key must not hide those
        that belong there.
        """
        near = self._table.nearest(key, DHT_K, exclude=exclude, live_only=True)
        number, radius = int.from_bytes(key, "big"), self.radius()
        if len(near) < DHT_K or (near[-1].number ^ number) * _CROWDED > radius:
            return near
        all_near = self._table.nearest(key, _CROWDED * DHT_K, exclude=exclude, live_only=True)
        half = DHT_K // 2
        return near[:half] + [one for one in all_near[half:] if one.number ^ number <= radius][-half:]

    # --- asking -----------------------------------------------------------------------------------

    async def find(
        self, key: bytes, *, k: int = DHT_K, paths: int = DHT_PATHS, is_everybody_asked: bool = False
    ) -> Lookup:
        """Look up the k nearest peers; returns the lookup, which has ended.

        Args:
            is_everybody_asked: also in a group of up to k contacts.  Else those that were heard of within DHT_PING_S
                have answered, and only the nearest of them are asked, for news, as long as they answer.
        """
        lookup = self._lookup(key, k=k, paths=paths)
        if len(self._table) <= DHT_K and not is_everybody_asked:
            since = self._clock.now() - DHT_PING_S
            fresh = [one.id for one in self._table.nearest(key, DHT_K, live_only=True) if one.seen >= since]
            lookup.credit(fresh[DHT_NEWS_ASKED:])
        await self._walk(lookup, partial(self._ask_find, key))
        return lookup

    async def get(self, key: bytes) -> list[Record]:
        """See `Dht.get`."""
        lookup = self._lookup(key, alpha=DHT_GET_ALPHA, alpha_max=DHT_GET_ALPHA_MAX, radius=self.radius())
        search = _Search(key, lookup, self._keeper.records.get(key, now=self._clock.now()))
        await self._walk(lookup, partial(self._ask_get, search))
        return newest(search.found)

    async def put(self, record: Record, *, is_client: bool = False) -> int:
        """Put a record where it belongs; return how many hold it.

        Args:
            is_client: nobody asks this node; what it keeps is for itself.
        """
        radius = self.radius()
        k = DHT_PUT_K if radius else DHT_K
        lookup = self._lookup(record.key, k=k, alpha_within=DHT_PUT_ALPHA, late_softs=2, radius=radius)
        store = _Store(record, self._ask)
        number = int.from_bytes(record.key, "big")

        def ask(contact: Contact, answer: Answer) -> None:
            def done(reply: Message | None) -> None:
                if isinstance(reply, Nodes):
                    store.tokens[contact.key] = reply.token
                    if contact.number ^ number <= radius:
                        store.send(contact)
                _answer_nodes(contact, answer, reply)

            self._ask(contact.key, contact.address, [Find(record.key)], done)

        await self._walk(lookup, ask)
        near = lookup.result()
        for contact in near:
            store.send(contact)
        if is_client:
            self._keeper.keep(record)
        else:
            self._keep_own(record, store, near, radius)
        return await store.settled()

    def to_hand_on(self, newcomer: Contact) -> list[Record]:
        """Return the records kept here that belong to a newcomer as well, at most DHT_HAND_ON_MAX, the one that expires
        last first.  Only those that this node, as one of the nearest to their key, is to give it: else all would."""
        now, radius = self._clock.now(), self.radius()
        own = int.from_bytes(self._table.own_id, "big")
        chosen = []
        # Who has put one since then knew the newcomer or was told of it: who start together hand one another nothing.
        for record in self._keeper.records.live(now=now, stored_by=newcomer.seen):
            key = int.from_bytes(record.key, "big")
            distance = newcomer.number ^ key
            if record.publisher == newcomer.key or (radius and distance > _FAR * radius):
                continue
            near = self._table.nearest(record.key, DHT_K, exclude=newcomer.id, live_only=True)
            is_its = distance <= radius or len(near) < DHT_K or distance < near[-1].number ^ key
            if is_its and sum(contact.number ^ key < own ^ key for contact in near[:DHT_HANDERS]) < DHT_HANDERS:
                chosen.append(record)
        chosen.sort(key=lambda record: (-record.issued - record.ttl_s, record.key, record.publisher))
        return chosen[:DHT_HAND_ON_MAX]

    async def hand_on(self, newcomer: Contact) -> None:
        """Give a newcomer the records that belong to it, one after the other; stop when it does not answer."""
        for record in self.to_hand_on(newcomer):
            store = _Store(record, self._ask)
            store.send(newcomer)
            kept = await store.settled()
            if not store.replies_count:
                return
            self._counters.records_handed_on += kept

    async def ask_all(
        self, contacts: Sequence[Contact], messages: Sequence[Message], *, timeout_s: float | None = None
    ) -> list[Message | None]:
        """Send the same request to all and return their replies in the same order."""
        replies: list[Message | None] = [None] * len(contacts)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(contacts)

        def done(index: int, reply: Message | None) -> None:
            nonlocal left
            replies[index] = reply
            left -= 1
            if left == 0 and not ended.done():
                ended.set_result(None)

        for index, contact in enumerate(contacts):
            self._ask(contact.key, contact.address, messages, partial(done, index), timeout_s)
        if contacts:
            await ended
        return replies

    # --- parts ------------------------------------------------------------------------------------

    def _lookup(
        self,
        target: bytes,
        *,
        k: int = DHT_K,
        alpha: int = DHT_ALPHA,
        alpha_within: int | None = None,
        alpha_max: int | None = None,
        late_softs: int = 3,
        paths: int = DHT_PATHS,
        radius: int = 0,
    ) -> Lookup:
        seeds = self._table.nearest(target, DHT_SEEDS)
        only_loopback = bool(seeds) and all(is_loopback(contact.address.host) for contact in seeds)
        soft_s, hard_s = self._timeouts(only_loopback)
        return Lookup(
            target,
            seeds,
            own_id=self._table.own_id,
            soft_s=soft_s,
            hard_s=hard_s,
            k=k,
            alpha=alpha,
            alpha_within=alpha_within,
            alpha_max=alpha_max,
            late_softs=late_softs,
            paths=paths,
            radius=radius,
        )

    async def _walk(self, lookup: Lookup, ask: Callable[[Contact, Answer], None]) -> None:
        self._counters.lookups += 1
        try:
            found = await walk(lookup, self._clock, ask)
            if len(found) == DHT_K:
                self._size.note(lookup.target, (contact.number for contact in found))
        finally:
            self._counters.lookup_requests += lookup.asked_count
            self._counters.lookup_hops += lookup.hops
            self.last_lookup = (lookup.asked_count, lookup.hops)

    def _ask_find(self, key: bytes, contact: Contact, answer: Answer) -> None:
        self._ask(contact.key, contact.address, [Find(key)], partial(_answer_nodes, contact, answer))

    def _ask_get(self, search: _Search, contact: Contact, answer: Answer) -> None:
        """Ask one peer for records, or for contacts nearer to the key when it has none."""

        def done(reply: Message | None) -> None:
            if not isinstance(reply, Values):
                _answer_nodes(contact, answer, reply)
            elif _is_whole(reply):
                search.take(self._keeper.check(search.key, reply.chunk), self._clock.now())
                answer(())
            else:
                self._scope.spawn(read(reply), "get")

        async def read(first: Values) -> None:
            search.take(await self._read(contact, search.key, first), self._clock.now())
            answer(())

        self._ask(contact.key, contact.address, [Get(search.key)], done)

    async def _read(self, contact: Contact, key: bytes, page: Values) -> list[Record]:
        """Read the other pages of a holder's records and return those that pass the checks."""
        first: Message | None = page
        for _ in range(_READS_MAX):
            if not isinstance(first, Values) or first.offset != 0:
                return []
            blob = first.chunk
            while len(blob) < first.total:
                (more,) = await self.ask_all([contact], [Get(key, len(blob))])
                is_next = isinstance(more, Values) and more.digest == first.digest and more.offset == len(blob)
                if not is_next or not isinstance(more, Values) or not more.chunk:
                    break
                blob += more.chunk
            if len(blob) == first.total and blob_digest(blob) == first.digest:
                return self._keeper.check(key, blob)
            (first,) = await self.ask_all([contact], [Get(key)])
        return []

    def _keep_own(self, record: Record, store: _Store, near: Sequence[Contact], radius: int) -> None:
        """Keep a record here if it belongs here: within the radius, or as near as the others that keep it."""
        key = int.from_bytes(record.key, "big")
        distance = int.from_bytes(self._table.own_id, "big") ^ key
        if len(near) < DHT_K or distance <= radius or distance < near[-1].number ^ key:
            store.take(self._keeper.keep(record))


class _Search:
    """A get under way."""

    def __init__(self, key: bytes, lookup: Lookup, found: list[Record]) -> None:
        self.key = key
        self.found = found
        self._lookup = lookup
        self._holders_count = 0

    def take(self, records: list[Record], now: float) -> None:
        """Take in the valid records of one holder; end the lookup when enough holders have answered."""
        self.found += records
        self._holders_count += bool(records)
        if self._holders_count >= DHT_FOUND_ENOUGH:
            self._lookup.finish()
        elif records:
            self._lookup.confirm(now)


class _Store:
    """A record on its way to those who are to keep it."""

    def __init__(self, record: Record, ask: Ask) -> None:
        self.kept = 0
        self.tokens: dict[bytes, bytes] = {}
        """With which each peer takes it, by public key; a peer that wants one gives it otherwise."""
        self.replies_count = 0
        self._record = record
        self._ask = ask
        self._sent: dict[bytes, None] = {}
        self._left = 0
        self._settled: asyncio.Future[None] | None = None

    def send(self, contact: Contact) -> None:
        """Send it to a peer that was not sent it yet."""
        if contact.key in self._sent:
            return
        self._sent[contact.key] = None
        self._left += 1
        self._put(contact, self.tokens.get(contact.key, b""), self._replied_first)

    def take(self, reply: Message | None) -> None:
        """Take in what somebody says to it."""
        if isinstance(reply, Ack):
            self.kept += reply.status is AckStatus.OK

    async def settled(self) -> int:
        """Wait until all have replied or, of k and more, until DHT_PUT_ENOUGH of them hold it; return how many do."""
        self._settled = asyncio.get_running_loop().create_future()
        self._check()
        await self._settled
        return self.kept

    def _put(self, contact: Contact, token: bytes, done: Callable[[Contact, Message | None], None]) -> None:
        parts = parts_of(self._record.raw, self._record.key, token)
        self._ask(contact.key, contact.address, parts, partial(done, contact))

    def _replied_first(self, contact: Contact, reply: Message | None) -> None:
        if isinstance(reply, Ack) and reply.status is AckStatus.TOKEN:
            self._put(contact, reply.token, self._replied)
        else:
            self._replied(contact, reply)

    def _replied(self, _contact: Contact, reply: Message | None) -> None:
        self._left -= 1
        self.replies_count += reply is not None
        self.take(reply)
        self._check()

    def _check(self) -> None:
        is_enough = len(self._sent) >= DHT_K and self.kept >= DHT_PUT_ENOUGH * len(self._sent)
        if self._settled is not None and not self._settled.done() and (self._left == 0 or is_enough):
            self._settled.set_result(None)


def _is_whole(page: Values) -> bool:
    """Whether this page is all that its holder has."""
    return len(page.chunk) == page.total and page.offset == 0 and blob_digest(page.chunk) == page.digest


def _answer_nodes(contact: Contact, answer: Answer, reply: Message | None) -> None:
    answer(reachable(reply.contacts, contact.address) if isinstance(reply, Nodes) else None)


def reachable(contacts: Sequence[Contact], via: Address) -> list[Contact]:
    """Contacts that make sense at the other end: a loopback address says nothing to another machine."""
    if is_loopback(via.host):
        return list(contacts)
    return [contact for contact in contacts if not is_loopback(contact.address.host)]
