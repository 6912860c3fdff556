"""The simulated network: datagrams, streams, refusals, cuts, crashes, LAN announcements."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import ChannelLost, ConfigError, LocalProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, LanAnnouncement, LanSighting
from p2pcompute.limits import DATAGRAM_QUEUE_MAX
from p2pcompute.simulation.access import LAN_EXPIRY_S, SimDatagrams
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.network import UDP_BYTES_MAX, NetworkSettings
from p2pcompute.simulation.streams import STREAM_WINDOW_BYTES, WRITE_HIGH_BYTES

PREAMBLE = bytes(range(40))
Serve = Callable[[SimHost, ByteStream], Awaitable[None]]


async def listen(host: SimHost, port: int = 7, serve: Serve | None = None, *, admits: bool = True) -> list[ByteStream]:
    """Listen on a host; returns the list to which accepted streams are added."""
    streams: list[ByteStream] = []

    def accept(stream: ByteStream, preamble: bytes) -> None:
        assert preamble == PREAMBLE
        streams.append(stream)
        if serve is not None:
            host.spawn(serve(host, stream), "serve")  # type: ignore[arg-type]

    await host.host.net.listen_stream(port, loopback_only=False, admit=lambda *_: admits, accept=accept)
    return streams


async def dial(host: SimHost, to: SimHost, port: int = 7, timeout_s: float = 5) -> ByteStream:
    return await host.host.net.dial_stream(Address(to.address, port), PREAMBLE, timeout_s=timeout_s)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.01)


async def pair(one: SimHost, other: SimHost) -> tuple[ByteStream, ByteStream]:
    accepted = await listen(other, 4000 + len(other.net.listeners))
    dialled = await dial(one, other, 4000 + len(other.net.listeners) - 1, timeout_s=1000)
    await until(lambda: bool(accepted))
    return dialled, accepted[0]


async def read_all(stream: ByteStream) -> bytes:
    parts = []
    while data := await stream.read(100_000):
        parts.append(data)
    return b"".join(parts)


# --- datagrams ------------------------------------------------------------------------------------


def test_datagrams_arrive_with_their_source_and_delay() -> None:
    """If it broke: replies go nowhere."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            a = await one.host.net.bind_datagram(0, loopback_only=False)
            b = await two.host.net.bind_datagram(500, loopback_only=False)
            assert b.port == 500 and a.port > 1023
            a.send(b"hello", Address(two.address, 500))
            assert await b.receive() == (b"hello", Address(one.address, a.port))
            base = simulation.network.base_delay_s(one.machine, two.machine)
            assert base <= simulation.now <= base * 1.2
            b.send(b"back", Address(one.address, a.port))
            assert (await a.receive())[0] == b"back"

        simulation.run(main())


