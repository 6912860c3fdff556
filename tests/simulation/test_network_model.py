"""What the network does to datagrams: bursts, duplicates, order, access lines, partitions, other addresses."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address
from p2pcompute.simulation.access import SimDatagrams
from p2pcompute.simulation.host import SimHost, Simulation
from p2pcompute.simulation.machines import Machine
from p2pcompute.simulation.network import UDP_HEADER_BYTES, NetworkSettings
from p2pcompute.simulation.paths import BURST_PATHS_MAX, BurstLoss
from tests.simulation.test_network import dial, pair

ROOT = Path(__file__).parents[2]


async def bind(host: SimHost, port: int = 1) -> SimDatagrams:
    endpoint = await host.host.net.bind_datagram(port, loopback_only=False)
    assert isinstance(endpoint, SimDatagrams)
    return endpoint


def passes(simulation: Simulation, sender: Machine, receiver: Machine) -> bool:
    return not simulation.network.is_cut(sender, receiver)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.0}, {"loss": -0.1}, {"jitter": -1}, {"median_s": 0}, {"latency": "moon"}, {"burst_of": "node"},
        {"lost": 0.1}, {"nat": {"symmetric": 2}}, {"nat": {"cgnat": 0.6, "symmetric": 0.6}}, {"queue_bytes": 100},
        {"up_bytes_per_s": -1}, {"keepalive_s": 0},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    """If it broke: a mistyped scenario runs, and answers another question."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, NetworkSettings)


def test_settings_go_through_text() -> None:
    """If it broke: scenarios cannot be sent to other processes."""
    found = msgspec.toml.decode(b'latency = "king"\nloss = 0.01\n[nat]\nsymmetric = 0.5\n', type=NetworkSettings)
    assert (found.latency, found.loss, found.nat.symmetric) == ("king", 0.01, 0.5)
    assert msgspec.json.decode(msgspec.json.encode(found), type=NetworkSettings) == found


