"""What happens to packets between two machines: bursts of loss, access lines, partitions.

Everything here is a pure model in virtual time: it is advanced when a packet asks, never by events of its own, and
its memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

BURST_STATES_MAX: Final = 100_000
"""Paths whose state is remembered; of the one that was used longest ago it is drawn anew."""


class BurstLoss:
    """Gilbert-Elliott loss: each path is good, or bad for a while, and a bad one loses much.

    The two-state chain runs in continuous time; its state is drawn only when a packet asks, with the probability
    that follows from the last known state and its age.

    Args:
        share: of the time that a path is bad, 0 to 1 (exclusive).
        burst_s: mean time that it is bad at a stretch.
        loss: probability that a bad path loses a packet.
        draw: uniform on [0, 1).
    Source: E. N. Gilbert, "Capacity of a burst-noise channel", 1960, with loss below 1 after Elliott, 1963.
    """

    def __init__(self, share: float, burst_s: float, loss: float, draw: Callable[[], float]) -> None:
        self._share = share
        self._loss = loss
        # 1 / (rate of getting bad + rate of getting good): how fast the past is forgotten.
        self._memory_s = burst_s * (1.0 - share)
        self._draw = draw
        self._states: dict[int, tuple[bool, float]] = {}

    def is_lost(self, path: int, now: float) -> bool:
        """Whether a packet on the path is lost now."""
        draw = self._draw
        probability = self._share
        known = self._states.pop(path, None)
        if known is not None:
            was_bad, at = known
            probability += (was_bad - probability) * math.exp((at - now) / self._memory_s)
        elif len(self._states) >= BURST_STATES_MAX:
            del self._states[next(iter(self._states))]
        is_bad = draw() < probability
        self._states[path] = (is_bad, now)
        return is_bad and draw() < self._loss
