"""What is known of a peer, and how its address is written on the wire.  Pure."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import dht_id

_PORT_BYTES = 2
_PACKED_SIZES = (4 + _PORT_BYTES, 16 + _PORT_BYTES)


_PLACES_MAX = 16384
"""Peers whose place in the key space is remembered: 250 bytes each."""
_ADDRESSES_MAX = 4096
"""Addresses that are kept decoded: 250 bytes each."""


class Place(NamedTuple):
    """Where a key is in the key space: the same object for all who ask, as long as it is remembered."""

    key: bytes
    id: bytes
    number: int
    """The id as an integer, for XOR distances."""


@lru_cache(maxsize=_PLACES_MAX)
def place_of(key: bytes) -> Place:
    """Return the place of a public key."""
    contact_id = dht_id(key)
    return Place(key, contact_id, int.from_bytes(contact_id, "big"))


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

    @property
    def id(self) -> bytes:
        """Its place in the key space: 20 bytes, derived from the key."""
        return place_of(self.key).id

    @property
    def number(self) -> int:
        """The id as an integer, for XOR distances."""
        return place_of(self.key).number


@lru_cache(maxsize=_ADDRESSES_MAX)
def _packed_host(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


@lru_cache(maxsize=_ADDRESSES_MAX)
def is_loopback(host: str) -> bool:
    """Whether `host`, an IP literal, means the machine itself.  False for what is no literal."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


@lru_cache(maxsize=_ADDRESSES_MAX)
def _unpacked(packed: bytes) -> Address:
    host = ipaddress.ip_address(packed[:-_PORT_BYTES])
    port = int.from_bytes(packed[-_PORT_BYTES:], "big")
    is_broadcast = packed[:-_PORT_BYTES] == b"\xff\xff\xff\xff"
    if port == 0 or host.is_unspecified or host.is_multicast or is_broadcast:
        raise RemoteProtocolError("an address that no node can have")
    return Address(str(host), port)
