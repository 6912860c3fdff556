"""Ranks in a group: heirs go on when the founder is gone, and can be stopped by him; policies; strangers."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.identity.keys import ROLES, Identity, create_identity
from p2pcompute.limits import GROUP_ACCEPT_CHARS_MAX, MEETINGS_BURST_OF_SOURCE, OPEN_PUZZLE_BITS_MAX
from p2pcompute.trust.admission import Knock
from p2pcompute.trust.groups import (
    ADMIN_RANK,
    ADMIT_TYPE,
    FOUNDER_RANK,
    MEMBER_RANK,
    Group,
    admit,
    check_chain,
    name_heir,
    renew,
)
from p2pcompute.trust.log import CLOSED, Added, GroupLog, make_limit, make_policy
from p2pcompute.trust.open_door import OpenAdmission, next_start, read_challenge, work, worth
from p2pcompute.trust.policy import GroupPolicy, read_policy, strictest
from p2pcompute.trust.roster import Roster
from tests.trust.test_log import (
    ADMIN,
    BOB,
    CAT,
    CRYPTO,
    EVE,
    FOUNDER,
    GROUP,
    HOUR,
    OF_ADMIN,
    OF_BOB,
    OTHER,
    WALL,
    is_member,
    let_in,
    removal,
    roles_in,
    roster_of,
)

WEEK = 7 * 86400.0


def heir_of(by: Identity, group: Group, subject: Identity, log: GroupLog | None = None) -> Group:
    entry = name_heir(by, group, CRYPTO, subject.public_key, wall=WALL, log=log)
    return group.with_chain([*group.chain, entry])


OF_HEIR = heir_of(FOUNDER, GROUP, OTHER)
OF_SECOND = heir_of(OTHER, OF_HEIR, CAT)


def rank(of: Group, subject: Identity, roster: Roster | None = None) -> int:
    log = None if roster is None else roster.log
    return check_chain(CRYPTO, of.chain, group_id=of.group_id, subject=subject.public_key, wall=WALL, log=log).rank


def test_ranks() -> None:
    ranks = [
        rank(*who) for who in ((GROUP, FOUNDER), (OF_HEIR, OTHER), (OF_SECOND, CAT), (OF_ADMIN, ADMIN), (OF_BOB, BOB))
    ]
    assert ranks == [FOUNDER_RANK, 1, 2, ADMIN_RANK, MEMBER_RANK]


def test_an_heir_goes_on_without_the_founder_for_ever() -> None:
    """Otherwise a group ends five weeks after its founder's key was lost, and its administrators stay for ever."""
    later = WALL + 200 * WEEK
    own = check_chain(CRYPTO, OF_HEIR.chain, group_id=GROUP.group_id, subject=OTHER.public_key, wall=later)
    assert own.expires == math.inf and not own.wants_renewal(later)
    assert renew(BOB, OF_BOB, CRYPTO, OF_HEIR.chain, OTHER.public_key, wall=WALL) == OF_HEIR.chain
    entry = admit(OTHER, OF_HEIR, CRYPTO, EVE.public_key, roles=("submit",), wall=later)
    chain = [*OF_HEIR.chain, entry]
    assert check_chain(CRYPTO, chain, group_id=GROUP.group_id, subject=EVE.public_key, wall=later).chain_length == 3
    roster = roster_of(removal(OTHER, OF_HEIR, OF_ADMIN, ADMIN))
    assert not is_member(roster, OF_ADMIN, ADMIN)


def test_who_is_no_heir_names_none() -> None:
    with pytest.raises(TrustError, match="only the founder"):
        name_heir(ADMIN, OF_ADMIN, CRYPTO, EVE.public_key, wall=WALL)
    forged = admit(ADMIN, OF_ADMIN, CRYPTO, EVE.public_key, roles=ROLES, wall=WALL, is_heir=True)
    with pytest.raises(TrustError, match="an heir named by a node that is none"):
        check_chain(CRYPTO, [*OF_ADMIN.chain, forged], group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL)


def test_only_higher_ranks_limit() -> None:
    for by, group, of, subject in (
        (OTHER, OF_HEIR, heir_of(FOUNDER, GROUP, EVE), EVE),
        (CAT, OF_SECOND, OF_HEIR, OTHER),
        (ADMIN, OF_ADMIN, OF_HEIR, OTHER),
        (ADMIN, OF_ADMIN, OF_SECOND, CAT),
    ):
        with pytest.raises(TrustError, match="heirs whom he named"):
            removal(by, group, of, subject)
    with pytest.raises(TrustError, match="founder"):
        removal(OTHER, OF_HEIR, GROUP, FOUNDER)


