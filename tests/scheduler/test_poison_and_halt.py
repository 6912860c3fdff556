"""The end of tasks that kill whatever runs them, and of jobs that are halted while their owner is away.

If these fail, a job with such a task never ends, or goes on long after it should have stopped.
"""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import ATTEMPTS_MAX, GRANT_ACK_S, POISON_NODES
from p2pcompute.scheduler.books import Grant, OwnedJob
from p2pcompute.scheduler.ledger import FactKind, TaskState
from p2pcompute.scheduler.owner import WITH_NODE, OwnerCore
from p2pcompute.scheduler.owner.results import NODE_DEATHS_MAX
from p2pcompute.scheduler.owner.rule import AVOID_S
from p2pcompute.scheduler.stealing import LOCAL, Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB = b"j" * 32
OK = Outcome(OutcomeStatus.OK, runtime_s=0.01)
FAILED = Outcome(OutcomeStatus.FAILED, exit_code=1, error="boom", runtime_s=0.01)
DIED = Outcome(OutcomeStatus.DIED, signal=11, cause="signal")
NODE_DIED = Outcome(OutcomeStatus.DIED, cause=WITH_NODE)


class OnlyOn:
    """A `Fit` of jobs that run on some nodes only (`--on`)."""

    has_preference = False

    def __init__(self, *names: str) -> None:
        self.keys = [key_of(name) for name in names]

    def may_have(self, key: bytes, _installation: bytes) -> bool:
        return key in self.keys

    def is_candidate(self, key: bytes) -> bool | None:
        return key in self.keys

    def look_further(self) -> None: ...

    def rank(self, _key: bytes) -> float | None:
        return None

    def slots(self, _key: bytes, _slot_count: int) -> int:
        return 1

    def known_here(self) -> bool | None:
        return True

    async def fits_here(self) -> bool:
        return True


def key_of(name: str) -> bytes:
    return LOCAL if name == "local" else name.encode().ljust(32, b".")


def thief(name: str, *, slots: int = 1) -> Thief:
    return Thief(key_of(name), name.encode(), b"1", (3, 11), slots, 100)


def envelope(**terms: Any) -> JobEnvelope:
    return JobEnvelope(JOB, JobTerms(**terms), b"", b"s" * 32, b"s" * 32, b"raw")


def make(*names: str, on: tuple[str, ...] = (), **terms: Any) -> OwnerCore:
    """A job of one task, and the nodes that ask for work."""
    core = OwnerCore(lambda _job: OnlyOn(*on) if on else None)
    core.add_job(envelope(**terms))
    core.add_tasks(JOB, [b"x"])
    core.seal(JOB)
    for name in names:
        core.remember(0.0, thief(name))
    return core


def kill_until_over(core: OwnerCore, names: tuple[str, ...], outcome: Outcome, *, asks_s: float = 1.0) -> int:
    """All nodes ask again and again, and the task kills each that runs it; returns how often it ran."""
    now, runs = 0.0, 0
    for _ in range(40 * ATTEMPTS_MAX):
        now += asks_s
        for name in names:
            grant = core.choose(now, thief(name))
            if grant is None:
                continue
            core.acknowledged(now, thief(name).key, grant.grant_id, True)
            runs += 1
            if outcome is NODE_DIED:
                core.peer_lost(now, thief(name).key)
            task = grant.tasks[0]
            who = thief(name)
            core.result(now, who.key, who.installation, JOB, task.index, 0, task.attempt, outcome, b"d" * 32)
        if core.jobs[JOB].ledger.is_complete:
            break
    return runs


@pytest.mark.parametrize("outcome", [DIED, NODE_DIED], ids=["process", "node"])
@pytest.mark.parametrize(
    ("nodes", "on"),
    [
        (("a",), ()),
        (("a", "b"), ()),
        (("a", "b", "c", "d"), ()),
        (("a", "b", "c", "d"), ("a",)),
        (("local", "b", "c"), ("local",)),
        (("a", "b", "c", "d"), ("a", "b")),
    ],
)
def test_a_task_that_always_dies_fails_with_evidence(
    nodes: tuple[str, ...], on: tuple[str, ...], outcome: Outcome
) -> None:
    core = make(*nodes, on=on, retries=0)
    runs = kill_until_over(core, nodes, outcome)
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED
    assert runs <= 2 * (POISON_NODES if outcome is DIED else NODE_DEATHS_MAX)
    distinct = min(POISON_NODES, len(on or nodes))
    reason = core.jobs[JOB].ledger.reasons[0]
    assert f"on {distinct} node(s)" in reason and "died" in reason


