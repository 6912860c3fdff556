"""Processes that die, are killed, break their socket, or lose their node."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.errors import LocalProtocolError
from p2pcompute.execution.functions import load_value
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import OutcomeStatus

from .conftest import Rig, call, is_running, wait_for, wait_until


def _die(how: str) -> int:
    import ctypes

    print("last words", file=sys.stderr, flush=True)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(5)
    if how == "close socket":
        os.closerange(3, 256)
    return 1


@pytest.mark.parametrize(
    ("how", "number", "cause", "words"),
    [
        ("kill", signal.SIGKILL, "signal", "SIGKILL"),
        ("segfault", signal.SIGSEGV, "signal", "SIGSEGV"),
        ("exit", None, "exit", "exit code 5"),
        ("close socket", None, "exit", "connection"),
    ],
)
async def test_a_death_is_blamed_on_the_running_task_only(
    rig: Rig, how: str, number: int | None, cause: str, words: str
) -> None:
    """The tasks before it must keep their results, those after it must not count as failed."""
    spec = await rig.function(_die)
    runs = rig.batch(spec, [call("no"), call("no"), call(how), call("no"), call("no")])
    one, two, dead, *rest = await rig.finish(runs, rig.begin(runs))
    assert [load_value(one.value), load_value(two.value)] == [1, 1]
    assert (dead.status, dead.signal, dead.cause) == (OutcomeStatus.DIED, number, cause), dead
    assert words in dead.error and b"last words" in dead.stderr
    assert [outcome.status for outcome in rest] == [OutcomeStatus.NOT_RUN] * 2
    (after,) = await rig.run(spec, call("no"))
    assert after.status == OutcomeStatus.OK, "the worker process was not replaced"


async def test_death_of_a_worker_process_takes_its_command_along(rig: Rig) -> None:
    text = "echo $$ > pid; sleep 300 & echo $! >> pid; wait"
    runs = rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,))])
    outcomes = rig.begin(runs)
    pids = await _pids_of_command(rig)
    (worker,) = rig.worker_pids()
    os.kill(worker, signal.SIGKILL)
    (outcome,) = await rig.finish(runs, outcomes)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.DIED, "signal")
    for pid in pids:
        await wait_for(lambda pid=pid: not is_running(pid), f"process {pid} gone")  # type: ignore[misc]


async def _pids_of_command(rig: Rig) -> list[int]:
    def lines() -> list[str]:
        files = list(rig.directory.glob("worker-*/command-*/work/pid"))
        return files[0].read_text().split() if files else []

    await wait_for(lambda: len(lines()) == 2, "the command wrote its pids")
    return [int(line) for line in lines()]


# --- kill -------------------------------------------------------------------------------------------------


async def test_kill_of_a_command_keeps_the_worker_process(rig: Rig) -> None:
    text = "trap 'echo stopped; exit 0' TERM; echo $$ > pid; sleep 300 & echo $! >> pid; wait"
    runs = rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,)), TaskPayload(argv=("echo next",))])
    outcomes = rig.begin(runs)
    pids = await _pids_of_command(rig)
    before = rig.worker_pids()
    rig.runner.kill([runs[0].run_id])
    first, second = await rig.finish(runs, outcomes)
    assert first.status == OutcomeStatus.KILLED and first.stdout == b"stopped\n"
    assert (second.status, second.stdout) == (OutcomeStatus.OK, b"next\n") and rig.worker_pids() == before
    await wait_for(lambda: not any(is_running(pid) for pid in pids), "nothing is left")


async def test_kill_of_a_stopped_command(rig: Rig) -> None:
    """A process group under SIGSTOP does not see SIGTERM."""
    text = "echo $$ > pid; echo $$ >> pid; kill -STOP $$"
    runs = rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,))])
    outcomes = rig.begin(runs)
    await _pids_of_command(rig)
    rig.runner.kill([runs[0].run_id])
    (outcome,) = await rig.finish(runs, outcomes)
    assert outcome.status == OutcomeStatus.KILLED


async def test_kill_of_a_function_reports_the_rest_as_not_run(rig: Rig) -> None:
    def waits(path: str) -> None:
        import time

        Path(path).touch()
        time.sleep(300)

    mark = rig.directory / "started"
    runs = rig.batch(await rig.function(waits), [call(str(mark)), call(str(mark))])
    outcomes = rig.begin(runs)
    await wait_for(mark.exists, "the function runs")
    mark.unlink()
    rig.runner.kill([runs[0].run_id])
    first, second = await rig.finish(runs, outcomes)
    assert (first.status, second.status) == (OutcomeStatus.KILLED, OutcomeStatus.NOT_RUN)


async def test_kill_of_a_waiting_run_leaves_the_running_one_alone(rig: Rig) -> None:
    runs = rig.batch(
        JobSpec(kind=TaskKind.SHELL),
        [TaskPayload(argv=("echo $$ > pid; echo $$ >> pid; sleep 0.3; echo done",)), TaskPayload(argv=("echo never",))],
    )
    outcomes = rig.begin(runs)
    await _pids_of_command(rig)
    rig.runner.kill([runs[1].run_id])
    first, second = await rig.finish(runs, outcomes)
    assert (first.status, first.stdout) == (OutcomeStatus.OK, b"done\n")
    assert (second.status, second.stdout) == (OutcomeStatus.KILLED, b"")


async def test_a_recalled_run_never_starts_and_its_slot_goes_on(rig: Rig) -> None:
    """It runs twice, here and where it was sent instead; or the batch never ends for want of its report."""

    def waits(path: str) -> str:
        import time

        Path(path).touch()
        while Path(path).exists():
            time.sleep(0.005)
        return path

    mark, never = rig.directory / "started", rig.directory / "never"
    spec = await rig.function(waits)
    runs = rig.batch(spec, [call(str(mark)), call(str(never)), call(str(never))])
    outcomes = rig.begin(runs)
    await wait_for(mark.exists, "the function runs")
    assert rig.runner.recall([run.run_id for run in runs]) == [], "not the one that runs, nor what is said with it"
    assert rig.runner.recall([run.run_id for run in runs[1:]]) == [run.run_id for run in runs[1:]]
    assert rig.runner.recall([run.run_id for run in runs[1:]]) == []
    mark.unlink()
    (first,) = await rig.finish(runs[:1], outcomes)
    assert first.status is OutcomeStatus.OK
    (again,) = await rig.run(await rig.function(lambda: 1), call())
    assert (again.status, not never.exists(), len(outcomes)) == (OutcomeStatus.OK, True, 1)


async def test_recalls_in_a_storm_of_tiny_tasks_lose_and_repeat_nothing(rig: Rig) -> None:
    """The worker process may begin a run in the very moment in which it is asked for."""

    def leave(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")

    spec = await rig.function(leave)
    for size in range(2, 60):
        paths = [rig.directory / "shared" / f"{size}-{number}" for number in range(size)]
        runs = rig.batch(spec, [call(str(path)) for path in paths])
        outcomes = rig.begin(runs)
        await asyncio.sleep(0.00002 * size)
        waiting = [run.run_id for run in runs if run.run_id not in outcomes][1:]
        recalled = rig.runner.recall(waiting)
        await wait_for(lambda: len(outcomes) + len(recalled) == size, "all ends")  # noqa: B023
        for run, path in zip(runs, paths, strict=True):
            is_ok = run.run_id in outcomes and outcomes[run.run_id].status is OutcomeStatus.OK
            assert (path.read_text() if path.exists() else "") == "x" * is_ok
            path.unlink(missing_ok=True)


async def test_a_death_after_a_kill_of_another_run_is_still_a_death(rig: Rig) -> None:
    """Blamed on nobody, a task that always crashes would wander through the mesh for ever."""

    def waits_then_dies(path: str) -> None:
        import time

        Path(path).touch()
        while Path(path).exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)

    mark = rig.directory / "started"
    runs = rig.batch(await rig.function(waits_then_dies), [call(str(mark)), call(str(mark))])
    outcomes = rig.begin(runs)
    await wait_for(mark.exists, "the function runs")
    rig.runner.kill([runs[1].run_id])
    mark.unlink()
    first, second = await rig.finish(runs, outcomes)
    assert (first.status, second.status) == (OutcomeStatus.DIED, OutcomeStatus.KILLED)


async def test_kill_while_the_worker_process_starts(rig: Rig) -> None:
    runs = rig.batch(await rig.function(lambda: 1), [call(), call()])
    outcomes = rig.begin(runs)
    rig.runner.kill([run.run_id for run in runs])
    statuses = {outcome.status for outcome in await rig.finish(runs, outcomes)}
    assert statuses == {OutcomeStatus.KILLED}
    rig.runner.kill([run.run_id for run in runs])  # ended long ago: nothing to do


async def test_close_while_busy_reports_everything_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, slot_count=2)
    await rig.runner.start()
    shell = JobSpec(kind=TaskKind.SHELL)
    text = "trap '' TERM; echo $$ > pid; sleep 300 & echo $! >> pid; wait"
    runs = rig.batch(shell, [TaskPayload(argv=(text,)), TaskPayload(argv=("true",))])
    outcomes = rig.begin(runs)
    pids = await _pids_of_command(rig)
    await rig.runner.close()
    rig.blobs.shut()
    assert [outcomes[run.run_id].status for run in runs] == [OutcomeStatus.KILLED, OutcomeStatus.NOT_RUN]
    await wait_for(lambda: not any(is_running(pid) for pid in pids), "nothing is left")


async def test_no_task_has_died_because_the_runner_was_closed(tmp_path: Path) -> None:
    """The task before it ended in this moment, and nobody has read that yet."""
    rig = Rig(tmp_path)
    await rig.runner.start()
    begun = tmp_path / "begun"
    texts = ("echo $$ > pid; echo $$ >> pid; sleep 300", f"touch {begun}; sleep 300")
    runs = rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,)) for text in texts])
    outcomes = rig.begin(runs)
    pids = await _pids_of_command(rig)
    os.killpg(pids[0], signal.SIGKILL)
    wait_until(begun.exists, "the next task begins")
    await rig.runner.close()
    rig.blobs.shut()
    assert [outcomes[run.run_id].status for run in runs] == [OutcomeStatus.KILLED, OutcomeStatus.NOT_RUN]


async def test_a_command_dies_also_when_nobody_has_read_that_it_started(tmp_path: Path) -> None:
    """Its process says so and is killed at once; the children of the command would be nobody's."""
    rig = Rig(tmp_path)
    await rig.runner.start()
    text = "echo $$ > pid; sleep 300 & echo $! >> pid; wait"
    rig.begin(rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,))]))
    await wait_for(lambda: bool(rig.worker_pids()), "a worker process")
    worker = next(iter(rig.runner._alive))
    worker.pause()
    pids = await _pids_of_command(rig)
    assert not worker.groups
    await rig.runner.close()
    rig.blobs.shut()
    await wait_for(lambda: not any(is_running(pid) for pid in pids), "nothing is left")


