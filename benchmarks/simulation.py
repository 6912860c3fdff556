#!/usr/bin/env python3
"""How fast the simulator is, beside other simulators.  Prints JSON.

    python benchmarks/simulation.py                                     # about five minutes of one core
    python benchmarks/simulation.py --peer-python ~/venv/bin/python     # with simloop and simloom, which need 3.12
    python benchmarks/simulation.py --full                              # and 10,000 whole nodes for an hour

Measured, as process CPU time of one core, each in a process of its own, in turn, the best of some rounds:

- timers: 1,000 processes that each wait for a timeout again and again, in SimPy and as tasks of our loop;
- ping: 1,000 hosts that each send a datagram a second to another, which answers; rpc: the same, each call a task with a
  future, a timeout and 64 packed bytes; both also in simloop and simloom, with the very same node (`Pinger`);
- seeds: whole runs of the scenario `ten` (10 whole nodes join, run a small job, are checked), each with its own seed,
  and where their time goes by sampling; and the same run with every check at its full length;
- whole nodes: the scenario `steady` with 1,000 warm nodes for some simulated minutes, without the checks of its end.

A peer that is not installed is left out, and the reason is given.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import platform
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from report import commit

GOALS = {
    "ping_messages_per_cpu_s": 30_000.0,
    "whole_node_messages_per_cpu_s": 6_000.0,
    "seeds_per_cpu_s": 20.0,
    "whole_node_kib": 150.0,
}
HOSTS = 1000
PORT = 9000
PING_S = 10.0
TIMERS_S = 100.0
RPC_TIMEOUT_S = 2.0
RPC = struct.Struct("!BQQ47x")
"""64 bytes: what it is, a number, a payload."""
ASK, ANSWER = 0, 1
LATENCY_S = (0.01, 0.06)
SEEDS = 20
STEADY_NODES = 1000
STEADY_S = 360.0
SAMPLE_CPU_S = 0.001

cpu_s = time.process_time  # the peers put other functions in its place while they run


# --- the trivial node, the same everywhere --------------------------------------------------------


class Pinger:
    """Asks a random other host once a second, and answers."""

    def __init__(self, number: int, send: Callable[[bytes, Any], None], others: list[Any], is_rpc: bool) -> None:
        self.send, self.others, self.is_rpc = send, others, is_rpc
        self.rng = random.Random(f"pinger {number}")
        self.loop = asyncio.get_running_loop()
        self.received = 0
        self.answered = 0
        self.is_over = False
        self.waiting: dict[int, asyncio.Future[int]] = {}
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.loop.call_later(self.rng.random(), self.tick)

    def tick(self) -> None:
        if self.is_over:
            return
        self.loop.call_later(1.0, self.tick)
        to = self.rng.choice(self.others)
        if not self.is_rpc:
            self.send(b"ask", to)
            return
        task = self.loop.create_task(self.call(to))
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)

    async def call(self, to: Any) -> None:
        number = self.rng.getrandbits(60)
        future: asyncio.Future[int] = self.loop.create_future()
        self.waiting[number] = future
        try:
            async with asyncio.timeout(RPC_TIMEOUT_S):
                self.send(RPC.pack(ASK, number, 1), to)
                self.answered += await future
        except TimeoutError:
            pass
        finally:
            del self.waiting[number]

    def receive(self, data: bytes, source: Any) -> None:
        self.received += 1
        if not self.is_rpc:
            if data == b"ask":
                self.send(b"answer", source)
            else:
                self.answered += 1
            return
        kind, number, payload = RPC.unpack(data)
        if kind == ASK:
            self.send(RPC.pack(ANSWER, number, payload), source)
        elif number in self.waiting and not self.waiting[number].done():
            self.waiting[number].set_result(payload)


class PingerProtocol(asyncio.DatagramProtocol):
    """A `Pinger` behind asyncio's own datagram interface, which the peers simulate."""

    def __init__(self, number: int, others: list[Any], is_rpc: bool) -> None:
        self.number, self.others, self.is_rpc = number, others, is_rpc

    def connection_made(self, transport: Any) -> None:
        self.pinger = Pinger(self.number, transport.sendto, self.others, self.is_rpc)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.pinger.receive(data, addr)


