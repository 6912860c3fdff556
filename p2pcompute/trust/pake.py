"""How a few spoken words become a key that nobody else has: SPAKE2 between a joiner and its inviter.

Who does not know the words gets one guess for each run, and learns from a run nothing but that the guess was wrong.
Both keys are identities of the exchange, and the proofs that follow name the channel: a run cannot be relayed.  The
joiner proves first; before its proof is right nothing is released.

Source: RFC 9382 by the package `spake2` (Ed25519 group); Abdalla & Pointcheval 2005.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from p2pcompute.errors import RemoteProtocolError

MESSAGE_BYTES: Final = 33
CONFIRMATION_BYTES: Final = 32


class Exchange:
    """One side of one run.  Making it costs 5 ms of processor time, `finish` as much."""

    def __init__(
        self,
        password: bytes,
        *,
        is_joiner: bool,
        joiner: bytes,
        inviter: bytes,
        binding: bytes,
        entropy: Callable[[int], bytes],
    ) -> None:
        """Args:
        password: what both are to know.
        joiner: public key proven at one end of the channel.
        inviter: that at the other.
        binding: of the channel, 32 bytes.
        entropy: returns so many unpredictable bytes.
        """
        from spake2 import SPAKE2_A, SPAKE2_B  # 25 ms that only joining needs

        side = SPAKE2_A if is_joiner else SPAKE2_B
        self._is_joiner = is_joiner
        self._transcript = binding + joiner + inviter
        self._run = side(password, idA=joiner, idB=inviter, entropy_f=entropy)
        self._key = b""
        self.message: bytes = self._run.start()
        """For the other side: MESSAGE_BYTES."""

    def finish(self, message: object) -> None:
        """Take the other side's message.

        Raises:
            RemoteProtocolError: it is none.
        """
        if not isinstance(message, bytes) or len(message) != MESSAGE_BYTES:
            raise RemoteProtocolError("not a message of a key exchange")
        try:
            self._key = self._run.finish(message)
        except Exception as error:  # those of spake2 have no common class, and the bytes are a stranger's
            raise RemoteProtocolError("not a message of a key exchange") from error

    @property
    def own_proof(self) -> bytes:
        """Proves to the other side that this one knows the words; only after `finish`."""
        return self._proof(of_joiner=self._is_joiner)

    def is_proof(self, proof: object) -> bool:
        """Whether the other side knows the words."""
        right = self._proof(of_joiner=not self._is_joiner)
        return isinstance(proof, bytes) and hmac.compare_digest(right, proof)

    def _proof(self, *, of_joiner: bool) -> bytes:
        assert self._key, "the exchange is not finished"
        role = b"joiner" if of_joiner else b"inviter"
        return hashlib.blake2b(
            role + self._transcript, key=self._key, digest_size=CONFIRMATION_BYTES, person=b"p2pc words"
        ).digest()
