"""What this machine is and how loaded it is: psutil, narrowed by the container's limits where there are any.

Nothing is measured until somebody asks.  What changes is measured again after FRESH_S at the earliest; everything runs
in threads, and what may hang or fail (drivers, container engines, other interpreters, plugins) in a process of its own
(`probe_child`) that is killed after a while.  psutil is imported at first use, because commands and nodes that are
never asked should not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from p2pcompute.host.interfaces import Attribute, Value

FRESH_S: Final = 2.0
"""What was measured within this time is not measured again."""
EXECUTABLE_S: Final = 60.0
"""How long it is remembered whether an executable was found."""
EXECUTABLES_MAX: Final = 1024
"""Executables that are remembered; the one looked for first is forgotten."""
LIFETIMES_S: Final = {"load": 30.0, "mem.free": 30.0, "disk.free": 120.0, "battery": 120.0}
LOAD_ACCURACY: Final = 0.01
"""What the kernel shows of it."""
_OS: Final = {"darwin": "macos"}
_ARCH: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_EXECUTABLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_POWER_SUPPLIES: Final = Path("/sys/class/power_supply")


class RealProbe:
    """Implements `host.interfaces.Probe`.

    Args:
        directory: where the node keeps its state; its file system is the disk that counts.
        cgroup: mount of the unified cgroup hierarchy; other values are for tests.
    """

    def __init__(self, directory: Path, *, cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._directory = directory
        self._cgroup = cgroup
        self._static: dict[str, Attribute] = {}
        self._dynamic: dict[str, Attribute] = {}
        self._measured = -FRESH_S
        self._measuring = asyncio.Lock()
        self._executables: dict[str, tuple[float, bool]] = {}

    # --- the seam ---------------------------------------------------------------------------------

    async def attributes(self) -> Mapping[str, Attribute]:
        async with self._measuring:  # those who ask meanwhile share what comes of it
            if time.monotonic() - self._measured >= FRESH_S:
                if not self._static:
                    self._static = await asyncio.to_thread(self._measure_static)
                self._dynamic = await asyncio.to_thread(self._measure_dynamic)
                self._measured = time.monotonic()
        return {**self._static, **self._dynamic}

    async def has(self, words: Sequence[str]) -> Mapping[str, bool]:
        now = time.monotonic()
        found = {word: self._executables[word][1] for word in words if self._is_known(word, now)}
        missing = [word for word in words if word not in found]
        if missing:
            for word, is_there in (await asyncio.to_thread(_find, missing)).items():
                self._executables.pop(word, None)
                self._executables[word] = (now, is_there)
                found[word] = is_there
                while len(self._executables) > EXECUTABLES_MAX:
                    del self._executables[next(iter(self._executables))]
        return found

    def _is_known(self, word: str, now: float) -> bool:
        return word in self._executables and now - self._executables[word][0] < EXECUTABLE_S

    # --- measuring, in threads --------------------------------------------------------------------

    def _measure_static(self) -> dict[str, Attribute]:
        system, machine = platform.system().lower(), platform.machine().lower()
        values: dict[str, Value] = {
            "os": _OS.get(system, system),
            "arch": _ARCH.get(machine, machine),
            "cpus": self.cpus(),
            "mem.total": self._mem_bytes(),
            "python": (f"{sys.version_info.major}.{sys.version_info.minor}",),
        }
        with contextlib.suppress(OSError):
            values["disk.total"] = int(_psutil().disk_usage(str(self._directory)).total)
        wall = time.time()
        return {name: Attribute(value, wall) for name, value in values.items()}

    def _measure_dynamic(self) -> dict[str, Attribute]:
        """A value that cannot be read is left out."""
        values: dict[str, Value] = {"mem.free": self._mem_free_bytes()}
        with contextlib.suppress(OSError, AttributeError):
            values["load"] = float(os.getloadavg()[0])
        with contextlib.suppress(OSError):
            values["disk.free"] = int(_psutil().disk_usage(str(self._directory)).free)
        is_on_battery = _is_on_battery()
        if is_on_battery is not None:
            values["battery"] = is_on_battery
        wall = time.time()
        return {
            name: Attribute(value, wall, LIFETIMES_S[name], LOAD_ACCURACY if name == "load" else None)
            for name, value in values.items()
        }

    def cpus(self) -> float:
        """Return the cores that this process may use; a CPU quota may allow half a one."""
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


def _find(words: Sequence[str]) -> dict[str, bool]:
    """Look for executables on the PATH, which is the one that tasks get.  What cannot be the name of one is not there:
    a path would let a peer ask for any file."""
    path = os.environ.get("PATH", os.defpath)
    return {
        word: _EXECUTABLE.fullmatch(word) is not None and shutil.which(word, path=path) is not None for word in words
    }


def _is_on_battery() -> bool | None:
    """None when that cannot be told."""
    try:
        battery = _psutil().sensors_battery()
    except (AttributeError, OSError, ValueError):  # not on this system, or a driver that shows nonsense
        return None
    if battery is not None:
        return None if battery.power_plugged is None else not battery.power_plugged
    return False if _POWER_SUPPLIES.is_dir() else None  # the kernel lists what there is, and it lists no battery


def _psutil() -> Any:
    import psutil

    return psutil
