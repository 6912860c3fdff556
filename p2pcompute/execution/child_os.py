"""Operating-system side of a worker process: life line, orphans, resource limits, captured output.

Deviations: no PR_SET_PDEATHSIG on the worker process itself.  It fires when the *thread* that spawned the
process ends and it spares grandchildren; the life line (below) kills the whole process group when the node is
gone, whatever killed it, and does so in the kernel, even while a task holds the interpreter.
"""

from __future__ import annotations

import fcntl
import os
import resource
import sys

from p2pcompute.execution.child_tasks import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIGTERM = 15
SIGKILL = 9
_F_SETSIG = 10
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class LifeLine:
    """The read end of a pipe whose only write end the node holds.

    When the node's end closes, the kernel sends SIGKILL to the process group named last.  Where the system has
    no F_SETSIG the end of the socket does the same, but only between tasks.

    Source: fcntl(2), "Signals"; pipe_release() in Linux' fs/pipe.c signals the other end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._works = sys.platform == "linux"
        if not self._works:
            return
        try:
            fcntl.fcntl(fd, _F_SETSIG, SIGKILL)
            self.guard(os.getpgrp())
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        except OSError:
            self._works = False

    def guard(self, group: int) -> None:
        """Make `group` the process group that dies with the node."""
        if self._works:
            fcntl.fcntl(self._fd, fcntl.F_SETOWN, -group)


class Libc:
    """Three calls of the C library that Python does not offer; loaded with the first task."""

    def __init__(self) -> None:
        self._prctl: Callable[..., int] | None = None
        self._fflush: Callable[..., int] | None = None
        try:
            import ctypes

            libc = ctypes.CDLL(None)
            self._fflush = libc.fflush
            self._prctl = libc.prctl
            self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        except (ImportError, OSError, AttributeError):
            return

    def flush(self) -> None:
        """Flush C's own output buffers."""
        if self._fflush is not None:
            self._fflush(None)

    def die_with_parent(self) -> None:
        """Ask for SIGKILL when the parent process dies."""
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def _children() -> list[int]:
    """Return the process ids of our children, adopted ones included (a scan of /proc)."""
    own = str(os.getpid()).encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        if stat[stat.rfind(b")") + 2 :].split(b" ", 3)[1] == own:
            found.append(int(name))
    return found


def _spared_pid() -> int | None:
    """Return the pid of multiprocessing's resource tracker, which lives as long as the interpreter."""
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    return getattr(getattr(tracker, "_resource_tracker", None), "_pid", None)


def sweep_children() -> None:
    """Kill and reap every process that a task left behind; orphans are ours because we are their subreaper."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # the usual case, without a scan of /proc
    except AttributeError:
        return  # macOS: no way to list them; the node kills our process group when we go
    spared = _spared_pid()
    for _ in range(1000):  # a fork bomb can outrun us; the node's own limits end it
        children = [pid for pid in _children() if pid != spared]
        if not children:
            return
        for pid in children:
            try:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def forbid_core_files() -> None:
    """A crash must not fill the machine owner's disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def set_limits(job: Job) -> list[tuple[int, tuple[int, int]]]:
    """Set the job's soft limits on this process; return what to restore.

    RLIMIT_CPU counts the whole process, so what was used so far is added.
    """
    wanted: list[tuple[int, int]] = []
    if job.mem_bytes is not None:
        wanted.append((resource.RLIMIT_AS, job.mem_bytes))
    if job.cpu_s is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        wanted.append((resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + job.cpu_s + 0.999)))
    if job.output_bytes_max is not None:
        wanted.append((resource.RLIMIT_FSIZE, job.output_bytes_max))
    before = []
    for which, soft in wanted:
        old = resource.getrlimit(which)
        before.append((which, old))
        resource.setrlimit(which, (soft if old[1] == resource.RLIM_INFINITY else min(soft, old[1]), old[1]))
    return before


def restore_limits(before: list[tuple[int, tuple[int, int]]]) -> None:
    """Undo `set_limits`."""
    for which, old in before:
        resource.setrlimit(which, old)


def set_command_limits(job: Job) -> None:
    """Set hard limits on this process, which is about to become a command; no core files."""
    limits = [(resource.RLIMIT_CORE, 0, 0)]
    if job.mem_bytes is not None:
        limits.append((resource.RLIMIT_AS, job.mem_bytes, job.mem_bytes))
    if job.cpu_s is not None:
        seconds = max(1, int(job.cpu_s + 0.999))
        limits.append((resource.RLIMIT_CPU, seconds, seconds + 2))
    if job.output_bytes_max is not None:
        limits.append((resource.RLIMIT_FSIZE, job.output_bytes_max, job.output_bytes_max))
    for which, soft, hard in limits:
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        return 0
    return 0


class Capture:
    """File descriptor 1 or 2 of this process, redirected to a file that is emptied after each task."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._file = -1
        self._identity = (0, 0)
        self.reopen()

    def reopen(self) -> None:
        """Begin an empty file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        stat = os.fstat(self._file)
        self._identity = (stat.st_dev, stat.st_ino)
        os.dup2(self._file, self._fd)

    def size(self) -> int:
        """Return the bytes written since the last `take`; repair the descriptor if the task closed or moved it."""
        try:
            stat = os.fstat(self._fd)
            if (stat.st_dev, stat.st_ino) == self._identity:
                return stat.st_size
        except OSError:
            pass
        os.dup2(self._file, self._fd)
        return os.fstat(self._file).st_size

    def take(self, size: int, inline_bytes_max: int, target: str) -> tuple[bytes, bool]:
        """Return what was written, or its end and True after moving the file to `target`."""
        if size <= inline_bytes_max:
            data = os.pread(self._file, size, 0)
            os.ftruncate(self._file, 0)
            return data, False
        data = os.pread(self._file, inline_bytes_max, size - inline_bytes_max)
        os.rename(self._path, target)
        self.reopen()
        return data, True
