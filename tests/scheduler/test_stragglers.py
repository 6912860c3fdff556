"""Who is given a task that another node has.  If these fail, slow machines hold jobs up, or work is wasted."""

from __future__ import annotations

from msgspec.structs import replace

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import HEARTBEAT_FRACTION, LEASE_S_MIN
from p2pcompute.scheduler.ledger import TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.stragglers import (
    HEARTBEATS_MISSED,
    HOLDERS_MAX,
    STRAGGLER_FACTOR,
    STRAGGLER_S_MIN,
    Run,
    Slowness,
    Straggler,
    straggler,
)
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB = b"j" * 32
SUBMITTER = b"s" * 32


def thief(name: str) -> Thief:
    return Thief(name.encode().ljust(32, b"."), name.encode(), b"1", (3, 11), 1, 1)


def judged(
    held_s: float, *, task_s: float = 20.0, slowness: float = 1.0, attempt: int = 1, depth: int = 1
) -> Straggler:
    return straggler(0, attempt, Run(held_s, slowness, depth), task_s)


def test_a_fast_node_takes_over_from_a_slow_one_and_not_the_other_way_round() -> None:
    one = judged(10.0, slowness=5.0)
    assert one.is_for(1.0) and not one.is_for(5.0) and not one.is_for(6.0)
    assert not judged(10.0).is_for(1.0)


def test_a_node_is_compared_with_whoever_is_done_first_of_all_that_have_a_task() -> None:
    """Else one that was free a moment too early keeps a task to itself that a faster one would end sooner."""
    slow, copy = Run(30.0, 5.0), Run(2.0, 2.0)
    one = straggler(0, 2, copy, 20.0, [slow])
    assert one.work_s == 6.0 + 20.0 and one.ends_in_s == (26.0 - 1.0) * 2.0
    assert one.is_for(0.5) and not one.is_for(2.0)
    assert not straggler(0, 2, copy, 20.0, [Run(30.0, 1.0)]).is_for(0.9), "the first is nearly done"
    crowd = [Run(30.0, 5.0)] * (HOLDERS_MAX - 1)
    assert straggler(0, 2, copy, 20.0, crowd[1:]).is_for(0.1)
    assert not straggler(0, 2, copy, 20.0, crowd).is_for(0.1)


def test_each_one_more_must_promise_more() -> None:
    """Else five slow nodes that were free a moment earlier keep a task to themselves while hundreds of fast ones idle:
    so the last task of a job on 1,000 nodes ended 24 s after the others."""
    holders = [Run(10.0, 4.0 - 0.2 * number) for number in range(4)]
    found = [straggler(0, 2, holders[0], 20.0, holders[1:count]) for count in (1, 2, 3, 4)]
    assert found[0].slowness_max * found[0].work_s == found[0].ends_in_s - STRAGGLER_S_MIN
    shares = [one.slowness_max * one.work_s / one.ends_in_s for one in found[1:]]
    assert [round(share, 6) for share in shares] == [0.8, 0.6, 0.4]


def test_a_node_that_is_not_heard_of_is_not_reckoned_with() -> None:
    """Else all wait for the lease of one that is gone, which was the fastest and should have been done long ago."""
    gone, slow = Run(30.0, 0.3, is_heard=False), Run(10.0, 4.0)
    assert straggler(0, 1, gone, 20.0).is_late
    one = straggler(0, 2, gone, 20.0, [slow])
    assert one.holders == 1 and one.ends_in_s == straggler(0, 2, slow, 20.0).ends_in_s
    assert one.is_for(1.0) and not straggler(0, 2, replaced(gone), 20.0, [slow]).is_for(1.0)


def replaced(run: Run) -> Run:
    return Run(run.held_s, run.slowness, run.depth)


def test_a_heartbeat_that_is_overdue_makes_room_for_another() -> None:
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b"x"] * 11)
    core.seal(JOB)
    for number in range(11):
        grant = core.choose(0.0, thief("b"))
        assert grant is not None
        core.acknowledged(0.0, b"b".ljust(32, b"."), grant.grant_id, True)
        if number < 10:
            good = Outcome(OutcomeStatus.OK, runtime_s=20.0)
            core.result(0.0, grant.thief, b"b", JOB, grant.tasks[0].index, 0, 1, good, b"d" * 32)
    beat_s = HEARTBEAT_FRACTION * LEASE_S_MIN
    core.heartbeat(beat_s, grant.thief, b"1", JOB, [(grant.tasks[0].index, 0, 1)], installation=b"b")
    for at_s in (beat_s, beat_s * (1 + 0.9 * HEARTBEATS_MISSED)):
        core.tick(at_s)
        assert core.copy(at_s, thief("idle")) is None
    core.tick(beat_s * (1 + HEARTBEATS_MISSED))
    assert core.copy(beat_s * (1 + HEARTBEATS_MISSED), thief("idle")) is not None
    core.check_invariants()


def test_what_has_run_for_long_is_not_begun_anew_unless_that_is_much_sooner() -> None:
    """It needs as long again: a node must be more than twice as fast to be there first."""
    one = judged(50.0)
    assert one.work_s == 100.0 and one.ends_in_s == 50.0 and not one.is_late
    assert one.is_for(0.4) and not one.is_for(0.5)


def test_short_tasks_are_not_worth_it() -> None:
    assert not judged(0.5, task_s=0.5, slowness=5.0).is_for(0.1)


