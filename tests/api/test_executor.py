"""`MeshExecutor.submit` behaves as the standard library's executors do, with the mesh's own errors."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import functools
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from p2pcompute import MeshExecutor, TaskError, TaskOptions, UsageError, WorkerDied
from tests.api.conftest import wait_until


def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def fail(text: str) -> None:
    raise ValueError(text)


class Refusal(Exception):
    """An exception of the user's own, with what pickling usually loses."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code, hint)
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Any:
        return functools.partial(Refusal, hint=self.hint), (self.code,)


def refuse() -> None:
    raise Refusal(7, hint="ask again")


def block_until(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.01)
    return os.getpid()


def test_arguments_and_value(executor: MeshExecutor) -> None:
    """Broken: calls get other arguments than they were given."""
    assert executor.submit(add, 1, 2, c=3).result() == 6
    assert executor.submit(add, 1, b=2).result() == 3
    assert executor.submit(lambda *args, **kwargs: (args, kwargs), 1, "x", k=None).result() == ((1, "x"), {"k": None})


def test_runs_in_another_process(executor: MeshExecutor) -> None:
    """Broken: calls block the user's process."""
    assert executor.submit(os.getpid).result() != os.getpid()


def test_exception_is_itself_with_the_remote_traceback(executor: MeshExecutor) -> None:
    """Broken: `except ValueError` around `result()` stops working, or nobody sees where it came from."""
    future = executor.submit(fail, "deliberately")
    with pytest.raises(ValueError, match="deliberately") as caught:
        future.result()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="deliberately") as mapped:
        list(executor.map(fail, ["deliberately"]))
    assert "in fail" in str(mapped.value.__cause__)
    assert "calls.py" not in str(mapped.value.__cause__), "what calls the function is no part of its story"
    assert caught.value.p2pc.state == "failed"  # type: ignore[attr-defined]
    assert isinstance(future.exception(), ValueError)


def test_own_exception_travels(executor: MeshExecutor) -> None:
    """Broken: exceptions of the user's own classes arrive as something else."""
    with pytest.raises(Refusal) as caught:
        executor.submit(refuse).result()
    assert (caught.value.code, caught.value.hint) == (7, "ask again")


