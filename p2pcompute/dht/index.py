"""The capacity index: who in a large group has what somebody looks for.  Pure.

What a node has comes as an opaque *tuple* of TUPLE_BYTES (`resources.classes`), and what is looked for as a mask: a
node fits when its tuple has all bits of the mask.  There are two tiers, and one search uses both:

1. The low CLASS_BYTES of the tuple, the class, are in every answer that a node gives about itself, so each node knows
   those of its contacts, and names the contacts that fit.  A few questions find what many nodes have.
2. What few nodes have they advertise: under a key of the feature, with their whole tuple, at a few *registrars* at each
   distance from the key, each distance half of the one before.  A search for the feature goes from far to near and ends
   as soon as it has found enough; the nearer, the more of all ads has each registrar.

So no node bears what everybody asks for, and whoever crowds around a key hides nothing that is kept farther away.

A registrar's tables are bounded, for each key and for each source.  When they are full, who advertises more yields to
who advertises less, and of equals a sample stays that nobody can foresee: so nobody fills them by being first, or by
advertising everything.

What a registrar names is hearsay: the searcher looks at each itself before it counts, and where identities cost nothing
only a few of one address range count for the end of a search.  Even so a node may say of itself what is not true: only
what it is given to do shows that.  Who has shown that it has something comes first, who has shown that it has not is
left out, and the more have not, the less each other one counts, so that a search goes on until as many as are wanted
can be expected to have it.  Without such experience those that have something are found among those that say so, in
proportion.

Properties of `LevelWalk`, each of them tested:
 1. it ends, whatever peers answer, after at most INDEX_REQUESTS_MAX requests;
 2. it asks nobody twice and never its own node;
 3. it never goes back to a farther distance;
 4. while it waits for answers, it does not ask more at one distance than it needs there, and INDEX_ALPHA in all;
 5. it ends once it has as many nodes as it wants, of which no more than a few are from one source: those that have
    shown that they have it, and of the others as many as are expected to, by the share of those that have shown either;
 6. when all answer truthfully, and know who is near them, a search finds every ad of the nearest distances.

Source: Król et al., "DISC-NG: Robust Service Discovery in the Ethereum Global Network" (TopDisc), and discv5's topic
index; SWORD (HPDC 2005) for the whole tuple under each attribute.
Deviations: no waiting-time tickets: honest tables fill only under features that are not rare.  Distances so far away
that hardly any search meets an ad there are left out.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, TypeAlias

from p2pcompute.dht.contacts import Contact, id_of, range_of
from p2pcompute.errors import InvariantViolation
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import (
    DHT_REQUEST_S,
    INDEX_ADS_MAX,
    INDEX_ADS_PER_KEY_MAX,
    INDEX_ADS_PER_SOURCE_MAX,
    INDEX_ALPHA,
    INDEX_LEVELS_MAX,
    INDEX_RARE_SHARE,
    INDEX_REQUESTS_MAX,
    INDEX_WANT_MAX,
)

if TYPE_CHECKING:
    import random

_ID_BITS: Final = 8 * DHT_ID_BYTES
_HEARD_PER_LEVEL_MAX: Final = 3
"""Contacts at one distance in one answer: no liar names most of those that are asked next."""
_NAMED_SHARE: Final = 10
"""One part in so many of what a search wants may be of one source, and _NAMED_MIN in any case."""
_NAMED_MIN: Final = 2
_LATE_SOFTS: Final = 2
_ENDS_SPARE: Final = 64
_ROUNDING_S: Final = 1e-6
"""A timer may come so much before its time."""


def index_key(feature: str) -> bytes:
    """Return the key under which nodes that have a feature advertise: 20 bytes."""
    return hashlib.sha256(b"p2pc feature 1 " + feature.encode()).digest()[:DHT_ID_BYTES]


def level_of(contact_id: bytes, key: bytes) -> int:
    """Return how near a node is to a key: leading bits that they share."""
    return _ID_BITS - (int.from_bytes(contact_id, "big") ^ int.from_bytes(key, "big")).bit_length()


def first_level(group_size: float | None) -> int:
    """Return the farthest level that is used in a group of about so many nodes."""
    return 0 if not group_size else max(0, int(math.log2(max(1.0, group_size))) - INDEX_LEVELS_MAX)


def is_rare(having: int, known: int) -> bool:
    """Whether a feature that so many of the contacts have, of those whose class is known, is worth an ad: unless they
    say, by two standard deviations, that a larger share than INDEX_RARE_SHARE has it."""
    expected = INDEX_RARE_SHARE * known
    return having <= expected + 2 * math.sqrt(expected)


class Outcome(IntEnum):
    """What became of a registration.  Wire codes."""

    OK = 0
    WAIT = 1
    """The source has as many ads here as it may: one has to expire first."""
    FULL = 2
    """No room; or so many advertise this feature that another ad is of no use."""
    TOKEN = 3
    """Not without a token; one is in the reply."""


@dataclass(frozen=True, slots=True)
class Ad:
    """What a registrar keeps: that this node has the feature, and what else it has."""

    key: bytes
    """Of the feature."""
    contact: Contact
    bits: int
    """Its tuple."""
    expires: float
    sources: tuple[bytes | str, ...]
    """What its node has, of which others may have the same."""
    drawn: bytes
    """Among equals who yields: the same for all ads of a node."""


_Rank: TypeAlias = tuple[int, bytes, bytes, bytes]
"""How many ads the source of an ad has, what was drawn for its node, its key, its node: the greatest yields first."""


class Registrar:
    """The ads that a node keeps for others.

    To take one in costs some microseconds for each other ad of its source, however many there are: they are kept in the
    order in which they yield.
    """

    def __init__(
        self,
        *,
        is_open: bool = False,
        secret: bytes = b"",
        ads_max: int = INDEX_ADS_MAX,
        per_key_max: int = INDEX_ADS_PER_KEY_MAX,
        per_source_max: int = INDEX_ADS_PER_SOURCE_MAX,
    ) -> None:
        """Args:
        is_open: identities cost nothing in this group: an address range counts as a source as well.
        secret: decides which of many ads stay, at most 64 bytes.
        """
        self._is_open = is_open
        self._secret = secret
        self._ads_max = ads_max
        self._per_key_max = per_key_max
        self._per_source_max = per_source_max
        self._by_key: dict[bytes, dict[bytes, Ad]] = {}
        self._by_source: dict[bytes | str, list[Ad]] = {}
        self._ranked: list[_Rank] = []
        """Of all ads, the one that yields first last."""
        self._ends: list[tuple[float, bytes, bytes]] = []
        """A heap of when which ad ends; those that have gone or were replaced since are still in it."""
        self.displaced_count = 0
        """Ads that had to yield to another one."""

    def __len__(self) -> int:
        return len(self._ranked)

    def register(self, key: bytes, contact: Contact, bits: int, *, until: float, now: float) -> Outcome:
        """Keep an ad of a node until the clock says `until`; its earlier one under the same key is replaced."""
        self.expire(now)
        earlier = self._by_key.get(key, {}).get(contact.key)
        if earlier is not None:
            self._drop(earlier)
        drawn = hashlib.blake2b(contact.key, key=self._secret, digest_size=8).digest()
        ad = Ad(key, contact, bits, until, self._sources(contact), drawn)
        if self._shown(ad) >= self._per_source_max:
            return Outcome.WAIT
        if not self._make_room(key, ad):
            return Outcome.FULL
        self._by_key.setdefault(key, {})[contact.key] = ad
        others = self._unranked(ad)
        for source in ad.sources:
            self._by_source.setdefault(source, []).append(ad)
        for one in (*others, ad):
            insort(self._ranked, self._rank(one))
        heappush(self._ends, (until, key, contact.key))
        if len(self._ends) > 2 * len(self) + _ENDS_SPARE:
            self._ends = sorted((one.expires, one.key, one.contact.key) for one in self._ads())
        return Outcome.OK

    def find(self, key: bytes, mask: int, count: int, *, now: float, rng: random.Random) -> list[Contact]:
        """Return at most `count` nodes that advertise under `key` and fit the mask; of more, some at random."""
        ads = self._by_key.get(key, {}).values()
        fit = [ad.contact for ad in ads if ad.bits & mask == mask and now < ad.expires]
        return fit if len(fit) <= count else rng.sample(fit, count)

    def count(self, key: bytes) -> int:
        """Return how many ads are kept under a key."""
        return len(self._by_key.get(key, {}))

    def expire(self, now: float) -> None:
        """Drop what has reached the end of its life."""
        while self._ends and self._ends[0][0] <= now:
            expires, key, publisher = heappop(self._ends)
            ad = self._by_key.get(key, {}).get(publisher)
            if ad is not None and ad.expires == expires:
                self._drop(ad)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the bounds hold and the counts add up."""
        ads = self._ads()
        if not {(ad.expires, ad.key, ad.contact.key) for ad in ads} <= set(self._ends):
            raise InvariantViolation(f"registrar: {len(ads)} ads, of which some never end")
        if len(self._ends) > 2 * self._ads_max + _ENDS_SPARE:
            raise InvariantViolation(f"registrar: {len(self._ends)} ends of {len(ads)} ads")
        if self._ranked != sorted(map(self._rank, ads)) or not all(self._by_key.values()):
            raise InvariantViolation(f"registrar: {len(ads)} ads, {len(self._ranked)} in order")
        counts = Counter(source for ad in ads for source in self._sources(ad.contact))
        if counts != {source: len(found) for source, found in self._by_source.items()}:
            raise InvariantViolation(f"registrar: {len(ads)} ads of {len(counts)} sources")
        fullest = max(map(len, self._by_key.values()), default=0)
        if len(ads) > self._ads_max or fullest > self._per_key_max:
            raise InvariantViolation(f"registrar: {len(ads)} ads, {fullest} under one key")
        if any(count > self._per_source_max for count in counts.values()):
            raise InvariantViolation("registrar: too many ads of one source")

    def _ads(self) -> list[Ad]:
        return [ad for found in self._by_key.values() for ad in found.values()]

    def _sources(self, contact: Contact) -> tuple[bytes | str, ...]:
        return (contact.key, range_of(contact.address.host)) if self._is_open else (contact.key,)

    def _shown(self, ad: Ad) -> int:
        """How many ads its sources have here; of several, the one that has most."""
        return max([len(self._by_source.get(source, ())) for source in ad.sources])

    def _rank(self, ad: Ad) -> _Rank:
        return self._shown(ad), ad.drawn, ad.key, ad.contact.key

    def _unranked(self, ad: Ad) -> list[Ad]:
        """Take the other ads of its sources out of the order, as their ranks are about to change, and return them."""
        others = {(one.key, one.contact.key): one for source in ad.sources for one in self._by_source.get(source, ())}
        others.pop((ad.key, ad.contact.key), None)
        for one in others.values():
            self._unrank(one)
        return list(others.values())

    def _unrank(self, ad: Ad) -> None:
        del self._ranked[bisect_left(self._ranked, self._rank(ad))]

    def _make_room(self, key: bytes, new: Ad) -> bool:
        """See that there is room for an ad; an ad that is to yield more than the new one goes.  False: none is."""
        if len(self._by_key.get(key, {})) >= self._per_key_max:
            shown, drawn, where, publisher = max(map(self._rank, self._by_key[key].values()))
        elif len(self._ranked) >= self._ads_max:
            shown, drawn, where, publisher = self._ranked[-1]
        else:
            return True
        if (shown, drawn) <= (self._shown(new) + 1, new.drawn):
            return False
        self._drop(self._by_key[where][publisher])
        self.displaced_count += 1
        return True

    def _drop(self, ad: Ad) -> None:
        ads = self._by_key[ad.key]
        del ads[ad.contact.key]
        if not ads:
            del self._by_key[ad.key]
        self._unrank(ad)
        others = self._unranked(ad)
        for source in ad.sources:
            self._by_source[source].remove(ad)
            if not self._by_source[source]:
                del self._by_source[source]
        for one in others:
            insort(self._ranked, self._rank(one))