def test_the_model_can_be_replaced_while_the_simulation_runs() -> None:
    """If it broke: faults of the network have no effect, or do not end."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host(), simulation.add_host()
        network, before = simulation.network, simulation.network.settings

        async def arrived(a: SimDatagrams, b: SimDatagrams) -> int:
            for _ in range(200):
                a.send(b"x", Address(two.address, 1))
            await asyncio.sleep(5)
            count = len(b._queue)
            b._queue.clear()
            return count

        async def main() -> None:
            a, b = await bind(one), await bind(two)
            delay_s = network.base_delay_s(one.machine, two.machine)
            assert await arrived(a, b) == 200
            network.apply(msgspec.structs.replace(before, loss=0.5, median_s=before.median_s * 2))
            assert 60 < await arrived(a, b) < 140
            assert network.base_delay_s(one.machine, two.machine) == pytest.approx(2 * delay_s)
            network.apply(msgspec.structs.replace(before, up_bytes_per_s=290.0, queue_bytes=2900))
            assert 48 <= await arrived(a, b) <= 50  # 29 bytes each: ten a second
            await asyncio.sleep(10)
            b._queue.clear()
            network.apply(before)
            assert await arrived(a, b) == 200
            assert network.base_delay_s(one.machine, two.machine) == delay_s

        simulation.run(main())


# --- loss, duplicates, order ----------------------------------------------------------------------


def lost_runs(simulation: Simulation, sender: Machine, receiver: Machine, count: int, step_s: float) -> list[int]:
    """Lengths of the runs of losses in a steady flow of packets."""
    network = simulation.network
    lost = [network.draw_loss() < network.loss(sender, receiver, number * step_s) for number in range(count)]
    return [len(list(run)) for is_lost, run in itertools.groupby(lost) if is_lost]


def test_bursts_are_as_long_and_as_frequent_as_stated() -> None:
    """If it broke: "bursty" loss is not bursty, and retries always work."""
    model = NetworkSettings(burst_share=0.1, burst_s=2.0, burst_loss=1.0)
    with Simulation(1, model=model) as simulation:
        one, two = simulation.add_host().machine, simulation.add_host().machine
        runs = lost_runs(simulation, one, two, 400_000, 0.1)
        # 40,000 s: about 2,000 bursts of 20 packets.
        assert sum(runs) / 400_000 == pytest.approx(0.1, rel=0.1)
        assert statistics.mean(length for length in runs if length > 1) == pytest.approx(20, rel=0.15)
    with Simulation(1, model=NetworkSettings(loss=0.1)) as simulation:
        one, two = simulation.add_host().machine, simulation.add_host().machine
        assert statistics.mean(lost_runs(simulation, one, two, 20_000, 0.1)) < 1.2


@pytest.mark.parametrize("of", ["path", "line"])
def test_a_burst_is_of_a_path_or_of_a_line(of: str) -> None:
    """If it broke: a home with bad radio loses to one peer and not to the others."""
    model = msgspec.convert({"burst_share": 0.5, "burst_s": 1000, "burst_loss": 1.0, "burst_of": of}, NetworkSettings)
    with Simulation(1, model=model) as simulation:
        one, *others = (simulation.add_host().machine for _ in range(40))
        is_bad = [simulation.network.loss(one, other, 0.0) > 0 for other in others]
        assert len(set(is_bad)) == (1 if of == "line" else 2)
        assert [simulation.network.loss(one, other, 0.001) > 0 for other in others] == is_bad
        back = [simulation.network.loss(other, one, 0.0) > 0 for other in others]
        assert back != is_bad and len(set(back)) == 2


def test_bursts_forget_and_remember_boundedly() -> None:
    """If it broke: memory grows with the pairs that ever spoke, or a burst lasts for ever."""
    bursts = BurstLoss(0.5, 1.0, 1.0, random.Random(1).random)
    first = [bursts.loss(path, 0.0) for path in range(1000)]
    assert [bursts.loss(path, 1e-6) for path in range(1000)] == first
    later = [bursts.loss(path, 100.0) for path in range(1000)]
    assert 400 < sum(one == other for one, other in zip(first, later, strict=True)) < 600
    assert bursts.loss(1, 99.0) == later[1]  # a little in the past
    for path in range(BURST_PATHS_MAX + 1000):
        bursts.loss(path, 200.0)
    assert len(bursts._states) == BURST_PATHS_MAX


def test_duplicates_and_datagrams_that_others_overtake() -> None:
    """If it broke: nobody ever notices that a node counts a datagram twice."""
    model = NetworkSettings(duplicate=0.2, reorder=0.2, reorder_s=1.0, jitter=0)
    with Simulation(1, model=model) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> list[int]:
            a, b = await bind(one), await bind(two)
            found = []
            for number in range(1000):
                a.send(b"%d" % number, Address(two.address, 1))
                await asyncio.sleep(0.01)
                while b._queue:
                    found.append(int((await b.receive())[0]))
            await asyncio.sleep(3)
            return found + [int((await b.receive())[0]) for _ in range(len(b._queue))]

        found = simulation.run(main())
        counters = simulation.network.counters
        times = Counter(found)
        assert set(times) == set(range(1000)) and set(times.values()) == {1, 2}
        assert len(found) - 1000 == counters.datagrams_duplicated == pytest.approx(200, abs=50)
        assert counters.datagrams_held_up == pytest.approx(240, abs=60)
        assert found != sorted(found)


def test_nothing_happens_to_what_stays_on_a_machine() -> None:
    """If it broke: a daemon and its tools lose what they say to each other."""
    model = NetworkSettings(loss=0.9, duplicate=0.9, reorder=0.9, burst_share=0.5, up_bytes_per_s=1, down_bytes_per_s=1)
    with Simulation(1, model=model) as simulation:
        one = simulation.add_host()
        two = simulation.add_host(beside=one)

        async def main() -> None:
            a, b = await bind(one), await bind(two, 2)
            for address in (one.address, "127.0.0.1"):
                for _ in range(100):
                    a.send(b"x" * 100, Address(address, 2))
                await asyncio.sleep(0.01)
            assert len(b._queue) == 200

        simulation.run(main())


# --- access lines ---------------------------------------------------------------------------------


def test_a_line_takes_its_time_and_drops_what_has_no_room() -> None:
    """If it broke: a flood costs its sender nothing."""
    model = NetworkSettings(jitter=0, up_bytes_per_s=10_000, queue_bytes=10_000)
    with Simulation(1, model=model) as simulation:
        one, two = simulation.add_host(), simulation.add_host()

        async def main() -> None:
            a, b = await bind(one), await bind(two)
            for _ in range(25):
                a.send(bytes(1000 - UDP_HEADER_BYTES), Address(two.address, 1))
            assert simulation.network.counters.datagrams_line_full == 15
            delay_s = simulation.network.base_delay_s(one.machine, two.machine)
            for number in range(10):
                await b.receive()
                assert simulation.now == pytest.approx(delay_s + 0.1 * (number + 1))

        simulation.run(main())


def test_the_line_of_the_receiver_is_shared_by_all_who_send_to_it() -> None:
    """If it broke: a popular node answers everybody as if it were alone with each."""
    with Simulation(1, model=NetworkSettings(jitter=0)) as simulation:
        hosts = [simulation.add_host() for _ in range(11)]
        target = hosts[0]
        simulation.network.set_line(target.machine, up_bytes_per_s=0, down_bytes_per_s=10_000)

        async def main() -> None:
            b = await bind(target)
            for host in hosts[1:]:
                a = await bind(host)
                for _ in range(2):
                    a.send(bytes(1000 - UDP_HEADER_BYTES), Address(target.address, 1))
            for _ in range(20):
                await b.receive()
            assert 2 < simulation.now < 2.3
            simulation.network.unset_line(target.machine)
            assert target.machine.down is None

        simulation.run(main())


# --- partitions -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    sides=st.lists(st.sampled_from([None, 0, 1, 2]), min_size=2, max_size=8),
    is_one_way=st.booleans(),
)
def test_partitions_are_as_drawn(sides: list[int | None], is_one_way: bool) -> None:
    """If it broke: an asymmetric or partial partition is a full one, or none."""
    with Simulation(1) as simulation:
        machines = [simulation.add_host().machine for _ in sides]
        groups = [[m for m, side in zip(machines, sides, strict=True) if side == number] for number in range(3)]
        partition = simulation.network.part(*groups, is_one_way=is_one_way)
        for (one, a), (other, b) in itertools.permutations(zip(machines, sides, strict=True), 2):
            is_bridged = a is None or b is None or a == b
            assert passes(simulation, one, other) == (is_bridged or (is_one_way and (a or 0) > (b or 0)))
        simulation.network.join(partition)
        assert all(passes(simulation, one, other) for one, other in itertools.permutations(machines, 2))


def test_overlapping_partitions_and_cuts_end_one_by_one() -> None:
    """If it broke: the end of one fault mends another."""
    with Simulation(1) as simulation:
        one, two, three = (simulation.add_host().machine for _ in range(3))
        network = simulation.network
        first = network.part([one], [two, three])
        second = network.part([one, two], [three])
        network.cut(one, three)
        network.join(first)
        assert passes(simulation, one, two) and not passes(simulation, two, three)
        network.join(first)  # twice does nothing
        network.join(second)
        assert passes(simulation, two, three) and not passes(simulation, one, three)
        network.part([one], [two])
        network.heal(one, three)
        assert passes(simulation, one, three) and not passes(simulation, one, two)
        network.heal()
        assert passes(simulation, one, two)


def test_a_thousand_machines_are_parted_at_a_cost_per_machine() -> None:
    """If it broke: a partition of a large mesh takes a quarter of a million entries."""
    with Simulation(1) as simulation:
        machines = [simulation.network.add_machine() for _ in range(1000)]
        partition = simulation.network.part(machines[:500], machines[500:])
        assert len(partition._sides) == 1000 and not simulation.network._cuts
        assert not passes(simulation, machines[0], machines[999]) and passes(simulation, machines[0], machines[499])


def test_datagrams_and_dials_do_not_pass_a_partition() -> None:
    """If it broke: partitions cut nothing."""
    with Simulation(1) as simulation:
        one, bridge, two = (simulation.add_host() for _ in range(3))

        async def main() -> None:
            a, c, b = await bind(one), await bind(bridge), await bind(two)
            partition = simulation.network.part([one.machine], [two.machine])
            a.send(b"x", Address(two.address, 1))
            a.send(b"x", Address(bridge.address, 1))
            c.send(b"y", Address(two.address, 1))
            assert (await b.receive())[0] == b"y" and (await c.receive())[0] == b"x"
            assert simulation.network.counters.datagrams_cut == 1
            with pytest.raises(ChannelLost, match="no answer"):
                await dial(one, two)
            simulation.network.join(partition)
            await pair(one, two)

        simulation.run(main())


# --- other addresses ------------------------------------------------------------------------------


def test_a_machine_that_moves_is_found_at_its_new_address_only() -> None:
    """If it broke: contacts are never stale in the simulator."""
    with Simulation(1) as simulation:
        one, two = simulation.add_host("one"), simulation.add_host("two")

        async def main() -> None:
            a, b = await bind(one), await bind(two)
            old = two.address
            stream, _ = await pair(one, two)
            new = simulation.network.move(two.machine)
            assert new == two.address != old and two.host.net.local_addresses() == [new]
            a.send(b"old", Address(old, 1))
            a.send(b"new", Address(new, 1))
            assert await b.receive() == (b"new", Address(one.address, 1))
            b.send(b"from", Address(one.address, 1))
            assert (await a.receive())[1] == Address(new, 1)
            assert simulation.network.counters.datagrams_unreachable == 1
            assert await one.host.net.resolve("two", 7) == [Address(new, 7)]
            with pytest.raises(ChannelLost, match="reached"):
                await stream.read(1)
            with pytest.raises(ChannelLost, match="no answer"):
                await one.host.net.dial_stream(Address(old, 4000), bytes(range(40)), timeout_s=1)
            await pair(one, two)
            with pytest.raises(ValueError, match="loopback"):
                simulation.network.move(simulation.add_host(is_loopback_only=True).machine)

        simulation.run(main())


# --- the same again -------------------------------------------------------------------------------

PROGRAM = """
import asyncio, random
from p2pcompute.host.interfaces import Address
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.nat import NatKind, NatSettings
from p2pcompute.simulation.network import NetworkSettings

