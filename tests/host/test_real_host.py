"""Clock, randomness, addresses and LAN discovery of the real host."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from p2pcompute.errors import ConfigError
from p2pcompute.host.interfaces import Address, LanAnnouncement, LanSighting
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_interfaces import interface_addresses
from p2pcompute.host.real_lan import SERVICE_TYPE, RealLan
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from tests.transport.hosts import wait_for


async def test_the_clock_counts_and_calls_back() -> None:
    clock = RealClock()
    before = clock.now()
    called: list[float] = []
    clock.call_later(0.01, lambda: called.append(clock.now()))
    clock.call_later(0.01, lambda: called.append(-1.0)).cancel()
    await clock.sleep(0.02)
    await wait_for(lambda: called, "the callback")
    assert called[0] >= before + 0.01 and clock.wall() > 1_700_000_000
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.01):
            await clock.sleep(5)


def test_streams_of_one_name_are_one_and_of_two_names_independent() -> None:
    rng = SystemRng()
    assert rng.stream("a") is rng.stream("a")
    assert rng.stream("a").random() != rng.stream("b").random()
    assert SystemRng().stream("a").random() != SystemRng().stream("a").random()


async def test_names_and_literals_are_resolved() -> None:
    net = RealNet(interfaces=["lo"])
    assert await net.resolve("192.0.2.7", 5) == [Address("192.0.2.7", 5)]
    assert await net.resolve("[2001:db8::7]", 5) == [Address("2001:db8::7", 5)]
    assert Address("127.0.0.1", 9) in await net.resolve("localhost", 9)
    assert await net.resolve("not a host name", 9) == []
    assert await net.resolve("x" * 300, 9) == []


def test_local_addresses_are_those_of_the_allowed_interfaces() -> None:
    assert RealNet(interfaces=["lo"]).local_addresses()[0] == "127.0.0.1"
    everything = RealNet().local_addresses()
    assert everything and not any(address.startswith("fe80") for address in everything)
    with pytest.raises(ConfigError) as raised:
        interface_addresses(["no-such-if"])
    assert raised.value.fix and "no-such-if" in raised.value.what


# --- LAN ------------------------------------------------------------------------------------------


def announcement(name: str, port: int = 4000, hint: bytes = b"hint") -> LanAnnouncement:
    return LanAnnouncement(public_key=hashlib.sha256(name.encode()).digest(), name=name, port=port, group_hint=hint)


async def test_nodes_see_each_other_on_loopback_and_see_them_go() -> None:
    one, other = RealNet(interfaces=["lo"]), RealNet(interfaces=["lo"])
    seen: list[LanSighting] = []
    own: list[LanSighting] = []
    try:
        await other.browse(seen.append)
        await one.browse(own.append)
        # Another run of this test on the same machine is seen as well: only ours count.
        name = f"node-{id(one)}-ä"
        await one.announce(announcement(name))

        def of_ours(sightings: list[LanSighting]) -> list[LanSighting]:
            return [entry for entry in sightings if entry.announcement.name == name]

        await wait_for(lambda: of_ours(seen), "a sighting")
        [sighting] = of_ours(seen)
        assert sighting.is_present and sighting.announcement == announcement(name)
        assert "127.0.0.1" in sighting.addresses and set(sighting.addresses) <= {"127.0.0.1", "::1"}
        assert not of_ours(own), "nobody sees himself"
        await one.announce(None)
        await wait_for(lambda: len(of_ours(seen)) == 2, "the withdrawal")
        assert not of_ours(seen)[1].is_present and of_ours(seen)[1].announcement == announcement(name)
    finally:
        await one.close()
        await other.close()


async def test_announcements_that_make_no_sense_are_dropped() -> None:
    scope = TaskScope("lan")
    lan = RealLan(["127.0.0.1"], lambda: ["127.0.0.1"], scope)
    seen: list[LanSighting] = []
    lan._seen = seen.append
    good = {b"k": b"A" * 52, b"n": b"name", b"g": b"", b"v": b"1"}

    class Info:
        def __init__(self, port: int | None = 1, **changes: bytes | None) -> None:
            self.port = port
            self.properties = good | {key.encode(): value for key, value in changes.items()}

        def parsed_addresses(self) -> list[str]:
            return ["127.0.0.1"]

    bad = [
        Info(k=None), Info(k=b"A"), Info(k=b"\xff" * 52), Info(k=b"1" * 52), Info(n=b"\xff"), Info(n=b"x" * 65),
        Info(n=b"a\nb"), Info(g=b"zz"), Info(g=b"00"), Info(port=None), Info(port=0),
    ]  # fmt: skip
    for number, info in enumerate(bad):
        lan._found(f"bad-{number}.{SERVICE_TYPE}", info)
    assert not seen and lan.dropped == len(bad)
    lan._found(f"good.{SERVICE_TYPE}", Info())
    lan._found(f"good.{SERVICE_TYPE}", Info())
    assert len(seen) == 1 and seen[0].announcement.public_key == bytes(32)
    await scope.close()
    await asyncio.sleep(0)
