"""Invitations: one-time secrets, the tokens that carry them, and proofs of knowing one.

A token is one line for scripts.  The secret in it never travels: it keys the preamble that lets a stranger
reach the handshake, and a proof bound to that one channel and to both keys, so that nothing seen on the way
can be used elsewhere.

An invitation with words is for people: few enough to be said, so their secret keys nothing by itself; see `pake`.
While one is open, anybody may reach the joining exchange, and so a stranger is told no more than a name.

`Invites` decides and holds no clock: `now` is passed in.  Invitations live in memory; a restart ends them.

Invariants: a secret admits at most `uses` installations; an installation that was admitted and lost the
answer may ask again and does not count twice.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from p2pcompute.errors import InvariantViolation, ProtocolError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Address, Crypto
from p2pcompute.identity.keys import ROLES, ordered_roles
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    GROUP_NAME_CHARS_MAX,
    INVITE_NUMBER_MAX,
    INVITE_NUMBERS_CHOICE,
    INVITE_TTL_S,
    INVITE_TTL_S_MAX,
    INVITE_USES_MAX,
    INVITE_WORDS_MAX,
    INVITE_WORDS_MIN,
    INVITES_CLOSED_MAX,
    INVITES_OPEN_MAX,
    JOIN_FAILURES_MAX,
    TOKEN_ADDRESSES_MAX,
    TOKEN_CHARS_MAX,
    WORDS_GRACE_S,
)
from p2pcompute.transport.credentials import WORDS_KEY, invite_key
from p2pcompute.trust.groups import MEMBER_ROLES
from p2pcompute.trust.meetings import BUSY, BUSY_FIX, Meetings
from p2pcompute.trust.words import Code, words_of
from p2pcompute.wire import cbor

SECRET_BYTES: Final = 16
INVITE_ID_BYTES: Final = 8
PROOF_BYTES: Final = 32
BINDING_BYTES: Final = 32
TOKEN_PREFIX: Final = "p2pc-"
_TOKEN_FORMAT: Final = 1
_CHECKSUM_BYTES: Final = 4
_HOST_CHARS_MAX: Final = 253
_NEW_ONE: Final = "make a NEW one on a machine of the group: p2pc invite"


def invite_id(secret: bytes) -> bytes:
    """Return the public name of an invitation: says which secret is meant, not what it is."""
    return hashlib.blake2b(secret, digest_size=INVITE_ID_BYTES, person=b"p2pc invite id").digest()


def join_proof(secret: bytes, *, binding: bytes, joiner: bytes, inviter: bytes) -> bytes:
    """Return the proof that `joiner` knows the secret, good on one channel between these two keys only.

    Args:
        binding: the channel's binding, 32 bytes.
        joiner: the joiner's public key.
        inviter: the inviter's public key.
    """
    message = binding + joiner + inviter
    if len(message) != BINDING_BYTES + 2 * PUBLIC_KEY_BYTES:
        raise ValueError("a proof covers a binding and two keys of 32 bytes each")
    return hashlib.blake2b(message, digest_size=PROOF_BYTES, key=secret, person=b"p2pc join").digest()


# --- tokens ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What a token says."""

    addresses: tuple[Address, ...]
    """Where the inviter may be reached, best first; at most TOKEN_ADDRESSES_MAX.  A host may be a name."""
    inviter: bytes
    """The inviter's public key: nobody else can take the join."""
    secret: bytes
    group_name: str
    """As the inviter calls it; the signed name comes with the admission."""
    expires: int
    """Unix seconds by the inviter's clock."""

    @property
    def invite_id(self) -> bytes:
        return invite_id(self.secret)

    def __repr__(self) -> str:
        return f"<Token for group {self.group_name!r}>"

    def check_expiry(self, wall: float) -> None:
        """Raise TrustError when the token has expired by this machine's clock.

        Worth asking when the inviter did not answer; an inviter that answers knows better.
        """
        if wall >= self.expires:
            raise _refusal(Ending.EXPIRED)


