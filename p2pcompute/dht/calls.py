"""Having this node called by others, and calling others for them: what `reach` decides, performed.

A node that may be a client asks a contact for it (CALL); that one asks others, each in another range of addresses, to
send a PING (RING), and says whom.  Whoever is asked to ring does so once, and for contacts only, so that nobody can be
made to send more than he was sent; both together are served DHT_CALLS_MAX times in DHT_PING_S.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.dht.contacts import Contact, id_of, range_of
from p2pcompute.dht.exchange import DhtCounters, Verified
from p2pcompute.dht.messages import Ack, AckStatus, Call, Called, Ping, Ring
from p2pcompute.dht.peers import Peers
from p2pcompute.dht.queries import Ask, Queries, ignore
from p2pcompute.dht.reach import Reach
from p2pcompute.host.interfaces import Clock, Net
from p2pcompute.limits import DHT_CALL_WAIT_S, DHT_CALLERS, DHT_CALLS_MAX, DHT_K, DHT_PING_S

if TYPE_CHECKING:
    import random


class Calls:
    """The calls of one node in one group."""

    __slots__ = (
        "_ask", "_called", "_clock", "_counters", "_is_checking", "_net", "_peers", "_ping", "_queries", "_reach",
        "_rng", "_served_count", "_served_until",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        net: Net,
        rng: random.Random,
        ask: Ask,
        ping: Callable[[Contact], None],
        reach: Reach,
        peers: Peers,
        queries: Queries,
        counters: DhtCounters,
    ) -> None:
        self._clock = clock
        self._net = net
        self._rng = rng
        self._ask = ask
        self._ping = ping
        self._reach = reach
        self._peers = peers
        self._queries = queries
        self._counters = counters
        self._is_checking = False
        self._called: asyncio.Future[None] | None = None
        """Done when others have called this node."""
        self._served_until = float("-inf")
        self._served_count = 0

    # --- of this node -----------------------------------------------------------------------------

    async def check(self) -> None:
        """Have this node called by others, if that is due, and wait until they have, or DHT_CALL_WAIT_S."""
        self._reach.on_own_hosts(self._net.local_addresses())
        began = self._clock.now()
        if self._is_checking or not self._reach.wants_check(began) or not len(self._peers.servers):
            return
        self._is_checking = True
        try:
            self._counters.checks += 1
            self._called = asyncio.get_running_loop().create_future()
            (reply,) = await self._queries.ask_all([self._rng.choice(self._peers.servers.contacts())], [Call()])
            if not isinstance(reply, Called):
                return
            if reply.contacts:
                with contextlib.suppress(TimeoutError):
                    async with self._clock.timeout(DHT_CALL_WAIT_S):
                        await self._called
            hosts = [contact.address.host for contact in reply.contacts]
            if self._reach.on_checked(hosts, began, self._clock.now()):
                self._became_server()
        finally:
            self._is_checking = False

    def on_request(self, host: str) -> None:
        """Take in that a verified request came from a host: nobody may have asked it to send one."""
        if self._reach.is_watching and self._reach.on_request(host, self._clock.now()):
            self._became_server()

    def _became_server(self) -> None:
        """Tell the others: they take this node in when they hear from it."""
        if self._called is not None and not self._called.done():
            self._called.set_result(None)
        servers = self._peers.servers
        for contact in servers.nearest(servers.own_id, DHT_K):
            self._ping(contact)

    # --- for others -------------------------------------------------------------------------------

    def on_call(self, request: Verified) -> Called:
        """Ask others to call whoever sent a request, each in another range of addresses, and say whom.

        Clients first: those to whom they have not spoken are many.
        """
        if not self._may_serve():
            return Called(())
        sender, address = request.statement.sender, request.address
        chosen: dict[str, Contact] = {}
        for table in (self._peers.clients, self._peers.servers):
            known = table.nearest(table.own_id, len(table), exclude=id_of(sender), live_only=True)
            self._rng.shuffle(known)
            for contact in known:
                place = range_of(contact.address.host)
                if len(chosen) < DHT_CALLERS and place != range_of(address.host):
                    chosen.setdefault(place, contact)
        for contact in chosen.values():
            self._ask(contact.key, contact.address, [Ring(Contact(sender, address))], ignore)
        return Called(tuple(chosen.values()))

    def on_ring(self, by: bytes, message: Ring) -> Ack:
        """Ping somebody once, for a contact that asks for it."""
        contact = message.contact
        if by not in self._peers or contact.id == self._peers.servers.own_id or not self._may_serve():
            return Ack(AckStatus.REFUSED)
        self._ask(contact.key, contact.address, [Ping()], ignore, is_once=True)
        return Ack(AckStatus.OK)

    def _may_serve(self) -> bool:
        now = self._clock.now()
        if now >= self._served_until:
            self._served_until, self._served_count = now + DHT_PING_S, 0
        self._served_count += 1
        is_allowed = self._served_count <= DHT_CALLS_MAX
        self._counters.calls_served += is_allowed
        self._counters.calls_refused += not is_allowed
        return is_allowed
