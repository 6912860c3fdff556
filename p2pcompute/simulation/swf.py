"""Logs of parallel computers in the Standard Workload Format: who submitted what when, and how long it ran.

18 numbers a line, -1 for unknown; lines that begin with ``;`` are comments.  Only what a workload needs is kept.

Source: Feitelson et al., "The Standard Workload Format", Parallel Workloads Archive, version 2.2.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import UsageError
from p2pcompute.simulation.avt import WORD_CHARS_MAX, bounded_lines, open_lines, why_unread

_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
"""Characters that no text has; others of them count as spaces."""
_FIELDS: Final = 18
_SUBMIT, _RUN_TIME, _ALLOCATED, _REQUESTED, _USER = 1, 3, 4, 7, 11
"""Positions of the fields that are read, from 0."""
TIME_S_MAX: Final = 10_000_000_000
"""When a job was submitted: also logs that count from 1970 keep below it for centuries."""
RUN_S_MAX: Final = 315_360_000
"""Ten years, beyond what any machine of a log was in use."""
PROCESSORS_MAX: Final = 100_000_000
"""Ten times the cores of the largest machine there is."""
NUMBER_MAX: Final = 1_000_000_000_000_000
"""Of all other fields: whole numbers that a float holds."""
_MAX: Final = {
    _SUBMIT: TIME_S_MAX, _RUN_TIME: RUN_S_MAX, _ALLOCATED: PROCESSORS_MAX, _REQUESTED: PROCESSORS_MAX,
}  # fmt: skip
_NAMES: Final = {
    _SUBMIT: "submit time, s", _RUN_TIME: "run time, s", _ALLOCATED: "processors", _REQUESTED: "processors asked for",
    _USER: "user",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoggedJob:
    """A job that ran."""

    submit_s: float
    """Seconds from the start of the log."""
    run_s: float
    processors: int
    """Allocated, or requested when that is not known."""
    user: int
    """-1: not known."""


@dataclass(frozen=True, slots=True)
class Log:
    """A log that was read."""

    jobs: tuple[LoggedJob, ...]
    """Those that ran, by submission time."""
    left_out: int
    """How many have no run time or no processors: they failed or were cancelled before they ran."""


@functools.lru_cache(maxsize=4)
def read_swf(path: str) -> Log:
    """Return a log.

    It may be compressed with gzip.  Read once in a process.

    Raises:
        UsageError: it cannot be read, or a line is not as it must be; names the line.
    """
    jobs: list[LoggedJob] = []
    number, left_out, last = 0, 0, -math.inf
    try:
        with open_lines(path, "latin-1") as file:
            for number, line in enumerate(bounded_lines(file), 1):
                words = line.split()
                if not words or words[0].startswith(";"):
                    continue
                if control := _CONTROL.search(line):  # each byte is a character of latin-1
                    raise _refuse(path, number, f"it is no plain text: a byte is {ord(control[0]):#04x}")
                job = _job(path, number, words)
                if job.submit_s < last:
                    raise _refuse(path, number, f"submitted at {job.submit_s:g}, before the job above it ({last:g})")
                last = job.submit_s
                if job.run_s > 0 and job.processors > 0:
                    jobs.append(job)
                else:
                    left_out += 1
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise UsageError(
            f"{path}: the log cannot be read", why_unread(error, number),
            "give a file in the Standard Workload Format", code="swf",
        ) from error  # fmt: skip
    if not jobs:
        raise UsageError(f"{path}: the log has no job that ran", f"{number} lines", None, code="swf")
    return Log(tuple(jobs), left_out)


def _refuse(path: str, number: int, what: str, why: str = "") -> UsageError:
    return UsageError(
        f"{path}, line {number}: {what}",
        why or f"a line of the Standard Workload Format has {_FIELDS} numbers, by submit time",
        "mend or leave out that line",
        code="swf",
    )


def _job(path: str, number: int, words: list[str]) -> LoggedJob:
    if len(words) != _FIELDS:
        raise _refuse(path, number, f"{len(words)} fields")
    values = [_value(path, number, position, word) for position, word in enumerate(words)]
    if values[_SUBMIT] < 0:
        raise _refuse(path, number, "no submit time")
    processors = int(values[_ALLOCATED] if values[_ALLOCATED] > 0 else values[_REQUESTED])
    return LoggedJob(values[_SUBMIT], values[_RUN_TIME], processors, int(values[_USER]))


def _value(path: str, number: int, position: int, word: str) -> float:
    is_whole, most = position in (_ALLOCATED, _REQUESTED, _USER), _MAX.get(position, NUMBER_MAX)
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if value == -1 or (0 <= value <= most and not (is_whole and value != int(value))):
        return value
    name = f" ({_NAMES[position]})" if position in _NAMES else ""
    what = f"field {position + 1}{name} cannot be {word[:WORD_CHARS_MAX]}"
    raise _refuse(path, number, what, f"it is a {'whole ' * is_whole}number from 0 to {most}, or -1: not known")