model = NetworkSettings(
    latency="regions", loss=0.02, burst_share=0.1, duplicate=0.05, reorder=0.1, up_bytes_per_s=20e3,
    down_bytes_per_s=50e3, queue_bytes=2500, keepalive_s=10.0,
    nat=NatSettings(full_cone=0.2, restricted=0.1, port_restricted=0.2, symmetric=0.1, cgnat=0.3, mapping_s=5.0),
)

async def node(host, hosts):
    rng, net = host.host.rng.stream("choice"), host.host.net
    def accept(stream, preamble):
        async def echo():
            while data := await stream.read(5000):
                stream.write(data)
        host.spawn(quietly(echo()), "echo")
    await net.listen_stream(7, loopback_only=False, admit=lambda *_: True, accept=accept)
    endpoint = await net.bind_datagram(1, loopback_only=False)
    async def answer():
        while True:
            data, source = await endpoint.receive()
            if rng.random() < 0.7:
                endpoint.send(data, source)
    host.spawn(answer(), "answer")
    async def talk():
        stream = await net.dial_stream(Address(rng.choice(hosts[:4]).machine.public_address, 7), bytes(40), timeout_s=5)
        for _ in range(10):
            stream.write(rng.randbytes(9000))
            await stream.read(100_000)
        stream.close()
    for _ in range(30):
        await host.host.clock.sleep(rng.random())
        endpoint.send(rng.randbytes(300), Address(rng.choice(hosts).machine.public_address, 1))
        host.spawn(quietly(talk()), "talk")

