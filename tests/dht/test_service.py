"""Whole DHTs on the simulated host: joining, forgetting, finding, putting, getting, leaving, and bad datagrams."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from mesh import GROUP, Mesh, Peer

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.exchange import Exchange
from p2pcompute.dht.messages import (
    ANYONE,
    Ack,
    AckStatus,
    Bye,
    Find,
    Get,
    Message,
    Nodes,
    Ping,
    Pong,
    Put,
    decode_body,
    decode_statement,
    encode_statement,
    parts_of,
)
from p2pcompute.dht.records import Record, make_ad, make_record, record_key
from p2pcompute.host.interfaces import Address
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import dht_id
from p2pcompute.limits import (
    DHT_FAILURES_MAX,
    DHT_HAND_ON_S,
    DHT_K,
    DHT_PING_S,
    DHT_PUT_ENOUGH,
    DHT_PUT_K,
    DHT_REQUESTS_MAX,
    DHT_STRANGERS_BURST,
    DHT_STRANGERS_PER_S,
    DHT_TOKEN_ROTATE_S,
    RECORD_VALUE_BYTES_MAX,
)
from p2pcompute.wire import cbor


def simulate(main: Callable[[Mesh], Awaitable[None]], **kwargs: Any) -> None:
    with Mesh(**kwargs) as mesh:

        async def run() -> None:
            await main(mesh)

        mesh.simulation.run(run())


def a_record(peer: Peer, *, seq: int = 1, value: bytes = b"value", salt: bytes = b"job", ttl_s: float = 3600) -> Record:
    wall = peer.sim_host.clock.wall()
    return make_record(peer.identity.sign_envelope, peer.key, salt=salt, seq=seq, wall=wall, ttl_s=ttl_s, value=value)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_all_know_all_soon_and_a_newcomer_within_two_seconds(count: int) -> None:
    async def main(mesh: Mesh) -> None:
        await mesh.grow(count)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        newcomer = mesh.add()
        await mesh.on(newcomer, newcomer.start([mesh.peers[-2].address]))
        await mesh.wait(mesh.all_know_all, 2, "everybody knowing the newcomer")
        names = {peer.key: peer.name for peer in mesh.peers}
        for contact in newcomer.dht.contacts():
            assert contact.name == names[contact.key] and contact.seen > 0
        assert all(contact.rtt_s is None or 0 < contact.rtt_s < 2 for contact in newcomer.dht.contacts())
        assert newcomer.dht.observed_address() == newcomer.address
        assert sorted(newcomer.came) == sorted(names.keys() - {newcomer.key})

    simulate(main, seed=count)


def test_of_each_pair_one_is_pinged_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it broke: pings that overtake an answer are pinged back, half as many again for each who joins."""
    count, pinged = 10, 0
    ask = Exchange.ask

    def counted(self: Exchange, key: bytes | None, address: Address, messages: Any, done: Any, **how: Any) -> None:
        nonlocal pinged
        pinged += key is not None and isinstance(messages[0], Ping)
        ask(self, key, address, messages, done, **how)

    monkeypatch.setattr(Exchange, "ask", counted)
    with Mesh() as mesh:

        async def main() -> None:
            await mesh.grow(count, gap_s=0.1)
            await mesh.wait(mesh.all_know_all, 2, "everybody knowing everybody")

        mesh.simulation.run(main())
    assert pinged <= 1.1 * count * (count - 1) / 2


def test_fifty_know_one_another_too() -> None:
    async def main(mesh: Mesh) -> None:
        await mesh.grow(50)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")

    simulate(main)


def test_with_loss_all_know_all_and_nobody_is_given_up() -> None:
    """One datagram in ten is lost: a probe is sent again before it counts, or peers would flap."""

    async def main(mesh: Mesh) -> None:
        await mesh.grow(10)
        await mesh.wait(mesh.all_know_all, 10, "everybody knowing everybody")
        await asyncio.sleep(300)
        assert mesh.all_know_all()
        assert [peer.gone for peer in mesh.peers] == [[]] * 10
        assert sum(peer.dht.counters.requests_resent for peer in mesh.peers) > 50

    simulate(main, loss=0.1)


