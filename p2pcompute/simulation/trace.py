"""What happened in a run, as a hash: two runs are the same when their hashes are.

A record is (virtual time in integer nanoseconds, host number, kind, 32-bit digest of the content).  Everything
that crosses a host's seam is recorded: packets that arrive, commits, outcomes of tasks, crashes.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

RING_DEFAULT: Final = 256
_FLUSH_BYTES: Final = 64 * 1024
_pack: Final = struct.Struct(">QIHI").pack


class Kind(IntEnum):
    """What a record is about."""

    DATAGRAM = 1
    """A datagram was delivered; digest of its bytes."""
    STREAM = 2
    """Bytes of a stream arrived; their digest."""
    OPENED = 3
    """A stream was accepted."""
    ENDED = 4
    """End of a stream arrived."""
    RESET = 5
    """A stream was reset."""
    LAN = 6
    """Another node's announcement was seen."""
    COMMIT = 7
    """A transaction became durable; digest of its writes."""
    RUN = 8
    """A task ended; digest of its outcome."""
    CRASH = 9
    RESTART = 10
    NOTE = 11
    """Recorded by a test or a scenario."""


class Record(NamedTuple):
    """One event of a trace."""

    at_ns: int
    node: int
    kind: int
    digest: int

    def __str__(self) -> str:
        return f"{self.at_ns / 1e9:.9f} s  host {self.node}  {Kind(self.kind).name.lower()}  {self.digest:08x}"


class Trace:
    """Hash of all records so far, and the last few of them.  Bounded memory."""

    def __init__(self, ring: int = RING_DEFAULT) -> None:
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._ring: deque[tuple[int, int, int, int]] = deque(maxlen=ring)
        self.count = 0
        """Records so far."""

    def record(self, now: float, node: int, kind: int, digest: int) -> None:
        """Add a record.

        Args:
            now: virtual time in seconds.
            node: number of the host, 0 for the world.
            kind: a `Kind`.
            digest: unsigned 32 bits that stand for the content.
        """
        at_ns = int(now * 1e9)
        self._ring.append((at_ns, node, kind, digest))
        self._buffer += _pack(at_ns, node, kind, digest)
        self.count += 1
        if len(self._buffer) >= _FLUSH_BYTES:
            self._hash.update(self._buffer)
            self._buffer.clear()

    def digest(self) -> str:
        """SHA-256 of all records so far, in hex.  Recording can go on."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.copy().hexdigest()

    def last(self, count: int = RING_DEFAULT) -> list[Record]:
        """The last `count` records that are still kept, oldest first."""
        return [Record(*entry) for entry in self._ring][-count:] if count else []
