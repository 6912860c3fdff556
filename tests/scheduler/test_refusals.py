"""Nodes that refuse tasks, or cannot begin them.

If these fail, a job burns its attempts in a moment on a node that does nothing, or does not say why it failed.
"""

from __future__ import annotations

from itertools import pairwise

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import ATTEMPTS_MAX, REFUSALS_FREE, REFUSALS_MAX, REFUSED_S_MAX
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB = b"j" * 32
OK = Outcome(OutcomeStatus.OK, runtime_s=0.01)
REFUSED = Outcome(OutcomeStatus.REFUSED, error="this node gives no network")
CANNOT = Outcome(OutcomeStatus.NOT_RUN, error="its inputs could not be fetched")
BEHIND = Outcome(OutcomeStatus.NOT_RUN)


def thief(name: str, slots: int = 1) -> Thief:
    return Thief(name.encode().ljust(32, b"."), name.encode(), b"1", (3, 11), slots, 100)


def make(tasks: int) -> OwnerCore:
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", b"s" * 32, b"s" * 32, b"raw"))
    core.add_tasks(JOB, [b"x"] * tasks)
    core.seal(JOB)
    return core


def give(core: OwnerCore, now: float, who: Thief, outcomes: dict[int, Outcome] | Outcome) -> list[int]:
    """Grant tasks and end them at once; returns which."""
    grant = core.choose(now, who)
    if grant is None:
        return []
    core.acknowledged(now, who.key, grant.grant_id, True)
    for task in grant.tasks:
        outcome = outcomes if isinstance(outcomes, Outcome) else outcomes.get(task.index, OK)
        core.result(now, who.key, who.installation, JOB, task.index, 0, task.attempt, outcome, b"d" * 32)
    core.check_invariants()
    return [task.index for task in grant.tasks]


def run(core: OwnerCore, who: Thief, outcome: Outcome, *, until_s: float, step_s: float = 0.1) -> list[float]:
    """A node asks all the time; returns when it was given something."""
    given = []
    for step in range(int(until_s / step_s)):
        if give(core, step * step_s, who, outcome):
            given.append(step * step_s)
    return given


def test_the_only_node_that_refuses_is_asked_ever_more_rarely_and_its_reason_is_the_end() -> None:
    core = make(1)
    given = run(core, thief("a"), REFUSED, until_s=200)
    pauses = [round(after - before) for before, after in pairwise(given)]
    assert len(given) == REFUSALS_MAX and given[-1] < 70
    assert pauses[REFUSALS_FREE - 1 :] == [1, 2, 4, 8, 16, 32]
    job = core.jobs[JOB]
    assert job.ledger.state(0) is TaskState.FAILED
    assert "this node gives no network" in job.ledger.reasons[0]


def test_when_one_task_has_failed_of_it_the_others_do_not_take_a_minute_each() -> None:
    core = make(50)
    given = run(core, thief("a"), REFUSED, until_s=80)
    assert core.jobs[JOB].ledger.counts[TaskState.FAILED] == 50
    assert len(given) == REFUSALS_MAX + 49


def test_a_node_that_cannot_is_tried_again_for_an_hour() -> None:
    core = make(1)
    given = run(core, thief("a"), CANNOT, until_s=3600, step_s=1.0)
    assert core.jobs[JOB].ledger.state(0) is TaskState.OPEN
    assert 3600 / REFUSED_S_MAX < len(given) < ATTEMPTS_MAX
    assert give(core, 3700.0, thief("a"), OK) == [0]
    assert not core.jobs[JOB].refusals


def test_what_one_node_refuses_another_one_runs_at_once() -> None:
    core, a, b = make(8), thief("a", slots=8), thief("b", slots=8)
    core.remember(0.0, b)
    assert give(core, 0.0, a, REFUSED)
    while give(core, 0.1, b, OK):
        pass
    assert core.jobs[JOB].ledger.counts[TaskState.DONE] == 8


def test_one_task_that_is_refused_keeps_a_node_from_no_other() -> None:
    core = make(30)
    now = 0.0
    while core.jobs[JOB].ledger.counts[TaskState.DONE] < 29:
        assert give(core, now, thief("a"), {0: REFUSED}), "there is something else to do"
        now += 0.01
    assert core.jobs[JOB].ledger.state(0) is TaskState.OPEN


def test_what_waited_behind_a_task_that_died_is_given_again_at_once() -> None:
    core = make(10)
    for step in range(20):
        assert give(core, step * 0.01, thief("a"), BEHIND)


def test_what_was_given_together_counts_once() -> None:
    core = make(64)
    core.remember(0.0, thief("b"))
    assert len(give(core, 0.0, thief("a", slots=32), REFUSED)) == 32
    assert core.jobs[JOB].refusals[thief("a").key].count == REFUSALS_FREE
    assert not give(core, 0.9, thief("a"), REFUSED)
    assert give(core, 1.1, thief("a"), REFUSED)


def test_a_submitter_who_has_tasks_started_again_does_not_wait_for_what_was() -> None:
    core = make(1)
    run(core, thief("a"), REFUSED, until_s=80)
    assert core.retry(JOB, [0], {0: b"x"}) == 1
    assert core.choose(80.0, thief("a")) is not None
