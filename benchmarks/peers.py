#!/usr/bin/env python3
"""p2pcompute beside the engines that people use instead: one script, one sitting, two workers each.  Prints JSON.

    python benchmarks/peers.py                                     # every engine that is installed, once
    python benchmarks/peers.py --repeat 3 -o peers.json            # medians of three rounds
    python benchmarks/peers.py --engines local,mesh,pool-fork

Measured: noop/s: 5,000 single futures submitted and gathered; map/s: 100,000 items, best of chunks of 250, 1,000 and
5,000; latency: one no-op at a time; cpu ratio: makespan of 200 Zipf-sized CPU-bound tasks over the ideal; payload: 100
different MiB sent and returned, both directions counted; cold: from the start of the engine to its first result,
libraries imported (`import_s` apart); PSS: all of its processes but the driver, idle; idle CPU in % of one core.

Engines take turns, each in a process of its own.  Numbers of one sitting may be compared, others not: the ratios to
ProcessPoolExecutor are the result.  Dask inspects every list that it is given, so it gets chunks as opaque objects.
Ray and Parsl, which make a task of each item, get the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from socket import AF_INET
from typing import Any

from psutil import Error as PsutilError
from psutil import Process, net_if_addrs, process_iter
from report import write

WORKERS = 2
NOOPS = 5000
MAP_ITEMS = 100_000
MAP_CHUNKS = (250, 1000, 5000)
LATENCY_CALLS = 300
CPU_TASKS = 200
CPU_TOTAL_S = 12.0
PAYLOADS = 100
MIB = 1 << 20
IDLE_S = 10.0
ENGINE_S_MAX = 600.0
MISSING = 3
"""Exit code of an engine that is not installed."""
REFERENCE = "pool-fork"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


# --- what is run --------------------------------------------------------------------------------------


def noop(value: Any) -> Any:
    return value


def call_chunk(chunk: Chunk) -> Chunk:
    """Opaque on the way back too: Dask walks the lists that it returns, 37 µs an item."""
    return Chunk([noop(item) for item in chunk.items])


def spin(seconds: float) -> None:
    """Use so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


class Chunk:
    """Items that an engine cannot look into."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items


def zipf_tasks() -> list[float]:
    """Return CPU_TASKS sizes in seconds that sum up to CPU_TOTAL_S, in a fixed random order."""
    sizes = [1 / rank for rank in range(1, CPU_TASKS + 1)]
    scale = CPU_TOTAL_S / sum(sizes)
    random.Random(1).shuffle(sizes)
    return [size * scale for size in sizes]


# --- engines ------------------------------------------------------------------------------------------


class Engine:
    """An engine with WORKERS worker processes."""

    libraries: Sequence[str] = ()
    executor: Any = None

    def load(self) -> None:
        """Import what it is made of; ImportError when it is not installed."""
        for name in self.libraries:
            import_module(name)

    def prepare(self) -> None:
        """Do what is done once in a life."""

    def start(self) -> None:
        raise NotImplementedError

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(function, *args)

    def gather(self, futures: list[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def map(self, items: range, chunk: int) -> int:
        """Map `noop` over items; return how many came back."""
        return sum(1 for _ in self.executor.map(noop, items, chunksize=chunk))

    def close(self) -> None:
        self.executor.shutdown()

    def roots(self) -> list[int]:
        """Processes whose families are the engine's; the driver itself is left out."""
        return [os.getpid()]


class Pool(Engine):
    libraries = ("concurrent.futures", "multiprocessing")

    def __init__(self, method: str) -> None:
        self._method = method

    def start(self) -> None:
        import concurrent.futures
        import multiprocessing

        self.executor = concurrent.futures.ProcessPoolExecutor(
            WORKERS, mp_context=multiprocessing.get_context(self._method)
        )


class Local(Engine):
    """Our embedded node with workers of its own."""

    libraries = ("p2pcompute.api.executor", "p2pcompute.api.assembly")

    def start(self) -> None:
        from p2pcompute import MeshExecutor

        self.executor = MeshExecutor(max_workers=WORKERS, local=True)


