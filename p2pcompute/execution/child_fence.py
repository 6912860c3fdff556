"""The fence around a WASI module of another installation, where there is no sandbox: what it gives up and uses.

Its memory needs no look: its engine gives it as much as it may have, and the kernel gives the engine no more.

Imported by a worker process: imports little.
"""

from __future__ import annotations

import os
import resource
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from p2pcompute.execution.child_tasks import BoxSettings

    class Looks(Protocol):
        """Looks at the processes of one task."""

        peak_bytes: int

        def begin(self, cpu_s_max: float | None) -> None: ...

        def look(self, output_bytes: int) -> str: ...

        def reap(self, spared: int) -> None: ...

        def what_is_full(self) -> str: ...


_LOOK_S = 0.25
"""How often files are counted."""


def given_up(fence: BoxSettings) -> dict[str, Any]:
    """Return what an engine is told about its fence.  A user's processes are counted where only it has any."""
    limits = dict(fence.limits)
    if fence.user is None:
        limits.pop(resource.RLIMIT_NPROC, None)
    return {"user": fence.user, "limits": limits, "cores": fence.cores}


class FenceWatch:
    """Looks at the directory of a worker process."""

    def __init__(self, directory: str, disk_bytes_max: int, files_max: int, output_bytes_max: int) -> None:
        self._directory = directory
        self._disk_bytes_max = disk_bytes_max
        self._files_max = files_max
        self._output_bytes_max = output_bytes_max
        self._look_at = 0.0
        self.peak_bytes = 0
        """Not known here."""

    def begin(self, cpu_s_max: float | None) -> None:
        """Begin with another task; its engine limits its CPU time."""
        self._look_at = 0.0

    def look(self, output_bytes: int) -> str:
        """Return the limit that is exceeded, as a cause: "output", "disk" or ""."""
        if output_bytes > self._output_bytes_max:
            return "output"
        now = monotonic()
        if now < self._look_at:
            return ""
        self._look_at = now + _LOOK_S
        return "" if self._fits() else "disk"

    def reap(self, spared: int) -> None:
        """What ends is let go of with its task."""

    def what_is_full(self) -> str:
        """Say which limit of the directory is reached, and what to do about it; empty when there is room."""
        if self._fits():
            return ""
        limit = f"{self._disk_bytes_max >> 20} MiB, or the {self._files_max} files,"
        return f"its files had filled the {limit} that it may have here; ask for more: --disk"

    def _fits(self) -> bool:
        used = count = 0
        waiting = [self._directory]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        found = entry.stat(follow_symlinks=False)
                        used += found.st_blocks * 512
                        count += 1
                        if used > self._disk_bytes_max or count > self._files_max:
                            return False
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
            except OSError:
                continue  # it went while we looked
        return True
