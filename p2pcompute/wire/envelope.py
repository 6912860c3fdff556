"""Signed envelopes: COSE_Sign1 with EdDSA over canonical CBOR.

An envelope is the *untagged* COSE_Sign1 array ``[protected, {}, payload, signature]``; the protected header
holds exactly algorithm (1: -8), content type (3) and key id (4: the signer's 32-byte public key).  The
content type separates domains: a signature made for one kind of object never passes for another.

Source: RFC 9052 sections 4.2 and 4.4, RFC 9053 section 2.2.
Deviations: no unprotected header, no external AAD, no tag 18; anything else is refused.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import ENVELOPE_BYTES_MAX
from p2pcompute.wire import cbor

_ALGORITHM: Final = 1
CONTENT_TYPE: Final = 3
_KEY_ID: Final = 4
_EDDSA: Final = -8
_SIGNATURE_BYTES: Final = 64
FORGED: Final = "forged"
"""Code of the error when the signature is wrong."""


class Envelope(Struct, frozen=True):
    """A verified envelope."""

    content_type: str
    signer: bytes
    """Public key of the signer: 32 bytes."""
    payload: Any
    """Decoded payload."""
    raw: bytes
    """The envelope as it was on the wire; what is stored and passed on."""


def seal(crypto: Crypto, seed: bytes, content_type: str, payload: Any) -> bytes:
    """Return the envelope of `payload` signed by the key with secret `seed`."""
    protected = cbor.encode({_ALGORITHM: _EDDSA, CONTENT_TYPE: content_type, _KEY_ID: crypto.public_key(seed)})
    body = cbor.encode(payload)
    signature = crypto.sign(seed, cbor.encode(["Signature1", protected, b"", body]))
    return cbor.encode([protected, {}, body, signature])


def open_envelope(
    crypto: Crypto,
    raw: bytes,
    content_type: str,
    *,
    signer: bytes | None = None,
    allow_float: bool = False,
    bytes_max: int = ENVELOPE_BYTES_MAX,
) -> Envelope:
    """Return the verified envelope.

    Args:
        content_type: the only type accepted here.
        signer: when given, the only key accepted.
        allow_float: whether the payload may hold floats.

    Raises:
        RemoteProtocolError: malformed, of another type or signer, or the signature is wrong.
    """
    if len(raw) > bytes_max:
        raise RemoteProtocolError(f"an envelope of {len(raw)} bytes")
    outer = cbor.decode(raw)
    if not (isinstance(outer, list) and len(outer) == 4):
        raise RemoteProtocolError("not a COSE_Sign1 array")
    protected, unprotected, body, signature = outer
    if not (
        isinstance(protected, bytes)
        and unprotected == {}
        and isinstance(unprotected, dict)
        and isinstance(body, bytes)
        and isinstance(signature, bytes)
        and len(signature) == _SIGNATURE_BYTES
    ):
        raise RemoteProtocolError("not a COSE_Sign1 array")
    header = cbor.decode(protected)
    if not isinstance(header, dict) or set(header) != {_ALGORITHM, CONTENT_TYPE, _KEY_ID}:
        raise RemoteProtocolError("envelope header has other fields than algorithm, type and key")
    key = header[_KEY_ID]
    if header[_ALGORITHM] != _EDDSA or header[CONTENT_TYPE] != content_type:
        raise RemoteProtocolError("envelope of another kind", f"wanted {content_type}")
    if not isinstance(key, bytes) or len(key) != PUBLIC_KEY_BYTES or (signer is not None and key != signer):
        raise RemoteProtocolError("envelope of another signer")
    if not crypto.verify(key, cbor.encode(["Signature1", protected, b"", body]), signature):
        raise RemoteProtocolError("wrong signature", code=FORGED)
    return Envelope(content_type, key, cbor.decode(body, allow_float=allow_float), raw)


def unverified_payload(raw: bytes) -> Any:
    """Return what an envelope says, unchecked: to see what it is about, or because it was verified before.

    Raises:
        RemoteProtocolError: it is none.
    """
    outer = cbor.decode(raw)
    if not (isinstance(outer, list) and len(outer) == 4 and isinstance(outer[2], bytes)):
        raise RemoteProtocolError("not a COSE_Sign1 array")
    return cbor.decode(outer[2])


def signer_of(protected: bytes) -> bytes:
    """Return the key named in the protected header of an envelope that was verified before."""
    key: bytes = cbor.decode(protected)[_KEY_ID]
    return key
