"""Calls that this machine's node keeps when the program ends."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import p2pcompute
from p2pcompute import BadValue, MeshExecutor, NodeUnavailable, P2pcError, TaskOptions, UsageError
from p2pcompute.api import detached, presence
from p2pcompute.api.detached import DetachedJob, Feed, KeptCalls, KeptFuture
from p2pcompute.api.functions import Shipment
from p2pcompute.api.noted import Prepared
from p2pcompute.api.printed import printed_lines
from p2pcompute.api.result_folder import Note
from p2pcompute.execution.functions import dump_value
from p2pcompute.node.facade import TailView
from tests.api.conftest import run_script, wait_until
from tests.api.test_join import Daemon, short_home, start_daemon

__all__ = ["short_home", "start_daemon"]


def half(n: int) -> float:
    print("half of", n)
    return 1 / n


def wait_for_file(path: str) -> int:
    while not Path(path).exists():
        time.sleep(0.02)
    return 1


def test_a_program_follows_what_it_has_handed_in(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: futures of kept calls never end, or end otherwise than those of other calls."""
    daemon = start_daemon("alpha", 2)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("text")
    with MeshExecutor(detach=True) as executor:
        job = executor.start_map(half, [2, 0, 4], name="halves")
        assert job.wait(30).results(errors="skip") == [0.5, 0.25]
        with pytest.raises(ZeroDivisionError):
            job.futures[1].result(timeout=30)
        assert job.futures[0].info.node == "alpha" and job.futures[0].info.stdout == "half of 2\n"
        assert (job.status.done, job.status.failed, job.status.total) == (2, 1, 3)
        assert p2pcompute.get_job(job.id).results(errors="skip") == [0.5, 0.25]
        single = executor.submit(bytes, 300_000)
        assert single.result(timeout=30) == bytes(300_000)
        assert list(executor.map(half, range(1, 9))) == [1 / n for n in range(1, 9)]

        def copy(name: str) -> str:
            Path("out.txt").write_text(Path(name).read_text().upper())
            return name

        files = executor.with_options(send=["{}"], fetch=["out.txt"]).submit(copy, str(tmp_path / "in.txt"))
        assert files.result(timeout=30) == "in.txt"
        assert Path(files.files["out.txt"]).read_text() == "TEXT"
        slow = executor.start_map(time.sleep, [60] * 3)
        wait_until(lambda: slow.status.running == 2, "two of them run")
        assert slow.futures[0].running() and not slow.futures[0].cancel()
        assert slow.futures[2].cancel() and slow.futures[2].cancelled()
        with pytest.raises(UsageError, match="cannot wait for others"):
            executor.submit(len, [single])
        with pytest.raises(UsageError, match="cannot wait for others"):
            executor.start_map(len, [[single]])
        slow.cancel(now=True)
        assert slow.wait(30).status.cancelled == 3
        never = executor.with_options(require=["has=nothing-of-that-name"]).start_map(half, [1])
        assert never.explain().would_help or never.explain().reasons
        never.cancel()
        assert never.wait(30).status.cancelled == 1


