"""What is known of the nodes of one job.  If these fail, a member with ever new keys fills its owner's memory."""

from __future__ import annotations

import pytest

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler import books, job_book, stragglers
from p2pcompute.scheduler.job_book import JobBook
from p2pcompute.scheduler.owner import OwnerCore, results
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.store.journal import JobRecord

JOB = b"j" * 32
NODES_MAX = 5
OK = Outcome(OutcomeStatus.OK, runtime_s=0.1)
FAILED = Outcome(OutcomeStatus.FAILED, exit_code=1)
REFUSED = Outcome(OutcomeStatus.REFUSED, error="not here")


@pytest.fixture(autouse=True)
def few_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (books, job_book, results, stragglers):
        monkeypatch.setattr(module, "JOB_NODES_MAX", NODES_MAX)


def make(tasks: int) -> OwnerCore:
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(retries=100), b"", b"s" * 32, b"s" * 32, b"raw"))
    core.add_tasks(JOB, [b"x"] * tasks)
    core.seal(JOB)
    return core


def thief(number: int) -> Thief:
    key = number.to_bytes(32, "big")
    return Thief(key, key, b"1", (3, 11), 1, 1)


def give(core: OwnerCore, number: int, outcome: Outcome | None) -> None:
    """A node gets a task; None: it keeps it."""
    who = thief(number)
    grant = core.choose(float(number), who)
    assert grant is not None
    core.acknowledged(float(number), who.key, grant.grant_id, True)
    for task in grant.tasks if outcome is not None else ():
        core.result(
            float(number), who.key, who.key, JOB, task.index, task.generation, task.attempt, outcome or OK, b"d" * 32
        )
    core.check_invariants()


@pytest.mark.parametrize("outcome", [OK, FAILED, REFUSED], ids=str)
def test_of_ever_new_nodes_the_last_are_known(outcome: Outcome) -> None:
    core = make(100)
    for number in range(1, 4 * NODES_MAX):
        give(core, number, outcome)
    job = core.jobs[JOB]
    last = [thief(number).key for number in range(3 * NODES_MAX, 4 * NODES_MAX)]
    assert list(job.by_thief) == last
    assert list(job.slowness._by_node) == (last if outcome is OK else [])
    assert list(job.failed_in_row) == (last if outcome is FAILED else [])
    assert list(job.refusals) == (last if outcome is REFUSED else [])


def test_who_holds_a_task_is_not_forgotten() -> None:
    core = make(100)
    for number in range(1, 2 * NODES_MAX):
        give(core, number, None)
    job = core.jobs[JOB]
    assert len(job.by_thief) == len(job.leases) == 2 * NODES_MAX - 1
    for number in range(2 * NODES_MAX, 4 * NODES_MAX):
        give(core, number, OK)
    assert set(job.by_thief) == {*(lease.thief for lease in job.leases.values()), thief(4 * NODES_MAX - 1).key}


def test_what_people_are_shown_is_of_the_last_nodes() -> None:
    core = make(1)
    book = JobBook(JobRecord(job_id=JOB, envelope=b"", alias="alias", submitted=0.0), core.jobs[JOB])
    book.note_end(0.0, LOCAL)
    for number in range(3 * NODES_MAX):
        node = thief(number).key
        book.note_end(float(number), node)
        book.note_good(node, OK)
        book.note_refused(node)
    last = [thief(number).key for number in range(2 * NODES_MAX, 3 * NODES_MAX)]
    assert list(book.rates) == list(book.took) == list(book.refused) == last
    book.note_good(last[0], OK)
    assert list(book.took) == last and book.took[last[0]] == (2, 0.2)