# --- the slot and the start -----------------------------------------------------------------------------------


async def test_a_busy_slot_is_refused(rig: Rig) -> None:
    runs = rig.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=("true",))])
    outcomes = rig.begin(runs)
    with pytest.raises(LocalProtocolError):
        rig.begin(runs)
    await rig.finish(runs, outcomes)


async def test_a_slot_can_be_used_from_its_own_callback(rig: Rig) -> None:
    """The scheduler refills a slot as soon as it hears of the last outcome, also of one that died."""
    spec = await rig.function(_die)
    batches = [rig.batch(spec, [call(how)]) for how in ("kill", "no", "exit", "no")]
    seen: list[OutcomeStatus] = []

    def refill(pairs: Any) -> None:
        seen.extend(outcome.status for _, outcome in pairs)
        if len(seen) < len(batches):
            rig.runner.run(0, batches[len(seen)], refill)

    rig.runner.run(0, batches[0], refill)
    await wait_for(lambda: len(seen) == 4, "all batches")
    assert seen == [OutcomeStatus.DIED, OutcomeStatus.OK, OutcomeStatus.DIED, OutcomeStatus.OK]


async def test_workers_start_when_needed(tmp_path: Path) -> None:
    """An idle node must not pay for a process per core."""
    rig = Rig(tmp_path, slot_count=3)
    await rig.runner.start()
    assert len(rig.worker_pids()) == 1
    await rig.run(await rig.function(lambda: 1), call(), slot=2)
    assert len(rig.worker_pids()) == 2
    await rig.runner.close()
    rig.blobs.shut()