def forced(by: Identity, group: Group, of: Group, subject: Identity, *known: Any) -> list[Any]:
    """A removal by one that does not ask whether it may."""
    member = check_chain(CRYPTO, of.chain, group_id=of.group_id, subject=subject.public_key, wall=WALL)
    lowest = type(member)(**{name: getattr(member, name) for name in member.__slots__} | {"rank": MEMBER_RANK + 1})
    return make_limit(by, group, roster_of(*known).log, CRYPTO, lowest, roles=(), wall=WALL)


def test_limits_of_lower_ranks_change_nothing() -> None:
    for by, group, of, subject in (
        (CAT, OF_SECOND, OF_HEIR, OTHER),
        (ADMIN, OF_ADMIN, OF_HEIR, OTHER),
        (ADMIN, OF_ADMIN, OF_SECOND, CAT),
    ):
        assert is_member(roster_of(forced(by, group, of, subject)), of, subject)


def test_the_founder_stops_an_heir_and_what_he_did_behind_his_back() -> None:
    """Also when the heir writes that he knew of it, in whatever order it is heard."""
    stop = removal(FOUNDER, GROUP, OF_HEIR, OTHER)
    coup = removal(OTHER, OF_HEIR, OF_ADMIN, ADMIN)
    second_coup = removal(CAT, OF_SECOND, OF_BOB, BOB)
    for order in permutations([stop, coup, second_coup]):
        roster = roster_of(*order)
        assert not is_member(roster, OF_HEIR, OTHER) and not is_member(roster, OF_SECOND, CAT)
        assert is_member(roster, OF_ADMIN, ADMIN) and is_member(roster, OF_BOB, BOB)
    before = roster_of(coup, removal(FOUNDER, GROUP, OF_HEIR, OTHER, coup))
    assert not is_member(before, OF_ADMIN, ADMIN), "what the founder knew, and did not mind, stays"


def test_an_heir_becomes_an_ordinary_administrator_again() -> None:
    limit = removal(FOUNDER, GROUP, OF_HEIR, OTHER, roles=("submit", "work", "invite"))
    roster = roster_of(limit)
    assert (
        roles_in(roster, OF_HEIR, OTHER) == ("submit", "work", "invite") and rank(OF_HEIR, OTHER, roster) == MEMBER_RANK
    )
    with pytest.raises(TrustError, match="has ended"):
        roster.check(OTHER.public_key, OF_HEIR.chain, WALL + 2 * WEEK)
    fresh = renew(BOB, OF_BOB, CRYPTO, OF_HEIR.chain, OTHER.public_key, wall=WALL + HOUR, log=roster.log)
    assert roster.check(OTHER.public_key, fresh, WALL + HOUR).roles == ("submit", "work", "invite")
    again = let_in(FOUNDER, GROUP, OTHER, ROLES, log=roster.log)
    assert rank(again, OTHER, roster) == ADMIN_RANK
    late = removal(OTHER, again, OF_BOB, BOB, limit)
    assert not is_member(roster_of(limit, late), OF_BOB, BOB)
    old = forced(OTHER, OF_HEIR, OF_ADMIN, ADMIN)
    assert is_member(roster_of(limit, old), OF_ADMIN, ADMIN), "the old entry is good for nothing any more"


# --- policies -------------------------------------------------------------------------------------


def policy(by: Identity, group: Group, accept: str, *known: Any, bits: int | None = None) -> list[Any]:
    return make_policy(by, group, roster_of(*known).log, CRYPTO, GroupPolicy(accept=accept, open_bits=bits), wall=WALL)


def test_the_last_policy_holds_and_of_two_at_once_both() -> None:
    first = policy(FOUNDER, GROUP, "a")
    second = policy(ADMIN, OF_ADMIN, "b", first)
    third = policy(FOUNDER, GROUP, "c", first)
    assert roster_of(first, second).log.policy().accept == "b"
    for order in ((second, third), (third, second)):
        assert roster_of(first, *order).log.policy().accept == "(b) && (c)"
    fourth = policy(FOUNDER, GROUP, "", first, second, third)
    assert roster_of(first, second, third, fourth).log.policy() == GroupPolicy()


def test_a_policy_of_an_administrator_that_was_removed_does_not_hold() -> None:
    first = policy(FOUNDER, GROUP, "a")
    second = policy(ADMIN, OF_ADMIN, "b", first, bits=0)
    assert roster_of(first, second).log.policy() == GroupPolicy(accept="b", open_bits=0)
    gone = removal(FOUNDER, GROUP, OF_ADMIN, ADMIN, first)
    assert roster_of(first, second, gone).log.policy() == GroupPolicy(accept="a"), "he opens nothing"


