"""What coordinators say that they have given out.  If these fail, members pass off commands as others' tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import GRANT_TASKS_MAX, JOB_SKEW_S_MAX, MANIFEST_BYTES_MAX, MANIFEST_S
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.manifests import MANIFEST_CONTENT_TYPE, check_manifest, sign_manifest
from p2pcompute.scheduler.messages import grant_body, parse_grant
from p2pcompute.scheduler.terms import JobTerms, open_job, seal_job
from p2pcompute.wire import cbor

CRYPTO, WALL = RealCrypto(), 1_800_000_000.0
OWNER, KEEPER, EVE = (create_identity(CRYPTO) for _ in range(3))
JOB = open_job(CRYPTO, seal_job(OWNER, JobTerms(custodians=(KEEPER.public_key,)), b"", b"n"), wall=WALL)
TASKS = tuple(GrantedTask(index, 0, 1, b"payload %d" % index) for index in range(5))
GRANT = Grant(1, 1, b"t" * 32, JOB.job_id, OWNER.public_key, 30.0, TASKS, epoch=4)


@pytest.mark.parametrize("by", [OWNER, KEEPER])
def test_any_part_of_a_grant_is_shown_to_come_from_a_coordinator(by: object) -> None:
    word = sign_manifest(OWNER if by is OWNER else KEEPER, GRANT, wall=WALL)
    for part in (TASKS, TASKS[2:], TASKS[:1], ()):
        assert check_manifest(CRYPTO, word, JOB, part, wall=WALL + MANIFEST_S) == 4


def test_nothing_else_is() -> None:
    word, task = sign_manifest(OWNER, GRANT, wall=WALL), TASKS[0]
    blob = BlobRef(b"d" * 32, 5)
    for changed in (
        replace(task, index=9),
        replace(task, index=1),
        replace(task, generation=1),
        replace(task, attempt=2),
        replace(task, payload=b"rm"),
        replace(task, cookie=b"c"),
        replace(task, cookie_blob=blob),
        replace(task, payload=task.payload[:-1], cookie=task.payload[-1:]),
    ):
        with pytest.raises(RemoteProtocolError, match="no coordinator"):
            check_manifest(CRYPTO, word, JOB, [TASKS[1], changed], wall=WALL)
    other = open_job(CRYPTO, seal_job(OWNER, JobTerms(), b"", b"m"), wall=WALL)
    for raw, job, wall in (
        (sign_manifest(EVE, GRANT, wall=WALL), JOB, WALL),
        (word, other, WALL),
        (word, JOB, WALL + MANIFEST_S + JOB_SKEW_S_MAX + 1),
        (b"", JOB, WALL),
        (OWNER.sign_envelope("p2pc.manifest/2", cbor.decode(cbor.decode(word)[2])), JOB, WALL),
    ):
        with pytest.raises(RemoteProtocolError):
            check_manifest(CRYPTO, raw, job, TASKS, wall=wall)


def test_a_saved_state_is_part_of_it() -> None:
    saved = tuple(replace(task, cookie=b"c", cookie_blob=BlobRef(b"d" * 32, 5)) for task in TASKS)
    word = sign_manifest(OWNER, replace(GRANT, tasks=saved), wall=WALL)
    assert check_manifest(CRYPTO, word, JOB, saved, wall=WALL) == 4
    with pytest.raises(RemoteProtocolError):
        check_manifest(CRYPTO, word, JOB, [replace(saved[0], cookie_blob=BlobRef(b"e" * 32, 5))], wall=WALL)


def test_a_later_version_may_say_more() -> None:
    body = cbor.decode(cbor.decode(sign_manifest(OWNER, GRANT, wall=WALL))[2])
    longer = [*body[:3], [[*entry, "new"] for entry in body[3]], "new"]
    assert check_manifest(CRYPTO, OWNER.sign_envelope(MANIFEST_CONTENT_TYPE, longer), JOB, TASKS, wall=WALL) == 4


def test_the_largest_grant_has_room_for_it() -> None:
    most = (1 << 63) - 1
    tasks = tuple(GrantedTask(most - number, 255, (1 << 31) - 1, b"x" * 99) for number in range(GRANT_TASKS_MAX))
    word = sign_manifest(OWNER, replace(GRANT, tasks=tasks, epoch=most >> 1), wall=WALL)
    assert len(word) <= MANIFEST_BYTES_MAX
    whole = replace(GRANT, tasks=tasks, manifest=word)
    parsed, _envelope, _addresses = parse_grant(grant_body(whole, b"", b"", []), OWNER.public_key)
    assert parsed.manifest == word and check_manifest(CRYPTO, word, JOB, parsed.tasks, wall=WALL) == most >> 1
