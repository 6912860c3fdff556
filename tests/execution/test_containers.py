"""Commands in containers, with the real engine of this machine and an image that the test makes from nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.execution import child_containers, sandbox
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.spec import InputFile, JobSpec, TaskKind, TaskPayload, decode_spec, encode_spec
from p2pcompute.host.real_clock import RealClock
from p2pcompute.host.runs import FAILS_ALWAYS, OutcomeStatus, TaskRun
from tests.execution.conftest import Rig, wait_for

ADA = b"a" * 32
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <unistd.h>
int main(int argc, char **argv) {
  char line[64] = "", *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "sleep")) { sleep(100); return 0; }
  if (!strcmp(what, "fail")) { fprintf(stderr, "no luck\n"); return 3; }
  FILE *in = fopen("in.txt", "r"), *out = fopen("out.txt", "w");
  if (in && fgets(line, sizeof line, in) && out) fprintf(out, "made of %s", line);
  char dir[256]; getcwd(dir, sizeof dir);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(0x01010101)}};
  int reached = !connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&to, sizeof to);
  char *home = getenv("P2PC_CONTAINER_TEST");
  printf("%s root=%d at %s net=%d own=%s key=%s\n", what, getuid() == 0, dir, reached, home ? home : "",
         getenv("SECRET_OF_NODE") ? "seen" : "hidden");
  if (fgets(line, sizeof line, stdin)) printf("stdin %s", line);
  return 0;
}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An engine that works here, and an archive of an image."""
    name = next((name for name in ("podman", "docker") if shutil.which(name)), None)
    if name is None or shutil.which("gcc") is None:
        pytest.skip("podman or docker, and gcc, are not installed")
    directory = tmp_path_factory.mktemp("image")
    (directory / "program.c").write_text(PROGRAM)
    made = subprocess.run(["gcc", "-static", "-O1", "-w", "program.c", "-o", "program"], cwd=directory, check=False)
    if made.returncode != 0:
        pytest.skip("gcc cannot link statically here")
    (directory / "Dockerfile").write_text('FROM scratch\nCOPY program /program\nENTRYPOINT ["/program"]\n')
    patch = pytest.MonkeyPatch()
    if shutil.which("runc"):  # crun wants one kind of control groups
        (directory / "containers.conf").write_text('[engine]\nruntime = "runc"\n')
        patch.setenv("CONTAINERS_CONF", str(directory / "containers.conf"))
    tag = f"p2pc-test-{os.getpid()}"
    try:
        _engine(name, "build", "--quiet", "--tag", tag, str(directory))
        limits = ("--ulimit", "nofile=512:512", "--ulimit", "nproc=512:512")
        _engine(name, "run", "--rm", "--network", "none", *limits, tag, "try")
        _engine(name, "save", "--output", str(directory / "image.tar"), tag)
        yield name, directory / "image.tar"
    finally:
        subprocess.run([name, "rmi", "--force", tag], capture_output=True, check=False)
        patch.undo()


