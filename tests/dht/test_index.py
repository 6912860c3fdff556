"""The cores of the capacity index: bounds of registrars, and the properties of walks that searches rely on."""

from __future__ import annotations

import hashlib
import heapq
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.index import (
    LevelWalk,
    Outcome,
    Registrar,
    first_level,
    index_key,
    is_rare,
    level_of,
    stepping_stones,
)
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import (
    DHT_REQUEST_S,
    INDEX_ALPHA,
    INDEX_LEVELS_MAX,
    INDEX_QUERY_PER_LEVEL,
    INDEX_REGISTER_PER_LEVEL,
    INDEX_REQUESTS_MAX,
    INDEX_TAKEN_MAX,
    INDEX_WANT_MAX,
)

SOFT_S = 0.25
KEY = index_key("gpu.model=A100")


def contact(number: int, host: str = "10.0.0.1") -> Contact:
    return Contact(hashlib.sha256(b"node %d" % number).digest(), Address(host, 1 + number % 60000))


CONTACTS = [contact(number) for number in range(300)]
RNG = random.Random(0)


# --- registrars -----------------------------------------------------------------------------------


class Registrars(RuleBasedStateMachine):
    """A registrar against a model that keeps a plain list."""

    keys = (b"a" * 20, b"b" * 20, b"c" * 20)

    def __init__(self) -> None:
        super().__init__()
        self.registrar = Registrar(is_open=True, ads_max=8, per_key_max=4, per_source_max=3)
        self.model: dict[tuple[bytes, bytes], tuple[Contact, int, float]] = {}
        self.now = 0.0

    def of(self, publisher: bytes, ads: dict[tuple[bytes, bytes], tuple[Contact, int, float]]) -> tuple[int, int]:
        """How many ads there are of a node, and of its address range."""
        ranges = [ad[0].address.host.rpartition(".")[0] for ad in ads.values()]
        own = next(ad[0].address.host.rpartition(".")[0] for place, ad in ads.items() if place[1] == publisher)
        return sum(place[1] == publisher for place in ads), ranges.count(own)

    @rule(
        key=st.sampled_from(keys),
        number=st.integers(0, 9),
        bits=st.integers(0, 7),
        life_s=st.sampled_from([1.0, 5.0]),
    )
    def register(self, key: bytes, number: int, bits: int, life_s: float) -> None:
        source = contact(number, f"10.0.{number % 4}.{number}")
        model = {place: ad for place, ad in self.model.items() if ad[2] > self.now}
        outcome = self.registrar.register(key, source, bits, until=self.now + life_s, now=self.now)
        others = {place: ad for place, ad in model.items() if place != (key, source.key)}
        here = sum(place[0] == key for place in others)
        of_key = sum(place[1] == source.key for place in others)
        of_range = sum(ad[0].address.host.rpartition(".")[0] == f"10.0.{number % 4}" for ad in others.values())
        is_new = len(others) == len(model)
        if of_key >= 3 or of_range >= 3:
            assert outcome is Outcome.WAIT
        elif is_new and (here >= 4 or len(others) >= 8):
            assert outcome in (Outcome.OK, Outcome.FULL)
        else:
            assert outcome is Outcome.OK
        if outcome is Outcome.OK:
            kept = {
                (one, found.key)
                for one in self.keys
                for found in self.registrar.find(one, 0, 99, now=self.now, rng=RNG)
            }
            gone = others.keys() - kept
            assert len(gone) == (is_new and (here >= 4 or len(others) >= 8))
            for place in gone:
                assert here < 4 or place[0] == key
                assert max(self.of(place[1], others)) >= 1 + max(of_key, of_range), "nobody yields to who has more"
                del others[place]
            others[key, source.key] = (source, bits, self.now + life_s)
        self.model = others

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from([b"a" * 20, b"b" * 20]), mask=st.integers(0, 7), count=st.integers(0, 5))
    def find(self, key: bytes, mask: int, count: int) -> None:
        found = self.registrar.find(key, mask, count, now=self.now, rng=random.Random(0))
        fit = [
            ad[0] for place, ad in self.model.items() if place[0] == key and ad[1] & mask == mask and ad[2] > self.now
        ]
        assert len(found) == min(count, len(fit)) == len(set(found)) and set(found) <= set(fit)

    @rule()
    def expire(self) -> None:
        self.registrar.expire(self.now)
        assert len(self.registrar) == sum(ad[2] > self.now for ad in self.model.values())

    @invariant()
    def holds(self) -> None:
        self.registrar.check_invariants()


TestRegistrars = Registrars.TestCase


def test_one_range_of_an_open_group_does_not_fill_a_key_and_of_a_closed_one_may() -> None:
    for is_open, kept in ((True, 16), (False, 60)):
        registrar = Registrar(is_open=is_open)
        outcomes = [registrar.register(KEY, contact(n), 1, until=9.0, now=0.0) for n in range(60)]
        assert outcomes.count(Outcome.OK) == kept == registrar.count(KEY)


