"""Nodes that run the DHT alone, on simulated hosts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.service import Dht
from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address, DatagramEndpoint
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.network import NetworkSettings

GROUP = hashlib.sha256(b"a group").digest()


class Port:
    """One group on one endpoint, without MAC and rate limit."""

    def __init__(self, endpoint: DatagramEndpoint) -> None:
        self._endpoint = endpoint
        self.sent: list[tuple[bytes, Address]] = []
        self.is_recording = False

    def send(self, body: bytes, to: Address) -> None:
        if self.is_recording:
            self.sent.append((body, to))
        self._endpoint.send(body, to)


class Peer:
    """A node with nothing but a DHT."""

    def __init__(self, sim_host: SimHost, number: int, group_id: bytes = GROUP) -> None:
        self.sim_host = sim_host
        self.name = f"peer-{number}"
        self.group_id = group_id
        self.seed = hashlib.sha256(b"seed %d" % number).digest()
        self.came: list[bytes] = []
        self.gone: list[bytes] = []

    async def start(self, addresses: Sequence[Address] = (), contacts: Sequence[Contact] = (), port: int = 0) -> None:
        host = self.sim_host.host
        self.identity = Identity(host.crypto, self.seed)
        self.scope = TaskScope(self.name)
        self.endpoint = await host.net.bind_datagram(port, loopback_only=False)
        self.port = Port(self.endpoint)
        self.dht = Dht(host, self.identity, self.port, self.scope, group_id=self.group_id, name=self.name)
        self.dht.on_contact = lambda contact: self.came.append(contact.key)
        self.dht.on_contact_gone = lambda contact: self.gone.append(contact.key)
        self.scope.spawn(self._receive(), "receive")
        await self.dht.start(contacts, addresses)

    async def _receive(self) -> None:
        while True:
            try:
                body, source = await self.endpoint.receive()
            except ChannelLost:
                return
            self.dht.receive(body, source)

    async def leave(self) -> None:
        await self.dht.leave()
        await self.scope.close()
        self.endpoint.close()

    @property
    def key(self) -> bytes:
        return self.identity.public_key

    @property
    def address(self) -> Address:
        return Address(self.sim_host.address, self.endpoint.port)

    def knows(self) -> set[bytes]:
        return {contact.key for contact in self.dht.contacts()}


class Mesh:
    """Peers in one simulation; a context that checks every table at its end."""

    def __init__(
        self, seed: int = 1, *, loss: float = 0.0, median_s: float = 0.02, handling_s: float = 0.0, cores: int = 0
    ) -> None:
        network = NetworkSettings(loss=loss, median_s=median_s, handling_s=handling_s, shared_cores=cores)
        self.simulation = Simulation(seed, model=network)
        self.peers: list[Peer] = []

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            if hasattr(peer, "dht"):
                peer.dht.check_invariants()
        self.simulation.close()

    def add(self, group_id: bytes = GROUP) -> Peer:
        host = self.simulation.add_host()
        peer = Peer(host, len(self.peers) + 1, group_id)
        self.peers.append(peer)
        return peer

    async def on(self, peer: Peer, coroutine: Any) -> Any:
        return await peer.sim_host.call(coroutine)

    async def grow(self, count: int, *, gap_s: float = 0.0) -> list[Peer]:
        """Start `count` peers that join by the first."""
        for _ in range(count):
            first = self.peers[0] if self.peers else None
            peer = self.add()
            await self.on(peer, peer.start([first.address] if first else []))
            if gap_s:
                await asyncio.sleep(gap_s)
        return list(self.peers)

    async def wait(self, condition: Any, within_s: float, what: str) -> float:
        """Wait in virtual time until `condition()`; returns how long it took."""
        began = self.simulation.now
        while not condition():
            assert self.simulation.now - began < within_s, f"{what} did not happen within {within_s} s"
            await asyncio.sleep(0.05)
        return self.simulation.now - began

    def all_know_all(self, peers: Sequence[Peer] | None = None) -> bool:
        peers = self.peers if peers is None else peers
        if any(len(peer.dht.contacts()) != len(peers) - 1 for peer in peers):
            return False
        keys = {peer.key for peer in peers}
        return all(peer.knows() == keys - {peer.key} for peer in peers)
