"""Containers in a worker process: a command in the file system of an image, run by podman, docker or apptainer.

The engine is this machine's owner's, and so are the images that it has and where it fetches others from.  An image may
also come as an archive with the job (`container_images`).  The task's directory is the container's /work and where its
command starts; it has no network, no capabilities and no way to get any, and nothing of the node's environment.

An engine's own process may be killed without its container, so each container has a name, and is removed by it; what a
worker process that was killed has left is removed by the next one of its slot.

The first engine that works is used: a client without its daemon does not count, nor one that may not do what is asked.

Deviations: apptainer has no names and no list of containers; its containers are its children.  It was not tried.

Source: podman-run(1), docker-run(1), apptainer-exec(1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from p2pcompute.execution import container_images
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_commands import Commands
from p2pcompute.execution.child_space import TaskDirectory, Workplace
from p2pcompute.execution.child_tasks import Job, Stop, Task
from p2pcompute.execution.messages import Result
from p2pcompute.host.container_engines import APPTAINER, TRIALS

_WORK = "/work"
_USER = 61184
"""What a root node's containers run as: a number that no person and no service has."""
_FILES, _PROCESSES = 1024, 512
_TRIAL_S, _LOAD_S, _REMOVE_S = 30.0, 600.0, 30.0
_LOADED_MAX = 8
"""Images of archives that are kept, those used last."""
_ENGINE_FAILED, _NOT_STARTED, _NOT_FOUND = 125, 126, 127
_ENGINE_SAYS = re.compile(r"^(Error|docker|FATAL): ", re.MULTILINE)
"""What an engine says itself begins so."""
_ABOUT_PROGRAM = re.compile(r"\bexec|Permission denied: OCI|: no such file", re.IGNORECASE)
"""It speaks of the program that it was to start, not of namespaces, control groups or limits."""
_TAIL_BYTES = 2000
_WHY_CHARS = 300
_NO_ENGINE = "this node has no container engine that works; install podman there: apt-get install podman"


