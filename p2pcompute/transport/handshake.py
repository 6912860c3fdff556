"""How two nodes prove their keys to each other on a new connection.  Pure: what each side sends and checks.

1. The dialler's *preamble*, before TLS: group hint, wall time, nonce, MAC under the network key (or an
   invitation's key) over these and the listener's key.  Without it a connection gets no byte in answer.
2. HELLO from the listener: protocol versions, a nonce, and an envelope in which its identity vouches for the
   TLS leaf certificate.  The dialler checks it against the id that it meant and the certificate that it saw,
   so whoever terminates TLS in between is found out.
3. AUTH from the dialler: versions, purpose, and its signature over the protocol's name, the certificate, the
   listener's nonce and both ids.  It is worthless on any other connection, at any other listener, and when sent
   back to where it came from.
4. WELCOME from the listener, or ERROR with the reason.

Source: the SIGMA family of authenticated exchanges (Krawczyk 2003) on top of RFC 8446; RFC 5929 section 4
("tls-server-end-point") for binding to the certificate's hash.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError, VersionMismatch
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import Identity
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import (
    PREAMBLE_BYTES,
    PREAMBLE_SKEW_S_MAX,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    REPLAY_NONCES_MAX,
)
from p2pcompute.transport.credentials import ANYBODY, HINT_BYTES, WORDS_KEY, group_hint
from p2pcompute.transport.messages import Purpose
from p2pcompute.wire import cbor, envelope

PROTOCOL_NAME: Final = b"p2pcompute channel"
CERTIFICATE_TYPE: Final = "p2pc/tls-leaf"
PREAMBLE_NONCE_BYTES: Final = 12
NONCE_BYTES: Final = 32
INSTANCE_BYTES: Final = 8
BINDING_BYTES: Final = 32
_MAC_BYTES: Final = 16
_TIME_BYTES: Final = 8
_SIGNED_BYTES: Final = HINT_BYTES + _TIME_BYTES + PREAMBLE_NONCE_BYTES
_VERSION_LIMIT: Final = 2**16
_SIGNATURE_BYTES: Final = 64
_TEXT: Final = frozenset([str])

assert _SIGNED_BYTES + _MAC_BYTES == PREAMBLE_BYTES


# --- preamble -------------------------------------------------------------------------------------


def make_preamble(key: bytes, *, listener: bytes, wall: float, nonce: bytes) -> bytes:
    """Return the PREAMBLE_BYTES bytes that ask for a TLS handshake.

    Args:
        key: a network key, or an invitation's (32 bytes).
        listener: public key of the node that is dialled; nobody else lets this preamble in.  ANYBODY with WORDS_KEY.
        wall: Unix seconds.
        nonce: PREAMBLE_NONCE_BYTES unpredictable bytes.
    """
    if len(nonce) != PREAMBLE_NONCE_BYTES or len(listener) != PUBLIC_KEY_BYTES:
        raise LocalProtocolError("a nonce or key of a wrong length")
    head = group_hint(key) + int(wall * 1000).to_bytes(_TIME_BYTES, "big") + nonce
    return head + _preamble_mac(key, head, listener)


def _preamble_mac(key: bytes, head: bytes, listener: bytes) -> bytes:
    return hashlib.blake2b(head + listener, key=key, digest_size=_MAC_BYTES, person=b"p2pc preamble").digest()


def match_preamble(preamble: bytes, keys: Iterable[bytes], listener: bytes) -> bytes | None:
    """Return the one of `keys` under which the preamble was made for `listener`."""
    if len(preamble) != PREAMBLE_BYTES:
        return None
    head, mac = preamble[:_SIGNED_BYTES], preamble[_SIGNED_BYTES:]
    for key in keys:
        meant = ANYBODY if key == WORDS_KEY else listener
        if group_hint(key) == head[:HINT_BYTES] and hmac.compare_digest(_preamble_mac(key, head, meant), mac):
            return key
    return None


@dataclass(slots=True)
class PreambleCounters:
    admitted: int = 0
    stranger: int = 0
    """No key of ours made it, for us."""
    skewed: int = 0
    """Too old, or from too far in the future."""
    replayed: int = 0


class PreambleGate:
    """Lets each preamble in once, and only while it is fresh.  Remembers at most REPLAY_NONCES_MAX nonces."""

    def __init__(self, listener: bytes) -> None:
        self._listener = listener
        self._expiry: dict[bytes, float] = {}
        self.counters = PreambleCounters()

    def __len__(self) -> int:
        return len(self._expiry)

    def admit(self, preamble: bytes, keys: Iterable[bytes], wall: float) -> bool:
        """Say whether the connection may go on.

        Args:
            keys: network keys and keys of open invitations.
            wall: Unix seconds.
        """
        if match_preamble(preamble, keys, self._listener) is None:
            self.counters.stranger += 1
            return False
        made = int.from_bytes(preamble[HINT_BYTES : HINT_BYTES + _TIME_BYTES], "big") / 1000
        if abs(made - wall) > PREAMBLE_SKEW_S_MAX:
            self.counters.skewed += 1
            return False
        nonce = preamble[HINT_BYTES + _TIME_BYTES : _SIGNED_BYTES]
        if nonce in self._expiry:
            self.counters.replayed += 1
            return False
        self._forget(wall)
        self._expiry[nonce] = made + PREAMBLE_SKEW_S_MAX
        self.counters.admitted += 1
        return True

    def _forget(self, wall: float) -> None:
        """Make room: nonces that are too old to pass again, from the front; the oldest when full."""
        while self._expiry:
            nonce = next(iter(self._expiry))
            if self._expiry[nonce] >= wall and len(self._expiry) < REPLAY_NONCES_MAX:
                return
            del self._expiry[nonce]


# --- versions -------------------------------------------------------------------------------------


def negotiate(theirs: tuple[int, int], ours: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX)) -> int:
    """Return the highest protocol version that both speak.

    Raises:
        VersionMismatch: there is none.
    """
    version = min(theirs[1], ours[1])
    if version < max(theirs[0], ours[0]):
        raise VersionMismatch(
            f"the other node speaks protocol {_range(theirs)}, this one {_range(ours)}",
            "there is no version that both know",
            "update the older one",
        )
    return version


def _range(versions: tuple[int, int]) -> str:
    return str(versions[0]) if versions[0] == versions[1] else f"{versions[0]} to {versions[1]}"


def _versions(value: Any) -> tuple[int, int]:
    is_valid = (
        isinstance(value, list)
        and len(value) == 2
        and all(type(version) is int and 0 < version < _VERSION_LIMIT for version in value)
        and value[0] <= value[1]
    )
    if not is_valid:
        raise RemoteProtocolError("not a range of versions")
    return value[0], value[1]


# --- listener's HELLO -----------------------------------------------------------------------------


class Hello(Struct, frozen=True, kw_only=True):
    """A checked HELLO."""

    key: bytes
    """The listener's proven key."""
    versions: tuple[int, int]
    nonce: bytes
    instance: bytes
    hello: dict[str, Any]


