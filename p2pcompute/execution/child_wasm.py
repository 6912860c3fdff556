"""WASI modules in a worker process: an engine process for each job, killed when one of its tasks is too much."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from time import sleep

from p2pcompute.execution import messages
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_commands import Commands, Running, children_cpu_s
from p2pcompute.execution.child_fence import given_up
from p2pcompute.execution.child_files import copy_file
from p2pcompute.execution.child_os import SIGKILL, oom_kills
from p2pcompute.execution.child_space import TaskDirectory, Workplace
from p2pcompute.execution.child_tasks import CACHE, BoxSettings, ChannelClosed, Job, Stop, Task
from p2pcompute.execution.messages import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ_BYTES = 1 << 16
_HOLD_TRIES = 200
_CACHED_MAX = 8
"""Compiled modules that are kept, those used last: a worker process of this user may live for weeks."""
_SLOT = "PARALLEL_JOBSLOT"
"""Differs from run to run."""


class _Engine(Running):
    """The process that has a job's module, and what it says."""

    def __init__(self, job: Job, directory: str, fence: BoxSettings | None) -> None:
        """Start it.

        Args:
            directory: of the worker process.
            fence: what it gives up before it looks at the module; None: it is in a sandbox, or the module is ours.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-P", "-m", "p2pcompute.execution.wasm_engine", str(theirs.fileno())]
        with theirs:
            theirs.set_inheritable(True)
            search = os.pathsep.join(filter(None, sys.path))
            environment = {"PYTHONPATH": search, "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
            with open(os.path.join(directory, "wasm-log"), "ab") as log:
                pid = _start(words, environment, log.fileno())
        super().__init__(pid)
        self.job = job.number
        self._socket = ours
        self._buffer = b""
        mem_bytes, fuel = job.wasm
        setup = {"code": job.code_path, "cache": CACHE, "directory": directory, "mem_bytes": mem_bytes, "fuel": fuel}
        self.say({**setup, "fence": None if fence is None else given_up(fence)})

    def say(self, message: dict[str, Any]) -> None:
        """Send a message; that it has died is seen when its answer is waited for."""
        try:
            self._socket.sendall(messages.pack_down((message,)))
        except OSError:
            return

    def wake(self) -> int:
        return os.dup(self._socket.fileno())

    def has_exited(self) -> bool:
        """Whether there is an answer, or nobody who could give one."""
        while not self._is_complete():
            try:
                data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self._buffer += data
        return True

    def _is_complete(self) -> bool:
        head = messages.WASM_ANSWER
        return len(self._buffer) >= head.size and len(self._buffer) >= head.size + head.unpack_from(self._buffer)[4]

    def answer(self) -> tuple[int, int, int, float, str] | None:
        """Return what it said: how, exit code, memory, CPU seconds and text; None: it has died."""
        if not self._is_complete():
            return None
        head = messages.WASM_ANSWER
        how, code, used, cpu_s, size = head.unpack_from(self._buffer)
        text = self._buffer[head.size : head.size + size].decode("utf-8", "replace")
        self._buffer = self._buffer[head.size + size :]
        return how, code, used, cpu_s, text[: messages.WASM_TEXT_BYTES_MAX]

    def signal(self, number: int) -> None:
        """Send a signal to this process alone: its group is ours."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def hold(self) -> bool:
        """Let it stand still until `go_on`: what its module has left is looked at meanwhile.  False: it does not."""
        if not hasattr(os, "waitid"):
            self.signal(signal.SIGSTOP)
            return True
        for attempt in range(_HOLD_TRIES):
            self.signal(signal.SIGSTOP)  # again, in case that the machine's owner lets everything go on just now
            if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return True
            sleep(0.0 if attempt < _HOLD_TRIES // 2 else 0.01)
        return False

    def go_on(self) -> None:
        """Let it go on, when it stood still."""
        self.signal(signal.SIGCONT)

    def end(self) -> None:
        """Kill and reap it."""
        self.signal(SIGKILL)
        self.reap()
        self.close()

    def close(self) -> None:
        """Close our end, after it was reaped."""
        self._socket.close()


def _start(words: list[str], environment: dict[str, str], log: int) -> int:
    """Start a program in our process group, which dies with the node; return its process."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        return os.posix_spawn(words[0], words, environment, file_actions=actions)
    finally:
        os.close(null)


class WasmTasks(Commands):
    """Runs WASI modules one after the other."""

    what = "module"

    def __init__(self, workplace: Workplace, channel: Channel) -> None:
        super().__init__(workplace, channel)
        self._engine: _Engine | None = None
        self._cached: dict[str, None] = {}
        """Names of compiled modules, the least recently used first."""
        box = workplace.settings.box
        self._fence = box if box is not None and box.is_fence else None

    def forget(self, number: int) -> None:
        """Drop the module of a job."""
        if self._engine is not None and self._engine.job == number:
            self.end()

    def end(self) -> None:
        """End the engine process: a task of another kind would sweep it away."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.end()

    def _execute(self, job: Job, task: Task, directory: TaskDirectory, result: Result) -> None:
        if not task.argv or job.code_path is None:
            raise Stop("refused", "a module without words, or words without a module")
        (_, out_path), (_, err_path) = outputs = [self._out_files.new(), self._out_files.new()]
        words = {
            "argv": list(task.argv),
            "env": {**{name: value for name, value in job.env.items() if name != _SLOT}, **task.environment()},
            "directory": self._near(directory.work),
            "stdin": self._near(self._stdin_path(task)),
            "stdout": self._near(out_path),
            "stderr": self._near(err_path),
            "seed": task.task_id,
            "index": task.index,
            "cpu_s": job.cpu_s,
        }
        fds = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
        try:
            for path in (out_path, err_path):
                fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            ooms = oom_kills()
            self._cpu_s_before = children_cpu_s()
            if self._engine is not None and self._engine.job != job.number:
                self.end()
            here = self._settings.directory
            os.makedirs(os.path.join(here, CACHE), mode=0o700, exist_ok=True)
            self._use(os.path.join(here, CACHE), os.path.basename(job.code_path))
            if self._fence is not None:
                self._hand_over(directory, outputs)
            engine = self._engine = self._engine or _Engine(job, here, self._fence)
            engine.go_on()
            self._has_begun = True
            engine.say(words)
            cause = self._watch(job, task, engine, fds[1:])
            answer = None if cause else engine.answer()
            if answer is not None:
                _judge(result, answer)
                if self._fence is not None and not engine.hold():
                    self.end()
            else:
                self._engine = None
                self._judge(job, result, engine, cause, ooms)
                engine.close()
        except ChannelClosed:
            self.end()
            raise
        finally:
            self._take_output(result, fds, outputs)

    def _use(self, cache: str, name: str) -> None:
        """Note that a compiled module is used; remove the one that was not for the longest time."""
        self._cached.pop(name, None)
        self._cached[name] = None
        if len(self._cached) > _CACHED_MAX:
            oldest = next(iter(self._cached))
            del self._cached[oldest]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(cache, oldest))

    def _near(self, path: str) -> str:
        """Return a path as the engine knows it, whose current directory is ours."""
        return path.removeprefix(self._settings.directory + "/")

    def _hand_over(self, directory: TaskDirectory, outputs: list[tuple[int, str]]) -> None:
        """Give what a task may write to the user that its engine has become."""
        user = self._fence.user if self._fence is not None else None
        if user is None:
            return
        here = self._settings.directory
        for passage in (here, os.path.join(here, "out"), os.path.dirname(directory.work)):
            os.chmod(passage, 0o711)
        for path in (os.path.join(here, CACHE), directory.work, *(path for _, path in outputs)):
            os.chown(path, user, user)
        for _, names, files, descriptor in os.fwalk(directory.work):
            for name in (*names, *files):
                os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)

    def _stdin_path(self, task: Task) -> str:
        if task.stdin_path is not None and self._fence is None:
            return task.stdin_path
        if not task.stdin and task.stdin_path is None:
            return os.devnull
        _, path = self._out_files.new()
        if task.stdin_path is not None:
            copy_file(task.stdin_path, path, 0o444)
            return path
        with open(path, "xb") as file:
            file.write(task.stdin)
        os.chmod(path, 0o444)
        return path


def _judge(result: Result, answer: tuple[int, int, int, float, str]) -> None:
    """Fill in how a task ended.  What a module does is the same on every node, and so is its failure."""
    how, code, result.peak_rss_bytes, result.cpu_s, text = answer
    if how == messages.WASM_BROKEN:
        result.status, result.error = "not-run", f"the module could not be run here: {text}"
        return
    if how == messages.WASM_EXIT:
        result.exit_code = code
        text = f"the module ended with exit code {code}" if code else ""
    if text:
        result.status, result.error = "failed", text
        result.cause = "" if how == messages.WASM_SHORT else "always"
