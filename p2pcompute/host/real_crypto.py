"""Ed25519 and the system's randomness, by PyNaCl (libsodium).

libsodium refuses signatures that are not canonical and public keys of small order, so that a signature has
one form and belongs to one key.

Source: RFC 8032.
"""

from __future__ import annotations

import functools
import os

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import SIGNING_KEYS_CACHED_MAX

_SIGNATURE_BYTES = 64


class RealCrypto:
    """Implements `host.interfaces.Crypto`.  Safe to share between threads.

    Calls libsodium's functions themselves: the objects that PyNaCl puts around them take a third as long again.
    """

    def __init__(self) -> None:
        # Expanding a seed costs as much as signing itself, and a node signs with the same one or two keys.
        self._key_pair = functools.lru_cache(maxsize=SIGNING_KEYS_CACHED_MAX)(crypto_sign_seed_keypair)

    def random_bytes(self, count: int) -> bytes:
        """Return `count` unpredictable bytes from the operating system."""
        return os.urandom(count)

    def public_key(self, seed: bytes) -> bytes:
        """Return the 32-byte public key of a 32-byte secret seed."""
        return self._key_pair(seed)[0]

    def sign(self, seed: bytes, message: bytes) -> bytes:
        """Return the 64-byte signature of `message` under the key of `seed`."""
        return crypto_sign(message, self._key_pair(seed)[1])[:_SIGNATURE_BYTES]

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is right.  Keys and signatures of a wrong length are just not right."""
        if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + message, public_key)
        except CryptoError:
            return False
        return True
