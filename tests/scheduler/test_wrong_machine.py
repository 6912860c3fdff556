"""A program for another machine is tried once on machines of each kind that it is not for, one that is missing once on
each node."""

from __future__ import annotations

import pytest

from p2pcompute.host.runs import FAILS_HERE, FAILS_ON_LIKE, Outcome, OutcomeStatus
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB = b"j" * 32
WRONG = Outcome(OutcomeStatus.FAILED, error="it is a program for aarch64", cause=FAILS_ON_LIKE, runtime_s=0.1)
MISSING = Outcome(OutcomeStatus.FAILED, error="not found", cause=FAILS_HERE, runtime_s=0.1)
GOOD = Outcome(OutcomeStatus.OK, runtime_s=0.1)
PC, PI = "linux x86_64", "linux aarch64"


def tried(machines: dict[bytes, str], *, retries: int = 2, wrong: Outcome = WRONG) -> tuple[list[str], TaskState]:
    """Let nodes of these machines ask in turn for a task with a program for aarch64; return who tried, and its end."""
    core = OwnerCore()
    core.machine_of = machines.__getitem__
    job = core.add_job(JobEnvelope(JOB, JobTerms(retries=retries), b"", b"s" * 32, b"s" * 32, b"raw"))
    core.add_tasks(JOB, [b"0"])
    core.seal(JOB)
    thieves = [Thief(key, key, b"1", (3, 11), 1, 4) for key in machines]
    now, by = 1000.0, []
    for thief in thieves:
        core.remember(now, thief)
    for _ in range(20):
        now += 1.0
        for thief in thieves:
            if (grant := core.choose(now, thief)) is None:
                continue
            core.acknowledged(now, thief.key, grant.grant_id, True)
            (task,) = grant.tasks
            by.append(machines[thief.key])
            outcome = GOOD if machines[thief.key] == PI else wrong
            core.result(now, thief.key, thief.key, JOB, 0, task.generation, task.attempt, outcome, b"d" * 32)
        core.tick(now)
        core.take_effects()
        core.check_invariants()
    return by, job.ledger.state(0)


def nodes(*machines: str) -> dict[bytes, str]:
    return {LOCAL if at == 0 else bytes([at]) * 32: machine for at, machine in enumerate(machines)}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_of_many_like_machines_tries(count: int) -> None:
    assert tried(nodes(*[PC] * count)) == ([PC], TaskState.FAILED)


def test_another_kind_has_it_next() -> None:
    assert tried(nodes(PC, PC, PC, PI)) == ([PC, PI], TaskState.DONE)


def test_each_kind_tries_once() -> None:
    assert tried(nodes(PC, "linux i386", PC, "linux i386"), retries=9) == ([PC, "linux i386"], TaskState.FAILED)


def test_of_whom_it_is_not_known_may_try_as_often_as_the_job_says() -> None:
    by, state = tried(nodes(PC, "", "", PC))
    assert (by[0], set(by[1:]), len(by), state) == (PC, {""}, 3, TaskState.FAILED)


@pytest.mark.parametrize(("count", "retries"), [(1, 2), (2, 2), (3, 2), (3, 9), (5, 1)])
def test_what_a_node_lacks_it_lacks_the_next_time_too(count: int, retries: int) -> None:
    by, state = tried(nodes(*[PC] * count), retries=retries, wrong=MISSING)
    assert (len(by), state) == (min(count, retries + 1), TaskState.FAILED)


def test_a_node_that_has_it_is_found() -> None:
    assert tried(nodes(PC, PC, PI), wrong=MISSING) == ([PC, PC, PI], TaskState.DONE)
