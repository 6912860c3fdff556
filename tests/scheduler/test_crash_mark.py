"""Tasks that ran when their node died.  If this fails, one that kills nodes kills one after the other."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from tests.node.test_placement import submit


@pytest.mark.parametrize(("run_s", "deaths"), [(5.0, 1), (0.4, 0)], ids=["for long", "just begun"])
def test_the_owner_learns_what_ran_there_when_the_node_is_back(run_s: float, deaths: int) -> None:
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 2, runner=[RunnerModel(slot_count=0), RunnerModel(slot_count=1)], custodians=0)
        owner, worker = mesh.members
        found: list[list[bool]] = []

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            job_id = await submit(owner, [300.0])
            await asyncio.sleep(run_s)
            mesh.crash(worker)
            await asyncio.sleep(2.0)
            simulation.restart(worker.host)
            await mesh.start_one(worker)
            await asyncio.sleep(8.0)
            job = owner.running.scheduler.owner.core.jobs[job_id]
            found.append(list(job.deaths.get(0, {}).values()))

        simulation.run(main(), time_s_max=2000)
        mesh.check_errors()
    assert found == [[True] * deaths], "it died with its node, once"
