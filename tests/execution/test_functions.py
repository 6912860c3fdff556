"""Functions in worker processes: results, failures, what is put back afterwards."""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest

from p2pcompute.errors import TaskError
from p2pcompute.execution.codec import decode, is_encoded
from p2pcompute.execution.functions import dump_chunk, load_exception, load_value
from p2pcompute.execution.spec import InputFile, JobSpec, TaskPayload
from p2pcompute.host.runs import OutcomeStatus

from .conftest import Rig, call, is_running, wait_for

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """One for the whole module."""
    return shared_rig


class Odd(Exception):
    """An exception whose pickle cannot be read back: its constructor wants two arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


async def test_returns_values_small_and_large(rig: Rig) -> None:
    """A value above the inline limit would otherwise blow up every message on its way to the owner."""
    small = await rig.call(lambda a, b: {"sum": a + b}, 40, 2)
    assert (small.status, load_value(small.value)) == (OutcomeStatus.OK, {"sum": 42})
    assert small.runtime_s > 0 and small.started_wall > 0 and small.peak_rss_bytes > 1 << 20
    large = await rig.call(lambda: b"x" * 300_000)
    assert large.status == OutcomeStatus.OK and large.value == b""
    assert pickle.loads(await rig.content(large.value_blob)) == b"x" * 300_000


async def test_a_value_that_is_compared_is_the_same_wherever_it_was_computed(rig: Rig) -> None:
    """The submitter's own node would contradict all others, and they would be banned for honest results."""
    spec = await rig.function(lambda: (1, [2.5], "three"))
    runs = [replace(rig.batch(spec, [call()])[0], job_id=b"j" * 32, is_compared=flag) for flag in (False, True, False)]
    pickled, compared, again = [(await rig.finish([run], rig.begin([run])))[0].value for run in runs]
    assert (is_encoded(pickled), is_encoded(compared), is_encoded(again)) == (False, True, False)
    assert decode(compared) == (1, [2.5], "three")


async def test_large_arguments_come_as_a_blob(rig: Rig) -> None:
    blob = await rig.blobs.put(pickle.dumps(((b"y" * 200_000,), {})))
    (outcome,) = await rig.run(await rig.function(len), TaskPayload(args_blob=blob))
    assert load_value(outcome.value) == 200_000


async def test_chunk_is_a_list_of_calls(rig: Rig) -> None:
    """Batches of tiny calls lose results or their order otherwise."""
    payload = TaskPayload(args=dump_chunk([((n,), {}) for n in range(100)]), chunk=100)
    (outcome,) = await rig.run(await rig.function(lambda n: n * n), payload)
    assert load_value(outcome.value) == [n * n for n in range(100)]


async def test_batch_reports_each_run_once_in_order(rig: Rig) -> None:
    spec = await rig.function(lambda n: n)
    outcomes = await rig.run(spec, *(call(n) for n in range(256)))
    assert [load_value(outcome.value) for outcome in outcomes] == list(range(256))


async def test_exception_travels_with_its_traceback(rig: Rig) -> None:
    def fails() -> None:
        print("before")
        raise KeyError("nothing here")

    outcome = await rig.call(fails)
    assert outcome.status == OutcomeStatus.FAILED and outcome.stdout == b"before\n"
    assert "KeyError: 'nothing here'" in outcome.error and "child_functions" not in outcome.error
    error = load_exception(outcome.value)
    assert isinstance(error, KeyError) and "in fails" in str(error.__cause__)