async def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    old = rig.directory / "worker-9" / "command-1" / "work"
    old.mkdir(parents=True)
    (old / "file").touch()
    old.chmod(0o500)
    await rig.runner.start()
    assert not old.parent.parent.exists()
    await rig.runner.close()
    rig.blobs.shut()


async def test_a_python_that_cannot_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a broken installation looks like tasks that wander from node to node for ever."""
    monkeypatch.setattr("p2pcompute.execution.worker_process.sys.executable", "/bin/false")
    rig = Rig(tmp_path)
    await rig.runner.start()
    (outcome,) = await rig.run(await rig.function(lambda: 1), call())
    assert outcome.status == OutcomeStatus.REFUSED and "cannot start worker processes" in outcome.error
    monkeypatch.setattr("p2pcompute.execution.worker_process.sys.executable", "/no/such/python")
    (outcome,) = await rig.run(await rig.function(lambda: 1), call())
    assert outcome.status == OutcomeStatus.NOT_RUN and "No such file" in outcome.error
    await rig.runner.close()
    rig.blobs.shut()


async def test_nonsense_from_a_task_ends_its_worker_process(rig: Rig) -> None:
    """A task can find the socket and write to it; the node must neither believe it nor fall over."""

    def writes(junk: bytes) -> None:
        import stat
        import time

        for fd in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, junk)
            except OSError:
                continue
        time.sleep(300)

    spec = await rig.function(writes)
    for junk in (b"\xff" * 8, b"\0\0\0\1\7", b"\0\0\0\5\3" + b"x" * 4, b"\0\0\0\0"):
        (outcome,) = await rig.run(spec, call(junk))
        assert outcome.status == OutcomeStatus.DIED, junk


def test_runs_in_a_background_thread(tmp_path: Path) -> None:
    """The embedded node lives in a thread of the user's program; the thread may end before the program does."""
    results: list[Any] = []

    async def work() -> None:
        rig = Rig(tmp_path)
        await rig.runner.start()
        results.append(load_value((await rig.call(lambda: 6 * 7)).value))
        await rig.runner.close()
        rig.blobs.shut()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    thread.join()
    assert results == [42]


