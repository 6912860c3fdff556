"""Who we are to others, and who may be our peer: identity and group, as the transport asks for them.

What others have to show to be let in is in `doors`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.identity.keys import Identity, check_delegation
from p2pcompute.limits import ADMIT_CHAIN_MAX, NODE_NAME_CHARS_MAX
from p2pcompute.node.hellos import checked_hello
from p2pcompute.scheduler.messages import parse_addresses
from p2pcompute.transport.channels import Channel
from p2pcompute.transport.credentials import PeerInfo
from p2pcompute.trust.admission import Admission, Grant, TokenAdmission, WordsAdmission
from p2pcompute.trust.groups import Group, Membership, admit, check_chain, group_of_joiner, renew
from p2pcompute.trust.invites import Invite, Invites
from p2pcompute.trust.levels import Level, Levels, read_removals
from p2pcompute.trust.log import REMOVED
from p2pcompute.trust.log_file import LogKeeper, MemoryLogs
from p2pcompute.trust.open_door import OpenAdmission
from p2pcompute.trust.roster import Roster

RENEW: Final = 72
"""request, member → member that may admit: [chain] → [fresh chain]"""
BLOCKED: Final = "blocked"
"""Code of the refusal of an installation that was blocked here."""
CONTACTS_IN_ANSWER_MAX: Final = 32
MEMBERS_CACHED_MAX: Final = 4096
"""Members whose checked chain is remembered."""


def clean_name(value: Any) -> str:
    """Return a node's name as it may be shown: printable, bounded, never empty."""
    text = value if isinstance(value, str) else ""
    if not text.isprintable():
        text = "".join(char for char in text if char.isprintable())
    return text.strip()[:NODE_NAME_CHARS_MAX] or "unnamed"


def _contacts(value: Any) -> list[Address]:
    """Return the usable ones of the addresses that an inviter sent."""
    found = []
    for item in value[:CONTACTS_IN_ANSWER_MAX] if isinstance(value, list) else ():
        with contextlib.suppress(RemoteProtocolError):
            found += parse_addresses([item])
    return found