async def _measure_pingers(pingers: list[Pinger]) -> dict[str, float]:
    """CPU time of PING_S once all have begun."""
    await asyncio.sleep(1.0)
    before, began = sum(one.received for one in pingers), cpu_s()
    await asyncio.sleep(PING_S)
    spent_s, messages = cpu_s() - began, sum(one.received for one in pingers) - before
    for one in pingers:
        one.is_over = True
    await asyncio.sleep(2 * RPC_TIMEOUT_S)
    answered = sum(one.answered for one in pingers)
    assert answered > 0.9 * HOSTS * PING_S, f"only {answered} answers"
    return {"messages_per_cpu_s": messages / spent_s, "messages": messages, "cpu_s": spent_s}


def ours_ping(*, is_rpc: bool = False) -> dict[str, float]:
    from p2pcompute.host.interfaces import Address
    from p2pcompute.simulation.host import SimHost, Simulation
    from p2pcompute.simulation.network import NetworkSettings

    pingers: list[Pinger] = []

    async def serve(host: SimHost, others: list[Address]) -> None:
        endpoint = await host.host.net.bind_datagram(PORT, loopback_only=False)
        pinger = Pinger(host.number, endpoint.send, others, is_rpc)
        pingers.append(pinger)
        while True:
            pinger.receive(*await endpoint.receive())

    with Simulation("ping", model=NetworkSettings(median_s=sum(LATENCY_S) / 2)) as simulation:
        hosts = [simulation.add_host() for _ in range(HOSTS)]
        for host in hosts:
            host.spawn(serve(host, [Address(one.address, PORT) for one in hosts if one is not host]), "ping")
        return simulation.run(_measure_pingers(pingers))


def ours_rpc() -> dict[str, float]:
    return ours_ping(is_rpc=True)


async def _bind(number: int, name: str, names: list[str], is_rpc: bool, pingers: list[Pinger]) -> None:
    others = [(one, PORT) for one in names if one != name]
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(
        lambda: PingerProtocol(number, others, is_rpc), local_addr=(name, PORT)
    )
    pingers.append(protocol.pinger)


def simloop_ping(*, is_rpc: bool = False) -> dict[str, float]:
    loop: Any = importlib.import_module("simloop").SimLoop(1)
    names = [f"h{number}" for number in range(HOSTS)]
    pingers: list[Pinger] = []

    async def main() -> dict[str, float]:
        loop.net.set_defaults(latency=LATENCY_S)
        for number, name in enumerate(names):
            await loop.net.host(name).create_task(_bind(number, name, names, is_rpc, pingers))
        return await _measure_pingers(pingers)

    result: dict[str, float] = loop.run_until_complete(main())
    return result


def simloop_rpc() -> dict[str, float]:
    return simloop_ping(is_rpc=True)


def simloom_ping(*, is_rpc: bool = False) -> dict[str, float]:
    simloom = importlib.import_module("simloom")
    names = [f"h{number}" for number in range(HOSTS)]
    pingers: list[Pinger] = []
    found: dict[str, float] = {}

    async def main(world: Any) -> None:
        world.net.set_latency(*LATENCY_S)
        for number, name in enumerate(names):
            await world.host(name).spawn(_bind(number, name, names, is_rpc, pingers))
        found.update(await _measure_pingers(pingers))

    simloom.run(main, seed=1)
    return found


def simloom_rpc() -> dict[str, float]:
    return simloom_ping(is_rpc=True)


# --- timers ---------------------------------------------------------------------------------------


