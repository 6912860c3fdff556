"""Calls that wait for others: futures as arguments, calls that tasks return, shared objects."""

from __future__ import annotations

import concurrent.futures as cf
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

import p2pcompute
from p2pcompute import InputFailed, MeshExecutor, TaskError, UsageError, call
from tests.api.conftest import wait_until

LARGE = 1 << 20


def add(a: Any, b: Any) -> Any:
    return a + b


def fail(text: str) -> None:
    raise ValueError(text)


def large(fill: int) -> bytes:
    return bytes([fill]) * LARGE


def head(data: bytes) -> int:
    return data[0]


def fibonacci(n: int) -> Any:
    return n if n < 2 else call(add, call(fibonacci, n - 1), call(fibonacci, n - 2))


class Opaque:
    """A value that says where it was unpickled."""

    def __init__(self, trace: str, size: int) -> None:
        self.trace = trace
        self.data = bytes(size)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with open(self.trace, "a") as file:
            file.write(f"{os.getpid()}\n")


def opaque(trace: str, size: int) -> Opaque:
    while not os.path.exists(f"{trace}.gate"):
        time.sleep(0.01)
    return Opaque(trace, size)


class Gated:
    """A value that this process pickles slowly."""

    def __init__(self, trace: str, owner: int) -> None:
        self.trace, self.owner = trace, owner

    def __getstate__(self) -> dict[str, Any]:
        if os.getpid() == self.owner:
            Path(f"{self.trace}.begun").touch()
            wait_until(Path(f"{self.trace}.gate").exists, "the gate")
        return self.__dict__


def gated(trace: str, owner: int) -> Gated:
    return Gated(trace, owner)


def size_of(value: Opaque) -> int:
    return len(value.data)


def test_values_of_futures_are_arguments(executor: MeshExecutor) -> None:
    """Broken: a call gets a future, or another value, in place of its input's."""
    one = executor.submit(add, 1, 2)
    two = executor.submit(add, one, b=one)
    three = executor.submit(sum, [one, two, *(executor.submit(add, n, n) for n in range(20))])
    assert (three.result(timeout=20), two.result(), one.result()) == (3 + 6 + 380, 6, 3)
    late = executor.submit(add, three, {"n": one}["n"])
    assert late.result(timeout=20) == 392
    deep = executor.submit(lambda tree: tree["a"][0]["b"][1] + 1, {"a": [{"b": (0, one)}]})
    assert deep.result(timeout=20) == 4
    assert executor.submit(lambda a, b: a is b, two, two).result(timeout=20), "one input is one object"


def test_jobs_and_maps_take_futures(executor: MeshExecutor) -> None:
    """Broken: futures among the inputs of a job are sent as they are, or the job is sealed before they are there."""
    inputs = [executor.submit(add, n, 1) for n in range(10)]
    job = executor.start_map(add, inputs, inputs)
    assert job.results(timeout=20) == [2 * (n + 1) for n in range(10)]
    assert list(executor.map(add, inputs, range(10))) == [2 * n + 1 for n in range(10)]


