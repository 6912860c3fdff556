"""Strict canonical CBOR.

What comes from a peer is accepted only when it is the one canonical encoding of an allowed value: tags,
floats (unless asked for), indefinite lengths, map keys that are not int, bytes or str, duplicate keys, trailing
bytes and deep nesting are refused.

Source: RFC 8949 section 4.2.1 (core deterministic encoding) with the key order of section 4.2.3 (length first).
Deviations: cbor2 alone accepts trailing bytes and duplicate keys, decodes tags to rich objects and nests to
400; so a scan of the raw bytes refuses what we do not allow before cbor2 sees it, and the result must
re-encode to identical bytes.
"""

from __future__ import annotations

from typing import Any, Final

import cbor2

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.limits import CBOR_DEPTH_MAX

_LONG_BYTES: Final = 16 * 1024
"""Bytes that are worth the detour in `_dumps`; at least 256, so that their head has the form written there."""

type_error = (TypeError, ValueError, OverflowError, cbor2.CBOREncodeError)


def encode(value: Any) -> bytes:
    """Return the canonical encoding of int, bytes, str, bool, None, float, list/tuple and dict.

    Integers have at most 64 bits and map keys are int, bytes or str: cbor2 can write more, and `decode` refuses it.

    Raises:
        LocalProtocolError: the value is of a type that cbor2 does not know (our bug).
    """
    try:
        return _dumps(value)
    except type_error as error:
        raise LocalProtocolError("a message cannot be encoded", str(error)) from error


def decode(data: bytes, *, allow_float: bool = False, depth_max: int = CBOR_DEPTH_MAX) -> Any:
    """Return the value of canonical bytes.

    Args:
        data: exactly one encoded item.
        allow_float: whether floats may appear (only where the message says so).

    Raises:
        RemoteProtocolError: the peer sent anything else.
    """
    _scan(data, allow_float, depth_max)
    try:
        value = cbor2.loads(data)
        canonical = _dumps(value)
    except Exception as error:  # cbor2 raises many types on hostile bytes; all mean the same
        raise RemoteProtocolError("bytes are not CBOR", str(error)) from error
    if canonical != data:
        raise RemoteProtocolError("bytes are not canonical CBOR")
    return value


def _dumps(value: Any) -> bytes:
    """Return what cbor2 writes; for a short list that ends in long bytes (a frame with a chunk) without its copies.

    Measured for 512 KiB: 0.02 ms instead of 0.7 ms.
    """
    last = value[-1] if type(value) is list and 0 < len(value) < 24 else None
    if type(last) is bytes and _LONG_BYTES <= (size := len(last)) < 1 << 32:
        head = (0x5A << 32 | size).to_bytes(5, "big") if size >> 16 else (0x59 << 16 | size).to_bytes(3, "big")
        rest = [cbor2.dumps(item, canonical=True) for item in value[:-1]]
        return b"".join([bytes([0x80 | len(value)]), *rest, head, last])
    return cbor2.dumps(value, canonical=True)


def _scan(data: bytes, allow_float: bool, depth_max: int) -> None:
    """Walk the heads of all items; refuse tags, floats, indefinite lengths, nesting, wrong total length.

    Every head consumes at least one byte and containers claim at most the bytes left, so the walk is linear.
    """
    position, end = 0, len(data)
    stack: list[tuple[int, bool]] = []  # items still expected at each open level, and whether it is a map
    expected, is_map = 1, False
    while True:
        while expected == 0:
            if not stack:
                if position != end:
                    raise RemoteProtocolError("bytes after the CBOR item")
                return
            expected, is_map = stack.pop()
        is_key = is_map and expected & 1 == 0
        expected -= 1
        if position >= end:
            raise RemoteProtocolError("CBOR is cut short")
        head = data[position]
        position += 1
        major, info = head >> 5, head & 31
        if is_key and major > 3:
            raise RemoteProtocolError("a CBOR map key that is not int, bytes or text")
        if major == 7:
            if info in (20, 21, 22):
                continue
            size = {25: 2, 26: 4, 27: 8}.get(info)
            if size is None or not allow_float:
                raise RemoteProtocolError("CBOR simple value or float is not allowed here")
            position += size
            if position > end:
                raise RemoteProtocolError("CBOR is cut short")
            continue
        if info < 24:
            argument = info
        elif info < 28:
            size = 1 << (info - 24)
            argument = int.from_bytes(data[position : position + size], "big")
            position += size
            if position > end:
                raise RemoteProtocolError("CBOR is cut short")
        else:
            raise RemoteProtocolError("CBOR of indefinite length")
        if major == 6:
            raise RemoteProtocolError("CBOR tags are not allowed")
        if major in (2, 3):
            position += argument
            if position > end:
                raise RemoteProtocolError("CBOR is cut short")
        elif major in (4, 5):
            items = argument * (2 if major == 5 else 1)
            if items > end - position:
                raise RemoteProtocolError("CBOR is cut short")
            if len(stack) + 1 > depth_max:
                raise RemoteProtocolError("CBOR is nested too deep")
            stack.append((expected, is_map))
            expected, is_map = items, major == 5
