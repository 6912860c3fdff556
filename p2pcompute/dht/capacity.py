"""What a node does for the capacity index: keeps ads for others, advertises what is rare about itself, and searches.

In a group of up to k contacts everybody is known, and nothing of this happens.  In a larger one a node says what it has
in its answers, and advertises up to INDEX_ADS_PER_NODE_MAX features that few of its contacts have, for as long as it
has been up, within bounds: with the longest life, two hours, some thirty messages an hour for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from p2pcompute.dht.contacts import Contact, id_of, range_of
from p2pcompute.dht.exchange import DhtCounters, Verified
from p2pcompute.dht.index import LevelWalk, Outcome, Registrar, first_level, index_key, is_rare, stepping_stones
from p2pcompute.dht.messages import Ads, Message, Ping, Pong, Query, Register, Registered, cut_ads
from p2pcompute.dht.queries import Ask, Queries, reachable
from p2pcompute.dht.routing_table import RoutingTable
from p2pcompute.dht.walk import Answer, walk
from p2pcompute.host.interfaces import Clock
from p2pcompute.limits import (
    CLASS_BYTES,
    DHT_K,
    INDEX_ADS_PER_NODE_MAX,
    INDEX_CONTACTS_MAX,
    INDEX_QUERY_PER_LEVEL,
    INDEX_REGISTER_PER_LEVEL,
    INDEX_REGISTERED_CONTACTS_MAX,
    INDEX_TAKEN_MAX,
)

if TYPE_CHECKING:
    import random

SEARCH_S: Final = 10.0
SHRUNK_S: Final = 600.0
"""How long a group whose index fell silent counts as a large one, however few contacts are left."""
CLASS_MASK: Final = (1 << 8 * CLASS_BYTES) - 1
_SECRET_BYTES: Final = 16
_STONES_AMONG: Final = 64
"""Contacts nearest to a key among which others are sent on."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a node has, or that is looked for."""

    name: str
    bits: int
    """Those that it sets in a tuple."""

    @property
    def key(self) -> bytes:
        """Under which it is advertised."""
        return index_key(self.name)

    @property
    def is_in_class(self) -> bool:
        """Whether a contact's class tells of it."""
        return self.bits <= CLASS_MASK


def _unknown(_key: bytes) -> bool | None:
    return None


