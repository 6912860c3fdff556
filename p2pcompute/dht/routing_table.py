"""The routing table: peers whose replies were verified, by XOR prefix.  Pure.

From the `kademlia` package: `KBucket` (its nodes, and the replacement cache behind them), with plain dicts for its
ordered ones (48 bytes less for each contact) and without its `time.monotonic` for a field that is not used here, so
that the table knows no clock.  Entries know when they were heard of: moving them to the end of their bucket at each
reply, to find the stalest at its head, makes a dict of twice the size (20 bytes for each contact).  `Node` holds up
but takes 154 bytes before any field of ours, `Entry` 80 with all; `Entry` has the same fields where `KBucket` looks.
`kademlia.routing` imports asyncio, which every node has loaded; beyond it the import costs 2 ms and 128 KiB, and
neither rpcudp nor sockets of its own.

Replaced, with what was measured of kademlia 2.2.3:

* `RoutingTable.find_neighbors`: not the nearest of its own table (recall .82 with 200 nodes, .41 for k = 8);
  `TableTraverser` drops the left buckets at the right edge (40 of 765 contacts came back).
* split rule and `get_bucket_for`: an id at a midpoint is stored in one bucket and looked up in the next.  Here
  a bucket is the number of leading bits shared with the own id: nothing splits, and nothing is ambiguous.
* ping on full: the order of a bucket never changes, so the same head is pinged on each new contact (4,235 pings
  for 5,000 contacts).  Here the stalest contacts are probed at a bounded rate, and the old, live ones stay.
* contacts from unverified datagrams: 641 of 646 entries were an attacker's after 1,000 made-up pings.
* `NodeHeap` and the crawls: see `lookup`.  `ForgetfulStorage`: see `records`.

Rules: a contact enters only by a verified reply.  After DHT_FAILURES_MAX unanswered probes it is evicted, unless
DHT_LINK_DOWN_CONTACTS different contacts in a row were silent: then it is our link that is down.  Evicted contacts
are remembered for a while and tried again, so that two nodes find each other after an outage.

In an open group with k contacts and more, only a few are taken of one address range.

Probing: up to k contacts, each every DHT_PING_S.  Above, only the stalest, as often as it pays: the gap between two
probes shrinks to half with each contact that is found silent and grows by a twentieth with each that answers, so that
about one probe in fifteen finds somebody gone.  It is never below that of k contacts, and a round of the whole table
takes at most DHT_PING_S · (contacts / k)^3: two and a half minutes for 50 contacts, four hours from 230 on.  A
silent contact is probed again after DHT_PING_S, whatever the gap.

Source: Kademlia, sections 2.2 and 2.4; pymdht for not evicting while the link is down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter
from sys import intern
from typing import NamedTuple

import msgspec
from kademlia.routing import KBucket
from msgspec import Struct

from p2pcompute.dht.contacts import Contact, Place, number_of, place_of, range_of
from p2pcompute.errors import InvariantViolation
from p2pcompute.host.interfaces import Address
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import (
    DHT_BUCKET_SIZES,
    DHT_DEPARTED_MAX,
    DHT_FAILURES_MAX,
    DHT_K,
    DHT_LINK_DOWN_CONTACTS,
    DHT_LOST_MAX,
    DHT_LOST_RETRY_S_MAX,
    DHT_LOST_S_MAX,
    DHT_PING_S,
    DHT_RANGE_PER_BUCKET_MAX,
    DHT_RANGE_PER_TABLE_MAX,
    DHT_REPLACEMENTS_MAX,
)

_ID_BITS = DHT_ID_BYTES * 8
_RTT_WEIGHT = 1 / 8
_PROBE_GAP_S_MIN = DHT_PING_S / DHT_K
"""Between two probes: as if k contacts were each probed every DHT_PING_S."""
_GAP_GROWTH = 1.05
_GAP_SHRINK = 0.5
_ROUND_POWER = 3
_ROUND_S_MAX = 4 * 3600.0
_ROUNDING_S = 1e-6
_new = tuple.__new__
"""Makes a named tuple without a call of Python's: twenty for each answer to a FIND."""


