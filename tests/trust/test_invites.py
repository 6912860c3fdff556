"""Invitations and tokens."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pcompute.errors import RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.limits import (
    INVITE_TTL_S_MAX,
    INVITE_USES_MAX,
    INVITES_CLOSED_MAX,
    INVITES_OPEN_MAX,
    JOIN_FAILURES_MAX,
    TOKEN_ADDRESSES_MAX,
    TOKEN_CHARS_MAX,
)
from p2pcompute.transport.credentials import invite_key
from p2pcompute.trust.invites import (
    Invite,
    Invites,
    Token,
    format_token,
    invite_id,
    join_proof,
    parse_token,
    refusal_by_inviter,
)

CRYPTO = RealCrypto()
BINDING, INVITER = b"b" * 32, b"i" * 32


def joiner(number: int) -> bytes:
    return number.to_bytes(32, "big")


def redeem(invites: Invites, invite: Invite, now: float, who: int = 1, **changes: Any) -> Invite:
    proof = join_proof(invite.secret, binding=BINDING, joiner=joiner(who), inviter=INVITER)
    arguments = {"proof": proof, "binding": BINDING, "joiner": joiner(who), "inviter": INVITER, **changes}
    result = invites.redeem(now, invite.id, arguments.pop("proof"), **arguments)
    invites.check_invariants()
    return result


def code_of(invites: Invites, invite: Invite, now: float, who: int = 1, **changes: Any) -> str:
    with pytest.raises(TrustError) as caught:
        redeem(invites, invite, now, who, **changes)
    assert caught.value.what and caught.value.why and caught.value.fix
    invites.check_invariants()
    return caught.value.code


def test_single_use() -> None:
    """One token lets two machines in."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, roles=["work"])
    assert redeem(invites, invite, 1.0).roles == ("work",)
    assert code_of(invites, invite, 2.0, who=2) == "invite-used"
    assert redeem(invites, invite, 3.0) is invite, "the same machine asks again when the answer was lost"
    assert (invites.counters.redeemed, invites.counters.repeated, invites.counters.refused) == (1, 1, 1)
    assert invites.open_invites(3.0) == []


def test_several_uses() -> None:
    """A token for a classroom is used up by one machine that retries."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, uses=3)
    for who in (1, 1, 2, 1, 3):
        redeem(invites, invite, 1.0, who)
    assert code_of(invites, invite, 1.0, who=4) == "invite-used"


def test_expiry() -> None:
    """An old token lets somebody in, also one that had been used."""
    invites = Invites(CRYPTO)
    invite, used = invites.create(0.0, expires_s=10.0), invites.create(0.0, expires_s=10.0)
    redeem(invites, used, 9.9)
    assert code_of(invites, invite, 10.0) == "invite-expired"
    assert code_of(invites, used, 10.0) == "invite-used"


def test_wrong_proofs_void_it() -> None:
    """The secret can be guessed at leisure."""
    invites = Invites(CRYPTO)
    invite, other = invites.create(0.0), invites.create(0.0)
    for _ in range(JOIN_FAILURES_MAX - 1):
        assert code_of(invites, invite, 1.0, proof=bytes(32)) == "invite-wrong"
    assert code_of(invites, invite, 1.0, proof=bytes(32)) == "invite-void"
    assert code_of(invites, invite, 1.0) == "invite-void", "the right proof comes too late"
    assert redeem(invites, other, 1.0) is other, "other invitations are not touched"
    assert invites.counters.wrong == JOIN_FAILURES_MAX


@pytest.mark.parametrize("changes", [{"binding": b"x" * 32}, {"joiner": joiner(2)}, {"inviter": b"x" * 32}])
def test_a_proof_is_good_on_one_channel_between_two_keys(changes: dict[str, bytes]) -> None:
    """Somebody in the middle passes a proof on as his own."""
    invites = Invites(CRYPTO)
    assert code_of(invites, invites.create(0.0), 1.0, **changes) == "invite-wrong"


def test_unknown_and_malformed() -> None:
    """A stranger's bytes crash the node, or a restart is reported as a wrong token."""
    invites, elsewhere = Invites(CRYPTO), Invites(CRYPTO)
    assert code_of(invites, elsewhere.create(0.0), 1.0) == "invite-unknown"
    for name, proof in ((b"", bytes(32)), (None, bytes(32)), ("x" * 8, bytes(32)), (bytes(8), None), (bytes(8), b"x")):
        with pytest.raises(RemoteProtocolError):
            invites.redeem(0.0, name, proof, binding=BINDING, joiner=joiner(1), inviter=INVITER)  # type: ignore[arg-type]


