"""Streams on lines of limited speed, under loss, and with peers that fall silent."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address, ByteStream
from p2pcompute.limits import KIB, MIB
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.network import NetworkSettings
from p2pcompute.simulation.streams import SEGMENT_BYTES, SEGMENT_HEADER_BYTES
from tests.simulation.test_network import dial, listen, pair, read_all, until

OVERHEAD = 1 + SEGMENT_HEADER_BYTES / SEGMENT_BYTES


async def send_all(stream: ByteStream, size: int) -> None:
    while size > 0:
        stream.write(bytes(min(size, 64 * KIB)))
        await stream.drain()
        size -= 64 * KIB
    stream.close()


async def transfer_s(simulation: Simulation, streams: list[tuple[ByteStream, ByteStream]], size: int) -> list[float]:
    """Send `size` bytes over each at the same time; how long each took."""
    started = simulation.now
    took = []

    async def receive(stream: ByteStream) -> None:
        assert len(await read_all(stream)) == size
        took.append(simulation.now - started)

    async with asyncio.TaskGroup() as tasks:
        for sender, receiver in streams:
            tasks.create_task(send_all(sender, size))
            tasks.create_task(receive(receiver))
    return took


# --- bandwidth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_up", [True, False])
def test_a_transfer_takes_as_long_as_the_line_makes_it(is_up: bool) -> None:
    """If it broke: moving a gigabyte of results costs nothing in the simulator."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()
        if is_up:
            simulation.network.set_line(one.machine, up_bytes_per_s=1e6, down_bytes_per_s=0)
        else:
            simulation.network.set_line(two.machine, up_bytes_per_s=0, down_bytes_per_s=1e6)

        async def main() -> None:
            assert (await transfer_s(simulation, [await pair(one, two)], 4 * MIB))[0] == pytest.approx(
                4 * MIB * OVERHEAD / 1e6, rel=0.05
            )

        simulation.run(main())


def test_streams_share_a_line_fairly() -> None:
    """If it broke: the transfer that came first starves all others."""
    with Simulation(1, model=NetworkSettings(up_bytes_per_s=1e6)) as simulation:
        one = simulation.add_host()
        others = [simulation.add_host() for _ in range(4)]

        async def main() -> None:
            took = await transfer_s(simulation, [await pair(one, other) for other in others], MIB)
            assert max(took) == pytest.approx(4 * MIB * OVERHEAD / 1e6, rel=0.1)
            assert min(took) > 0.75 * max(took)  # the first to come fills the queue

        simulation.run(main())


def test_a_transfer_delays_datagrams_by_the_queue_and_does_not_drop_them() -> None:
    """If it broke: no bufferbloat, so that timeouts that are too short look good; or a transfer kills all gossip."""
    model = NetworkSettings(up_bytes_per_s=250e3, queue_bytes=250_000)
    with Simulation(1, model=model) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            sender = await one.host.net.bind_datagram(1, loopback_only=False)
            receiver = await two.host.net.bind_datagram(1, loopback_only=False)
            streams = [await pair(one, two) for _ in range(3)]
            transfers = simulation.loop.create_task(transfer_s(simulation, streams, MIB))
            await asyncio.sleep(3)
            delays = []
            for _ in range(8):
                sent_at = simulation.now
                sender.send(bytes(1000), Address(two.address, 1))
                async with asyncio.timeout(5):
                    await receiver.receive()
                delays.append(simulation.now - sent_at)
            assert 0.8 < min(delays) < max(delays) < 1.2
            await transfers
            sent_at = simulation.now
            sender.send(bytes(1000), Address(two.address, 1))
            await receiver.receive()
            assert simulation.now - sent_at < 0.3

        simulation.run(main())


