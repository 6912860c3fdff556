"""The virtual-time loop: order, time, fences, failures, bounds, and the same trace for the same seed."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.simulation.fences import RealWorldCall
from p2pcompute.simulation.loop import CANCELLED_TIMERS_MIN, Deadlock, RunFailed, RunLimit, SimulationLoop
from p2pcompute.simulation.trace import Kind, Trace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop()
    yield loop
    loop.close()


def test_events_run_by_time_then_by_order_of_scheduling(loop: SimulationLoop) -> None:
    """If it broke: runs differ, or effects come before their causes."""
    seen: list[str] = []

    async def main() -> None:
        start = loop.time()
        loop.call_later(2, seen.append, "timer 2 a")
        loop.post(start + 2, seen.append, "raw 2")
        loop.call_later(2, seen.append, "timer 2 b")
        loop.call_later(1, seen.append, "timer 1")
        loop.call_soon(seen.append, "soon a")
        loop.call_soon(seen.append, "soon b")
        loop.call_later(1.5, seen.append, "cancelled").cancel()
        await asyncio.sleep(3)
        assert loop.time() == start + 3

    loop.run(main())
    assert seen == ["soon a", "soon b", "timer 1", "timer 2 a", "raw 2", "timer 2 b"]


def test_virtual_hours_take_no_time(loop: SimulationLoop) -> None:
    """If it broke: simulations run in real time.  (The bound is generous: an hour would be 3600 s.)"""
    started = time.monotonic()
    loop.run(asyncio.sleep(3600 * 1000))
    assert loop.time() == 3600 * 1000
    assert time.monotonic() - started < 60


def test_asyncio_primitives(loop: SimulationLoop) -> None:
    """If it broke: node code cannot run here unchanged."""

    async def main() -> list[str]:
        log: list[str] = []
        queue: asyncio.Queue[int] = asyncio.Queue(2)
        event, lock, room = asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2)

        async def produce() -> None:
            for number in range(5):
                await queue.put(number)
                await asyncio.sleep(0.1)
            event.set()

        async def consume() -> None:
            for _ in range(5):
                log.append(f"got {await queue.get()}")

        async def guarded(name: str) -> None:
            async with lock, room:
                await asyncio.sleep(0.01)
                log.append(name)

        tasks = [loop.create_task(coroutine) for coroutine in (produce(), consume(), guarded("a"), guarded("b"))]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await event.wait()
        assert loop.time() == 0.2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), 0.1)
        await asyncio.gather(*tasks)
        assert event.is_set()
        async with asyncio.timeout(1):
            pass
        sleeper = loop.create_task(asyncio.sleep(5))
        loop.call_later(0.5, sleeper.cancel)
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        for _ in range(3):
            await asyncio.sleep(0)
        return log

    assert loop.run(main()) == ["got 0", "a", "b", "got 1", "got 2", "got 3", "got 4"]


def test_polling_does_not_starve_timers_due_now(loop: SimulationLoop) -> None:
    """If it broke: `while not done: sleep(0)` never sees a timer of the same instant."""

    async def main() -> None:
        done: list[int] = []
        loop.call_later(0, done.append, 1)
        while not done:
            await asyncio.sleep(0)

    loop.run(main(), events_max=1000)


def test_results_and_errors_of_the_main_coroutine(loop: SimulationLoop) -> None:
    """If it broke: a failing test passes."""

    async def main(value: int) -> int:
        await asyncio.sleep(1)
        if value < 0:
            raise ValueError(value)
        return value

    assert loop.run(main(7)) == 7
    with pytest.raises(ValueError, match="-1"):
        loop.run(main(-1))
    assert loop.run_until_complete(main(3)) == 3
    assert loop.time() == 3, "time goes on over the runs"


def test_deadlock_names_who_waits(loop: SimulationLoop) -> None:
    """If it broke: a lost wake-up looks like a hanging test."""

    async def lost() -> None:
        await loop.create_future()

    async def main() -> None:
        await loop.create_task(lost(), name="the-lost-one")

    with pytest.raises(Deadlock) as caught:
        loop.run(main())
    assert "the-lost-one" in str(caught.value) and "lost" in str(caught.value) and "main" in str(caught.value)
    _abandon(loop)


def _abandon(loop: SimulationLoop) -> None:
    """Cancel what a failed run left, so that the loop can be closed."""
    tasks = asyncio.all_tasks(loop)

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run(end())


def test_bounds(loop: SimulationLoop) -> None:
    """If it broke: a test that waits for something that never comes runs for ever."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(RunLimit, match="virtual time") as caught:
        loop.run(tick(), time_s_max=100.5)
    assert "tick" in str(caught.value)
    assert loop.time() == 100.5
    before = loop.events
    with pytest.raises(RunLimit, match="events"):
        loop.run(asyncio.Event().wait(), events_max=500)
    assert 500 <= loop.events - before < 510
    _abandon(loop)


