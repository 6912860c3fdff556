#!/usr/bin/env python3
"""Real daemons beside the same scenario in the simulator.  Prints a table; writes JSON.

    python benchmarks/tier0.py                              # 20 daemons, 400 tasks: about two minutes
    python benchmarks/tier0.py --nodes 6 --tasks 48         # quicker, coarser

The real side: daemons of one group on loopback, each with a home and two slots of its own, that know the founder by
`node.peers`.  They start one after the other, rest, and run a job of sleeping tasks that `p2pc run` submits.  The other
side is `simulations/scenarios/loopback20.toml` with the same nodes and tasks and the moments at which the real ones
began, over several seeds.

What the simulator must be told of a machine is measured here, apart from what is compared: the delay of a packet from
one process to another; the processor time of a daemon for a datagram (at rest, without what a lone one needs for
nothing) and for a handshake (of the founder while others join, without that of datagrams); and what a lone node adds
to a short command.

Every node counts for itself (`p2pc status --json`, "dht"), and the simulated ones by the same code, so nothing depends
on how often somebody looks.  Other load on the machine slows only the real side: see "machine".  Linux only.
"""

from __future__ import annotations

import argparse
import concurrent.futures as cf
import contextlib
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from report import commit

from p2pcompute.cli.connection import Connection
from p2pcompute.host.paths import prepare_directories, resolve_paths
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.files import load_or_create_identity
from p2pcompute.places import find_paths
from p2pcompute.simulation.mesh_run import run_mesh
from p2pcompute.simulation.scenario import load_scenario, with_values
from p2pcompute.trust.group_file import save_group
from p2pcompute.trust.groups import MEMBER_ROLES, admit, found_group
from p2pcompute.trust.levels import Level, LevelNote, save_levels

T = TypeVar("T")
SCENARIO: Final = "loopback20"
OUTPUT: Final = Path(__file__).resolve().parent / "results" / "tier0.json"
SLOTS: Final = 2
START_S_MAX: Final = 60.0
MEET_S_MAX: Final = 20.0
CALIBRATION_TASKS: Final = 40
CALIBRATION_TASK_S: Final = 0.05
IDLE_S: Final = 4.0
"""How long the lone daemon is watched doing nothing."""
LOAD_S: Final = 1.0
"""How long the load of others is looked at before it begins."""


