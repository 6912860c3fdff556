"""Nodes in virtual time whose only way to each other is the DNS."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from p2pcompute.dht.seeds import SERVICE
from p2pcompute.errors import DnsError
from p2pcompute.host.interfaces import Address, DnsAnswer, DnsKind, SrvRecord
from p2pcompute.limits import SEED_ADDRESSES_MAX, SEED_TARGETS_MAX
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import PORT, Mesh

DOMAIN = "mesh.test"


class Zone(dict[tuple[str, DnsKind], "DnsAnswer | DnsError"]):
    """A zone that counts the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def get(self, key: tuple[str, DnsKind], default: Any = None) -> Any:
        self.asked[key[1].value] += 1
        return super().get(key, default)

    def name(self, *targets: str, domain: str = DOMAIN, ttl_s: float = 300.0) -> None:
        places = tuple(SrvRecord(10, 10, PORT, target) for target in targets)
        self[f"{SERVICE}.{domain}", DnsKind.SRV] = DnsAnswer(places=places, ttl_s=ttl_s)


def build(simulation: Simulation, count: int) -> tuple[Mesh, Zone]:
    mesh, zone = Mesh(simulation, count, is_lan=False), Zone()
    simulation.network.zone = zone
    return mesh, zone


def test_a_member_finds_the_group_by_a_domain_and_then_leaves_it_alone() -> None:
    """If it broke: nodes that know nobody stay alone, or ask name servers for ever."""
    with Simulation(1) as simulation:
        mesh, zone = build(simulation, 3)
        zone.name("node-0")

        async def main() -> None:
            for member in mesh.members:
                await mesh.start_one(member, contacts=(), seeds=[DOMAIN] if member.host.name == "node-2" else [])
            await asyncio.sleep(2.5)
            assert not zone.asked, "the others get some time first"
            await asyncio.sleep(2.5)
            found = mesh.members[2].running
            assert found.network.dht is not None and found.network.dht.contact_count == 1
            assert found.status().seeds[0].addresses and not found.status().notes
            asked = zone.asked.total()
            await asyncio.sleep(3600)
            assert zone.asked.total() == asked

        simulation.run(main(), time_s_max=4000)
        mesh.check_errors()


def test_no_seed_is_asked_while_somebody_answers_and_one_is_when_all_have_gone() -> None:
    """If it broke: whoever owns the domain knows when each node starts; or a node whose contacts all died is lost."""
    with Simulation(2) as simulation:
        mesh, zone = build(simulation, 3)
        zone.name("node-2")
        first, second, third = mesh.members

        async def main() -> None:
            await mesh.start_one(first)
            await mesh.start_one(second, contacts=(Address(first.host.address, PORT),), seeds=[DOMAIN])
            await mesh.start_one(third, contacts=())
            await asyncio.sleep(120)
            assert not zone.asked
            mesh.crash(first)
            await asyncio.sleep(60)
            dht = second.running.network.dht
            assert dht is not None and [contact.name for contact in dht.contacts()] == ["node-2"]
            assert zone.asked["SRV"] == 1

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_seeds_are_asked_more_and_more_rarely_and_answers_kept_for_their_time() -> None:
    """If it broke: ten thousand nodes whose first contact is down are a flood for its name servers."""
    with Simulation(3) as simulation:
        mesh, zone = build(simulation, 2)
        zone.name("node-0", ttl_s=1800)
        zone["node-0", DnsKind.A] = DnsAnswer(hosts=(mesh.members[0].host.address,), ttl_s=1800)
        lonely = mesh.members[1]

        async def main() -> None:
            await mesh.start_one(lonely, contacts=(), seeds=["gone.test", DOMAIN])
            await asyncio.sleep(1700)
            status = lonely.running.status()
            assert ["no name" in note or "no node of this group" in note for note in status.notes] == [True, True]
            assert 6 <= zone.asked["SRV"] - 1 <= 10, "rounds in half an hour, each asks gone.test"
            assert zone.asked["A"] == 1, "the good answer was kept"
            await mesh.start_one(mesh.members[0], contacts=())
            await asyncio.sleep(60)
            assert lonely.running.network.dht is not None and lonely.running.network.dht.contact_count == 1
            assert not lonely.running.status().notes

        simulation.run(main(), time_s_max=5000)
        mesh.check_errors()


