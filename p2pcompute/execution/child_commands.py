"""Commands in a worker process: fork, exec, watch, kill the whole group, collect."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import stat
import sys
from time import monotonic, time

from p2pcompute.execution import messages
from p2pcompute.execution.box_watch import LOOK_S
from p2pcompute.execution.checkpoints import (
    COOKIE_BYTES_MAX,
    EXIT_MOVED,
    FILES_MAX,
    MOVED,
    TooLarge,
    pack_directory,
    unpack_directory,
)
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_os import SIGKILL, SIGTERM, oom_kills, set_command_limits
from p2pcompute.execution.child_space import TaskDirectory, Workplace, current_directory
from p2pcompute.execution.child_tasks import ChannelClosed, Job, Settings, Stop, Task
from p2pcompute.execution.messages import Result
from p2pcompute.execution.programs import HEAD_BYTES, loader_of, machine_name, made_for
from p2pcompute.execution.trees import empty_directory

_POLL_S = 0.01
"""How often we look after the command where the system has no pidfd."""
STILL_LOOK_S = 1.0
"""How often a task with a time limit is looked at, so that it shows when it stood still."""
_STILL_S = 1.0
SAVED_LOOK_S = 0.5
"""How often we look whether a command has saved its state."""
_FAILED_BEFORE_EXEC = 126
_NOT_FOUND = 127
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_LASTING = (*_MISSING, errno.ENOEXEC, errno.EACCES, errno.E2BIG, errno.ELOOP, errno.ENAMETOOLONG)
"""Why a command could not be started, where it is the same for the next attempt on this node."""
_ARCHES = ("x86_64", "aarch64", "riscv64", "s390x", "ppc64le", "loongarch64")
"""Machines that nodes call in their attribute `arch` as programs for them are called here."""


def _candidates(word: str, path: str) -> list[str]:
    """Return the files that a shell would try for the first word of a command."""
    if "/" in word:
        return [word]
    return [os.path.join(directory or ".", word) for directory in path.split(":")]


def explain_exec_error(word: str, number: int, path: str, directory: str) -> tuple[int, str]:
    """Return the exit code of a shell for a command that could not be started, and what / why / fix."""
    present = [name for name in _candidates(word, path) if os.path.exists(os.path.join(directory, name))]
    if number in _MISSING:
        if present:
            if loader := loader_of(_head(os.path.join(directory, present[0]))):
                return _FAILED_BEFORE_EXEC, (
                    f"the command {word!r} cannot be started (it asks for the loader {loader}, which is not on this "
                    "node); link it statically, or let nodes run it that have that system: --on"
                )
            return _FAILED_BEFORE_EXEC, (
                f"the command {word!r} cannot be started (the interpreter named in its first line is not on this "
                "node); install it there, or name the interpreter: python3 SCRIPT"
            )
        where = "there is no such file in the task's directory" if "/" in word else "it is in no directory of PATH"
        return _NOT_FOUND, (
            f"the command {word!r} was not found ({where} on this node); "
            "install it there, send it along with --send, or check the spelling"
        )
    if number == errno.ENOEXEC:
        if machine := made_for(_head(os.path.join(directory, present[0]))) if present else "":
            return _FAILED_BEFORE_EXEC, f"the command {word!r} cannot be started {_wrong_machine(machine)}"
        return _FAILED_BEFORE_EXEC, (
            f"the command {word!r} cannot be started (it is no program for this machine and has no '#!' line); "
            "run it with its interpreter: sh SCRIPT"
        )
    if number == errno.EACCES:
        is_directory = any(os.path.isdir(os.path.join(directory, name)) for name in present)
        why = "it is a directory" if is_directory else "it is not executable"
        return _FAILED_BEFORE_EXEC, f"the command {word!r} cannot be started ({why}); set its mode: chmod +x FILE"
    if number == errno.E2BIG:
        return _FAILED_BEFORE_EXEC, (
            f"the command {word!r} cannot be started (its words and environment are too long for this system); "
            "pass the long part by --stdin or as a file with --send"
        )
    why = os.strerror(number)
    return _FAILED_BEFORE_EXEC, f"the command {word!r} cannot be started ({why}); check the limits on that node"


def _wrong_machine(machine: str) -> str:
    """Return why a program for a machine is none for this one, and what to do."""
    here = os.uname().machine
    if machine == machine_name(here):
        return (
            f"(its first bytes are those of a program for {machine}, which this node is, but the system does not take "
            "it: it is damaged or cut off); build it anew, and run it once on your own machine"
        )
    fix = f"--require arch={machine}" if machine in _ARCHES else "send one for these machines"
    return f"(it is a program for {machine}, and this node is {sys.platform} {here}); let nodes run it that can: {fix}"


def where_it_fails(word: str, number: int, directory: str, *, is_own: bool) -> str:
    """Return the cause of a command that could not be started.

    Args:
        is_own: it started in its task's directory, whose files are the same on every node.

    Returns:
        "always": it fails everywhere. "machine": on machines like this one. "here": on this node, until somebody
        installs something. "": it may have been chance.
    """
    if number not in _LASTING:
        return ""
    path = os.path.join(directory, word)
    if not is_own or "/" not in word or os.path.isabs(word):
        return "here"
    if number in _MISSING:
        return "here" if os.path.exists(path) else "always"  # its interpreter is missing on this node
    if number == errno.ENOEXEC:
        machine = made_for(_head(path))
        return "machine" if machine and machine != machine_name(os.uname().machine) else "always"
    return "always" if number == errno.EACCES else "here"


def _head(path: str) -> bytes:
    """Return the first bytes of a regular file; b"" when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, HEAD_BYTES, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


