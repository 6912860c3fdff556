"""Tasks of others in real sandboxes: what they see, how they end, what they leave, whose they are."""

from __future__ import annotations

import asyncio
import io
import os
import platform
import signal
import site
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import box_seccomp, messages, sandbox
from p2pcompute.execution.functions import load_exception, load_value
from p2pcompute.execution.levels import Level
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.results import parse_outputs
from p2pcompute.execution.sandbox_trial import isolation
from p2pcompute.execution.spec import InputFile, JobSpec, TaskKind, TaskPayload
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import OutcomeStatus, TaskRun
from tests.execution.conftest import Rig, call, wait_for
from tests.sandboxes import need_sandbox

MIB = 1 << 20
ADA, BOB = b"a" * 32, b"b" * 32


class Boxed(Rig):
    """A rig whose jobs are another installation's."""

    submitter = ADA

    def batch(self, spec: JobSpec, payloads: Sequence[TaskPayload], first_index: int = 0) -> list[TaskRun]:
        return [replace(run, submitter=self.submitter) for run in super().batch(spec, payloads, first_index)]


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    need_sandbox()


def boxes() -> list[psutil.Process]:
    """The sandboxes of this process."""
    return [child for child in psutil.Process().children() if "bwrap" in child.name()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Boxed]:
    made = Boxed(tmp_path_factory.mktemp("boxed"))
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()
    assert sorted(os.listdir(made.directory)) == ["shared"], "a sandbox's directory was left behind"
    assert not boxes()


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """A sandbox outlives its test on purpose; the fixture above looks at the end."""


async def test_command(boxed: Boxed) -> None:
    """Files in, files out, large output, exit code, resource use; nothing of this machine's user."""
    data = os.urandom(3 * MIB)
    ref = await boxed.blobs.put(data)
    shared = await boxed.blobs.put(b"shared")
    spec = JobSpec(kind=TaskKind.SHELL, share=(InputFile("d/s", shared),))
    text = "cat d/s in; mkdir out; cat in in > out/o; id -u >&2; pwd >&2"
    payload = TaskPayload(argv=(text,), send=(InputFile("in", ref, 0o755),), fetch=("out/*",), stdin=b"hello")
    first, second = await boxed.run(spec, payload, payload)
    for outcome in (first, second):
        assert outcome.status is OutcomeStatus.OK, outcome
        assert await boxed.content(outcome.stdout_blob) == b"shared" + data
        ((name, digest, size, _),) = [(f.name, f.digest, f.size, f.mode) for f in outcome.files]
        assert name == "out/o" and await boxed.content((digest, size)) == data * 2
        user, place = outcome.stderr.split()
        assert int(user) == (os.getuid() or int(user)) != 0 and place.startswith(b"/p2pc/")
        assert outcome.cpu_s > 0 and outcome.peak_rss_bytes > 0 and outcome.runtime_s > 0
    outcome = await boxed.shell("echo x; exit 7")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == (OutcomeStatus.FAILED, 7, b"x\n")
    outcome = await boxed.shell("cat", stdin=b"hello")
    assert outcome.stdout == b"hello"


async def test_a_fork_imports_nothing_of_ours(boxed: Boxed) -> None:
    """What each fork had to import to return its value would take longer than the fork."""

    def work() -> float:
        import sys

        def look(event: str, args: tuple[object, ...]) -> None:
            if event == "import":
                print("imported", args[0], file=sys.stderr)

        sys.addaudithook(look)
        return 1 / 3

    outcome = await boxed.call(work, digits=4)
    assert load_value(outcome.value) == 0.3333 and outcome.stderr == b"", outcome


