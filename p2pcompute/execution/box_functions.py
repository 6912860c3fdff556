"""Functions in a sandbox: a process that has loaded the job's function, and for each task a fork of it.

What a function's module does when it is loaded happens once, in that process; a task's own doings end with its fork.
Both are the submitter's: the first process of the sandbox believes neither, and its own eyes where it can (exit status,
time, memory).
"""

from __future__ import annotations

import _socket
import marshal
import os
import resource
import select
import signal
import stat
import struct
from time import monotonic, time

from p2pcompute.execution import box_setup, messages
from p2pcompute.execution.box_watch import LOOK_S, processes
from p2pcompute.execution.checkpoints import COOKIE_BYTES_MAX
from p2pcompute.execution.child_channel import Channel
from p2pcompute.execution.child_commands import judge_end, judge_signal, stood_still_s
from p2pcompute.execution.child_os import SIGKILL, SIGTERM, oom_kills, set_command_limits
from p2pcompute.execution.child_space import Workplace
from p2pcompute.execution.child_tasks import Job, Task
from p2pcompute.execution.messages import HEAD, Result
from p2pcompute.execution.progress import read as read_progress

_READ_BYTES = 1 << 16
_MESSAGE_BYTES_MAX = 1 << 25
"""More than any result that is sent inline."""
_ENDED = 5
_ENDED_BODY = struct.Struct(">BidQ")
"""From the process that holds the function: kind, wait status, CPU s and peak RSS in bytes of a fork that has ended."""
_TAIL_S = 0.2
"""The process that holds the function says so much later, at most, that its fork has ended."""
_OOM_LOOK_S = 1.0
"""How often the kernel's count of processes killed for want of memory is read: it costs as much as a tiny task."""
_CPU_S_MAX, _PEAK_BYTES_MAX = 1e9, 1 << 60
_OUTPUTS = ("stdout", "stderr")
_OWN_FD = 3


class _Broken(Exception):
    """The processes of the job said what cannot be, or are gone."""


class _Zygote:
    """The process that holds a job's function, as the first process of the sandbox sees it."""

    def __init__(self, workplace: Workplace, job: Job, channel_fd: int, environment: str) -> None:
        self.job = job
        ours, theirs = _socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(channel_fd)
                ours.close()
                _hold(workplace, job, theirs.detach(), environment)
            finally:
                os._exit(1)
        theirs.close()
        self.fd = ours.detach()
        self.pidfd = os.pidfd_open(self.pid)
        self._buffer = bytearray()

    def begin(self, task: Task) -> None:
        """Start a task.

        Raises:
            _Broken: the process is gone.
        """
        body = marshal.dumps(tuple(task.fields))
        frame = HEAD.pack(len(body)) + body
        try:
            while frame:
                frame = frame[os.write(self.fd, frame) :]
        except OSError as error:
            raise _Broken from error

    def read(self) -> list[bytes]:
        """Return the messages that are complete; waits for bytes.

        Raises:
            _Broken: too long a message, or the end.
        """
        try:
            data = os.read(self.fd, _READ_BYTES)
        except OSError as error:
            raise _Broken from error
        if not data:
            raise _Broken
        buffer = self._buffer
        buffer += data
        found = []
        while len(buffer) >= HEAD.size:
            size = HEAD.unpack_from(buffer)[0]
            if not 0 < size <= _MESSAGE_BYTES_MAX:
                raise _Broken
            if len(buffer) < HEAD.size + size:
                break
            found.append(bytes(buffer[HEAD.size : HEAD.size + size]))
            del buffer[: HEAD.size + size]
        return found

    def close(self) -> tuple[int, resource.struct_rusage] | None:
        """Kill it; return how it had ended, None when it was alive."""
        os.close(self.fd)
        os.close(self.pidfd)
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            return status, usage
        os.kill(self.pid, SIGKILL)
        os.waitpid(self.pid, 0)
        return None