async def test_exception_that_cannot_travel_becomes_text(rig: Rig) -> None:
    def fails() -> None:
        raise Odd(1, 2)

    def holds_a_lock() -> None:
        error = ValueError("with a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    for function, text in ((fails, "1 and 2"), (holds_a_lock, "with a lock")):
        outcome = await rig.call(function)
        error = load_exception(outcome.value)
        assert outcome.status == OutcomeStatus.FAILED and text in outcome.error
        assert isinstance(error, TaskError) and text in error.remote_traceback
        assert text in str(error) and function.__name__ in str(error.__cause__), "whoever prints it sees where it was"


async def test_a_group_of_exceptions_that_cannot_travel_is_named(rig: Rig) -> None:
    """The last line of its traceback, which is a line of dashes, stood for it."""

    def fails() -> None:
        raise ExceptionGroup("both", [Odd(1, 2), ValueError("inner")])

    error = load_exception((await rig.call(fails)).value)
    assert "raised ExceptionGroup: both (2 sub-exceptions)" in str(error)


async def test_result_that_cannot_be_pickled_is_a_clear_failure(rig: Rig) -> None:
    outcome = await rig.call(threading.Lock)
    assert outcome.status == OutcomeStatus.FAILED
    assert "the result, of type lock, cannot be pickled" in outcome.error
    assert "return plain data" in str(load_exception(outcome.value))


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt"])
async def test_exit_and_interrupt_are_failures_not_deaths(rig: Rig, kind: str) -> None:
    """The worker process must live on: its death would take the rest of the batch with it."""

    def leaves(name: str) -> None:
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[name](3)

    before = rig.worker_pids()
    outcome = await rig.call(leaves, kind)
    assert outcome.status == OutcomeStatus.FAILED and kind in outcome.error
    assert (await rig.call(lambda: 1)).status == OutcomeStatus.OK and rig.worker_pids() == before


async def test_output_is_captured_below_python_too(rig: Rig) -> None:
    """C code and subprocesses write to the descriptors, not to sys.stdout."""

    def speaks() -> None:
        import ctypes
        import subprocess

        print("python")
        sys.stdout.flush()
        os.write(1, b"descriptor\n")
        ctypes.CDLL(None).printf(b"c\n")
        ctypes.CDLL(None).fflush(None)
        subprocess.run(["sh", "-c", "echo child; echo error >&2"], check=True)

    outcome = await rig.call(speaks)
    assert outcome.stdout == b"python\ndescriptor\nc\nchild\n" and outcome.stderr == b"error\n"
    assert (await rig.call(lambda: None)).stdout == b"", "output of one task shows up in the next"


async def test_large_output_is_a_blob_with_its_tail_inline(rig: Rig) -> None:
    outcome = await rig.call(lambda: print("x" * 100_000 + "end"))
    assert outcome.stdout.endswith(b"end\n") and len(outcome.stdout) == 65_536
    assert await rig.content(outcome.stdout_blob) == b"x" * 100_000 + b"end\n"
    assert (await rig.call(lambda: print("next"))).stdout == b"next\n"


async def test_process_state_is_put_back_after_each_task(rig: Rig) -> None:
    def spoils() -> str:
        import io

        os.environ["SPOILED"] = "yes"
        del os.environ["PATH"]
        with open("left", "w") as file:
            file.write("behind")
        os.chmod(".", 0o500)
        os.chdir("/")
        sys.stdout.close()
        sys.stderr = io.StringIO()
        sys.stdin = None  # type: ignore[assignment]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(1)
        os.umask(0o777)
        return os.environ["P2PC_SCRATCH"]

    def looks() -> tuple[Any, ...]:
        print("heard")
        state = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.alarm(0), os.umask(0)
        return os.environ.get("SPOILED"), "PATH" in os.environ, os.listdir("."), os.getcwd(), state

    first = await rig.call(spoils)
    assert first.status == OutcomeStatus.OK, first.error
    outcome = await rig.call(looks)
    spoiled, has_path, names, directory, state = load_value(outcome.value)
    assert state == (True, 0, 0o022)
    assert (spoiled, has_path, names) == (None, True, []) and directory.startswith(str(rig.directory))
    assert outcome.stdout == b"heard\n"


async def test_a_removed_directory_and_closed_descriptors_do_no_harm(rig: Rig) -> None:
    """A task that closes 0 to 2 or removes its directory must not hang the node or spoil the next task."""

    def wrecks() -> None:
        os.rmdir(os.getcwd())
        for fd in (0, 1, 2):
            os.close(fd)

    assert (await rig.call(wrecks)).status == OutcomeStatus.OK
    outcome = await rig.call(lambda: print("fine", os.getcwd()))
    assert outcome.status == OutcomeStatus.OK and outcome.stdout.startswith(b"fine ")


async def test_environment_of_a_task(rig: Rig) -> None:
    def looks() -> dict[str, str]:
        return dict(os.environ)

    os.environ["P2PC_TEST_SECRET"] = "not for tasks"
    try:
        spec = await rig.function(looks, env={"FROM_SPEC": "1", "OMP_NUM_THREADS": "7"}, cpus=2.0)
        payload = TaskPayload(args=pickle.dumps(((), {})), env={"FROM_TASK": "2"})
        runs = rig.batch(spec, [payload, call()], first_index=4)
        first, second = await rig.finish(runs, rig.begin(runs))
    finally:
        del os.environ["P2PC_TEST_SECRET"]
    env = load_value(first.value)
    assert env["FROM_SPEC"] == "1" and env["FROM_TASK"] == "2" and "P2PC_TEST_SECRET" not in env
    assert "FROM_TASK" not in load_value(second.value), "a task's variable stayed for the next task"
    assert env["P2PC_JOB_ID"] == runs[0].job_id.hex() and len(env["P2PC_TASK_ID"]) == 32
    assert (env["P2PC_INDEX"], env["PARALLEL_SEQ"], env["PARALLEL_JOBSLOT"]) == ("4", "5", "1")
    assert (env["P2PC_NODE"], env["P2PC_CPUS"]) == ("nova", "2")
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("7", "2")
    assert env["TMPDIR"] == env["P2PC_SCRATCH"] and "PYTHONPATH" not in env


async def test_random_numbers_follow_from_job_and_index(rig: Rig) -> None:
    """A task that runs again, elsewhere, must draw the same numbers; two tasks must not."""
    spec = await rig.function(lambda: random.random() + 1.0)
    runs = rig.batch(spec, [call(), call()])
    first, second = [load_value(o.value) for o in await rig.finish(runs, rig.begin(runs))]
    again = [load_value(o.value) for o in await rig.finish(runs, rig.begin(runs))]
    assert first != second and again == [first, second]


async def test_processes_left_behind_are_killed(rig: Rig) -> None:
    def leaves() -> list[int]:
        import subprocess

        one = subprocess.Popen(["sleep", "300"])
        text = "setsid sleep 300 >/dev/null 2>&1 & echo $!"
        away = subprocess.run(["sh", "-c", text], capture_output=True, check=True)
        return [one.pid, int(away.stdout)]

    pids = load_value((await rig.call(leaves)).value)
    await wait_for(lambda: not any(is_running(pid) for pid in pids), "nothing is left")


async def test_files_in_and_out_of_a_function(rig: Rig) -> None:
    def doubles() -> None:
        with open("in/data.txt") as source, open("out.txt", "w") as target:
            target.write(source.read() * 2)

    blob = await rig.blobs.put(b"ab")
    payload = TaskPayload(args=pickle.dumps(((), {})), send=(InputFile("in/data.txt", blob),), fetch=("*.txt",))
    (outcome,) = await rig.run(await rig.function(doubles), payload)
    (file,) = outcome.files
    assert file.name == "out.txt" and await rig.content((file.digest, file.size)) == b"abab"


async def test_memory_limit_is_a_memory_error_and_ends_with_the_task(rig: Rig) -> None:
    outcome = await rig.call(lambda: len(bytearray(4 << 30)), mem_bytes=1 << 30)
    assert outcome.status == OutcomeStatus.FAILED and "MemoryError" in outcome.error
    unlimited = await rig.call(lambda: __import__("resource").getrlimit(__import__("resource").RLIMIT_AS)[0])
    assert load_value(unlimited.value) == -1, "the limit of one job stays for the next"


async def test_cpu_limit_is_a_timeout_with_its_cause(rig: Rig) -> None:
    def spins() -> None:
        while True:
            pass

    outcome = await rig.call(spins, cpu_s=1.0)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "cpu")


