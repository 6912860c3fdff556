"""An executor's life: it starts when made and leaves nothing behind, however it ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

import p2pcompute
from p2pcompute import MeshExecutor, P2pcError, UsageError
from p2pcompute.api import submitting
from tests.api.conftest import run_script, wait_until


def square(n: int) -> int:
    return n * n


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, here and in programs that the test starts."""
    path = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_with_waits(tmp_path: Path, temporary: Path) -> None:
    """Broken: leaving the block loses calls."""
    with MeshExecutor(max_workers=1) as executor:
        for n in range(3):
            executor.submit(Path(tmp_path, str(n)).touch)
    assert len(list(tmp_path.iterdir())) == 3
    assert not list(temporary.iterdir())
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(square, [1])


def test_shutdown_is_idempotent() -> None:
    """Broken: closing twice hangs or raises."""
    executor = MeshExecutor(max_workers=1)
    future = executor.submit(square, 3)
    executor.shutdown()
    executor.shutdown(wait=True, cancel_futures=True)
    executor.shutdown(wait=False)
    assert future.result() == 9
    assert not executor._node._thread.is_alive()


def test_unused_executor() -> None:
    """Broken: an executor that was never used cannot be closed."""
    MeshExecutor(max_workers=1).shutdown()


def test_shutdown_without_waiting(tmp_path: Path) -> None:
    """Broken: `shutdown(wait=False)` blocks, or drops calls."""
    executor = MeshExecutor(max_workers=1)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(4)]
    executor.shutdown(wait=False)
    assert not futures[-1].done()
    assert futures[-1].result(timeout=20) is None
    wait_until(lambda: not executor._node._thread.is_alive(), "the node ends behind")


def test_shutdown_that_cancels() -> None:
    """Broken: `cancel_futures` waits for everything, or kills what runs."""
    executor = MeshExecutor(max_workers=1)
    first = executor.submit(time.sleep, 0.3)
    wait_until(first.running, "the first runs")
    rest = [executor.submit(time.sleep, 10) for _ in range(5)]
    executor.shutdown(cancel_futures=True)
    assert first.done() and not first.cancelled()
    assert all(future.cancelled() for future in rest)


def test_views_share_the_node() -> None:
    """Broken: `with_options` starts workers of its own, or outlives them."""
    with MeshExecutor(max_workers=1) as executor:
        other = executor.with_options(retries=1)
        assert other.submit(square, 2).result() == 4
        assert len(psutil.Process().children()) <= 1
    with pytest.raises(RuntimeError):
        other.submit(square, 2)


def test_dropped_executor_ends() -> None:
    """Broken: executors that nobody closes pile up."""
    executor = MeshExecutor(max_workers=1)
    future = executor.submit(square, 5)
    thread = executor._node._thread
    del executor
    gc.collect()
    assert future.result(timeout=20) == 25
    wait_until(lambda: not thread.is_alive(), "the node ends by itself")


def test_several_executors() -> None:
    """Broken: two executors in one process disturb each other."""
    with MeshExecutor(max_workers=1) as first, MeshExecutor(max_workers=1) as second:
        assert first.submit(os.getpid).result() != second.submit(os.getpid).result()


def test_exception_in_the_block_waits(tmp_path: Path) -> None:
    """Broken: an exception in the block loses calls, unlike in the standard library."""
    with pytest.raises(LookupError), MeshExecutor(max_workers=1) as executor:
        future = executor.submit(Path(tmp_path, "made").touch)
        raise LookupError
    assert future.done()
    assert (tmp_path / "made").exists()


def test_keyboard_interrupt_in_the_block() -> None:
    """Broken: Ctrl-C leaves the user waiting for calls that take an hour."""
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), MeshExecutor(max_workers=1) as executor:
        futures = [executor.submit(time.sleep, 60) for _ in range(3)]
        wait_until(futures[0].running, "the first runs")
        raise KeyboardInterrupt
    assert time.monotonic() - before < 10
    assert all(future.cancelled() for future in futures)


INTERRUPTED = """
import sys, time
from p2pcompute import MeshExecutor
with MeshExecutor(max_workers=2) as ex:
    futures = [ex.submit(time.sleep, 60) for _ in range(4)]
    while not futures[0].running():
        time.sleep(0.01)
    print("ready", flush=True)
    futures[0].result()
"""