@dataclass(frozen=True, slots=True)
class Admitted:
    """Somebody who was let in."""

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
    removals: tuple[bytes, ...] = ()
    """Of the inviter itself, from before it was invited again."""


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
        logs: LogKeeper | None = None,
    ) -> None:
        """`about` adds what peers should know of this node: boot, build, python, machine, slots, port."""
        self._host = host
        self._identity = identity
        self._logs = logs or MemoryLogs()
        self._group = group
        self.roster = self._known_of(group)
        self.know_self()
        self._name = name
        self._about = about
        self.levels = levels or Levels(identity.installation)
        self.invites = Invites(host.crypto)
        self.admissions: list[Admission] = [
            TokenAdmission(self.invites),
            WordsAdmission(self.invites),
            OpenAdmission(host.crypto, lambda: self.group.group_id, self._open_bits),
        ]
        """How others may be let in."""
        self.range_of: Callable[[bytes], bytes] = lambda _installation: b""
        """Names the address range in which an installation was seen; the same for all of whom that is not known."""
        self.on_admitted: Callable[[Invite | None, Admitted], None] = lambda _invite, _admission: None
        """Called when somebody was let in, with the invitation if it was by one."""
        self.on_refused: Callable[[str, TrustError], None] = lambda _address, _refusal: None
        """Called with the address of one that was not let in, and what it was told."""
        self.hello_fields_refused = 0
        """Fields of peers' hellos that were left out because they are not as they should be."""
        self._met: dict[bytes, bytes] = {}
        """Key of a peer → installation as which it has proven to be a member; bound: MEMBERS_CACHED_MAX."""

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def group(self) -> Group:
        return self._group

    @group.setter
    def group(self, group: Group) -> None:
        is_other = group.group_id != self._group.group_id
        self._group = group
        if is_other:
            self._met.clear()
            self.roster = self._known_of(group)
        self.know_self()

    def _known_of(self, group: Group) -> Roster:
        """What was known of a group when this node was last in it."""
        roster = Roster(self._host.crypto, group, own=self._identity.installation)
        roster.restore(self._logs.load(group.group_id), self._host.clock.wall())
        return roster

    def know_self(self) -> None:
        """This node is among the members that it knows."""
        with contextlib.suppress(TrustError):
            self.roster.check(self._identity.installation, self._group.chain, self._host.clock.wall())

    def keep_roster(self) -> None:
        """Write down what is known of the group.

        Raises:
            IdentityError: it cannot be written.
        """
        self._logs.save(self._group.group_id, self.roster.kept())

    @property
    def name(self) -> str:
        return self._name

    def rename(self, name: str) -> None:
        """Be called so from the next handshake on."""
        self._name = name

    def network_keys(self) -> Sequence[bytes]:
        return self._group.keys(self._host.clock.wall())

    def _open_bits(self) -> int | None:
        """Of the work at our door; None: the group is not open, or this node may not let anybody in."""
        bits = self.roster.log.policy().open_bits
        own = self.own_membership_if_any() if bits is not None else None
        return bits if own is not None and own.may_admit else None

    @property
    def is_open(self) -> bool:
        """Whether everybody may be in the group: it says so, or let this node in so."""
        own = self.membership_of(self._identity.installation)
        return self.roster.log.policy().is_open or (own is not None and own.is_stranger)

    def open_ways(self) -> list[str]:
        """The methods by which somebody may be let in now."""
        now = self._host.clock.now()
        return [way.method for way in self.admissions if way.preamble_keys(now)]

    def invite_keys(self) -> Sequence[bytes]:
        now = self._host.clock.now()
        return list(dict.fromkeys(key for way in self.admissions for key in way.preamble_keys(now)))

    def hello(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "group": self.group.group_id,
            "chain": list(self.group.chain),
            "delegation": self._identity.delegation,
            "log": self.roster.digest,
            **self._about(),
        }

    def check_peer(self, key: bytes, hello: dict[str, Any]) -> PeerInfo:
        """Return the member that `key` is or speaks for.

        Raises:
            TrustError: not a member of this group.
            RemoteProtocolError: malformed.
        """
        wall = self._host.clock.wall()
        installation, may_work = key, True
        delegation = hello.get("delegation")
        if delegation is not None:
            if not isinstance(delegation, bytes):
                raise RemoteProtocolError("not a delegation")
            _key, installation, roles = check_delegation(self._host.crypto, delegation, wall=wall, session_key=key)
            may_work = "work" in roles
        if self.levels.is_blocked(installation):
            raise TrustError("refused: that node has blocked this one", "its owner said so", None, code=BLOCKED)
        chain = hello.get("chain")
        if not isinstance(chain, list):
            raise RemoteProtocolError("a hello without a membership")
        self.roster.check(installation, chain, wall)
        self._met.pop(key, None)
        self._met[key] = installation
        if len(self._met) > MEMBERS_CACHED_MAX:
            del self._met[next(iter(self._met))]
        about, left_out = checked_hello(hello)  # the chains are remembered once
        self.hello_fields_refused += left_out
        return PeerInfo(key, installation, clean_name(hello.get("name")), about, may_work=may_work)

    def level_of(self, installation: bytes, /) -> Level:
        """How far an installation is trusted here; of whom nobody vouches for it is a stranger unless somebody says
        otherwise."""
        level = self.levels.level_of(installation)
        return Level.STRANGER if level is Level.MEMBER and self.is_stranger(installation) else level

    def is_stranger(self, installation: bytes) -> bool:
        """Whether nobody vouches for an installation; in an open group also when nothing is known of it."""
        member = self.membership_of(installation)
        if member is None:
            is_strange = self.roster.log.policy().is_open or self.roster.is_over(installation)
            return installation != self._identity.installation and is_strange
        return member.is_stranger

    def membership_of(self, installation: bytes) -> Membership | None:
        """What was last checked of a member; None for one that is not known."""
        return self.roster.get(installation)

    def cluster_of(self, installation: bytes) -> bytes:
        """Return the first below the founder, or below somebody trusted here, of those who vouch for a member.

        Whoever shares it with others may be the same person: he could have invited himself.  Of a stranger it is the
        range of its address: whoever has one has many keys.  Who came in by a way that stands open is alone, and
        another one than itself: nobody has looked at it, so it has to prove itself.
        """
        if self.is_stranger(installation):
            return b"range " + self.range_of(installation)
        for _ in range(ADMIT_CHAIN_MAX):
            member = self.membership_of(installation)
            if member is None:
                return self._group.founder  # nobody knows who vouches for it
            if member.is_unasked:
                return b"unasked " + installation
            if member.inviter in (installation, member.founder):
                break
            if self.levels.level_of(member.inviter) is Level.TRUSTED:
                break
            installation = member.inviter
        return installation

    def chain_of(self, installation: bytes) -> tuple[bytes, ...] | None:
        """The admit chain of a member, this one included; None for one that is not known."""
        return self._group.chain if installation == self._identity.installation else self.roster.chain_of(installation)

    def installation_of(self, key: bytes) -> bytes | None:
        """The installation that a peer has proven to be, or to speak for; None: it was not met in this life."""
        return self._met.get(key)

    def keys_of(self, installation: bytes) -> list[bytes]:
        """The keys under which an installation was met: its own, and those of its programs."""
        return [installation, *(key for key, one in self._met.items() if one == installation and key != installation)]

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
            log=self.roster.log,
        )

    # --- joining ----------------------------------------------------------------------------------

    def let_in(self, channel: Channel, grant: Grant, name: str, contacts: Sequence[Address]) -> list[Any]:
        """Return what makes a member of the joiner at the other end: network key, chain, first contacts."""
        joiner = channel.peer.key
        if self.levels.is_blocked(joiner):
            raise TrustError("the inviter has blocked this computer", "its owner said so", None, code=BLOCKED)
        if joiner == self.group.founder:
            raise TrustError("this node founded the group", "it is a member already", None)
        removal = self.roster.removed().get(joiner)
        if removal is not None and (grant.invite is None or removal.id not in grant.invite.removals):
            raise TrustError(
                "this computer was removed from the group",
                "only an invitation that was made since brings it back",
                None,
                code=REMOVED,
            )
        wall = self._host.clock.wall()
        entry = admit(
            self._identity,
            self.group,
            self._host.crypto,
            joiner,
            roles=grant.roles,
            wall=wall,
            log=self.roster.log,
            is_stranger=grant.is_stranger,
            is_unasked=grant.invite is None and not grant.is_stranger,
        )
        self.roster.check(joiner, [*self.group.chain, entry], wall)
        self.on_admitted(grant.invite, Admitted(joiner, name, str(channel.address)))
        return [
            self.group.network_key,
            [*self.group.chain, entry],
            [[address.host, address.port] for address in contacts[:CONTACTS_IN_ANSWER_MAX]],
            grant.invite is not None and grant.invite.is_mine,
            list(self.roster.log.removals_of(self._identity.installation)),
        ]

    def joined(self, answer: Any, inviter: bytes) -> Joined:
        """Return what an inviter let us into."""
        if not (isinstance(answer, list) and len(answer) >= 4 and isinstance(answer[1], list)):
            raise RemoteProtocolError("not an answer to a request to join")
        group = group_of_joiner(
            self._host.crypto,
            answer[1],
            answer[0],
            inviter=inviter,
            subject=self._identity.installation,
            wall=self._host.clock.wall(),
        )
        removals = read_removals(answer[4]) if len(answer) > 4 else ()
        return Joined(group, _contacts(answer[2]), answer[3] is True, removals)

    # --- renewal ----------------------------------------------------------------------------------

    def answer_renew(self, channel: Channel, body: Any) -> list[Any]:
        """Return a fresh chain for the installation at the other end."""
        if not (isinstance(body, list) and body and isinstance(body[0], list)):
            raise RemoteProtocolError("not a request to renew")
        chain = renew(
            self._identity,
            self.group,
            self._host.crypto,
            body[0],
            channel.peer.installation,
            wall=self._host.clock.wall(),
            log=self.roster.log,
        )
        return [list(chain)]

    async def request_renew(self, channel: Channel) -> Group:
        """Return our group with a chain that `channel`'s peer has renewed."""
        answer = await channel.request(RENEW, [list(self.group.chain)], timeout_s=10.0)
        if not (isinstance(answer, list) and answer and isinstance(answer[0], list)):
            raise RemoteProtocolError("not a renewed chain")
        chain = tuple(answer[0])
        check_chain(
            self._host.crypto,
            chain,
            group_id=self.group.group_id,
            subject=self._identity.installation,
            wall=self._host.clock.wall(),
            log=self.roster.log,
        )
        return self.group.with_chain(chain)
