"""How often a task that fails is tried where some nodes' word alone is not believed."""

from __future__ import annotations

import random

import pytest

from p2pcompute.host.runs import FAILS_HERE, Outcome, OutcomeStatus
from p2pcompute.scheduler.acceptance import Acceptance
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.trust.levels import Level

JOB = b"j" * 32
HOME = b"me"
FAILED = Outcome(OutcomeStatus.FAILED, error="no", runtime_s=0.1)
NOT_RUN = Outcome(OutcomeStatus.NOT_RUN, error="the disk is full")


class Group:
    """An owner whose nodes all end one task in the same way, a turn a second."""

    def __init__(self, members: str, *, retries: int, is_owner_working: bool, outcome: Outcome = FAILED) -> None:
        self.core = OwnerCore(None, Acceptance(lambda _key: Level.MEMBER, random.Random(7)))
        self.job = self.core.add_job(JobEnvelope(JOB, JobTerms(retries=retries), b"", b"s" * 32, b"s" * 32, b"raw"))
        self.core.add_tasks(JOB, [b"0"])
        self.core.seal(JOB)
        self.nodes = [name.encode().ljust(32, b".") for name in members] + [LOCAL] * is_owner_working
        self.outcome = outcome
        self.now = 1000.0
        self.by: list[bytes] = []
        """Who ended an attempt."""

    def turn(self) -> None:
        self.now += 1.0
        for key in self.nodes:
            who = HOME if key == LOCAL else key
            grant = self.core.choose(self.now, Thief(key, who, b"1", (3, 11), 1, 4))
            if grant is None:
                continue
            self.core.acknowledged(self.now, key, grant.grant_id, True)
            for task in grant.tasks:
                self.by.append(key)
                self.core.result(self.now, key, who, JOB, 0, task.generation, task.attempt, self.outcome, b"d" * 32)
        self.core.tick(self.now)
        self.core.take_effects()
        self.core.check_invariants()

    def state_after(self, turns: int) -> TaskState:
        for _ in range(turns):
            self.turn()
        return self.job.ledger.state(0)


@pytest.mark.parametrize("retries", [1, 2, 3])
@pytest.mark.parametrize("members", ["", "a", "ab", "abcd"])
def test_a_task_is_tried_again_as_often_as_its_job_says_whoever_tells_of_the_failures(
    members: str, retries: int
) -> None:
    group = Group(members, retries=retries, is_owner_working=True)
    assert group.state_after(60) is TaskState.FAILED
    assert len(group.by) == 1 + retries
    assert group.job.retried == retries
    assert group.by[-1] == LOCAL, "the last word is a trusted node's"


def test_without_retries_one_member_is_not_believed() -> None:
    group = Group("abc", retries=0, is_owner_working=True)
    assert group.state_after(30) is TaskState.FAILED
    assert (len(group.by), group.by[-1], group.job.retried) == (2, LOCAL, 1)


def test_where_nobody_is_trusted_members_say_in_the_end_that_a_task_fails() -> None:
    """Else its job would wait for ever."""
    group = Group("abcd", retries=2, is_owner_working=False)
    assert group.state_after(50) is TaskState.OPEN, "a trusted node may come"
    assert group.state_after(200) is TaskState.FAILED
    assert len(dict.fromkeys(group.by)) > 2, "not because one says so"


def test_what_members_have_not_begun_is_no_retry() -> None:
    group = Group("ab", retries=2, is_owner_working=False, outcome=NOT_RUN)
    assert group.state_after(5) is TaskState.OPEN
    assert group.by and group.job.retried == 0


# --- trusted nodes that may not run it ------------------------------------------------------------


class Elsewhere:
    """Where the job may run, as by --require: not at its owner's."""

    has_preference = False

    def may_have(self, key: bytes, _installation: bytes) -> bool:
        return key != LOCAL

    def is_candidate(self, key: bytes) -> bool | None:
        return key != LOCAL

    def look_further(self) -> None:
        """There are no others."""

    def rank(self, _key: bytes) -> float | None:
        return None

    def slots(self, _key: bytes, _slot_count: int) -> int:
        return 1

    def known_here(self) -> bool | None:
        return False

    async def fits_here(self) -> bool:
        return False


@pytest.mark.parametrize("members", ["g", "gh", "ghij"])
def test_a_trusted_node_that_may_not_run_a_task_is_not_waited_for(members: str) -> None:
    """If it broke, a task that fails on the nodes that its job asks for would wait for ever for the submitter's own."""
    group = Group(members, retries=2, is_owner_working=True)
    group.job.fit = Elsewhere()
    assert group.state_after(50) is TaskState.OPEN, "a trusted node that may may come"
    acceptance = group.core.acceptance
    assert acceptance.unconfirmed(group.now, group.job) == 1
    assert 0 < acceptance.alone_in_s(group.now, group.job) <= 15
    assert group.state_after(60) is TaskState.FAILED
    assert LOCAL not in group.by


def test_a_trusted_node_that_may_run_a_task_is_waited_for_however_long() -> None:
    group = Group("gh", retries=2, is_owner_working=True)
    group.state_after(1)
    group.job.fit = Elsewhere()
    group.state_after(40)
    group.job.fit = None
    assert group.state_after(3) is TaskState.FAILED and group.by[-1] == LOCAL, "it came in time"


def test_a_trusted_node_that_said_that_a_task_cannot_run_there_is_not_waited_for() -> None:
    group = Group("g", retries=2, is_owner_working=True)
    fails = group.outcome
    group.outcome = Outcome(OutcomeStatus.FAILED, error="no such program", cause=FAILS_HERE, runtime_s=0.1)
    nodes, group.nodes = group.nodes, [LOCAL]
    group.core.remember(group.now, Thief(nodes[0], nodes[0], b"1", (3, 11), 1, 4))
    group.turn()
    assert group.job.wrong_for and group.by == [LOCAL]
    group.nodes, group.outcome = nodes, fails
    assert group.state_after(120) is TaskState.FAILED
