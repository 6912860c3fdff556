"""Whose turn it is.  If these fail, one job or submitter keeps others waiting, or a deadline is ignored."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import PRIORITY_MAX
from p2pcompute.scheduler.books import OwnedJob
from p2pcompute.scheduler.fairness import SUBMITTERS_KEPT_MAX, USAGE_TAU_S, FairOrder, Standing, Usage
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.owner import DEADLINE, OwnerCore
from p2pcompute.scheduler.stealing import Thief, holders_first
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms, open_job, seal_job
from tests.preferring import Preferring

CRYPTO = RealCrypto()
SUBMITTER = b"s" * 32


def serve(order: FairOrder, costs: dict[bytes, float], rounds: int, *, guess_s: float = 1.0) -> dict[bytes, float]:
    """Serve jobs that always have work, one after the other; returns the time that each has had."""
    had = dict.fromkeys(costs, 0.0)
    for _ in range(rounds):
        job = order.in_order(lambda job_id: job_id in costs)[0]
        order.charge(job, guess_s)
        order.charge(job, -guess_s)
        order.charge(job, costs[job])
        had[job] += costs[job]
    return had


@given(st.lists(st.floats(0.01, 50.0), min_size=2, max_size=8), st.integers(0, 1000))
def test_jobs_differ_by_one_task_of_each_at_most(costs: list[float], _seed: int) -> None:
    order = FairOrder()
    jobs = {bytes([number]): cost for number, cost in enumerate(costs)}
    for job in jobs:
        order.add(job, Standing(SUBMITTER))
    had = serve(order, jobs, 400)
    assert max(had.values()) - min(had.values()) <= 2 * max(costs)


def test_submitters_have_equal_shares_however_many_jobs_they_have() -> None:
    order = FairOrder()
    order.add(b"alone", Standing(b"a"))
    for number in range(9):
        order.add(bytes([number]), Standing(b"b"))
    had = serve(order, dict.fromkeys(order, 1.0), 1000)
    assert had[b"alone"] == 500
    assert {had[bytes([number])] for number in range(9)} <= {55.0, 56.0}


def test_shares_follow_weights() -> None:
    order = FairOrder(lambda submitter: 3.0 if submitter == b"a" else 1.0)
    order.add(b"1", Standing(b"a"))
    order.add(b"2", Standing(b"b"))
    assert serve(order, {b"1": 1.0, b"2": 1.0}, 1000) == {b"1": 750.0, b"2": 250.0}


def test_who_has_asked_for_nothing_begins_beside_the_others() -> None:
    order = FairOrder()
    order.add(b"1", Standing(b"a"))
    order.add(b"2", Standing(b"b"))
    serve(order, {b"1": 1.0}, 1000)
    had = serve(order, {b"1": 1.0, b"2": 1.0}, 100)
    assert abs(had[b"1"] - had[b"2"]) <= 2, "nothing was saved up"


def test_priority_and_deadline_count_within_a_submitter_only() -> None:
    order = FairOrder()
    order.add(b"late", Standing(b"a", 0, 200.0))
    order.add(b"none", Standing(b"a", 0))
    order.add(b"soon", Standing(b"a", 0, 100.0))
    order.add(b"high", Standing(b"a", 5))
    order.add(b"other", Standing(b"b", 0))
    assert [job for job in order.in_order(lambda _job: True) if job != b"other"] == [b"high", b"soon", b"late", b"none"]
    had = serve(order, dict.fromkeys(order, 1.0), 100)
    assert had[b"other"] == 50 and had[b"high"] == 50


def test_the_machines_own_work_comes_first() -> None:
    order = FairOrder()
    order.add(b"other", Standing(b"b", 1000))
    order.add(b"own", Standing(b"a", -1000))
    serve(order, {b"own": 100.0}, 10)
    assert order.in_order(lambda _job: True, first=b"a") == [b"own", b"other"]


def test_submitters_without_jobs_are_forgotten() -> None:
    order = FairOrder()
    for number in range(2 * SUBMITTERS_KEPT_MAX):
        job = number.to_bytes(4)
        order.add(job, Standing(job))
        order.in_order(lambda _job: True)
        order.charge(job, 1.0)
        order.discard(job)
    assert len(order._submitters) <= SUBMITTERS_KEPT_MAX and not len(order)


def test_what_a_submitter_has_had_outlives_its_jobs() -> None:
    """Nodes run one task at a time: nothing waits in between, and yet submitters take turns."""
    order, had = FairOrder(), {b"a": 0, b"b": 0, b"c": 0}
    for _ in range(300):
        least = min(had, key=order.had_s)
        order.add(b"job of " + least, Standing(least))
        assert order.in_order(lambda _job: True)
        order.charge(b"job of " + least, 1.0)
        order.discard(b"job of " + least)
        had[least] += 1
    assert set(had.values()) == {100}


def test_usage_fades() -> None:
    usage = Usage()
    usage.add(0.0, 10.0)
    assert usage.at(0.0) == 10.0 and 3.6 < usage.at(USAGE_TAU_S) < 3.7


# --- at the owner ---------------------------------------------------------------------------------


def thief(name: str, *, slots: int = 1) -> Thief:
    return Thief(name.encode().ljust(32, b"."), name.encode(), b"1", (3, 11), slots, 100)


def add(core: OwnerCore, name: str, count: int, **terms: Any) -> bytes:
    job_id = name.encode().ljust(32, b"-")
    core.add_job(JobEnvelope(job_id, JobTerms(**terms), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(job_id, [b"x"] * count)
    core.seal(job_id)
    return job_id


def test_a_hundred_jobs_of_different_tasks_have_the_same_time_within_a_tenth() -> None:
    """Tasks of 50 ms to 1 s on 20 nodes, some ten times slower than others."""
    rng = random.Random(7)
    core, now = OwnerCore(), 0.0
    task_s = {add(core, f"j{number}", 12_000): 0.05 * 20 ** rng.random() for number in range(100)}
    nodes = [thief(f"n{number}", slots=rng.choice((1, 2, 4))) for number in range(20)]
    speed = {node.key: 10 ** rng.random() / 3 for node in nodes}
    free = dict.fromkeys(speed, 0.0)
    had = dict.fromkeys(task_s, 0.0)
    while now < 400.0:
        node = min(nodes, key=lambda one: free[one.key])
        now = free[node.key]
        grant = core.choose(now, node)
        assert grant is not None
        core.acknowledged(now, node.key, grant.grant_id, True)
        runtime_s = task_s[grant.job_id] / speed[node.key]
        good = Outcome(OutcomeStatus.OK, runtime_s=runtime_s)
        for task in grant.tasks:
            core.result(now, node.key, b"", grant.job_id, task.index, 0, task.attempt, good, b"d" * 32)
        had[grant.job_id] += runtime_s * len(grant.tasks)
        free[node.key] = now + runtime_s * len(grant.tasks) / node.slots
    assert all(job.ready_count > 0 for job in core.jobs.values()), "all of them still want more"
    mean_s = sum(had.values()) / len(had)
    assert max(abs(one - mean_s) for one in had.values()) <= 0.1 * mean_s


def test_jobs_are_not_charged_for_what_was_lost_with_a_node() -> None:
    core, node = OwnerCore(), thief("n")
    one = add(core, "one", 1000)
    two = add(core, "two", 1000)
    for _ in range(50):
        grant = core.choose(0.0, node)
        assert grant is not None and grant.job_id == one, "the first keeps its place"
        core.peer_lost(0.0, node.key)
    assert core.order.in_order(lambda _job: True) == [one, two]


def test_a_job_that_prefers_nodes_does_not_pass_others() -> None:
    """Jobs that prefer some nodes are looked at before the rest: without the order they would always win."""
    core = OwnerCore(lambda job: Preferring() if job.terms.prefer else None)
    add(core, "plain", 1000)
    add(core, "choosy", 1000, prefer=("cpus",))
    node, had = thief("n"), {b"p": 0, b"c": 0}
    for _ in range(100):
        grant = next(core.choose_preferred(0.0, [node], []), None) or core.choose(0.0, node)
        assert grant is not None
        core.acknowledged(0.0, node.key, grant.grant_id, True)
        good = Outcome(OutcomeStatus.OK, runtime_s=1.0)
        for task in grant.tasks:
            core.result(0.0, node.key, b"", grant.job_id, task.index, 0, task.attempt, good, b"d" * 32)
        had[grant.job_id[:1]] += len(grant.tasks)
    assert had == {b"p": 50, b"c": 50}


# --- deadlines ------------------------------------------------------------------------------------


def test_a_job_is_given_up_at_its_deadline() -> None:
    core, node = OwnerCore(), thief("n")
    job_id = add(core, "j", 3, deadline_ms=1_000_000)
    grant = core.choose(0.0, node)
    assert grant is not None and core.is_busy
    core.acknowledged(0.0, node.key, grant.grant_id, True)
    core.tick(1.0, wall_ms=999_999)
    assert not core.jobs[job_id].halted
    core.tick(2.0, wall_ms=1_000_000)
    effects = core.take_effects()
    assert core.jobs[job_id].halted == DEADLINE and effects.completed == [job_id]
    assert effects.stops == [(node.key, job_id, [grant.tasks[0].index], True)]
    assert core.jobs[job_id].ledger.counts[TaskState.CANCELLED] == 3
    core.retry(job_id, [0], {0: b"x"})
    core.tick(3.0, wall_ms=2_000_000)
    assert core.choose(3.0, node) is not None, "who starts it again wants it to run"


def test_a_custodian_gives_nothing_out_after_the_deadline() -> None:
    job = OwnedJob(JobEnvelope(b"j" * 32, JobTerms(deadline_ms=1000), b"", SUBMITTER, SUBMITTER, b"raw"))
    job.is_own = False
    job.ledger.fold(FactKind.TASKS, [0, [b"x"] * 3])
    core, node = OwnerCore(), thief("n")
    core.adopt(0.0, job, dict.fromkeys(range(3), b"x"), [], 0.0, begin_at=2)
    core.tick(1.0, wall_ms=1000)
    assert core.choose(1.0, node) is None and job.ledger.counts[TaskState.OPEN] == 3


@pytest.mark.parametrize("terms", [JobTerms(priority=-5), JobTerms(priority=1000, deadline_ms=7 * 10**12)])
def test_priority_and_deadline_survive_the_envelope(terms: JobTerms) -> None:
    identity = create_identity(CRYPTO)
    raw = seal_job(identity, terms, b"", b"n" * 16)
    assert open_job(CRYPTO, raw, wall=0.0).terms == terms


def test_a_priority_beyond_the_limits_is_refused() -> None:
    identity = create_identity(CRYPTO)
    for priority in (PRIORITY_MAX + 1, -PRIORITY_MAX - 1):
        with pytest.raises(RemoteProtocolError):
            open_job(CRYPTO, seal_job(identity, JobTerms(priority=priority), b"", b"n" * 16), wall=0.0)


def test_work_goes_where_its_files_are_when_there_is_less_of_it_than_thieves() -> None:
    waiting = [thief(name) for name in "abcd"]
    mine, other = {b"with files": None}, {b"other": None}
    held = {waiting[1].key: mine, waiting[2].key: other, waiting[3].key: mine}
    ordered = holders_first(waiting, [b"with files"], held)
    assert [one.installation for one in ordered] == [b"b", b"d", b"a", b"c"], "in turn among equals"
