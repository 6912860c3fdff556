"""Records of results in files of several: a line of a joblog, a JSON line, a row of CSV; appended whole or not at all.

Source: joblog and CSV columns as GNU parallel 20221122 writes them (print_joblog, print_csv).
"""

from __future__ import annotations

import base64
import codecs
import io
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from p2pcompute.api.result_content import Content, chunks, content_size
from p2pcompute.api.result_keys import JOBLOG_HEADER
from p2pcompute.host.plain_files import open_plain

_CHUNK_BYTES: Final = 256 * 1024


def joblog_line(
    *,
    seq: int,
    host: str,
    started: float,
    runtime_s: float,
    sent: int,
    received: int,
    exit_code: int,
    signal: int,
    command: str,
) -> str:
    """Return one line of a GNU parallel joblog.

    Args:
        seq: from 1.
        host: the node's name.
        started: wall time in seconds.
        sent: bytes of files sent to the task.
        received: bytes of output and files that came back.
        command: newlines become NUL, as GNU parallel does.
    """
    text = command.replace("\n", "\0")
    return f"{seq}\t{host}\t{started:.3f}\t{runtime_s:10.3f}\t{sent}\t{received}\t{exit_code}\t{signal}\t{text}\n"


def exit_columns(task: Mapping[str, Any]) -> tuple[int, int]:
    """Return Exitval and Signal of a task.

    A timeout is -1 and 15, as in GNU parallel; a task without an exit code (a function) is 0 or 1 by its state.
    """
    exit_code, signal = task.get("exit_code"), task.get("signal")
    if task.get("state") == "done":
        return int(exit_code or 0), 0
    if task.get("status") == "timeout":
        return -1, 15
    if signal:
        return int(exit_code) if exit_code and exit_code > 0 else 0, int(signal)
    return int(exit_code) if exit_code else 1, 0


def wall_seconds(value: object) -> float:
    """Return a time of the API (RFC 3339 text, seconds, or None) as wall seconds; 0.0 when unknown."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and value:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return 0.0
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return 0.0


def _is_text(content: Content) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks(content):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def json_content(out: IO[bytes], name: str, content: Content) -> None:
    """Write ``,"name":"text"``, or ``,"name_b64":"…"`` when it is not UTF-8, without holding it in memory."""
    if _is_text(content):
        out.write(f',"{name}":"'.encode())
        decoder = codecs.getincrementaldecoder("utf-8")()
        for chunk in chunks(content):
            out.write(json.dumps(decoder.decode(chunk), ensure_ascii=False)[1:-1].encode())
    else:
        out.write(f',"{name}_b64":"'.encode())
        held = b""
        for chunk in chunks(content):
            held += chunk
            whole = len(held) - len(held) % 3
            out.write(base64.b64encode(held[:whole]))
            held = held[whole:]
        out.write(base64.b64encode(held))
    out.write(b'"')


def csv_field(text: bytes, separator: bytes) -> bytes:
    """Quote a column the way GNU parallel does: only when something in it asks for quotes."""
    if any(sign in text for sign in (separator, b'"', b"\n", b"\r", b" ", b"\t")):
        return b'"' + text.replace(b'"', b'""') + b'"'
    return text


def csv_content(out: IO[bytes], content: Content) -> None:
    if not content_size(content):
        return
    out.write(b'"')
    for chunk in chunks(content):
        out.write(chunk.replace(b'"', b'""'))
    out.write(b'"')


def append_to(path: Path, *, quoted: bool = False) -> IO[bytes]:
    """Open for appending after dropping a torn last line (`quoted`: a torn CSV row)."""
    out: IO[bytes] = open(open_plain(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+")  # noqa: SIM115 - it is kept
    end = _whole_bytes(out, quoted=quoted)
    if end < out.seek(0, io.SEEK_END):
        out.truncate(end)
        out.seek(0, io.SEEK_END)
    return out


def begin_joblog(path: Path) -> None:
    with open(open_plain(path, os.O_WRONLY | os.O_CREAT), "wb") as out:
        out.truncate(0)
        out.write(JOBLOG_HEADER.encode())


def append_whole(out: IO[bytes], write: Any) -> None:
    """Append one row; when the disk refuses midway, take the part back."""
    out.flush()
    start = out.tell()
    try:
        write(out)
        out.flush()
    except OSError:
        os.ftruncate(out.fileno(), start)
        raise


def _whole_bytes(source: IO[bytes], *, quoted: bool) -> int:
    """Return the length of the whole records: up to the last newline (outside quotes)."""
    if not quoted:
        position = source.seek(0, io.SEEK_END)
        while position > 0:
            start = max(0, position - _CHUNK_BYTES)
            source.seek(start)
            found = source.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
        return 0
    source.seek(0)
    end, offset, is_open = 0, 0, False
    while chunk := source.read(_CHUNK_BYTES):
        for piece in chunk.split(b'"'):
            if not is_open and (found := piece.rfind(b"\n")) >= 0:
                end = offset + found + 1
            offset += len(piece) + 1
            is_open = not is_open
        offset -= 1
        is_open = not is_open
    return end
