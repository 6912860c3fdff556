"""Very many workers on one job.  If this fails, their messages drown its owner, or the first ones take all the work."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter, deque

import pytest

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import BATCH_TARGET_S, HEARTBEAT_FRACTION, LEASE_S_MIN, THIEVES_MAX
from p2pcompute.scheduler.owner import OwnerCore, leases
from p2pcompute.scheduler.stealing import COPIES_PAUSE_S, Pacing, Thief, lease_s_min
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel

JOB = b"j" * 32
SUBMITTER = b"s" * 32
MESSAGES_PER_S = 2000
COME_PER_S = 500


class Crowd:
    """Workers of one slot, which ask, wait, acknowledge, tell what they hold and bring results as real ones do.

    `counts`: second → messages that the owner got.
    """

    def __init__(self, workers: int, tasks: int, task_s: float) -> None:
        self.core = OwnerCore()
        self.core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
        self.core.add_tasks(JOB, [b""] * tasks)
        self.core.seal(JOB)
        self.task_s = task_s
        self.counts: Counter[int] = Counter()
        self.thieves = [self.thief(number) for number in range(workers)]
        self.events = [(number / COME_PER_S, number, "comes") for number in range(workers)]
        heapq.heapify(self.events)
        self.parked: deque[int] = deque()
        self.held: dict[int, list[tuple[int, int]]] = {}
        self.beats_at: dict[int, float] = {}
        self.now = self.turn_at = self.ended_at = 0.0

    def thief(self, number: int) -> Thief:
        key = random.Random(number).randbytes(32)
        return Thief(key, key, b"1", (3, 11), 1, max(1, int(BATCH_TARGET_S / self.task_s)))

    def run(self) -> float:
        """Return the makespan."""
        while self.events:
            self.now, number, what = heapq.heappop(self.events)
            if what == "beats":
                if number in self.held and self.beats_at[number] == self.now:
                    self.counts[int(self.now)] += 1
                    self.will_beat(number)
            elif what != "turn":
                self.bring(number)
                self.counts[int(self.now)] += 2 if what == "ends" else 1  # results and a request
                self.parked.append(number)
            self.serve()
        assert self.core.jobs[JOB].ledger.is_complete
        return self.ended_at

    def bring(self, number: int) -> None:
        key, self.ended_at = self.thieves[number].key, self.now
        done = Outcome(OutcomeStatus.OK, runtime_s=self.task_s)
        for index, attempt in self.held.pop(number, ()):
            self.core.result(self.now, key, key, JOB, index, 0, attempt, done, b"d" * 32)
        self.core.remember(self.now, self.thieves[number])

    def serve(self) -> None:
        while self.parked and self.core.has_ready:
            if pause_s := self.core.pause_s(self.now):
                if self.turn_at <= self.now:
                    self.turn_at = self.now + pause_s
                    heapq.heappush(self.events, (self.turn_at, -1, "turn"))
                return
            number = self.parked.popleft()
            grant = self.core.choose(self.now, self.thieves[number])
            self.core.take_effects()
            assert grant is not None
            self.counts[int(self.now)] += 1  # the acknowledgement
            self.core.acknowledged(self.now, self.thieves[number].key, grant.grant_id, True)
            assert grant.pace_s == 0 or grant.pace_s >= BATCH_TARGET_S, "results of a batch come in one message"
            self.held[number] = [(task.index, task.attempt) for task in grant.tasks]
            heapq.heappush(self.events, (self.now + self.task_s * len(grant.tasks), number, "ends"))
            self.will_beat(number)

    def will_beat(self, number: int) -> None:
        self.beats_at[number] = self.now + lease_s_min(self.core.pace_s) * HEARTBEAT_FRACTION
        heapq.heappush(self.events, (self.beats_at[number], number, "beats"))


@pytest.mark.parametrize(("workers", "each", "makespan_max_s"), [(400, 14, 17), (1500, 30, 42)])
def test_messages_do_not_grow_with_the_number_of_workers(workers: int, each: int, makespan_max_s: float) -> None:
    crowd = Crowd(workers, each * workers, 1.0)
    assert crowd.run() <= makespan_max_s
    assert max(crowd.counts.values()) <= MESSAGES_PER_S


def test_long_tasks_are_not_gathered() -> None:
    """If it breaks, most workers of a crowd have none, and others one after the other."""
    crowd = Crowd(1000, 1000, 60.0)
    assert crowd.run() <= 60.0 + 1000 / COME_PER_S + 2.0


@pytest.mark.parametrize("workers", [1000, 10_000, THIEVES_MAX])
def test_heartbeats_of_a_crowd_are_few(workers: int) -> None:
    core = OwnerCore()
    for number in range(workers):
        key = number.to_bytes(32)
        core.remember(0.0, Thief(key, key, b"1", (3, 11), 1, 1))
    every_s = lease_s_min(core.pace_s) * HEARTBEAT_FRACTION
    assert workers / every_s <= 300 and core.pace_s <= LEASE_S_MIN, "peers take no longer pace"


def test_nodes_of_a_crowd_get_their_turn_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the pump is not woken for those that wait, a job with idle workers stands still."""
    monkeypatch.setattr(leases, "CROWD", 3)
    monkeypatch.setattr(leases, "GRANTS_PER_S_MAX", 4.0)
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 8, runner=RunnerModel(slot_count=1), custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [3.0] * 32)
            given = owner.running.scheduler.victim.counters
            for _ in range(5):
                before = given.grants_given_count
                await asyncio.sleep(1)
                assert given.grants_given_count - before <= 5
            view = await mesh.wait_for(owner, job_id, limit_s=30)
            assert view.done == 32

        simulation.run(main(), time_s_max=100)
        mesh.check_errors()


def test_those_that_wait_are_looked_at_at_once_for_work_and_now_and_then_for_copies() -> None:
    pacing, looked = Pacing(), []

    def has_work() -> bool:
        looked.append(None)
        return False

    assert pacing.pause_s(10.0, 0.5, has_work) == 0.5 and not looked, "it is nobody's turn, whatever there is"
    assert pacing.pause_s(10.0, 0.0, has_work) == 0.0, "the first copies"
    assert pacing.pause_s(10.1, 0.0, has_work) == pytest.approx(COPIES_PAUSE_S - 0.1)
    assert pacing.pause_s(10.1, 0.0, lambda: True) == 0.0
    assert pacing.pause_s(10.0 + COPIES_PAUSE_S, 0.0, has_work) == 0.0
