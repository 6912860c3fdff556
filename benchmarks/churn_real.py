#!/usr/bin/env python3
"""Ten real daemons whose processes are killed, stopped and started again while a job of 20,000 tasks runs.  JSON.

    python benchmarks/churn_real.py                              # ten minutes of it
    python benchmarks/churn_real.py --members                    # the nodes check one another's results
    python benchmarks/churn_real.py --minutes 3 --seed 7         # the same faults at the same moments as in every run
                                                                 # with this seed

The nodes are of one group on loopback, each with a home and slots of its own, and trust one another.  The first one
is the owner of the job; its custodians are two of the others.  With `--members` nobody is trusted and nobody a
custodian: each result is compared with another node's.  From when the first tasks have ended, faults hit one node
after the other: its daemon is killed, or told to stop (and drains), or stands still for a while; or only one of its
worker processes is killed.  A daemon that has ended is started again after a while, as its machine's boot would do.
Nobody does anything else.  Beside, `p2pc wait` follows the job at its owner from the beginning.

Then every task must have ended well, once; every value be the right one; no daemon have logged an error; and `wait`
have ended with 0.  Each execution leaves a line in a file, so it is known how often tasks ran.  Exit code 1 and the
reasons, and the homes kept, when anything of it is not so.  Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from report import conclude
from tier0 import Daemon, make_group, stopping, until

from p2pcompute.errors import P2pcError
from p2pcompute.places import find_paths

FAULT_GAP_S: Final = 4.0
"""Mean time from one fault to the next, over all nodes."""
DOWN_S: Final = (0.5, 40.0)
"""How long a daemon is away: between these, the short times as likely as the long ones.  Longer than the patience of a
custodian at times, so that it takes over."""
STILL_S: Final = (0.5, 45.0)
"""How long a daemon stands still; longer than a lease at times."""
DRAIN_S_MAX: Final = 75.0
AFTER_S_MAX: Final = 600.0
"""What the job may take after the last fault."""
PROGRAM: Final = """
import os, time
def work(number):
    number = int(number)
    with open(f"{directory}/{number % 100}", "a") as file:
        file.write(f"{number} {os.environ.get('P2PC_NODE')}\\n")
    time.sleep(task_s * (0.2 + 1.6 * (number * 7919 % 1000) / 1000))
    return number * number
