"""Questions to name servers: the records that the system's own resolver calls do not give.

Only `RealNet.ask_dns` imports this module, when it is asked first: dnspython takes 2.5 MiB and 60 ms of CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.message
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.TXT import TXT
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from p2pcompute.config import DNS_PORT
from p2pcompute.errors import DnsError
from p2pcompute.host.interfaces import Address, DnsAnswer, DnsKind, SrvRecord
from p2pcompute.limits import DNS_ANSWER_BYTES_MAX, DNS_QUERY_S_MAX, DNS_RECORDS_MAX, DNS_SERVERS_MAX


class _NameServer(dns.nameserver.Do53Nameserver):
    """Asked over UDP only: over TCP the owner of a domain could have each question answered with 64 KiB, which are
    read in 0.2 s, and meanwhile the node does nothing else."""

    async def async_query(self, request: dns.message.QueryMessage, *args: Any, **more: Any) -> dns.message.Message:
        if more.get("max_size"):
            raise dns.message.Truncated
        return await super().async_query(request, *args, **more)

    def __str__(self) -> str:
        return self.address if self.port == DNS_PORT else str(Address(self.address, self.port))


class RealDns:
    """Keeps no socket open and no answers.

    Args:
        name_servers: addresses and ports to ask, in this order; empty: those of this system (/etc/resolv.conf), read
            at each question, for a laptop changes them.
    """

    def __init__(self, name_servers: Sequence[tuple[str, int]]) -> None:
        self._name_servers = tuple(name_servers)

    def _resolver(self) -> dns.asyncresolver.Resolver:
        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._name_servers)
        except dns.resolver.NoResolverConfiguration as error:
            raise DnsError(
                "this machine knows no name server",
                str(error),
                "name one: p2pc config set node.dns ADDRESS",
                code="dns-config",
            ) from error
        servers = self._name_servers or [(str(host), resolver.port) for host in resolver.nameservers]
        resolver.nameservers = [_NameServer(host, port) for host, port in servers[:DNS_SERVERS_MAX]]
        resolver.use_edns(0, payload=DNS_ANSWER_BYTES_MAX)
        return resolver

    async def ask(self, name: str, kind: DnsKind) -> DnsAnswer:
        """See `Net.ask_dns`.

        Raises:
            DnsError: no such name, or nobody says.
        """
        resolver = self._resolver()
        servers = ", ".join(map(str, resolver.nameservers))
        try:
            answer = await resolver.resolve(
                f"{name}.", kind.value, lifetime=DNS_QUERY_S_MAX, search=False, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN as error:
            raise DnsError(f"there is no name {name}", f"says {servers}", code="dns-unknown") from error
        except dns.exception.Timeout as error:
            raise DnsError(
                f"no name server answers about {name}", f"asked {servers} for {DNS_QUERY_S_MAX:g} s", code="dns-timeout"
            ) from error
        except dns.resolver.NoNameservers as error:
            raise DnsError(
                f"no name server can say what {name} is", f"{servers}: {_reasons(error)}", code="dns-refused"
            ) from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise DnsError(f"{name} cannot be looked up", str(error) or type(error).__name__) from error
        records = [] if answer.rrset is None else list(answer.rrset)[:DNS_RECORDS_MAX]
        return DnsAnswer(
            places=tuple(_place(record) for record in records if isinstance(record, SRV)),
            texts=tuple(tuple(record.strings) for record in records if isinstance(record, TXT)),
            hosts=tuple(record.address for record in records if isinstance(record, A | AAAA)),
            ttl_s=0.0 if answer.rrset is None else float(answer.rrset.ttl),
        )


def _place(record: SRV) -> SrvRecord:
    target = record.target.to_text(omit_final_dot=True)
    return SrvRecord(record.priority, record.weight, record.port, "" if target in (".", "@") else target)


def _reasons(error: dns.resolver.NoNameservers) -> str:
    """Return what the servers answered, like "SERVFAIL"."""
    tried = error.kwargs.get("errors", [])
    return ", ".join(dict.fromkeys(str(entry[3] or "no answer") for entry in tried)) or "no usable answer"
