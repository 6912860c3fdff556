"""WASI modules: what they see, that it is the same everywhere, how they end, and what is no module."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from p2pcompute.execution import sandbox
from p2pcompute.execution.levels import Level
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.sandbox_trial import isolation, try_fence
from p2pcompute.execution.spec import InputFile, JobSpec, TaskKind, TaskPayload
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus
from tests.execution.conftest import Rig
from tests.execution.test_sandbox import Boxed
from tests.sandboxes import need_sandbox

wasmtime = pytest.importorskip("wasmtime")
pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
WASI = "wasi_snapshot_preview1"
IMPORTS = (
    "".join(
        f'(import "{WASI}" "{name}" (func ${name} (param {kinds}) (result i32)))'
        for name, kinds in (
            ("fd_write", "i32 i32 i32 i32"),
            ("fd_read", "i32 i32 i32 i32"),
            ("random_get", "i32 i32"),
            ("clock_time_get", "i32 i64 i32"),
            ("poll_oneoff", "i32 i32 i32 i32"),
            ("args_sizes_get", "i32 i32"),
            ("args_get", "i32 i32"),
            ("environ_sizes_get", "i32 i32"),
            ("environ_get", "i32 i32"),
            ("fd_readdir", "i32 i32 i32 i64 i32"),
            ("path_filestat_get", "i32 i32 i32 i32 i32"),
            ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
        )
    )
    + f'(import "{WASI}" "proc_exit" (func $exit (param i32)))'
)
PUT = """
  (func $put (param $fd i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $open (param $at i32) (param $size i32) (param $how i32) (result i32)
    (drop (call $path_open (i32.const 3) (i32.const 0) (local.get $at) (local.get $size) (local.get $how)
      (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 12)))
    (i32.load (i32.const 12)))
"""


def module(body: str, *, pages: int = 4, more: str = "") -> bytes:
    """A program with the given main function."""
    text = f'(module {IMPORTS} (memory (export "memory") {pages}) {PUT} {more} (func (export "_start") {body}))'
    return bytes(wasmtime.wat2wasm(text))


LOOK = module(
    """
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $args_get (i32.const 64) (i32.const 1024)))
    (call $put (i32.const 1) (i32.const 1024) (i32.load (i32.const 20)))
    (drop (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $environ_get (i32.const 64) (i32.const 1024)))
    (call $put (i32.const 1) (i32.const 1024) (i32.load (i32.const 20)))
    (drop (call $random_get (i32.const 1024) (i32.const 100000)))
    (call $put (i32.const 1) (i32.const 1024) (i32.const 100000))
    (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 1024)))
    (i64.store (i32.const 1056) (i64.const 3600000000000)) ;; an hour, of the monotonic clock
    (i32.store (i32.const 1048) (i32.const 1))
    (i32.store (i32.const 1032) (i32.const 7)) (i32.store (i32.const 1040) (i32.const 0))
    (drop (call $poll_oneoff (i32.const 1032) (i32.const 2048) (i32.const 1) (i32.const 2040)))
    (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 2100)))
    (call $put (i32.const 1) (i32.const 1024) (i32.const 1100))
    (drop (call $fd_readdir (i32.const 3) (i32.const 1024) (i32.const 8192) (i64.const 0) (i32.const 16)))
    (call $put (i32.const 1) (i32.const 1024) (i32.load (i32.const 16)))
    (drop (call $path_filestat_get (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 2) (i32.const 1024)))
    (call $put (i32.const 1) (i32.const 1024) (i32.const 64))
    (f64.store (i32.const 1024) (f64.div (f64.const 0) (f64.const 0)))
    (call $put (i32.const 1) (i32.const 1024) (i32.const 8))
    """,
    more='(data (i32.const 32) "in")',
)
COPY = module(
    """
    (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $put (call $open (i32.const 32) (i32.const 3) (i32.const 9)) (i32.const 1024) (i32.load (i32.const 8)))
    (call $put (i32.const 2) (i32.const 1024) (i32.load (i32.const 8)))
    """,
    more='(data (i32.const 32) "out")',
)
FOREIGN = b"\x7fELF\2\1\1" + bytes(9) + (2).to_bytes(2, "little") + (243).to_bytes(2, "little") + bytes(44)
"""A program for another machine."""
FOREVER = module("(loop (br 0))")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Boxed]:
    need_sandbox()
    made = Boxed(tmp_path_factory.mktemp("boxed"))
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fenced(boxed: Boxed, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Boxed]:
    """A machine without sandboxes."""
    made = Boxed(tmp_path_factory.mktemp("fenced"))
    made.runner = ProcessRunner(made.blobs, made.directory, 1, RealClock(), node_name="atlas", others=Level.WASM)
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()
    assert sorted(os.listdir(made.directory)) == ["shared"], "a fenced worker's directory was left behind"


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Engines outlive their tests on purpose; `started_rig` looks at the end."""