def test_datagram_loss_is_as_stated() -> None:
    """If it broke: studies of loss study something else."""
    with Simulation(1, model=NetworkSettings(loss=0.2)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> int:
            a = await one.host.net.bind_datagram(1, loopback_only=False)
            b = await two.host.net.bind_datagram(1, loopback_only=False)
            assert isinstance(b, SimDatagrams)
            for _ in range(20):
                for _ in range(500):
                    a.send(b"x", Address(two.address, 1))
                await asyncio.sleep(1)
                while b._queue:
                    await b.receive()
            return simulation.network.counters.datagrams_delivered

        # 10,000 draws: five standard deviations are 200.
        assert abs(simulation.run(main()) - 8000) < 200
        assert simulation.network.counters.datagrams_lost == 10_000 - simulation.network.counters.datagrams_delivered


def test_datagram_queue_is_bounded_and_drops_the_newest() -> None:
    """If it broke: a flood makes a simulated node larger."""
    with Simulation(1, model=NetworkSettings(jitter=0)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            a = await one.host.net.bind_datagram(1, loopback_only=False)
            b = await two.host.net.bind_datagram(1, loopback_only=False)
            for number in range(DATAGRAM_QUEUE_MAX + 10):
                a.send(b"%d" % number, Address(two.address, 1))
            await asyncio.sleep(1)
            assert simulation.network.counters.datagrams_overflow == 10
            for number in range(DATAGRAM_QUEUE_MAX):
                assert (await b.receive())[0] == b"%d" % number
            a.send(bytes(UDP_BYTES_MAX + 1), Address(two.address, 1))
            a.send(b"x", Address("10.9.9.9", 1))
            a.send(b"x", Address(two.address, 2))
            await asyncio.sleep(1)
            counters = simulation.network.counters
            assert (counters.datagrams_oversize, counters.datagrams_unreachable) == (1, 2)

        simulation.run(main())


def test_closing_an_endpoint_ends_its_receiver_and_frees_the_port() -> None:
    """If it broke: a stopping node hangs, or cannot start again on its port."""
    with Simulation(1) as simulation:
        host = simulation.add_host()

        async def main() -> None:
            net = host.host.net
            a = await net.bind_datagram(1, loopback_only=False)
            with pytest.raises(ConfigError):
                await net.bind_datagram(1, loopback_only=False)
            waiting = simulation.loop.create_task(a.receive())
            await asyncio.sleep(0)
            with pytest.raises(LocalProtocolError):
                await a.receive()
            a.close()
            with pytest.raises(ChannelLost):
                await waiting
            (await net.bind_datagram(1, loopback_only=False)).send(b"", Address(host.address, 1))
            await net.close()
            with pytest.raises(ChannelLost):
                await net.bind_datagram(1, loopback_only=False)

        simulation.run(main())


def test_loopback_is_the_machines_own() -> None:
    """If it broke: a solo node can be reached from outside, or two nodes on one machine cannot meet."""
    with Simulation(1) as simulation:
        alone = simulation.add_host(is_loopback_only=True)
        beside = simulation.add_host(beside=alone)
        other = simulation.add_host()

        async def main() -> None:
            a = await alone.host.net.bind_datagram(1, loopback_only=False)
            b = await beside.host.net.bind_datagram(2, loopback_only=False)
            c = await other.host.net.bind_datagram(1, loopback_only=True)
            d = await other.host.net.bind_datagram(2, loopback_only=False)
            assert alone.host.net.local_addresses() == ["127.0.0.1"]
            a.send(b"x", Address("127.0.0.1", 2))
            assert await b.receive() == (b"x", Address("127.0.0.1", 1))
            d.send(b"x", Address("127.0.0.1", 1))
            assert await c.receive() == (b"x", Address("127.0.0.1", 2))
            a.send(b"x", Address(other.address, 2))
            d.send(b"x", Address(alone.address, 1))  # its own loopback
            assert (await c.receive())[1] == Address("127.0.0.1", 2)
            a.send(b"x", Address(other.address, 1))
            await asyncio.sleep(1)
            assert simulation.network.counters.datagrams_unreachable == 2
            with pytest.raises(ChannelLost):
                await dial(alone, other, 1, timeout_s=1)

        simulation.run(main())


def test_latency_is_symmetric_seeded_and_spread() -> None:
    """If it broke: the model is not the one that is documented."""

    def delays(seed: int) -> list[float]:
        with Simulation(seed) as simulation:
            machines = [simulation.add_host().machine for _ in range(60)]
            network = simulation.network
            pairs = [(one, other) for one in machines for other in machines if one.number < other.number]
            assert all(network.base_delay_s(*each) == network.base_delay_s(each[1], each[0]) for each in pairs)
            return [network.base_delay_s(*each) for each in pairs]

    first = delays(1)
    assert first == delays(1) != delays(2)
    assert 0.030 < statistics.median(first) < 0.040
    tenths = statistics.quantiles(first, n=20)
    assert 0.010 < tenths[0] < 0.016 and 0.080 < tenths[-1] < 0.110


# --- streams --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=12),
    reads=st.lists(st.integers(1, 200_000), min_size=1, max_size=5),
    loss=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_bytes_are_never_lost_doubled_or_reordered(sizes: list[int], reads: list[int], loss: float, seed: int) -> None:
    """If it broke: frames are corrupted for reasons that real networks do not have."""
    with Simulation(seed, model=NetworkSettings(loss=loss, jitter=2.0, keepalive_s=1e6)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()
        content = [random.Random(n).randbytes(size) for n, size in enumerate(sizes)]

        async def main() -> None:
            dialled, accepted = await pair(one, two)

            async def write() -> None:
                for data in content:
                    dialled.write(data)
                    await dialled.drain()
                dialled.close()

            task = simulation.loop.create_task(write())
            received = bytearray()
            turn = 0
            while True:
                limit = reads[turn % len(reads)]
                data = await accepted.read(limit)
                assert len(data) <= limit
                if not data:
                    break
                received += data
                turn += 1
            assert bytes(received) == b"".join(content)
            assert await accepted.read(1) == b""
            await task

        simulation.run(main())


def test_back_pressure_bounds_what_is_under_way() -> None:
    """If it broke: a peer that does not read makes the sender's memory grow without anybody waiting."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            written = 0
            blocked = False
            while not blocked:
                dialled.write(bytes(10_000))
                written += 10_000
                try:
                    async with asyncio.timeout(5):
                        await dialled.drain()
                except TimeoutError:
                    blocked = True
            assert STREAM_WINDOW_BYTES + WRITE_HIGH_BYTES < written <= STREAM_WINDOW_BYTES + WRITE_HIGH_BYTES + 10_000
            assert dialled.unsent_bytes == written - STREAM_WINDOW_BYTES
            drained = simulation.loop.create_task(dialled.drain())
            received = 0
            while received < written:
                received += len(await accepted.read(1 << 20))
            await drained
            assert dialled.unsent_bytes == 0

        simulation.run(main())


def test_both_ends_know_the_binding_and_the_address() -> None:
    """If it broke: the key proof above cannot work."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            other, _ = await pair(one, two)
            (listener, _) = two.net.listeners
            assert dialled.binding == accepted.binding == listener.binding != other.binding
            assert len(listener.binding) == 32
            assert dialled.peer_address == Address(two.address, listener.port)
            assert accepted.peer_address.host == one.address

        simulation.run(main())


def test_refusals() -> None:
    """If it broke: a node waits where it is told no at once, or gets in where it must not."""
    with Simulation(1) as simulation:
        one, two, strict = simulation.add_host(), simulation.add_host(), simulation.add_host()

        async def main() -> None:
            accepted = await listen(strict, admits=False)
            for to, why in ((two, "refused"), (strict, "closed")):
                started = simulation.now
                with pytest.raises(ChannelLost, match=why):
                    await dial(one, to)
                assert simulation.now - started < 1
            with pytest.raises(LocalProtocolError):
                await one.host.net.dial_stream(Address(two.address, 7), b"short", timeout_s=1)
            for address in (Address("10.99.0.1", 7), Address("nonsense", 7)):
                started = simulation.now
                with pytest.raises(ChannelLost, match="no answer"):
                    await one.host.net.dial_stream(address, PREAMBLE, timeout_s=3)
                assert simulation.now - started == pytest.approx(3)
            await asyncio.sleep(10)
            assert accepted == []
            counters = simulation.network.counters
            assert (counters.streams_refused, counters.streams_not_admitted, counters.streams_opened) == (1, 1, 0)

        simulation.run(main())


def test_dial_that_is_given_up_leaves_nothing_behind() -> None:
    """If it broke: the listener holds streams that nobody has."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            accepted = await listen(two)
            rtt = 2 * simulation.network.base_delay_s(one.machine, two.machine)
            for share in (0.3, 0.8, 1.3, 1.8, 2.0, 2.2, 2.4):
                task = simulation.loop.create_task(dial(one, two))
                await asyncio.sleep(rtt * share)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    task.result().abort()
            await asyncio.sleep(10)
            assert not one.net.streams and not two.net.streams
            for stream in accepted:
                with pytest.raises(ChannelLost):
                    await stream.read(1)

        simulation.run(main())


def test_close_and_abort() -> None:
    """If it broke: last words are lost on close, or a reset looks like an orderly end."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            dialled.write(b"last words")
            dialled.close()
            dialled.write(b"too late")
            assert await dialled.read(10) == b""
            assert await read_all(accepted) == b"last words"
            accepted.write(b"nobody there")
            with pytest.raises(ChannelLost):
                await accepted.drain()
            accepted.close()

            dialled, accepted = await pair(one, two)
            waiting = simulation.loop.create_task(accepted.read(10))
            await asyncio.sleep(0)
            dialled.write(b"x")
            await asyncio.sleep(1)
            assert await waiting == b"x"
            accepted.write(bytes(STREAM_WINDOW_BYTES + 2 * WRITE_HIGH_BYTES))
            drains = simulation.loop.create_task(accepted.drain())
            dialled.abort()
            with pytest.raises(ChannelLost):
                await drains
            with pytest.raises(ChannelLost):
                await accepted.read(10)
            with pytest.raises(ChannelLost):
                await dialled.read(10)
            accepted.close()
            accepted.abort()
            await asyncio.sleep(10)
            assert not one.net.streams and not two.net.streams

        simulation.run(main())


def test_closing_with_unsent_bytes_sends_them_first() -> None:
    """If it broke: the end of a large result is lost."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            content = random.Random(1).randbytes(3 * STREAM_WINDOW_BYTES)
            dialled.write(content)
            dialled.close()
            assert await read_all(accepted) == content

        simulation.run(main())


# --- faults ---------------------------------------------------------------------------------------


def test_a_killed_host_resets_and_refuses_a_silent_one_says_nothing() -> None:
    """If it broke: nodes notice crashes faster or slower than in reality."""
    for is_silent in (False, True):
        with Simulation(1) as simulation:
            one, two = simulation.add_host(), simulation.add_host()
            _crash_case(simulation, one, two, is_silent)


def _crash_case(simulation: Simulation, one: SimHost, two: SimHost, is_silent: bool) -> None:
    async def main() -> None:
        dialled, _ = await pair(one, two)
        quiet, _ = await pair(one, two)
        reading = simulation.loop.create_task(dialled.read(10))
        await asyncio.sleep(0)
        simulation.crash(two, is_silent=is_silent)
        started = simulation.now
        if is_silent:
            dialled.write(b"hello?")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(50):
                    await asyncio.shield(reading)
            with pytest.raises(ChannelLost, match="no answer"):
                await dial(one, two, 4000)
            simulation.restart(two)
            dialled.write(b"still there?")
            with pytest.raises(ChannelLost):
                await reading
            quiet.abort()
        else:
            with pytest.raises(ChannelLost):
                await reading
            with pytest.raises(ChannelLost, match="refused"):
                await dial(one, two, 4000)
            assert simulation.now - started < 1
            simulation.restart(two)
        dialled, accepted = await pair(one, two)
        dialled.write(b"again")
        assert await accepted.read(10) == b"again"

    simulation.run(main())


def test_a_short_cut_holds_a_streams_bytes_back_and_a_long_one_breaks_it() -> None:
    """If it broke: partitions lose bytes that TCP would deliver, or a sender never gives up."""
    with Simulation(1) as simulation:
        one, two, three = (simulation.add_host() for _ in range(3))

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            datagrams = await two.host.net.bind_datagram(1, loopback_only=False)
            sender = await one.host.net.bind_datagram(1, loopback_only=False)
            bystander = await three.host.net.bind_datagram(1, loopback_only=False)
            simulation.network.cut(one.machine, two.machine)
            for number in range(10):
                dialled.write(b"%d" % number)
                sender.send(b"lost", Address(two.address, 1))
            bystander.send(b"not cut", Address(two.address, 1))
            with pytest.raises(ChannelLost, match="no answer"):
                await dial(one, two, 4000, timeout_s=10)
            simulation.network.heal(one.machine, two.machine)
            dialled.write(b"end")
            dialled.close()
            assert await read_all(accepted) == b"0123456789end"
            assert (await datagrams.receive())[0] == b"not cut"

            dialled, accepted = await pair(one, two)
            started = simulation.now
            simulation.network.cut(one.machine, two.machine, both_ways=False)
            accepted.write(b"this way is open")
            assert await dialled.read(100) == b"this way is open"
            dialled.write(b"x")
            with pytest.raises(ChannelLost, match="reached"):
                await dialled.read(10)
            assert simulation.now - started == pytest.approx(NetworkSettings().keepalive_s)
            simulation.network.heal()
            accepted.write(b"anybody?")
            with pytest.raises(ChannelLost):
                await accepted.read(10)
            assert not simulation.network.stalled

        simulation.run(main())


# --- names and LAN --------------------------------------------------------------------------------


def test_resolve() -> None:
    """If it broke: `--peer HOST` cannot be tested."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host("one"), simulation.add_host("two")

        async def main() -> None:
            net = one.host.net
            assert await net.resolve("two", 5) == [Address(two.address, 5)]
            assert await net.resolve(two.address, 5) == [Address(two.address, 5)]
            assert await net.resolve("localhost", 5) == [Address("127.0.0.1", 5)]
            assert await net.resolve("nowhere", 5) == []

        simulation.run(main())


def test_lan_announcements_are_seen_on_the_same_lan_only() -> None:
    """If it broke: nodes find others that they could not see, or do not forget those that left."""
    with Simulation(1) as simulation:
        hosts = [simulation.add_host(lan=lan) for lan in ("home", "home", "home", "office", None)]
        seen: list[list[LanSighting]] = [[] for _ in hosts]

        def announcement(number: int) -> LanAnnouncement:
            return LanAnnouncement(public_key=bytes([number]) * 32, name=f"n{number}", port=number, group_hint=b"")

        async def main() -> None:
            await hosts[0].host.net.announce(announcement(1))
            for host, log in zip(hosts, seen, strict=True):
                await host.host.net.browse(log.append)
            await asyncio.sleep(5)
            assert [len(log) for log in seen] == [0, 1, 1, 0, 0]
            sighting = seen[1][0]
            assert sighting.announcement == announcement(1) and sighting.is_present
            assert sighting.addresses == (hosts[0].address,)
            await hosts[1].host.net.announce(announcement(2))
            await asyncio.sleep(5)
            assert [len(log) for log in seen] == [1, 1, 2, 0, 0]
            await hosts[0].host.net.announce(None)
            await hosts[2].host.net.browse(None)
            await asyncio.sleep(5)
            assert [each.is_present for each in seen[1]] == [True, False]
            assert len(seen[2]) == 2
            simulation.crash(hosts[1])
            await asyncio.sleep(LAN_EXPIRY_S / 2)
            assert [each.is_present for each in seen[0]] == [True]
            await asyncio.sleep(LAN_EXPIRY_S)
            assert [each.is_present for each in seen[0]] == [True, False]

        simulation.run(main())
