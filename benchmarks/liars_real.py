#!/usr/bin/env python3
"""Eight real daemons of which two lie about a job of 20,000 tasks of another one.  JSON.

    python benchmarks/liars_real.py                  # whatever they compute for others is wrong
    python benchmarks/liars_real.py --lies 0.05      # a twentieth of it, the same tasks for both
    python benchmarks/liars_real.py --compare        # then with honest nodes, and with results that are believed

The nodes are of one group on loopback and nobody trusts anybody: the owner checks what members compute.  The liars
agree on every wrong value, which is the hardest to find out.  Then every value must be the right one, both liars be
banned and nobody else, and no daemon have logged an error.  Each execution leaves a line in a file, so it is known how
often tasks ran.  Exit code 1 and the reasons, and the homes kept, when anything of it is not so.  Linux only.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from churn_real import _looked, executions, problems_of, submit
from report import conclude
from tier0 import Daemon, make_group, stopping, until

NODES: Final = 8
LIARS: Final = (6, 7)
TASK_S: Final = 0.02
JOB_S_MAX: Final = 3600.0
LYING: Final = '''"""A daemon whose worker lies about tasks of others, as all liars do about the same ones."""
import hashlib, sys
from dataclasses import replace
from p2pcompute.daemon.__main__ import main
from p2pcompute.execution.codec import encode
from p2pcompute.host.runs import OutcomeStatus
from p2pcompute.scheduler.stealing import LOCAL
from p2pcompute.scheduler.worker_service import WorkerService
finish = WorkerService._finish
def lie(self, held, outcome):
    drawn = hashlib.sha256(held.job_id + str(held.task.index).encode()).digest()[0] / 256
    if held.owner != LOCAL and outcome.status is OutcomeStatus.OK and drawn < LIES:
        outcome = replace(outcome, value=encode(-1))
        with open("lies", "a") as file:
            file.write(f"{held.task.index}\\n")
    finish(self, held, outcome)
WorkerService._finish = lie
sys.exit(main())
'''


class Liar(Daemon):
    """A daemon that runs `LYING`."""

    @property
    def program(self) -> list[str]:
        return [str(self.home / "lying.py")]


def banned_at(owner: Daemon) -> list[str]:
    """Names of those whom the owner has banned."""
    items = owner.connection.request("GET", "/v1/trust")["items"]
    shown = {one["name"]: owner.connection.request("GET", f"/v1/trust/{one['id']}/evidence") for one in items}
    return sorted(name for name, evidence in shown.items() if evidence["banned"])


def play(
    directory: Path, given: argparse.Namespace, *, is_lied_to: bool, options: Sequence[str] = ()
) -> dict[str, Any]:
    """One job in a group of its own: what it took, and what was not as it must be."""
    daemons = make_group(directory, NODES)
    liars = [daemons[number] for number in LIARS] if is_lied_to else []
    for liar in liars:
        (liar.home / "lying.py").write_text(f"LIES = {given.lies!r}\n{LYING}")
        liar.__class__ = Liar
    with stopping(daemons):
        for daemon in daemons:
            daemon.start()
        until(
            lambda: sum(peer["state"] == "up" for peer in daemons[0].status()["peers"]) >= NODES - 1,
            120,
            "all have met",
        )
        began = time.monotonic()
        submit(daemons[0], directory, given.tasks, given.task_s, *options)
        try:
            job = until(lambda: _looked(daemons[0], given.tasks), JOB_S_MAX, "done")
        except SystemExit:
            job = None
        took_s = time.monotonic() - began
        problems = problems_of(daemons, directory, job, given.tasks)
        banned = banned_at(daemons[0])
        if banned != sorted(liar.name for liar in liars):
            problems.append(f"banned: {banned}")
    told = [len((liar.home / "lies").read_text().split()) if (liar.home / "lies").exists() else 0 for liar in liars]
    ran = executions(directory)
    return {
        "wrong_results_told": told,
        "banned": banned,
        "executions": ran,
        "executions_per_task": round(sum(int(times) * count for times, count in ran.items()) / given.tasks, 3),
        "took_s": round(took_s, 1),
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--task-s", type=float, default=TASK_S, help="seconds that a task sleeps")
    parser.add_argument("--lies", type=float, default=1.0, help="part of the tasks about which they lie")
    parser.add_argument("--compare", action="store_true", help="run it also with honest nodes, checked and unchecked")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="p2pc-liars-"))
    plays: dict[str, dict[str, Any]] = {"is_lied_to": {"is_lied_to": True}}
    if given.compare:
        plays["honest"] = {"is_lied_to": False}
        plays["unchecked"] = {"is_lied_to": False, "options": ("--verify", "none")}
    runs = {}
    for name, how in plays.items():
        (directory / name).mkdir()
        runs[name] = play(directory / name, given, **how)
    report: dict[str, Any] = {"tasks": given.tasks, "task_s": given.task_s, "lies": given.lies, "runs": runs}
    if given.compare:
        report["times_unchecked"] = {
            n: round(run["took_s"] / runs["unchecked"]["took_s"], 2) for n, run in runs.items()
        }
    report["cpu_s"] = round(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), 1)
    report["problems"] = [f"{name}: {problem}" for name, run in runs.items() for problem in run.pop("problems")]
    return conclude(report, directory)


if __name__ == "__main__":
    sys.exit(main())