def test_who_advertises_everything_yields_to_who_advertises_less() -> None:
    """Else eight identities that come first keep all others from this registrar."""
    registrar = Registrar(ads_max=128)
    keys = [b"%020d" % number for number in range(16)]
    for boaster in CONTACTS[:8]:
        assert {registrar.register(key, boaster, 1, until=9.0, now=0.0) for key in keys} == {Outcome.OK}
    for honest in CONTACTS[100:140]:
        assert registrar.register(KEY, honest, 1, until=9.0, now=0.0) is Outcome.OK
    assert registrar.count(KEY) == 40 and len(registrar) == 128 and registrar.displaced_count == 40
    registrar.check_invariants()


def test_of_many_ads_under_one_key_a_sample_stays_whoever_comes_first_or_most_often() -> None:
    registrar = Registrar(secret=b"of this node", per_key_max=20)
    boasters, honest = CONTACTS[:200], CONTACTS[200:300]
    for _ in range(3):
        for boaster in boasters:
            registrar.register(KEY, boaster, 1, until=9.0, now=0.0)
    for one in honest:
        registrar.register(KEY, one, 1, until=9.0, now=0.0)
    kept = registrar.find(KEY, 1, 99, now=0.0, rng=RNG)
    assert len(kept) == 20 and 3 <= sum(one in honest for one in kept) <= 11
    other = Registrar(secret=b"of another", per_key_max=20)
    for one in CONTACTS:
        other.register(KEY, one, 1, until=9.0, now=0.0)
    assert set(other.find(KEY, 1, 99, now=0.0, rng=RNG)) != set(kept), "nobody can craft a key that stays everywhere"


# --- walks ----------------------------------------------------------------------------------------


def walk_of(seeds: list[Contact], *, per_level: int = 5, first: int = 0, want: int | None = None) -> LevelWalk:
    own_id = hashlib.sha256(b"own").digest()[:DHT_ID_BYTES]
    return LevelWalk(
        KEY, seeds, own_id=own_id, per_level=per_level, first=first, soft_s=SOFT_S, rng=random.Random(1), want=want
    )


@settings(max_examples=60)
@given(data=st.data())
def test_a_walk_ends_and_goes_from_far_to_near_whatever_peers_answer(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    first, per_level = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 6))
    want = data.draw(st.none() | st.integers(1, 40))
    silent = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    shown = data.draw(st.sampled_from([(None,), (None, True), (None, None, False, True)]))
    walk = walk_of(rng.sample(CONTACTS, 30), per_level=per_level, first=first, want=want)
    asked: list[bytes] = []
    events: list[tuple[float, int, Contact, bool]] = []
    now = 0.0
    while not walk.is_done:
        for peer in walk.poll(now):
            asked.append(peer.key)
            is_silent = rng.random() < silent
            after_s = DHT_REQUEST_S if is_silent else rng.choice([0.01, 0.2, 0.4, 1.5])
            heapq.heappush(events, (now + after_s, len(asked), peer, is_silent))
        walk.check_invariants()
        deadline = walk.deadline()
        if deadline is None and not events:
            break
        if events and (deadline is None or events[0][0] <= deadline):
            now, _, peer, is_silent = heapq.heappop(events)
            if is_silent:
                walk.on_failure(peer.id)
            else:
                for found in rng.choices(CONTACTS, k=rng.choice([0, 2, 50])):
                    walk.know(found, standing=shown[found.key[0] % len(shown)])
                walk.on_answer(peer.id, rng.choices(CONTACTS, k=rng.choice([0, 5, 60])))
        else:
            assert deadline is not None and deadline > now
            now = deadline
    assert len(asked) == len(set(asked)) == walk.asked_count <= INDEX_REQUESTS_MAX
    assert walk.asked_levels == sorted(walk.asked_levels)
    assert walk.is_done and (want is None or len(walk.result()) <= (INDEX_WANT_MAX if False in shown else want))


def test_a_walk_does_not_ask_more_at_a_level_than_it_needs_there() -> None:
    walk = walk_of([peer for peer in CONTACTS if level_of(peer.id, KEY) == 0], per_level=3)
    chosen = walk.poll(0.0)
    assert len(chosen) == 3
    walk.on_failure(chosen[0].id)
    assert len(walk.poll(0.1)) == 1  # one for the one that failed
    assert walk.poll(0.2) == []


def test_a_walk_goes_on_without_waiting_where_it_knows_enough() -> None:
    walk = walk_of(CONTACTS, per_level=3)
    chosen = walk.poll(0.0)
    assert [level_of(peer.id, KEY) for peer in chosen] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len(chosen) == INDEX_ALPHA and walk.poll(0.1) == []
    walk.on_answer(chosen[0].id)
    assert [level_of(peer.id, KEY) for peer in walk.poll(0.1)] == [2]


