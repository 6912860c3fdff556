"""The log of a group: what removals and role changes do, whoever tries what, and in whatever order they are heard."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import IdentityError, ProtocolError, RemoteProtocolError, TrustError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import ROLES, Identity, create_identity
from p2pcompute.limits import LOG_ENTRIES_MAX, LOG_FOUNDER_ENTRIES
from p2pcompute.trust import log as log_module
from p2pcompute.trust.groups import MEMBER_ROLES, Group, admit, check_chain, found_group, renew
from p2pcompute.trust.log import LOG_TYPE, REMOVED, Added, GroupLog, make_limit, make_policy, make_rotation
from p2pcompute.trust.log_file import FileLogs, KeptLog
from p2pcompute.trust.policy import GroupPolicy
from p2pcompute.trust.roster import Roster

CRYPTO = RealCrypto()
WALL = 1_800_000_000.0
HOUR = 3600.0
FOUNDER, ADMIN, OTHER, BOB, CAT, EVE = (create_identity(CRYPTO) for _ in range(6))
GROUP = found_group(FOUNDER, CRYPTO, "lab", WALL).opened()


def let_in(
    by: Identity,
    group: Group,
    subject: Identity,
    roles: Sequence[str] = MEMBER_ROLES,
    *,
    wall: float = WALL,
    log: GroupLog | None = None,
) -> Group:
    """Return the group as the subject has it that was admitted by the one that has `group`."""
    entry = admit(by, group, CRYPTO, subject.public_key, roles=roles, wall=wall, log=log)
    return group.with_chain([*group.chain, entry])


OF_ADMIN = let_in(FOUNDER, GROUP, ADMIN, ROLES)
OF_OTHER = let_in(FOUNDER, GROUP, OTHER, ROLES)
OF_BOB = let_in(FOUNDER, GROUP, BOB)
OF_CAT = let_in(BOB, OF_BOB, CAT)


def roster_of(*entries: Any) -> Roster:
    """Return what a node knows that has heard these entries."""
    roster = Roster(CRYPTO, GROUP)
    for entry in entries:
        assert roster.add(entry, WALL + HOUR) is Added.NEW
    roster.log.check_invariants()
    return roster


def removal(by: Identity, group: Group, of: Group, subject: Identity, *known: Any, **more: Any) -> list[Any]:
    """Return the removal of a member by one that knows these entries."""
    log = roster_of(*known).log
    member = check_chain(CRYPTO, of.chain, group_id=of.group_id, subject=subject.public_key, wall=WALL)
    wanted: dict[str, Any] = {"roles": (), "wall": WALL, **more}
    return make_limit(by, group, log, CRYPTO, member, **wanted)


def roles_in(roster: Roster, of: Group, subject: Identity) -> tuple[str, ...]:
    return roster.check(subject.public_key, of.chain, WALL + HOUR).roles


def is_member(roster: Roster, of: Group, subject: Identity) -> bool:
    try:
        return bool(roles_in(roster, of, subject))
    except TrustError as error:
        assert error.code == REMOVED
        return False


def test_a_removed_member_is_none_any_more() -> None:
    roster = roster_of()
    assert is_member(roster, OF_BOB, BOB)
    roster.add(removal(FOUNDER, GROUP, OF_BOB, BOB, reason="lost"), WALL)
    roster.reassess(WALL)
    assert BOB.public_key not in roster and list(roster.removed()) == [BOB.public_key]
    with pytest.raises(TrustError, match=r"removed from the group by the founder .*: lost"):
        roster.check(BOB.public_key, OF_BOB.chain, WALL)


def test_whom_the_removed_let_in_before_stays_and_afterwards_does_not() -> None:
    """The second admission has an earlier date: dates prove nothing."""
    seen = roster_of()
    assert is_member(seen, OF_CAT, CAT)
    accepts = seen.signed_by(BOB.public_key)
    assert len(accepts) == 1
    roster = roster_of(removal(FOUNDER, GROUP, OF_BOB, BOB, accepts=accepts))
    backdated = let_in(BOB, OF_BOB, EVE, wall=WALL - 60)
    assert is_member(roster, OF_CAT, CAT)
    assert not is_member(roster, backdated, EVE)
    assert not is_member(roster, let_in(EVE, backdated, BOB), BOB), "nor does he let himself in by her"


def test_pretending_to_have_known_the_removal_does_not_help() -> None:
    """An admission by the removed that names the removal is still one by a member that was removed."""
    cut = removal(FOUNDER, GROUP, OF_BOB, BOB)
    log = roster_of(cut).log
    body_log = roster_of().log
    sly = let_in(BOB, OF_BOB, EVE, log=body_log)
    assert not is_member(roster_of(cut), sly, EVE)
    with pytest.raises(TrustError):
        let_in(BOB, OF_BOB, EVE, log=log)

    class Liar:
        """Names the removal, and does not mind it."""

        def heads(self, _subject: bytes) -> tuple[bytes, ...]:
            return log.heads()

        def roles_left(self, steps: Sequence[Any]) -> tuple[str, ...]:
            return tuple(steps[-1].roles)

    entry = admit(BOB, OF_BOB, CRYPTO, EVE.public_key, roles=MEMBER_ROLES, wall=WALL, log=Liar())
    assert not is_member(roster_of(cut), OF_BOB.with_chain([*OF_BOB.chain, entry]), EVE)


def test_a_new_invitation_by_one_that_knows_makes_a_member_again() -> None:
    cut = removal(FOUNDER, GROUP, OF_BOB, BOB)
    roster = roster_of(cut)
    unaware = let_in(ADMIN, OF_ADMIN, BOB)
    assert not is_member(roster, unaware, BOB), "removal beats an admission of the same time"
    again = let_in(ADMIN, OF_ADMIN, BOB, log=roster.log)
    assert is_member(roster, again, BOB) and not is_member(roster_of(cut), OF_BOB, BOB)
    assert BOB.public_key not in roster.removed()
    second = removal(FOUNDER, GROUP, again, BOB, cut)
    assert roster.add(second, WALL) is Added.NEW
    assert not is_member(roster_of(cut, second), again, BOB), "and can be removed again"


def test_renewal_of_a_removed_member_is_refused() -> None:
    log = roster_of(removal(FOUNDER, GROUP, OF_BOB, BOB)).log
    with pytest.raises(TrustError) as refusal:
        renew(ADMIN, OF_ADMIN, CRYPTO, OF_BOB.chain, BOB.public_key, wall=WALL, log=log)
    assert refusal.value.code == REMOVED


def test_renewal_keeps_what_was_limited_and_who_invited() -> None:
    log = roster_of(removal(FOUNDER, GROUP, OF_CAT, CAT, roles=("work",))).log
    chain = renew(ADMIN, OF_ADMIN, CRYPTO, OF_CAT.chain, CAT.public_key, wall=WALL + HOUR, log=log)
    member = check_chain(CRYPTO, chain, group_id=GROUP.group_id, subject=CAT.public_key, wall=WALL + HOUR, log=log)
    assert member.roles == ("work",) and member.inviter == BOB.public_key and member.signer == ADMIN.public_key


def test_who_may_not_remove_cannot() -> None:
    """A member without the role, a stranger, an administrator against another or the founder."""
    with pytest.raises(TrustError, match="may not change the group"):
        removal(BOB, OF_BOB, OF_CAT, CAT)
    with pytest.raises(TrustError, match="only the founder"):
        removal(ADMIN, OF_ADMIN, OF_OTHER, OTHER)
    with pytest.raises(TrustError, match="founder"):
        removal(ADMIN, OF_ADMIN, GROUP, FOUNDER)
    genuine = removal(ADMIN, OF_ADMIN, OF_BOB, BOB)
    assert not is_member(roster_of(genuine), OF_BOB, BOB)


def forged(by: Identity, chain: Sequence[bytes], **changes: Any) -> list[Any]:
    """Return an entry with the fields of a good removal of Bob, but for these."""
    import hashlib

    body = {
        "group": GROUP.group_id,
        "kind": "limit",
        "as": hashlib.sha256(chain[-1]).digest(),
        "after": [],
        "issued": int(WALL),
        "subject": BOB.public_key,
        "name": "bob",
        "roles": [],
        "accepts": [],
        "reason": "",
        **changes,
    }
    return [by.sign_envelope(LOG_TYPE, body), list(chain)]


def altered(raw: bytes) -> bytes:
    """Return an envelope whose signature is another."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "entry",
    [
        forged(EVE, OF_ADMIN.chain),
        forged(CAT, OF_CAT.chain),
        forged(EVE, found_group(EVE, CRYPTO, "lab", WALL).chain),
        forged(ADMIN, OF_ADMIN.chain, group=bytes(32)),
        forged(ADMIN, OF_ADMIN.chain, subject=FOUNDER.public_key),
        forged(ADMIN, OF_ADMIN.chain, issued=int(WALL) + 10**6),
        forged(ADMIN, OF_ADMIN.chain, issued=int(WALL) - 10**6),
        forged(ADMIN, OF_ADMIN.chain, after=[b"x"]),
        forged(ADMIN, OF_ADMIN.chain, **{"as": bytes(32)}),
        forged(FOUNDER, OF_ADMIN.chain),
        [b"", []],
        [b"", [b""]],
        [altered(removal(ADMIN, OF_ADMIN, OF_BOB, BOB)[0]), list(OF_ADMIN.chain)],
        None,
        [1, 2],
    ],
)
def test_forged_entries_are_refused_and_change_nothing(entry: Any) -> None:
    roster = roster_of()
    with pytest.raises(RemoteProtocolError):
        roster.add(entry, WALL)
    assert len(roster.log) == 0 and roster.log.refused_count == 1 and is_member(roster, OF_BOB, BOB)


