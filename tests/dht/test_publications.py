"""What a node publishes is kept alive: if it broke, records would end while their publishers live."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh import Mesh

from p2pcompute.dht.publications import Publications
from p2pcompute.dht.records import record_key
from p2pcompute.errors import LocalProtocolError
from p2pcompute.limits import DHT_PUBLICATIONS_MAX, DHT_REPUBLISH_S_MIN


@given(
    ttls=st.lists(st.floats(60, 7200), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
    failing=st.sets(st.integers(0, 200)),
)
def test_none_is_ever_without_a_live_record_when_puts_succeed(ttls: list[float], seed: int, failing: set[int]) -> None:
    """Against the clock alone: between two puts of one record less than its life passes, or a put had failed."""
    book, rng = Publications(), random.Random(seed)
    for number, ttl_s in enumerate(ttls):
        book.publish(b"%d" % number, b"x", ttl_s=ttl_s, now=0.0)
    last: dict[bytes, float] = {}
    seqs: dict[bytes, int] = {}
    now = 0.0
    for step in range(200):
        due = book.next_due()
        assert due is not None
        now = max(now, due)
        one = book.take_due(now)
        assert one is not None
        seq = book.next_seq(one, 1000.0 + now)
        assert seq > seqs.get(one.salt, 0), "a put that is no newer changes nothing"
        seqs[one.salt] = seq
        is_taken = step not in failing
        if is_taken and not failing:
            assert now - last.get(one.salt, now) <= 0.6 * one.ttl_s
        if is_taken:
            last[one.salt] = now
        book.on_put(one, is_taken=is_taken, now=now, rng=rng)
        assert one.due - now <= (0.56 * one.ttl_s if is_taken else 1.1 * DHT_REPUBLISH_S_MIN)


def test_there_is_a_bound_and_what_is_replaced_or_withdrawn_does_not_count() -> None:
    book = Publications()
    for number in range(DHT_PUBLICATIONS_MAX):
        book.publish(b"%d" % number, b"x", ttl_s=60, now=0.0)
    book.publish(b"0", b"y", ttl_s=60, now=0.0)
    with pytest.raises(LocalProtocolError):
        book.publish(b"more", b"x", ttl_s=60, now=0.0)
    book.withdraw(b"1")
    book.publish(b"more", b"x", ttl_s=60, now=0.0)
    assert len(book) == DHT_PUBLICATIONS_MAX


def test_a_record_lives_as_long_as_its_publisher_and_ends_after_it() -> None:
    with Mesh(3) as mesh:

        async def main() -> None:
            peers = await mesh.grow(5)
            await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
            key = record_key(peers[1].key, b"job")
            peers[1].dht.publish(b"job", b"one", ttl_s=100)
            for _ in range(20):
                await asyncio.sleep(30)
                (held,) = await mesh.on(peers[4], peers[4].dht.get(key))
                assert held.value == b"one"
            peers[1].dht.publish(b"job", b"two", ttl_s=100)
            await asyncio.sleep(1)
            (held,) = await mesh.on(peers[4], peers[4].dht.get(key))
            assert held.value == b"two"
            assert 10 < peers[1].dht.counters.records_published < 18
            await mesh.on(peers[1], peers[1].leave())
            await asyncio.sleep(101)
            assert await mesh.on(peers[4], peers[4].dht.get(key)) == []

        mesh.simulation.run(main())


def test_a_withdrawn_record_is_put_no_more() -> None:
    with Mesh(4) as mesh:

        async def main() -> None:
            peers = await mesh.grow(3)
            await mesh.wait(mesh.all_know_all, 5, "everybody knowing everybody")
            peers[0].dht.publish(b"job", b"one", ttl_s=60)
            await asyncio.sleep(10)
            peers[0].dht.withdraw(b"job")
            await asyncio.sleep(61)
            assert await mesh.on(peers[1], peers[1].dht.get(record_key(peers[0].key, b"job"))) == []

        mesh.simulation.run(main())


def test_what_is_published_alone_is_there_for_those_who_come() -> None:
    with Mesh(5) as mesh:

        async def main() -> None:
            first = mesh.add()
            await mesh.on(first, first.start())
            first.dht.publish(b"job", b"one", ttl_s=3600)
            await asyncio.sleep(5)
            second = mesh.add()
            await mesh.on(second, second.start([first.address]))
            await asyncio.sleep(2)
            (held,) = await mesh.on(second, second.dht.get(record_key(first.key, b"job")))
            assert held.value == b"one"

        mesh.simulation.run(main())