class Containers(Commands):
    """Runs commands in containers, one at a time."""

    what = "container"

    def __init__(self, workplace: Workplace, channel: Channel) -> None:
        super().__init__(workplace, channel)
        self._engine, self._why_none = _find_engine()
        self._label = f"p2pc={self._settings.shared_directory}/{self._settings.slot}"
        self._name = ""
        self._loaded: dict[str, str] = {}
        """Archive → image."""
        self._remove_left()

    # --- one task -------------------------------------------------------------------------------------

    def _execute(self, job: Job, task: Task, directory: TaskDirectory, result: Result) -> None:
        if not self._engine:
            raise Stop("refused", self._why_none)
        try:
            super()._execute(job, task, directory, result)
        finally:
            if self._engine != "apptainer":
                self._call("rm", "--force", self._name, limit_s=_REMOVE_S)
        if not result.signal and result.cause == "" and result.exit_code in (_ENGINE_FAILED, _NOT_STARTED, _NOT_FOUND):
            self._explain(job, task, result)

    def _words(self, job: Job, task: Task, directory: TaskDirectory) -> tuple[list[str], dict[str, str], str]:
        """Return what starts a container, for the engine's own environment."""
        image = self._load(job.code_path) if job.code_path is not None else job.container[0]
        variables = {**job.env, **task.environment(), "TMPDIR": "/tmp", "P2PC_SCRATCH": "/tmp"}
        if self._engine == "apptainer":
            words = [*APPTAINER, "--bind", f"{directory.work}:{_WORK}", "--pwd", _WORK]
            for name, value in variables.items():
                words += ["--env", f"{name}={value}"]
            source = image if job.code_path is not None else f"docker://{image}"
            return [*words, source, *task.argv], dict(os.environ), directory.work
        self._name = f"p2pc-{os.getpid()}-{task.run_id}"
        words = [self._engine, "run", "--rm", "--name", self._name, "--label", self._label, "--network", "none"]
        words += ["--cap-drop", "all", "--security-opt", "no-new-privileges", "--interactive", "--workdir", _WORK]
        words += ["--volume", f"{directory.work}:{_WORK}", *self._user(directory.work), *_limits(job)]
        for name, value in variables.items():
            words += ["--env", f"{name}={value}"]
        return [*words, image, *task.argv], dict(os.environ), directory.work

    def _user(self, work: str) -> list[str]:
        """Return who the container runs as: never the machine's root."""
        if os.getuid() != 0:
            keep = ["--userns", "keep-id"] if self._engine == "podman" else []
            return [*keep, "--user", f"{os.getuid()}:{os.getgid()}"]
        for folder, _folders, names in os.walk(work):
            os.chown(folder, _USER, _USER)
            for name in names:
                path = os.path.join(folder, name)
                if os.stat(path, follow_symlinks=False).st_nlink == 1:  # else it is shared with other tasks
                    os.chown(path, _USER, _USER, follow_symlinks=False)
        return ["--user", f"{_USER}:{_USER}"]

    def _explain(self, job: Job, task: Task, result: Result) -> None:
        """Say what an exit code of the engine means."""
        said = result.stderr.decode("utf-8", "replace").strip()[-_TAIL_BYTES:]
        if result.exit_code != _ENGINE_FAILED and not _ENGINE_SAYS.search(said):
            return  # it is the command's, as a shell has it that does not find a program
        if result.exit_code == _ENGINE_FAILED:
            what = f"{self._engine} could not run the image {job.container[0] or 'of the job'} here"
            fix = "check that this node has the image, or send it as an archive: podman save -o image.tar NAME"
            result.exit_code = None  # it is not the command's
        elif result.exit_code == _NOT_STARTED and not _ABOUT_PROGRAM.search(said):
            what = f"{self._engine} cannot start containers on this node"
            fix = f"see there: {self._engine} run --rm IMAGE COMMAND"
            result.exit_code = None
        else:
            what = f"the image has no program {task.argv[0] if task.argv else 'to run by itself'!r} that can be started"
            fix = "check its name, and that it is for this machine"
            result.cause = "always"
        result.error = f"{what}; {fix}\n{said}" if said else f"{what}; {fix}"

    # --- images and what is left ----------------------------------------------------------------------

    def _load(self, path: str) -> str:
        """Return the image in an archive.

        Raises:
            Stop: it is none.
        """
        if self._engine == "apptainer":
            return f"docker-archive:{path}"
        image = self._loaded.pop(path, "")
        if not image:
            said = container_images.load(self._engine, path, limit_s=_LOAD_S)
            name = said.strip().rpartition("\n")[2].rpartition(" ")[2].removesuffix(",")
            image = (
                self._call("image", "inspect", "--format", "{{.Id}}", name, limit_s=_REMOVE_S).strip() if name else ""
            )
        if not image:
            raise Stop(
                "failed", "the file is no image that can be run; make it with: podman save -o image.tar NAME", "always"
            )
        self._loaded[path] = image
        if len(self._loaded) > _LOADED_MAX:
            self._call("rmi", self._loaded.pop(next(iter(self._loaded))), limit_s=_REMOVE_S)
        return image

    def _remove_left(self) -> None:
        if self._engine in ("", "apptainer"):
            return
        left = self._call("ps", "--all", "--quiet", "--filter", f"label={self._label}", limit_s=_REMOVE_S).split()
        if left:
            self._call("rm", "--force", *left, limit_s=_REMOVE_S)

    def _call(self, *words: str, limit_s: float) -> str:
        """Return what the engine says; "" when it fails."""
        try:
            done = subprocess.run(
                [self._engine, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _find_engine() -> tuple[str, str]:
    """Return the name of the first engine that works here, or "" and why there is none."""
    why = []
    for name, words in TRIALS.items():
        if shutil.which(name) is None:
            continue
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why.append(f"{name}: {error}")
            continue
        if done.returncode == 0:
            return name, ""
        why.append(f"{name}: {done.stderr.strip()[-_WHY_CHARS:] or f'exit code {done.returncode}'}")
    return "", f"{_NO_ENGINE} ({'; '.join(why)})" if why else _NO_ENGINE


def _limits(job: Job) -> list[str]:
    _image, mem_bytes, cpus, cpu_s, output_bytes_max = job.container
    words = ["--ulimit", f"nofile={_FILES}:{_FILES}", "--ulimit", f"nproc={_PROCESSES}:{_PROCESSES}"]
    words += ["--ulimit", "core=0:0"]
    if mem_bytes is not None:
        words += ["--memory", f"{mem_bytes}b"]
    if cpus >= 1:
        words += ["--cpus", f"{min(cpus, os.cpu_count() or 1):g}"]
    if cpu_s is not None:
        seconds = max(1, int(cpu_s + 0.999))
        words += ["--ulimit", f"cpu={seconds}:{seconds + 2}"]
    if output_bytes_max is not None:
        words += ["--ulimit", f"fsize={output_bytes_max}:{output_bytes_max}"]
    return words
