"""How far a function says that it is: kept beside what it prints, and read with it.

Imported by worker processes: imports little.
"""

from __future__ import annotations

import os
import struct
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FILE = "progress"
"""Beside the files of its standard output and error."""
NOTE_BYTES_MAX = 200
_HEAD = struct.Struct(">dd")
BYTES_MAX = _HEAD.size + NOTE_BYTES_MAX
_WRITE_S = 0.05
"""What is said more often is left out, but the last word."""


class Telling:
    """What `progress` does for the task that runs in this process."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_told = False
        self._written_at = float("-inf")
        self.begin()

    def begin(self) -> None:
        """Another task starts: nothing of the one before is left."""
        self._written_at = float("-inf")
        if self._is_told:
            self._is_told = False
            try:
                os.unlink(self._path)
            except OSError:
                return

    def tell(self, done: float, total: float | None, note: str) -> None:
        """Write how far it is; a disk that refuses does not matter."""
        now = monotonic()
        if now < self._written_at + _WRITE_S and (total is None or done < total):
            return
        self._written_at, self._is_told = now, True
        text = note.encode("utf-8", "replace")[:NOTE_BYTES_MAX]
        data = _HEAD.pack(done, -1.0 if total is None else total) + text
        try:
            part = self._path + ".part"
            with open(part, "wb") as file:
                file.write(data)
            os.replace(part, self._path)
        except OSError:
            return


_tell: Callable[[float, float | None, str], None] | None = None


def use(telling: Telling | None) -> None:
    """Let `progress` work in this process; None: it does nothing from now on."""
    global _tell
    _tell = None if telling is None else telling.tell


def progress(done: float, total: float | None = None, note: str = "") -> None:
    """Say how far this task is: `MeshFuture.progress` and `p2pc show JOB/TASK` tell it while the task runs.

    Call it as often as you like.  Outside of a task nothing happens.

    Args:
        done: how much of it is done, in any unit.
        total: how much there is; None: nobody knows.
        note: a few words, up to 200 bytes.

    Raises:
        TypeError: a number is none.
    """
    done, total = float(done), None if total is None else float(total)
    if _tell is not None:
        _tell(done, total, str(note))


def read(directory: str) -> bytes:
    """Return what the function that runs in a directory has said; b"" when nothing."""
    try:
        fd = os.open(os.path.join(directory, FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, BYTES_MAX, 0)
    finally:
        os.close(fd)


def parse(data: bytes) -> tuple[float, float | None, str] | None:
    """Return (done, total, note) of what a task, that may be anybody's, has said; None when it has said nothing."""
    if not _HEAD.size <= len(data) <= BYTES_MAX:
        return None
    done, total = _HEAD.unpack_from(data)
    if not (-1e300 < done < 1e300 and -1.0 <= total < 1e300):
        return None
    return done, (None if total < 0 else total), data[_HEAD.size :].decode("utf-8", "replace")