class BoxedFunctions:
    """Runs function tasks, as the first process of a sandbox."""

    def __init__(self, workplace: Workplace, channel: Channel, environment: str) -> None:
        """Args:
        environment: where the packages of the job are; "": it has none of its own.
        """
        assert workplace.watch is not None
        self._workplace = workplace
        self._watch = workplace.watch
        self._channel = channel
        self._environment = environment
        self._zygote: _Zygote | None = None
        self._ooms = 0
        self._ooms_at = float("-inf")

    @property
    def zygote_pid(self) -> int:
        """The process that sweeping spares; 0: none."""
        return self._zygote.pid if self._zygote is not None else 0

    def forget(self, number: int) -> None:
        """Drop the function of a job."""
        if self._zygote is not None and self._zygote.job.number == number:
            self._drop()

    def run(self, job: Job, task: Task) -> Result:
        """Run one task to its end.

        Raises:
            ChannelClosed: the node went away.
        """
        started, wall = monotonic(), time()
        if started >= self._ooms_at + _OOM_LOOK_S:
            self._ooms, self._ooms_at = oom_kills(), started
        self._watch.begin(job.cpu_s)
        if self._zygote is not None and self._zygote.job is not job:
            self._drop()
        if self._zygote is None:
            self._zygote = _Zygote(self._workplace, job, self._channel.fd, self._environment)
        cause, result, end = self._wait(self._zygote, job, task)
        status, cpu_s, peak_bytes = None, 0.0, 0
        if end is not None:
            status, cpu_s, peak_bytes = end.status, end.cpu_s, end.peak_bytes
        else:
            gone, self._zygote = self._zygote.close(), None
            if gone is not None:
                status, cpu_s = gone[0], gone[1].ru_utime + gone[1].ru_stime
        self._workplace.sweep()
        peak_bytes = max(peak_bytes, self._watch.peak_bytes)
        if result is not None and result.status == "not-run":  # says the task: it has begun
            result.status, result.cause = "failed", ""
        if result is None or (cause and result.status != "ok"):
            result = Result(task.run_id)
            result.cpu_s, result.peak_rss_bytes = cpu_s, peak_bytes
            self._judge(job, result, cause, status, self._ooms)
        result.started_wall, result.runtime_s = wall, monotonic() - started
        result.cpu_s, result.peak_rss_bytes = cpu_s, peak_bytes
        return result

    def _drop(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def _wait(self, zygote: _Zygote, job: Job, task: Task) -> tuple[str, Result | None, _End | None]:
        """Start a task and wait for its end; return why we ended it, what it said, and how its process ended (None: the
        process that holds the function is not to be believed any more, or is gone)."""
        poll = select.poll()
        poll.register(self._channel.fd, select.POLLIN)
        poll.register(zygote.fd, select.POLLIN)
        poll.register(zygote.pidfd, select.POLLIN)  # a fork that has killed it keeps the socket open
        result: Result | None = None
        course = _Course(job, zygote, self._workplace.settings.kill_grace_s)
        look_at = monotonic() + LOOK_S
        try:
            zygote.begin(task)
            while True:
                before = monotonic()
                wait_s = max(0.0, min(look_at, course.deadline) - before)
                ready = [fd for fd, _ in poll.poll(wait_s * 1000 + 1)]
                course.deadline += stood_still_s(before, wait_s)
                if self._channel.fd in ready:
                    self._channel.receive_now()
                    if self._channel.peeks:
                        self._answer_peeks(task)
                    if not course.cause and task.run_id in self._channel.killed:
                        course.end("killed")
                if zygote.fd in ready:
                    for body in zygote.read():
                        if body[0] == messages.SAVED:
                            self._pass_on(body, task)
                            continue
                        if body[0] == _ENDED:
                            return course.cause, result, _End(body)
                        if result is not None:
                            raise _Broken
                        result = messages.unpack_result(body)
                        if result.run_id != task.run_id:
                            raise _Broken
                if zygote.pidfd in ready:
                    raise _Broken
                if monotonic() >= look_at:
                    look_at = monotonic() + LOOK_S
                    self._watch.reap(zygote.pid)
                    if not course.cause and (cause := self._watch.look(self._output_bytes())):
                        course.end(cause, at_once=True)
                course.go_on()
        except (_Broken, ValueError, struct.error):
            return course.cause, None, None

    def _answer_peeks(self, task: Task) -> None:
        fds: list[int] = []
        try:
            for name in _OUTPUTS:
                path = os.path.join(self._workplace.settings.directory, name)
                fds.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
            if all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in fds):
                self._channel.answer_peeks(task.run_id, fds, read_progress(self._workplace.settings.directory))
        except OSError:
            return  # the task has taken them away
        finally:
            self._channel.peeks.clear()
            for fd in fds:
                os.close(fd)

    def _pass_on(self, body: bytes, task: Task) -> None:
        """Tell the node what the task has saved.

        Raises:
            _Broken: another task would have.
        """
        if messages.SAVED_HEAD.unpack_from(body)[1] != task.run_id or len(body) > COOKIE_BYTES_MAX + _READ_BYTES:
            raise _Broken
        self._channel.send(HEAD.pack(len(body)) + body)

    def _output_bytes(self) -> int:
        """Return the size of the larger one of standard output and error."""
        sizes = [0]
        for name in _OUTPUTS:
            try:
                sizes.append(os.lstat(os.path.join(self._workplace.settings.directory, name)).st_size)
            except OSError:
                continue
        return max(sizes)

    def _tail(self, name: str) -> bytes:
        """Return the end of an output that the task did not live to send."""
        try:
            path = os.path.join(self._workplace.settings.directory, name)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            entry = os.fstat(fd)
            count = self._workplace.settings.inline_bytes_max
            return os.pread(fd, count, max(0, entry.st_size - count)) if stat.S_ISREG(entry.st_mode) else b""
        finally:
            os.close(fd)

    def _judge(self, job: Job, result: Result, cause: str, status: int | None, ooms: int) -> None:
        """Fill in how a task ended that did not say so itself."""
        result.stdout, result.stderr = map(self._tail, _OUTPUTS)
        if cause:
            judge_end(job, self._workplace.settings, result, cause, "function")
        elif status is not None and os.WIFSIGNALED(status):
            result.signal = os.WTERMSIG(status)
            judge_signal(job, result, ooms, "function")
            if result.status == "failed":
                result.status, result.cause = "died", "signal"
        elif status is not None and os.WIFEXITED(status):
            result.status, result.cause, result.exit_code = "died", "exit", os.WEXITSTATUS(status)
            result.error = f"the function ended its process with exit code {result.exit_code}"
        else:
            result.status, result.cause = "died", "exit"
            result.error = "the function ended or broke the connection of its process"


