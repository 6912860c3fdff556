#!/usr/bin/env python3
"""What a node costs when it does nothing, and what the commonest command costs.  Prints JSON.

    python benchmarks/footprint.py                    # a minute alone, a minute with two peers
    python benchmarks/footprint.py --idle-s 10        # quicker, coarser

Measured: proportional memory (PSS) of the daemon with its warm worker processes after a first job; CPU time of the
daemon over an idle minute, alone and as one of three members; CPU time of `p2pc status` and of a bare interpreter,
medians of 11.  Everything is read from /proc or from wait4, so the load of other programs on the machine does not
distort it.  Linux only; every node uses loopback and a directory of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import commit

GOALS = {"pss_mib": 80.0, "idle_core_percent": 0.5, "status_cpu_ms": 150.0}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Installation:
    """One node with its own P2PC_HOME and one slot."""

    def __init__(self, root: Path, name: str) -> None:
        self.env = {
            **os.environ,
            "P2PC_HOME": str(root / name),
            "P2PC_NODE__NAME": name,
            "P2PC_NODE__SLOTS": "1",
            "P2PC_NODE__INTERFACES": "lo",
        }
        # An installed package has its bytecode; without it every command compiles itself, a third of its time.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def p2pc(self, *words: str) -> str:
        command = [sys.executable, "-m", "p2pcompute", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"p2pc {' '.join(words)} failed:\n{done.stderr}")
        return done.stdout

    def pid(self) -> int:
        return int(json.loads(self.p2pc("status", "--json"))["node"]["pid"])


def processes_of(pid: int) -> list[int]:
    """A process and its descendants, parents first."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no PSS of process {pid}")


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of processes that live."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def switches(pids: Sequence[int]) -> int:
    """Voluntary context switches of all threads: about how often they woke up."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    return total


def idle(pids: Sequence[int], seconds: float) -> dict[str, float]:
    """CPU use of processes that have nothing to do."""
    cpu, woken, started = cpu_s(pids), switches(pids), time.monotonic()
    time.sleep(seconds)
    elapsed_s = time.monotonic() - started
    return {
        "seconds": round(elapsed_s, 1),
        "core_percent": round(100 * (cpu_s(pids) - cpu) / elapsed_s, 3),
        "wakeups_per_s": round((switches(pids) - woken) / elapsed_s, 2),
    }


def command_cpu_ms(command: Sequence[str], env: dict[str, str], runs: int = 11) -> dict[str, float]:
    """CPU time of a command with its children: median, least and most."""
    times = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return {"median": round(statistics.median(times), 1), "min": round(min(times), 1), "max": round(max(times), 1)}


def measure(root: Path, idle_s: float, settle_s: float) -> dict[str, Any]:
    nodes = [Installation(root, name) for name in ("one", "two", "three")]
    one = nodes[0]
    report: dict[str, Any] = {}
    try:
        one.p2pc("node", "start")
        one.p2pc("run", "--json", "echo {}", ":::", "warm", "up")
        time.sleep(settle_s)
        pids = processes_of(one.pid())
        report["alone"] = {
            "pss_mib": round(sum(pss_mib(pid) for pid in pids), 1),
            "pss_mib_by_process": [round(pss_mib(pid), 1) for pid in pids],
            **idle(pids, idle_s),
        }
        report["status_cpu_ms"] = command_cpu_ms([sys.executable, "-m", "p2pcompute", "status"], one.env)
        report["bare_python_cpu_ms"] = command_cpu_ms([sys.executable, "-c", "pass"], one.env)
        token = json.loads(one.p2pc("invite", "--mine", "--token", "--uses", "2", "--json"))["token"]
        for node in nodes[1:]:
            node.p2pc("node", "start")
            node.p2pc("join", token, "--accept", "all")
        end = time.monotonic() + 30
        while len(json.loads(one.p2pc("peers", "--json"))["items"]) < len(nodes):
            if time.monotonic() > end:
                sys.exit("the nodes did not find one another within 30 s")
            time.sleep(0.2)
        one.p2pc("run", "--json", "echo {}", ":::", *map(str, range(20)))
        time.sleep(settle_s)
        pids = processes_of(one.pid())
        report["with_two_peers"] = {
            "pss_mib": round(sum(pss_mib(pid) for pid in pids), 1),
            "pss_mib_by_process": [round(pss_mib(pid), 1) for pid in pids],
            **idle(pids, idle_s),
        }
    finally:
        for node in reversed(nodes):
            stop = [sys.executable, "-m", "p2pcompute", "node", "stop"]
            subprocess.run(stop, env=node.env, capture_output=True, check=False)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle-s", type=float, default=60.0, help="length of each idle time (default 60)")
    parser.add_argument("--settle-s", type=float, default=3.0, help="pause before each measurement (default 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2pc-footprint-") as directory:
        report = measure(Path(directory), arguments.idle_s, arguments.settle_s)
    measured = {
        "pss_mib": max(report["alone"]["pss_mib"], report["with_two_peers"]["pss_mib"]),
        "idle_core_percent": max(report["alone"]["core_percent"], report["with_two_peers"]["core_percent"]),
        "status_cpu_ms": report["status_cpu_ms"]["median"],
    }
    document = {
        "schema": "p2pc.bench.footprint/1",
        "commit": commit(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        **report,
        "goals": {
            name: {"goal": goal, "measured": measured[name], "met": measured[name] <= goal}
            for name, goal in GOALS.items()
        },
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
