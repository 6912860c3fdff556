"""Frames of a channel: 4-byte big-endian length, then that many bytes of CBOR."""

from __future__ import annotations

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.limits import FRAME_BYTES_MAX

_HEAD_BYTES = 4
_PIECE_BYTES = 16 * 1024
"""Pieces of at least this size are kept as they came."""


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front.

    Raises:
        LocalProtocolError: it is longer than FRAME_BYTES_MAX or empty.
    """
    if not 0 < len(body) <= FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {len(body)} bytes")
    return len(body).to_bytes(_HEAD_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into frames.  Holds at most one incomplete frame plus what was just fed.

    The pieces of a frame are joined once, when its last one has come: a chunk of a blob is copied once on its way.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._head = b""
        """What has come of the next length."""
        self._pieces: list[bytes | bytearray] = []
        """What has come of the frame under way."""
        self._missing = 0
        """Bytes that have not come of the frame under way; 0 when none is."""
        self._broken = ""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now, in order.

        Raises:
            RemoteProtocolError: a length of 0 or above the limit; the stream cannot be used any more.
        """
        if self._broken:
            raise RemoteProtocolError(self._broken)
        if self._missing > len(data):
            self._keep(data)
            self._missing -= len(data)
            return []
        frames: list[bytes] = []
        position = self._missing
        if position:
            self._pieces.append(data[:position])
            frames.append(b"".join(self._pieces))
            self._pieces.clear()
            self._missing = 0
        elif self._head:
            data = self._head + data
        while len(data) - position >= _HEAD_BYTES:
            start = position + _HEAD_BYTES
            size = int.from_bytes(data[position:start], "big")
            if not 0 < size <= self._frame_bytes_max:
                self._broken = f"a frame of {size} bytes"
                raise RemoteProtocolError(self._broken)
            position = start + size
            if position > len(data):
                self._head = b""
                self._keep(data[start:])
                self._missing = position - len(data)
                return frames
            frames.append(data[start:position])
        self._head = data[position:]
        return frames

    def _keep(self, data: bytes) -> None:
        """Add a piece; small ones are put together, so that a sender of single bytes does not cost fifty for each."""
        if len(data) >= _PIECE_BYTES:
            self._pieces.append(data)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += data
        elif data:
            self._pieces.append(bytearray(data))
