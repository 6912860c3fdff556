"""Who is a server and who a client: by what peers see, and by who called unasked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh import Mesh, Peer

from p2pcompute.dht.messages import MessageType, decode_statement
from p2pcompute.dht.reach import Reach, is_private
from p2pcompute.dht.records import make_record
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import (
    DHT_CALL_FAILURES_MAX,
    DHT_CALL_S,
    DHT_CALLS_MAX,
    DHT_K,
    DHT_MAPPING_S,
    DHT_REFRESH_SMALL_S,
    DHT_SENT_MAX,
    DHT_WORDS_MAX,
)
from p2pcompute.simulation.nat import NatKind

OWN = "192.168.1.2"
OUTSIDE = "9.9.9.9"


def at(host: str, port: int = 1) -> Address:
    return Address(host, port)


def behind_nat() -> Reach:
    reach = Reach([OWN])
    reach.on_word(at("8.8.8.8"), at(OUTSIDE))
    return reach


def test_on_one_network_a_node_is_a_server_at_the_first_word_and_nobody_is_asked() -> None:
    reach = Reach([OWN])
    assert not reach.is_client_to(at("192.168.1.3")) and reach.is_client_to(at("8.8.8.8")), "nothing is known"
    reach.on_word(at("192.168.1.3"), at(OWN))
    assert not reach.is_client_to(at("192.168.7.7")) and not reach.is_client and not reach.wants_check(0)
    assert reach.is_client_to(at("8.8.8.8")), "elsewhere that has to be proved"


@pytest.mark.parametrize(("own", "other"), [("8.8.8.7", "8.8.8.9"), ("2a00:1:2::7", "2a00:1:2:9::9")])
def test_one_public_range_is_one_network(own: str, other: str) -> None:
    """A lab whose machines all have public addresses: nothing is to be proved there."""
    reach = Reach([own])
    reach.on_word(at(other), at(own))
    assert not reach.is_client_to(at(other))
    assert reach.is_client_to(at("1.1.1.1"))


def test_behind_a_nat_a_node_is_a_client_outside_and_a_server_at_home() -> None:
    reach = behind_nat()
    assert reach.is_client and reach.is_client_to(at("8.8.8.8")) and reach.is_client_to(at("1.1.1.1"))
    reach.on_word(at("192.168.1.3"), at(OWN))
    assert not reach.is_client_to(at("192.168.1.9")) and reach.is_client_to(at("8.8.8.8"))
    assert not reach.is_client_to(at("127.0.0.1"))


def test_two_ranges_that_were_never_sent_to_prove_it() -> None:
    reach = behind_nat()
    reach.on_sent("7.7.7.7", 0.0)
    assert not reach.on_request("7.7.7.7", 1.0), "it was sent to: its answers come through any NAT"
    assert not reach.on_request("6.6.6.6", 2.0)
    assert not reach.on_request("6.6.6.9", 2.0), "the same range"
    assert not reach.on_request("192.168.1.3", 2.0), "from home"
    assert reach.on_request("5.5.5.5", 3.0)
    assert not reach.is_client and not reach.is_client_to(at("8.8.8.8"))


def test_a_host_that_was_sent_to_long_ago_counts_again() -> None:
    reach = behind_nat()
    for host in ("6.6.6.6", "5.5.5.5"):
        reach.on_sent(host, 0.0)
    assert not reach.on_request("6.6.6.6", DHT_MAPPING_S - 1)
    assert not reach.on_request("6.6.6.6", DHT_MAPPING_S + 1)
    assert reach.on_request("5.5.5.5", DHT_MAPPING_S + 1)


def test_as_many_as_there_are_to_call_are_enough() -> None:
    """In a group of three nobody has two others in other ranges who were never sent to."""
    reach = behind_nat()
    reach.on_request("6.6.6.6", 0.5)
    assert reach.on_checked(["6.6.6.6"], 0.0, 1.0) and not reach.is_client


def test_with_nobody_to_call_whoever_has_his_own_address_is_a_server() -> None:
    own = "3.3.3.3"
    reach = Reach([own])
    reach.on_word(at("8.8.8.8"), at(own))
    assert reach.is_client
    assert reach.on_checked([], 0.0, 1.0) and not reach.is_client
    translated = behind_nat()
    assert not translated.on_checked([], 0.0, 1.0) and translated.is_client


def test_who_failed_once_is_not_a_server_because_nobody_is_left_to_call() -> None:
    """A firewall in front of a public address: others are sent to after the first check, and say nothing later."""
    own = "3.3.3.3"
    reach = Reach([own])
    reach.on_word(at("8.8.8.8"), at(own))
    assert not reach.on_checked(["6.6.6.6"], 0.0, 1.0)
    assert not reach.on_checked([], 20.0, 21.0) and reach.is_client


def test_a_server_that_nobody_reaches_any_more_is_a_client_after_three_checks() -> None:
    reach = behind_nat()
    reach.on_request("6.6.6.6", 0.0)
    reach.on_request("5.5.5.5", 0.0)
    now = DHT_CALL_S
    for _ in range(DHT_CALL_FAILURES_MAX - 1):
        assert reach.wants_check(now)
        reach.on_checked(["4.4.4.4", "2.2.2.2"], now, now + 1)
        assert not reach.is_client
        assert not reach.wants_check(now + 2)
        now += 60
    reach.on_checked(["4.4.4.4", "2.2.2.2"], now, now + 1)
    assert reach.is_client
    assert not reach.on_request("6.6.6.6", now + 2), "it has to be proved anew"


def test_checks_that_prove_nothing_change_nothing() -> None:
    """All who were asked to call had been sent to: whether they come says nothing."""
    reach = behind_nat()
    reach.on_request("6.6.6.6", 0.0)
    reach.on_request("5.5.5.5", 0.0)
    reach.on_sent("4.4.4.4", 500.0)
    for turn in range(2 * DHT_CALL_FAILURES_MAX):
        reach.on_checked(["4.4.4.4"], 600.0 + turn, 601.0 + turn)
    assert not reach.is_client


def test_unasked_requests_save_the_check() -> None:
    reach = behind_nat()
    reach.on_request("6.6.6.6", 0.0)
    reach.on_request("5.5.5.5", 0.0)
    reach.on_checked([], 0.0, 1.0)
    reach.on_request("4.4.4.4", 500.0)
    assert not reach.wants_check(DHT_CALL_S + 2) and reach.wants_check(500.0 + DHT_CALL_S)


def test_another_address_of_its_own_opens_everything_again() -> None:
    reach = behind_nat()
    reach.on_own_hosts([OWN])
    assert reach.is_client
    reach.on_own_hosts(["10.0.0.4"])
    assert not reach.is_client and reach.is_watching


def test_one_liar_does_not_make_a_node_of_a_lan_a_client_for_the_others() -> None:
    reach = Reach([OWN])
    for host in ("192.168.1.3", "10.1.1.1"):
        reach.on_word(at(host), at(OWN))
    reach.on_word(at("10.9.9.9"), at(OUTSIDE))
    assert not reach.is_client and not reach.is_client_to(at("192.168.1.5")) and not reach.is_client_to(at("10.5.5.5"))


def test_private_is_what_the_internet_does_not_carry() -> None:
    hosts = ["10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "169.254.1.1", "fe80::1", "fd00::1", "127.0.0.1"]
    assert all(is_private(host) for host in hosts)
    assert not any(is_private(host) for host in ("8.8.8.8", "2a00::1", "172.32.0.1"))


hosts = st.sampled_from([f"{a}.0.0.{b}" for a in (5, 6, 7, 8) for b in (1, 2)] + [f"10.0.{n}.1" for n in range(80)])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("word"), hosts, st.sampled_from([OWN, OUTSIDE])),
        st.tuples(st.just("sent"), hosts, st.just("")),
        st.tuples(st.just("request"), hosts, st.just("")),
        st.tuples(st.just("checked"), hosts, st.just("")),
    ),
    max_size=120,
)


@given(steps=steps, gaps=st.floats(0, 400), founder=st.booleans())
def test_bounds_hold_and_nobody_is_a_server_elsewhere_without_a_proof(
    steps: Sequence[tuple[str, str, str]], gaps: float, founder: bool
) -> None:
    reach = Reach([OWN], is_presumed=founder)
    now, has_proof = 0.0, founder
    for what, host, seen in steps:
        now += gaps
        match what:
            case "word":
                reach.on_word(at(host), at(seen))
            case "sent":
                reach.on_sent(host, now)
            case "request":
                has_proof = reach.on_request(host, now) or has_proof
            case _:
                has_proof = reach.on_checked([host], now - gaps, now) or has_proof
        reach.check_invariants()
        assert reach.is_client_to(at("1.1.1.1")) or has_proof


def test_what_is_remembered_is_bounded() -> None:
    reach = behind_nat()
    for number in range(2 * DHT_SENT_MAX):
        reach.on_sent(f"1.{number >> 8}.{number & 255}.1", 0.0)
    for number in range(2 * DHT_WORDS_MAX):
        reach.on_word(at(f"1.1.{number}.1"), at(OUTSIDE))
    reach.check_invariants()


# --- whole DHTs -----------------------------------------------------------------------------------


class Homes(Mesh):
    """Peers in address ranges of their own, behind NATs as wanted."""

    def at_home(self, kind: NatKind, lan: str | None = None) -> Peer:
        self.simulation.network.address_step = 256
        peer = Peer(self.simulation.add_host(nat=kind, lan=lan), len(self.peers) + 1)
        self.peers.append(peer)
        return peer

    async def enter(self, kind: NatKind, lan: str | None = None) -> Peer:
        peer = self.at_home(kind, lan)
        first = self.peers[0]
        await self.on(peer, peer.start([] if peer is first else [first.address]))
        await asyncio.sleep(3)
        return peer


def tabled(mesh: Homes, peer: Peer) -> int:
    return sum(peer.key in {contact.key for contact in other.dht.contacts()} for other in mesh.peers)


CLOSED = [NatKind.RESTRICTED, NatKind.PORT_RESTRICTED, NatKind.SYMMETRIC, NatKind.CGNAT]


@pytest.mark.parametrize("kind", CLOSED)
def test_who_cannot_be_reached_asks_and_is_not_tabled(kind: NatKind) -> None:
    with Homes(3) as mesh:

        async def main() -> None:
            servers = [await mesh.enter(NatKind.NONE) for _ in range(5)]
            client = await mesh.enter(kind)
            assert client.dht.is_client and not any(one.dht.is_client for one in servers)
            await asyncio.sleep(120)
            assert tabled(mesh, client) == 0
            assert {contact.key for contact in client.dht.contacts()} == {one.key for one in servers}
            for one in servers:
                assert client.key in one.dht and [contact.key for contact in one.dht.clients()] == [client.key]
            wall = client.sim_host.clock.wall()
            sign, key = client.identity.sign_envelope, client.key
            record = make_record(sign, key, salt=b"", seq=1, wall=wall, ttl_s=600, value=b"x")
            assert await mesh.on(client, client.dht.put(record)) == len(servers)
            assert await mesh.on(servers[2], servers[2].dht.get(record.key)) == [record]
            assert len(await mesh.on(client, client.dht.find(bytes(20)))) == len(servers)
            mesh.simulation.crash(client.sim_host, is_silent=True)
            await mesh.wait(lambda: all(client.key not in one.dht for one in servers), 60, "forgetting the dead")

        mesh.simulation.run(main())


def test_who_is_proved_to_be_reached_is_a_server_at_once() -> None:
    with Homes(4) as mesh:

        async def main() -> None:
            for _ in range(4):
                await mesh.enter(NatKind.NONE)
            open_one = await mesh.enter(NatKind.FULL_CONE)
            assert not open_one.dht.is_client and tabled(mesh, open_one) == 4

        mesh.simulation.run(main())


def test_who_came_before_there_was_anybody_to_prove_it_is_promoted_when_others_come() -> None:
    with Homes(5) as mesh:

        async def main() -> None:
            await mesh.enter(NatKind.NONE)
            early = await mesh.enter(NatKind.FULL_CONE)
            assert early.dht.is_client
            for _ in range(3):
                await mesh.enter(NatKind.SYMMETRIC)
            await mesh.wait(lambda: not early.dht.is_client, 2 * DHT_CALL_S, "promotion")
            await mesh.wait(lambda: tabled(mesh, early) == 4, 1.5 * DHT_REFRESH_SMALL_S, "being tabled")
            founder = mesh.peers[0]
            assert founder.came.count(early.key) == 1 and early.key not in founder.gone, "nobody came or went"

        mesh.simulation.run(main())


def test_a_server_whose_router_closes_is_a_client_and_leaves_the_tables() -> None:
    with Homes(6) as mesh:

        async def main() -> None:
            for _ in range(4):
                await mesh.enter(NatKind.NONE)
            moved = await mesh.enter(NatKind.FULL_CONE)
            assert tabled(mesh, moved) == 4
            nat = moved.sim_host.machine.nat
            assert nat is not None
            nat.kind = NatKind.PORT_RESTRICTED
            for _ in range(8):  # newcomers, whom it has never sent to, are asked to call it; else nothing is known
                await mesh.enter(NatKind.SYMMETRIC)
            await mesh.wait(lambda: moved.dht.is_client, 3 * DHT_CALL_S, "demotion")
            await mesh.wait(lambda: tabled(mesh, moved) == 0, 30, "leaving the tables")
            assert all(moved.key in peer.dht for peer in mesh.peers[:4]), "it is known as a client"

        mesh.simulation.run(main())


def test_mates_at_home_are_servers_to_one_another_when_the_outside_is_gone() -> None:
    with Homes(7) as mesh:

        async def main() -> None:
            founder = await mesh.enter(NatKind.NONE)
            one, two = await mesh.enter(NatKind.SYMMETRIC, "home"), await mesh.enter(NatKind.SYMMETRIC, "home")
            await mesh.on(two, two.dht.join([one.address]))
            await asyncio.sleep(15)
            assert tabled(mesh, one) == tabled(mesh, two) == 1 and len(founder.dht.clients()) == 2
            mesh.simulation.crash(founder.sim_host, is_silent=True)
            await asyncio.sleep(60)
            assert one.knows() == {two.key} and two.knows() == {one.key}

        mesh.simulation.run(main())


def test_on_one_network_nobody_calls_anybody() -> None:
    with Homes(8) as mesh:

        async def main() -> None:
            await mesh.grow(DHT_K + 5)
            await asyncio.sleep(120)
            assert not any(peer.dht.counters.checks or peer.dht.clients() for peer in mesh.peers)

        mesh.simulation.run(main())


def test_calls_for_others_are_limited_and_made_once() -> None:
    """Somebody wants a victim's address flooded."""
    with Homes(9) as mesh:

        async def main() -> None:
            for _ in range(4):
                await mesh.enter(NatKind.NONE)
            evil, callers = mesh.peers[1], [mesh.peers[0], *mesh.peers[2:]]
            victim = await mesh.enter(NatKind.SYMMETRIC)
            nowhere = Address("10.200.0.1", 9)
            from p2pcompute.dht.contacts import Contact
            from p2pcompute.dht.messages import Ack, Message, Ring

            for caller in callers:
                caller.port.is_recording = True
            answers: list[Message | None] = []
            for _ in range(3 * DHT_CALLS_MAX):
                ring = [Ring(Contact(victim.key, nowhere))]
                for caller in callers:
                    evil.dht._ask(caller.key, caller.address, ring, answers.append)
            await asyncio.sleep(5)
            pings = [body for caller in callers for body, to in caller.port.sent if to == nowhere]
            assert all(decode_statement(body).type is MessageType.PING for body in pings)
            assert 0 < len(pings) <= len(callers) * DHT_CALLS_MAX
            assert sum(isinstance(one, Ack) for one in answers) == len(answers)
            assert sum(caller.dht.counters.calls_refused for caller in callers) > 0

        mesh.simulation.run(main())
