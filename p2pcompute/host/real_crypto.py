"""Ed25519, X25519 and the system's randomness, by PyNaCl (libsodium).

libsodium refuses signatures that are not canonical and public keys of small order, so that a signature has
one form and belongs to one key.

Two keys share a third one: X25519 over the same curve points, hashed with both public keys.  To make it costs about as
much as to sign and verify once (93 and 78 µs), each use of it 1.2 µs.

Source: RFC 8032, RFC 7748; E. Thormarker, "On using the same key pair for Ed25519 and an X25519 based KEM" (2021).
"""

from __future__ import annotations

import functools
import hashlib
import os

from nacl.bindings import (
    crypto_scalarmult,
    crypto_sign,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import PAIR_KEYS_CACHED_MAX, SIGNING_KEYS_CACHED_MAX

_SIGNATURE_BYTES = 64
_PAIR_KEY_BYTES = 32


class RealCrypto:
    """Implements `host.interfaces.Crypto`.  Safe to share between threads.

    Calls libsodium's functions themselves: the objects that PyNaCl puts around them take a third as long again.
    """

    def __init__(self) -> None:
        # Expanding a seed costs as much as signing itself, and a node signs with the same one or two keys.
        self._key_pair = functools.lru_cache(maxsize=SIGNING_KEYS_CACHED_MAX)(crypto_sign_seed_keypair)
        self._pair_key = functools.lru_cache(maxsize=PAIR_KEYS_CACHED_MAX)(self._make_pair_key)

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

    def tag(self, seed: bytes, public_key: bytes, message: bytes) -> bytes:
        """Return the 64 bytes that only the holders of these two keys can make."""
        return hashlib.blake2b(message, key=self._pair_key(seed, public_key)).digest()

    def _make_pair_key(self, seed: bytes, public_key: bytes) -> bytes:
        own_public, secret = self._key_pair(seed)
        try:
            point = crypto_sign_ed25519_pk_to_curve25519(public_key)
            shared = crypto_scalarmult(crypto_sign_ed25519_sk_to_curve25519(secret), point)
        except CryptoError:  # nobody has such a key: of small order, or no point
            return os.urandom(_PAIR_KEY_BYTES)
        both = b"".join(sorted((own_public, public_key)))
        return hashlib.blake2b(shared + both, digest_size=_PAIR_KEY_BYTES, person=b"p2pc pair").digest()
