"""Who is known, and in which role: nobody is both, and a peer that changes its role has neither come nor gone."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.contacts import id_of
from p2pcompute.dht.peers import Peers, PeersChange
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import DHT_CLIENTS_MAX, DHT_K


def key_of(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


OWN_ID = id_of(key_of(10_000))
RUN = b"r" * 8


def address_of(number: int) -> Address:
    return Address(f"10.0.{number // 250}.{1 + number % 250}", 7878)


def replies(
    peers: Peers, number: int, *, is_client: bool = False, is_self_client: bool = False
) -> tuple[PeersChange, PeersChange]:
    return peers.on_reply(
        key_of(number), address_of(number), is_client=is_client, is_self_client=is_self_client, run=RUN, now=1.0
    )


def told(changes: tuple[PeersChange, ...]) -> tuple[set[bytes], set[bytes]]:
    """Return the keys of those who have come and of those who have gone, for whoever is told."""
    come = {contact.key for one in changes for contact in one.change.added if contact.key != one.moved}
    return come, {contact.key for one in changes for contact in one.change.removed if contact.key != one.moved}


def test_who_changes_its_role_has_neither_come_nor_gone() -> None:
    """Jobs are taken from a node, and given back, because its NAT was reset."""
    peers = Peers(OWN_ID)
    assert told(replies(peers, 1)) == ({key_of(1)}, set())
    assert told(replies(peers, 1, is_client=True)) == (set(), set())
    assert (len(peers.servers), len(peers.clients), len(peers)) == (0, 1, 1) and key_of(1) in peers
    assert told(replies(peers, 1)) == (set(), set()) and len(peers.servers) == 1
    assert told(peers.on_goodbye(key_of(1), RUN)) == (set(), {key_of(1)}) and not len(peers)


def test_whose_clients_are_taken() -> None:
    """A small group is not everybody, or a large one is told of everybody behind a NAT."""
    peers = Peers(OWN_ID)
    assert not peers.wants(key_of(1), address_of(1), is_client=True, is_self_client=True)
    assert told(replies(peers, 1, is_client=True, is_self_client=True)) == (set(), set()), "of no use to each other"
    assert peers.wants(key_of(1), address_of(1), is_client=True, is_self_client=False)
    for number in range(1, DHT_CLIENTS_MAX + 10):
        replies(peers, number, is_client=True)
    assert len(peers.clients) <= DHT_CLIENTS_MAX
    replies(peers, 1, is_client=True)
    for number in range(1000, 1000 + 4 * DHT_K):
        replies(peers, number)
    assert len(peers.servers) > DHT_K
    assert not peers.wants(key_of(6000), address_of(600), is_client=True, is_self_client=False)
    before = len(peers.clients)
    assert told(replies(peers, 6000, is_client=True)) == (set(), set()) and len(peers.clients) == before
    assert told(replies(peers, 1000, is_client=True)) == (set(), {key_of(1000)}), "no server any more, and not taken"
    peers.check_invariants()


EVENTS = st.tuples(st.integers(0, 30), st.sampled_from(["server", "client", "silent", "goodbye"]), st.booleans())


@given(st.lists(EVENTS, max_size=200))
def test_those_who_are_told_of_come_and_gone_are_those_who_are_known(events: list[tuple[int, str, bool]]) -> None:
    peers, known = Peers(OWN_ID), set[bytes]()
    for at, (number, event, is_self_client) in enumerate(events, 10):
        key, address, run = key_of(number), address_of(number), at.to_bytes(8, "big")
        if event == "silent":
            changes: tuple[PeersChange, ...] = peers.on_failure(key, address, sent=float(at), now=at + 0.5)
        elif event == "goodbye":
            found = peers.servers._entry(int.from_bytes(id_of(key), "big"))
            changes = peers.on_goodbye(key, run if found is None else found.run)
        else:
            changes = peers.on_reply(
                key, address, is_client=event == "client", is_self_client=is_self_client, run=run, now=float(at)
            )
        come, gone = told(changes)
        assert not come & known and gone <= known
        known = (known | come) - gone
        assert known == set(peers.keys()) and len(peers) == len(known)
        peers.check_invariants()
