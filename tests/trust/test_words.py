"""Codes of words, the exchange over them, and the invitations that they open."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.limits import (
    INVITE_NUMBER_MAX,
    INVITE_NUMBERS_CHOICE,
    INVITE_WORDS_MAX,
    INVITE_WORDS_MIN,
    INVITES_OPEN_MAX,
    JOIN_FAILURES_MAX,
    MEETINGS_BURST,
    MEETINGS_BURST_OF_SOURCE,
    MEETINGS_MAX,
)
from p2pcompute.transport.credentials import WORDS_KEY
from p2pcompute.trust.invites import Invite, Invites
from p2pcompute.trust.pake import MESSAGE_BYTES, Exchange
from p2pcompute.trust.words import Code, completions, is_code, list_at, parse_code, words_of

CRYPTO = RealCrypto()
BINDING, INVITER, JOINER = b"b" * 32, b"i" * 32, b"j" * 32


# --- words ----------------------------------------------------------------------------------------


def test_the_lists_tell_every_byte_and_every_place_apart() -> None:
    three, two = list_at(0), list_at(1)
    assert len(set(three)) == len(set(two)) == 256 and not set(three) & set(two)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in three + two)


@given(st.integers(1, 9999), st.binary(min_size=INVITE_WORDS_MIN, max_size=INVITE_WORDS_MAX))
def test_what_is_said_is_what_is_understood(number: int, secret: bytes) -> None:
    code = Code(number, words_of(secret))
    assert parse_code(str(code)) == parse_code(f" {str(code).upper()}\n") == parse_code(code.link) == code
    assert is_code(str(code)) and is_code(code.link)


def test_words_may_be_cut_short_and_addresses_go_along() -> None:
    assert parse_code("7-crossov-clockw-tobac").words == ("crossover", "clockwork", "tobacco")
    assert parse_code("7-crossover-clockwork-tobacco@nova.example.org:7878").address == "nova.example.org:7878"
    assert parse_code("7 crossover  clockwork- tobacco").words == ("crossover", "clockwork", "tobacco")
    assert completions("cro", 0) == ["crossover"]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("7-crossover-clockwork-tobaco", 'did you mean "tobacco"?'),
        ("7-clockwork-crossover-tobacco", "a word before it is missing, or two are swapped"),
        ("7-clockwork-tobacco", "a word before it is missing"),
        ("7-crossover-clockwork", "it has 3 to 6"),
        ("7-crossover-clockwork-xyzzy", "no code has it there"),
        ("7-co-clockwork-tobacco", "no code has it there"),
        ("0-crossover-clockwork-tobacco", "a number and some words"),
        ("crossover-clockwork-tobacco", "a number and some words"),
        ("", "a number and some words"),
    ],
)
def test_mistakes_are_found_before_anything_is_tried(typed: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_code(typed)
    assert says in caught.value.why and "still good" in (caught.value.fix or "")


@given(st.text(max_size=60))
def test_whatever_is_typed_is_a_code_or_a_clear_error(typed: str) -> None:
    try:
        parse_code(typed)
    except UsageError as error:
        assert error.what and error.why


def test_a_code_does_not_show_its_words_by_accident() -> None:
    assert "tobacco" not in repr(Code(7, ("crossover", "clockwork", "tobacco")))


# --- the exchange ---------------------------------------------------------------------------------


def exchange(password: bytes, *, is_joiner: bool, **changes: bytes) -> Exchange:
    who = {"joiner": JOINER, "inviter": INVITER, "binding": BINDING, **changes}
    return Exchange(password, is_joiner=is_joiner, entropy=CRYPTO.random_bytes, **who)


def agree(joiner: Exchange, inviter: Exchange) -> tuple[bool, bool]:
    """Whether each side accepts the other's proof."""
    joiner.finish(inviter.message)
    inviter.finish(joiner.message)
    return joiner.is_proof(inviter.own_proof), inviter.is_proof(joiner.own_proof)


def test_both_who_know_the_words_agree() -> None:
    assert agree(exchange(b"words", is_joiner=True), exchange(b"words", is_joiner=False)) == (True, True)


@pytest.mark.parametrize("changes", [{"joiner": b"x" * 32}, {"inviter": b"x" * 32}, {"binding": b"x" * 32}])
def test_a_run_that_was_relayed_proves_nothing(changes: dict[str, bytes]) -> None:
    """Somebody between two honest nodes has other keys, or at least other channels, on its two sides."""
    pair = exchange(b"words", is_joiner=True), exchange(b"words", is_joiner=False, **changes)
    assert agree(*pair) == (False, False)