def test_a_call_that_raised_is_not_repeated(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: side effects happen several times where the standard executors do them once."""

    def leave_trace(directory: str) -> None:
        Path(directory, str(time.monotonic_ns())).touch()
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        executor.submit(leave_trace, str(tmp_path)).result()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="no"):
        executor.with_options(retries=2).submit(leave_trace, str(tmp_path)).result()
    assert len(list(tmp_path.iterdir())) == 4, "three attempts with two retries"


def test_waiting_helpers_of_the_standard_library(executor: MeshExecutor) -> None:
    """Broken: `as_completed` and `wait` hang or miss futures."""
    futures = [executor.submit(add, n) for n in range(50)]
    assert sorted(future.result() for future in cf.as_completed(futures, timeout=20)) == list(range(50))
    done, waiting = cf.wait(futures, timeout=20)
    assert len(done) == 50
    assert not waiting


def test_callbacks(executor: MeshExecutor) -> None:
    """Broken: what hangs on `add_done_callback` (asyncio, joblib) never hears of results."""
    seen: list[int] = []
    futures = [executor.submit(add, n) for n in range(20)]
    for future in futures:
        future.add_done_callback(lambda done: seen.append(done.result()))
    wait_until(lambda: len(seen) == 20, "all callbacks")


async def test_asyncio(executor: MeshExecutor) -> None:
    """Broken: futures cannot be awaited."""
    assert await executor.submit(add, 1, 1) == 2
    assert await asyncio.wrap_future(executor.submit(add, 2, 2)) == 4
    assert await asyncio.get_running_loop().run_in_executor(executor, add, 3, 3) == 6
    with pytest.raises(ValueError, match="deliberately"):
        await executor.submit(fail, "deliberately")


def test_a_future_shows_the_state_that_its_info_has(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: one that runs calls itself pending."""
    gate = tmp_path / "gate"

    def wait() -> None:
        while not gate.exists():
            time.sleep(0.02)

    future = executor.submit(wait)
    wait_until(future.running, "it runs")
    assert repr(future).endswith("state=running>")
    gate.touch()
    future.result(30)
    assert repr(future).endswith("state=done>")
    failed = executor.submit(fail, "deliberately")
    assert failed.exception(30) is not None and repr(failed).endswith("state=failed raised ValueError>")


def test_result_timeout(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: a bounded wait lasts for ever."""
    gate = tmp_path / "gate"
    future = executor.submit(block_until, str(gate))
    with pytest.raises(TimeoutError):
        future.result(timeout=0.05)
    gate.touch()
    assert future.result(timeout=20)


def test_cancel(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: calls that nobody wants any more run, or one that runs pretends to be cancelled."""
    gate = tmp_path / "gate"

    def busy(number: int) -> int:  # new to the executor, so that each worker gets one and no batch
        (tmp_path / f"busy-{number}").touch()
        return block_until(str(gate))

    running = [executor.submit(busy, n) for n in range(2)]
    wait_until(lambda: len(list(tmp_path.glob("busy-*"))) == 2, "both workers are busy")
    wait_until(lambda: all(future.running() for future in running), "it is known that they are")
    queued = [executor.submit(Path(tmp_path, f"made-{n}").touch) for n in range(5)]
    assert not running[0].cancel()
    assert all(future.cancel() for future in queued)
    assert all(future.cancelled() and future.done() for future in queued)
    with pytest.raises(cf.CancelledError):
        queued[0].result()
    assert cf.wait(queued, timeout=5).done == set(queued)
    wait_until(lambda: not executor._desk._withdrawn, "the node has heard it; until then they may run for a moment")
    gate.touch()
    assert all(future.result(timeout=20) for future in running)
    assert executor.submit(add, 1).result() == 1
    assert not list(tmp_path.glob("made-*")), "a cancelled call has run"
    assert queued[0].info.state == "cancelled"


def test_dropped_futures_run(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: fire and forget loses work."""
    for n in range(5):
        executor.submit(Path(tmp_path, str(n)).touch)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 5, "all calls")


def test_submit_from_many_threads(executor: MeshExecutor) -> None:
    """Broken: two threads corrupt each other's calls."""
    results: list[int] = []

    def work(start: int) -> None:
        futures = [executor.submit(add, start + n) for n in range(100)]
        results.extend(future.result() for future in futures)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(1000 * n + k for n in range(8) for k in range(100))


def test_kinds_of_callables(executor: MeshExecutor) -> None:
    """Broken: something that is callable here cannot be called there."""

    class Adder:
        def __init__(self, base: int) -> None:
            self.base = base

        def __call__(self, n: int) -> int:
            return self.base + n

        def method(self, n: int) -> int:
            return self.base * n

    assert executor.submit(math.gcd, 12, 18).result() == 6
    assert executor.submit(int, "7").result() == 7
    assert executor.submit(functools.partial(add, 1, c=5), 2).result() == 8
    assert executor.submit(Adder(10), 3).result() == 13
    assert executor.submit(Adder(10).method, 3).result() == 30
    assert executor.submit("a-b".split, "-").result() == ["a", "b"]
    assert [executor.submit(functools.partial(add, n)).result() for n in range(5)] == list(range(5))


def test_large_arguments_and_values(executor: MeshExecutor) -> None:
    """Broken: what does not fit a message is lost, or stays on the disk for ever."""
    data = os.urandom(3 << 20)
    futures = [executor.submit(lambda d, n: d[n:], data, n) for n in range(4)]
    assert [future.result() for future in futures] == [data[n:] for n in range(4)]
    assert len(executor.submit(bytes, 3 << 20).result()) == 3 << 20
    blobs = executor._node.blobs().directory
    wait_until(
        lambda: not [path for path in blobs.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20],
        "arguments and values are removed",
    )


def test_large_exception(executor: MeshExecutor) -> None:
    """Broken: an exception that does not fit a message hangs its future."""
    with pytest.raises(ValueError) as caught:
        executor.submit(fail, "x" * (1 << 20)).result()
    assert len(str(caught.value)) == 1 << 20


def test_unpicklable_function(executor: MeshExecutor) -> None:
    """Broken: the user does not learn which of the things that a function captures is to blame."""
    lock = threading.Lock()
    with pytest.raises(UsageError, match="lock"):
        executor.submit(lambda: bool(lock))


def test_unpicklable_argument(executor: MeshExecutor) -> None:
    """Broken: as above, for arguments."""
    with pytest.raises(UsageError, match="lock"):
        executor.submit(add, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="generator"):
        executor.submit(sum, (n for n in range(3)))


def test_unpicklable_result(executor: MeshExecutor) -> None:
    """Broken: a result that cannot travel hangs its future or ends the worker."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        executor.submit(threading.Lock).result()
    assert executor.submit(add, 1).result() == 1


def test_not_callable(executor: MeshExecutor) -> None:
    """Broken: the mistake shows up on another machine."""
    with pytest.raises(UsageError, match="not a function"):
        executor.submit("nonsense")  # type: ignore[arg-type]


def test_worker_killed(executor: MeshExecutor) -> None:
    """Broken: a call that kills its process hangs, or takes others with it."""
    doomed = executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    others = [executor.submit(add, n) for n in range(20)]
    with pytest.raises(WorkerDied) as caught:
        doomed.result(timeout=30)
    assert (caught.value.cause, caught.value.signal) == ("signal", signal.SIGKILL)
    assert [future.result(timeout=30) for future in others] == list(range(20))


def test_worker_exits(executor: MeshExecutor) -> None:
    """Broken: `os._exit` in a call is not reported."""
    with pytest.raises(WorkerDied, match="exit code 3"):
        executor.submit(os._exit, 3).result(timeout=30)


def test_a_file_that_is_only_here_is_said_to_be(executor: MeshExecutor) -> None:
    """Broken: the commonest mistake on a mesh, a path as the argument and no `send`, ends without a word about it."""

    def elsewhere(name: str) -> None:
        raise FileNotFoundError(2, "No such file or directory", name)

    with pytest.raises(FileNotFoundError) as caught:
        executor.submit(elsewhere, __file__).result(timeout=30)
    assert any("send it along" in note for note in caught.value.__notes__)
    for missing in ("/no/such/file", "nul\0"):
        with pytest.raises(FileNotFoundError) as caught:
            executor.submit(elsewhere, missing).result(timeout=30)
        assert not hasattr(caught.value, "__notes__")


def test_task_timeout(executor: MeshExecutor) -> None:
    """Broken: a time limit is ignored."""
    limited = executor.with_options(timeout=0.2)
    with pytest.raises(WorkerDied) as caught:
        limited.submit(time.sleep, 60).result(timeout=30)
    assert caught.value.cause == "timeout"
    assert isinstance(caught.value, TaskError)


def test_memory_limit(executor: MeshExecutor) -> None:
    """Broken: one call takes the memory of the whole machine."""
    with pytest.raises(MemoryError):
        executor.with_options(mem="500M").submit(bytearray, 1 << 30).result(timeout=30)


def test_options(executor: MeshExecutor) -> None:
    """Broken: options reach other calls than those they were meant for, or mistakes in them are accepted."""
    other = executor.with_options(env={"COLOUR": "red"}).with_options(retries=1)
    assert other.submit(os.getenv, "COLOUR").result() == "red"
    assert executor.submit(os.getenv, "COLOUR").result() is None
    with pytest.raises(UsageError, match="no task option 'colour'"):
        executor.with_options(colour="red")
    for changes in ({"retries": -1}, {"timeout": -1}, {"mem": "some"}, {"env": {"a": 1}}):
        with pytest.raises(UsageError):
            executor.with_options(**changes)
    assert TaskOptions(timeout="2m", mem="1K").timeout_s == 120


def test_info(executor: MeshExecutor) -> None:
    """Broken: nobody can say where a call ran and what it printed."""
    future = executor.submit(print, "hello")
    assert future.result() is None
    info = future.info
    assert (info.state, info.attempt, info.stdout, info.exit_code) == ("done", 1, "hello\n", None)
    assert info.node
    assert info.started is not None
    assert info.finished is not None
    assert info.submitted <= info.finished
    assert len(info.id) == 32


def test_nodes(executor: MeshExecutor) -> None:
    """Broken: the executor does not know itself."""
    (own,) = executor.nodes
    assert (own.state, own.slots) == ("self", 2)


def test_bad_construction() -> None:
    """Broken: an executor is made that can never run anything."""
    with pytest.raises(UsageError):
        MeshExecutor(max_workers=-1)
    with pytest.raises(UsageError):
        MeshExecutor(max_workers=0, local=True)


def test_monte_carlo(executor: MeshExecutor) -> None:
    """Broken: the example of every tutorial."""

    def inside(seed: int) -> int:
        import random

        rng = random.Random(seed)
        return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(1000))

    total = sum(executor.map(inside, range(100)))
    assert 3.1 < 4 * total / 100_000 < 3.2
