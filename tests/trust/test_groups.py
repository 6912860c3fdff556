"""Groups: who is a member, who may make one, for how long."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import IdentityError, P2pcError, RemoteProtocolError, TrustError, UsageError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import ROLES, Identity, delegate
from p2pcompute.ids import short_device_id
from p2pcompute.limits import (
    ADMIT_CHAIN_MAX,
    ADMIT_ENTRY_BYTES_MAX,
    ADMIT_RENEW_S_MAX,
    ADMIT_SKEW_S_MAX,
    ADMIT_TTL_S,
    GROUP_NAME_CHARS_MAX,
)
from p2pcompute.trust.group_file import GROUP_FILE, load_own_group, save_group
from p2pcompute.trust.groups import (
    ADMIT_TYPE,
    MEMBER_ROLES,
    Group,
    Membership,
    admit,
    check_chain,
    found_group,
    group_hint,
    group_of_joiner,
    renew,
)
from p2pcompute.wire.envelope import open_envelope

CRYPTO = RealCrypto()
WALL = 1_800_000_000.0
PEOPLE = [Identity(CRYPTO, bytes([number]) * 32) for number in range(1, ADMIT_CHAIN_MAX + 3)]
ANNA, BERT, CORA, DORA = PEOPLE[:4]
GROUP = found_group(ANNA, CRYPTO, "lab", WALL)


def join(inviter: Identity, group: Group, joiner: Identity, wall: float, roles: Sequence[str] = MEMBER_ROLES) -> Group:
    chain = (*group.chain, admit(inviter, group, CRYPTO, joiner.public_key, roles=roles, wall=wall))
    return group_of_joiner(
        CRYPTO, chain, group.network_key, inviter=inviter.public_key, subject=joiner.public_key, wall=wall
    )


def check(chain: Sequence[bytes], who: Identity, wall: float = WALL, **more: Any) -> Membership:
    return check_chain(CRYPTO, chain, group_id=GROUP.group_id, subject=who.public_key, wall=wall, **more)


BERTS = join(ANNA, GROUP, BERT, WALL)
CORAS = join(BERT, BERTS, CORA, WALL, ["work"])


def forged(signer: Identity, subject: Identity, parent: bytes, /, **changes: Any) -> bytes:
    """An admit entry with a right signature, whatever it says."""
    body: dict[str, Any] = {
        "group": GROUP.group_id,
        "subject": subject.public_key,
        "roles": ["work"],
        "issued": int(WALL),
        "expires": int(WALL + ADMIT_TTL_S),
        "previous": hashlib.sha256(parent).digest(),
    }
    body.update(changes)
    body = {name: value for name, value in body.items() if value != "gone"}
    return signer.sign_envelope(ADMIT_TYPE, body)


def test_founder() -> None:
    """A node that has just started has no group, or one that is open to others."""
    assert not GROUP.is_open_to_others and GROUP.opened().is_open_to_others
    for wall in (WALL, WALL + 1e9):
        member = check(GROUP.chain, ANNA, wall)
        assert member.roles == ROLES and member.expires == math.inf and member.inviter == ANNA.public_key
        assert member.group_name == "lab" and member.chain_length == 1 and not member.wants_renewal(wall)
    body = open_envelope(CRYPTO, GROUP.chain[0], ADMIT_TYPE).payload
    assert GROUP.group_id == hashlib.sha256(b"p2pc group" + ANNA.public_key + body["nonce"]).digest()
    other = found_group(ANNA, CRYPTO, "lab", WALL)
    assert other.group_id != GROUP.group_id and other.network_key != GROUP.network_key


def test_members_along_a_chain() -> None:
    """Members that a member invited are not recognised."""
    bert, cora = check(BERTS.chain, BERT), check(CORAS.chain, CORA)
    assert (bert.inviter, bert.roles, bert.chain_length) == (ANNA.public_key, MEMBER_ROLES, 2)
    assert (cora.inviter, cora.roles, cora.expires) == (BERT.public_key, ("work",), WALL + ADMIT_TTL_S)
    assert BERTS.is_open_to_others and BERTS.name == "lab" and BERTS.network_key == GROUP.network_key


def test_ends_and_is_renewed_in_time() -> None:
    """A member stays for ever, or falls out although somebody who may renew it is there."""
    assert not check(BERTS.chain, BERT, WALL + ADMIT_TTL_S * 0.4).wants_renewal(WALL + ADMIT_TTL_S * 0.4)
    assert check(BERTS.chain, BERT, WALL + ADMIT_TTL_S * 0.6).wants_renewal(WALL + ADMIT_TTL_S * 0.6)
    check(BERTS.chain, BERT, WALL + ADMIT_TTL_S - 1)
    late = WALL + ADMIT_TTL_S
    with pytest.raises(TrustError) as caught:
        check(BERTS.chain, BERT, late)
    assert caught.value.code == "expired" and caught.value.fix
    fresh = renew(ANNA, GROUP, CRYPTO, BERTS.chain, BERT.public_key, wall=late)
    assert check(fresh, BERT, late + ADMIT_TTL_S - 1).roles == MEMBER_ROLES
    with pytest.raises(TrustError):
        renew(ANNA, GROUP, CRYPTO, BERTS.chain, BERT.public_key, wall=late + ADMIT_RENEW_S_MAX)
    assert renew(BERT, BERTS, CRYPTO, GROUP.chain, ANNA.public_key, wall=WALL) == GROUP.chain


def test_lives_on_while_the_founder_is_away() -> None:
    """A group dies a week after its founder's machine was switched off."""
    doras = join(ANNA, GROUP, DORA, WALL)
    groups = {BERT: BERTS, DORA: doras}
    now = WALL
    for _ in range(ADMIT_CHAIN_MAX - 2):
        now += ADMIT_TTL_S * 0.9
        before = dict(groups)
        for member, other in ((BERT, DORA), (DORA, BERT)):
            fresh = renew(other, before[other], CRYPTO, before[member].chain, member.public_key, wall=now)
            groups[member] = groups[member].with_chain(fresh)
            check(fresh, member, now)
    assert now > WALL + 5 * ADMIT_TTL_S
    for member, group in groups.items():
        back = renew(ANNA, GROUP, CRYPTO, group.chain, member.public_key, wall=now)
        assert check(back, member, now).chain_length == 2, "the founder makes chains short again"