class Mesh(Engine):
    """Our embedded submitter without workers, and two nodes with one worker each."""

    libraries = ("p2pcompute.api.executor", "p2pcompute.api.assembly", "p2pcompute.host.real_net")

    def prepare(self) -> None:
        """Make the two nodes members of one group, and stop them."""
        self._directory = tempfile.TemporaryDirectory(prefix="p2pc-peers-")
        root = Path(self._directory.name)
        self._homes = [root / "a", root / "b"]
        self._start_nodes()
        token = _token(self._p2pc(0, "invite", "--mine", "--token"))
        self._p2pc(1, "join", "--accept", "all", token)
        self._p2pc(0, "trust", "set", "node-1", "trusted", "-y")  # the other engines check nothing
        self._stop_nodes()
        os.environ.update(self._env(0))

    def _env(self, number: int) -> dict[str, str]:
        return {
            "P2PC_HOME": str(self._homes[number]),
            "P2PC_NODE__NAME": f"node-{number}",
            "P2PC_NODE__SLOTS": "1",
            "P2PC_NODE__INTERFACES": "lo",
            "P2PC_NODE__ACCEPT": "all",  # the other engines have no sandbox
        }

    def _p2pc(self, number: int, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "p2pcompute", *words],
            env={**os.environ, **self._env(number)},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"p2pc {' '.join(words)} failed: {done.stderr}")
        return done.stdout

    def _start_nodes(self) -> None:
        self._nodes = []
        for number, home in enumerate(self._homes):
            home.mkdir(exist_ok=True)
            self._nodes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "p2pcompute.daemon"],
                    env={**os.environ, **self._env(number)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        for home in self._homes:
            deadline = time.monotonic() + 30
            while not (home / "node.json").exists():
                if time.monotonic() > deadline:
                    raise RuntimeError("a node did not start")
                time.sleep(0.005)

    def _stop_nodes(self) -> None:
        for node in self._nodes:
            node.send_signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()

    def start(self) -> None:
        from p2pcompute import MeshExecutor

        self._start_nodes()
        self.executor = MeshExecutor(max_workers=0)

    def wait_for_workers(self) -> None:
        deadline = time.monotonic() + 30
        while sum(node.slots or 0 for node in self.executor.nodes) < WORKERS:
            if time.monotonic() > deadline:
                raise RuntimeError("the second node was not met")
            time.sleep(0.02)

    def close(self) -> None:
        super().close()
        self._stop_nodes()
        self._directory.cleanup()

    def roots(self) -> list[int]:
        return [node.pid for node in self._nodes]


def _token(text: str) -> str:
    """Return the token in what `p2pc invite --token` prints."""
    return max(text.split(), key=len)


class Chunking(Engine):
    """One whose own `map` makes a task of each item: it gets chunks."""

    def map(self, items: range, chunk: int) -> int:
        chunks = [Chunk(list(items[start : start + chunk])) for start in range(0, len(items), chunk)]
        return sum(len(part.items) for part in self.gather([self.submit(call_chunk, part) for part in chunks]))


class Dask(Engine):
    libraries = ("distributed",)

    def __init__(self, *, is_secure: bool) -> None:
        self._is_secure = is_secure

    def start(self) -> None:
        from distributed import Client, LocalCluster

        self._cluster = LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            security=True if self._is_secure else None,  # False is refused
        )
        self.executor = Client(self._cluster)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(function, *args, pure=False)

    def gather(self, futures: list[Any]) -> list[Any]:
        found: list[Any] = self.executor.gather(futures)
        return found

    def map(self, items: range, chunk: int) -> int:
        chunks = [Chunk(list(items[start : start + chunk])) for start in range(0, len(items), chunk)]
        futures = self.executor.map(call_chunk, chunks, pure=False)
        return sum(len(part.items) for part in self.executor.gather(futures))

    def close(self) -> None:
        self.executor.close()
        self._cluster.close()


class Loky(Engine):
    libraries = ("loky",)

    def start(self) -> None:
        from loky import get_reusable_executor

        self.executor = get_reusable_executor(max_workers=WORKERS)


class Parsl(Chunking):
    """Its executor for many small tasks, with CurveZMQ between its processes."""

    libraries = ("parsl", "parsl.concurrent")

    def prepare(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="p2pc-peers-")

    def start(self) -> None:
        from parsl.concurrent import ParslPoolExecutor
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor

        workers = HighThroughputExecutor(
            encrypted=True, address="127.0.0.1", max_workers_per_node=WORKERS, worker_debug=False
        )
        config = Config(
            executors=[workers],
            strategy="none",
            run_dir=self._directory.name,
            initialize_logging=False,
            usage_tracking=0,
        )
        self.executor = ParslPoolExecutor(config)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        importable = getattr(import_module("peers"), function.__name__)  # of a script's functions it sends no globals
        return self.executor.submit(importable, *args)

    def close(self) -> None:
        super().close()
        self._directory.cleanup()

    def roots(self) -> list[int]:
        """Its workers are children of a shell that has ended."""
        workers = [process.pid for process in process_iter() if self._directory.name in " ".join(_words(process))]
        return [os.getpid(), *workers]


