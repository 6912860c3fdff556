"""Calls that are tried again, what they print, jobs that are saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import p2pcompute
from p2pcompute import MeshExecutor, TaskOptions, UsageError
from p2pcompute.api.result_target import ResultsTarget, hold
from p2pcompute.api.shell import start_commands
from tests.api.conftest import wait_until
from tests.api.test_join import Daemon, short_home, start_daemon

__all__ = ["short_home", "start_daemon"]


def gated(gate: str, n: int, large: bytes = b"") -> int:
    if n % 2 and not Path(gate).exists():
        raise LookupError(n)
    return n + len(large)


def test_retry(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: what has failed has to be submitted by hand, or fails again because its arguments are gone."""
    gate, large = str(tmp_path / "gate"), bytes(200_000)
    job = executor.start_map(gated, [gate] * 5, range(5), [large] * 5)
    single = executor.submit(gated, gate, 1)
    assert len(job.wait(20).failures()) == 2
    with pytest.raises(LookupError):
        single.result(20)
    with pytest.raises(UsageError, match="is done"):
        job.futures[0].retry()
    Path(gate).touch()
    old = job.futures
    assert job.retry_failed().results(timeout=20) == [n + 200_000 for n in range(5)]
    assert [a is b for a, b in zip(old, job.futures, strict=True)] == [True, False, True, False, True]
    assert (job.status.done, job.status.failed) == (5, 0)
    again = single.retry()
    assert again.result(20) == 1 and isinstance(single.exception(), LookupError)
    failed = executor.submit(gated, str(tmp_path / "none"), 1)
    with pytest.raises(UsageError, match="never made"):
        waiting = executor.submit(len, [failed])
        waiting.exception(20)
        waiting.retry()


def test_retry_in_a_folder(tmp_path: Path) -> None:
    """Broken: the folder still says that it has failed."""
    gate, out = str(tmp_path / "gate"), tmp_path / "out"
    with MeshExecutor(max_workers=1, local=True, results=out) as executor:
        job = executor.start_map(gated, [gate] * 2, [0, 1]).wait(20)
        Path(gate).touch()
        assert job.retry_failed().results(timeout=20) == [0, 1]
    assert json.loads((out / "tasks" / "000" / "000001" / "meta.json").read_text())["state"] == "done"
    with MeshExecutor(max_workers=1, local=True, results=out, resume=True) as executor:
        assert all(future.done() for future in executor.start_map(gated, [gate] * 2, [0, 1]).futures)


def talk(gate: str) -> None:
    import sys

    print("first line")
    print("an error", file=sys.stderr)
    while not Path(gate).exists():
        time.sleep(0.01)
    print("second", end="")


def test_logs(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: nobody sees what a task prints before it has ended; or sees it twice."""
    gate = tmp_path / "gate"
    future = executor.submit(talk, str(gate))
    wait_until(lambda: list(future.logs(stream="stdout")) == ["first line"], "it has printed")
    lines = future.logs(follow=True)
    assert [next(lines), next(lines)] == ["first line", "an error"]
    gate.touch()
    assert list(lines) == ["second"]
    assert list(future.logs()) == ["first line", "second", "an error"]
    assert list(future.logs(stream="stderr", follow=True)) == ["an error"]
    long = executor.submit(lambda: print("\n".join(map(str, range(30_000)))))
    assert list(long.logs(follow=True))[-1] == "29999"


def report(gate: str) -> None:
    p2pcompute.progress(3, 10, "a third")
    while not Path(gate).exists():
        time.sleep(0.01)


def test_progress(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: nobody learns how far a long task is."""
    p2pcompute.progress(1)  # outside of a task it does nothing
    gate = tmp_path / "gate"
    future = executor.submit(report, str(gate))
    wait_until(lambda: future.progress is not None, "it has said something")
    assert str(future.progress) == "3 of 10 a third"
    gate.touch()
    assert future.result(20) is None and future.progress is None


def test_save(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: what was computed cannot be kept afterwards."""
    job = executor.start_map(gated, [str(tmp_path / "gate")] * 3, range(3)).wait(20)
    job.save(tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    assert [record["state"] for record in records] == ["done", "failed", "done"]
    with pytest.raises(UsageError, match="already holds results"):
        job.save(tmp_path / "out")
    places = {"send": (), "fetch": (), "to": tmp_path, "name": None}
    commands = start_commands(executor, "echo {}; test {} = a", ["a", "b"], options=TaskOptions(), **places)  # type: ignore[arg-type]
    commands.wait(20).save(tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["stdout"], row["state"]) for row in rows] == [("a\n", "done"), ("b\n", "failed")]


def test_of_calls_that_a_node_keeps(
    start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: none of this works once calls are detached."""
    daemon = start_daemon("alpha", 2)
    monkeypatch.setenv("P2PC_HOME", str(daemon.home))
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    gate = tmp_path / "gate"
    with MeshExecutor(detach=True) as executor:
        job = executor.start_map(gated, [str(gate)] * 3, range(3))
        assert len(job.wait(30).failures()) == 1
        kept = p2pcompute.get_job(job.id)
        with hold(ResultsTarget(dir=tmp_path / "kept")), pytest.raises(UsageError, match="being written by another"):
            kept.save(tmp_path / "kept")
        kept.save(tmp_path / "kept")
        assert (tmp_path / "kept" / "tasks" / "000" / "000002" / "value.pickle").exists()
        talking = executor.submit(talk, str(gate))
        wait_until(lambda: list(talking.logs(stream="stdout")) == ["first line"], "it has printed")
        lines = talking.logs(follow=True)
        assert next(lines) == "first line"
        gate.touch()
        assert list(lines)[-1] == "second"
        assert job.retry_failed().results(timeout=30) == [0, 1, 2]
        assert kept.status.failed == 0
        job.save(tmp_path / "saved")
        assert (tmp_path / "saved" / "summary.json").exists()
