"""kill -9 of a job's owner at each of its commits in turn: if one fails, a promise is made before it is kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Literal

import pytest

from p2pcompute.errors import StoreError
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload
from p2pcompute.scheduler.terms import JobTerms
from p2pcompute.simulation.custody_runs import accepted
from p2pcompute.simulation.host import HostDown, Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel

TASKS = 12
Moment = Literal["before", "after"]
"""Before the disk has a commit, or after it has it and before anybody is told."""


class Fuse:
    """Burns down by one with each commit of a host; `blown` is set at the last."""

    def __init__(self, member: Member, length: int, moment: Moment) -> None:
        self.blown = asyncio.Event()
        self.commits = 0
        store = member.host.store
        change = store.change

        def counted(apply: Callable[[Any], int]) -> Any:
            self.commits += 1
            if self.commits != length:
                return change(apply)
            if moment == "before":
                self.blown.set()
                return change(apply)

            def applied(disk: Any) -> int:
                result = apply(disk)
                self.blown.set()
                return result

            return change(applied)

        store.change = counted  # type: ignore[method-assign, assignment]


def payloads(first: int, count: int) -> list[bytes]:
    """Of tasks that end one by one, so that each is a commit of its own."""
    return [encode_payload(TaskPayload(work_s=0.3 + 0.037 * index)) for index in range(first, first + count)]


async def submit(owner: Member) -> tuple[bytes, int]:
    """Submit in small steps; returns the job, and how many tasks were acknowledged before the owner died."""
    node = owner.running
    job_id, acknowledged = b"", 0

    async def go() -> None:
        nonlocal job_id, acknowledged
        job_id = await node.submit_job(JobTerms(name="fuse"), JobSpec(kind=TaskKind.SIMULATED))
        for _ in range(3):
            await node.add_tasks(job_id, payloads(acknowledged, TASKS // 3))
            acknowledged += TASKS // 3
        await node.seal_job(job_id)

    with contextlib.suppress(HostDown, StoreError):
        await owner.host.call(go())
    return job_id, acknowledged


async def finish(owner: Member, job_id: bytes, acknowledged: int) -> None:
    """Add what was not acknowledged, as a program does that asks how many tasks there are, and wait for the end."""
    node = owner.running

    async def go() -> None:
        missing = TASKS - node.job(job_id.hex()).added
        assert missing <= TASKS - acknowledged, "acknowledged and gone"
        if node.job(job_id.hex()).total is None:
            if missing:
                await node.add_tasks(job_id, payloads(TASKS - missing, missing))
            await node.seal_job(job_id)

    await owner.host.call(go())


def play(length: int, moment: Moment) -> bool:
    """Kill the owner at a commit; False when there were not so many."""
    with Simulation(length) as simulation:
        mesh = Mesh(simulation, 3, runner=RunnerModel(slot_count=1))
        fuse: list[Fuse] = []

        async def main() -> None:
            await mesh.start_warm()
            await asyncio.sleep(3)
            owner = mesh.members[1]
            fuse.append(Fuse(owner, length, moment))
            submitted = asyncio.create_task(submit(owner))
            ended = asyncio.create_task(asyncio.sleep(12))
            blown = asyncio.create_task(fuse[0].blown.wait())
            await asyncio.wait([ended, blown], return_when=asyncio.FIRST_COMPLETED)
            blown.cancel()
            ended.cancel()
            if not fuse[0].blown.is_set():
                await submitted
                return
            mesh.crash(owner)
            job_id, acknowledged = await submitted
            await mesh.restart(owner)
            if not job_id:
                assert not acknowledged
                return
            await finish(owner, job_id, acknowledged)
            view = await mesh.wait_for(owner, job_id, limit_s=120)
            assert (view.done, view.failed, view.total) == (TASKS, 0, TASKS)
            await mesh.check_values(owner, job_id, TASKS)
            times = accepted(owner, job_id)
            assert sorted(times) == list(range(TASKS)) and set(times.values()) == {1}, times

        simulation.run(main(), time_s_max=400)
        mesh.check_errors()
        return fuse[0].blown.is_set()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_nothing_is_lost_or_accepted_twice_whenever_the_owner_dies(moment: Moment) -> None:
    length = 1
    while play(length, moment):
        length += 1
    assert length > 18, "a job of twelve tasks takes more commits"
