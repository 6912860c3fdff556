"""Python environments of jobs, with the real uv and packages that the test makes: no package index is asked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import RemoteProtocolError, UsageError
from p2pcompute.execution import environments, sandbox
from p2pcompute.execution.environment_failures import EnvironmentFailed
from p2pcompute.execution.environments import Environments
from p2pcompute.execution.functions import load_value, ship
from p2pcompute.execution.locking import AUTO, NONE, find_requirements, make_lock
from p2pcompute.execution.locks import Lock, check_lock, is_possible, read_pylock
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.sources import ship_source
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus, TaskRun
from tests.execution.conftest import Rig, call, wait_for
from tests.sandboxes import need_sandbox
from tests.wheels import make_source, make_wheel

ADA, BOB = b"a" * 32, b"b" * 32
NO_COMPILER = """
def build_wheel(*args, **kwargs):
    raise SystemExit("error: command 'gcc' failed: no such file or directory")
build_sdist = build_wheel
"""
PYTHON = (sys.version_info.major, sys.version_info.minor)

pytestmark = pytest.mark.skipif(environments.find_uv() is None, reason="runs with uv, which dev.py test installs")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of packages, which is all that uv knows."""
    directory = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        make_wheel(directory, "tiny", version, {"tiny/__init__.py": f"VERSION = {version!r}\n"})
    make_source(directory, "hard", "1.0", NO_COMPILER)
    monkeypatch.setenv("UV_FIND_LINKS", str(directory))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return directory


def value_of(outcome: Outcome) -> Any:
    """What a function returned; a failed one says why."""
    assert outcome.status is OutcomeStatus.OK, outcome
    return load_value(outcome.value)


class Outfitted(Rig):
    """A rig that installs packages."""

    submitter = b""

    def __init__(self, directory: Path, slot_count: int = 2) -> None:
        super().__init__(directory, slot_count)
        self.environments = Environments(directory / "environments", bytes_max=1 << 30)
        self.runner = ProcessRunner(
            self.blobs,
            self.directory,
            slot_count,
            RealClock(),
            node_name="nova",
            environments=self.environments,
            hidden=[directory],
        )

    def batch(self, spec: JobSpec, payloads: Sequence[TaskPayload], first_index: int = 0) -> list[TaskRun]:
        return [replace(run, submitter=self.submitter) for run in super().batch(spec, payloads, first_index)]

    async def with_packages(self, function: Callable[..., object] | None, lock: bytes) -> JobSpec:
        packages = await self.blobs.put(lock)
        if function is None:
            return JobSpec(kind=TaskKind.SHELL, packages=packages)
        code = await self.blobs.put(ship(function).code)
        return JobSpec(kind=TaskKind.FUNCTION, code=code, packages=packages)


@pytest.fixture
async def outfitted(tmp_path: Path, wheels: Path) -> AsyncIterator[Outfitted]:
    made = Outfitted(tmp_path)
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()


def locked(tmp_path: Path, *lines: str) -> Lock:
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(lines))
    requirements = find_requirements(str(path), None, is_beside=False)
    assert requirements is not None
    return make_lock(requirements)


def look() -> tuple[str, int, str, bool]:
    """What a task finds: the version, its process, where it is, and whether the node's own packages are in reach."""
    import importlib.util
    import os
    import sys

    import tiny

    return tiny.VERSION, os.getpid(), sys.prefix, importlib.util.find_spec("cbor2") is not None


def spoil() -> str:
    import tiny

    with open(tiny.__file__, "a") as file:
        file.write("VERSION = 'spoilt'\n")
    return "spoilt"


# --- on a node ----------------------------------------------------------------------------------------


