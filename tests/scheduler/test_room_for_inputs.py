"""Inputs of all tasks that a worker holds are bounded together, and tasks wait for room rather than fail.

If this fails, a job of many tasks with large inputs fills the disks of those that work for it, or stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.runs import Outcome, OutcomeStatus
from p2pcompute.limits import INPUTS_CACHE_SHARE
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.input_room import InputRoom
from p2pcompute.scheduler.terms import JobEnvelope, JobTerms
from p2pcompute.scheduler.worker_service import WorkerService
from tests.scheduler.test_room_for_results import JOB, OWNER, made_worker

CAP = 1_000_000
ROOM = int(CAP * INPUTS_CACHE_SHARE)


def blob(number: int, size: int) -> BlobRef:
    return BlobRef(number.to_bytes(32, "big"), size)


@given(
    events=st.lists(
        st.tuples(st.integers(0, 9), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.booleans()), max_size=40
    )
)
def test_the_books_agree_and_nobody_waits_for_nothing(events: list[tuple[int, list[int], bool]]) -> None:
    room = InputRoom(lambda: 100)
    asked: dict[int, list[BlobRef]] = {}
    order: list[int] = []
    for run_id, numbers, is_end in events:
        if is_end and run_id in asked:
            room.leave(run_id)
            del asked[run_id]
            admitted = [run_id, *room.admit()]
            order = [one for one in order if one not in admitted]
        elif not is_end and run_id not in asked:
            asked[run_id] = [blob(number, 15 * (number + 1)) for number in numbers]
            order.append(run_id)
            if room.ask(run_id, asked[run_id]):
                order.remove(run_id)
        holders = [one for one in asked if one not in order]
        held = {ref for one in holders for ref in asked[one]}
        assert room.bytes == sum(ref.size for ref in held) and room.waiting_count == len(order)
        assert room.bytes <= 100 or len(holders) == 1, "one alone may be larger"
        assert holders or not order, "somebody goes on"
    for run_id in list(asked):
        room.leave(run_id)
        room.admit()
    assert room.bytes == 0 and not room.is_used


@dataclass
class Sources:
    """Where inputs come from: notes how much is asked for at once."""

    blobs: FileBlobs
    here: dict[BlobRef, None] = field(default_factory=dict)
    most: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch(self, refs: Sequence[BlobRef], _key: bytes, _addresses: object) -> None:
        self.here.update(dict.fromkeys(refs))
        await self.gate.wait()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[tuple[WorkerService, Sources]]:
    sources = Sources(FileBlobs(tmp_path, cache_bytes_max=CAP))
    inputs = {bytes([index]): [blob(index + 1, ROOM // 3), blob(99, 1000)] for index in range(12)}
    inputs[b"big"] = [blob(200, CAP // 2)]
    async with made_worker(sources.blobs, inputs=lambda _spec, payload: inputs[payload], fetch=sources.fetch) as made:
        yield made, sources


def grant(worker: WorkerService, payloads: Sequence[bytes], first: int = 0) -> None:
    job = JobEnvelope(JOB, JobTerms(), b"spec", OWNER, OWNER, b"")
    tasks = tuple(GrantedTask(index, 0, 1, payload) for index, payload in enumerate(payloads, first))
    worker.take(Grant(1, 1, OWNER, JOB, OWNER, 30.0, tasks), job, ())


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_tasks_with_large_inputs_take_turns(worker: tuple[WorkerService, Sources]) -> None:
    service, sources = worker
    sources.gate.set()
    grant(service, [*(bytes([index]) for index in range(6)), b"big", bytes([7])])
    await settled()
    done: list[int] = []
    while service.core.held:
        running = [held for held in service.core.held.values() if held.run_id in service.inputs._held]
        assert running, "nobody waits for nothing"
        assert service.inputs.bytes <= ROOM or [held.task.payload for held in running] == [b"big"]
        first = running[0]
        service.core.drop(JOB, [first.task.index], owner=OWNER, kill=False)
        service._finish(first, Outcome(OutcomeStatus.OK))
        done.append(first.task.index)
        await settled()
    assert done == list(range(8)), "first come, first served"
    assert not service.inputs.is_used and not service._admitted and not sources.blobs._pins
    assert service.counters.waited_for_room_count == 6
    assert not [one for one in service.link(OWNER).results if one.claim[3] != "ok"], "none has failed"


async def test_who_is_not_held_any_more_lets_others_in(worker: tuple[WorkerService, Sources]) -> None:
    """Also while inputs are being fetched, and one that waits itself."""
    service, sources = worker
    for number, payload in enumerate((b"big", bytes([1]), bytes([2]))):
        grant(service, [payload], number)
    await settled()
    assert list(sources.here) == [blob(200, CAP // 2)] and service.inputs.waiting_count == 2
    service.stop(OWNER, JOB, [1], kill=True)
    service.stop(OWNER, JOB, [0], kill=True)
    await settled()
    assert service.inputs.waiting_count == 0 and service.inputs.bytes == ROOM // 3 + 1000
    assert blob(3, ROOM // 3) in sources.here and blob(2, ROOM // 3) not in sources.here
    sources.gate.set()
    service.stop(OWNER, JOB, [2], kill=True)
    await settled()
    assert not service.inputs.is_used and not sources.blobs._pins
