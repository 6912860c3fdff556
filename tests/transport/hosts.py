"""Worlds to run transport in: the real host on loopback, and the simulated one.

A test's body is a coroutine function that takes a `World`; `run` runs it in a loop of that kind.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from p2pcompute.errors import TrustError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.transport.channels import Channel, Channels
from p2pcompute.transport.credentials import PeerInfo
from p2pcompute.transport.datagrams import Datagrams

T = TypeVar("T")
NETWORK_KEY = hashlib.sha256(b"a network key").digest()


class World(Protocol):
    kind: str

    def add(self) -> tuple[Host, str]: ...

    async def on(self, host: Host, coroutine: Coroutine[Any, Any, T]) -> T: ...

    def now(self) -> float: ...

    def run(self, case: Callable[[Any], Coroutine[Any, Any, None]]) -> None: ...


class RealWorld:
    """Real sockets on loopback.  An exception that nobody took fails the test."""

    kind = "real"

    def __init__(self) -> None:
        self.nets: list[RealNet] = []
        self.failures: list[str] = []

    def add(self) -> tuple[Host, str]:
        net = RealNet(interfaces=["lo"], on_error=self._failed)
        self.nets.append(net)
        absent: Any = None
        host = Host(
            clock=RealClock(), rng=SystemRng(), crypto=RealCrypto(), net=net, store=absent, runner=absent, probe=absent
        )
        return host, "127.0.0.1"

    async def on(self, host: Host, coroutine: Coroutine[Any, Any, T]) -> T:
        return await coroutine

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def _failed(self, name: str, error: BaseException) -> None:
        self.failures.append(f"{name}: {error!r}")

    def run(self, case: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: self.failures.append(repr(context)))
            try:
                async with asyncio.timeout(15):
                    await case(self)
            finally:
                for net in self.nets:
                    await net.close()

        asyncio.run(main())
        assert not self.failures, self.failures


class SimWorld:
    """The simulated host."""

    kind = "simulated"

    def __init__(self, seed: int = 1) -> None:
        self.simulation = Simulation(seed)
        self.hosts: dict[int, SimHost] = {}

    def add(self) -> tuple[Host, str]:
        sim_host = self.simulation.add_host()
        self.hosts[id(sim_host.host)] = sim_host
        return sim_host.host, sim_host.address

    async def on(self, host: Host, coroutine: Coroutine[Any, Any, T]) -> T:
        return await self.hosts[id(host)].call(coroutine)

    def now(self) -> float:
        return self.simulation.now

    def run(self, case: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        with self.simulation as simulation:
            simulation.run(case(self))


WORLDS: dict[str, Callable[[], World]] = {"real": RealWorld, "simulated": SimWorld}


class Someone:
    """Credentials of a test node: a member unless its key is in `strangers`."""

    def __init__(self, host: Host, name: str, network_keys: Sequence[bytes] = (NETWORK_KEY,)) -> None:
        self.identity = Identity(host.crypto, hashlib.sha256(name.encode()).digest())
        self.name = name
        self.keys = list(network_keys)
        self.invites: list[bytes] = []
        self.strangers: set[bytes] = set()

    def network_keys(self) -> Sequence[bytes]:
        return self.keys

    def hello(self) -> dict[str, Any]:
        return {"name": self.name, "chain": [b"x" * 300]}

    def check_peer(self, key: bytes, hello: dict[str, Any]) -> PeerInfo:
        if key in self.strangers:
            raise TrustError("you are not a member of this group")
        return PeerInfo(key=key, installation=key, name=str(hello.get("name")), hello=hello)

    def invite_keys(self) -> Sequence[bytes]:
        return self.invites


class Node:
    """Channels and datagrams of one node, and what happened to them."""

    def __init__(self, world: World, name: str, network_keys: Sequence[bytes] = (NETWORK_KEY,)) -> None:
        self.world = world
        self.host, self.ip = world.add()
        self.errors: list[BaseException] = []
        self.scope = TaskScope(name, lambda _, error: self.errors.append(error))
        self.credentials = Someone(self.host, name, network_keys)
        self.channels = Channels(self.host, self.credentials, self.scope)
        self.datagrams = Datagrams(self.host, self.scope)
        self.opened: list[Channel] = []
        self.lost: list[Channel] = []
        self.channels.on_open = self.opened.append
        self.channels.on_lost = self.lost.append
        self.port = 0

    @property
    def key(self) -> bytes:
        return self.credentials.identity.public_key

    @property
    def address(self) -> Address:
        return Address(self.ip, self.port)

    async def start(self) -> Node:
        self.port = await self.world.on(self.host, self.channels.listen(0, loopback_only=self.world.kind == "real"))
        return self

    async def connect(self, other: Node, **kwargs: Any) -> Channel:
        return await self.world.on(self.host, self.channels.connect(other.key, [other.address], **kwargs))

    async def request(self, channel: Channel, message_type: int, body: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout_s", 5.0)
        return await self.world.on(self.host, channel.request(message_type, body, **kwargs))

    async def stop(self, *, expect_errors: bool = False) -> None:
        async def end() -> None:
            await self.channels.close()
            self.datagrams.stop()
            await self.scope.close()

        await self.world.on(self.host, end())
        if not expect_errors:
            assert not self.errors, self.errors


async def wait_for(condition: Callable[[], object], what: str, within_s: float = 5.0) -> None:
    """Wait until the condition holds; in virtual time where the loop has that."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"{what} did not happen within {within_s} s"
        await asyncio.sleep(0.005)


async def echo(channel: Channel, body: Any) -> Any:
    return body


Serve = Callable[[Channel, Any], Awaitable[Any]]
