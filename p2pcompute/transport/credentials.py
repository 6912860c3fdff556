"""What transport needs to know about us and our group, and what it says about a peer.

`node/` implements `Credentials` from identity and trust; transport itself knows nothing about membership.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol

from p2pcompute.host.interfaces import Address
from p2pcompute.identity.keys import Identity

HINT_BYTES: Final = 4
_HINTS_MAX: Final = 64
"""Network keys, and keys of invitations, whose hint is remembered."""
WORDS_KEY: Final = hashlib.blake2b(b"", digest_size=32, person=b"p2pc words").digest()
"""Key of the preamble of those who were invited by words: no secret.  It opens the joining exchange, rate-limited,
while such an invitation is open."""
ANYBODY: Final = bytes(32)
"""Instead of the listener's key in a preamble under WORDS_KEY: the dialler knows an address and no key."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer whose key is proven."""

    key: bytes
    """The public key that it proved: 32 bytes."""
    installation: bytes
    """The installation's key; equal to `key` unless the peer is a delegate."""
    name: str
    hello: dict[str, Any] = field(default_factory=dict, compare=False)
    """What it said about itself, checked by `Credentials.check_peer`; unchecked on a joining channel."""
    addresses: tuple[Address, ...] = ()
    may_work: bool = True
    """False: a delegate that its installation gave no work to do."""


class Credentials(Protocol):
    """Who we are and whom we accept."""

    @property
    def identity(self) -> Identity: ...

    @property
    def name(self) -> str: ...

    def network_keys(self) -> Sequence[bytes]:
        """The network keys that are accepted, the one to use first."""

    def hello(self) -> dict[str, Any]:
        """What a peer gets to know about us inside the handshake: delegation, admit chain, name, …

        Text keys, no floats; encoded at most HANDSHAKE_BYTES_MAX less 1 KiB.
        """

    def check_peer(self, key: bytes, hello: dict[str, Any]) -> PeerInfo:
        """Return the member with the proven `key`.

        Raises:
            TrustError: not a member.
            RemoteProtocolError: `hello` is malformed.
        """

    def invite_keys(self) -> Sequence[bytes]:
        """Preamble keys of the open invitations; see `invite_key`."""


@lru_cache(maxsize=_HINTS_MAX)
def group_hint(network_key: bytes) -> bytes:
    """Return the 4 bytes by which members recognise the key that a datagram or connection is for."""
    return hashlib.blake2b(network_key, digest_size=HINT_BYTES, person=b"p2pc hint").digest()


def invite_key(secret: bytes) -> bytes:
    """Return the key of the preamble with which the holder of an invitation's secret connects."""
    return hashlib.blake2b(secret, digest_size=32, person=b"p2pc preamble").digest()
