"""Address translation: who gets in, for how long, and what others see."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address, DatagramEndpoint
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.latency import Spot
from p2pcompute.simulation.machines import Machine
from p2pcompute.simulation.nat import MAPPINGS_MAX, REMOTES_MAX, Nat, NatKind, NatSettings
from p2pcompute.simulation.network import NetworkSettings
from tests.simulation.test_network import PREAMBLE, dial, listen, until

INSIDE = Address("192.168.0.2", 500)
CONES = (NatKind.FULL_CONE, NatKind.RESTRICTED, NatKind.PORT_RESTRICTED)


async def bind(host: SimHost, port: int = 1) -> DatagramEndpoint:
    return await host.host.net.bind_datagram(port, loopback_only=False)


async def hears(endpoint: DatagramEndpoint) -> list[tuple[bytes, Address]]:
    """What arrives within two seconds."""
    found = []
    try:
        async with asyncio.timeout(2):
            while True:
                found.append(await endpoint.receive())
    except TimeoutError:
        return found


@pytest.mark.parametrize(
    ("kind", "same_port", "other_port", "other_host"),
    [
        (NatKind.FULL_CONE, True, True, True),
        (NatKind.RESTRICTED, True, True, False),
        (NatKind.PORT_RESTRICTED, True, False, False),
        (NatKind.SYMMETRIC, True, False, False),
        (NatKind.CGNAT, True, False, False),
    ],
)
def test_who_gets_in(kind: NatKind, same_port: bool, other_port: bool, other_host: bool) -> None:
    """If it broke: a node that works behind one kind of router is thought to work behind another."""
    with Simulation(1) as simulation:
        home, friend, stranger = simulation.add_host(nat=kind), simulation.add_host(), simulation.add_host()

        async def main() -> None:
            ours = await bind(home, 500)
            theirs, beside, strange = await bind(friend), await bind(friend, 2), await bind(stranger)
            assert home.host.net.local_addresses() == [home.address]
            assert home.address.startswith("192.168.")
            strange.send(b"unasked", Address(home.machine.public_address, 500))
            assert await hears(ours) == []
            ours.send(b"hello", Address(friend.address, 1))
            data, seen = await theirs.receive()
            assert data == b"hello" and seen.host == home.machine.public_address != home.address
            assert (seen.port == 500) == (kind in CONES)
            theirs.send(b"same port", seen)
            beside.send(b"other port", seen)
            strange.send(b"other host", seen)
            heard = {data for data, _ in await hears(ours)}
            wanted = {b"same port": same_port, b"other port": other_port, b"other host": other_host}
            assert heard == {data for data, gets_in in wanted.items() if gets_in}
            assert simulation.network.counters.datagrams_filtered == 4 - len(heard)

        simulation.run(main())


def test_mappings_end_when_nothing_goes_out() -> None:
    """If it broke: nodes need no keepalive in the simulator, and are deaf after two minutes outside."""
    with Simulation(1) as simulation:
        home, friend = simulation.add_host(nat=NatKind.FULL_CONE), simulation.add_host()

        async def main() -> None:
            ours, theirs = await bind(home), await bind(friend)
            ours.send(b"x", Address(friend.address, 1))
            _, seen = await theirs.receive()
            for _ in range(3):
                await asyncio.sleep(100)
                ours.send(b"x", Address(friend.address, 1))
                assert (await theirs.receive())[1] == seen
            await asyncio.sleep(110)
            theirs.send(b"still there", seen)
            assert (await ours.receive())[0] == b"still there"
            await asyncio.sleep(15)  # what came in did not prolong it
            theirs.send(b"too late", seen)
            assert await hears(ours) == []

        simulation.run(main())


def test_a_symmetric_nat_shows_every_remote_another_port() -> None:
    """If it broke: hole punching works where it cannot."""
    with Simulation(1) as simulation:
        symmetric, cone = simulation.add_host(nat=NatKind.SYMMETRIC), simulation.add_host(nat=NatKind.PORT_RESTRICTED)
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            a, b = await bind(one), await bind(two)
            for host, is_same in ((symmetric, False), (cone, True)):
                ours = await bind(host)
                for to in (one, two):
                    ours.send(b"x", Address(to.address, 1))
                seen = [(await each.receive())[1] for each in (a, b)]
                assert (seen[0] == seen[1]) is is_same

        simulation.run(main())


@pytest.mark.parametrize("one_kind", [*CONES, NatKind.CGNAT])
@pytest.mark.parametrize("other_kind", [*CONES, NatKind.CGNAT])
def test_holes_can_be_punched_between_cones(one_kind: NatKind, other_kind: NatKind) -> None:
    """If it broke: nodes at homes never meet."""
    with Simulation(1, model=NetworkSettings(nat=NatSettings(homes_per_carrier=1))) as simulation:
        one, other = simulation.add_host(nat=one_kind), simulation.add_host(nat=other_kind)
        third = simulation.add_host()

        async def main() -> None:
            a, b, meeting = await bind(one), await bind(other), await bind(third)
            a.send(b"one", Address(third.address, 1))
            b.send(b"other", Address(third.address, 1))
            seen = dict([await meeting.receive(), await meeting.receive()])
            a.send(b"open", seen[b"other"])
            b.send(b"open", seen[b"one"])
            await asyncio.sleep(1)
            a.send(b"to other", seen[b"other"])
            b.send(b"to one", seen[b"one"])
            assert b"to one" in {data for data, _ in await hears(a)}
            assert b"to other" in {data for data, _ in await hears(b)}

        simulation.run(main())


def test_there_is_no_hairpin_but_the_lan_works() -> None:
    """If it broke: two nodes of one home meet at an address that routers do not loop back."""
    with Simulation(1) as simulation:
        one = simulation.add_host("one", lan="home", nat=NatKind.FULL_CONE)
        two = simulation.add_host("two", lan="home")
        far = simulation.add_host()

        async def main() -> None:
            a, b, c = await bind(one), await bind(two), await bind(far)
            assert one.machine.public_address == two.machine.public_address
            b.send(b"x", Address(far.address, 1))
            _, seen = await c.receive()
            a.send(b"hairpin", seen)
            a.send(b"lan", Address(two.address, 1))
            assert await hears(b) == [(b"lan", Address(one.address, 1))]
            c.send(b"private", Address(two.address, 1))
            assert await hears(b) == []
            assert await one.host.net.resolve("two", 1) == [Address(two.address, 1)]
            assert await far.host.net.resolve("two", 1) == [Address(two.machine.public_address, 1)]

        simulation.run(main())


def test_streams_go_out_and_do_not_come_in() -> None:
    """If it broke: a node at home is called in the simulator and nowhere else."""
    with Simulation(1) as simulation:
        home, mate = (simulation.add_host(lan="home", nat=NatKind.FULL_CONE) for _ in range(2))
        out = simulation.add_host()

        async def main() -> None:
            sources: list[Address] = []

            def admit(_: bytes, source: Address) -> bool:
                sources.append(source)
                return True

            await out.host.net.listen_stream(7, loopback_only=False, admit=admit, accept=lambda *_: None)
            inside = await listen(home)
            await dial(home, out)
            await until(lambda: bool(sources))
            assert sources[0].host == home.machine.public_address
            with pytest.raises(ChannelLost, match="no answer"):
                await out.host.net.dial_stream(Address(home.machine.public_address, 7), PREAMBLE, timeout_s=9)
            with pytest.raises(ChannelLost, match="no answer"):
                await dial(out, home)
            assert inside == []
            await dial(mate, home)
            await until(lambda: bool(inside))
            assert inside[0].peer_address.host == mate.address

        simulation.run(main())


def test_homes_of_one_carrier_share_its_address() -> None:
    """If it broke: limits by source address are never met by a crowd behind one address."""
    nat = NatSettings(cgnat=1.0, homes_per_carrier=3)
    with Simulation(1, model=NetworkSettings(nat=nat)) as simulation:
        homes = [simulation.add_host() for _ in range(7)]
        public = simulation.add_host(nat=NatKind.NONE)
        assert [homes.index(next(h for h in homes if h.machine.public_address == home.machine.public_address))
                for home in homes] == [0, 0, 0, 3, 3, 3, 6]  # fmt: skip

        async def main() -> None:
            listening = await bind(public)
            endpoints = [await bind(home) for home in homes]
            for endpoint in endpoints:
                endpoint.send(b"x", Address(public.address, 1))
            seen = [(await listening.receive())[1] for _ in homes]
            assert len(set(seen)) == 7 and len({address.host for address in seen}) == 3
            for address in seen:
                listening.send(b"y", address)
            assert [await endpoint.receive() for endpoint in endpoints] == [(b"y", Address(public.address, 1))] * 7

        simulation.run(main())


@pytest.mark.parametrize("kind", [NatKind.PORT_RESTRICTED, NatKind.CGNAT])
@pytest.mark.parametrize("is_move", [False, True])
def test_a_router_that_restarts_or_moves(kind: NatKind, is_move: bool) -> None:
    """If it broke: the simulator never shows a peer whose address changed."""
    with Simulation(1) as simulation:
        home, friend = simulation.add_host(nat=kind), simulation.add_host()

        async def main() -> None:
            ours, theirs = await bind(home), await bind(friend)
            accepted = await listen(friend)
            stream = await dial(home, friend)
            ours.send(b"x", Address(friend.address, 1))
            _, before = await theirs.receive()
            if is_move:
                assert simulation.network.move(home.machine) == home.machine.public_address
            else:
                assert simulation.network.rebind(home.machine)
            theirs.send(b"old", before)
            ours.send(b"y", Address(friend.address, 1))
            _, after = await theirs.receive()
            assert after != before and (after.host != before.host) == (is_move and kind is not NatKind.CGNAT)
            theirs.send(b"new", after)
            assert [data for data, _ in await hears(ours)] == [b"new"]
            stream.write(b"into the void")
            for end in (stream, accepted[0]):
                with pytest.raises(ChannelLost, match="reached"):
                    await end.read(100)
            assert not simulation.network.rebind(friend.machine)

        simulation.run(main())


def test_the_mix_is_as_set_and_fixed_by_the_seed() -> None:
    """If it broke: a study of homes studies something else."""
    nat = NatSettings(full_cone=0.1, port_restricted=0.4, symmetric=0.2)
    with Simulation(1, model=NetworkSettings(nat=nat)) as simulation:
        kinds = [
            NatKind.NONE if machine.nat is None else machine.nat.kind
            for machine in (simulation.network.add_machine() for _ in range(2000))
        ]
    for kind, share in ((NatKind.NONE, 0.3), (NatKind.PORT_RESTRICTED, 0.4), (NatKind.SYMMETRIC, 0.2)):
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=0.05)
    with Simulation(1, model=NetworkSettings(nat=nat)) as simulation:
        again = [simulation.network.add_machine().nat for _ in range(50)]
        assert [NatKind.NONE if nat is None else nat.kind for nat in again] == kinds[:50]
    with pytest.raises(ValueError, match="exceed 1"):
        NatSettings(symmetric=0.6, cgnat=0.6)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([*CONES, NatKind.SYMMETRIC]),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.floats(0, 200)),
        max_size=40,
    ),
)
def test_a_nat_is_like_a_naive_one(kind: NatKind, steps: list[tuple[bool, int, int, int, float]]) -> None:
    """If it broke: a mapping lives too long, dies too early, or lets in who was never asked."""
    nat = Nat(kind, "10.0.0.9", mapping_s=120.0, draw=random.Random(1).random)
    machine = nat.behind["192.168.0.2"] = Machine(1, "192.168.0.2", "home", Spot(1), nat)
    sent: list[tuple[float, Address, Address, Address]] = []  # when, inside, to, seen
    now = 0.0
    for is_out, inside_port, host, port, pause_s in steps:
        now += pause_s
        inside, remote = Address("192.168.0.2", inside_port), Address(f"10.0.0.{host}", port)
        if is_out:
            seen = nat.outbound(inside, remote, now)
            same = [each for each in sent if each[1] == inside and (kind is not NatKind.SYMMETRIC or each[2] == remote)]
            if same and now - same[-1][0] <= 120:
                assert seen == same[-1][3]
            sent.append((now, inside, remote, seen))
        elif sent:
            _, inside, _, seen = sent[-1]
            lives = [each for each in sent if each[3] == seen and each[1] == inside and now - each[0] <= 120]
            gets_in = any(
                kind is NatKind.FULL_CONE or (each[2].host == remote.host and kind is NatKind.RESTRICTED)
                or each[2] == remote
                for each in lives
            )  # fmt: skip
            assert nat.inbound(seen.port, remote, now) == ((machine, inside.port) if gets_in else None)


def test_tables_are_bounded() -> None:
    """If it broke: a scan from inside makes the simulated router larger for ever."""
    for kind in (NatKind.SYMMETRIC, NatKind.PORT_RESTRICTED):
        nat = Nat(kind, "10.0.0.9", mapping_s=120.0, draw=random.Random(1).random)
        for number in range(MAPPINGS_MAX + 500):
            nat.outbound(INSIDE, Address(f"10.1.{number >> 8}.{number & 255}", 1), 0.0)
        assert len(nat._by_key) == len(nat._by_port) <= MAPPINGS_MAX
        assert all(len(mapping.remotes) <= REMOTES_MAX for mapping in nat._by_port.values())