async def test_archives_stay_where_they_are(boxed: Boxed) -> None:
    """The zip of a job's modules is read in its sandbox and unpacked nowhere: neither names that lead out of it nor a
    module of gigabytes do any harm."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.py", "VALUE = 7\n")
        for name in ("../escaped.py", "../../../../tmp/escaped.py", "/tmp/escaped.py"):
            archive.writestr(name, "VALUE = 8\n")
        with archive.open("bomb.py", "w", force_zip64=True) as bomb:
            for _ in range(1024):
                bomb.write(b"#" * MIB)
    assert len(made.getvalue()) < 4 * MIB

    def work(name: str) -> object:
        import importlib

        return importlib.import_module(name).VALUE

    spec = replace(await boxed.function(work, mem_bytes=256 * MIB), modules=await boxed.blobs.put(made.getvalue()))
    good, bomb_end, escaped, again = await boxed.run(spec, *map(call, ("good", "bomb", "escaped", "good")))
    assert load_value(good.value) == load_value(again.value) == 7, (good, again)
    assert bomb_end.status is OutcomeStatus.FAILED and bomb_end.runtime_s < 15, bomb_end
    assert escaped.status is OutcomeStatus.FAILED and "ModuleNotFoundError" in escaped.error, escaped
    assert not list(boxed.directory.parent.rglob("escaped*")) and not Path("/tmp/escaped.py").exists()


async def test_functions(boxed: Boxed) -> None:
    """Values, exceptions and output come back; imports are shared, changes are not."""

    def work(number: int) -> tuple[int, int, bool]:
        import sys

        print("out", number)
        is_first = not hasattr(sys, "visited")
        sys.visited = True  # type: ignore[attr-defined]
        if number == 3:
            raise ValueError("three")
        return number * 2, len(bytes(number * MIB)), is_first

    outcomes = await boxed.run(await boxed.function(work), *(call(number) for number in range(4)))
    for number, outcome in enumerate(outcomes[:3]):
        assert outcome.status is OutcomeStatus.OK, outcome
        assert load_value(outcome.value) == (number * 2, number * MIB, True), "each task is a fork of its own"
        assert outcome.stdout == b"out %d\n" % number
    assert outcomes[3].status is OutcomeStatus.FAILED and "ValueError: three" in outcomes[3].error
    assert isinstance(load_exception(outcomes[3].value), ValueError)
    (large,) = await boxed.run(await boxed.function(lambda: b"x" * MIB), call())
    assert load_value(await boxed.content(large.value_blob)) == b"x" * MIB


def _ends() -> list[tuple[Callable[[], object], dict[str, float], OutcomeStatus, str]]:
    """Functions, which travel by value as they are local, their limits, and how they must end."""

    def leave() -> None:
        os._exit(3)

    def crash() -> None:
        print("before", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def kill_the_holder() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    def sleep() -> None:
        time.sleep(60)

    def burn() -> None:
        while True:
            pass

    def hog() -> list[bytes]:
        return [bytes([number % 256]) * (1 << 20) for number in range(500)]

    return [
        (leave, {}, OutcomeStatus.DIED, "exit"),
        (crash, {}, OutcomeStatus.DIED, "signal"),
        (kill_the_holder, {}, OutcomeStatus.DIED, "signal"),
        (sleep, {"timeout_s": 0.5}, OutcomeStatus.TIMEOUT, "wall"),
        (burn, {"cpu_s": 1.0}, OutcomeStatus.TIMEOUT, "cpu"),
        (hog, {"mem_bytes": 128 * MIB}, OutcomeStatus.FAILED, ""),
    ]


@pytest.mark.parametrize(
    ("function", "limits", "status", "cause"), _ends(), ids=[function.__name__ for function, *_ in _ends()]
)
async def test_ends(
    boxed: Boxed, function: Callable[[], object], limits: dict[str, float], status: str, cause: str
) -> None:
    """The cause of each end is what was measured; another job works afterwards."""
    outcome = await boxed.call(function, **limits)
    assert (outcome.status, outcome.cause) == (status, cause), outcome
    if function.__name__ == "crash":
        assert outcome.signal == signal.SIGSEGV and outcome.stdout == b"before\n"
    if function.__name__ == "leave":
        assert outcome.exit_code == 3
    if function.__name__ == "hog":
        assert "MemoryError" in outcome.error


async def test_memory_of_all_processes_counts(boxed: Boxed) -> None:
    code = (
        "import os,time\nfor _ in range(8):\n if not os.fork():\n  k=bytearray(40<<20); time.sleep(60)\ntime.sleep(60)"
    )
    outcome = await boxed.shell(f"exec {sys.executable} -c '{code}'", mem_bytes=128 * MIB)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.FAILED, "oom"), outcome
    assert "128 MiB" in outcome.error and outcome.peak_rss_bytes > 128 * MIB


async def test_cpu_time_of_all_processes_counts(boxed: Boxed) -> None:
    outcome = await boxed.shell("for i in 1 2 3 4; do while :; do :; done & done; wait", cpu_s=1.0)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "cpu"), outcome
    assert "all its processes" in outcome.error


async def test_a_full_place_is_named(boxed: Boxed) -> None:
    outcome = await boxed.shell("head -c 90000000 /dev/zero > /tmp/x", disk_bytes=64 * MIB)
    assert outcome.status is OutcomeStatus.FAILED and "64 MiB" in outcome.error and "--disk" in outcome.error, outcome
    outcome = await boxed.shell("i=0; while : > $i; do i=$((i+1)); done; exit 1")
    assert outcome.status is OutcomeStatus.FAILED and "as many files" in outcome.error, outcome
    outcome = await boxed.shell("exec truncate -s 10T x")
    assert outcome.status is OutcomeStatus.FAILED and "larger than it may be here" in outcome.error, outcome


@pytest.mark.parametrize(
    "doing",
    [
        "rm out/*",
        "for file in out/*; do ln $file $file.link; done",
        "for file in out/*; do rm $file; ln -s /etc/passwd $file; done",
        "for file in out/*; do rm $file; mkfifo $file; done",
        "mv out elsewhere",
        "chmod 0 out",
        "for number in $(seq 2000); do : > out/$number; done",
        "mv command-*/work elsewhere",
        "rm -r command-*",
    ],
)
async def test_what_a_task_does_to_its_result_is_its_own_fault(boxed: Boxed, doing: str) -> None:
    """That it could not be set up here would say: let this node rest, and try for ever."""
    script = f"head -c {3 * MIB} /dev/zero; : > a.dat; cd /p2pc; {doing}"
    (outcome,) = await boxed.run(JobSpec(kind=TaskKind.SHELL), TaskPayload(argv=(script,), fetch=("*.dat",)))
    assert outcome.status in (OutcomeStatus.OK, OutcomeStatus.FAILED, OutcomeStatus.DIED), outcome.error
    (after,) = await boxed.run(JobSpec(kind=TaskKind.SHELL), TaskPayload(argv=("echo on",)))
    assert (after.status, after.stdout) == (OutcomeStatus.OK, b"on\n")


async def test_a_function_that_runs_cannot_say_that_it_was_not_run(boxed: Boxed) -> None:
    def lie() -> None:
        frame: Any = sys._getframe()
        while not hasattr(frame.f_locals.get("task"), "run_id"):
            frame = frame.f_back
        result = messages.Result(frame.f_locals["task"].run_id, "not-run", "the disk is full")
        os.write(3, messages.pack_result(result, 1000))
        os._exit(0)

    (outcome,) = await boxed.run(await boxed.function(lie), call())
    assert outcome.status == OutcomeStatus.FAILED and outcome.error == "the disk is full"


async def test_kill(boxed: Boxed) -> None:
    """A kill ends the task at once, with what it has started, and the batch goes on."""
    runs = boxed.batch(
        JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(text,)) for text in ("sleep 61 & sleep 62", "echo on")]
    )
    outcomes = boxed.begin(runs)
    await wait_for(lambda: any("62" in words for words in _sleeps()), "it sleeps")
    boxed.runner.kill([runs[0].run_id])
    first, second = await boxed.finish(runs, outcomes)
    assert first.status is OutcomeStatus.KILLED and second.stdout == b"on\n"
    assert not _sleeps(), "nothing of it is alive when its end is told"


def _sleeps() -> list[list[str]]:
    children = [child for box in boxes() for child in box.children(recursive=True)]
    return [words for child in children if child.is_running() and (words := child.cmdline())[:1] == ["sleep"]]


async def test_standing_still_is_no_time(boxed: Boxed) -> None:
    """A task that the machine's owner holds still for longer than its time limit goes on and ends well."""

    def wait() -> str:
        time.sleep(0.8)
        return "done"

    function = await boxed.function(wait, timeout_s=2.5)
    command = JobSpec(kind=TaskKind.SHELL, timeout_s=2.5)
    for runs in (boxed.batch(function, [call()]), boxed.batch(command, [TaskPayload(argv=("sleep 0.8",))])):
        outcomes = boxed.begin(runs)
        await wait_for(lambda: any(len(box.children(recursive=True)) > 1 for box in boxes()), "it runs")
        boxed.runner.hold([0])
        await asyncio.sleep(3.5)
        assert not outcomes
        boxed.runner.hold([])
        (outcome,) = await boxed.finish(runs, outcomes)
        assert outcome.status is OutcomeStatus.OK, outcome


