"""Clock, randomness, probe, addresses and LAN discovery of the real host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path

import pytest

from p2pcompute.errors import ConfigError
from p2pcompute.host.interfaces import Address, LanAnnouncement, LanSighting
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_interfaces import interface_addresses
from p2pcompute.host.real_lan import SERVICE_TYPE, RealLan
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.host.tasks import TaskScope
from p2pcompute.resources.attributes import decode_attributes, encode_attributes
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


async def test_the_probe_says_what_this_machine_is(tmp_path: Path) -> None:
    """A job is matched against a machine that is not this one."""
    found = await RealProbe(tmp_path, cgroup=tmp_path).attributes()
    values = {name: attribute.value for name, attribute in found.items()}
    assert values["os"] == sys.platform.rstrip("0123456789")
    assert values["arch"] == os.uname().machine
    assert "{}.{}".format(*sys.version_info) in values["python"]  # type: ignore[operator]
    assert values["cpus"] >= 1 and values["mem.total"] > 2**20  # type: ignore[operator]
    assert 0 < values["mem.free"] <= values["mem.total"]  # type: ignore[operator]
    assert 0 < values["disk.free"] <= values["disk.total"]  # type: ignore[operator]
    for name, attribute in found.items():
        assert (attribute.lifetime_s is None) == (name not in ("load", "mem.free", "disk.free", "battery"))
    decode_attributes(encode_attributes(found, found["load"].measured_s))
    gone = await RealProbe(tmp_path / "gone").attributes()
    assert "disk.free" not in gone and "disk.total" not in gone


async def test_what_was_just_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is asked a hundred times a second measures a hundred times a second."""
    probe = RealProbe(tmp_path)
    found = await asyncio.gather(*(probe.attributes() for _ in range(20)))
    assert len({attributes["load"].measured_s for attributes in found}) == 1
    monkeypatch.setattr("p2pcompute.host.real_probe.FRESH_S", 0.0)
    again = await probe.attributes()
    assert again["load"].measured_s > found[0]["load"].measured_s
    assert again["cpus"] is found[0]["cpus"]


async def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    limited = await RealProbe(tmp_path, cgroup=tmp_path).attributes()
    assert limited["cpus"].value == 0.5 and limited["mem.total"].value == 1048576
    assert limited["mem.free"].value == 48576
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = await RealProbe(tmp_path, cgroup=tmp_path).attributes()
    assert unlimited["cpus"].value >= 1 and unlimited["mem.total"].value > 1048576  # type: ignore[operator]


async def test_executables_are_looked_for_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that needs an application goes where it is not, or a peer learns which files are here."""
    tool = tmp_path / "frobnicate"
    tool.write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    probe = RealProbe(tmp_path)
    assert await probe.has(["frobnicate", "sh", str(tool), "../frobnicate", ""]) == {
        "frobnicate": False, "sh": False, str(tool): False, "../frobnicate": False, "": False,
    }  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setattr("p2pcompute.host.real_probe.EXECUTABLE_S", 0.0)
    assert await probe.has(["frobnicate", str(tool)]) == {"frobnicate": True, str(tool): False}
    monkeypatch.setattr("p2pcompute.host.real_probe.EXECUTABLE_S", 60.0)
    monkeypatch.setattr("p2pcompute.host.real_probe.EXECUTABLES_MAX", 2)
    tool.unlink()
    assert await probe.has(["frobnicate"]) == {"frobnicate": True}, "it was found a moment ago"
    assert await probe.has(["a", "b", "c"]) == {"a": False, "b": False, "c": False}
    assert await probe.has(["frobnicate"]) == {"frobnicate": False}


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
