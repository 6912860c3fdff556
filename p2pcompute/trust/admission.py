"""How somebody may be let into a group: one small interface, whatever he has to show.

A joiner reaches a member over a joining channel, on which both have proven their keys.  It names a method, sends a
first message where the method has one, then its proof.  What follows is the same for all: a signed admit entry.

| method | the joiner shows | how it knows the member |
|---|---|---|
| token | a proof of the token's secret | the token names its key |
| words | that it knows the words (`pake`) | it knows the words too |
| psk | that it knows the pre-shared key (`pake`) | it knows that key too |
| key | a statement of an OpenSSH key that the member has on its list (`ssh_keys`) | its key is pinned at first use |
| nearby | that it is on this network | its key is pinned at first use |
| open | some work for its key (`open_door`), in a group that is open to everybody | its key is pinned at first use |

All but tokens are tried by strangers, at a limited rate (`meetings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from p2pcompute.errors import IdentityError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.limits import PSK_BYTES_MAX, PSK_BYTES_MIN
from p2pcompute.transport.credentials import WORDS_KEY
from p2pcompute.transport.rate import source_of
from p2pcompute.trust.invites import Invite, Invites
from p2pcompute.trust.meetings import Meetings
from p2pcompute.trust.pins import Pins
from p2pcompute.trust.ssh_keys import check_voucher, fingerprint
from p2pcompute.wire.fields import listed

TOKEN: Final = "token"
WORDS: Final = "words"
PSK: Final = "psk"
KEY: Final = "key"
NEARBY: Final = "nearby"
OPEN: Final = "open"
STANDING: Final = (PSK, KEY, NEARBY, OPEN)
"""Methods that are open as long as a node's settings say so; they are announced on the local network."""
METHOD_CHARS_MAX: Final = 16
ROLES_UNASKED: Final = ("submit", "work")
"""What is granted where nobody at the member agrees to each joiner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """A joiner at the door, over one channel."""

    now: float
    wall: float
    """Unix seconds."""
    joiner: bytes
    """The key that it has proven."""
    name: str
    """What it calls itself."""
    inviter: bytes
    """Our own key, which it has seen proven."""
    binding: bytes
    """Names the channel; 32 bytes."""
    host: str
    """Where it comes from: an IP literal."""

    @property
    def source(self) -> str:
        return source_of(self.host, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a joiner is admitted with."""

    roles: tuple[str, ...]
    is_stranger: bool = False
    """Nobody vouches for it."""
    proof: bytes = b""
    """Shows the joiner that this member knows the secret too, in methods with a secret."""
    invite: Invite | None = None
    """The invitation that was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a joiner wants to come in by a standing way."""

    method: str
    """From STANDING."""
    proof: bytes = b""
    """The pre-shared key, or the statement of an OpenSSH key."""
    via: str = ""
    """HOST:PORT of a member; empty: one on the local network."""
    inviter: bytes | None = None
    """Key that the member must have; needed where it cannot prove to know a secret."""

    def __repr__(self) -> str:
        return f"<Entry by {self.method}>"


class Admission(Protocol):
    """One way into the group, as a member sees it that lets others in."""

    @property
    def method(self) -> str:
        """Its name on the wire."""

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        """Keys of preambles that get a joiner to the handshake now; none: this way is closed."""

    def meet(self, knock: Knock, message: Any) -> bytes:
        """Answer a joiner's first message.

        Raises:
            TrustError: there is no such secret here, or too many ask at once.
            RemoteProtocolError: not such a message, or the method has none.
        """

    def admit(self, knock: Knock, proof: Any) -> Grant:
        """Return what a joiner may have.

        Raises:
            TrustError: nothing, and why.
            RemoteProtocolError: not a proof of this method.
        """


