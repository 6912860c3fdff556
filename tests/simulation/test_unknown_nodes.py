"""Nodes that an owner does not know, in a group larger than its table.

If these fail, part of a large group stands idle beside work that only its owner gives, or owners search for ever.
"""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.limits import SEEK_AGAIN_S
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.transport import channels
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
            counters, dht = owner.running.scheduler.offers.counters, owner.running.network.dht
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


def note_reasons(table: channels.Channels, reasons: list[str]) -> None:
    """Note why channels end."""
    tell = table.on_lost

    def note(channel: channels.Channel) -> None:
        reasons.append(channel.lost_reason)
        tell(channel)

    table.on_lost = note


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_who_makes_room_for_others_keeps_its_tasks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an owner with more workers than channels has their tasks done twice."""
    monkeypatch.setattr(channels, "CHANNELS_MAX", 4)
    with Simulation(seed) as simulation:
        mesh = Mesh(simulation, 8, runner=RunnerModel(slot_count=1), custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            owner = mesh.members[0]
            job_id = await mesh.submit(owner, [60.0] * 16)
            await asyncio.sleep(1)
            job = owner.running.scheduler.owner.core.jobs[job_id]
            reasons: list[str] = []
            for member in mesh.members:
                note_reasons(member.running.channels, reasons)
            await mesh.wait_for(owner, job_id, limit_s=400)
            assert channels.MADE_ROOM in reasons, "else this shows nothing"
            told = [text for story in job.stories.values() for _at, text in story]
            assert not [text for text in told if "its node is gone" in text]

        simulation.run(main(), time_s_max=1000)
        mesh.check_errors()