def test_large_values_do_not_pass_through_here(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: what one task makes for another is unpickled by the submitter in between, or the blobs stay for ever."""
    trace = tmp_path / "trace"
    value = executor.submit(opaque, str(trace), LARGE)
    size = executor.submit(size_of, value)
    (tmp_path / "trace.gate").touch()
    assert size.result(timeout=20) == LARGE
    assert str(os.getpid()) not in trace.read_text().split(), "it was unpickled here"
    assert executor.submit(size_of, value).result(timeout=20) == LARGE, "it can be used again"
    assert size_of(value.result()) == LARGE
    assert str(os.getpid()) in trace.read_text().split()
    directory = executor._node.blobs().directory
    assert executor.submit(head, executor.submit(large, 7)).result(timeout=20) == 7
    del value

    def sizes() -> list[int]:
        executor.submit(abs, 1).result()
        return [path.stat().st_size for path in directory.rglob("*") if path.is_file()]

    wait_until(lambda: not [size for size in sizes() if size >= LARGE], "nobody needs the blobs any more")


def test_many_small_inputs_together(executor: MeshExecutor) -> None:
    """Broken: inputs that are small each, and large together, do not fit into a task."""
    parts = [executor.submit(bytes, 30_000) for _ in range(40)]
    assert executor.submit(lambda parts: sum(map(len, parts)), parts).result(timeout=20) == 1_200_000


def test_value_is_read_before_the_executor_ends() -> None:
    """Broken: a large value that was only an input is lost with the executor."""
    with MeshExecutor(max_workers=1, local=True) as executor:
        value = executor.submit(large, 5)
        executor.submit(head, value)
    assert value.result() == large(5)


def test_failed_input(executor: MeshExecutor) -> None:
    """Broken: what waits for a failed call waits for ever, is made with something else, or does not say why."""
    failed = executor.submit(fail, "deliberately")
    chain = [executor.submit(add, failed, 1)]
    for _ in range(3):
        chain.append(executor.submit(add, 1, chain[-1]))
    with pytest.raises(InputFailed, match=r"add was not called \(fail failed: ValueError: deliberately\)") as caught:
        chain[-1].result(timeout=20)
    assert isinstance(caught.value, TaskError)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "in fail" in str(caught.value.__cause__.__cause__)
    assert caught.value.chain == ("fail", "add", "add", "add", "add")
    after = executor.submit(add, failed, 1)
    with pytest.raises(InputFailed, match="fail failed: ValueError: deliberately"):
        after.result(timeout=20)


def test_long_chain_fails_without_recursion(executor: MeshExecutor) -> None:
    """Broken: a chain of some thousand calls overflows the stack when its first fails, and the rest hangs."""
    link = executor.submit(fail, "first")
    links = []
    for _ in range(2000):
        link = executor.submit(add, link, 1)
        links.append(link)
    with pytest.raises(InputFailed):
        links[-1].result(timeout=60)
    assert all(link.done() for link in links)
    error = links[-1].exception()
    assert isinstance(error, InputFailed) and error.chain[0] == "fail" and len(error.chain) < 100


def test_a_call_may_be_cancelled_while_its_inputs_are_pickled(
    executor: MeshExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken: what is left of the call meets inputs that it has let go, a bug that is logged."""
    trace = tmp_path / "trace"
    value = executor.submit(gated, str(trace), os.getpid())
    assert isinstance(value.result(timeout=20), Gated)
    job = executor.start_map(repr, [value])
    wait_until(Path(f"{trace}.begun").exists, "pickling")
    job.cancel()
    wait_until(lambda: job.status.cancelled == 1, "the end of the call")
    Path(f"{trace}.gate").touch()
    assert executor.submit(repr, value).result(timeout=20).startswith("<"), "its value can still be had"
    assert executor.submit(add, 1, 2).result(timeout=20) == 3
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_cancelled_input_and_cancelled_dependent(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: calls that wait cannot be cancelled, or do not hear of an input that was."""
    gate = tmp_path / "gate"

    def wait() -> int:
        while not gate.exists():
            time.sleep(0.01)
        return 1

    busy = [executor.submit(wait) for _ in range(2)]
    try:
        wait_until(lambda: all(future.running() for future in busy), "both workers are busy")
        queued = executor.submit(add, 1, 1)
        first, second = executor.submit(add, queued, 1), executor.submit(add, busy[0], 1)
        assert queued.cancel() and second.cancel()
        with pytest.raises(InputFailed, match="was cancelled") as caught:
            first.result(timeout=20)
    finally:
        gate.touch()
    assert isinstance(caught.value.__cause__, cf.CancelledError)
    assert busy[0].result(timeout=20) == 1
    assert second.cancelled()


def test_shutdown_waits_for_what_waits(tmp_path: Path) -> None:
    """Broken: calls that wait for others are lost at the end of the block, or make it wait for ever when cancelled."""
    with MeshExecutor(max_workers=1, local=True) as executor:
        last = executor.submit(add, executor.submit(add, 1, 2), 3)
        job = executor.start_map(add, [last], [1])
    assert (last.result(), job.results()) == (6, [7])
    executor = MeshExecutor(max_workers=1, local=True)
    running = executor.submit(time.sleep, 0.3)
    wait_until(running.running, "the first runs")
    held = executor.submit(add, running, 1)
    executor.shutdown(cancel_futures=True)
    assert held.cancelled()


def test_futures_elsewhere_are_refused(executor: MeshExecutor) -> None:
    """Broken: a future of another executor is waited for by nobody, or a pickled one fails somewhere else."""
    with MeshExecutor(max_workers=1, local=True) as other:
        future = other.submit(add, 1, 1)
        with pytest.raises(UsageError, match="another executor"):
            executor.submit(add, future, 1)
        with pytest.raises(UsageError, match="another executor"):
            executor.submit(add, other.share([1]), 1)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(future)
        with pytest.raises(UsageError, match="cannot be pickled"):
            executor.submit(future.result)
        with pytest.raises(TypeError, match="give them to submit"):
            executor.submit(sum, [call(add, executor.submit(add, 1, 1), 1)])


def test_tasks_make_tasks(executor: MeshExecutor) -> None:
    """Broken: a function cannot have the value of further calls, or its slot is held while they run."""
    assert executor.submit(fibonacci, 9).result(timeout=60) == 34
    assert list(executor.map(fibonacci, range(7))) == [0, 1, 1, 2, 3, 5, 8]
    after = executor.submit(add, executor.submit(fibonacci, 5), 1)
    assert after.result(timeout=20) == 6
    assert executor.submit(sum, [call(fibonacci, 3), call(add, 1, 2)]).result(timeout=20) == 5


def test_tasks_make_tasks_with_large_arguments(executor: MeshExecutor) -> None:
    """Broken: a call with large arguments is taken for the value itself."""
    made = executor.submit(lambda: call(len, large(1)))
    assert executor.submit(add, made, 1).result(timeout=20) == LARGE + 1
    assert made.result() == LARGE


def test_calls_of_functions_that_capture_something_new_each_time(executor: MeshExecutor) -> None:
    """Broken: each of them becomes a job of its own, with its own code on every node."""

    def total(n: int) -> Any:
        return call(lambda below: below + n, call(total, n - 1)) if n else 0

    before = len(executor._desk._jobs)
    assert executor.submit(total, 40).result(timeout=60) == 820
    assert len(executor._desk._jobs) - before <= 10


def test_a_call_that_waits_for_itself_is_refused(executor: MeshExecutor) -> None:
    """Broken: a cycle hangs, or ends the worker."""

    def circle() -> Any:
        items: list[Any] = []
        items.append(call(sum, items))
        return items[0]

    with pytest.raises(TypeError, match=r"^the call that was returned waits for its own value: it is among its own"):
        executor.submit(circle).result(timeout=20)


def test_a_call_that_fails_further_down(executor: MeshExecutor) -> None:
    """Broken: the failure of a call that a task made is lost."""
    with pytest.raises(InputFailed) as caught:
        executor.submit(lambda: call(add, call(fail, "below"), 1)).result(timeout=20)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="direct"):
        executor.submit(lambda: call(fail, "direct")).result(timeout=20)


def test_shared_object_is_unpickled_once(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: an object that all calls use is sent and unpickled with each of them."""
    trace = tmp_path / "trace"
    shared = executor.share(Opaque(str(trace), LARGE))
    assert shared.get().data == bytes(LARGE)
    job = executor.start_map(lambda shared, n: len(shared.get().data) + n, [shared] * 50, range(50))
    assert job.results(timeout=30) == [LARGE + n for n in range(50)]
    assert 1 <= len(trace.read_text().split()) <= 2, "once in each worker process"
    assert max(future.info.bytes_in for future in job.futures) < 1000
    assert p2pcompute.Shared is type(shared)
