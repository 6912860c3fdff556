"""An executor joins this machine's node: as its delegate, over loopback, with all members of its group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import p2pcompute
from p2pcompute import MeshExecutor, UsageError, call
from tests.api.conftest import wait_until


def square(n: int) -> int:
    return n * n


def large(fill: int) -> bytes:
    return bytes([fill]) * (1 << 20)


def slowly(n: int) -> bytes:
    time.sleep(0.1)
    return bytes(100_000 + n)


def add_lengths(a: bytes, b: bytes) -> int:
    return len(a) + len(b)


def add(a: int, b: int) -> int:
    return a + b


def fibonacci(n: int) -> Any:
    return n if n < 2 else call(add, call(fibonacci, n - 1), call(fibonacci, n - 2))


@dataclass(slots=True)
class Daemon:
    """A node of this machine's installation, as `p2pc up` starts it."""

    home: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start its process, also one after the other."""
        (self.home / "node.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "p2pcompute.daemon"],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: (self.home / "node.json").exists() or self.process.poll() is not None, "the node is up")
        assert self.process.poll() is None

    def p2pc(self, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "p2pcompute", *words], env=self.env, capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture
def start_daemon(short_home: Path) -> Iterator[Callable[..., Daemon]]:
    """Start nodes in homes of their own; they end with the test."""
    running: list[Daemon] = []

    def start(name: str, slots: int) -> Daemon:
        home = short_home / name
        home.mkdir()
        root = str(Path(p2pcompute.__file__).parent.parent)
        env = {
            **os.environ,
            "P2PC_HOME": str(home),
            "P2PC_NODE__INTERFACES": "lo",
            "P2PC_NODE__ACCEPT": "all",
            "P2PC_NODE__NAME": name,
            "P2PC_NODE__SLOTS": str(slots),
            "PYTHONPATH": root,
        }
        daemon = Daemon(home, env)
        running.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in running:
        daemon.process.send_signal(signal.SIGTERM)
    for daemon in running:
        daemon.process.wait(30)


@pytest.fixture
def short_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that is short enough for sockets."""
    return tmp_path_factory.mktemp("j")


