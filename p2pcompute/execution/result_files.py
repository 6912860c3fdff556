"""Files of results on their way from a worker process to the blob store; what they hold is not believed."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import replace
from pathlib import Path

from p2pcompute.errors import P2pcError, RemoteProtocolError
from p2pcompute.execution.codec import HEAD, is_encoded
from p2pcompute.execution.outcomes import outcome_of
from p2pcompute.execution.results import RawResult
from p2pcompute.execution.worker_process import WorkerProcess
from p2pcompute.host.interfaces import BlobStore
from p2pcompute.host.runs import Outcome, OutcomeStatus, OutputFile


async def stored(blobs: BlobStore, worker: WorkerProcess, raw: RawResult) -> Outcome:
    """Take a result's files into the blob store, pinned; return its outcome."""
    try:
        return outcome_of(
            raw,
            value_blob=await _take_file(blobs, worker, raw.value_file),
            stdout_blob=await _take_file(blobs, worker, raw.stdout_file),
            stderr_blob=await _take_file(blobs, worker, raw.stderr_file),
            files=tuple(
                [
                    OutputFile(name, *(await _take_file(blobs, worker, number) or (b"", 0)), mode)
                    for number, mode, name in raw.files
                ]
            ),
        )
    except (P2pcError, OSError) as error:
        text = f"the result could not be stored on this node: {error}"
        outcome = outcome_of(raw)
        if outcome.status is OutcomeStatus.OK:
            return Outcome(OutcomeStatus.NOT_RUN, error=text)
        return replace(outcome, error=f"{outcome.error}; {text}")


async def _take_file(blobs: BlobStore, worker: WorkerProcess, number: int) -> tuple[bytes, int] | None:
    if not number:
        return None
    path = worker.directory / "out" / str(number)
    try:
        entry = path.lstat()
        if not stat.S_ISREG(entry.st_mode) or entry.st_nlink != 1:
            raise RemoteProtocolError("a result file that is no plain file")
        ref = await blobs.put_path(str(path), move=True, pin=True)
        worker.taken(entry.st_size)
    finally:
        with contextlib.suppress(OSError):  # also when there was no room for it: then this makes some
            path.unlink()
    return ref.digest, ref.size


def keep_data(worker: WorkerProcess, raw: RawResult) -> None:
    """Drop from the result of a function what could run code where it is read: a pickle of its value or exception."""
    path = worker.directory / "out" / str(raw.value_file)
    is_ok = raw.status == OutcomeStatus.OK
    if is_ok and is_encoded(_head(path) if raw.value_file else raw.value):
        return
    if raw.value_file:
        with contextlib.suppress(OSError):
            size = path.lstat().st_size
            path.unlink()
            worker.taken(size)
    raw.value, raw.value_file = b"", 0
    if is_ok:
        why = raw.error or "an object that could run code here"
        raw.status = OutcomeStatus.FAILED
        raw.error = f"its value cannot leave the sandbox as data: {why}; return numbers, text, lists or arrays"


def _head(path: Path) -> bytes:
    """Return how a file begins; b"" when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, len(HEAD), 0)
    finally:
        os.close(fd)