async def quietly(coroutine):
    try:
        await coroutine
    except Exception:
        pass

async def faults(simulation):
    network, rng = simulation.network, random.Random("faults")
    machines = [host.machine for host in simulation.hosts]
    for _ in range(10):
        await asyncio.sleep(2)
        rng.shuffle(machines)
        network.move(machines[0])
        network.rebind(machines[1])
        network.set_line(machines[2], up_bytes_per_s=3e3, down_bytes_per_s=0)
        for _ in range(3):
            partition = network.part(machines[:4], machines[4:8])
            await asyncio.sleep(rng.random())
            network.join(partition)
            await asyncio.sleep(rng.random())

async def main(simulation):
    simulation.loop.create_task(faults(simulation))
    await asyncio.gather(*(host.call(node(host, simulation.hosts)) for host in simulation.hosts))
    await asyncio.sleep(60)

with Simulation(1, model=model) as simulation:
    for number in range(12):
        simulation.add_host(nat=NatKind.NONE if number < 4 else None)
    simulation.run(main(simulation))
    print(simulation.trace_hash(), simulation.loop.events, simulation.network.counters)
"""


def test_the_same_seed_gives_the_same_trace_with_all_that_the_model_has() -> None:
    """If it broke: a failure that needs a bad network cannot be looked at again."""
    outputs = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "error", "-c", PROGRAM]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    counters = dict(item.split("=") for item in outputs[0].partition("(")[2].rstrip(")\n").split(", "))
    assert all(
        int(counters[name]) > 0
        for name in (
            "datagrams_lost", "datagrams_filtered", "datagrams_line_full", "datagrams_duplicated", "datagrams_held_up",
            "datagrams_delivered", "streams_opened", "segments_held",
        )
    ), outputs[0]  # fmt: skip
