"""A name server on loopback that says what a test wants: real DNS messages over a real UDP socket."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers from `zone`; what is not in it does not exist.  Nothing is answered about names in `silent`."""

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        """Records in the words of zone files, by (name without the last dot, type)."""
        self.ttl_s = 300
        self.silent: set[str] = set()
        self.refused: set[str] = set()
        self.garbled: Callable[[bytes], bytes] = bytes
        """Changes what is sent."""
        self.asked: Counter[tuple[str, str]] = Counter()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self) -> str:
        """As in the setting node.dns."""
        return f"127.0.0.1:{self.port}"

    def name(self, domain: str, port: int, host: str = "127.0.0.1", *texts: str) -> None:
        """Let `domain` name one node as a first contact."""
        service = f"_p2pcompute._udp.{domain}"
        self.zone[service, "SRV"] = [f"10 10 {port} node.{domain}."]
        self.zone[f"node.{domain}", "AAAA" if ":" in host else "A"] = [host]
        if texts:
            self.zone[service, "TXT"] = [*texts]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(65535)
            if not data:
                return
            try:
                query = dns.message.from_wire(data)
                answer = self._answer(query)
            except dns.exception.DNSException:
                continue
            if answer is not None:
                wire = answer.to_wire(max_size=65535)
                if len(wire) > query.payload:
                    answer.answer.clear()
                    answer.flags |= dns.flags.TC
                    wire = answer.to_wire()
                self._socket.sendto(self.garbled(wire), source)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if name in self.silent:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        records = self.zone.get((name, kind))
        if name in self.refused:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif records:
            answer.answer.append(dns.rrset.from_text_list(question.name, self.ttl_s, "IN", kind, records))
        elif not any(known == name for known, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer
