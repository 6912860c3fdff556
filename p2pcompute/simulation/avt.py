"""Availability traces: when each node of a measured network was up.

Format AVT, one line per node: ``<id> <n> <up 1> <down 1> … <up n> <down n>``, times in seconds, ascending; blank lines
and lines that begin with ``#`` are skipped.  It may be compressed with gzip.

Source: B. Godfrey, Repository of Availability Traces; the Failure Trace Archive carries the same files.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import math
import os
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from p2pcompute.errors import UsageError

LINE_CHARS_MAX: Final = 16 * 1024 * 1024
"""Of a trace or a log; the longest line of a published one has a thousandth of that."""
GZIP_MAGIC: Final = b"\x1f\x8b"
WORD_CHARS_MAX: Final = 40
"""Of a wrong value, in the text of an error."""
TIME_S_MAX: Final = 10_000_000_000
"""Also traces that count from 1970 keep below it for centuries."""
SESSION_S_MIN: Final = 0.001
TRACE_S_MIN: Final = 1.0
"""From its first session to its last: it is replayed over and over, and a shorter one would be all starts and stops."""


@dataclass(frozen=True, slots=True)
class AvailabilityTrace:
    """A trace that was read."""

    begin_s: float
    """First time at which any node is up: where the observation starts."""
    end_s: float
    """Last time at which any node is up: where it ends."""
    rows: tuple[array[float], ...]
    """For each node up, down, up, down … in seconds, ascending; a node that was never seen has an empty row."""


@functools.lru_cache(maxsize=4)
def read_avt(path: str) -> AvailabilityTrace:
    """Read a trace.  Read once in a process: a simulation of many nodes asks for each of them.

    Raises:
        UsageError: it cannot be read, or a line is not as it must be; names the line.
    """
    rows: list[array[float]] = []
    number = 0
    try:
        with open_lines(path, "ascii") as file:
            for number, line in enumerate(bounded_lines(file), 1):
                words = line.split()
                if words and not words[0].startswith("#"):
                    rows.append(_row(path, number, words))
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise UsageError(
            f"{path}: the trace cannot be read", why_unread(error, number), "give a file in AVT format", code="trace",
        ) from error  # fmt: skip
    seen = [row for row in rows if row]
    if not seen:
        raise UsageError(f"{path}: the trace is empty", "no node in it is ever up", None, code="trace")
    begin_s, end_s = min(row[0] for row in seen), max(row[-1] for row in seen)
    if end_s - begin_s < TRACE_S_MIN:
        raise UsageError(
            f"{path}: the trace is too short", f"{end_s - begin_s:g} s, at least {TRACE_S_MIN:g} s", None, code="trace"
        )
    return AvailabilityTrace(begin_s, end_s, tuple(rows))


def open_lines(path: str, encoding: str) -> IO[str]:
    """Open a text file, compressed or not, whatever its name; a mark of UTF-8 at its beginning is no part of it.

    Raises:
        OSError: it cannot be opened, or is none: a pipe is read once only, and a device may never end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("not a regular file")
    with open(path, "rb") as file:
        head = file.read(len(codecs.BOM_UTF8))
    if head.startswith(GZIP_MAGIC) or path.endswith(".gz"):
        return gzip.open(path, "rt", encoding=encoding)
    return open(path, encoding="utf-8-sig" if head == codecs.BOM_UTF8 else encoding)


def bounded_lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines.

    Raises:
        OSError: one has more than LINE_CHARS_MAX characters.
    """
    while line := file.readline(LINE_CHARS_MAX):
        if len(line) == LINE_CHARS_MAX:
            raise OSError(f"a line has more than {LINE_CHARS_MAX} characters")
        yield line


def why_unread(error: Exception, number: int) -> str:
    """Say why reading ended behind that line."""
    why = (isinstance(error, OSError) and error.strerror) or str(error)
    if isinstance(error, UnicodeDecodeError):
        why = f"it is no plain text: a byte is {error.object[error.start]:#04x}"
    return f"behind line {number}: {why}" if number else why


def _row(path: str, number: int, words: list[str]) -> array[float]:
    def refuse(what: str, why: str = "") -> UsageError:
        why = why or "a line reads: id, number n of sessions, then n pairs of seconds up, down"
        return UsageError(f"{path}, line {number}: {what}", why, "mend or leave out that line", code="trace")

    try:
        count = int(words[1])
    except (IndexError, ValueError):
        raise refuse("no number of sessions") from None
    if count < 0 or len(words) != 2 + 2 * count:
        raise refuse(f"{count} sessions and {len(words) - 2} times")
    try:
        times = array("d", map(float, words[2:]))
    except ValueError as error:
        raise refuse(f"not a time: {str(error)[: 2 * WORD_CHARS_MAX]}") from None
    before = -math.inf
    for position, moment in enumerate(times):
        word = words[2 + position][:WORD_CHARS_MAX]
        if not 0 <= moment <= TIME_S_MAX:
            raise refuse(f"a time cannot be {word}", f"it is a number of seconds from 0 to {TIME_S_MAX}")
        if moment < before or (position % 2 and moment < before + SESSION_S_MIN):
            why = f"times ascend, and a session has at least {SESSION_S_MIN:g} s"
            raise refuse(f"{word} stands behind {before:g}", why)
        before = moment
    return times


def replay(trace: AvailabilityTrace, row: int, *, from_s: float = 0.0) -> Iterator[tuple[float, float]]:
    """When a node of the trace is up: pairs (from, until) in seconds from the start of the replay, without end.

    Behind its end the trace begins again; a node that is up at both ends stays up.  Nothing comes for a node that was
    never seen.

    Args:
        from_s: seconds after the trace's begin at which the replay starts; a session under way is cut to its rest.
    """
    times, length_s = trace.rows[row], trace.end_s - trace.begin_s
    if not times:
        return
    lap, held = 0, None
    while True:
        shift_s = lap * length_s - trace.begin_s - from_s
        for position in range(0, len(times), 2):
            begin_s, end_s = max(0.0, times[position] + shift_s), times[position + 1] + shift_s
            if end_s <= 0.0:
                continue
            if held is not None and begin_s <= held[1]:
                held = (held[0], end_s)
                continue
            if held is not None:
                yield held
            held = (begin_s, end_s)
        lap += 1
        if held is not None and held[0] == 0.0 and held[1] >= 2 * length_s:
            yield (0.0, math.inf)  # up all the time
            return
