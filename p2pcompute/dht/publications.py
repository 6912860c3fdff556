"""The records that this node publishes and keeps alive: when each is to be put again.  Pure.

A record is put anew, under the next sequence number, when half of its life is over, give or take a tenth, so that the
records of nodes that started together do not travel together; a put that nobody took is tried again soon.  So a record
can be read for as long as its publisher lives, and for one life after that.

Source: BEP 44 for putting again under a higher number; libp2p's reprovide, at half of a provider record's life.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcompute.errors import LocalProtocolError
from p2pcompute.limits import DHT_PUBLICATIONS_MAX, DHT_REPUBLISH_S_MIN

if TYPE_CHECKING:
    import random

_JITTER = 0.1


@dataclass(slots=True)
class Publication:
    """Something that this node says, and how it stands."""

    salt: bytes
    value: bytes
    ttl_s: float
    """Life of each record of it, in seconds."""
    due: float
    """When it is to be put, in clock seconds."""
    seq: int = 0
    """Of the record that was put last."""


class Publications:
    """What this node publishes, by salt."""

    def __init__(self) -> None:
        self._by_salt: dict[bytes, Publication] = {}

    def __len__(self) -> int:
        return len(self._by_salt)

    def publish(self, salt: bytes, value: bytes, *, ttl_s: float, now: float) -> Publication:
        """Say something from now on, in the place of what was said under this salt before; it is due at once.

        Raises:
            LocalProtocolError: this node publishes DHT_PUBLICATIONS_MAX others (our bug).
        """
        known = self._by_salt.get(salt)
        if known is None and len(self._by_salt) >= DHT_PUBLICATIONS_MAX:
            raise LocalProtocolError(f"more than {DHT_PUBLICATIONS_MAX} records of one node")
        publication = Publication(salt, value, ttl_s, now, 0 if known is None else known.seq)
        self._by_salt[salt] = publication
        return publication

    def withdraw(self, salt: bytes) -> None:
        """Put it no more: it ends with the life of its last record."""
        self._by_salt.pop(salt, None)

    def next_due(self) -> float | None:
        """Return when to ask `take_due` next; None without any."""
        return min((one.due for one in self._by_salt.values()), default=None)

    def take_due(self, now: float) -> Publication | None:
        """Return what is to be put now, the longest due first, one at a time; until it is noted what became of it, it
        counts as tried."""
        first = min(self._by_salt.values(), key=lambda one: one.due, default=None)
        if first is None or first.due > now:
            return None
        first.due = now + DHT_REPUBLISH_S_MIN
        return first

    def next_seq(self, publication: Publication, wall: float) -> int:
        """Return the sequence number of the next record: by the clock, so that it rises over restarts, and always."""
        publication.seq = max(publication.seq + 1, int(wall))
        return publication.seq

    def on_put(self, publication: Publication, *, is_taken: bool, now: float, rng: random.Random) -> None:
        """Note whether others took it."""
        wait_s = publication.ttl_s / 2 if is_taken else min(DHT_REPUBLISH_S_MIN, publication.ttl_s / 4)
        publication.due = now + wait_s * rng.uniform(1 - _JITTER, 1 + _JITTER)
