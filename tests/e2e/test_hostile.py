"""Members with bad intent: every attack of `hostile_tasks` on a real node, which is root or an ordinary user.

Each must end as said there, and afterwards the node still works, nothing runs on, and its key is untouched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pcompute.execution.sandbox import NoSandbox
from p2pcompute.execution.sandbox_trial import try_sandbox
from p2pcompute.identity.files import KEY_FILE
from tests.e2e.mesh import Daemon, Mesh, until

ORDINARY = 61000
"""A user of nobody's."""
HERE = Path(__file__).parent

REPELLED = (
    *(
        "fork_bomb",
        "thread_bomb",
        "pipe_bomb",
        "heap_hog",
        "uncounted_memory",
        "one_socket",
        "fill_disk",
        "is_clean",
        "inode_flood",
    ),
    *("is_clean", "sparse_output", "look_into_first", "spy", "kill_all", "is_clean", "gain_rights", "kernel_doors"),
    *("push_input", "leaked", "time_bomb", "is_clean"),
)
"""Attacks that fail by themselves; between them a look for what the one before has left."""
ENDED = {
    "hog_in_many": ("failed", "oom"),
    "hog_shared": ("failed", "oom"),
    "hog_sockets": ("failed", "oom"),
    "endless_forks": ("timeout", "wall"),
    "ignore_signals": ("timeout", "wall"),
    "talk": ("failed", "output"),
    "dump_core": ("failed", None),
}
"""What must be ended from outside, and what is said of it."""


def why_no_sandbox() -> str:
    try:
        try_sandbox()
    except NoSandbox as error:
        return f"{error}; {error.fix}"
    return ""


