"""The machine's owner is in charge: pauses, rules, and what becomes of the work of others meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from p2pcompute.node.comfort import DAYS
from tests.e2e.mesh import Daemon, Mesh, Running, until


def sleeping(seconds: str) -> list[psutil.Process]:
    """Processes of tasks that sleep for so long."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-2:] == ["sleep", seconds]:
            found.append(process)
    return found


def states(seconds: str) -> list[str]:
    found = []
    for process in sleeping(seconds):
        try:
            found.append(process.status())
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def mesh_of_two(mesh: Mesh) -> Iterator[tuple[Daemon, Daemon]]:
    """ada, who has work, and bob, whose machine it runs on."""
    ada, bob = mesh.start("ada", "bob")
    yield ada, bob
    bob.p2pc("resume")


def begin(ada: Daemon, seconds: str, *flags: str) -> Running:
    """Let bob sleep for ada."""
    command = ada.begin("run", *flags, f"sleep {seconds}; echo slept {{}} on $P2PC_NODE", ":::", "1")
    until(lambda: sleeping(seconds), 30, "the task runs")
    return command


def test_a_pause_lets_go_of_what_waits_and_ends_with_resume(mesh_of_two: tuple[Daemon, Daemon]) -> None:
    ada, bob = mesh_of_two
    said = bob.p2pc("pause").check()
    assert "p2pc resume" in said.err
    status = bob.get("/v1/status")
    assert (status["node"]["state"], status["node"]["paused_because"]) == ("paused", "by you")
    assert "p2pc node idle" in bob.p2pc("status").check().out
    ran = ada.p2pc("run", "echo $P2PC_NODE", ":::", *"12345678").check()
    assert {line.split()[0] for line in ran.lines} == {"ada"}
    bob.restart()
    assert bob.get("/v1/status")["node"]["state"] == "paused", "a restart does not end it"
    assert "resumed" in bob.p2pc("resume").check().err
    again = ada.p2pc("run", "--on", "bob", "echo $P2PC_NODE", ":::", "1").check()
    assert again.lines == ["bob 1"]