def test_other_words_prove_nothing_and_a_proof_is_not_reflected() -> None:
    assert agree(exchange(b"words", is_joiner=True), exchange(b"swords", is_joiner=False)) == (False, False)
    joiner, inviter = exchange(b"words", is_joiner=True), exchange(b"words", is_joiner=False)
    agree(joiner, inviter)
    assert not joiner.is_proof(joiner.own_proof) and not inviter.is_proof(inviter.own_proof)


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.binary(min_size=32, max_size=32).map(lambda raw: b"A" + raw), st.none()))
def test_bytes_of_a_stranger_are_a_message_or_refused(raw: object) -> None:
    inviter = exchange(b"words", is_joiner=False)
    try:
        inviter.finish(raw)
    except RemoteProtocolError:
        return
    assert not inviter.is_proof(b"\0" * 32)


def test_a_message_is_not_reflected() -> None:
    inviter = exchange(b"words", is_joiner=False)
    with pytest.raises(RemoteProtocolError):
        inviter.finish(inviter.message)


# --- invitations ----------------------------------------------------------------------------------


def meet(invites: Invites, number: int, words: tuple[str, ...], now: float = 0.0, joiner: bytes = JOINER) -> bytes:
    """Try words on an invitation; returns the inviter's proof."""
    binding = CRYPTO.random_bytes(32)
    own = exchange(Code(number, words).password, is_joiner=True, joiner=joiner, binding=binding)
    own.finish(invites.meet(now, number, own.message, binding=binding, joiner=joiner, inviter=INVITER))
    _invite, proof = invites.redeem_words(now, own.own_proof, binding=binding, joiner=joiner)
    assert own.is_proof(proof)
    invites.check_invariants()
    return proof


def refusal(
    invites: Invites, invite: Invite, now: float = 0.0, *, is_right: bool = False, joiner: bytes = JOINER
) -> str:
    words = invite.words if is_right else words_of(b"\0\1\2")
    with pytest.raises(TrustError) as caught:
        meet(invites, invite.number, words, now, joiner)
    return caught.value.code


def test_the_right_words_admit_once() -> None:
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    assert len(invite.words) == 3 and invites.numbers(0.0) == [invite.number]
    assert invites.preamble_keys(0.0) == [WORDS_KEY]
    meet(invites, invite.number, invite.words)
    assert invites.numbers(0.0) == []
    meet(invites, invite.number, invite.words)  # the answer was lost: the same installation asks again
    assert invite.admitted == {JOINER: None}
    assert refusal(invites, invite, is_right=True, joiner=b"k" * 32) == "invite-used"
    assert refusal(invites, invite, 601.0, is_right=True) == "invite-used"


def test_three_wrong_guesses_burn_it() -> None:
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    codes = [refusal(invites, invite, 10.0 * turn) for turn in range(JOIN_FAILURES_MAX)]
    assert codes == ["invite-wrong", "invite-wrong", "invite-void"]
    assert refusal(invites, invite, 100.0, is_right=True) == "invite-void"


def test_a_guess_has_one_proof() -> None:
    """A second proof on the same run would be a second guess for the same message."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    own = exchange(invite.code.password, is_joiner=True)
    own.finish(invites.meet(0.0, invite.number, own.message, binding=BINDING, joiner=JOINER, inviter=INVITER))
    with pytest.raises(TrustError):
        invites.redeem_words(0.0, b"x" * 32, binding=BINDING, joiner=JOINER)
    with pytest.raises(RemoteProtocolError):
        invites.redeem_words(0.0, own.own_proof, binding=BINDING, joiner=JOINER)


def test_channels_and_joiners_are_not_mixed_up() -> None:
    """Two join at once; a third sends proofs that are not its own, and tries twice on one channel."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3, uses=2)
    runs = []
    for number in (1, 2):
        joiner, binding = bytes([number]) * 32, bytes([number + 10]) * 32
        own = exchange(invite.code.password, is_joiner=True, joiner=joiner, binding=binding)
        own.finish(invites.meet(0.0, invite.number, own.message, binding=binding, joiner=joiner, inviter=INVITER))
        runs.append((own, joiner, binding))
    (first, one, channel), (second, two, other) = runs
    for proof, thief, where in ((first.own_proof, b"x" * 32, b"y" * 32), (second.own_proof, b"x" * 32, b"y" * 32)):
        with pytest.raises(RemoteProtocolError):
            invites.redeem_words(0.0, proof, binding=where, joiner=thief)
    for own, joiner, where in ((second, two, other), (first, one, channel)):
        assert own.is_proof(invites.redeem_words(0.0, own.own_proof, binding=where, joiner=joiner)[1])
    assert list(invite.admitted) == [two, one] and invite.failures == 0
    with pytest.raises(RemoteProtocolError):
        invites.meet(0.0, invite.number, first.message, binding=channel, joiner=one, inviter=INVITER)