def certify(identity: Identity, binding: bytes) -> bytes:
    """Return the envelope in which `identity` vouches for its TLS leaf certificate."""
    return identity.sign_envelope(CERTIFICATE_TYPE, {"leaf": binding})


def make_hello(certificate: bytes, *, nonce: bytes, instance: bytes, hello: dict[str, Any]) -> dict[str, Any]:
    """Return the body of HELLO.

    Args:
        certificate: from `certify`.
        nonce: NONCE_BYTES unpredictable bytes, new for each connection.
        instance: INSTANCE_BYTES random bytes of this process.
    """
    return {
        "versions": [PROTOCOL_MIN, PROTOCOL_MAX],
        "nonce": nonce,
        "instance": instance,
        "certificate": certificate,
        "hello": hello,
    }


def check_hello(crypto: Crypto, body: Any, *, binding: bytes, listener: bytes | None) -> Hello:
    """Return the listener's HELLO when it is the node that was meant.

    Args:
        binding: SHA-256 of the leaf certificate that this connection showed.
        listener: the public key that was meant; None: whoever answers, who will have to prove more than a key.

    Raises:
        RemoteProtocolError: malformed, another node, or another certificate: somebody is in between.
    """
    fields = _map(body)
    signed = envelope.open_envelope(crypto, _bytes(fields, "certificate", None), CERTIFICATE_TYPE, signer=listener)
    leaf = _bytes(_map(signed.payload), "leaf", BINDING_BYTES)
    if not hmac.compare_digest(leaf, binding):
        raise RemoteProtocolError("the certificate of the connection is not the listener's")
    return Hello(
        key=signed.signer,
        versions=_versions(fields.get("versions")),
        nonce=_bytes(fields, "nonce", NONCE_BYTES),
        instance=_bytes(fields, "instance", INSTANCE_BYTES),
        hello=_map(fields.get("hello")),
    )


