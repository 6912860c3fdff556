"""The routing table against a naive model, and its rules one by one."""

from __future__ import annotations

import hashlib
import itertools
import random
import tracemalloc
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pcompute.dht.contacts import PLACES, Contact, id_of, range_of
from p2pcompute.dht.routing_table import RoutingTable
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import dht_id
from p2pcompute.limits import (
    DHT_BUCKET_SIZES,
    DHT_FAILURES_MAX,
    DHT_K,
    DHT_LINK_DOWN_CONTACTS,
    DHT_LOST_S_MAX,
    DHT_PING_S,
    DHT_RANGE_PER_BUCKET_MAX,
    DHT_RANGE_PER_TABLE_MAX,
    DHT_REPLACEMENTS_MAX,
    DHT_REQUEST_S,
)

OWN = dht_id(b"own")
KEYS = [hashlib.sha256(b"%d" % number).digest() for number in range(400)]
RUN = b"run-0001"


def address(number: int, port: int = 4000) -> Address:
    return Address(f"10.0.{number // 256}.{number % 256}", port)


def enter(table: RoutingTable, number: int, now: float = 0.0, run: bytes = RUN) -> bool:
    return bool(table.on_reply(KEYS[number], address(number), run=run, now=now).added)


def fail(table: RoutingTable, number: int, sent: float) -> list[bytes]:
    change = table.on_failure(KEYS[number], address(number), sent=sent, now=sent + DHT_REQUEST_S)
    return [contact.key for contact in change.removed]


def shared_bits(key: bytes) -> int:
    return 160 - (int.from_bytes(OWN, "big") ^ int.from_bytes(dht_id(key), "big")).bit_length()


def by_distance(keys: list[bytes], target: bytes) -> list[bytes]:
    number = int.from_bytes(target, "big")
    return sorted(keys, key=lambda key: int.from_bytes(dht_id(key), "big") ^ number)


class TableMachine(RuleBasedStateMachine):
    """Buckets of 2 to 4 so that they fill; the model is one list per number of shared bits."""

    sizes = (4, 3)
    k = 2

    @initialize()
    def start(self) -> None:
        self.table = RoutingTable(OWN, k=self.k, bucket_sizes=self.sizes)
        self.held: dict[int, list[bytes]] = {}
        self.waiting: dict[int, list[bytes]] = {}
        self.failures: dict[bytes, int] = {}
        self.silent: list[bytes] = []
        self.now = 0.0

    def size(self, bits: int) -> int:
        return self.sizes[bits] if bits < len(self.sizes) else self.k

    def all_held(self) -> list[bytes]:
        return [key for keys in self.held.values() for key in keys]

    @rule(number=st.integers(0, 60))
    def reply(self, number: int) -> None:
        self.now += 5
        key = KEYS[number]
        bits = shared_bits(key)
        held, waiting = self.held.setdefault(bits, []), self.waiting.setdefault(bits, [])
        entered = enter(self.table, number, self.now)
        assert entered == (key not in held and len(held) < self.size(bits))
        self.silent.clear()
        self.failures.pop(key, None)
        if key in held:
            return
        if key in waiting:
            waiting.remove(key)
        (held if entered else waiting).append(key)
        del waiting[:-DHT_REPLACEMENTS_MAX]

    def remove(self, key: bytes) -> None:
        bits = shared_bits(key)
        self.held[bits].remove(key)
        self.failures.pop(key, None)
        if self.waiting[bits]:
            self.held[bits].append(self.waiting[bits].pop())

    @precondition(lambda self: self.all_held())
    @rule(data=st.data())
    def silence(self, data: st.DataObject) -> None:
        self.now += 5
        key = data.draw(st.sampled_from(sorted(self.all_held())))
        removed = fail(self.table, KEYS.index(key), self.now)
        self.now += DHT_REQUEST_S
        self.failures[key] = self.failures.get(key, 0) + 1
        if key not in self.silent:
            self.silent.append(key)
        is_down = len(self.silent) >= DHT_LINK_DOWN_CONTACTS
        assert removed == ([key] if self.failures[key] >= DHT_FAILURES_MAX and not is_down else [])
        if removed:
            self.remove(key)

    @precondition(lambda self: self.all_held())
    @rule(data=st.data())
    def goodbye(self, data: st.DataObject) -> None:
        """Uses up a key: the same run never comes back, so the model forgets it by renaming its run."""
        key = data.draw(st.sampled_from(sorted(self.all_held())))
        assert not self.table.on_goodbye(key, b"older-00").removed, "a goodbye of another run evicts nobody"
        change = self.table.on_goodbye(key, RUN)
        assert [contact.key for contact in change.removed] == [key]
        self.table._departed.clear()
        self.remove(key)

    @rule(wanted=st.binary(min_size=20, max_size=20), count=st.integers(1, 30))
    def nearest(self, wanted: bytes, count: int) -> None:
        got = [contact.key for contact in self.table.nearest(wanted, count)]
        assert got == by_distance(self.all_held(), wanted)[:count]

    @invariant()
    def same_as_model(self) -> None:
        if not hasattr(self, "table"):
            return
        self.table.check_invariants()
        assert sorted(contact.key for contact in self.table.contacts()) == sorted(self.all_held())


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