async def job(rig: Rig, code: bytes, **limits: object) -> JobSpec:
    return JobSpec(kind=TaskKind.WASM, code=await rig.blobs.put(code), **limits)  # type: ignore[arg-type]


async def one(rig: Rig, code: bytes, *words: str, **limits: object) -> Outcome:
    (outcome,) = await rig.run(await job(rig, code, **limits), TaskPayload(argv=("x.wasm", *words)))
    return outcome


async def test_same_everywhere(shared_rig: Rig, boxed: Boxed, fenced: Boxed) -> None:
    """Words, variables, chance, time, sleep, directory, inodes, dates and NaN: one answer everywhere."""
    seen = []
    for each in (shared_rig, boxed, fenced):
        files = [InputFile(name, await each.blobs.put(name.encode())) for name in ("z", "in", "a", "m/n")]
        spec = await job(each, LOOK, env={"KEY": "value"}, share=(files[0],))
        payload = TaskPayload(argv=("x.wasm", "a b"), send=tuple(files[1:]))
        each.jobs = 99
        for turn in range(2):
            each.jobs -= turn
            first, second = await each.run(spec, payload, payload)
            assert (first.status, second.status) == (OutcomeStatus.OK, OutcomeStatus.OK), (first, second)
            assert first.peak_rss_bytes == 4 * 65536
            seen.append([await output(each, outcome) for outcome in (first, second)])
    assert seen[1:] == seen[:1] * 5
    first_text, second_text = seen[0]
    assert first_text != second_text, "tasks of a job have chances of their own"
    assert first_text.startswith(b"x.wasm\0a b\0") and b"KEY=value\0" in first_text
    assert not any(word in first_text for word in (b"PATH=", b"HOME=", b"P2PC_NODE=", b"JOBSLOT"))


async def output(rig: Rig, outcome: Outcome) -> bytes:
    return outcome.stdout if outcome.stdout_blob is None else await rig.blobs.read(BlobRef(*outcome.stdout_blob))


@pytest.mark.parametrize("level", ["process", "sandbox", "wasm"])
async def test_files_and_streams(level: str, shared_rig: Rig, boxed: Boxed, fenced: Boxed) -> None:
    """Standard input, standard error and files that come back; a warm module is not compiled again."""
    rig = {"process": shared_rig, "sandbox": boxed, "wasm": fenced}[level]
    payload = TaskPayload(argv=("x.wasm",), stdin=b"hello", fetch=("out",))
    large = TaskPayload(argv=("x.wasm",), stdin_blob=await rig.blobs.put(b"h" * 4096), fetch=("o*",))
    outcomes = await rig.run(await job(rig, COPY), payload, large, payload)
    for outcome, content in zip(outcomes, (b"hello", b"h" * 4096, b"hello"), strict=True):
        assert (outcome.status, outcome.stderr, outcome.exit_code) == (OutcomeStatus.OK, content, 0), outcome
        ((name, digest, size),) = [(file.name, file.digest, file.size) for file in outcome.files]
        assert name == "out" and await rig.content((digest, size)) == content
    assert outcomes[2].cpu_s < outcomes[0].cpu_s / 3, "it was compiled once"


async def test_nothing_else_is_there(boxed: Boxed) -> None:
    """No file of the machine, and nothing above its directory."""
    for path in ("/etc/passwd", "../passwd", "/p2pc/wasm"):
        body = f"(call $exit (i32.add (i32.const 1) (call $open (i32.const 32) (i32.const {len(path)}) (i32.const 0))))"
        outcome = await one(boxed, module(body, more=f'(data (i32.const 32) "{path}")'))
        assert outcome.exit_code == 1, "nothing was opened"