def test_nodes_that_share_a_busy_processor_come_to_rest() -> None:
    """A datagram takes a millisecond.  When every late answer made five more, nobody was ever answered in time."""

    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(30)
        await mesh.wait(mesh.all_know_all, 40, "everybody knowing everybody")
        counters = [peer.dht.counters for peer in peers]
        assert sum(one.requests_resent for one in counters) < 2 * sum(one.requests_sent for one in counters)

    simulate(main, median_s=0.0001, handling_s=0.001, cores=1)


@pytest.mark.parametrize(("count", "loss"), [(3, 0.0), (10, 0.1)])
def test_a_killed_node_is_forgotten_within_a_minute_and_known_again_when_it_is_back(count: int, loss: float) -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(count)
        await mesh.wait(mesh.all_know_all, 10, "everybody knowing everybody")
        await asyncio.sleep(30)
        victim, others = peers[0], peers[1:]
        mesh.simulation.crash(victim.sim_host, is_silent=True)
        took = await mesh.wait(lambda: mesh.all_know_all(others), 60, "forgetting the dead")
        assert took > DHT_FAILURES_MAX
        assert all(peer.gone == [victim.key] for peer in others)
        mesh.simulation.restart(victim.sim_host)
        await mesh.on(victim, victim.start([others[0].address]))
        await mesh.wait(mesh.all_know_all, 5, "knowing it again")

    simulate(main, loss=loss)


def test_two_nodes_find_each_other_after_an_outage_without_any_address() -> None:
    """With one peer each, both have forgotten the other when the link comes back."""

    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        mesh.simulation.network.cut(one.sim_host.machine, two.sim_host.machine)
        await mesh.wait(lambda: not one.knows() and not two.knows(), 60, "forgetting")
        await asyncio.sleep(600)
        mesh.simulation.network.heal()
        await mesh.wait(mesh.all_know_all, 310, "finding each other again")

    simulate(main)


def test_a_node_whose_own_link_is_down_keeps_its_table() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(14)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        cut_off = peers[3]
        for other in peers:
            if other is not cut_off:
                mesh.simulation.network.cut(cut_off.sim_host.machine, other.sim_host.machine)
        await mesh.wait(lambda: all(cut_off.key in p.gone for p in peers if p is not cut_off), 60, "forgetting")
        assert cut_off.dht.is_link_down and len(cut_off.knows()) == 13
        mesh.simulation.network.heal()
        await mesh.wait(mesh.all_know_all, 30, "recovering")

    simulate(main)


def test_a_dead_first_address_is_tried_until_somebody_is_there() -> None:
    async def main(mesh: Mesh) -> None:
        first, second = mesh.add(), mesh.add()
        await mesh.on(second, second.start([Address(first.sim_host.address, 4711)]))
        assert await mesh.on(second, second.dht.join([Address("10.9.9.9", 9)])) == 0
        await asyncio.sleep(100)
        await mesh.on(first, first.start(port=4711))
        await mesh.wait(mesh.all_know_all, 15, "joining late")

    simulate(main)


def test_saved_contacts_come_before_addresses() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(4)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        saved = peers[3].dht.contacts()
        await mesh.on(peers[3], peers[3].leave())
        await mesh.on(peers[3], peers[3].start(contacts=saved))
        await mesh.wait(mesh.all_know_all, 2, "coming back by saved contacts")

    simulate(main)


def test_join_counts_who_was_verified_and_ignores_its_own_address() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(5)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        alone = mesh.add()
        await mesh.on(alone, alone.start())
        assert await mesh.on(alone, alone.dht.join([alone.address])) == 0
        assert alone.dht.counters.dropped_own > 0
        assert await mesh.on(alone, alone.dht.join([alone.address, peers[2].address])) == 5

    simulate(main)


def test_a_goodbye_removes_at_once_and_a_replay_of_it_does_nothing() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(5)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        leaver, rest = peers[4], peers[:4]
        await asyncio.sleep(5)
        leaver.port.is_recording = True
        began = mesh.simulation.now
        address = leaver.address
        await mesh.on(leaver, leaver.leave())
        assert mesh.simulation.now - began < 0.6
        await mesh.wait(lambda: mesh.all_know_all(rest), 0.5, "removing the leaver")
        goodbyes = leaver.port.sent
        await mesh.on(leaver, leaver.start([rest[0].address]))
        await mesh.wait(mesh.all_know_all, 2, "knowing it again")
        for datagram, to in goodbyes:
            for peer in rest:
                if peer.address == to:
                    peer.dht.receive(datagram, address)
        await asyncio.sleep(1)
        assert mesh.all_know_all()

    simulate(main)