async def test_two_versions_at_once(outfitted: Outfitted, tmp_path: Path) -> None:
    """Jobs with different versions of a package run side by side, each in warm processes of its own."""
    rig = outfitted
    specs = [await rig.with_packages(look, locked(tmp_path, f"tiny=={version}").text) for version in ("1.0", "2.0")]
    runs = [rig.batch(spec, [call()]) for spec in specs]
    started = [rig.begin(batch, slot) for slot, batch in enumerate(runs)]
    first = [await rig.finish(batch, outcomes) for batch, outcomes in zip(runs, started, strict=True)]
    values = [value_of(outcome) for (outcome,) in first]
    assert [value[0] for value in values] == ["1.0", "2.0"]
    assert not any(value[3] for value in values), "packages of the node are in the environment"
    again = [await rig.run(spec, call(), slot=slot) for slot, spec in enumerate(specs)]
    assert [value_of(outcome)[1] for (outcome,) in again] == [value[1] for value in values], "not warm"
    assert rig.environments.built_count == 2
    swapped = [await rig.run(spec, call(), slot=1 - slot) for slot, spec in enumerate(specs)]
    assert [value_of(outcome)[0] for (outcome,) in swapped] == ["1.0", "2.0"]
    assert rig.environments.built_count == 2, "built again for another slot"


def test_links_made_by_two_builds_at_once(tmp_path: Path) -> None:
    """Each build is a thread; one that met the other's link failed for want of room, as it said."""
    with ThreadPoolExecutor(8) as threads:
        for number in range(50):
            made = Environments(tmp_path / str(number), bytes_max=1 << 30)
            libraries = [one.result() for one in [threads.submit(made._library) for _ in range(8)]]
            assert all((library / "p2pcompute" / "limits.py").exists() for library in libraries)


async def test_commands_find_it_on_their_path(outfitted: Outfitted, tmp_path: Path) -> None:
    spec = await outfitted.with_packages(None, locked(tmp_path, "tiny==2.0").text)
    (outcome,) = await outfitted.run(spec, TaskPayload(argv=("python -c 'import tiny; print(tiny.VERSION)'",)))
    assert outcome.stdout == b"2.0\n", outcome


async def test_without_packages(outfitted: Outfitted, tmp_path: Path) -> None:
    """An empty list is an environment with nothing but the standard library; no list is the node's own."""
    lock = locked(tmp_path, "# nothing")
    assert lock.text == b""
    spec = await outfitted.with_packages(look, lock.text)
    (outcome,) = await outfitted.run(spec, call())
    assert outcome.status is OutcomeStatus.FAILED and "No module named 'tiny'" in outcome.error


async def test_in_a_sandbox(outfitted: Outfitted, tmp_path: Path) -> None:
    """Others get wheels, in environments that they cannot change and that are nobody else's."""
    need_sandbox()
    rig, lock = outfitted, locked(tmp_path, "tiny==1.0")
    rig.submitter = ADA
    (outcome,) = await rig.run(await rig.with_packages(look, lock.text), call())
    assert outcome.status is OutcomeStatus.OK, outcome.error
    version, _pid, prefix, has_cbor2 = value_of(outcome)
    assert (version, prefix, has_cbor2) == ("1.0", "/p2pc-env", False)
    (outcome,) = await rig.run(await rig.with_packages(spoil, lock.text), call())
    assert outcome.status is OutcomeStatus.FAILED
    assert "Read-only file system" in outcome.error or "Permission denied" in outcome.error
    rig.submitter = b""
    (outcome,) = await rig.run(await rig.with_packages(look, lock.text), call())
    assert value_of(outcome)[0] == "1.0"
    assert rig.environments.built_count == 2, "one environment for two installations"
    owners = sorted(path.name for path in (tmp_path / "environments").iterdir())
    assert owners == sorted(["library", "own", ADA.hex()])


async def test_what_has_to_be_built(outfitted: Outfitted, tmp_path: Path) -> None:
    """A build that fails ends the task at once; nothing of others is built at all."""
    rig, lock = outfitted, locked(tmp_path, "hard==1.0")
    assert lock.built == ("hard",)
    (outcome,) = await rig.run(await rig.with_packages(look, lock.text), call())
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == FAILS_ALWAYS
    assert "has to be built, and that failed" in outcome.error and "install on that node" in outcome.error
    assert "command 'gcc' failed" in outcome.error, "what the build said is not shown"
    rig.submitter = ADA
    (outcome,) = await rig.run(await rig.with_packages(look, lock.text), call())
    assert outcome.status is OutcomeStatus.FAILED and "no wheel for this node" in outcome.error, outcome.error


