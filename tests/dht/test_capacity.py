"""The capacity index over simulated datagrams: who has something is found in a group larger than one table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from p2pcompute.dht import service
from p2pcompute.dht.capacity import Feature
from p2pcompute.dht.contacts import number_of
from p2pcompute.dht.index import Outcome
from p2pcompute.dht.messages import Query, Register, Registered
from p2pcompute.limits import DHT_K, INDEX_ADS_PER_SOURCE_MAX
from tests.dht.mesh import Mesh, Peer

COMMON = Feature("os=linux", 1)
RARE = Feature("cpus>=256", 2)
LABEL = Feature("label.room=b12", 0b111 << 64)


def describe(peer: Peer, *features: Feature) -> None:
    bits = 0
    for feature in features:
        bits |= feature.bits
    peer.sim_host.enter(lambda: peer.dht.describe_capacity(bits, features))


async def grown(mesh: Mesh, count: int, holders: Sequence[int]) -> list[Peer]:
    """Peers of which all have COMMON, and the holders RARE and LABEL as well; after they have advertised."""
    peers = await mesh.grow(count, gap_s=0.02)
    for number, peer in enumerate(peers):
        describe(peer, COMMON, *((RARE, LABEL) if number in holders else ()))
    await asyncio.sleep(75)
    return peers


@pytest.mark.parametrize("feature", [RARE, LABEL])
def test_what_few_have_is_found_by_all(feature: Feature) -> None:
    with Mesh() as mesh:

        async def main() -> None:
            peers = await grown(mesh, 45, [5, 33])
            holders = {peers[5].key, peers[33].key}
            for asker in (peers[0], peers[20], peers[44]):
                found = await mesh.on(asker, asker.dht.index.search([COMMON, feature], 30))
                assert {contact.key for contact in found} == holders
                assert not asker.dht.index.is_degraded

        mesh.simulation.run(main())


def test_what_most_have_is_found_without_ads() -> None:
    with Mesh() as mesh:

        async def main() -> None:
            peers = await grown(mesh, 26, [])
            before = peers[0].dht.counters.search_requests
            found = await mesh.on(peers[0], peers[0].dht.index.search([COMMON], 15))
            assert len(found) == 15 and peers[0].dht.counters.search_requests == before
            assert all(not len(peer.dht.index.registrar) for peer in peers)

        mesh.simulation.run(main())


def test_in_a_small_group_nothing_is_said_or_sent() -> None:
    with Mesh() as mesh:

        async def main() -> None:
            peers = await grown(mesh, DHT_K, [3])
            assert all(peer.dht.index.class_bits is None and not len(peer.dht.index.registrar) for peer in peers)
            assert all(contact.class_bits is None for contact in peers[0].dht.contacts())
            assert await mesh.on(peers[0], peers[0].dht.index.search([RARE], 30)) == []
            assert not peers[0].dht.index.is_degraded

        mesh.simulation.run(main())


def test_ads_are_renewed_and_those_of_the_dead_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "AD_TTL_S", 100.0)
    with Mesh() as mesh:

        async def main() -> None:
            peers = await grown(mesh, 24, [5, 13])
            await mesh.on(peers[13], peers[13].leave())
            mesh.peers.remove(peers[13])
            await asyncio.sleep(150)
            found = await mesh.on(peers[0], peers[0].dht.index.search([LABEL], 30))
            assert [contact.key for contact in found] == [peers[5].key]

        mesh.simulation.run(main())


def test_a_search_that_nobody_answers_says_that_the_index_is_out_of_reach() -> None:
    with Mesh() as mesh:

        async def main() -> None:
            peers = await grown(mesh, 24, [5])
            mesh.simulation.crash(*(peer.sim_host for peer in peers[1:]), is_silent=True)
            for peer in peers[1:]:
                mesh.peers.remove(peer)
            found = await mesh.on(peers[0], peers[0].dht.index.search([LABEL], 30))
            assert not found and peers[0].dht.index.is_degraded

        mesh.simulation.run(main())


def test_a_registration_needs_a_token_and_one_source_has_a_bound() -> None:
    with Mesh() as mesh:

        async def main() -> None:
            one, two = await mesh.grow(2)
            await asyncio.sleep(2)
            answers: list[object] = []

            def register(number: int) -> None:
                question = Register(number.to_bytes(20, "big"), b"", 900, 1)
                two.dht._ask(one.key, one.address, [question], answers.append)

            for number in range(INDEX_ADS_PER_SOURCE_MAX + 4):
                two.sim_host.enter(partial(register, number))
            await asyncio.sleep(1)
            outcomes = [answer.outcome for answer in answers if isinstance(answer, Registered)]
            assert outcomes.count(Outcome.OK) == INDEX_ADS_PER_SOURCE_MAX == len(one.dht.index.registrar)
            assert outcomes.count(Outcome.WAIT) == 4 == one.dht.counters.ads_refused
            entry = one.dht._table._entry(number_of(two.key))
            assert entry is not None
            one.dht._table._remove(entry)
            two.sim_host.enter(lambda: register(99))
            await asyncio.sleep(1)
            last = answers[-1]
            assert isinstance(last, Registered) and last.outcome is Outcome.TOKEN and len(last.token) == 8

        mesh.simulation.run(main())


def test_answers_are_no_longer_than_three_times_the_question() -> None:
    """Else a forged address could be flooded through the index."""
    with Mesh() as mesh:

        async def main() -> None:
            asked, asker = (await grown(mesh, 30, []))[:2]
            asked.port.is_recording = asker.port.is_recording = True
            for message in (Query(bytes(20), 1), Register(bytes(20), b"", 1, 1)):
                asked.port.sent.clear()
                asker.port.sent.clear()
                ask = partial(asker.dht._ask, asked.key, asked.address, [message], lambda _: None)
                asker.sim_host.enter(ask)
                await asyncio.sleep(0.1)
                question = next(len(body) for body, to in asker.port.sent if to == asked.address)
                answer = next(len(body) for body, to in asked.port.sent if to == asker.address)
                assert answer + 12 <= 3 * (question + 12)

        mesh.simulation.run(main())
