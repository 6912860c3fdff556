"""What nodes of a large group say when there is nothing to do: almost nothing."""

from __future__ import annotations

import asyncio

from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh

NODES = 120
SETTLED_S = 600.0
WATCHED_S = 600.0


def test_a_large_group_at_rest_is_quiet_and_holds_few_channels() -> None:
    """It was 26 messages a second and node, over 120 channels each: probes without pause, steal requests renewed, one
    channel after the other opened for a request and not used, everybody calling the founder."""
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, NODES, is_lan=False)

        def messages() -> int:
            frames = sum(member.running.channels.counters.frames_sent for member in mesh.members)
            return simulation.network.counters.datagrams_sent + frames

        async def main() -> None:
            await mesh.start_warm()
            await asyncio.sleep(60.0)
            channels = [len(member.running.channels.all()) for member in mesh.members]
            assert sum(channels) / NODES <= 5, "a channel that was opened to ask somebody is used to ask him"
            await asyncio.sleep(SETTLED_S)
            before = messages()
            await asyncio.sleep(WATCHED_S)
            rate = (messages() - before) / WATCHED_S / NODES
            assert rate < 0.3, f"{rate:.2f} messages a second and node"

        simulation.run(main())
        mesh.check_errors()


def test_a_group_that_joined_becomes_as_quiet() -> None:
    with Simulation(6) as simulation:
        mesh = Mesh(simulation, 60, is_lan=False)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(2400.0)
            before = simulation.network.counters.datagrams_sent
            await asyncio.sleep(WATCHED_S)
            rate = (simulation.network.counters.datagrams_sent - before) / WATCHED_S / 60
            assert rate < 1.0, f"{rate:.2f} datagrams a second and node"
            for member in mesh.members:
                dht = member.running.network.dht
                assert dht is not None and dht.contact_count >= 55, "all know nearly all"

        simulation.run(main())
        mesh.check_errors()
