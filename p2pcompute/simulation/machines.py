"""Simulated computers: addresses, ports, access lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.errors import ConfigError
from p2pcompute.host.interfaces import Address
from p2pcompute.simulation.latency import Spot

if TYPE_CHECKING:
    from p2pcompute.simulation.access import SimDatagrams, SimNet
    from p2pcompute.simulation.dialling import SimListener
    from p2pcompute.simulation.nat import Nat
    from p2pcompute.simulation.paths import Line
    from p2pcompute.simulation.streams import SimStream

LOOPBACK: Final = "127.0.0.1"
_EPHEMERAL_FIRST: Final = 49152
_EPHEMERAL_COUNT: Final = 65536 - _EPHEMERAL_FIRST


class Machine:
    """A computer: an address and the ports of all hosts on it."""

    __slots__ = (
        "_next_port", "address", "datagrams", "down", "free_at", "is_silent", "is_unplugged", "lag_s", "lan",
        "listeners", "nat", "nets", "number", "spot", "up",
    )  # fmt: skip

    def __init__(self, number: int, address: str, lan: str, spot: Spot, nat: Nat | None = None) -> None:
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
        self.datagrams: dict[int, SimDatagrams] = {}
        self.listeners: dict[int, SimListener] = {}
        self.nets: dict[SimNet, None] = {}
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

    def streams(self) -> Iterator[SimStream]:
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
