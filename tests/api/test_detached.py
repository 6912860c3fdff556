"""Calls that this machine's node keeps when the program ends."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import p2pcompute
from p2pcompute import BadValue, MeshExecutor, NodeUnavailable, TaskOptions, UsageError
from tests.api.conftest import run_script, wait_until
from tests.api.test_join import Daemon, short_home, start_daemon

__all__ = ["short_home", "start_daemon"]


def half(n: int) -> float:
    print("half of", n)
    return 1 / n


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
