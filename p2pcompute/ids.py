"""Identifiers and how people read them.

A node's identity is its 32-byte Ed25519 public key.  People see it as a *device id*: base32 with check
characters, in groups of four (``K7QD-3MZF-…``).  The DHT places it at ``SHA-256(public key)[:20]``,
always derived by the receiver and never taken from the wire.

Source: the Luhn mod N algorithm (ISO/IEC 7812-1 generalised) for the check characters, as Syncthing's
device ids use it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from p2pcompute.errors import UsageError

PUBLIC_KEY_BYTES: Final = 32
DHT_ID_BYTES: Final = 20
JOB_ID_BYTES: Final = 32
TASK_ID_BYTES: Final = 16

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_BODY_CHARS: Final = 52
"""Base32 of 32 bytes without padding."""
_CHUNK_CHARS: Final = 13
"""One check character follows each chunk: 4 chunks, 56 characters, 14 groups of 4."""

ALIAS_FIRST: Final = "abcdefghjkmnpqrstuvwxyz"
ALIAS_REST: Final = "abcdefghjkmnpqrstuvwxyz23456789"
"""Characters of a local job alias: none that can be read wrongly (no 0, O, 1, l, i)."""


def dht_id(public_key: bytes) -> bytes:
    """Return the place of a node in the DHT's key space: 20 bytes."""
    return hashlib.sha256(public_key).digest()[:DHT_ID_BYTES]


def _check_char(chunk: str) -> str:
    """Luhn mod 32 check character of `chunk`."""
    factor, total, base = 1, 0, len(_ALPHABET)
    for char in chunk:
        addend = factor * _ALPHABET.index(char)
        factor = 1 if factor == 2 else 2
        total += addend // base + addend % base
    return _ALPHABET[(base - total % base) % base]


def format_device_id(public_key: bytes) -> str:
    """Return the device id of a 32-byte public key: 14 groups of 4 characters joined by '-'."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    body = base64.b32encode(public_key).decode().rstrip("=")
    chunks = [body[i : i + _CHUNK_CHARS] for i in range(0, _BODY_CHARS, _CHUNK_CHARS)]
    text = "".join(chunk + _check_char(chunk) for chunk in chunks)
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def short_device_id(public_key: bytes) -> str:
    """Return the first two groups of the device id, as shown beside a node's name."""
    return format_device_id(public_key)[:9]


def parse_device_id(text: str) -> bytes:
    """Return the public key that a device id names.

    Raises:
        UsageError: a character or a check character is wrong; the message names the group.
    """
    compact = text.replace("-", "").replace(" ", "").upper().replace("0", "O").replace("1", "I").replace("8", "B")
    expected = _BODY_CHARS + _BODY_CHARS // _CHUNK_CHARS
    if len(compact) != expected:
        raise UsageError(
            f"a device id has {expected} characters, this has {len(compact)}",
            "part of it is missing or doubled",
            "copy the whole id from: p2pc status --json",
            code="bad-id",
        )
    body = []
    for index, start in enumerate(range(0, expected, _CHUNK_CHARS + 1)):
        chunk, check = compact[start : start + _CHUNK_CHARS], compact[start + _CHUNK_CHARS]
        if any(char not in _ALPHABET for char in chunk + check) or _check_char(chunk) != check:
            raise UsageError(
                f"the device id has a typing error in part {index + 1} of 4",
                "its check character does not fit",
                "compare it with the other screen",
                code="bad-id",
            )
        body.append(chunk)
    key = base64.b32decode("".join(body) + "====")
    if format_device_id(key).replace("-", "") != compact:
        # The last character has bits to spare; only one of its forms is the id.
        raise UsageError(
            "the device id has a typing error in part 4 of 4",
            "its last characters do not belong together",
            "compare it with the other screen",
            code="bad-id",
        )
    return key


def task_id(parent: bytes, call_index: int) -> bytes:
    """Return the id of a task: H(parent, call index), 16 bytes.

    Args:
        parent: the job's id, or the parent task's.
        call_index: position among the parent's tasks, from 0.
    """
    return hashlib.blake2b(parent + call_index.to_bytes(8, "big"), digest_size=TASK_ID_BYTES).digest()


def job_alias(job_id: bytes, taken: frozenset[str] | set[str] | dict[str, bytes]) -> str:
    """Return a four-character local alias of a job, not in `taken`; starts with a letter.

    The alias is derived from the job id, so the same job gets the same alias where it is free.  After 64
    collisions it grows by a character.
    """
    for attempt in range(256):
        number = int.from_bytes(hashlib.blake2b(job_id + bytes([attempt]), digest_size=8).digest(), "big")
        size = 4 + attempt // 64
        text = ALIAS_FIRST[number % len(ALIAS_FIRST)]
        number //= len(ALIAS_FIRST)
        for _ in range(size - 1):
            text += ALIAS_REST[number % len(ALIAS_REST)]
            number //= len(ALIAS_REST)
        if text not in taken:
            return text
    raise UsageError("no free job alias is left", "too many jobs are kept", "run: p2pc prune", code="jobs-full")