def workers_of(process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """Wait for so many workers: a call runs from its lease on, its worker may still be starting."""
    workers: list[psutil.Process] = []

    def are_there() -> bool:
        workers[:] = psutil.Process(process.pid).children(recursive=True)
        return len(workers) >= count

    wait_until(are_there, f"{count} workers are there")
    return workers


def test_interrupt_from_the_keyboard(tmp_path: Path) -> None:
    """Broken: Ctrl-C in a script leaves worker processes behind, or a program that does not end."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    root = str(Path(p2pcompute.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = workers_of(process, 1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    wait_until(lambda: not any(worker.is_running() for worker in workers), "workers are gone")


UNCLOSED = """
import pathlib, sys, time
from p2pcompute import MeshExecutor
import p2pcompute
ex = MeshExecutor(max_workers=1)
ex.submit(pathlib.Path(sys.argv[1]).touch)
ex.submit(bytes, 1 << 20).add_done_callback(lambda f: print(len(f.result())))
print(list(p2pcompute.map(abs, [-1])))
"""


def test_exit_without_shutdown(tmp_path: Path, temporary: Path) -> None:
    """Broken: a script that forgets `shutdown` hangs at its end, loses calls or leaves something behind."""
    script, trace = tmp_path / "script.py", tmp_path / "trace"
    script.write_text(UNCLOSED)
    ran = run_script(script, str(trace))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(ran.stdout.splitlines()) == ["1048576", "[1]"]
    assert trace.exists()
    assert not list(temporary.iterdir())


KILLED = """
import os, signal, time
from p2pcompute import MeshExecutor
ex = MeshExecutor(max_workers=2)
futures = [ex.submit(time.sleep, 60) for _ in range(2)]
while not all(future.running() for future in futures):
    time.sleep(0.01)
print("ready", flush=True)
time.sleep(60)
"""


def test_killed_program(tmp_path: Path) -> None:
    """Broken: workers outlive a program that was killed."""
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    root = str(Path(p2pcompute.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = workers_of(process, 2)
        process.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), "workers are gone")


FORKED = """
import os, sys
from p2pcompute import MeshExecutor, P2pcError, UsageError
from p2pcompute.api import submitting

ex = MeshExecutor(max_workers=1)
assert ex.submit(abs, -1).result() == 1
waiting = ex.submit(__import__("time").sleep, 1)
pid = os.fork()
if pid == 0:
    uses = (lambda: ex.submit(abs, -1), lambda: list(ex.map(abs, [-1])), waiting.result, waiting.cancel, ex.shutdown)
    for use in uses:
        try:
            use()
        except UsageError as error:
            assert "another process" in str(error), error
        else:
            os._exit(3)
    with MeshExecutor(max_workers=1) as own:
        assert own.submit(abs, -2).result() == 2
    sys.exit(0)  # with all that happens at an exit
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert ex.submit(abs, -3).result() == 3, "the parent's node goes on"
ex.shutdown()
print("done")
"""


def test_fork(tmp_path: Path) -> None:
    """Broken: a forked child hangs on its parent's node, or ends it."""
    script = tmp_path / "script.py"
    script.write_text(FORKED)
    ran = run_script(script)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "done\n"


def test_node_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: calls wait for ever on a node that did not start."""
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/directory")
    executor = MeshExecutor(max_workers=1, local=True)
    with pytest.raises(Exception, match="no/such/directory"):
        executor.submit(square, 1).result(timeout=20)
    with pytest.raises(Exception, match="no/such/directory"):
        executor.submit(bytes, bytes(1 << 20))
    executor.shutdown()


def test_a_bug_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Broken: whatever nobody expected while a job is begun leaves its futures open for ever."""
    broken = {"is": True}
    real = submitting.requirements_of
    monkeypatch.setattr(
        submitting, "requirements_of", lambda *args, **more: {}["key"] if broken["is"] else real(*args, **more)
    )
    with MeshExecutor(max_workers=1, local=True) as executor:
        error = executor.submit(abs, -1).exception(timeout=20)
        assert isinstance(error, P2pcError) and error.code == "bug" and "KeyError" in error.what
        broken["is"] = False
        assert executor.submit(abs, -1).result(timeout=20) == 1, "and the next one works"
    assert "KeyError" in caplog.text, "it is reported"


def test_import_is_cheap() -> None:
    """Broken: every command of the CLI pays for the embedded node."""
    code = "import sys, p2pcompute; print([m for m in sys.modules if m.startswith('p2pcompute.') or m == 'asyncio'])"
    root = str(Path(p2pcompute.__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": root}
    )
    assert ran.stdout == "[]\n"


def test_public_names() -> None:
    """Broken: a documented name cannot be imported."""
    for name in p2pcompute.__all__:
        assert getattr(p2pcompute, name) is not None
    assert set(dir(p2pcompute)) == set(p2pcompute.__all__)
    with pytest.raises(AttributeError):
        _ = p2pcompute.no_such_name  # type: ignore[attr-defined]


def test_blocked_callback_of_another_thread() -> None:
    """Broken: a callback that hands in more work from the node's own thread deadlocks."""
    with MeshExecutor(max_workers=1) as executor:
        results: list[int] = []
        done = threading.Event()

        def again(future: object) -> None:
            executor.submit(square, 7).add_done_callback(lambda last: (results.append(last.result()), done.set()))  # type: ignore[func-returns-value]

        executor.submit(square, 2).add_done_callback(again)
        assert done.wait(20)
        assert results == [49]


def test_usage_error_is_a_p2pc_error() -> None:
    """Broken: `except P2pcError` misses mistakes in the use of the library."""
    assert issubclass(UsageError, p2pcompute.P2pcError)
