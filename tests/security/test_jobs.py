"""Signed jobs: who may have one begun, and for how long what was signed once counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import DELEGATION_TYPE, Identity, create_identity, delegate
from p2pcompute.limits import DELEGATION_TTL_S_MAX, JOB_AGE_S_MAX, JOB_SKEW_S_MAX
from p2pcompute.scheduler.terms import STALE, JobTerms, open_job, seal_job

CRYPTO = RealCrypto()
WALL = 1_800_000_000.0
DAY = 86400.0
TERMS = JobTerms(created_ms=int(WALL * 1000))


def test_an_old_job_is_begun_nowhere() -> None:
    """Otherwise whoever once kept it could have it run again for ever, in its submitter's name."""
    ada = create_identity(CRYPTO)
    raw = seal_job(ada, TERMS, b"spec", b"nonce")
    for wall in (WALL, WALL - JOB_SKEW_S_MAX + 1, WALL + JOB_AGE_S_MAX - 1):
        assert open_job(CRYPTO, raw, wall=wall, is_new=True).submitter == ada.public_key
    for wall in (WALL - JOB_SKEW_S_MAX - 1, WALL + JOB_AGE_S_MAX + 1):
        with pytest.raises(RemoteProtocolError) as caught:
            open_job(CRYPTO, raw, wall=wall, is_new=True)
        assert caught.value.code == STALE
        assert open_job(CRYPTO, raw, wall=wall).spec == b"spec", "what is kept can still be read"


def test_an_expired_delegate_has_nothing_begun_whatever_date_it_writes() -> None:
    """Who finds the key of a program that ended long ago cannot submit in its owner's name: dates are his to choose."""
    ada = create_identity(CRYPTO)
    program = delegate(ada, CRYPTO, expires_wall=WALL + DAY, roles=("submit", "work"))
    job = seal_job(program, TERMS, b"spec", b"nonce")
    assert open_job(CRYPTO, job, wall=WALL + DAY - 1, is_new=True).submitter == ada.public_key
    later = WALL + 2 * DAY
    for created in (later, WALL):
        raw = seal_job(program, replace(TERMS, created_ms=int(created * 1000)), b"evil", b"n")
        with pytest.raises(RemoteProtocolError, match="expired"):
            open_job(CRYPTO, raw, wall=later, is_new=True)
    assert open_job(CRYPTO, job, wall=later).submitter == ada.public_key, "what it did in time still counts"


def test_a_delegate_may_do_what_it_was_given_and_for_as_long_as_that_may_be() -> None:
    ada = create_identity(CRYPTO)
    worker = delegate(ada, CRYPTO, expires_wall=WALL + DAY, roles=("work",))
    with pytest.raises(RemoteProtocolError, match="may not submit"):
        open_job(CRYPTO, seal_job(worker, TERMS, b"", b"n"), wall=WALL, is_new=True)
    eternal = delegate(ada, CRYPTO, expires_wall=WALL + DELEGATION_TTL_S_MAX + 2, roles=("submit",))
    with pytest.raises(RemoteProtocolError, match="lives too long"):
        open_job(CRYPTO, seal_job(eternal, TERMS, b"", b"n"), wall=WALL, is_new=True)


def test_a_delegate_vouches_for_nobody_and_nobody_borrows_its_delegation() -> None:
    ada, eve = create_identity(CRYPTO), create_identity(CRYPTO)
    program = delegate(ada, CRYPTO, expires_wall=WALL + DAY, roles=("submit",))
    borrowed = Identity(CRYPTO, eve.secret_seed(), installation=ada.public_key, delegation=program.delegation)
    with pytest.raises(RemoteProtocolError, match="another key"):
        open_job(CRYPTO, seal_job(borrowed, TERMS, b"", b"n"), wall=WALL, is_new=True)
    body = {"key": eve.public_key, "roles": ["submit"], "expires": int(WALL + DAY)}
    second = Identity(
        CRYPTO, eve.secret_seed(), installation=ada.public_key, delegation=program.sign_envelope(DELEGATION_TYPE, body)
    )
    job = open_job(CRYPTO, seal_job(second, TERMS, b"", b"n"), wall=WALL, is_new=True)
    assert job.submitter == program.public_key, "it speaks for the program, which is no member, and not for ada"


def test_nothing_of_a_job_is_looked_at_before_its_signature_is_right() -> None:
    """What is parsed first is what a stranger's bytes reach first."""
    ada = create_identity(CRYPTO)
    raw = bytearray(seal_job(ada, TERMS, b"spec", b"nonce"))
    raw[-1] ^= 1
    seen: list[object] = []

    class Watched(RealCrypto):
        def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
            seen.append(message)
            return False

    with pytest.raises(RemoteProtocolError, match="wrong signature"):
        open_job(Watched(), bytes(raw), wall=WALL, is_new=True)
    assert len(seen) == 1
