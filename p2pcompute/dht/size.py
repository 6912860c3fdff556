"""How many nodes a group has, by how near to a key its nearest nodes are; and so how far a record is spread.  Pure.

Places are uniform in the key space, so the i-th nearest of n nodes is expected at i / (n + 1) of the space.  One
neighbourhood of 20 gives n within about a quarter; the median of several, around keys that have nothing to do with one
another, is better and cannot be moved by whoever crowds around one of them.

A record belongs to every node within the expected distance of the k-th nearest, not only to the k nearest that answer:
peers crafted around a key can be the k nearest, but the others that belong there are not fewer for it.

Source: least squares through the origin; Kostyuk et al., `netsize` of go-libp2p-kad-dht, for taking it from lookups;
arXiv 2505.01139 for storing in a region.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Final

from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import DHT_K

_SPACE: Final = 1 << (8 * DHT_ID_BYTES)
_SAMPLES_MAX: Final = 16
_NEIGHBOURS_MIN: Final = 5
"""With fewer an estimate says nothing."""


def size_by(distances: Iterable[int]) -> float | None:
    """Return the number of nodes by the distances of the nearest ones from a key, ascending; None with too few."""
    squares = products = count = 0
    for rank, distance in enumerate(distances, 1):
        squares += rank * rank
        products += rank * distance
        count = rank
    return squares * _SPACE / products - 1 if count >= _NEIGHBOURS_MIN and products else None


class GroupSize:
    """What the lookups of one node say about the size of its group.  Bounded: the last few of them."""

    def __init__(self) -> None:
        self._samples: list[float] = []

    def note(self, target: bytes, numbers: Iterable[int]) -> None:
        """Take in the ids, as integers, of the nearest nodes of a key, nearest first."""
        key = int.from_bytes(target, "big")
        sample = size_by(number ^ key for number in numbers)
        if sample is not None:
            self._samples.append(sample)
            del self._samples[:-_SAMPLES_MAX]

    def estimate(self, *more: float | None) -> float | None:
        """Return the median of the samples and of `more`; None without any."""
        samples = [*self._samples, *(one for one in more if one is not None)]
        return median(samples) if samples else None


def radius_of(size: float, count: int = DHT_K) -> int:
    """Return the distance from a key within which `count` of so many nodes are expected."""
    return min(_SPACE - 1, int(_SPACE / (size + 1) * count))