def format_token(token: Token) -> str:
    """Return the token as one line of letters, digits and one '-': nothing that a shell touches.

    Raises:
        UsageError: it has no address or a host name or group name that does not fit.
    """
    addresses = token.addresses[:TOKEN_ADDRESSES_MAX]
    if not addresses:
        raise UsageError(
            "no address is known at which others could reach this node",
            "it listens on loopback only, or its interfaces are down",
            "check the network, or the setting node.interfaces",
        )
    packed = [[_pack_host(address.host), address.port] for address in addresses]
    body = cbor.encode([_TOKEN_FORMAT, token.inviter, token.secret, token.expires, token.group_name, packed])
    text = TOKEN_PREFIX + base64.b32encode(body + _checksum(body)).decode().rstrip("=").lower()
    if len(text) > TOKEN_CHARS_MAX:
        raise UsageError("the addresses do not fit into a token", f"it would have {len(text)} characters")
    return text


def parse_token(text: str) -> Token:
    """Return what a token says.  Case, white space and line breaks in it do not matter.

    Raises:
        UsageError: it is no token, or a part of it is missing or mistyped; nothing was tried, no use was lost.
    """
    compact = "".join(text.split()).lower()
    if not compact.startswith(TOKEN_PREFIX) or len(compact) > TOKEN_CHARS_MAX:
        raise UsageError(
            "this is not a join token",
            f"a token starts with {TOKEN_PREFIX!r} and has no more than {TOKEN_CHARS_MAX} characters",
            "copy the whole line that p2pc invite --token printed",
            code="bad-token",
        )
    data = _unbase32(compact.removeprefix(TOKEN_PREFIX))
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) <= _CHECKSUM_BYTES or not hmac.compare_digest(_checksum(body), checksum):
        raise _mistyped()
    try:
        fields = cbor.decode(body)
    except ProtocolError as error:
        raise _mistyped() from error
    if isinstance(fields, list) and fields and isinstance(fields[0], int) and fields[0] > _TOKEN_FORMAT:
        raise UsageError(
            "this token was made by a newer p2pc",
            f"its format is {fields[0]}, this build knows {_TOKEN_FORMAT}",
            "upgrade p2pc on this machine",
            code="bad-token",
        )
    try:
        return _token_from(fields)
    except (RemoteProtocolError, ValueError) as error:
        raise _mistyped() from error


def _token_from(fields: Any) -> Token:
    if not (isinstance(fields, list) and len(fields) == 6 and fields[0] == _TOKEN_FORMAT):
        raise RemoteProtocolError("not a token")
    _, inviter, secret, expires, name, packed = fields
    if not (
        isinstance(inviter, bytes)
        and len(inviter) == PUBLIC_KEY_BYTES
        and isinstance(secret, bytes)
        and len(secret) == SECRET_BYTES
        and isinstance(expires, int)
        and not isinstance(expires, bool)
        and isinstance(name, str)
        and len(name) <= GROUP_NAME_CHARS_MAX
        and name.isprintable()
        and isinstance(packed, list)
        and 0 < len(packed) <= TOKEN_ADDRESSES_MAX
    ):
        raise RemoteProtocolError("not a token")
    addresses = tuple(_unpack_address(item) for item in packed)
    return Token(addresses=addresses, inviter=inviter, secret=secret, group_name=name, expires=expires)


def _pack_host(host: str) -> bytes | str:
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        if not _is_host_name(host):
            raise UsageError(f"{host!r} is not a host name or address", "", "check the setting node.name") from None
        return host


def _unpack_address(item: Any) -> Address:
    if not (isinstance(item, list) and len(item) == 2):
        raise RemoteProtocolError("not an address")
    host, port = item
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        raise RemoteProtocolError("not a port")
    if isinstance(host, bytes):
        if len(host) not in (4, 16):
            raise RemoteProtocolError("not an address")
        return Address(str(ipaddress.ip_address(host)), port)
    if not isinstance(host, str) or not _is_host_name(host):
        raise RemoteProtocolError("not a host name")
    return Address(host, port)


def _is_host_name(host: str) -> bool:
    return 0 < len(host) <= _HOST_CHARS_MAX and host.isascii() and all(c.isalnum() or c in "-._" for c in host)