def test_a_late_task_is_for_any_node() -> None:
    assert judged(60.0).is_for(50.0)
    assert not judged(60.0, attempt=2).is_late, "each copy has more time"
    assert not judged(STRAGGLER_S_MIN - 1, task_s=0.1).is_late
    assert STRAGGLER_FACTOR * 20.0 == 60.0


def test_what_waits_behind_others_is_given_to_who_is_idle() -> None:
    """Else what a node was given in one piece is done there, one after the other, while all others have nothing."""
    queued = judged(10.0, depth=6)
    assert queued.ends_in_s == 110.0 and queued.work_s == 20.0
    assert queued.is_for(1.0) and queued.is_for(5.0) and not queued.is_for(5.5), "it begins with nothing before it"
    assert judged(110.0, depth=6).ends_in_s == 20.0


def test_of_tasks_that_wait_in_one_place_the_last_is_given_to_who_is_idle() -> None:
    """Else it is given those that begin there at that moment, and both do them, one after the other."""
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b"x"] * 40)
    slow, idle = replace(thief("a"), slots=2, want=40), thief("b")
    grant = core.choose(0.0, slow)
    assert grant is not None
    core.acknowledged(0.0, slow.key, grant.grant_id, True)
    core.heartbeat(0.0, slow.key, b"1", JOB, [(index, 0, 1) for index in range(40)], installation=b"a")
    good = Outcome(OutcomeStatus.OK, runtime_s=1.0)
    core.result(1.0, slow.key, b"a", JOB, 0, 0, 1, good, b"d" * 32)
    core.tick(2.0)
    assert {lease.depth for lease in core.jobs[JOB].leases.values() if lease.is_found} == {20}, "two at a time"
    given = [core.copy(2.0, idle), core.copy(2.0, idle)]
    assert [grant.tasks[0].index for grant in given if grant is not None] == [39, 38]
    core.check_invariants()


def test_own_jobs_only() -> None:
    """A worker that has room for its own installation's work, and none for that of others."""
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b"x"])
    asking = replace(thief("a"), only_own=True)
    assert core.choose(0.0, asking) is None
    assert core.choose(0.0, replace(asking, installation=SUBMITTER)) is not None


def test_the_first_ends_of_a_job_do_not_tell_how_long_its_tasks_take() -> None:
    """They are the short ones: whoever asks next would get hundreds that take far longer."""
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b"x"] * 5000)
    wanting = [replace(thief(str(number)), want=500) for number in range(20)]
    held = []
    for who in wanting:
        grant = core.choose(0.0, who)
        assert grant is not None and len(grant.tasks) == 1
        core.acknowledged(0.0, who.key, grant.grant_id, True)
        held.append(grant.tasks[0])
    for count, (who, task) in enumerate(zip(wanting, held, strict=True), 1):
        good = Outcome(OutcomeStatus.OK, runtime_s=0.01 * count)
        core.result(0.01 * count, who.key, who.installation, JOB, task.index, 0, task.attempt, good, b"d" * 32)
        grant = core.choose(0.01 * count, who)
        assert grant is not None and (len(grant.tasks) > 1) == (count >= len(wanting) / 2)
        core.acknowledged(0.01 * count, who.key, grant.grant_id, True)
    core.check_invariants()


def test_slowness_is_learned_from_run_times() -> None:
    known = Slowness()
    assert known.of(b"a") == 1.0
    for _ in range(50):
        known.note(b"a", 30.0, 10.0)
    assert abs(known.of(b"a") - 3.0) < 0.01
    for runtime_s in (10.0, 30.0):
        known.note(b"b", runtime_s, 20.0)
    assert known.of(b"b") == 1.0, "the first says no more than the second"


def test_the_end_of_a_job_does_not_wait_for_its_slowest_node() -> None:
    """A node that is ten times slower has one of the last tasks; a fast one is idle and gets it too, at once."""
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b"x"] * 30)
    core.seal(JOB)
    fast, slow = thief("fast"), thief("slow")
    now, free = 0.0, {fast.key: 0.0, slow.key: 0.0}
    runs: list[tuple[float, Thief, int, int]] = []
    while not core.jobs[JOB].ledger.is_complete and now < 400.0:
        for run in [run for run in runs if run[0] <= now]:
            runs.remove(run)
            _ends, who, index, attempt = run
            took = 10.0 if who is fast else 100.0
            good = Outcome(OutcomeStatus.OK, runtime_s=took)
            core.result(now, who.key, who.installation, JOB, index, 0, attempt, good, b"d" * 32)
        core.tick(now)
        for who in (slow, fast):
            core.heartbeat(now, who.key, who.boot, JOB, [(run[2], 0, run[3]) for run in runs if run[1] is who])
            grant = None
            if free[who.key] <= now:
                grant = core.choose(now, who) or core.copy(now, who)
            if grant is not None:
                core.acknowledged(now, who.key, grant.grant_id, True)
                free[who.key] = now + (10.0 if who is fast else 100.0)
                runs.append((free[who.key], who, grant.tasks[0].index, grant.tasks[0].attempt))
        now += 1.0
    assert core.jobs[JOB].ledger.counts[TaskState.DONE] == 30
    assert core.copies_count == 1 and now <= 30 * 10 * 10 / 11 + 21
    core.check_invariants()