def _blocked(path: Path) -> Path | None:
    """Return the first directory above `path` that other users may not pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & 0o001:
            return parent
    return None


def as_ordinary_user() -> tuple[str, ...]:
    """Return the words that run a command as ORDINARY, with this interpreter in reach."""
    words = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]
    needed = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parents[2]]
    blocked = {parent: None for path in needed if (parent := _blocked(path)) is not None}
    if not blocked:
        return tuple(words)
    lines = ["set -e", "stage=$(mktemp -d)", "mount -t tmpfs none $stage"]
    inside = [path for path in needed if _blocked(path) is not None]
    for number, path in enumerate(inside):
        lines += [f"mkdir $stage/{number}", f"mount --bind {shlex.quote(str(path))} $stage/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(parent))}" for parent in blocked]
    for number, path in enumerate(inside):
        lines += [f"mkdir -p {shlex.quote(str(path))}", f"mount --bind $stage/{number} {shlex.quote(str(path))}"]
    lines.append('exec "$@"')
    return ("unshare", "--mount", "sh", "-c", "; ".join(lines), "sh", *words)


@pytest.fixture(scope="module", params=["root", "user"])
def hostile_pair(request: pytest.FixtureRequest) -> Iterator[list[Daemon]]:
    """Two daemons; the second one takes work of others in sandboxes only."""
    if reason := why_no_sandbox():
        pytest.skip(reason)
    prefix: tuple[str, ...] = ()
    if request.param == "user":
        if os.geteuid() != 0:
            pytest.skip("runs as root, which can make another user")
        if any(shutil.which(program) is None for program in ("setpriv", "unshare")):
            pytest.skip("runs where util-linux is installed")
        prefix = as_ordinary_user()
        works = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
        if works.returncode:
            pytest.skip(f"another user cannot be used here: {works.stderr}")
    elif os.geteuid() != 0:
        pytest.skip("runs as root")
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    mesh = Mesh(path, P2PC_NODE__ACCEPT="sandboxed", P2PC_NODE__SLOTS="2", TOP_SECRET="xyzzy")
    try:
        ada, bob = mesh.add("ada"), mesh.add("bob", prefix=prefix)
        if prefix:
            os.chown(bob.home, ORDINARY, ORDINARY)
        shutil.copy(HERE / "hostile_tasks.py", ada.home)
        for daemon in (ada, bob):
            daemon.start()
        bob.p2pc("join", "--accept", "sandboxed", mesh.token(ada)).check()  # by its user: the socket is his
        ada.wait_ups(["bob"], 20)
        yield [ada, bob]
    except BaseException:
        with contextlib.suppress(AssertionError):
            mesh.close(is_failing=True)
        raise
    else:
        mesh.close()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(ada: Daemon, *attacks: str, words: tuple[str, ...] = ("--timeout", "20s", "-j", "1")) -> list[dict[str, Any]]:
    """Run attacks on bob; return what is said of each."""
    command = f"exec {sys.executable} hostile_tasks.py {{1}} {{2}}"
    limits = ("--mem", "256M", "--disk", "64M", "--retries", "0")
    inputs = [attack if " " in attack else f"{attack} -" for attack in attacks]
    ada.p2pc(
        *("run", "--on", "bob", "--share", "hostile_tasks.py", *limits, "--output", "none", "-C", " ", *words),
        *(command, ":::", *inputs),
        limit_s=120,
    )
    tasks = ada.tasks()
    assert len(tasks) == len(attacks)
    return tasks


def test_what_fails_by_itself(hostile_pair: list[Daemon]) -> None:
    ada, bob = hostile_pair
    places = bob.places
    secrets = [places.data / KEY_FILE, places.data, places.store, bob.home, ada.home]
    if not any(HERE.is_relative_to(place) for place in ("/opt", "/usr")):  # whose programs tasks may use
        secrets.append(HERE)
    with socket.socket(socket.AF_UNIX) as listening:
        name = f"p2pc-hostile-{os.getpid()}"
        listening.bind("\0" + name)
        listening.listen()
        attacks = (
            *REPELLED,
            "read_files " + ",".join(map(str, secrets)),
            f"network {bob.p2pc('status', '--json').json()['node']['port']}",
            f"unix_sockets {places.socket},{name}",
        )
        tasks = run(ada, *attacks)
    failed = [(attack, task) for attack, task in zip(attacks, tasks, strict=True) if task["state"] != "done"]
    assert not failed, json.dumps(failed, indent=1)
    assert {task["node"] for task in tasks} == {"bob"}


def test_what_must_be_ended(hostile_pair: list[Daemon]) -> None:
    """Each ends within its limits, with the cause that was measured; nothing of it runs on."""
    ada, _ = hostile_pair
    timed = [name for name, end in ENDED.items() if end == ("timeout", "wall")]
    others = [name for name in ENDED if name not in timed]
    tasks = [*run(ada, *timed, words=("--timeout", "3s")), *run(ada, *others, words=("--timeout", "60s"))]
    ends = {name: (task["status"], task["cause"]) for name, task in zip([*timed, *others], tasks, strict=True)}
    assert ends == ENDED, json.dumps(tasks, indent=1)
    left = [process.info for process in psutil.process_iter(["cmdline"]) if _is_attack(process)]
    assert not left, f"{left} ran on when the results were told"


def test_who_uses_up_its_cpu_time(hostile_pair: list[Daemon]) -> None:
    """A limit of CPU time ends what computes, however long it may take otherwise."""
    ada, _ = hostile_pair
    connection = ada.connection()
    terms = {"on": ["bob"], "retries": 0, "timeout_s": 60.0}
    job = connection.request("POST", "/v1/jobs", {"kind": "command", "terms": terms, "spec": {"cpu_s": 1.0}})["id"]
    argv = [sys.executable, "hostile_tasks.py", "burn", "-"]
    send = [{"name": "hostile_tasks.py", "path": str(ada.home / "hostile_tasks.py")}]
    connection.upload_lines(f"/v1/jobs/{job}/tasks", [{"argv": argv, "send": send}])
    connection.request("POST", f"/v1/jobs/{job}/seal", {})
    ada.wait_over(40, job)
    (task,) = ada.tasks(job)
    assert (task["node"], task["status"], task["cause"]) == ("bob", "timeout", "cpu"), task


def _is_attack(process: psutil.Process) -> bool:
    words = process.info["cmdline"] or []
    return "hostile_tasks.py" in words and "p2pc" not in "".join(words[:2])


def _wait_for_nothing(bob: Daemon) -> None:
    """Wait until the last sandbox has waited long enough for more tasks of its job."""
    try:
        until(lambda: not _tasks_of(bob), 20, "nothing runs on")
    except AssertionError:
        raise AssertionError(f"still there: {[process.cmdline() for process in _tasks_of(bob)]}") from None


def _tasks_of(bob: Daemon) -> list[psutil.Process]:
    """Return the processes below bob that are not the node's own."""
    assert bob.process is not None
    found = []
    for process in psutil.Process(bob.process.pid).children(recursive=True):
        try:
            if "p2pcompute.execution.child" not in process.cmdline() and "p2pcompute.daemon" not in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_outputs_that_are_none(hostile_pair: list[Daemon]) -> None:
    """A link is not followed, a pipe not waited for; names outside of the task's directory are refused."""
    ada, _ = hostile_pair
    kinds = ("link", "fifo", "socket", "directory")
    for kind, task in zip(
        kinds, run(ada, *(f"bad_outputs {kind}" for kind in kinds), words=("--fetch", "{2}")), strict=True
    ):
        assert task["state"] == "failed" and repr(kind) in task["error"], task
        assert not (ada.home / kind).exists()