def test_calls_run_on_the_node(start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a running node is not used, or embedded workers compete with it for the cores."""
    daemon = start_daemon("alpha", 2)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    data = os.urandom(1 << 20)
    with MeshExecutor() as executor:
        assert executor.submit(square, 3).result(timeout=20) == 9
        future = executor.submit(os.getpid)
        assert future.result(timeout=20) != os.getpid()
        assert future.info.node == "alpha"
        own, other = executor.nodes
        assert (own.slots, other.name, other.slots) == (0, "alpha", 2)
        [found] = executor.find("slots.total>=2")
        assert (found.id, found.name, found.state) == (other.id, "alpha", "up") and found.mem and found.cpus
        assert executor.nodes[1].mem == found.mem
        assert executor.when("name=alpha", timeout=20).id == other.id
        assert list(executor.map(square, range(2000))) == [n * n for n in range(2000)]
        assert executor.submit(lambda d: d[::-1], data).result(timeout=20) == data[::-1]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(timeout=20)
    with MeshExecutor(local=True, max_workers=1) as alone:
        future = alone.submit(square, 2)
        assert (future.result(), len(alone.nodes)) == (4, 1)
        assert future.info.node != "alpha"


def test_calls_run_on_all_members(start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: only the node of this machine works for the executor."""
    first, second = start_daemon("alpha", 1), start_daemon("beta", 1)
    token = max(first.p2pc("invite", "--mine", "--token").split(), key=len)
    second.p2pc("join", "--accept", "all", token)
    monkeypatch.setenv("P2PC_HOME", str(first.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    with MeshExecutor(max_workers=0) as executor:
        wait_until(lambda: {node.name for node in executor.nodes} >= {"alpha", "beta"}, "both are met")

        def nap(n: int) -> int:
            import time

            time.sleep(0.1)
            return n

        job = executor.start_map(nap, range(20))
        assert job.results(timeout=30) == list(range(20))
        assert {future.info.node for future in job.futures} == {"alpha", "beta"}


def test_values_go_from_node_to_node(start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: calls that wait for others, and calls that tasks return, work on this machine only, or do not survive the
    loss of a node in the middle."""
    first, second = start_daemon("alpha", 1), start_daemon("beta", 1)
    token = max(first.p2pc("invite", "--mine", "--token").split(), key=len)
    second.p2pc("join", "--accept", "all", token)
    monkeypatch.setenv("P2PC_HOME", str(first.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    with MeshExecutor(max_workers=0) as executor:
        wait_until(lambda: {node.name for node in executor.nodes} >= {"alpha", "beta"}, "both are met")
        there = executor.with_options(on=["alpha"]).submit(large, 1)
        size = executor.with_options(on=["beta"]).submit(len, there)
        assert (size.result(timeout=30), size.info.node, there.info.node) == (1 << 20, "beta", "alpha")
        assert executor.submit(fibonacci, 6).result(timeout=60) == 8
        shared = executor.share(bytes(1 << 20))
        job = executor.start_map(lambda shared, n: len(shared.get()) + n, [shared] * 8, range(8))
        assert job.results(timeout=30) == [(1 << 20) + n for n in range(8)]
        parts = [executor.submit(slowly, n) for n in range(40)]
        halves = [executor.submit(add_lengths, parts[n], parts[n + 1]) for n in range(0, 40, 2)]
        total, tree = executor.submit(sum, halves), executor.submit(fibonacci, 7)
        wait_until(lambda: any(part.done() and part.info.node == "beta" for part in parts), "beta works")
        second.process.kill()
        assert total.result(timeout=60) == sum(100_000 + n for n in range(40))
        assert tree.result(timeout=60) == 13


def test_jobs_that_the_node_keeps(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: what `p2pc run` has computed cannot be had from Python."""
    daemon = start_daemon("alpha", 2)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    with pytest.raises(UsageError):
        p2pcompute.get_job()
    daemon.p2pc("run", "--detach", "--name", "words", "sleep 0.3; echo {}; test {} != b", ":::", "a", "b")
    job = p2pcompute.get_job("last")
    assert [(done.returncode, done.stdout) for done in job] == [(0, b"a\n"), (1, b"b\n")]
    assert (job.name, len(job), job.status.waiting) == ("words", 2, 0)
    (tmp_path / "halves.py").write_text("def half(n):\n    return 1 / int(n)\n")
    daemon.p2pc("run", "--detach", "--quiet", f"{tmp_path}/halves.py::half", ":::", "2", "0", "4")
    halves = p2pcompute.get_job()
    assert halves.results(errors="skip", timeout=30) == [0.5, 0.25], "what there is would be taken for all of it"
    assert isinstance(halves.results(errors="return")[1], ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        list(halves)
    assert p2pcompute.get_job(job.id).alias == job.alias
    told: list[p2pcompute.JobStatus] = []
    assert job.wait(progress=False) is job and job.wait(1.0, progress=told.append) is job
    assert told[-1].ended == 2, "a job of either kind takes the same arguments"
    daemon.p2pc("run", "--detach", "sleep {}", ":::", "60", "60", "60")
    long = p2pcompute.get_job()
    explanation = long.explain()
    assert explanation.eligible or explanation.reasons[0].node == "alpha"
    for wait in (long.wait, long.results):
        with pytest.raises(TimeoutError):
            wait(timeout=0.1)
    long.cancel(now=True)
    assert long.wait(timeout=30).results(errors="skip") == []
    assert all("was cancelled" in str(error) for error in long.results(errors="return"))


def test_node_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a program hangs or fails because of a node that hangs; or nobody learns that it works alone."""
    (tmp_path / "node.json").write_text(json.dumps({"pid": os.getpid(), "version": "0", "socket": "nowhere"}))
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    seen: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: seen.append(str(message)))
        with MeshExecutor(max_workers=1) as executor:
            assert executor.submit(square, 3).result(timeout=20) == 9
    assert any("working on this machine alone" in text for text in seen)


def test_stale_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: what a killed node left behind is taken for a running one."""
    (tmp_path / "node.json").write_text(json.dumps({"pid": 2**22 + 1, "version": "0", "socket": "nowhere"}))
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    with MeshExecutor(max_workers=1) as executor:
        assert executor.submit(square, 3).result(timeout=20) == 9