class _Start:
    """What is needed to start a command."""

    __slots__ = ("argv", "directory", "env", "fds", "job", "run_id")

    def __init__(
        self, job: Job, argv: list[str], env: dict[str, str], directory: str, fds: list[int], run_id: int
    ) -> None:
        self.job = job
        self.argv = argv
        self.env = env
        self.directory = directory
        self.fds = fds
        self.run_id = run_id


class Running:
    """A command that was started, and how it ended once that is known."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._end: tuple[int, resource.struct_rusage] | None = None

    def wake(self) -> int:
        """Return a new descriptor that becomes readable when `has_exited` has changed; -1: the system has none."""
        try:
            return os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return -1

    def has_exited(self) -> bool:
        """Look without reaping where the system can: until then its process group is surely its own."""
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if self._end is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            self._end = (status, usage) if pid else None
        return self._end is not None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def reap(self) -> tuple[int, resource.struct_rusage]:
        """Return wait status and usage; waits for the end."""
        if self._end is None:
            _, status, usage = os.wait4(self.pid, 0)
            self._end = (status, usage)
        return self._end


class _Saved:
    """The directory into which a command puts what it has reached."""

    def __init__(self, path: str, cookie: bytes) -> None:
        """Put there what an earlier attempt has saved; what cannot be read is as if there were none."""
        self._path = path
        self._seen = hash(b"")
        self.error = ""
        """Why what is there is not told."""
        if cookie:
            try:
                unpack_directory(cookie, path)
                self._seen = hash(pack_directory(path))  # the same once more is no progress
            except (ValueError, TooLarge):
                empty_directory(path)
        self._changed_at = os.stat(path).st_mtime_ns
        self.has_any = False
        """Whether the command has saved anything itself."""

    def changed(self) -> bytes:
        """Return the cookie when it is another one than before; b"": it is not, or there is none."""
        try:
            changed_at = os.stat(self._path).st_mtime_ns
            if changed_at == self._changed_at:
                return b""
            self._changed_at = changed_at
            cookie = pack_directory(self._path)
            self.error = ""
        except TooLarge as error:
            self.error = (
                f"that is more than may be kept ({error}; most are {FILES_MAX} files, {COOKIE_BYTES_MAX} bytes)"
            )
            return b""
        except OSError as error:
            self.error = f"it cannot be read: {error}"
            return b""
        self.has_any = bool(cookie)
        before, self._seen = self._seen, hash(cookie)
        return b"" if self._seen == before else cookie


class Commands:
    """Runs commands one after the other, each in its own session and in an empty directory."""

    what = "command"
    """Of errors."""

    def __init__(self, workplace: Workplace, channel: Channel) -> None:
        self._settings = workplace.settings
        self._libc = workplace.libc
        self._life_line = workplace.life_line
        self._workplace = workplace
        self._out_files = workplace.out_files
        self._channel = channel
        self._serial = 0
        self._cpu_s_before = 0.0
        self._saved: _Saved | None = None
        self._has_begun = False
        """The command has been started: what is wrong from then on is its own doing."""
        self._directory: TaskDirectory | None = None
        """Of the command before, empty."""

    def run(self, job: Job, task: Task) -> Result:
        """Run one command to its end.

        Raises:
            ChannelClosed: the node went away; the command was killed.
        """
        result = Result(task.run_id)
        result.started_wall = time()
        started = monotonic()
        if self._workplace.watch is not None:
            self._workplace.watch.begin(job.cpu_s)
        directory = self._take_directory()
        self._has_begun = False
        try:
            self._workplace.place_inputs(directory, job, task)
            self._saved = _Saved(directory.saved, task.cookie())
            self._execute(job, task, directory, result)
            self._workplace.collect_outputs(directory, job, task, result)
        except Stop as stop:
            result.status, result.error, result.cause = stop.status, stop.error, stop.cause
        except OSError as error:
            if self._has_begun:  # what is ours was there before
                result.status, result.cause = "failed", ""
                result.error = f"the {self.what} has changed files that are not its own, as its result: {error}"
            else:
                result.status, result.error = "not-run", f"the {self.what} could not be set up here: {error}"
        watch = self._workplace.watch
        if result.status == "failed" and watch is not None and (full := watch.what_is_full()):
            result.error = f"{result.error}; {full}"
            if result.cause == "always":
                result.cause = ""  # elsewhere there may be more room
        result.runtime_s = monotonic() - started
        if directory.recycle():
            self._directory = directory
        else:
            directory.remove()
        return result

    def _take_directory(self) -> TaskDirectory:
        """Return an empty directory: that of the command before, or a new one."""
        directory, self._directory = self._directory, None
        if directory is None:
            self._serial += 1
            path = os.path.join(self._settings.directory, f"command-{self._serial}")
            directory = TaskDirectory(path, has_scratch=True)
        return directory

    def _execute(self, job: Job, task: Task, directory: TaskDirectory, result: Result) -> None:
        argv, env, here = self._words(job, task, directory)
        outputs = [self._out_files.new(), self._out_files.new()]
        fds = [self._open_stdin(task)]
        try:
            for _, path in outputs:
                fds.append(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            ooms = oom_kills()
            self._cpu_s_before = children_cpu_s()
            start = _Start(job, argv, env, here, fds, task.run_id)
            pid, error = self._spawn(start)
            if error:
                os.waitpid(pid, 0)
                self._life_line.guard(os.getpgrp())
                result.status = "failed"
                path = env.get("PATH", os.defpath)
                result.exit_code, result.error = explain_exec_error(argv[0], error, path, here)
                result.cause = where_it_fails(argv[0], error, here, is_own=here == directory.work)
                return
            self._has_begun = True
            command = Running(pid)
            cause = self._watch(job, task, command, fds[1:])
            self._judge(job, result, command, cause, ooms)
            if job.kind == "shell" and result.exit_code == _FAILED_BEFORE_EXEC and not cause:
                _explain_shell(result, task.argv[0], here, is_own=here == directory.work)
            if cause == "killed" or (not cause and result.exit_code == EXIT_MOVED):
                self._save_last(task, result, cause)
        finally:
            self._take_output(result, fds, outputs)

    def _words(self, job: Job, task: Task, directory: TaskDirectory) -> tuple[list[str], dict[str, str], str]:
        """Return the words of a task, its environment and where it starts.

        Raises:
            Stop: there are none.
        """
        here = current_directory(directory, job, task)
        env = {**job.env, "TMPDIR": directory.scratch, "P2PC_SCRATCH": directory.scratch, "PWD": here}
        env["P2PC_CHECKPOINT"] = directory.saved
        env.update(task.environment())
        argv = ["/bin/sh", "-c", *task.argv[:1]] if job.kind == "shell" else list(task.argv)
        if not argv:
            raise Stop("refused", "a command without words")
        return argv, env, here

    def _open_stdin(self, task: Task) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        if task.stdin_path is not None:
            return os.open(task.stdin_path, flags)
        if not task.stdin:
            return os.open("/dev/null", flags)
        _, path = self._out_files.new()
        with open(path, "xb") as file:
            file.write(task.stdin)
        fd = os.open(path, flags)
        os.unlink(path)
        return fd

    def _spawn(self, start: _Start) -> tuple[int, int]:
        """Fork and exec; return the pid and 0, or the pid and the errno of what failed."""
        reader, writer = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            number = errno.EIO
            try:
                number = self._become(start, parent)
            except OSError as error:
                number = error.errno or errno.EIO
            finally:
                os.write(writer, number.to_bytes(4, "big"))
                os._exit(_NOT_FOUND)
        os.close(writer)
        self._life_line.guard(pid)
        answer = os.read(reader, 4)
        os.close(reader)
        return pid, int.from_bytes(answer, "big")

    def _become(self, start: _Start, parent: int) -> int:
        """In the new process: never returns but with the errno of what a shell would report.

        It names its group to the node itself, before it can have children: whenever we are killed, the node knows whom
        to kill.  We write nothing meanwhile.
        """
        os.setsid()
        self._libc.die_with_parent()
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(_NOT_FOUND)
        if self._settings.box is None:
            self._channel.send(messages.pack_started(start.run_id, os.getpid()))
        for target, fd in enumerate(start.fds):
            os.dup2(fd, target)
        os.chdir(start.directory)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would keep that
            signal.signal(number, signal.SIG_DFL)
        set_command_limits(start.job)
        worst = errno.ENOENT
        for file in _candidates(start.argv[0], start.env.get("PATH", os.defpath)):
            try:
                os.execve(file, start.argv, start.env)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR) and worst == errno.ENOENT:
                    worst = error.errno or errno.EIO
        return worst

    # --- while it runs --------------------------------------------------------------------------------

    def _watch(self, job: Job, task: Task, command: Running, outputs: list[int]) -> str:
        """Wait for the end of the command; return why it was ended: "", "killed", "wall", "oom" or "output"."""
        watch = self._workplace.watch
        poll = select.poll()
        poll.register(self._channel.fd, select.POLLIN)
        if (wake := command.wake()) >= 0:
            poll.register(wake, select.POLLIN)
        cause = ""
        saved_at = monotonic() + SAVED_LOOK_S
        deadline = None if job.timeout_s is None else monotonic() + job.timeout_s
        try:
            while not command.has_exited():
                wait_s = None if deadline is None else max(0.0, deadline - monotonic())
                if wake < 0:
                    wait_s = min(_POLL_S, _POLL_S if wait_s is None else wait_s)
                if watch is not None:
                    wait_s = min(LOOK_S, LOOK_S if wait_s is None else wait_s)
                wait_s = STILL_LOOK_S if wait_s is None else min(wait_s, STILL_LOOK_S)
                before = monotonic()
                if before >= saved_at:
                    saved_at = before + SAVED_LOOK_S
                    self._look_saved(task)
                ready = poll.poll(wait_s * 1000 + 1)
                if deadline is not None:
                    deadline += stood_still_s(before, wait_s)
                if watch is not None:
                    watch.reap(command.pid)
                if watch is not None and not cause and (cause := watch.look(_largest(outputs))):
                    command.signal(SIGKILL)
                    continue
                if any(fd == self._channel.fd for fd, _ in ready):
                    self._channel.receive_now()
                    self._channel.answer_peeks(task.run_id, outputs)
                    if not cause and task.run_id in self._channel.killed:
                        cause = "killed"
                        deadline = self._terminate(command)
                if deadline is not None and monotonic() >= deadline:
                    if cause:
                        command.signal(SIGKILL)
                        deadline = None
                    else:
                        cause = "wall"
                        deadline = self._terminate(command)
        except ChannelClosed:
            command.signal(SIGKILL)
            raise
        finally:
            if wake >= 0:
                os.close(wake)
        return cause

    def _look_saved(self, task: Task) -> None:
        """Tell the node what the command has saved since the last look."""
        if self._saved is not None and (cookie := self._saved.changed()):
            self._channel.send(messages.pack_saved(task.run_id, cookie))

    def _save_last(self, task: Task, result: Result, cause: str) -> None:
        """The command has ended and is to go on elsewhere: tell the node what it saved at last."""
        if self._saved is None:
            return
        self._look_saved(task)
        if cause:
            return
        if self._saved.error:
            result.error = f"{result.error} (it has saved its state), but {self._saved.error}"
        elif self._saved.has_any:
            result.status, result.cause = "killed", MOVED
            result.error = f"the command has saved its state, to go on elsewhere (exit code {EXIT_MOVED})"
        else:
            result.error = f"{result.error} (it has saved its state), but there is no file in P2PC_CHECKPOINT"

    def _terminate(self, command: Running) -> float:
        """Send SIGTERM to the group (and SIGCONT, or a stopped one would not see it); return when SIGKILL is due."""
        command.signal(SIGTERM)
        command.signal(signal.SIGCONT)
        return monotonic() + self._settings.kill_grace_s

    def _judge(self, job: Job, result: Result, command: Running, cause: str, ooms: int) -> None:
        """Reap the command, kill what is left of it, and fill in how it ended."""
        command.signal(SIGKILL)
        status, usage = command.reap()
        self._life_line.guard(os.getpgrp())
        self._workplace.sweep()
        result.cpu_s = children_cpu_s() - self._cpu_s_before
        result.peak_rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if self._workplace.watch is not None:
            result.peak_rss_bytes = max(result.peak_rss_bytes, self._workplace.watch.peak_bytes)
        if os.WIFSIGNALED(status):
            result.signal = os.WTERMSIG(status)
        else:
            result.exit_code = os.WEXITSTATUS(status)
        if cause:
            judge_end(job, self._settings, result, cause, self.what)
        elif result.signal:
            judge_signal(job, result, ooms, self.what)
        elif result.exit_code:
            result.status, result.error = "failed", f"the command ended with exit code {result.exit_code}"

    def _take_output(self, result: Result, fds: list[int], outputs: list[tuple[int, str]]) -> None:
        inline_bytes_max = self._settings.inline_bytes_max
        taken = []
        try:
            for fd, (number, path) in zip(fds[1:], outputs, strict=False):
                size = os.fstat(fd).st_size
                data = os.pread(fd, inline_bytes_max, max(0, size - inline_bytes_max)) if size else b""
                if size <= inline_bytes_max:
                    os.unlink(path)
                    number = 0
                taken.append((data, number))
        finally:
            for fd in fds:
                os.close(fd)
        if len(taken) == 2:
            (result.stdout, result.stdout_file), (result.stderr, result.stderr_file) = taken


def _explain_shell(result: Result, script: str, directory: str, *, is_own: bool) -> None:
    """Say of a shell's "Exec format error" what it is about: the program that its script begins with."""
    word = script.split(maxsplit=1)[0] if script.strip() else ""
    if "/" not in word or not made_for(_head(os.path.join(directory, word))):
        return
    _, said = explain_exec_error(word, errno.ENOEXEC, "", directory)
    result.error = f"{result.error}: {said}"
    result.cause = where_it_fails(word, errno.ENOEXEC, directory, is_own=is_own)