def test_the_program_ends_first(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: what was handed in dies with the program, or it waits for it; a second program computes it again."""
    daemon = start_daemon("alpha", 2)
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, time\n"
        "from p2pcompute import MeshExecutor\n"
        "def nap(n):\n"
        "    open('log', 'a').write(f'{n}\\n')\n"
        "    time.sleep(1.5)\n"
        "    return n * n\n"
        "ex = MeshExecutor(detach=True, results='out', resume='again' in sys.argv)\n"
        "job = ex.start_map(nap, range(4))\n"
        "print(job.id)\n"
        "if 'again' in sys.argv:\n"
        "    print(job.results(timeout=30), job.status.total)\n"
        # no shutdown: the interpreter's end hands in what is left
    )
    env = {"P2PC_HOME": str(daemon.home), "P2PC_NODE__INTERFACES": "lo"}
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    began = time.monotonic()
    first = run_script(script, env=env)
    assert first.returncode == 0, first.stderr
    job = p2pcompute.get_job(first.stdout.strip())
    assert job.status.total == 4
    daemon.process.send_signal(signal.SIGSTOP)
    daemon.process.send_signal(signal.SIGCONT)
    assert job.wait(timeout=30).results() == [0, 1, 4, 9]
    wait_until((tmp_path / "out" / "summary.json").exists, "the node has written the results")
    assert time.monotonic() - began < 60
    keys = {json.loads(line)["key"] for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()}
    assert len(keys) == 4
    again = run_script(script, "again", env=env)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines() == ["", "[0, 1, 4, 9] 4"], "nothing was left to hand in"


def test_what_detach_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: calls are lost because nobody is there to keep them."""
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    with pytest.raises(NodeUnavailable, match="does not answer"):
        MeshExecutor(detach=True, options=TaskOptions(retries=1))
    with pytest.raises(BadValue, match="max_workers"):
        MeshExecutor(detach=True, max_workers=2)


class Node:
    """What a node's control socket says, as far as feeds ask it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[dict[str, Any]] = []
        self.files: dict[int, list[dict[str, Any]]] = {}
        self.error: Exception | None = None
        self.is_sealed = False
        self.printed = b""
        self.cancelled: list[str] = []
        self.is_held = False
        """Its tasks do not end."""
        monkeypatch.setattr(detached, "ask", self.ask)
        monkeypatch.setattr(detached, "call", lambda *_: b"content")
        monkeypatch.setattr(detached, "events", self.events)
        monkeypatch.setattr(detached, "RETRY_S", 0.01)
        monkeypatch.setattr(presence, "RETRY_S", 0.01)
        monkeypatch.setattr(presence, "RETRY_S_MAX", 0.01)
        self.is_away = False
        self.asked: list[Any] = []
        """What was to be submitted."""

    def ask(self, _path: Path, method: str, target: str, body: Any = None) -> Any:
        self.asked += [body] if target == "/v1/jobs" else []
        self._check()
        for line in body if method == "POST" and "/tasks" in target else ():
            if line["fetch"]:
                raise UsageError("there is no such file")
            self.lines.append(line)
        self.cancelled += [target] if "/cancel" in target else []
        self.is_sealed = self.is_sealed or "/seal" in target
        if method == "POST" and target == "/v1/jobs" and self.error is not None:
            raise self.error
        return {"id": "00", "alias": "j7k3", "added": len(self.lines)}

    def _check(self) -> None:
        if self.is_away:
            raise NodeUnavailable("this machine's node does not answer", "ConnectionRefusedError: nobody")

    def events(self, _path: Path, _target: str) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
        self._check()
        for index in range(0 if self.is_held else len(self.lines)):
            value = base64.b64encode(dump_value(index)).decode()
            task = {"index": index, "state": "done", "status": "ok", "value_b64": value, "node": "n", "attempts": 1}
            numbers = dict.fromkeys(("exit_code", "signal", "error", "cause", "started", "runtime_s", "cpu_s"))
            more = {"stdout_b64": base64.b64encode(self.printed).decode(), "files": self.files.get(index, [])}
            yield "task", index + 1, task | numbers | more | {"peak_rss_bytes": 0}
        if self.is_sealed and not self.is_held:
            yield "end", None, {}

    def submit(
        self, kept: KeptCalls, target: Shipment | Feed, to: Path = Path(), fetch: tuple[str, ...] = ()
    ) -> KeptFuture[Any]:
        desk: Any = SimpleNamespace(condition=threading.Condition(), check_process=lambda: None)
        future: KeptFuture[Any] = KeptFuture(desk, 0)
        future._note = Note(name="f", inputs=(), key=b"", to=to)
        kept.send(future, target, Prepared(b"", (), (), fetch, future._note))
        return future


SHIPMENT = Shipment("f", b"", None, (), TaskOptions(), b"key")


def test_what_goes_wrong_with_one_call_ends_that_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: a file that cannot be put in its place leaves all futures of the job open for ever."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    node.files[0] = [{"name": "out", "size": 7, "mode": 0o644}]
    (tmp_path / "file").touch()
    bad, good = (node.submit(kept, SHIPMENT, tmp_path / "file") for _ in range(2))
    kept.flush()
    assert isinstance(bad.exception(timeout=10), OSError)
    assert good.result(timeout=10) == 1


def test_a_call_that_is_refused_fails_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: one file that is gone when the node looks for it takes all other calls of the function along."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    feed = kept._open_feed(SHIPMENT)
    with feed._changed:  # all in one request
        futures = [node.submit(kept, SHIPMENT, fetch=("gone",) if number == 2 else ()) for number in range(5)]
    kept.flush()
    refused = futures.pop(2)
    assert isinstance(refused.exception(timeout=10), UsageError)
    with pytest.raises(UsageError, match="submit it again"):
        refused.retry()
    assert [future.result(timeout=10) for future in futures] == [0, 1, 2, 3]


def test_a_shutdown_that_cancels_cancels_at_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: `shutdown(cancel_futures=True)` leaves the node to make calls that nobody wants."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    node.is_held = True
    future = node.submit(kept, SHIPMENT)
    kept.flush()
    assert not node.cancelled
    kept.flush(cancel=True)
    assert node.cancelled == ["/v1/jobs/00/cancel"]
    node.is_held = False
    future.result(timeout=10)


def test_the_end_of_what_was_printed_comes_after_what_was_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: of a call that prints much, `logs(follow=True)` leaves out what it printed last."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    printed = b"x" * 99 + b"\n"
    node.printed = printed * 1000 + b"last\n"
    future = node.submit(kept, SHIPMENT)
    kept.flush()
    future.result(timeout=10)
    tail = TailView(node="n", attempt=1, stdout_start=0, stdout=printed * 900, stderr_start=0, stderr=b"")
    done = iter([False])
    report = future._report
    assert report is not None
    lines = printed_lines(
        "stdout",
        is_done=lambda: next(done, True),
        outcome=lambda: report[2],
        tail=lambda *_: tail,
        follow=True,
    )
    found = list(lines)
    assert len(found) == 1001 and found[-1] == "last"


def test_a_job_that_cannot_be_handed_in_fails_its_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: an error that nobody expected ends the thread that hands in, and `flush` says that all is well."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    node.error = ValueError("no JSON")
    future = node.submit(kept, SHIPMENT)
    with pytest.raises(P2pcError, match="handed in"):
        kept.flush()
    assert isinstance(future.exception(timeout=10), P2pcError)
    with pytest.raises(P2pcError, match="handed in"):
        future.retry()


def test_a_call_that_comes_as_its_job_is_sealed_goes_to_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: it is taken by a job that hands nothing in any more, and never ends."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    first = kept._open_feed(SHIPMENT)
    feeds = iter([first])
    open_feed = kept._open_feed
    monkeypatch.setattr(kept, "_open_feed", lambda shipment: next(feeds, None) or open_feed(shipment))
    kept.flush()
    future = node.submit(kept, SHIPMENT)
    assert future.feed is not first
    kept.flush()
    assert future.result(timeout=10) == 0


def test_a_forked_child_hands_nothing_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: it waits at its end for threads that only its parent has."""
    Node(monkeypatch)
    kept = KeptCalls(tmp_path, None)
    feed = kept._open_feed(SHIPMENT)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        kept._end()
    assert not feed._is_sealing
    kept.flush()
