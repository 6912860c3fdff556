"""Properties of the lookup core against made-up networks: a hang, a doubled question or a wrong order breaks here."""

from __future__ import annotations

import hashlib
import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.lookup import Lookup, RttEstimate
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import (
    DHT_ALPHA,
    DHT_K,
    DHT_LOOKUP_REQUESTS_MAX,
    DHT_LOOPBACK_RESEND_S_MIN,
    DHT_LOOPBACK_SOFT_S_MIN,
    DHT_PATHS,
    DHT_REQUEST_S,
    DHT_SOFT_S_MAX,
    DHT_SOFT_S_MIN,
)

SOFT_S = 0.25


def contact(number: int) -> Contact:
    return Contact(hashlib.sha256(b"node %d" % number).digest(), Address("10.0.0.1", 1 + number % 60000))


CONTACTS = [contact(n) for n in range(600)]


def near(target: bytes, contacts: list[Contact], count: int) -> list[Contact]:
    number = int.from_bytes(target, "big")
    return heapq.nsmallest(count, contacts, key=lambda c: c.number ^ number)


@dataclass
class World:
    """Peers that answer after a delay from what they know, or never."""

    knows: dict[bytes, list[Contact]]
    delay_s: dict[bytes, float]
    target: bytes
    k: int = DHT_K
    asked: list[bytes] = field(default_factory=list)
    in_soft_max: int = 0
    now: float = 0.0

    def run(self, lookup: Lookup) -> list[Contact]:
        events: list[tuple[float, int, str, Contact]] = []
        count = 0
        while True:
            chosen = lookup.poll(self.now)
            lookup.check_invariants()
            for peer in chosen:
                self.asked.append(peer.id)
                delay = self.delay_s.get(peer.id, 0.05)
                count += 1
                kind, at = ("answer", self.now + delay) if delay < DHT_REQUEST_S else ("fail", self.now + DHT_REQUEST_S)
                heapq.heappush(events, (at, count, kind, peer))
            if chosen:
                continue
            if lookup.is_done:
                return lookup.result()
            deadline = lookup.deadline()
            assert deadline is not None, "the lookup waits for nobody and is not done"
            if events and events[0][0] <= deadline:
                self.now, _, kind, peer = heapq.heappop(events)
                if kind == "answer":
                    lookup.on_answer(peer.id, near(self.target, self.knows.get(peer.id, []), self.k))
                else:
                    lookup.on_failure(peer.id)
            else:
                self.now = deadline


def make(
    target: bytes, seeds: list[Contact], own: Contact = CONTACTS[0], *, soft_s: float = SOFT_S, k: int = DHT_K
) -> Lookup:
    return Lookup(target, seeds, own_id=own.id, soft_s=soft_s, k=k)


def random_world(rng: random.Random, size: int, degree: int, target: bytes, *, dead: float, slow: float) -> World:
    """Peers 1 to `size`, each knowing `degree` of the others.  Nobody names himself or who asks (number 0)."""
    peers = CONTACTS[1 : size + 1]
    knows = {}
    delays = {}
    for peer in peers:
        others = [other for other in peers if other is not peer]
        knows[peer.id] = rng.sample(others, min(degree, len(others)))
        draw = rng.random()
        delays[peer.id] = rng.uniform(0.01, 0.2)
        if draw < dead + slow:
            delays[peer.id] = 9.0 if draw < dead else rng.uniform(SOFT_S, 1.9)
    return World(knows, delays, target)


@settings(max_examples=60, deadline=None)
@given(
    rng=st.integers(0, 10**6).map(random.Random),
    size=st.integers(1, 120),
    degree=st.integers(0, 30),
    faults=st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.3])),
    target=st.binary(min_size=20, max_size=20),
)
def test_ends_asks_nobody_twice_and_returns_who_answered_nearest_first(
    rng: random.Random, size: int, degree: int, faults: tuple[float, float], target: bytes
) -> None:
    world = random_world(rng, size, degree, target, dead=faults[0], slow=faults[1])
    lookup = make(target, [*rng.sample(CONTACTS[1 : size + 1], min(3, size)), CONTACTS[0]])
    result = world.run(lookup)
    assert len(world.asked) == len(set(world.asked)) == lookup.asked_count
    assert CONTACTS[0].id not in world.asked and CONTACTS[0] not in result
    assert result == near(target, result, DHT_K) and len(result) <= DHT_K
    assert all(world.delay_s[peer.id] < DHT_REQUEST_S and peer.id in world.asked for peer in result)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 100), target=st.binary(min_size=20, max_size=20))
