"""What a task in a sandbox uses, looked at by the sandbox's first process: memory of all its processes and of the
local sockets between them, and output.

In the sandbox's own /proc there is nobody else.  Where the machine has cgroups for us they are the hard limit, and this
is what names the cause.

Imported by the first process of a sandbox: imports little.
"""

from __future__ import annotations

import os
import resource

from p2pcompute.execution.box_places import PLACE

LOOK_S = 0.05
"""How often a running task is looked at."""
SLACK_BYTES = 48 << 20
"""Interpreter and libraries, which count as memory of a process but not as what it has asked for."""
_FULL_BYTES = 1 << 16
"""Less room than this is none: a write has failed for want of it."""
_FEW_FILES = 8
"""The same in files; those of its output are gone already."""
_SOCKETS_FREE = 64
"""Local sockets that cost nothing: programs have a few, and what they hold is little."""
_SOCKET_BYTES = 212_992
"""What may wait in a socket whose buffer nobody has changed (net.core.wmem_default), which tasks cannot."""
_CPU_SLACK_S = 0.5
"""A single process that uses too much is ended by its own limit, with a signal that it may handle."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processes() -> list[int]:
    """Return the process ids of the sandbox but the first's."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _share_bytes(pid: int) -> int:
    """Return resident memory with shared pages divided among those who share them; without, when it cannot be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        return _resident_bytes(pid)
    return 0


def _waiting_bytes() -> int:
    """Return what may wait in the local sockets of the sandbox: memory of the kernel, which counts for no process."""
    count = 0
    try:
        with open("/proc/self/net/protocols", "rb") as file:
            for line in file:
                if line.startswith(b"UNIX"):
                    count += int(line.split()[2])
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, count - _SOCKETS_FREE) * _SOCKET_BYTES


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of its children that it has reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS_PER_S
    except (OSError, ValueError):
        return 0.0


def _all_cpu_s(pids: list[int]) -> float:
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return reaped.ru_utime + reaped.ru_stime + sum(map(_cpu_s, pids))


class Watch:
    """Looks at the processes of one task."""

    def __init__(self, mem_bytes_max: int, output_bytes_max: int) -> None:
        self._mem_bytes_max = mem_bytes_max + SLACK_BYTES
        self._output_bytes_max = output_bytes_max
        self._cpu_s_max = float("inf")
        self.peak_bytes = 0
        """Most memory that was seen since `begin`."""

    def begin(self, cpu_s_max: float | None) -> None:
        """Begin with another task.

        Args:
            cpu_s_max: CPU time that it may use, in all its processes.
        """
        self.peak_bytes = 0
        self._cpu_s_max = float("inf")
        if cpu_s_max is not None:
            self._cpu_s_max = _all_cpu_s(processes()) + max(1.0, cpu_s_max) + _CPU_SLACK_S

    @staticmethod
    def what_is_full() -> str:
        """Say which limit of the writable place is reached, and what to do about it; empty when there is room."""
        place = os.statvfs(PLACE)
        if place.f_ffree < _FEW_FILES:
            return f"there were as many files as a task may have here ({place.f_files}); pack them into one: tar"
        if place.f_bavail * place.f_frsize >= _FULL_BYTES:
            return ""
        size_mib = place.f_blocks * place.f_frsize >> 20
        return f"its files, /tmp included, had filled the {size_mib} MiB that it may use here; ask for more: --disk"

    def reap(self, spared: int) -> None:
        """Let go of processes that have ended and whose parents are gone: as zombies they count against the limit of
        processes.

        Args:
            spared: a child of ours that somebody else waits for.
        """
        for pid in processes():
            if pid != spared:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue

    def look(self, output_bytes: int) -> str:
        """Return the limit that is exceeded, as a cause: "oom", "cpu", "output" or "".

        Args:
            output_bytes: what the task has written to its standard output or error, whichever is more.
        """
        pids = processes()
        waiting = _waiting_bytes()
        used = waiting + sum(map(_resident_bytes, pids))
        if used > self._mem_bytes_max:
            used = waiting + sum(map(_share_bytes, pids))
        self.peak_bytes = max(self.peak_bytes, used)
        if used > self._mem_bytes_max:
            return "oom"
        if self._cpu_s_max < float("inf") and _all_cpu_s(pids) > self._cpu_s_max:
            return "cpu"
        return "output" if output_bytes > self._output_bytes_max else ""