def until(condition: Callable[[], T | None], limit_s: float, what: str) -> T:
    """Return what `condition` returns once it is true."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"not within {limit_s:g} s: {what}")
        time.sleep(0.02)
    return found


# --- real daemons ---------------------------------------------------------------------------------


class Daemon:
    """One real node."""

    def __init__(self, root: Path, name: str, **settings: str) -> None:
        self.home = root / name
        self.home.mkdir(mode=0o700)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("P2PC_")}
        self.env = {
            **kept,
            "P2PC_HOME": str(self.home),
            "P2PC_NO_AUTOSTART": "1",
            "P2PC_NO_INPUT": "1",
            "P2PC_NODE__NAME": name,
            "P2PC_NODE__SLOTS": str(SLOTS),
            "P2PC_NODE__INTERFACES": "lo",
            "P2PC_NODE__ACCEPT": "all",
            "P2PC_NODE__DISCOVER": "false",
            **settings,
        }
        # An installed package has its bytecode; without it every start compiles all of it.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.name = name
        self.connection = Connection(find_paths(self.env).socket)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process and wait until it answers; its port has been bound then."""
        self.spawn()
        until(self._is_ready, START_S_MAX, f"{self.name} is up")

    @property
    def program(self) -> list[str]:
        """What Python is to run."""
        return ["-m", "p2pcompute.daemon"]

    def spawn(self) -> None:
        """Start the process."""
        with open(self.home / "stderr", "ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *self.program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self.env,
                cwd=self.home,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            sys.exit(f"{self.name} ended:\n{(self.home / 'stderr').read_text()[-2000:]}")
        return self.connection.is_answering() and find_paths(self.env).run_file.exists()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def status(self) -> dict[str, Any]:
        return self.connection.request("GET", "/v1/status")

    def dht(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["dht"]
        return found

    def cpu_s(self) -> float:
        """CPU time of the daemon itself so far, without its worker processes."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def run_job(self, task_s: float, count: int) -> dict[str, Any]:
        """Run sleeping tasks to their end; returns the job as its owner shows it."""
        words = [sys.executable, "-m", "p2pcompute", "run", "--json", "sleep", ":::", *[f"{task_s:g}"] * count]
        done = subprocess.run(words, env=self.env, cwd=self.home, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the job has failed:\n{done.stderr[-2000:]}")
        return self.connection.request("GET", "/v1/jobs/last")


@contextlib.contextmanager
def stopping(daemons: Sequence[Daemon]) -> Iterator[None]:
    """Stop those that were started on the way out; the second signal stops at once."""
    try:
        yield
    finally:
        started = [daemon.process for daemon in daemons if daemon._process is not None]
        for _ in range(2):
            for process in started:
                process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_group(root: Path, count: int, *, is_trusting: bool = False) -> list[Daemon]:
    """Homes of a group whose members have admitted one another, as in the simulator; nothing is started.

    Args:
        is_trusting: each has set all others to trusted.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    crypto, wall = RealCrypto(), time.time()
    daemons, levels = [], {}
    for number in range(count):
        place = {"P2PC_NODE__PEERS": f"127.0.0.1:{port}"} if number else {"P2PC_NODE__PORT": str(port)}
        daemon = Daemon(root, f"node-{number}", **place)
        paths = resolve_paths(daemon.env)
        prepare_directories(paths)
        identity = load_or_create_identity(paths.data, crypto, machine_id=paths.machine_id)
        if number == 0:
            founder, founded = identity, found_group(identity, crypto, "tier0", wall).opened()
            group = founded
        else:
            entry = admit(founder, founded, crypto, identity.public_key, roles=MEMBER_ROLES, wall=wall)
            group = founded.with_chain([*founded.chain, entry])
        save_group(paths.data, group)
        daemons.append(daemon)
        levels[identity.public_key] = LevelNote(level=Level.TRUSTED, name=daemon.name)
    if is_trusting:
        for daemon in daemons:
            save_levels(resolve_paths(daemon.env).data, levels)
    return daemons


@dataclass(frozen=True)
class Lone:
    """What one daemon needs when it is alone."""

    task_overhead_s: float
    """Beyond the sleep of a command, one after the other in a slot."""
    idle_cpu_share: float
    """Of a core."""
    delay_s: float
    """One-way, of a datagram between two processes."""


def measure_lone(root: Path) -> Lone:
    daemon = Daemon(root, "lone")
    with stopping([daemon]):
        daemon.start()
        daemon.run_job(CALIBRATION_TASK_S, 2 * SLOTS)  # worker processes are there from now on
        job = daemon.run_job(CALIBRATION_TASK_S, CALIBRATION_TASKS)
        time.sleep(1.0)
        before = daemon.cpu_s()
        time.sleep(IDLE_S)
        idle = (daemon.cpu_s() - before) / IDLE_S
    return Lone(makespan_s(job) * SLOTS / CALIBRATION_TASKS - CALIBRATION_TASK_S, idle, measure_delay())


def makespan_s(job: dict[str, Any]) -> float:
    return unix_time(job["finished"]) - unix_time(job["submitted"])


def unix_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@dataclass(frozen=True)
class Real:
    """What was measured of the daemons.  Times from the founder's start."""

    starts_s: list[float]
    job_s: float
    """When the job was submitted."""
    end_s: float
    """When the counters were read."""
    first_peer_s: list[float]
    """Of each node but the founder: from its bound port to its first peer."""
    all_peers_s: list[float]
    """To the last of the peers that were there when it came."""
    lookups: list[int]
    """Of each node, with those of its upkeep; likewise the next two."""
    lookup_requests: list[int]
    lookup_hops: list[int]
    makespan_s: float
    done_by_node: list[int]
    rtt_s: float
    """Median over the nodes, at rest."""
    datagram_cpu_s: float
    """Processor time of a daemon for a datagram that it receives, and what it sends in return, at rest."""
    handshake_cpu_s: float
    """Processor time of a daemon for the handshake of a channel."""


def measure_real(root: Path, lone: Lone, *, nodes: int, tasks: int, task_s: float, gap_s: float, rest_s: float) -> Real:
    daemons = make_group(root, nodes, is_trusting=True)  # as simulated ones do
    with stopping(daemons):
        starts, joined = [], []
        for number, daemon in enumerate(daemons):
            daemon.start()
            time.sleep(gap_s)
            joined.append(until(partial(_joined, daemon, number), MEET_S_MAX, f"{daemon.name} knows {number} peers"))
            starts.append(time.time() - daemon.status()["node"]["uptime_s"])
            if number == 0:  # from here on nobody asks the founder anything but its peers
                founder = Used(daemons[:1])
        joining = founder.since()
        rtt_s, datagram_cpu_s = measure_rest(daemons, rest_s, lone.idle_cpu_share)
        handshakes_s = joining.cpu_s - lone.idle_cpu_share * joining.time_s - datagram_cpu_s * joining.datagrams
        job = daemons[0].run_job(task_s, tasks)
        counted = [daemon.dht() for daemon in daemons]
        end = time.time()
    return Real(
        starts_s=[round(start - starts[0], 3) for start in starts],
        job_s=unix_time(job["submitted"]) - starts[0],
        end_s=end - starts[0],
        first_peer_s=[one["first_contact_s"] for one in joined[1:]],
        all_peers_s=[one["last_contact_s"] for one in joined[1:]],
        lookups=[one["lookups"] for one in counted],
        lookup_requests=[one["lookup_requests"] for one in counted],
        lookup_hops=[one["lookup_hops"] for one in counted],
        makespan_s=makespan_s(job),
        done_by_node=[share["done"] for share in job["by_node"]],
        rtt_s=rtt_s,
        datagram_cpu_s=datagram_cpu_s,
        handshake_cpu_s=max(0.0, handshakes_s) / (nodes - 1),
    )


def _joined(daemon: Daemon, peers: int) -> dict[str, Any] | None:
    """What a node says of itself once it knows all that are there."""
    dht = daemon.dht()
    return dht if dht["contacts"] == peers else None


def measure_rest(daemons: Sequence[Daemon], rest_s: float, idle_cpu_share: float) -> tuple[float, float]:
    """Let nodes rest; returns the median round trip, and the processor time for a datagram beyond that of idling."""
    before = Used(daemons)
    time.sleep(rest_s)
    used = before.since()
    rtt_s = statistics.median(daemon.dht()["rtt_s"] for daemon in daemons)
    return rtt_s, max(0.0, used.cpu_s - idle_cpu_share * used.time_s) / max(1, used.datagrams)


class Used:
    """What some daemons have used so far."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._daemons = daemons
        self.datagrams = sum(daemon.dht()["datagrams_received"] for daemon in daemons)
        self.cpu_s = sum(daemon.cpu_s() for daemon in daemons)
        self.time_s = time.monotonic() * len(daemons)

    def since(self) -> Used:
        """What they have used from then until now, without the answers to these questions."""
        now = time.monotonic() * len(self._daemons)
        cpu_s = sum(daemon.cpu_s() for daemon in self._daemons)
        used = Used(self._daemons)
        used.datagrams -= self.datagrams
        used.cpu_s, used.time_s = cpu_s - self.cpu_s, now - self.time_s
        return used


ECHO: Final = """
import asyncio, sys
class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
        print(transport.get_extra_info("sockname")[1], flush=True)
    def datagram_received(self, data, source):
        self.transport.sendto(data, source)
async def main():
    await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
ECHOES: Final = 200
ECHO_PAUSE_S: Final = 0.005
"""Between two, so that both ends sleep before each, as nodes do."""


def measure_delay() -> float:
    """Median one-way delay of a datagram between event loops of two processes, in seconds."""
    words = [sys.executable, "-c", ECHO]
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
    ):
        assert echo.stdout is not None and echo.stdin is not None
        own.connect(("127.0.0.1", int(echo.stdout.readline())))
        took = []
        for _ in range(ECHOES):
            time.sleep(ECHO_PAUSE_S)
            began = time.perf_counter()
            own.send(bytes(500))
            own.recv(1000)
            took.append(time.perf_counter() - began)
        echo.stdin.close()
    return statistics.median(took) / 2


# --- the simulator --------------------------------------------------------------------------------

FIGURES: Final = {
    "first_peer_s": "join_s_p50",
    "all_peers_s": "join_table_s_p50",
    "lookups_per_node": "own_lookups_per_node",
    "requests_per_lookup": "own_lookup_requests",
    "hops_per_lookup": "own_lookup_hops",
    "makespan_s": "makespan_s",
}
"""What is compared, and what the simulator calls it.  Joining: medians over the nodes but the founder."""
NOT_MODELLED: Final = {
    "first_peer_s": "0.5 to 1 ms pass between the binding of a daemon's port and its first datagram, in which it"
    " goes on starting; a simulated node sends at once. On a busy machine it also waits for a core",
}
"""Why a figure of the real side may be beyond the tolerance."""


def real_figures(real: Real) -> dict[str, float]:
    lookups = sum(real.lookups)
    return {
        "first_peer_s": statistics.median(real.first_peer_s),
        "all_peers_s": statistics.median(real.all_peers_s),
        "lookups_per_node": lookups / len(real.lookups),
        "requests_per_lookup": sum(real.lookup_requests) / lookups,
        "hops_per_lookup": sum(real.lookup_hops) / lookups,
        "makespan_s": real.makespan_s,
    }


def model_of(real: Real, lone: Lone, *, nodes: int, tasks: int, task_s: float) -> dict[str, Any]:
    """Settings of the scenario that stand for this machine and this run."""
    return {
        "nodes": nodes,
        "hours": real.end_s / 3600,
        "starts_s": real.starts_s,
        "network.lan_median_s": lone.delay_s,
        "network.handling_s": real.datagram_cpu_s,
        "network.handshake_s": real.handshake_cpu_s,
        "network.shared_cores": os.cpu_count(),
        "population.cores": SLOTS,
        "population.overhead_s": max(0.0, lone.task_overhead_s),
        "workload.0.start_s": real.job_s,
        "workload.0.tasks": tasks,
        "workload.0.work_s": task_s,
    }


def simulate(model: dict[str, Any], seeds: int) -> dict[str, list[float]]:
    """Run the scenario over some seeds; what is compared by name, a value for each seed."""
    scenario = with_values(load_scenario(SCENARIO), {name: str(value) for name, value in model.items()})
    context = multiprocessing.get_context("spawn")
    with cf.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        results = list(pool.map(run_mesh, [scenario] * seeds, range(1, seeds + 1)))
    for result in results:
        if result.problems:
            sys.exit(f"seed {result.seed} failed: {result.problems[0]}")
    return {name: [result.metrics[metric] for result in results] for name, metric in FIGURES.items()}


# --- side by side ---------------------------------------------------------------------------------


def compare(real: dict[str, float], simulated: dict[str, list[float]], tolerance: float) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, value in real.items():
        mean = statistics.fmean(simulated[name])
        found[name] = {
            "real": value,
            "simulated": mean,
            "simulated_low": min(simulated[name]),
            "simulated_high": max(simulated[name]),
            "ratio": value / mean,
            "is_within": abs(value / mean - 1) <= tolerance,
        }
        if name in NOT_MODELLED:
            found[name]["not_modelled"] = NOT_MODELLED[name]
    return found


def table(figures: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':22}{'REAL':>10}{'SIMULATED':>12}{'SEEDS':>20}{'RATIO':>8}"]
    for name, one in figures.items():
        seeds = f"{one['simulated_low']:.4f}–{one['simulated_high']:.4f}"
        mark = "" if one["is_within"] else "  !"
        lines.append(f"{name:22}{one['real']:10.4f}{one['simulated']:12.4f}{seeds:>20}{one['ratio']:8.2f}{mark}")
        if not one["is_within"] and "not_modelled" in one:
            lines.append(f"  ({one['not_modelled']})")
    return "\n".join(lines)


def cores_busy() -> float:
    """Cores that are at work for others, over LOAD_S."""

    def ticks() -> int:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        return sum(int(field) for field in fields[:8]) - int(fields[3]) - int(fields[4])

    before, began = ticks(), time.monotonic()
    time.sleep(LOAD_S)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20, help="daemons (default 20)")
    parser.add_argument("--tasks", type=int, default=400, help="sleeping tasks of the job (default 400)")
    parser.add_argument("--task-s", type=float, default=1.0, help="how long each sleeps (default 1)")
    parser.add_argument("--gap-s", type=float, default=1.0, help="between a node's start and the next (default 1)")
    parser.add_argument("--rest-s", type=float, default=12.0, help="rest before the job (default 12)")
    parser.add_argument("--seeds", type=int, default=5, help="simulated runs (default 5)")
    parser.add_argument("--tolerance", type=float, default=0.2, help="of real over simulated (default 0.2)")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="where the JSON goes")
    given = parser.parse_args()
    if given.nodes < 2:
        parser.error("at least two nodes can meet")
    size = {"nodes": given.nodes, "tasks": given.tasks, "task_s": given.task_s}
    machine = {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "nice": os.nice(0),
        "cores_busy_before": round(cores_busy(), 2),
    }
    with tempfile.TemporaryDirectory(prefix="p2pc-tier0-", dir="/tmp") as directory:
        lone = measure_lone(Path(directory))
        real = measure_real(Path(directory), lone, **size, gap_s=given.gap_s, rest_s=given.rest_s)
    machine["cores_busy_after"] = round(cores_busy(), 2)
    model = model_of(real, lone, **size)
    figures = compare(real_figures(real), simulate(model, given.seeds), given.tolerance)
    document = {
        "schema": "p2pc.bench.tier0/1",
        "commit": commit(),
        "machine": machine,
        "tolerance": given.tolerance,
        "figures": figures,
        "scenario": SCENARIO,
        "seeds": given.seeds,
        "model": model,
        "measured": {**asdict(lone), **asdict(real)},
    }
    given.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(figures))
    return 0 if all(one["is_within"] or "not_modelled" in one for one in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
