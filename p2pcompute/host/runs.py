"""What a node asks of a runner: run these tasks, tell me what happened.

The scheduler treats `Job.spec` and `TaskRun.payload` as opaque; only execution reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol


class OutcomeStatus(StrEnum):
    OK = "ok"
    FAILED = "failed"
    """The task's own failure: exception, non-zero exit code, missing output."""
    TIMEOUT = "timeout"
    DIED = "died"
    """The runner's process died under it (signal, out of memory): measured, not guessed."""
    KILLED = "killed"
    """Stopped on our request; not the task's failure."""
    NOT_RUN = "not-run"
    """Never started here (its batch was interrupted, inputs could not be fetched): try elsewhere."""
    REFUSED = "refused"
    """This node must not or cannot run it; the reason is in `error`."""


FAILS_ALWAYS: Final = "always"
"""Cause of a failure that would be the same on every node: the task is not tried again."""
FAILS_ON_LIKE: Final = "machine"
"""Cause of a failure that would be the same on every machine of this kind: other kinds may try."""
FAILS_HERE: Final = "here"
"""Cause of a failure that would be the same on this node the next time: others may try."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file brought back: name relative to the task's directory, blob, permission bits."""

    name: str
    digest: bytes
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one execution ended.  Byte fields are at most INLINE_BYTES_MAX; longer content is a blob."""

    status: OutcomeStatus
    value: bytes = b""
    """Function: the pickled return value, or the pickled exception when FAILED.  Command: empty."""
    value_blob: tuple[bytes, int] | None = None
    """Blobs of an outcome that comes from a runner are pinned once; who takes it unpins them."""
    stdout: bytes = b""
    stdout_blob: tuple[bytes, int] | None = None
    """When set, `stdout` holds only the last INLINE_BYTES_MAX bytes."""
    stderr: bytes = b""
    stderr_blob: tuple[bytes, int] | None = None
    exit_code: int | None = None
    signal: int | None = None
    files: tuple[OutputFile, ...] = ()
    error: str = ""
    """For people: the traceback or the reason."""
    cause: str = ""
    """Of DIED: oom, signal, exit (it ended the worker process or broke its connection), with-node (the
    node's own process died while it ran).  Of TIMEOUT: wall, cpu.
    Of FAILED: oom, output, disk (its limits), always (`FAILS_ALWAYS`), machine (`FAILS_ON_LIKE`),
    here (`FAILS_HERE`)."""
    started_wall: float = 0.0
    runtime_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One execution to perform."""

    run_id: int
    """Unique within the node's life."""
    job_id: bytes
    spec: bytes
    """The job's execution spec (CBOR, `execution.spec.JobSpec`); the same object for all tasks of a job."""
    index: int
    """Position in the job, from 0; `{#}` is index + 1."""
    payload: bytes
    """The task's own CBOR (`execution.spec.TaskPayload`)."""
    attempt: int
    """From 1."""
    submitter: bytes = b""
    """Installation whose job it is; empty: this one's, so that it runs with the rights of its user."""
    cookie: bytes = b""
    cookie_blob: tuple[bytes, int] | None = None
    """What an earlier attempt has saved, inline or as a blob: this one goes on from there."""
    is_compared: bool = False
    """Its result may be held against those of other nodes: values take the one form that all nodes give them."""


class Runner(Protocol):
    """Runs tasks in `slot_count` slots.  A slot runs its batch one task after the other."""

    on_saved: Callable[[int, bytes], None]
    """Called with run id and cookie when a task has saved how far it is; whoever runs tasks here sets it."""

    @property
    def slot_count(self) -> int: ...

    async def start(self) -> None: ...

    def run(
        self, slot: int, runs: Sequence[TaskRun], on_outcomes: Callable[[Sequence[tuple[int, Outcome]]], None]
    ) -> None:
        """Start a batch on a free slot.  `on_outcomes` gets (run_id, outcome) pairs, possibly several calls, each
        run exactly once.  All blobs that the runs need are in the blob store already.

        Raises:
            LocalProtocolError: the slot is busy.
        """

    def kill(self, run_ids: Sequence[int]) -> None:
        """Stop these runs now (process group, SIGTERM then SIGKILL); each reports KILLED.  Other runs of the same
        batch are reported NOT_RUN when they had not started."""

    def recall(self, run_ids: Sequence[int]) -> list[int]:
        """Take back runs that wait in their slot behind another one; returns those that have not started and never
        will, of which nothing is reported.  Where that cannot be known at once a run is left out, and reports its end
        as ever: KILLED if it had not started.  For callbacks of the event loop: outcomes may be reported meanwhile."""

    async def tail(
        self, run_id: int, offsets: tuple[int, int]
    ) -> tuple[tuple[int, bytes], tuple[int, bytes], bytes] | None:
        """Return what a running task has printed to stdout and stderr from these offsets on: where the bytes begin, at
        most the last 64 KiB of each, and the bytes; and how far it says that it is (at most PROGRESS_BYTES_MAX).
        None: it does not run, or did not answer in time."""

    async def cpu_used_s(self) -> Mapping[int, float]:
        """Return by running task what its processes have used of the CPU, seconds from a beginning of their own: what
        matters is by how much it has grown.  Tasks of which that is not known are left out."""

    def hold(self, slots: Collection[int]) -> None:
        """Let what runs in these slots stand still, and what runs in all others go on.  Time limits wait meanwhile."""

    async def close(self) -> None:
        """Kill everything and wait for the processes to be gone."""
