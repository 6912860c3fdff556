"""Groups: the founder, admit entries, and chains of them.

A member shows a *chain*: the founder's entry, then one entry for each step from the founder to the member,
each signed by the subject of the one before and naming its hash.  The group's id is a hash of the founder's
key, so a chain needs no other root.

An entry lives ADMIT_TTL_S and is renewed by any member that may invite.  An entry counts when its signer was
a member at the moment that it names as *issued*; only the last entry has to be valid now.  So members renew one
another while the founder is away.  Each such renewal makes a chain one step longer, so this ends after at most
ADMIT_CHAIN_MAX steps (about five weeks); a renewal by the founder or an heir makes it short again.  Likewise a member
that nobody else renews can, with an accomplice, stretch its stay by at most one ADMIT_TTL_S per step.

An *heir* is an administrator whom the founder, or another heir, has named to go on when the founder's key is lost: its
entry does not end, and its rank lets it remove administrators.

The network key is a filter, never membership.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Protocol

from msgspec import Struct

from p2pcompute.errors import RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import ROLES, Identity, ordered_roles, roles_from_wire
from p2pcompute.ids import PUBLIC_KEY_BYTES, short_device_id
from p2pcompute.limits import (
    ADMIT_CHAIN_MAX,
    ADMIT_ENTRY_BYTES_MAX,
    ADMIT_RENEW_S_MAX,
    ADMIT_SKEW_S_MAX,
    ADMIT_TTL_S,
    GROUP_NAME_CHARS_MAX,
    KEY_GRACE_S,
    KEYS_FORMER_MAX,
    LOG_HEADS_MAX,
)
from p2pcompute.transport.credentials import group_hint
from p2pcompute.wire import envelope

__all__ = [
    "ADMIN_RANK",
    "ADMIT_TYPE",
    "FOUNDER_RANK",
    "MEMBER_RANK",
    "MEMBER_ROLES",
    "Admission",
    "Group",
    "Judge",
    "Membership",
    "admit",
    "bytes_of",
    "check_chain",
    "check_group_name",
    "check_may_admit",
    "check_may_grant",
    "digests_of",
    "found_group",
    "group_hint",
    "group_id_of",
    "group_of_joiner",
    "name_heir",
    "ranks_of",
    "renew",
    "steps_of",
]

ADMIT_TYPE: Final = "p2pc/admit"
FOUNDER_RANK: Final = 0
ADMIN_RANK: Final = ADMIT_CHAIN_MAX
"""Between them: heirs, by the number of their steps from the founder."""
MEMBER_RANK: Final = ADMIN_RANK + 1
MEMBER_ROLES: Final = ("submit", "work", "invite")
"""What a new member may do unless the inviter says otherwise."""
STRANGER_ROLES: Final = ("submit", "work")
"""What somebody may do at most for whom nobody vouches."""
NETWORK_KEY_BYTES: Final = 32
GROUP_ID_BYTES: Final = 32
_NONCE_BYTES: Final = 16
_DIGEST_BYTES: Final = 32
_WALL_MAX: Final = 1 << 40
_OPENED_MAX: Final = 512
"""Admit entries whose signature is not checked again: half a mebibyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The group of this installation, as this installation knows it."""

    group_id: bytes
    """32 bytes: SHA-256(b"p2pc group" + founder's key + nonce)."""
    name: str
    network_key: bytes
    """32 secret bytes that filter datagrams and connections."""
    founder: bytes
    """The founder's public key."""
    chain: tuple[bytes, ...]
    """Our admit envelopes, the founder's first and our own last; at most ADMIT_CHAIN_MAX."""
    former_keys: tuple[tuple[bytes, float], ...] = ()
    """Network keys from before, the last one first, and until when each is accepted (Unix seconds); at most
    KEYS_FORMER_MAX."""
    is_open_to_others: bool = False
    """False until the first invitation or join: alone, and nothing listens beyond loopback."""

    def opened(self) -> Group:
        """Return the same group, no longer alone."""
        return replace(self, is_open_to_others=True)

    def rekeyed(self, network_key: bytes, wall: float) -> Group:
        """Return the same group with another network key in use; the one before is accepted for KEY_GRACE_S."""
        former = [(self.network_key, wall + KEY_GRACE_S), *self.former_keys]
        kept = [(key, until) for key, until in former if until > wall and key != network_key]
        return replace(self, network_key=network_key, former_keys=tuple(kept[:KEYS_FORMER_MAX]))

    def keys(self, wall: float) -> list[bytes]:
        """Return the network keys that are accepted, the one in use first."""
        return [self.network_key, *(key for key, until in self.former_keys if until > wall)]

    def with_chain(self, chain: Iterable[bytes]) -> Group:
        """Return the same group with a renewed chain of ours; the caller has checked it."""
        return replace(self, chain=tuple(chain))


class Membership(Struct, frozen=True, kw_only=True, gc=False):
    """What a checked chain says about its subject."""

    installation: bytes
    roles: tuple[str, ...]
    inviter: bytes
    """Who let it in; the founder itself for the founder."""
    invited: bytes
    """The signature of who let it in, that it did; empty: he renewed it himself, or there is none."""
    signer: bytes
    """Who signed the last entry: the inviter, or who renewed it."""
    issued: float
    """Unix seconds."""
    expires: float
    """Unix seconds; infinite for the founder and heirs."""
    group_id: bytes
    group_name: str
    founder: bytes
    chain_length: int
    """1 for the founder, at most ADMIT_CHAIN_MAX."""
    rank: int
    """FOUNDER_RANK, that of an heir, ADMIN_RANK or MEMBER_RANK: who has a higher one (a lower number) may limit it."""
    is_stranger: bool = False
    """It came in by the door of an open group: nobody vouches for it."""
    is_unasked: bool = False
    """It came in by a way that stands open, and by no invitation: whoever let it in has not looked at it."""

    @property
    def may_admit(self) -> bool:
        return "invite" in self.roles or "admin" in self.roles

    def wants_renewal(self, wall: float) -> bool:
        """True from half of the entry's life on: a node that is on for a few hours a week keeps its place."""
        return wall >= self.expires - ADMIT_TTL_S / 2


@dataclass(frozen=True, slots=True)
class Admission:
    """One decoded admit entry."""

    digest: bytes
    """SHA-256 of its envelope."""

    signer: bytes
    subject: bytes
    roles: tuple[str, ...]
    issued: int
    expires: float
    previous: bytes
    """SHA-256 of the entry before it; b"" in the founder's."""
    inviter: bytes
    """Who let the subject in first, by his own signature, which a renewal passes on; else who signed the entry."""
    invited: bytes
    """That signature; empty: there is none."""
    after: tuple[bytes, ...]
    """The last entries of the group's log that the signer knew: what they say of the subject is taken into account."""
    nonce: bytes
    """In the founder's entry only."""
    name: str
    """In the founder's entry only."""
    is_heir: bool = True
    """The founder is one, and those to whom only such entries lead."""
    is_stranger: bool = False
    is_unasked: bool = False


class Judge(Protocol):
    """What the group's log says; `trust.log.GroupLog` is one."""

    def roles_left(self, steps: Sequence[Admission]) -> tuple[str, ...]:
        """Return what the last of these admissions, each signed by the subject of the one before, is still good for.

        Raises:
            TrustError: nothing: its subject was removed, or it was signed by one that was.
        """

    def heads(self, subject: bytes) -> tuple[bytes, ...]:
        """Return what an admission of `subject` that is signed now names as known."""


def group_id_of(founder: bytes, nonce: bytes) -> bytes:
    """Return the id of the group that `founder` made with `nonce`: 32 bytes."""
    return hashlib.sha256(b"p2pc group" + founder + nonce).digest()


def check_group_name(name: str) -> str:
    """Return `name` if people can tell it apart and read it on one line.

    Raises:
        UsageError: empty, too long, or with characters that do not print.
    """
    if not _is_group_name(name):
        raise UsageError(
            f"{name!r} cannot be the name of a group",
            f"a name has 1 to {GROUP_NAME_CHARS_MAX} printable characters and no space at its ends",
            "choose another one",
        )
    return name


def _is_group_name(name: str) -> bool:
    return 0 < len(name) <= GROUP_NAME_CHARS_MAX and name.isprintable() and name == name.strip()


def found_group(identity: Identity, crypto: Crypto, name: str, wall: float) -> Group:
    """Return a new group with this installation as its founder and only member.

    Args:
        wall: Unix seconds.

    Raises:
        TrustError: `identity` is a delegate.
        UsageError: the name is unusable.
    """
    _must_be_installation(identity)
    check_group_name(name)
    nonce = crypto.random_bytes(_NONCE_BYTES)
    group_id = group_id_of(identity.public_key, nonce)
    entry = {
        "group": group_id,
        "subject": identity.public_key,
        "roles": list(ROLES),
        "issued": int(wall),
        "nonce": nonce,
        "name": name,
    }
    return Group(
        group_id=group_id,
        name=name,
        network_key=crypto.random_bytes(NETWORK_KEY_BYTES),
        founder=identity.public_key,
        chain=(identity.sign_envelope(ADMIT_TYPE, entry),),
    )


def admit(
    identity: Identity,
    group: Group,
    crypto: Crypto,
    subject_key: bytes,
    *,
    roles: Sequence[str],
    wall: float,
    log: Judge | None = None,
    former: Membership | None = None,
    is_heir: bool = False,
    is_stranger: bool = False,
    is_unasked: bool = False,
) -> bytes:
    """Return a signed admit entry for `subject_key`; its chain is `group.chain` plus this entry.

    Args:
        roles: from ROLES, none that this installation lacks.
        wall: Unix seconds.
        log: of the group; who was removed is a member again by this entry.
        former: what the subject is already; who let it in is answerable for it as before.
        is_heir: see `name_heir`.
        is_stranger: nobody vouches for it; it may get STRANGER_ROLES only.
        is_unasked: it came in by a way that stands open.

    Raises:
        TrustError: this installation may not admit, its own entry has ended, it lacks a role that it would
            grant, or its chain is as long as a chain may be.
    """
    _must_be_installation(identity)
    own = check_chain(crypto, group.chain, group_id=group.group_id, subject=identity.public_key, wall=wall, log=log)
    check_may_admit(own)
    check_may_grant(own, roles)
    if own.chain_length >= ADMIT_CHAIN_MAX:
        raise TrustError(
            "this node is too far from the founder to admit others",
            f"its chain of invitations has {own.chain_length} steps, the most there may be",
            "let the founder or a member that he invited make the invitation",
            code="not-allowed",
        )
    if subject_key in (group.founder, identity.public_key):
        raise TrustError("a node does not admit itself or the founder", "they are members already", None)
    issued = int(wall)
    entry = {
        "group": group.group_id,
        "subject": subject_key,
        "roles": list(ordered_roles(roles)),
        "issued": issued,
        **({"heir": True} if is_heir else {"expires": issued + int(ADMIT_TTL_S)}),
        "previous": hashlib.sha256(group.chain[-1]).digest(),
    }
    way = is_stranger, is_unasked
    is_same = former is not None and (former.is_stranger, former.is_unasked) == way and bool(former.invited)
    if former is not None and is_same and former.inviter != identity.public_key:
        entry["inviter"], entry["invited"] = former.inviter, former.invited
    else:
        entry["invited"] = identity.sign(_let_in(group.group_id, subject_key, *way))
    if is_stranger:
        entry["stranger"] = True
    if is_unasked:
        entry["unasked"] = True
    if log is not None and (heads := log.heads(subject_key)):
        entry["after"] = list(heads)
    return identity.sign_envelope(ADMIT_TYPE, entry)


def check_may_admit(own: Membership) -> None:
    """Raise TrustError unless a member may admit others."""
    if not own.may_admit:
        raise TrustError(
            "this node may not admit others",
            f"its roles in group {own.group_name!r} are: {', '.join(own.roles) or 'none'}",
            "ask a member with the role invite",
            code="not-allowed",
        )


def check_may_grant(own: Membership, roles: Sequence[str]) -> None:
    """Raise TrustError when a member lacks one of these roles."""
    lacking = [role for role in roles if role not in own.roles]
    if lacking:
        raise TrustError(
            f"this node cannot grant the role {lacking[0]!r}",
            "nobody grants a role that he lacks",
            "ask a member that has it",
            code="not-allowed",
        )


def name_heir(
    identity: Identity,
    group: Group,
    crypto: Crypto,
    subject_key: bytes,
    *,
    wall: float,
    log: Judge | None = None,
    former: Membership | None = None,
) -> bytes:
    """Return a signed admit entry that makes `subject_key` an heir; its chain is `group.chain` plus this entry.

    Args:
        wall: Unix seconds.
        log, former: as in `admit`.

    Raises:
        TrustError: this installation is neither the founder nor an heir, or its chain is as long as one may be.
    """
    own = check_chain(crypto, group.chain, group_id=group.group_id, subject=identity.public_key, wall=wall, log=log)
    if own.rank >= ADMIN_RANK:
        raise TrustError(
            "only the founder of the group, and heirs, name an heir",
            f"the founder is {short_device_id(group.founder)}",
            "ask there",
            code="not-allowed",
        )
    return admit(identity, group, crypto, subject_key, roles=ROLES, wall=wall, log=log, former=former, is_heir=True)


def renew(
    identity: Identity,
    group: Group,
    crypto: Crypto,
    chain: Sequence[bytes],
    subject: bytes,
    *,
    wall: float,
    log: Judge | None = None,
) -> tuple[bytes, ...]:
    """Return a fresh chain for a member, with the roles that it has.

    Args:
        chain: the member's present chain; it may have ended up to ADMIT_RENEW_S_MAX ago.
        subject: the installation that the peer has proven to be.
        wall: Unix seconds.

    Raises:
        TrustError: it is no member, ended too long ago, or this installation may not admit with those roles.
        RemoteProtocolError: the chain is malformed.
    """
    member = check_chain(
        crypto, chain, group_id=group.group_id, subject=subject, wall=wall, ended_s_max=ADMIT_RENEW_S_MAX, log=log
    )
    if member.expires == math.inf:
        return tuple(chain)
    entry = admit(
        identity,
        group,
        crypto,
        subject,
        roles=member.roles,
        wall=wall,
        log=log,
        former=member,
        is_stranger=member.is_stranger,
        is_unasked=member.is_unasked,
    )
    return (*group.chain, entry)


def group_of_joiner(
    crypto: Crypto, chain: Sequence[bytes], network_key: bytes, *, inviter: bytes, subject: bytes, wall: float
) -> Group:
    """Return the group that a joiner was let into, from what the inviter sent.

    Args:
        inviter: the key that the token named: the entry must be its own.
        subject: the joiner's installation.
        wall: Unix seconds.

    Raises:
        TrustError: the chain does not make the joiner a member.
        RemoteProtocolError: it is malformed.
    """
    if not isinstance(network_key, bytes) or len(network_key) != NETWORK_KEY_BYTES:
        raise RemoteProtocolError("not a network key")
    member = check_chain(crypto, chain, group_id=None, subject=subject, wall=wall)
    if member.signer != inviter:
        raise TrustError(
            "another node than the inviter signed the admission",
            f"it was {short_device_id(member.signer)}, the token named {short_device_id(inviter)}",
            "ask for a new invitation",
        )
    return Group(
        group_id=member.group_id,
        name=member.group_name,
        network_key=network_key,
        founder=member.founder,
        chain=tuple(chain),
        is_open_to_others=True,
    )


def check_chain(
    crypto: Crypto,
    chain: Sequence[bytes],
    *,
    group_id: bytes | None,
    subject: bytes,
    wall: float,
    ended_s_max: float = 0.0,
    log: Judge | None = None,
) -> Membership:
    """Return what `subject` is in the group, or refuse.

    Args:
        chain: raw admit envelopes, the founder's first.
        group_id: the group that it must be; None only for a joiner, who learns it from the chain.
        subject: the installation whose key the peer has proven.
        wall: Unix seconds.
        ended_s_max: accept a last entry that ended up to this many seconds ago (only to renew it).
        log: of the group; without it nobody was removed.

    Raises:
        TrustError: well-formed, but it does not make `subject` a member now.
        RemoteProtocolError: malformed, or a signature is wrong.
    """
    if not isinstance(chain, list | tuple) or not chain:
        raise RemoteProtocolError("not a chain of admit entries")
    if len(chain) > ADMIT_CHAIN_MAX:
        raise TrustError("refused: the chain of invitations is too long", f"{len(chain)} steps", _ASK_AGAIN)
    root = _open_entry(crypto, chain[0], is_root=True)
    group = group_id_of(root.signer, root.nonce)
    if group_id is not None:
        if group != group_id:
            why = "the founders differ"
            raise TrustError("refused: a member of another group", why, _ASK_AGAIN, code="other-group")
        group = group_id  # the same object for all members
    if root.subject != root.signer:
        raise RemoteProtocolError("the founder's entry names somebody else")
    steps = [root]
    last = root
    for link in chain[1:]:
        entry = _open_entry(crypto, link, is_root=False, signer=last.subject, group_id=group)
        if entry.previous != last.digest:
            raise RemoteProtocolError("an admit entry that does not follow the one before it")
        _check_step(last, entry)
        steps.append(entry)
        last = entry
    if last.subject != subject:
        raise TrustError("refused: this chain of invitations is another node's", "the keys differ", _ASK_AGAIN)
    if last.issued > wall + ADMIT_SKEW_S_MAX:
        raise TrustError(
            "refused: an admit entry from the future",
            f"{round(last.issued - wall)} s ahead of this machine's clock",
            "set the clocks of both machines",
            code="clock",
        )
    roles = last.roles if log is None else log.roles_left(steps)
    # An heir that was made less than an administrator has to be renewed as anybody.
    is_lasting = len(steps) == 1 or "admin" in roles or not last.is_heir
    expires = last.expires if is_lasting else last.issued + ADMIT_TTL_S
    if expires + ended_s_max <= wall:
        raise TrustError("refused: the membership has ended", "it was not renewed in time", _ASK_AGAIN, code="expired")
    return Membership(
        installation=subject,
        roles=roles,
        inviter=last.inviter,
        invited=last.invited,
        signer=last.signer,
        issued=float(last.issued),
        expires=expires,
        group_id=group,
        group_name=root.name,
        founder=root.signer,
        chain_length=len(chain),
        rank=ranks_of(steps)[-1] if "admin" in roles else MEMBER_RANK,
        is_stranger=last.is_stranger,
        is_unasked=last.is_unasked,
    )


def ranks_of(steps: Sequence[Admission]) -> list[int]:
    """Return the rank of each subject of a chain, if it has the role admin."""
    return [place if step.is_heir else ADMIN_RANK for place, step in enumerate(steps)]


def steps_of(crypto: Crypto, chain: Sequence[bytes], *, group_id: bytes) -> list[Admission]:
    """Return the admissions of a chain that `check_chain` has accepted.

    Raises:
        RemoteProtocolError: malformed.
    """
    steps = [_open_entry(crypto, chain[0], is_root=True)]
    for link in chain[1:]:
        steps.append(_open_entry(crypto, link, is_root=False, signer=steps[-1].subject, group_id=group_id))
    return steps


_ASK_AGAIN: Final = "ask a member for a new invitation: p2pc invite"


def _check_step(parent: Admission, entry: Admission) -> None:
    """Refuse an entry that its signer was not allowed to make when he made it."""
    if "invite" not in parent.roles and "admin" not in parent.roles:
        raise TrustError("refused: admitted by a node that may not admit", "it lacks the role invite", _ASK_AGAIN)
    if entry.is_heir and not parent.is_heir:
        raise TrustError("refused: an heir named by a node that is none", "", _ASK_AGAIN)
    if any(role not in parent.roles for role in entry.roles):
        raise TrustError("refused: a role granted by a node that lacks it", "", _ASK_AGAIN)
    if not parent.issued - ADMIT_SKEW_S_MAX <= entry.issued <= parent.expires:
        raise TrustError("refused: admitted by a node that was no member then", "", _ASK_AGAIN)


def _open_entry(
    crypto: Crypto, raw: Any, *, is_root: bool, signer: bytes | None = None, group_id: bytes | None = None
) -> Admission:
    """Return one entry with its signature and field types checked."""
    if not isinstance(raw, bytes):
        raise RemoteProtocolError("not an admit entry")
    return _opened(crypto, raw, is_root, signer, group_id)


@lru_cache(maxsize=_OPENED_MAX)
def _opened(crypto: Crypto, raw: bytes, is_root: bool, signer: bytes | None, group_id: bytes | None) -> Admission:
    """The entry in an envelope; remembered, because the chains of all members begin with the same ones."""
    opened = envelope.open_envelope(crypto, raw, ADMIT_TYPE, signer=signer, bytes_max=ADMIT_ENTRY_BYTES_MAX)
    body = opened.payload
    if not isinstance(body, dict):
        raise RemoteProtocolError("not an admit entry")
    subject = bytes_of(body, "subject", PUBLIC_KEY_BYTES)
    issued = _seconds_of(body, "issued")
    roles = roles_from_wire(body.get("roles"))
    group = bytes_of(body, "group", GROUP_ID_BYTES)
    digest = hashlib.sha256(raw).digest()
    if is_root:
        nonce = bytes_of(body, "nonce", _NONCE_BYTES)
        name = body.get("name")
        if not isinstance(name, str) or not _is_group_name(name):
            raise RemoteProtocolError("a group without a name")
        if group != group_id_of(opened.signer, nonce):
            raise RemoteProtocolError("an entry for another group")
        return Admission(
            digest, opened.signer, subject, roles, issued, math.inf, b"", opened.signer, b"", (), nonce, name
        )
    if group != group_id:
        raise RemoteProtocolError("an entry for another group")
    is_heir = body.get("heir", False)
    if type(is_heir) is not bool or (is_heir and "expires" in body):
        raise RemoteProtocolError("not an heir's entry")
    expires = math.inf if is_heir else _seconds_of(body, "expires")
    if not is_heir and not issued < expires <= issued + ADMIT_TTL_S:
        raise RemoteProtocolError("an admit entry that lives too long")
    previous = bytes_of(body, "previous", _DIGEST_BYTES)
    is_stranger, is_unasked = _is_stranger(body, roles), body.get("unasked", False) is True
    said = _let_in(group, subject, is_stranger, is_unasked)
    inviter, invited = _inviter_of(crypto, body, said, opened.signer)
    after = digests_of(body.get("after", []), LOG_HEADS_MAX)
    return Admission(
        digest,
        opened.signer,
        subject,
        roles,
        issued,
        float(expires),
        previous,
        inviter,
        invited,
        after,
        b"",
        "",
        is_heir,
        is_stranger,
        is_unasked,
    )


def _let_in(group_id: bytes, subject: bytes, is_stranger: bool, is_unasked: bool) -> bytes:
    """What an inviter signs of whom it lets in: who came in by an open door, or by a way that stands open, is not made
    one that was invited."""
    way = b"p2pc stranger 1" if is_stranger else b"p2pc unasked 1" if is_unasked else b"p2pc let in 1"
    return way + group_id + subject


def _inviter_of(crypto: Crypto, body: dict[Any, Any], said: bytes, signer: bytes) -> tuple[bytes, bytes]:
    """Return who is answerable for the subject of an entry, and his signature under `said`.

    Who renews a member may not say that somebody else let it in, but by that one's signature: members are counted by
    who is answerable for them, and whoever may invite could otherwise invite himself in the founder's name.
    """
    inviter = bytes_of(body, "inviter", PUBLIC_KEY_BYTES) if "inviter" in body else signer
    invited = body.get("invited", b"")
    if isinstance(invited, bytes) and invited and crypto.verify(inviter, said, invited):
        return inviter, invited
    return signer, b""


def _is_stranger(body: dict[Any, Any], roles: tuple[str, ...]) -> bool:
    is_stranger = body.get("stranger", False)
    if type(is_stranger) is not bool or (is_stranger and any(role not in STRANGER_ROLES for role in roles)):
        raise RemoteProtocolError("a stranger who may do more than strangers may")
    return is_stranger


def digests_of(value: Any, count_max: int) -> tuple[bytes, ...]:
    """Return digests from the wire, each once.

    Raises:
        RemoteProtocolError: not a list of at most so many.
    """
    if not isinstance(value, list) or len(value) > count_max or len(set(map(repr, value))) < len(value):
        raise RemoteProtocolError("not a list of digests")
    if not all(isinstance(item, bytes) and len(item) == _DIGEST_BYTES for item in value):
        raise RemoteProtocolError("not a digest")
    return tuple(value)


def bytes_of(body: dict[Any, Any], name: str, count: int) -> bytes:
    value = body.get(name)
    if not isinstance(value, bytes) or len(value) != count:
        raise RemoteProtocolError(f"an admit entry without {name}")
    return value


def _seconds_of(body: dict[Any, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _WALL_MAX:
        raise RemoteProtocolError(f"an admit entry without {name}")
    return value


def _must_be_installation(identity: Identity) -> None:
    if identity.delegation is not None:
        raise TrustError(
            "an embedded node cannot admit others",
            "only the key of the installation may",
            "run: p2pc invite",
            code="not-allowed",
        )
