"""A slot of the runner: its processes, its batch, and what is being done to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pcompute.execution.fenced_process import FencedProcess
from p2pcompute.execution.sandbox_process import SandboxProcess
from p2pcompute.execution.worker_process import WorkerProcess
from p2pcompute.host.interfaces import Timer
from p2pcompute.host.runs import Outcome
from p2pcompute.limits import ERROR_TEXT_BYTES_MAX, INLINE_BYTES_MAX, KILL_GRACE_S, OUTPUT_FILES_MAX

OnOutcomes = Callable[[Sequence[tuple[int, Outcome]]], None]


@dataclass(slots=True)
class Pending:
    """A run that was handed to the worker process and has not been reported."""

    run_id: int
    is_function: bool
    is_ours_to_end: bool
    """The node itself ends it, with the worker process: a function that runs in there, without a sandbox."""
    timeout_s: float | None
    is_data_only: bool = False
    """What it returns comes from a sandbox that its own submitter wanted: nothing of it may be a pickle."""
    is_elsewhere: bool = False
    """Its processes are an engine's: nothing below the worker process is the task."""


@dataclass(slots=True)
class Slot:
    """A slot and its batch."""

    index: int
    worker: WorkerProcess | None = None
    """Of the present or last batch; one of the following."""
    own: WorkerProcess | None = None
    """Runs tasks of this installation's user."""
    warm: dict[Path, WorkerProcess] = field(default_factory=dict)
    """The same in Python environments of their jobs, by their paths, the one used last at the end."""
    preparing: tuple[int, ...] = ()
    """Runs of its batch while their environment is being built."""
    box: SandboxProcess | FencedProcess | None = None
    """Runs tasks of one job of somebody else."""
    box_timer: Timer | None = None
    """Ends a sandbox that is not needed any more."""
    on_outcomes: OnOutcomes | None = None
    open_count: int = 0
    """Runs of the batch whose outcome was not yet given to `on_outcomes`."""
    pending: dict[int, Pending] = field(default_factory=dict)
    """In the order of execution: the first one is running."""
    killing: dict[int, None] = field(default_factory=dict)
    timed_out: int | None = None
    head_since: float = 0.0
    batch_since: float = 0.0
    done_count: int = 0
    watch: Timer | None = None
    reaper: Timer | None = None
    """Ends the grace after SIGTERM."""
    held_since: float | None = None
    """Since when its processes stand still."""

    def head(self) -> Pending | None:
        """Return the run that is being executed."""
        return next(iter(self.pending.values()), None)


def settings_of(slot: Slot) -> dict[str, Any]:
    """Return what every worker process is told."""
    return {
        "slot": slot.index,
        "inline_bytes_max": INLINE_BYTES_MAX,
        "files_max": OUTPUT_FILES_MAX,
        "error_bytes_max": ERROR_TEXT_BYTES_MAX,
        "kill_grace_s": KILL_GRACE_S,
    }
