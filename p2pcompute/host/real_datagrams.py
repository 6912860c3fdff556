"""UDP of the real host: asyncio-dgram with bounds around it.

Source: the `asyncio-dgram` package carries the datagrams.
Deviations: both queues of asyncio-dgram are unbounded and its `send` first raises any error that is queued,
whoever caused it.  So one task per socket moves what arrives into a bounded queue, one sends from another,
and before and after each send foreign errors are taken out and counted: an error that peer A caused never
costs a datagram to peer B.  What the kernel takes at once is given to it at once: a turn of that task would cost as
much as sending.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncio_dgram

from p2pcompute.errors import ChannelLost, ConfigError
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_interfaces import InterfaceAddress
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    DATAGRAM_BYTES_MAX,
    DATAGRAM_QUEUE_MAX,
    PORT_ATTEMPTS_MAX,
    RATE_SOURCES_MAX,
    SOCKET_BUFFER_BYTES,
)

_PORTS = 65536
_DELIVERED_AT_ONCE = 64
"""Datagrams handled before others get their turn on the event loop; more than it reads from a socket in one (asyncio 1,
libuv 32), so that the queue of asyncio-dgram, which has no bound, stays short."""
_READ_BYTES = 2 * DATAGRAM_BYTES_MAX
"""What is longer arrives cut, and is still too long."""
_ERRORS_AT_ONCE_MAX = 64
"""Queued errors taken out before one send; more cannot have come from the sends before it."""


@dataclass(slots=True)
class DatagramCounters:
    """Counted since the endpoint was bound."""

    received: int = 0
    sent: int = 0
    receive_dropped: int = 0
    """Arrived while DATAGRAM_QUEUE_MAX others waited for us."""
    send_dropped: int = 0
    """Not sent: queue full, no socket of that family, or refused by the kernel twice."""
    errors: int = 0
    """Errors that the kernel reported, for whichever datagram."""


class _Socket:
    """One bound UDP socket and its queue of datagrams to send."""

    def __init__(self, sock: socket.socket, stream: Any, local: InterfaceAddress | None) -> None:
        self.sock = sock
        self.stream = stream
        self.local = local
        self.family = sock.family
        self.unsent: deque[tuple[bytes, tuple[str, int]]] = deque()
        self.has_unsent = asyncio.Event()


class RealDatagrams:
    """Implements `host.interfaces.DatagramEndpoint` over one socket per family or allowed address."""

    def __init__(self, port: int, scope: TaskScope) -> None:
        self._port = port
        self._scope = scope
        self._sockets: list[_Socket] = []
        self._received: deque[tuple[bytes, Address]] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._take: Callable[[bytes, Address], None] | None = None
        self._routes: dict[str, _Socket | None] = {}
        self._is_closed = False
        self.counters = DatagramCounters()

    @property
    def port(self) -> int:
        return self._port

    async def attach(self, sock: socket.socket, local: InterfaceAddress | None) -> None:
        """Take over a bound socket.  `local` is its address, None for the wildcard."""
        entry = _Socket(sock, await asyncio_dgram.from_socket(sock), local)
        transport = entry.stream._transport
        if hasattr(transport, "max_size"):
            # asyncio's own loop makes room for 256 KiB whenever it reads one: 9 µs instead of 0.9.
            transport.max_size = _READ_BYTES
        self._sockets.append(entry)
        self._scope.spawn(self._drain(entry), "udp-receive")
        self._scope.spawn(self._send_all(entry), "udp-send")

    # --- receiving --------------------------------------------------------------------------------

    async def _drain(self, entry: _Socket) -> None:
        while not self._is_closed:
            try:
                data, source = await entry.stream.recv()
            except asyncio_dgram.TransportClosed:
                return
            except OSError:
                self.counters.errors += 1
                continue
            self.counters.received += 1
            address = Address(source[0].partition("%")[0], source[1])
            if self._take is not None:
                self._take(data, address)
                if self.counters.received % _DELIVERED_AT_ONCE == 0:
                    await asyncio.sleep(0)
                continue
            if len(self._received) >= DATAGRAM_QUEUE_MAX:
                self.counters.receive_dropped += 1
                continue
            self._received.append((data, address))
            self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def deliver_to(self, take: Callable[[bytes, Address], None]) -> None:
        """Hand every datagram to `take` from now on, those that wait here first."""
        self._take = take
        while self._received:
            take(*self._received.popleft())

    async def receive(self) -> tuple[bytes, Address]:
        """The next datagram; for one receiver at a time.

        Raises:
            ChannelLost: closed.
        """
        while not self._received:
            if self._is_closed:
                raise ChannelLost("the datagram endpoint is closed")
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        return self._received.popleft()

    # --- sending ----------------------------------------------------------------------------------

    def send(self, data: bytes, to: Address) -> None:
        """Send a datagram, or queue it while the kernel takes none; dropped and counted when it cannot be sent."""
        # A port out of range must not reach asyncio: it would close the socket over it.
        entry = self._route(to.host) if 0 < to.port < _PORTS else None
        if entry is None or self._is_closed or len(entry.unsent) >= DATAGRAM_QUEUE_MAX:
            self.counters.send_dropped += 1
            return
        if entry.unsent or not self._send_now(entry, data, (to.host, to.port)):
            entry.unsent.append((data, (to.host, to.port)))
            entry.has_unsent.set()

    def _send_now(self, entry: _Socket, data: bytes, target: tuple[str, int]) -> bool:
        """Send without waiting; False when that is not possible now."""
        try:
            entry.sock.sendto(data, target)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.counters.errors += 1
            return False
        self.counters.sent += 1
        return True

    async def _send_all(self, entry: _Socket) -> None:
        while not self._is_closed:
            await entry.has_unsent.wait()
            entry.has_unsent.clear()
            while entry.unsent and not self._is_closed:
                data, target = entry.unsent.popleft()
                if not await self._send_one(entry, data, target):
                    self.counters.send_dropped += 1

    async def _send_one(self, entry: _Socket, data: bytes, target: tuple[str, int]) -> bool:
        self._take_errors(entry)
        for _ in range(2):
            try:
                await entry.stream.send(data, target)
            except asyncio_dgram.TransportClosed:
                return False
            except OSError:  # another datagram's
                self.counters.errors += 1
                continue
            self.counters.sent += 1
            return True
        return False

    def _take_errors(self, entry: _Socket) -> None:
        for _ in range(_ERRORS_AT_ONCE_MAX):
            try:
                if entry.stream.exception is None:
                    return
            except OSError:
                self.counters.errors += 1

    def _route(self, host: str) -> _Socket | None:
        """The socket to send from, remembered per target."""
        if host in self._routes:
            return self._routes[host]
        if len(self._routes) >= RATE_SOURCES_MAX:
            self._routes.clear()
        entry = self._routes[host] = self._choose(host)
        return entry

    def _choose(self, host: str) -> _Socket | None:
        try:
            target = ipaddress.ip_address(host)
        except ValueError:
            return None
        family = socket.AF_INET6 if target.version == 6 else socket.AF_INET
        fitting = [entry for entry in self._sockets if entry.family == family]
        if len(fitting) <= 1:
            return fitting[0] if fitting else None
        for entry in fitting:
            if entry.local is not None and target in entry.local.network:
                return entry
        others = [entry for entry in fitting if entry.local is None or not entry.local.is_loopback]
        return (others or fitting)[0]

    def close(self) -> None:
        """Close the sockets; whoever waits in `receive` gets ChannelLost.  Safe to call twice."""
        self._is_closed = True
        for entry in self._sockets:
            entry.stream.close()
            entry.has_unsent.set()
        self._wake()


async def bind(port: int, hosts: Sequence[tuple[str, InterfaceAddress | None]], scope: TaskScope) -> RealDatagrams:
    """Bind the same UDP port on all `hosts`.

    Args:
        port: 0 for any that is free on all of them.
        hosts: address literals, and the interface address each stands for (None for a wildcard).

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    for attempt in range(PORT_ATTEMPTS_MAX):
        sockets: list[socket.socket] = []
        try:
            chosen = port
            for host, _ in hosts:
                sockets.append(_bound(host, chosen))
                chosen = sockets[0].getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < PORT_ATTEMPTS_MAX:
                continue
            raise ConfigError(
                f"UDP port {port} cannot be used", error.strerror or str(error), "choose another node.port"
            ) from error
        endpoint = RealDatagrams(chosen, scope)
        for sock, (_, local) in zip(sockets, hosts, strict=True):
            await endpoint.attach(sock, local)
        return endpoint
    raise AssertionError("the last attempt returned or raised")


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except BaseException:  # tidied up after, and raised again
        sock.close()
        raise
    return sock