def _words(process: Process) -> list[str]:
    try:
        return list(process.cmdline())
    except PsutilError:
        return []


class Ray(Chunking):
    libraries = ("ray",)

    def __init__(self, *, is_secure: bool) -> None:
        self._is_secure = is_secure
        if is_secure:
            self._directory = tempfile.TemporaryDirectory(prefix="p2pc-peers-")
            os.environ.update(self._tls(Path(self._directory.name)))  # read when the library is imported

    def _tls(self, directory: Path) -> dict[str, str]:
        """Make a certificate for all processes of this machine; return the variables that name it."""
        key, certificate = str(directory / "key.pem"), str(directory / "certificate.pem")
        addresses = [
            entry.address for entries in net_if_addrs().values() for entry in entries if entry.family == AF_INET
        ]
        names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in addresses)])
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        command += ["-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate]
        subprocess.run(command, check=True, capture_output=True)
        return {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": certificate,
            "RAY_TLS_SERVER_KEY": key,
            "RAY_TLS_CA_CERT": certificate,
        }

    def start(self) -> None:
        import ray

        self._ray = ray
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        self._remote: dict[Any, Any] = {}

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        return self._remote[function].remote(*args)

    def gather(self, futures: list[Any]) -> list[Any]:
        found: list[Any] = self._ray.get(futures)
        return found

    def close(self) -> None:
        self._ray.shutdown()
        if self._is_secure:
            self._directory.cleanup()


ENGINES: dict[str, tuple[Callable[[], Engine], str]] = {
    "local": (Local, "p2pcompute"),
    "mesh": (Mesh, "p2pcompute"),
    "pool-fork": (lambda: Pool("fork"), ""),
    "pool-spawn": (lambda: Pool("spawn"), ""),
    "loky": (Loky, "loky"),
    "dask": (lambda: Dask(is_secure=False), "distributed"),
    "dask-tls": (lambda: Dask(is_secure=True), "distributed"),
    "ray": (lambda: Ray(is_secure=False), "ray"),
    "ray-tls": (lambda: Ray(is_secure=True), "ray"),
    "parsl": (Parsl, "parsl"),
}
"""Name → (engine, distribution whose version is reported)."""
UNITS = {
    "noop_per_s": True,
    "map_per_s": True,
    "latency_p50_ms": False,
    "latency_p99_ms": False,
    "cpu_ratio": False,
    "payload_mib_per_s": True,
    "cold_s": False,
    "import_s": False,
    "pss_mib": False,
    "idle_cpu_percent": False,
}
"""Metric → more is better."""


# --- measuring ----------------------------------------------------------------------------------------


def family(roots: Sequence[int]) -> list[int]:
    """The processes below `roots`, and those themselves but for this one."""
    found = list(roots)
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return [pid for pid in dict.fromkeys(found) if pid != os.getpid()]


def pss_mib(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_s(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


def measure(engine: Engine) -> dict[str, float]:
    """Run everything on one engine."""
    found: dict[str, float] = {}
    with stopwatch() as elapsed:
        engine.load()
        found["import_s"] = elapsed()
    engine.prepare()
    with stopwatch() as elapsed:
        engine.start()
        engine.gather([engine.submit(noop, 1)])
        found["cold_s"] = elapsed()
    if isinstance(engine, Mesh):
        engine.wait_for_workers()
    engine.gather([engine.submit(noop, n) for n in range(200)])

    with stopwatch() as elapsed:
        engine.gather([engine.submit(noop, n) for n in range(NOOPS)])
        found["noop_per_s"] = NOOPS / elapsed()

    rates = []
    for chunk in MAP_CHUNKS:
        with stopwatch() as elapsed:
            if engine.map(range(MAP_ITEMS), chunk) != MAP_ITEMS:
                raise RuntimeError("items were lost")
            rates.append(MAP_ITEMS / elapsed())
    found["map_per_s"] = max(rates)

    times = []
    for n in range(LATENCY_CALLS):
        with stopwatch() as elapsed:
            engine.gather([engine.submit(noop, n)])
            times.append(elapsed() * 1000)
    times.sort()
    found["latency_p50_ms"] = times[len(times) // 2]
    found["latency_p99_ms"] = times[int(len(times) * 0.99)]

    with stopwatch() as elapsed:
        engine.gather([engine.submit(spin, size) for size in zipf_tasks()])
        found["cpu_ratio"] = elapsed() / (CPU_TOTAL_S / WORKERS)

    payloads = [os.urandom(MIB) for _ in range(PAYLOADS)]
    with stopwatch() as elapsed:
        sizes = [len(value) for value in engine.gather([engine.submit(noop, data) for data in payloads])]
        found["payload_mib_per_s"] = 2 * PAYLOADS / elapsed()
    if sizes != [MIB] * PAYLOADS:
        raise RuntimeError("payloads were damaged")
    del payloads

    time.sleep(1.0)
    pids = family(engine.roots())
    found["pss_mib"] = pss_mib(pids)
    watched = [*pids, os.getpid()]
    before = cpu_s(watched)
    time.sleep(IDLE_S)
    found["idle_cpu_percent"] = 100 * (cpu_s(watched) - before) / IDLE_S
    engine.close()
    return found


# --- the sitting --------------------------------------------------------------------------------------


def run_engine(name: str) -> dict[str, Any]:
    """Measure an engine in a process of its own: {metrics}, or {missing} or {error} with the reason."""
    with tempfile.TemporaryDirectory(prefix="p2pc-peers-home-") as home:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # Parsl's programs
        env = {**os.environ, "PATH": path, "P2PC_HOME": home, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--run", name],
                capture_output=True,
                text=True,
                check=False,
                env=env,
                timeout=ENGINE_S_MAX,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done within {ENGINE_S_MAX:g} s"}
    if done.returncode == MISSING:
        return {"missing": done.stderr.strip()}
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in dict.fromkeys(ENGINES[engine][1] for engine in names):
        if name:
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
    return found


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Combine the rounds of one engine."""
    whole = [one for one in rounds if "missing" not in one and "error" not in one]
    if not whole:
        return rounds[0]
    combined: dict[str, Any] = {metric: statistics.median(one[metric] for one in whole) for metric in UNITS}
    combined["rounds"] = len(whole)
    if len(whole) > 1:
        combined["spread"] = {
            metric: [min(one[metric] for one in whole), max(one[metric] for one in whole)] for metric in UNITS
        }
    errors = [one["error"] for one in rounds if "error" in one]
    if errors:
        combined["errors"] = errors
    return combined


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return metric by metric how many times better than the reference each engine is (above 1: better)."""
    reference = results.get(REFERENCE, {})
    found: dict[str, dict[str, float]] = {}
    for name, result in results.items():
        if name == REFERENCE or "noop_per_s" not in result or "noop_per_s" not in reference:
            continue
        found[name] = {}
        for metric, more_is_better in UNITS.items():
            ours, theirs = result[metric], reference[metric]
            if ours > 0 and theirs > 0:
                found[name][metric] = round(ours / theirs if more_is_better else theirs / ours, 3)
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| engine | " + " | ".join(UNITS) + " |", "|" + "---|" * (len(UNITS) + 1)]
    for name, result in results.items():
        if "noop_per_s" not in result:
            lines.append(f"| {name} | " + (result.get("missing") or result.get("error", "")).splitlines()[-1] + " |")
        else:
            lines.append(f"| {name} | " + " | ".join(f"{result[metric]:,.4g}" for metric in UNITS) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"of: {', '.join(ENGINES)}")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the medians are reported")
    parser.add_argument("-o", "--output", type=Path, help="where the JSON goes; default: standard output")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        try:
            print(json.dumps(measure(ENGINES[given.run][0]())))
        except ModuleNotFoundError as error:
            print(f"not installed: {error}", file=sys.stderr)
            return MISSING
        return 0
    names = [name.strip() for name in given.engines.split(",") if name.strip()]
    unknown = [name for name in names if name not in ENGINES]
    if unknown:
        parser.error(f"there is no engine {unknown[0]!r}; there are: {', '.join(ENGINES)}")
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(given.repeat):
        for name in names:
            print(f"round {number + 1}: {name} …", file=sys.stderr, flush=True)
            rounds[name].append(run_engine(name))
    results = {name: medians(found) for name, found in rounds.items()}
    document = {
        "schema": "p2pc.benchmark.peers/1",
        "commit": commit(),
        "machine": machine(),
        "versions": versions(names),
        "workers": WORKERS,
        "reference": REFERENCE,
        "results": results,
        "ratios": ratios(results),
    }
    write(document, given.output)
    print(table(results), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