def test_an_ended_member_admits_nobody() -> None:
    """Somebody who fell out brings others in."""
    late = WALL + ADMIT_TTL_S + 1
    with pytest.raises(TrustError):
        admit(BERT, BERTS, CRYPTO, CORA.public_key, roles=["work"], wall=late)
    entry = forged(BERT, CORA, BERTS.chain[-1], issued=int(late), expires=int(late) + 9)
    with pytest.raises(TrustError, match="no member then"):
        check((*BERTS.chain, entry), CORA, late)


def test_nobody_grants_what_he_lacks() -> None:
    """A worker makes itself an admin through a friend."""
    with pytest.raises(TrustError):
        admit(BERT, BERTS, CRYPTO, DORA.public_key, roles=["admin"], wall=WALL)
    with pytest.raises(TrustError):
        admit(CORA, CORAS, CRYPTO, DORA.public_key, roles=["work"], wall=WALL)
    with pytest.raises(TrustError):
        renew(BERT, BERTS, CRYPTO, join(ANNA, GROUP, DORA, WALL, ROLES).chain, DORA.public_key, wall=WALL)
    with pytest.raises(TrustError):
        check((*BERTS.chain, forged(BERT, DORA, BERTS.chain[-1], roles=["admin"])), DORA)
    with pytest.raises(TrustError):
        check((*CORAS.chain, forged(CORA, DORA, CORAS.chain[-1])), DORA)


def test_only_an_installation_admits_and_founds() -> None:
    """A program that embeds a node changes the membership."""
    session = delegate(ANNA, CRYPTO, expires_wall=WALL + 9, roles=ROLES)
    with pytest.raises(TrustError):
        admit(session, GROUP, CRYPTO, DORA.public_key, roles=["work"], wall=WALL)
    with pytest.raises(TrustError):
        found_group(session, CRYPTO, "x", WALL)
    for member in (ANNA, BERT):
        with pytest.raises(TrustError):
            admit(BERT, BERTS, CRYPTO, member.public_key, roles=["work"], wall=WALL)


def test_length_of_a_chain() -> None:
    """A chain costs the receiver any number of signature checks."""
    group = GROUP
    for inviter, joiner in itertools.pairwise(PEOPLE[:ADMIT_CHAIN_MAX]):
        group = join(inviter, group, joiner, WALL)
    last = PEOPLE[ADMIT_CHAIN_MAX - 1]
    assert check(group.chain, last).chain_length == ADMIT_CHAIN_MAX
    with pytest.raises(TrustError):
        admit(last, group, CRYPTO, PEOPLE[ADMIT_CHAIN_MAX].public_key, roles=["work"], wall=WALL)
    longer = (*group.chain, forged(last, PEOPLE[ADMIT_CHAIN_MAX], group.chain[-1]))
    with pytest.raises(TrustError, match="too long"):
        check(longer, PEOPLE[ADMIT_CHAIN_MAX])


