"""Tasks go where their inputs are, and nobody waits for that.

If this fails, large values cross the network in vain, or nodes stand idle beside work.
"""

from __future__ import annotations

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.owner.rule import NEAR_MAX
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB, SUBMITTER, ADA, BOB = b"j" * 32, b"s" * 32, b"a" * 32, b"b" * 32


def thief(key: bytes) -> Thief:
    return Thief(key, key, b"1", (3, 11), 2, 2)


def books(near: dict[int, bytes], count: int) -> OwnerCore:
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b""] * count)
    core.jobs[JOB].near.update(near)
    return core


def given(core: OwnerCore, key: bytes) -> list[int]:
    grant = core.choose(0.0, thief(key))
    assert grant is not None
    core.acknowledged(0.0, key, grant.grant_id, True)
    core.check_invariants()
    return [task.index for task in grant.tasks]


def test_each_gets_what_is_near() -> None:
    core = books({0: BOB, 1: BOB, 2: ADA, 5: ADA}, 8)
    assert given(core, ADA) == [2, 5]
    assert given(core, BOB) == [0, 1]
    assert given(core, ADA) == [3, 4]


def test_nobody_waits() -> None:
    core = books(dict.fromkeys(range(4), BOB), 4)
    assert given(core, ADA) == [0, 1], "bob has not asked, ada has nothing else to do"


def test_order_stays_among_equals_and_hints_end_with_their_tasks() -> None:
    core = books({NEAR_MAX + 5: ADA, 3: BOB}, NEAR_MAX + 10)
    assert given(core, ADA) == [0, 1], "what is far behind is not looked at"
    assert list(core.jobs[JOB].ready)[:3] == [2, 4, 5]
    done = Outcome(OutcomeStatus.OK, runtime_s=1.0)
    assert given(core, BOB) == [3, 2]
    core.result(0.0, BOB, BOB, JOB, 3, 0, 1, done, b"d" * 32)
    assert 3 not in core.jobs[JOB].near
    core.check_invariants()
