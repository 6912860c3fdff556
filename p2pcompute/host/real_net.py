"""The network of the real host: UDP, TLS over TCP, name resolution, LAN discovery."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pcompute.errors import ChannelLost, ConfigError
from p2pcompute.host import real_datagrams
from p2pcompute.host.interfaces import Address, ByteStream, DnsAnswer, DnsKind, LanAnnouncement, LanSighting
from p2pcompute.host.real_interfaces import InterfaceAddress, interface_addresses
from p2pcompute.host.real_lan import RealLan
from p2pcompute.host.real_streams import RealStream, dialler_context, listener_context
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    HANDSHAKE_S_MAX,
    HANDSHAKES_MAX,
    PORT_ATTEMPTS_MAX,
    PREAMBLE_BYTES,
    PREAMBLE_S_MAX,
    STREAM_CLOSE_S,
)

if TYPE_CHECKING:
    from p2pcompute.host.real_dns import RealDns

_BACKLOG = 128
_ACCEPT_PAUSE_S = 0.1
"""Wait after the machine had no file descriptor left for a connection."""


@dataclass(slots=True)
class ListenerCounters:
    """Inbound connections of one listener, by how they ended before they were handed on."""

    accepted: int = 0
    silent: int = 0
    """Closed because the preamble did not come in time."""
    evicted: int = 0
    """Closed without a preamble to make room for a newer connection."""
    refused: int = 0
    """Not admitted: a stranger."""
    busy: int = 0
    """Admitted while HANDSHAKES_MAX others were in their TLS handshake."""
    broken: int = 0
    """The TLS handshake failed."""
    ready: int = 0


class RealNet:
    """Implements `host.interfaces.Net`.

    Args:
        interfaces: names of the only interfaces on which sockets are bound and announcements made; None for all.
        name_servers: addresses and ports of those that `ask_dns` asks; empty: the system's.
        on_error: told about exceptions that are our own bug.
    """

    def __init__(
        self,
        *,
        interfaces: Sequence[str] | None = None,
        name_servers: Sequence[tuple[str, int]] = (),
        on_error: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._name_servers = tuple(name_servers)
        self._dns: RealDns | None = None
        self._interfaces = None if interfaces is None else tuple(interfaces)
        self._on_error = on_error
        self._scope = TaskScope("net", on_error)
        self._endpoints: list[real_datagrams.RealDatagrams] = []
        self._listeners: list[RealListener] = []
        self._streams: dict[RealStream, None] = {}
        self._dialler_context: ssl.SSLContext | None = None
        self._lan: RealLan | None = None

    # --- sockets ----------------------------------------------------------------------------------

    async def bind_datagram(self, port: int, *, loopback_only: bool) -> real_datagrams.RealDatagrams:
        """Bind a UDP port (0: any).

        Raises:
            ConfigError: the port or an interface cannot be used.
        """
        endpoint = await real_datagrams.bind(port, self._local_hosts(loopback_only), self._scope)
        self._endpoints.append(endpoint)
        return endpoint

    async def listen_stream(
        self,
        port: int,
        *,
        loopback_only: bool,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
    ) -> RealListener:
        """Listen on a TCP port (0: any).

        Raises:
            ConfigError: the port or an interface cannot be used.
        """
        sockets = _listening(port, [host for host, _ in self._local_hosts(loopback_only)])
        listener = RealListener(sockets, admit=admit, accept=accept, streams=self._streams, on_error=self._on_error)
        self._listeners.append(listener)
        listener.start()
        return listener

    async def dial_stream(self, address: Address, preamble: bytes, *, timeout_s: float) -> ByteStream:
        """Connect, send the preamble, complete TLS.

        Raises:
            ChannelLost: refused, unreachable, not admitted, or not ready in time.
        """
        if self._dialler_context is None:
            self._dialler_context = dialler_context()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._dial(address, preamble, self._dialler_context)
        except TimeoutError as error:
            raise ChannelLost(f"no connection to {address}", f"not ready within {timeout_s:g} s") from error
        except (OSError, ValueError, OverflowError) as error:
            raise ChannelLost(f"no connection to {address}", str(error)) from error

    async def _dial(self, address: Address, preamble: bytes, context: ssl.SSLContext) -> ByteStream:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, (address.host, address.port))
            await loop.sock_sendall(sock, preamble)
            transport, stream = await loop.create_connection(
                lambda: RealStream(None, address, self._ended),
                sock=sock,
                ssl=context,
                server_hostname="",
                ssl_handshake_timeout=HANDSHAKE_S_MAX,
                ssl_shutdown_timeout=STREAM_CLOSE_S,
            )
        except BaseException:  # tidied up after, and raised again
            sock.close()
            raise
        if transport.is_closing():
            raise ChannelLost(f"no connection to {address}", "closed by the other side")
        self._streams[stream] = None
        return stream

    def _ended(self, stream: RealStream) -> None:
        self._streams.pop(stream, None)

    def _local_hosts(self, loopback_only: bool) -> list[tuple[str, InterfaceAddress | None]]:
        """Addresses to bind, IPv4 first; a family that the machine does not have is left out."""
        if loopback_only:
            hosts: list[tuple[str, InterfaceAddress | None]] = [("127.0.0.1", None), ("::1", None)]
        elif self._interfaces is None:
            hosts = [("0.0.0.0", None), ("::", None)]
        else:
            hosts = [(entry.host, entry) for entry in interface_addresses(self._interfaces)]
        usable = [entry for entry in hosts if ":" not in entry[0] or _has_ipv6(entry[0])]
        if not usable:
            raise ConfigError("no address can be bound", "the allowed interfaces have none", "change node.interfaces")
        return usable

    # --- names and addresses ----------------------------------------------------------------------

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Addresses of a host name or literal, in the system's order; empty when it does not resolve."""
        host = host.strip("[]")
        try:
            return [Address(str(ipaddress.ip_address(host)), port)]
        except ValueError:
            pass
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        addresses: dict[Address, None] = {}
        for family, _, _, _, name in found:
            if family in (socket.AF_INET, socket.AF_INET6):
                addresses[Address(str(name[0]).partition("%")[0], port)] = None
        return list(addresses)

    async def ask_dns(self, name: str, kind: DnsKind) -> DnsAnswer:
        """See `Net`."""
        if self._dns is None:
            from p2pcompute.host.real_dns import RealDns  # most nodes never need it

            self._dns = RealDns(self._name_servers)
        return await self._dns.ask(name, kind)

    def local_addresses(self) -> list[str]:
        """Addresses of the allowed interfaces, IPv4 first; loopback only when there is no other."""
        entries = interface_addresses(self._interfaces)
        outside = [entry.host for entry in entries if not entry.is_loopback]
        return outside or [entry.host for entry in entries]

    # --- LAN --------------------------------------------------------------------------------------

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        if announcement is None and self._lan is None:
            return
        await self._open_lan().announce(announcement)

    async def browse(self, seen: Callable[[LanSighting], None] | None) -> None:
        if seen is None and self._lan is None:
            return
        await self._open_lan().browse(seen)

    def _open_lan(self) -> RealLan:
        if self._lan is None:
            entries = [] if self._interfaces is None else interface_addresses(self._interfaces)
            self._lan = RealLan(
                [entry.host for entry in entries] or None,
                self.local_addresses,
                self._scope,
                names=self._interfaces or (),
            )
        return self._lan

    async def close(self) -> None:
        """Close every socket, stream and task.  Safe to call twice."""
        if self._lan is not None:
            await self._lan.close()
            self._lan = None
        for listener in self._listeners:
            await listener.close()
        for endpoint in self._endpoints:
            endpoint.close()
        for stream in list(self._streams):
            stream.abort()
        await self._scope.close()
        # Transports report their end in the next turn of the loop.
        await asyncio.sleep(0)