def ours_timers() -> dict[str, float]:
    from p2pcompute.simulation.loop import SimulationLoop

    waits = 0

    async def wait(rng: random.Random) -> None:
        nonlocal waits
        while True:
            await asyncio.sleep(0.5 + rng.random())
            waits += 1

    async def main() -> None:
        tasks = [asyncio.get_running_loop().create_task(wait(random.Random(f"timer {n}"))) for n in range(HOSTS)]
        await asyncio.sleep(TIMERS_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop = SimulationLoop()
    began = cpu_s()
    loop.run(main())
    spent_s = cpu_s() - began
    loop.close()
    return {"timeouts_per_cpu_s": waits / spent_s, "timeouts": waits, "cpu_s": spent_s}


def simpy_timers() -> dict[str, float]:
    simpy = importlib.import_module("simpy")
    waits = 0

    def wait(env: Any, rng: random.Random) -> Iterator[Any]:
        nonlocal waits
        while True:
            yield env.timeout(0.5 + rng.random())
            waits += 1

    began = cpu_s()
    env = simpy.Environment()
    for number in range(HOSTS):
        env.process(wait(env, random.Random(f"timer {number}")))
    env.run(until=TIMERS_S)
    spent_s = cpu_s() - began
    return {"timeouts_per_cpu_s": waits / spent_s, "timeouts": waits, "cpu_s": spent_s}


# --- whole nodes ----------------------------------------------------------------------------------


def seeds(*, values: dict[str, str] | None = None, count: int = SEEDS) -> dict[str, float]:
    """Whole runs of `ten`, after one that is not measured, in a process that has been prepared as the runner does."""
    from p2pcompute.simulation.mesh_run import run_mesh
    from p2pcompute.simulation.running import freeze_imports
    from p2pcompute.simulation.scenario import load_scenario, with_values

    scenario = with_values(load_scenario("ten"), values or {})
    run_mesh(scenario, count)
    freeze_imports()
    began = cpu_s()
    results = [run_mesh(scenario, seed) for seed in range(count)]
    spent_s = cpu_s() - began
    if problems := [problem for result in results for problem in result.problems]:
        sys.exit(f"a seed failed: {problems[0]}")
    return {
        "seeds_per_cpu_s": count / spent_s,
        "seeds": count,
        "cpu_s": spent_s,
        "events_per_seed": statistics.mean(result.events for result in results),
        "messages_per_seed": statistics.mean(result.messages for result in results),
        "simulated_s_per_seed": statistics.mean(result.simulated_s for result in results),
    }


def seeds_with_long_checks() -> dict[str, float]:
    long = {"settle_s": "75.0", "lookups": "40", "off": "[]"}
    return seeds(values={f"checks.{name}": value for name, value in long.items()}, count=5)


PIECES = (
    ("simulation/invariants", "simulation: checks"),
    ("simulation/loop.py", "simulation: event loop"),
    ("simulation/trace.py", "simulation: event loop"),
    ("simulation/host.py", "simulation: hosts, crypto, teardown"),
    ("simulation/storage.py", "simulation: disks"),
    ("simulation/world.py", "simulation: world"),
    ("simulation/mesh_run.py", "simulation: world"),
    ("simulation/measuring.py", "simulation: world"),
    ("simulation/oracle.py", "simulation: checks"),
    ("simulation/playing.py", "simulation: world"),
    ("simulation/mesh.py", "simulation: world"),
    ("simulation/runner.py", "simulation: runner"),
    ("simulation/", "simulation: network"),
)


WITHIN = {
    "World.__init__": "making the world",
    "Mesh.start_one": "starting nodes: their first turn",
    "Dht.adopt": "filling warm tables",
    "Checks.always": "checks at any moment",
    "Simulation.close": "teardown",
    "SimulationLoop._step": "garbage collection",
    "Datagrams._receive": "datagrams received, and what follows at once",
    "Dht._on_timer": "the DHT's own turns",
    "Channels._dial": "dialling, with its handshakes",
    "Channels._receive_handshake": "answering dials, with their handshakes",
    "Channel.run": "frames received, and what follows at once",
    "Scheduler._pump": "the scheduler's own turns",
}


def shares(run: Callable[[], object]) -> dict[str, Any]:
    """Where CPU time goes, by sampling, in percent: by the innermost function of ours, and parts with all that they
    call (which overlap)."""
    pieces: Counter[str] = Counter()
    within: Counter[str] = Counter()

    def sample(_signal: int, frame: FrameType | None) -> None:
        piece = ""
        parts: dict[str, None] = {}
        while frame is not None:
            _package, ours, path = frame.f_code.co_filename.rpartition("/p2pcompute/")
            if ours:
                piece = piece or next((name for start, name in PIECES if path.startswith(start)), path.split("/")[0])
                if (part := WITHIN.get(frame.f_code.co_qualname)) is not None:
                    parts[part] = None
            frame = frame.f_back
        pieces[piece] += 1
        within.update(list(parts))

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_CPU_S, SAMPLE_CPU_S)
    run()
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    total = pieces.total()

    def percent(counts: Counter[str]) -> dict[str, float]:
        return {name: round(100 * count / total, 1) for name, count in counts.most_common() if name}

    return {"samples": total, "percent": percent(pieces), "percent_within": percent(within)}


