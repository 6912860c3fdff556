"""Who coordinates a job: if these rules break, two nodes act for ever, or none does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import TrustError, UsageError
from p2pcompute.host.interfaces import Address
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.limits import CUSTODIANS_MAX, CUSTODY_LEAVING_S, LEASE_S_MIN
from p2pcompute.scheduler.books import OwnedJob
from p2pcompute.scheduler.custody import SILENT_S, Charge, Outlook, coordinator_of, first_task, next_epoch, patience_s
from p2pcompute.scheduler.ledger import FactKind
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms, open_job, seal_job
from p2pcompute.scheduler.tickets import Ticket, check_ticket, format_ticket, parse_ticket, sign_ticket

CRYPTO = RealCrypto()
KEYS = [bytes([number]) * 32 for number in range(4)]
JOB = JobEnvelope(b"j" * 32, JobTerms(custodians=tuple(KEYS[1:])), b"", KEYS[0], KEYS[0], b"raw")


@given(st.integers(0, 1000), st.integers(0, 3), st.integers(1, 6))
def test_the_next_epoch_is_the_lowest_above_that_names_the_rank(known: int, rank: int, count: int) -> None:
    rank %= count
    epoch = next_epoch(known, rank, count)
    assert epoch > known and epoch % count == rank
    assert all(between % count != rank for between in range(known + 1, epoch))


def test_custodians_lose_their_patience_in_turn_within_two_leases() -> None:
    times = [patience_s(rank) for rank in range(1, CUSTODIANS_MAX + 1)]
    assert times[0] == LEASE_S_MIN and times[1] > times[0] + 10.0 and times == sorted(times)
    assert times[-1] < 2 * LEASE_S_MIN


def test_a_custodian_acts_until_it_hears_of_a_higher_epoch() -> None:
    charge = Charge(job=JOB, rank=2, heard=0.0)
    assert not charge.is_overdue(patience_s(2) - 1) and charge.is_overdue(patience_s(2))
    assert charge.take_over() == 2 and charge.coordinator == KEYS[2] and not charge.is_overdue(1e9)
    assert not charge.hear(50.0, KEYS[1], 1), "a lower one is no news"
    assert charge.coordinator == KEYS[2]
    assert charge.hear(60.0, KEYS[0], next_epoch(2, 0, 4)) and charge.coordinator == KEYS[0]


def test_a_custodian_passes_over_later_ones_that_it_cannot_hear_and_over_no_earlier_one() -> None:
    """Where workers know a higher epoch: each of two in their reach would take the next one, in turn, for ever."""
    charge = Charge(job=JOB, rank=2, heard=0.0)
    assert not charge.goes_before(3), "it does not coordinate"
    charge.take_over()
    assert [charge.goes_before(epoch) for epoch in (4, 5, 6, 7)] == [False, False, True, True]
    owner, onlooker = (Charge(job=JOB, rank=rank, heard=0.0, is_acting=True) for rank in (0, None))
    assert all(owner.goes_before(epoch) for epoch in range(1, 8))
    assert not any(onlooker.goes_before(epoch) for epoch in range(1, 8))


@given(st.integers(1, CUSTODIANS_MAX), st.integers(1, 10_000))
def test_custodians_begin_with_different_tasks(custodians: int, size: int) -> None:
    begins = [first_task(size, rank, custodians) for rank in range(1, custodians + 1)]
    assert begins[0] == size - 1 and begins == sorted(begins, reverse=True)
    assert begins[-1] >= size // custodians - 1 >= -1, "the first part is the owner's"
    assert len(set(begins)) == custodians or size < custodians


def test_a_custodian_goes_downwards_from_where_it_begins_and_on_from_the_other_end() -> None:
    job = OwnedJob(JOB)
    job.is_own = False
    job.ledger.fold(FactKind.TASKS, [0, [b"x"] * 6])
    job.ledger.claim(1, 0, is_good=True)
    OwnerCore().adopt(0.0, job, dict.fromkeys(range(6), b"x"), [], 0.0, begin_at=first_task(6, 2, 2))
    assert list(job.ready) == [2, 0, 5, 4, 3]


def test_only_the_coordinator_is_waited_for() -> None:
    charge = Charge(job=JOB, rank=1, heard=0.0)
    charge.hear(20.0, KEYS[2], 0)
    assert charge.heard == 0.0, "another custodian that is well says nothing about the owner"
    charge.hear(20.0, KEYS[0], 0)
    assert charge.heard == 20.0
    charge.leaving(21.0)
    assert not charge.is_overdue(21.0) and charge.is_overdue(21.0 + CUSTODY_LEAVING_S), "it said goodbye"
    charge.hear(21.1, KEYS[0], 0)
    assert charge.is_overdue(21.0 + CUSTODY_LEAVING_S), "answers that were on their way do not take that back"
    charge.hear(21.0 + CUSTODY_LEAVING_S, KEYS[0], 0)
    assert not charge.is_overdue(22.0 + CUSTODY_LEAVING_S), "it answers a knock: it is there"


def test_who_waits_for_a_coordinator_is_told_for_whom_and_how_long() -> None:
    charge = Charge(job=JOB, rank=2, heard=100.0)
    assert charge.outlook(105.0, KEYS[2], lambda _key: True) == Outlook(KEYS[0], True)
    lost = charge.outlook(105.0, KEYS[2], lambda key: key == KEYS[1])
    assert lost == Outlook(KEYS[0], True, 100.0, KEYS[1], 100.0 + patience_s(1)), "the first of those who are there"
    silent = charge.outlook(100.0 + SILENT_S, KEYS[2], lambda key: key != KEYS[1])
    assert silent == Outlook(KEYS[0], True, 100.0, KEYS[2], 100.0 + patience_s(2)), "this one, when the first is away"
    onlooker = Charge(job=JOB, rank=None, heard=100.0)
    assert onlooker.outlook(105.0, b"x" * 32, lambda _key: False) == Outlook(KEYS[0], True, 100.0)
    charge.take_over()
    assert charge.outlook(500.0, KEYS[2], lambda _key: False) == Outlook(KEYS[2], False)


def test_an_envelope_names_its_coordinators_by_rank() -> None:
    ada = create_identity(CRYPTO)
    raw = seal_job(ada, JobTerms(custodians=(KEYS[2], KEYS[1])), b"spec", b"nonce")
    job = open_job(CRYPTO, raw, wall=0.0)
    assert job.coordinators == (ada.public_key, KEYS[2], KEYS[1])
    assert [coordinator_of(job, epoch) for epoch in (0, 1, 2, 3)] == [ada.public_key, KEYS[2], KEYS[1], ada.public_key]


def made_ticket(identity: Identity, job: JobEnvelope) -> bytes:
    return sign_ticket(identity, job.job_id, expires_wall=100.0)


def test_a_ticket_is_for_one_job_of_its_signer_and_ends() -> None:
    ada, eve = create_identity(CRYPTO), create_identity(CRYPTO)
    job, other = (open_job(CRYPTO, seal_job(ada, JobTerms(), b"", nonce), wall=0.0) for nonce in (b"1", b"2"))
    check_ticket(CRYPTO, made_ticket(ada, job), job, wall=99.0)
    for raw, wall in (
        (made_ticket(ada, job), 100.0),
        (made_ticket(ada, other), 0.0),
        (made_ticket(eve, job), 0.0),
        (b"", 0.0),
    ):
        with pytest.raises(TrustError):
            check_ticket(CRYPTO, raw, job, wall=wall)


def test_a_ticket_is_read_as_it_was_written_or_refused() -> None:
    ticket = Ticket(b"j" * 32, b"signed", ((KEYS[1], (Address("192.0.2.1", 7878),)), (KEYS[2], ())))
    text = format_ticket(ticket)
    assert parse_ticket(f" {text}\n") == ticket
    for wrong in ("", "p2pc-job-", text[:-9], text.replace("p2pc-job-", ""), text[:30] + "!" + text[31:]):
        with pytest.raises(UsageError):
            parse_ticket(wrong)


def test_the_command_line_knows_a_ticket_when_it_sees_one() -> None:
    from p2pcompute.cli import command
    from p2pcompute.scheduler import tickets

    assert command.TICKET_PREFIX == tickets.PREFIX
