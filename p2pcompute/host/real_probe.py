"""What this machine is and how loaded it is: psutil, narrowed by the container's limits where there are any.

Nothing is measured until somebody asks.  What changes is measured again after FRESH_S at the earliest; everything runs
in threads, and what may hang or fail (drivers, container engines, other interpreters, plugins) in a process of its own
(`real_probe_child`), for which the first questions wait FIRST_S at most: what it says later is known to the next ones.
psutil is imported at first use, because commands and nodes that are never asked should not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import p2pcompute
from p2pcompute.host import real_owner
from p2pcompute.host.attribute_rules import check_name, check_value, is_beside
from p2pcompute.host.interfaces import RUNTIMES, Attribute, Value
from p2pcompute.limits import ATTRIBUTE_LIFETIME_S_MAX

FRESH_S: Final = 2.0
"""What was measured within this time is not measured again."""
OWNER: Final = "owner.present"
OWNER_S: Final = 1.0
"""The same of whether somebody is there: programs of the system are asked.  Less than between two looks of
`node.comfort` while work of others runs, so that whoever comes has the machine within 5 s."""
EXECUTABLE_S: Final = 4.0
"""How long it is remembered whether an executable was found: looking for one takes some 20 µs."""
EXECUTABLES_MAX: Final = 1024
"""Executables that are remembered; the one looked for first is forgotten."""
MACHINE_S: Final = 600.0
"""How often the machine is looked over again, while somebody asks: an engine may have been started since."""
INSTALLED_S: Final = 5.0
"""How often it is seen whether a runtime was installed or removed; then the machine is looked over again at once."""
PLUGINS_S: Final = 10.0
"""The same for plugins, some value of which may not be believed any more."""
FIRST_S: Final = 1.0
"""Questions wait for the process that looks the machine over until it is so old."""
PROBE_S: Final = 4.0
"""Time of that process to find something out."""
START_S: Final = 4.0
"""Time for it to start and to end, beyond that; then it is killed."""
CHILD_BYTES_MAX: Final = 256 * 1024
"""What one may say."""
PLUGIN_VALUES_MAX: Final = 128
PLUGIN_BYTES_MAX: Final = 8 * 1024
"""Values of all plugins, and their names and values as text; further ones are left out."""
LIFETIMES_S: Final = {
    "load": 30.0,
    "mem.free": 30.0,
    "disk.free": 120.0,
    "battery": 120.0,
    "portable": 120.0,
    OWNER: 60.0,
}
LOAD_ACCURACY: Final = 0.01
"""What the kernel shows of it."""
NODE_NAMES: Final = (
    *("id", "name", "version", "slots.total", "slots.busy", "slots.ends", "slots.wait"),
    *("queue", "staging", "tag", "has", "isolation", "network", "paused"),
)
"""What a node says of itself beside what its probe says: no plugin may."""
MACHINE_NAMES: Final = (
    *("os", "arch", "cpus", "mem.total", "mem.free", "disk.total", "disk.free", "gpu.count", "gpu.mem", "gpu.model"),
    *("python", "load", "battery", "portable", "owner.present", "bandwidth"),
)
"""What a plugin may say instead of this probe."""
CHILD_NAMES: Final = ("gpu.count", "gpu.mem", "gpu.model", "python")
"""What is found out by the child process; so is what plugins say."""
_OS: Final = {"darwin": "macos"}
_ARCH: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_EXECUTABLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_POWER_SUPPLIES: Final = Path("/sys/class/power_supply")

log = logging.getLogger("p2pcompute.probe")


@dataclass(slots=True)
class _Findings:
    """What the child processes have found out."""

    machine: dict[str, Attribute] = field(default_factory=dict)
    runtimes: dict[str, bool] = field(default_factory=dict)
    plugins: dict[str, Attribute] = field(default_factory=dict)
    machine_at: float | None = None
    """When such a process was started last; None: never."""
    plugins_at: float | None = None


class RealProbe:
    """Implements `host.interfaces.Probe`.

    Args:
        directory: where the node keeps its state; its file system is the disk that counts.
        cgroup: mount of the unified cgroup hierarchy; other values are for tests.
    """

    def __init__(self, directory: Path, *, cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._directory = directory
        self._cgroup = cgroup
        self._found = _Findings()
        self._child: subprocess.Popen[bytes] | None = None
        self._looking: asyncio.Future[None] | None = None
        self._waiting_until = 0.0
        self._lock = threading.Lock()
        """For the child, between the thread that reads what it says and `close`."""
        self._is_closed = False
        self._blamed: set[str] = set()
        """Plugins about which something was logged."""
        self._static: dict[str, Attribute] = {}
        self._dynamic: dict[str, Attribute] = {}
        self._measured = -FRESH_S
        self._owner: dict[str, Attribute] = {}
        self._owner_at = -OWNER_S
        self._measuring = asyncio.Lock()
        self._executables: dict[str, tuple[float, bool]] = {}
        self._installed: tuple[object, ...] = ()
        """What stood where the runtimes are looked for when the machine was last looked over for them."""
        self._installed_at = -INSTALLED_S

    # --- the seam ---------------------------------------------------------------------------------

    async def attributes(self, names: Collection[str] | None = None) -> Mapping[str, Attribute]:
        async with self._measuring:  # those who ask meanwhile share what comes of it
            if time.monotonic() - self._measured >= FRESH_S:
                if not self._static:
                    self._static = await asyncio.to_thread(self._measure_static)
                self._dynamic = await asyncio.to_thread(self._measure_dynamic)
                self._measured = time.monotonic()
            if (names is None or OWNER in names) and time.monotonic() - self._owner_at >= OWNER_S:
                self._owner = await asyncio.to_thread(_look_for_owner)
                self._owner_at = time.monotonic()
        if names is None or any(map(_is_found_by_a_child, names)):
            await self._look_over()
        return {**self._static, **self._found.machine, **self._dynamic, **self._owner, **self._found.plugins}

    async def has(self, words: Sequence[str]) -> Mapping[str, bool]:
        now = time.monotonic()
        runtimes = [word for word in words if word in RUNTIMES]
        if runtimes:
            await self._see_installed(now)
            await self._look_over()
        found = {word: self._found.runtimes[word] for word in runtimes if word in self._found.runtimes}
        others = [word for word in words if word not in RUNTIMES]
        found |= {word: self._executables[word][1] for word in others if self._is_known(word, now)}
        missing = [word for word in others if word not in found]
        if missing:
            for word, is_there in (await asyncio.to_thread(_find, missing)).items():
                self._executables.pop(word, None)
                self._executables[word] = (now, is_there)
                found[word] = is_there
                while len(self._executables) > EXECUTABLES_MAX:
                    del self._executables[next(iter(self._executables))]
        return found

    def close(self) -> None:
        """End the process that looks the machine over; from now on nothing new is found out by one."""
        with self._lock:
            self._is_closed = True
            if self._child is not None:
                _kill(self._child)

    def _is_known(self, word: str, now: float) -> bool:
        return word in self._executables and now - self._executables[word][0] < EXECUTABLE_S

    async def _see_installed(self, now: float) -> None:
        """Have the machine looked over again, and waited for, when a runtime has come or gone."""
        if now - self._installed_at < INSTALLED_S:
            return
        self._installed_at = now
        installed = await asyncio.to_thread(_installed)
        if self._looking is not None and not self._looking.done():
            return  # what comes of it may be of before
        before, self._installed = self._installed, installed
        if before and before != installed:
            self._found.machine_at, self._looking = None, None

    # --- the child process ------------------------------------------------------------------------

    async def _look_over(self) -> None:
        """Start a child process when it is time for one; wait a moment for the first."""
        now = time.monotonic()
        if self._looking is None or self._looking.done():
            groups = self._due(now)
            if groups:
                self._waiting_until = now + FIRST_S if self._looking is None else now
                loop = asyncio.get_running_loop()
                self._looking = loop.run_in_executor(None, self._run_child, groups)
        if self._looking is not None and now < self._waiting_until:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._waiting_until - now):
                    await asyncio.shield(self._looking)

    def _due(self, now: float) -> list[str]:
        """Return the groups of probes that are to run now."""
        found = self._found
        if self._is_closed:
            return []
        if found.machine_at is None or now - found.machine_at >= MACHINE_S:
            found.machine_at = found.plugins_at = now
            return ["machine", "plugins"]
        assert found.plugins_at is not None
        wall = time.time()
        has_old = any(
            item.lifetime_s is not None and wall - item.measured_s > item.lifetime_s for item in found.plugins.values()
        )
        if has_old and now - found.plugins_at >= PLUGINS_S:
            found.plugins_at = now
            return ["plugins"]
        return []

    def _run_child(self, groups: Sequence[str]) -> None:
        """Run a child to its end and take in what it says.  Never raises.  In a thread."""
        package_root = str(Path(p2pcompute.__file__).parent.parent)
        search = [package_root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        with self._lock:
            if self._is_closed:
                return
            try:
                child = self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "p2pcompute.host.real_probe_child", str(PROBE_S), *groups],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
                )
            except OSError as error:
                log.warning("this machine cannot be looked over: %s", error)
                return
        try:
            for line in _lines(child):
                self._take(line)
        finally:
            with self._lock:
                self._child = None
                _kill(child)  # not reaped yet, so that this is its group and no other; what it tried may live on
            if child.stdout is not None:
                child.stdout.close()
            child.wait()

    def _take(self, line: bytes) -> None:
        """Take in one finding; what breaks a rule is a plugin's fault."""
        by = ""
        try:
            finding = json.loads(line)
            by = str(finding.get("by", ""))
            if "has" in finding:
                self._found.runtimes[str(finding["has"])] = bool(finding["is_there"])
            elif "trouble" in finding:
                self._blame(by, str(finding["trouble"]))
            else:
                name, value = check_name(finding["name"]), check_value(finding["value"])
                lifetime_s: float | None = finding["lifetime_s"]
                if lifetime_s is not None:
                    lifetime_s = min(ATTRIBUTE_LIFETIME_S_MAX, max(0.0, float(lifetime_s)))
                self._keep(name, Attribute(value, time.time(), lifetime_s), by)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self._blame(by, f"{line[:100]!r}: {error}")

    def _keep(self, name: str, attribute: Attribute, by: str) -> None:
        if not by:
            self._found.machine = {**self._found.machine, name: attribute}
            return
        if name in NODE_NAMES or not is_beside(name, [*NODE_NAMES, *MACHINE_NAMES, *self._found.plugins]):
            self._blame(by, f"{name} cannot stand beside the others")
            return
        plugins = {**self._found.plugins, name: attribute}
        size = sum(len(name) + len(repr(item.value).encode()) for name, item in plugins.items())
        if len(plugins) > PLUGIN_VALUES_MAX or size > PLUGIN_BYTES_MAX:
            self._blame(by, f"there is no room for {name}")
            return
        self._found.plugins = plugins

    def _blame(self, plugin: str, trouble: str) -> None:
        """Log the first trouble with each plugin, and with what is looked for on any machine."""
        if plugin not in self._blamed and len(self._blamed) < PLUGIN_VALUES_MAX:
            self._blamed.add(plugin)
            log.warning("the probe %s failed, what it would say is unknown: %s", plugin or "(none)", trouble)

    # --- measuring, in threads --------------------------------------------------------------------

    def _measure_static(self) -> dict[str, Attribute]:
        system, machine = platform.system().lower(), platform.machine().lower()
        found = _values(
            {
                "os": lambda: _OS.get(system, system),
                "arch": lambda: _ARCH.get(machine, machine),
                "cpus": self.cpus,
                "mem.total": self._mem_bytes,
                "disk.total": lambda: int(_psutil().disk_usage(str(self._directory)).total),
                "python": lambda: (f"{sys.version_info.major}.{sys.version_info.minor}",),  # until others are found
            }
        )
        wall = time.time()
        return {name: Attribute(value, wall) for name, value in found.items()}

    def _measure_dynamic(self) -> dict[str, Attribute]:
        found = _values(
            {
                "mem.free": self._mem_free_bytes,
                "load": lambda: float(os.getloadavg()[0]),
                "disk.free": lambda: int(_psutil().disk_usage(str(self._directory)).free),
                "battery": _is_on_battery,
                "portable": _has_battery,
            }
        )
        wall = time.time()
        return {
            name: Attribute(value, wall, LIFETIMES_S[name], LOAD_ACCURACY if name == "load" else None)
            for name, value in found.items()
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


def _installed() -> tuple[object, ...]:
    """Return where the programs of the runtimes are, and which files these are; they are not started."""
    beside = str(Path(sys.executable).with_name("uv"))
    programs = (beside, "uv", "apptainer", "bwrap", "docker", "podman")
    return (*map(_which_file, programs), find_spec("wasmtime") is not None)


def _which_file(program: str) -> tuple[str, float, int] | None:
    path = shutil.which(program)
    try:
        entry = None if path is None else os.stat(path)
    except OSError:
        return None
    return None if path is None or entry is None else (path, entry.st_mtime, entry.st_size)


def _is_found_by_a_child(name: str) -> bool:
    is_known_here = name in MACHINE_NAMES or name in NODE_NAMES or name.startswith("label.")
    return name in CHILD_NAMES or not is_known_here


def _lines(child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield what a child says, line by line, until its end, its time is over or CHILD_BYTES_MAX."""
    assert child.stdout is not None
    deadline = time.monotonic() + PROBE_S + START_S
    rest, size = b"", 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while size < CHILD_BYTES_MAX and selector.select(max(0.0, deadline - time.monotonic())):
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                return
            size += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from lines


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that was not reaped yet, and whatever it has started."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)


def _find(words: Sequence[str]) -> dict[str, bool]:
    """Look for executables on the PATH, which is the one that tasks get.  What cannot be the name of one is not there:
    a path would let a peer ask for any file."""
    path = os.environ.get("PATH", os.defpath)
    return {
        word: _EXECUTABLE.fullmatch(word) is not None and shutil.which(word, path=path) is not None for word in words
    }


def _values(measures: Mapping[str, Callable[[], Value | None]]) -> dict[str, Value]:
    """Return what can be measured; whatever a driver or a container lacks or breaks is left out."""
    found: dict[str, Value] = {}
    for name, measure in measures.items():
        try:
            value = measure()
            if value is not None:
                found[name] = check_value(value)
        except Exception as error:  # noqa: BLE001 - drivers and containers raise what they like
            log.debug("%s cannot be measured: %r", name, error)
    return found


def _look_for_owner() -> dict[str, Attribute]:
    found = _values({OWNER: real_owner.is_present})
    return {name: Attribute(value, time.time(), LIFETIMES_S[name]) for name, value in found.items()}


def _is_on_battery() -> bool | None:
    """None when that cannot be told."""
    battery = _psutil().sensors_battery()
    if battery is not None:
        return None if battery.power_plugged is None else not battery.power_plugged
    return _has_battery()


def _has_battery() -> bool | None:
    """None when that cannot be told."""
    if _psutil().sensors_battery() is not None:
        return True
    return False if _POWER_SUPPLIES.is_dir() else None  # the kernel lists what there is, and it lists no battery


def _psutil() -> Any:
    import psutil

    return psutil
