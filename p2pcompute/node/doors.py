"""The joining exchange, at both its ends, whatever way a joiner comes in: see `trust.admission`.

A channel of purpose JOIN carries nothing else; only over it does the joiner learn the group's network key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from p2pcompute.errors import RemoteError, RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.node.membership import GroupCredentials, Joined, clean_name
from p2pcompute.transport.channels import Channel
from p2pcompute.trust.admission import OPEN, PSK, TOKEN, WORDS, Admission, Knock
from p2pcompute.trust.invites import Token, invite_id, join_proof, refusal_by_inviter
from p2pcompute.trust.meetings import BUSY
from p2pcompute.trust.pake import Exchange
from p2pcompute.trust.words import Code

JOIN: Final = 16
"""request, joiner → member on a JOIN channel: [method, proof, name] → [proof of the member, network key, chain,
[[host, port], …], is mine]"""
MEET: Final = 17
"""request before it on the same channel: [method, message, name] → [message]"""
ANSWER_S_MAX: Final = 15.0
MEET_BUSY_S_MAX: Final = 15.0
"""How long a joiner asks again a member that is asked by too many."""


class Doors:
    """What a member answers to those who want in."""

    def __init__(self, host: Host, credentials: GroupCredentials) -> None:
        self._host = host
        self._credentials = credentials

    def answer_meet(self, channel: Channel, body: Any) -> list[Any]:
        """Answer the first message of a joiner.

        Raises:
            TrustError: there is nothing by which it could join, or too many want to.
        """
        way, knock, message = self._read(channel, body)
        return [way.meet(knock, message)]

    def answer_join(self, channel: Channel, body: Any, contacts: Sequence[Address]) -> list[Any]:
        """Admit the joiner at the other end, once its proof is right.

        Raises:
            TrustError: it is not, and counted where that matters.
        """
        way, knock, proof = self._read(channel, body)
        try:
            grant = way.admit(knock, proof)
        except TrustError as refusal:
            if way.method != TOKEN:
                self._credentials.on_refused(str(channel.address), refusal)
            raise
        return [grant.proof, *self._credentials.let_in(channel, grant, knock.name, contacts)]

    def _read(self, channel: Channel, body: Any) -> tuple[Admission, Knock, Any]:
        """The way that a joiner wants to come in by, who it is, and what it brings."""
        if not (isinstance(body, list) and len(body) >= 3 and isinstance(body[0], str) and isinstance(body[2], str)):
            raise RemoteProtocolError("not a request to join")
        way = next((one for one in self._credentials.admissions if one.method == body[0]), None)
        if way is None:
            raise TrustError("the other computer lets nobody in that way", code="not-this-way")
        knock = Knock(
            now=self._host.clock.now(),
            wall=self._host.clock.wall(),
            joiner=channel.peer.key,
            name=clean_name(body[2]),
            inviter=self._credentials.identity.public_key,
            binding=channel.binding,
            host=channel.address.host,
        )
        return way, knock, body[1]


class Visitor:
    """What a joiner asks a member over a joining channel."""

    def __init__(self, host: Host, credentials: GroupCredentials) -> None:
        self._host = host
        self._credentials = credentials

    async def join_by_token(self, channel: Channel, token: Token) -> Joined:
        """Redeem a token.

        Raises:
            TrustError: the inviter refused.
        """
        own_key = self._credentials.identity.public_key
        proof = join_proof(token.secret, binding=channel.binding, joiner=own_key, inviter=token.inviter)
        return await self.join_with(channel, TOKEN, [invite_id(token.secret), proof])

    async def join_by_words(self, channel: Channel, code: Code) -> Joined:
        """Prove to know the words, see that the other end does, and join its group.

        Raises:
            TrustError: the inviter refused, or does not know the words itself.
        """
        return await self._join_by_exchange(channel, WORDS, code.password, code.number)

    async def join_by_psk(self, channel: Channel, secret: bytes) -> Joined:
        """Prove to know a pre-shared key, see that the other end does, and join its group.

        Raises:
            TrustError: it refused, or does not know the key itself.
        """
        return await self._join_by_exchange(channel, PSK, secret, None)

    async def ask_open(self, channel: Channel) -> Any:
        """Return what an open group asks for at its door.

        Raises:
            TrustError: it is not open.
        """
        (message,) = await self._ask(channel, MEET, [OPEN, b"", self._credentials.name], 1)
        return message

    async def join_with(self, channel: Channel, method: str, proof: Any) -> Joined:
        """Join by a method without a first message.

        Raises:
            TrustError: refused.
        """
        answer = await self._ask(channel, JOIN, [method, proof, self._credentials.name], 5)
        return self._credentials.joined(answer[1:], channel.peer.key)

    async def _join_by_exchange(self, channel: Channel, method: str, password: bytes, number: int | None) -> Joined:
        exchange = Exchange(
            password,
            is_joiner=True,
            joiner=self._credentials.identity.public_key,
            inviter=channel.peer.key,
            binding=channel.binding,
            entropy=self._host.crypto.random_bytes,
        )
        first = exchange.message if number is None else [number, exchange.message]
        (message,) = await self._ask(channel, MEET, [method, first, self._credentials.name], 1)
        exchange.finish(message)
        answer = await self._ask(channel, JOIN, [method, exchange.own_proof, self._credentials.name], 5)
        if not exchange.is_proof(answer[0]):
            raise TrustError(
                f"the node that answered does not know the {'words' if method == WORDS else 'key'}",
                "somebody may be in between; nothing of this node was given away",
                "make a NEW code on the other computer: p2pc invite",
                code="invite-impostor",
            )
        return self._credentials.joined(answer[1:], channel.peer.key)

    async def _ask(self, channel: Channel, message_type: int, body: list[Any], count: int) -> list[Any]:
        """Return the answer's fields; asks again, as long as the other end has too many to answer."""
        clock = self._host.clock
        give_up_at = clock.now() + MEET_BUSY_S_MAX
        while True:
            try:
                answer = await channel.request(message_type, body, timeout_s=ANSWER_S_MAX)
            except RemoteError as refusal:
                if refusal.code != BUSY or clock.now() >= give_up_at:
                    raise refusal_by_inviter(refusal.code, refusal.what) from refusal
            else:
                if not (isinstance(answer, list) and len(answer) >= count):
                    raise RemoteProtocolError("not an answer to a request to join")
                return answer[:count]
            await clock.sleep(self._host.rng.stream("joining").uniform(0.2, 1.0))
