"""The promise of the mesh: nodes die in every way while a job runs, and its result is what it would have been.

By default a few hundred short tasks; with P2PC_SOAK=1 the full size.  Leases have their real length.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.e2e.mesh import Daemon, Mesh, joblog_rows, until

IS_FULL = bool(os.environ.get("P2PC_SOAK"))
TASKS = 2000 if IS_FULL else 300
FEWER = 2000 if IS_FULL else 90
"""For drills in which one thing goes wrong."""
MILLISECONDS = (100, 500) if IS_FULL else (50, 150)
LIMIT_S = 900.0 if IS_FULL else 120.0

pytestmark = pytest.mark.drill


def sleep_s(index: int) -> float:
    """Between the bounds, different from task to task, the same in every run."""
    low, high = MILLISECONDS
    return (low + index * 7919 % (high - low + 1)) / 1000


def script(witness: Path) -> str:
    """Each execution leaves a line in a file of its task, whatever becomes of its result."""
    return f"echo $P2PC_NODE >> {witness}/$1; sleep $2; echo result $1 $(($1 * $1)); echo note $1 >&2"


def words_of_drill(directory: Path, tasks: int) -> list[str]:
    """Return the words of the `run` that a drill is about."""
    witness = directory / "witness"
    witness.mkdir()
    inputs = directory / "inputs"
    inputs.write_text("".join(f"{index},{sleep_s(index):g}\n" for index in range(tasks)))
    return [
        "run",
        "--colsep",
        ",",
        "--results",
        str(directory / "out"),
        "--joblog",
        str(directory / "joblog"),
        "--name",
        "drill",
        "sh",
        "-c",
        script(witness),
        "task",
        "{1}",
        "{2}",
        "::::",
        str(inputs),
    ]


def check_results(ada: Daemon, directory: Path, tasks: int) -> dict[str, int]:
    """Every result is there once, and right; returns how often tasks ran, by number of times."""
    job = ada.job()
    assert (job["state"], job["total"], job["done"]) == ("done", tasks, tasks), job
    assert (job["failed"], job["cancelled"], job["retried"], job["exit_code"]) == (0, 0, 0, 0), job
    assert sum(share["done"] for share in job["by_node"]) == tasks
    out = directory / "out"
    for index in range(tasks):
        folder = out / f"tasks/{index // 1000:03d}/{index:06d}"
        assert (folder / "stdout").read_text() == f"result {index} {index * index}\n"
        assert (folder / "stderr").read_text() == f"note {index}\n"
    records = [json.loads(line) for line in (out / "tasks.jsonl").read_text().splitlines()]
    assert sorted(record["index"] for record in records) == list(range(tasks))
    assert {record["state"] for record in records} == {"done"}
    for path in (directory / "joblog", out / "joblog"):
        rows = joblog_rows(path)
        assert sorted(int(row[0]) for row in rows) == list(range(1, tasks + 1))
        assert {(row[6], row[7]) for row in rows} == {("0", "0")}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["done"], summary["failed"]) == (tasks, 0)
    times: dict[str, int] = {}
    for index in range(tasks):
        ran = len((directory / "witness" / str(index)).read_text().splitlines())
        assert ran >= 1
        times[str(ran)] = times.get(str(ran), 0) + 1
    return times


def test_nodes_die_and_nothing_is_lost(
    mesh: Mesh, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """kill -9 of a worker, SIGSTOP of another for good, kill -9 and restart of the owner, the terminal closed."""
    ada, bob, eve = mesh.start("ada", "bob", "eve")
    terminal = ada.terminal(*words_of_drill(tmp_path, TASKS), cwd=tmp_path)
    until(lambda: "drill" in terminal.text, 30, "progress is shown")
    ada.wait_done(TASKS // 5, LIMIT_S)
    assert {share["node"] for share in ada.job()["by_node"]} == {"ada", "bob", "eve"}, "everybody takes part"
    terminal.close()
    assert terminal.wait() == 129
    ada.wait_done(TASKS * 3 // 10, LIMIT_S)
    bob.kill()
    ada.wait_done(TASKS // 2, LIMIT_S)
    eve.suspend()
    looking = ada.begin("attach", "last", cwd=tmp_path)
    until(lambda: looking.out, LIMIT_S, "the view shows what ends from now on")
    ada.wait_done(TASKS * 7 // 10, LIMIT_S)
    ada.kill()
    ada.start()
    attached = ada.p2pc("attach", "last", cwd=tmp_path, limit_s=LIMIT_S).check(0)
    assert f"{TASKS}/{TASKS}" in "".join(attached.err.split()), attached.err
    looked = looking.finish(LIMIT_S).check(0)
    assert "the node went away; waiting for it" in looked.err
    assert TASKS // 3 < len(looked.lines) == len(set(looked.lines)), "shown once each, on both sides of the restart"
    assert set(looked.lines) <= {f"result {index} {index * index}" for index in range(TASKS)}
    times = check_results(ada, tmp_path, TASKS)
    record_property("times_run", times)
    print(f"tasks by number of executions: {times}")
    assert ada.p2pc("wait", "last").code == 0


def test_a_worker_that_stops_in_the_middle_hands_back(mesh: Mesh, tmp_path: Path) -> None:
    """`p2pc node stop` drains: what has not started goes back at once, what runs is finished, nothing runs twice."""
    ada, bob = mesh.start("ada", "bob")
    job = ada.begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    ada.wait_done(FEWER // 5, LIMIT_S)
    stopped = bob.p2pc("node", "stop").check()
    assert stopped.took_s < 10, "it waits for running tasks only"
    assert bob.process is not None and bob.process.wait(10) == 0
    bob.process = None
    job.finish(LIMIT_S).check(0)
    times = check_results(ada, tmp_path, FEWER)
    assert times == {"1": FEWER}, times


def test_the_owner_restarts_in_the_middle(mesh: Mesh, tmp_path: Path) -> None:
    """`p2pc node restart` under a job that goes on: the command that follows it waits, workers keep their results."""
    ada, bob = mesh.start("ada", "bob")
    job = ada.begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    ada.wait_done(FEWER // 5, LIMIT_S)
    assert ada.process is not None
    ada.p2pc("node", "restart").check()
    assert ada.process.wait(10) == 0
    ada.process = None  # its successor is not our child
    job.finish(LIMIT_S).check(0)
    times = check_results(ada, tmp_path, FEWER)
    assert times["1"] >= FEWER * 0.8, "what bob held was asked for before it was given to others"
    assert bob.ups() == ["ada"]


def test_a_worker_restarts_in_the_middle(mesh: Mesh, tmp_path: Path) -> None:
    """kill -9 and start again at once: the owner takes back what the earlier life held without waiting for leases."""
    ada, bob = mesh.start("ada", "bob")
    job = ada.begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    ada.wait_done(FEWER // 5, LIMIT_S)
    bob.kill()
    bob.start()
    job.finish(25 if not IS_FULL else LIMIT_S).check(0)
    check_results(ada, tmp_path, FEWER)


def test_the_owner_is_away_for_a_while(mesh: Mesh, tmp_path: Path) -> None:
    """What workers finish meanwhile is kept by them and delivered when the owner is back."""
    ada, bob = mesh.start("ada", "bob")
    job = ada.begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    ada.wait_done(FEWER // 5, LIMIT_S)
    ada.kill()
    until(lambda: bob.get("/v1/status")["slots"]["busy"] == 0, 30, "bob has finished what it held")
    ada.start()
    job.finish(LIMIT_S).check(0)
    check_results(ada, tmp_path, FEWER)


def test_suspended_for_a_moment(mesh: Mesh, tmp_path: Path) -> None:
    """A laptop that sleeps for a few seconds, shorter than a lease, loses nothing and repeats nothing."""
    ada, bob = mesh.start("ada", "bob")
    job = ada.begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    ada.wait_done(FEWER // 5, LIMIT_S)
    bob.suspend()
    ada.wait_done(FEWER // 5 + 20, LIMIT_S)
    bob.resume()
    job.finish(LIMIT_S).check(0)
    times = check_results(ada, tmp_path, FEWER)
    assert times == {"1": FEWER}, times


def test_random_faults_with_files(mesh: Mesh, tmp_path: Path) -> None:
    """Nodes are killed, suspended and stopped in random order, the owner too, while files go along and come back."""
    daemons = mesh.start("ada", "bob", "eve")
    ada = daemons[0]
    seed = int(os.environ.get("E2E_SEED", "20"))
    print(f"E2E_SEED={seed}")
    rng = Random(seed)
    inputs = []
    for index in range(FEWER):
        (tmp_path / f"{index}.in").write_bytes(rng.randbytes(3000) * 34)  # more than travels in a message
        inputs.append(f"{index}.in")
    script = "sleep 0.1; tr '\\000-\\377' '\\001-\\377\\000' <{} >{.}.out; cksum <{.}.out; head -c 90k {.}.out"
    running = ada.begin(
        "run",
        "--send",
        "{}",
        "--fetch",
        "{.}.out",
        "--results",
        "out",
        "--output",
        "none",
        script,
        ":::",
        *inputs,
        cwd=tmp_path,
    )
    ada.wait_done(1, 30)
    for _ in range(40 if IS_FULL else 7):
        victim = rng.choice(daemons)
        match rng.choice(("kill", "suspend", "stop")):
            case "kill":
                victim.kill()
                time.sleep(rng.uniform(0, 1))  # the fault's own length
                victim.start()
            case "suspend":
                victim.suspend()
                time.sleep(rng.uniform(0, 2))
                victim.resume()
            case "stop":
                victim.restart()
        time.sleep(rng.uniform(0, 1))
        if running.process.poll() is not None:
            break
    running.finish(LIMIT_S).check(0)
    job = ada.job()
    assert (job["done"], job["failed"], job["retried"]) == (FEWER, 0, 0), job
    for index in range(FEWER):
        expected = bytes((byte + 1) % 256 for byte in (tmp_path / f"{index}.in").read_bytes())
        folder = tmp_path / f"out/tasks/{index // 1000:03d}/{index:06d}"
        assert (folder / f"files/{index}.out").read_bytes() == expected
        assert (folder / "stdout").read_bytes().partition(b"\n")[2] == expected[: 90 * 1024]
    assert sorted(int(row[0]) for row in joblog_rows(tmp_path / "out/joblog")) == list(range(1, FEWER + 1))


def test_all_nodes_lose_power_at_once(mesh: Mesh, tmp_path: Path) -> None:
    """kill -9 of every node, with nobody left to remember anything; they come back one after the other."""
    daemons = mesh.start("ada", "bob", "eve")
    running = daemons[0].begin(*words_of_drill(tmp_path, FEWER), cwd=tmp_path)
    daemons[0].wait_done(FEWER // 3, LIMIT_S)
    for daemon in daemons:
        daemon.kill()
    for daemon in reversed(daemons):
        daemon.start()
    running.finish(LIMIT_S).check(0)
    check_results(daemons[0], tmp_path, FEWER)