class CapacityIndex:
    """One node's part in the index of one group."""

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        ask: Ask,
        timeouts: Callable[[bool], tuple[float, float]],
        table: RoutingTable,
        queries: Queries,
        counters: DhtCounters,
        *,
        is_open: bool,
    ) -> None:
        """Args: as for `Queries`."""
        self._clock = clock
        self._rng = rng
        self._ask = ask
        self._timeouts = timeouts
        self._table = table
        self._queries = queries
        self._counters = counters
        self._is_open = is_open
        self.registrar = Registrar(is_open=is_open, secret=rng.randbytes(_SECRET_BYTES))
        self._bits: int | None = None
        self._features: tuple[Feature, ...] = ()
        self._silent_at = -math.inf
        """When nobody answered a search or registration, if it was the last one."""

    # --- this node --------------------------------------------------------------------------------

    def describe(self, bits: int, features: Sequence[Feature]) -> None:
        """Say what this node has from now on: its tuple, and the features of which it is made."""
        self._bits = bits
        self._features = tuple(features)

    @property
    def class_bits(self) -> int | None:
        """What answers say; None in a small group, and until something is known."""
        return None if self._bits is None or not self.is_used else self._bits & CLASS_MASK

    @property
    def is_described(self) -> bool:
        return self._bits is not None

    @property
    def is_used(self) -> bool:
        """Whether the group is so large that not everybody is known."""
        return len(self._table) > DHT_K

    @property
    def is_degraded(self) -> bool:
        """Whether it is needed and out of reach: then only nodes that are known can be asked.

        A group that was large a while ago is not taken for a small one because its contacts fell silent.
        """
        silent_s = self._clock.now() - self._silent_at
        return silent_s < SHRUNK_S or (self.is_used and (silent_s < math.inf or self._table.is_link_down))

    # --- what peers ask ---------------------------------------------------------------------------

    def on_register(self, request: Verified, message: Register) -> Registered:
        """Keep an ad of somebody who has shown that he is at his address."""
        now, sender = self._clock.now(), request.statement.sender
        contact = Contact(sender, request.address)
        until = now + message.life_s
        outcome = self.registrar.register(message.key, contact, message.bits, until=until, now=now)
        self._counters.ads_kept += outcome is Outcome.OK
        self._counters.ads_refused += outcome is not Outcome.OK
        self._counters.ads_displaced = self.registrar.displaced_count
        return Registered(outcome, tuple(self._stones(request, message.key, INDEX_REGISTERED_CONTACTS_MAX)))

    def on_query(self, request: Verified, message: Query) -> Ads:
        """Name nodes that fit, those that advertise first, and contacts nearer to the key."""
        self._counters.queries_answered += 1
        sender, mask = request.statement.sender, message.mask
        fit = self.registrar.find(message.key, mask, INDEX_TAKEN_MAX, now=self._clock.now(), rng=self._rng)
        if 0 < mask <= CLASS_MASK:
            known = self._table.having(mask)
            fit += known if len(known) <= INDEX_TAKEN_MAX else self._rng.sample(known, INDEX_TAKEN_MAX)
        by_key = {contact.key: contact for contact in fit if contact.key != sender}
        found = reachable(list(by_key.values())[:INDEX_TAKEN_MAX], request.address)
        return cut_ads(found, self._stones(request, message.key, INDEX_CONTACTS_MAX - len(found)))

    def _stones(self, request: Verified, key: bytes, count: int) -> list[Contact]:
        asker = id_of(request.statement.sender)
        near = self._table.nearest(key, _STONES_AMONG, exclude=asker, live_only=True)
        stones = stepping_stones(near, key, self._table.own_id, count, rng=self._rng)
        return reachable(stones, request.address)

    # --- what we ask ------------------------------------------------------------------------------

    async def search(
        self,
        features: Sequence[Feature],
        want: int,
        time_s: float = SEARCH_S,
        *,
        standing: Callable[[bytes], bool | None] = _unknown,
    ) -> list[Contact]:
        """Return up to `want` nodes that seem to have all of these features: first those that have shown it, then own
        contacts.  Where some have shown that they lie, more, so that `want` of them may be expected to have it.

        Those that others name count when they answer a PING, and do not say themselves that they lack a feature of the
        class: else two liars, with nodes that they have made up, end a search.  In an open group few of one address
        range count for the end of it.

        Without features, or in a small group, nobody is asked: known contacts are all there is.

        Args:
            time_s: after it, what was found until then is returned.
            standing: what the node with a key has shown of having these features when it was given something to do;
                None: nothing.
        """
        if not features or not self.is_used:
            return []
        mask = 0
        for feature in features:
            mask |= feature.bits
        level_walk = self._walk(self._rarest(features).key, INDEX_QUERY_PER_LEVEL, want)
        if mask <= CLASS_MASK:
            for contact in self._table.having(mask):
                level_walk.know(contact, standing=standing(contact.key))
        self._counters.searches += 1
        question = Query(level_walk.target, mask)
        tried: dict[bytes, None] = {}

        def know(contact: Contact) -> None:
            source = range_of(contact.address.host) if self._is_open else ""
            level_walk.know(contact, source, standing=standing(contact.key))

        def ask(contact: Contact, answer: Answer) -> None:
            def done(reply: Message | None) -> None:
                if isinstance(reply, Ads):
                    further = reachable(reply.contacts, contact.address)
                    named = reachable(reply.found, contact.address)[:INDEX_TAKEN_MAX]
                    self._look_at(named, mask, tried, know, partial(answer, further))
                else:
                    answer(None)

            self._ask(contact.key, contact.address, [question], done)

        try:
            async with self._clock.timeout(time_s):
                await walk(level_walk, self._clock, ask)
        except TimeoutError:
            pass
        self._counters.search_requests += level_walk.asked_count
        self._note(level_walk)
        return level_walk.result()

    async def advertise(self, life_s: float) -> None:
        """Have ads kept for what is rare about this node, one feature after the other."""
        for feature in self._rare():
            level_walk = self._walk(feature.key, INDEX_REGISTER_PER_LEVEL, None)
            await walk(level_walk, self._clock, partial(self._register, level_walk.target, int(life_s)))
            self._note(level_walk)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the ads are consistent."""
        self.registrar.check_invariants()

    # --- parts ------------------------------------------------------------------------------------

    def _walk(self, key: bytes, per_level: int, want: int | None) -> LevelWalk:
        soft_s, hard_s = self._timeouts(False)
        return LevelWalk(
            key,
            self._table.contacts(),
            own_id=self._table.own_id,
            per_level=per_level,
            first=first_level(self._queries.group_size()),
            soft_s=soft_s,
            hard_s=hard_s,
            rng=self._rng,
            want=want,
        )

    def _look_at(
        self,
        named: Sequence[Contact],
        mask: int,
        tried: dict[bytes, None],
        know: Callable[[Contact], None],
        ended: Callable[[], None],
    ) -> None:
        """Ping nodes that somebody named, tell `know` of those that fit, and say when all have answered or will not.

        Args:
            tried: keys of those that this search has looked at already.
        """
        new = [contact for contact in named if contact.key not in tried]
        tried.update(dict.fromkeys(contact.key for contact in new))
        left = len(new)
        if not left:
            ended()

        def done(contact: Contact, reply: Message | None) -> None:
            nonlocal left
            left -= 1
            if isinstance(reply, Pong):
                said, wanted = reply.class_bits, mask & CLASS_MASK
                if said is None or said & wanted == wanted:
                    know(contact)
            if not left:
                ended()

        for contact in new:
            self._ask(contact.key, contact.address, [Ping()], partial(done, contact))

    def _note(self, level_walk: LevelWalk) -> None:
        if level_walk.asked_count:
            self._silent_at = -math.inf if level_walk.answered_count else self._clock.now()

    def _register(self, key: bytes, life_s: int, contact: Contact, answer: Answer) -> None:
        """Ask one peer to keep an ad; once more with the token that it gives."""
        bits = self._bits or 0

        def done(is_again: bool, reply: Message | None) -> None:
            if not isinstance(reply, Registered):
                answer(None)
            elif reply.outcome is Outcome.TOKEN and not is_again:
                question = Register(key, reply.token, life_s, bits)
                self._ask(contact.key, contact.address, [question], partial(done, True))
            else:
                self._counters.ads_placed += reply.outcome is Outcome.OK
                answer(reachable(reply.contacts, contact.address))

        self._ask(contact.key, contact.address, [Register(key, b"", life_s, bits)], partial(done, False))

    def _share(self, feature: Feature) -> tuple[int, int]:
        """How many contacts have a feature of the class, and of how many it is known."""
        return len(self._table.having(feature.bits)), len(self._table.having(0))

    def _rarest(self, features: Sequence[Feature]) -> Feature:
        """Under which few advertise: of a feature that no class tells nothing is known, so it is taken for rare."""
        return min(features, key=lambda one: self._share(one)[0] if one.is_in_class else -1)

    def _rare(self) -> list[Feature]:
        """What this node advertises: first what no class tells, then what the fewest contacts have."""
        chosen = []
        for feature in self._features:
            having, known = self._share(feature) if feature.is_in_class else (-1, DHT_K)
            if known >= DHT_K and is_rare(having, known):
                chosen.append((having, feature))
        chosen.sort(key=lambda pair: pair[0])
        return [feature for _, feature in chosen[:INDEX_ADS_PER_NODE_MAX]]