# --- find, put, get ---


def nearest_by_brute_force(peers: list[Peer], key: bytes) -> list[Peer]:
    return sorted(peers, key=lambda p: int.from_bytes(dht_id(p.key), "big") ^ int.from_bytes(key, "big"))[:DHT_K]


def test_thirty_nodes_from_joining_to_a_death() -> None:
    """Above k: lookups are exact, records live near their key only, and the dead are still soon forgotten."""

    async def main(mesh: Mesh) -> None:
        await mesh.grow(29)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        newcomer = mesh.add()
        await mesh.on(newcomer, newcomer.start([mesh.peers[-2].address]))
        await mesh.wait(mesh.all_know_all, 2, "everybody knowing the newcomer")
        peers = list(mesh.peers)

        rng = random.Random(1)
        for _ in range(5):
            key, asking = rng.randbytes(20), rng.choice(peers)
            found = await mesh.on(asking, asking.dht.find(key))
            expected = nearest_by_brute_force([peer for peer in peers if peer is not asking], key)
            assert [contact.name for contact in found] == [peer.name for peer in expected]

        record = a_record(peers[7])
        assert await mesh.on(peers[7], peers[7].dht.put(record)) >= DHT_PUT_ENOUGH * DHT_PUT_K
        await asyncio.sleep(1)
        now = mesh.simulation.now
        holding = {peer.name for peer in peers if peer.dht.records.get(record.key, now=now)}
        nearest = [peer.name for peer in nearest_by_brute_force(peers, record.key)]
        assert holding >= set(nearest[:DHT_PUT_K]) and len(holding) < len(peers)
        for peer in (peers[0], newcomer):
            assert await mesh.on(peer, peer.dht.get(record.key)) == [record]
        assert await mesh.on(peers[3], peers[3].dht.get(bytes(20))) == []

        mesh.simulation.crash(peers[0].sim_host, is_silent=True)
        await mesh.wait(lambda: mesh.all_know_all(peers[1:]), 60, "forgetting the dead")

    simulate(main)


@pytest.mark.parametrize("size", [0, 500, RECORD_VALUE_BYTES_MAX])
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_what_is_put_is_got_everywhere(size: int, loss: float) -> None:
    """The largest values need two datagrams each way."""

    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(8)
        await mesh.wait(mesh.all_know_all, 10, "everybody knowing everybody")
        record = a_record(peers[1], value=bytes(size))
        assert await mesh.on(peers[1], peers[1].dht.put(record)) >= (6 if loss else 8)
        newcomer = mesh.add()
        await mesh.on(newcomer, newcomer.start([peers[0].address]))
        await mesh.wait(lambda: len(newcomer.knows()) == 8, 5, "joining")
        for peer in (*peers[:3], newcomer):
            assert await mesh.on(peer, peer.dht.get(record.key)) == [record]

    simulate(main, loss=loss)


def test_the_newest_record_wins_over_old_copies() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(6)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        old, new = a_record(peers[1], seq=1, value=b"old"), a_record(peers[1], seq=2, value=b"new")
        await mesh.on(peers[1], peers[1].dht.put(new))
        assert await mesh.on(peers[1], peers[1].dht.put(old)) == 0
        assert await mesh.on(peers[5], peers[5].dht.get(new.key)) == [new]
        assert sum(peer.dht.counters.records_stale for peer in peers) == 6

    simulate(main)


def test_a_record_is_gone_after_its_life() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(3)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        record = a_record(peers[0], ttl_s=60)
        await mesh.on(peers[0], peers[0].dht.put(record))
        await asyncio.sleep(61)
        assert await mesh.on(peers[2], peers[2].dht.get(record.key)) == []
        await asyncio.sleep(60 + DHT_PING_S)
        assert all(not peer.dht.records.held_seq(record.key, record.publisher) for peer in peers)

    simulate(main)


