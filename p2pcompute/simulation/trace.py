"""What happened in a run, as a hash: two runs are the same when their hashes are.

A record is (virtual time in integer nanoseconds, host number, kind, 32-bit digest of the content).  Everything
that crosses a host's seam is recorded: packets that arrive, commits, outcomes of tasks, crashes.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import Final

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


class Trace:
    """Hash of all records so far.  Bounded memory."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
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
        self._buffer += _pack(int(now * 1e9), node, kind, digest)
        self.count += 1
        if len(self._buffer) >= _FLUSH_BYTES:
            self._hash.update(self._buffer)
            self._buffer.clear()

    def digest(self) -> str:
        """SHA-256 of all records so far, in hex.  Recording can go on."""
        self._hash.update(self._buffer)
        self._buffer.clear()
        return self._hash.copy().hexdigest()