def of_later(by: Identity = ADMIN, of: Group = OF_ADMIN, kind: str = "vote", **more: Any) -> list[Any]:
    """An entry as a later build might make it."""
    return forged(by, of.chain, kind=kind, **more)


@pytest.mark.parametrize(
    "entry",
    [
        of_later(),
        of_later(kind="policy", policy={"accept": 7}),
        of_later(kind="policy", policy=[]),
        of_later(kind="limit", subject=ADMIN.public_key),
        of_later(kind="limit", subject=b"bob"),
        of_later(kind="limit", accepts=[bytes(16)] * 257),
        of_later(kind="limit", reason="\x1b[2J"),
        of_later(kind="rotate", key=b"short"),
    ],
)
def test_what_a_later_build_says_is_kept_and_passed_on_and_does_nothing(entry: Any) -> None:
    """Breaks when a node of an older version stops reading there: it would not hear of any removal that follows."""
    roster = roster_of(entry)
    assert is_member(roster, OF_BOB, BOB) and roster.log.policy() == GroupPolicy() and not roster.log.rotations()
    assert [one.raw for one in roster.log.not_understood()] == [entry[0]] and not roster.log.is_beyond
    later = removal(FOUNDER, GROUP, OF_BOB, BOB, entry)
    assert roster.add(later, WALL) is Added.NEW and not is_member(roster, OF_BOB, BOB)
    assert roster.log.missing_of([], bytes_max=10**6) == [entry, later]
    assert roster_of(*roster.log.missing_of([], bytes_max=10**6)).log.digest == roster.log.digest


