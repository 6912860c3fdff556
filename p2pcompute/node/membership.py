"""Who we are to others, and who may be our peer: identity and group, as the transport asks for them.

Also the joining exchange: a channel of purpose JOIN is bound to an invitation; only over it does the joiner learn the
group's network key.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteError, RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.identity.keys import Identity, check_delegation
from p2pcompute.limits import ADMIT_CHAIN_MAX, NODE_NAME_CHARS_MAX
from p2pcompute.scheduler.messages import parse_addresses
from p2pcompute.transport.channels import Channel
from p2pcompute.transport.credentials import PeerInfo
from p2pcompute.transport.rate import source_of
from p2pcompute.trust.groups import Group, Membership, admit, check_chain, group_of_joiner, renew
from p2pcompute.trust.invites import BUSY, Invite, Invites, Token, invite_id, join_proof, refusal_by_inviter
from p2pcompute.trust.levels import Level, Levels
from p2pcompute.trust.pake import Exchange
from p2pcompute.trust.words import Code

JOIN: Final = 16
"""request, joiner → inviter on a JOIN channel: [invitation, proof, name] → [network key, chain, [[host, port], …], is
mine]"""
MEET: Final = 17
"""request, joiner → inviter on a JOIN channel: [number of the invitation, message] → [message]: see `trust.pake`"""
JOIN_BY_WORDS: Final = 18
"""request after MEET on the same channel: [proof, name] → [proof, network key, chain, [[host, port], …], is mine]"""
RENEW: Final = 72
"""request, member → member that may admit: [chain] → [fresh chain]"""
MEET_BUSY_S_MAX: Final = 15.0
"""How long a joiner asks again an inviter that is asked by too many."""
BLOCKED: Final = "blocked"
"""Code of the refusal of an installation that was blocked here."""
CONTACTS_IN_ANSWER_MAX: Final = 32
_ABOUT: Final = ("boot", "build", "python", "slots", "port", "keeps")
"""What is kept of a peer's hello once it is checked: all that `about` says; the chains are remembered once."""
MEMBERS_CACHED_MAX: Final = 4096
"""Members whose checked chain is remembered."""


def clean_name(value: Any) -> str:
    """Return a node's name as it may be shown: printable, bounded, never empty."""
    text = value if isinstance(value, str) else ""
    text = "".join(char for char in text if char.isprintable()).strip()[:NODE_NAME_CHARS_MAX]
    return text or "unnamed"


def _contacts(value: Any) -> list[Address]:
    """Return the usable ones of the addresses that an inviter sent."""
    found = []
    for item in value[:CONTACTS_IN_ANSWER_MAX] if isinstance(value, list) else ():
        with contextlib.suppress(RemoteProtocolError):
            found += parse_addresses([item])
    return found


@dataclass(frozen=True, slots=True)
class Admission:
    """Somebody whom an invitation let in."""

    key: bytes
    name: str
    address: str
    """Where it came from."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What an inviter let this node into."""

    group: Group
    contacts: list[Address]
    is_mine: bool
    """The inviter says that both computers are of one owner; they trust each other."""