def test_many_ads_under_one_key_are_read_page_by_page() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(6)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        key = record_key(bytes(32), b"an attribute")
        for peer in peers:
            ad = make_ad(
                peer.identity.sign_envelope, peer.key, key=key, seq=1, wall=peer.sim_host.clock.wall(), ttl_s=600,
                value=bytes(900),
            )  # fmt: skip
            assert await mesh.on(peer, peer.dht.put(ad)) == 6
        reader = mesh.add()
        await mesh.on(reader, reader.start([peers[0].address]))
        await mesh.wait(lambda: len(reader.knows()) == 6, 5, "joining")
        got = await mesh.on(reader, reader.dht.get(key))
        assert [ad.publisher for ad in got] == sorted(peer.key for peer in peers)

    simulate(main)


def test_a_record_outlives_all_who_took_it() -> None:
    """Two nodes hold it, a third joins, the two leave: it must have been handed on, unchanged."""

    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        record = a_record(one)
        await mesh.on(one, one.dht.put(record))
        three = mesh.add()
        await mesh.on(three, three.start([one.address]))
        await asyncio.sleep(2 * DHT_HAND_ON_S)
        assert three.dht.records.get(record.key, now=mesh.simulation.now) == [record]
        await mesh.on(one, one.leave())
        await mesh.on(two, two.leave())
        assert await mesh.on(three, three.dht.get(record.key)) == [record]

    simulate(main)


def test_a_newcomer_gets_what_belongs_to_it_from_few_of_the_holders() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(30)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        newcomer = mesh.add()
        record = make_ad(
            peers[0].identity.sign_envelope, peers[0].key, key=dht_id(hashlib.sha256(b"anything").digest()), seq=1,
            wall=peers[0].sim_host.clock.wall(), ttl_s=600, value=b"x",
        )  # fmt: skip
        near = make_ad(
            peers[0].identity.sign_envelope, peers[0].key, key=newcomer_id(newcomer), seq=1,
            wall=peers[0].sim_host.clock.wall(), ttl_s=600, value=b"near",
        )  # fmt: skip
        await mesh.on(peers[0], peers[0].dht.put(near))
        await mesh.on(peers[0], peers[0].dht.put(record))
        before = sum(peer.dht.counters.records_handed_on for peer in peers)
        await mesh.on(newcomer, newcomer.start([peers[1].address]))
        await asyncio.sleep(3 * DHT_HAND_ON_S)
        assert near in newcomer.dht.records.get(near.key, now=mesh.simulation.now)
        handed = sum(peer.dht.counters.records_handed_on for peer in peers) - before
        assert 1 <= handed <= 2 * len(newcomer.dht.records)

    simulate(main)


def newcomer_id(peer: Peer) -> bytes:
    return dht_id(Identity(peer.sim_host.host.crypto, peer.seed).public_key)


def test_peers_crafted_around_a_key_do_not_hide_all_others_in_an_answer() -> None:
    """What a node tells of the peers near a key is half of the story when there are more of them than chance allows."""

    async def main(mesh: Mesh) -> None:
        (one,) = await mesh.grow(1)
        rng = random.Random(4)
        key = rng.randbytes(20)
        keys = [rng.randbytes(32) for _ in range(6000)]
        crafted = sorted(keys, key=lambda one: int.from_bytes(dht_id(one), "big") ^ int.from_bytes(key, "big"))[:20]
        honest = keys[:100]
        for group in (honest, crafted):
            contacts = [
                (Contact(made, Address(f"10.3.{number}.1", 7)), b"run-1234") for number, made in enumerate(group)
            ]
            one.dht.adopt(contacts, uptime_s=0.0)
        radius = one.dht._queries.radius()
        told = [contact.key for contact in one.dht._queries.near(key, exclude=b"")]
        assert 0 < radius < 1 << 159
        assert len(set(told)) == len(told) == DHT_K
        assert 0 < sum(one in honest for one in told) <= DHT_K // 2
        elsewhere = bytes(byte ^ 0xFF for byte in key)
        near = [contact.id for contact in one.dht._queries.near(elsewhere, exclude=b"")]
        assert near == sorted(near, key=lambda one: int.from_bytes(one, "big") ^ int.from_bytes(elsewhere, "big"))

    simulate(main)


