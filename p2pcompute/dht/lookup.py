"""One iterative lookup as a passive object: it says whom to ask and is told what came.  Pure.

Nobody waits for a slow peer: a peer that has not answered within the soft timeout leaves the window and the next
one is asked, while its late answer still counts until the hard timeout.  There are no rounds.  At the end, late peers
that would be in the result are waited for a little longer.

A lookup goes over several paths that share no peer.  The seeds are dealt out to them; what a peer says widens the
window of the path in whose name it was asked, and of no other; each path has its own allowance of requests and goes on
until the k nearest of which it has heard have answered, and its first few seeds besides: liars of one mind name the
same peers on every path on which one of them was asked, and these would be all that is asked.  So one honest peer
among the first seeds leads to the right place.  With a radius, whoever was heard of within it is asked as well, the
farthest first: peers that crowd around the key by the hundred then do not hide the others that belong there.

Properties, each of them tested:
 1. it terminates, whatever peers answer, after at most DHT_LOOKUP_REQUESTS_MAX requests;
 2. it asks nobody twice and never asks its own node;
 3. at most α peers are within their soft timeout at once; α is as many as have answered, within its bounds, less those
    that confirmed just now;
 4. the result holds only peers that answered (or did so just before: `credit`), nearest first, at most k;
 5. when every peer answers truthfully, the result is the k nearest of all that can be reached from the seeds;
 6. where no more than k peers are known it waits for late ones: in a small group it ends when all have answered or
    failed;
 7. liars cannot keep the nearest peers from the result when one path has honest seeds only;
 8. of those heard of within the radius everybody is asked, as long as there are requests left.

Source: Kademlia, section 2.3; Baumgart and Mies, "S/Kademlia", 2007, for disjoint paths; `closest.rs` of rust-libp2p
for the shape.
Deviations: α counts peers within the soft timeout, and grows with answers that did not end the lookup, if it is to; a
late peer leaves the k-window.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from p2pcompute.dht.contacts import Contact, place_of
from p2pcompute.errors import InvariantViolation
from p2pcompute.limits import (
    DHT_ALPHA,
    DHT_K,
    DHT_LOOKUP_CANDIDATES_MAX,
    DHT_LOOKUP_REQUESTS_MAX,
    DHT_PATH_REQUESTS_MAX,
    DHT_PATH_ROOTS,
    DHT_PATHS,
    DHT_REQUEST_S,
    DHT_SOFT_S_MAX,
    DHT_SOFT_S_MIN,
)


class PeerState(StrEnum):
    """Where a peer of a lookup is."""

    HEARD = "heard"
    """Known, not asked."""
    WAITING = "waiting"
    """Asked, within the soft timeout."""
    LATE = "late"
    """Asked, past the soft timeout; its answer is still taken, and waited for if it would be in the result."""
    OVERDUE = "overdue"
    """Asked, past `late_softs` soft timeouts; its answer is still taken."""
    ANSWERED = "answered"
    FAILED = "failed"


# Reading a member of an enum costs as much as the rest of a line in the loops below.
_HEARD, _WAITING, _LATE = PeerState.HEARD, PeerState.WAITING, PeerState.LATE
_OVERDUE, _ANSWERED, _FAILED = PeerState.OVERDUE, PeerState.ANSWERED, PeerState.FAILED
_NO_PATH = -1
_PATIENCE_RTTS = 2
"""A peer whose round trip is known is waited for at least so many of them, if it would be in the result."""
_HELD_SOFTS = 0.25
"""With 10 % dead contacts a get takes 5.6 requests so instead of 6.3, and 5.2 if they were held until others are late,
but then 3.02 median round trips instead of 2.93 (p95)."""
_PATHS_OF = tuple(tuple(path for path in range(DHT_PATHS) if bits >> path & 1) for bits in range(1 << DHT_PATHS))


class _Peer(Struct, gc=False):
    contact: Contact
    depth: int
    paths: int
    """Those that have heard of it, as bits."""
    path: int = _NO_PATH
    """In whose name it was asked; _NO_PATH when only because it is within the radius."""
    is_root: bool = False
    """Asked whoever is nearer."""
    state: PeerState = PeerState.HEARD
    asked: float = 0.0
    late_s: float = 0.0
    """For how long it is waited for if it would be in the result."""


class RttEstimate:
    """Round-trip estimate over all peers, for peers of which nothing is known yet.

    Source: RFC 6298 section 2.
    Deviations: a quarter of its gains, because successive samples come from different peers; and half of its margin to
    look past a peer, which costs one request more if it was only slow, while everybody behind a dead one waits: among
    10 % dead contacts a lookup takes 11.6 median round trips (p50) so, and 14.5 with the RFC's gains and margin.
    """

    def __init__(self, *, soft_s_min: float = DHT_SOFT_S_MIN, resend_s_min: float = DHT_SOFT_S_MIN) -> None:
        """Args: soft_s_min, resend_s_min: lower bounds of `soft_s` and `resend_s`."""
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._soft_s_min = soft_s_min
        self._resend_s_min = resend_s_min

    def add(self, sample_s: float) -> None:
        """Take in the round trip of a request that was sent once, in seconds."""
        if self._srtt is None:
            self._srtt, self._rttvar = sample_s, sample_s / 2
            return
        self._rttvar += (abs(self._srtt - sample_s) - self._rttvar) / 16
        self._srtt += (sample_s - self._srtt) / 32

    @property
    def srtt_s(self) -> float | None:
        """Smoothed round trip in seconds; None before the first sample."""
        return self._srtt

    @property
    def soft_s(self) -> float:
        """When a lookup looks past a peer: srtt + 2·rttvar within its bounds; the upper one before the first sample."""
        return self._bounded(2, self._soft_s_min)

    @property
    def resend_s(self) -> float:
        """When a request is sent again: srtt + 4·rttvar, within its bounds."""
        return self._bounded(4, self._resend_s_min)

    def _bounded(self, margin: int, lowest_s: float) -> float:
        if self._srtt is None:
            return DHT_SOFT_S_MAX
        return min(DHT_SOFT_S_MAX, max(lowest_s, self._srtt + margin * self._rttvar))


class Lookup:
    """The k nearest peers of a key that answer."""

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        *,
        own_id: bytes,
        soft_s: float,
        hard_s: float = DHT_REQUEST_S,
        k: int = DHT_K,
        alpha: int = DHT_ALPHA,
        alpha_within: int | None = None,
        alpha_max: int | None = None,
        late_softs: int = 3,
        paths: int = DHT_PATHS,
        radius: int = 0,
    ) -> None:
        """Start a lookup.

        Args:
            target: the key, 20 bytes.
            seeds: contacts to start from, nearest first; all of them are candidates.
            own_id: never asked and never in the result.
            soft_s: seconds after which the lookup looks past a peer.
            hard_s: seconds after which a peer has failed.
            k: size of the result.
            alpha: peers asked at once, at first.
            alpha_within: the same when the next one is asked in any case: within the radius, or one of the first seeds
                of a path; None: as `alpha`.
            alpha_max: they are as many as have answered, up to so many: answers that do not end a lookup call for
                haste; None: `alpha`.
            late_softs: soft timeouts for which a peer that would be in the result is waited for; one that is known
                to be slow a little longer.
            paths: how many that share no peer.
            radius: distance from the key within which everybody is asked.
        """
        self.target = target
        self._number = int.from_bytes(target, "big")
        self._own_id = own_id
        self._soft_s = min(soft_s, hard_s)
        self._hard_s = hard_s
        self._late_s = min(late_softs * self._soft_s, hard_s)
        self._k = k
        self._alpha = alpha
        self._alpha_within = alpha if alpha_within is None else alpha_within
        self._alpha_max = alpha if alpha_max is None else alpha_max
        self._radius = radius
        self._peers: dict[int, _Peer] = {}
        self._under_way: dict[int, _Peer] = {}
        """Those that were asked and have neither answered nor failed."""
        self._order: list[int] = []
        self._seen: tuple[dict[int, int], bool] | None = None
        """What `_windows` has found, until something changes."""
        self._asked_count = 0
        self._credited: list[_Peer] = []
        """Those that count as having answered though they were not asked."""
        self._answered_count = 0
        self._held_count = 0
        """Places in which nobody is asked before `_held_until`."""
        self._held_until: float | None = None
        self._allowances = [DHT_PATH_REQUESTS_MAX] * paths
        self._is_finished = False
        for number, seed in enumerate(seeds):
            self._hear([seed], 1, 1 << number % paths)
            if number < paths * DHT_PATH_ROOTS and seed.id != own_id:
                self._peers[seed.number ^ self._number].is_root = True
        self._roots = [peer for peer in self._peers.values() if peer.is_root]

    # --- events ---

    def credit(self, contact_ids: Iterable[bytes]) -> None:
        """Take seeds for having answered without asking them, as long as those who are asked do.  Only before the first
        `poll`."""
        for contact_id in contact_ids:
            peer = self._peers.get(self._distance(contact_id))
            if peer is not None and peer.state is _HEARD:
                peer.state = _ANSWERED
                self._credited.append(peer)

    def poll(self, now: float) -> list[Contact]:
        """Return the contacts to ask now; they count as asked."""
        self._expire(now)
        chosen: list[Contact] = []
        if self._is_finished:
            return chosen
        waiting = [peer.path for peer in self._under_way.values() if peer.state is _WAITING]
        if self._held_until is not None and now >= self._held_until:
            self._held_count, self._held_until = 0, None
        alpha = max(1, max(self._alpha, min(self._answered_count, self._alpha_max)) - self._held_count)
        alpha_within = max(alpha, self._alpha_within - self._held_count)
        while len(waiting) < alpha_within and self._asked_count < DHT_LOOKUP_REQUESTS_MAX:
            candidates, _ = self._windows()
            allowed = [one for one in candidates if len(waiting) < alpha or self._is_certain(candidates[one])]
            if allowed:
                path = min(allowed, key=lambda one: (waiting.count(one), candidates[one]))
                self._allowances[path] -= 1
                peer = self._peers[candidates[path]]
            elif not candidates and (far := self._farthest_within()) is not None:
                path, peer = _NO_PATH, self._peers[far]
            else:
                break
            peer.state, peer.asked, peer.path = _WAITING, now, path
            peer.late_s = min(max(self._late_s, _PATIENCE_RTTS * (peer.contact.rtt_s or 0.0)), self._hard_s)
            self._under_way[peer.contact.number ^ self._number] = peer
            self._seen = None
            self._asked_count += 1
            waiting.append(path)
            chosen.append(peer.contact)
        return chosen

    def on_answer(self, contact_id: bytes, heard: Iterable[Contact] = ()) -> None:
        """Take in the answer of a peer that was asked, and the contacts in it.  Others are ignored."""
        peer = self._under_way.pop(self._distance(contact_id), None)
        if peer is None:
            return
        peer.state = _ANSWERED
        self._answered_count += 1
        self._seen = None
        if not self._is_finished:
            self._hear(heard, peer.depth + 1, 1 << peer.path if peer.path != _NO_PATH else peer.paths)

    def on_failure(self, contact_id: bytes) -> None:
        """Note that a peer that was asked will not answer."""
        peer = self._under_way.pop(self._distance(contact_id), None)
        if peer is not None:
            if peer.state is _WAITING:
                self._distrust()
            peer.state = _FAILED
            self._seen = None

    def confirm(self, now: float) -> None:
        """Note that an answer had what is looked for, though not enough of it: those who are asked already may have the
        rest, so for a quarter of the soft timeout nobody is asked in its place."""
        self._held_count += 1
        self._held_until = now + _HELD_SOFTS * self._soft_s

    def finish(self) -> None:
        """End it: what was looked for has been found."""
        self._is_finished = True

    # --- questions ---

    @property
    def is_done(self) -> bool:
        """Whether nobody is to be asked or waited for any more."""
        if self._is_finished:
            return True
        if self._is_waiting_near():
            return False
        candidates, is_waiting = self._windows()
        may_ask = self._asked_count < DHT_LOOKUP_REQUESTS_MAX
        if is_waiting or (may_ask and (candidates or self._farthest_within() is not None)):
            return False
        answered = 0
        for distance in self._order:
            state = self._peers[distance].state
            if state is _ANSWERED:
                answered += 1
            may_matter = answered < self._k or distance <= self._radius
            if may_matter and (state is _WAITING or (state is _LATE and answered < self._k)):
                return False
        return answered >= self._k or len(self._order) > self._k or not self._under_way

    def deadline(self) -> float | None:
        """The clock time of the next timeout, or when a held place is free again; None when nothing is waited for."""
        first = self._held_until
        for peer in self._under_way.values():
            state = peer.state
            if state is _WAITING:
                due = peer.asked + self._soft_s
            elif state is _LATE:
                due = peer.asked + peer.late_s
            else:
                due = peer.asked + self._hard_s
            if first is None or due < first:
                first = due
        return first

    def result(self) -> list[Contact]:
        """At most k contacts that answered, nearest first."""
        answered = (self._peers[d] for d in self._order if self._peers[d].state is PeerState.ANSWERED)
        return [peer.contact for peer, _ in zip(answered, range(self._k), strict=False)]

    def unasked(self) -> list[Contact]:
        """Contacts that were heard of and not asked, nearest first."""
        return [self._peers[d].contact for d in self._order if self._peers[d].state is PeerState.HEARD]

    @property
    def asked_count(self) -> int:
        """Peers asked so far."""
        return self._asked_count

    @property
    def hops(self) -> int:
        """Requests one after the other that led to the nearest peer of the result; 0 without a result."""
        states = ((self._peers[d].state, self._peers[d].depth) for d in self._order)
        return next((depth for state, depth in states if state is PeerState.ANSWERED), 0)

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the object is consistent."""
        states = [peer.state for peer in self._peers.values()]
        asked = sum(state is not PeerState.HEARD for state in states) - len(self._credited)
        under_way = {one: peer for one, peer in self._peers.items() if peer.state in (_WAITING, _LATE, _OVERDUE)}
        if under_way != self._under_way:
            raise InvariantViolation(f"lookup: {len(self._under_way)} of {len(under_way)} under way")
        if self._order != sorted(self._peers) or asked != self._asked_count:
            raise InvariantViolation(f"lookup: {len(self._order)} in order, {len(states)} known, {asked} asked")
        if (
            states.count(PeerState.WAITING) > max(self._alpha_max, self._alpha_within)
            or len(states) > DHT_LOOKUP_CANDIDATES_MAX
        ):
            raise InvariantViolation(f"lookup: {states.count(PeerState.WAITING)} waiting, {len(states)} known")
        if min(self._allowances) < 0 or self._asked_count > DHT_LOOKUP_REQUESTS_MAX:
            raise InvariantViolation(f"lookup: {self._asked_count} asked, {self._allowances} left")

    # --- parts ---

    def _distrust(self) -> None:
        """Somebody does not answer in time: ask another one of those that were taken for having answered; all of them
        when nobody has answered, as it may be our link that is down."""
        count = 1 if self._answered_count else len(self._credited)
        for peer in self._credited[:count]:
            peer.state = _HEARD
        del self._credited[:count]

    def _distance(self, contact_id: bytes) -> int:
        return int.from_bytes(contact_id, "big") ^ self._number

    def _is_certain(self, distance: int) -> bool:
        """Whether a peer is asked in any case."""
        return distance <= self._radius or self._peers[distance].is_root

    def _hear(self, contacts: Iterable[Contact], depth: int, paths: int) -> None:
        for contact in contacts:
            distance = place_of(contact.key).number ^ self._number
            known = self._peers.get(distance)
            if known is not None:
                if known.paths | paths != known.paths:
                    known.paths |= paths
                    self._seen = None
                continue
            if contact.id == self._own_id:
                continue
            self._peers[distance] = _Peer(contact, depth, paths)
            self._seen = None
            insort(self._order, distance)
            if len(self._order) > DHT_LOOKUP_CANDIDATES_MAX:
                self._forget_farthest(paths)

    def _forget_farthest(self, paths: int) -> None:
        """Drop the farthest unasked peer that these paths alone have heard of: none of the others loses any.  There is
        one, the one that was just added."""
        for index in range(len(self._order) - 1, -1, -1):
            peer = self._peers[self._order[index]]
            if peer.state is PeerState.HEARD and peer.paths == paths and not peer.is_root:
                del self._peers[self._order.pop(index)]
                return

    def _windows(self) -> tuple[dict[int, int], bool]:
        """Look at the k nearest peers of each path that have neither failed nor are late, and then at its roots.

        Returns:
            For each path that may ask, the distance of the nearest one that was not asked; whether any path waits.
        """
        if self._seen is not None:
            return self._seen
        candidates: dict[int, int] = {}
        is_waiting = False
        peers, allowances = self._peers, self._allowances
        left = [self._k] * len(allowances)
        open_bits = (1 << len(allowances)) - 1
        for distance in self._order:
            peer = peers[distance]
            bits = peer.paths & open_bits
            state = peer.state
            if not bits or not (state is _ANSWERED or state is _HEARD or state is _WAITING):
                continue
            if state is _WAITING:
                is_waiting = True
            for path in _PATHS_OF[bits]:
                left[path] -= 1
                if not left[path]:
                    open_bits &= ~(1 << path)
                if state is _HEARD and path not in candidates and allowances[path]:
                    candidates[path] = distance
            if not open_bits:
                break
        for peer in self._roots:
            if peer.state is _WAITING:
                is_waiting = True
            elif peer.state is _HEARD:
                for path in _PATHS_OF[peer.paths]:
                    if allowances[path]:
                        candidates.setdefault(path, peer.contact.number ^ self._number)
        self._seen = candidates, is_waiting
        return self._seen

    def _farthest_within(self) -> int | None:
        """The distance of the farthest peer within the radius that was not asked."""
        for index in range(bisect_right(self._order, self._radius) - 1, -1, -1):
            if self._peers[self._order[index]].state is _HEARD:
                return self._order[index]
        return None

    def _is_waiting_near(self) -> bool:
        """Whether one of the k nearest that have neither failed nor are late is waited for: all windows have these."""
        left = self._k
        for distance in self._order:
            state = self._peers[distance].state
            if state is _WAITING:
                return True
            left -= state is _ANSWERED or state is _HEARD
            if not left:
                return False
        return False

    def _expire(self, now: float) -> None:
        for distance, peer in list(self._under_way.items()):
            before = peer.state
            if peer.state is _WAITING and now >= peer.asked + self._soft_s:
                peer.state = _LATE
            if peer.state is _LATE and now >= peer.asked + peer.late_s:
                peer.state = _OVERDUE
            if peer.state is not _WAITING and now >= peer.asked + self._hard_s:
                peer.state = _FAILED
                del self._under_way[distance]
            if peer.state is not before:
                self._seen = None
                if before is _WAITING:
                    self._distrust()


assert DHT_LOOKUP_REQUESTS_MAX < DHT_LOOKUP_CANDIDATES_MAX
