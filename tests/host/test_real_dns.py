"""Questions of the real host to a real name server."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from p2pcompute.errors import DnsError
from p2pcompute.host import real_dns
from p2pcompute.host.interfaces import DnsKind, SrvRecord
from p2pcompute.host.real_net import RealNet
from p2pcompute.limits import DNS_RECORDS_MAX
from tests.name_server import NameServer

SERVICE = "_p2pcompute._udp.mesh.test"


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    with NameServer() as found:
        found.zone = {
            (SERVICE, "SRV"): ["10 60 7878 a.mesh.test.", "20 0 7879 ."],
            (SERVICE, "TXT"): ['"v=p2pc1" "group=6f1c09aa"'],
            ("a.mesh.test", "A"): ["192.0.2.1", "192.0.2.2"],
            ("a.mesh.test", "AAAA"): ["2001:db8::1"],
        }
        yield found


@pytest.fixture
def net(name_server: NameServer) -> RealNet:
    return RealNet(interfaces=["lo"], name_servers=[("127.0.0.1", name_server.port)])


async def test_records_are_read(net: RealNet) -> None:
    places = await net.ask_dns(SERVICE, DnsKind.SRV)
    assert set(places.places) == {SrvRecord(10, 60, 7878, "a.mesh.test"), SrvRecord(20, 0, 7879, "")}
    assert places.ttl_s == 300
    assert (await net.ask_dns(SERVICE, DnsKind.TXT)).texts == ((b"v=p2pc1", b"group=6f1c09aa"),)
    assert set((await net.ask_dns("a.mesh.test", DnsKind.A)).hosts) == {"192.0.2.1", "192.0.2.2"}
    assert (await net.ask_dns("a.mesh.test", DnsKind.AAAA)).hosts == ("2001:db8::1",)


async def test_what_a_name_does_not_have_is_nothing(net: RealNet) -> None:
    assert (await net.ask_dns("a.mesh.test", DnsKind.TXT)).texts == ()


async def test_why_nothing_was_said_is_told(
    net: RealNet, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DnsError) as unknown:
        await net.ask_dns("gone.test", DnsKind.SRV)
    assert unknown.value.code == "dns-unknown" and "gone.test" in unknown.value.what
    assert unknown.value.why == f"says 127.0.0.1:{name_server.port}"
    name_server.refused.add("broken.test")
    with pytest.raises(DnsError) as refused:
        await net.ask_dns("broken.test", DnsKind.SRV)
    assert refused.value.code == "dns-refused" and "SERVFAIL" in refused.value.why
    monkeypatch.setattr(real_dns, "DNS_QUERY_S_MAX", 0.2)
    name_server.silent.add("silent.test")
    with pytest.raises(DnsError) as silent:
        await net.ask_dns("silent.test", DnsKind.SRV)
    assert silent.value.code == "dns-timeout" and str(name_server.port) in silent.value.why
    for name in ("x" * 64 + ".test", "a..test", ".".join(["a" * 60] * 5)):
        with pytest.raises(DnsError):
            await net.ask_dns(name, DnsKind.A)


async def test_a_long_answer_is_cut_and_a_longer_one_refused(net: RealNet, name_server: NameServer) -> None:
    """If it broke: the owner of a domain takes what memory and time he likes."""
    name_server.zone["a.mesh.test", "A"] = [f"192.0.2.{number}" for number in range(1, 71)]
    assert len((await net.ask_dns("a.mesh.test", DnsKind.A)).hosts) == DNS_RECORDS_MAX
    name_server.zone[SERVICE, "SRV"] = [f"10 10 {port} host-{port}.mesh.test." for port in range(1, 500)]
    with pytest.raises(DnsError) as long:
        await net.ask_dns(SERVICE, DnsKind.SRV)
    assert long.value.code == "dns-refused" and "truncated" in long.value.why, str(long.value)


async def test_damaged_answers_are_no_more_than_no_answer(
    net: RealNet, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it broke: whoever can send a UDP packet ends the search for contacts."""
    monkeypatch.setattr(real_dns, "DNS_QUERY_S_MAX", 0.05)
    rng = random.Random(1)

    def garbled(wire: bytes) -> bytes:
        damaged = bytearray(wire)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(2, len(damaged))] = rng.randrange(256)
        return bytes(damaged[: rng.randint(2, len(damaged))])

    name_server.garbled = garbled
    for _ in range(5):
        for kind in DnsKind:
            try:
                await net.ask_dns(SERVICE if kind in (DnsKind.SRV, DnsKind.TXT) else "a.mesh.test", kind)
            except DnsError:
                continue


def test_nothing_of_it_is_imported_before_a_question() -> None:
    """If it broke: every node pays 2.5 MiB and 60 ms for what hardly any needs."""
    code = "import sys, p2pcompute.daemon.compose, p2pcompute.cli.main; sys.exit('dns' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