FUNCTIONS = """
import os, signal, sys, time

def end_all(x):
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(-1, signal.SIGKILL)
    os._exit(3)

def lie(x):
    for fd in range(3, 64):
        try:
            os.write(fd, bytes(4096))
        except OSError:
            pass
    time.sleep(0.2)

def leave(x):
    if os.fork() == 0:
        os.setsid()
        while True:
            time.sleep(1)
    return os.getuid()

def honest(x):
    return int(x) ** 2, os.getuid(), len([name for name in os.listdir("/proc") if name.isdigit()])
"""


def test_functions(hostile_pair: list[Daemon]) -> None:
    """One that kills its process or lies to it harms itself alone."""
    ada, _ = hostile_pair
    (ada.home / "functions.py").write_text(FUNCTIONS)
    for name in ("end_all", "lie"):
        ada.p2pc("run", "--on", "bob", "--retries", "0", "--detach", f"functions.py::{name}", ":::", "1").check()
        job = ada.job()["id"]
        until(lambda job=job: ada.job(job)["retried"] or ada.job(job)["failed"], 20, f"{name} has died")  # type: ignore[misc]
        ada.p2pc("cancel", "-y", job).check()
    ran = ada.p2pc("run", "--on", "bob", "-k", "functions.py::leave", ":::", "1", "2").check()
    assert all(int(line) not in (0, os.getuid()) or os.getuid() for line in ran.lines)
    ran = ada.p2pc("run", "--on", "bob", "-k", "functions.py::honest", ":::", *map(str, range(8))).check()
    for number, line in enumerate(ran.lines):
        square, user, processes = json.loads(line)
        assert square == number**2 and user != 0 and processes == 3, "it, the one that holds it, the first one"


def test_afterwards(hostile_pair: list[Daemon]) -> None:
    """The node serves on, under the same key, and has grown no process."""
    ada, bob = hostile_pair
    key = bob.places.data / KEY_FILE
    before = hashlib.sha256(key.read_bytes()).digest(), key.stat().st_mtime_ns
    inputs = [ada.home / f"in-{number}" for number in range(3)]
    for path in inputs:
        path.write_bytes(os.urandom(2_000_000))
    words = ("--on", "bob", "--send", "{}", "--fetch", "{}.copy")
    ada.p2pc("run", *words, "cat {} {} > {}.copy; cat {}", ":::", *(path.name for path in inputs)).check()
    for path in inputs:
        assert (ada.home / f"{path.name}.copy").read_bytes() == path.read_bytes() * 2
    assert (hashlib.sha256(key.read_bytes()).digest(), key.stat().st_mtime_ns) == before
    _wait_for_nothing(bob)


def test_a_killed_node_takes_all_along(hostile_pair: list[Daemon]) -> None:
    """kill -9 of the node: what ran in its sandboxes is gone at once, what had left its session, too."""
    ada, bob = hostile_pair
    mark = f"6{os.getpid()}"
    ada.p2pc("run", "--on", "bob", "--detach", f": {{}}; setsid sleep {mark} & sleep {mark}", ":::", "1").check()

    def sleeping() -> list[psutil.Process]:
        return [found for found in psutil.process_iter(["cmdline"]) if found.info["cmdline"] == ["sleep", mark]]

    until(lambda: len(sleeping()) == 2, 20, "it sleeps")
    bob.kill()
    until(lambda: not sleeping(), 5, "nothing of it is left")
    ada.p2pc("cancel", "--now", "-y", ada.job()["id"]).check()  # bob stays away: this is the last test of the pair