def test_a_task_that_always_dies_is_given_up_although_another_node_is_busy_with_something_else() -> None:
    """Two of three nodes would start its process for ever, 40 times a second, while the third has no time for it."""
    core = make("a", "b", "busy", retries=0)
    for step in range(ATTEMPTS_MAX):
        core.remember(float(step), thief("busy"))
        name = "ab"[step % 2]
        grant = core.choose(float(step), thief(name))
        if grant is not None:
            core.acknowledged(float(step), key_of(name), grant.grant_id, True)
            core.result(float(step), key_of(name), name.encode(), JOB, 0, 0, grant.tasks[0].attempt, DIED, b"d" * 32)
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED
    assert f"died {NODE_DEATHS_MAX} times on 2 node(s)" in core.jobs[JOB].ledger.reasons[0]


def test_the_death_of_a_node_told_twice_counts_once() -> None:
    core, a = make("a"), thief("a")
    for attempt in range(1, NODE_DEATHS_MAX + 1):
        grant = core.choose(float(attempt), a)
        assert grant is not None
        for _ in range(3):
            core.result(0.0, a.key, a.installation, JOB, 0, 0, attempt, NODE_DIED, b"d" * 32)
        core.peer_lost(float(attempt), a.key)
        assert core.jobs[JOB].ledger.is_complete == (attempt == NODE_DEATHS_MAX)


def test_nodes_that_were_not_seen_for_long_are_no_reason_to_try_again() -> None:
    core, a = make("a", "b"), thief("a")
    now = 3 * AVOID_S
    for _ in range(POISON_NODES):
        grant = core.choose(now, a)
        assert grant is not None, "b has not asked for long"
        core.acknowledged(now, a.key, grant.grant_id, True)
        core.result(now, a.key, a.installation, JOB, 0, 0, grant.tasks[0].attempt, DIED, b"d" * 32)
        now += GRANT_ACK_S
    assert core.jobs[JOB].ledger.state(0) is TaskState.FAILED


# --- halt while a custodian coordinates -----------------------------------------------------------


def adopt(count: int, halt: str, claimed: int = 0) -> OwnerCore:
    """A custodian coordinates a job of another node, of which some tasks were claimed before."""
    job = OwnedJob(envelope(halt=halt, retries=0))
    job.is_own = False
    job.ledger.fold(FactKind.TASKS, [0, [b"x"] * count])
    job.ledger.fold(FactKind.SEAL, [count])
    for index in range(claimed):
        job.ledger.claim(index, 0, is_good=True)
    core = OwnerCore()
    core.adopt(0.0, job, dict.fromkeys(range(count), b"x"), [], 0.0, begin_at=count)
    return core


def run_one(core: OwnerCore, who: Thief, outcome: Outcome) -> Grant:
    grant = core.choose(0.0, who)
    assert grant is not None
    core.acknowledged(0.0, who.key, grant.grant_id, True)
    task = grant.tasks[0]
    core.result(0.0, who.key, who.installation, JOB, task.index, 0, task.attempt, outcome, b"d" * 32)
    return grant


@pytest.mark.parametrize(
    ("halt", "outcome"), [("soon,fail=1", FAILED), ("now,success=1", OK), ("now,done=10%", FAILED)]
)
def test_a_custodian_halts_a_job_and_leaves_the_cancelling_to_the_owner(halt: str, outcome: Outcome) -> None:
    core, a, b = adopt(10, halt), thief("a", slots=1), thief("b", slots=2)
    held = core.choose(0.0, b)
    assert held is not None
    core.acknowledged(0.0, b.key, held.grant_id, True)
    run_one(core, a, outcome)
    job = core.jobs[JOB]
    assert job.halted == halt
    assert core.choose(1.0, a) is None and not core.has_ready and not core.demands()
    indices = [task.index for task in held.tasks]
    assert (b.key, JOB, indices, halt.startswith("now")) in core.take_effects().stops
    assert job.ledger.counts[TaskState.CANCELLED] == 0, "only the owner cancels"
    core.returned(1.0, b.key, JOB, indices)
    assert core.choose(2.0, a) is None and job.ledger.counts[TaskState.OPEN] == 9
    core.tick(1e6)
    assert core.copy(1e6, a) is None
    core.check_invariants()


def test_a_custodian_that_takes_over_a_job_whose_rule_is_met_gives_nothing_out() -> None:
    core = adopt(10, "soon,success=2", claimed=2)
    assert core.jobs[JOB].halted and core.choose(0.0, thief("a")) is None
    core.release(JOB)
    assert core.choose(0.0, thief("a")) is None


def test_a_custodian_goes_on_when_the_rule_is_not_met() -> None:
    core = adopt(10, "soon,success=2", claimed=1)
    assert core.choose(0.0, thief("a")) is not None
