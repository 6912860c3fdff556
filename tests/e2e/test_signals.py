"""Keys, signals and closed terminals: the node owns the job, the command only looks on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.mesh import Daemon, Mesh, until

INTERRUPT = b"\x03"


@pytest.fixture
def ada(pair: list[Daemon]) -> Daemon:
    return pair[0]


def is_running(word: str) -> bool:
    """True while a process has this word in its command line."""
    return any(word in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def test_interrupt_once_finishes_what_runs(ada: Daemon, tmp_path: Path) -> None:
    script = "sleep 1; echo {} >> ran"
    terminal = ada.terminal("run", "--name", "gently", script, ":::", *map(str, range(60)), cwd=tmp_path)
    until(lambda: "gently" in terminal.text and ada.job()["running"] == 4, 20, "four tasks run")
    terminal.press(INTERRUPT)
    until(lambda: "Ctrl-C again kills them" in terminal.text, 5, "it says what happens and what else can be done")
    assert "p2pc attach" in terminal.text
    assert terminal.wait(20) == 130
    job = ada.job()
    ran = (tmp_path / "ran").read_text().split()
    assert job["state"] == "cancelled" and job["failed"] == 0
    assert job["done"] == len(ran) and 4 <= len(ran) <= 8 and job["done"] + job["cancelled"] == 60, job
    terminal.close()


def test_interrupt_twice_kills(ada: Daemon, tmp_path: Path) -> None:
    terminal = ada.terminal("run", "--name", "hard", "sleep 3041; echo {}", ":::", *map(str, range(20)), cwd=tmp_path)
    until(lambda: "hard" in terminal.text and ada.job()["running"] == 4, 20, "four tasks run")
    terminal.press(INTERRUPT)
    until(lambda: "Ctrl-C again kills them" in terminal.text, 5, "the first one is answered")
    terminal.press(INTERRUPT)
    assert terminal.wait(15) == 130
    job = ada.wait_over(10)
    assert (job["state"], job["done"], job["failed"], job["cancelled"]) == ("cancelled", 0, 0, 20), job
    until(lambda: not is_running("3041"), 10, "no process of it is left on either node")
    terminal.close()


def test_terminate_kills(ada: Daemon) -> None:
    running = ada.begin("run", "--name", "terminated", "sleep", "{}", ":::", "3042", "3043")
    ada.wait_done(0, 20)  # on a busy machine there is no job yet
    until(lambda: ada.job()["name"] == "terminated" and ada.job()["running"] == 2, 20, "it runs")
    running.process.terminate()
    assert running.finish(15).code == 143
    assert ada.wait_over(10)["state"] == "cancelled"
    until(lambda: not is_running("3042") and not is_running("3043"), 10, "nothing is left")


def test_a_closed_terminal_leaves_the_job(ada: Daemon, tmp_path: Path) -> None:
    """Also when inputs are still being read: all of them belong to the job."""
    os.mkfifo(tmp_path / "inputs")
    terminal = ada.terminal("run", "--name", "orphan", "-a", "inputs", "echo {} >> ran", cwd=tmp_path)
    with open(tmp_path / "inputs", "w") as writer:
        writer.write("1\n2\n3\n")
        writer.flush()
        ada.wait_done(3, 20)
        os.kill(terminal.process.pid, signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            terminal.process.wait(0.5)  # inputs may still come
        writer.write("4\n5\n")
    assert terminal.wait(20) == 129
    job = ada.wait_over(20)
    assert (job["done"], job["total"], job["state"]) == (5, 5, "done")
    terminal.close()


def test_a_killed_command_leaves_a_job_that_can_be_ended(ada: Daemon, tmp_path: Path) -> None:
    """kill -9 while inputs are read: what was sent is done, the job waits for more, and cancel ends it."""
    os.mkfifo(tmp_path / "inputs")
    running = ada.begin("run", "--name", "killed", "-a", "inputs", "echo {}", cwd=tmp_path)
    with open(tmp_path / "inputs", "w") as writer:
        writer.write("1\n2\n")
        writer.flush()
        until(lambda: ada.job()["name"] == "killed" and ada.job()["done"] == 2, 20, "two are done")
        running.process.kill()
        running.process.wait()
    job = ada.job()
    assert job["total"] is None and job["state"] == "running"
    ada.p2pc("cancel", job["alias"], "-y").check()
    job = ada.wait_over(10)
    assert (job["done"], job["total"], job["cancelled"]) == (2, 2, 0)


def test_attach_only_looks_on(ada: Daemon, tmp_path: Path) -> None:
    alias = ada.p2pc("run", "--detach", "--name", "long", "sleep 0.2; echo {}", ":::", *map(str, range(60))).lines[0]
    terminal = ada.terminal("attach", alias)
    until(lambda: "long" in terminal.text, 10, "progress is shown")
    terminal.press(INTERRUPT)
    assert terminal.wait(10) == 130 and f"p2pc cancel {alias}" in terminal.text
    terminal.close()
    assert ada.job(alias)["state"] == "running"
    attached = ada.p2pc("attach", alias).check()
    assert attached.lines and set(attached.lines) <= set(map(str, range(60)))
    failed = ada.p2pc("run", "--detach", "--retries", "0", "sleep 0.2; false", ":::", "1").lines[0]
    assert ada.p2pc("attach", failed).code == 1 == ada.p2pc("attach", failed).code, "during the job and after it"


def test_output_into_a_closed_pipe(ada: Daemon) -> None:
    """`p2pc run … | head -1`: nobody wants more, so no more is done."""
    done = subprocess.run(
        [*ada.words("run", "sleep 0.1; echo {}", ":::"), *map(str, range(400))],
        env=ada.env,
        stdin=subprocess.DEVNULL,
        stdout=(sink := _closed_pipe()),
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(sink)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert ada.wait_over(20)["state"] == "cancelled"


def _closed_pipe() -> int:
    """The writing end of a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_node_stop_and_status(mesh: Mesh) -> None:
    """The commands about the node itself, with a node that `p2pc node start` made."""
    ada, bob = mesh.start("ada", "bob")
    assert bob.p2pc("node", "stop").check().err == "stopped\n"
    assert bob.process is not None and bob.process.wait(10) == 0
    bob.process = None
    ada.wait_ups([], 5)
    gone = bob.p2pc("status")
    assert gone.code == 5 and "no node is running here" in gone.err
    assert bob.p2pc("node", "stop").code == 5
    assert bob.p2pc("run", "true", ":::", "1").code == 5, "and none is started where that is forbidden"
    started = bob.p2pc("node", "start").check()
    assert "bob is up" in started.err
    assert "running already" in bob.p2pc("node", "start").check().err
    ada.wait_ups(["bob"])
    assert "2 of 2 nodes up" in ada.p2pc("status").check().out
    bob.p2pc("node", "stop", "--now").check()
