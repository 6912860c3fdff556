"""Nodes that an owner does not know, in a group larger than its table.

If these fail, part of a large group stands idle beside work that only its owner gives, or owners search for ever.
"""

from __future__ import annotations

import asyncio

from p2pcompute.limits import SEEK_AGAIN_S
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust.levels import Level

NODES = 160


def idle_count(mesh: Mesh) -> int:
    return sum(member.running.scheduler.worker.core.free_slots > 0 for member in mesh.members)


def test_all_nodes_of_a_large_group_work_and_nobody_is_looked_for_in_vain() -> None:
    """Members that are not trusted get tasks from the owner only, who has to know them for that."""
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, NODES, runner=RunnerModel(slot_count=1), level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start_warm()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            counters, dht = owner.running.scheduler.counters, owner.running.network.dht
            assert dht is not None and len(owner.running.network.peers) < NODES - 20, "else nobody is unknown here"
            assert counters.looked_further_count == 0
            job_id = await mesh.submit(owner, [40.0] * 4 * NODES)
            await asyncio.sleep(35)
            assert idle_count(mesh) <= 0.03 * NODES and counters.looked_further_count == 1
            await asyncio.sleep(SEEK_AGAIN_S)
            assert counters.looked_further_count == 2
            await owner.host.call(owner.running.cancel(job_id, now=True))
            await asyncio.sleep(3 * SEEK_AGAIN_S)
            assert counters.looked_further_count == 2, "there is nothing to give"

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()