def stood_still_s(before: float, wait_s: float) -> float:
    """Return how long we stood still instead of waiting for `wait_s` from `before` on; 0 when we were just late.

    The machine's owner may stop this process and its task (`standstill`): that is not the task's time.
    """
    late_s = monotonic() - before - wait_s
    return late_s if late_s > _STILL_S else 0.0


def children_cpu_s() -> float:
    """Return what all processes that were reaped here have used: of a task also those that it had left behind."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _largest(fds: list[int]) -> int:
    return max(os.fstat(fd).st_size for fd in fds)


def signal_name(number: int) -> str:
    """Return the name of a signal, as in SIGSEGV."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def judge_end(job: Job, settings: Settings, result: Result, cause: str, what: str) -> None:
    """Say why we ended a task."""
    peak_mib = result.peak_rss_bytes >> 20
    if cause == "killed":
        result.status, result.error = "killed", "stopped on request"
    elif cause == "wall":
        result.status, result.cause = "timeout", "wall"
        result.error = f"the {what} did not end within {job.timeout_s:g} s and was stopped"
    elif settings.box is not None and cause == "oom":
        result.status, result.cause = "failed", "oom"
        limit_mib = settings.box.mem_bytes >> 20
        result.error = (
            f"the {what} used {peak_mib} MiB of memory in all its processes, more than the {limit_mib} MiB it may use "
            "here; ask for more: --mem"
        )
    elif cause == "cpu":
        result.status, result.cause = "timeout", "cpu"
        result.error = f"the {what} used its {job.cpu_s or 0:g} s of CPU time, in all its processes, and was stopped"
    elif settings.box is not None and cause == "disk":
        result.status, result.cause = "failed", "disk"
        limit = f"{settings.box.disk_bytes >> 20} MiB, or {settings.box.files_max} files"
        result.error = f"the {what} wrote more than the {limit} that it may have here; ask for more: --disk"
    elif settings.box is not None and cause == "output":
        result.status, result.cause = "failed", "output"
        limit_mib = settings.box.output_bytes_max >> 20
        result.error = f"the {what} wrote more than {limit_mib} MiB of output; write it to a file and --fetch that"