def test_alone_it_keeps_and_finds_its_own() -> None:
    async def main(mesh: Mesh) -> None:
        (alone,) = await mesh.grow(1)
        record = a_record(alone)
        assert await mesh.on(alone, alone.dht.put(record)) == 1
        assert await mesh.on(alone, alone.dht.get(record.key)) == [record]
        assert await mesh.on(alone, alone.dht.find(bytes(20))) == []

    simulate(main)


# --- what others may try ---


def statement(
    peer: Peer, message: Message, *, to: bytes, group_id: bytes = GROUP, transaction: bytes = b"12345678"
) -> bytes:
    """`to`: the recipient's key, or ANYONE."""
    prove = peer.identity.sign if to == ANYONE else partial(peer.identity.tag, to)
    recipient = ANYONE if to == ANYONE else dht_id(to)
    return encode_statement(
        message, transaction=transaction, sender=peer.key, recipient=recipient, run=b"any-run1", group_id=group_id,
        prove=prove,
    )  # fmt: skip


def test_statements_for_others_other_groups_or_unasked_are_dropped_and_counted() -> None:
    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        await asyncio.sleep(1)
        sender, source = two, Address("10.77.0.1", 7)
        one.port.is_recording = True
        counters = one.dht.counters

        def give(datagram: bytes) -> None:
            one.dht.receive(datagram, source)

        give(statement(sender, Find(bytes(20)), to=bytes(range(32))))
        give(statement(sender, Find(bytes(20)), to=ANYONE))
        assert counters.dropped_recipient == 2, "only a first ping may be to anyone"
        give(statement(sender, Ping(), to=one.key, group_id=bytes(32)))
        forged = bytearray(statement(sender, Ping(), to=one.key))
        forged[-1] ^= 1
        give(bytes(forged))
        assert counters.dropped_signature == 2
        give(statement(sender, Pong(source, "liar"), to=one.key))
        assert counters.dropped_unexpected == 1
        give(b"junk")
        give(statement(sender, Put(bytes(20), b"", 0, 1, b"no record"), to=one.key))
        assert counters.dropped_malformed == 1 and counters.puts_without_token == 1, "it is not at that address"
        one.dht.receive(statement(sender, Put(bytes(20), b"", 0, 1, b"no record"), to=one.key), two.address)
        assert counters.records_malformed == 1
        assert all(to != source or body for body, to in one.port.sent)
        assert {contact.address for contact in one.dht.contacts()} == {two.address}

    simulate(main)


def test_made_up_senders_do_not_enter_the_table() -> None:
    """A ping with a valid signature from an address where nobody answers makes no contact."""

    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        for number in range(300):
            stranger = Identity(two.sim_host.host.crypto, hashlib.sha256(b"made up %d" % number).digest())
            datagram = encode_statement(
                Ping(), transaction=bytes(8), sender=stranger.public_key, recipient=ANYONE, run=bytes(8),
                group_id=GROUP, prove=stranger.sign,
            )  # fmt: skip
            one.dht.receive(datagram, Address("10.200.0.1", 1 + number))
        assert one.dht.counters.verifications_skipped > 200, "pings back are bounded"
        await asyncio.sleep(30)
        assert mesh.all_know_all()

    simulate(main)


def test_strangers_without_number_are_dropped_unread_and_contacts_are_answered() -> None:
    """If it broke: whoever has the group's key keeps a node busy with checking signatures."""

    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        body = statement(two, Find(bytes(20)), to=one.key)
        counters, one.port.is_recording = one.dht.counters, True
        for number in range(2000):
            one.dht.receive(body, Address(f"10.200.{number // 250}.1", 1 + number))
        assert counters.dropped_strangers == 2000 - DHT_STRANGERS_BURST
        one.port.sent.clear()
        one.dht.receive(body, two.address)
        assert [to for _, to in one.port.sent] == [two.address]
        await asyncio.sleep(DHT_STRANGERS_BURST / DHT_STRANGERS_PER_S)
        one.dht.receive(body, Address("10.201.0.1", 1))
        assert counters.dropped_strangers == 2000 - DHT_STRANGERS_BURST

    simulate(main)