def test_chains_that_do_not_hold_together() -> None:
    """Parts of right chains make a membership that nobody granted."""
    promoted = join(ANNA, GROUP, BERT, WALL, ROLES)
    strangers = found_group(DORA, CRYPTO, "lab", WALL)
    wrong: list[tuple[Sequence[bytes], Identity]] = [
        (BERTS.chain, CORA),
        (GROUP.chain, BERT),
        ((CORAS.chain[0], CORAS.chain[2]), CORA),
        (CORAS.chain[1:], CORA),
        (CORAS.chain[::-1], CORA),
        ((*promoted.chain, CORAS.chain[2]), CORA),
        ((strangers.chain[0], BERTS.chain[1]), BERT),
        (strangers.chain, DORA),
        ((), ANNA),
        ((*BERTS.chain, b"junk"), CORA),
    ]
    for chain, who in wrong:
        with pytest.raises((TrustError, RemoteProtocolError)):
            check(chain, who)


def test_the_founder_is_part_of_the_groups_id() -> None:
    """Somebody else presents himself as the founder of a known group."""
    nonce = open_envelope(CRYPTO, GROUP.chain[0], ADMIT_TYPE).payload["nonce"]
    body = {
        "group": GROUP.group_id,
        "subject": DORA.public_key,
        "roles": list(ROLES),
        "issued": int(WALL),
        "nonce": nonce,
        "name": "lab",
    }
    with pytest.raises(RemoteProtocolError):
        check((DORA.sign_envelope(ADMIT_TYPE, body),), DORA)
    with pytest.raises(RemoteProtocolError):
        check((ANNA.sign_envelope(ADMIT_TYPE, body),), DORA)


def test_clocks() -> None:
    """A small difference of clocks keeps a new member out, or an entry can be made for next year."""
    check(BERTS.chain, BERT, WALL - ADMIT_SKEW_S_MAX + 1)
    with pytest.raises(TrustError) as caught:
        check(BERTS.chain, BERT, WALL - ADMIT_SKEW_S_MAX - 2)
    assert caught.value.code == "clock"


@pytest.mark.parametrize(
    "changes",
    [
        {"group": bytes(32)},
        {"group": "gone"},
        {"subject": bytes(31)},
        {"subject": "x"},
        {"roles": "work"},
        {"roles": [1]},
        {"roles": "gone"},
        {"issued": -1},
        {"issued": True},
        {"issued": "x"},
        {"issued": 1 << 60},
        {"expires": "gone"},
        {"expires": None},
        {"expires": int(WALL)},
        {"expires": int(WALL + ADMIT_TTL_S) + 1},
        {"previous": "gone"},
        {"previous": bytes(32)},
        {"previous": b""},
        {"more": bytes(ADMIT_ENTRY_BYTES_MAX)},
    ],
)
def test_malformed_entries(changes: dict[str, Any]) -> None:
    """A hostile entry crashes the node or is accepted."""
    with pytest.raises(RemoteProtocolError):
        check((*GROUP.chain, forged(ANNA, BERT, GROUP.chain[0], **changes)), BERT)


@pytest.mark.parametrize("body", [1, [], {}, {"roles": []}])
def test_malformed_bodies(body: Any) -> None:
    """A hostile founder's entry crashes the node."""
    with pytest.raises(RemoteProtocolError):
        check((ANNA.sign_envelope(ADMIT_TYPE, body),), ANNA)


@pytest.mark.parametrize("chain", [None, b"x", 7, [None], [b""], ["x"], {}])
def test_not_a_chain(chain: Any) -> None:
    """A hello with something else in place of the chain crashes the node."""
    with pytest.raises(RemoteProtocolError):
        check(chain, ANNA)


@given(st.data())
def test_mutated_chains_are_refused(data: st.DataObject) -> None:
    """Some byte of a chain is covered by nothing."""
    chain = list(CORAS.chain)
    link = data.draw(st.integers(0, len(chain) - 1))
    raw = bytearray(chain[link])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    chain[link] = bytes(raw)
    with pytest.raises((RemoteProtocolError, TrustError)):
        check(chain, CORA)