@dataclass(slots=True, eq=False)
class _Inbound:
    """A connection that is not through yet."""

    sock: socket.socket
    address: Address
    task: asyncio.Task[Any] | None = None
    is_handed_on: bool = False
    """The TLS transport owns the socket."""


class RealListener:
    """Implements `host.interfaces.StreamListener`.

    A connection first waits silently for its preamble: at most HANDSHAKES_MAX do so at once, and a further one
    takes the place of the longest waiting one of the source that holds the most places, so that somebody who
    opens connections and says nothing shuts out nobody but himself.  Admitted ones, at most HANDSHAKES_MAX, go
    on to TLS.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
        streams: dict[RealStream, None],
        on_error: Callable[[str, BaseException], None] | None,
    ) -> None:
        self._sockets = list(sockets)
        self._port = int(sockets[0].getsockname()[1])
        self._context, self._binding = listener_context()
        self._admit = admit
        self._accept = accept
        self._streams = streams
        self._scope = TaskScope("listener", on_error)
        self._silent: dict[_Inbound, None] = {}
        """Connections without a preamble, longest waiting first."""
        self._handshakes = 0
        self.counters = ListenerCounters()

    @property
    def port(self) -> int:
        return self._port

    @property
    def binding(self) -> bytes:
        return self._binding

    def start(self) -> None:
        for sock in self._sockets:
            self._scope.spawn(self._accept_all(sock), "accept")

    async def close(self) -> None:
        """Stop listening and drop whoever is not through yet; streams handed on live.  Safe to call twice."""
        await self._scope.close()
        for sock in self._sockets:
            sock.close()

    async def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, source = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                elif error.errno in (errno.EBADF, errno.EINVAL):
                    return
                continue
            self.counters.accepted += 1
            if len(self._silent) >= HANDSHAKES_MAX:
                self._evict()
            inbound = _Inbound(sock, Address(str(source[0]).partition("%")[0], int(source[1])))
            self._silent[inbound] = None
            inbound.task = self._scope.spawn(self._welcome(inbound), "inbound")
            inbound.task.add_done_callback(functools.partial(self._left, inbound))

    def _left(self, inbound: _Inbound, task: asyncio.Task[Any]) -> None:
        """A connection's task has ended, perhaps before it ran."""
        self._silent.pop(inbound, None)
        if not inbound.is_handed_on:
            inbound.sock.close()

    def _evict(self) -> None:
        held: dict[str, int] = {}
        for inbound in self._silent:
            held[inbound.address.host] = held.get(inbound.address.host, 0) + 1
        greediest = max(held, key=lambda source: held[source])
        victim = next(inbound for inbound in self._silent if inbound.address.host == greediest)
        self.counters.evicted += 1
        del self._silent[victim]
        assert victim.task is not None, "set in the turn of the loop in which it came in"
        victim.task.cancel()

    async def _welcome(self, inbound: _Inbound) -> None:
        """Take one connection from its preamble to `accept`.  Cancelled: the connection is closed."""
        preamble = await self._read_preamble(inbound.sock)
        self._silent.pop(inbound, None)
        if preamble is None:
            return
        if not self._admit(preamble, inbound.address):
            self.counters.refused += 1
        elif self._handshakes >= HANDSHAKES_MAX:
            self.counters.busy += 1
        else:
            self._handshakes += 1
            try:
                stream = await self._start_tls(inbound)
            finally:
                self._handshakes -= 1
            if stream is not None:
                self.counters.ready += 1
                self._accept(stream, preamble)

    async def _read_preamble(self, sock: socket.socket) -> bytes | None:
        loop = asyncio.get_running_loop()
        preamble = b""
        try:
            sock.setblocking(False)
            async with asyncio.timeout(PREAMBLE_S_MAX):
                while len(preamble) < PREAMBLE_BYTES:
                    part = await loop.sock_recv(sock, PREAMBLE_BYTES - len(preamble))
                    if not part:
                        return None
                    preamble += part
        except TimeoutError:
            self.counters.silent += 1
            return None
        except OSError:
            return None
        return preamble

    async def _start_tls(self, inbound: _Inbound) -> RealStream | None:
        loop = asyncio.get_running_loop()
        stream = RealStream(self._binding, inbound.address, self._ended)
        try:
            inbound.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(  # what it returns is not our protocol with uvloop
                lambda: stream,
                sock=inbound.sock,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S_MAX,
                ssl_shutdown_timeout=STREAM_CLOSE_S,
            )
        except OSError:
            self.counters.broken += 1
            return None
        inbound.is_handed_on = True
        if stream.is_closing:
            self.counters.broken += 1
            return None
        self._streams[stream] = None
        return stream

    def _ended(self, stream: RealStream) -> None:
        self._streams.pop(stream, None)


def _listening(port: int, hosts: Sequence[str]) -> list[socket.socket]:
    """Listening TCP sockets on the same port of all `hosts`.

    Raises:
        ConfigError: the port is taken or not allowed.
    """
    for attempt in range(PORT_ATTEMPTS_MAX):
        sockets: list[socket.socket] = []
        try:
            chosen = port
            for host in hosts:
                sockets.append(_listening_socket(host, chosen))
                chosen = sockets[0].getsockname()[1]
            return sockets
        except OSError as error:
            for sock in sockets:
                sock.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < PORT_ATTEMPTS_MAX:
                continue
            raise ConfigError(
                f"TCP port {port} cannot be used", error.strerror or str(error), "choose another node.port"
            ) from error
    raise AssertionError("the last attempt returned or raised")


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # A restarted node takes its port back at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException:  # tidied up after, and raised again
        sock.close()
        raise
    return sock


def _has_ipv6(host: str) -> bool:
    """Whether `host`, an IPv6 address, can be bound on this machine."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True