class TokenAdmission:
    """Invitations by tokens.  Proof: [invitation, proof]."""

    method: Final = TOKEN

    def __init__(self, invites: Invites) -> None:
        self._invites = invites

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [key for key in self._invites.preamble_keys(now) if key != WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        raise _no_first_message()

    def admit(self, knock: Knock, proof: Any) -> Grant:
        invitation, answer = listed(proof, 2, "proof of a token")
        invite = self._invites.redeem(
            knock.now, invitation, answer, binding=knock.binding, joiner=knock.joiner, inviter=knock.inviter
        )
        return Grant(roles=invite.roles, invite=invite)


class WordsAdmission:
    """Invitations by words.  First message: [number, message of the exchange]; proof: that of the exchange."""

    method: Final = WORDS

    def __init__(self, invites: Invites) -> None:
        self._invites = invites

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [key for key in self._invites.preamble_keys(now) if key == WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        number, first = listed(message, 2, "first message about words")
        return self._invites.meet(
            knock.now, number, first, binding=knock.binding, joiner=knock.joiner, inviter=knock.inviter,
            source=knock.source,
        )  # fmt: skip

    def admit(self, knock: Knock, proof: Any) -> Grant:
        invite, own_proof = self._invites.redeem_words(knock.now, proof, binding=knock.binding, joiner=knock.joiner)
        return Grant(roles=invite.roles, proof=own_proof, invite=invite)


class PskAdmission:
    """A pre-shared key.  First message and proof: those of an exchange, so that nobody can try keys offline."""

    method: Final = PSK

    def __init__(self, crypto: Crypto, secret: bytes, meetings: Meetings[None] | None = None) -> None:
        self._secret = secret
        self._meetings: Meetings[None] = meetings or Meetings(crypto)

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        return self._meetings.begin(
            knock.now, None, self._secret, message, binding=knock.binding, joiner=knock.joiner,
            inviter=knock.inviter, source=knock.source,
        )  # fmt: skip

    def admit(self, knock: Knock, proof: Any) -> Grant:
        _subject, exchange = self._meetings.end(binding=knock.binding, joiner=knock.joiner)
        if not exchange.is_proof(proof):
            raise TrustError("that is not the pre-shared key of this group", code="psk-wrong")
        return Grant(roles=ROLES_UNASKED, proof=exchange.own_proof)


class KeyAdmission:
    """A list of OpenSSH keys.  Proof: a statement by one of them about the joiner's key."""

    method: Final = KEY

    def __init__(self, crypto: Crypto, read: Callable[[], Mapping[bytes, str]]) -> None:
        """Args:
        read: returns key → comment of those that may join; asked each time, as people change the file.
        """
        self._crypto = crypto
        self._read = read
        self._meetings: Meetings[None] = Meetings(crypto)

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        raise _no_first_message()

    def admit(self, knock: Knock, proof: Any) -> Grant:
        self._meetings.take_turn(knock.now, knock.source)
        signer = check_voucher(self._crypto, proof, joiner=knock.joiner, wall=knock.wall)
        try:
            known = self._read()
        except (IdentityError, UsageError) as error:
            raise TrustError("the other computer's list of keys cannot be used", code="keys-unusable") from error
        if signer not in known:
            raise TrustError(f"the key {fingerprint(signer)} is not on the other computer's list", code="key-unknown")
        return Grant(roles=ROLES_UNASKED)


class NearbyAdmission:
    """Leap of faith: whoever is on the local network; a name once seen with a key is refused with another."""

    method: Final = NEARBY

    def __init__(self, crypto: Crypto, pins: Pins, is_near: Callable[[str], bool]) -> None:
        """Args:
        is_near: whether an address is on the local network.
        """
        self._pins = pins
        self._is_near = is_near
        self._meetings: Meetings[None] = Meetings(crypto)

    def preamble_keys(self, now: float) -> Sequence[bytes]:
        return [WORDS_KEY]

    def meet(self, knock: Knock, message: Any) -> bytes:
        raise _no_first_message()

    def admit(self, knock: Knock, proof: Any) -> Grant:
        if proof != b"":
            raise RemoteProtocolError("not a request of somebody nearby")
        self._meetings.take_turn(knock.now, knock.source)
        if not self._is_near(knock.host):
            raise TrustError(
                f"the other computer lets in only those on its own network, and sees this one at {knock.host}",
                code="not-nearby",
            )
        self._pins.check(f"joiner {knock.name}", knock.joiner, who=f"a computer named {knock.name!r}")
        return Grant(roles=ROLES_UNASKED)


def check_psk(data: bytes, where: str) -> bytes:
    """Return the secret in a key file: all of it but white space at its ends.

    Raises:
        UsageError: too short to be safe, or too long.
    """
    secret = data.strip()
    if not PSK_BYTES_MIN <= len(secret) <= PSK_BYTES_MAX:
        raise UsageError(
            f"{where} cannot be a pre-shared key",
            f"it has {len(secret)} bytes; {PSK_BYTES_MIN} to {PSK_BYTES_MAX} are needed",
            f"make one: (umask 077; openssl rand -base64 32 > {where})",
            code="psk",
        )
    return secret


def _no_first_message() -> RemoteProtocolError:
    return RemoteProtocolError("this way of joining has no first message")