@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from([0, 20e3, 1e6]), st.sampled_from([0, 20e3, 1e6])), max_size=6),
    loss=st.sampled_from([0.0, 0.05]),
    cuts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_order_survives_lines_that_change(
    changes: list[tuple[float, float]], loss: float, cuts: bool, seed: int
) -> None:
    """If it broke: a fault of bandwidth corrupts streams, and every node looks broken."""
    with Simulation(seed, model=NetworkSettings(loss=loss, jitter=1.0, keepalive_s=1e6)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()
        content = random.Random(seed).randbytes(400_000)

        async def main() -> None:
            dialled, accepted = await pair(one, two)

            async def write() -> None:
                for start in range(0, len(content), 7000):
                    dialled.write(content[start : start + 7000])
                    await dialled.drain()
                dialled.close()

            async def change() -> None:
                for up, down in changes:
                    simulation.network.set_line(one.machine, up_bytes_per_s=up, down_bytes_per_s=0)
                    simulation.network.set_line(two.machine, up_bytes_per_s=0, down_bytes_per_s=down)
                    await asyncio.sleep(0.3)
                    if cuts:
                        simulation.network.cut(one.machine, two.machine)
                        await asyncio.sleep(0.3)
                        simulation.network.heal()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(write())
                tasks.create_task(change())
                received = await read_all(accepted)
            assert received == content

        simulation.run(main())


# --- loss -----------------------------------------------------------------------------------------


def test_what_is_lost_comes_after_timeouts_that_double() -> None:
    """If it broke: streams hide loss, and a lossy network looks like a good one."""

    def delays_s(loss: float) -> list[float]:
        with Simulation(1, model=NetworkSettings(loss=loss, jitter=0)) as simulation:
            one, two = simulation.add_host(), simulation.add_host()

            async def main() -> list[float]:
                dialled, accepted = await pair(one, two)
                found = []
                for _ in range(300):
                    sent_at = simulation.now
                    dialled.write(b"x")
                    await accepted.read(1)
                    found.append(simulation.now - sent_at)
                    await asyncio.sleep(30)
                return found

            delay_s = simulation.network.base_delay_s(one.machine, two.machine)
            timeout_s = 0.2 + 2 * delay_s
            lateness = [(found - delay_s) / timeout_s for found in simulation.run(main())]
            assert all(late == pytest.approx(2 ** round(late + 1).bit_length() / 2 - 1, abs=1e-6) for late in lateness)
            return lateness

    assert set(map(round, delays_s(0.0))) == {0}
    late = list(map(round, delays_s(0.3)))
    assert late.count(0) / 300 == pytest.approx(0.7, abs=0.1)
    assert late.count(1) / 300 == pytest.approx(0.21, abs=0.08)
    assert set(late) <= {0, 1, 3, 7, 15, 31} and 3 in late


def test_a_long_piece_is_mended_within_a_round_trip() -> None:
    """If it broke: every loss in a long transfer costs a whole timeout, as no TCP of today does."""
    with Simulation(1, model=NetworkSettings(loss=0.01, jitter=0, median_s=0.001)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            took = await transfer_s(simulation, [await pair(one, two)], 4 * MIB)
            assert took[0] < 4

        simulation.run(main())


# --- silence --------------------------------------------------------------------------------------


async def broken_at(simulation: Simulation, stream: ByteStream) -> float:
    with pytest.raises(ChannelLost):
        await stream.read(100)
    return simulation.now


@pytest.mark.parametrize("keepalive_s", [5.0, 60.0])
@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("what", ["power", "cut", "one way", "other way", "partition", "move", "sleep"])
def test_an_end_whose_peer_falls_silent_breaks_after_the_keepalive(
    what: str, is_busy: bool, keepalive_s: float
) -> None:
    """If it broke: channels to dead peers live for ever, or break at the first hiccup."""
    with Simulation(1, model=NetworkSettings(keepalive_s=keepalive_s)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()
        network = simulation.network

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            await asyncio.sleep(100)
            started = simulation.now
            match what:
                case "power":
                    simulation.crash(two, is_silent=True)
                case "cut":
                    network.cut(one.machine, two.machine)
                case "one way":
                    network.cut(one.machine, two.machine, both_ways=False)
                case "other way":
                    network.cut(two.machine, one.machine, both_ways=False)
                case "partition":
                    network.part([one.machine], [two.machine])
                case "move":
                    network.move(two.machine)
                case _:
                    network.unplug(two.machine)
            if is_busy:
                dialled.write(b"hello?")
            if what in ("power", "sleep"):
                assert await broken_at(simulation, dialled) - started == pytest.approx(keepalive_s)
            else:
                ends = (broken_at(simulation, dialled), asyncio.sleep(keepalive_s + 0.1))
                assert (await asyncio.gather(*ends))[0] - started == pytest.approx(keepalive_s)
                if not is_busy or what != "other way":  # there the bytes arrived before the end broke
                    assert await broken_at(simulation, accepted) - started < keepalive_s + 0.2
            if what == "sleep":
                await asyncio.sleep(100)
                network.plug(two.machine)
                woken = simulation.now
                assert await broken_at(simulation, accepted) - woken == pytest.approx(keepalive_s)
            assert not network.stalled

        simulation.run(main())


def test_a_silence_that_ends_in_time_breaks_nothing() -> None:
    """If it broke: every flapping route kills all channels."""
    with Simulation(1, model=NetworkSettings(keepalive_s=20)) as simulation:
        one, two, three = (simulation.add_host() for _ in range(3))
        network = simulation.network

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            for _ in range(5):
                partition = network.part([one.machine], [two.machine])
                dialled.write(b"a")
                await asyncio.sleep(15)
                network.cut(one.machine, three.machine)
                network.heal(three.machine)  # heals something else
                assert network.stalled
                network.join(partition)
                await asyncio.sleep(1)
                assert not network.stalled
            await asyncio.sleep(100)
            assert await accepted.read(100) == b"aaaaa"
            accepted.write(b"fine")
            assert await dialled.read(100) == b"fine"

        simulation.run(main())


def test_healing_something_else_prolongs_no_patience() -> None:
    """If it broke: with many small faults, a dead channel never breaks."""
    with Simulation(1, model=NetworkSettings(keepalive_s=20)) as simulation:
        hosts = [simulation.add_host() for _ in range(4)]
        one, two, three, four = (host.machine for host in hosts)

        async def main() -> None:
            dialled, _ = await pair(hosts[0], hosts[1])
            started = simulation.now
            simulation.network.cut(one, two)

            async def flap() -> None:
                for _ in range(10):
                    partition = simulation.network.part([three], [four])
                    await asyncio.sleep(3)
                    simulation.network.join(partition)

            flapping = simulation.loop.create_task(flap())
            assert await broken_at(simulation, dialled) - started == pytest.approx(20)
            await flapping

        simulation.run(main())


def test_what_a_cut_held_back_comes_at_the_next_retransmission() -> None:
    """If it broke: streams are back at the instant at which a partition heals, as no TCP is."""
    with Simulation(1, model=NetworkSettings(jitter=0)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            delay_s = simulation.network.base_delay_s(one.machine, two.machine)
            simulation.network.cut(one.machine, two.machine)
            cut_at = simulation.now
            dialled.write(b"one")
            await asyncio.sleep(10)
            dialled.write(b"two")
            simulation.network.heal()
            dialled.write(b"three")
            # Sent after 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s.
            assert await accepted.read(3) == b"one"
            assert simulation.now - cut_at == pytest.approx(12.6 + delay_s)
            dialled.close()
            assert await read_all(accepted) == b"twothree"

        simulation.run(main())


def test_a_reset_across_a_cut_is_lost() -> None:
    """If it broke: a process that is killed behind a partition tells everybody through it."""
    with Simulation(1, model=NetworkSettings(keepalive_s=30)) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            simulation.network.cut(one.machine, two.machine)
            await asyncio.sleep(1)
            accepted.abort()
            await asyncio.sleep(1)
            simulation.network.heal()
            healed = simulation.now
            assert await broken_at(simulation, dialled) - healed == pytest.approx(28)

            dialled, accepted = await pair(one, two)
            simulation.network.cut(one.machine, two.machine)
            simulation.crash(two)
            await asyncio.sleep(1)
            simulation.network.heal()
            dialled.write(b"anybody?")
            sent = simulation.now
            assert await broken_at(simulation, dialled) - sent < 1

        simulation.run(main())


def test_closing_across_a_cut_ends_the_stream_when_it_heals() -> None:
    """If it broke: last words are lost by a partition that ends in time."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            dialled, accepted = await pair(one, two)
            simulation.network.cut(one.machine, two.machine)
            dialled.write(b"goodbye")
            dialled.close()
            await asyncio.sleep(5)
            simulation.network.heal()
            assert await read_all(accepted) == b"goodbye"
            assert not one.net.streams and not two.net.streams and not simulation.network.stalled

        simulation.run(main())


def test_a_stream_that_is_made_during_a_cut_breaks_too() -> None:
    """If it broke: a handshake that crosses the beginning of a partition leaves ends that wait for ever."""
    for share in (1.1, 1.6, 2.1, 2.4):
        with Simulation(1, model=NetworkSettings(jitter=0, keepalive_s=10)) as simulation:
            one, two = simulation.add_host(), simulation.add_host()

            async def main(simulation: Simulation, one: SimHost, two: SimHost, share: float) -> None:
                accepted = await listen(two)
                rtt_s = 2 * simulation.network.base_delay_s(one.machine, two.machine)
                dialling = simulation.loop.create_task(dial(one, two))
                await asyncio.sleep(rtt_s * share)
                simulation.network.cut(one.machine, two.machine)
                await asyncio.sleep(30)
                for stream in accepted:
                    await broken_at(simulation, stream)
                await asyncio.gather(dialling, return_exceptions=True)
                if dialling.exception() is None:
                    await broken_at(simulation, dialling.result())
                assert not one.net.streams and not two.net.streams

            simulation.run(main(simulation, one, two, share))


def test_ten_thousand_idle_streams_cost_no_events() -> None:
    """If it broke: keepalive itself is what an idle simulation does."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            accepted = await listen(two)
            for _ in range(50):
                await dial(one, two)
            await until(lambda: len(accepted) == 50)
            before = simulation.loop.events
            await asyncio.sleep(3600)
            assert simulation.loop.events - before < 60  # the dials' own timers

        simulation.run(main())
