"""Finding first contacts by seeds: domains, or hosts and ports that are looked up anew each time.

Asked only while nobody that is known answers (`Network`).  What a domain may say is in `dht.seeds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from p2pcompute.dht import seeds as dns
from p2pcompute.errors import DnsError
from p2pcompute.host.interfaces import Address, DnsKind, Host
from p2pcompute.limits import DHT_REQUEST_S, SEED_ADDRESSES_MAX, SEED_ADDRESSES_PER_TARGET_MAX, SEED_S_MAX
from p2pcompute.node.facade import SeedView


class Seed:
    """One seed of the settings, and what became of asking it."""

    def __init__(self, host: Host, name: str, port: int | None) -> None:
        """Args:
        name: a domain, or a host when there is a port.
        """
        self._host = host
        self._name = name
        self._port = port
        self._addresses: tuple[Address, ...] = ()
        self._expires = 0.0
        self._asked: float | None = None
        self._trouble = ""
        self._ignored: Counter[str] = Counter()

    @property
    def text(self) -> str:
        """As in the settings."""
        return self._name if self._port is None else str(Address(self._name, self._port))

    async def ask(self, hint: bytes | None, own: Collection[Address] = ()) -> tuple[Address, ...]:
        """Return addresses of first contacts of the group with this hint, those to be tried first in front; none when
        there are none or the seed fails.  At most SEED_S_MAX.

        Args:
            hint: None: of whatever group.
            own: of this node, which may be a first contact itself: left out.
        """
        now = self._host.clock.now()
        if self._addresses and now < self._expires:
            return self._addresses
        self._asked, self._trouble, self._expires = now, "", 0.0
        self._ignored.clear()
        found: dict[Address, None] = {}
        try:
            async with self._host.clock.timeout(SEED_S_MAX):
                if self._port is None:
                    ttl_s = await self._ask_domain(hint, found)
                    self._expires = now + dns.lasting_s(ttl_s)
                else:
                    found.update(dict.fromkeys(await self._host.net.resolve(self._name, self._port)))
                    self._trouble = "" if found else "the host name has no address, or no name server answers"
        except DnsError as error:
            self._trouble = error.what + (f" ({error.why})" if error.why else "")
        except TimeoutError:
            self._trouble = f"its name servers took longer than {SEED_S_MAX:g} s"
        if found and not self._trouble and all(address in own for address in found):
            self._trouble = "it names only this node"
        self._addresses = tuple(address for address in found if address not in own)[:SEED_ADDRESSES_MAX]
        return self._addresses

    async def _ask_domain(self, hint: bytes | None, found: dict[Address, None]) -> float:
        """Put what the records lead to into `found`, as it comes; return the shortest TTL.

        Raises:
            DnsError: the name is not there, nobody says, or what is said is of no use.
        """
        ask, ignored = self._host.net.ask_dns, self._ignored
        name = f"{dns.SERVICE}.{self._name}"
        places = await ask(name, DnsKind.SRV)
        targets = dns.in_order(places.places, self._host.rng.stream("seeds"), ignored)
        if not targets:
            raise DnsError(f"it has no usable SRV record {name}", self._why(), code="dns-empty")
        texts = await ask(name, DnsKind.TXT)
        groups = dns.groups_named(texts.texts, ignored)
        if groups is not None and hint is not None and hint not in groups:
            raise DnsError("it is for other groups", f"its TXT record does not name {hint.hex()}", code="dns-group")
        ttl_s = min(places.ttl_s, texts.ttl_s) if texts.texts else places.ttl_s
        trouble: DnsError | None = None
        for target in targets:
            for kind in (DnsKind.A, DnsKind.AAAA):
                try:
                    answer = await ask(target.target, kind)
                except DnsError as error:
                    trouble = trouble or error
                    continue
                usable = [host for host in dict.fromkeys(answer.hosts) if dns.is_usable(host, self._name, ignored)]
                if len(usable) > SEED_ADDRESSES_PER_TARGET_MAX:
                    ignored["too many addresses"] += len(usable) - SEED_ADDRESSES_PER_TARGET_MAX
                found.update((Address(host, target.port), None) for host in usable[:SEED_ADDRESSES_PER_TARGET_MAX])
                if usable:
                    ttl_s = min(ttl_s, answer.ttl_s)
        if not found:
            raise trouble or DnsError("the hosts that it names have no usable address", self._why(), code="dns-empty")
        return ttl_s

    def _why(self) -> str:
        return ", ".join(f"{count} × {reason}" for reason, count in self._ignored.items())

    def view(self) -> SeedView:
        return SeedView(
            seed=self.text,
            asked_s=None if self._asked is None else self._host.clock.now() - self._asked,
            addresses=tuple(map(str, self._addresses)),
            trouble=self._trouble,
            ignored=dict(self._ignored),
        )


def note(view: SeedView) -> str:
    """Return one sentence about a seed that did not help; empty while it was not asked."""
    if view.trouble:
        return f"seed {view.seed} failed: {view.trouble}; it is asked again now and then"
    if view.addresses and view.asked_s is not None and view.asked_s > DHT_REQUEST_S:
        more = len(view.addresses) - 3
        where = ", ".join(view.addresses[:3]) + (f" and {more} more" if more > 0 else "")
        return f"seed {view.seed}: no node of this group answers at {where}"
    return ""