"""
_ERROR_LINE: Final = re.compile(r"^\S+ \S+ (error|critical) ")


class Node:
    """A daemon, and what is done to it next."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.up_at = 0.0
        """When it is started again, or goes on; 0: it is up."""
        self.is_still = False
        self.is_stopping = False
        self.faults: collections.Counter[str] = collections.Counter()

    def hit(self, fault: str, away_s: float, now: float) -> None:
        """Let a fault happen to it.  `away_s` counts from the end of its process."""
        self.faults[fault] += 1
        process = self.daemon.process
        if fault == "worker":
            self._kill_worker()
            return
        self.up_at = now + away_s
        if fault == "kill":
            process.kill()
            process.wait()
        elif fault == "stop":
            process.terminate()
            self.is_stopping = True
            self.up_at = now + DRAIN_S_MAX + away_s
        else:
            process.send_signal(signal.SIGSTOP)
            self.is_still = True

    def _kill_worker(self) -> None:
        for task in Path(f"/proc/{self.daemon.process.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(child), signal.SIGKILL)
                    return

    def mend(self, now: float, away_s: float) -> str:
        """Start it again, or let it go on, when it is time; returns what was done."""
        if self.is_stopping and self.daemon.process.poll() is not None:
            self.is_stopping = False
            self.up_at = now + away_s
        if not self.up_at or now < self.up_at:
            return ""
        self.up_at = 0.0
        if self.is_still:
            self.is_still = False
            self.daemon.process.send_signal(signal.SIGCONT)
            return "goes on"
        if self.is_stopping:
            self.is_stopping = False
            self.daemon.process.kill()
            self.daemon.process.wait()
            return f"did not stop within {DRAIN_S_MAX:g} s, killed"
        self.daemon.spawn()
        return "started"


class Churn:
    """The faults of one run: what, whom and when follow from the seed alone."""

    def __init__(self, nodes: list[Node], seed: int, minutes: float) -> None:
        self.nodes = nodes
        self._rng = random.Random(seed)
        self._end_s = minutes * 60
        self._began = time.monotonic()

    def _tell(self, node: Node, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {node.daemon.name} {what}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Play all faults, and start or wake every node at the end."""
        due = 0.0
        while due < self._end_s:
            due += self._rng.expovariate(1 / FAULT_GAP_S)
            node = self._rng.choice(self.nodes)
            fault = self._rng.choices(("kill", "stop", "still", "worker"), (4, 2, 2, 3))[0]
            low, high = STILL_S if fault == "still" else DOWN_S
            away_s = low * (high / low) ** self._rng.random()
            while (now := time.monotonic() - self._began) < due:
                self._mend(now)
                time.sleep(max(0.0, min(0.1, due - now)))
            if node.up_at:
                continue  # it has a fault already
            node.hit(fault, away_s, now)
            self._tell(node, fault if fault == "worker" else f"{fault}, {away_s:.1f} s")
        for node in self.nodes:
            if node.up_at and not node.is_stopping:
                node.up_at = 1e-9
        until(self._all_up, DRAIN_S_MAX * 2, "all nodes are up again")

    def _mend(self, now: float) -> None:
        for node in self.nodes:
            if done := node.mend(now, 1.0):
                self._tell(node, done)

    def _all_up(self) -> bool:
        self._mend(time.monotonic() - self._began)
        return not any(node.up_at for node in self.nodes)


def said(daemon: Daemon, command: str) -> Path:
    """Return the file with what a command has said."""
    return daemon.home / f"said-{command}"


def p2pc(daemon: Daemon, *words: str) -> subprocess.Popen[bytes]:
    with open(said(daemon, words[0]), "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "p2pcompute", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=daemon.env,
            cwd=daemon.home,
        )


def submit(owner: Daemon, directory: Path, tasks: int, task_s: float, *options: str) -> dict[str, Any]:
    """Give the owner the job, and return it when the first tasks have ended; `options` are those of `p2pc run`."""
    names = f"directory, task_s = {str(directory / 'ran')!r}, {task_s!r}\n"
    (directory / "program.py").write_text(names + PROGRAM)
    (directory / "ran").mkdir()
    (directory / "inputs").write_text("".join(f"{number}\n" for number in range(tasks)))
    words = ["run", "--detach", "--name", "churn", "--retries", "50", *options, f"{directory}/program.py::work"]
    if p2pc(owner, *words, "::::", str(directory / "inputs")).wait(120):
        sys.exit(said(owner, "run").read_text())
    return until(lambda: _looked(owner, 20), 120, "the first tasks have ended")


def _looked(owner: Daemon, count: int) -> dict[str, Any] | None:
    """The job, when so many of its tasks have ended."""
    with contextlib.suppress(P2pcError):
        job = owner.connection.request("GET", "/v1/jobs/last")
        if job["done"] + job["failed"] + job["cancelled"] >= count:
            return job
    return None


def problems_of(daemons: list[Daemon], directory: Path, job: dict[str, Any] | None, tasks: int) -> list[str]:
    """Say what is not as it must be."""
    found = []
    if job is None:
        found.append(f"the job was not done {AFTER_S_MAX:g} s after the last fault")
        with contextlib.suppress(P2pcError):
            found.append(json.dumps(daemons[0].connection.request("GET", "/v1/jobs/last"))[:4000])
    else:
        if (job["state"], job["total"], job["done"], job["failed"]) != ("done", tasks, tasks, 0):
            found.append(f"the job: {json.dumps(job)[:2000]}")
        found += _wrong_values(daemons[0], tasks)
    for daemon in daemons:
        log = find_paths(daemon.env).log.read_text(errors="replace").splitlines()
        errors = [number for number, line in enumerate(log) if _ERROR_LINE.match(line)]
        found += ["\n".join([f"{daemon.name}: {log[number]}", *log[number + 1 : number + 12]]) for number in errors]
        if text := (daemon.home / "stderr").read_text(errors="replace").strip():
            found.append(f"{daemon.name}, stderr: {text[-2000:]}")
    return found


def _wrong_values(owner: Daemon, tasks: int) -> list[str]:
    if p2pc(owner, "result", "last", "--format", "jsonl").wait(300):
        return [f"p2pc result: {said(owner, 'result').read_text()[-1000:]}"]
    seen: collections.Counter[int] = collections.Counter()
    wrong = []
    for line in said(owner, "result").read_text().splitlines():
        record = json.loads(line)
        seen[record["index"]] += 1
        if record["value"] != record["index"] ** 2:
            wrong.append(f"task {record['index']}: {record}")
    if sorted(seen) != list(range(tasks)) or max(seen.values(), default=0) > 1:
        wrong.append(f"{len(seen)} tasks have a result, {sum(count > 1 for count in seen.values())} more than one")
    return wrong[:10]


def executions(directory: Path) -> dict[str, int]:
    """How many tasks ran how often."""
    ran: collections.Counter[str] = collections.Counter()
    for path in (directory / "ran").iterdir():
        ran.update(line.split()[0] for line in path.read_text().splitlines())
    return {str(times): count for times, count in sorted(collections.Counter(ran.values()).items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--busy", type=float, default=0.8, help="part of all slots' time that the tasks need")
    parser.add_argument("--members", action="store_true", help="no node trusts another one")
    given = parser.parse_args()
    replay = f"{Path(__file__).name} --seed {given.seed} --minutes {given.minutes:g}"
    replay += f" --nodes {given.nodes} --tasks {given.tasks} --busy {given.busy:g}"
    replay += " --members" * given.members
    print(f"replay: python benchmarks/{replay}", file=sys.stderr, flush=True)
    directory = Path(tempfile.mkdtemp(prefix="p2pc-churn-"))
    daemons = make_group(directory, given.nodes, is_trusting=not given.members)
    nodes = [Node(daemon) for daemon in daemons]
    with stopping(daemons):
        for daemon in daemons:
            daemon.start()
        task_s = given.busy * given.minutes * 60 * 2 * given.nodes / given.tasks
        began = time.monotonic()
        submit(daemons[0], directory, given.tasks, task_s)
        waiting = p2pc(daemons[0], "wait", "last")
        churn = Churn(nodes, given.seed, given.minutes)
        churn.run()
        churned_s = time.monotonic() - began
        try:
            job = until(lambda: _looked(daemons[0], given.tasks), AFTER_S_MAX, "done")
        except SystemExit:
            job = None
        took_s = time.monotonic() - began
        problems = problems_of(daemons, directory, job, given.tasks)
        try:
            if code := waiting.wait(60):
                problems.append(f"p2pc wait ended with {code}: {said(daemons[0], 'wait').read_text()[-1000:]}")
        except subprocess.TimeoutExpired:
            waiting.kill()
            problems.append("p2pc wait goes on")
    faults: collections.Counter[str] = sum((node.faults for node in nodes), collections.Counter())
    report = {
        "replay": replay,
        "faults": dict(faults),
        "faults_of_owner": dict(nodes[0].faults),
        "faults_of_custodians": _faults_of(nodes, job),
        "churned_s": round(churned_s, 1),
        "took_s": round(took_s, 1),
        "executions": executions(directory),
        "retried": job and job["retried"],
        "problems": problems,
    }
    return conclude(report, directory)


def _faults_of(nodes: list[Node], job: dict[str, Any] | None) -> dict[str, dict[str, int]]:
    names = job["custodians"] if job else []
    return {node.daemon.name: dict(node.faults) for node in nodes if node.daemon.name in names}


if __name__ == "__main__":
    sys.exit(main())
