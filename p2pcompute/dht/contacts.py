"""What is known of a peer, and how its address is written on the wire.  Pure."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, NamedTuple

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import DHT_ID_BYTES, dht_id

_PORT_BYTES = 2
_HOST_SIZES = (4, 16)
_PACKED_SIZES = (4 + _PORT_BYTES, 16 + _PORT_BYTES)


_PLACES_MAX = 16384
"""Peers whose place in the key space is remembered: 200 bytes each."""
_ADDRESSES_MAX = 4096
"""Addresses that are kept decoded: 250 bytes each."""


class Place(NamedTuple):
    """Where a key is in the key space: the same object for all who ask, as long as it is remembered."""

    key: bytes
    number: int
    """The id as an integer, for XOR distances."""


PLACES: Final[dict[bytes, Place]] = {}
"""Those that are remembered, by key; when full, all are forgotten.  An `lru_cache` takes 80 bytes more for each."""


def place_of(key: bytes) -> Place:
    """Return the place of a public key."""
    place = PLACES.get(key)
    if place is None:
        if len(PLACES) >= _PLACES_MAX:
            PLACES.clear()
        place = PLACES[key] = Place(key, int.from_bytes(dht_id(key), "big"))
    return place


def number_of(key: bytes) -> int:
    """Return the id of a public key as an integer."""
    return place_of(key).number


def id_of(key: bytes) -> bytes:
    """Return the id of a public key: its place in the key space, 20 bytes."""
    return place_of(key).number.to_bytes(DHT_ID_BYTES, "big")


class Contact(NamedTuple):
    """A peer as the table or another peer knows it.  A tuple: thousands are made in a second."""

    key: bytes
    """Its public key: 32 bytes."""
    address: Address
    """Where its datagrams come from and its channel listens."""
    name: str | None = None
    """What it calls itself; None until it has said so."""
    rtt_s: float | None = None
    """Round trip of its last reply, smoothed; None before the first."""
    seen: float = 0.0
    """Clock time of its last verified reply; 0.0 when only hearsay."""
    class_bits: int | None = None
    """What it has, as it said itself (see `index`); None until then."""

    @property
    def id(self) -> bytes:
        """Its place in the key space: 20 bytes, derived from the key."""
        return id_of(self.key)

    @property
    def number(self) -> int:
        """The id as an integer, for XOR distances."""
        return number_of(self.key)


def _packed_host(host: str) -> bytes:
    packed = bytes(map(int, host.split("."))) if ":" not in host else _packed_v6(host)
    if len(packed) not in _HOST_SIZES:
        raise ValueError(f"{host!r} is no IP literal")
    return packed


@lru_cache(maxsize=_ADDRESSES_MAX)
def _packed_v6(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


def is_loopback(host: str) -> bool:
    """Whether `host`, an IP literal, means the machine itself.  False for what is no literal."""
    return _is_loopback_v6(host) if ":" in host else host.startswith("127.")


@lru_cache(maxsize=_ADDRESSES_MAX)
def _is_loopback_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def packed_size(address: Address) -> int:
    """Return how many bytes `pack_address` makes of it."""
    return _PACKED_SIZES[":" in address.host]


def pack_address(address: Address) -> bytes:
    """Return 6 (IPv4) or 18 (IPv6) bytes: host, then port big-endian.

    Raises:
        ValueError: the host is no IP literal or the port is out of range.
    """
    return _packed_host(address.host) + address.port.to_bytes(_PORT_BYTES, "big")


def unpack_address(packed: object) -> Address:
    """Return the address that a peer sent.

    Raises:
        RemoteProtocolError: another type or size, port 0, or an address that no single node can have.
    """
    if not isinstance(packed, bytes) or len(packed) not in _PACKED_SIZES:
        raise RemoteProtocolError("an address of 6 or 18 bytes was expected")
    return _unpacked(packed)


def _unpacked(packed: bytes) -> Address:
    """IPv4 without `ipaddress`, which takes three times as long; large groups have more addresses than a cache."""
    if len(packed) != _PACKED_SIZES[0]:
        return _unpacked_v6(packed)
    first, second, third, fourth, high, low = packed
    is_unspecified = not (first or second or third or fourth)
    is_multicast = first >> 4 == 0xE
    if not (high or low) or is_unspecified or is_multicast or packed[:4] == b"\xff\xff\xff\xff":
        raise RemoteProtocolError("an address that no node can have")
    return Address(f"{first}.{second}.{third}.{fourth}", high << 8 | low)


@lru_cache(maxsize=_ADDRESSES_MAX)
def _unpacked_v6(packed: bytes) -> Address:
    host = ipaddress.ip_address(packed[:-_PORT_BYTES])
    port = int.from_bytes(packed[-_PORT_BYTES:], "big")
    if port == 0 or host.is_unspecified or host.is_multicast:
        raise RemoteProtocolError("an address that no node can have")
    return Address(str(host), port)


@lru_cache(maxsize=_ADDRESSES_MAX)
def range_of(host: str) -> str:
    """Return the address range that counts as one owner's: the /24 of an IPv4 literal, the /48 of an IPv6 one."""
    address = ipaddress.ip_address(host)
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))
