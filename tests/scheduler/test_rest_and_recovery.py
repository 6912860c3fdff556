"""Nodes that cannot run anything for a while, and what an owner knows after its restart."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler.books import OwnedJob
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.scheduler.worker import WorkerCore

JOB = b"j" * 32
DIGEST = b"d" * 32
NOT_RUN = Outcome(OutcomeStatus.NOT_RUN, error="the disk is full")


def envelope(**terms: Any) -> JobEnvelope:
    return JobEnvelope(JOB, JobTerms(**terms), b"", b"s" * 32, b"s" * 32, b"raw")


def thief(name: str, *, slots: int = 1) -> Thief:
    key = LOCAL if name == "local" else name.encode().ljust(32, b".")
    return Thief(key, name.encode(), b"1", (3, 11), slots, 100)


def give_back(core: OwnerCore, who: Thief, now: float) -> list[int]:
    """Let a node take what it gets and find that it cannot run it."""
    grant = core.choose(now, who)
    assert grant is not None
    core.acknowledged(now, who.key, grant.grant_id, True)
    for task in grant.tasks:
        core.result(now, who.key, who.installation, JOB, task.index, task.generation, task.attempt, NOT_RUN, DIGEST)
    return [task.index for task in grant.tasks]


def test_what_a_node_cannot_run_goes_to_another_and_is_no_retry() -> None:
    core, ill, well = OwnerCore(), thief("ill"), thief("well")
    core.add_job(envelope(retries=0))
    core.add_tasks(JOB, [b"0"])
    core.seal(JOB)
    core.choose(0.0, well)
    core.tick(5.0)
    assert give_back(core, ill, 6.0) == [0]
    assert core.choose(6.0, ill) is None, "the other node is asked first"
    assert core.choose(6.0, well) is not None
    assert core.jobs[JOB].retried == 0
    core.check_invariants()


def test_a_task_that_cannot_run_here_does_not_hold_up_the_others() -> None:
    """Its output may be what does not fit on the disk."""
    core, alone = OwnerCore(), thief("local")
    core.add_job(envelope())
    core.add_tasks(JOB, [b"0", b"1", b"2"])
    core.seal(JOB)
    assert [give_back(core, alone, 0.0)[0] for _ in range(4)] == [0, 1, 2, 0]


def test_a_resting_worker_wants_and_starts_nothing() -> None:
    core, worker = OwnerCore(), WorkerCore(2)
    core.add_job(envelope())
    core.add_tasks(JOB, [b"0", b"1"])
    grant = core.choose(0.0, thief("local", slots=2))
    assert grant is not None
    worker.take(grant, LOCAL, is_staged=True)
    worker.is_resting = True
    assert worker.want() == 0 and worker.next_batches() == []
    worker.is_resting = False
    assert len(worker.next_batches()) == 2
    worker.check_invariants()


def test_who_did_what_is_known_after_a_restart() -> None:
    """From claims and verdicts in the journal; good results of the own worker are not claimed."""
    bob = b"bob".ljust(32, b".")
    facts: list[tuple[int, Any]] = [
        (FactKind.TASKS, [0, [b"0", b"1", b"2", b"3"]]),
        (FactKind.SEAL, [4]),
        (FactKind.CLAIMS, [[0, 0, 1, "ok", b"a" * 32, bob]]),
        (FactKind.ACCEPT, [[0, 0, b"a" * 32], [1, 0, b"b" * 32]]),
        (FactKind.CLAIMS, [[2, 0, 1, "failed", b"c" * 32, LOCAL], [2, 0, 2, "failed", b"c" * 32, bob]]),
        (FactKind.FAIL, [[2, 0, "boom"]]),
        (FactKind.CLAIMS, [[3, 0, 1, "not-run", b"e" * 32, bob]]),
    ]
    core = OwnerCore()
    job = core.recover(envelope(), facts)
    assert job.by_thief == {bob: [0, 1, 1], LOCAL: [0, 1, 0]}
    assert job.retried == 1, "of two failures one was the last"
    assert job.ledger.counts[TaskState.OPEN] == 1
    core.check_invariants()
    again = OwnerCore().recover(envelope(), [*facts, (FactKind.RETRY, [[1, 1], [2, 1]])])
    assert again.by_thief == {bob: [0, 1, 0], LOCAL: [0, 0, 0]}, "what runs again has been ended by nobody"
    core.retry(JOB, [1, 2], {1: b"1", 2: b"2"}, {1: LOCAL, 2: bob})
    assert job.by_thief == again.by_thief, "before a restart and after it"


CANCELLED_WHILE_TWO_RAN: list[tuple[int, Any]] = [
    (FactKind.TASKS, [0, [b"0", b"1", b"2"]]),
    (FactKind.SEAL, [3]),
    (FactKind.CANCEL_ALL, []),
    (FactKind.CANCEL, [[2, 0]]),
]


def states(core: OwnerCore) -> list[TaskState]:
    return [core.jobs[JOB].ledger.state(index) for index in range(core.jobs[JOB].ledger.size)]


def test_what_ran_when_a_job_was_cancelled_may_end_after_its_owners_restart() -> None:
    """One task's node says that it still holds it; nobody knows of the other one, and it is not given out again."""
    core, bob = OwnerCore(), thief("bob")
    core.recover(envelope(), CANCELLED_WHILE_TWO_RAN)
    assert states(core) == [TaskState.OPEN, TaskState.OPEN, TaskState.CANCELLED]
    assert core.heartbeat(1.0, bob.key, bob.boot, JOB, [(0, 0, 1)]) == []
    core.settle(3.0)
    assert states(core) == [TaskState.OPEN, TaskState.CANCELLED, TaskState.CANCELLED]
    assert core.choose(3.0, bob) is None
    done = Outcome(OutcomeStatus.OK)
    assert core.result(4.0, bob.key, bob.installation, JOB, 0, 0, 1, done, DIGEST)
    assert states(core) == [TaskState.DONE, TaskState.CANCELLED, TaskState.CANCELLED]
    assert core.take_effects().completed == [JOB]
    core.check_invariants()