# --- kill -9 of the node ----------------------------------------------------------------------------------

NODE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.execution.conftest import Rig, call
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload

def busy(path):
    import os, subprocess
    child = subprocess.Popen(["sleep", "300"])
    with open(path + ".tmp", "w") as file:
        file.write(f"{{os.getpid()}} {{child.pid}}")
    os.rename(path + ".tmp", path)
    while True:
        pass

async def main():
    rig = Rig(Path(sys.argv[1]), slot_count=3)
    await rig.runner.start()
    shell = JobSpec(kind=TaskKind.SHELL)
    text = "trap '' TERM HUP; sleep 300 & echo $$ $! > tmp; mv tmp $OUT; while :; do sleep 1; done"
    rig.begin(rig.batch(shell, [TaskPayload(argv=(text,), env={{"OUT": sys.argv[1] + "/command"}})]), 0)
    rig.begin(rig.batch(await rig.function(busy), [call(sys.argv[1] + "/function")]), 1)
    rig.begin(rig.batch(shell, [TaskPayload(argv=("echo > $OUT",), env={{"OUT": sys.argv[1] + "/idle"}})]), 2)
    await asyncio.sleep(300)

asyncio.run(main())
"""


def test_kill_9_of_the_node_leaves_no_process_behind(tmp_path: Path) -> None:
    """Covers a busy function that holds the interpreter, its child, a command that ignores signals, and its child."""
    import psutil

    root = str(Path(__file__).parent.parent.parent)
    code = textwrap.dedent(NODE.format(tests=root))
    node = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    try:
        names = ("command", "function", "idle")
        wait_until(lambda: all((tmp_path / name).exists() for name in names), "three tasks run")
        family = psutil.Process(node.pid).children(recursive=True)
        told = [int(pid) for name in names[:2] for pid in (tmp_path / name).read_text().split()]
        assert len(family) >= 7 and {process.pid for process in family}.issuperset(told)
    finally:
        node.kill()
        node.wait()
    wait_until(lambda: not any(is_running(process.pid) for process in family), "the node's processes are gone")
