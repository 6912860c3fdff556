"""Reading what a worker process says.  Its bytes are hostile: a task may have written them."""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import messages, progress
from p2pcompute.execution.checkpoints import COOKIE_BYTES_MAX
from p2pcompute.execution.spec import is_safe_name
from p2pcompute.host.runs import OutcomeStatus
from p2pcompute.limits import ERROR_TEXT_BYTES_MAX, INLINE_BYTES_MAX, OUTPUT_FILES_MAX

_STATUSES = tuple(OutcomeStatus(status) for status in messages.STATUSES)


@dataclass(slots=True)
class RawResult:
    """A result whose large parts are still numbered files of the worker process."""

    run_id: int
    status: OutcomeStatus
    cause: str
    exit_code: int | None
    signal: int | None
    started_wall: float
    runtime_s: float
    cpu_s: float
    peak_rss_bytes: int
    value: bytes
    stdout: bytes
    stderr: bytes
    error: str
    value_file: int
    stdout_file: int
    stderr_file: int
    files: list[tuple[int, int, str]]
    """(file number, permission bits, name) each."""

    @property
    def has_files(self) -> bool:
        """True when something must be taken into the blob store."""
        return bool(self.value_file or self.stdout_file or self.stderr_file or self.files)


def parse_started(body: bytes) -> tuple[int, int]:
    """Return (run id, process group) of a STARTED message.

    Raises:
        RemoteProtocolError: it is malformed, or names a group that is no task's.
    """
    if len(body) != messages.STARTED_BODY.size:
        raise RemoteProtocolError("a start message of a wrong size")
    _, run_id, group = messages.STARTED_BODY.unpack(body)
    if group <= 1:
        raise RemoteProtocolError("an impossible process group")
    return run_id, group


def parse_saved(body: bytes) -> tuple[int, bytes]:
    """Return (run id, cookie) of a SAVED message.

    Raises:
        RemoteProtocolError: it is malformed, or too large.
    """
    size = messages.SAVED_HEAD.size
    if not size < len(body) <= size + COOKIE_BYTES_MAX:
        raise RemoteProtocolError("a checkpoint of an impossible size")
    return messages.SAVED_HEAD.unpack_from(body)[1], body[size:]


Tail = tuple[tuple[int, bytes], tuple[int, bytes], bytes]
"""Of stdout and stderr: where bytes begin, and the bytes; and how far the task says that it is (`progress`)."""


def parse_tail(body: bytes) -> tuple[int, Tail]:
    """Return (serial number, tail) of a TAIL message.

    Raises:
        RemoteProtocolError: it is malformed.
    """
    head = messages.TAIL_HEAD
    if len(body) < head.size:
        raise RemoteProtocolError("a tail cut short")
    _, serial, stdout_start, stdout_size, stderr_start, stderr_size, progress_size = head.unpack_from(body)
    sizes = head.size + stdout_size + stderr_size
    if max(stdout_size, stderr_size) > messages.TAIL_BYTES_MAX or sizes + progress_size != len(body):
        raise RemoteProtocolError("a tail of an impossible size")
    if max(stdout_start, stderr_start) >= 1 << 62:
        raise RemoteProtocolError("an impossible tail")
    stdout = body[head.size : head.size + stdout_size]
    stderr = body[head.size + stdout_size : sizes]
    return serial, ((stdout_start, stdout), (stderr_start, stderr), body[sizes:][: progress.BYTES_MAX])


def parse_outputs(body: bytes) -> list[int]:
    """Return the numbers in an OUTPUTS message.

    Raises:
        RemoteProtocolError: it is malformed, or names a file twice.
    """
    count, rest = divmod(len(body) - 1, messages.OUTPUT_NUMBER.size)
    if rest or not 0 < count <= messages.OUTPUTS_MAX:
        raise RemoteProtocolError("an impossible list of files")
    numbers = [number for (number,) in messages.OUTPUT_NUMBER.iter_unpack(body[1:])]
    if 0 in numbers or len(set(numbers)) < count:
        raise RemoteProtocolError("an impossible list of files")
    return numbers


def parse_result(body: bytes) -> RawResult:
    """Return the result in a RESULT message.

    Raises:
        RemoteProtocolError: a field is out of its range or the sizes do not add up.
    """
    size = len(body)
    position = messages.RESULT_HEAD.size
    if size < position:
        raise RemoteProtocolError("a result cut short")
    (
        _,
        run_id,
        status,
        cause,
        exit_code,
        signal,
        started,
        runtime,
        cpu,
        peak,
        value_size,
        stdout_size,
        stderr_size,
        error_size,
        value_file,
        stdout_file,
        stderr_file,
        file_count,
    ) = messages.RESULT_HEAD.unpack_from(body)
    if (
        status >= len(_STATUSES)
        or cause >= len(messages.CAUSES)
        or not (0.0 <= started < 1e12 and 0.0 <= runtime < 1e12 and 0.0 <= cpu < 1e12)
        or peak >= 1 << 62
        or max(value_size, stdout_size, stderr_size) > INLINE_BYTES_MAX
        or error_size > ERROR_TEXT_BYTES_MAX
        or file_count > OUTPUT_FILES_MAX
    ):
        raise RemoteProtocolError("a field of a result is out of its range")
    ends = [position]
    for part in (value_size, stdout_size, stderr_size, error_size):
        ends.append(ends[-1] + part)
    files = []
    position = ends[-1]
    for _index in range(file_count):
        if position + messages.FILE_HEAD.size > size:
            raise RemoteProtocolError("a result cut short")
        number, mode, name_size = messages.FILE_HEAD.unpack_from(body, position)
        position += messages.FILE_HEAD.size
        try:
            name = body[position : position + name_size].decode()
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a file name that is not UTF-8") from error
        position += name_size
        if not is_safe_name(name) or not number:
            raise RemoteProtocolError("an impossible output file")
        files.append((number, mode & 0o777, name))
    if position != size:
        raise RemoteProtocolError("a result of a wrong size")
    error_text = body[ends[3] : ends[4]].decode("utf-8", "replace") if error_size else ""
    return RawResult(
        run_id,
        _STATUSES[status],
        messages.CAUSES[cause],
        None if exit_code == messages.NO_EXIT_CODE else exit_code,
        signal or None,
        started,
        runtime,
        cpu,
        peak,
        body[ends[0] : ends[1]],
        body[ends[1] : ends[2]],
        body[ends[2] : ends[3]],
        error_text,
        value_file,
        stdout_file,
        stderr_file,
        files,
    )