def test_time_that_stands_still_is_reported(loop: SimulationLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it broke: code that polls without sleeping hangs the test."""
    monkeypatch.setattr("p2pcompute.simulation.loop.INSTANT_STEPS_MAX", 2)

    async def poll() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(RunLimit, match="stands still"):
        loop.run(poll())
    _abandon(loop)


@pytest.mark.parametrize("how", ["soon", "later", "raw", "task"])
def test_an_error_that_nobody_takes_fails_the_run(loop: SimulationLoop, how: str) -> None:
    """If it broke: bugs in callbacks and tasks go unseen."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("boom")

    async def failing() -> None:
        fail()

    async def main() -> None:
        match how:
            case "soon":
                loop.call_soon(fail)
            case "later":
                loop.call_later(1, fail)
            case "raw":
                loop.post(loop.time() + 1, fail, None)
            case _:
                loop.create_task(failing())
        await asyncio.sleep(1000)
        raise AssertionError("the run went on")

    with pytest.raises(RunFailed) as caught:
        loop.run(main())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert loop.time() <= 1
    _abandon(loop)


def test_an_error_that_somebody_takes_does_not(loop: SimulationLoop) -> None:
    """If it broke: code that deals with errors cannot be tested."""

    async def failing() -> None:
        raise ValueError

    async def main() -> None:
        results = await asyncio.gather(failing(), failing(), return_exceptions=True)
        assert all(isinstance(result, ValueError) for result in results)

    loop.run(main())


async def _executor(loop: SimulationLoop) -> Any:
    return await loop.run_in_executor(None, print)


async def _to_thread(_: SimulationLoop) -> Any:
    return await asyncio.to_thread(print)


async def _dns(loop: SimulationLoop) -> Any:
    return await loop.getaddrinfo("localhost", 1)


async def _connect(_: SimulationLoop) -> Any:
    return await asyncio.open_connection("127.0.0.1", 1)


async def _listen(_: SimulationLoop) -> Any:
    return await asyncio.start_server(print, "127.0.0.1", 1)


async def _udp(loop: SimulationLoop) -> Any:
    return await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))


async def _process(_: SimulationLoop) -> Any:
    return await asyncio.create_subprocess_exec("true")


async def _shell(_: SimulationLoop) -> Any:
    return await asyncio.create_subprocess_shell("true")


async def _reader(loop: SimulationLoop) -> Any:
    loop.add_reader(0, print)


async def _signal(loop: SimulationLoop) -> Any:
    loop.add_signal_handler(10, print)


async def _socket(_: SimulationLoop) -> Any:
    socket.socket()


async def _thread(_: SimulationLoop) -> Any:
    threading.Thread(target=print).start()


async def _popen(_: SimulationLoop) -> Any:
    subprocess.Popen(["true"])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (_executor, "run_in_executor"),
        (_to_thread, "run_in_executor"),
        (_dns, "getaddrinfo"),
        (_connect, "create_connection"),
        (_listen, "create_server"),
        (_udp, "create_datagram_endpoint"),
        (_process, "subprocess_exec"),
        (_shell, "subprocess_shell"),
        (_reader, "add_reader"),
        (_signal, "add_signal_handler"),
        (_socket, "socket.socket"),
        (_thread, "threading.Thread.start"),
        (_popen, "subprocess.Popen"),
    ],
)
def test_fences_name_the_call(loop: SimulationLoop, call: Any, name: str) -> None:
    """If it broke: a simulated node reaches the real world, and its runs cannot be replayed."""
    with pytest.raises(RealWorldCall) as caught:
        loop.run(call(loop))
    assert name in str(caught.value)


def test_clocks_and_randomness_are_fenced_for_node_code_only(loop: SimulationLoop) -> None:
    """If it broke: node code takes the real time unseen, or a log line breaks a run."""
    code = "import time, random, os, uuid\ndef read(what):\n    return eval(what)\n"
    node_code: dict[str, Any] = {"__name__": "p2pcompute.node.made_up"}
    other_code: dict[str, Any] = {"__name__": "some_library"}
    exec(code, node_code)
    exec(code, other_code)
    calls = ("time.time()", "time.monotonic()", "random.random()", "os.urandom(1)", "uuid.uuid4()")

    async def main() -> None:
        for call in calls:
            other_code["read"](call)
            with pytest.raises(RealWorldCall) as caught:
                node_code["read"](call)
            assert call.removesuffix("()").split("(")[0] in str(caught.value)

    originals = (time.time, random.random, os.urandom, threading.Thread.start, socket.socket.__init__)
    loop.run(main())
    for call in calls:
        node_code["read"](call)
    assert originals == (time.time, random.random, os.urandom, threading.Thread.start, socket.socket.__init__)


