"""Owner and worker cores against each other: if these fail, tasks are lost, run twice without need, or never end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus
from p2pcompute.limits import (
    BATCH_TARGET_S,
    GRANT_ACK_S,
    JOB_SKEW_S_MAX,
    LEASE_S_MIN,
    PARK_S,
    POISON_NODES,
    RECALL_S,
)
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import WITH_NODE, OwnerCore
from p2pcompute.scheduler.owner.results import ELSEWHERE_S
from p2pcompute.scheduler.owner.rule import AVOID_S, BREAKER_COUNT, BREAKER_S_MIN
from p2pcompute.scheduler.stealing import LOCAL, Parking, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.scheduler.worker import WorkerCore

JOB = b"j" * 32
PYTHON = (3, 11)


def envelope(**terms: Any) -> JobEnvelope:
    return JobEnvelope(JOB, JobTerms(**terms), b"", b"s" * 32, b"s" * 32, b"raw")


def thief(name: str, *, slots: int = 2, want: int = 100, boot: bytes = b"1") -> Thief:
    key = LOCAL if name == "local" else name.encode().ljust(32, b".")
    return Thief(key, name.encode(), boot, PYTHON, slots, want)


OK = Outcome(OutcomeStatus.OK, runtime_s=0.01)
FAILED = Outcome(OutcomeStatus.FAILED, exit_code=1, error="boom", runtime_s=0.01)
DIED = Outcome(OutcomeStatus.DIED, signal=11, cause="signal")
LONG = Outcome(OutcomeStatus.OK, runtime_s=5.0)


def make(count: int, **terms: Any) -> OwnerCore:
    core = OwnerCore()
    core.add_job(envelope(**terms))
    core.add_tasks(JOB, [bytes([i % 256]) for i in range(count)])
    core.seal(JOB)
    return core


def take(core: OwnerCore, who: Thief, now: float = 0.0) -> Grant:
    grant = core.choose(now, who)
    assert grant is not None
    core.acknowledged(now, who.key, grant.grant_id, True)
    return grant


def report(core: OwnerCore, who: Thief, grant: Grant, position: int, outcome: Outcome, now: float = 0.0) -> bool:
    task = grant.tasks[position]
    return core.result(
        now, who.key, who.installation, JOB, task.index, task.generation, task.attempt, outcome, b"d" * 32
    )


def test_first_batch_is_a_task_per_slot_then_about_a_second_of_work() -> None:
    core, a = make(1000), thief("a", slots=2)
    grant = take(core, a)
    assert len(grant.tasks) == 2
    report(core, a, grant, 0, Outcome(OutcomeStatus.OK, runtime_s=0.05))
    assert len(take(core, a).tasks) == 40, "1 s on 2 slots at 0.05 s a task"


def test_at_most_half_of_what_is_ready_when_there_are_others() -> None:
    core, a, b = make(8), thief("a", slots=8), thief("b", slots=8)
    core.choose(0.0, b)
    core.tick(GRANT_ACK_S)
    assert len(take(core, a).tasks) == 4


def test_unacknowledged_grant_returns_and_does_not_count_as_an_attempt() -> None:
    core, a = make(1), thief("a")
    grant = core.choose(0.0, a)
    assert grant is not None and core.choose(0.0, a) is None
    core.tick(GRANT_ACK_S)
    assert take(core, a).tasks[0].attempt == 1


def test_lost_node_is_never_the_tasks_fault() -> None:
    core, a, b = make(1, retries=0), thief("a"), thief("b")
    for round_number in range(20):
        take(core, a, float(round_number))
        assert core.peer_lost(float(round_number), a.key) == 1
    assert report(core, b, take(core, b), 0, OK)
    assert core.jobs[JOB].ledger.is_complete


def test_restarted_node_loses_the_leases_of_its_former_life_only() -> None:
    core, a = make(4), thief("a", boot=b"1")
    take(core, a)
    again = thief("a", boot=b"2")
    take(core, again)
    assert core.peer_lost(0.0, a.key, boot=b"2") == 2
    assert len(core.jobs[JOB].leases) == 2


def test_failure_goes_to_another_node_first() -> None:
    core, a, b = make(1, retries=2), thief("a"), thief("b")
    core.choose(0.0, b)
    core.tick(GRANT_ACK_S)
    report(core, a, take(core, a, 1.0), 0, FAILED, 1.0)
    assert core.choose(1.0, a) is None, "it failed here and b is there"
    assert core.choose(1.0, b) is not None


def test_failure_runs_again_here_when_nobody_else_is_there() -> None:
    core, a = make(1, retries=2), thief("a")
    for _ in range(3):
        report(core, a, take(core, a), 0, FAILED)
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED
    (end,) = core.take_effects().ends
    assert end.attempts == 3 and end.outcome is FAILED


def test_failure_that_is_the_same_everywhere_is_not_tried_again() -> None:
    core, a = make(1, retries=5), thief("a")
    always = Outcome(OutcomeStatus.FAILED, error="no module", cause=FAILS_ALWAYS)
    report(core, a, take(core, a), 0, always)
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED
    assert [end.attempts for end in core.take_effects().ends] == [1]


def test_a_failed_task_does_not_wait_for_a_node_that_is_busy() -> None:
    core, a, b = make(2), thief("a", slots=1, want=1), thief("b", slots=1, want=1)
    take(core, b)
    report(core, a, take(core, a), 0, FAILED)
    assert core.choose(0.1, a) is None, "another may just be about to ask"
    again = core.choose(ELSEWHERE_S, a)
    assert again is not None and again.tasks[0].attempt == 2, "b is at work, perhaps for hours"


def test_a_node_that_fails_everything_does_not_fail_the_job_while_the_others_are_busy() -> None:
    core, a, b = make(50), thief("a", slots=1, want=1), thief("b", slots=1, want=1)
    take(core, b)
    now = 0.0
    while now < AVOID_S:
        if (grant := core.choose(now, a)) is not None:
            core.acknowledged(now, a.key, grant.grant_id, True)
            report(core, a, grant, 0, FAILED, now)
        now += 0.1
    assert core.jobs[JOB].ledger.counts[TaskState.FAILED] <= 1, "each had one attempt here, and waits for b"
    report(core, a, take(core, a, now + AVOID_S), 0, OK, now)
    now += AVOID_S
    report(core, a, take(core, a, now), 0, FAILED, now)
    assert core.choose(now + ELSEWHERE_S, a) is not None, "nothing speaks against a any more"


def test_poison_task_fails_with_evidence_after_deaths_on_three_nodes() -> None:
    core = make(1, retries=0)
    names = [thief(f"n{i}") for i in range(5)]
    for who in names:
        core.choose(0.0, who)
        core.tick(GRANT_ACK_S)
    for count, who in enumerate(names[:POISON_NODES], 1):
        report(core, who, take(core, who), 0, DIED)
        assert core.jobs[JOB].ledger.is_complete == (count == POISON_NODES)
    assert "died 3 times on 3" in core.jobs[JOB].ledger.reasons[0]


def idle_after(core: OwnerCore, slow: Thief, work_s: float = 1.0) -> Grant:
    """A node holds the last task of a job whose others have taken a second; returns its grant."""
    done = Outcome(OutcomeStatus.OK, runtime_s=work_s)
    grant = take(core, slow)
    report(core, slow, grant, 0, done)
    return take(core, slow)


def test_a_task_that_takes_too_long_goes_to_an_idle_node_too_and_the_first_good_result_counts() -> None:
    for winner in ("a", "b"):
        core, a, b = make(2), thief("a", slots=1, want=1), thief("b", slots=1, want=1)
        first = idle_after(core, a)
        core.heartbeat(4.0, a.key, a.boot, JOB, [(1, 0, 1)])
        core.tick(4.0)
        assert core.copy(4.0, b) is None, "it is not late yet"
        core.tick(5.0)
        assert core.copy(5.0, a) is None, "it has it already"
        copied = core.copy(5.0, b)
        assert copied is not None and copied.tasks[0].attempt == 2
        assert core.take_effects().stops == [(a.key, JOB, [1], False)], "it is handed back unless it runs"
        core.acknowledged(5.0, b.key, copied.grant_id, True)
        assert core.heartbeat(6.0, a.key, a.boot, JOB, [(1, 0, 1)]) == [1], "its lease has ended"
        assert not report(core, a, first, 0, FAILED, 6.0), "a bad end of the former holder says nothing"
        who, grant, other = (a, first, b) if winner == "a" else (b, copied, a)
        assert report(core, who, grant, 0, OK, 7.0)
        assert core.take_effects().stops == [(other.key, JOB, [1], True)]
        assert core.jobs[JOB].ledger.is_complete
        core.check_invariants()


def test_a_member_that_keeps_its_leases_for_ever_loses_them() -> None:
    """It takes tasks, says that it has them, and never returns one."""
    core, hoarder, b = make(30), thief("h", slots=8), thief("b", slots=2)
    kept = take(core, hoarder)
    now = 0.0
    while not core.jobs[JOB].ledger.is_complete and now < 120.0:
        core.heartbeat(now, hoarder.key, hoarder.boot, JOB, [(t.index, 0, 1) for t in kept.tasks])
        core.tick(now)
        while (grant := core.choose(now, b) or core.copy(now, b)) is not None:
            core.acknowledged(now, b.key, grant.grant_id, True)
            for position in range(len(grant.tasks)):
                report(core, b, grant, position, Outcome(OutcomeStatus.OK, runtime_s=0.5), now)
        now += 1.0
    assert core.jobs[JOB].ledger.counts[TaskState.DONE] == 30
    assert core.copies_count == len(kept.tasks)


def test_nothing_is_copied_of_a_job_that_may_run_so_often_at_once() -> None:
    core, a, b = make(2, slots_max=1), thief("a", slots=1, want=1), thief("b", slots=1, want=1)
    idle_after(core, a)
    core.tick(100.0)
    assert core.copy(100.0, b) is None


def test_a_node_that_fails_what_others_do_well_is_given_little() -> None:
    core, bad, good = make(400, retries=3), thief("bad", slots=8), thief("good", slots=8)
    core.remember(0.0, good)
    for _ in range(BREAKER_COUNT):
        core.remember(0.0, good)
        grant = core.choose(0.0, bad)
        assert grant is not None
        core.acknowledged(0.0, bad.key, grant.grant_id, True)
        report(core, bad, grant, 0, FAILED)
        again = take(core, good)
        assert again.tasks[0].index == grant.tasks[0].index, "it is tried elsewhere first"
        report(core, good, again, 0, OK)
    assert core.broken_count == 1
    assert core.choose(1.0, bad) is None and core.choose(1.0, good) is not None
    probe = core.choose(BREAKER_S_MIN, bad)
    assert probe is not None and len(probe.tasks) == 1
    core.acknowledged(BREAKER_S_MIN, bad.key, probe.grant_id, True)
    report(core, bad, probe, 0, OK, BREAKER_S_MIN)
    larger = core.choose(BREAKER_S_MIN, bad)
    assert larger is not None and len(larger.tasks) > 1


def test_a_job_that_fails_everywhere_speaks_against_no_node() -> None:
    core, a, b = make(40, retries=1), thief("a"), thief("b")
    for number in range(30):
        who = (a, b)[number % 2]
        core.remember(0.0, (b, a)[number % 2])
        grant = core.choose(0.0, who)
        if grant is not None:
            core.acknowledged(0.0, who.key, grant.grant_id, True)
            for position in range(len(grant.tasks)):
                report(core, who, grant, position, FAILED)
    assert core.broken_count == 0


def test_a_task_that_takes_three_nodes_down_with_it_is_failed_with_the_evidence() -> None:
    """Its nodes say so when they come back; that they were gone says nothing."""
    core = make(1, retries=0)
    names = [thief(f"n{i}") for i in range(5)]
    died = Outcome(OutcomeStatus.DIED, cause=WITH_NODE, error="its node's own process ended while it ran")
    for count, who in enumerate(names[:POISON_NODES], 1):
        core.remember(float(count), names[-1])
        grant = take(core, who, float(count))
        core.peer_lost(float(count), who.key)
        assert not core.jobs[JOB].ledger.is_complete
        for _ in range(2):  # a node that dies again and again counts once
            report(core, who, grant, 0, died, float(count))
        assert core.jobs[JOB].ledger.is_complete == (count == POISON_NODES)
        core.check_invariants()
    assert "died 3 times on 3 node(s), which died with it" in core.jobs[JOB].ledger.reasons[0]


def test_a_node_alone_that_is_killed_often_fails_no_task() -> None:
    core, alone = make(1, retries=0), thief("local")
    died = Outcome(OutcomeStatus.DIED, cause=WITH_NODE)
    for _ in range(10):
        grant = take(core, alone)
        core.peer_lost(0.0, alone.key)
        report(core, alone, grant, 0, died)
    assert report(core, alone, take(core, alone), 0, OK)


def test_late_good_result_counts_once_and_stops_the_other_attempt() -> None:
    core, a, b = make(1), thief("a"), thief("b")
    first = take(core, a)
    core.tick(LEASE_S_MIN)
    second = take(core, b, LEASE_S_MIN)
    core.take_effects()
    assert report(core, a, first, 0, OK, 100.0)
    assert core.take_effects().stops == [(b.key, JOB, [0], True)]
    assert not report(core, b, second, 0, OK, 101.0), "accepted once"


def test_late_failure_of_a_lost_lease_is_ignored() -> None:
    core, a, b = make(1, retries=0), thief("a"), thief("b")
    first = take(core, a)
    core.tick(LEASE_S_MIN)
    take(core, b, LEASE_S_MIN)
    assert not report(core, a, first, 0, FAILED)
    assert not core.jobs[JOB].ledger.is_complete


def test_result_for_a_task_never_leased_changes_nothing() -> None:
    core = make(1)
    assert not core.result(0.0, b"x" * 32, b"x", JOB, 77, 0, 1, OK, b"")
    assert not core.result(0.0, b"x" * 32, b"x", b"y" * 32, 0, 0, 1, OK, b"")
    assert not core.result(0.0, b"x" * 32, b"x", JOB, 0, 0, 1, FAILED, b"")


def test_heartbeat_renews_and_absence_expires() -> None:
    core, a = make(2), thief("a")
    grant = take(core, a)
    kept = grant.tasks[0]
    core.heartbeat(LEASE_S_MIN - 1, a.key, a.boot, JOB, [(kept.index, kept.generation, kept.attempt)])
    core.tick(LEASE_S_MIN + 1)
    assert list(core.jobs[JOB].leases) == [kept.index]


def test_heartbeat_after_our_restart_adopts_the_lease() -> None:
    core, a, b = make(1), thief("a"), thief("b")
    assert core.heartbeat(0.0, a.key, a.boot, JOB, [(0, 0, 3)]) == []
    assert core.choose(0.0, b) is None
    assert core.heartbeat(0.0, b.key, b.boot, JOB, [(0, 0, 3)]) == [0], "b is told to drop it"


def test_a_node_has_taken_no_longer_than_its_lease_lasts() -> None:
    """What it says becomes receipts, shares and the guess of how long a task takes."""
    core, a, b = make(2, created_ms=1_000_000), thief("a"), thief("b", slots=1)
    take(core, a, 100.0)
    job, lie = core.jobs[JOB], Outcome(OutcomeStatus.OK, runtime_s=9e14, cpu_s=18e14)
    seen = core.as_seen(102.0, 5000.0, job, a.key, 0, lie)
    assert 2.0 <= seen.runtime_s < 2.1 and seen.cpu_s == pytest.approx(2 * seen.runtime_s)
    assert seen.started_wall == pytest.approx(4998.0, abs=0.1), "the node did not tell"
    told = replace(OK, started_wall=4999.0)
    assert core.as_seen(102.0, 5000.0, job, a.key, 0, told) is told
    late = core.as_seen(102.0, 5000.0, job, b.key, 0, lie)
    assert 4000.0 <= late.runtime_s < 4100.0 + JOB_SKEW_S_MAX, "of a lease that is forgotten: since the job was made"


def test_steal_between_workers_moves_the_lease() -> None:
    core, a, b = make(1), thief("a"), thief("b")
    grant = take(core, a)
    held = [(0, 0, grant.tasks[0].attempt)]
    assert core.heartbeat(0.0, b.key, b.boot, JOB, held, moved_from=a.key) == []
    assert core.jobs[JOB].leases[0].thief == b.key
    assert core.heartbeat(0.0, a.key, a.boot, JOB, held) == [0]


def test_slots_max_bounds_the_leases() -> None:
    core, a, b = make(10, slots_max=3), thief("a", slots=8), thief("b", slots=8)
    assert len(take(core, a).tasks) == 3
    assert core.choose(0.0, b) is None


def test_other_python_minor_gets_nothing() -> None:
    core = make(2, python=(3, 12))
    assert core.choose(0.0, thief("a")) is None


def test_local_only_stays_here() -> None:
    core = make(2, local_only=True)
    assert core.choose(0.0, thief("a")) is None
    assert core.choose(0.0, thief("local")) is not None


def test_a_job_of_another_group_stays_here() -> None:
    """Its owner has left that group with work undone: the members of the next one are not to see it."""
    core = make(2, group=b"g" * 32)
    core.group = b"h" * 32
    assert core.choose(0.0, thief("a")) is None and core.choose(0.0, thief("local")) is not None
    core.group = b"g" * 32
    assert core.choose(0.0, thief("a")) is not None


def test_soft_cancel_lets_running_tasks_finish() -> None:
    core, a = make(4), thief("a")
    grant = take(core, a)
    core.cancel(JOB, None, kill=False)
    assert core.jobs[JOB].ledger.counts[TaskState.CANCELLED] == 2
    report(core, a, grant, 0, OK)
    core.returned(0.0, a.key, JOB, [grant.tasks[1].index])
    ledger = core.jobs[JOB].ledger
    assert ledger.is_complete and ledger.counts[TaskState.DONE] == 1 and ledger.counts[TaskState.CANCELLED] == 3


def test_failed_attempt_of_a_cancelled_job_is_not_retried() -> None:
    core, a = make(1), thief("a")
    grant = take(core, a)
    core.cancel(JOB, [0], kill=False)
    report(core, a, grant, 0, FAILED)
    assert core.jobs[JOB].ledger.state(0) is TaskState.CANCELLED


@pytest.mark.parametrize(
    ("halt", "outcomes", "expected"),
    [
        ("soon,fail=1", [FAILED], True),
        ("soon,fail=2", [FAILED], False),
        ("now,success=1", [OK], True),
        ("soon,done=50%", [OK, OK], True),
        ("soon,done=75%", [OK, OK], False),
    ],
)
def test_halt(halt: str, outcomes: list[Outcome], expected: bool) -> None:
    core, a = make(4, retries=0, halt=halt), thief("a", slots=4)
    grant = take(core, a)
    for position, outcome in enumerate(outcomes):
        report(core, a, grant, position, outcome)
    assert bool(core.jobs[JOB].halted) is expected


def test_retry_starts_a_new_generation() -> None:
    core, a = make(1, retries=0), thief("a")
    first = take(core, a)
    report(core, a, first, 0, FAILED)
    assert core.retry(JOB, [0], {0: b"p"}) == 1
    assert not report(core, a, first, 0, OK), "a result of the old generation"
    again = take(core, a)
    assert again.tasks[0].generation == 1
    assert report(core, a, again, 0, OK)


def test_jobs_take_turns() -> None:
    core = make(10)
    other = JobEnvelope(b"k" * 32, JobTerms(), b"", b"", b"", b"")
    core.add_job(other)
    core.add_tasks(other.job_id, [b""] * 10)
    granted = [take(core, thief("a")).job_id for _ in range(4)]
    assert granted.count(JOB) == 2


def test_parking_serves_in_turn_and_forgets() -> None:
    parking = Parking()
    assert parking.park(0.0, thief("a")) and parking.park(1.0, thief("b")) and parking.park(2.0, thief("a"))
    assert [one.installation for one in parking.waiting(2.0)] == [b"a", b"b"]
    assert [one.installation for one in parking.waiting(PARK_S + 1.5)] == [b"a"]


def test_worker_asks_for_a_second_of_work_and_no_more_than_free_slots_of_long_tasks() -> None:
    core, worker = make(1000), WorkerCore(2)
    assert worker.want() == 2
    grant = take(core, thief("a"))
    worker.take(grant, b"o" * 32, is_staged=True)
    batches = worker.next_batches()
    assert [len(batch.held) for batch in batches] == [1, 1]
    assert worker.want() == 2, "the slots run, nothing is queued: have the next ones ready"
    worker.ended(batches[0].held[0].run_id, 5.0)
    assert worker.want() == 1, "tasks of 5 s: one for the free slot, none in advance"


def test_worker_says_when_a_slot_is_free() -> None:
    """People read that a busy node has room at once, or never."""
    core, worker = make(1000), WorkerCore(2)

    def unknown(_job_id: bytes) -> float | None:
        return None

    assert worker.outlook(0.0, unknown) == (None, 0.0)
    worker.take(take(core, thief("a")), b"o" * 32, is_staged=True)
    first, _second = worker.next_batches(100.0)
    assert worker.outlook(101.0, unknown) == (None, None), "nothing of this job has ended"
    assert worker.outlook(101.0, lambda _job_id: 5.0) == (4.0, 4.0)
    worker.ended(first.held[0].run_id, 10.0)
    assert worker.outlook(104.0, unknown) == (6.0, 0.0)
    worker.take(take(core, thief("a")), b"o" * 32, is_staged=True)
    worker.next_batches(105.0)
    assert worker.queued_count == 1
    assert worker.outlook(106.0, unknown) == (4.0, (4.0 + 9.0 + 10.0) / 2), "what waits there comes first"
    assert worker.outlook(200.0, unknown) == (0.0, 5.0), "late: about now"
    worker.check_invariants()


def test_worker_does_not_hoard_a_job_of_which_none_has_ended() -> None:
    """Tiny tasks of an earlier job must not make it take tasks of a new one by the hundred."""
    worker = WorkerCore(2)
    earlier = make(1000)
    worker.take(take(earlier, thief("a")), b"o" * 32, is_staged=True)
    for batch in worker.next_batches():
        for held in batch.held:
            worker.ended(held.run_id, 0.005)
    assert worker.want() > 100, "as far as is known its next tasks are tiny"
    unknown = [GrantedTask(index, 0, 1, b"") for index in range(10)]
    worker.take(Grant(9, 0, b"k" * 32, b"n" * 32, b"o" * 32, 30.0, tuple(unknown[:2])), b"o" * 32, is_staged=True)
    assert worker.want() == 0, "a task per slot of the new job, until one has ended"


def test_worker_gives_only_what_it_has_not_started() -> None:
    core, worker = make(10), WorkerCore(1)
    grant = take(core, thief("a", slots=8))
    worker.take(grant, b"o" * 32, is_staged=True)
    assert worker.give(8, lambda _held: True) == [], "its slot is free: it starts them itself"
    (batch,) = worker.next_batches()
    given = worker.give(8, lambda _held: True)
    assert len(given) == 3 and batch.held[0] not in given
    worker.check_invariants()
    worker.put_back(given[0])
    worker.check_invariants()


class Mesh(RuleBasedStateMachine):
    """An owner and three workers under losses of messages, nodes and leases: nothing is lost, nothing ends twice."""

    @initialize(count=st.integers(1, 30))
    def begin(self, count: int) -> None:
        self.now = 0.0
        self.count = count
        self.core = make(count, retries=1000)
        self.workers = [WorkerCore(2) for _ in range(3)]
        self.life = [0, 0, 0]
        self.ended: dict[int, int] = {}

    def who(self, number: int) -> Thief:
        return thief(f"w{number}", slots=2, want=max(1, self.workers[number].want()), boot=bytes([self.life[number]]))

    def collect(self) -> None:
        for end in self.core.take_effects().ends:
            assert end.index not in self.ended, "a task ended twice"
            self.ended[end.index] = end.seq

    @rule(number=st.integers(0, 2), is_delivered=st.booleans())
    def steal(self, number: int, is_delivered: bool) -> None:
        if self.workers[number].want() == 0:
            return
        grant = self.core.choose(self.now, self.who(number))
        if grant is not None and is_delivered:
            self.core.acknowledged(self.now, grant.thief, grant.grant_id, True)
            self.workers[number].take(grant, b"o" * 32, is_staged=True)

    @rule(number=st.integers(0, 2))
    def start(self, number: int) -> None:
        self.workers[number].next_batches()

    @rule(number=st.integers(0, 2), status=st.sampled_from([OK, OK, OK, LONG, FAILED]), is_delivered=st.booleans())
    def finish(self, number: int, status: Outcome, is_delivered: bool) -> None:
        worker = self.workers[number]
        running = [held for held in worker.held.values() if held.slot >= 0]
        if not running:
            return
        held = worker.ended(running[0].run_id, status.runtime_s)
        assert held is not None
        if is_delivered:
            who, task = self.who(number), held.task
            self.core.result(
                self.now, who.key, who.installation, JOB, task.index, task.generation, task.attempt, status, b""
            )
        self.collect()

    @rule(number=st.integers(0, 2))
    def recall(self, number: int) -> None:
        self.workers[number].recalled(self.workers[number].waiting_long(RECALL_S))

    @rule(number=st.integers(0, 2))
    def heartbeat(self, number: int) -> None:
        who = self.who(number)
        for job_id, held in self.workers[number].held_of(b"o" * 32).items():
            drop = self.core.heartbeat(self.now, who.key, who.boot, job_id, held)
            self.workers[number].drop(job_id, drop, owner=b"o" * 32, kill=False)
        self.core.take_effects()

    @rule(thief_number=st.integers(0, 2), victim=st.integers(0, 2))
    def steal_between(self, thief_number: int, victim: int) -> None:
        if thief_number == victim:
            return
        given = self.workers[victim].give(4, lambda _held: True)
        if given:
            tasks = tuple(held.task for held in given)
            grant = Grant(1 << 62, 0, b"", JOB, b"o" * 32, 30.0, tasks)
            taken = self.workers[thief_number].take(grant, b"o" * 32, is_staged=True)
            who = self.who(thief_number)
            entries = [(held.task.index, held.task.generation, held.task.attempt) for held in taken]
            moved_from = self.who(victim).key
            drop = self.core.heartbeat(self.now, who.key, who.boot, JOB, entries, moved_from=moved_from)
            self.workers[thief_number].drop(JOB, drop, owner=b"o" * 32, kill=False)
            self.core.take_effects()

    @rule(number=st.integers(0, 2))
    def crash(self, number: int) -> None:
        self.workers[number] = WorkerCore(2)
        self.life[number] += 1
        who = self.who(number)
        self.core.peer_lost(self.now, who.key, boot=who.boot)

    @rule(seconds=st.sampled_from([0.1, 1.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def books_agree(self) -> None:
        self.core.check_invariants()
        for worker in self.workers:
            worker.check_invariants()

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        survivor = WorkerCore(2)
        for _ in range(400):
            self.now += 31.0
            self.core.tick(self.now)
            who = thief("survivor", slots=2, want=512)
            while (grant := self.core.choose(self.now, who)) is not None:
                self.core.acknowledged(self.now, who.key, grant.grant_id, True)
                survivor.take(grant, b"o" * 32, is_staged=True)
                for batch in survivor.next_batches():
                    for held in batch.held:
                        survivor.ended(held.run_id, 0.01)
                        task = held.task
                        self.core.result(
                            self.now, who.key, b"s", JOB, task.index, task.generation, task.attempt, OK, b""
                        )
                survivor = WorkerCore(2)
            self.collect()
            if self.core.jobs[JOB].ledger.is_complete:
                break
        assert sorted(self.ended) == list(range(self.count)), "every task ends exactly once"


TestMesh = Mesh.TestCase
TestMesh.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_large_task_waits_for_its_slots_and_nothing_passes_it() -> None:
    """Small tasks starve large ones, or slots are lost when a large one ends."""
    core, worker = make(20), WorkerCore(4, slots_of=lambda _job: sizes[0])
    sizes = [1]
    grant = core.choose(0.0, thief("a", slots=4, want=20))
    assert grant is not None
    worker.take(grant, b"owner", is_staged=True)
    first = worker.next_batches()
    assert [batch.slot for batch in first] == [0, 1, 2, 3]
    worker.ended(first[0].held[0].run_id, 1.0)
    again = core.choose(0.0, thief("a", slots=4, want=20))
    assert again is not None
    worker.take(again, b"owner", is_staged=True)
    sizes[0] = 3
    assert worker.next_batches() == [] and worker.can_give(0.0)
    worker.check_invariants()
    for batch in first[1:3]:
        worker.ended(batch.held[0].run_id, 1.0)
    [large] = worker.next_batches()
    assert worker.free_slots == 0
    worker.check_invariants()
    worker.ended(large.held[0].run_id, 1.0)
    assert worker.free_slots == 3
    worker.check_invariants()
    sizes[0] = 99
    worker.ended(first[3].held[0].run_id, 1.0)
    assert len(worker.next_batches()) == 1 and worker.free_slots == 0, "never more than there are"
    worker.check_invariants()


def held_worker(count: int, *, slots: int = 1) -> WorkerCore:
    """A worker that knows its tasks as tiny, with one batch under way in each slot."""
    worker = WorkerCore(slots)
    tasks = [GrantedTask(index, 0, 1, b"") for index in range(count)]
    worker.take(Grant(1, 0, b"k" * 32, JOB, b"o" * 32, 30.0, tuple(tasks)), b"o" * 32, is_staged=True)
    for batch in worker.next_batches(0.0):
        worker.ended(batch.held[0].run_id, 0.001)
    worker.next_batches(0.0)
    return worker


def test_what_waits_behind_a_slow_task_is_taken_back_and_may_go_elsewhere() -> None:
    """Tiny tasks handed over in one batch wait for a task among them that takes an hour."""
    worker = held_worker(80)
    assert worker.has_batches and worker.waiting_long(RECALL_S / 2) == []
    waiting = worker.waiting_long(RECALL_S)
    running = [held for held in worker.held.values() if held.slot == 0]
    assert waiting == [held.run_id for held in running[1:]]
    worker.drop(JOB, [worker.held[waiting[3]].task.index], owner=b"o" * 32, kill=True)
    worker.recalled(waiting)
    worker.check_invariants()
    assert not worker.has_batches and worker.queued_count == 77, "80 but one that ended, one that runs, one dropped"
    worker.ended(running[0].run_id, 1.0)
    (batch,) = worker.next_batches(1.0)
    assert batch.held[0] is running[1], "in their former order"
    worker.check_invariants()


def test_the_last_task_behind_a_slow_one_is_given_away_too() -> None:
    """Half of one task is none: it waits for an hour beside idle nodes."""
    worker = WorkerCore(1)
    tasks = tuple(GrantedTask(index, 0, 1, b"") for index in range(2))
    worker.take(Grant(1, 0, b"k" * 32, JOB, b"o" * 32, 30.0, tasks), b"o" * 32, is_staged=True)
    worker.next_batches(0.0)
    assert not worker.can_give(0.5) and worker.give(8, lambda _held: True, 0.5) == []
    (given,) = worker.give(8, lambda _held: True, BATCH_TARGET_S)
    assert given.task.index == 1
    worker.check_invariants()
