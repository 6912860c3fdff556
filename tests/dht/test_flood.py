"""A flood against one real node: junk, wrong signatures, and right ones from addresses where nobody is.

The flood is paced by what the node has handled, not by time, so that it means the same on a slow machine.
`benchmarks/flood.py` does the same for minutes, at a rate.
"""

from __future__ import annotations

import random
import socket
import time
import tracemalloc
from dataclasses import asdict
from functools import partial

from p2pcompute.dht.contacts import id_of
from p2pcompute.dht.messages import RUN_BYTES, TRANSACTION_BYTES, Find, encode_statement
from p2pcompute.dht.records import Record, make_record
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import DATAGRAM_BYTES_MAX
from p2pcompute.transport.datagrams import seal_datagram
from tests.dht.test_real import NETWORK_KEY, RealPeer, until

AT_ONCE = 60
"""Datagrams that the kernel surely holds for a node that is busy."""
ROUNDS = 45
SETTLED = ROUNDS * 2 // 3
"""By then what is kept of senders and sources for a while is as much as it will be."""
GROWTH_BYTES_MAX = 200_000
VALUES = 6


class Flood:
    """Datagrams of three kinds by turns, each from another port."""

    def __init__(self, victim: RealPeer, rng: random.Random) -> None:
        self._victim = victim
        self._rng = rng
        self._recipient = id_of(victim.identity.public_key)
        self._liars = [Identity(RealCrypto(), rng.randbytes(32)) for _ in range(40)]

    def _made(self, number: int) -> bytes:
        if number % 3 == 0:
            return self._rng.randbytes(self._rng.randrange(1, DATAGRAM_BYTES_MAX + 100))
        sender, other = self._rng.sample(self._liars, 2)
        body = encode_statement(
            Find(self._rng.randbytes(DHT_ID_BYTES)),
            transaction=self._rng.randbytes(TRANSACTION_BYTES),
            sender=sender.public_key,
            recipient=self._recipient,
            run=self._rng.randbytes(RUN_BYTES),
            group_id=bytes(32),
            prove=partial((sender if number % 3 == 1 else other).tag, self._victim.identity.public_key),
        )
        return seal_datagram(NETWORK_KEY, body)

    async def pour(self, count: int) -> None:
        """Send so many, and wait until the node has taken them in."""
        before = self._taken()
        for number in range(count):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(self._made(number), self._victim.address)
        await until(lambda: self._taken() >= before + count)

    def _taken(self) -> int:
        counts: dict[str, int] = asdict(self._victim.datagrams.counters)
        return sum(counts.values()) - counts["sent"]


def record_of(peer: RealPeer, number: int) -> Record:
    sign, key, salt = peer.identity.sign_envelope, peer.identity.public_key, bytes([number])
    return make_record(sign, key, salt=salt, seq=1, wall=time.time(), ttl_s=3600, value=b"value")


async def test_a_flooded_node_answers_and_finds_and_does_not_grow() -> None:
    peers = [RealPeer() for _ in range(8)]
    victim, others = peers[0], peers[1:]
    rng = random.Random(1)
    try:
        for number, peer in enumerate(peers):
            await peer.start(number, [victim.address] if number else [])
        await until(lambda: all(len(peer.dht.contacts()) == len(peers) - 1 for peer in peers))
        records = [record_of(rng.choice(others), number) for number in range(VALUES)]
        for record in records:
            await others[0].dht.put(record)
        flood = Flood(victim, rng)
        tracemalloc.start()
        settled_bytes = found = 0
        for number in range(ROUNDS):
            if number == SETTLED:
                settled_bytes = tracemalloc.get_traced_memory()[0]
            await flood.pour(AT_ONCE)
            near = await victim.dht.find(rng.randbytes(DHT_ID_BYTES))
            record = rng.choice(records)
            found += len(near) == len(others) and await rng.choice(others).dht.get(record.key) == [record]
        grown_bytes = tracemalloc.get_traced_memory()[0] - settled_bytes
        assert found == ROUNDS
        assert grown_bytes < GROWTH_BYTES_MAX, f"{grown_bytes} bytes in {ROUNDS - SETTLED} rounds"
        counters = victim.dht.counters
        assert 0 <= ROUNDS * AT_ONCE // 3 - counters.dropped_signature <= counters.dropped_strangers
        assert counters.contacts_removed == 0
        assert len(victim.dht.contacts()) == len(others), "whoever is not at his address is no contact"
    finally:
        tracemalloc.stop()
        for peer in peers:
            if hasattr(peer, "dht"):
                await peer.stop()
