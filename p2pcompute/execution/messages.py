"""Messages between the node and a worker process over their socketpair.

Frames: 4-byte big-endian length, then the body.  The node is trusted by its worker process, not the other way
round: what goes down is `marshal` (same interpreter, fast, no imports), what comes up is a fixed binary layout
that the node checks field by field (`results.py`).

Imported by the worker process: nothing here may import more than `os`, `struct` and `marshal`.
"""

from __future__ import annotations

import marshal
import os
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
TAKEN = 4
"""(TAKEN, error, is_ours): the files of an OUTPUTS message were copied; else why not, and whether that is our fault."""
PEEK = 5
"""(PEEK, serial number, run id, offset of stdout, of stderr): what has it printed from there on?"""

# --- worker process → node: first byte of the body ----------------------------------------------------
HELLO = 1
"""Ready; from a sandbox, one more byte: the version of Landlock in use."""
STARTED = 2
"""A command's process group exists: run id, process group."""
RESULT = 3
OUTPUTS = 4
"""From a sandbox, before a result: numbers of files whose descriptors come along; it waits for TAKEN."""
TAIL = 7
"""Answer to PEEK: serial number; of stdout and stderr where the bytes begin that follow, and how many they are; how
many bytes of `progress` follow these."""
SAVED = 6
"""A task has reached this much: run id, cookie (`checkpoints`)."""

STATUSES = ("ok", "failed", "timeout", "died", "killed", "not-run", "refused")
"""Values of OutcomeStatus in the order of their codes."""
CAUSES = ("", "oom", "signal", "wall", "cpu", "output", "exit", "always", "disk", "moved", "machine", "here")
EXIT_CHANNEL_CLOSED = 97
"""Exit code of a worker process that found its socket closed."""
NO_EXIT_CODE = -(1 << 31)

STARTED_BODY = struct.Struct(">BQI")
TAIL_HEAD = struct.Struct(">BQQIQIH")
TAIL_BYTES_MAX = 1 << 16
"""Of each stream in one answer: the last ones."""
SAVED_HEAD = struct.Struct(">BQ")
RESULT_HEAD = struct.Struct(">BQBBiBdddQIIIIIIII")
"""kind, run id, status, cause, exit code, signal, started (Unix s), runtime s, CPU s, peak RSS bytes, bytes of value,
stdout, stderr and error, file numbers of value, stdout and stderr (0: none), count of files."""
OUTPUTS_MAX = 32
"""Files in one OUTPUTS message: each is a descriptor of the node until it is copied."""
OUTPUT_NUMBER = struct.Struct(">I")
FILE_HEAD = struct.Struct(">IHH")
"""File number, permission bits, bytes of the name."""

# --- the process that runs WASI modules → worker process -----------------------------------------------
WASM_EXIT, WASM_TRAP, WASM_BAD, WASM_SHORT, WASM_BROKEN = range(5)
"""A task ended with an exit code; a trap stopped it; no node can run the module; this one has not what the module
wants; this one runs none."""
WASM_ANSWER = struct.Struct(">BiQdI")
"""One of these, exit code, bytes of memory, CPU s, bytes of the text that follows."""
WASM_TEXT_BYTES_MAX = 1 << 14


def pack_down(message: tuple[Any, ...]) -> bytes:
    """Return the frame of a message to the worker process."""
    body = marshal.dumps(message)
    return HEAD.pack(len(body)) + body


def unpack_down(body: bytes) -> Any:
    """Return the message in a body from the node."""
    return marshal.loads(body)


def pack_hello(*more: int) -> bytes:
    """Return the frame that says the worker process is ready."""
    return HEAD.pack(1 + len(more)) + bytes([HELLO, *more])


def pack_outputs(numbers: Sequence[int]) -> bytes:
    """Return the frame that offers files; their descriptors go with its first byte."""
    body = bytes([OUTPUTS]) + b"".join(map(OUTPUT_NUMBER.pack, numbers))
    return HEAD.pack(len(body)) + body


def pack_started(run_id: int, group: int) -> bytes:
    """Return the frame that names a command's process group."""
    return HEAD.pack(STARTED_BODY.size) + STARTED_BODY.pack(STARTED, run_id, group)


def tail_of(fd: int, offset: int) -> tuple[int, bytes]:
    """Return what a file holds from `offset` on, at most the last TAIL_BYTES_MAX bytes, and where that begins."""
    size = os.fstat(fd).st_size
    start = max(min(offset, size), size - TAIL_BYTES_MAX, 0)
    return start, os.pread(fd, TAIL_BYTES_MAX, start)


def pack_tail(serial: int, stdout: tuple[int, bytes], stderr: tuple[int, bytes], progress: bytes) -> bytes:
    """Return the frame of an answer to PEEK."""
    head = TAIL_HEAD.pack(TAIL, serial, stdout[0], len(stdout[1]), stderr[0], len(stderr[1]), len(progress))
    body = head + stdout[1] + stderr[1] + progress
    return HEAD.pack(len(body)) + body


def pack_saved(run_id: int, cookie: bytes) -> bytes:
    """Return the frame of a checkpoint."""
    head = SAVED_HEAD.pack(SAVED, run_id)
    return HEAD.pack(len(head) + len(cookie)) + head + cookie


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


def unpack_result(body: bytes) -> Result:
    """Return the result in a RESULT body, in a sandbox: its writer is the task.

    Raises:
        ValueError: it is none.
    """
    try:
        kind, run_id, status, cause, exit_code, *rest = RESULT_HEAD.unpack_from(body)
        result = Result(run_id, STATUSES[status])
        result.cause = CAUSES[cause]
        result.exit_code = None if exit_code == NO_EXIT_CODE else exit_code
        result.signal, result.started_wall, result.runtime_s, result.cpu_s, result.peak_rss_bytes = rest[:5]
        position = RESULT_HEAD.size
        parts = []
        for size in rest[5:9]:
            parts.append(body[position : position + size])
            position += size
        result.value, result.stdout, result.stderr = parts[:3]
        result.error = parts[3].decode("utf-8", "replace")
        result.value_file, result.stdout_file, result.stderr_file, file_count = rest[9:]
        files = []
        for _ in range(file_count):
            number, mode, size = FILE_HEAD.unpack_from(body, position)
            position += FILE_HEAD.size
            files.append((number, mode, body[position : position + size]))
            position += size
        result.files = files
    except (struct.error, IndexError) as error:
        raise ValueError("not a result") from error
    if kind != RESULT or position != len(body):
        raise ValueError("not a result")
    return result


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
