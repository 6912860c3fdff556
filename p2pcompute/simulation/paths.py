"""What happens to packets between two machines: bursts of loss, access lines, partitions.

Everything here is a model in virtual time that is advanced when a packet asks; memory is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from p2pcompute.limits import KIB
from p2pcompute.simulation.loop import SimulationLoop

BURST_PATHS_MAX: Final = 1 << 16
"""Paths whose state is remembered; of the one that was asked for longest ago it is drawn anew."""
PIECE_BYTES: Final = 16 * KIB
"""What a stream puts on an access line at once."""


class BurstLoss:
    """Gilbert-Elliott loss: each path is good, or bad for a while, and a bad one loses much.

    The two-state chain runs in continuous time.  Its state is drawn only when a packet asks, with the probability
    that follows from the last known state and its age.

    Args:
        share: of the time that a path is bad, above 0 and below 1.
        burst_s: mean time that it is bad at a stretch.
        loss: probability that a bad path loses a packet.
        draw: uniform on [0, 1).
    Source: E. N. Gilbert, "Capacity of a burst-noise channel", 1960, with loss below 1 after E. O. Elliott, 1963.
    """

    def __init__(self, share: float, burst_s: float, loss: float, draw: Callable[[], float]) -> None:
        self._share = share
        self._loss = loss
        # 1 / (rate of getting bad + rate of getting good): how fast the past is forgotten.
        self._memory_s = burst_s * (1.0 - share)
        self._draw = draw
        self._states: dict[int, tuple[bool, float]] = {}

    def loss(self, path: int, now: float) -> float:
        """Probability that a packet on the path is lost at a time, which may be a little before the last one."""
        bad = self._share
        known = self._states.pop(path, None)
        if known is not None:
            was_bad, at = known
            bad += (was_bad - bad) * math.exp(min(0.0, at - now) / self._memory_s)
        elif len(self._states) >= BURST_PATHS_MAX:
            del self._states[next(iter(self._states))]
        is_bad = self._draw() < bad
        self._states[path] = (is_bad, now)
        return self._loss if is_bad else 0.0


class Line:
    """One direction of a machine's access line: a first-in first-out queue before a wire.

    Fluid: only the time at which the queue will be empty is kept.  Datagrams that find it full are dropped.  Streams
    wait in turn for room and keep it nearly full, as a long transfer over a home line does: they make datagrams late,
    and leave room for them.
    Source: `txFinished` of OverSim's SimpleUnderlay.
    """

    __slots__ = ("_bytes_per_s", "_empty_at", "_is_waking", "_loop", "_queue_bytes", "_room_bytes", "_waiting")

    def __init__(self, loop: SimulationLoop, bytes_per_s: float, queue_bytes: int) -> None:
        self._loop = loop
        self._bytes_per_s = bytes_per_s
        self._queue_bytes = queue_bytes
        self._room_bytes = max(0, queue_bytes - 2 * PIECE_BYTES)
        """Up to here, streams fill the queue."""
        self._empty_at = 0.0
        self._waiting: dict[Callable[[], None], None] = {}
        self._is_waking = False

    @property
    def bytes_per_s(self) -> float:
        return self._bytes_per_s

    @property
    def backlog_bytes(self) -> float:
        """What is in the queue now."""
        return max(0.0, self._empty_at - self._loop.time()) * self._bytes_per_s

    def change(self, bytes_per_s: float, queue_bytes: int) -> None:
        """Go on with another speed and queue.  What has been given a time keeps it."""
        backlog_bytes = self.backlog_bytes
        self._bytes_per_s, self._queue_bytes = bytes_per_s, queue_bytes
        self._room_bytes = max(0, queue_bytes - 2 * PIECE_BYTES)
        self._empty_at = self._loop.time() + backlog_bytes / bytes_per_s

    def take(self, size: int) -> float | None:
        """When a datagram will be through, or None when it finds no room and is dropped."""
        now = self._loop.time()
        start = max(now, self._empty_at)
        if (start - now) * self._bytes_per_s + size > self._queue_bytes:
            return None
        self._empty_at = start + size / self._bytes_per_s
        return self._empty_at

    def append(self, size: int) -> float:
        """When a piece of a stream will be through, which is never dropped."""
        self._empty_at = max(self._loop.time(), self._empty_at) + size / self._bytes_per_s
        return self._empty_at

    def is_busy(self) -> bool:
        """Whether a stream must wait: there is no room for pieces of streams, or others wait already."""
        return bool(self._waiting) or self.backlog_bytes > self._room_bytes

    def call_in_turn(self, callback: Callable[[], None]) -> None:
        """Call back once, after those who wait already and when there is room: for one piece."""
        self._waiting[callback] = None
        if not self._is_waking:
            self._is_waking = True
            # A byte less than that fits, so that rounding cannot make this wake at the same instant for ever.
            excess_bytes = max(0.0, self.backlog_bytes - self._room_bytes) + 1.0
            self._loop.post(self._loop.time() + excess_bytes / self._bytes_per_s, self._wake, None)

    def _wake(self, _: Any) -> None:
        self._is_waking = False
        while self._waiting and self.backlog_bytes <= self._room_bytes:
            callback = next(iter(self._waiting))
            del self._waiting[callback]
            callback()
        if self._waiting:
            self.call_in_turn(next(iter(self._waiting)))


class Partition:
    """Groups of machines between which nothing passes.  Machines in no group reach all: they are bridges.

    Args:
        groups: of machines, by their numbers, each in at most one.
        is_one_way: packets from a later group to an earlier one pass.
    """

    def __init__(self, groups: Sequence[Iterable[int]], *, is_one_way: bool) -> None:
        self._sides = {number: side for side, group in enumerate(groups) for number in group}
        self._is_one_way = is_one_way

    def cuts(self, sender: int, receiver: int) -> bool:
        """Whether packets from one to the other are lost."""
        one, other = self._sides.get(sender), self._sides.get(receiver)
        if one is None or other is None:
            return False
        return one < other if self._is_one_way else one != other