def stepping_stones(
    contacts: Iterable[Contact], key: bytes, own_id: bytes, count: int, *, rng: random.Random
) -> list[Contact]:
    """Return contacts nearer to a key than a node's own level, for whoever goes there: some of each level, at random,
    so that not everybody is led to the same few.

    Args:
        own_id: of the node that names them.
        count: at most so many, _HEARD_PER_LEVEL_MAX of a level.
    """
    levels: dict[int, list[Contact]] = {}
    own_level = level_of(own_id, key)
    for contact in contacts:
        level = level_of(contact.id, key)
        if level > own_level:
            levels.setdefault(level, []).append(contact)
    for found in levels.values():
        rng.shuffle(found)
    rounds = range(_HEARD_PER_LEVEL_MAX)
    chosen = [levels[level][one] for one in rounds for level in sorted(levels) if one < len(levels[level])]
    return chosen[:count]


@dataclass(slots=True)
class _Peer:
    contact: Contact
    level: int
    asked: float = 0.0
    is_waiting: bool = True
    """Neither answered nor failed."""


class LevelWalk:
    """Peers at each distance from a key, far to near: those who keep an ad, or are asked what they know."""

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        *,
        own_id: bytes,
        per_level: int,
        first: int,
        soft_s: float,
        rng: random.Random,
        hard_s: float = DHT_REQUEST_S,
        want: int | None = None,
    ) -> None:
        """Start a walk.

        Args:
            target: the key, 20 bytes.
            seeds: contacts to start from.
            own_id: never asked.
            per_level: answers that are wanted at each level.
            first: the farthest level; see `first_level`.
            soft_s: seconds after which the walk looks past a peer.
            hard_s: seconds after which a peer has failed.
            want: end once so many nodes are found; None: go to the end.
        """
        self.target = target
        self._own_id = own_id
        self._per_level = per_level
        self._first = first
        self._soft_s = min(soft_s, hard_s)
        self._hard_s = hard_s
        self._rng = rng
        self._want = want
        self._level = first
        self._heard: dict[int, list[Contact]] = {}
        """Contacts that may be asked, by level."""
        self._known: dict[bytes, None] = {}
        self._asked: dict[bytes, _Peer] = {}
        self._answers: dict[int, int] = {}
        self._found: dict[bytes, Contact] = {}
        self._counted: dict[bytes, None] = {}
        """Of those found, the ones that count for the end, without those that have proved it."""
        self._proved: dict[bytes, None] = {}
        self._disproved: dict[bytes, None] = {}
        """Those that have shown that they have it, or that they have not."""
        self._shares: dict[str, int] = {}
        """How many of these are from each source."""
        self._share_max = max(_NAMED_MIN, (want or 0) // _NAMED_SHARE)
        self._now = 0.0
        near = list(seeds)
        if sum(level_of(contact.id, target) >= first for contact in near) >= per_level:
            near = [contact for contact in near if level_of(contact.id, target) >= first]
        else:
            near = sorted(near, key=lambda contact: -level_of(contact.id, target))[:per_level]
        for contact in near:
            self._hear(contact)

    # --- events ---

    def poll(self, now: float) -> list[Contact]:
        """Return the contacts to ask now; they count as asked."""
        self._now = now + _ROUNDING_S
        chosen: list[Contact] = []
        while not self._is_enough() and len(self._asked) < INDEX_REQUESTS_MAX:
            here, everywhere = self._waiting()
            candidates = self._heard.get(self._level)
            is_needed = self._answers.get(self._level, 0) + here < self._per_level
            nearer = self._next_level()
            if candidates and is_needed:
                if everywhere >= INDEX_ALPHA:
                    break
                contact = candidates.pop(self._rng.randrange(len(candidates)))
                self._asked[contact.id] = _Peer(contact, self._level, now)
                chosen.append(contact)
            elif nearer is None or (here and (is_needed or len(self._heard[nearer]) < self._per_level)):
                break  # who is asked here tells of more there
            else:
                self._level = nearer
        return chosen

    def on_answer(self, contact_id: bytes, heard: Iterable[Contact] = ()) -> None:
        """Take in the answer of a peer that was asked, with contacts nearer to the key.  Other answers are ignored."""
        peer = self._asked.get(contact_id)
        if peer is None or not peer.is_waiting:
            return
        peer.is_waiting = False
        self._answers[peer.level] = self._answers.get(peer.level, 0) + 1
        counts: dict[int, int] = {}
        for contact in heard:
            level = level_of(contact.id, self.target)
            counts[level] = counts.get(level, 0) + 1
            if counts[level] <= _HEARD_PER_LEVEL_MAX and level >= self._first:
                self._hear(contact)

    def on_failure(self, contact_id: bytes) -> None:
        """Note that a peer that was asked will not answer."""
        peer = self._asked.get(contact_id)
        if peer is not None:
            peer.is_waiting = False

    def know(self, contact: Contact, source: str = "", *, standing: bool | None = None) -> None:
        """Take in a node that says that it has what is looked for: known to, or looked at by, this node itself.

        Args:
            source: of what only a few count; "" when that does not matter.
            standing: what it has shown when it was given something to do: that it has it, or not; None: nothing.
        """
        is_known = contact.key in self._found or contact.key in self._disproved
        if contact.id == self._own_id or is_known or self._is_enough():
            return
        if standing is False:
            self._disproved[contact.key] = None
            return
        self._found[contact.key] = contact
        if standing:
            self._proved[contact.key] = None
        elif not source or self._shares.get(source, 0) < self._share_max:
            self._counted[contact.key] = None
            self._shares[source] = self._shares.get(source, 0) + 1

    # --- questions ---

    @property
    def is_done(self) -> bool:
        """Whether nobody is to be asked or waited for any more."""
        if self._is_enough():
            return True
        if any(self._now < due for due in self._timeouts()):
            return False
        return len(self._asked) >= INDEX_REQUESTS_MAX or not self._may_ask()

    def deadline(self) -> float | None:
        """The clock time of the next timeout; None when nobody is being waited for."""
        return min((due for due in self._timeouts() if self._now < due), default=None)

    def result(self) -> list[Contact]:
        """The nodes found so far: first those that have proved it, then in the order in which they were found, but
        those of a source of which there are many last; as many as are wanted, and more where some are expected to lie.
        """
        first = [*self._proved, *self._counted]
        found = [*first, *(key for key in self._found if key not in self._counted and key not in self._proved)]
        return [self._found[key] for key in found[: None if self._want is None else max(self._want, len(first))]]

    @property
    def belief(self) -> float:
        """The share of those that have shown nothing that is expected to have what they say (Laplace's rule)."""
        return (len(self._proved) + 1) / (len(self._proved) + len(self._disproved) + 1)

    @property
    def asked_count(self) -> int:
        """Peers asked so far."""
        return len(self._asked)

    @property
    def answered_count(self) -> int:
        """Answers so far."""
        return sum(self._answers.values())

    @property
    def asked_levels(self) -> list[int]:
        """Levels of the peers asked, in order."""
        return [peer.level for peer in self._asked.values()]

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the object is consistent."""
        levels = self.asked_levels
        if levels != sorted(levels) or len(levels) > INDEX_REQUESTS_MAX or (levels and levels[-1] > self._level):
            raise InvariantViolation(f"walk: asked at levels {levels}, now at {self._level}")
        if self._own_id in self._asked or any(self._own_id == contact.id for contact in self._found.values()):
            raise InvariantViolation("walk: the own node was asked or found")
        counted = len(self._proved) + len(self._counted)
        if self._want is not None and counted > (max(0, self._want) if not self._disproved else INDEX_WANT_MAX):
            raise InvariantViolation(f"walk: {counted} counted, {self._want} wanted")
        known = self._proved.keys() | self._counted.keys()
        if not known <= self._found.keys() or len(known) != counted or known & self._disproved.keys():
            raise InvariantViolation(f"walk: {len(known)} of {len(self._found)} counted")

    # --- parts ---

    def _is_enough(self) -> bool:
        if self._want is None:
            return False
        proved, counted = len(self._proved), len(self._counted)
        return proved + counted >= INDEX_WANT_MAX or proved + counted * self.belief >= self._want

    def _timeouts(self) -> Iterator[float]:
        """When the walk looks past those that have not answered, and when it does not wait for them any more."""
        late_s = min(self._hard_s, _LATE_SOFTS * self._soft_s)
        for peer in self._asked.values():
            if peer.is_waiting:
                yield peer.asked + self._soft_s
                yield peer.asked + late_s

    def _waiting(self) -> tuple[int, int]:
        """How many are within their soft timeout, of this level and of all."""
        since = self._now - self._soft_s
        levels = [peer.level for peer in self._asked.values() if peer.is_waiting and since < peer.asked]
        return levels.count(self._level), len(levels)

    def _next_level(self) -> int | None:
        return min((level for level, found in self._heard.items() if found and level > self._level), default=None)

    def _may_ask(self) -> bool:
        is_needed = self._answers.get(self._level, 0) < self._per_level
        return bool(is_needed and self._heard.get(self._level)) or self._next_level() is not None

    def _hear(self, contact: Contact) -> None:
        contact_id = id_of(contact.key)
        if contact_id == self._own_id or contact_id in self._known:
            return
        self._known[contact_id] = None
        level = max(self._first, level_of(contact_id, self.target))
        if level >= self._level:
            self._heard.setdefault(level, []).append(contact)