def test_truthful_peers_lead_to_the_nearest_that_can_be_reached(seed: int, size: int, target: bytes) -> None:
    """Every peer knows all others: then the result is exact, by brute force."""
    world = random_world(random.Random(seed), size, size, target, dead=0.0, slow=0.0)
    result = world.run(make(target, [CONTACTS[1 + seed % size]]))
    assert result == near(target, CONTACTS[1 : size + 1], DHT_K)


def kademlia_knows(peers: list[Contact]) -> dict[bytes, list[Contact]]:
    knows: dict[bytes, list[Contact]] = {}
    for peer in peers:
        buckets: dict[int, list[Contact]] = {}
        for other in peers:
            if other is not peer:
                buckets.setdefault((peer.number ^ other.number).bit_length(), []).append(other)
        knows[peer.id] = [other for bucket in buckets.values() for other in bucket[:DHT_K]]
    return knows


def test_recall_against_brute_force_in_kademlia_tables_with_dead_peers() -> None:
    """10 % of the contacts in every table are dead and not known to be: what is missed then is at the far edge.

    A reply of 20 names about 18 live peers, so that the last two of the 20 nearest are sometimes never heard of.
    """
    knows = kademlia_knows(CONTACTS)
    rng = random.Random(5)
    dead = {peer.id: 9.0 for peer in rng.sample(CONTACTS, 60)}
    estimate = RttEstimate()
    for _ in range(50):
        estimate.add(rng.lognormvariate(-2.5, 0.6))
    hits = first_hits = wanted = asked = 0
    for number in range(40):
        target = hashlib.sha256(b"target %d" % number).digest()[:20]
        own = rng.choice([peer for peer in CONTACTS if peer.id not in dead])
        delays = {peer.id: rng.lognormvariate(-2.5, 0.6) for peer in CONTACTS} | dead
        world = World(knows, delays, target)
        result = world.run(make(target, near(target, knows[own.id], DHT_K), own, soft_s=estimate.soft_s))
        live = [peer for peer in CONTACTS if peer.id not in dead and peer is not own]
        best = {peer.id for peer in near(target, live, DHT_K)}
        got = {peer.id for peer in result}
        hits += len(best & got)
        first_hits += sum(peer.id in got for peer in near(target, live, 15))
        wanted += len(best)
        asked += len(world.asked)
        assert not dead.keys() & got
    assert hits / wanted >= 0.96
    assert first_hits / (40 * 15) >= 0.99
    assert asked / 40 < 45


def test_at_most_alpha_are_within_their_soft_timeout() -> None:
    lookup = make(bytes(20), CONTACTS[1:30])
    assert len(lookup.poll(0.0)) == DHT_ALPHA
    assert lookup.poll(SOFT_S * 0.99) == []
    assert len(lookup.poll(SOFT_S)) == DHT_ALPHA, "late peers must not hold up others"


def test_a_lookup_that_answers_do_not_end_asks_more_at_once() -> None:
    """Else a get among hostile nodes, who answer and have nothing, takes three times as long."""
    lookup = Lookup(bytes(20), CONTACTS[1:60], own_id=CONTACTS[0].id, soft_s=SOFT_S, alpha=4, alpha_max=6)
    waiting = lookup.poll(0.0)
    assert len(waiting) == 4
    sizes = []
    while waiting and lookup.asked_count < 20:
        lookup.on_answer(waiting.pop(0).id)
        waiting += lookup.poll(0.0)
        lookup.check_invariants()
        sizes.append(len(waiting))
    assert sizes[:6] == [4, 4, 4, 4, 5, 6] and set(sizes[6:]) == {6}


