"""What running tasks have printed so far."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import cloudpickle
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import messages
from p2pcompute.execution.progress import parse as parse_progress
from p2pcompute.execution.results import Tail, parse_tail
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import OutcomeStatus, TaskRun
from tests.execution.conftest import Rig, call
from tests.sandboxes import need_sandbox

module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """A sandbox outlives its test on purpose."""


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    """Sandboxes cannot import this module."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["own", "sandboxed"])
async def boxed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    if request.param == "sandboxed":
        need_sandbox()
    made = Rig(tmp_path_factory.mktemp("tails"))
    await made.runner.start()
    batch = made.batch
    submitter = b"a" * 32 if request.param == "sandboxed" else b""

    def batch_of(*args: object) -> list[TaskRun]:
        return [replace(run, submitter=submitter) for run in batch(*args)]  # type: ignore[arg-type]

    made.batch = batch_of  # type: ignore[assignment]
    yield made
    await made.runner.close()
    made.blobs.shut()


async def look(rig: Rig, run_id: int, offsets: tuple[int, int], until: bytes) -> Tail:
    """Look until the task has printed this."""
    found: list[Tail | None] = [None]

    async def once() -> bool:
        found[0] = await rig.runner.tail(run_id, offsets)
        return found[0] is not None and until in found[0][0][1] + found[0][1][1]

    deadline = time.monotonic() + 20.0
    while not await once():
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)
    assert found[0] is not None
    return found[0]


def prints() -> int:
    import sys
    import time

    print("begun")
    print("trouble", file=sys.stderr)
    while True:
        time.sleep(0.02)


@module_loop
@pytest.mark.parametrize("kind", ["function", "command"])
async def test_a_running_task_shows_what_it_printed(boxed: Rig, kind: str) -> None:
    """From any offset, without waiting for its end; once it has ended there is nothing to ask."""
    if kind == "function":
        spec, payload = await boxed.function(prints), call()
    else:
        text = "echo begun; echo trouble >&2; sleep 60"
        spec, payload = JobSpec(kind=TaskKind.SHELL), TaskPayload(argv=(text,))
    runs = boxed.batch(spec, [payload])
    outcomes = boxed.begin(runs)
    await look(boxed, runs[0].run_id, (0, 0), b"trouble")
    assert await look(boxed, runs[0].run_id, (0, 0), b"begun") == ((0, b"begun\n"), (0, b"trouble\n"), b"")
    assert await boxed.runner.tail(runs[0].run_id, (3, 99)) == ((3, b"un\n"), (8, b""), b"")
    assert await boxed.runner.tail(runs[0].run_id + 1, (0, 0)) is None
    boxed.runner.kill([runs[0].run_id])
    (outcome,) = await boxed.finish(runs, outcomes)
    assert outcome.status is OutcomeStatus.KILLED
    assert await boxed.runner.tail(runs[0].run_id, (0, 0)) is None


@module_loop
async def test_a_function_says_how_far_it_is(boxed: Rig) -> None:
    """While it runs; the next one begins with nothing said."""

    def work(is_first: bool) -> None:
        from p2pcompute import progress

        if is_first:
            progress(1, 4, "begun")
        print("ready")
        while True:
            time.sleep(0.02)

    spec = await boxed.function(work)
    for is_first in (True, False):
        runs = boxed.batch(spec, [call(is_first)])
        outcomes = boxed.begin(runs)
        _, _, said = await look(boxed, runs[0].run_id, (0, 0), b"ready")
        assert parse_progress(said) == ((1.0, 4.0, "begun") if is_first else None)
        boxed.runner.kill([runs[0].run_id])
        await boxed.finish(runs, outcomes)


@given(st.binary(max_size=300))
def test_junk_instead_of_progress(junk: bytes) -> None:
    found = parse_progress(junk)
    assert found is None or ((found[1] is None or found[1] >= 0) and len(found[2]) <= len(junk))


@module_loop
async def test_of_much_output_there_is_the_end(boxed: Rig) -> None:
    size = messages.TAIL_BYTES_MAX * 3
    text = f"head -c {size} /dev/zero; echo end >&2; sleep 60"
    runs = boxed.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,))])
    outcomes = boxed.begin(runs)
    (start, data), _, _ = await look(boxed, runs[0].run_id, (0, 0), b"end\n")
    assert (start, len(data)) == (size - messages.TAIL_BYTES_MAX, messages.TAIL_BYTES_MAX)
    boxed.runner.kill([runs[0].run_id])
    await boxed.finish(runs, outcomes)


@given(junk=st.binary(max_size=60))
def test_junk_from_a_worker_process(junk: bytes) -> None:
    try:
        serial, ((_, stdout), (_, stderr), said) = parse_tail(bytes([messages.TAIL]) + junk)
    except RemoteProtocolError:
        return
    assert serial >= 0 and len(stdout) + len(stderr) + len(said) <= len(junk)
