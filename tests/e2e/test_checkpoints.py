"""A computation goes on from what it has saved when its node is killed, stops, or is paused."""

from __future__ import annotations

import os
import textwrap
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, Running, until

COUNTING = textwrap.dedent("""
    import os, time
    import p2pcompute

    def count(steps: int):
        steps, done = int(steps), p2pcompute.checkpoint() or 0
        while done < steps:
            time.sleep({step_s})
            done += 1
            with open({journal!r}, "a") as journal:
                journal.write(f"{{os.environ['P2PC_NODE']}} {{done}}\\n")
            p2pcompute.checkpoint(done)
        return done
""")


def steps_of(journal: Path) -> list[tuple[str, int]]:
    """(node, step) of all work that was done."""
    if not journal.exists():
        return []
    return [(node, int(step)) for node, step in map(str.split, journal.read_text().splitlines())]


class Counting:
    """A job of one task that counts, and notes each step outside."""

    def __init__(self, owner: Daemon, directory: Path, *, steps: int, step_s: float) -> None:
        self.journal = directory / "journal"
        script = directory / "count.py"
        script.write_text(COUNTING.format(step_s=step_s, journal=str(self.journal)))
        self.owner = owner
        self.steps = steps
        self.command: Running = owner.begin("run", f"{script}::count", ":::", str(steps))

    def wait_for(self, step: int, limit_s: float = 60.0) -> str:
        """Wait until so much is done; return the node that did the last step."""
        until(lambda: [one for one in steps_of(self.journal) if one[1] >= step], limit_s, f"step {step}")
        return steps_of(self.journal)[-1][0]

    def finish(self, limit_s: float = 120.0) -> list[tuple[str, int]]:
        """Wait for the end; return all steps that were done."""
        done = self.command.finish(limit_s).check()
        assert done.lines[-1].strip() == str(self.steps), done.out
        steps = steps_of(self.journal)
        assert sorted({step for _node, step in steps}) == list(range(1, self.steps + 1)), "none was left out"
        return steps


def test_a_computation_survives_three_deaths_of_its_node(mesh: Mesh) -> None:
    """Of each death only what was done since the last second is done again.

    The whole: P2PC_TEST_STEPS=60 P2PC_TEST_STEP_S=1 (then at most 6 steps more, a tenth).
    """
    steps, step_s = int(os.environ.get("P2PC_TEST_STEPS", "16")), float(os.environ.get("P2PC_TEST_STEP_S", "0.5"))
    ada, *others = mesh.start("ada", "bob", "cat", "dan", "eva", slots=1)
    ada.p2pc("pause").check()
    job = Counting(ada, mesh.directory, steps=steps, step_s=step_s)
    nodes = {other.name: other for other in others}
    for death in range(1, 4):
        name = job.wait_for(death * steps // 4, 60 + steps * step_s)
        time.sleep(0.37 * step_s)
        nodes.pop(name).kill()
    work = job.finish(60 + steps * step_s)
    assert len({node for node, _step in work}) == 4
    again = len(work) - steps
    print(f"{len(work)} steps of work for {steps}: {len(work) / steps:.3f}")
    assert again <= 3 * (1 + 1 / step_s), work


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_who_leaves_hands_over_what_it_has(mesh: Mesh, how: str) -> None:
    """A node that is told to go lets the task save once more: nothing is done twice."""
    ada, bob = mesh.start("ada", "bob", slots=1)
    ada.p2pc("pause").check()
    job = Counting(ada, mesh.directory, steps=12, step_s=0.3)
    assert job.wait_for(4) == "bob"
    if how == "stop":
        bob.p2pc("node", "stop", "--now").check()
        assert bob.process is not None and bob.process.wait(20) == 0
        bob.process = None
    else:
        bob.p2pc("pause", "--now").check()
    ada.p2pc("resume").check()
    work = job.finish()
    assert len(work) <= 13 and work[-1] == ("ada", 12), work
    if how == "pause":
        bob.p2pc("resume").check()


@pytest.mark.parametrize("how", ["sigterm", "until"])
def test_what_does_not_end_in_time_is_handed_back(mesh: Mesh, how: str) -> None:
    """SIGTERM, or the agreed time: short tasks end here, long ones elsewhere, none is lost, none has failed."""
    ada, bob = mesh.start("ada", "bob", slots=2)
    bob.stop()
    bob.env["P2PC_NODE__GRACE"] = "2s"
    leaves = datetime.now().astimezone() + timedelta(seconds=16)
    if how == "until":
        bob.env["P2PC_NODE__UNTIL"] = leaves.isoformat()
    bob.start()
    ada.wait_ups(["bob"])
    ada.p2pc("pause").check()
    text = "sleep {} & wait; echo $P2PC_NODE"
    long = ("5.3", "5.4") if how == "sigterm" else ("16.3", "16.4")  # they run when it goes
    command = ada.begin("run", "--retries", "0", text, ":::", "0.1", "1", *long, "0.2")
    ada.wait_done(0, 20)
    until(lambda: len([task for task in ada.tasks() if task["node"] == "bob"]) >= 2, 30, "it works")
    assert bob.process is not None
    if how == "sigterm":
        bob.process.terminate()
    assert bob.process.wait(30) == 0
    assert how != "until" or datetime.now().astimezone() < leaves + timedelta(seconds=2)
    bob.process = None
    assert ada.job()["failed"] == 0
    ada.p2pc("resume").check()
    done = command.finish().check()
    assert "ada" in done.lines and len(done.lines) == 5, done.out
    assert ada.job()["failed"] == 0 and ada.job()["retried"] == 0


def test_a_lonely_node_goes_on_after_its_own_death(mesh: Mesh) -> None:
    """The owner keeps what was saved on disk."""
    (ada,) = mesh.start("ada", slots=1)
    job = Counting(ada, mesh.directory, steps=10, step_s=0.4)
    job.wait_for(6)
    ada.kill()
    ada.start()
    ada.wait_done(1, 60)
    work = steps_of(job.journal)
    assert work[-1][1] == 10 and len(work) <= 10 + 4, work