def test_withdrawn() -> None:
    """A node that left its group still lets others into it."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0)
    invites.create(0.0)
    assert invites.withdraw_all(0.0) == 2
    assert code_of(invites, invite, 1.0) == "invite-void"


@pytest.mark.parametrize(
    "changes",
    [
        {"uses": 0},
        {"uses": INVITE_USES_MAX + 1},
        {"expires_s": 0.0},
        {"expires_s": -1.0},
        {"expires_s": INVITE_TTL_S_MAX + 1},
        {"expires_s": float("nan")},
        {"roles": ["king"]},
    ],
)
def test_impossible_invitations(changes: dict[str, Any]) -> None:
    """An invitation that never ends or grants nonsense is made."""
    with pytest.raises(UsageError):
        Invites(CRYPTO).create(0.0, **changes)


def test_tables_are_bounded() -> None:
    """A script that makes tokens for years fills the memory."""
    invites = Invites(CRYPTO)
    first = invites.create(0.0)
    for _ in range(INVITES_OPEN_MAX - 1):
        invites.create(0.0)
    with pytest.raises(UsageError) as caught:
        invites.create(0.0)
    assert caught.value.code == "invites-full"
    redeem(invites, first, 1.0)
    invites.create(1.0)
    for round_number in range(5):
        now = 1e6 * (round_number + 1)
        for _ in range(INVITES_OPEN_MAX):
            invites.create(now)
        assert len(invites.preamble_keys(now)) <= INVITES_OPEN_MAX + INVITES_CLOSED_MAX
        invites.check_invariants()


def test_preamble_keys_are_neither_secret_nor_name() -> None:
    """What a joiner shows to strangers gives its secret away."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0)
    assert invites.preamble_keys(0.0) == [invite_key(invite.secret)]
    values = [invite.secret, invite_id(invite.secret), invite_key(invite.secret)]
    assert not any(one in other for one in values for other in values if one is not other)
    assert invite.secret.hex() not in repr(invite)
    redeem(invites, invite, 1.0)
    assert invite_key(invite.secret) in invites.preamble_keys(1.0), "a late joiner reaches us and hears why"


class InvitesAgainstModel(RuleBasedStateMachine):
    """Random histories: nobody gets in beyond the uses, after the end, or with a wrong proof."""

    def __init__(self) -> None:
        super().__init__()
        self.invites = Invites(CRYPTO)
        self.now = 0.0
        self.made: list[tuple[Invite, float, int]] = []
        self.in_by: dict[bytes, set[int]] = {}
        self.wrong: dict[bytes, int] = {}

    @rule(uses=st.integers(1, 3), expires_s=st.floats(1, 50))
    def create(self, uses: int, expires_s: float) -> None:
        invite = self.invites.create(self.now, uses=uses, expires_s=expires_s)
        self.made.append((invite, self.now + expires_s, uses))

    @rule(by=st.floats(0, 30))
    def pass_time(self, by: float) -> None:
        self.now += by

    @rule(data=st.data(), who=st.integers(1, 4), right=st.booleans())
    def redeem(self, data: st.DataObject, who: int, right: bool) -> None:
        if not self.made:
            return
        invite, expires, uses = data.draw(st.sampled_from(self.made))
        joined = self.in_by.setdefault(invite.secret, set())
        wrong = self.wrong.get(invite.secret, 0)
        may = right and self.now < expires and wrong < JOIN_FAILURES_MAX and (who in joined or len(joined) < uses)
        proof = join_proof(invite.secret, binding=BINDING, joiner=joiner(who), inviter=INVITER) if right else bytes(32)
        try:
            self.invites.redeem(self.now, invite.id, proof, binding=BINDING, joiner=joiner(who), inviter=INVITER)
        except TrustError as error:
            assert not may or len(self.made) > INVITES_CLOSED_MAX
            if error.code == "invite-wrong" or (error.code == "invite-void" and not right):
                self.wrong[invite.secret] = wrong + 1
            return
        assert may
        joined.add(who)

    @invariant()
    def consistent(self) -> None:
        self.invites.check_invariants()


InvitesAgainstModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestInvitesAgainstModel = InvitesAgainstModel.TestCase


# --- tokens ---------------------------------------------------------------------------------------

HOST_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}\.){0,20}[a-z]{1,10}", fullmatch=True)
"""Of 231 characters at most; longer ones than names may have are refused."""
ADDRESSES = st.builds(
    Address,
    st.one_of(st.ip_addresses().map(str), HOST_NAMES),
    st.integers(1, 65535),
)
TOKENS = st.builds(
    Token,
    addresses=st.lists(ADDRESSES, min_size=1, max_size=TOKEN_ADDRESSES_MAX).map(tuple),
    inviter=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=16),
    group_name=st.from_regex(r"[a-zäß0-9]{1,20}", fullmatch=True),
    expires=st.integers(0, 2**40),
)
EXAMPLE = Token(
    addresses=(Address("192.0.2.7", 7878), Address("2001:db8::1", 7878), Address("nova.example.org", 7878)),
    inviter=b"i" * 32,
    secret=b"s" * 16,
    group_name="lab",
    expires=1_800_000_000,
)
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@given(TOKENS)
def test_token_round_trip(token: Token) -> None:
    """A token names another inviter, address or secret after it was copied."""
    text = format_token(token)
    assert parse_token(text) == token
    assert re.fullmatch(r"p2pc-[a-z2-7]+", text) and shlex.quote(text) == text and len(text) <= TOKEN_CHARS_MAX
    assert parse_token(f"  {text[:40]}\n   {text[40:].upper()}\r\n") == token


