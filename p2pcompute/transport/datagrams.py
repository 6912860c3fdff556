"""Datagrams of groups over one UDP endpoint: filtered by MAC and rate before anybody looks inside.

On the wire: group hint 4 bytes, MAC 8 bytes (BLAKE2b keyed with the network key, over the body), body.  The MAC
is a cheap filter against junk, about 2 µs where a signature check takes 170; who sent a datagram is for its body
to prove.  What fails here gets no answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.interfaces import Address, DatagramEndpoint, Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    DATAGRAM_BURST_MAX,
    DATAGRAM_BYTES_MAX,
    DATAGRAM_RATE_PER_S_MAX,
    KEYED_SOURCES_MAX,
    RATE_SOURCES_MAX,
)
from p2pcompute.transport.credentials import HINT_BYTES, group_hint
from p2pcompute.transport.rate import TokenBuckets, source_of

MAC_BYTES: Final = 8
HEAD_BYTES: Final = HINT_BYTES + MAC_BYTES
BODY_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - HEAD_BYTES
_KEYS_CACHED_MAX: Final = 64
"""Network keys of which the beginning of a MAC is kept, 450 bytes each: all nodes of a process have the same few."""


@dataclass(slots=True)
class DatagramCounters:
    """Counted since the start; every received datagram is counted in exactly one of the fields but `sent`."""

    sent: int = 0
    received: int = 0
    """Handed on."""
    oversized: int = 0
    short: int = 0
    stranger: int = 0
    """No group of ours has this hint."""
    forged: int = 0
    """Wrong MAC."""
    limited: int = 0
    """Above the rate of its source."""
    malformed: int = 0
    """Handed on and refused as malformed by the receiver."""


def seal_datagram(network_key: bytes, body: bytes) -> bytes:
    """Return the datagram that carries `body`."""
    mac = _keyed(network_key).copy()
    mac.update(body)
    return group_hint(network_key) + mac.digest() + body


@lru_cache(maxsize=_KEYS_CACHED_MAX)
def _keyed(network_key: bytes) -> hashlib.blake2b:
    """Return that of which a copy becomes the MAC of the bytes that it is fed."""
    return hashlib.blake2b(key=network_key, digest_size=MAC_BYTES, person=b"p2pc datagram")


class DatagramPort:
    """One group's view of the endpoint."""

    def __init__(self, owner: Datagrams, network_key: bytes, receive: Callable[[bytes, Address], None]) -> None:
        self._owner = owner
        self._hint = group_hint(network_key)
        self._keyed = _keyed(network_key)
        self.receive = receive

    @property
    def hint(self) -> bytes:
        return self._hint

    def send(self, body: bytes, to: Address) -> None:
        """Send or drop; never blocks.  After `close` everything is dropped.

        Raises:
            LocalProtocolError: `body` is longer than BODY_BYTES_MAX.
        """
        if len(body) > BODY_BYTES_MAX:
            raise LocalProtocolError(f"a datagram body of {len(body)} bytes", f"at most {BODY_BYTES_MAX} fit")
        self._owner.send_sealed(self, self._hint + self._mac(body) + body, to)

    def is_genuine(self, data: bytes) -> bool:
        """Whether the MAC of a received datagram is right."""
        return hmac.compare_digest(data[HINT_BYTES:HEAD_BYTES], self._mac(data[HEAD_BYTES:]))

    def _mac(self, body: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(body)
        return mac.digest()

    def close(self) -> None:
        """Receive and send nothing more."""
        self._owner.unbind(self)


class KeyedPort:
    """A group's view of the endpoint while its network key changes: whoever still uses a former one is answered so."""

    def __init__(self, owner: Datagrams, keys: Sequence[bytes], receive: Callable[[bytes, Address], None]) -> None:
        """`keys`: those that are accepted, the one to use first."""
        self._owner = owner
        self._receive = receive
        self._ports: dict[bytes, DatagramPort] = {}
        self._behind: dict[Address, DatagramPort] = {}
        """Addresses that were last heard under a former key."""
        self.rekey(keys)

    def rekey(self, keys: Sequence[bytes]) -> None:
        """Accept these from now on, and no others; use the first one."""
        for key in [key for key in self._ports if key not in keys]:
            self._ports.pop(key).close()
        for key in keys:
            if key not in self._ports:
                self._ports[key] = self._bound(key)
        self._current = self._ports[keys[0]]
        self._behind.clear()

    def _bound(self, key: bytes) -> DatagramPort:
        def receive(body: bytes, source: Address) -> None:
            if port is not self._current:
                self._behind.pop(source, None)
                self._behind[source] = port
                if len(self._behind) > KEYED_SOURCES_MAX:
                    del self._behind[next(iter(self._behind))]
            elif self._behind:
                self._behind.pop(source, None)
            self._receive(body, source)

        port = self._owner.bind_group(key, receive)
        return port

    def send(self, body: bytes, to: Address) -> None:
        """As `DatagramPort.send`, under the key that the receiver has."""
        self._behind.get(to, self._current).send(body, to)

    def close(self) -> None:
        """Receive and send nothing more."""
        for port in self._ports.values():
            port.close()


class Datagrams:
    """One UDP endpoint for all groups of a node."""

    def __init__(self, host: Host, scope: TaskScope) -> None:
        self._host = host
        self._scope = scope
        self._endpoint: DatagramEndpoint | None = None
        self._ports: dict[bytes, list[DatagramPort]] = {}
        self._rates = TokenBuckets(
            rate_per_s=DATAGRAM_RATE_PER_S_MAX, burst=DATAGRAM_BURST_MAX, sources_max=RATE_SOURCES_MAX
        )
        self.counters = DatagramCounters()

    async def start(self, port: int, *, loopback_only: bool) -> int:
        """Bind the port (0: any) and begin to receive.  Returns the bound port."""
        if self._endpoint is not None:
            raise LocalProtocolError("the datagram endpoint was started already")
        self._endpoint = await self._host.net.bind_datagram(port, loopback_only=loopback_only)
        self._endpoint.deliver_to(self._receive)
        return self._endpoint.port

    def stop(self) -> None:
        """Close the endpoint.  It can be started again; bound groups stay bound."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def bind_group(self, network_key: bytes, receive: Callable[[bytes, Address], None]) -> DatagramPort:
        """Hand the datagrams under `network_key` to `receive`.

        `receive` is called with the body (at most BODY_BYTES_MAX bytes) and the source; it may raise
        RemoteProtocolError, which is counted.
        """
        port = DatagramPort(self, network_key, receive)
        self._ports.setdefault(port.hint, []).append(port)
        return port

    def unbind(self, port: DatagramPort) -> None:
        ports = self._ports.get(port.hint, [])
        if port in ports:
            ports.remove(port)
        if not ports:
            self._ports.pop(port.hint, None)

    def send_sealed(self, port: DatagramPort, data: bytes, to: Address) -> None:
        if self._endpoint is not None and port in self._ports.get(port.hint, ()):
            self.counters.sent += 1
            self._endpoint.send(data, to)

    def _receive(self, data: bytes, source: Address) -> None:
        counters = self.counters
        if len(data) > DATAGRAM_BYTES_MAX:
            counters.oversized += 1
            return
        if len(data) < HEAD_BYTES:
            counters.short += 1
            return
        ports = self._ports.get(data[:HINT_BYTES])
        if ports is None:
            counters.stranger += 1
            return
        for port in ports:
            if port.is_genuine(data):
                break
        else:
            counters.forged += 1
            return
        # Behind the MAC, so that nobody outside can use up the allowance of an address by forging it.
        if not self._rates.take(source_of(source.host, source.port), self._host.clock.now()):
            counters.limited += 1
            return
        try:
            port.receive(data[HEAD_BYTES:], source)
        except RemoteProtocolError:
            counters.malformed += 1
        except Exception as error:  # noqa: BLE001 - supervisor: a bug behind one datagram must not make the node deaf
            self._scope.report("datagrams", error)
        else:
            counters.received += 1
