"""The simulated store: the common suite, and what only a simulation can show: crashes."""

from __future__ import annotations

import asyncio

import pytest

from p2pcompute.errors import LocalProtocolError, StoreError
from p2pcompute.host.interfaces import Store, Write
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.storage import SimDisk, SimStore
from tests.store_conformance import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check) -> None:
    """If it broke: node code that works in the simulator fails on the real store, or the other way round."""
    with Simulation(1) as simulation:
        loop, host = simulation.loop, simulation.add_host()
        disks: dict[int, SimDisk] = {}

        def open_on(disk: SimDisk) -> Store:
            store = SimStore(loop, disk, host.number, host.rng)
            disks[id(store)] = disk
            return store

        async def make_store() -> Store:
            return open_on(SimDisk())

        async def reopen(store: Store) -> Store:
            await store.close()
            return open_on(disks[id(store)])

        async def main() -> None:
            await check(make_store, reopen)

        simulation.run(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_crash_keeps_a_prefix_of_whole_transactions(seed: int) -> None:
    """If it broke: recovery is tested against disks that cannot be, or against kinder ones than there are."""
    with Simulation(seed) as simulation:
        host = simulation.add_host()
        acknowledged: list[int] = []

        async def write(number: int, into: Store) -> None:
            await into.commit([Write("t", b"a%03d" % number, b""), Write("t", b"b%03d" % number, b"")])
            acknowledged.append(number)

        async def on_host() -> None:
            for number in range(60):
                host.spawn(write(number, host.store), "write")
                await host.host.clock.sleep(0.0003)
            await host.host.clock.sleep(1)

        async def main() -> None:
            call = simulation.loop.create_task(host.call(on_host()))
            await asyncio.sleep(0.011)
            simulation.crash(host)
            await asyncio.gather(call, return_exceptions=True)
            simulation.restart(host)
            first = [key[1:] for key, _ in await host.store.scan("t", b"a")]
            second = [key[1:] for key, _ in await host.store.scan("t", b"b")]
            assert first == second, "half a transaction"
            assert first == [b"%03d" % number for number in range(len(first))], "not a prefix"
            assert len(acknowledged) <= len(first) < 60
            assert acknowledged == list(range(len(acknowledged)))
            assert acknowledged

        simulation.run(main())


def test_commits_that_wait_share_a_sync() -> None:
    """If it broke: simulated owners are slower by the number of their tasks than real ones."""
    with Simulation(1) as simulation:
        host = simulation.add_host(sync_s=0.01)

        async def main() -> float:
            await asyncio.gather(*(host.store.commit([Write("t", b"%d" % n, b"")]) for n in range(1000)))
            return simulation.now

        assert simulation.run(main()) < 0.04


def test_full_disk() -> None:
    """If it broke: a full disk is not noticed, or breaks what was there."""
    with Simulation(1) as simulation:
        host = simulation.add_host()

        async def main() -> None:
            await host.store.commit([Write("t", b"a", b"1")])
            host.disk.is_full = True
            with pytest.raises(StoreError) as caught:
                await host.store.commit([Write("t", b"a", b"2"), Write("t", b"b", b"2")])
            assert caught.value.code == "disk-full"
            with pytest.raises(StoreError):
                await host.store.blobs.put(b"blob")
            assert await host.store.scan("t") == [(b"a", b"1")]
            host.disk.is_full = False
            await host.store.commit([Write("t", b"a", b"3")])
            assert await host.store.get("t", b"a") == b"3"
            with pytest.raises(LocalProtocolError):
                await host.store.blobs.put_path("/etc/hostname")

        simulation.run(main())


def test_a_crashed_hosts_disk_is_not_written_by_its_old_store() -> None:
    """If it broke: a process that is dead changes what its successor reads."""
    with Simulation(1) as simulation:
        host = simulation.add_host()

        async def main(host: SimHost) -> None:
            old = host.store
            simulation.crash(host)
            simulation.restart(host)
            with pytest.raises(StoreError):
                await old.commit([Write("t", b"a", b"1")])
            assert await host.store.get("t", b"a") is None

        simulation.run(main(host))