def test_everybody_of_a_group_of_100_is_in_it() -> None:
    """A group that people have is known completely; with buckets of k alone, 50 nodes would not be."""
    table = RoutingTable(OWN)
    assert all(enter(table, number) for number in range(100))
    table.check_invariants()


def test_nearest_is_exact_in_a_full_table_for_any_target() -> None:
    table = RoutingTable(OWN, k=8, bucket_sizes=())
    for number in range(400):
        enter(table, number)
    held = [contact.key for contact in table.contacts()]
    rng = random.Random(3)
    targets = [rng.randbytes(20) for _ in range(50)] + [OWN, bytes(20), b"\xff" * 20, dht_id(held[0])]
    for target in targets:
        assert [c.key for c in table.nearest(target, 8)] == by_distance(held, target)[:8]


def test_nearest_leaves_out_who_asks_and_who_is_silent() -> None:
    table = RoutingTable(OWN)
    for number in range(5):
        enter(table, number)
    fail(table, 1, 1.0)
    got = table.nearest(OWN, 20, exclude=dht_id(KEYS[0]), live_only=True)
    assert {contact.key for contact in got} == {KEYS[2], KEYS[3], KEYS[4]}


def test_own_node_never_enters() -> None:
    key = KEYS[0]
    table = RoutingTable(dht_id(key))
    assert not table.on_reply(key, address(0), run=RUN, now=0).added
    assert not table.wants(key, address(0)) and table.get(dht_id(key)) is None


def test_two_silences_evict_but_overlapping_requests_count_once() -> None:
    table = RoutingTable(OWN)
    enter(table, 1, now=10)
    assert fail(table, 1, sent=9) == [] == fail(table, 1, sent=10.5), "the first was sent before it last answered"
    assert fail(table, 1, sent=11) == [], "still the same silence"
    assert fail(table, 1, sent=13) == [KEYS[1]]


def test_a_reply_forgives() -> None:
    table = RoutingTable(OWN)
    enter(table, 1)
    assert fail(table, 1, 1.0) == []
    enter(table, 1, now=5.0)
    assert fail(table, 1, 6.0) == []


def test_when_ten_in_a_row_are_silent_nobody_more_is_evicted() -> None:
    """Our own link is down then; with the first reply, eviction works again."""
    table = RoutingTable(OWN)
    for number in range(15):
        enter(table, number)
    for number in range(15):
        assert fail(table, number, 10.0) == []
    assert table.is_link_down
    for number in range(15):
        assert fail(table, number, 20.0) == []
    assert len(table) == 15 and table.withheld_count == 15
    enter(table, 0, now=30.0)
    assert not table.is_link_down and fail(table, 1, 40.0) == [KEYS[1]]