def test_a_limit_with_more_than_this_build_knows_holds_as_far_as_it_is_known() -> None:
    roster = roster_of(of_later(kind="limit", until=int(WALL) + 60, critical=True))
    assert not is_member(roster, OF_BOB, BOB) and roster.log.is_beyond


def test_what_must_not_be_passed_over_is_told_until_its_maker_is_removed() -> None:
    """Otherwise an administrator could end a group for good by an entry that no version understands."""
    entry = of_later(critical=True)
    roster = roster_of(entry)
    assert roster.log.is_beyond
    assert not roster_of(of_later(critical=True, kind="limit")).log.is_beyond, "that one is understood"
    assert roster.add(removal(FOUNDER, GROUP, OF_ADMIN, ADMIN, entry), WALL) is Added.NEW
    assert not roster.log.is_beyond and not roster.log.not_understood()
    with pytest.raises(RemoteProtocolError):
        roster.add(of_later(BOB, OF_BOB), WALL)  # it may not make any


def test_what_a_later_build_says_in_a_policy_stays_when_an_older_one_changes_the_rest() -> None:
    roster = roster_of(of_later(kind="policy", policy={"accept": "job.cpus<2", "hours": [8, 18]}, critical=True))
    assert roster.log.policy().accept == "job.cpus<2" and roster.log.is_beyond
    changed = replace(roster.log.policy(), accept="")
    assert roster.add(make_policy(ADMIN, OF_ADMIN, roster.log, CRYPTO, changed, wall=WALL), WALL) is Added.NEW
    assert roster.log.policy().wire == {"hours": [8, 18]} and roster.log.is_beyond
    assert len(roster.log.not_understood()) == 1, "the former policy holds no longer"
    without = make_policy(ADMIN, OF_ADMIN, roster.log, CRYPTO, GroupPolicy(), wall=WALL)
    assert roster.add(without, WALL) is Added.NEW and not roster.log.is_beyond


