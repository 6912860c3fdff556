"""Hard limits of sandboxes by the kernel's control groups (version 2), where this node was given one of its own.

systemd gives one to a service with ``Delegate=yes``, as `p2pc service install` writes it.  A group in which other
processes are too, like that of a login, is left alone.  The node moves itself into a group below, since only groups
without processes may have limited ones below them, and makes one for each sandbox: memory with its files (which are
memory too), processes, processor time.  Where there is none, the first process of a sandbox watches memory and CPU
time (`box_watch`), and resource limits hold each process.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst; systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2pcompute.execution.sandbox import BoxLimits
from p2pcompute.limits import SANDBOX_OVERHEAD_BYTES, SANDBOX_OVERHEAD_PROCESSES

CONTROLLERS: Final = ("memory", "pids", "cpu")
_PERIOD_US: Final = 100_000
_NODE: Final = "node"


class NoCgroup(Exception):
    """There is none for us; the text says why."""


def find_own(pid: int | None = None, proc: Path = Path("/proc")) -> Path:
    """Return the directory of a node's group, which holds nobody else and may be divided.

    Args:
        pid: of the node; None: this process.

    Raises:
        NoCgroup: there is none.
    """
    pid = os.getpid() if pid is None else pid
    try:
        mounts = [line.split() for line in (proc / str(pid) / "mounts").read_text().splitlines()]
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError as error:
        raise NoCgroup(f"the system does not say ({error.strerror})") from error
    places = [words[1] for words in mounts if len(words) > 2 and words[2] == "cgroup2"]
    names = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if not places or not names:
        raise NoCgroup("there are no control groups of version 2")
    own = Path(places[0]) / names[0].lstrip("/")
    if own.name == _NODE:  # of an earlier start in the same service
        own = own.parent
    try:
        has = (own / "cgroup.controllers").read_text().split()
        pids = [*(own / "cgroup.procs").read_text().split()]
    except OSError as error:
        raise NoCgroup(f"{own} cannot be read ({error.strerror})") from error
    missing = [name for name in CONTROLLERS if name not in has]
    if missing:
        raise NoCgroup(f"{own} does not control {', '.join(missing)}")
    if any(other != str(pid) for other in pids):
        raise NoCgroup(f"other processes are in {own} too")
    if not os.access(own, os.W_OK) or not os.access(own / "cgroup.subtree_control", os.W_OK):
        raise NoCgroup(f"{own} is not this user's")
    return own


class Cgroups:
    """The groups of this node's sandboxes."""

    def __init__(self, own: Path) -> None:
        """Raises:
        OSError: the group cannot be divided after all.
        """
        self._own = own
        self._left = [path for path in own.glob("worker-*") if not _remove(path)]
        """Groups whose last processes were still ending."""
        node = own / _NODE
        node.mkdir(exist_ok=True)
        (node / "cgroup.procs").write_text(str(os.getpid()))
        (own / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))

    def make(self, name: str, limits: BoxLimits) -> Path | None:
        """Make a group for a sandbox; None: it cannot be made, and the sandbox is watched as it would be without."""
        self._left = [path for path in self._left if not _remove(path)]
        path = self._own / name
        try:
            path.mkdir()
            for file, value in (
                ("memory.max", limits.mem_bytes + limits.disk_bytes + SANDBOX_OVERHEAD_BYTES),
                ("pids.max", limits.processes + SANDBOX_OVERHEAD_PROCESSES),
                ("cpu.max", f"{len(limits.cores) * _PERIOD_US} {_PERIOD_US}"),
            ):
                (path / file).write_text(str(value))
            with contextlib.suppress(OSError):  # a kernel without swap has no such file
                (path / "memory.swap.max").write_text("0")
        except OSError:
            self.end(path)
            return None
        return path

    @staticmethod
    def within(path: Path, words: Sequence[str]) -> list[str]:
        """Return the words that start a command in a group: all that it starts is in it, too."""
        return ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(path / "cgroup.procs"), *words]

    def end(self, path: Path) -> None:
        """End whatever is left in a group, and the group."""
        with contextlib.suppress(OSError):
            (path / "cgroup.kill").write_text("1")
        if not _remove(path):
            self._left.append(path)


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
