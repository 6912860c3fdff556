"""A real node with nothing but a DHT, and what several scripts say about where they ran."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import asdict
from typing import Any, Final, cast

from p2pcompute.dht.contacts import id_of
from p2pcompute.dht.records import Record, make_ad
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.transport.datagrams import Datagrams

GROUP: Final = b"b" * 32
_RECORD_S: Final = 3600


def identity_of(number: int) -> Identity:
    """The identity of a node, the same in every process."""
    return Identity(RealCrypto(), hashlib.sha256(b"%d" % number).digest())


class RealDht:
    """One node on loopback: real sockets, real signatures, no scheduler, channels or journal."""

    def __init__(self, number: int) -> None:
        absent = cast(Any, None)
        self._net = RealNet(interfaces=["lo"])
        host = Host(
            clock=RealClock(), rng=SystemRng(), crypto=RealCrypto(), net=self._net, store=absent, runner=absent,
            probe=absent,
        )  # fmt: skip
        self._scope = TaskScope(f"node-{number}")
        self.identity = identity_of(number)
        self.id = id_of(self.identity.public_key)
        self.datagrams = Datagrams(host, self._scope)
        port = self.datagrams.bind_group(GROUP, self._receive)
        self.dht = Dht(host, self.identity, port, self._scope, group_id=GROUP, name=f"node-{number}")

    def _receive(self, body: bytes, source: Address) -> None:
        self.dht.receive(body, source)

    async def start(self, first: Address | None) -> Address:
        """Join by a member's address and look around; return the own address."""
        address = Address("127.0.0.1", await self.datagrams.start(0, loopback_only=True))
        await self.dht.start([], [])
        if first is not None:
            await self.dht.join([first])
        return address

    def record(self, name: str, value: bytes) -> Record:
        """A record of this node under a name that others can ask for."""
        sign, key = self.identity.sign_envelope, self.identity.public_key
        return make_ad(sign, key, key=key_of(name), seq=1, wall=time.time(), ttl_s=_RECORD_S, value=value)

    async def put(self, name: str, value: bytes) -> None:
        await self.dht.put(self.record(name, value))

    async def get(self, name: str) -> bytes | None:
        found = await self.dht.get(key_of(name))
        return found[0].value if found else None

    async def find(self, key: bytes) -> list[bytes]:
        return [contact.id for contact in await self.dht.find(key)]

    def messages(self) -> int:
        """Request datagrams sent so far, those that were sent again included."""
        return self.dht.counters.requests_sent + self.dht.counters.requests_resent

    def counters(self) -> dict[str, int]:
        """What became of datagrams, as far as anything did."""
        found = {**asdict(self.datagrams.counters), **asdict(self.dht.counters)}
        return {name: count for name, count in found.items() if count}

    def die(self) -> None:
        """Hear and say nothing any more; nobody is told."""
        self.datagrams.stop()

    async def close(self) -> None:
        await self._scope.close()
        self.datagrams.stop()
        await self._net.close()


def key_of(name: str) -> bytes:
    """The place of a name, as in the `kademlia` package."""
    return hashlib.sha1(name.encode(), usedforsecurity=False).digest()


def nearest(ids: list[bytes], key: bytes, count: int) -> list[bytes]:
    """The ids nearest to a key, nearest first."""
    target = int.from_bytes(key, "big")
    return sorted(ids, key=lambda one: int.from_bytes(one, "big") ^ target)[:count]


def machine() -> dict[str, Any]:
    """Where this runs, and how busy it is with something else."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }
