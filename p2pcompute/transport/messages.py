"""Frame bodies: canonical CBOR ``[type, request id, body]``.  Pure.

Type and request id are read without decoding the rest, so that a reply nobody waits for and a message nobody
knows cost next to nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.wire import cbor

JOIN_TYPES: Final = range(16, 20)
BLOB_TYPES: Final = range(64, 72)
REQUEST_ID_MAX: Final = 2**32 - 1
SERVICE_TYPE_MIN: Final = 16
"""The first type of message that a service may use."""


class MessageType(IntEnum):
    """Types of transport itself: 0 to 15."""

    REPLY = 1
    ERROR = 2
    HELLO = 3
    AUTH = 4
    WELCOME = 5
    PING = 6
    PONG = 7
    REPLACED = 8
    """One-way, before the end: another process with the receiver's key has opened a channel.  Who was restarted is not
    there any more to read it; who reads it shares its key with somebody."""


class Purpose(IntEnum):
    """What a channel is for, agreed in its handshake."""

    CONTROL = 0
    JOIN = 1
    """The dialler has an invitation and no membership."""
    BLOB = 2
    """Bulk data, apart from control so that it never delays a steal."""


def is_allowed(purpose: Purpose, message_type: int) -> bool:
    """Whether messages of a service's type may travel on a channel of this purpose."""
    match purpose:
        case Purpose.CONTROL:
            return message_type not in JOIN_TYPES
        case Purpose.JOIN:
            return message_type in JOIN_TYPES
        case Purpose.BLOB:
            return message_type in BLOB_TYPES


def encode_message(message_type: int, request_id: int, body: Any) -> bytes:
    """Return a frame body.

    Args:
        request_id: 0 for one-way messages.

    Raises:
        LocalProtocolError: `body` has a value that cannot be encoded.
    """
    return cbor.encode([int(message_type), request_id, body])


def peek(data: bytes) -> tuple[int, int]:
    """Return type and request id of a frame body.

    Raises:
        RemoteProtocolError: it does not begin like a message.
    """
    if not data or data[0] != 0x83:
        raise RemoteProtocolError("a frame is not a message")
    message_type, position = _uint(data, 1)
    request_id, _ = _uint(data, position)
    if request_id > REQUEST_ID_MAX:
        raise RemoteProtocolError("a request id out of range")
    return message_type, request_id


def _uint(data: bytes, position: int) -> tuple[int, int]:
    """The CBOR unsigned integer at `position`, and where it ends."""
    if position >= len(data):
        raise RemoteProtocolError("a frame is cut short")
    head = data[position]
    if head < 24:
        return head, position + 1
    if head > 27:
        raise RemoteProtocolError("a frame is not a message")
    end = position + 1 + (1 << (head - 24))
    if end > len(data):
        raise RemoteProtocolError("a frame is cut short")
    return int.from_bytes(data[position + 1 : end], "big"), end


def decode_body(data: bytes) -> Any:
    """Return the body of a frame that `peek` accepted.

    Raises:
        RemoteProtocolError: not canonical, not three items, or with values that are not allowed.
    """
    message = cbor.decode(data)
    if not isinstance(message, list) or len(message) != 3:
        raise RemoteProtocolError("a frame is not a message")
    return message[2]
