"""Frames of a channel: 4-byte big-endian length, then that many bytes of CBOR."""

from __future__ import annotations

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.limits import FRAME_BYTES_MAX

_HEAD_BYTES = 4


def frame(body: bytes) -> bytes:
    """Return `body` with its length in front.

    Raises:
        LocalProtocolError: it is longer than FRAME_BYTES_MAX or empty.
    """
    if not 0 < len(body) <= FRAME_BYTES_MAX:
        raise LocalProtocolError(f"a frame of {len(body)} bytes")
    return len(body).to_bytes(_HEAD_BYTES, "big") + body


class FrameReader:
    """Cuts a byte stream into frames.  Holds at most one incomplete frame plus what was just fed."""

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now, in order.

        Raises:
            RemoteProtocolError: a length of 0 or above the limit; the stream cannot be used any more.
        """
        buffer = self._buffer
        buffer += data
        frames: list[bytes] = []
        position = 0
        while len(buffer) - position >= _HEAD_BYTES:
            size = int.from_bytes(buffer[position : position + _HEAD_BYTES], "big")
            if not 0 < size <= self._frame_bytes_max:
                raise RemoteProtocolError(f"a frame of {size} bytes")
            end = position + _HEAD_BYTES + size
            if len(buffer) < end:
                break
            frames.append(bytes(buffer[position + _HEAD_BYTES : end]))
            position = end
        if position:
            del buffer[:position]
        return frames
