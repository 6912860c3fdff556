"""Exchanges over a secret that both sides know, as a member has them with joiners: how many, how often, one a channel.

Every exchange costs a member 20 ms of processor time, and strangers may begin them.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.limits import (
    MEETINGS_BURST,
    MEETINGS_BURST_OF_SOURCE,
    MEETINGS_MAX,
    MEETINGS_MET_MAX,
    MEETINGS_PER_S,
    MEETINGS_PER_S_OF_SOURCE,
    RATE_SOURCES_MAX,
)
from p2pcompute.transport.rate import TokenBuckets
from p2pcompute.trust.pake import Exchange

T = TypeVar("T")
BUSY: Final = "invite-busy"
"""Code of a refusal that says: again in a moment."""
BUSY_FIX: Final = "try again in a few seconds"


class Meetings(Generic[T]):
    """Exchanges that have begun; each is about something (an invitation) that its end names again."""

    def __init__(self, crypto: Crypto) -> None:
        self._crypto = crypto
        self._begun: dict[bytes, tuple[T, bytes, Exchange]] = {}
        """Channel → (subject, joiner, exchange)."""
        self._met: dict[bytes, None] = {}
        """Channels that have had their exchange, the last MEETINGS_MET_MAX."""
        self._rate = TokenBuckets(rate_per_s=MEETINGS_PER_S, burst=MEETINGS_BURST, sources_max=1)
        self._rates = TokenBuckets(
            rate_per_s=MEETINGS_PER_S_OF_SOURCE, burst=MEETINGS_BURST_OF_SOURCE, sources_max=RATE_SOURCES_MAX
        )
        self.refused = 0

    def __len__(self) -> int:
        return len(self._begun)

    def take_turn(self, now: float, source: str) -> None:
        """Let a stranger try something that costs; no source may use up what there is for all.

        Args:
            source: where it comes from, see `source_of`.

        Raises:
            TrustError: too many do, code BUSY.
        """
        if not (self._rates.take(source, now) and self._rate.take("", now)):
            self.refused += 1
            raise TrustError("too many ask to join at once", "", BUSY_FIX, code=BUSY)

    def begin(
        self,
        now: float,
        subject: T,
        password: bytes,
        message: object,
        *,
        binding: bytes,
        joiner: bytes,
        inviter: bytes,
        source: str,
    ) -> bytes:
        """Return the answer to a joiner's first message.

        Raises:
            TrustError: too many ask at once, code BUSY.
            RemoteProtocolError: not such a message, or a second one on this channel.
        """
        if binding in self._met:
            raise RemoteProtocolError("a second exchange on one channel")
        self.take_turn(now, source)
        exchange = Exchange(
            password,
            is_joiner=False,
            joiner=joiner,
            inviter=inviter,
            binding=binding,
            entropy=self._crypto.random_bytes,
        )
        exchange.finish(message)
        self._met[binding] = None
        if len(self._met) > MEETINGS_MET_MAX:
            del self._met[next(iter(self._met))]
        self._begun[binding] = (subject, joiner, exchange)
        while len(self._begun) > MEETINGS_MAX:
            del self._begun[next(iter(self._begun))]
        return exchange.message

    def end(self, *, binding: bytes, joiner: bytes) -> tuple[T, Exchange]:
        """Return what the exchange on a channel was about, and the exchange.

        Once: a second proof would be a second guess.

        Raises:
            RemoteProtocolError: there was none.
        """
        met = self._begun.pop(binding, None)
        if met is None or met[1] != joiner:
            raise RemoteProtocolError("a proof without an exchange before it")
        subject, _joiner, exchange = met
        return subject, exchange