def test_a_result_counts_that_a_custodian_took_before_it_was_asked() -> None:
    core, bob = OwnerCore(), thief("bob")
    job = core.recover(envelope(), CANCELLED_WHILE_TWO_RAN)
    job.grants_from = 10.0
    core.settle(9.0)
    assert core.result(9.5, bob.key, bob.installation, JOB, 1, 0, 1, Outcome(OutcomeStatus.OK), DIGEST)
    core.settle(10.0)
    assert states(core) == [TaskState.CANCELLED, TaskState.DONE, TaskState.CANCELLED]


def test_what_is_lost_of_a_cancelled_job_after_its_owners_restart_is_cancelled() -> None:
    core, bob = OwnerCore(), thief("bob")
    core.recover(envelope(), CANCELLED_WHILE_TWO_RAN)
    core.heartbeat(1.0, bob.key, bob.boot, JOB, [(0, 0, 1)])
    core.settle(3.0)
    core.peer_lost(5.0, bob.key)
    assert core.jobs[JOB].ledger.is_complete and states(core)[0] is TaskState.CANCELLED


@pytest.mark.parametrize("kill", [False, True])
def test_a_job_that_is_cancelled_before_its_holders_are_heard(kill: bool) -> None:
    """Only who kills does not wait for them."""
    core = OwnerCore()
    core.recover(envelope(), CANCELLED_WHILE_TWO_RAN[:2])
    core.cancel(JOB, None, kill=kill)
    assert states(core) == [TaskState.CANCELLED if kill else TaskState.OPEN] * 3
    core.settle(3.0)
    assert states(core) == [TaskState.CANCELLED] * 3


def test_what_ran_when_a_job_was_halted_may_end_after_its_owners_restart() -> None:
    core, bob = OwnerCore(), thief("bob")
    facts: list[tuple[int, Any]] = [
        *CANCELLED_WHILE_TWO_RAN[:2],
        (FactKind.FAIL, [[2, 0, "it failed"]]),
    ]
    core.recover(envelope(halt="soon,fail=1"), facts)
    core.heartbeat(1.0, bob.key, bob.boot, JOB, [(0, 0, 1)])
    core.settle(3.0)
    assert states(core) == [TaskState.OPEN, TaskState.CANCELLED, TaskState.FAILED]


def test_a_custodian_gives_out_nothing_of_a_job_that_its_owner_has_cancelled() -> None:
    """What ran then may end there; it is claimed for the owner."""
    core, bob = OwnerCore(), thief("bob")
    job = OwnedJob(envelope())
    job.is_own = False
    for kind, body in CANCELLED_WHILE_TWO_RAN:
        job.ledger.fold(kind, body)
    core.adopt(0.0, job, {0: b"0", 1: b"1"}, [], 3.0, begin_at=2, is_cancelled=True)
    core.heartbeat(1.0, bob.key, bob.boot, JOB, [(0, 0, 1)])
    assert core.choose(4.0, bob) is None
    assert core.result(5.0, bob.key, bob.installation, JOB, 0, 0, 1, Outcome(OutcomeStatus.OK), DIGEST)
    assert states(core) == [TaskState.CLAIMED, TaskState.OPEN, TaskState.CANCELLED]
    core.check_invariants()
