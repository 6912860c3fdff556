"""What machines need processors for: datagrams and handshakes one after the other, on cores that they may share."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.host.interfaces import Address
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.network import NetworkSettings
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.workloads import WorkloadSettings
from tests.simulation.test_network import dial, listen
from tests.simulation.test_network_model import bind
from tests.simulation.test_world import run

DELAY_S = 0.001
HANDLING_S = 0.01


def model(*, cores: int = 0, handshake_s: float = 0.0) -> NetworkSettings:
    return NetworkSettings(
        latency="lan",
        lan_median_s=DELAY_S,
        lan_sigma=0.0,
        jitter=0.0,
        handling_s=HANDLING_S,
        handshake_s=handshake_s,
        shared_cores=cores,
    )


def last_arrivals(simulation: Simulation, receivers: list[SimHost], count: int) -> list[float]:
    """When the last of `count` datagrams to each receiver, all sent at once, can be read there."""

    async def main() -> list[float]:
        sender = await bind(simulation.add_host())
        ends = [await bind(host) for host in receivers]
        for _ in range(count):
            for host in receivers:
                sender.send(b"x", Address(host.address, 1))
        times = []
        for end in ends:
            for _ in range(count):
                await end.receive()
            times.append(simulation.now)
        return times

    return simulation.run(main())


@pytest.mark.parametrize(("cores", "turns"), [(0, 5), (1, 15), (2, 8)])
def test_datagrams_are_handled_one_after_the_other(cores: int, turns: int) -> None:
    """If it broke: a simulated node takes in any number of datagrams at once, and joins faster than any real one."""
    with Simulation(1, model=model(cores=cores)) as simulation:
        receivers = [simulation.add_host() for _ in range(3)]
        last_s = max(last_arrivals(simulation, receivers, 5))
    assert last_s == pytest.approx(DELAY_S + turns * HANDLING_S)


def test_a_handshake_keeps_both_ends_busy() -> None:
    """If it broke: opening channels to all peers at once costs a simulated node nothing."""
    took = []
    for handshake_s in (0.0, 0.02):
        with Simulation(1, model=model(handshake_s=handshake_s)) as simulation:
            one, other = simulation.add_host(), simulation.add_host()

            async def main(one: SimHost = one, other: SimHost = other, simulation: Simulation = simulation) -> None:
                await listen(other)
                await asyncio.gather(dial(one, other), dial(one, other))
                took.append(simulation.now)

            simulation.run(main())
    # The second handshake waits for the first one at the listener; the dialler's parts follow one another likewise.
    assert took[1] - took[0] == pytest.approx(3 * 0.02)


def test_nodes_start_when_they_are_told_and_joining_is_timed_by_themselves() -> None:
    """If it broke: real starts cannot be replayed, or joining is known no better than it is looked at."""
    settings = MeshSettings(
        nodes=3,
        hours=0.005,
        starts_s=(0.0, 2.0, 7.5),
        network=model(),
        population=PopulationSettings(cores=1, speeds="same", overhead_s=0.25),
        workload=(WorkloadSettings(tasks=4, work_s=1.0, start_s=9.0, owners=1),),
    )
    result = run(settings, 1)
    assert result.problems == ()
    figures = result.metrics
    # Ping and pong, each on the way and then handled; the founder has nobody to meet.
    assert figures["join_s_p50"] == pytest.approx(2 * (DELAY_S + HANDLING_S), rel=1e-3)
    assert figures["join_s"] <= figures["join_table_s_max"] < 0.2
    assert figures["own_lookup_requests"] <= 2 and 0.5 < figures["own_lookup_hops"] <= 2
    assert 2 * (DELAY_S + HANDLING_S) <= figures["own_rtt_s"] < 0.1
    assert 2.5 <= figures["makespan_s"] < 3.5  # four tasks of 1.25 s in three slots