def test_a_lying_domain_costs_a_bounded_number_of_questions_and_datagrams() -> None:
    """If it broke: one answer makes a node ask thousands of names, or knock where it should not."""
    with Simulation(4) as simulation:
        mesh, zone = build(simulation, 1)
        names = [f"host-{number}.example.org" for number in range(64)]
        for domain in ("mesh.example.org", "inside.example.org"):
            zone.name(*names, "bad name\x1b[31m", "", domain=domain)
        zone[f"{SERVICE}.mesh.example.org", DnsKind.TXT] = DnsAnswer(texts=((b"x" * 255,) * 250,) * 64)
        for number, name in enumerate(names):
            hosts = tuple(f"8.8.{number}.{last}" for last in range(1, 65))
            zone[name, DnsKind.A] = DnsAnswer(hosts=("10.0.0.1", "127.0.0.1", *hosts))

        async def main() -> None:
            node = await mesh.start_one(mesh.members[0], contacts=(), seeds=["mesh.example.org", "self.test"])
            zone.name("node-0", domain="self.test")
            await asyncio.sleep(8)
            seed, own = node.status().seeds
            assert len(seed.addresses) == SEED_ADDRESSES_MAX and not any(":" in host[:3] for host in seed.addresses)
            assert all(address.startswith("8.8.") for address in seed.addresses)
            assert zone.asked["A"] == SEED_TARGETS_MAX + 1
            assert seed.ignored["private address from a public name"] == 2 * SEED_TARGETS_MAX
            assert seed.ignored["too many SRV records"] == 64 - SEED_TARGETS_MAX
            assert seed.ignored["unusable SRV record"] == 2 and seed.ignored["long TXT record"] == 8
            assert "only this node" in own.trouble and not own.addresses

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_a_domain_of_another_group_is_not_followed() -> None:
    with Simulation(5) as simulation:
        mesh, zone = build(simulation, 2)
        for domain, hint in (("theirs.test", "00000000"), ("ours.test", "")):
            zone.name("node-0", domain=domain)
            text = f"v=p2pc1 group=00000000,{hint}".encode()
            zone[f"{SERVICE}.{domain}", DnsKind.TXT] = DnsAnswer(texts=((text,),), ttl_s=60)

        async def main() -> None:
            ours = await mesh.start_one(mesh.members[0], contacts=())
            text = f"v=p2pc1 group=00000000,{ours.status().group_hint.hex()}".encode()
            zone[f"{SERVICE}.ours.test", DnsKind.TXT] = DnsAnswer(texts=((text,),), ttl_s=60)
            node = await mesh.start_one(mesh.members[1], contacts=(), seeds=["theirs.test", "ours.test"])
            await asyncio.sleep(6)
            theirs, found = node.status().seeds
            assert "other groups" in theirs.trouble and not theirs.addresses and found.addresses

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_a_node_that_takes_its_own_link_for_broken_asks_its_seeds_too() -> None:
    """If it broke: a laptop whose whole group has moved keeps its dead contacts, and stays alone for ever."""
    with Simulation(6) as simulation:
        mesh, zone = build(simulation, 14)
        zone.name("node-13")
        lonely, moved = mesh.members[12], mesh.members[13]

        async def main() -> None:
            for member in mesh.members[:12]:
                await mesh.start_one(member)
            await mesh.start_one(lonely, seeds=[DOMAIN])
            await asyncio.sleep(60)
            mesh.crash(*mesh.members[:12], is_silent=True)
            await asyncio.sleep(60)
            dht = lonely.running.network.dht
            assert dht is not None and dht.is_link_down and dht.contact_count
            await mesh.start_one(moved, contacts=())
            await asyncio.sleep(700)
            assert moved.identity.public_key in dht

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