async def test_one_sandbox_never_serves_two(boxed: Boxed) -> None:
    """Another job, or the same one under another submitter, gets another sandbox; own tasks get none."""
    where = JobSpec(kind=TaskKind.SHELL)
    text = TaskPayload(argv=("readlink /proc/self/ns/pid",))

    async def seen(runs: list[TaskRun]) -> bytes:
        (outcome,) = await boxed.finish(runs, boxed.begin(runs))
        return outcome.stdout

    runs = boxed.batch(where, [text])
    first = await seen(runs)
    assert await seen([replace(runs[0], run_id=10_001)]) == first, "the same job finds its sandbox again"
    assert await seen([replace(runs[0], run_id=10_002, submitter=BOB)]) != first
    assert await seen(boxed.batch(where, [text])) != first
    own = await seen([replace(runs[0], run_id=10_003, job_id=b"o" * 32, submitter=b"")])
    assert own.decode().strip() == os.readlink("/proc/self/ns/pid")


async def test_everything_ends_with_the_node(boxed: Boxed) -> None:
    """The sandbox goes with its bubblewrap, which goes with the node."""
    runs = boxed.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=("setsid sleep 63 & sleep 63",))])
    outcomes = boxed.begin(runs)
    await wait_for(lambda: len(_sleeps()) == 2, "it sleeps")
    (box,) = [box for box in boxes() if len(box.children(recursive=True)) > 2]
    inside = box.children(recursive=True)
    box.kill()
    (outcome,) = await boxed.finish(runs, outcomes)
    assert outcome.status is OutcomeStatus.DIED
    _, alive = psutil.wait_procs(inside, timeout=5)
    assert not alive