def test_what_a_joiner_accepts() -> None:
    """The joiner takes an admission from another node than the one that invited it."""
    for inviter, subject, key in (
        (CORA, BERT, bytes(32)),
        (ANNA, CORA, bytes(32)),
        (ANNA, BERT, bytes(31)),
        (ANNA, BERT, None),
    ):
        with pytest.raises((RemoteProtocolError, TrustError)):
            group_of_joiner(
                CRYPTO,
                BERTS.chain,
                key,
                inviter=inviter.public_key,
                subject=subject.public_key,
                wall=WALL,  # type: ignore[arg-type]
            )


@pytest.mark.parametrize("name", ["", " lab", "lab ", "a\nb", "a\x1b[31m", "x" * (GROUP_NAME_CHARS_MAX + 1)])
def test_names_that_people_could_not_read(name: str) -> None:
    """A group's name breaks a terminal or is invisible; also when a stranger signed it."""
    with pytest.raises(UsageError):
        found_group(ANNA, CRYPTO, name, WALL)
    nonce = bytes(16)
    body = {
        "group": hashlib.sha256(b"p2pc group" + ANNA.public_key + nonce).digest(),
        "subject": ANNA.public_key,
        "roles": list(ROLES),
        "issued": int(WALL),
        "nonce": nonce,
        "name": name,
    }
    with pytest.raises(RemoteProtocolError):
        check_chain(CRYPTO, [ANNA.sign_envelope(ADMIT_TYPE, body)], group_id=None, subject=ANNA.public_key, wall=WALL)


def test_the_hint_tells_nothing_but_the_group() -> None:
    """The hint is a part of the key."""
    hint = group_hint(GROUP.network_key)
    assert len(hint) == 4 and hint not in GROUP.network_key and hint == group_hint(GROUP.network_key)
    assert hint != group_hint(bytes(32))


def test_the_file(tmp_path: Path) -> None:
    """A restart forgets the group, or others read its key."""
    assert load_own_group(tmp_path, CRYPTO, ANNA.public_key) is None
    for group, person in ((GROUP, ANNA), (BERTS, BERT), (CORAS, CORA)):
        save_group(tmp_path, group)
        assert load_own_group(tmp_path, CRYPTO, person.public_key) == group
    assert (tmp_path / GROUP_FILE).stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_refused_and_kept(tmp_path: Path) -> None:
    """A damaged group file becomes a new group, and the membership is lost."""
    save_group(tmp_path, BERTS)
    path = tmp_path / GROUP_FILE
    good = path.read_bytes()
    for wrong in (b"", good[:-1], good + b"x", b"\xa0", b"\x80"):
        path.write_bytes(wrong)
        with pytest.raises(IdentityError) as caught:
            load_own_group(tmp_path, CRYPTO, BERT.public_key)
        assert caught.value.fix and str(path) in caught.value.what and path.read_bytes() == wrong
    path.write_bytes(good)
    path.chmod(0o644)
    with pytest.raises(P2pcError, match="others may read"):
        load_own_group(tmp_path, CRYPTO, BERT.public_key)


def test_a_forged_membership_and_that_of_another_key_are_refused_and_kept(tmp_path: Path) -> None:
    """A node with one starts, nobody talks to it, and it says that its membership has ended."""
    path = tmp_path / GROUP_FILE
    forged = bytearray(BERTS.chain[-1])
    forged[-1] ^= 1
    save_group(tmp_path, replace(BERTS, chain=(BERTS.chain[0], bytes(forged))))
    kept = path.read_bytes()
    with pytest.raises(IdentityError, match="is damaged") as caught:
        load_own_group(tmp_path, CRYPTO, BERT.public_key)
    assert "wrong signature" in caught.value.why and caught.value.fix and caught.value.code == "identity"
    assert path.read_bytes() == kept
    save_group(tmp_path, BERTS)
    with pytest.raises(IdentityError, match="belongs to another key") as caught:
        load_own_group(tmp_path, CRYPTO, CORA.public_key)
    assert short_device_id(BERT.public_key) in caught.value.why and f"mv {path}" in str(caught.value.fix)


@pytest.mark.parametrize("flip", [0x01, 0x41, 0x80])
def test_any_damage_raises_only_the_documented_error(tmp_path: Path, flip: int) -> None:
    """A flipped bit in the group file ends in a traceback."""
    save_group(tmp_path, replace(BERTS, former_keys=((bytes(32), WALL),)))
    path = tmp_path / GROUP_FILE
    good = path.read_bytes()
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= flip
        path.write_bytes(changed)
        try:
            load_own_group(tmp_path, CRYPTO, BERT.public_key)
        except IdentityError:
            continue