async def test_what_cannot_be_had(outfitted: Outfitted, tmp_path: Path, wheels: Path) -> None:
    """Another file under the same name is refused, and a version that is gone; both are remembered for a while."""
    rig, lock = outfitted, locked(tmp_path, "tiny==1.0")
    make_wheel(wheels, "tiny", "1.0", {"tiny/__init__.py": "VERSION = 'forged'\n"})
    spec = await rig.with_packages(look, lock.text)
    (outcome,) = await rig.run(spec, call())
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == "", outcome
    assert "not the one that the submitter has seen" in outcome.error, outcome.error
    gone = await rig.with_packages(look, lock.text.replace(b"tiny==1.0", b"tiny==3.0"))
    (outcome,) = await rig.run(gone, call())
    assert "not in that node's package index" in outcome.error, outcome.error
    os.environ["UV_FIND_LINKS"] = "/nowhere"
    (outcome,) = await rig.run(gone, call())
    assert "not in that node's package index" in outcome.error, "tried again at once"


async def test_packages_that_would_leave_their_place(outfitted: Outfitted, tmp_path: Path, wheels: Path) -> None:
    """A wheel whose files have names that lead out of it puts none there, for this user's jobs and for others'."""
    outside = f"/tmp/p2pc-escaped-{os.getpid()}"
    files = {"evil/__init__.py": "", "../../../../../escaped-up.py": "x", outside: "x"}
    make_wheel(wheels, "evil", "1.0", files)
    lock = locked(tmp_path, "evil")
    for submitter in (b"", ADA):
        outfitted.submitter = submitter
        outfitted.runner.rules.trusts = lambda _submitter: True
        (outcome,) = await outfitted.run(await outfitted.with_packages(None, lock.text), TaskPayload(argv=("true",)))
        assert outcome.status in (OutcomeStatus.OK, OutcomeStatus.FAILED), outcome
        assert not list(tmp_path.rglob("escaped-up*")) and not Path(outside).exists(), outcome
    (fine,) = await outfitted.run(
        await outfitted.with_packages(None, locked(tmp_path, "tiny==1.0").text), TaskPayload(argv=("true",))
    )
    assert fine.status is OutcomeStatus.OK, fine


async def test_hostile_lists(outfitted: Outfitted) -> None:
    """Nothing that reaches a node as a list of packages can be an option, an address or a path."""
    spec = await outfitted.with_packages(look, b"--index-url=x\n")
    (outcome,) = await outfitted.run(spec, call())
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == FAILS_ALWAYS
    assert "not listed as they must be" in outcome.error