def judge_signal(job: Job, result: Result, ooms: int, what: str) -> None:
    """Say why a signal ended a task: a limit, want of memory, itself or somebody."""
    name = signal_name(result.signal)
    cpu_limit_reached = job.cpu_s is not None and result.cpu_s >= max(1.0, job.cpu_s) - 0.1
    if result.signal == signal.SIGXCPU or (result.signal == signal.SIGKILL and cpu_limit_reached):
        result.status, result.cause = "timeout", "cpu"
        result.error = f"the {what} used its {job.cpu_s or 0:g} s of CPU time and was stopped"
    elif result.signal == signal.SIGKILL and oom_kills() > ooms:
        result.status, result.cause = "died", "oom"
        peak_mib = result.peak_rss_bytes >> 20
        result.error = f"the {what} was killed for want of memory (it had used up to {peak_mib} MiB)"
    elif result.signal == signal.SIGKILL:
        result.status, result.cause = "died", "signal"
        result.error = f"the {what} was killed with SIGKILL by itself or by somebody on that machine"
    elif result.signal == signal.SIGXFSZ:
        result.status = "failed"
        limit = f"its limit of {job.output_bytes_max} bytes" if job.output_bytes_max is not None else "it may be here"
        result.error = f"the {what} wrote a file larger than {limit}"
    else:
        result.status = "failed"
        result.error = f"the {what} was ended by {name}"
        if job.mem_bytes is not None and result.signal in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
            result.error += f"; it may have met its memory limit of {job.mem_bytes / 2**20:g} MiB (--mem)"