def seeds_shares() -> dict[str, Any]:
    return shares(lambda: seeds(count=3 * SEEDS))


def _steady(values: dict[str, str], until_s: float | None) -> dict[str, float]:
    from p2pcompute.simulation.mesh_run import MeshRun
    from p2pcompute.simulation.mesh_settings import MeshSettings
    from p2pcompute.simulation.result import Watch
    from p2pcompute.simulation.scenario import load_scenario, with_values

    started: list[tuple[float, int, int]] = []

    class Look(Watch):
        """Keeps what was spent when all nodes had started."""

        def progress(self, simulated_s: float, wall_s: float) -> None:
            if not started:
                started.append((cpu_s(), world.messages(), resident_bytes()))

    scenario = with_values(load_scenario("steady"), values)
    settings = scenario.settings
    assert isinstance(settings, MeshSettings)
    began, before_bytes = cpu_s(), resident_bytes()
    world = MeshRun(settings, 1, watch=Look())
    world.run(until_s)
    ended = cpu_s()
    if world.problems:
        sys.exit(f"the run failed: {world.problems[0]}")
    started_s, started_messages, started_bytes = started[0]
    messages = world.messages() - started_messages
    return {
        "nodes": settings.nodes,
        "simulated_s": world.now,
        "cpu_s": ended - began,
        "starting_cpu_s": started_s - began,
        "messages": messages,
        "messages_per_cpu_s": messages / (ended - started_s),
        "messages_per_node_s": messages / settings.nodes / world.now,
        "events_per_cpu_s": world.simulation.loop.events / (ended - began),
        "node_hours_per_cpu_min": settings.nodes * world.now / 60 / (ended - began),
        "kib_per_node_started": (started_bytes - before_bytes) / 1024 / settings.nodes,
        "kib_per_node": (peak_bytes() - before_bytes) / 1024 / settings.nodes,
        "peak_mib": peak_bytes() / 2**20,
    }


def whole_nodes() -> dict[str, float]:
    hours = STEADY_S / 3600
    values = {
        "nodes": str(STEADY_NODES),
        "hours": str(hours),
        "workload.2.start_s": "120.0",
        "workload.2.tasks": "500",
    }
    return _steady(values, STEADY_S - 0.5)


def whole_nodes_shares() -> dict[str, Any]:
    return shares(whole_nodes)


def whole_nodes_full() -> dict[str, float]:
    return _steady({}, None)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# --- the sitting ----------------------------------------------------------------------------------

