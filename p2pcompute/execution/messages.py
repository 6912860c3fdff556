"""Messages between the node and a worker process over their socketpair.

Frames: 4-byte big-endian length, then the body.  The node is trusted by its worker process, not the other way
round: what goes down is `marshal` (same interpreter, fast, no imports), what comes up is a fixed binary layout
that the node checks field by field (`results.py`).

Imported by the worker process: nothing here may import more than `struct` and `marshal`.
"""

from __future__ import annotations

import marshal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HEAD = struct.Struct(">I")

# --- node → worker process: first item of the marshalled tuple ---------------------------------------
SETUP = 1
"""(SETUP, settings): once, first."""
BATCH = 2
"""(BATCH, jobs, forgotten job numbers, tasks)."""
KILL = 3
"""(KILL, run ids)."""

# --- worker process → node: first byte of the body ----------------------------------------------------
HELLO = 1
"""Ready; nothing else follows."""
STARTED = 2
"""A command's process group exists: run id, process group."""
RESULT = 3

STATUSES = ("ok", "failed", "timeout", "died", "killed", "not-run", "refused")
"""Values of OutcomeStatus in the order of their codes."""
CAUSES = ("", "oom", "signal", "wall", "cpu")
EXIT_CHANNEL_CLOSED = 97
"""Exit code of a worker process that found its socket closed."""
NO_EXIT_CODE = -(1 << 31)

STARTED_BODY = struct.Struct(">BQI")
RESULT_HEAD = struct.Struct(">BQBBiBdddQIIIIIIII")
"""kind, run id, status, cause, exit code, signal, started (Unix s), runtime s, CPU s, peak RSS bytes, bytes of value,
stdout, stderr and error, file numbers of value, stdout and stderr (0: none), count of files."""
FILE_HEAD = struct.Struct(">IHH")
"""File number, permission bits, bytes of the name."""


def pack_down(message: tuple[Any, ...]) -> bytes:
    """Return the frame of a message to the worker process."""
    body = marshal.dumps(message)
    return HEAD.pack(len(body)) + body


def unpack_down(body: bytes) -> Any:
    """Return the message in a body from the node."""
    return marshal.loads(body)


def pack_hello() -> bytes:
    """Return the frame that says the worker process is ready."""
    return HEAD.pack(1) + bytes([HELLO])


def pack_started(run_id: int, group: int) -> bytes:
    """Return the frame that names a command's process group."""
    return HEAD.pack(STARTED_BODY.size) + STARTED_BODY.pack(STARTED, run_id, group)


class Result:
    """How one run ended, inside the worker process.  Mutable: filled step by step."""

    __slots__ = (
        "cause",
        "cpu_s",
        "error",
        "exit_code",
        "files",
        "peak_rss_bytes",
        "run_id",
        "runtime_s",
        "signal",
        "started_wall",
        "status",
        "stderr",
        "stderr_file",
        "stdout",
        "stdout_file",
        "value",
        "value_file",
    )

    def __init__(self, run_id: int, status: str = "ok", error: str = "") -> None:
        self.run_id = run_id
        self.status = status
        self.error = error
        self.cause = ""
        self.exit_code: int | None = None
        self.signal = 0
        self.started_wall = 0.0
        self.runtime_s = 0.0
        self.cpu_s = 0.0
        self.peak_rss_bytes = 0
        self.value = b""
        self.value_file = 0
        self.stdout = b""
        self.stdout_file = 0
        self.stderr = b""
        self.stderr_file = 0
        self.files: Sequence[tuple[int, int, bytes]] = ()
        """(file number, permission bits, name) each."""


def clip_text(text: str, bytes_max: int) -> bytes:
    """Return UTF-8 of at most `bytes_max` bytes; of longer text the middle is left out."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data
    half = (bytes_max - 40) // 2
    return data[:half] + b"\n[... %d bytes left out ...]\n" % (len(data) - 2 * half) + data[-half:]


def pack_result(result: Result, error_bytes_max: int) -> bytes:
    """Return the frame of a result."""
    error = clip_text(result.error, error_bytes_max) if result.error else b""
    parts = [
        b"",
        RESULT_HEAD.pack(
            RESULT,
            result.run_id,
            STATUSES.index(result.status),
            CAUSES.index(result.cause),
            NO_EXIT_CODE if result.exit_code is None else result.exit_code,
            result.signal,
            result.started_wall,
            result.runtime_s,
            result.cpu_s,
            result.peak_rss_bytes,
            len(result.value),
            len(result.stdout),
            len(result.stderr),
            len(error),
            result.value_file,
            result.stdout_file,
            result.stderr_file,
            len(result.files),
        ),
        result.value,
        result.stdout,
        result.stderr,
        error,
    ]
    for number, mode, name in result.files:
        parts.append(FILE_HEAD.pack(number, mode, len(name)))
        parts.append(name)
    parts[0] = HEAD.pack(sum(map(len, parts)))
    return b"".join(parts)
