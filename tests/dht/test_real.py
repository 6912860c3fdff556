"""The same DHT over real sockets, real signatures and the transport's datagrams, on loopback."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from p2pcompute.dht.records import make_record
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.transport.datagrams import Datagrams

NETWORK_KEY = b"n" * 32


class RealPeer:
    """A DHT on this machine; store, runner and probe are not there because it must not need them."""

    async def start(self, number: int, addresses: list[Address]) -> None:
        crypto = RealCrypto()
        absent = cast(Any, None)
        self.net = RealNet(interfaces=["lo"])
        self.host = Host(
            clock=RealClock(), rng=SystemRng(), crypto=crypto, net=self.net, store=absent, runner=absent, probe=absent
        )
        self.scope = TaskScope(f"peer-{number}")
        self.identity = Identity(crypto, bytes([number]) * 32)
        self.datagrams = Datagrams(self.host, self.scope)
        self.address = Address("127.0.0.1", await self.datagrams.start(0, loopback_only=True))
        port = self.datagrams.bind_group(NETWORK_KEY, self.receive)
        self.dht = Dht(self.host, self.identity, port, self.scope, group_id=bytes(32), name=f"peer-{number}")
        await self.dht.start([], addresses)

    def receive(self, body: bytes, source: Address) -> None:
        self.dht.receive(body, source)

    async def stop(self) -> None:
        await self.dht.leave()
        await self.scope.close()
        self.datagrams.stop()
        await self.net.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_four_nodes_on_loopback_join_find_a_record_and_leave() -> None:
    peers = [RealPeer() for _ in range(4)]
    try:
        for number, peer in enumerate(peers):
            await peer.start(number, [peers[0].address] if number else [])
        await until(lambda: all(len(peer.dht.contacts()) == 3 for peer in peers))
        identity = peers[1].identity
        record = make_record(
            identity.sign_envelope, identity.public_key, salt=b"", seq=1, wall=time.time(), ttl_s=60, value=b"here"
        )
        assert await peers[1].dht.put(record) == 4
        assert await peers[2].dht.get(record.key) == [record]
        assert {contact.name for contact in peers[2].dht.contacts()} == {"peer-0", "peer-1", "peer-3"}
        await peers[1].dht.leave()
        assert all(len(peer.dht.contacts()) == 2 for peer in (peers[0], peers[2], peers[3]))
    finally:
        for peer in peers:
            if hasattr(peer, "dht"):
                await peer.stop()
