"""The handshake's messages: what is made is accepted, anything else is refused and nothing crashes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, VersionMismatch
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import PREAMBLE_BYTES, PREAMBLE_SKEW_S_MAX, REPLAY_NONCES_MAX
from p2pcompute.transport import handshake, messages
from p2pcompute.transport.handshake import PreambleGate, make_preamble
from p2pcompute.transport.messages import MessageType, Purpose
from p2pcompute.wire import cbor

CRYPTO = RealCrypto()
KEY = hashlib.sha256(b"network").digest()
BINDING = hashlib.sha256(b"leaf").digest()
NONCE = hashlib.sha256(b"nonce").digest()
INSTANCE = b"instance"
ANN = Identity(CRYPTO, hashlib.sha256(b"ann").digest())
BOB = Identity(CRYPTO, hashlib.sha256(b"bob").digest())
EVE = Identity(CRYPTO, hashlib.sha256(b"eve").digest())

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.binary(max_size=70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def hello_body(identity: Identity = BOB, binding: bytes = BINDING) -> dict[str, Any]:
    certificate = handshake.certify(identity, binding)
    return handshake.make_hello(certificate, nonce=NONCE, instance=INSTANCE, hello={"name": "bob"})


def auth_body(identity: Identity = ANN, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "purpose": Purpose.CONTROL,
        "binding": BINDING,
        "nonce": NONCE,
        "listener": BOB.public_key,
        "instance": INSTANCE,
        "hello": {"name": "ann"},
    } | changes
    return handshake.make_auth(identity, **values)


def check_hello(body: Any, binding: bytes = BINDING) -> handshake.Hello:
    return handshake.check_hello(CRYPTO, body, binding=binding, listener=BOB.public_key)


def check_auth(body: Any) -> handshake.Auth:
    return handshake.check_auth(CRYPTO, body, binding=BINDING, nonce=NONCE, listener=BOB.public_key)


def test_both_sides_accept_what_the_other_makes() -> None:
    hello = check_hello(cbor.decode(cbor.encode(hello_body())))
    assert (hello.key, hello.nonce, hello.hello) == (BOB.public_key, NONCE, {"name": "bob"})
    auth = check_auth(cbor.decode(cbor.encode(auth_body(purpose=Purpose.BLOB))))
    assert (auth.key, auth.purpose, auth.hello) == (ANN.public_key, Purpose.BLOB, {"name": "ann"})
    handshake.check_welcome(handshake.make_welcome(1), 1)


@pytest.mark.parametrize(
    "body",
    [
        auth_body(binding=hashlib.sha256(b"the certificate of somebody in between").digest()),
        auth_body(nonce=hashlib.sha256(b"the nonce of another connection").digest()),
        auth_body(listener=EVE.public_key),
        auth_body() | {"key": EVE.public_key},
        auth_body(BOB),
    ],
    ids=["another certificate", "another connection", "another listener", "another signer", "ourselves"],
)
def test_a_relayed_or_reflected_proof_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        check_auth(body)


def test_a_hello_of_another_node_or_over_another_certificate_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        check_hello(hello_body(EVE))
    with pytest.raises(RemoteProtocolError):
        check_hello(hello_body(), binding=bytes(32))
    # An envelope of another kind that happens to name the certificate is no voucher.
    other = BOB.sign_envelope("p2pc/record", {"leaf": BINDING})
    with pytest.raises(RemoteProtocolError):
        check_hello(hello_body() | {"certificate": other})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_body_with_a_field_replaced_is_refused_or_means_the_same(data: st.DataObject) -> None:
    make, check = data.draw(st.sampled_from([(hello_body, check_hello), (auth_body, check_auth)]))
    body: dict[str, Any] = make()
    name = data.draw(st.sampled_from(sorted(body)))
    if data.draw(st.booleans()):
        del body[name]
    else:
        body[name] = data.draw(anything)
    try:
        checked = check(body)
    except RemoteProtocolError:
        return
    assert name in ("hello", "versions", "instance", "nonce", "purpose")
    assert checked.key in (ANN.public_key, BOB.public_key)


@given(anything)
def test_junk_bodies_raise_the_documented_error(body: Any) -> None:
    for check in (check_hello, check_auth, lambda junk: handshake.check_welcome(junk, 1)):
        with pytest.raises(RemoteProtocolError):
            check(body)


# --- versions -------------------------------------------------------------------------------------


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_both_sides_choose_the_highest_common_version(one: tuple[int, int], other: tuple[int, int]) -> None:
    one, other = (min(one), max(one)), (min(other), max(other))
    common = set(range(one[0], one[1] + 1)) & set(range(other[0], other[1] + 1))
    if common:
        assert handshake.negotiate(one, other) == handshake.negotiate(other, one) == max(common)
    else:
        with pytest.raises(VersionMismatch):
            handshake.negotiate(one, other)


def test_a_version_mismatch_names_both() -> None:
    with pytest.raises(VersionMismatch, match="speaks protocol 3 to 4, this one 1"):
        handshake.negotiate((3, 4), (1, 1))


# --- preamble -------------------------------------------------------------------------------------


def preamble(number: int = 0, wall: float = 1000.0, key: bytes = KEY, listener: bytes = BOB.public_key) -> bytes:
    return make_preamble(key, listener=listener, wall=wall, nonce=number.to_bytes(12, "big"))


def test_a_preamble_is_admitted_once() -> None:
    gate = PreambleGate(BOB.public_key)
    assert len(preamble()) == PREAMBLE_BYTES
    assert gate.admit(preamble(), [bytes(32), KEY], 1000.0)
    assert not gate.admit(preamble(), [KEY], 1001.0)
    assert gate.counters.replayed == 1
    assert not gate.admit(preamble(1, listener=ANN.public_key), [KEY], 1000.0)
    assert not gate.admit(preamble(1), [bytes(32)], 1000.0)
    assert gate.counters.stranger == 2


@given(st.floats(0, 3000), st.floats(0, 3000))
def test_a_preamble_is_never_admitted_twice_whatever_the_clocks_do(first: float, second: float) -> None:
    gate = PreambleGate(BOB.public_key)
    knock = preamble(wall=1500.0)
    admitted = [gate.admit(knock, [KEY], wall) for wall in (first, second, first)]
    assert sum(admitted) <= 1
    for wall, is_admitted in zip((first, second), admitted, strict=False):
        assert not is_admitted or abs(wall - 1500) <= PREAMBLE_SKEW_S_MAX


def test_nonces_are_forgotten_when_they_are_too_old_and_bounded_when_not() -> None:
    gate = PreambleGate(BOB.public_key)
    for number in range(50):
        gate.admit(preamble(number), [KEY], 1000.0)
    assert gate.admit(preamble(99, wall=2000.0), [KEY], 2000.0)
    assert len(gate) == 1
    for number in range(REPLAY_NONCES_MAX + 10):
        assert gate.admit(preamble(number, wall=3000.0), [KEY], 3000.0)
    assert len(gate) == REPLAY_NONCES_MAX


@given(st.integers(0, PREAMBLE_BYTES - 1), st.integers(1, 255), st.integers(0, PREAMBLE_BYTES))
def test_a_changed_or_cut_preamble_is_not_admitted(position: int, flip: int, size: int) -> None:
    gate = PreambleGate(BOB.public_key)
    changed = bytearray(preamble())
    changed[position] ^= flip
    assert not gate.admit(bytes(changed), [KEY], 1000.0)
    if size < PREAMBLE_BYTES:
        assert not gate.admit(preamble()[:size], [KEY], 1000.0)


# --- frame bodies ---------------------------------------------------------------------------------


@given(st.integers(0, 255), st.integers(0, 2**32 - 1), anything)
def test_type_and_request_id_are_read_without_decoding(kind: int, request_id: int, body: Any) -> None:
    data = messages.encode_message(kind, request_id, body)
    assert messages.peek(data) == (kind, request_id)
    assert messages.decode_body(data) == body


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x83" + tail))
def test_junk_frames_raise_the_documented_error(data: bytes) -> None:
    for read in (messages.peek, messages.decode_body):
        try:
            read(data)
        except RemoteProtocolError:
            continue


def test_purposes_separate_messages() -> None:
    assert messages.is_allowed(Purpose.CONTROL, 40) and messages.is_allowed(Purpose.CONTROL, 64)
    assert not messages.is_allowed(Purpose.CONTROL, 16)
    assert messages.is_allowed(Purpose.JOIN, 16) and not messages.is_allowed(Purpose.JOIN, 40)
    assert messages.is_allowed(Purpose.BLOB, 64) and not messages.is_allowed(Purpose.BLOB, 40)
    assert MessageType.PONG < 16
