"""Ed25519 and the system's randomness, by PyNaCl (libsodium).

libsodium refuses signatures that are not canonical and public keys of small order, so that a signature has
one form and belongs to one key.

Source: RFC 8032.
"""

from __future__ import annotations

import functools
import os

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from p2pcompute.limits import SIGNING_KEYS_CACHED_MAX


class RealCrypto:
    """Implements `host.interfaces.Crypto`.  Safe to share between threads."""

    def __init__(self) -> None:
        # Expanding a seed costs as much as signing itself, and a node signs with the same one or two keys.
        self._signing_key = functools.lru_cache(maxsize=SIGNING_KEYS_CACHED_MAX)(SigningKey)

    def random_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes from the operating system."""
        return os.urandom(count)

    def public_key(self, seed: bytes) -> bytes:
        """Return the 32-byte public key of a 32-byte secret seed."""
        return bytes(self._signing_key(seed).verify_key)

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """Return the 64-byte signature of `message` under the key of `seed`."""
        return self._signing_key(seed).sign(message).signature

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is right.  Keys and signatures of a wrong length are just not right."""
        try:
            VerifyKey(public_key).verify(message, signature)
        except (CryptoError, ValueError):
            return False
        return True