@pytest.mark.parametrize(
    ("code", "limits", "words"),
    [
        (b"\0asm\1\0\0\0\xff\xff", {}, ("broken", "compile it again")),
        (b"\0asm\x0d\0\1\0", {}, ("component (WASI preview 2", "wasm32-wasip1")),
        (FOREIGN, {}, ("a program for riscv64", "--kind command")),
        (b"", {}, ("no WebAssembly module",)),
        ('(module (import "env" "frob" (func)) (func (export "_start")))', {}, ("imports env.frob", "preview 1")),
        ('(module (import "wasi_unstable" "fd_write" (func)))', {}, ("preview 0",)),
        ('(module (func (export "add")))', {}, ("no '_start'", "main function")),
        ('(module (memory 1000) (func (export "_start")))', {"mem_bytes": 32 * MIB}, ("32 MiB", "--mem")),
        ('(module (memory i64 1) (func (export "_start")))', {}, ("broken",)),
        ('(module (func (export "_start") unreachable))', {}, ("trap", "unreachable")),
        ('(module (func $f (export "_start") (call $f)))', {}, ("trap", "stack")),
        ('(module (func (export "_start") (loop (br 0))))', {"fuel": 10_000_000}, ("10000000 instructions", "--fuel")),
    ],
)
async def test_bad_modules(
    shared_rig: Rig, code: bytes | str, limits: dict[str, object], words: tuple[str, ...]
) -> None:
    """What fails the same way on every node says what, why and what to do, and is not tried elsewhere."""
    data = code if isinstance(code, bytes) else bytes(wasmtime.wat2wasm(code))
    for outcome in (await one(shared_rig, data, **limits), await one(shared_rig, data, **limits)):
        assert (outcome.status, outcome.cause) == (OutcomeStatus.FAILED, FAILS_ALWAYS), outcome
        assert all(word in outcome.error for word in words), outcome.error


async def test_exit_code_and_missing_output(shared_rig: Rig) -> None:
    """An exit code is a result of the module; an output that it did not write is missed everywhere."""
    outcome = await one(shared_rig, module("(call $exit (i32.const 7))"))
    assert (outcome.exit_code, outcome.cause, outcome.status) == (7, FAILS_ALWAYS, OutcomeStatus.FAILED)
    assert (await one(shared_rig, module("(call $exit (i32.const 0))"))).status is OutcomeStatus.OK
    spec = await job(shared_rig, COPY)
    (outcome,) = await shared_rig.run(spec, TaskPayload(argv=("x",), fetch=("nothing*",)))
    assert (outcome.status, outcome.cause) == (OutcomeStatus.FAILED, FAILS_ALWAYS)
    assert "no output file matches 'nothing*'" in outcome.error and "--fetch" in outcome.error


@pytest.mark.parametrize("level", ["process", "sandbox", "wasm"])
async def test_limits(level: str, shared_rig: Rig, boxed: Boxed, fenced: Boxed) -> None:
    """A module that does not end is killed, as is one that is told to; the next task is none the worse."""
    rig = {"process": shared_rig, "sandbox": boxed, "wasm": fenced}[level]
    outcome = await one(rig, FOREVER, timeout_s=0.5)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "wall"), outcome
    assert outcome.error == "the module did not end within 0.5 s and was stopped"
    outcome = await one(rig, FOREVER, cpu_s=1.0)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "cpu"), outcome
    runs = rig.batch(await job(rig, FOREVER), [TaskPayload(argv=("x",))])
    found = rig.begin(runs)
    rig.runner.kill([runs[0].run_id])
    assert (await rig.finish(runs, found))[0].status is OutcomeStatus.KILLED
    grow = module("(call $exit (i32.eq (memory.grow (i32.const 2000)) (i32.const -1)))")
    outcomes = [await one(rig, grow, mem_bytes=64 * MIB), await one(rig, grow)]
    assert [outcome.exit_code for outcome in outcomes] == [1, 0], outcomes
    spec = await job(rig, COPY)
    (outcome,) = await rig.run(spec, TaskPayload(argv=("x",), stdin=b"again"))
    assert outcome.stderr == b"again"


