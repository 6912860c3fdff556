"""Books of owner and worker when leases are lost, adopted and started again: if these fail, tasks hang or run twice."""

from __future__ import annotations

from p2pcompute.limits import LEASE_S_MIN
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.worker import WorkerCore
from tests.scheduler.test_owner_and_worker import FAILED, JOB, OK, envelope, make, report, take, thief

OWNER = b"o" * 32


def held_by(worker: WorkerCore) -> list[tuple[int, int, int]]:
    return worker.held_of(OWNER).get(JOB, [])


def test_a_lease_that_was_adopted_and_lost_is_granted_once() -> None:
    """Adopting a lease leaves the task's entry in the queue; losing it then adds a second one."""
    core, a, b = make(2), thief("a", slots=4), thief("b", slots=4)
    core.heartbeat(0.0, a.key, a.boot, JOB, [(0, 0, 1)])
    core.peer_lost(1.0, a.key)
    grant = take(core, b, 2.0)
    assert [task.index for task in grant.tasks] == [0, 1]
    core.check_invariants()
    assert core.jobs[JOB].by_thief[b.key][0] == 2


def test_a_heartbeat_about_a_former_generation_does_not_stop_the_present_one() -> None:
    """A stop names no generation: it would end the attempt that was granted while the heartbeat was under way."""
    core, a = make(1, retries=0), thief("a")
    report(core, a, take(core, a), 0, FAILED)
    core.retry(JOB, [0], {0: b"p"})
    take(core, a)
    core.take_effects()
    assert core.heartbeat(0.0, a.key, a.boot, JOB, [(0, 0, 1)]) == []
    assert core.take_effects().stops == []
    assert core.heartbeat(0.0, b"x" * 32, b"1", JOB, [(0, 0, 1)]) == []
    assert core.take_effects().stops == [(b"x" * 32, JOB, [0], True)]


def test_a_retry_that_finds_nothing_to_do_leaves_the_job_cancelled() -> None:
    core, a = make(2), thief("a", slots=2)
    grant = take(core, a)
    core.cancel(JOB, None, kill=False)
    assert core.retry(JOB, [0, 1], {}) == 0, "both still run"
    core.peer_lost(1.0, a.key)
    assert core.jobs[JOB].ledger.state(grant.tasks[0].index) is TaskState.CANCELLED


def test_a_task_can_be_retried_as_often_as_the_ledger_counts() -> None:
    core, a = make(1, retries=0), thief("a")
    for _ in range(300):
        grant = core.choose(0.0, a)
        if grant is None:
            break
        core.acknowledged(0.0, a.key, grant.grant_id, True)
        report(core, a, grant, 0, OK)
        core.retry(JOB, [0], {0: b"p"})
    assert core.jobs[JOB].ledger.is_complete
    core.check_invariants()


def test_a_killed_task_that_is_granted_anew_runs_again() -> None:
    """The runner needs time to kill: when the task comes back meanwhile, skipping it would leave a lease that nobody
    works on; one of the node's own would never end."""
    worker = WorkerCore(2)
    worker.take(Grant(1, 0, b"", JOB, OWNER, 30.0, (GrantedTask(0, 0, 1, b"p"),)), OWNER, is_staged=True)
    (first,) = worker.next_batches()[0].held
    assert worker.drop(JOB, [0], owner=OWNER, kill=True) == ([], [first.run_id])
    assert held_by(worker) == []
    again = Grant(2, 0, b"", JOB, OWNER, 30.0, (GrantedTask(0, 1, 1, b"p"),))
    assert worker.outdated(again) == []
    assert len(worker.take(again, OWNER, is_staged=True)) == 1
    worker.check_invariants()
    (second,) = worker.next_batches()[0].held
    assert worker.ended(first.run_id, None) is first
    worker.check_invariants()
    assert held_by(worker) == [(0, 1, 1)]
    assert worker.ended(second.run_id, 0.1) is second
    worker.check_invariants()


def test_a_grant_of_a_later_generation_names_what_it_replaces() -> None:
    worker = WorkerCore(1)
    worker.take(Grant(1, 0, b"", JOB, OWNER, 30.0, (GrantedTask(0, 0, 1, b"p"),)), OWNER, is_staged=True)
    again = Grant(2, 0, b"", JOB, OWNER, 30.0, (GrantedTask(0, 1, 1, b"p"),))
    assert worker.outdated(again) == [0]
    worker.drop(JOB, [0], owner=OWNER, kill=True)
    worker.take(again, OWNER, is_staged=True)
    assert held_by(worker) == [(0, 1, 1)]


def test_a_task_granted_anew_to_its_holder_counts_for_the_later_attempt() -> None:
    """Its lease ran out and came back: a failure must count, or the task waits until the lease runs out again."""
    core, a, worker = make(1, retries=0), thief("a"), WorkerCore(1)
    worker.take(take(core, a), OWNER, is_staged=True)
    (held,) = worker.next_batches()[0].held
    core.tick(LEASE_S_MIN)
    again = take(core, a, LEASE_S_MIN)
    assert worker.take(again, OWNER, is_staged=True) == []
    assert worker.ended(held.run_id, 0.1) is held
    task = held.task
    assert core.result(40.0, a.key, a.installation, JOB, 0, task.generation, task.attempt, FAILED, b"")
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED


def test_what_was_granted_of_tasks_that_a_crash_took_away_is_not_taken_for_their_successors() -> None:
    """Tasks may start before they are durable.  After a crash other tasks may get their indices."""
    a = thief("a", slots=4)
    core = OwnerCore()
    job = core.recover(envelope(), [(FactKind.TASKS, [0, [b"kept"]])])
    core.add_tasks(JOB, [b"other"])
    assert (job.ledger.generation(0), job.ledger.generation(1)) == (0, 1)
    assert core.heartbeat(0.0, a.key, a.boot, JOB, [(0, 0, 1), (1, 0, 1)]) == []
    assert core.take_effects().stops == [(a.key, JOB, [1], True)]
    assert not core.result(0.0, a.key, a.installation, JOB, 1, 0, 1, OK, b"")
    again = OwnerCore().recover(envelope(), [(FactKind.TASKS, [0, [b"kept"]]), (FactKind.TASKS, [1, [b"other"], 1])])
    assert (again.ledger.generation(0), again.ledger.generation(1), again.generation) == (0, 1, 2)


def test_a_failure_that_is_told_again_counts_once_after_a_restart() -> None:
    """Its worker did not hear that it was taken before the owner crashed, and sends it along with others."""
    tasks = (FactKind.TASKS, [0, [b"p"] * 2])
    failed = (FactKind.CLAIMS, [[0, 0, 1, "failed", b"", b"t" * 32]])
    again = (FactKind.CLAIMS, [[0, 0, 1, "failed", b"", b"t" * 32], [1, 0, 1, "ok", b"", b"t" * 32]])
    void = (FactKind.VOID, [[0, 0, 1]])
    for facts, count in (((tasks, failed), 1), ((tasks, failed, again, void), 1), ((tasks, again, void), 0)):
        job = OwnerCore().recover(envelope(), facts)
        assert (job.failures.get(0, 0), job.retried) == (count, count)
