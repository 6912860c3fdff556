"""Shares, priorities and deadlines at a real node.  If these fail, one job keeps others waiting, or never gives up."""

from __future__ import annotations

import base64
import statistics
import time
from typing import Any

from p2pcompute.cli.plan import dump_call
from p2pcompute.execution.functions import ship
from tests.e2e.mesh import Daemon, Mesh, until

JOBS = 100
SLOTS = 8
MEAN_S = 1.2
"""Slot time of each job when its share is looked at."""


def submit(daemon: Daemon, sleep_s: float, count: int, **terms: Any) -> str:
    """Submit a job of tasks that sleep; returns its id."""
    connection = daemon.connection()
    spec = {"code_b64": base64.b64encode(ship(time.sleep).code).decode()}
    body = {"kind": "function", "name": f"sleep {sleep_s}", "terms": terms, "spec": spec}
    job_id = str(connection.request("POST", "/v1/jobs", body)["id"])
    line = {"args_b64": base64.b64encode(dump_call((sleep_s,))).decode()}
    connection.upload_lines(f"/v1/jobs/{job_id}/tasks", (line for _ in range(count)))
    connection.request("POST", f"/v1/jobs/{job_id}/seal", {})
    return job_id


def test_a_hundred_jobs_have_equal_shares_within_a_tenth(mesh: Mesh) -> None:
    (daemon,) = mesh.start("ada", slots=SLOTS)
    first = submit(daemon, 1000.0, SLOTS, priority=1)
    job_ids = [submit(daemon, 0.05 if number % 2 else 0.02, 150) for number in range(JOBS)]
    daemon.connection().request("POST", f"/v1/jobs/{first}/cancel", {"now": True})

    def items() -> list[dict[str, Any]]:
        return [item for item in daemon.get("/v1/jobs?limit=200")["items"] if item["id"] in job_ids]

    until(lambda: sum(item["done"] for item in items()) >= JOBS * MEAN_S / 0.035, 120.0, "all jobs are served")
    shares = [item["share"] for item in items()]
    submit(daemon, 1000.0, SLOTS, priority=1)  # takes the slots while the others are looked at
    since = [sum(task["runtime_s"] or 0.0 for task in daemon.tasks(job_id)) for job_id in job_ids]
    assert all(item["waiting"] for item in items()), "all of them still want more"
    mean_s = statistics.mean(since)
    assert max(abs(one - mean_s) for one in since) <= 0.1 * mean_s, [round(one, 2) for one in sorted(since)[::9]]
    assert abs(sum(shares) - 1) < 0.02 and max(shares) < 0.02
    assert "SHARE" in daemon.p2pc("jobs").check().lines[0]


def test_higher_priorities_go_first_and_deadlines_end_jobs(mesh: Mesh) -> None:
    (daemon,) = mesh.start("ada", slots=1)
    low = submit(daemon, 0.1, 50, priority=-1)
    high = submit(daemon, 0.0, 20, priority=5)
    daemon.wait_over(30.0, high)
    assert daemon.job(low)["done"] < 20, "it came first and waits"
    ran = daemon.p2pc("run", "--deadline", "1", "--priority", "9", "sleep", ":::", "0", "30", "30").check(124)
    assert "stopped early: deadline" in ran.err
    shown = daemon.p2pc("show", "last").check().out
    assert "priority" in shown and "deadline" in shown
    assert daemon.p2pc("run", "--deadline", "1999-01-01", "true", ":::", "1").check(2).err.count("past") == 1
    daemon.kill()
    daemon.start()
    assert daemon.job()["exit_code"] == 124, "that is known after a restart too"