async def test_a_module_has_one_memory(shared_rig: Rig, boxed: Boxed, fenced: Boxed) -> None:
    """Each would have the limit for itself; and one that cannot be started is not tried for ever."""
    code = bytes(wasmtime.wat2wasm('(module (memory 8000) (memory 8000) (func (export "_start")))'))
    for rig in (shared_rig, boxed, fenced):
        outcome = await one(rig, code)
        assert (outcome.status, outcome.cause) == (OutcomeStatus.FAILED, FAILS_ALWAYS), outcome.error
        assert "multiple memories" in outcome.error


async def test_a_machine_that_is_short_of_memory_for_a_module_fails_the_task(boxed: Boxed) -> None:
    code = module("", pages=30000)
    outcome = await one(boxed, code, mem_bytes=2048 * MIB, disk_bytes=MIB)
    assert outcome.status in (OutcomeStatus.OK, OutcomeStatus.FAILED), outcome.error


async def test_fence(fenced: Boxed) -> None:
    """Where there is no sandbox, the process of a module is nobody's, has given up all rights, and stops between tasks;
    what is no module is refused, and what fills the disk is ended."""
    try_fence()
    assert (await one(fenced, COPY)).status is OutcomeStatus.OK
    (engine,) = [
        each
        for each in psutil.Process().children(recursive=True)
        if "wasm_engine" in " ".join(each.cmdline()) and each.cwd().startswith(str(fenced.directory))
    ]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines())
    assert engine.status() == psutil.STATUS_STOPPED, "nothing changes under what is collected"
    assert int(status["Uid"].split()[0]) == (os.getuid() or int(status["Uid"].split()[0])) != 0
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16) * (os.getuid() == 0)) == ("1", "2", 0)
    outcome = await fenced.shell("id")
    assert outcome.status is OutcomeStatus.REFUSED and "WASI modules" in outcome.error
    fill = module(
        "(local $fd i32) (local.set $fd (call $open (i32.const 32) (i32.const 3) (i32.const 9)))"
        "(loop (call $put (local.get $fd) (i32.const 1024) (i32.const 1000000)) (br 0))",
        pages=20,
        more='(data (i32.const 32) "out")',
    )
    outcome = await one(fenced, fill, disk_bytes=64 * MIB)
    assert outcome.status is not OutcomeStatus.OK and outcome.runtime_s < 10, outcome
    assert (await one(fenced, COPY)).status is OutcomeStatus.OK


async def test_who_wants_a_sandbox_gets_the_fence_where_that_is_one(
    fenced: Boxed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may say that it wants to be shut in: for a module, the fence is that, with or without bubblewrap."""

    def nowhere() -> str:
        raise sandbox.NoSandbox("no bubblewrap", "install it")

    monkeypatch.setattr(sandbox, "find_bubblewrap", nowhere)
    for submitter in (fenced.submitter, b""):
        monkeypatch.setattr(fenced, "submitter", submitter)
        outcome = await one(fenced, LOOK, sandbox="sandbox")
        assert outcome.status is OutcomeStatus.OK, outcome
    (outcome,) = await fenced.run(JobSpec(kind=TaskKind.SHELL, sandbox="sandbox"), TaskPayload(argv=("true",)))
    assert outcome.status is OutcomeStatus.REFUSED and "no bubblewrap" in outcome.error, "nothing else has a fence"


async def test_machines_without_sandboxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take modules, unless their owner takes nothing; who wants modules alone gets them in sandboxes, too."""
    assert [isolation(accept, ()).level for accept in ("none", "all")] == [Level.NONE, Level.PROCESS]
    assert isolation("wasm", ()).only_wasm

    def nothing(hidden: object = ()) -> int:
        raise sandbox.NoSandbox("no bubblewrap", "install it")

    monkeypatch.setattr("p2pcompute.execution.sandbox_trial.try_sandbox", nothing)
    for accept in ("wasm", "sandboxed"):
        found = isolation(accept, ())
        assert (found.level, found.only_wasm, found.fix) == (Level.WASM, True, "install it")


async def test_program_for_another_machine(shared_rig: Rig) -> None:
    """A command that cannot run on this machine says which one it is for."""
    file = InputFile("prog", await shared_rig.blobs.put(FOREIGN), 0o755)
    (outcome,) = await shared_rig.run(JobSpec(kind=TaskKind.COMMAND), TaskPayload(argv=("./prog",), send=(file,)))
    assert outcome.exit_code == 126 and "a program for riscv64" in outcome.error, outcome.error
