"""Plain files that results are written to and read from, and nothing else under their names.

A FIFO or a terminal would hold up whoever opens it, and a device has no end; whoever reads a line of a file holds at
most RESULT_LINE_BYTES_MAX of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from p2pcompute.errors import UsageError
from p2pcompute.limits import RESULT_LINE_BYTES_MAX

_SHOWN_CHARS_MAX: Final = 200
_NO_PLACES: Final = ("/dev", "/proc", "/sys")
"""What they hold means something else to each process, or is no file."""
_PLACES: Final = ("/dev/shm",)


def shown(path: Path) -> str:
    """Return a path for people, without the middle of one that no screen has room for."""
    text = str(path)
    if len(text) <= _SHOWN_CHARS_MAX:
        return text
    return f"{text[: _SHOWN_CHARS_MAX // 2]}…{text[-20:]}"


def check_plain(path: Path) -> None:
    """Check that a plain file is at `path`, or nothing yet.

    Raises:
        UsageError: there is something else, or no name can be so.
    """
    try:
        parent = os.path.realpath(path.parent)
        if any(_is_in(parent, place) for place in _NO_PLACES) and not any(_is_in(parent, place) for place in _PLACES):
            raise _refusal(path, f"{parent} does not keep files")
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{shown(path)} is a directory", "results cannot be written there", code="results-path")
    if not stat.S_ISREG(mode):
        raise _refusal(path, f"it is {_kind(mode)}, not a plain file")


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _refusal(path: Path, why: str) -> UsageError:
    return UsageError(f"{shown(path)} cannot be written", why, "name another file", code="results-path")


def _kind(mode: int) -> str:
    for is_kind, name in ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")):
        if is_kind(mode):
            return name
    return "a device"


def open_plain(path: Path, flags: int) -> int:
    """Open a plain file; `flags` as `os.open`.

    Raises:
        OSError: it cannot be opened, or is none (EINVAL): that is noticed before anything waits for its other end.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
    return descriptor


def read_plain(path: Path) -> IO[bytes]:
    """Open a plain file for reading.

    Raises:
        OSError: as `open_plain`.
    """
    return open(open_plain(path, os.O_RDONLY), "rb")


def whole_lines(source: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines that have an end, with it; of one that is longer than RESULT_LINE_BYTES_MAX so many bytes."""
    while line := source.readline(RESULT_LINE_BYTES_MAX):
        end = line
        while not end.endswith(b"\n"):
            end = source.readline(RESULT_LINE_BYTES_MAX)
            if not end:
                return
        yield line