def _unbase32(text: str) -> bytes:
    """Decode base32 without padding; refuse texts that are not the one encoding of their bytes."""
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError as error:
        raise _mistyped() from error
    if base64.b32encode(data).decode().rstrip("=").lower() != text:
        raise _mistyped()
    return data


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"p2pc token").digest()


def _mistyped() -> UsageError:
    return UsageError(
        "part of this token is missing or mistyped",
        "its checksum does not fit; nothing was tried and the token is still good",
        "copy the whole line that p2pc invite --token printed",
        code="bad-token",
    )


# --- open invitations -----------------------------------------------------------------------------


class Ending(StrEnum):
    """Why an invitation admits nobody any more."""

    USED = "used"
    EXPIRED = "expired"
    VOID = "void"
    """Too many wrong proofs, or withdrawn."""
    UNKNOWN = "unknown"
    """Never made here, or so long ago that it is forgotten, or this node was restarted."""


_WHY: Final = {
    Ending.USED: "this invitation has been used",
    Ending.EXPIRED: "this invitation has expired",
    Ending.VOID: "this invitation is void",
    Ending.UNKNOWN: "this invitation is not known here",
}
_BECAUSE: Final = {
    Ending.USED: "it is good for a limited number of machines",
    Ending.EXPIRED: "it is good for a limited time",
    Ending.VOID: "there were too many wrong attempts, or it was withdrawn",
    Ending.UNKNOWN: "the inviting node was restarted since, or never made it",
}


_CODE_PREFIX: Final = "invite-"
_WRONG: Final = "invite-wrong"
_READ_AGAIN: Final = "read the invitation again, letter by letter"
_REFUSED: Final = "the inviting node refused"
_REFUSALS: Final = {
    _WRONG: (_REFUSED, _READ_AGAIN),
    BUSY: (_REFUSED, BUSY_FIX),
    "psk-wrong": ("the two files differ", "copy the key file once more"),
    "key-unknown": ("its owner has not added it", "add the public half there, to the file of the setting admit.keys"),
    "keys-unusable": ("a line or the rights of the file are wrong", "there: p2pc config set admit.keys FILE says what"),
    "not-nearby": ("its setting admit.nearby goes no further", _NEW_ONE),
    "not-this-way": (
        "neither its settings nor its group say so",
        "set admit.psk, admit.keys or admit.nearby there, for strangers p2pc group policy open=true, or: p2pc invite",
    ),
    "key-changed": ("it may be this one, set up anew, or somebody is taken for it", "choose another name: --name NAME"),
    "clock": ("the clocks of both machines differ too much", "set them"),
}
"""Why, and what helps, for refusals other than that an invitation has ended."""


def _refusal(ending: Ending) -> TrustError:
    return TrustError(_WHY[ending], _BECAUSE[ending], _NEW_ONE, code=_CODE_PREFIX + ending)


def refusal_by_inviter(code: str, what: str) -> TrustError:
    """Return what an inviter's refusal means to the joiner: in our words where the code is known, else in its own."""
    try:
        return _refusal(Ending(code.removeprefix(_CODE_PREFIX)))
    except ValueError:
        why, fix = _REFUSALS.get(code, (_REFUSED, _NEW_ONE))
        return TrustError(what, why, fix, code=code)


@dataclass(slots=True, kw_only=True)
class Invite:
    """One invitation, as its maker keeps it."""

    secret: bytes
    uses: int
    """Installations that it may admit in all."""
    expires: float
    """By the clock whose `now` was given at `create`."""
    roles: tuple[str, ...]
    """What it grants."""
    ending: Ending | None = None
    failures: int = 0
    """Wrong proofs so far."""
    admitted: dict[bytes, None] = field(default_factory=dict)
    """Installations, in the order in which they came."""
    created: float = 0.0
    ended: float | None = None
    """By the same clock."""
    number: int = 0
    """Of an invitation with words; 0: it has none."""
    words: tuple[str, ...] = ()
    is_mine: bool = False
    """Inviter and joiner trust each other."""
    removals: frozenset[bytes] = frozenset()
    """Ids of the removals that were known when it was made: it brings back those whom they removed, and no others."""

    @property
    def code(self) -> Code:
        """What is said to the joiner, for an invitation with words."""
        return Code(self.number, self.words)

    @property
    def id(self) -> bytes:
        return invite_id(self.secret)

    @property
    def failures_left(self) -> int:
        return max(0, JOIN_FAILURES_MAX - self.failures)

    @property
    def uses_left(self) -> int:
        return self.uses - len(self.admitted)

    def __repr__(self) -> str:
        return f"<Invite {self.id.hex()} {self.ending or 'open'} {len(self.admitted)}/{self.uses} used>"


