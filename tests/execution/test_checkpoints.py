"""What a task has saved: how it reaches the node, and how the next attempt goes on from it."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

import p2pcompute
from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import checkpoints, messages
from p2pcompute.execution.checkpoints import pack_directory, unpack_directory
from p2pcompute.execution.functions import load_value
from p2pcompute.execution.results import parse_saved
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import Outcome, OutcomeStatus, TaskRun
from tests.execution.conftest import Rig, call, wait_for
from tests.sandboxes import need_sandbox

module_loop = pytest.mark.asyncio(loop_scope="module")
ADA = b"a" * 32


class Saving(Rig):
    """A rig that keeps what tasks save; tasks are ours, or another installation's."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.submitter = b""
        self.saved: dict[int, list[bytes]] = {}
        self.runner.on_saved = lambda run_id, cookie: self.saved.setdefault(run_id, []).append(cookie)

    def runs(self, spec: JobSpec, payload: TaskPayload, cookie: bytes = b"") -> list[TaskRun]:
        return [replace(run, submitter=self.submitter, cookie=cookie) for run in self.batch(spec, [payload])]

    async def once(self, spec: JobSpec, payload: TaskPayload, cookie: bytes = b"") -> tuple[Outcome, list[bytes]]:
        """Run one attempt to its end; return its outcome and its cookies."""
        runs = self.runs(spec, payload, cookie)
        (outcome,) = await self.finish(runs, self.begin(runs))
        return outcome, self.saved.get(runs[0].run_id, [])

    async def killed(self, spec: JobSpec, payload: TaskPayload, cookie: bytes = b"") -> tuple[Outcome, list[bytes]]:
        """Stop an attempt once it has saved something."""
        runs = self.runs(spec, payload, cookie)
        outcomes = self.begin(runs)
        await wait_for(lambda: bool(self.saved.get(runs[0].run_id)), "it has saved")
        self.runner.kill([runs[0].run_id])
        (outcome,) = await self.finish(runs, outcomes)
        return outcome, self.saved[runs[0].run_id]


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    """Sandboxes cannot import this module."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["own", "sandboxed"])
async def saving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Saving]:
    if request.param == "sandboxed":
        need_sandbox()
    made = Saving(tmp_path_factory.mktemp("saving"))
    made.submitter = ADA if request.param == "sandboxed" else b""
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """A sandbox outlives its test on purpose."""


def counts(steps: int, pause_s: float) -> list[int]:
    """Count on from what was saved; returns where this attempt began and where it ended."""
    import time

    from p2pcompute import checkpoint

    first = at = checkpoint() or 0
    while at < steps:
        time.sleep(pause_s)
        at += 1
        checkpoint(at)
    return [first, at]


@module_loop
async def test_a_function_goes_on_from_its_last_state(saving: Saving) -> None:
    """Stopped, it saves once more at its next checkpoint; the next attempt begins exactly there."""
    spec = await saving.function(counts)
    outcome, cookies = await saving.killed(spec, call(200, 0.05))
    assert outcome.status is OutcomeStatus.KILLED, outcome
    reached = load_value(cookies[-1])[1]
    assert 0 < reached < 200
    outcome, more = await saving.once(spec, call(reached + 3, 0.0), cookies[-1])
    assert outcome.status is OutcomeStatus.OK and load_value(outcome.value) == [reached, reached + 3]
    assert len(more) == 1, "no more than one in SEND_S"


@module_loop
async def test_what_cannot_be_read_is_as_if_there_were_none(saving: Saving) -> None:
    spec = await saving.function(counts)
    outcome, _ = await saving.once(spec, call(2, 0.0), b"junk")
    assert load_value(outcome.value) == [0, 2]
    outcome, _ = await saving.once(JobSpec(kind=TaskKind.SHELL), shell("ls $P2PC_CHECKPOINT"), b"junk")
    assert (outcome.status, outcome.stdout) == (OutcomeStatus.OK, b""), outcome


def too_much() -> None:
    p2pcompute.checkpoint(bytes(checkpoints.COOKIE_BYTES_MAX + 1))


@module_loop
async def test_a_state_that_is_too_large_says_so(saving: Saving) -> None:
    outcome, cookies = await saving.once(await saving.function(too_much), call())
    assert outcome.status is OutcomeStatus.FAILED and "keep less in it" in outcome.error and not cookies


def shell(text: str) -> TaskPayload:
    return TaskPayload(argv=(text,))


@module_loop
async def test_a_command_goes_on_elsewhere(saving: Saving) -> None:
    """Exit code 85 with something saved is no failure: the next attempt finds the files."""
    spec = JobSpec(kind=TaskKind.SHELL)
    text = (
        'cd "$P2PC_CHECKPOINT"; cat at 2>/dev/null && exit; echo one > .at; mv .at at; '
        "mkdir below; ln -s /etc/passwd link; exit 85"
    )
    outcome, cookies = await saving.once(spec, shell(text))
    assert (outcome.status, outcome.cause, outcome.exit_code) == (OutcomeStatus.KILLED, "moved", 85), outcome
    assert len(cookies) == 1 and b"passwd" not in cookies[0]
    first = cookies[0]
    outcome, cookies = await saving.once(spec, shell(text), cookies[0])
    assert (outcome.status, outcome.stdout, cookies) == (OutcomeStatus.OK, b"one\n", []), outcome
    again = 'cd "$P2PC_CHECKPOINT"; cp at .at; mv .at at; exit 85'
    outcome, same = await saving.once(spec, shell(again), first)
    assert (outcome.cause, same) == ("moved", []), "the same state again is no progress: that has an end"
    outcome, cookies = await saving.once(spec, shell("exit 85"))
    assert outcome.status is OutcomeStatus.FAILED and not cookies, "nothing was saved: an exit code like others"
    assert "no file in P2PC_CHECKPOINT" in outcome.error


@module_loop
async def test_a_command_saves_while_it_runs_and_when_it_is_told_to_go(saving: Saving) -> None:
    text = (
        'trap "echo last > $P2PC_CHECKPOINT/.b; mv $P2PC_CHECKPOINT/.b $P2PC_CHECKPOINT/at; exit 85" TERM; '
        'echo first > "$P2PC_CHECKPOINT/.a"; mv "$P2PC_CHECKPOINT/.a" "$P2PC_CHECKPOINT/at"; '
        "while :; do sleep 0.05; done"
    )
    outcome, cookies = await saving.killed(JobSpec(kind=TaskKind.SHELL), shell(text))
    assert outcome.status is OutcomeStatus.KILLED
    assert b"first" in cookies[0] and b"last" in cookies[-1] and len(cookies) == 2


@module_loop
async def test_too_many_files_are_a_failure_that_says_so(saving: Saving) -> None:
    text = 'cd "$P2PC_CHECKPOINT"; for i in $(seq 70); do : > $i; done; exit 85'
    outcome, cookies = await saving.once(JobSpec(kind=TaskKind.SHELL), shell(text))
    assert outcome.status is OutcomeStatus.FAILED and "64 files" in outcome.error and not cookies


@module_loop
async def test_the_next_task_does_not_see_what_another_has_saved(saving: Saving) -> None:
    spec = JobSpec(kind=TaskKind.SHELL)
    payloads = [shell('echo x > "$P2PC_CHECKPOINT/x"'), shell('ls -a "$P2PC_CHECKPOINT"')]
    runs = [replace(run, submitter=saving.submitter) for run in saving.batch(spec, payloads)]
    _, second = await saving.finish(runs, saving.begin(runs))
    assert second.stdout.split() == [b".", b".."]


def test_outside_of_a_task_nothing_happens() -> None:
    checkpoints.use(None)
    assert p2pcompute.checkpoint() is None and p2pcompute.checkpoint(5) == 5 and p2pcompute.checkpoint() is None


@given(files=st.dictionaries(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.]{0,9}", fullmatch=True), st.binary(max_size=99)))
def test_files_come_back_as_they_were(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    source, target = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for name, data in files.items():
        (source / name).write_bytes(data)
    unpack_directory(pack_directory(str(source)), str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files


FORGED = [(b"a", b"a"), (b"n" * 256,), (b"../a",), (b".",), (b"a/b",), (b"a\0b",), (b"\xff",), (b"",)]


@pytest.mark.parametrize("names", FORGED)
def test_forged_files_are_no_checkpoint(names: tuple[bytes, ...], tmp_path: Path) -> None:
    """Broken: names that no node can write let a task begin on none of them, and so never."""
    cookie = b"".join(struct.pack(">HHQ", len(name), 0o644, 1) + name + b"x" for name in names)
    with pytest.raises(ValueError, match="not the files"):
        unpack_directory(cookie, str(tmp_path))


@given(junk=st.binary(max_size=200))
def test_junk_makes_no_files_elsewhere(junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a hostile node returns as a cookie: files below the directory, or ValueError."""
    base = tmp_path_factory.mktemp("junk")
    (base / "in").mkdir()
    for cookie in (junk, checkpoints._FILE.pack(len(b"../x"), 0o644, 1) + b"../xy"):
        try:
            unpack_directory(cookie, str(base / "in"))
        except (ValueError, FileExistsError):
            continue
    assert os.listdir(base) == ["in"]


@given(junk=st.binary(max_size=40))
def test_junk_from_a_worker_process(junk: bytes) -> None:
    try:
        run_id, cookie = parse_saved(bytes([messages.SAVED]) + junk)
    except RemoteProtocolError:
        return
    assert run_id >= 0 and cookie