def test_a_reply_from_another_address_or_key_is_not_taken() -> None:
    async def main(mesh: Mesh) -> None:
        one, two, three = await mesh.grow(3)
        await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
        await asyncio.sleep(1)
        one.port.is_recording = True
        search = one.sim_host.spawn(one.dht.find(bytes(20)), "find")
        await asyncio.sleep(0)
        asked = [body for body, to in one.port.sent if to == two.address]
        assert asked
        transaction = cbor.decode(asked[0][:-64])[2]
        reply = statement(three, Pong(one.address, "three"), to=one.key, transaction=transaction)
        one.dht.receive(reply, two.address)
        one.dht.receive(reply, three.address)
        assert one.dht.counters.dropped_unexpected == 2
        assert len(await search) == 2

    simulate(main)


def test_records_are_refused_with_a_counted_reason() -> None:
    """Whoever runs a node must see what is wrong with what peers put."""

    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        wall = two.sim_host.clock.wall()
        sign, key = two.identity.sign_envelope, two.key

        def made(seq: int = 5, ahead_s: float = 0.0, ttl_s: float = 60.0) -> Record:
            return make_record(sign, key, salt=b"s", seq=seq, wall=wall + ahead_s, ttl_s=ttl_s, value=b"v")

        def put(raw: bytes, to: bytes) -> None:
            for part in parts_of(raw, to):
                one.dht.receive(statement(two, part, to=one.key), two.address)

        good = made()
        flipped = good.raw[:-1] + bytes((good.raw[-1] ^ 1,))
        put(good.raw, good.key)
        counters = one.dht.counters
        before = counters.records_stored
        for raw, to, name in (
            (good.raw, good.key, "records_repeated"),
            (made(seq=4).raw, good.key, "records_stale"),
            (made(ahead_s=3600.0).raw, good.key, "records_future"),
            (made(ahead_s=-3600.0).raw, good.key, "records_expired"),
            (flipped, good.key, "records_forged"),
            (made(seq=6).raw, bytes(20), "records_forged"),
            (b"x" * 1900, bytes(20), "records_oversize"),
            (b"junk", bytes(20), "records_malformed"),
        ):
            was = getattr(counters, name)
            put(raw, to)
            assert getattr(counters, name) == was + 1, name
        assert counters.records_stored == before
        assert one.dht.records.get(good.key, now=mesh.simulation.now) == [good]

    simulate(main)


def test_a_stranger_puts_only_with_a_token_for_that_key_from_that_address() -> None:
    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        stranger = Identity(two.sim_host.host.crypto, hashlib.sha256(b"a stranger").digest())
        wall = two.sim_host.clock.wall()
        record = make_record(
            stranger.sign_envelope, stranger.public_key, salt=b"s", seq=1, wall=wall, ttl_s=600, value=b"v"
        )
        here, elsewhere = Address("10.66.0.1", 7), Address("10.66.0.2", 7)
        one.port.is_recording = True

        def ask(message: Message, source: Address) -> Message:
            one.port.sent.clear()
            datagram = encode_statement(
                message, transaction=bytes(8), sender=stranger.public_key, recipient=dht_id(one.key), run=bytes(8),
                group_id=GROUP, prove=partial(stranger.tag, one.key),
            )  # fmt: skip
            one.dht.receive(datagram, source)
            body = next(body for body, to in one.port.sent if to == source)
            reply = decode_statement(body)
            return decode_body(reply.type, reply.body)

        def put(token: bytes, source: Address) -> Message:
            return ask(parts_of(record.raw, record.key, token)[0], source)

        nodes = ask(Find(record.key), here)
        refused = put(b"", here)
        assert isinstance(nodes, Nodes) and isinstance(refused, Ack)
        assert refused.status is AckStatus.TOKEN and refused.token == nodes.token
        assert put(nodes.token, elsewhere) != put(nodes.token, here) == Ack(AckStatus.OK, 1)
        other = ask(Find(bytes(20)), here)
        assert isinstance(other, Nodes) and put(other.token, here) != Ack(AckStatus.OK, 1)
        await asyncio.sleep(2 * DHT_TOKEN_ROTATE_S + 1)
        assert put(nodes.token, here) != Ack(AckStatus.OK, 1), "it is too old"

    simulate(main)