def test_probes_of_a_small_group_come_every_ping_interval() -> None:
    table = RoutingTable(OWN)
    for number in range(5):
        enter(table, number, now=0.0)
    probes: dict[bytes, list[float]] = {}
    now = 0.0
    while now < 60:
        for contact in table.due(now):
            probes.setdefault(contact.key, []).append(now)
            enter(table, KEYS.index(contact.key), now=now)
        due = table.next_due()
        assert due is not None and due > now
        now = due
    for times in probes.values():
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert len(times) >= 4 and all(DHT_PING_S - 0.01 <= gap <= DHT_PING_S + 2.5 for gap in gaps)


def play_probes(table: RoutingTable, begin: float, end: float, dead: frozenset[int] = frozenset()) -> list[int]:
    """Play the probes of a table; dead contacts do not answer.  Returns who was probed."""
    probed: list[int] = []
    now = begin
    while now < end:
        for contact in table.due(now):
            number = KEYS.index(contact.key)
            probed.append(number)
            if number in dead:
                table.on_failure(contact.key, contact.address, sent=now, now=now + 2)
            else:
                enter(table, number, now=now)
        table.check_invariants()
        due = table.next_due()
        assert due is not None and due > now
        now = due
    return probed


def test_probes_of_a_large_group_reach_everybody_and_become_rare_when_all_answer() -> None:
    table = RoutingTable(OWN)
    for number in range(150):
        enter(table, number)
    count = len(table)
    probed = play_probes(table, DHT_PING_S, 4000.0)
    assert len(set(probed)) == count
    assert len(play_probes(table, 4000.0, 8000.0)) < 4000 / 4, "one in 10 s for 100 contacts, after a quick start"


def test_probes_of_a_large_group_come_quickly_while_contacts_are_found_dead() -> None:
    table = RoutingTable(OWN)
    for number in range(150):
        enter(table, number)
    count = len(table)
    play_probes(table, DHT_PING_S, 4000.0)
    for number in range(150):
        enter(table, number, now=4000.0)  # link-down does not count across this
    dead = frozenset(range(0, 150, 3))
    before = len(table)
    play_probes(table, 4000.0 + DHT_PING_S, 4000.0 + 1800.0, dead)
    left = [number for number in dead if table.get(id_of(KEYS[number]))]
    assert len(left) <= 2 and len(table) < before <= count


def test_failing_contacts_are_probed_before_stale_ones() -> None:
    table = RoutingTable(OWN)
    for number in range(60):
        enter(table, number, now=number * 0.001)
    fail(table, 59, 1.0)
    table.due(10.0)
    assert table.due(10.5 + 0.06)[0].key == KEYS[59] or table.due(11.1)[0].key == KEYS[59]


def test_a_replayed_goodbye_cannot_evict_a_node_that_is_back() -> None:
    table = RoutingTable(OWN)
    enter(table, 1)
    assert [c.key for c in table.on_goodbye(KEYS[1], RUN).removed] == [KEYS[1]]
    assert not enter(table, 1, now=1.0), "a late reply of the run that left must not bring it back"
    assert table.has_left(KEYS[1], RUN)
    assert enter(table, 1, now=2.0, run=b"run-0002")
    assert table.on_goodbye(KEYS[1], RUN).removed == ()
    assert table.get(dht_id(KEYS[1])) is not None


def test_goodbye_of_a_replacement_and_of_strangers() -> None:
    table = RoutingTable(OWN, k=1, bucket_sizes=(1,))
    far = [number for number in range(100) if shared_bits(KEYS[number]) == 0]
    assert enter(table, far[0]) and not enter(table, far[1])
    assert not table.wants(KEYS[far[1]], address(far[1])), "a known replacement needs no ping"
    table.on_goodbye(KEYS[far[1]], RUN)
    table.on_goodbye(KEYS[300], RUN)
    assert not table.on_goodbye(KEYS[far[0]], RUN).added, "the replacement has gone and must not come up"
    table.check_invariants()