def test_a_liar_is_not_believed_about_many_contacts_of_one_level() -> None:
    near = [peer for peer in CONTACTS if level_of(peer.id, KEY) == 1]
    far = [peer for peer in CONTACTS if level_of(peer.id, KEY) == 0][:1]
    walk = walk_of(far, per_level=10)
    (liar,) = walk.poll(0.0)
    walk.on_answer(liar.id, near)
    assert len(near) > 3 and len(walk.poll(0.1)) == 3


def test_many_of_one_source_do_not_end_a_search_and_come_last() -> None:
    """Else whoever has one machine, and as many identities as he likes, is all that a search finds."""
    walk = walk_of(CONTACTS[:60], want=30)
    for sybil in CONTACTS[100:150]:
        walk.know(sybil, "203.0.113.0/24")
    assert not walk.is_done and len(walk.result()) == 30
    for number, other in enumerate(CONTACTS[200:227]):
        assert not walk.is_done
        walk.know(other, f"198.51.{number}.0/24")
    walk.check_invariants()
    assert walk.poll(0.0) == [] and walk.result() == [*CONTACTS[100:103], *CONTACTS[200:227]]


def test_who_has_shown_that_it_has_it_comes_first_and_who_has_not_makes_the_others_count_less() -> None:
    """Else nodes that only say that they have something, however often they have refused, end each search."""
    walk = walk_of(CONTACTS[:60], want=10)
    for liar in CONTACTS[100:104]:
        walk.know(liar, standing=False)
    for other in CONTACTS[200:210]:
        walk.know(other)
    assert not walk.is_done and walk.belief == 1 / 5
    walk.know(CONTACTS[299], standing=True)
    assert walk.belief == 2 / 6
    for other in CONTACTS[210:227]:
        assert not walk.is_done
        walk.know(other)
    walk.check_invariants()
    assert walk.poll(0.0) == [] and walk.result() == [CONTACTS[299], *CONTACTS[200:227]]


class Group:
    """Nodes that know all others and answer at once."""

    def __init__(self, count: int) -> None:
        self.contacts = CONTACTS[:count]
        self.registrars = {peer.key: Registrar() for peer in self.contacts}

    def run(self, walk: LevelWalk, own: Contact, *, is_search: bool) -> None:
        now, rng = 0.0, random.Random(3)
        while not walk.is_done:
            for peer in walk.poll(now):
                registrar = self.registrars[peer.key]
                if is_search:
                    for found in registrar.find(KEY, 1, INDEX_TAKEN_MAX, now=now, rng=rng):
                        walk.know(found)
                else:
                    registrar.register(KEY, own, 1, until=100.0, now=now)
                walk.on_answer(peer.id, stepping_stones(self.contacts, KEY, peer.id, 24, rng=rng))
            now = walk.deadline() or now


@settings(max_examples=25, deadline=None)
@given(size=st.integers(30, 300), advertisers=st.integers(1, 10), seed=st.integers(0, 1000))
def test_a_search_finds_every_ad_when_all_are_truthful(size: int, advertisers: int, seed: int) -> None:
    group, rng = Group(size), random.Random(seed)
    *holders, searcher = rng.sample(group.contacts, advertisers + 1)
    for own in holders:
        seeds = [peer for peer in rng.sample(group.contacts, 25) if peer is not own]
        walk = LevelWalk(KEY, seeds, own_id=own.id, per_level=INDEX_REGISTER_PER_LEVEL, first=0, soft_s=SOFT_S, rng=rng)
        group.run(walk, own, is_search=False)
    seeds = [peer for peer in rng.sample(group.contacts, 25) if peer is not searcher]
    walk = LevelWalk(
        KEY, seeds, own_id=searcher.id, per_level=INDEX_QUERY_PER_LEVEL, first=0, soft_s=SOFT_S, rng=rng, want=30
    )
    group.run(walk, searcher, is_search=True)
    assert {peer.key for peer in walk.result()} == {peer.key for peer in holders}


def test_the_levels_far_away_are_used_in_small_groups_only() -> None:
    assert first_level(None) == first_level(100) == 0
    assert first_level(20_000) == 14 - INDEX_LEVELS_MAX


def test_rare_is_what_few_contacts_have() -> None:
    assert is_rare(0, 25) and is_rare(5, 270) and not is_rare(3, 25) and not is_rare(30, 270)


def test_stepping_stones_are_nearer_than_their_node_and_of_every_level() -> None:
    own = max(CONTACTS, key=lambda peer: -level_of(peer.id, KEY))
    stones = stepping_stones(CONTACTS, KEY, own.id, 24, rng=random.Random(1))
    levels = [level_of(peer.id, KEY) for peer in stones]
    deepest = max(level_of(peer.id, KEY) for peer in CONTACTS)
    assert min(levels) > level_of(own.id, KEY) and {1, 2, 3, deepest} <= set(levels)
    assert max(levels.count(level) for level in levels) <= 3
