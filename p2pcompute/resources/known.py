"""What other nodes said of themselves, kept for a while.  Pure.

Bounds: NODES_KNOWN_MAX nodes and NODES_KNOWN_BYTES_MAX of what they sent; the one heard of longest ago goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from p2pcompute.errors import InvariantViolation
from p2pcompute.limits import NODES_KNOWN_BYTES_MAX, NODES_KNOWN_MAX
from p2pcompute.resources.attributes import Attributes, Value, values

HAS = "has"


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What one node said of itself at one moment."""

    attributes: Attributes
    """Measured by our own wall clock."""
    heard_s: float
    """Monotonic time at which it came."""
    words: frozenset[str]
    """Applications about which it was asked: those among them that `has` does not name are not there."""
    size: int
    """Bytes that it took on the wire."""

    def view(self, wall_s: float, words: Collection[str] = (), age_s_max: float | None = None) -> dict[str, Value]:
        """Return the values that may be believed now.

        Args:
            words: applications that matter; without an answer about all of them `has` is unknown.
            age_s_max: how old values that change may be.
        """
        found = values(self.attributes, wall_s, age_s_max)
        has = found.get(HAS)
        if isinstance(has, tuple) and not all(word in self.words or word in has for word in words):
            del found[HAS]
        return found


class KnownNodes:
    """Knowledge by public key, the one heard of longest ago first."""

    def __init__(self, *, count_max: int = NODES_KNOWN_MAX, bytes_max: int = NODES_KNOWN_BYTES_MAX) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._by_key: dict[bytes, Knowledge] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._by_key))

    def get(self, key: bytes) -> Knowledge | None:
        return self._by_key.get(key)

    def put(self, key: bytes, knowledge: Knowledge) -> int:
        """Keep what a node said instead of what it said before; return how many others were forgotten for it."""
        self.forget(key)
        self._by_key[key] = knowledge
        self._bytes += knowledge.size
        count = 0
        while len(self._by_key) > self._count_max or (self._bytes > self._bytes_max and len(self._by_key) > 1):
            self.forget(next(iter(self._by_key)))
            count += 1
        return count

    def forget(self, key: bytes) -> None:
        knowledge = self._by_key.pop(key, None)
        if knowledge is not None:
            self._bytes -= knowledge.size

    def clear(self) -> None:
        self._by_key.clear()
        self._bytes = 0

    def check_invariants(self) -> None:
        """Raise InvariantViolation unless the bounds hold and the bytes add up."""
        size = sum(knowledge.size for knowledge in self._by_key.values())
        if size != self._bytes or len(self._by_key) > self._count_max:
            raise InvariantViolation(f"{len(self._by_key)} nodes known, {size} bytes counted as {self._bytes}")
        if size > self._bytes_max and len(self._by_key) > 1:
            raise InvariantViolation(f"{size} bytes of nodes known")
