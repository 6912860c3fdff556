"""Rate limits per source.  Pure: the time is passed in."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class _Bucket(Struct, gc=False):
    tokens: float
    filled: float


class TokenBuckets:
    """One token bucket per source, for at most `sources_max` sources; those not seen for longest are forgotten.

    A forgotten source starts again with a full bucket, so the table never blocks anybody by being full; and who was not
    seen until its bucket must be full again is forgotten.  That is done by generations: when it takes as long as
    filling a bucket, or half of the table is full, those who were seen become the former ones, and the former ones who
    were not seen since are gone.

    Args:
        rate_per_s: tokens that a bucket gains per second.
        burst: tokens that a full bucket holds, at least 1.
        sources_max: sources tracked, at least 1; where there is but one, what is for all.
    """

    __slots__ = ("_began", "_burst", "_former", "_generation_max", "_rate_per_s", "_recent", "refused")

    def __init__(self, *, rate_per_s: float, burst: float, sources_max: int) -> None:
        if rate_per_s <= 0 or burst < 1 or sources_max < 1:
            raise ValueError("a rate above 0, a burst and a size of at least 1 are needed")
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._generation_max = max(1, sources_max // 2)
        self._recent: dict[str, _Bucket] = {}
        self._former: dict[str, _Bucket] = {}
        self._began = float("-inf")
        """When the recent ones began to be gathered."""
        self.refused = 0

    def __len__(self) -> int:
        return len(self._recent) + len(self._former)

    def take(self, source: str, now: float) -> bool:
        """Take one token of `source`; False when it has none.

        Args:
            source: see `source_of`.
            now: monotonic seconds, never less than at the call before.
        """
        if (now - self._began) * self._rate_per_s >= self._burst:
            self._age(now)
        bucket = self._recent.get(source)
        if bucket is None:
            bucket = self._former.pop(source, None) or _Bucket(self._burst, now)
            if len(self._recent) >= self._generation_max:
                self._age(now)
            self._recent[source] = bucket
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._rate_per_s)
        bucket.filled = now
        if bucket.tokens < 1:
            self.refused += 1
            return False
        bucket.tokens -= 1
        return True

    def _age(self, now: float) -> None:
        """Forget the former ones; the recent ones are the former ones from now on."""
        self._recent, self._former = {}, self._recent
        self._began = now


class Crowd(Generic[T]):
    """At most `count_max` things of sources that know nothing of one another: a newcomer always finds room.

    Who has most makes it, with what it has had longest, so nobody keeps the others out without as many sources.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._sources: dict[T, str] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, thing: T, source: str) -> T | None:
        """Take a thing of a source in; return the one that had to go for it."""
        gone: T | None = None
        if len(self._sources) >= self._count_max:
            greediest = Counter(self._sources.values()).most_common(1)[0][0]
            gone = next(one for one, of in self._sources.items() if of == greediest)
            del self._sources[gone]
        self._sources[thing] = source
        return gone

    def discard(self, thing: T) -> None:
        """It has gone by itself."""
        self._sources.pop(thing, None)


def source_of(host: str, port: int) -> str:
    """Return what counts as one source: an IPv4 address, or the /64 of an IPv6 address.

    On loopback, where several nodes share the address and nobody outside can, it is the address and port.
    """
    if host.startswith("127.") or host == "::1":
        return f"{host} {port}"
    if ":" not in host:
        return host
    head, _, tail = host.partition("::")
    groups = head.split(":") if head else []
    if "::" in host:
        rest = tail.split(":") if tail else []
        groups += ["0"] * (8 - len(groups) - len(rest)) + rest
    return ":".join(groups[:4])