def test_a_group_is_open_when_all_say_so() -> None:
    assert strictest([GroupPolicy(open_bits=3), GroupPolicy(open_bits=9)]).open_bits == 9
    assert not strictest([GroupPolicy(open_bits=3), GroupPolicy()]).is_open
    assert not strictest([]).is_open


def test_who_may_not_makes_no_policy() -> None:
    with pytest.raises(TrustError, match="may not change the group"):
        policy(BOB, OF_BOB, "a")


@pytest.mark.parametrize(
    "value",
    [None, [], {"accept": 1}, {"accept": "x" * (GROUP_ACCEPT_CHARS_MAX + 1)}, {"accept": "a\nb"}, {"open": True},
     {"open": -1}, {"open": OPEN_PUZZLE_BITS_MAX + 1}, {"open": None}, {1: 1}],
)  # fmt: skip
def test_policies_that_are_none(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        read_policy(value)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40), st.none() | st.integers(0, 24))
def test_policies_round_trip(accept: str, bits: int | None) -> None:
    made = GroupPolicy(accept=accept, open_bits=bits)
    assert read_policy(made.wire) == made


# --- strangers ------------------------------------------------------------------------------------


def knock(joiner: bytes, now: float = 0.0) -> Knock:
    return Knock(
        now=now, wall=WALL, joiner=joiner, name="eve", inviter=FOUNDER.public_key, binding=bytes(32), host="192.0.2.9"
    )


def test_the_work_at_the_door_is_for_one_key_and_one_group() -> None:
    """Whoever wants many identities pays for each."""
    door = OpenAdmission(CRYPTO, lambda: GROUP.group_id, lambda: 8)
    group_id, bits = read_challenge(door.meet(knock(EVE.public_key), b""))
    start = 0
    while (number := work(group_id, EVE.public_key, bits, start)) is None:
        start = next_start(start)
    assert worth(group_id, EVE.public_key, number) >= 8
    grant = door.admit(knock(EVE.public_key), number)
    assert grant.is_stranger and grant.roles == ("submit", "work")
    others = [create_identity(CRYPTO).public_key for _ in range(40)]
    worths = [worth(group_id, key, number) for key in others] + [worth(bytes(32), EVE.public_key, number)]
    assert sum(one >= 8 for one in worths) <= 3
    poor = next(key for key, one in zip(others, worths, strict=False) if one < 8)
    with pytest.raises(TrustError, match="was not done"):
        door.admit(knock(poor, 60.0), number)
    for junk in (None, b"", b"1234567", 5):
        with pytest.raises(RemoteProtocolError):
            door.admit(knock(poor, 120.0), junk)
    for _ in range(2 * MEETINGS_BURST_OF_SOURCE):
        with pytest.raises(TrustError, match="was not done"):
            door.admit(knock(poor, 180.0), number)
    assert door.admit(knock(EVE.public_key, 180.0), number), "who does no work keeps nobody out"


def test_a_closed_door() -> None:
    door = OpenAdmission(CRYPTO, lambda: GROUP.group_id, lambda: None)
    assert not door.preamble_keys(0.0)
    for call in (lambda: door.meet(knock(EVE.public_key), b""), lambda: door.admit(knock(EVE.public_key), bytes(8))):
        with pytest.raises(TrustError, match="nobody in that way"):
            call()


def test_nobody_is_made_to_work_for_ever() -> None:
    with pytest.raises(TrustError, match="too much work"):
        read_challenge(bytes([OPEN_PUZZLE_BITS_MAX + 1]) + bytes(32))
    for junk in (b"", bytes(32), bytes(34), None):
        with pytest.raises(RemoteProtocolError):
            read_challenge(junk)


def test_a_stranger_stays_one_when_it_is_renewed_and_may_not_more_than_strangers_may() -> None:
    entry = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("submit", "work"), wall=WALL, is_stranger=True)
    chain = [*OF_BOB.chain, entry]
    fresh = renew(FOUNDER, GROUP, CRYPTO, chain, EVE.public_key, wall=WALL + HOUR)
    for one in (chain, fresh):
        member = check_chain(CRYPTO, one, group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL + HOUR)
        assert member.is_stranger and member.inviter == BOB.public_key
    forged = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("submit", "invite"), wall=WALL, is_stranger=True)
    with pytest.raises(RemoteProtocolError, match="stranger"):
        check_chain(CRYPTO, [*OF_BOB.chain, forged], group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL)
    assert rank(let_in(FOUNDER, GROUP, EVE), EVE) == MEMBER_RANK, "whom somebody invites is none any more"


