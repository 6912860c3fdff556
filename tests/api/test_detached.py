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
from p2pcompute.api import detached, feed, presence
from p2pcompute.api.detached import DetachedJob, KeptCalls
from p2pcompute.api.feed import Feed, KeptFuture
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
    with pytest.raises(NodeUnavailable, match="no node is running here; start it: p2pc node start"):
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
        for module in (detached, feed):
            monkeypatch.setattr(module, "ask", self.ask)
        monkeypatch.setattr(feed, "call", lambda *_: b"content")
        monkeypatch.setattr(feed, "events", self.events)
        monkeypatch.setattr(feed, "RETRY_S", 0.01)
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
    opened = kept._open_feed(SHIPMENT)
    with opened._changed:  # all in one request
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


def test_a_node_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken: futures fail though the node goes on with their calls, or wait in silence."""
    monkeypatch.setattr(presence, "SAID_S", 0.05)
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    node.is_away = True
    future = node.submit(kept, SHIPMENT)
    assert future.feed is not None
    wait_until(lambda: len(node.asked) > 2, "it is handed in again and again")
    job: DetachedJob[Any] = DetachedJob(future._desk, SHIPMENT, "f", future.feed, False)
    job.add(future)
    wait_until(lambda: "no answer from the node for" in str(job.status), "its job says so")
    assert (job.status.total, job.status.waiting) == (1, 1) and not future.done()
    wait_until(lambda: "does not answer; its calls are waited for, up to 1 h" in caplog.text, "it is said")
    node.is_held = True
    node.is_away = False
    kept.flush()
    assert len({body["request"] for body in node.asked}) == 1, "a repeated submission has the name of the first"
    wait_until(lambda: "is back" in caplog.text, "and that it is back")
    node.is_away = True
    time.sleep(0.1)
    node.is_held = node.is_away = False
    assert future.result(timeout=10) == 0
    assert caplog.text.count("does not answer") <= 2, "said once for each time"


def test_a_node_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: a program waits for ever for a node that nobody starts again."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None, 0.2)
    node.is_held = True
    future = node.submit(kept, SHIPMENT)
    kept.flush()
    node.is_away = True
    error = future.exception(timeout=10)
    assert isinstance(error, NodeUnavailable) and error.code == "node-away" and "get_job" in str(error.fix)
    assert "ConnectionRefusedError" in error.why


def test_whoever_has_everything_waits_for_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: a node that goes right after the last result is asked for an hour, by a thread that nobody needs."""
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    events = node.events

    def cut_before_its_end(path: Path, target: str) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
        yield from (event for event in events(path, target) if event[0] == "task")
        if node.is_sealed:
            raise NodeUnavailable("no node is running here")

    monkeypatch.setattr(feed, "events", cut_before_its_end)
    future = node.submit(kept, SHIPMENT)
    kept.flush()
    assert future.result(timeout=10) == 0
    assert future.feed is not None
    wait_until(lambda: all(thread.name != "p2pc-follow" for thread in threading.enumerate()), "nobody asks any more")


def test_ctrl_c_does_not_wait_for_a_node_that_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken: who interrupts a program waits an hour for a node that somebody has stopped."""
    monkeypatch.setattr(detached, "LEAVE_S", 0.1)
    node, kept = Node(monkeypatch), KeptCalls(tmp_path, None)
    node.is_away = True
    future = node.submit(kept, SHIPMENT)
    kept.leave()
    assert "not everything was handed in: this machine's node does not answer" in capsys.readouterr().err
    kept._end()  # and the end of the interpreter does not either
    node.is_away = False
    assert future.result(timeout=10) == 0, "its thread has ended for the next test"


def test_ctrl_c_leaves_what_was_handed_in_to_the_node(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: detached calls end with the program that was interrupted, or nobody says how to end them."""
    daemon = start_daemon("alpha", 1)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    (tmp_path / "program.py").write_text(
        "import os, time\n"
        "from p2pcompute import MeshExecutor\n"
        "def wait(path):\n"
        "    while not os.path.exists(path):\n"
        "        time.sleep(0.02)\n"
        "with MeshExecutor(detach=True) as ex:\n"
        "    done = ex.submit(abs, -1).result()\n"
        "    job = ex.start_map(wait, [os.path.abspath('gate')] * 4)\n"
        "    print(job.id, flush=True)\n"
        "    job.wait(progress=False)\n"
    )
    env = {**daemon.env, "PYTHONPATH": str(Path(p2pcompute.__file__).parent.parent)}
    command = [sys.executable, "program.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        job = p2pcompute.get_job(program.stdout.readline().strip())
        program.send_signal(signal.SIGINT)
        said = program.communicate(timeout=20)[1]
    assert said.endswith("KeyboardInterrupt\n") and program.returncode == -signal.SIGINT
    ours = [line for line in said.splitlines() if line.startswith("p2pcompute:")]
    assert ours == [
        f"p2pcompute: job {job.alias} goes on at this machine's node: "
        f"p2pc attach {job.alias} shows it, p2pc cancel {job.alias} ends it"
    ]
    assert job.status.done == 0
    (tmp_path / "gate").touch()
    assert job.wait(30).status.done == 4


def test_a_node_that_is_stopped_and_started_again_goes_on(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: futures are lost when the node hangs for a while, or is another process then."""
    monkeypatch.setattr("p2pcompute.api.control.REQUEST_S", 0.3)
    monkeypatch.setattr("p2pcompute.api.control._SILENT_S", 0.3)
    monkeypatch.setattr(presence, "RETRY_S_MAX", 0.5)
    daemon = start_daemon("alpha", 2)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    with MeshExecutor(detach=True, patience="1m") as executor:
        daemon.process.send_signal(signal.SIGSTOP)
        first = executor.submit(half, 2)
        time.sleep(1.0)
        daemon.process.send_signal(signal.SIGCONT)
        assert first.result(timeout=30) == 0.5
        gate = tmp_path / "gate"
        job = executor.start_map(wait_for_file, [str(gate)] * 3)
        wait_until(lambda: job.status.running == 2, "two of them run")
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: bool(job.status.note), "the job says that its node is away")
        assert job.status.total == 3 and not job.futures[0].done()
        gate.touch()
        daemon.start()
        assert job.results(timeout=30) == [1, 1, 1]
        assert not job.status.note and len(p2pcompute.get_job(job.id).results()) == 3


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
    opened = kept._open_feed(SHIPMENT)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        kept._end()
    assert not opened._is_sealing
    kept.flush()
