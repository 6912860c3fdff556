"""Write tokens: a node keeps records only for those who have shown that what is sent to their address reaches them.

A token is a keyed hash of address, sender and key, so that nothing has to be remembered for it; it goes out with every
answer to FIND, and is asked for when a record comes without.  The secret is drawn anew every TOKEN_ROTATE_S; tokens of
the one before are accepted as well, so each is good for TOKEN_ROTATE_S to twice that.

Source: BEP 5.  Deviations: bound to the key as well, so a token does not let a peer fill the rest of the store.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from p2pcompute.dht.contacts import pack_address
from p2pcompute.dht.messages import TOKEN_BYTES
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import DHT_TOKEN_ROTATE_S

_SECRET_BYTES = 32


class WriteTokens:
    """Tokens of one node."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._secrets = (random_bytes(_SECRET_BYTES), random_bytes(_SECRET_BYTES))
        """The present one and the one before."""
        self._drawn_at: float | None = None

    def issue(self, address: Address, sender: bytes, key: bytes, *, now: float) -> bytes:
        """Return the token with which `sender` may put records under `key` from this address."""
        self._rotate(now)
        return _token(self._secrets[0], address, sender, key)

    def accepts(self, token: bytes, address: Address, sender: bytes, key: bytes, *, now: float) -> bool:
        """Whether a token was issued for exactly this, not longer than twice DHT_TOKEN_ROTATE_S ago."""
        self._rotate(now)
        return any(hmac.compare_digest(token, _token(secret, address, sender, key)) for secret in self._secrets)

    def _rotate(self, now: float) -> None:
        if self._drawn_at is None:
            self._drawn_at = now
        age_s = now - self._drawn_at
        if age_s >= DHT_TOKEN_ROTATE_S:
            before = self._secrets[0] if age_s < 2 * DHT_TOKEN_ROTATE_S else self._random_bytes(_SECRET_BYTES)
            self._secrets = (self._random_bytes(_SECRET_BYTES), before)
            self._drawn_at = now - age_s % DHT_TOKEN_ROTATE_S  # however late somebody asks


def _token(secret: bytes, address: Address, sender: bytes, key: bytes) -> bytes:
    bound = pack_address(address) + sender + key
    return hashlib.blake2b(bound, key=secret, digest_size=TOKEN_BYTES, person=b"p2pc token").digest()
