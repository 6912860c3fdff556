"""Removal and roles in a group of whole nodes: if these fail, somebody who was removed goes on, or a role is a word."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel


def key(member: Member) -> bytes:
    return member.identity.public_key


def others(mesh: Mesh, one: Member) -> list[Member]:
    return [member for member in mesh.members if member is not one and member.node is not None]


def holds_of(mesh: Mesh, one: Member) -> int:
    """Tasks of a member's jobs that the others hold, for whomever."""
    count = 0
    for member in others(mesh, one):
        scheduler = member.running.scheduler
        for held in scheduler.worker.core.held.values():
            owned = scheduler.owner.core.jobs.get(held.job_id)
            job = scheduler.worker.jobs.get(held.job_id) if owned is None else owned.envelope
            count += job is not None and job.submitter == key(one) and not held.is_dropped
    return count


async def until(condition: object, limit_s: float) -> None:
    assert callable(condition)
    for _ in range(round(limit_s / 0.1)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {limit_s:g} s")


@pytest.mark.parametrize("seed", range(2))
def test_all_cut_a_removed_member_off_within_seconds(seed: int) -> None:
    with Simulation(seed) as simulation:
        mesh = Mesh(simulation, 24, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(20)
            founder, bad = mesh.members[0], mesh.members[7]
            await mesh.submit(bad, [600.0] * 100)
            await asyncio.sleep(10)
            assert holds_of(mesh, bad) > 40
            await founder.host.call(_remove(founder, bad))
            await until(lambda: holds_of(mesh, bad) == 0, 3.0)
            await asyncio.sleep(2)
            for member in others(mesh, bad):
                assert all(channel.peer.installation != key(bad) for channel in member.running.channels.all())
                assert key(bad) not in member.running.network.peers
            assert bad.running.members.removed_text
            keys = {member.running.credentials.group.network_key for member in others(mesh, bad)}
            assert len(keys) == 1 and bad.group.network_key not in keys
            assert holds_of(mesh, bad) == 0
            assert all(not member.errors for member in mesh.members)

        simulation.run(main())


async def _remove(by: Member, whom: Member) -> None:
    by.running.remove(key(whom), reason="")


def test_a_member_that_may_not_submit_has_nothing_run_by_way_of_another() -> None:
    """Its custodian, which may submit, acts for it; nobody runs its tasks, nor does the custodian itself."""
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            founder, worker = mesh.members[0], mesh.members[2]
            await mesh.submit(worker, [300.0] * 60)
            await asyncio.sleep(8)
            assert holds_of(mesh, worker) > 0
            kept = [
                member
                for member in others(mesh, worker)
                if member.running.scheduler.custody is not None and member.running.scheduler.custody.charges
            ]
            assert len(kept) == 2, "its custodians keep it"
            mesh.crash(worker)
            await asyncio.sleep(60)
            assert holds_of(mesh, worker) > 0, "they act for it"
            await founder.host.call(_limit(founder, worker))
            await until(lambda: holds_of(mesh, worker) == 0, 3.0)
            await asyncio.sleep(60)
            assert holds_of(mesh, worker) == 0
            assert all(not member.running.scheduler.owner.core.jobs for member in others(mesh, worker))
            assert all(not member.errors for member in mesh.members)

        simulation.run(main())


async def _limit(by: Member, whom: Member) -> None:
    by.running.set_roles(key(whom), ("work",), reason="")