@given(st.recursive(st.none() | st.binary() | st.integers(), lambda inner: st.lists(inner, max_size=4), max_leaves=8))
def test_junk_raises_only_what_is_documented(junk: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        roster_of().add(junk, WALL)
    with pytest.raises((ProtocolError, TrustError)):
        roster_of().learn(junk, WALL)


def test_of_two_branches_the_founders_counts() -> None:
    """The founder removes an administrator, who at the same time removes a member: in both orders the same."""
    coup = removal(ADMIN, OF_ADMIN, OF_BOB, BOB)
    end = removal(FOUNDER, GROUP, OF_ADMIN, ADMIN)
    for order in permutations((coup, end)):
        roster = roster_of(*order)
        assert not is_member(roster, OF_ADMIN, ADMIN)
        assert is_member(roster, OF_BOB, BOB), "the founder did not know of Bob's removal: it may have come later"
    known = removal(FOUNDER, GROUP, OF_ADMIN, ADMIN, coup)
    assert not is_member(roster_of(coup, known), OF_BOB, BOB), "what the founder knew stays"


def test_administrators_cannot_undo_each_other() -> None:
    """Forged by hand, because `make_limit` refuses: a limit of an administrator by another has no effect."""
    one = forged(ADMIN, OF_ADMIN.chain, subject=OTHER.public_key)
    two = forged(OTHER, OF_OTHER.chain, subject=ADMIN.public_key)
    roster = roster_of(one, two)
    assert is_member(roster, OF_ADMIN, ADMIN) and is_member(roster, OF_OTHER, OTHER)
    demoted = removal(FOUNDER, GROUP, OF_OTHER, OTHER, one, two, roles=("work",))
    assert roster.add(demoted, WALL) is Added.NEW
    assert not is_member(roster, OF_OTHER, OTHER), "once it is no administrator, what the other said counts"


def test_roles_that_were_taken_are_not_used_and_not_passed_on() -> None:
    roster = roster_of(removal(FOUNDER, GROUP, OF_BOB, BOB, roles=("work", "invite")))
    assert roles_in(roster, OF_BOB, BOB) == ("work", "invite")
    assert not is_member(roster, OF_CAT, CAT), "it grants the role submit, which Bob lacked"
    assert is_member(roster, let_in(BOB, OF_BOB, EVE, ("work",)), EVE)
    with pytest.raises(TrustError, match="cannot grant"):
        let_in(BOB, OF_BOB, EVE, log=roster.log)


def test_an_entry_waits_for_those_that_it_names() -> None:
    first = removal(ADMIN, OF_ADMIN, OF_BOB, BOB)
    second = removal(ADMIN, OF_ADMIN, OF_CAT, CAT, first)
    roster = roster_of()
    assert roster.add(second, WALL) is Added.EARLIER_MISSING
    assert roster.add(first, WALL) is Added.NEW and roster.add(second, WALL) is Added.NEW
    assert roster.add(second, WALL) is Added.KNOWN
    assert roster.log.missing_of([roster.log.heads()[0][:8]], bytes_max=10**6) == [first]


def test_everybody_uses_the_same_of_two_keys() -> None:
    keys = [CRYPTO.random_bytes(32) for _ in range(3)]
    empty = roster_of().log
    one = make_rotation(ADMIN, OF_ADMIN, empty, CRYPTO, keys[0], wall=WALL)
    two = make_rotation(OTHER, OF_OTHER, empty, CRYPTO, keys[1], wall=WALL)
    orders = [[entry.key_digest for entry in roster_of(*order).log.rotations()] for order in permutations((one, two))]
    assert orders[0] == orders[1] and len(orders[0]) == 2
    later = make_rotation(FOUNDER, GROUP, roster_of(one, two).log, CRYPTO, keys[2], wall=WALL)
    assert roster_of(one, two, later).log.rotations()[-1].id == roster_of(two, one, later).log.heads()[0]
    with pytest.raises(TrustError):
        make_rotation(BOB, OF_BOB, empty, CRYPTO, keys[0], wall=WALL)


def test_a_full_log_has_room_for_the_founder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "LOG_ENTRIES_MAX", 6)
    monkeypatch.setattr(log_module, "LOG_FOUNDER_ENTRIES", 3)
    assert LOG_FOUNDER_ENTRIES < LOG_ENTRIES_MAX
    roster = roster_of()
    flood = [forged(ADMIN, OF_ADMIN.chain, reason=str(number)) for number in range(5)]
    assert [roster.add(entry, WALL) for entry in flood] == [Added.NEW] * 3 + [Added.FULL] * 2
    assert roster.log.refused_count == 2
    assert roster.add(removal(FOUNDER, GROUP, OF_ADMIN, ADMIN), WALL) is Added.NEW
    assert not is_member(roster, OF_ADMIN, ADMIN) and is_member(roster, OF_BOB, BOB)