class Entry(msgspec.Struct, gc=False, eq=False):
    """A contact in a bucket, and how it is doing.  There are millions in a large simulation: what can be shared is, and
    as it refers to nothing that could refer back, the collector of garbage need not know it."""

    place: Place
    host: str
    port: int
    """Of its address, as a tuple for each contact takes 56 bytes more."""
    run: bytes
    """Drawn by the peer at its start: another one means that it restarted."""
    seen: float
    """Time of the last verified reply."""
    checked: float
    """Time of the last reply or probe."""
    name: str | None = None
    class_bits: int | None = None
    rtt_s: float | None = None

    @classmethod
    def of(cls, key: bytes, address: Address, *, run: bytes, now: float) -> Entry:
        """Return that of a contact of which nothing more is known."""
        return cls(place_of(key), address.host, address.port, run, now, now)

    @property
    def number(self) -> int:
        return self.place.number

    @property
    def id(self) -> int:
        """By which `KBucket` keeps it: bytes of the id besides would take 53 for each contact."""
        return self.place.number

    @property
    def long_id(self) -> int:
        return self.place.number

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    def is_at(self, address: Address) -> bool:
        """Whether this is its address."""
        return self.port == address.port and self.host == address.host

    @property
    def contact(self) -> Contact:
        """What others may know of it."""
        address = _new(Address, (self.host, self.port))
        return _new(Contact, (self.place.key, address, self.name, self.rtt_s, self.seen, self.class_bits))

    def measured(self, rtt_s: float) -> None:
        """Note a round trip."""
        self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + _RTT_WEIGHT * (rtt_s - self.rtt_s)

    def answered(self, run: bytes, now: float, name: str | None, rtt_s: float | None) -> None:
        """Note a verified reply."""
        if rtt_s is not None:
            self.measured(rtt_s)
        if name is not None and name != self.name:
            self.name = intern(name)
        if run != self.run:
            self.run = run
        self.seen = self.checked = now


_CHECKED = attrgetter("checked")
_STALE_COUNT = 8


class Bucket(KBucket):  # type: ignore[misc]  # the kademlia package has no types
    """Contacts that share the same number of leading bits with the own id."""

    nodes: dict[int, Entry]
    replacement_nodes: dict[int, Entry]
    ksize: int

    range = (0, 0)
    """Which ids belong here the table knows; the package's buckets ask for it only when they split."""

    def __init__(self, size: int) -> None:
        self.ksize, self.max_replacement_nodes = size, DHT_REPLACEMENTS_MAX
        self.nodes, self.replacement_nodes = {}, {}

    def touch_last_updated(self) -> None:
        """Read no clock: refreshing is decided elsewhere."""

    def add_node(self, entry: Entry) -> bool:
        """As in `KBucket`, with a plain dict for its ordered one."""
        waiting = self.replacement_nodes
        if len(self.nodes) < self.ksize or entry.id in self.nodes:
            return bool(super().add_node(entry))
        waiting.pop(entry.id, None)
        waiting[entry.id] = entry
        if len(waiting) > self.max_replacement_nodes:
            del waiting[next(iter(waiting))]
        return False

    def drop(self, entry: Entry) -> Entry | None:
        """Remove an entry and return the replacement that took its place."""
        before = next(reversed(self.replacement_nodes.values()), None) if self.replacement_nodes else None
        self.remove_node(entry)
        return before if before is not None and before.id in self.nodes else None


class Change(Struct, frozen=True, gc=False):
    """What an event did to the table."""

    added: tuple[Contact, ...] = ()
    removed: tuple[Contact, ...] = ()
    probe: Contact | None = None
    """To be pinged now: it answered elsewhere, and whether it is still here must be known."""


@dataclass(slots=True)
class _Lost:
    contact: Contact
    since: float
    try_at: float
    wait_s: float