def test_nobody_says_that_somebody_else_let_a_member_in() -> None:
    """Members are counted by who is answerable for them: whom the founder let in, each counts for itself.  Breaks when
    whoever may invite can make a hundred such, or make one of a stranger that came in by the founder's open door."""

    def inviter_of(chain: Sequence[bytes]) -> bytes:
        return check_chain(CRYPTO, chain, group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL).inviter

    def entry_of(**more: Any) -> bytes:
        body = {
            "group": GROUP.group_id,
            "subject": EVE.public_key,
            "roles": ["work"],
            "issued": int(WALL),
            "expires": int(WALL) + 60,
            "previous": hashlib.sha256(OF_BOB.chain[-1]).digest(),
            "inviter": FOUNDER.public_key,
            **more,
        }
        return BOB.sign_envelope(ADMIT_TYPE, body)

    stranger = admit(FOUNDER, GROUP, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, is_stranger=True)
    seen = check_chain(CRYPTO, [*GROUP.chain, stranger], group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL)
    other = check_chain(CRYPTO, OF_BOB.chain, group_id=GROUP.group_id, subject=BOB.public_key, wall=WALL)
    assert seen.invited and other.invited and seen.inviter == other.inviter == FOUNDER.public_key
    for invited in ({}, {"invited": seen.invited}, {"invited": other.invited}, {"invited": bytes(64)}, {"invited": 5}):
        assert inviter_of([*OF_BOB.chain, entry_of(**invited)]) == BOB.public_key
    vouched = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, former=seen)
    assert inviter_of([*OF_BOB.chain, vouched]) == BOB.public_key, "who vouches for a stranger is answerable"
    let_in_by = let_in(FOUNDER, GROUP, EVE)
    fresh = renew(BOB, OF_BOB, CRYPTO, let_in_by.chain, EVE.public_key, wall=WALL)
    again = renew(OTHER, OF_HEIR, CRYPTO, fresh, EVE.public_key, wall=WALL)
    assert inviter_of(fresh) == inviter_of(again) == FOUNDER.public_key, "a renewal passes it on"


def test_who_came_in_by_a_way_that_stands_open_was_not_invited() -> None:
    """Whoever has a copy of a pre-shared key makes keys without number: none of them begins as one that is known."""
    entry = admit(FOUNDER, GROUP, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, is_unasked=True)
    own = [*GROUP.chain, entry]
    fresh = renew(BOB, OF_BOB, CRYPTO, own, EVE.public_key, wall=WALL)
    for chain in (own, fresh):
        member = check_chain(CRYPTO, chain, group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL)
        assert member.is_unasked and member.inviter == FOUNDER.public_key
        vouched = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, former=member)
        seen = check_chain(CRYPTO, [*OF_BOB.chain, vouched], group_id=GROUP.group_id, subject=EVE.public_key, wall=WALL)
        assert seen.inviter == BOB.public_key and not seen.is_unasked


def test_a_policy_that_cannot_be_kept_is_not_changed() -> None:
    entry = make_policy(ADMIN, OF_ADMIN, roster_of().log, CRYPTO, GroupPolicy(more=(("more", bytes(7000)),)), wall=WALL)
    log = roster_of(entry).log
    too_large = replace(log.policy(), accept="x" * 1900)
    with pytest.raises(TrustError, match="this version"):
        make_policy(FOUNDER, GROUP, log, CRYPTO, too_large, wall=WALL)


def test_a_member_is_not_made_a_stranger_by_somebody_else() -> None:
    """A newer entry with more roles that says so is worth less: its work would be given to nobody."""
    roster = roster_of(policy(FOUNDER, GROUP, "", bits=0))
    own = let_in(FOUNDER, GROUP, EVE, ("work",))
    roster.learn(own.chain, WALL)
    entry = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("submit", "work"), wall=WALL + 60, is_stranger=True)
    assert roster.learn([*OF_BOB.chain, entry], WALL + 60) is None
    member = roster.get(EVE.public_key)
    assert member is not None and not member.is_stranger