def test_half_puts_are_bounded() -> None:
    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        for number in range(200):
            part = statement(two, Put(bytes(20), b"", 0, 2, b"x" * 1000), to=one.key, transaction=b"%08d" % number)
            one.dht.receive(part, two.address)
        assert one.dht.counters.dropped_parts == 200 - 64

    simulate(main)


def test_truncated_and_mutated_datagrams_never_raise() -> None:
    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        rng = random.Random(9)
        record = a_record(two)
        originals = [
            statement(two, message, to=one.key)
            for message in (Ping(), Find(bytes(20)), Get(bytes(20), 0), Put(record.key, b"", 0, 1, record.raw), Bye())
        ]
        for _ in range(3000):
            datagram = bytearray(rng.choice(originals))
            for _ in range(rng.randrange(1, 4)):
                datagram[rng.randrange(len(datagram))] = rng.randrange(256)
            one.dht.receive(bytes(datagram[: rng.randrange(len(datagram) + 1)]), two.address)
        one.dht.check_invariants()
        await asyncio.sleep(30)
        assert mesh.all_know_all()

    simulate(main)


def test_other_groups_on_the_same_addresses_stay_apart() -> None:
    async def main(mesh: Mesh) -> None:
        one = mesh.add()
        other = mesh.add(group_id=hashlib.sha256(b"another group").digest())
        await mesh.on(one, one.start())
        await mesh.on(other, other.start([one.address]))
        await asyncio.sleep(20)
        assert not one.knows() and not other.knows()
        assert one.dht.counters.dropped_signature > 0

    simulate(main)


def test_more_requests_than_may_wait_fail_at_once() -> None:
    async def main(mesh: Mesh) -> None:
        one, _ = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        places = [Address("10.99.0.1", 1 + number) for number in range(250)]
        joins = [one.sim_host.spawn(one.dht.join(places), "join") for _ in range(6)]
        await asyncio.sleep(0.1)
        assert one.dht.counters.requests_refused_full >= 6 * 250 - DHT_REQUESTS_MAX
        for join in joins:
            assert await join == 0
        await asyncio.sleep(30)
        assert mesh.all_know_all()

    simulate(main)


# --- life ---


def test_an_idle_small_group_costs_one_ping_per_contact_and_ten_seconds() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(6)
        await asyncio.sleep(120)
        before = [peer.dht.counters.requests_sent for peer in peers]
        await asyncio.sleep(300)
        for peer, count in zip(peers, before, strict=True):
            pings = 5 * 300 / DHT_PING_S
            refreshes = 5 * 300 / 54
            assert peer.dht.counters.requests_sent - count <= pings + refreshes + 2 * 5 + 5

    simulate(main)


def test_a_lookup_in_a_small_group_at_rest_asks_two_and_names_everybody() -> None:
    async def main(mesh: Mesh) -> None:
        peers = await mesh.grow(8)
        await asyncio.sleep(60)
        for peer in peers:
            before = peer.dht.counters.lookup_requests
            found = await mesh.on(peer, peer.dht.find(peers[0].key[:20]))
            assert {contact.key for contact in found} == {other.key for other in peers if other is not peer}
            assert peer.dht.counters.lookup_requests - before < 4, "everybody was asked"

    simulate(main)


def test_closing_the_scope_ends_everything_and_fails_what_waits() -> None:
    async def main(mesh: Mesh) -> None:
        one, two = await mesh.grow(2)
        await mesh.wait(mesh.all_know_all, 5, "knowing each other")
        mesh.simulation.crash(two.sim_host, is_silent=True)
        search = one.sim_host.spawn(one.dht.find(bytes(20)), "find")
        await asyncio.sleep(0.01)
        await mesh.on(one, one.scope.close())
        async with asyncio.timeout(0.1):
            assert await search == []
        one.port.is_recording = True
        await asyncio.sleep(100)
        assert one.port.sent == []
        assert await mesh.on(one, one.dht.get(bytes(20))) == []
        await mesh.on(one, one.dht.leave())

    simulate(main)


def test_the_same_seed_gives_the_same_trace() -> None:
    def trace() -> str:
        with Mesh(seed=4, loss=0.05) as mesh:

            async def run() -> None:
                await mesh.grow(8)
                await asyncio.sleep(60)

            mesh.simulation.run(run())
            return mesh.simulation.trace_hash()

    assert trace() == trace()