def test_garbage_collection_is_off_in_a_run_and_restored(loop: SimulationLoop) -> None:
    """If it broke: finalisers run at places that depend on what ran before."""

    async def main() -> bool:
        return gc.isenabled()

    assert gc.isenabled()
    assert loop.run(main()) is False
    assert gc.isenabled()
    gc.disable()
    try:
        loop.run(main())
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_cancelled_timers_do_not_pile_up(loop: SimulationLoop) -> None:
    """If it broke: every request with a long timeout costs memory until the timeout."""

    async def main() -> int:
        for _ in range(20 * CANCELLED_TIMERS_MIN):
            loop.call_later(1e6, print).cancel()
        return len(loop._heap)

    assert loop.run(main()) <= 2 * CANCELLED_TIMERS_MIN


def test_runs_do_not_nest(loop: SimulationLoop) -> None:
    """If it broke: two loops think that they run this thread."""

    async def main() -> None:
        other = SimulationLoop()
        with pytest.raises(RuntimeError, match="another event loop"):
            other.run(asyncio.sleep(0))
        other.close()

    loop.run(main())


def test_shuffling_changes_the_order_of_ready_callbacks_by_seed() -> None:
    """If it broke: code that relies on the order of wake-ups is never caught."""

    def order(seed: int | None) -> list[int]:
        loop = SimulationLoop(shuffle=None if seed is None else random.Random(seed))
        seen: list[int] = []

        async def main() -> None:
            for number in range(20):
                loop.call_soon(seen.append, number)
            await asyncio.sleep(1)

        loop.run(main())
        loop.close()
        return seen

    assert order(None) == list(range(20))
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(20))


def test_trace_depends_on_every_field() -> None:
    """If it broke: different runs look the same."""

    def digest(*records: tuple[float, int, int, int]) -> str:
        trace = Trace()
        for record in records:
            trace.record(*record)
        return trace.digest()

    base = (1.5, 3, Kind.NOTE, 7)
    others = [(1.500000001, 3, Kind.NOTE, 7), (1.5, 4, Kind.NOTE, 7), (1.5, 3, Kind.RUN, 7), (1.5, 3, Kind.NOTE, 8)]
    digests = [digest(base), *(digest(other) for other in others), digest(base, base), digest(base, base, base)]
    assert len(set(digests)) == len(digests)
    assert digest(base) == digest(base)


PROGRAM = """
import asyncio, sys
from p2pcompute.host.interfaces import Address, Write
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.network import NetworkSettings

async def node(host, addresses):
    endpoint = await host.host.net.bind_datagram(1000, loopback_only=False)
    rng = host.host.rng.stream("choice")

    async def answer():
        while True:
            data, source = await endpoint.receive()
            if data[0] and rng.random() < 0.9:
                endpoint.send(bytes([data[0] - 1]) + data[1:], source)

    host.spawn(answer(), "answer")
    names = {f"name {i}" for i in range(50)}
    for round in range(20):
        await host.host.clock.sleep(rng.random())
        endpoint.send(b"\\x05" + host.host.crypto.random_bytes(8), Address(rng.choice(addresses), 1000))
        await host.host.store.commit([Write("t", name.encode(), b"") for name in sorted(names)[round:round + 2]])
    await host.host.clock.sleep(5)

async def main(simulation):
    addresses = [host.address for host in simulation.hosts]
    await asyncio.gather(*(host.call(node(host, addresses)) for host in simulation.hosts))

with Simulation(int(sys.argv[1]), model=NetworkSettings(loss=0.1), is_shuffled=sys.argv[2] == "1") as simulation:
    for _ in range(20):
        simulation.add_host()
    simulation.run(main(simulation))
    print(simulation.trace_hash(), simulation.loop.events, repr(simulation.now))
"""


def _trace(seed: int, hash_seed: str, *, shuffled: bool = False) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-W", "error", "-c", PROGRAM, str(seed), str(int(shuffled))]
    return subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_same_seed_gives_the_same_trace_in_every_process() -> None:
    """If it broke: a failure that a seed found cannot be looked at again."""
    first = _trace(1, "0")
    assert first == _trace(1, "12345")
    assert first != _trace(2, "0")
    assert _trace(1, "1", shuffled=True) == _trace(1, "2", shuffled=True)