@dataclass(slots=True)
class InviteCounters:
    """What happened to invitations since the start."""

    created: int = 0
    redeemed: int = 0
    repeated: int = 0
    """Admitted again because the first answer was lost."""
    wrong: int = 0
    refused: int = 0
    """Proofs for invitations that had ended or were never made."""


class Invites:
    """The invitations of one node.  Several may be open; ended ones are remembered for a while to say why."""

    def __init__(self, crypto: Crypto) -> None:
        self._crypto = crypto
        self._open: dict[bytes, Invite] = {}
        self._ended: dict[bytes, Invite] = {}
        self._meetings: Meetings[bytes] = Meetings(crypto)
        """Exchanges over words, by invitation."""
        self.counters = InviteCounters()

    def create(
        self,
        now: float,
        *,
        uses: int = 1,
        expires_s: float = INVITE_TTL_S,
        roles: Sequence[str] = MEMBER_ROLES,
        words: int = 0,
        numbers_elsewhere: Collection[int] = (),
        removals: frozenset[bytes] = frozenset(),
        is_mine: bool = False,
    ) -> Invite:
        """Return a new open invitation.

        Args:
            now: seconds, by the clock that `redeem` will be given.
            uses: machines that it may admit, 1 to INVITE_USES_MAX.
            expires_s: its life in seconds, above 0 and at most INVITE_TTL_S_MAX.
            roles: what it grants; the caller has made sure that it may grant them.
            words: how many words its code has; 0: it is for a token.
            removals: see `Invite.removals`.
            numbers_elsewhere: what other inviters announce: a joiner could not tell which is meant.
            is_mine: inviter and joiner are to trust each other.

        Raises:
            UsageError: a number is out of range, a role is unknown, or INVITES_OPEN_MAX are open.
        """
        self.check_terms(uses=uses, expires_s=expires_s, roles=roles, words=words)
        self._expire(now)
        if len(self._open) >= INVITES_OPEN_MAX:
            raise UsageError(
                "too many invitations are open",
                f"{INVITES_OPEN_MAX} at once is the most",
                "wait until some expire, or make one with --uses N for many machines",
                code="invites-full",
            )
        invite = Invite(
            secret=self._crypto.random_bytes(SECRET_BYTES),
            uses=uses,
            expires=now + expires_s,
            roles=ordered_roles(roles),
            removals=removals,
            created=now,
            is_mine=is_mine,
        )
        if words:
            invite.number = self._free_number(numbers_elsewhere)
            invite.words = words_of(self._crypto.random_bytes(words))
        self._open[invite.id] = invite
        self.counters.created += 1
        return invite

    @staticmethod
    def check_terms(*, uses: int, expires_s: float, roles: Sequence[str] = MEMBER_ROLES, words: int = 0) -> None:
        """Raise UsageError when there can be no such invitation; arguments as for `create`."""
        if not 1 <= uses <= INVITE_USES_MAX:
            raise UsageError(f"an invitation for {uses} machines", f"it may be 1 to {INVITE_USES_MAX}", "choose --uses")
        if not 0 < expires_s <= INVITE_TTL_S_MAX:
            raise UsageError(
                f"an invitation that is good for {expires_s:g} s",
                f"it may be above 0 s and at most {INVITE_TTL_S_MAX / 86400:g} days",
                "choose --expires",
            )
        if any(role not in ROLES for role in roles):
            raise UsageError("an unknown role", f"roles are: {', '.join(ROLES)}", "choose one of them")
        if words and not INVITE_WORDS_MIN <= words <= INVITE_WORDS_MAX:
            raise UsageError(
                f"a code of {words} words", f"it may have {INVITE_WORDS_MIN} to {INVITE_WORDS_MAX}", "choose --words"
            )

    def redeem(
        self, now: float, invitation: bytes, proof: bytes, *, binding: bytes, joiner: bytes, inviter: bytes
    ) -> Invite:
        """Return the invitation that the joiner may now be admitted on; one use is taken.

        Args:
            invitation: the `invite_id` that the joiner named.
            proof: what the joiner sent as `join_proof`.
            binding: of the channel it came on.
            joiner: the key that the joiner has proven on this channel.
            inviter: our own key.

        Raises:
            TrustError: used, expired, void, unknown (codes ``invite-…``), or the proof is wrong
                (``invite-wrong``, which counts; JOIN_FAILURES_MAX of them void the invitation).
            RemoteProtocolError: not an invitation's name or not a proof.
        """
        if not isinstance(invitation, bytes) or len(invitation) != INVITE_ID_BYTES:
            raise RemoteProtocolError("not the name of an invitation")
        if not isinstance(proof, bytes) or len(proof) != PROOF_BYTES:
            raise RemoteProtocolError("not a proof")
        self._expire(now)
        invite = self._open.get(invitation) or self._ended.get(invitation)
        if invite is None:
            self.counters.refused += 1
            raise _refusal(Ending.UNKNOWN)
        if invite.ending not in (None, Ending.USED):
            self.counters.refused += 1
            raise _refusal(invite.ending)
        right = join_proof(invite.secret, binding=binding, joiner=joiner, inviter=inviter)
        if not hmac.compare_digest(right, proof):
            raise self._wrong(now, invite)
        return self._take_use(now, invite, joiner)

    def meet(
        self,
        now: float,
        number: object,
        message: object,
        *,
        binding: bytes,
        joiner: bytes,
        inviter: bytes,
        source: str = "",
    ) -> bytes:
        """Return the answer to a joiner's message over the words of the invitation with this number.

        Args:
            source: where the joiner comes from, see `source_of`: no source may use up what there is for all.

        Raises:
            TrustError: the invitation has ended or never was, or too many ask at once.
            RemoteProtocolError: not such a message.
        """
        if type(number) is not int:
            raise RemoteProtocolError("not the number of an invitation")
        invite = self._numbered(now, number)
        return self._meetings.begin(
            now,
            invite.id,
            invite.code.password,
            message,
            binding=binding,
            joiner=joiner,
            inviter=inviter,
            source=source,
        )

    def redeem_words(self, now: float, proof: object, *, binding: bytes, joiner: bytes) -> tuple[Invite, bytes]:
        """Return the invitation that the joiner may now be admitted on, and the proof that this is the inviter.

        Args:
            proof: what the joiner sent after `meet`; each meeting has one.

        Raises:
            TrustError: as `redeem`.
            RemoteProtocolError: there was no meeting on this channel.
        """
        invitation, exchange = self._meetings.end(binding=binding, joiner=joiner)
        self._expire(now)
        invite = self._open.get(invitation) or self._ended.get(invitation)
        if invite is None or invite.ending not in (None, Ending.USED):
            self.counters.refused += 1
            raise _refusal(Ending.UNKNOWN if invite is None or invite.ending is None else invite.ending)
        if not exchange.is_proof(proof):
            raise self._wrong(now, invite)
        return self._take_use(now, invite, joiner), exchange.own_proof

    def _numbered(self, now: float, number: int) -> Invite:
        """Return the invitation with this number, if words may still be tried on it."""
        self._expire(now)
        for invite in (*self._open.values(), *reversed(self._ended.values())):
            if number and invite.number == number:
                if invite.ending in (None, Ending.USED):
                    return invite
                self.counters.refused += 1
                raise _refusal(invite.ending)
        self.counters.refused += 1
        raise _refusal(Ending.UNKNOWN)

    def _free_number(self, elsewhere: Collection[int]) -> int:
        """Return one of the lowest free numbers; by chance: two who choose at once do not hear each other."""
        taken = {*elsewhere, *(invite.number for invite in (*self._open.values(), *self._ended.values()))}
        free = (number for number in range(1, INVITE_NUMBER_MAX + 1) if number not in taken)
        lowest = list(itertools.islice(free, INVITE_NUMBERS_CHOICE)) or [INVITE_NUMBER_MAX]
        return lowest[int.from_bytes(self._crypto.random_bytes(4), "big") % len(lowest)]

    def numbers(self, now: float) -> list[int]:
        """Return the numbers of the open invitations with words, to be announced."""
        return sorted(invite.number for invite in self.open_invites(now) if invite.number)

    def find(self, now: float, invitation: bytes) -> Invite | None:
        """Return an invitation, open or ended; None when it is not remembered."""
        self._expire(now)
        return self._open.get(invitation) or self._ended.get(invitation)

    def withdraw(self, now: float, invitation: bytes) -> bool:
        """Void an invitation that is open; returns whether it was."""
        invite = self._open.get(invitation)
        if invite is not None:
            self._end(now, invite, Ending.VOID)
        return invite is not None

    def _take_use(self, now: float, invite: Invite, joiner: bytes) -> Invite:
        """Admit a joiner that has proven to know the secret."""
        if joiner in invite.admitted and now < invite.expires:
            self.counters.repeated += 1
            return invite
        if invite.ending is not None:
            self.counters.refused += 1
            raise _refusal(invite.ending)
        invite.admitted[joiner] = None
        self.counters.redeemed += 1
        if invite.uses_left == 0:
            self._end(now, invite, Ending.USED)
        return invite

    def _wrong(self, now: float, invite: Invite) -> TrustError:
        self.counters.wrong += 1
        if invite.ending is Ending.USED:
            return _refusal(Ending.USED)  # who lost the answer may still ask again
        invite.failures += 1
        left = JOIN_FAILURES_MAX - invite.failures
        if left <= 0:
            self._end(now, invite, Ending.VOID)
            return _refusal(Ending.VOID)
        what = f"{'these are not the words of' if invite.words else 'this is not the proof for'} this invitation"
        tries = f"{left} more wrong {'try' if left == 1 else 'tries'} and it is void"
        return TrustError(f"{what}: {tries}", "it was mistyped, or is of another one", _READ_AGAIN, code=_WRONG)

    def withdraw_all(self, now: float) -> int:
        """Void every open invitation, as `leave` does; returns how many there were."""
        invites = list(self._open.values())
        for invite in invites:
            self._end(now, invite, Ending.VOID)
        return len(invites)

    def open_invites(self, now: float) -> list[Invite]:
        """Return what can still be used, oldest first."""
        self._expire(now)
        return list(self._open.values())

    def preamble_keys(self, now: float) -> list[bytes]:
        """Return the preamble keys that get a joiner to the handshake, open invitations first.

        Ended ones stay among them as long as they are remembered, so that a late joiner hears why it is
        refused; at most INVITES_OPEN_MAX + INVITES_CLOSED_MAX.
        """
        self._expire(now)
        invites = [*self._open.values(), *self._ended.values()]
        has_words = any(one.words and (one.ended is None or now - one.ended < WORDS_GRACE_S) for one in invites)
        return [*([WORDS_KEY] if has_words else ()), *[invite_key(one.secret) for one in invites if not one.words]]

    def _expire(self, now: float) -> None:
        for invite in [invite for invite in self._open.values() if invite.expires <= now]:
            self._end(now, invite, Ending.EXPIRED)

    def _end(self, now: float, invite: Invite, ending: Ending) -> None:
        invite.ending, invite.ended = ending, now
        self._open.pop(invite.id, None)
        self._ended[invite.id] = invite
        while len(self._ended) > INVITES_CLOSED_MAX:
            del self._ended[next(iter(self._ended))]

    def check_invariants(self) -> None:
        """Raise InvariantViolation when the tables contradict themselves."""
        for name, table in (("open", self._open), ("ended", self._ended)):
            for key, invite in table.items():
                if key != invite.id or (invite.ending is None) != (name == "open") or invite.uses_left < 0:
                    raise InvariantViolation(f"{invite!r} among the {name} invitations")
                if name == "open" and (invite.uses_left == 0 or invite.failures >= JOIN_FAILURES_MAX):
                    raise InvariantViolation(f"{invite!r} should have ended")
        if len(self._open) > INVITES_OPEN_MAX or len(self._ended) > INVITES_CLOSED_MAX:
            raise InvariantViolation("more invitations than the limits allow")
