"""Simulated computers: addresses, ports, access lines, and what the hosts on them have open.

A `Plug` is what the network sees of a host.  What it can do there is in access.py, streams.py and dialling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Final, Protocol

from p2pcompute.errors import ConfigError
from p2pcompute.host.interfaces import Address, ByteStream, LanAnnouncement, LanSighting
from p2pcompute.simulation.latency import Spot
from p2pcompute.simulation.nat import Nat
from p2pcompute.simulation.paths import Line

LOOPBACK: Final = "127.0.0.1"
_EPHEMERAL_FIRST: Final = 49152
_EPHEMERAL_COUNT: Final = 65536 - _EPHEMERAL_FIRST


class Endpoint(Protocol):
    """A bound UDP port."""

    address: Address
    loopback_address: Address
    is_loopback_only: bool

    @property
    def net(self) -> Plug:
        """Of the host that has it."""

    def take(self, data: bytes, source: Address) -> bool:
        """Hand over or queue an arrived datagram; False when the queue is full and it was dropped."""

    def close(self) -> None:
        """Unbind it."""


class StreamEnd(Protocol):
    """One end of a stream, as those see it who change what lies between the ends."""

    @property
    def there(self) -> Machine:
        """The machine of the peer."""

    def suspect(self) -> None:
        """Something has happened on the way: if the peer cannot be heard, break unless it is again in time."""

    def suspect_both(self) -> None:
        """`suspect` at both ends."""

    def resume(self) -> None:
        """Something was mended: send what was held back, if it may pass now."""

    def detach(self) -> None:
        """One of the machines has another address: nothing passes any more, in either direction."""

    def close(self) -> None:
        """End it after what is pending."""

    def die(self, *, is_silent: bool) -> None:
        """The host is gone; tell the peer unless `is_silent`."""


class SimListener:
    """A TCP port that listens: the simulated `StreamListener`.

    Args:
        binding: what its certificate binds a stream to.
    """

    __slots__ = ("_port", "accept", "admit", "binding", "is_loopback_only", "is_stopped", "net")

    def __init__(
        self,
        net: Plug,
        port: int,
        is_loopback_only: bool,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
        binding: bytes,
    ) -> None:
        self.net = net
        self.is_loopback_only = is_loopback_only
        self.is_stopped = False
        self.admit = admit
        self.accept = accept
        self.binding = binding
        self._port = port

    @property
    def port(self) -> int:
        return self._port

    def stop(self) -> None:
        """Accept no more; open streams stay."""
        if not self.is_stopped:
            self.is_stopped = True
            self.net.machine.listeners.pop(self._port, None)
            self.net.listeners.pop(self, None)

    async def close(self) -> None:
        self.stop()


class Plug:
    """One host in the network: where it is, and what it has open.

    Args:
        number: of the host, for the trace.
        context: in which callbacks of the host are called, so that what they start belongs to it.
    """

    def __init__(self, machine: Machine, number: int, context: Context) -> None:
        self.machine = machine
        self.number = number
        self.context = context
        self.is_dead = False
        self.datagrams: dict[Endpoint, None] = {}
        self.listeners: dict[SimListener, None] = {}
        self.streams: dict[StreamEnd, None] = {}
        self.announcement: LanAnnouncement | None = None
        """What it says of itself on its LAN."""
        self.seen: Callable[[LanSighting], None] | None = None
        """Called with what others say there."""
        machine.nets[self] = None


class Machine:
    """A computer: an address and the ports of all hosts on it."""

    __slots__ = (
        "_next_port", "address", "datagrams", "down", "free_at", "is_silent", "is_unplugged", "lag_s", "lan",
        "listeners", "nat", "nets", "number", "spot", "up",
    )  # fmt: skip

    def __init__(self, number: int, address: str, lan: str, spot: Spot, nat: Nat[Machine] | None = None) -> None:
        self.number = number
        self.address = address
        """Its own: 10.x.y.z, 192.168.x.y behind a Nat, or 127.0.0.1 for a machine that has only loopback."""
        self.lan = lan
        """Machines on one LAN are at one place and behind one Nat."""
        self.spot = spot
        self.nat = nat
        self.up: Line | None = None
        """Access line towards others; None: as fast as light."""
        self.down: Line | None = None
        self.datagrams: dict[int, Endpoint] = {}
        self.listeners: dict[int, SimListener] = {}
        self.nets: dict[Plug, None] = {}
        """Of the hosts on it that are up."""
        self.is_silent = False
        """Lost power: answers nothing, not even with a refusal."""
        self.is_unplugged = False
        """Cut off from everything, itself included: it sleeps."""
        self.lag_s = 0.0
        """Its programs are starved: what they say on streams comes out so much later.  Datagrams do not wait."""
        self.free_at = 0.0
        """When it has handled what has arrived so far."""
        self._next_port = 0

    @property
    def public_address(self) -> str:
        """What those on other LANs see."""
        return self.address if self.nat is None else self.nat.public.address

    def address_seen_by(self, other: Machine) -> str:
        """Where another machine finds it, unless a Nat keeps it out."""
        return self.address if self.lan == other.lan else self.public_address

    def streams(self) -> Iterator[StreamEnd]:
        """All ends of streams on it; their order is that in which they came."""
        for net in self.nets:
            yield from net.streams

    def renumber(self, address: str) -> None:
        """Take another address; what is bound stays bound."""
        self.address = address
        for port, endpoint in self.datagrams.items():
            endpoint.address = Address(address, port)

    def take_port(self, port: int, *, taken: dict[int, Any]) -> int:
        """Return `port`, or a free one for 0.

        Raises:
            ConfigError: it is taken, as in the real host.
        """
        if port:
            if port in taken:
                raise ConfigError(f"port {port} cannot be used", "another process has it", "choose another port")
            return port
        for _ in range(_EPHEMERAL_COUNT):
            port = _EPHEMERAL_FIRST + self._next_port % _EPHEMERAL_COUNT
            self._next_port += 1
            if port not in self.datagrams and port not in self.listeners:
                return port
        raise ConfigError("no free port is left", f"all of {self.address} are in use")