def test_in_the_place_of_who_confirmed_nobody_is_asked_for_a_while() -> None:
    """If it broke: a get asks one more than it needs, or waits for silent peers."""
    lookup = Lookup(bytes(20), CONTACTS[1:60], own_id=CONTACTS[0].id, soft_s=SOFT_S, alpha=2, alpha_max=9)
    first, second = lookup.poll(0.0)
    lookup.confirm(0.1 * SOFT_S)
    lookup.on_answer(first.id)
    assert lookup.poll(0.1 * SOFT_S) == [] and not lookup.is_done
    assert lookup.deadline() == pytest.approx(0.35 * SOFT_S)
    (third,) = lookup.poll(0.35 * SOFT_S)
    assert lookup.deadline() == SOFT_S
    for peer in (second, third):
        lookup.confirm(0.5 * SOFT_S)
        lookup.on_answer(peer.id)
    assert len(lookup.poll(0.5 * SOFT_S)) == 1, "one is asked however many confirmed"


def test_a_late_answer_counts_until_the_hard_timeout() -> None:
    lookup = make(bytes(20), CONTACTS[1:2])
    (peer,) = lookup.poll(0.0)
    assert lookup.deadline() == SOFT_S
    lookup.poll(SOFT_S)
    assert not lookup.is_done, "in a small group the lookup ends when all have answered"
    assert lookup.deadline() == 3 * SOFT_S
    lookup.poll(3 * SOFT_S)
    assert not lookup.is_done and lookup.deadline() == DHT_REQUEST_S
    lookup.on_answer(peer.id)
    assert lookup.is_done and lookup.result() == [peer]


def test_a_silent_peer_fails_at_the_hard_timeout() -> None:
    lookup = make(bytes(20), CONTACTS[1:2])
    (peer,) = lookup.poll(0.0)
    assert lookup.poll(DHT_REQUEST_S) == [] and lookup.is_done
    lookup.on_answer(peer.id, CONTACTS[2:5])
    assert lookup.result() == [] and lookup.unasked() == []


def test_a_late_peer_that_would_be_in_the_result_is_waited_for_a_little() -> None:
    lookup = make(bytes(20), CONTACTS[1:8], k=3)
    late, *others = lookup.poll(0.0)  # the nearest is the late one
    for peer in others:
        lookup.on_answer(peer.id)
    for peer in lookup.poll(SOFT_S):
        lookup.on_answer(peer.id)
    assert not lookup.is_done, "the nearest of all may be on its way"
    assert lookup.poll(3 * SOFT_S) == []
    assert lookup.is_done and late not in lookup.result() and len(lookup.result()) == 3


def test_where_more_than_k_are_known_dead_ones_hold_it_up_for_three_soft_timeouts_only() -> None:
    """Else a lookup among 100 nodes of which 10 are dead takes until the hard timeout: nobody tells of a 20th."""
    lookup = make(bytes(20), CONTACTS[1:6], k=4)
    dead, *others = lookup.poll(0.0)
    dead_too = others.pop()
    for peer in others:
        lookup.on_answer(peer.id)
    assert lookup.poll(SOFT_S) == [] and not lookup.is_done
    assert lookup.poll(3 * SOFT_S) == [] and lookup.is_done
    assert len(lookup.result()) == 3 and not {dead, dead_too} & set(lookup.result())


def test_late_peers_that_would_not_be_in_the_result_hold_nothing_up() -> None:
    lookup = make(bytes(20), CONTACTS[1:8], k=3)
    first = lookup.poll(0.0)
    farther = lookup.poll(SOFT_S)
    lookup.poll(2 * SOFT_S)
    for peer in first:
        lookup.on_answer(peer.id)
    assert farther and lookup.is_done and lookup.result() == near(bytes(20), first, 3)


def test_answers_nobody_asked_for_change_nothing() -> None:
    lookup = make(bytes(20), CONTACTS[1:3])
    lookup.on_answer(CONTACTS[1].id, CONTACTS[5:9])
    lookup.on_failure(CONTACTS[2].id)
    lookup.on_answer(CONTACTS[400].id, CONTACTS[5:9])
    assert sorted(peer.number for peer in lookup.unasked()) == sorted(peer.number for peer in CONTACTS[1:3])