# --- dialler's AUTH -------------------------------------------------------------------------------


class Auth(Struct, frozen=True, kw_only=True):
    """A checked AUTH."""

    key: bytes
    """The dialler's proven key."""
    versions: tuple[int, int]
    purpose: Purpose
    instance: bytes
    hello: dict[str, Any]


def _auth_message(binding: bytes, nonce: bytes, listener: bytes, dialler: bytes) -> bytes:
    return cbor.encode([PROTOCOL_NAME, binding, nonce, listener, dialler])


def make_auth(
    identity: Identity,
    *,
    purpose: Purpose,
    binding: bytes,
    nonce: bytes,
    listener: bytes,
    instance: bytes,
    hello: dict[str, Any],
) -> dict[str, Any]:
    """Return the body of AUTH for the connection with this `binding` and the listener's `nonce`."""
    return {
        "versions": [PROTOCOL_MIN, PROTOCOL_MAX],
        "purpose": int(purpose),
        "key": identity.public_key,
        "signature": identity.sign(_auth_message(binding, nonce, listener, identity.public_key)),
        "instance": instance,
        "hello": hello,
    }


def session_of(*, binding: bytes, nonce: bytes, listener: bytes, dialler: bytes) -> bytes:
    """Return what names one connection, the same at both of its ends and never twice: 32 bytes.

    The certificate alone does not: a listener has one for all connections.
    """
    return hashlib.blake2b(_auth_message(binding, nonce, listener, dialler), digest_size=32).digest()


def check_auth(crypto: Crypto, body: Any, *, binding: bytes, nonce: bytes, listener: bytes) -> Auth:
    """Return the dialler's AUTH when its key is proven.

    Args:
        binding: SHA-256 of our own leaf certificate.
        nonce: what we sent on this connection.
        listener: our own public key.

    Raises:
        RemoteProtocolError: malformed, a wrong signature, or our own key: we were reflected to ourselves.
    """
    fields = _map(body)
    key = _bytes(fields, "key", PUBLIC_KEY_BYTES)
    if key == listener:
        raise RemoteProtocolError("a connection from ourselves")
    purpose = fields.get("purpose")
    if type(purpose) is not int or purpose not in Purpose.__members__.values():
        raise RemoteProtocolError("an unknown purpose")
    signature = _bytes(fields, "signature", _SIGNATURE_BYTES)
    if not crypto.verify(key, _auth_message(binding, nonce, listener, key), signature):
        raise RemoteProtocolError("wrong signature")
    return Auth(
        key=key,
        versions=_versions(fields.get("versions")),
        purpose=Purpose(purpose),
        instance=_bytes(fields, "instance", INSTANCE_BYTES),
        hello=_map(fields.get("hello")),
    )


# --- listener's WELCOME ---------------------------------------------------------------------------


def make_welcome(version: int) -> dict[str, Any]:
    """Return the body of WELCOME."""
    return {"version": version}


def check_welcome(body: Any, version: int) -> None:
    """Check that both sides chose the same version.

    Raises:
        RemoteProtocolError: they did not.
    """
    if _map(body).get("version") != version:
        raise RemoteProtocolError("the other side chose another protocol version")


def _map(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not {*map(type, value)} <= _TEXT:
        raise RemoteProtocolError("not a map with text keys")
    return value


def _bytes(fields: dict[str, Any], name: str, size: int | None) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise RemoteProtocolError(f"{name} is missing or malformed")
    return value
