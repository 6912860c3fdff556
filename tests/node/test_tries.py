"""How often a task was tried.  If these fail, people who start a task again lose count of what it has cost."""

from __future__ import annotations

import asyncio

from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel


def test_attempts_before_a_retry_count() -> None:
    """After a crash of its node, too."""
    with Simulation(2) as simulation:
        mesh = Mesh(simulation, 3, runner=RunnerModel(slot_count=1))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [3.0] * 6)
            await mesh.wait_for(owner, job_id, limit_s=60)
            for tries in (1, 2, 3):
                tasks = await owner.host.call(owner.running.tasks(job_id, limit=9))
                assert [task.attempts for task in tasks] == [tries] * 6
                await owner.host.call(owner.running.retry(job_id, indices=range(6), failed_only=False))
                await mesh.wait_for(owner, job_id, limit_s=60)
                await asyncio.sleep(1)  # the last ends are on its disk
                mesh.crash(owner)
                await mesh.restart(owner)

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
