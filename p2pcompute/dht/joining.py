"""Whom this node looks for: first contacts, those around it, those that it has lost.

A newcomer knocks at all places that it knows of, and looks itself up once one has answered; whoever it asks pings it
back and so learns it; lookups in the far buckets complete the table.  It looks around again soon after that, as two
that joined at the same moment may have missed each other, and now and then for as long as it takes part: near its own
id always, far from it when somebody has gone.  While others are too busy to be heard of, all of it is rarer, and done
once more when that is over.

Addresses at which somebody was once are remembered: all are tried when nobody is known, else one now and then, or two
parts of a group whose nodes have forgotten one another would never meet again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.exchange import DhtCounters
from p2pcompute.dht.lookup import Lookup
from p2pcompute.dht.messages import Message, Ping
from p2pcompute.dht.queries import Ask, Queries, ignore
from p2pcompute.dht.routing_table import RoutingTable
from p2pcompute.host.interfaces import Address, Clock
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import (
    DHT_JOIN_ADDRESSES_MAX,
    DHT_K,
    DHT_PING_S,
    DHT_REFRESH_S,
    DHT_REFRESH_SMALL_S,
    DHT_STRAY_S,
    DHT_STRAY_S_MAX,
)

if TYPE_CHECKING:
    import random

_FOLLOW_UPS_S = (1.0, 3.0, 10.0)
"""Refreshes after a join: two nodes that joined at the same moment may have missed each other."""
_STEP_IF_GROWN = 2
"""The follow-up that does nothing unless somebody has come since the one before."""
_STRETCH_HARD = 2.0
"""Beyond it the last of them is made again, and once more when it is over: it has not seen everybody."""
_EXPLORE_K = 4
"""Peers that answer when a bucket is looked into, or the own neighbourhood once more: each tells k contacts.  With k of
them 60 nodes that start at once sent 900 datagrams each."""
_ALONE_TRIES = 4
"""Addresses that a node without contacts tries every DHT_PING_S, in turn: it may remember hundreds."""
_JITTER = 0.1

Place = tuple[bytes | None, Address]
"""Where somebody may be, and his key if it is known."""


def jittered(rng: random.Random, delay_s: float) -> float:
    """Return a delay, a tenth longer or shorter: what began together does not stay so."""
    return delay_s * rng.uniform(1 - _JITTER, 1 + _JITTER)


class Joining:
    """How one node comes to know its group, and goes on knowing it."""

    __slots__ = (
        "_added_count", "_ask", "_check_reach", "_clock", "_counters", "_is_refreshing", "_joins_count", "_places",
        "_queries", "_refresh_at", "_removed_count", "_retry_at", "_rng", "_step", "_stray_at", "_stretch", "_table",
        "_verify_heard", "_was_hard",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        ask: Ask,
        table: RoutingTable,
        queries: Queries,
        counters: DhtCounters,
        *,
        stretch: Callable[[], float],
        check_reach: Callable[[], Awaitable[None]],
        verify_heard: Callable[[Lookup], None],
    ) -> None:
        """Args:
        stretch: by how much rarer to do things while others cannot keep up; at least 1.
        check_reach: sees whether others can call this node, if that is due.
        verify_heard: pings those that a lookup has heard of and not asked.
        """
        self._clock = clock
        self._rng = rng
        self._ask = ask
        self._table = table
        self._queries = queries
        self._counters = counters
        self._stretch = stretch
        self._check_reach = check_reach
        self._verify_heard = verify_heard
        self._places: dict[Address, None] = {}
        """Where somebody was once, the one to be tried next first."""
        self._joins_count = 0
        """Joins under way."""
        self._step = 0
        """How many refreshes there were since the first contact."""
        self._added_count = self._removed_count = 0
        """Contacts that had come and gone when it was looked around the last time."""
        self._is_refreshing = self._was_hard = False
        """The second one: at the last refresh others were too busy to be heard of."""
        now = clock.now()
        self._refresh_at = now + DHT_REFRESH_SMALL_S
        self._retry_at = now + DHT_PING_S
        self._stray_at = now + DHT_STRAY_S

    # --- joining ----------------------------------------------------------------------------------

    def remember(self, addresses: Sequence[Address]) -> None:
        """Keep addresses to be tried again; the last DHT_JOIN_ADDRESSES_MAX."""
        for address in addresses:
            self._places.pop(address, None)
            self._places[address] = None
        while len(self._places) > DHT_JOIN_ADDRESSES_MAX:
            del self._places[next(iter(self._places))]

    async def first_join(self, saved: Sequence[Place]) -> None:
        """Join by saved contacts, and when none of them answers by the addresses that are remembered."""
        if not saved or not await self.join(saved):
            await self.join([(None, address) for address in self._places])

    async def join(self, places: Sequence[Place], *, only_if_small: bool = False) -> bool:
        """Ping all places and look around once one has answered; without places, just look around.

        Args:
            only_if_small: look around only when at most k are known; a larger table needs nothing from one member more.

        Returns:
            Whether one has answered.
        """
        self._joins_count += 1
        try:
            if places and not await self._knock(places[:DHT_JOIN_ADDRESSES_MAX]):
                return False
            if not only_if_small or len(self._table) <= DHT_K:
                await self._look_around(0)
            return True
        finally:
            self._joins_count -= 1

    async def _knock(self, places: Sequence[Place]) -> bool:
        """Ping all, at least one; return True at the first answer, False when none has come."""
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        left = len(places)

        def done(reply: Message | None) -> None:
            nonlocal left
            left -= 1
            if not answered.done() and (reply is not None or left == 0):
                answered.set_result(reply is not None)

        for key, address in places:
            self._ask(key, address, [Ping()], done)
        return await answered

    async def _look_around(self, step: int) -> None:
        """Look up the own id and, in a group of more than k, both halves of each far bucket that has room.

        Args:
            step: 0 for a join; then the follow-ups, which ask a handful for who is near, and look into far buckets
                when the table has grown since the last time (the second one does nothing otherwise) or everybody was
                too busy to be heard of; later ones do so when it has lost somebody.
        """
        is_follow_up = 0 < step <= len(_FOLLOW_UPS_S)
        counters, own_id = self._counters, self._table.own_id
        has_grown = counters.contacts_added > self._added_count
        has_shrunk = counters.contacts_removed > self._removed_count
        self._added_count, self._removed_count = counters.contacts_added, counters.contacts_removed
        await self._check_reach()
        if step == _STEP_IF_GROWN and not has_grown:
            return
        lookup = await self._queries.find(
            own_id, k=_EXPLORE_K if is_follow_up else DHT_K, paths=1, is_everybody_asked=step == 0
        )
        self._verify_heard(lookup)
        is_over = self._was_hard and self._stretch() < _STRETCH_HARD
        is_wanted = step == 0 or (has_grown or is_over if is_follow_up else has_shrunk)
        nearest = self._table.nearest(own_id, DHT_K)
        if len(nearest) >= DHT_K and is_wanted:
            for lowest, highest in self._table.far_buckets(self._table.shared_bits(nearest[-1].id) + 1):
                middle = (lowest + highest) // 2
                for low, high in ((lowest, middle), (middle + 1, highest)):
                    target = self._rng.randint(low, high).to_bytes(DHT_ID_BYTES, "big")
                    self._verify_heard(await self._queries.find(target, k=_EXPLORE_K, paths=1))

    # --- again and again --------------------------------------------------------------------------

    def on_first_contact(self) -> None:
        """Look around now that somebody is known, soon if a join under way does so by itself."""
        self._step = 1 if self._joins_count else 0
        self._refresh_at = self._clock.now() + (_FOLLOW_UPS_S[0] if self._joins_count else 0.0)

    def be_at_rest(self) -> None:
        """Take what follows a join for done; for simulations that begin in the steady state."""
        now = self._clock.now()
        self._step = len(_FOLLOW_UPS_S) + 1
        self._refresh_at = now + self._rng.uniform(0, DHT_REFRESH_S)
        self._stray_at = now + self._rng.uniform(0, DHT_STRAY_S_MAX)

    def next_due(self) -> float:
        """Return when `retry` or `take_refresh` has something to do next."""
        return min(self._refresh_at, self._retry_due())

    def take_refresh(self, now: float) -> bool:
        """Whether `refresh` is to be called now; not again before it has ended."""
        if now < self._refresh_at:
            return False
        self._refresh_at = now + DHT_REFRESH_S
        if self._is_refreshing or not len(self._table):
            return False
        self._is_refreshing = True
        return True

    async def refresh(self) -> None:
        """Look around, and see to it that this is done again in time."""
        try:
            await self._look_around(self._step)
        finally:
            self._is_refreshing = False
            is_hard = self._stretch() >= _STRETCH_HARD
            if self._step >= len(_FOLLOW_UPS_S) and (is_hard or self._was_hard):
                self._step = len(_FOLLOW_UPS_S) - 1  # who was too busy to be heard of may be missing
            self._was_hard = is_hard
            if self._step < len(_FOLLOW_UPS_S):
                delay_s = _FOLLOW_UPS_S[self._step]
            else:
                delay_s = DHT_REFRESH_SMALL_S if len(self._table) < DHT_K else DHT_REFRESH_S
            self._step += 1
            self._refresh_at = self._clock.now() + jittered(self._rng, delay_s * self._stretch())

    def _retry_due(self) -> float:
        """When somebody who is not in the table is to be tried again."""
        return self._retry_at if self._table.has_lost or not len(self._table) else max(self._retry_at, self._stray_at)

    def retry(self, now: float, ping: Callable[[Contact], None]) -> None:
        """Try a lost contact again, and addresses at which somebody was once, if that is due."""
        if now < self._retry_due():
            return
        self._retry_at = now + jittered(self._rng, DHT_PING_S * self._stretch())
        lost = self._table.lost_due(now)
        if lost is not None:
            ping(lost)
        if not len(self._table):
            tried = list(self._places)[:_ALONE_TRIES]
            self.remember(tried)  # the others come before them the next time
            for address in tried:
                self._ask(None, address, [Ping()], ignore)
        elif now >= self._stray_at:
            self._stray_at = now + jittered(self._rng, min(DHT_STRAY_S * self._table.patience, DHT_STRAY_S_MAX))
            known = {contact.address for contact in self._table.contacts()}
            stray = next((address for address in self._places if address not in known), None)
            if stray is not None:
                self.remember([stray])  # the others come before it
                self._ask(None, stray, [Ping()], ignore)
