"""Hosts: ownership, crash and restart, clocks, randomness, modelled crypto."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Address, ByteStream
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.host.tasks import TaskScope
from p2pcompute.simulation.host import EPOCH_WALL, HostDown, SimHost, Simulation
from p2pcompute.simulation.loop import RunFailed
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.wire.envelope import open_envelope, seal


def test_nothing_of_a_crashed_host_runs_again() -> None:
    """If it broke: dead nodes go on acting, or say goodbye, and crash tests show nothing."""
    with Simulation(1) as simulation:
        host, other = simulation.add_host(), simulation.add_host()
        log: list[str] = []

        async def tick(where: SimHost) -> None:
            try:
                while True:
                    await where.host.clock.sleep(1)
                    log.append(f"{where.name} {simulation.now:.0f}")
            finally:
                log.append(f"{where.name} finally")

        async def with_scope(where: SimHost) -> None:
            scope = TaskScope("scope")
            scope.spawn(tick(where), "tick")
            where.host.clock.call_later(1.5, lambda: log.append(f"{where.name} timer 1.5"))
            where.host.clock.call_later(3.5, lambda: log.append(f"{where.name} timer 3.5"))
            await where.host.clock.sleep(1000)

        async def main() -> None:
            calls = [simulation.loop.create_task(each.call(with_scope(each))) for each in (host, other)]
            await asyncio.sleep(2.5)
            simulation.crash(host)
            with pytest.raises(HostDown):
                await calls[0]
            with pytest.raises(HostDown):
                await host.call(asyncio.sleep(1))
            with pytest.raises(HostDown):
                simulation.crash(host)
            await asyncio.sleep(2)
            calls[1].cancel()

        simulation.run(main())
        assert [line for line in log if line.startswith("host-1")] == ["host-1 1", "host-1 timer 1.5", "host-1 2"]
        assert [line for line in log if line.startswith("host-2")] == [
            "host-2 1", "host-2 timer 1.5", "host-2 2", "host-2 3", "host-2 timer 3.5", "host-2 4",
        ]  # fmt: skip


def test_what_callbacks_of_the_network_start_dies_with_the_host() -> None:
    """If it broke: work that a packet started survives the crash of its host."""
    with Simulation(1) as simulation:
        host, other = simulation.add_host(), simulation.add_host()
        log: list[str] = []

        async def serve() -> None:
            scope = TaskScope("serve")

            async def linger() -> None:
                log.append("accepted")
                await host.host.clock.sleep(100)
                log.append("still here")

            def accept(_stream: ByteStream, _preamble: bytes) -> None:
                scope.spawn(linger(), "linger")

            await host.host.net.listen_stream(7, loopback_only=False, admit=lambda _a, _b: True, accept=accept)

        async def main() -> None:
            await host.call(serve())
            await other.call(other.host.net.dial_stream(Address(host.address, 7), bytes(40), timeout_s=5))
            await asyncio.sleep(1)
            simulation.crash(host)
            await asyncio.sleep(200)

        simulation.run(main())
        assert log == ["accepted"]


def test_restart_gives_a_new_host_on_the_old_disk() -> None:
    """If it broke: recovery cannot be tested."""
    with Simulation(1) as simulation:
        host = simulation.add_host()

        async def main() -> None:
            before = host.host
            drawn = [host.host.rng.stream("a").random(), host.host.crypto.random_bytes(8)]
            ref = await host.store.blobs.put(b"blob")
            simulation.crash(host, is_silent=True)
            simulation.restart(host)
            assert host.host is not before and host.host.store is not before.store
            assert await host.store.blobs.read(ref) == b"blob"
            assert [host.host.rng.stream("a").random(), host.host.crypto.random_bytes(8)] != drawn, "nonces repeat"
            assert await host.call(asyncio.sleep(1, "done")) == "done"

        simulation.run(main())


def test_call_passes_results_errors_and_cancellation() -> None:
    """If it broke: what a test sees of a node is not what happened."""
    with Simulation(1) as simulation:
        host = simulation.add_host()
        ended: list[str] = []

        async def fail() -> None:
            raise KeyError("x")

        async def sleep() -> None:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ended.append(f"cancelled at {simulation.now}")
                raise

        async def main() -> None:
            assert await host.call(asyncio.sleep(1, "result")) == "result"
            with pytest.raises(KeyError):
                await host.call(fail())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await host.call(sleep())
            await asyncio.sleep(1)

        simulation.run(main())
        assert ended == ["cancelled at 2.0"]


def test_closing_reports_tasks_that_fail_on_the_way_out() -> None:
    """If it broke: bugs in shutdown code go unseen."""
    simulation = Simulation(1)
    host = simulation.add_host()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            raise ValueError("in finally")

    async def main() -> None:
        host.spawn(stubborn(), "stubborn")
        await asyncio.sleep(1)

    simulation.run(main())
    with pytest.raises(RunFailed, match="in finally"):
        simulation.close()
    simulation.close()


def test_clock_and_random_streams() -> None:
    """If it broke: an extra draw in one part shifts all others, or hosts share their randomness."""
    with Simulation(5) as simulation, Simulation(5) as again, Simulation(6) as other:
        hosts = [each.add_host(wall_skew_s=skew) for each, skew in ((simulation, 0.0), (again, 60.0), (other, 0.0))]
        assert [host.clock.wall() - EPOCH_WALL for host in hosts] == [0.0, 60.0, 0.0]
        hosts[0].rng.stream("one").random()
        first, second, third = (host.rng.stream("two").random() for host in hosts)
        assert first == second != third
        assert simulation.add_host().rng.stream("two").random() != first
        assert hosts[0].rng.stream("two") is hosts[0].rng.stream("two")
        lengths = (0, 1, 32, 64, 65, 1000)
        assert [len(hosts[0].crypto.random_bytes(count)) for count in lengths] == list(lengths)
        assert [len(hosts[1].crypto.random_bytes(count)) for count in lengths] == list(lengths)
        assert hosts[0].crypto.random_bytes(32) == hosts[1].crypto.random_bytes(32) != hosts[2].crypto.random_bytes(32)


@pytest.mark.parametrize("has_real_crypto", [False, True])
def test_crypto(has_real_crypto: bool) -> None:
    """If it broke: forged records pass in the simulator, or good ones fail."""
    with Simulation(1, has_real_crypto=has_real_crypto) as simulation:
        one, two = simulation.add_host().crypto, simulation.add_host().crypto
        seed = one.random_bytes(32)
        key = one.public_key(seed)
        signature = one.sign(seed, b"message")
        assert (len(key), len(signature)) == (32, 64)
        assert key == two.public_key(seed) != two.public_key(bytes(32))
        assert two.verify(key, b"message", signature)
        assert not two.verify(key, b"massage", signature)
        assert not two.verify(key, b"message", signature[:-1] + bytes([signature[-1] ^ 1]))
        assert not two.verify(key, b"message", b"")
        assert not two.verify(two.public_key(bytes(32)), b"message", signature)
        assert not two.verify(b"\x01" * 32, b"message", signature)
        raw = seal(one, seed, "test/1", {"a": 1})
        assert open_envelope(two, raw, "test/1", signer=key).payload == {"a": 1}
        with pytest.raises(RemoteProtocolError):
            open_envelope(two, raw[:-1] + bytes([raw[-1] ^ 1]), "test/1")


def test_probe_says_what_the_host_is(tmp_path: Path) -> None:
    """If it broke: nodes cannot describe themselves in the simulator, or otherwise than real machines do."""
    with Simulation(1) as simulation:
        model = RunnerModel(slot_count=3, attributes={"gpu.count": 2, "os": "macos"}, has=frozenset({"ffmpeg"}))
        host = simulation.add_host("a", runner=model)
        found = simulation.run(host.host.probe.attributes())
        assert (found["cpus"].value, found["gpu.count"].value, found["os"].value) == (3.0, 2, "macos")
        assert simulation.run(host.host.probe.has(["ffmpeg", "docker"])) == {"ffmpeg": True, "docker": False}
    probe = RealProbe(tmp_path)
    probe.close()
    real = asyncio.run(probe.attributes())
    for name in ("os", "arch", "cpus", "mem.total", "mem.free", "disk.total", "disk.free", "load", "python"):
        assert type(real[name].value) is type(found[name].value)
        assert real[name].lifetime_s == found[name].lifetime_s
