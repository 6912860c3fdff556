"""Addresses of this machine's network interfaces, narrowed to those that the settings allow."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from p2pcompute.errors import ConfigError


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one interface that is up.  Link-local addresses never appear: they need a scope to be used."""

    interface: str
    host: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    is_loopback: bool

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self.network.version == 6 else socket.AF_INET


def interface_addresses(interfaces: Sequence[str] | None) -> list[InterfaceAddress]:
    """Return the usable addresses: IPv4 before IPv6, in the system's order.

    Args:
        interfaces: names of the only interfaces that may be used; None for all.

    Raises:
        ConfigError: a named interface does not exist or has no usable address.
    """
    import psutil

    known = psutil.net_if_addrs()
    status = psutil.net_if_stats()
    found: list[InterfaceAddress] = []
    for name in known if interfaces is None else interfaces:
        if name not in known:
            raise ConfigError(
                f"there is no network interface {name!r}",
                f"this machine has {', '.join(sorted(known))}",
                "p2pc node set interfaces=NAME",
                code="interface",
            )
        if interfaces is None and name in status and not status[name].isup:
            continue
        usable = [entry for raw in known[name] if (entry := _entry(name, raw.address, raw.netmask)) is not None]
        if interfaces is not None and not usable:
            raise ConfigError(
                f"the network interface {name!r} has no address", "", "p2pc node set interfaces=NAME", code="interface"
            )
        found += usable
    return sorted(found, key=lambda entry: entry.network.version)


def _entry(name: str, host: str, netmask: str | None) -> InterfaceAddress | None:
    """One address, or None when it is not a usable IP address (link layer, link-local)."""
    host, _, scope = host.partition("%")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if scope or (address.version == 6 and address.is_link_local):
        return None
    length: int = address.max_prefixlen
    if netmask:
        length = int(ipaddress.ip_address(netmask.partition("/")[0])).bit_count()
    network = ipaddress.ip_network((address, length), strict=False)
    return InterfaceAddress(name, str(address), network, address.is_loopback)
