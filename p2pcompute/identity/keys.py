"""Signing keys: one per installation, and short-lived ones that an installation vouches for.

An embedded node (a program that uses the library) has a fresh *session key*.  The installation's *delegation*
names that key, what it may do and until when.  There is one level: a delegate vouches for nobody.
Membership, quotas and bans count the installation; all its delegates are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from p2pcompute.errors import IdentityError, RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.ids import PUBLIC_KEY_BYTES, short_device_id
from p2pcompute.limits import DELEGATION_BYTES_MAX, DELEGATION_TTL_S_MAX, ROLE_CHARS_MAX, ROLES_MAX
from p2pcompute.wire import envelope

SEED_BYTES: Final = 32
DELEGATION_TYPE: Final = "p2pc/delegation"

ROLES: Final = ("submit", "work", "invite", "admin")
"""What an installation may do in a group, in the order in which roles are written."""


def ordered_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the known ones among `roles`, each once, in the order of ROLES."""
    given = tuple(roles)
    return tuple(role for role in ROLES if role in given)


def roles_from_wire(value: Any) -> tuple[str, ...]:
    """Return the roles that this build knows among those a peer named; later builds may know more.

    Raises:
        RemoteProtocolError: not a list of at most ROLES_MAX short words.
    """
    if not (
        isinstance(value, list)
        and len(value) <= ROLES_MAX
        and all(isinstance(role, str) and len(role) <= ROLE_CHARS_MAX for role in value)
    ):
        raise RemoteProtocolError("not a list of roles")
    return ordered_roles(value)


class Identity:
    """One signing key in use by this process: an installation's, or a delegate's."""

    __slots__ = ("_crypto", "_seed", "delegation", "installation", "public_key")

    def __init__(
        self, crypto: Crypto, seed: bytes, *, installation: bytes | None = None, delegation: bytes | None = None
    ) -> None:
        self._crypto = crypto
        self._seed = seed
        self.public_key: bytes = crypto.public_key(seed)
        """32 bytes."""
        self.installation: bytes = self.public_key if installation is None else installation
        """Equal to `public_key` for an installation; the installation's key for a delegate."""
        self.delegation: bytes | None = delegation
        """The raw delegation envelope of a delegate."""

    def __repr__(self) -> str:
        kind = "installation" if self.delegation is None else "delegate"
        return f"<Identity {kind} {short_device_id(self.public_key)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a signing key is not pickled")

    def sign_envelope(self, content_type: str, payload: Any) -> bytes:
        """Return the COSE_Sign1 envelope of `payload`, signed by this key."""
        return envelope.seal(self._crypto, self._seed, content_type, payload)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `message`.  The caller puts a domain in front of the message."""
        return self._crypto.sign(self._seed, message)

    def tag(self, peer: bytes, message: bytes) -> bytes:
        """Return the 64 bytes by which the holder of the public key `peer` knows that `message` is by this key.

        Both can make them, so they prove nothing to anybody else.  The caller puts a domain in front of the message,
        and who says it to whom.
        """
        return self._crypto.tag(self._seed, peer, message)

    def secret_seed(self) -> bytes:
        """Return the 32 secret bytes; only for the key file."""
        return self._seed


def create_identity(crypto: Crypto) -> Identity:
    """Return a new installation key."""
    return Identity(crypto, crypto.random_bytes(SEED_BYTES))


def delegate(identity: Identity, crypto: Crypto, *, expires_wall: float, roles: Sequence[str]) -> Identity:
    """Return a fresh session key with the installation's word for it.

    Args:
        expires_wall: Unix seconds; choose it beyond the retention of the jobs that the session submits.  At
            most DELEGATION_TTL_S_MAX ahead is accepted by others.
        roles: what the delegate may do, from ROLES; never more than the installation may.

    Raises:
        IdentityError: `identity` is a delegate itself, or a role is unknown.
    """
    if identity.delegation is not None:
        raise IdentityError(
            "an embedded node cannot vouch for another one",
            "only the key of the installation may",
            "start the second one from the installation as well",
        )
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise IdentityError(f"there is no role {unknown[0]!r}", f"roles are: {', '.join(ROLES)}", "choose one of them")
    seed = crypto.random_bytes(SEED_BYTES)
    body = {"key": crypto.public_key(seed), "roles": list(ordered_roles(roles)), "expires": int(expires_wall)}
    return Identity(
        crypto,
        seed,
        installation=identity.public_key,
        delegation=identity.sign_envelope(DELEGATION_TYPE, body),
    )


def check_delegation(
    crypto: Crypto,
    raw: bytes,
    *,
    wall: float,
    session_key: bytes | None = None,
    installation: bytes | None = None,
) -> tuple[bytes, bytes, tuple[str, ...]]:
    """Return (session key, installation, roles) of a delegation that is valid now.

    The caller must have proof that the peer holds the session key: a delegation is public, and one that was
    copied from somebody else names another key.

    Args:
        wall: Unix seconds.
        session_key: the key that the peer has proven, when known: any other is refused.
        installation: the only signer accepted, when known.

    Raises:
        RemoteProtocolError: malformed, expired, too long-lived, of another signer or for another key.
    """
    opened = envelope.open_envelope(crypto, raw, DELEGATION_TYPE, signer=installation, bytes_max=DELEGATION_BYTES_MAX)
    body = opened.payload
    if not isinstance(body, dict) or not {"key", "roles", "expires"} <= body.keys():
        raise RemoteProtocolError("not a delegation")
    key, expires = body["key"], body["expires"]
    if not isinstance(key, bytes) or len(key) != PUBLIC_KEY_BYTES or key == opened.signer:
        raise RemoteProtocolError("a delegation without a session key")
    if isinstance(expires, bool) or not isinstance(expires, int):
        raise RemoteProtocolError("a delegation without an expiry")
    if expires <= wall:
        raise RemoteProtocolError("an expired delegation")
    if expires > wall + DELEGATION_TTL_S_MAX:
        raise RemoteProtocolError("a delegation that lives too long")
    if session_key is not None and key != session_key:
        raise RemoteProtocolError("a delegation for another key")
    return key, opened.signer, roles_from_wire(body["roles"])