def test_finish_ends_it_at_once() -> None:
    lookup = make(bytes(20), CONTACTS[1:30])
    lookup.poll(0.0)
    lookup.finish()
    assert lookup.is_done and lookup.poll(0.0) == []


def test_endless_made_up_contacts_end_at_the_limit() -> None:
    """An adversary that always names nearer peers costs DHT_LOOKUP_REQUESTS_MAX requests, not more."""
    lookup = make(bytes(20), CONTACTS[1:2])
    number, now = 1000, 0.0
    while not lookup.is_done:
        for peer in lookup.poll(now):
            number += 20
            lookup.on_answer(peer.id, [contact(n) for n in range(number, number + 20)])
        now += 0.01
        lookup.check_invariants()
        assert now < 60
    assert lookup.asked_count <= DHT_LOOKUP_REQUESTS_MAX


def test_hops_are_the_requests_one_after_the_other_that_led_to_the_nearest() -> None:
    first, second, third = sorted(CONTACTS[1:4], key=lambda c: c.number, reverse=True)  # each nearer to 0
    lookup = make(bytes(20), [first])
    assert lookup.hops == 0
    for peer, heard in ((first, [second]), (second, [third]), (third, [])):
        assert lookup.poll(0.0) == [peer]
        lookup.on_answer(peer.id, heard)
    assert lookup.is_done
    assert lookup.result() == [third, second, first]
    assert lookup.hops == 3


def liars_world(rng: random.Random, target: bytes) -> tuple[World, list[Contact], list[Contact]]:
    """60 honest peers who know all honest ones, and 30 liars who name liars and made-up peers nearer to the target."""
    peers = rng.sample(CONTACTS, 90)
    honest, liars = peers[:60], peers[60:]
    number = int.from_bytes(target, "big")
    made_up = near(target, [contact(10_000 + rng.randrange(10**9)) for _ in range(400)], 60)
    knows = {peer.id: [one for one in honest if one is not peer] for peer in honest}
    knows |= {liar.id: sorted([*liars, *made_up], key=lambda one: one.number ^ number) for liar in liars}
    delays = {one.id: rng.uniform(0.01, 0.2) for one in peers} | {one.id: 9.0 for one in made_up}
    return World(knows, delays, target), honest, liars


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), target=st.binary(min_size=20, max_size=20), path=st.integers(0, DHT_PATHS - 1))
def test_one_path_with_honest_seeds_is_enough(seed: int, target: bytes, path: int) -> None:
    """All other seeds are liars of one mind, who name peers that do not exist, too."""
    rng = random.Random(seed)
    world, honest, liars = liars_world(rng, target)
    own = contact(5000)
    seeds = [(honest if number % DHT_PATHS == path else liars)[number] for number in range(12)]
    result = world.run(make(target, seeds, own))
    assert len(world.asked) == len(set(world.asked)) <= DHT_LOOKUP_REQUESTS_MAX
    nearest = near(target, [*honest, *liars], DHT_K)
    assert {one.id for one in nearest if one in honest} <= {one.id for one in result}


def test_liars_of_one_mind_do_not_end_a_lookup_before_the_first_seeds_were_asked() -> None:
    """Without it the twenty nearest liars, named by the first that is asked, are all that is ever asked."""
    rng = random.Random(3)
    target = bytes(20)
    world, honest, liars = liars_world(rng, target)
    nearest_liars = near(target, liars, 11)
    far_honest = near(target, honest, 60)[-1]
    result = world.run(make(target, [*nearest_liars, far_honest], contact(5000)))
    assert near(target, honest, 1)[0] in result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 0.9))
def test_everybody_within_the_radius_is_asked(seed: int, share: float) -> None:
    rng = random.Random(seed)
    target = rng.randbytes(20)
    world = random_world(rng, 80, 80, target, dead=0.1, slow=0.1)
    radius = int(share * (1 << 160))
    lookup = Lookup(target, [CONTACTS[1]], own_id=CONTACTS[0].id, soft_s=SOFT_S, k=5, radius=radius)
    world.delay_s[CONTACTS[1].id] = 0.01
    result = world.run(lookup)
    number = int.from_bytes(target, "big")
    within = [one.id for one in CONTACTS[1:81] if one.number ^ number <= radius]
    heard = {one.id for one in near(target, world.knows[CONTACTS[1].id], 5)}
    assert all(one in world.asked for one in within if one in heard or one in {c.id for c in result})
    assert not [one for one in lookup.unasked() if one.number ^ number <= radius]


