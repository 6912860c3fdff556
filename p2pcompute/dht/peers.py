"""Who is known of a group, and in which role: servers in the routing table, clients beside it.  Pure.

Of those that cannot be reached from outside (`reach`), a node of a group of up to k servers knows the clients that call
it themselves, so that a small group is still everybody; they are told to nobody and asked nothing.  A node that is a
client itself takes none: they would be no use to each other.

Each message says which of the two its sender is.  Nobody is both, and one that changes its role has neither come nor
gone.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from p2pcompute.dht.contacts import Contact, id_of
from p2pcompute.dht.routing_table import Change, RoutingTable
from p2pcompute.errors import InvariantViolation
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import DHT_CLIENTS_MAX, DHT_K


class PeersChange(Struct, frozen=True, gc=False):
    """What an event did to who is known in one role."""

    change: Change
    is_client: bool = False
    """It is the clients that changed."""
    moved: bytes | None = None
    """Key of a peer that has changed its role."""


_NOTHING: Final = Change()


class Peers:
    """The verified peers of one group."""

    __slots__ = ("clients", "servers")

    def __init__(self, own_id: bytes, *, is_open: bool = False) -> None:
        """Args:
        is_open: anybody may be in the group, under as many identities as he likes.
        """
        self.servers = RoutingTable(own_id, is_open=is_open)
        self.clients = RoutingTable(own_id)

    # --- questions --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.servers) + len(self.clients)

    def __contains__(self, key: bytes) -> bool:
        return self.servers.has(key) or self.clients.has(key)

    def get(self, key: bytes) -> Contact | None:
        """Return the peer with this key."""
        contact_id = id_of(key)
        return self.servers.get(contact_id) or self.clients.get(contact_id)

    def is_at(self, key: bytes, address: Address) -> bool:
        """Whether it is the key of a peer at this address."""
        return self.servers.is_at(key, address) or self.clients.is_at(key, address)

    def keys(self) -> list[bytes]:
        """Return the keys of all, in no particular order."""
        return [*self.servers.keys(), *self.clients.keys()]

    def all(self) -> list[Contact]:
        """Return all: the servers, then the clients, of each the nearest first."""
        return [*self.servers.contacts(), *self.clients.contacts()]

    def wants(self, key: bytes, address: Address, *, is_client: bool, is_self_client: bool) -> bool:
        """Whether a reply from this peer at this address could change who is known: if not, save the ping.

        Args:
            is_client: it says that it is one.
            is_self_client: this node is one.
        """
        if not is_client:
            return self.servers.wants(key, address)
        if self.servers.has(key):
            return True
        return self._takes_client(key, is_self_client=is_self_client) and self.clients.wants(key, address)

    def _takes_client(self, key: bytes, *, is_self_client: bool) -> bool:
        is_small = len(self.servers) <= DHT_K and len(self.clients) < DHT_CLIENTS_MAX
        return (is_small and not is_self_client) or self.clients.has(key)

    # --- events -----------------------------------------------------------------------------------

    def on_reply(
        self,
        key: bytes,
        address: Address,
        *,
        is_client: bool,
        is_self_client: bool,
        run: bytes,
        now: float,
        name: str | None = None,
        rtt_s: float | None = None,
    ) -> tuple[PeersChange, PeersChange]:
        """Take in a verified reply, and return what it did: first in the other role, then in that which it names.

        Args:
            is_client, is_self_client: as for `wants`; the others as for `RoutingTable.on_reply`.
        """
        to, other = (self.clients, self.servers) if is_client else (self.servers, self.clients)
        left = other.forget(key) if len(other) else _NOTHING
        change = _NOTHING
        if not is_client or self._takes_client(key, is_self_client=is_self_client):
            change = to.on_reply(key, address, run=run, now=now, name=name, rtt_s=rtt_s)
        moved = key if left.removed and key in self else None
        return PeersChange(left, not is_client, moved), PeersChange(change, is_client, moved)

    def on_rtt(self, key: bytes, rtt_s: float) -> None:
        """Note a round trip that was not known when the reply came."""
        self.servers.on_rtt(key, rtt_s)
        self.clients.on_rtt(key, rtt_s)

    def on_failure(self, key: bytes, address: Address, *, sent: float, now: float) -> tuple[PeersChange, ...]:
        """Note that a request sent at time `sent` was not answered in time."""
        servers = PeersChange(self.servers.on_failure(key, address, sent=sent, now=now))
        if not len(self.clients):
            return (servers,)
        return servers, PeersChange(self.clients.on_failure(key, address, sent=sent, now=now), is_client=True)

    def on_goodbye(self, key: bytes, run: bytes) -> tuple[PeersChange, ...]:
        """Remove a peer that has said goodbye, if it is this run of it that is known."""
        servers = PeersChange(self.servers.on_goodbye(key, run))
        return servers, PeersChange(self.clients.on_goodbye(key, run), is_client=True)

    # --- probes -----------------------------------------------------------------------------------

    def due(self, now: float, *, stretch: float) -> list[Contact]:
        """Return whom to probe now; they count as probed.  See `RoutingTable.due`."""
        servers = self.servers.due(now, stretch=stretch)
        return [*servers, *self.clients.due(now, stretch=stretch)] if len(self.clients) else servers

    def next_due(self, *, stretch: float) -> float | None:
        """Return when to ask `due` next; None when nobody is known."""
        times = [table.next_due(stretch=stretch) for table in (self.servers, self.clients) if len(table)]
        return min((time for time in times if time is not None), default=None)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless both are consistent, and nobody is both."""
        self.servers.check_invariants()
        self.clients.check_invariants()
        if len(self.clients) > DHT_CLIENTS_MAX:
            raise InvariantViolation(f"peers: {len(self.clients)} clients")
        both = [key for key in self.clients.keys() if self.servers.has(key)]  # noqa: SIM118 - it is no mapping
        if both:
            raise InvariantViolation(f"peers: {len(both)} are servers and clients")