class GroupCredentials:
    """This node's credentials in its group.  The group is replaced as a whole (join, leave, renewal)."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        group: Group,
        name: str,
        about: Callable[[], dict[str, Any]],
        levels: Levels | None = None,
    ) -> None:
        """`about` adds what peers should know of this node: boot, build, python, slots, port."""
        self._host = host
        self._identity = identity
        self.group = group
        self._name = name
        self._about = about
        self.levels = levels or Levels(identity.installation)
        self.invites = Invites(host.crypto)
        self.on_admitted: Callable[[Invite, Admission], None] = lambda _invite, _admission: None
        """Called when an invitation has let somebody in."""
        self.on_refused: Callable[[str, TrustError], None] = lambda _address, _refusal: None
        """Called with the address of one that did not know the words, and what it was told."""
        self._members: dict[bytes, tuple[tuple[bytes, ...], Membership]] = {}
        self._met: dict[bytes, bytes] = {}
        """Key of a peer → installation as which it has proven to be a member; bound: MEMBERS_CACHED_MAX."""

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def name(self) -> str:
        return self._name

    def rename(self, name: str) -> None:
        """Be called so from the next handshake on."""
        self._name = name

    def network_keys(self) -> Sequence[bytes]:
        return [self.group.network_key]

    def invite_keys(self) -> Sequence[bytes]:
        return self.invites.preamble_keys(self._host.clock.now())

    def hello(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "group": self.group.group_id,
            "chain": list(self.group.chain),
            "delegation": self._identity.delegation,
            **self._about(),
        }

    def check_peer(self, key: bytes, hello: dict[str, Any]) -> PeerInfo:
        """Return the member that `key` is or speaks for.

        Raises:
            TrustError: not a member of this group.
            RemoteProtocolError: malformed.
        """
        wall = self._host.clock.wall()
        installation = key
        delegation = hello.get("delegation")
        if delegation is not None:
            if not isinstance(delegation, bytes):
                raise RemoteProtocolError("not a delegation")
            _key, installation, _roles = check_delegation(self._host.crypto, delegation, wall=wall, session_key=key)
        if self.levels.is_blocked(installation):
            raise TrustError("refused: that node has blocked this one", "its owner said so", None, code=BLOCKED)
        chain = hello.get("chain")
        if not isinstance(chain, list):
            raise RemoteProtocolError("a hello without a membership")
        self._check_member(installation, tuple(chain), wall)
        self._met.pop(key, None)
        self._met[key] = installation
        if len(self._met) > MEMBERS_CACHED_MAX:
            del self._met[next(iter(self._met))]
        about = {sys.intern(word): value for word, value in hello.items() if word in _ABOUT}
        return PeerInfo(key, installation, clean_name(hello.get("name")), about)

    def _check_member(self, installation: bytes, chain: tuple[bytes, ...], wall: float) -> Membership:
        """Check a chain; one that was checked before and has not ended costs nothing."""
        known = self._members.get(installation)
        if known is not None and known[0] == chain and known[1].expires > wall:
            return known[1]
        member = check_chain(self._host.crypto, chain, group_id=self.group.group_id, subject=installation, wall=wall)
        if len(self._members) >= MEMBERS_CACHED_MAX:
            del self._members[next(iter(self._members))]
        self._members[installation] = (chain, member)
        return member

    def cluster_of(self, installation: bytes) -> bytes:
        """Return the first below the founder, or below somebody trusted here, of those who vouch for a member.

        Whoever shares it with others may be the same person: he could have invited himself.
        """
        for _ in range(ADMIT_CHAIN_MAX):
            member = self.membership_of(installation)
            if member is None or member.inviter in (installation, member.founder):
                break
            if self.levels.level_of(member.inviter) is Level.TRUSTED:
                break
            installation = member.inviter
        return installation

    def membership_of(self, installation: bytes) -> Membership | None:
        """What was last checked of a member; None for one that was not met in this life."""
        known = self._members.get(installation)
        return None if known is None else known[1]

    def installation_of(self, key: bytes) -> bytes | None:
        """The installation that a peer has proven to be, or to speak for; None for one that was not met in this life."""
        return self._met.get(key)

    def members(self) -> Sequence[bytes]:
        """The installations whose membership is known."""
        return list(self._members)

    def own_membership_if_any(self) -> Membership | None:
        """None when it has ended."""
        try:
            return self.own_membership()
        except TrustError:
            return None

    def own_membership(self) -> Membership:
        """Raises TrustError when our own entry has ended."""
        return check_chain(
            self._host.crypto,
            self.group.chain,
            group_id=self.group.group_id,
            subject=self._identity.installation,
            wall=self._host.clock.wall(),
        )

    # --- joining ----------------------------------------------------------------------------------

    def answer_join(self, channel: Channel, body: Any, contacts: Sequence[Address]) -> list[Any]:
        """Admit the joiner at the other end, once its proof is right.

        Raises:
            TrustError: wrong, used or expired; counted against the invitation.
        """
        if not (
            isinstance(body, list)
            and len(body) == 3
            and isinstance(body[0], bytes)
            and isinstance(body[1], bytes)
            and isinstance(body[2], str)
        ):
            raise RemoteProtocolError("not a request to join")
        joiner = channel.peer.key
        invite = self.invites.redeem(
            self._host.clock.now(),
            body[0],
            body[1],
            binding=channel.binding,
            joiner=joiner,
            inviter=self._identity.public_key,
        )
        return self._admit(channel, invite, clean_name(body[2]), contacts)

    def answer_meet(self, channel: Channel, body: Any) -> list[Any]:
        """Answer the first message of a joiner that may know the words of an invitation.

        Raises:
            TrustError: there is no such invitation, or it has ended.
        """
        if not (isinstance(body, list) and len(body) == 2):
            raise RemoteProtocolError("not a first message of a joiner")
        message = self.invites.meet(
            self._host.clock.now(),
            body[0],
            body[1],
            binding=channel.binding,
            joiner=channel.peer.key,
            inviter=self._identity.public_key,
            source=source_of(channel.address.host, 0),
        )
        return [message]

    def answer_join_by_words(self, channel: Channel, body: Any, contacts: Sequence[Address]) -> list[Any]:
        """Admit the joiner at the other end, once it has proven to know the words.

        Raises:
            TrustError: wrong, used or expired; counted against the invitation.
        """
        if not (isinstance(body, list) and len(body) == 2 and isinstance(body[1], str)):
            raise RemoteProtocolError("not a request to join")
        try:
            invite, proof = self.invites.redeem_words(
                self._host.clock.now(), body[0], binding=channel.binding, joiner=channel.peer.key
            )
        except TrustError as refusal:
            self.on_refused(str(channel.address), refusal)
            raise
        return [proof, *self._admit(channel, invite, clean_name(body[1]), contacts)]

    def _admit(self, channel: Channel, invite: Invite, name: str, contacts: Sequence[Address]) -> list[Any]:
        """Return what makes a member of the joiner at the other end: network key, chain, first contacts."""
        joiner = channel.peer.key
        if self.levels.is_blocked(joiner):
            raise TrustError("the inviter has blocked this computer", "its owner said so", None, code=BLOCKED)
        if joiner == self.group.founder:
            raise TrustError("this node founded the group", "it is a member already", None)
        entry = admit(
            self._identity, self.group, self._host.crypto, joiner, roles=invite.roles, wall=self._host.clock.wall()
        )
        self.on_admitted(invite, Admission(joiner, name, str(channel.address)))
        return [
            self.group.network_key,
            [*self.group.chain, entry],
            [[address.host, address.port] for address in contacts[:CONTACTS_IN_ANSWER_MAX]],
            invite.is_mine,
        ]

    async def request_join(self, channel: Channel, token: Token) -> Joined:
        """Redeem a token over a JOIN channel.

        Raises:
            TrustError: the inviter refused.
        """
        proof = join_proof(
            token.secret, binding=channel.binding, joiner=self._identity.public_key, inviter=token.inviter
        )
        try:
            answer = await channel.request(JOIN, [invite_id(token.secret), proof, self._name], timeout_s=15.0)
        except RemoteError as refusal:
            raise refusal_by_inviter(refusal.code, refusal.what) from refusal
        return self._joined(answer, token.inviter)

    async def request_join_by_words(self, channel: Channel, code: Code) -> Joined:
        """Prove over a JOIN channel to know the words, see that its other end does, and join its group.

        Raises:
            TrustError: the inviter refused, or does not know the words itself.
        """
        inviter = channel.peer.key
        exchange = Exchange(
            code.password,
            is_joiner=True,
            joiner=self._identity.public_key,
            inviter=inviter,
            binding=channel.binding,
            entropy=self._host.crypto.random_bytes,
        )
        try:
            met = await self._meet(channel, [code.number, exchange.message])
            exchange.finish(met[0] if isinstance(met, list) and len(met) == 1 else None)
            answer = await channel.request(JOIN_BY_WORDS, [exchange.own_proof, self._name], timeout_s=15.0)
        except RemoteError as refusal:
            raise refusal_by_inviter(refusal.code, refusal.what) from refusal
        if not (isinstance(answer, list) and len(answer) == 5):
            raise RemoteProtocolError("not an answer to a request to join")
        if not exchange.is_proof(answer[0]):
            raise TrustError(
                "the node that answered does not know the words",
                "somebody may be in between; nothing of this node was given away",
                "make a NEW code on the other computer: p2pc invite",
                code="invite-impostor",
            )
        return self._joined(answer[1:], inviter)

    async def _meet(self, channel: Channel, body: list[Any]) -> Any:
        """Send a first message; again, as long as the inviter has too many of them, for MEET_BUSY_S_MAX."""
        clock = self._host.clock
        give_up_at = clock.now() + MEET_BUSY_S_MAX
        while True:
            try:
                return await channel.request(MEET, body, timeout_s=15.0)
            except RemoteError as refusal:
                if refusal.code != BUSY or clock.now() >= give_up_at:
                    raise
            await clock.sleep(self._host.rng.stream("joining").uniform(0.2, 1.0))

    def _joined(self, answer: Any, inviter: bytes) -> Joined:
        """Return what an inviter let us into."""
        if not (isinstance(answer, list) and len(answer) == 4 and isinstance(answer[1], list)):
            raise RemoteProtocolError("not an answer to a request to join")
        group = group_of_joiner(
            self._host.crypto,
            answer[1],
            answer[0],
            inviter=inviter,
            subject=self._identity.installation,
            wall=self._host.clock.wall(),
        )
        return Joined(group, _contacts(answer[2]), answer[3] is True)

    # --- renewal ----------------------------------------------------------------------------------

    def answer_renew(self, channel: Channel, body: Any) -> list[Any]:
        """Return a fresh chain for the installation at the other end."""
        if not (isinstance(body, list) and len(body) == 1 and isinstance(body[0], list)):
            raise RemoteProtocolError("not a request to renew")
        chain = renew(
            self._identity,
            self.group,
            self._host.crypto,
            body[0],
            channel.peer.installation,
            wall=self._host.clock.wall(),
        )
        return [list(chain)]

    async def request_renew(self, channel: Channel) -> Group:
        """Return our group with a chain that `channel`'s peer has renewed."""
        answer = await channel.request(RENEW, [list(self.group.chain)], timeout_s=10.0)
        if not (isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list)):
            raise RemoteProtocolError("not a renewed chain")
        chain = tuple(answer[0])
        check_chain(
            self._host.crypto,
            chain,
            group_id=self.group.group_id,
            subject=self._identity.installation,
            wall=self._host.clock.wall(),
        )
        return self.group.with_chain(chain)