def test_a_freed_place_goes_to_the_replacement_heard_of_last() -> None:
    table = RoutingTable(OWN, k=1, bucket_sizes=(1,))
    far = [number for number in range(100) if shared_bits(KEYS[number]) == 0]
    for number in far[:3]:
        enter(table, number)
    change = table.on_goodbye(KEYS[far[0]], RUN)
    assert [contact.key for contact in change.added] == [KEYS[far[2]]]


def test_another_address_is_taken_only_when_the_old_one_is_dead() -> None:
    """Somebody who relays a live node's datagrams must not be able to take its place."""
    table = RoutingTable(OWN)
    enter(table, 1)
    other = Address("10.9.9.9", 9)
    change = table.on_reply(KEYS[1], other, run=RUN, now=1.0)
    assert change.probe is not None and change.probe.address == address(1)
    assert not table.wants(KEYS[1], other), "it has been tried"
    assert table.get(dht_id(KEYS[1])).address == address(1)  # type: ignore[union-attr]
    table.on_failure(KEYS[1], address(1), sent=1.0, now=3.0)
    assert table.get(dht_id(KEYS[1])).address == other  # type: ignore[union-attr]


def test_a_restarted_node_is_known_at_its_new_address_at_once() -> None:
    table = RoutingTable(OWN)
    enter(table, 1)
    other = Address("10.9.9.9", 9)
    table.on_reply(KEYS[1], other, run=b"run-0002", now=1.0)
    assert table.get(dht_id(KEYS[1])).address == other  # type: ignore[union-attr]


def test_evicted_contacts_are_tried_again_ever_less_and_then_forgotten() -> None:
    table = RoutingTable(OWN)
    enter(table, 1)
    enter(table, 2)
    fail(table, 1, 1.0)
    fail(table, 1, 11.0)
    tries = []
    for second in range(13, 8000):
        lost: Contact | None = table.lost_due(float(second))
        if lost is not None:
            assert lost.key == KEYS[1]
            tries.append(second)
    assert 10 < len(tries) < 25 and tries[-1] <= DHT_LOST_S_MAX + 20
    gaps = [b - a for a, b in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)


def test_a_lost_contact_that_answers_is_lost_no_more() -> None:
    table = RoutingTable(OWN)
    enter(table, 1)
    fail(table, 1, 1.0)
    fail(table, 1, 11.0)
    assert enter(table, 1, now=20.0)
    assert table.lost_due(4000.0) is None
    table.check_invariants()


def test_far_buckets_that_are_full_need_no_refresh() -> None:
    table = RoutingTable(OWN)
    assert len(table.far_buckets(3)) == 3
    number = 0
    count = 0
    while count < DHT_BUCKET_SIZES[0]:
        key = hashlib.sha256(b"far %d" % number).digest()
        number += 1
        if shared_bits(key) == 0:
            table.on_reply(key, address(count), run=RUN, now=0.0)
            count += 1
    ranges = table.far_buckets(3)
    assert len(ranges) == 2
    assert all(160 - (int.from_bytes(OWN, "big") ^ low).bit_length() > 0 for low, _ in ranges)