def _engine(name: str, *words: str) -> None:
    done = subprocess.run([name, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{name} {words[0]} does not work here: {done.stderr.strip()[-300:]}")


class Contained(Rig):
    submitter = b""

    def batch(self, spec: JobSpec, payloads: Sequence[TaskPayload], first_index: int = 0) -> list[TaskRun]:
        return [replace(run, submitter=self.submitter) for run in super().batch(spec, payloads, first_index)]


@pytest.fixture
async def rig(tmp_path: Path, engine: tuple[str, Path]) -> AsyncIterator[Contained]:
    made = Contained(tmp_path)
    await made.runner.start()
    yield made
    await made.runner.close()
    made.blobs.shut()


async def _image(rig: Rig, engine: tuple[str, Path]) -> JobSpec:
    code = await rig.blobs.put(engine[1].read_bytes())
    return JobSpec(kind=TaskKind.CONTAINER, code=code, env={"P2PC_CONTAINER_TEST": "here"})


async def test_a_command_in_an_image(rig: Contained, engine: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in and out, standard input, own variables; no network, nobody's root, nothing of the node."""
    monkeypatch.setenv("SECRET_OF_NODE", "x")
    spec = await _image(rig, engine)
    blob = await rig.blobs.put(b"hello\n")
    payload = TaskPayload(argv=("go",), send=(InputFile("in.txt", blob),), fetch=("out.txt",), stdin=b"word\n")
    (outcome,) = await rig.run(spec, payload)
    assert outcome.status is OutcomeStatus.OK, (outcome.error, outcome.stderr)
    assert outcome.stdout == b"go root=0 at /work net=0 own=here key=hidden\nstdin word\n"
    assert await rig.content((outcome.files[0].digest, outcome.files[0].size)) == b"made of hello\n"
    (again,) = await rig.run(spec, TaskPayload())
    assert again.status is OutcomeStatus.OK and again.stdout.startswith(b" root=0"), again


TOOL = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
  for (int i = 1; i < argc; i++) printf("%s%s", i > 1 ? " " : "", argv[i]);
  char *names[] = {"OF_IMAGE", "OF_BOTH", "OF_JOB", "P2PC_TASK_ID", "PATH"}, directory[256];
  for (int i = 0; i < 5; i++) printf("\n%s=%s", names[i], getenv(names[i]) ? getenv(names[i]) : "");
  printf("\nin %s\n", getcwd(directory, sizeof directory));
  char line[64] = "";
  FILE *sent = fopen("sub/sent.txt", "r"), *shared = fopen("shared.txt", "r");
  if (sent && fgets(line, sizeof line, sent)) printf("sent %s", line);
  if (shared && fgets(line, sizeof line, shared)) printf("shared %s", line);
  mkdir("made", 0755);
  FILE *out = fopen("made/of.txt", "w");
  if (out) fprintf(out, "made with %d words\n", argc - 1);
  printf("outside %s\n", fopen("/outside", "w") ? "written" : "refused");
  return 0;
}
"""
TOOLS = """FROM scratch
COPY tool /bin/tool
ENV OF_IMAGE=image OF_BOTH=image PATH=/bin
WORKDIR /elsewhere
ENTRYPOINT ["tool", "entry"]
CMD ["by", "itself"]
"""


@pytest.fixture(scope="module")
def tools(engine: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An archive of an image with an entry point, words of its own, variables and a working directory."""
    directory, tag = tmp_path_factory.mktemp("tools"), f"p2pc-tools-{os.getpid()}"
    (directory / "tool.c").write_text(TOOL)
    subprocess.run(["gcc", "-static", "-O1", "-w", "tool.c", "-o", "tool"], cwd=directory, check=True)
    (directory / "Dockerfile").write_text(TOOLS)
    try:
        _engine(engine[0], "build", "--quiet", "--tag", tag, str(directory))
        _engine(engine[0], "save", "--output", str(directory / "image.tar"), tag)
        yield directory / "image.tar"
    finally:
        subprocess.run([engine[0], "rmi", "--force", tag], capture_output=True, check=False)


async def test_what_an_image_says_and_what_a_job_says(rig: Contained, tools: Path) -> None:
    """The entry point is the image's, words replace its own, variables of the job come before those of the image, and
    it starts in the task's directory: there are the inputs, from there outputs are fetched, elsewhere nothing stays."""
    code, text = await rig.blobs.put(tools.read_bytes()), await rig.blobs.put(b"of the task\n")
    spec = JobSpec(
        kind=TaskKind.CONTAINER,
        code=code,
        env={"OF_JOB": "job", "OF_BOTH": "job"},
        share=(InputFile("shared.txt", await rig.blobs.put(b"of the job\n")),),
    )
    sent, fetch = (InputFile("sub/sent.txt", text),), ("made/*.txt",)
    own, given = await rig.run(
        spec, TaskPayload(send=sent, fetch=fetch), TaskPayload(argv=("a b", "$HOME"), send=sent, fetch=fetch)
    )
    for outcome, words in ((own, "entry by itself"), (given, "entry a b $HOME")):
        assert outcome.status is OutcomeStatus.OK, (outcome.error, outcome.stderr)
        shown = outcome.stdout.decode().splitlines()
        said = dict(line.split("=", 1) for line in shown[1:6])
        assert shown[0] == words
        assert (said["OF_IMAGE"], said["OF_BOTH"], said["OF_JOB"]) == ("image", "job", "job")
        assert said["P2PC_TASK_ID"]
        assert said["PATH"] == "/bin", "the node's PATH names nothing in there"
        assert shown[6:] == ["in /work", "sent of the task", "shared of the job", "outside refused"]
        assert [file.name for file in outcome.files] == ["made/of.txt"]
        made = await rig.content((outcome.files[0].digest, outcome.files[0].size))
        assert made == b"made with 3 words\n"


async def test_how_they_fail(rig: Contained, engine: tuple[str, Path]) -> None:
    """Exit codes are the command's; what cannot be started says why and is not tried everywhere."""
    spec = await _image(rig, engine)
    (outcome,) = await rig.run(spec, TaskPayload(argv=("fail",)))
    assert (outcome.status, outcome.exit_code, outcome.stderr) == (OutcomeStatus.FAILED, 3, b"no luck\n")
    broken = JobSpec(kind=TaskKind.CONTAINER, code=await rig.blobs.put(b"no image at all"))
    (outcome,) = await rig.run(broken, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == FAILS_ALWAYS
    assert "no image that can be run" in outcome.error and "podman save" in outcome.error
    absent = JobSpec(kind=TaskKind.CONTAINER, image="localhost/p2pc-there-is-none:1")
    (outcome,) = await rig.run(absent, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.FAILED and outcome.cause == ""
    assert "could not run the image localhost/p2pc-there-is-none:1 here" in outcome.error


async def test_they_need_no_other_sandbox(
    rig: Contained, engine: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is what its job wants to be shut in."""

    def nowhere() -> str:
        raise sandbox.NoSandbox("no bubblewrap", "install it")

    monkeypatch.setattr(sandbox, "find_bubblewrap", nowhere)
    spec = replace(await _image(rig, engine), sandbox="sandbox")
    (outcome,) = await rig.run(spec, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.OK, outcome


async def test_they_end_with_their_tasks(rig: Contained, engine: tuple[str, Path]) -> None:
    """A time limit, a kill, and the death of the worker process leave no container."""

    def containers() -> list[str]:
        label = f"label=p2pc={rig.directory}/shared/0"
        words = [engine[0], "ps", "--all", "--quiet", "--filter", label]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    spec = await _image(rig, engine)
    (outcome,) = await rig.run(replace(spec, timeout_s=1.5), TaskPayload(argv=("sleep",)))
    assert outcome.status is OutcomeStatus.TIMEOUT and not containers()
    runs = rig.batch(spec, [TaskPayload(argv=("sleep",))])
    outcomes = rig.begin(runs)
    await wait_for(lambda: bool(containers()), "it runs")
    rig.runner.kill([runs[0].run_id])
    assert (await rig.finish(runs, outcomes))[0].status is OutcomeStatus.KILLED and not containers()
    runs = rig.batch(spec, [TaskPayload(argv=("sleep",))])
    outcomes = rig.begin(runs)
    await wait_for(lambda: bool(containers()), "it runs again")
    for pid in rig.worker_pids():
        os.kill(pid, 9)
    assert (await rig.finish(runs, outcomes))[0].status is OutcomeStatus.DIED
    (outcome,) = await rig.run(spec, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.OK and not containers(), "what a dead worker process left is still there"


async def test_whose_containers_are_run(rig: Contained, engine: tuple[str, Path]) -> None:
    """Those of installations that the node trusts, and of no other: an engine is a way to much of a machine."""
    spec = await _image(rig, engine)
    rig.submitter = ADA
    (outcome,) = await rig.run(spec, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.REFUSED and "trust set NODE trusted" in outcome.error
    rig.runner.rules.trusts = lambda submitter: submitter == ADA
    (outcome,) = await rig.run(spec, TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.OK, outcome.error


async def test_an_image_that_comes_with_a_job_takes_no_name(
    rig: Contained, engine: tuple[str, Path], tmp_path: Path
) -> None:
    """Broken: whoever is trusted to run containers changes what others get under the name of an image, or gives one to
    what the machine's owner never fetched."""
    name, archive = engine
    (tmp_path / "Dockerfile").write_text("FROM scratch\nLABEL whose=ours\n")
    mine, new = (f"localhost/p2pc-{what}-{os.getpid()}" for what in ("mine", "new"))

    def ident(image: str) -> str:
        done = subprocess.run(
            [name, "image", "inspect", "--format", "{{.Id}}", image], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    try:
        _engine(name, "build", "--quiet", "--tag", mine, str(tmp_path))
        before = ident(mine)
        for form, changes in (("docker", "manifest.json"), ("oci", "index.json")):
            forged = tmp_path / f"{form}.tar"
            image = subprocess.run([name, "load", "--input", str(archive)], capture_output=True, text=True, check=True)
            theirs = image.stdout.split()[-1]
            for called in (mine, new):
                _engine(name, "tag", theirs, called)
            extra = ("--format", f"{form}-archive") if name == "podman" else ()
            _engine(name, "save", *extra, "--output", str(forged), mine, *([new] if form == "docker" else []))
            subprocess.run([name, "tag", before, mine], check=True)
            subprocess.run([name, "rmi", new], capture_output=True, check=True)
            assert ident(mine) == before and not ident(new)
            with tarfile.open(forged) as inside:
                taken = inside.extractfile(changes)
                assert taken is not None and mine.encode() in taken.read(), "this test forges nothing"
            code = await rig.blobs.put(forged.read_bytes())
            (outcome,) = await rig.run(JobSpec(kind=TaskKind.CONTAINER, code=code), TaskPayload(argv=("go",)))
            assert outcome.status is OutcomeStatus.OK, (form, outcome.error)
            assert ident(mine) == before and not ident(new), form
    finally:
        for called in (mine, new):
            subprocess.run([name, "rmi", "--force", called], capture_output=True, check=False)


@pytest.mark.parametrize(
    "image",
    [
        "--privileged",
        "-v/:/host",
        "",
        "a b",
        "debian\n--privileged",
        "docker-archive:/etc",
        "dir:x",
        "a:/b",
        "..",
        "/etc",
        "a//b",
        "x" * 600,
    ],
)
def test_names_that_are_options_or_paths(image: str) -> None:
    """Broken: the name of an image is a flag of the engine, or a file of the machine."""
    spec = JobSpec(kind=TaskKind.CONTAINER, image=image)
    with pytest.raises((RemoteProtocolError, LocalProtocolError)):
        decode_spec(encode_spec(spec))


@pytest.mark.parametrize(
    "image",
    [
        "debian",
        "debian:12",
        "docker.io/library/debian:12",
        "host:5000/a/b:1.0_x",
        "h/a@sha256:" + "0f" * 32,
        "a:1@sha256:0f",
    ],
)
def test_names_of_images(image: str) -> None:
    spec = JobSpec(kind=TaskKind.CONTAINER, image=image)
    assert decode_spec(encode_spec(spec)).image == image


@pytest.mark.parametrize(
    ("said", "code", "what", "exit_code", "cause"),
    [
        ("Error: OCI runtime error: crun: cgroups in hybrid mode not supported", 126, "cannot start con", None, ""),
        (
            "Error: runc: unable to start container process: error setting rlimit type 7: OCI permission denied",
            *(126, "cannot start con", None, ""),
        ),
        (
            "Error: crun: open executable: Permission denied: OCI permission denied",
            126,
            "no program",
            126,
            FAILS_ALWAYS,
        ),
        ("Error: crun: executable file `go` not found in $PATH", 127, "no program", 127, FAILS_ALWAYS),
        ("sh: go: not found", 127, "ended with exit code 127", 127, ""),
        ("sh: ./go: Permission denied", 126, "ended with exit code 126", 126, ""),
        ("Error: short-name did not resolve", 125, "could not run the image", None, ""),
    ],
)
async def test_whose_fault_it_is(
    said: str,
    code: int,
    what: str,
    exit_code: int | None,
    cause: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it broke: a node whose engine does not work fails tasks for good, and their images are blamed."""
    (tmp_path / "podman").write_text(f"#!/bin/sh\n[ $1 = run ] || exit 0\necho '{said}' >&2\nexit {code}\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    rig = Rig(tmp_path)
    await rig.runner.start()
    (outcome,) = await rig.run(JobSpec(kind=TaskKind.CONTAINER, image="debian"), TaskPayload(argv=("go",)))
    assert outcome.status is OutcomeStatus.FAILED and what in outcome.error
    assert (outcome.exit_code, outcome.cause) == (exit_code, cause)
    await rig.runner.close()
    rig.blobs.shut()


async def test_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rig = Rig(tmp_path)
    rig.runner = ProcessRunner(rig.blobs, rig.directory, 1, RealClock(), node_name="nova")
    await rig.runner.start()
    (outcome,) = await rig.run(JobSpec(kind=TaskKind.CONTAINER, image="debian"), TaskPayload(argv=("true",)))
    assert outcome.status is OutcomeStatus.REFUSED and "no container engine" in outcome.error
    await rig.runner.close()
    rig.blobs.shut()


async def test_an_engine_that_does_not_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without its daemon, and one that may not do what we ask: the next one is taken, or it is said why none
    is."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(name: str, text: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    program("docker", "echo cannot connect to the daemon >&2; exit 1")
    program("apptainer", "echo no network without privileges >&2; exit 255")
    monkeypatch.setattr("shutil.which", lambda name: str(programs / name) if (programs / name).exists() else None)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    engine, why = child_containers._find_engine()
    assert not engine and "docker: cannot connect to the daemon; apptainer: no network without privileges" in why
    program("apptainer", "exit 0")
    assert child_containers._find_engine() == ("apptainer", "")
    for name in ("docker", "apptainer"):
        (programs / name).unlink()
    assert child_containers._find_engine()[1] == child_containers._NO_ENGINE
