"""A worker process for WASI modules of another installation, on a machine where no sandbox can be made.

It is ours, as any worker process is, and runs nothing of theirs itself: their modules are in an engine that has shut
itself in (`box_setup.fence`).  One for a job and a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pcompute.execution import sandbox
from p2pcompute.execution.worker_process import WorkerProcess


class FencedProcess(WorkerProcess):
    """A spawned worker process and its socket; the rest is as of `WorkerProcess`."""

    def __init__(
        self,
        directory: Path,
        settings: dict[str, Any],
        on_frames: Callable[[list[bytes]], None],
        on_exit: Callable[[int], None],
        *,
        owner: tuple[bytes, bytes],
        limits: sandbox.BoxLimits,
    ) -> None:
        """Args:
        owner: submitter and job whose tasks it runs; no others.
        """
        super().__init__(directory, settings, on_frames, on_exit)
        self.owner = owner
        self.limits = limits

    def _command(self, channel_fd: int, life_line_fd: int) -> tuple[list[str], dict[str, str]]:
        (self.directory / "shared").mkdir(mode=0o700)
        words, environment = super()._command(channel_fd, life_line_fd)
        return [*sandbox.lower_priority(), *words], environment
