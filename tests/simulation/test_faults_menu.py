"""The menu of faults: each takes effect, is undone, and leaves a mesh that does its work; drawn the same every time."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2pcompute.errors import StoreError, UsageError
from p2pcompute.host.interfaces import Address, ByteStream, Write
from p2pcompute.simulation.faults import KINDS, Fault, FaultKind, FaultSettings, draw_conditions, draw_faults
from p2pcompute.simulation.host import EPOCH_WALL, HostDown, SimHost, Simulation
from p2pcompute.simulation.injection import inject
from p2pcompute.simulation.mesh_run import MeshRun, run_mesh
from p2pcompute.simulation.mesh_settings import MeshSettings
from p2pcompute.simulation.population import PopulationSettings
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.simulation.workloads import WorkloadSettings

SETTINGS = MeshSettings(
    nodes=5,
    hours=0.05,
    population=PopulationSettings(cores=2, speeds="same"),
    workload=(WorkloadSettings(jobs=5, tasks=100, work_s=3.0, start_s=5.0, owners=5),),
)


def draw(settings: FaultSettings, seed: int, duration_s: float = 3600.0) -> list[Fault]:
    return draw_faults(settings, random.Random(str(seed)), duration_s=duration_s)


def test_faults_are_drawn_from_the_seed_and_keep_their_numbers() -> None:
    """If it broke: a failing seed cannot be shrunk."""
    settings = FaultSettings(per_hour=60)
    faults = [draw(settings, seed) for seed in range(40)]
    assert faults == [draw(settings, seed) for seed in range(40)]
    some = next(one for one in faults if len(one) > 5)
    seed = faults.index(some)
    assert draw(FaultSettings(per_hour=60, only=(1, 4)), seed) == [some[1], some[4]]
    assert [fault.number for fault in some] == list(range(len(some)))
    with pytest.raises(UsageError, match=f"no fault {len(some)} .*0 to {len(some) - 1}.*faults.kinds"):
        draw(FaultSettings(per_hour=60, only=(1, len(some))), seed)
    with pytest.raises(UsageError, match=r"no fault 0 .*none"):
        MeshRun(msgspec.structs.replace(SETTINGS, faults=FaultSettings(only=(0,))), 1).run()
    assert sorted(some, key=lambda fault: fault.at_s) == some and some[0].at_s >= settings.after_s
    assert any(not one for one in faults), "some seeds are calm"
    kinds = [{fault.kind for fault in one} for one in faults]
    assert set().union(*kinds) == set(KINDS)
    assert len({tuple(sorted(one)) for one in kinds}) > 20, "each seed has its own subset"
    assert all(0 <= fault.who[0] < 1 and 0 <= fault.amount < 1 for one in faults for fault in one)
    assert all(0 < fault.duration_s <= settings.duration_s_max for one in faults for fault in one)
    assert draw(FaultSettings(), 1) == []
    chosen = FaultSettings(per_hour=60, kinds=("crash", "loss"), swarm=False)
    assert {fault.kind for fault in draw(chosen, 1)} == {"crash", "loss"}


def test_conditions_are_drawn_only_when_they_are_asked_for() -> None:
    calm = draw_conditions(FaultSettings(task_death=0.5), random.Random(1))
    assert (calm.task_failure, calm.task_death, calm.packet_loss) == (0.0, 0.5, 0.0)
    drawn = [draw_conditions(FaultSettings(conditions=True), random.Random(seed)) for seed in range(50)]
    assert len({(one.sync_s, one.task_failure, one.task_death, one.packet_loss) for one in drawn}) > 10


def test_every_kind_takes_effect_and_the_mesh_recovers_from_all_of_them() -> None:
    world = MeshRun(SETTINGS, 1)

    async def one_after_the_other() -> None:
        for number, kind in enumerate(KINDS):
            at_s = max(world.now, 8.0 + 5.0 * number)
            await inject(world, Fault(number, at_s, kind, 1.5, (number / len(KINDS),), 0.4))

    world.spawn(one_after_the_other(), "menu")
    world.run()
    assert world.problems == []
    assert dict(world.fired) == dict.fromkeys(KINDS, 1)
    assert world.now > 8.0 + 5.0 * len(KINDS)
    network = world.simulation.network
    assert network.settings == SETTINGS.network, "what was wrong with the network is undone"
    for member in world.mesh.members:
        host = member.host
        assert not (host.disk.is_full or host.disk.is_broken or host.machine.lag_s or host.machine.up)
        assert host.disk.slowness == 1.0 and host.clock.wall_skew_s == pytest.approx(0.0, abs=0.01)
        assert host.runner_model == RunnerModel(slot_count=2, mem_bytes=host.runner_model.mem_bytes)


@pytest.mark.parametrize("kind", ["suspend", "crash", "disk-full", "partition", "version-skew", "loss", "slow"])
def test_a_fault_ends_when_everything_heals(kind: FaultKind) -> None:
    """If it broke: promises that hold only once all is well again are checked while it is not."""
    settings = MeshSettings(nodes=3, hours=0.004, population=PopulationSettings(cores=1))
    world = MeshRun(settings, 2)
    world.spawn(inject(world, Fault(0, 8.0, kind, 1e6, (0.5,), 0.3)), "fault")
    world.run()
    assert world.problems == [] and world.fired[kind] == 1 and world.now < 1000
    assert not any(member.host.is_suspended for member in world.mesh.members)


def test_a_run_of_the_swarm_counts_what_fired() -> None:
    settings = MeshSettings(
        nodes=4, hours=0.01, population=PopulationSettings(cores=1),
        faults=FaultSettings(per_hour=1000, kinds=("crash", "suspend", "delay"), swarm=False, duration_s_max=5.0),
    )  # fmt: skip
    result = run_mesh(SimpleNamespace(name="test", settings=settings), 1)  # type: ignore[arg-type]
    assert result.problems == ()
    assert set(result.fired) == {"crash", "suspend", "delay"}


# --- hosts ----------------------------------------------------------------------------------------


def test_nothing_runs_on_a_host_that_sleeps_and_its_timers_fire_late() -> None:
    with Simulation(1) as simulation:
        host, other = simulation.add_host(), simulation.add_host()
        log: list[tuple[str, float]] = []

        async def tick() -> None:
            while True:
                await host.clock.sleep(1.0)
                log.append(("tick", simulation.now))

        async def main() -> None:
            host.spawn(tick(), "tick")
            clock, wall = host.clock.now(), host.clock.wall()
            await asyncio.sleep(2.5)
            cancelled = host.host.clock.call_later(9.0, lambda: log.append(("never", simulation.now)))
            host.suspend()
            cancelled.cancel()
            with pytest.raises(HostDown):
                host.suspend()
            calling = simulation.loop.create_task(host.call(asyncio.sleep(0.25, "done")))
            await asyncio.sleep(100)
            assert not calling.done() and len(log) == 2
            assert host.clock.now() == pytest.approx(clock + 2.5), "the monotonic clock stands still"
            host.resume()
            host.resume()
            assert await calling == "done"
            await asyncio.sleep(1.0)
            assert host.clock.now() == pytest.approx(clock + 3.75)
            assert host.clock.wall() == pytest.approx(wall + 103.75), "the wall clock has gone on"
            assert other.clock.now() == 103.75

        simulation.run(main())
        assert [(what, round(at, 6)) for what, at in log] == [("tick", 1.0), ("tick", 2.0), ("tick", 103.0)]


def test_packets_to_a_sleeping_host_are_lost_and_its_streams_stall() -> None:
    with Simulation(1) as simulation:
        host, other = simulation.add_host(lan="a"), simulation.add_host(lan="a")
        got: list[bytes] = []
        streams: list[ByteStream] = []

        async def serve() -> None:
            endpoint = await host.host.net.bind_datagram(7, loopback_only=False)

            async def receive() -> None:
                while True:
                    got.append((await endpoint.receive())[0])

            host.spawn(receive(), "receive")
            await host.host.net.listen_stream(
                7, loopback_only=False, admit=lambda _a, _b: True, accept=lambda stream, _: streams.append(stream)
            )

        async def main() -> None:
            await host.call(serve())
            sender = await other.host.net.bind_datagram(7, loopback_only=False)
            dialled = await other.call(other.host.net.dial_stream(Address(host.address, 7), bytes(40), timeout_s=5))
            await asyncio.sleep(1)
            host.suspend()
            sender.send(b"lost", Address(host.address, 7))
            dialled.write(b"late")
            await asyncio.sleep(10)
            host.resume()
            sender.send(b"heard", Address(host.address, 7))
            assert await host.call(streams[0].read(10)) == b"late"
            await asyncio.sleep(1)

        simulation.run(main())
        assert got == [b"heard"]


def test_a_host_may_crash_in_its_sleep() -> None:
    with Simulation(1) as simulation:
        host = simulation.add_host()
        log: list[str] = []

        async def main() -> None:
            host.clock.call_later(1.0, lambda: log.append("of the world"))
            host.enter(lambda: host.clock.call_later(1.0, lambda: log.append("of the host")))
            host.suspend()
            simulation.crash(host, is_silent=True)
            await asyncio.sleep(5)
            simulation.restart(host)
            assert not host.is_suspended and await host.call(asyncio.sleep(1, "up")) == "up"

        simulation.run(main())
        assert log == ["of the world"]


def test_clocks_drift_and_step() -> None:
    with Simulation(1) as simulation:
        host = simulation.add_host()
        clock = host.clock

        async def main() -> None:
            await asyncio.sleep(100)
            clock.set_rate(1.001)
            await asyncio.sleep(1000)
            assert clock.now() == pytest.approx(1101.0)
            assert clock.wall() - EPOCH_WALL == pytest.approx(1101.0)
            began = simulation.now
            await clock.sleep(100.1)
            assert simulation.now - began == pytest.approx(100.0)
            with pytest.raises(TimeoutError):
                async with clock.timeout(100.1):
                    await asyncio.sleep(1000)
            assert simulation.now - began == pytest.approx(200.0)
            clock.set_rate(1.0)
            clock.wall_skew_s -= 50.0
            await asyncio.sleep(1)
            assert clock.now() == pytest.approx(1302.2) and clock.wall() - EPOCH_WALL == pytest.approx(1252.2)

        simulation.run(main())


def test_a_clock_that_drifts_never_wakes_too_early() -> None:
    """If it broke: code that waits until a time by its clock polls for ever at one instant."""
    with Simulation(1) as simulation:
        clock = simulation.add_host().clock

        async def main() -> None:
            for step in range(1000):
                clock.set_rate(1.0 + step * 1e-7)
                due = clock.now() + 0.1 + step / 7
                await clock.sleep(due - clock.now())
                assert clock.now() >= due

        simulation.run(main())


def test_an_unfaulted_clock_is_the_loop_itself() -> None:
    """If it broke: every node pays for faults that it does not have."""
    with Simulation(1) as simulation:
        host = simulation.add_host()
        assert host.clock.now == simulation.loop.time
        assert "call_soon" not in vars(simulation.loop)
        host.suspend()
        host.resume()
        assert "call_soon" not in vars(simulation.loop)


# --- disks ----------------------------------------------------------------------------------------


async def keep(host: SimHost, key: bytes) -> None:
    await host.store.commit([Write("table", key, b"value")])


def test_a_disk_can_go_back_lose_all_fail_and_be_slow() -> None:
    with Simulation(1) as simulation:
        host = simulation.add_host()

        async def kept() -> list[bytes]:
            return [key for key, _ in await host.store.scan("table")]

        async def main() -> None:
            await keep(host, b"1")
            ref = await host.store.blobs.put(b"blob")
            image = host.disk.image()
            await keep(host, b"2")
            simulation.crash(host)
            host.disk.restore(image)
            simulation.restart(host)
            assert await kept() == [b"1"] and await host.store.blobs.read(ref) == b"blob"
            await keep(host, b"3")
            assert await kept() == [b"1", b"3"]
            host.disk.is_broken = True
            for attempt in (keep(host, b"4"), host.store.get("table", b"1"), host.store.scan("table")):
                with pytest.raises(StoreError) as caught:
                    await attempt
                assert caught.value.code == "store-io"
            host.disk.is_broken = False
            host.disk.slowness = 1000.0
            began = simulation.now
            await keep(host, b"5")
            assert simulation.now - began > 0.5
            simulation.crash(host)
            host.disk.erase()
            simulation.restart(host)
            assert await kept() == [] and not await host.store.blobs.has(ref)

        simulation.run(main())


# --- network --------------------------------------------------------------------------------------


def test_a_starved_program_answers_late_and_its_pings_do_not() -> None:
    with Simulation(1) as simulation:
        slow, other = simulation.add_host(lan="a"), simulation.add_host(lan="a")
        times: dict[str, float] = {}

        async def main() -> None:
            accepted: list[ByteStream] = []
            await other.host.net.listen_stream(
                7, loopback_only=False, admit=lambda _a, _b: True, accept=lambda stream, _: accepted.append(stream)
            )
            target = await other.host.net.bind_datagram(7, loopback_only=False)
            source = await slow.host.net.bind_datagram(7, loopback_only=False)
            stream = await slow.call(slow.host.net.dial_stream(Address(other.address, 7), bytes(40), timeout_s=5))
            await asyncio.sleep(1)
            slow.machine.lag_s = 3.0
            began = simulation.now
            stream.write(b"frame")
            source.send(b"ping", Address(other.address, 7))
            await target.receive()
            times["datagram"] = simulation.now - began
            await accepted[0].read(10)
            times["stream"] = simulation.now - began

        simulation.run(main())
        assert times["datagram"] < 0.1 and 3.0 < times["stream"] < 3.1


@pytest.mark.parametrize(("amount", "is_understood"), [(0.2, True), (0.7, False)])
def test_a_node_of_a_later_version_is_understood_or_refused(amount: float, is_understood: bool) -> None:
    settings = MeshSettings(nodes=3, hours=0.02, population=PopulationSettings(cores=1))
    world = MeshRun(settings, 3)
    seen: dict[str, Any] = {}

    async def look() -> None:
        await world.pause(40.0)
        node = world.mesh.members[1].running
        others = [world.mesh.members[number].running for number in (0, 2)]
        seen["channels"] = len(node.channels.all())
        seen["refused"] = sum(one.channels.handshakes.refused for one in (node, *others))

    world.spawn(inject(world, Fault(0, 10.0, "version-skew", 40.0, (0.4,), amount)), "fault")
    world.spawn(ask(world), "ask")
    world.spawn(look(), "look")
    world.run()
    assert world.problems == []
    assert bool(seen["refused"]) != is_understood


async def ask(world: MeshRun) -> None:
    """Give all of them a reason to talk."""
    await world.pause(20.0)
    member = world.mesh.members[0]
    await world.mesh.submit(member, [1.0] * 60)
