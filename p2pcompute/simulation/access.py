"""One host's access to the simulated network: the simulated `Net` and `DatagramEndpoint`."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import zlib
from asyncio import Future
from collections.abc import Callable
from contextvars import Context
from typing import Final

from p2pcompute.errors import ChannelLost, DnsError, LocalProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, DnsAnswer, DnsKind, LanAnnouncement, LanSighting
from p2pcompute.limits import DATAGRAM_QUEUE_MAX, PREAMBLE_BYTES
from p2pcompute.simulation.dialling import Dial
from p2pcompute.simulation.machines import LOOPBACK, Machine, Plug, SimListener
from p2pcompute.simulation.network import Network
from p2pcompute.simulation.streams import SimStream
from p2pcompute.simulation.trace import Kind

DNS_ANSWER_S: Final = 0.02
"""How long a simulated name server takes."""
DNS_TTL_S: Final = 300.0
LAN_NOTICE_S: Final = 0.2
"""From an announcement to its sighting by others."""
LAN_EXPIRY_S: Final = 120.0
"""After which the announcement of a crashed host is withdrawn by those who saw it (mDNS time to live)."""


class SimDatagrams:
    """A bound UDP port: the simulated `DatagramEndpoint`."""

    __slots__ = (
        "_is_closed", "_port", "_queue", "_taker", "_waiter", "address", "is_loopback_only", "loopback_address", "net",
    )  # fmt: skip

    def __init__(self, net: SimNet, port: int, is_loopback_only: bool) -> None:
        self.net = net
        self.is_loopback_only = is_loopback_only
        self.address = Address(net.machine.address, port)
        self.loopback_address = Address(LOOPBACK, port)
        self._port = port
        self._is_closed = False
        self._queue: list[tuple[bytes, Address]] = []
        """What nobody takes yet: an empty deque is 600 bytes larger, and few endpoints ever wait."""
        self._waiter: Future[None] | None = None
        self._taker: Callable[[bytes, Address], None] | None = None

    @property
    def port(self) -> int:
        return self._port

    def send(self, data: bytes, to: Address) -> None:
        if not self._is_closed:
            self.net.network.send_datagram(self, data, to)

    def take(self, data: bytes, source: Address) -> bool:
        """Hand over or queue an arrived datagram; False when the queue is full and it was dropped."""
        if self._taker is not None:
            self.net.context.run(self._taker, data, source)
            return True
        if len(self._queue) >= DATAGRAM_QUEUE_MAX:
            return False
        self._queue.append((data, source))
        self._wake()
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def deliver_to(self, take: Callable[[bytes, Address], None]) -> None:
        self._taker = take
        queue, self._queue = self._queue, []
        for data, source in queue:
            take(data, source)

    async def receive(self) -> tuple[bytes, Address]:
        while not self._queue:
            if self._is_closed:
                raise ChannelLost("the datagram endpoint is closed")
            if self._waiter is not None:
                raise LocalProtocolError("two tasks receive from one datagram endpoint")
            self._waiter = self.net.network.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.pop(0)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.clear()
        self.net.machine.datagrams.pop(self._port, None)
        self.net.datagrams.pop(self, None)
        self._wake()


class SimNet(Plug):
    """One host's access to the network: the simulated `Net`.  See `Plug` for its arguments."""

    def __init__(self, network: Network, machine: Machine, number: int, context: Context) -> None:
        super().__init__(machine, number, context)
        self.network = network

    # --- Net --------------------------------------------------------------------------------------

    async def bind_datagram(self, port: int, *, loopback_only: bool) -> SimDatagrams:
        """See `Net`.

        Raises:
            ConfigError: the port is taken.
        """
        self._check_open()
        port = self.machine.take_port(port, taken=self.machine.datagrams)
        endpoint = SimDatagrams(self, port, loopback_only or self.machine.address == LOOPBACK)
        self.machine.datagrams[port] = endpoint
        self.datagrams[endpoint] = None
        return endpoint

    async def listen_stream(
        self,
        port: int,
        *,
        loopback_only: bool,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
    ) -> SimListener:
        """See `Net`.

        Raises:
            ConfigError: the port is taken.
        """
        self._check_open()
        port = self.machine.take_port(port, taken=self.machine.listeners)
        network, is_loopback_only = self.network, loopback_only or self.machine.address == LOOPBACK
        made_at = network.loop.time()
        name = f"{network.seed}:certificate:{self.machine.number}:{self.number}:{port}:{made_at!r}"
        binding = hashlib.sha256(name.encode()).digest()
        listener = SimListener(self, port, is_loopback_only, admit, accept, binding)
        self.machine.listeners[port] = listener
        self.listeners[listener] = None
        return listener

    async def dial_stream(self, address: Address, preamble: bytes, *, timeout_s: float) -> SimStream:
        self._check_open()
        if len(preamble) != PREAMBLE_BYTES:
            raise LocalProtocolError(f"a preamble of {len(preamble)} bytes")
        return await Dial(self.network, self, address, preamble).wait(timeout_s)

    async def resolve(self, host: str, port: int) -> list[Address]:
        """See `Net`.  Knows literals, "localhost" and the names of the simulation's hosts."""
        if host == "localhost":
            return [Address(LOOPBACK, port)]
        machine = self.network.names.get(host)
        if machine is not None:
            return [Address(machine.address_seen_by(self.machine), port)]
        try:
            return [Address(str(ipaddress.ip_address(host)), port)]
        except ValueError:
            return []

    async def ask_dns(self, name: str, kind: DnsKind) -> DnsAnswer:
        """See `Net`.  Knows what the simulation's zone says, and the names of its hosts."""
        await asyncio.sleep(DNS_ANSWER_S)
        found = self.network.zone.get((name, kind))
        if isinstance(found, DnsError):
            raise found
        if found is not None:
            return found
        machine = self.network.names.get(name)
        if machine is None and not any(name == known for known, _ in self.network.zone):
            raise DnsError(f"there is no name {name}", "says the simulation", code="dns-unknown")
        if machine is None or kind is not DnsKind.A:
            return DnsAnswer()
        return DnsAnswer(hosts=(machine.address_seen_by(self.machine),), ttl_s=DNS_TTL_S)

    def local_addresses(self) -> list[str]:
        return [self.machine.address]

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        self._check_open()
        previous, self.announcement = self.announcement, announcement
        self.network.lan_members(self)[self] = None
        if announcement is not None:
            self._tell(announcement, is_present=True)
        elif previous is not None:
            self._tell(previous, is_present=False)

    async def browse(self, seen: Callable[[LanSighting], None] | None) -> None:
        self._check_open()
        self.seen = seen
        members = self.network.lan_members(self)
        members[self] = None
        if seen is None:
            return
        for other in members:
            if other is not self and other.announcement is not None:
                self._notify(self, other, other.announcement, is_present=True)

    async def close(self) -> None:
        if self.is_dead:
            return
        if self.announcement is not None:
            await self.announce(None)
        self._leave()
        for stream in list(self.streams):
            stream.close()
        self.is_dead = True
        self.machine.nets.pop(self, None)

    # --- faults -----------------------------------------------------------------------------------

    def kill(self, *, is_silent: bool) -> None:
        """End everything at once, as when the process is killed (others are told by resets) or, `is_silent`,
        when the machine loses power (others are told nothing)."""
        if self.is_dead:
            return
        self.is_dead = True
        if is_silent:
            self.machine.is_silent = True
        announcement = self.announcement
        self._leave()
        if announcement is not None:
            self._tell(announcement, is_present=False, after_s=LAN_EXPIRY_S)
        for stream in list(self.streams):
            stream.die(is_silent=is_silent)
        self.streams.clear()
        self.machine.nets.pop(self, None)

    def _leave(self) -> None:
        for endpoint in list(self.datagrams):
            endpoint.close()
        for listener in list(self.listeners):
            listener.stop()
        self.network.lan_members(self).pop(self, None)
        self.seen = self.announcement = None

    def _check_open(self) -> None:
        if self.is_dead:
            raise ChannelLost("the host's network is closed")

    # --- LAN --------------------------------------------------------------------------------------

    def _tell(self, announcement: LanAnnouncement, *, is_present: bool, after_s: float = LAN_NOTICE_S) -> None:
        for other in self.network.lan_members(self):
            if other is not self and other.seen is not None:
                self._notify(other, self, announcement, is_present=is_present, after_s=after_s)

    def _notify(
        self, to: Plug, of: Plug, announcement: LanAnnouncement, *, is_present: bool, after_s: float = LAN_NOTICE_S
    ) -> None:
        network, sender, receiver = self.network, of.machine, to.machine
        if network.is_cut(sender, receiver):
            return
        addresses = (LOOPBACK,) if sender is receiver else (sender.address,)
        sighting = LanSighting(announcement=announcement, addresses=addresses, is_present=is_present)
        at = network.loop.time() + after_s + network.delay_s(sender, receiver)
        network.loop.post(at, self._sight, (to, sighting))

    def _sight(self, notice: tuple[Plug, LanSighting]) -> None:
        to, sighting = notice
        if to.seen is None or to.is_dead or to.machine.is_unplugged:
            return
        loop = self.network.loop
        digest = zlib.crc32(sighting.announcement.public_key) ^ sighting.is_present
        loop.trace.record(loop.time(), to.number, Kind.LAN, digest)
        to.context.run(to.seen, sighting)
