"""What a task has printed on a node that is lost: if this fails, nobody can see what it was doing."""

from __future__ import annotations

import asyncio

from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.store.journal import LOST


def test_the_output_of_a_lost_attempt_is_kept_as_far_as_it_came() -> None:
    with Simulation(4) as simulation:
        mesh = Mesh(simulation, 3, runner=[RunnerModel(slot_count=0), *[RunnerModel(slot_count=1)] * 2])

        def print_on(member: Member) -> None:
            async def tail(_run_id: int, offsets: tuple[int, int]) -> object:
                said = f"{member.host.name} at {simulation.now:.0f}\n".encode() * 3
                return (offsets[0], said), (0, b"careful\n"), b""

            member.host.runner.tail = tail  # type: ignore[method-assign,assignment]

        async def main() -> None:
            await mesh.start()
            for member in mesh.members:
                print_on(member)
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [60.0])
            await asyncio.sleep(25)
            (worker,) = [one for one in mesh.members if one.node is not None and one.host.runner.busy_count]
            mesh.crash(worker)
            view = await mesh.wait_for(owner, job_id, limit_s=300)
            assert view.done == 1
            mesh.crash(owner)
            await mesh.restart(owner)
            (lost,) = await owner.host.call(owner.running.lost_attempts(job_id))
            assert (lost.index, lost.attempt, lost.why) == (0, 1, "its node is gone")
            assert lost.stdout.startswith(worker.host.name.encode()) and lost.stderr == b"careful\n"
            assert not any(other.host.name.encode() in lost.stdout for other in mesh.members if other is not worker)
            assert not owner.running.scheduler.owner._printed._attempts, "of tasks that have ended nothing is held"
            await owner.host.call(owner.running.scheduler.owner.forget(job_id))
            assert not owner.host.disk.tables[LOST].rows

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()


def test_what_was_printed_on_the_owners_own_node_outlives_it() -> None:
    """Killed twice: each attempt has a place of its own.  The one that ends well is none of the lost."""
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, 1, runner=RunnerModel(slot_count=1))
        owner = mesh.members[0]

        def print_on(life: int) -> None:
            async def tail(_run_id: int, offsets: tuple[int, int]) -> object:
                said = f"life {life}\n".encode()
                return (min(offsets[0], len(said)), said[offsets[0] :]), (0, b""), b""

            owner.host.runner.tail = tail  # type: ignore[method-assign,assignment]

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            print_on(0)
            job_id = await mesh.submit(owner, [60.0])
            for life in (1, 2):
                await asyncio.sleep(30)
                assert not [
                    one.attempt
                    for one in await owner.host.call(owner.running.lost_attempts(job_id))
                    if one.attempt == life
                ], "it runs"
                mesh.crash(owner)
                await mesh.restart(owner)
                print_on(life)
            view = await mesh.wait_for(owner, job_id, limit_s=300)
            assert view.done == 1
            lost = await owner.host.call(owner.running.lost_attempts(job_id))
            found = [(one.attempt, one.stdout, one.why) for one in lost]
            assert found == [(life, f"life {life - 1}\n".encode(), "its node was killed") for life in (1, 2)], found
            assert not owner.running.scheduler.owner._printed_here
            assert len(owner.host.disk.tables[LOST].rows) == 2

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()