async def test_file_size_limit_is_an_error_in_the_function(rig: Rig) -> None:
    def writes() -> None:
        with open("big", "wb") as file:
            file.write(b"x" * 100_000)

    outcome = await rig.call(writes, output_bytes_max=10_000)
    assert outcome.status == OutcomeStatus.FAILED and "File too large" in outcome.error


async def test_wall_limit_stops_a_function_that_ignores_signals(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignores() -> None:
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(100)

    monkeypatch.setattr("p2pcompute.execution.processes.KILL_GRACE_S", 0.2)
    spec = await rig.function(ignores, timeout_s=0.3)
    outcome, after = await rig.run(spec, call(), call())
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "wall") and "0.3 s" in outcome.error
    assert after.status == OutcomeStatus.NOT_RUN


async def test_code_that_is_gone_is_not_the_tasks_failure(rig: Rig) -> None:
    spec = await rig.function(lambda: 1)
    assert spec.code is not None
    path = rig.blobs.path(spec.code)
    runs = rig.batch(spec, [call()])
    assert path is not None
    outcomes = rig.begin(runs)
    os.unlink(path)  # the worker process is still starting
    (outcome,) = await rig.finish(runs, outcomes)
    assert outcome.status == OutcomeStatus.NOT_RUN
    (missing,) = await rig.run(spec, call())
    assert missing.status == OutcomeStatus.NOT_RUN and "not on this node" in missing.error


async def test_malformed_descriptions_are_refused(rig: Rig) -> None:
    spec = await rig.function(lambda: 1)
    (run,) = rig.batch(spec, [call()])
    for bad in (
        type(run)(run.run_id + 1, b"j" * 32, b"\xa1", 0, run.payload, 1),
        type(run)(run.run_id + 2, run.job_id, run.spec, 0, b"junk", 1),
    ):
        (outcome,) = await rig.finish([bad], rig.begin([bad]))
        assert outcome.status == OutcomeStatus.REFUSED and outcome.error
    simulated: Any = "simulated"
    (outcome,) = await rig.run(JobSpec(kind=simulated), TaskPayload())
    assert outcome.status == OutcomeStatus.REFUSED and "simulated" in outcome.error


async def test_many_jobs_in_turn_keep_their_own_function(rig: Rig) -> None:
    """More jobs than a worker process remembers: a forgotten one must be told again, never mixed up."""
    specs = [await rig.function(eval(f"lambda: {number}")) for number in range(40)]
    for _ in range(2):
        for number, spec in enumerate(specs):
            runs = rig.batch(spec, [call()])
            (outcome,) = await rig.finish(runs, rig.begin(runs))
            assert load_value(outcome.value) == number
    await wait_for(lambda: len(rig.worker_pids()) == 1, "one worker process")
