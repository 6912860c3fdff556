"""How fast blobs come to this node, measured from transfers that happened: nothing is sent to find out.  Pure.

A sample is a time during which chunks were under way without a pause, with all that came of all transfers.  Short ones
say more about round trips than about the way, and do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

SAMPLE_BYTES_MIN: Final = 1024 * 1024
"""Less says nothing about bandwidth."""
SAMPLE_S: Final = 5.0
"""A transfer that lasts is cut into samples of this length."""
SAMPLES_MAX: Final = 16
"""Samples that are kept: the latest."""
LIFETIME_S: Final = 3600.0
"""How long after the last sample the value may be believed."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What was measured, and how well."""

    bytes_per_s: float
    accuracy: float | None
    """Standard deviation of the samples; None of a single one."""
    at: float
    """End of the last sample."""


class BandwidthMeter:
    """Takes notice of chunks; bounded by SAMPLES_MAX."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        """(seconds, bytes)."""
        self._at = 0.0
        self._under_way = 0
        self._since = 0.0
        self._bytes = 0

    def began(self, now: float) -> None:
        """A chunk was asked for."""
        if not self._under_way:
            self._since, self._bytes = now, 0
        self._under_way += 1

    def ended(self, now: float, size: int) -> None:
        """A chunk of so many bytes has come; 0: it will not."""
        self._under_way -= 1
        self._bytes += size
        if not self._under_way or now - self._since >= SAMPLE_S:
            if self._bytes >= SAMPLE_BYTES_MIN and now > self._since:
                self._samples.append((now - self._since, self._bytes))
                del self._samples[:-SAMPLES_MAX]
                self._at = now
            self._since, self._bytes = now, 0

    def measured(self) -> Bandwidth | None:
        """Return the mean over the samples, by their length; None before the first."""
        took_s = math.fsum(seconds for seconds, _size in self._samples)
        if not took_s:
            return None
        mean = sum(size for _seconds, size in self._samples) / took_s
        if len(self._samples) == 1:
            return Bandwidth(mean, None, self._at)
        squares = math.fsum(seconds * (size / seconds - mean) ** 2 for seconds, size in self._samples)
        return Bandwidth(mean, math.sqrt(squares / took_s), self._at)
