"""Who counts as one when results are compared: whoever can make many members must not agree with himself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.trust.admission import ROLES_UNASKED, Grant
from p2pcompute.trust.groups import MEMBER_ROLES, Group, admit, found_group, renew
from p2pcompute.trust.levels import Level, LevelNote

CRYPTO = RealCrypto()
ADA, BOB, CAT, DAN, EVE = (create_identity(CRYPTO) for _ in range(5))


class Channel:
    """As far as one who is let in is looked at."""

    address = Address("192.0.2.1", 7878)

    def __init__(self, joiner: Identity) -> None:
        self.peer: Any = self
        self.key = joiner.public_key


def credentials_of(identity: Identity, group: Group) -> GroupCredentials:
    absent: Any = None
    host = Host(
        clock=RealClock(), rng=SystemRng(), crypto=CRYPTO, net=absent, store=absent, runner=absent, probe=absent
    )
    return GroupCredentials(host, identity, group, "here", dict)


def test_who_is_answerable_for_a_member_is_whom_it_counts_with() -> None:
    wall = RealClock().wall()
    group = found_group(ADA, CRYPTO, "lab", wall)
    of_ada = credentials_of(ADA, group)

    def let_in(by: Identity, of: Group, subject: Identity, roles: Sequence[str] = MEMBER_ROLES, **more: Any) -> Group:
        entry = admit(by, of, CRYPTO, subject.public_key, roles=roles, wall=wall, **more)
        chain = (*of.chain, entry)
        of_ada.roster.replace(subject.public_key, chain, wall)
        return of.with_chain(chain)

    of_bob = let_in(ADA, group, BOB)
    of_cat = let_in(BOB, of_bob, CAT)
    let_in(CAT, of_cat, DAN)
    keys = {one: one.public_key for one in (ADA, BOB, CAT, DAN, EVE)}
    assert [of_ada.cluster_of(keys[one]) for one in (BOB, CAT, DAN)] == [keys[BOB]] * 3
    assert of_ada.cluster_of(keys[EVE]) == keys[ADA], "nobody knows who let it in"
    fresh = renew(ADA, group, CRYPTO, of_cat.chain, keys[CAT], wall=wall)
    of_ada.roster.replace(keys[CAT], fresh, wall)
    assert of_ada.cluster_of(keys[CAT]) == keys[BOB], "a renewal changes nothing"
    of_ada.levels.set(keys[BOB], LevelNote(level=Level.TRUSTED))
    assert of_ada.cluster_of(keys[CAT]) == of_ada.cluster_of(keys[DAN]) == keys[CAT]


def test_who_came_in_by_a_standing_way_has_to_prove_itself() -> None:
    """It counts alone, but not as itself: so it does not begin as one that the founder has invited."""
    of_ada = credentials_of(ADA, found_group(ADA, CRYPTO, "lab", RealClock().wall()))
    invite = of_ada.invites.create(0.0)
    for joiner, grant in ((BOB, Grant(roles=ROLES_UNASKED)), (CAT, Grant(roles=MEMBER_ROLES, invite=invite))):
        channel: Any = Channel(joiner)
        of_ada.let_in(channel, grant, "joiner", ())
    assert of_ada.cluster_of(CAT.public_key) == CAT.public_key
    assert of_ada.cluster_of(BOB.public_key) == b"unasked " + BOB.public_key
