"""SIGTERM with the grace that people have: what runs ends, goes on elsewhere or begins elsewhere; nothing is lost."""

from __future__ import annotations

import re
import textwrap
import time
from typing import Any

from tests.e2e.mesh import Daemon, Mesh, until

GRACE_S = 30.0
"""The default of `node.grace`: this test sets nothing."""
QUICK = 24
"""Tasks that take next to nothing; after the first ones a node takes many of them at once."""
STEPS = 2000
COUNTING = textwrap.dedent("""
    import os, time
    import p2pcompute

    def count(steps: int):
        done = p2pcompute.checkpoint() or 0
        while done < int(steps):
            if not os.path.exists({flag!r}):
                time.sleep(0.25)
            done += 1
            with open({journal!r}, "a") as journal:
                journal.write(f"{{os.environ['P2PC_NODE']}} {{done}}\\n")
            p2pcompute.checkpoint(done)
        return done, os.environ["P2PC_NODE"]
""")
SCRIPT = """
echo {{}} $P2PC_NODE >> {began}
case {{}} in
    short) sleep 9.5 ;;
    long) until [ -e {flag} ]; do sleep 0.2; done ;;
    *) sleep 0.01 ;;
esac
echo {{}} on $P2PC_NODE
"""
"""Of a quick task, one that ends within the grace, and one that does not."""


def attributes(daemon: Daemon, of: Daemon) -> dict[str, Any]:
    """What a node says of itself now."""
    identity = of.get("/v1/status")["node"]["id"]
    found: dict[str, Any] = daemon.get(f"/v1/peers/{identity}?max_age_s=0")
    return found


def test_sigterm_with_the_whole_grace_hands_everything_back(mesh: Mesh) -> None:
    """Tasks that end in time end where they are; those that wait run elsewhere meanwhile; what has saved its state goes
    on from it; what has not begins anew; each result comes once, and nothing has failed."""
    ada, bob, cyd, dan = mesh.start("ada", "bob", "cyd", "dan")
    for other in (ada, cyd, dan):
        other.p2pc("pause").check()
    flag, journal, began = (mesh.directory / name for name in ("flag", "journal", "began"))
    began.touch()
    inputs = [*map(str, range(QUICK)), "short", "long", *map(str, range(QUICK, 2 * QUICK))]
    script = SCRIPT.format(began=began, flag=flag)
    command = ada.begin("run", "--retries", "0", "--not-on", "dan", script, ":::", *inputs)
    until(lambda: {"short", "long"} <= set(began.read_text().split()), 30, "bob runs both")
    mixed = ada.job()["alias"]
    waiting = until(lambda: attributes(ada, bob)["attributes"]["queue"]["value"], 20, "tasks wait at bob")
    dan.p2pc("resume").check()
    (mesh.directory / "count.py").write_text(COUNTING.format(flag=str(flag), journal=str(journal)))
    count = ("--detach", "--retries", "0", "--on", "dan", "--on", "cyd", f"{mesh.directory}/count.py::count")
    counting = ada.p2pc("run", *count, ":::", str(STEPS)).check().out.strip()
    waits = f"echo began; until [ -e {flag} ]; do sleep 0.2; done; echo {{}} on $P2PC_NODE"
    alone = ada.p2pc("run", "--detach", "--retries", "0", "--not-on", "bob", waits, ":::", "a").check().out.strip()
    until(lambda: journal.exists() and ada.job(alone)["running"] == 1, 30, "dan counts, and waits")

    began_before = set(began.read_text().split()[::2])
    leaving = [daemon.process for daemon in (bob, dan) if daemon.process is not None]
    for process in leaving:
        process.terminate()
    told = time.monotonic()
    cyd.p2pc("resume").check()
    ada.wait_done(2 * QUICK, GRACE_S, mixed)
    assert [process.poll() for process in leaving] == [None, None], "what waited did not wait for what runs"
    ada.wait_done(2 * QUICK + 1, GRACE_S, mixed)
    assert [process.poll() for process in leaving] == [None, None], "what ends within the grace ends there"
    assert [process.wait(GRACE_S + 20) for process in leaving] == [0, 0]
    print(f"{waiting} tasks waited at bob; both were gone {time.monotonic() - told:.1f} s after SIGTERM")
    bob.process = dan.process = None
    flag.touch()
    ada.wait_done(2 * QUICK + 2, 60, mixed)
    ada.wait_done(1, 60, counting)
    ada.wait_done(1, 60, alone)

    for job in (mixed, counting, alone):
        assert (ada.job(job)["failed"], ada.job(job)["state"]) == (0, "done")
    said = dict(line.split(" on ") for line in command.finish().check().lines)
    assert sorted(said) == sorted(inputs), "each once"
    assert (said["short"], said["long"]) == ("bob", "cyd")
    ran = [line.split()[0] for line in began.read_text().splitlines()]
    assert {name for name in inputs if ran.count(name) != 1} <= {"short", "long"}, "a copy of what takes long, no other"
    assert ran.count("long") >= 2
    handed_back = [name for name in inputs if name not in began_before]
    assert handed_back and {said[name] for name in handed_back} == {"cyd"}
    steps = [(node, int(step)) for node, step in map(str.split, journal.read_text().splitlines())]
    at_dan = [step for node, step in steps if node == "dan"]
    assert at_dan[-1] > 2 * GRACE_S, "it had all of the grace"
    assert len(steps) <= STEPS + 1, "no step was done again but the one in which it was ended"
    assert {step for _node, step in steps} == set(range(1, STEPS + 1)), "and none was left out"
    for job in (counting, alone):
        said_of = ada.p2pc("show", f"{job}/0").check().out
        assert re.search(r"^ +node +cyd$", said_of, re.MULTILINE), said_of
        assert re.search(r"^ +attempts +2$", said_of, re.MULTILINE), said_of
    story = ada.p2pc("logs", f"{alone}/0").check().lines
    assert story[:2] == [f"{alone}/0  dan  attempt 1  killed stopped on request", "  began"], story
    assert story[2].startswith(f"{alone}/0  cyd  attempt 2  exit 0") and story[-1] == "  a on cyd", story
