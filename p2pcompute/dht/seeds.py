"""What a domain says about first contacts of a group, and how much of it is believed.

A domain names them in its SRV records at ``_p2pcompute._udp.DOMAIN``; TXT records at the same name may say whose:

    v=p2pc1 group=6f1c09aa,77e0b1d2

Strings of one record, or words of one string.  The version is first; records that begin otherwise are not ours, or not
for this build.  ``group`` names the hints of the groups whose members are found there (8 hex digits, ``group.hint`` of
`p2pc status --json`); without it anybody may try.  Other words are ignored, so that there may be more.

Whoever answers for a domain may lie: what it names gets a datagram that only members can read, and whoever answers
that proves membership and key.  So a lie costs a few datagrams, whose number and targets are bounded here, and never
trust.  Addresses that nobody has on the internet are refused from names that everybody can ask for: else a domain could
make nodes knock inside their own networks.

Source: RFC 2782 (SRV), RFC 6763 section 6 (words in TXT records), RFC 6761, RFC 6762, RFC 8375 and ICANN's ``internal``
(names that are nobody's on the internet).
Deviations: SRV targets of equal priority are drawn by weight without RFC 2782's rule for weight 0; it counts as 0.1.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from p2pcompute.host.interfaces import SrvRecord
from p2pcompute.limits import (
    SEED_TARGETS_MAX,
    SEED_TEXT_BYTES_MAX,
    SEED_TEXTS_MAX,
    SEED_TTL_S_MAX,
    SEED_TTL_S_MIN,
)

if TYPE_CHECKING:
    import random

SERVICE: Final = "_p2pcompute._udp"
TEXT_VERSION: Final = "v=p2pc1"
PRIVATE_ENDS: Final = ("test", "localhost", "local", "internal", "home.arpa")
"""Ends of names that the public DNS does not have: whoever answers for them is on this network."""

_TARGET: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")
_HINT: Final = re.compile(r"[0-9a-fA-F]{8}")


def groups_named(texts: Iterable[Sequence[bytes]], ignored: Counter[str]) -> frozenset[bytes] | None:
    """Return the hints of the groups that TXT records name; None when none names any.

    Args:
        ignored: counts what was not looked at, by reason.
    """
    hints: set[bytes] = set()
    is_named = False
    for number, strings in enumerate(texts):
        if number >= SEED_TEXTS_MAX:
            ignored["too many TXT records"] += 1
            continue
        if sum(map(len, strings)) > SEED_TEXT_BYTES_MAX:
            ignored["long TXT record"] += 1
            continue
        words = b" ".join(strings).decode("ascii", "replace").split()
        if not words or words[0] != TEXT_VERSION:
            ignored["other TXT record"] += 1
            continue
        for word in words[1:]:
            if word.startswith("group="):
                is_named = True
                found = word.removeprefix("group=").split(",")
                hints.update(bytes.fromhex(hint) for hint in found if _HINT.fullmatch(hint))
    return frozenset(hints) if is_named else None


def in_order(records: Iterable[SrvRecord], rng: random.Random, ignored: Counter[str]) -> list[SrvRecord]:
    """Return at most SEED_TARGETS_MAX usable records in the order in which to try them: by priority, then at random by
    weight, so that not all nodes fall upon one."""
    usable = []
    for record in dict.fromkeys(records):
        if _TARGET.fullmatch(record.target) and 0 < record.port < 65536:
            usable.append((record.priority, -(rng.random() ** (1 / max(record.weight, 0.1))), record))
        else:
            ignored["unusable SRV record"] += 1
    usable.sort(key=lambda entry: entry[:2])
    if len(usable) > SEED_TARGETS_MAX:
        ignored["too many SRV records"] += len(usable) - SEED_TARGETS_MAX
    return [record for _, _, record in usable[:SEED_TARGETS_MAX]]


def may_be_private(domain: str) -> bool:
    """Whether addresses of this network may come from this domain."""
    return any(domain == end or domain.endswith(f".{end}") for end in PRIVATE_ENDS)


def is_usable(host: str, domain: str, ignored: Counter[str]) -> bool:
    """Whether an address that a domain names is to be tried: one machine, and not ours to guard."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        ignored["unusable address"] += 1
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = _inner(address) or address
    if address.is_multicast or address.is_unspecified or host == "255.255.255.255":
        ignored["unusable address"] += 1
        return False
    if not address.is_global and not may_be_private(domain):
        ignored["private address from a public name"] += 1
        return False
    return True


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address to which a packet to this IPv6 address is translated somewhere (RFC 4291, 3056, 6052)."""
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def lasting_s(ttl_s: float) -> float:
    """Return how long an answer with this TTL is used."""
    return min(max(ttl_s, SEED_TTL_S_MIN), SEED_TTL_S_MAX)
