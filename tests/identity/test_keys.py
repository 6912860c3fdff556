"""Signing keys and delegations."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import IdentityError, RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import DELEGATION_TYPE, ROLES, Identity, check_delegation, create_identity, delegate
from p2pcompute.limits import DELEGATION_TTL_S_MAX
from p2pcompute.wire.envelope import open_envelope

CRYPTO = RealCrypto()
WALL = 1_800_000_000.0
HOME = Identity(CRYPTO, b"\x01" * 32)
OTHER = Identity(CRYPTO, b"\x02" * 32)


def session(**changes: Any) -> Identity:
    return delegate(HOME, CRYPTO, **{"expires_wall": WALL + 100, "roles": ["work", "submit"], **changes})


def test_signatures_are_those_of_rfc_8032() -> None:
    """Another implementation does not accept our keys (RFC 8032 section 7.1, test 2)."""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert CRYPTO.public_key(seed) == public
    assert CRYPTO.sign(seed, b"\x72") == signature
    assert CRYPTO.verify(public, b"\x72", signature)


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=20))
def test_junk_never_verifies_and_never_crashes(key: bytes, signature: bytes, message: bytes) -> None:
    """A key or signature of a wrong length crashes the node."""
    assert not CRYPTO.verify(key, message, signature)


def test_malleable_signatures_and_weak_keys_are_refused() -> None:
    """A signature has a second valid form, or a key of small order signs everything."""
    signature = HOME.sign(b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    larger = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    assert not CRYPTO.verify(HOME.public_key, b"m", signature[:32] + larger)
    assert not CRYPTO.verify(b"\x01" + bytes(31), b"m", b"\x01" + bytes(63))


def test_a_tag_is_known_to_the_two_and_to_nobody_else() -> None:
    """Datagrams of the DHT are refused, or anybody's are taken for a peer's."""
    eve = Identity(CRYPTO, b"\x03" * 32)
    tag = HOME.tag(OTHER.public_key, b"m")
    assert len(tag) == 64 and tag == OTHER.tag(HOME.public_key, b"m") == RealCrypto().tag(
        b"\x01" * 32, OTHER.public_key, b"m"
    )
    others = [HOME.tag(OTHER.public_key, b"n"), eve.tag(OTHER.public_key, b"m"), eve.tag(HOME.public_key, b"m")]
    assert tag not in others and len(set(others)) == 3


@given(st.binary(max_size=40) | st.sampled_from([bytes(32), b"\x01" + bytes(31), b"\xff" * 32]))
def test_with_a_key_that_nobody_has_nobody_makes_a_tag(key: bytes) -> None:
    """A key of small order is shared by everybody: whoever names it speaks for it."""
    assert len(HOME.tag(key, b"m")) == 64
    assert HOME.tag(key, b"m") != OTHER.tag(key, b"m")


def test_more_keys_than_the_cache_holds() -> None:
    """Signing with many keys mixes them up."""
    seeds = [bytes([number]) * 32 for number in range(40)]
    for seed in seeds + seeds[::-1]:
        assert CRYPTO.verify(CRYPTO.public_key(seed), b"m", CRYPTO.sign(seed, b"m"))


def test_an_installation_and_its_delegate() -> None:
    """Membership would count a delegate as a node of its own."""
    assert HOME.installation == HOME.public_key and HOME.delegation is None
    one = session()
    assert one.installation == HOME.public_key != one.public_key
    assert one.delegation is not None
    assert check_delegation(CRYPTO, one.delegation, wall=WALL) == (one.public_key, HOME.public_key, ("submit", "work"))
    raw = one.sign_envelope("p2pc/test", 1)
    assert open_envelope(CRYPTO, raw, "p2pc/test").signer == one.public_key
    assert session().public_key != one.public_key, "each session has its own key"
    assert create_identity(CRYPTO).public_key != create_identity(CRYPTO).public_key


@pytest.mark.parametrize("wall", [WALL + 100, WALL + 1e9, WALL - DELEGATION_TTL_S_MAX])
def test_expired_or_too_long_lived_is_refused(wall: float) -> None:
    """A session key works for ever."""
    raw = session().delegation
    assert raw is not None
    with pytest.raises(RemoteProtocolError):
        check_delegation(CRYPTO, raw, wall=wall)


def test_a_copied_delegation_is_refused() -> None:
    """Somebody who saw a delegation shows it as his own."""
    one, two = session(), session()
    assert one.delegation is not None
    check_delegation(CRYPTO, one.delegation, wall=WALL, session_key=one.public_key)
    with pytest.raises(RemoteProtocolError, match="another key"):
        check_delegation(CRYPTO, one.delegation, wall=WALL, session_key=two.public_key)


def test_another_signer_is_refused() -> None:
    """A stranger vouches for a key in the name of a member."""
    one = session()
    assert one.delegation is not None
    check_delegation(CRYPTO, one.delegation, wall=WALL, installation=HOME.public_key)
    with pytest.raises(RemoteProtocolError):
        check_delegation(CRYPTO, one.delegation, wall=WALL, installation=OTHER.public_key)


def test_one_level_only() -> None:
    """A delegate makes delegates, and they outlive it."""
    with pytest.raises(IdentityError):
        delegate(session(), CRYPTO, expires_wall=WALL + 1, roles=[])


def test_unknown_roles() -> None:
    """A mistyped role is dropped in silence here; one of a later build breaks the delegation there."""
    with pytest.raises(IdentityError, match="worker"):
        session(roles=["worker"])
    body = {"key": bytes(32), "roles": ["watch", "work"], "expires": int(WALL) + 9}
    raw = HOME.sign_envelope(DELEGATION_TYPE, body)
    assert check_delegation(CRYPTO, raw, wall=WALL)[2] == ("work",)


GOOD = {"key": bytes(32), "roles": ["work"], "expires": int(WALL) + 9}


@pytest.mark.parametrize(
    "body",
    [
        1,
        [],
        {},
        {"key": bytes(32)},
        GOOD | {"key": bytes(31)},
        GOOD | {"key": "k"},
        GOOD | {"key": HOME.public_key},
        GOOD | {"expires": True},
        GOOD | {"expires": "9"},
        GOOD | {"expires": None},
        GOOD | {"roles": "work"},
        GOOD | {"roles": [1]},
        GOOD | {"roles": ["w" * 33]},
        GOOD | {"roles": ["work"] * 17},
        GOOD | {"more": bytes(2000)},
    ],
)
def test_malformed_delegations(body: Any) -> None:
    """A hostile delegation crashes the node."""
    with pytest.raises(RemoteProtocolError):
        check_delegation(CRYPTO, HOME.sign_envelope(DELEGATION_TYPE, body), wall=WALL)


def test_other_envelopes_are_no_delegations() -> None:
    """Anything that an installation signed passes for a delegation."""
    with pytest.raises(RemoteProtocolError):
        check_delegation(CRYPTO, HOME.sign_envelope("p2pc/other", GOOD), wall=WALL)


def test_a_key_is_not_shown_or_pickled() -> None:
    """The secret ends up in a log or in a task's arguments."""
    assert "01" * 16 not in repr(HOME) and repr(b"\x01" * 4)[2:-1] not in repr(HOME)
    with pytest.raises(TypeError):
        pickle.dumps(HOME)


def test_roles_have_one_order() -> None:
    """Two lists of the same roles are signed as different ones."""
    one, two = session(roles=["work", "submit", "work"]), session(roles=["submit", "work"])
    assert one.delegation is not None and two.delegation is not None
    assert len({check_delegation(CRYPTO, raw, wall=WALL)[2] for raw in (one.delegation, two.delegation)}) == 1
    assert ROLES == ("submit", "work", "invite", "admin")
