"""Address translation: homes and carriers whose machines share a public address.

A `Nat` maps the source of outbound datagrams to a port of its own, and lets in what its kind lets in.  Nats nest: a
carrier's has the homes' behind it.  Streams go out and keep their way; nothing but datagrams comes in from outside.
Mappings live `mapping_s` after the last datagram that went out, as RFC 4787 demands at least; inbound ones do not
prolong them.  There is no hairpin: what is sent from inside to the own public address is dropped.

Source: RFC 4787 (behaviour of UDP), RFC 6888 (carriers), and the names of RFC 3489 for the kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from p2pcompute.host.interfaces import Address

MAPPINGS_MAX: Final = 4096
"""Of one Nat; the one that was used longest ago goes."""
REMOTES_MAX: Final = 1024
"""That one mapping remembers; the one that was sent to longest ago goes."""
_HOME_MAX: Final = 65_000
_CARRIER_HOMES_MAX: Final = 1 << 22
_PORT_FIRST: Final = 1024
_PORT_COUNT: Final = 65536 - _PORT_FIRST

_M = TypeVar("_M")
"""What is behind a Nat: a machine."""


class NatKind(StrEnum):
    """Whom a mapping lets in, and whether there is one for each remote address."""

    NONE = "none"
    FULL_CONE = "full_cone"
    """Everybody."""
    RESTRICTED = "restricted"
    """Addresses to which the machine has sent."""
    PORT_RESTRICTED = "port_restricted"
    """Addresses and ports to which it has sent."""
    SYMMETRIC = "symmetric"
    """As PORT_RESTRICTED, with another public port for each of them."""
    CGNAT = "cgnat"
    """A PORT_RESTRICTED home behind a carrier's Nat that it shares with other homes."""


Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class NatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which share of the homes (LANs, and machines that are alone) is behind which kind; the rest is public."""

    full_cone: Annotated[Share, msgspec.Meta(description="share of homes whose mappings let everybody in")] = 0.0
    restricted: Annotated[Share, msgspec.Meta(description="share that lets in addresses to which was sent")] = 0.0
    port_restricted: Annotated[Share, msgspec.Meta(description="share that lets in addresses with ports")] = 0.0
    symmetric: Annotated[Share, msgspec.Meta(description="share with a public port for each remote")] = 0.0
    cgnat: Annotated[Share, msgspec.Meta(description="share behind a carrier as well")] = 0.0
    mapping_s: Annotated[
        float, msgspec.Meta(gt=0.0, description="life of a mapping after the last outbound datagram, s")
    ] = 120.0
    homes_per_carrier: Annotated[int, msgspec.Meta(ge=1, le=4096, description="homes that share an address")] = 16

    def __post_init__(self) -> None:
        if sum(share for _, share in self.shares()) > 1.0 + 1e-9:
            raise ValueError("the shares of the kinds of NAT exceed 1")

    def shares(self) -> list[tuple[NatKind, float]]:
        """Of the kinds other than NONE."""
        return [(kind, getattr(self, kind)) for kind in NatKind if kind is not NatKind.NONE]

    def kind_at(self, quantile: float) -> NatKind:
        """The kind that a number drawn from [0, 1) chooses."""
        for kind, share in self.shares():
            quantile -= share
            if quantile < 0.0:
                return kind
        return NatKind.NONE


@dataclass(slots=True)
class _Mapping:
    inside: Address
    outside: Address
    key: tuple[Address, Address | None]
    used_at: float
    remotes: dict[Address | str, float] = field(default_factory=dict)
    """When each was last sent to, oldest first."""


class Nat(Generic[_M]):
    """A translator between what is behind it and the outside.

    Args:
        kind: any but NONE and CGNAT.
        address: its own, outside.
        mapping_s: life of a mapping after its last use.
        draw: uniform on [0, 1); for ports.
        outer: the carrier's Nat, which this one is behind.
        keeps_ports: take the inside port for the outside too where it is free, as homes do and carriers do not.
    """

    def __init__(
        self,
        kind: NatKind,
        address: str,
        *,
        mapping_s: float,
        draw: Callable[[], float],
        outer: Nat[_M] | None = None,
        keeps_ports: bool = True,
    ) -> None:
        self.kind = kind
        self.address = address
        self.outer = outer
        self.behind: dict[str, _M | Nat[_M]] = {}
        """By inside address."""
        self._mapping_s = mapping_s
        self._draw = draw
        self._keeps_ports = keeps_ports and kind is not NatKind.SYMMETRIC
        self._by_key: dict[tuple[Address, Address | None], _Mapping] = {}
        """In the order of their last use."""
        self._by_port: dict[int, _Mapping] = {}
        if outer is not None:
            outer.behind[address] = self

    @property
    def public(self) -> Nat[_M]:
        """The outermost Nat."""
        return self if self.outer is None else self.outer.public

    @property
    def lets_all_in(self) -> bool:
        """Whether a datagram from anywhere reaches whoever is behind it and has a mapping."""
        return self.kind is NatKind.FULL_CONE and (self.outer is None or self.outer.lets_all_in)

    def new_address(self) -> str:
        """An unused address inside, in 192.168.0.0/16."""
        count = len(self.behind) + 2
        if count > _HOME_MAX:
            raise ValueError(f"the home at {self.address} is full")
        return f"192.168.{count >> 8}.{count & 255}"

    def outbound(self, inside: Address, to: Address, now: float) -> Address:
        """The public source of a datagram that goes out; makes or refreshes its mapping."""
        key = (inside, to if self.kind is NatKind.SYMMETRIC else None)
        mapping = self._by_key.pop(key, None)
        if mapping is not None and now - mapping.used_at > self._mapping_s:
            del self._by_port[mapping.outside.port]
            mapping = None
        if mapping is None:
            while len(self._by_key) >= MAPPINGS_MAX:
                self._drop(next(iter(self._by_key.values())))
            port = self._free_port(inside.port, now)
            mapping = self._by_port[port] = _Mapping(inside, Address(self.address, port), key, now)
        self._by_key[key] = mapping
        mapping.used_at = now
        if self.kind is not NatKind.FULL_CONE:
            remote = self._remote(to)
            mapping.remotes.pop(remote, None)
            if len(mapping.remotes) >= REMOTES_MAX:
                del mapping.remotes[next(iter(mapping.remotes))]
            mapping.remotes[remote] = now
        return mapping.outside if self.outer is None else self.outer.outbound(mapping.outside, to, now)

    def inbound(self, port: int, source: Address, now: float) -> tuple[_M, int] | None:
        """The machine and port behind all Nats that a datagram reaches, or None when it is not let in."""
        mapping = self._by_port.get(port)
        if mapping is None or now - mapping.used_at > self._mapping_s:
            return None
        if self.kind is not NatKind.FULL_CONE:
            sent_at = mapping.remotes.get(self._remote(source))
            if sent_at is None or now - sent_at > self._mapping_s:
                return None
        behind = self.behind[mapping.inside.host]
        if isinstance(behind, Nat):
            return behind.inbound(mapping.inside.port, source, now)
        return behind, mapping.inside.port

    def locate(self, port: int) -> _M | None:
        """The machine that a port belongs to, let in or not: where a datagram to it travels."""
        mapping = self._by_port.get(port)
        if mapping is None:
            return None
        behind = self.behind[mapping.inside.host]
        return behind.locate(mapping.inside.port) if isinstance(behind, Nat) else behind

    def forget(self) -> None:
        """Lose all mappings, as when the router restarts; new ones get other ports."""
        self._by_key.clear()
        self._by_port.clear()
        self._keeps_ports = False

    def _remote(self, address: Address) -> Address | str:
        return address.host if self.kind is NatKind.RESTRICTED else address

    def _drop(self, mapping: _Mapping) -> None:
        del self._by_key[mapping.key], self._by_port[mapping.outside.port]

    def _free_port(self, wanted: int, now: float) -> int:
        port = wanted if self._keeps_ports else _PORT_FIRST + int(self._draw() * _PORT_COUNT)
        while port in self._by_port:  # MAPPINGS_MAX is far below the number of ports
            if now - self._by_port[port].used_at > self._mapping_s:
                self._drop(self._by_port[port])
                break
            port = _PORT_FIRST + int(self._draw() * _PORT_COUNT)
        return port


class Homes(Generic[_M]):
    """Which LANs are behind which Nat.

    Args:
        new_address: a public address that nobody has had.
    """

    def __init__(self, seed: str, new_address: Callable[[], str]) -> None:
        self.gates: dict[str, Nat[_M]] = {}
        """Outermost Nats by public address."""
        self._seed = seed
        self._new_address = new_address
        self._draw_port = random.Random(f"{seed}:ports").random
        self._homes: dict[str, Nat[_M] | None] = {}
        """By LAN."""
        self._carrier: Nat[_M] | None = None
        """The last one, which still takes homes."""
        self._carrier_home_count = 0

    def home(self, lan: str, settings: NatSettings, kind: NatKind | None) -> Nat[_M] | None:
        """The Nat of a LAN, if it has one; chosen when the LAN is first named.

        Args:
            kind: None: as the shares of the settings will.
        """
        if lan not in self._homes:
            if kind is None:
                kind = settings.kind_at(random.Random(f"{self._seed}:nat:{lan}").random())
            self._homes[lan] = self._new_home(settings, kind)
        return self._homes[lan]

    def move(self, home: Nat[_M]) -> None:
        """Give a Nat another public address, unless that is its carrier's."""
        if home.outer is None:
            del self.gates[home.address]
            home.address = self._new_address()
            self.gates[home.address] = home

    def _new_home(self, settings: NatSettings, kind: NatKind) -> Nat[_M] | None:
        if kind is NatKind.NONE:
            return None
        if kind is not NatKind.CGNAT:
            return self._gate(settings, kind, keeps_ports=True)
        if self._carrier is None or len(self._carrier.behind) >= settings.homes_per_carrier:
            self._carrier = self._gate(settings, NatKind.PORT_RESTRICTED, keeps_ports=False)
        self._carrier_home_count += 1
        count = self._carrier_home_count
        if count >= _CARRIER_HOMES_MAX:
            raise ValueError("the carriers are full")
        address = f"100.{64 + (count >> 16)}.{count >> 8 & 255}.{count & 255}"
        return Nat(
            NatKind.PORT_RESTRICTED,
            address,
            mapping_s=settings.mapping_s,
            draw=self._draw_port,
            outer=self._carrier,
        )

    def _gate(self, settings: NatSettings, kind: NatKind, *, keeps_ports: bool) -> Nat[_M]:
        address = self._new_address()
        nat: Nat[_M] = Nat(kind, address, mapping_s=settings.mapping_s, draw=self._draw_port, keeps_ports=keeps_ports)
        self.gates[address] = nat
        return nat