def test_the_door_closes_behind_the_last_code() -> None:
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    meet(invites, invite.number, invite.words)
    assert WORDS_KEY in invites.preamble_keys(30.0), "a late joiner hears why"
    assert WORDS_KEY not in invites.preamble_keys(61.0)


def test_a_used_invitation_is_not_burnt() -> None:
    """Who lost the answer asks again, whatever others try meanwhile."""
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    meet(invites, invite.number, invite.words)
    assert [refusal(invites, invite, 10.0 * turn, joiner=b"k" * 32) for turn in range(1, 5)] == ["invite-used"] * 4
    meet(invites, invite.number, invite.words, 50.0)


def test_ends_and_numbers() -> None:
    invites = Invites(CRYPTO)
    first, second = invites.create(0.0, words=3, expires_s=5.0), invites.create(0.0, words=6)
    assert first.number != second.number
    assert refusal(invites, first, 6.0, is_right=True) == "invite-expired"
    known = {*range(1, INVITE_NUMBER_MAX)} - {first.number, second.number}
    third = invites.create(6.0, words=3, numbers_elsewhere=known)
    assert third.number == INVITE_NUMBER_MAX, "that of an ended one still says why it is refused"
    assert invites.withdraw(6.0, second.id) and not invites.withdraw(6.0, second.id)
    assert refusal(invites, second, 7.0, is_right=True) == "invite-void"
    with pytest.raises(TrustError) as caught:
        invites.meet(7.0, 0x1234, b"", binding=BINDING, joiner=JOINER, inviter=INVITER)
    assert caught.value.code == "invite-unknown"
    with pytest.raises(UsageError, match="words"):
        invites.create(7.0, words=2)


def test_tokens_are_not_opened_by_words_nor_words_by_tokens() -> None:
    invites = Invites(CRYPTO)
    invites.create(0.0)
    assert WORDS_KEY not in invites.preamble_keys(0.0)
    with pytest.raises(TrustError):
        invites.meet(0.0, 0, b"", binding=BINDING, joiner=JOINER, inviter=INVITER)


def test_floods_of_meetings_are_refused_and_forgotten() -> None:
    invites = Invites(CRYPTO)
    invite = invites.create(0.0, words=3)
    message = exchange(b"x", is_joiner=True).message

    def ask(number: int, source: str, now: float = 0.0) -> str:
        binding = number.to_bytes(32, "big")
        try:
            answer = invites.meet(
                now, invite.number, message, binding=binding, joiner=JOINER, inviter=INVITER, source=source
            )
        except TrustError as error:
            return error.code
        assert len(answer) == MESSAGE_BYTES
        return "met"

    answers = [ask(number, "10.0.0.66") for number in range(100)]
    assert answers == ["met"] * MEETINGS_BURST_OF_SOURCE + ["invite-busy"] * (100 - MEETINGS_BURST_OF_SOURCE)
    assert ask(100, "10.0.0.7") == "met", "one address keeps nobody else out"
    others = [ask(200 + number, f"10.1.0.{number}") for number in range(100)]
    assert others.count("met") == MEETINGS_BURST - MEETINGS_BURST_OF_SOURCE - 1, "and many cost only so much"
    for number in range(1, 2 * MEETINGS_MAX):
        assert ask(1000 + number, "10.0.0.66", 4.0 * number) == "met"
    assert len(invites._meetings) == MEETINGS_MAX
    own = exchange(invite.code.password, is_joiner=True)
    with pytest.raises(RemoteProtocolError):
        invites.redeem_words(320.0, own.message, binding=(1001).to_bytes(32, "big"), joiner=JOINER)


def test_there_are_numbers_for_all() -> None:
    """Also beside an announcer of all the low ones, and never twice."""
    invites = Invites(CRYPTO)
    numbers = {invites.create(0.0, words=3, numbers_elsewhere=range(1, 500)).number for _ in range(INVITES_OPEN_MAX)}
    assert len(numbers) == INVITES_OPEN_MAX and numbers <= {*range(500, 500 + INVITE_NUMBERS_CHOICE + INVITES_OPEN_MAX)}