class _Failing(NamedTuple):
    entry: Entry
    failed_at: float
    failures: int
    """Probes in a row without an answer."""


_NOTHING = Change()


class RoutingTable:
    """Verified contacts of one group."""

    def __init__(
        self,
        own_id: bytes,
        *,
        k: int = DHT_K,
        bucket_sizes: tuple[int, ...] = DHT_BUCKET_SIZES,
        is_open: bool = False,
    ) -> None:
        """Args:
        is_open: anybody may be in the group, under as many identities as he likes.
        """
        self.own_id = own_id
        self._is_open = is_open
        self._own = int.from_bytes(own_id, "big")
        self._k = k
        self._bucket_sizes = bucket_sizes
        self._buckets: dict[int, Bucket] = {}
        self._count = 0
        self._looked_at = float("-inf")
        """When somebody was probed, or nobody needed it yet."""
        self._stale: list[tuple[Entry, float]] = []
        """Those to be probed next, the first one last, and when they were checked then."""
        self._gap_s = _PROBE_GAP_S_MIN
        """Between two probes when there are more than k contacts, unless a round would take too long."""
        self._failing: dict[int, _Failing] = {}
        """Contacts whose last probe was not answered, the longest silent first."""
        self._alternatives: dict[int, Address] = {}
        """By id: another address at which a contact has answered while that which is known was live."""
        self._silent: dict[int, None] = {}
        self._lost: dict[int, _Lost] = {}
        self._departed: dict[tuple[bytes, bytes], None] = {}
        self.withheld_count = 0
        """Evictions that were left out because the own link seemed down."""

    # --- questions ---

    def __len__(self) -> int:
        return self._count

    def get(self, contact_id: bytes) -> Contact | None:
        """Return the contact with this id."""
        entry = self._entry(int.from_bytes(contact_id, "big"))
        return None if entry is None else entry.contact

    def has(self, key: bytes) -> bool:
        """Whether there is a contact with this key."""
        return self._entry(number_of(key)) is not None

    def is_at(self, key: bytes, address: Address) -> bool:
        """Whether there is a contact with this key at this address."""
        entry = self._entry(number_of(key))
        return entry is not None and entry.is_at(address)

    def keys(self) -> list[bytes]:
        """Return the keys of all contacts."""
        return [entry.place.key for bucket in self._buckets.values() for entry in bucket.nodes.values()]

    def contacts(self) -> list[Contact]:
        """Return all contacts, nearest to the own id first."""
        return self.nearest(self.own_id, self._count)

    def nearest(self, target: bytes, count: int, *, exclude: bytes = b"", live_only: bool = False) -> list[Contact]:
        """Return the `count` contacts nearest to `target`, nearest first; exact.

        Args:
            exclude: id of a contact to leave out.
            live_only: leave out those whose last probe was not answered.
        """
        number = int.from_bytes(target, "big")
        failing: Mapping[int, _Failing] = self._failing if live_only else {}
        found: list[tuple[int, Entry]] = []
        for group in self._groups(number) if self._count > count else (self._entries(),):
            # Distances differ, so entries are never compared; a tuple is built faster than a key function is called.
            ready = [(e.place.number ^ number, e) for e in group if e.place.number not in failing]
            ready.sort()
            found += ready
            if len(found) > count:
                break
        excluded = int.from_bytes(exclude, "big") if exclude else -1
        return [entry.contact for _, entry in found[: count + 1] if entry.number != excluded][:count]

    def distances(self, count: int) -> list[int]:
        """Return the distances of the `count` contacts nearest to the own id, ascending."""
        own = self._own
        found: list[int] = []
        for group in self._groups(own):
            found += sorted([entry.place.number ^ own for entry in group])
            if len(found) >= count:
                break
        return found[:count]

    def having(self, bits: int) -> list[Contact]:
        """Return the live contacts whose class has all these bits, in no particular order."""
        return [
            entry.contact
            for entry in self._entries()
            if entry.class_bits is not None and entry.class_bits & bits == bits and entry.number not in self._failing
        ]

    def wants(self, key: bytes, address: Address) -> bool:
        """Whether a reply from this peer at this address could change the table: if not, save the ping."""
        number = number_of(key)
        if number == self._own:
            return False
        entry = self._entry(number)
        if entry is not None:
            return not entry.is_at(address) and self._alternatives.get(number) != address
        if self._is_crowded(self._index(number), address):
            return False
        bucket = self._buckets.get(self._index(number))
        if bucket is None or len(bucket) < bucket.ksize:
            return True
        return number not in bucket.replacement_nodes and len(bucket.replacement_nodes) < DHT_REPLACEMENTS_MAX

    def has_left(self, key: bytes, run: bytes) -> bool:
        """Whether this run of a node has said goodbye."""
        return (key, run) in self._departed

    @property
    def is_link_down(self) -> bool:
        """Whether so many contacts in a row were silent that our own link must be down."""
        return len(self._silent) >= DHT_LINK_DOWN_CONTACTS

    @property
    def has_lost(self) -> bool:
        """Whether `lost_due` may have somebody to try again."""
        return bool(self._lost)

    @property
    def patience(self) -> float:
        """How much longer a node of a large group may take for what it does now and then; 1 for up to k contacts."""
        return float(max(1.0, (self._count / self._k) ** _ROUND_POWER))

    def far_buckets(self, depth: int) -> list[tuple[int, int]]:
        """Return the id ranges, ends included, of the `depth` farthest buckets, without those that are full."""
        indices = range(min(depth, _ID_BITS))
        return [self._range(i) for i in indices if i not in self._buckets or len(self._buckets[i]) < self._size(i)]

    def shared_bits(self, contact_id: bytes) -> int:
        """Return how many leading bits an id shares with the own id."""
        return self._index(int.from_bytes(contact_id, "big"))

    # --- events ---

    def on_reply(
        self,
        key: bytes,
        address: Address,
        *,
        run: bytes,
        now: float,
        name: str | None = None,
        rtt_s: float | None = None,
    ) -> Change:
        """Take in a verified reply of a peer from `address`.

        Args:
            name: what it calls itself, when the reply said so.
            rtt_s: round trip of the request, when it was sent once.
        """
        number = number_of(key)
        if number == self._own or (key, run) in self._departed:
            return _NOTHING
        if self._silent:
            self._silent.clear()
        entry = self._entry(number)
        if entry is None:
            entry = Entry.of(key, address, run=run, now=now)
            entry.answered(run, now, name, rtt_s)
            return self._enter(entry)
        if not entry.is_at(address):
            is_live = entry.run == run and number not in self._failing and now - entry.seen <= 2 * DHT_PING_S
            if is_live:
                is_new = self._alternatives.get(number) != address
                self._alternatives[number] = address
                return Change(probe=entry.contact) if is_new else _NOTHING
            if self._is_crowded(self._index(number), address, besides=entry):
                return self._remove(entry)
            self._move(entry, address)
        self._failing.pop(number, None)
        entry.answered(run, now, name, rtt_s)
        self._gap_s = min(self._gap_s * _GAP_GROWTH, _ROUND_S_MAX)
        return _NOTHING

    def on_rtt(self, key: bytes, rtt_s: float) -> None:
        """Note a round trip that was not known when the reply came."""
        entry = self._entry(number_of(key))
        if entry is not None:
            entry.measured(rtt_s)

    def on_class(self, key: bytes, class_bits: int) -> None:
        """Note what a contact says that it has; of others nothing is noted."""
        entry = self._entry(number_of(key))
        if entry is not None:
            entry.class_bits = class_bits

    def on_failure(self, key: bytes, address: Address, *, sent: float, now: float) -> Change:
        """Note that a request sent at time `sent` was not answered in time."""
        entry = self._entry(number_of(key))
        if entry is None or not entry.is_at(address) or sent < entry.seen:
            return _NOTHING
        failing = self._failing.get(entry.number)
        if failing is not None and sent < failing.failed_at:
            return _NOTHING  # the same silence, seen by requests that overlap
        count = 1 if failing is None else failing.failures + 1
        self._failing[entry.number] = _Failing(entry, now, count)
        if count == 1:
            self._gap_s = max(_PROBE_GAP_S_MIN, min(self._gap_s, self._gap_s_max()) * _GAP_SHRINK)
        alternative = self._alternatives.get(entry.number)
        if alternative is not None and not self._is_crowded(self._index(entry.number), alternative, besides=entry):
            self._move(entry, alternative)
            return Change(probe=entry.contact)
        self._silent[entry.number] = None
        while len(self._silent) > DHT_LINK_DOWN_CONTACTS:
            del self._silent[next(iter(self._silent))]
        if count < DHT_FAILURES_MAX:
            return _NOTHING
        if self.is_link_down:
            self.withheld_count += 1
            return _NOTHING
        self._lost[entry.number] = _Lost(entry.contact, now, now + DHT_PING_S, DHT_PING_S)
        while len(self._lost) > DHT_LOST_MAX:
            del self._lost[next(iter(self._lost))]
        return self._remove(entry)

    def on_goodbye(self, key: bytes, run: bytes) -> Change:
        """Remove a peer that has said goodbye, if it is this run of it that is known; an older goodbye is void."""
        self._departed[key, run] = None
        while len(self._departed) > DHT_DEPARTED_MAX:
            del self._departed[next(iter(self._departed))]
        number = number_of(key)
        bucket = self._buckets.get(self._index(number)) if number != self._own else None
        if bucket is None:
            return _NOTHING
        waiting = bucket.replacement_nodes.get(number)
        if waiting is not None and waiting.run == run:
            bucket.drop(waiting)
        entry = bucket.nodes.get(number)
        if entry is None or entry.run != run:
            return _NOTHING
        return self._remove(entry)

    def forget(self, key: bytes) -> Change:
        """Let go of a peer that is not to be in this table any more; nobody tries it again."""
        number = number_of(key)
        self._lost.pop(number, None)
        bucket = self._buckets.get(self._index(number)) if number != self._own else None
        if bucket is None:
            return _NOTHING
        waiting = bucket.replacement_nodes.get(number)
        if waiting is not None:
            bucket.drop(waiting)
        entry = bucket.nodes.get(number)
        return _NOTHING if entry is None else self._remove(entry)

    # --- probes ---

    def due(self, now: float, *, stretch: float = 1.0) -> list[Contact]:
        """Return the contacts to probe now, failing ones first, then the stalest; they count as probed.

        Args:
            stretch: by how much rarer to probe than if everybody kept up with answering; at least 1.
        """
        chosen: list[Entry] = []
        before = now + _ROUNDING_S - DHT_PING_S * stretch
        if self._count <= self._k:
            chosen = [entry for entry in self._entries() if entry.checked <= before]
        else:
            for entry, _, _ in self._failing.values():
                if entry.checked <= before and len(chosen) < self._k:
                    chosen.append(entry)
            if not chosen and self._looked_at + self._gap_now() * stretch <= now + _ROUNDING_S:
                self._looked_at = now
                stalest = self._stalest()
                if stalest is not None and stalest.checked <= before:
                    chosen.append(stalest)
        for entry in chosen:
            entry.checked = self._looked_at = now
        return [entry.contact for entry in chosen]

    def next_due(self, *, stretch: float = 1.0) -> float | None:
        """Return when to ask `due` next; None without contacts."""
        ping_s = DHT_PING_S * stretch
        if self._count <= self._k:
            return min((entry.checked + ping_s for entry in self._entries()), default=None)
        times = [failing.entry.checked + ping_s for failing in self._failing.values()]
        if len(self._failing) < self._count:
            times.append(self._looked_at + self._gap_now() * stretch)  # then it is seen who is stalest
        return min(times, default=None)

    def adopt(self, contacts: Iterable[tuple[Contact, bytes]], now: float) -> None:
        """Take contacts, with the run of each, as verified now and at rest: probed as rarely as if all had answered
        for long.  Those for which a bucket has no room are left out."""
        for contact, run in contacts:
            number = number_of(contact.key)
            index = self._index(number)
            if self._is_crowded(index, contact.address):
                continue
            bucket = self._buckets.get(index)
            if bucket is None:
                bucket = self._buckets[index] = Bucket(self._size(index))
            if number in bucket.nodes or len(bucket.nodes) >= bucket.ksize or number == self._own:
                continue
            entry = bucket.nodes[number] = Entry.of(contact.key, contact.address, run=run, now=now)
            entry.name, entry.rtt_s, entry.class_bits = contact.name, contact.rtt_s, contact.class_bits
            self._count += 1
            if self._is_open and self._count == self._k:
                self._thin_out()
        self._gap_s = self._gap_s_max()

    def lost_due(self, now: float) -> Contact | None:
        """Return an evicted contact to try again, if one is due.

        Each is tried after DHT_PING_S, then at doubling intervals, and forgotten after DHT_LOST_S_MAX unless there
        is no other contact.
        """
        for number, lost in list(self._lost.items()):
            if self._count and now - lost.since > DHT_LOST_S_MAX:
                del self._lost[number]
            elif lost.try_at <= now:
                lost.wait_s = min(2 * lost.wait_s, DHT_LOST_RETRY_S_MAX)
                lost.try_at = now + lost.wait_s
                return lost.contact
        return None

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the table is consistent."""
        seen = 0
        for index, bucket in self._buckets.items():
            seen += len(bucket)
            if len(bucket) > bucket.ksize or len(bucket.replacement_nodes) > DHT_REPLACEMENTS_MAX:
                raise InvariantViolation(f"routing table: bucket {index} holds {len(bucket)} of {bucket.ksize}")
            if bucket.replacement_nodes and len(bucket) < bucket.ksize:
                raise InvariantViolation(f"routing table: bucket {index} has room and replacements")
            for number, entry in [*bucket.nodes.items(), *bucket.replacement_nodes.items()]:
                lowest, highest = self._range(index)
                if number != entry.number or not lowest <= number <= highest:
                    raise InvariantViolation(f"routing table: {number:040x} in bucket {index}")
                if number in self._lost:
                    raise InvariantViolation(f"routing table: {number:040x} is lost as well")
            if bucket.nodes.keys() & bucket.replacement_nodes.keys():
                raise InvariantViolation(f"routing table: bucket {index} holds a contact twice")
        if seen != self._count:
            raise InvariantViolation(f"routing table: {self._count} counted, {seen} held")
        gone = [number for number, failing in self._failing.items() if self._entry(number) is not failing.entry]
        if gone:
            raise InvariantViolation(f"routing table: {len(gone)} are failing that are not in it")
        strangers = [number for number in self._alternatives if self._entry(number) is None]
        if strangers:
            raise InvariantViolation(f"routing table: other addresses of {len(strangers)} that are not in it")

    # --- parts ---

    def _gap_s_max(self) -> float:
        """The longest gap between two probes with so many contacts."""
        return max(_PROBE_GAP_S_MIN, min(_ROUND_S_MAX, DHT_PING_S * self.patience) / max(1, self._count))

    def _gap_now(self) -> float:
        return min(self._gap_s, self._gap_s_max())

    def _stalest(self) -> Entry | None:
        """The contact that was neither heard of nor probed for longest; failing ones have a time of their own.

        A few are found at once: as long as one of them was not heard of since, all others were later.
        """
        while self._stale:
            entry, checked = self._stale[-1]
            is_listed = self._entry(entry.number) is entry and entry.number not in self._failing
            if entry.checked == checked and is_listed:
                return entry
            self._stale.pop()
        failing = self._failing
        live = self._entries() if not failing else (entry for entry in self._entries() if entry.number not in failing)
        stalest = nsmallest(_STALE_COUNT, live, key=_CHECKED)
        self._stale = [(entry, entry.checked) for entry in reversed(stalest)]
        return stalest[0] if stalest else None

    def _index(self, number: int) -> int:
        return _ID_BITS - (self._own ^ number).bit_length()

    def _range(self, index: int) -> tuple[int, int]:
        """The ids that share exactly `index` leading bits with the own id: lowest and highest."""
        free_bits = _ID_BITS - index - 1
        lowest = ((self._own >> free_bits) ^ 1) << free_bits
        return lowest, lowest | ((1 << free_bits) - 1)

    def _size(self, index: int) -> int:
        return self._bucket_sizes[index] if index < len(self._bucket_sizes) else self._k

    def _entry(self, number: int) -> Entry | None:
        if number == self._own:
            return None
        bucket = self._buckets.get(self._index(number))
        return None if bucket is None else bucket.nodes.get(number)

    def _entries(self) -> Iterator[Entry]:
        for bucket in self._buckets.values():
            yield from bucket.nodes.values()

    def _groups(self, number: int) -> Iterator[list[Entry]]:
        """Entries in groups, each group nearer to `number` than the next one.

        With i bits shared by target and own id, bucket i shares more than i bits with the target, all deeper
        buckets share exactly i, and the shallower ones ever fewer.
        """
        shared = _ID_BITS - (self._own ^ number).bit_length()
        if shared in self._buckets:
            yield list(self._buckets[shared].nodes.values())
        deeper = [index for index in self._buckets if index > shared]
        yield [entry for index in deeper for entry in self._buckets[index].nodes.values()]
        for index in sorted((index for index in self._buckets if index < shared), reverse=True):
            yield list(self._buckets[index].nodes.values())

    def _enter(self, entry: Entry) -> Change:
        index = self._index(entry.number)
        if self._is_crowded(index, entry.address):
            return _NOTHING
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = Bucket(self._size(index))
        self._lost.pop(entry.number, None)
        if not bucket.add_node(entry):
            return _NOTHING
        self._count += 1
        if self._is_open and self._count == self._k:
            return Change(added=(entry.contact,), removed=self._thin_out())
        return Change(added=(entry.contact,))

    def _thin_out(self) -> tuple[Contact, ...]:
        """Let go of those who came when everybody was taken, and are too many of one address range."""
        removed: tuple[Contact, ...] = ()
        for entry in list(self._entries()):
            if self._crowd(self._index(entry.number), entry.address, besides=entry):
                removed += self._remove(entry).removed
        return removed

    def _is_crowded(self, index: int, address: Address, *, besides: Entry | None = None) -> bool:
        """Whether nobody more is taken from the range of this address."""
        return self._is_open and self._count >= self._k and self._crowd(index, address, besides=besides)

    def _crowd(self, index: int, address: Address, *, besides: Entry | None) -> bool:
        """Whether as many as may be are in a bucket, or in the table, from the range of this address."""
        sought = range_of(address.host)
        here = total = 0
        for number, bucket in self._buckets.items():
            for entry in (*bucket.nodes.values(), *bucket.replacement_nodes.values()):
                if entry is not besides and range_of(entry.host) == sought:
                    total += 1
                    here += number == index
        return here >= DHT_RANGE_PER_BUCKET_MAX or total >= DHT_RANGE_PER_TABLE_MAX

    def _move(self, entry: Entry, address: Address) -> None:
        """Let a contact have another address."""
        entry.host, entry.port = address
        self._alternatives.pop(entry.number, None)

    def _remove(self, entry: Entry) -> Change:
        index = self._index(entry.number)
        bucket = self._buckets[index]
        self._failing.pop(entry.number, None)
        self._alternatives.pop(entry.number, None)
        replacement = bucket.drop(entry)
        self._count -= 1
        if replacement is None:
            if not bucket.nodes:
                del self._buckets[index]
            return Change(removed=(entry.contact,))
        self._count += 1
        return Change(added=(replacement.contact,), removed=(entry.contact,))
