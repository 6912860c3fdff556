"""Whether others can reach this node, and so what it is to each of them: server or client.  Pure.

A server is in others' tables, is told to third parties, and is asked.  A client asks, and nobody asks it: whoever sits
behind a NAT or a firewall would only be a dead contact to all who hear of it.  Each statement says which of the two its
sender is to the node that it goes to (`messages`).

*Near*: a peer at a private address, or in the range of one of our own, that sees us at our own address.  Nothing is
between us, so to those a node is a server at once; a group on one network or VPN never waits for anything.  What a peer
sees is in its PONG; of peers that have not said anything yet it is taken to be as most of the others say, and before
the first word whoever is at such an address is taken for near.

*Elsewhere* a node is a client until it is proved that unasked datagrams arrive: it asks a contact to have it called by
others (CALL, RING, PING), and a request from an address to which nothing was sent for DHT_MAPPING_S counts, when such
came from DHT_PROOFS ranges of addresses, or from as many as there were to call.  When there was nobody to call, a node
that is seen at its own address is taken for reachable.  The founder of a group is a server from the start, or nobody
could begin; later it has to be proved as for all others.

A server is checked again every DHT_CALL_S unless unasked requests come anyway.  It is a client again when
DHT_CALL_FAILURES_MAX checks in a row failed: somebody was asked to call who was not sent to, and nobody did.

Liars: what one peer says it sees changes what we are to its range only.  Who pretends that he had us called makes a
check fail; checks go to contacts at random, and one success is enough.

Source: libp2p's AutoNAT (dial back by others); RFC 4787 for what opens a NAT.
Deviations: the one who is asked does not call, as it was sent to and would be let in; it asks others to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from p2pcompute.dht.contacts import is_loopback, range_of
from p2pcompute.errors import InvariantViolation
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import (
    DHT_CALL_FAILURES_MAX,
    DHT_CALL_S,
    DHT_MAPPING_S,
    DHT_PROOFS,
    DHT_SENT_MAX,
    DHT_WORDS_MAX,
)

_RETRY_S_MIN: Final = 10.0
_QUIET_S: Final = 1.1 * DHT_MAPPING_S
"""All who can call were sent to, and each call is answered: then they are left in peace until they count again."""
_HOSTS_MAX: Final = 4096
_PRIVATE_STARTS: Final = ("10.", "192.168.", "127.")


@lru_cache(maxsize=_HOSTS_MAX)
def _is_private(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return not address.is_global


def is_private(host: str) -> bool:
    """Whether an IP literal is one that the internet does not carry."""
    return host.startswith(_PRIVATE_STARTS) or _is_private(host)


class Reach:
    """What is known of this node's own reachability."""

    def __init__(self, own_hosts: Iterable[str] = (), *, is_presumed: bool = False) -> None:
        """Args:
        own_hosts: addresses of this machine, as IP literals.
        is_presumed: be a server from the start.
        """
        self._is_proven = is_presumed
        self._arrive(frozenset(own_hosts))

    def _arrive(self, own_hosts: frozenset[str]) -> None:
        self._own_hosts = own_hosts
        self._own_ranges = frozenset(range_of(host) for host in own_hosts)
        self._words: dict[str, bool] = {}
        """Range of addresses → whether who is there is near."""
        self._near_count = 0
        self._proofs: dict[str, float] = {}
        """Range from which an unasked request came, and when."""
        self._sent: dict[str, float] = {}
        """Host → when it was last sent to, the longest ago first."""
        self._failures = 0
        self._check_at = float("-inf")
        self._is_translated = False

    # --- questions --------------------------------------------------------------------------------

    def is_client_to(self, address: Address) -> bool:
        """Whether this node is a client to whoever is at an address."""
        if self._is_proven or is_loopback(address.host):
            return False
        word = self._words.get(range_of(address.host)) if self._far_count else None
        if word is not None:
            return not word
        is_elsewhere = self._far_count and self._far_count >= self._near_count
        return bool(is_elsewhere) or not self._may_be_near(address.host)

    @property
    def is_client(self) -> bool:
        """Whether this node is a client to most of those who are elsewhere, and there are such."""
        return not self._is_proven and self._far_count > self._near_count

    @property
    def is_seen_afar(self) -> bool:
        """Whether somebody elsewhere has seen this node."""
        return self._far_count > 0

    @property
    def is_watching(self) -> bool:
        """Whether it matters who is sent to, and what comes unasked."""
        return bool(self._far_count) or not self._words

    def wants_check(self, now: float) -> bool:
        """Whether this node should have itself called now."""
        return bool(self._far_count) and now >= self._check_at

    def is_fresh(self, host: str, now: float) -> bool:
        """Whether nothing was sent to a host for so long that a NAT has forgotten it."""
        sent_at = self._sent.get(host)
        return sent_at is None or now - sent_at > DHT_MAPPING_S

    # --- events -----------------------------------------------------------------------------------

    def on_own_hosts(self, own_hosts: Iterable[str]) -> None:
        """Take in the addresses of this machine; when they changed, it is somewhere else, and all is open again."""
        hosts = frozenset(own_hosts)
        if hosts != self._own_hosts:
            self._arrive(hosts)

    def on_word(self, source: Address, observed: Address) -> bool:
        """Take in at which address a peer at `source` sees this node; return whether it is news that it is near."""
        if is_loopback(source.host):
            return False
        is_own = observed.host in self._own_hosts
        is_near = is_own and self._may_be_near(source.host)
        if not is_near:
            self._is_translated = not is_own
        place = range_of(source.host)
        known = self._words.get(place)
        if known is is_near or (known is None and is_near and self._is_proven and self._words):
            return False
        if known is not None:
            self._near_count -= known
        self._words[place] = is_near
        self._near_count += is_near
        if len(self._words) > DHT_WORDS_MAX:
            oldest = next(iter(self._words))
            self._near_count -= self._words.pop(oldest)
        if not self.is_watching:
            self._sent.clear()
        return is_near

    def on_sent(self, host: str, now: float) -> None:
        """Note that something was sent to a host."""
        if not self.is_watching:
            return
        self._sent.pop(host, None)
        self._sent[host] = now
        if len(self._sent) > DHT_SENT_MAX:
            del self._sent[next(iter(self._sent))]

    def on_request(self, host: str, now: float) -> bool:
        """Take in that a verified request came from a host; return whether this has made the node a server."""
        place = range_of(host)
        is_elsewhere = not is_loopback(host) and place not in self._own_ranges and not self._words.get(place, False)
        if not self._far_count or not is_elsewhere or not self.is_fresh(host, now):
            return False
        self._failures = 0
        self._proofs.pop(place, None)
        self._proofs[place] = now
        while len(self._proofs) > DHT_PROOFS:
            del self._proofs[next(iter(self._proofs))]
        self._check_at = max(self._check_at, now + DHT_CALL_S) if self._is_proven else self._check_at
        return self._settle(DHT_PROOFS, now)

    def on_checked(self, hosts: Iterable[str], began: float, now: float) -> bool:
        """Take in the end of a check: the hosts that were said to call, of which some may have.

        Returns:
            Whether this node has become a server.
        """
        named = list(hosts)
        ranges = dict.fromkeys(range_of(host) for host in named if self.is_fresh(host, began))
        has_come = any(at >= began for at in self._proofs.values())
        is_news = False
        if has_come:
            self._failures = 0
            is_news = self._settle(min(DHT_PROOFS, len(ranges)), now)
        elif ranges:
            self._failures += 1
            if self._failures >= DHT_CALL_FAILURES_MAX:
                self._is_proven = False
                self._proofs.clear()
        elif not (named or self._failures or self._is_translated):
            is_news = self._settle(0, now)
        is_open = self._failures < DHT_CALL_FAILURES_MAX and not (self._is_proven and not self._failures)
        self._check_at = now + (DHT_CALL_S if not is_open else _RETRY_S_MIN if ranges or not named else _QUIET_S)
        return is_news

    def presume(self) -> None:
        """Take this node for a server and all others for near; for simulations that begin in the steady state."""
        self._is_proven = True
        self._words = dict.fromkeys(self._own_ranges, True)
        self._near_count = len(self._words)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless bounds hold and counts add up."""
        if self._near_count != sum(self._words.values()) or len(self._words) > DHT_WORDS_MAX:
            raise InvariantViolation(f"reach: {self._near_count} near of {len(self._words)} counted")
        if len(self._sent) > DHT_SENT_MAX or len(self._proofs) > DHT_PROOFS:
            raise InvariantViolation(f"reach: {len(self._sent)} sent to, {len(self._proofs)} proofs")

    # --- parts ------------------------------------------------------------------------------------

    @property
    def _far_count(self) -> int:
        return len(self._words) - self._near_count

    def _may_be_near(self, host: str) -> bool:
        return is_private(host) or range_of(host) in self._own_ranges

    def _settle(self, wanted: int, now: float) -> bool:
        """Be a server if as many proofs as wanted are young enough; return whether that is news."""
        young = sum(now - at <= DHT_CALL_S for at in self._proofs.values())
        if self._is_proven or young < wanted:
            return False
        self._is_proven = True
        return True