def test_who_is_within_the_radius_is_asked_at_once_by_a_put() -> None:
    seeds = CONTACTS[1:41]
    lookup = Lookup(bytes(20), seeds, own_id=CONTACTS[0].id, soft_s=SOFT_S, alpha_within=DHT_K, radius=(1 << 160) - 1)
    assert len(lookup.poll(0.0)) == DHT_K
    lookup.check_invariants()


def test_a_path_that_is_flooded_with_names_forgets_only_its_own() -> None:
    """The bound on what a lookup remembers must not be a way to push out what honest peers have said."""
    lookup = make(bytes(20), CONTACTS[1:5])
    first, second, *_ = lookup.poll(0.0)
    told = [contact(20_000 + number) for number in range(20)]
    lookup.on_answer(first.id, told)
    for _ in range(3):
        lookup.on_answer(second.id, near(bytes(20), [contact(30_000 + number) for number in range(2000)], 400))
    kept = {one.id for one in lookup.unasked()}
    assert {one.id for one in told} <= kept
    lookup.check_invariants()


def test_no_seeds_is_done_at_once() -> None:
    lookup = make(bytes(20), [CONTACTS[0]])
    assert lookup.is_done and lookup.result() == [] and lookup.deadline() is None


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50))
def test_the_soft_timeout_stays_within_its_bounds(samples: list[float]) -> None:
    estimate = RttEstimate()
    assert estimate.soft_s == DHT_SOFT_S_MAX
    for sample in samples:
        estimate.add(sample)
        assert DHT_SOFT_S_MIN <= estimate.soft_s <= DHT_SOFT_S_MAX


def test_steady_fast_replies_bring_the_soft_timeout_to_its_floor() -> None:
    estimate = RttEstimate()
    for _ in range(20):
        estimate.add(0.001)
    assert estimate.soft_s == pytest.approx(DHT_SOFT_S_MIN)


def test_on_this_machine_a_peer_is_looked_past_sooner_and_asked_again_while_it_is_waited_for() -> None:
    estimate = RttEstimate(soft_s_min=DHT_LOOPBACK_SOFT_S_MIN, resend_s_min=DHT_LOOPBACK_RESEND_S_MIN)
    for _ in range(200):
        estimate.add(0.001)
    assert estimate.soft_s == DHT_LOOPBACK_SOFT_S_MIN
    assert estimate.soft_s < estimate.resend_s < 3 * estimate.soft_s


def test_who_answered_just_before_is_not_asked_as_long_as_those_who_are_asked_answer() -> None:
    target = contact(999).id
    peers = near(target, CONTACTS, 8)
    knows = {peer.id: peers for peer in peers}

    def run(*silent: Contact, knows: dict[bytes, list[Contact]] = knows) -> tuple[list[Contact], list[bytes]]:
        lookup = Lookup(target, peers, own_id=contact(998).id, soft_s=SOFT_S)
        lookup.credit([peer.id for peer in peers[2:]])
        world = World(knows, {peer.id: DHT_REQUEST_S for peer in silent}, target)
        found = world.run(lookup)
        lookup.check_invariants()
        return found, world.asked

    assert run() == (peers, [peer.id for peer in peers[:2]])
    found, asked = run(peers[0])
    assert found == peers[1:], "one that is silent is in the result"
    assert 3 <= len(asked) < len(peers), "another one is asked in its place"
    found, asked = run(*peers[:2])
    assert found == peers[2:]
    assert sorted(asked) == sorted(peer.id for peer in peers), "the link may be down: all are asked"
    newcomer = next(one for one in CONTACTS if one not in peers)
    found, asked = run(knows={**knows, peers[1].id: [newcomer]})
    assert found == near(target, [*peers, newcomer], DHT_K), "what they tell is lost"
    assert asked == [peers[0].id, peers[1].id, newcomer.id]
