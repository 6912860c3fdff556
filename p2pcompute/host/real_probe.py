"""What this machine is and how loaded it is: psutil, narrowed by the container's limits where there are any.

psutil is imported at first use, because commands that never ask should not pay for it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RealProbe:
    """Implements `host.interfaces.Probe`.

    Args:
        directory: where the node keeps its state; its file system is the disk that counts.
        cgroup: mount of the unified cgroup hierarchy; other values are for tests.
    """

    def __init__(self, directory: Path, *, cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._directory = directory
        self._cgroup = cgroup
        self._static: dict[str, object] | None = None

    def static(self) -> Mapping[str, object]:
        """hostname, os, arch, cpus (float: a CPU quota may allow half a core), mem_bytes, python ([major, minor])."""
        if self._static is None:
            self._static = {
                "hostname": socket.gethostname(),
                "os": platform.system().lower(),
                "arch": platform.machine().lower(),
                "cpus": self._cpus(),
                "mem_bytes": self._mem_bytes(),
                "python": list(sys.version_info[:2]),
            }
        return dict(self._static)

    def dynamic(self) -> Mapping[str, object]:
        """load (1-minute average), mem_free_bytes, disk_free_bytes.  A value that cannot be read is left out."""
        values: dict[str, object] = {}
        with contextlib.suppress(OSError):
            values["load"] = float(os.getloadavg()[0])
        values["mem_free_bytes"] = self._mem_free_bytes()
        with contextlib.suppress(OSError):
            values["disk_free_bytes"] = int(_psutil().disk_usage(str(self._directory)).free)
        return values

    def _cpus(self) -> float:
        affinity = getattr(os, "sched_getaffinity", None)
        count = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
        quota, _, period = self._read("cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            count = min(count, int(quota) / int(period))
        return count

    def _mem_bytes(self) -> int:
        total = int(_psutil().virtual_memory().total)
        limit = self._read("memory.max")
        return min(total, int(limit)) if limit.isdigit() else total

    def _mem_free_bytes(self) -> int:
        free = int(_psutil().virtual_memory().available)
        limit, used = self._read("memory.max"), self._read("memory.current")
        if limit.isdigit() and used.isdigit():
            free = min(free, max(0, int(limit) - int(used)))
        return free

    def _read(self, name: str) -> str:
        """Content of a file of our cgroup; empty when there is none."""
        try:
            return (self._cgroup / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return ""


def _psutil() -> Any:
    import psutil

    return psutil