def test_an_open_group_takes_few_contacts_of_one_address_range() -> None:
    """Or whoever has one machine fills the tables of all others with made-up identities."""
    table = RoutingTable(OWN, is_open=True)

    def come(number: int, host: str) -> bool:
        return bool(table.on_reply(KEYS[number], Address(host, 4000), run=RUN, now=0.0).added)

    for number in range(DHT_K):
        assert come(number, f"10.9.{number}.1"), "up to k contacts everybody is known"
    taken = [number for number in range(DHT_K, 400) if come(number, f"203.0.113.{number % 250}")]
    buckets = [shared_bits(KEYS[number]) for number in taken]
    assert len(taken) == DHT_RANGE_PER_TABLE_MAX
    assert max(buckets.count(bucket) for bucket in buckets) == DHT_RANGE_PER_BUCKET_MAX
    table.check_invariants()
    free = next(number for number in range(DHT_K, 400) if number not in taken and shared_bits(KEYS[number]) == 0)
    assert come(free, "198.51.100.1"), "the others still find room"


def test_who_filled_a_table_while_it_was_small_is_thinned_out_when_it_is_not() -> None:
    table = RoutingTable(OWN, is_open=True)
    removed: list[Contact] = []
    for number in range(DHT_K + 1):
        host = "203.0.113.1" if number < DHT_K - 2 else f"10.{number >> 8}.{number & 255}.1"
        removed += table.on_reply(KEYS[number], Address(host, 4000 + number), run=RUN, now=0.0).removed
        table.check_invariants()
    left = [contact for contact in table.contacts() if contact.address.host == "203.0.113.1"]
    buckets = [shared_bits(contact.key) for contact in left]
    assert len(left) + len(removed) == DHT_K - 2
    assert max(buckets.count(bucket) for bucket in buckets) <= DHT_RANGE_PER_BUCKET_MAX


def test_a_contact_that_moves_into_a_crowded_range_is_let_go() -> None:
    table = RoutingTable(OWN, is_open=True)
    for number in range(60):
        table.on_reply(KEYS[number], Address(f"10.9.{number}.1", 4000), run=RUN, now=0.0)
    for number in range(60, 400):
        table.on_reply(KEYS[number], Address(f"203.0.113.{number % 250}", 4000), run=RUN, now=0.0)
    mover = next(contact for contact in table.contacts() if contact.address.host.startswith("10.9."))
    table.on_failure(mover.key, mover.address, sent=1.0, now=2.0)
    change = table.on_reply(mover.key, Address("203.0.113.251", 4000), run=b"run-0002", now=3.0)
    assert [contact.key for contact in change.removed] == [mover.key]
    table.check_invariants()


def test_a_private_group_on_one_network_is_not_limited() -> None:
    table = RoutingTable(OWN)
    assert sum(enter(table, number) for number in range(60)) > DHT_RANGE_PER_TABLE_MAX


def test_ranges() -> None:
    assert range_of("192.0.2.7") == range_of("192.0.2.200") != range_of("192.0.3.7")
    assert range_of("2001:db8:1::1") == range_of("2001:db8:1:ffff::9") != range_of("2001:db8:2::1")


@pytest.mark.parametrize(("nodes", "limit_bytes"), [(20_000, 180_000), (1_000_000, 250_000)])
def test_the_table_of_a_large_group_takes_little_memory(nodes: int, limit_bytes: int) -> None:
    """With everything that is known of each contact, and of those that wait for a place."""
    held: Counter[int] = Counter()
    keys = []
    for number in range(nodes):
        key = number.to_bytes(32, "big")
        bits = shared_bits(key)
        if held[bits] < [*DHT_BUCKET_SIZES, DHT_K, DHT_K][min(bits, 2)] + DHT_REPLACEMENTS_MAX:
            held[bits] += 1
            keys.append(key)
    PLACES.clear()  # whatever knows a peer shares its place; here the table bears it alone
    tracemalloc.start()
    try:
        table = RoutingTable(OWN)
        for number, key in enumerate(keys):
            at, run, name = (
                Address(f"10.{number >> 8}.{number & 255}.1", 40_000 + number),
                b"%08d" % number,
                f"n-{number}",
            )
            table.on_reply(key + b"", at, run=run, now=float(number), name=name, rtt_s=0.1 * number)
            table.on_class(key, 1 << 62 | number)
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(table) > 200
    assert taken_bytes < limit_bytes
