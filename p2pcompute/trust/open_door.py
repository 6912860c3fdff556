"""The door of an open group: whoever has done some work for his key comes in, as a stranger.

The work is a number for which a hash over the group, the joiner's key and the number begins with so many zero bits.  An
honest node does it once, in a second or so; who wants a thousand identities does it a thousand times.  It buys nothing
but the entry: no trust, and no place in the key space.

Pure.

Source: Baumgart and Mies, "S/Kademlia", 2007, section 4.1 (crypto puzzles against Sybils).
Deviations: over the key and the group, not over the key alone: keys of installations are older than the group, and one
key is in several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.limits import OPEN_PUZZLE_BITS_MAX
from p2pcompute.transport.credentials import WORDS_KEY
from p2pcompute.trust.admission import OPEN, ROLES_UNASKED, Grant, Knock
from p2pcompute.trust.meetings import Meetings

_DOMAIN: Final = b"p2pc open group 1"
_GROUP_ID_BYTES: Final = 32
_NUMBER_BYTES: Final = 8
_TRIES_AT_ONCE: Final = 4096


class OpenAdmission:
    """The door of a group while its policy says that it is open.  First message: nothing; answered by the group and the
    bits of the work.  Proof: the number."""

    method: Final = OPEN

    def __init__(self, crypto: Crypto, group_id: Callable[[], bytes], bits: Callable[[], int | None]) -> None:
        """Args:
        bits: of the work for the policy that holds; None: the door is closed.
        """
        self._group_id = group_id
        self._bits = bits
        self._meetings: Meetings[None] = Meetings(crypto)

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [] if self._bits() is None else [WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        if message != b"":
            raise RemoteProtocolError("not a question about the work at the door")
        return bytes([self._open_bits()]) + self._group_id()

    def admit(self, knock: Knock, proof: Any) -> Grant:
        bits = self._open_bits()
        if not (isinstance(proof, bytes) and len(proof) == _NUMBER_BYTES):
            raise RemoteProtocolError("not a proof of work")
        if worth(self._group_id(), knock.joiner, proof) < bits:
            raise TrustError("the work at the door of the group was not done", "", "try again: p2pc join --open")
        self._meetings.take_turn(knock.now, knock.source)  # so that who does no work keeps nobody out
        return Grant(roles=ROLES_UNASKED, is_stranger=True)

    def _open_bits(self) -> int:
        bits = self._bits()
        if bits is None:
            raise TrustError("the other computer lets nobody in that way", code="not-this-way")
        return bits


def read_challenge(message: Any) -> tuple[bytes, int]:
    """Return (group, bits of the work) of the answer to the first message.

    Raises:
        RemoteProtocolError: it is none.
        TrustError: more work than any group may ask for.
    """
    if not (isinstance(message, bytes) and len(message) == 1 + _GROUP_ID_BYTES):
        raise RemoteProtocolError("not the work at the door of a group")
    if message[0] > OPEN_PUZZLE_BITS_MAX:
        raise TrustError("the other computer asks for too much work", f"{message[0]} bits", None)
    return message[1:], message[0]


def worth(group_id: bytes, joiner: bytes, number: bytes) -> int:
    """Return how many bits of work a number shows."""
    return 256 - int.from_bytes(hashlib.sha256(_DOMAIN + group_id + joiner + number).digest(), "big").bit_length()


def work(group_id: bytes, joiner: bytes, bits: int, start: int) -> bytes | None:
    """Return the first of some numbers from `start` on that shows so much work; None: go on _TRIES_AT_ONCE further."""
    begun = hashlib.sha256(_DOMAIN + group_id + joiner)
    limit = 1 << (256 - bits)
    for number in range(start, start + _TRIES_AT_ONCE):
        tried = begun.copy()
        data = number.to_bytes(_NUMBER_BYTES, "big")
        tried.update(data)
        if int.from_bytes(tried.digest(), "big") < limit:
            return data
    return None


def next_start(start: int) -> int:
    """Return where to go on after `work` has found nothing."""
    return start + _TRIES_AT_ONCE
