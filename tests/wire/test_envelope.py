"""Signed envelopes, against mutations, confusion of kinds, and an independent COSE implementation."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycose.algorithms import EdDSA
from pycose.headers import KID, Algorithm, ContentType
from pycose.keys import OKPKey
from pycose.keys.curves import Ed25519
from pycose.messages import Sign1Message

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.wire import cbor
from p2pcompute.wire.envelope import open_envelope, seal

CRYPTO = RealCrypto()
SEED = bytes(range(32))
KEY = CRYPTO.public_key(SEED)
PAYLOAD = {"n": 1, "list": [b"x", None, True]}


def resign(protected: bytes, body: bytes, unprotected: Any = None) -> bytes:
    """An envelope with a right signature over any header and body."""
    signature = CRYPTO.sign(SEED, cbor2.dumps(["Signature1", protected, b"", body], canonical=True))
    return cbor2.dumps([protected, {} if unprotected is None else unprotected, body, signature], canonical=True)


def header(**changes: Any) -> bytes:
    fields: dict[Any, Any] = {1: -8, 3: "p2pc/test", 4: KEY}
    fields.update({int(name[1:]): value for name, value in changes.items()})
    return cbor2.dumps({key: value for key, value in fields.items() if value is not None}, canonical=True)


@given(st.dictionaries(st.text(max_size=6), st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=30), max_size=5))
def test_round_trip(payload: dict[str, Any]) -> None:
    """A signed object does not arrive as it was signed."""
    raw = seal(CRYPTO, SEED, "p2pc/test", payload)
    opened = open_envelope(CRYPTO, raw, "p2pc/test", signer=KEY)
    assert (opened.payload, opened.signer, opened.content_type, opened.raw) == (payload, KEY, "p2pc/test", raw)


def test_every_changed_byte_is_refused() -> None:
    """Some byte is not covered by the signature or by the canonical form: an envelope has two valid copies."""
    raw = seal(CRYPTO, SEED, "p2pc/test", PAYLOAD)
    for place in range(len(raw)):
        for change in (1, 0x20, 0x80):
            wrong = bytearray(raw)
            wrong[place] ^= change
            with pytest.raises(RemoteProtocolError):
                open_envelope(CRYPTO, bytes(wrong), "p2pc/test")


def test_every_cut_is_refused() -> None:
    """A truncated envelope is accepted."""
    raw = seal(CRYPTO, SEED, "p2pc/test", PAYLOAD)
    for end in range(len(raw)):
        with pytest.raises(RemoteProtocolError):
            open_envelope(CRYPTO, raw[:end], "p2pc/test")


@given(st.binary(max_size=200))
def test_junk_raises_only_the_documented_error(data: bytes) -> None:
    """Bytes from a peer crash the node."""
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, data, "p2pc/test")


def test_kinds_signers_and_sizes_are_kept_apart() -> None:
    """A signature made for one kind of object passes for another, or anybody's passes for the right one's."""
    raw = seal(CRYPTO, SEED, "p2pc/test", PAYLOAD)
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, raw, "p2pc/other")
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, raw, "p2pc/test", signer=CRYPTO.public_key(b"\x01" * 32))
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, raw, "p2pc/test", bytes_max=len(raw) - 1)


def test_the_signature_is_checked_with_the_key_in_the_header() -> None:
    """An attacker puts another's key id on his own signature."""
    protected = header(k4=CRYPTO.public_key(b"\x01" * 32))
    with pytest.raises(RemoteProtocolError, match="wrong signature"):
        open_envelope(CRYPTO, resign(protected, cbor.encode(1)), "p2pc/test")


@pytest.mark.parametrize(
    "protected",
    [
        header(k1=-7),
        header(k1=None),
        header(k3=None),
        header(k3=b"p2pc/test"),
        header(k3=0),
        header(k4=None),
        header(k4=KEY[:31]),
        header(k4="x" * 32),
        header(k2=[1]),
        header(k5=b"iv"),
        b"",
        b"\xa0",
        cbor2.dumps([1, 3, 4]),
        cbor2.dumps({3: "p2pc/test", 1: -8, 4: KEY}),
    ],
)
def test_other_headers_are_refused_though_rightly_signed(protected: bytes) -> None:
    """A critical header or another algorithm is ignored."""
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, resign(protected, cbor.encode(1)), "p2pc/test")


def test_unprotected_headers_tags_and_other_payloads_are_refused() -> None:
    """What the signature does not cover is accepted, or a signed payload has two forms."""
    good = resign(header(), cbor.encode(1))
    assert open_envelope(CRYPTO, good, "p2pc/test").payload == 1
    tagged = cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(good)))
    for raw in (resign(header(), cbor.encode(1), {4: KEY}), resign(header(), b"\x18\x01"), tagged):
        with pytest.raises(RemoteProtocolError):
            open_envelope(CRYPTO, raw, "p2pc/test")


def test_floats_only_where_asked_for() -> None:
    """A float gets into an object that must have one form."""
    raw = seal(CRYPTO, SEED, "p2pc/test", [0.5])
    with pytest.raises(RemoteProtocolError):
        open_envelope(CRYPTO, raw, "p2pc/test")
    assert open_envelope(CRYPTO, raw, "p2pc/test", allow_float=True).payload == [0.5]


def test_pycose_verifies_ours() -> None:
    """Our envelopes are COSE in name only."""
    raw = seal(CRYPTO, SEED, "p2pc/test", PAYLOAD)
    message = Sign1Message.from_cose_obj(cbor2.loads(raw), allow_unknown_attributes=False)
    message.key = OKPKey(crv=Ed25519, x=KEY, optional_params={})
    assert message.verify_signature()
    assert message.phdr == {Algorithm: EdDSA, ContentType: "p2pc/test", KID: KEY}
    assert cbor2.loads(message.payload) == PAYLOAD
    message.key = OKPKey(crv=Ed25519, x=CRYPTO.public_key(b"\x01" * 32), optional_params={})
    assert not message.verify_signature()


def test_ours_verifies_pycose() -> None:
    """We refuse what a right COSE implementation signs."""
    message = Sign1Message(
        phdr={Algorithm: EdDSA, ContentType: "p2pc/test", KID: KEY}, uhdr={}, payload=cbor.encode(PAYLOAD)
    )
    message.key = OKPKey(crv=Ed25519, d=SEED, x=KEY, optional_params={})
    raw = message.encode(tag=False)
    assert open_envelope(CRYPTO, raw, "p2pc/test", signer=KEY).payload == PAYLOAD
    assert raw == seal(CRYPTO, SEED, "p2pc/test", PAYLOAD), "Ed25519 is deterministic: both write the same bytes"
