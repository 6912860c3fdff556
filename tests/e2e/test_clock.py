"""A wall clock that jumps while tasks run: time limits, leases and connections are by the clock that does not."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.mesh import Daemon, Mesh, until

STEPS_S = {"+2h": 7200, "-30d": -30 * 86400, "+0": 0}


def library() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        pytest.skip("runs with libfaketime, which dev.py test installs on Debian as root")
    return str(found[0])


@pytest.mark.parametrize("who", ["owner", "worker"])
def test_a_clock_that_jumps(mesh: Mesh, who: str) -> None:
    """By hours forward, by weeks back, and right again: no task is ended before its time or runs beyond it, none runs
    twice or is lost, and its node goes on."""
    clock = mesh.directory / "clock"
    clock.write_text("+0\n")
    faked = {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    faked |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    env = {name: faked if name == who else {} for name in ("owner", "worker")}
    ada = mesh.add("ada", P2PC_NODE__SLOTS="1", **env["owner"]).start()
    bob = mesh.add("bob", P2PC_NODE__SLOTS="3", **env["worker"]).start()
    mesh.join(ada, [bob])
    ada.wait_ups(["bob"])
    gate = mesh.directory / "gate"
    text = f"echo $(date +%s) {{}}; while ! test -e {gate}; do sleep 0.05; done; echo over"
    ada.p2pc("run", "--detach", "--on", "bob", "--timeout", "300s", text, ":::", "1", "2").check()
    until(lambda: ada.job()["running"] == 2 or None, 20, "they run")
    long = ada.job()["alias"]
    for step, step_s in STEPS_S.items():
        clock.write_text(f"{step}\n")
        its = ada if who == "owner" else bob
        flags = ("--on", its.name, "--timeout", "2s", "--retries", "0")
        ended = its.p2pc("run", *flags, "sleep 60; echo {}", ":::", "1")
        assert ended.code == 1 and "did not end within 2 s" in ended.err, ended.err
        named = re.search(r"^(\w+)/0 ", ended.err, re.MULTILINE)
        alias = its.job("last")["alias"]
        assert named is not None and alias == named[1], f"the last one is the one that came last\n{ended.err}"
        assert 2.0 <= its.tasks(alias)[0]["runtime_s"] < 60.0
        submitted = datetime.fromisoformat(its.job(alias)["submitted"]).timestamp()
        assert abs(submitted - time.time() - step_s) < 120, "its clock has not jumped: this test shows nothing"
        assert ada.job(long)["running"] == 2, "a jump ended what has 300 s"
    gate.touch()
    ada.wait_done(2, 30, long)
    assert all(task["attempts"] == 1 and task["node"] == "bob" for task in ada.tasks(long))
    assert ada.ups() == ["bob"]
    its.restart()
    assert its.job("last")["alias"] == alias, "not the one whose clock was ahead, either"
    ada.wait_ups(["bob"])
    run_everywhere(ada)


def run_everywhere(ada: Daemon) -> None:
    ran = ada.p2pc("run", "-k", "echo {}", ":::", *map(str, range(20))).check()
    assert ran.lines == [str(number) for number in range(20)]