def test_every_cut_and_every_wrong_character_is_told_apart_from_a_refusal() -> None:
    """A mistyped token goes out to the inviter and counts as a wrong attempt."""
    text = format_token(EXAMPLE)
    assert len(text) < 220
    for place in range(5, len(text)):
        wrong = [text[:place], text[:place] + text[place + 1 :]]
        wrong += [text[:place] + other + text[place + 1 :] for other in ALPHABET[::5] + "10-" if other != text[place]]
        if place + 1 < len(text) and text[place] != text[place + 1]:
            wrong.append(text[:place] + text[place + 1] + text[place] + text[place + 2 :])
        for changed in wrong:
            if changed == text:
                continue
            with pytest.raises(UsageError) as caught:
                parse_token(changed)
            assert caught.value.code == "bad-token" and caught.value.fix


@given(st.one_of(st.text(max_size=100), st.text(ALPHABET, max_size=300).map(lambda text: "p2pc-" + text)))
def test_junk_is_a_usage_error(text: str) -> None:
    """Something else pasted in place of a token ends in a traceback."""
    with pytest.raises(UsageError):
        parse_token(text)


@given(st.recursive(st.one_of(st.integers(0, 99), st.binary(max_size=40), st.text(max_size=9)), st.lists, max_leaves=9))
def test_right_checksum_over_junk(value: Any) -> None:
    """A crafted token ends in a traceback."""
    from p2pcompute.trust import invites as module
    from p2pcompute.wire import cbor

    start = [1, b"i" * 32, b"s" * 16, 1, "lab"]
    for fields in (value, [*start, value], [*start, [[value, 1]]]):
        try:
            body = cbor.encode(fields)
            text = "p2pc-" + module.base64.b32encode(body + module._checksum(body)).decode().rstrip("=").lower()
            assert format_token(parse_token(text)) == text
        except UsageError as error:
            assert error.code == "bad-token"


def test_a_newer_token_says_so() -> None:
    """A token of a later version is called mistyped."""
    from p2pcompute.trust import invites as module
    from p2pcompute.wire import cbor

    body = cbor.encode([2, "anything"])
    text = "p2pc-" + module.base64.b32encode(body + module._checksum(body)).decode().rstrip("=").lower()
    with pytest.raises(UsageError, match="newer"):
        parse_token(text)


def test_tokens_that_could_not_be_used() -> None:
    """A node without an address hands out a token that leads nowhere; a long list makes an endless line."""
    with pytest.raises(UsageError, match="no address"):
        format_token(Token(addresses=(), inviter=INVITER, secret=bytes(16), group_name="x", expires=1))
    with pytest.raises(UsageError):
        format_token(
            Token(addresses=(Address("a b", 1),), inviter=INVITER, secret=bytes(16), group_name="x", expires=1)
        )
    with pytest.raises(UsageError, match="not a host name"):
        format_token(
            Token(addresses=(Address("a" * 254, 1),), inviter=INVITER, secret=bytes(16), group_name="x", expires=1)
        )
    many = Token(
        addresses=tuple(Address(f"192.0.2.{number}", 7878) for number in range(1, 20)),
        inviter=INVITER,
        secret=bytes(16),
        group_name="x",
        expires=1,
    )
    assert len(parse_token(format_token(many)).addresses) == TOKEN_ADDRESSES_MAX


def test_expiry_of_a_token_and_its_secret() -> None:
    """An old token is tried for a minute before anything is said, or its secret is printed."""
    EXAMPLE.check_expiry(EXAMPLE.expires - 1)
    with pytest.raises(TrustError) as caught:
        EXAMPLE.check_expiry(EXAMPLE.expires)
    assert caught.value.code == "invite-expired" and "NEW" in str(caught.value)
    assert "sss" not in repr(EXAMPLE)


def test_a_refusal_over_the_wire_keeps_its_reason() -> None:
    """The joiner's person reads why, and what to do, in our words; an unknown code in the inviter's."""
    used = refusal_by_inviter("invite-used", "whatever the peer says")
    assert (used.code, used.what) == ("invite-used", "this invitation has been used")
    assert "p2pc invite" in str(used.fix)
    other = refusal_by_inviter("of-a-later-version", "no guests on Sundays")
    assert other.code == "of-a-later-version" and other.what == "no guests on Sundays"