async def test_fails_closed(boxed: Boxed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a sandbox no task of others runs, not even once."""
    none = ProcessRunner(boxed.blobs, tmp_path / "none", 1, RealClock(), node_name="x", others=Level.NONE)
    broken = ProcessRunner(boxed.blobs, tmp_path / "broken", 1, RealClock(), node_name="x")
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: "/bin/false")
    for runner, status in ((none, OutcomeStatus.REFUSED), (broken, OutcomeStatus.REFUSED)):
        await runner.start()
        outcomes: dict[int, object] = {}
        runs = boxed.batch(JobSpec(kind=TaskKind.SHELL), [TaskPayload(argv=(f"touch {tmp_path}/ran",))])
        runner.run(0, runs, lambda pairs, outcomes=outcomes: outcomes.update(pairs))  # type: ignore[misc]
        await wait_for(lambda outcomes=outcomes: bool(outcomes), "its outcome")  # type: ignore[misc]
        assert outcomes[runs[0].run_id].status is status  # type: ignore[attr-defined]
        await runner.close()
    assert not (tmp_path / "ran").exists()
    found = await asyncio.to_thread(isolation, "sandboxed", ())
    assert found.level not in (Level.SANDBOX, Level.PROCESS) and "could not be made" in found.why and found.fix
    assert isolation("none", ()).level is Level.NONE and isolation("all", ()).level is Level.PROCESS


async def test_directories_of_the_node_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they are inside of one that is bound; the interpreter inside of the node's is refused."""
    words, environment = sandbox.command(
        "bwrap",
        directory=Path("/tmp"),
        hidden=[Path("/usr/share"), Path("/nowhere")],
        user=None,
        name="x",
        channel_fd=9,
    )
    at = words.index("/usr/share")
    assert words[at - 3 : at] == ["--perms", "0000", "--tmpfs"] and words[at + 1 : at + 3] == [
        "--remount-ro",
        "/usr/share",
    ]
    assert not {"P2PC_HOME", "SSH_AUTH_SOCK"} & environment.keys() and environment["HOME"] == "/tmp"
    monkeypatch.setenv("HOME", sys.prefix)
    with pytest.raises(sandbox.NoSandbox, match="home directory"):
        sandbox.command("bwrap", directory=Path("/tmp"), hidden=[], user=None, name="x", channel_fd=9)
    monkeypatch.undo()
    with pytest.raises(sandbox.NoSandbox, match="inside of the node"):
        sandbox.command(
            "bwrap", directory=Path("/tmp"), hidden=[Path(sys.prefix).parent], user=None, name="x", channel_fd=9
        )


async def test_offers_of_files_are_checked() -> None:
    frame = messages.pack_outputs([1, 2, 7])
    assert parse_outputs(frame[4:]) == [1, 2, 7]
    for body in (frame[4:-1], b"\x04", bytes([4]) + bytes(4), frame[4:] + frame[5:9], b"\x04" + b"\0\0\0\1" * 33):
        with pytest.raises(RemoteProtocolError):
            parse_outputs(body)


async def test_what_leaves_is_bounded(boxed: Boxed) -> None:
    """Many results that fill the sandbox come one after the other, as each is taken over before the next."""
    payload = TaskPayload(argv=("head -c 40000000 /dev/zero > o",), fetch=("o",))
    outcomes = await boxed.run(JobSpec(kind=TaskKind.SHELL, disk_bytes=64 * MIB), *[payload] * 3)
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3, outcomes
    (box,) = [slot.box for slot in boxed.runner._slots]
    assert box is not None and box.limits.disk_bytes == 64 * MIB
    box._left_files = 1
    with pytest.raises(RemoteProtocolError, match="more files"):
        box._received = [-1, -2]
        box.taken_descriptors(2)
    box._received = []


async def test_filter_of_system_calls() -> None:
    """Every jump stays inside, and every path ends in a return: the kernel would refuse the program otherwise."""
    for machine in box_seccomp.ARCHES:
        program = box_seccomp.build(machine)
        steps = list(struct.iter_unpack("=HBBI", program))
        assert len(steps) < 4096 and steps[-1][0] == 0x06
        for at, (code, then, otherwise, _) in enumerate(steps):
            if code & 0x07 == 0x05:
                assert max(at + then, at + otherwise) + 1 < len(steps)
    assert platform.machine() in box_seccomp.ARCHES


async def test_everything_else_on_the_machine_goes_first(boxed: Boxed) -> None:
    outcome = await boxed.shell("nice; ionice")
    assert outcome.stdout.decode().split() == ["19", "idle"], outcome


async def test_orphans_that_have_ended_do_not_count_against_the_limit_of_processes(boxed: Boxed) -> None:
    """A task may start more processes than it may have at once, and leave them to themselves."""
    text = "i=0; while [ $i -lt 150 ]; do (true &) || exit 3; i=$((i+1)); sleep 0.004; done; echo all"
    spec = JobSpec(kind=TaskKind.SHELL, timeout_s=30.0)
    (outcome,) = await boxed.run(spec, TaskPayload(argv=(text,)))
    assert (outcome.status, outcome.stdout) == (OutcomeStatus.OK, b"all\n"), outcome

    def doubly() -> int:
        import os
        import time

        for _ in range(150):
            if (pid := os.fork()) == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.waitpid(pid, 0)
            time.sleep(0.004)
        return 150

    assert load_value((await boxed.call(doubly)).value) == 150


async def test_what_a_task_leaves_running_is_gone_before_the_next(boxed: Boxed) -> None:
    """At its end, not at that of the sandbox: each of many tasks may leave as many as the limit allows."""
    text = "for i in $(seq 40); do (sleep 60 &) ; done; ps -e 2>/dev/null | grep -c sleep; ls -d /proc/[0-9]* | wc -l"
    payload = TaskPayload(argv=(text,))
    outcomes = await boxed.run(JobSpec(kind=TaskKind.SHELL), *[payload] * 4)
    assert {outcome.status for outcome in outcomes} == {OutcomeStatus.OK}, outcomes
    assert len({outcome.stdout for outcome in outcomes}) == 1, outcomes


IN_TMP = """
import asyncio, sys
from pathlib import Path
from dataclasses import replace
from tests.execution.conftest import Rig, call
from p2pcompute.execution.functions import load_value
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload

def where():
    import sys
    return sys.prefix

async def main():
    rig = Rig(Path(sys.argv[1]))
    await rig.runner.start()
    try:
        import cloudpickle
        cloudpickle.register_pickle_by_value(sys.modules["__main__"])
        top = f"/tmp/{Path(sys.prefix).parts[2]}"
        text = f"touch /tmp/mine {sys.prefix}/x; mv {top} /tmp/away; rm -rf {top}; ls /tmp; "
        text += f"{sys.executable} -c 'print(5)'"
        for spec, payload in (
            (JobSpec(kind=TaskKind.SHELL), TaskPayload(argv=(text,))),
            (JobSpec(kind=TaskKind.SHELL), TaskPayload(argv=(text,))),
            (await rig.function(where), call()),
        ):
            runs = [replace(run, submitter=b"a" * 32) for run in rig.batch(spec, [payload, payload])]
            for outcome in await rig.finish(runs, rig.begin(runs)):
                assert outcome.status == "ok", outcome
                print(load_value(outcome.value) if outcome.value else outcome.stdout.decode().split())
    finally:
        await rig.runner.close()
        rig.blobs.shut()

asyncio.run(main())
"""


@pytest.mark.skipif(not str(Path("/tmp").resolve()).startswith("/tmp"), reason="/tmp is elsewhere")
@pytest.mark.usefixtures("boxed")
async def test_an_interpreter_in_tmp_is_seen_there_and_cannot_be_changed() -> None:
    """Where p2pcompute was installed into an environment in /tmp: each sandbox has a /tmp of its own around it."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory(prefix="p2pc-venv-", dir="/tmp") as directory:
        prefix = Path(directory, "deep", "venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
        Path(directory).chmod(0o755)
        search = os.pathsep.join([str(root), *site.getsitepackages()])
        ran = subprocess.run(
            [prefix / "bin" / "python", "-c", IN_TMP, f"{directory}/runner"],
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        top = Path(directory).name
        assert ran.stdout.splitlines() == [str(["mine", top, "5"])] * 4 + [str(prefix)] * 2, ran.stdout
        assert (prefix / "bin" / "python").exists()