OURS: dict[str, Callable[[], dict[str, Any]]] = {
    "timers": ours_timers,
    "ping": ours_ping,
    "rpc": ours_rpc,
    "seeds": seeds,
    "seeds_with_long_checks": seeds_with_long_checks,
    "seeds_shares": seeds_shares,
    "whole_nodes": whole_nodes,
    "whole_nodes_shares": whole_nodes_shares,
    "whole_nodes_full": whole_nodes_full,
}
PEERS: dict[str, Callable[[], dict[str, Any]]] = {
    "timers_simpy": simpy_timers,
    "ping_simloop": simloop_ping,
    "rpc_simloop": simloop_rpc,
    "ping_simloom": simloom_ping,
    "rpc_simloom": simloom_rpc,
}
ONCE = ("seeds_shares", "whole_nodes_shares", "whole_nodes_full")
FIGURES = ("messages_per_cpu_s", "timeouts_per_cpu_s", "seeds_per_cpu_s")


def measure(python: str, name: str) -> dict[str, Any]:
    """One measurement in a process of its own; {"skipped": why} when its simulator is not there."""
    done = subprocess.run([python, __file__, "--measure", name], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout)
        return result
    last = done.stderr.strip().splitlines()[-1]
    if name in PEERS and last.startswith("ModuleNotFoundError"):
        return {"skipped": last.partition(": ")[2]}
    sys.exit(f"{name} failed:\n{done.stderr}")


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round that took the least time, since others run beside it, and the figure of every round."""
    figure = next((name for name in FIGURES if name in rounds[0]), None)
    if figure is None:
        return rounds[0]
    found = max(rounds, key=lambda one: float(one[figure]))
    return {**found, "rounds": [one[figure] for one in rounds]}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def version_of(python: str, package: str) -> str | None:
    code = f"import platform, importlib.metadata as m; print(m.version({package!r}), platform.python_version())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def sitting(rounds: int, peer_python: str, *, is_full: bool) -> dict[str, Any]:
    """Every measurement, `rounds` times in turn."""
    names = [name for name in (*OURS, *PEERS) if is_full or name != "whole_nodes_full"]
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found = measured[name]
            if number and (name in ONCE or "skipped" in found[0]):
                continue
            python = peer_python if name.endswith(("simloop", "simloom")) else sys.executable
            found.append(measure(python, name))
            print(f"round {number + 1}: {name}: {json.dumps(rounded(found[-1]))[:150]}", file=sys.stderr)
    return {name: best(found) for name, found in measured.items()}


def document(results: dict[str, Any], peer_python: str) -> dict[str, Any]:
    ratios = {}
    for name in PEERS:
        what = name.partition("_")[0]
        figure = "timeouts_per_cpu_s" if what == "timers" else "messages_per_cpu_s"
        if "skipped" not in results[name]:
            ratios[name] = results[what][figure] / results[name][figure]
    measured = {
        "ping_messages_per_cpu_s": results["ping"]["messages_per_cpu_s"],
        "whole_node_messages_per_cpu_s": results["whole_nodes"]["messages_per_cpu_s"],
        "seeds_per_cpu_s": results["seeds"]["seeds_per_cpu_s"],
        "whole_node_kib": results["whole_nodes"]["kib_per_node"],
    }
    goals = {
        name: {
            "goal": goal,
            "measured": measured[name],
            "met": measured[name] <= goal if name.endswith("kib") else measured[name] >= goal,
        }
        for name, goal in GOALS.items()
    }
    return {
        "schema": "p2pc.bench.simulation/1",
        "commit": commit(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "load_average": os.getloadavg()[0],
        "peers": {
            "simpy": version_of(sys.executable, "simpy"),
            "simloop": version_of(peer_python, "simloop"),
            "simloom": version_of(peer_python, "simloom"),
        },
        "results": results,
        "ours_over_peer": ratios,
        "goals": goals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default 5)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="an interpreter that has simloop and simloom (default: this one)"
    )
    parser.add_argument("--full", action="store_true", help="10,000 whole nodes for an hour: about 10 minutes more")
    parser.add_argument("--measure", choices=[*OURS, *PEERS], help="only this one, once, in this process")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps({**OURS, **PEERS}[arguments.measure]()))
        return
    results = sitting(arguments.rounds, arguments.peer_python, is_full=arguments.full)
    print(json.dumps(rounded(document(results, arguments.peer_python)), indent=2))


if __name__ == "__main__":
    main()