class _End:
    """How a fork has ended, as the process that holds the function says."""

    def __init__(self, body: bytes) -> None:
        _, self.status, cpu_s, self.peak_bytes = _ENDED_BODY.unpack(body)
        self.cpu_s = cpu_s if 0.0 <= cpu_s < _CPU_S_MAX else 0.0
        self.peak_bytes = min(self.peak_bytes, _PEAK_BYTES_MAX)


class _Course:
    """How a task is ended: SIGTERM, after the grace SIGKILL, then its job's process."""

    def __init__(self, job: Job, zygote: _Zygote, grace_s: float) -> None:
        self.cause = ""
        self.deadline = float("inf") if job.timeout_s is None else monotonic() + job.timeout_s
        self._zygote = zygote
        self._grace_s = grace_s
        self._is_killed = False

    def end(self, cause: str, *, at_once: bool = False) -> None:
        """Begin to end it."""
        self.cause = cause
        if not at_once:
            self._signal(SIGTERM)
            self._signal(signal.SIGCONT)
        self.deadline = monotonic() + (0.0 if at_once else self._grace_s)

    def go_on(self) -> None:
        """Take the next step when its time has come.

        Raises:
            _Broken: there is none: whoever does not say that its fork is dead goes with it.
        """
        if monotonic() < self.deadline:
            return
        if not self.cause:
            self.end("wall")
        elif not self._is_killed:
            self._is_killed = True
            self._signal(SIGKILL)
            self.deadline = monotonic() + _TAIL_S
        else:
            raise _Broken

    def _signal(self, number: int) -> None:
        for pid in processes():
            if pid != self._zygote.pid:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue


# --- in the processes of the job ----------------------------------------------------------------------


def _enter(environment: str) -> None:
    """Find the packages of an environment, as its own interpreter would: that runs what they have put into .pth files.

    Source: PEP 405; the module site.
    """
    import site
    import sys

    sys.prefix = sys.exec_prefix = environment
    sys.executable = f"{environment}/bin/python"
    site.main()


def _hold(workplace: Workplace, job: Job, fd: int, environment: str) -> None:
    """Load the job's function and fork for each task that comes; never returns but with an error."""
    os.setsid()
    os.dup2(fd, _OWN_FD, inheritable=False)
    os.closerange(_OWN_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    box_setup.allow_dumping()
    if environment:
        _enter(environment)
    from p2pcompute.execution.child_functions import Functions

    functions = Functions(workplace, _write)
    functions.preload(job)
    while True:
        size = HEAD.unpack(_read_exactly(HEAD.size))[0]
        task = Task(marshal.loads(_read_exactly(size)))
        pid = os.fork()
        if pid == 0:
            set_command_limits(job)
            functions.begin_fork()
            result = functions.run(job, task)
            _write(messages.pack_result(result, workplace.settings.error_bytes_max))
            os._exit(0)
        _, status, usage = os.wait4(pid, 0)
        body = _ENDED_BODY.pack(_ENDED, status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)
        _write(HEAD.pack(len(body)) + body)


def _read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(_OWN_FD, count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _write(frame: bytes) -> None:
    while frame:
        frame = frame[os.write(_OWN_FD, frame) :]