async def test_stopped_while_it_is_built(outfitted: Outfitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is stopped meanwhile ends at once, and its slot takes another one; the node can stop, too."""
    slow = tmp_path / "slow-uv"
    slow.write_text("#!/bin/sh\nsleep 100\n")
    slow.chmod(0o755)
    lock = locked(tmp_path, "tiny==1.0")
    monkeypatch.setattr(environments, "find_uv", lambda: str(slow))
    rig = outfitted
    runs = rig.batch(await rig.with_packages(look, lock.text), [call(), call()])
    outcomes: dict[int, Outcome] = rig.begin(runs)
    await asyncio.sleep(0)
    rig.runner.kill([run.run_id for run in runs])
    assert [outcome.status for outcome in outcomes.values()] == [OutcomeStatus.KILLED] * 2
    assert (await rig.shell("echo next")).stdout == b"next\n"
    runs = rig.batch(await rig.with_packages(look, lock.text), [call()])
    outcomes = rig.begin(runs)
    await wait_for(lambda: bool(rig.environments._processes), "uv runs")
    await rig.runner.close()
    assert [outcome.status for outcome in outcomes.values()] == [OutcomeStatus.NOT_RUN]


async def test_where_no_sandbox_can_be_made(
    outfitted: Outfitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One's own packages are installed all the same, those of others are not."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: str(broken))
    kept, lock = outfitted.environments, locked(tmp_path, "tiny==1.0").text
    (tmp_path / "lock").write_bytes(lock)
    digest = hashlib.sha256(lock).digest()
    with pytest.raises(EnvironmentFailed, match="cannot be installed safely here"):
        await kept.get(digest, str(tmp_path / "lock"), "ada", may_build=False)
    made = await kept.get(digest, str(tmp_path / "lock"), environments.OWN, may_build=True)
    assert (made.path / "bin" / "python").exists()


async def test_making_room(tmp_path: Path, wheels: Path) -> None:
    """What was not used for longest goes first; what is in use stays, also when another process uses it."""
    kept = Environments(tmp_path / "environments", bytes_max=1 << 30)
    other = Environments(tmp_path / "environments", bytes_max=1)
    made = []
    for version in ("1.0", "2.0"):
        lock = locked(tmp_path, f"tiny=={version}").text
        path = tmp_path / version
        path.write_bytes(lock)
        digest = hashlib.sha256(lock).digest()
        made.append((digest, await kept.get(digest, str(path), "own", may_build=True)))
    await wait_for(lambda: not kept._finishing, "bytecode is compiled")
    assert list((made[0][1].path / "lib").rglob("*.pyc")), "bytecode was not compiled"
    kept.in_use = lambda: [made[1][1].path]
    assert kept.ready(made[1][0], "own") is not None
    await kept.make_room()  # lets go of what no process uses
    os.utime(made[0][1].path / ".p2pc-ready", (1, 1))
    await other.make_room()
    assert not made[0][1].path.exists() and made[1][1].path.exists()
    assert other.evicted_count == 1 and kept.ready(made[0][0], "own") is None
    await kept.close()
    await other.make_room()
    assert not made[1][1].path.exists()
    assert not any((tmp_path / "environments" / "own").glob("*/")), "something was left"
    await other.close()


# --- lists --------------------------------------------------------------------------------------------


@given(st.text() | st.from_regex(r"[a-z]{1,3}==1\.0( ; .{0,20})?( --hash=sha256:[0-9a-f]{64}){0,2}", fullmatch=True))
def test_only_locked_packages_pass(text: str) -> None:
    """Whatever passes has an exact version and a hash on each line, and no option but hashes."""
    try:
        check_lock(text.encode())
    except RemoteProtocolError:
        return
    for line in text.splitlines():
        assert "==" in line and "--hash=sha256:" in line and "@" not in line and "/" not in line
        assert all(word.startswith("--hash=sha256:") for word in line.split() if word.startswith("-"))


def test_platforms() -> None:
    """A list says where all of its packages have wheels; one that is wanted only somewhere does not count."""

    def wheel(tag: str) -> str:
        name = f"x-1-cp{PYTHON[0]}{PYTHON[1]}-cp{PYTHON[0]}{PYTHON[1]}-{tag}.whl"
        return f'{{ url = "a/{name}", hashes = {{ sha256 = "{hashlib.sha256(tag.encode()).hexdigest()}" }} }}'

    def package(name: str, *tags: str, marker: str = "") -> str:
        wheels = ", ".join(map(wheel, tags))
        return f'[[packages]]\nname = "{name}"\nversion = "1"\nwheels = [{wheels}]\n' + marker

    a = package("a", "manylinux_2_17_x86_64.manylinux2014_x86_64", "macosx_11_0_arm64", "win_amd64")
    b = package("b", "manylinux_2_28_x86_64", "musllinux_1_2_x86_64", "macosx_10_9_universal2")
    c = package("c", "win32", marker="marker = \"sys_platform == 'win32'\"\n")
    lock = read_pylock((a + b + c).encode(), PYTHON)
    assert lock.platforms == ("linux/x86_64", "macos/aarch64") and lock.built == ()
    assert b"c==1 ; sys_platform == 'win32' --hash=sha256:" in lock.text
    with pytest.raises(UsageError, match="no machine"):
        read_pylock((package("a", "win_amd64") + package("b", "linux_x86_64")).encode(), PYTHON)
    with pytest.raises(UsageError, match="cannot be sent"):
        read_pylock(b'[[packages]]\nname = "a"\ndirectory = { path = "../a" }\n', PYTHON)
    with pytest.raises(UsageError, match="no file of a"):
        other = package("a", "any").replace(f"cp{PYTHON[0]}{PYTHON[1]}", "cp27")
        read_pylock(other.encode(), PYTHON)


@pytest.mark.parametrize(
    ("marker", "is_there"),
    [
        ("", True),
        ("python_full_version < '3.12'", True),
        ("python_full_version >= '3.12'", False),
        ("python_version >= '3.12' and sys_platform == 'win32'", False),
        ("python_version >= '3.12' or sys_platform == 'win32'", True),
        ("python_full_version >= '3.11.4'", True),
        ("python_full_version < '3.11'", False),
        ("python_version != '3.11'", True),
        ("python_version == '3.10.*'", False),
        ("python_version == '3.*'", True),
        ("python_version > '3.11' and implementation_name == 'pypy'", True),
        ("python_version <= '3.10'", False),
        ("python_version ~= '3.12'", True),
    ],
)
def test_which_packages_this_python_may_want(marker: str, is_there: bool) -> None:
    """If it broke: numpy is named as a package without a wheel, since its newest version is for newer Pythons."""
    assert is_possible(marker, (3, 11)) is is_there


def test_versions_for_other_pythons_are_left_out() -> None:
    def package(version: str, marker: str, wheel: str) -> str:
        digest = f"hashes = {{ sha256 = '{'0' * 64}' }}"
        wheels = f"wheels = [{{ name = 'n-{version}-{wheel}-manylinux_2_28_x86_64.whl', {digest} }}]"
        source = f"sdist = {{ name = 'n-{version}.tar.gz', {digest} }}"
        return f"[[packages]]\nname = 'n'\nversion = '{version}'\nmarker = \"{marker}\"\n{wheels}\n{source}\n"

    text = package("2.4", "python_version < '3.12'", "cp311-cp311")
    text += package("2.5", "python_version >= '3.12'", "cp312-cp312")
    lock = read_pylock(text.encode(), (3, 11))
    assert lock.names == ("n 2.4",) and not lock.built


@pytest.mark.parametrize(
    ("wanted", "is_here"), [(">=3.8", True), (">=3.8,<4", True), (">=9.1", False), ("==2.7.*", False)]
)
def test_a_script_for_another_python_is_refused(wanted: str, is_here: bool, tmp_path: Path) -> None:
    """If it broke: it runs with a Python that it says it cannot run with."""
    script = tmp_path / "s.py"
    script.write_text(f'# /// script\n# requires-python = "{wanted}"\n# dependencies = ["tiny"]\n# ///\n')
    if is_here:
        assert find_requirements(AUTO, script, is_beside=False) is not None
        return
    with pytest.raises(UsageError, match="asks for Python"):
        find_requirements(AUTO, script, is_beside=False)


def test_where_requirements_are(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "job.py"
    script.write_text("# /// script\n# dependencies = ['tiny<2', 'p2pcompute']\n# ///\nimport tiny\n")
    found = find_requirements(AUTO, script, is_beside=False)
    assert found is not None and make_lock(found).names == ("tiny 1.0",), "or p2pcompute is asked for"
    assert find_requirements(NONE, script, is_beside=True) is None
    plain = tmp_path / "plain.py"
    plain.write_text("import tiny\n")
    assert find_requirements(AUTO, plain, is_beside=True) is None
    (tmp_path / "requirements.txt").write_text("tiny\n")
    found = find_requirements(AUTO, plain, is_beside=True)
    assert found is not None and make_lock(found).names == ("tiny 2.0",)
    assert find_requirements(AUTO, plain, is_beside=False) is None
    with pytest.raises(UsageError, match="no file 'nowhere'"):
        find_requirements("nowhere", None, is_beside=False)
    script.write_text("# /// script\n# dependencies = 'tiny'\n# ///\n")
    with pytest.raises(UsageError, match="list of texts"):
        find_requirements(AUTO, script, is_beside=False)
    (tmp_path / "requirements.txt").write_text("missing>=1\n")
    with pytest.raises(UsageError) as raised:
        make_lock(find_requirements(str(tmp_path / "requirements.txt"), None, is_beside=False) or pytest.fail())
    assert "missing" in raised.value.why and raised.value.fix and raised.value.code == "deps"
    monkeypatch.setattr("p2pcompute.execution.locking.find_uv", lambda: None)
    with pytest.raises(UsageError, match="no uv here"):
        make_lock(found)


@pytest.mark.parametrize(
    ("listed", "is_needed"),
    [("[]", False), ("['p2pcompute>=0.1']", False), ("['p2pcompute-more']", True), ("['p2pcompute', 'tiny']", True)],
)
def test_a_script_that_needs_nothing_needs_no_uv(listed: str, is_needed: bool, tmp_path: Path) -> None:
    """If it broke: it is refused where there is no uv, or waits for nodes that have it.  A file that lists nothing asks
    for the standard library alone."""
    script = tmp_path / "s.py"
    script.write_text(f"# /// script\n# dependencies = {listed}\n# ///\n")
    (tmp_path / "requirements.txt").write_text("")
    for deps in (AUTO, str(script)):
        assert (find_requirements(deps, script, is_beside=True) is not None) == is_needed
    assert find_requirements(str(tmp_path / "requirements.txt"), script, is_beside=True) is not None


async def test_function_as_source(outfitted: Outfitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose packages are not installed here is sent as it is written, with the modules beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("FACTOR = 3\n")
    (tmp_path / "job.py").write_text(
        "import tiny\nimport beside\nclass Pair:\n    def __init__(self, n): self.n = n\n"
        "def times(n):\n    return tiny.VERSION, Pair(beside.FACTOR * n)\n"
    )
    shipped = ship_source("job.py::times")
    assert shipped.module_names == ("beside", "script_job") and shipped.modules_zip is not None
    rig = outfitted
    spec = JobSpec(
        kind=TaskKind.FUNCTION,
        code=await rig.blobs.put(shipped.code),
        modules=await rig.blobs.put(shipped.modules_zip),
        packages=await rig.blobs.put(locked(tmp_path, "tiny==1.0").text),
    )
    outcomes = await rig.run(spec, call(2), call(5))
    assert [outcome.status for outcome in outcomes] == [OutcomeStatus.OK] * 2, outcomes[0].error
    assert [value_of(outcome)[1].n for outcome in outcomes] == [6, 15], "a class of the script cannot be read"
    for target, match in (("job.py::nothing", "no function"), ("gone.py::f", "no file"), ("gone::f", "no module")):
        with pytest.raises(UsageError, match=match):
            ship_source(target)


SAYS_WHO = """
import os, socket, sys
found = dict(line.split(":", 1) for line in open("/proc/self/status"))
who = [os.getuid(), os.getpid(), int(found["Seccomp"]), int(found["CapEff"], 16)]
sys.__dict__.setdefault("ran_as", []).append(who)
with socket.socket() as there:
    there.settimeout(1)
    if there.connect_ex(("127.0.0.1", PORT)) == 0:
        there.sendall(repr([*who, sys.argv]).encode())
"""
"""What a package runs by itself: who it is, and a call to somebody outside of any sandbox."""


def saw() -> object:
    import sys

    import evil  # type: ignore[import-not-found]

    return sys.__dict__.get("ran_as"), sys.prefix, evil.__file__


@pytest.fixture
def evil(wheels: Path) -> Iterator[socket.socket]:
    """A wheel that wants to run wherever an interpreter begins in its environment; it calls this socket."""
    with socket.create_server(("127.0.0.1", 0)) as called:
        called.setblocking(False)
        code = SAYS_WHO.replace("PORT", str(called.getsockname()[1]))
        data = "evil-1.0.data"
        program = f"#!python\n{code}\n"
        files = {
            "evil.pth": f"import sys; exec({code!r})\n",
            "sitecustomize.py": code,
            "evil.py": "",
            **{f"{data}/data/bin/{name}": program for name in ("uv", "env", "sh")},
            f"{data}/data/pyvenv.cfg": "home = /tmp\ninclude-system-site-packages = true\n",
            f"{data}/data/.p2pc-ready": "none",
        }
        make_wheel(wheels, "evil", "1.0", files)
        make_wheel(wheels, "mine", "1.0", {"mine-1.0.data/data/bin/python": program})
        yield called


def calls(called: socket.socket) -> list[bytes]:
    """Return who has called."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            caller, _address = called.accept()
            with caller:
                caller.settimeout(2.0)
                found.append(caller.recv(4096))
    return found


async def test_what_packages_run_by_themselves(outfitted: Outfitted, tmp_path: Path, evil: socket.socket) -> None:
    """Of another installation's: .pth files, sitecustomize and programs called python run where its task is shut in,
    and nowhere else: not while they are installed or compiled, and not in the first process of the sandbox."""
    need_sandbox()
    rig = outfitted
    rig.submitter = ADA
    lock = locked(tmp_path, "evil").text
    spec = await rig.with_packages(saw, lock)
    (outcome,) = await rig.run(spec, call())
    ran, prefix, place = value_of(outcome)
    assert prefix == "/p2pc-env" and place.startswith("/p2pc-env/lib/"), "its packages are not found"
    assert ran, "it did not even run: this test shows nothing"
    for uid, pid, seccomp, capabilities in ran:
        assert (uid != 0, pid > 1, seccomp, capabilities) == (True, True, 2, 0), ran
    command = await rig.with_packages(None, locked(tmp_path, "mine").text)
    (outcome,) = await rig.run(command, TaskPayload(argv=("python -c 'print(1)'; id -u",)))
    assert outcome.stdout.splitlines()[-1:] != [b"0"], outcome  # uv may refuse it
    await wait_for(lambda: not rig.environments._finishing, "its bytecode is compiled")
    assert not calls(evil), "it has run with the network of the machine"
    ready = tmp_path / "environments" / ADA.hex()
    (mark,) = ready.glob("*/.p2pc-ready")
    assert mark.read_text().isdigit()


async def test_what_packages_of_one_do_to_those_of_another(
    outfitted: Outfitted, tmp_path: Path, evil: socket.socket
) -> None:
    """Nothing: each installation has environments and fetched files of its own, that no task of it can write to."""
    need_sandbox()
    rig = outfitted
    rig.submitter = ADA
    locks = {name: locked(tmp_path, name).text for name in ("evil", "tiny==1.0")}
    (outcome,) = await rig.run(await rig.with_packages(saw, locks["evil"]), call())
    value_of(outcome)
    for who in (ADA, BOB, b""):
        rig.submitter = who
        (outcome,) = await rig.run(await rig.with_packages(look, locks["tiny==1.0"]), call())
        assert value_of(outcome)[0] == "1.0"
        (outcome,) = await rig.run(await rig.with_packages(vandalise, locks["tiny==1.0"]), call())
        if who:
            assert value_of(outcome) == []
    await wait_for(lambda: not rig.environments._finishing, "bytecode is compiled")
    for who in (ADA, BOB):
        rig.submitter = who
        (outcome,) = await rig.run(await rig.with_packages(look, locks["tiny==1.0"]), call())
        assert value_of(outcome)[0] == "1.0"


def vandalise() -> list[str]:
    """Try to change everything that a later task would read; returns what could be."""
    import contextlib
    import os
    import stat
    import sys

    if sys.prefix != "/p2pc-env":
        return []
    done = []
    roots = [sys.prefix, "/in", os.path.dirname(os.__file__), "/p2pc-lib", "/p2pc-fetched", "/p2pc-python"]
    roots += [path for path in sys.path if os.path.isdir(path)]
    for root in roots:
        for place, folders, names in os.walk(root):
            if root != sys.prefix:
                folders.clear()
            for name in [*names[:10], "sitecustomize.py", "new.pth"]:
                path = os.path.join(place, name)
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
                    done.append(f"opened {path}")
                with contextlib.suppress(OSError):
                    os.chmod(path, stat.S_IRWXU | stat.S_IRWXO)
                    done.append(f"changed {path}")
                with contextlib.suppress(OSError):
                    os.rename(path, path + ".old")
                    done.append(f"renamed {path}")
    return done


async def test_builds_of_those_that_are_trusted_leave_nothing_where_the_node_writes(
    outfitted: Outfitted, tmp_path: Path, wheels: Path
) -> None:
    """A build runs code; what it leaves in the environment in place of a file of the node leads nowhere."""
    target = tmp_path / "precious"
    target.write_text("precious")
    planted = f"""
import os, glob
def build_wheel(directory, *args, **kwargs):
    for place in glob.glob("/p2pc-env") + [os.path.dirname(os.environ["TMPDIR"])]:
        for name in (".p2pc-ready", "tmp/link"):
            try:
                os.symlink({str(target)!r}, os.path.join(place, name))
            except OSError:
                pass
    raise SystemExit("error: command 'gcc' failed")
"""
    make_source(wheels, "sly", "1.0", planted)
    rig = outfitted
    (outcome,) = await rig.run(await rig.with_packages(look, locked(tmp_path, "sly==1.0").text), call())
    assert outcome.status is OutcomeStatus.FAILED
    environment = tmp_path / "planted"
    environment.mkdir()
    (environment / environments._READY).symlink_to(target)
    with pytest.raises(OSError):
        environments._note_ready(environment, 5)
    assert target.read_text() == "precious"
