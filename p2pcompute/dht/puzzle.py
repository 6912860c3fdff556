"""The static puzzle of an open group: keys whose hash begins with so many zero bits.  Pure.

Where anybody may enter, keys cost nothing, and whoever tries a hundred of them for each node of the group surrounds a
record with his own.  With a puzzle of n bits only one key in 2^n counts, so the same work leaves him with 2^-n of the
places to choose from.  An honest node pays once, for its one key; everybody checks by one hash, before the signature.
The place in the key space comes from another hash, so a solved key is nowhere in particular.

Source: Baumgart and Mies, "S/Kademlia", 2007, section 4.1 (the static puzzle).
Deviations: the puzzle is over the key itself, under a domain of its own, instead of the hash of the id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

_DOMAIN: Final = b"p2pc puzzle 1"
_KEYS_MAX: Final = 4096
BITS_MAX: Final = 24
"""Sixteen million keys on average: twenty minutes of a core."""


@lru_cache(maxsize=_KEYS_MAX)
def solved_bits(key: bytes) -> int:
    """Return how many bits of a puzzle a public key solves."""
    return 256 - int.from_bytes(hashlib.sha256(_DOMAIN + key).digest(), "big").bit_length()


def is_solved(key: bytes, bits: int) -> bool:
    """Whether a public key counts in a group whose puzzle has so many bits."""
    return bits <= 0 or solved_bits(key) >= bits


def solve(public_key_of: Callable[[bytes], bytes], seeds: Iterable[bytes], bits: int) -> bytes | None:
    """Return the first seed of a key that counts; None when there is none among them.

    Args:
        public_key_of: gives the public key of a seed.
    """
    return next((seed for seed in seeds if is_solved(public_key_of(seed), bits)), None)