def test_own_jobs_wait_during_a_pause_that_ends_by_itself(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    ada.p2pc("pause", "--for", "4s").check()
    assert "Resumes at" in ada.p2pc("node", "idle").check().out
    ran = ada.p2pc("run", "echo {}", ":::", "a").check()
    assert ran.lines == ["a"] and ada.get("/v1/idle")["own_runs"]


def test_a_pause_now_frees_the_machine_and_the_task_runs_elsewhere(mesh_of_two: tuple[Daemon, Daemon]) -> None:
    ada, bob = mesh_of_two
    ada.p2pc("pause").check()
    command = begin(ada, "21.7", "--retries", "0")
    paused = time.monotonic()
    bob.p2pc("pause", "--now").check()
    until(lambda: not sleeping("21.7"), 10, "nothing is left of it")
    print(f"free {time.monotonic() - paused:.1f} s after pause --now")
    ada.p2pc("resume").check()
    until(lambda: sleeping("21.7"), 30, "it runs again")
    bob.p2pc("resume").check()
    job = ada.job()
    assert job["failed"] == 0, "leaving was not its fault"
    ada.p2pc("cancel", job["alias"], "--now", "-y").check()
    command.finish()


BURN = """
import signal, sys
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    pass
"""
WINDOW_S = 0.25
FREE_CORES = 0.2
"""What the tree of a node without tasks uses at most, in a window: the daemon's own turns."""


def cpu_of_tree(daemon: Daemon) -> dict[int, float]:
    """CPU seconds of each process of a node: daemon, worker processes, tasks."""
    assert daemon.process is not None
    found = {}
    root = psutil.Process(daemon.process.pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = times.user + times.system
    return found


def cores_used(daemon: Daemon) -> float:
    """How many cores the processes of a node use, over a window."""
    before, began = cpu_of_tree(daemon), time.monotonic()
    time.sleep(WINDOW_S)
    used = sum(cpu_s - before.get(pid, 0.0) for pid, cpu_s in cpu_of_tree(daemon).items())
    return used / (time.monotonic() - began)


def test_a_pause_now_frees_the_cpu(mesh_of_two: tuple[Daemon, Daemon]) -> None:
    """Of tasks that compute without end, one of which ignores SIGTERM, nothing uses the CPU any more.

    P2PC_TEST_PAUSES=10: so often, and -s prints how long each took.
    """
    ada, bob = mesh_of_two
    ada.p2pc("pause").check()
    (ada.home / "burn.py").write_text(BURN)
    words = ("--retries", "0", "--share", "burn.py", f"exec {sys.executable} burn.py {{}}", ":::", "polite", "stubborn")
    job = ada.p2pc("run", "--detach", *words).check().out.strip()
    took = []
    for _ in range(int(os.environ.get("P2PC_TEST_PAUSES", "2"))):
        until(lambda: cores_used(bob) > 3 * FREE_CORES and ada.job(job)["running"] == 2, 30, "both compute")
        began = time.monotonic()
        bob.p2pc("pause", "--now").check()
        until(lambda: cores_used(bob) < FREE_CORES, 20, "the CPU is free")
        took.append(time.monotonic() - began - WINDOW_S)
        assert max(cores_used(bob) for _ in range(4)) < FREE_CORES, "and stays free"
        assert not [one for one in bob.processes() if "burn.py" in one.cmdline()], "no task is left"
        bob.p2pc("resume").check()
    print(f"the CPU was free {sorted(round(one, 2) for one in took)} s after pause --now")
    assert ada.job(job)["failed"] == 0, "leaving was not its fault"
    ada.p2pc("cancel", job, "--now", "-y").check()


def test_outside_its_hours_the_work_of_others_stands_still_and_goes_on(mesh_of_two: tuple[Daemon, Daemon]) -> None:
    """A rule that stops everything stops the processes at once; nothing that they did is lost."""
    ada, bob = mesh_of_two
    command = begin(ada, "6.31", "--on", "bob")
    other = DAYS[(datetime.now().astimezone().weekday() + 3) % 7]
    shown = bob.p2pc("node", "set", f"hours={other}").check()
    assert "not for others" in shown.out and "outside its hours" in shown.out
    until(lambda: states("6.31") == [psutil.STATUS_STOPPED], 10, "it stands still")
    own = bob.p2pc("run", "--local", "echo mine", ":::", "1").check()
    assert own.lines == ["mine 1"], "the person's own work goes on"
    bob.p2pc("node", "set", "hours=any").check()
    done = command.finish()
    assert done.code == 0 and b"slept 1 on bob" in done.raw


LOGINCTL = """#!/bin/sh
case $1 in
list-sessions) echo '1 1000 nova seat0 pts' ;;
*) printf 'Class=user\\nState=active\\nType=tty\\nTTY=%s\\nIdleHint=no\\nIdleSinceHint=0\\n' "$P2PC_TEST_TTY" ;;
esac
"""
"""What logind says of one person at one terminal."""


def test_who_touches_a_terminal_has_the_machine_and_gives_it_back(mesh: Mesh, tmp_path: Path) -> None:
    """A real terminal, of which its last use is read; who sits there is what loginctl says."""
    login = tmp_path / "bin" / "loginctl"
    login.parent.mkdir()
    login.write_text(LOGINCTL)
    login.chmod(0o755)
    keyboard, screen = os.openpty()
    terminal = os.ttyname(screen)
    left = time.time() - 3600
    os.utime(terminal, (left, left))
    path = f"{login.parent}:{mesh.env['PATH']}"
    ada = mesh.add("ada").start()
    bob = mesh.add("bob", PATH=path, P2PC_TEST_TTY=terminal.removeprefix("/dev/")).start()
    mesh.join(ada, [bob])
    try:
        bob.p2pc("node", "set", "cpu.in_use=0%", "cpu.idle=100%").check()
        command = begin(ada, "17.3", "--on", "bob")
        assert states("17.3") == [psutil.STATUS_SLEEPING]
        os.utime(terminal)
        touched = time.monotonic()
        until(lambda: states("17.3") == [psutil.STATUS_STOPPED], 20, "it stands still")
        print(f"stands still {time.monotonic() - touched:.1f} s after a key")
        assert bob.get("/v1/idle")["why"] == "you are active"
        os.utime(terminal, (left, left))
        until(lambda: states("17.3") == [psutil.STATUS_SLEEPING], 20, "it goes on")
        ada.p2pc("cancel", ada.job()["alias"], "--now", "-y").check()
        command.finish()
    finally:
        os.close(keyboard)
        os.close(screen)


def test_less_than_a_core_is_a_part_of_the_time(mesh_of_two: tuple[Daemon, Daemon]) -> None:
    ada, bob = mesh_of_two
    bob.p2pc("node", "set", "cpu.idle=10%", "cpu.in_use=10%").check()
    command = begin(ada, "19.3", "--on", "bob")
    until(lambda: psutil.STATUS_STOPPED in states("19.3"), 20, "it stands still for a while")
    until(lambda: psutil.STATUS_SLEEPING in states("19.3"), 20, "and goes on")
    bob.p2pc("node", "set", "cpu.idle=", "cpu.in_use=").check()
    ada.p2pc("cancel", ada.job()["alias"], "--now", "-y").check()
    command.finish()


def test_rules_that_cannot_be_change_nothing(mesh: Mesh) -> None:
    ada = mesh.add("ada").start()
    before = ada.get("/v1/idle")["rules"]
    for settings, says in (
        (("cpu.idle=0%", "cpu.in_use=0%"), "would never work"),
        (("battery=off", "hours=8-26"), "are not hours"),
        (("profile=tablet",), "laptop"),
        (("cpu.idle=lots",), "is not a share"),
        (("idle",), "is not KEY=VALUE"),
        (("run.retries=3",), "p2pc config set run.retries"),
        (("batery=off",), 'did you mean "node.battery"?'),
    ):
        refused = ada.p2pc("node", "set", *settings)
        assert refused.code == 2 and says in refused.err, (settings, refused.err)
    assert ada.get("/v1/idle")["rules"] == before
    assert "node.profile" in ada.p2pc("node", "set").check().out
