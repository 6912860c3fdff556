"""Real processes and real blobs; every test fails that leaves a process or a file descriptor behind."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import pytest_asyncio

from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import Outcome, TaskRun

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition with a deadline, without an event loop."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.005)


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.005)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def open_fds() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return names


def worker_pids() -> list[int]:
    """Worker processes that are our children."""
    return [child.pid for child in psutil.Process().children() if _is_worker(child)]


def _is_worker(child: psutil.Process) -> bool:
    try:
        while not (words := child.cmdline()):  # it has no words yet in the moment in which it becomes another program
            time.sleep(0.001)
    except psutil.NoSuchProcess:  # a zombie too, which a test before this one may have left when it failed
        return False
    return "p2pcompute.execution.child" in words


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail when a test leaves children or descriptors behind; a rig that tests share may have its worker process."""
    gc.collect()
    before, workers_before = open_fds(), worker_pids()
    others_before = {child.pid for child in psutil.Process().children()} - set(workers_before)
    yield
    gc.collect()
    workers = worker_pids()
    assert len(workers) <= max(1, len(workers_before))
    assert {child.pid for child in psutil.Process().children()} - set(workers) <= others_before
    after = open_fds()
    new_workers = max(0, len(workers) - len(workers_before))
    assert len(after) <= len(before) + 3 * new_workers, sorted(set(after) - set(before))


class Rig:
    """A runner with its blob store, and short ways to run things on it."""

    def __init__(self, directory: Path, slot_count: int = 1) -> None:
        self.directory = directory / "runner"
        self.blobs = FileBlobs(directory / "blobs")
        self.runner = ProcessRunner(self.blobs, self.directory, slot_count, RealClock(), node_name="nova")
        self.serial = 0
        self.jobs = 0

    def batch(self, spec: JobSpec, payloads: Sequence[TaskPayload], first_index: int = 0) -> list[TaskRun]:
        self.jobs += 1
        job_id, encoded = self.jobs.to_bytes(32, "big"), encode_spec(spec)
        runs = []
        for offset, payload in enumerate(payloads):
            self.serial += 1
            runs.append(TaskRun(self.serial, job_id, encoded, first_index + offset, encode_payload(payload), 1))
        return runs

    def begin(self, runs: Sequence[TaskRun], slot: int = 0) -> dict[int, Outcome]:
        """Start a batch; the dict fills itself."""
        outcomes: dict[int, Outcome] = {}

        def take(pairs: Sequence[tuple[int, Outcome]]) -> None:
            for run_id, outcome in pairs:
                assert run_id not in outcomes, "reported twice"
                outcomes[run_id] = outcome

        self.runner.run(slot, runs, take)
        return outcomes

    async def finish(self, runs: Sequence[TaskRun], outcomes: dict[int, Outcome]) -> list[Outcome]:
        await wait_for(lambda: len(outcomes) == len(runs), "all outcomes")
        return [outcomes[run.run_id] for run in runs]

    async def run(self, spec: JobSpec, *payloads: TaskPayload, slot: int = 0) -> list[Outcome]:
        runs = self.batch(spec, payloads)
        return await self.finish(runs, self.begin(runs, slot))

    async def function(self, function: Callable[..., Any], **limits: Any) -> JobSpec:
        code = await self.blobs.put(cloudpickle.dumps(function))
        return JobSpec(kind=TaskKind.FUNCTION, code=code, **limits)

    async def call(self, function: Callable[..., Any], *args: Any, **limits: Any) -> Outcome:
        (outcome,) = await self.run(await self.function(function, **limits), call(*args))
        return outcome

    async def shell(self, text: str, **fields: Any) -> Outcome:
        names = [name for name in fields if name in JobSpec.__dataclass_fields__ and name != "env"]
        limits = {name: fields.pop(name) for name in names}
        (outcome,) = await self.run(JobSpec(kind=TaskKind.SHELL, **limits), TaskPayload(argv=(text,), **fields))
        return outcome

    async def content(self, blob: tuple[bytes, int] | None) -> bytes:
        assert blob is not None
        return await self.blobs.read(BlobRef(*blob))

    def worker_pids(self) -> list[int]:
        return worker_pids()


def call(*args: Any, **kwargs: Any) -> TaskPayload:
    """The payload of one call."""
    return TaskPayload(args=cloudpickle.dumps((args, kwargs)))


async def started_rig(directory: Path) -> AsyncIterator[Rig]:
    """A started runner with one slot; checks at the end that it left nothing."""
    made = Rig(directory)
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()
    assert sorted(os.listdir(made.directory)) == ["shared"], "a worker's directory was left behind"
    assert worker_pids() == []


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A runner for one test."""
    async for made in started_rig(tmp_path):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """One runner for all tests of a module that do it no harm: also shows that tasks leave no trace."""
    async for made in started_rig(tmp_path_factory.mktemp("rig")):
        yield made
