"""One machine, nothing started: the first commands of a new user."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, until

FIRST_RESULT_S = 20.0


@pytest.fixture
def fresh(mesh: Mesh) -> Daemon:
    """A home that does not exist yet; a node may be started for a command, and ends with it."""
    return mesh.add("fresh", P2PC_NO_AUTOSTART="", CI="1")


def test_first_command(fresh: Daemon, tmp_path: Path) -> None:
    ran = fresh.p2pc("run", "echo {}", ":::", "a", "b", "c", cwd=tmp_path).check()
    assert sorted(ran.lines) == ["a", "b", "c"], "exactly the output"
    assert ran.took_s < FIRST_RESULT_S
    until(lambda: not fresh.processes(), 5, "nothing stays behind in CI")
    assert fresh.p2pc("run", "--local", "echo", ":::", "x").check().out == "x\n"
    assert len(fresh.p2pc("jobs", "--json").check().json()["items"]) == 2, "what was run can be looked at later"
    assert fresh.p2pc("status").code == 5
    until(lambda: not fresh.processes(), 5, "and nothing stays behind")


def test_first_demo(fresh: Daemon) -> None:
    ran = fresh.p2pc("demo").check()
    assert "3.14" in ran.out and ran.took_s < FIRST_RESULT_S, ran.took_s


def test_an_embedded_node_ends_with_its_command(fresh: Daemon) -> None:
    """Also when the command is killed and can tell nobody.  The job is the node's: the next one goes on with it."""
    running = fresh.begin("run", "touch begun; sleep {}; echo {} >> slept", ":::", "2.1", "2.2")
    until((fresh.home / "begun").exists, 20, "a task that runs")
    running.process.kill()
    running.process.wait()
    until(lambda: not fresh.processes(), 10, "all of it is gone")
    assert not (fresh.home / "slept").exists()
    assert fresh.p2pc("run", "echo {}; cat slept", ":::", "x").check().lines[0] == "x"
    assert len((fresh.home / "slept").read_text().splitlines()) >= 1


def test_nothing_is_started_where_it_may_not(mesh: Mesh) -> None:
    home = mesh.add("never")
    for words in (["run", "true", ":::", "1"], ["demo"], ["invite", "--token"], ["status"], ["jobs"], ["node", "stop"]):
        refused = home.p2pc(*words)
        assert refused.code == 5 and "no node" in refused.err, (words, refused.err)
    assert not home.processes()


def test_detach_needs_a_node_that_stays(fresh: Daemon) -> None:
    refused = fresh.p2pc("run", "--detach", "true", ":::", "1")
    assert refused.code == 2 and "p2pc node start" in refused.err, refused.err
    assert not fresh.processes()
