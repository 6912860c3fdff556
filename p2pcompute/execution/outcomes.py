"""How a run ended, for the scheduler: from a result, or from the death of the worker process, as measured."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

from p2pcompute.execution import messages
from p2pcompute.execution.child_os import oom_kills
from p2pcompute.execution.results import RawResult
from p2pcompute.execution.worker_process import WorkerProcess
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile
from p2pcompute.limits import INLINE_BYTES_MAX, KIB


def outcome_of(
    raw: RawResult,
    *,
    value_blob: tuple[bytes, int] | None = None,
    stdout_blob: tuple[bytes, int] | None = None,
    stderr_blob: tuple[bytes, int] | None = None,
    files: tuple[OutputFile, ...] = (),
) -> Outcome:
    """Return a result with the blobs that its files became."""
    return Outcome(
        raw.status,
        raw.value,
        value_blob,
        raw.stdout,
        stdout_blob,
        raw.stderr,
        stderr_blob,
        raw.exit_code,
        raw.signal,
        files,
        raw.error,
        raw.cause,
        raw.started_wall,
        raw.runtime_s,
        raw.cpu_s,
        raw.peak_rss_bytes,
    )


def _tail(path: Path, bytes_max: int) -> bytes:
    """Return the end of a regular file; b"" when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        entry = os.fstat(fd)
        if not stat.S_ISREG(entry.st_mode):
            return b""
        return os.pread(fd, bytes_max, max(0, entry.st_size - bytes_max))
    finally:
        os.close(fd)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def not_started(worker: WorkerProcess, returncode: int) -> Outcome:
    """The worker process never came up: not the task's fault."""
    if returncode < 0 or worker.is_condemned:
        return Outcome(OutcomeStatus.NOT_RUN, error="the worker process was killed while it started")
    text = _tail(worker.log_path, 2 * KIB).decode("utf-8", "replace").strip()
    return Outcome(OutcomeStatus.REFUSED, error=f"this node cannot start worker processes: {text}")


def printed_in(worker: WorkerProcess) -> tuple[bytes, bytes]:
    """Return the end of what the function has printed (stdout, stderr) that ran in a worker process."""
    return _tail(worker.directory / "stdout", INLINE_BYTES_MAX), _tail(worker.directory / "stderr", INLINE_BYTES_MAX)


def died(worker: WorkerProcess, returncode: int, *, is_function: bool, wall: float, runtime_s: float) -> Outcome:
    """Say what killed the process under a task, as measured."""
    what = "function" if is_function else "command"
    number = -returncode if returncode < 0 else None
    status, cause, exit_code = OutcomeStatus.DIED, "signal", None
    if returncode == messages.EXIT_CHANNEL_CLOSED or (number == signal.SIGKILL and worker.was_cut_off):
        cause, number = "exit", None
        error = f"the {what} closed or broke the connection of its worker process to the node"
    elif number is None:
        cause, exit_code = "exit", returncode
        error = f"the {what} ended its worker process with exit code {returncode}"
    elif number == signal.SIGXCPU:
        status, cause = OutcomeStatus.TIMEOUT, "cpu"
        error = f"the {what} used all its CPU time and was stopped"
    elif number == signal.SIGKILL and oom_kills() > worker.ooms_before:
        cause = "oom"
        error = f"the worker process was killed for want of memory while it ran the {what}"
    else:
        error = f"the worker process was ended by {_signal_name(number)} while it ran the {what}"
    stdout, stderr = printed_in(worker) if is_function else (b"", b"")
    return Outcome(
        status,
        stdout=stdout,
        stderr=stderr,
        exit_code=exit_code,
        signal=number,
        error=error,
        cause=cause,
        started_wall=wall - runtime_s,
        runtime_s=runtime_s,
    )