def test_a_log_that_is_full_of_few_large_entries_has_room_for_the_founder(monkeypatch: pytest.MonkeyPatch) -> None:
    roster = roster_of()
    flood = [forged(ADMIN, OF_ADMIN.chain, reason=str(number)) for number in range(9)]
    size = len(flood[0][0]) + sum(map(len, flood[0][1]))
    monkeypatch.setattr(log_module, "GROUP_LOG_BYTES_MAX", 8 * size)
    monkeypatch.setattr(log_module, "LOG_FOUNDER_ENTRIES", LOG_ENTRIES_MAX // 2)
    assert [roster.add(entry, WALL) for entry in flood] == [Added.NEW] * 4 + [Added.FULL] * 5
    assert roster.add(removal(FOUNDER, GROUP, OF_ADMIN, ADMIN), WALL) is Added.NEW
    assert not is_member(roster, OF_ADMIN, ADMIN)


def test_nobody_who_may_invite_makes_others_believe_that_a_member_may_less() -> None:
    roster = roster_of()
    assert roster.learn(OF_CAT.chain, WALL) == CAT.public_key
    lesser = let_in(BOB, OF_BOB, CAT, ("work",), wall=WALL + 60)
    assert roster.learn(lesser.chain, WALL + 60) is None
    again = let_in(BOB, OF_BOB, CAT, wall=WALL + 60)
    assert roster.learn(again.chain, WALL + 60) == CAT.public_key and roster.chain_of(CAT.public_key) == again.chain


def test_what_is_kept_is_taken_up_again(tmp_path: Path) -> None:
    roster = roster_of(removal(FOUNDER, GROUP, OF_BOB, BOB))
    roster.check(ADMIN.public_key, OF_ADMIN.chain, WALL)
    logs = FileLogs(tmp_path)
    assert logs.load(GROUP.group_id) == KeptLog()
    logs.save(GROUP.group_id, roster.kept())
    again = roster_of()
    again.restore(logs.load(GROUP.group_id), WALL)
    assert again.digest == roster.digest and BOB.public_key in again.removed() and ADMIN.public_key in again
    logs.path(GROUP.group_id).write_bytes(b"junk")
    with pytest.raises(IdentityError, match="damaged"):
        logs.load(GROUP.group_id)


# --- any history, in any order --------------------------------------------------------------------

PEOPLE = {"admin": (ADMIN, OF_ADMIN), "other": (OTHER, OF_OTHER), "bob": (BOB, OF_BOB), "cat": (CAT, OF_CAT)}


@settings(max_examples=40, deadline=None)
@given(
    acts=st.lists(
        st.tuples(
            st.sampled_from(("founder", "admin", "other")),
            st.sampled_from(tuple(PEOPLE)),
            st.sampled_from(((), ("work",), ("submit", "work"))),
            st.integers(0, 7),
        ),
        max_size=6,
    ),
    seed=st.integers(0, 1000),
)
def test_the_order_in_which_entries_are_heard_does_not_matter(
    acts: list[tuple[str, str, tuple[str, ...], int]], seed: int
) -> None:
    """Each act knows some of the earlier ones; two nodes hear all in different orders and agree about everybody."""
    entries: list[list[Any]] = []
    for who, whom, roles, knows in acts:
        by, group = (FOUNDER, GROUP) if who == "founder" else PEOPLE[who]
        subject, of = PEOPLE[whom]
        if by is subject:
            continue
        heard = Roster(CRYPTO, GROUP)
        for entry in entries[:knows]:
            heard.add(entry, WALL)
        names = {"after": list(heard.log.heads()), "subject": subject.public_key, "roles": list(roles)}
        entry = forged(by, group.chain, **names, name=str(len(entries)))
        entries.append(entry)
    first, second = Roster(CRYPTO, GROUP), Roster(CRYPTO, GROUP)
    for entry in entries:
        first.add(entry, WALL)
    waiting = list(entries)
    random.Random(seed).shuffle(waiting)
    while waiting:
        waiting = [entry for entry in waiting if second.add(entry, WALL) is Added.EARLIER_MISSING]
    assert first.digest == second.digest
    for subject, of in PEOPLE.values():
        told = [_told(roster, of, subject) for roster in (first, second)]
        assert told[0] == told[1]
        if subject in (ADMIN, OTHER) and not any(act[0] == "founder" for act in acts):
            assert told[0] == ROLES, "only the founder limits administrators"
    first.log.check_invariants()
    second.log.check_invariants()


def _told(roster: Roster, of: Group, subject: Identity) -> tuple[str, ...]:
    try:
        return roles_in(roster, replace(of), subject)
    except TrustError:
        return ()
