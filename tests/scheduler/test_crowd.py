"""Very many workers on one job.  If this fails, their messages drown its owner, or the first ones take all the work."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest

from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import BATCH_TARGET_S
from p2pcompute.scheduler.owner import OwnerCore
from p2pcompute.scheduler.owner.leases import CROWD
from p2pcompute.scheduler.stealing import Thief
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms

JOB = b"j" * 32
SUBMITTER = b"s" * 32
START_S = 4
"""Until then workers come and learn how long a task takes."""


def messages_by_second(workers: int, tasks: int, task_s: float) -> tuple[Counter[int], float]:
    """Run a job with workers of one slot, which ask, acknowledge and bring results as `worker_service` does.

    Returns:
        (second → messages that the owner got, makespan).
    """
    core = OwnerCore()
    core.add_job(JobEnvelope(JOB, JobTerms(), b"", SUBMITTER, SUBMITTER, b"raw"))
    core.add_tasks(JOB, [b""] * tasks)
    core.seal(JOB)
    counts: Counter[int] = Counter()
    events = [(number * 2.0 / workers, number) for number in range(workers)]
    heapq.heapify(events)
    done = Outcome(OutcomeStatus.OK, runtime_s=task_s)
    held: dict[int, list[tuple[int, int]]] = {}
    now = 0.0
    while events:
        now, number = heapq.heappop(events)
        key = random.Random(number).randbytes(32)
        for index, attempt in held.pop(number, ()):
            core.result(now, key, key, JOB, index, 0, attempt, done, b"d" * 32)
        counts[int(now)] += 1  # results of a batch, or nothing yet
        grant = core.choose(now, Thief(key, key, b"1", (3, 11), 1, max(1, int(BATCH_TARGET_S / task_s))))
        counts[int(now)] += 2  # the request and the acknowledgement
        core.take_effects()
        if grant is None:
            continue
        core.acknowledged(now, key, grant.grant_id, True)
        assert grant.pace_s == 0 or grant.pace_s >= BATCH_TARGET_S, "results of a batch come in one message"
        held[number] = [(task.index, task.attempt) for task in grant.tasks]
        heapq.heappush(events, (now + task_s * len(grant.tasks), number))
    assert core.jobs[JOB].ledger.is_complete
    return counts, now


@pytest.mark.parametrize("workers", [400, 1000])
def test_messages_do_not_grow_with_the_number_of_workers(workers: int) -> None:
    tasks = 14 * workers
    counts, makespan_s = messages_by_second(workers, tasks, 1.0)
    steady = [counts[second] for second in range(START_S, 10)]
    assert sum(steady) / len(steady) <= 4 * CROWD, "three messages for each batch"
    assert makespan_s <= 1.2 * tasks / workers