def test_strangers_are_members_while_the_group_is_open() -> None:
    """Breaks when closing a group leaves in it, and has members renew, those for whom nobody vouches."""
    opened = policy(FOUNDER, GROUP, "", bits=0)
    entry = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("submit", "work"), wall=WALL, is_stranger=True)
    chain = [*OF_BOB.chain, entry]
    roster = roster_of()
    assert roster.check(EVE.public_key, chain, WALL).is_stranger, "of a log that is not known yet nothing is said"
    roster.add(opened, WALL)
    roster.reassess(WALL)
    assert EVE.public_key in roster and not roster.over
    closed = policy(FOUNDER, GROUP, "", opened)
    roster.add(closed, WALL)
    roster.reassess(WALL)
    assert EVE.public_key not in roster and roster.over == [EVE.public_key]
    for refused in (
        lambda: roster.check(EVE.public_key, chain, WALL),
        lambda: renew(BOB, OF_BOB, CRYPTO, chain, EVE.public_key, wall=WALL + 3600, log=roster.log),
    ):
        with pytest.raises(TrustError) as refusal:
            refused()
        assert refusal.value.code == CLOSED
    invited = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, log=roster.log)
    assert not roster.check(EVE.public_key, [*OF_BOB.chain, invited], WALL).is_stranger and not roster.over
    again = roster_of(opened, closed, policy(FOUNDER, GROUP, "", opened, closed, bits=0))
    assert again.check(EVE.public_key, chain, WALL).is_stranger, "its lease goes on when the door is opened again"


def test_a_crowd_of_strangers_drives_no_member_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from p2pcompute.trust import roster as module

    monkeypatch.setattr(module, "ROSTER_MAX", 8)
    strangers = [create_identity(CRYPTO).public_key for _ in range(20)]
    roster = Roster(CRYPTO, GROUP, own=strangers[0])
    roster.check(BOB.public_key, OF_BOB.chain, WALL)
    for stranger in strangers:
        entry = admit(FOUNDER, GROUP, CRYPTO, stranger, roles=("work",), wall=WALL, is_stranger=True)
        roster.check(stranger, [*GROUP.chain, entry], WALL)
    assert BOB.public_key in roster and len(roster) == 8
    assert strangers[0] in roster, "nor does one of them forget itself"


def test_who_is_drawn_is_the_same_for_all_who_know_the_same_members() -> None:
    """Kept between questions: each time the policy is applied they are asked for, in groups of thousands."""
    members = [let_in(FOUNDER, GROUP, create_identity(CRYPTO)) for _ in range(9)]
    rosters = []
    for order in (members, members[::-1]):
        roster = Roster(CRYPTO, GROUP)
        for member in order:
            roster.drawn(4)
            roster.learn(member.chain, WALL)
        entry = admit(FOUNDER, GROUP, CRYPTO, EVE.public_key, roles=("work",), wall=WALL, is_stranger=True)
        roster.check(EVE.public_key, [*GROUP.chain, entry], WALL)
        rosters.append(roster)
    assert rosters[0].drawn(4) == rosters[1].drawn(4) and len(rosters[0].drawn(4)) == 4
    assert rosters[0].drawn(4) is rosters[0].drawn(4)
    assert EVE.public_key not in rosters[0].drawn(99) and len(rosters[0].drawn(99)) == 9


@pytest.mark.parametrize("seed", range(4))
def test_any_order_gives_the_same_with_heirs_and_policies(seed: int) -> None:
    entries: list[Any] = []
    makers: list[Callable[[list[Any]], list[Any]]] = [
        lambda known: removal(OTHER, OF_HEIR, OF_ADMIN, ADMIN, *known),
        lambda known: policy(ADMIN, OF_ADMIN, "x", *known, bits=1),
        lambda known: removal(FOUNDER, GROUP, OF_HEIR, OTHER, *known, roles=("submit",)),
        lambda known: policy(OTHER, OF_HEIR, "y", *known, bits=2),
        lambda known: removal(CAT, OF_SECOND, OF_BOB, BOB, *known),
        lambda known: policy(FOUNDER, GROUP, "z", *known),
    ]
    rng = random.Random(seed)
    rng.shuffle(makers)
    for make in makers:
        known = entries[: rng.randrange(len(entries) + 1)]
        with contextlib.suppress(TrustError):  # not allowed by one that knows so much
            entries.append(make(known))

    def outcome(order: list[Any]) -> Any:
        roster, left = Roster(CRYPTO, GROUP), list(order)
        while left:
            one = left.pop(0)
            if roster.add(one, WALL + HOUR) is Added.EARLIER_MISSING:
                left.append(one)
        subjects = ((OF_ADMIN, ADMIN), (OF_HEIR, OTHER), (OF_SECOND, CAT), (OF_BOB, BOB))
        return [is_member(roster, *who) for who in subjects], roster.log.policy(), roster.log.digest

    found = [outcome(rng.sample(entries, len(entries))) for _ in range(6)]
    assert all(one == found[0] for one in found)
