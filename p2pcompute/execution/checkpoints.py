"""Checkpoints: what a task has reached, kept by its owner, so that its next attempt goes on from there.

A function calls `checkpoint(state)`; a command puts files into the directory that ``$P2PC_CHECKPOINT`` names.  Either
becomes a *cookie*, bytes that nobody but the next attempt reads: the worker process hands it to its node, the node to
the task's owner, and the owner to whoever gets the task next.

Imported by worker processes: imports little.

Source: the state cookies of RFC 5352, section 3.4; self-checkpointing jobs of HTCondor, whose exit code is the same.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` wraps: no enums, a tenth of the time
import contextlib
import os
import stat
import struct
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EXIT_MOVED = 85
"""Exit code of a command that has saved its state and wants to go on elsewhere."""
MOVED = "moved"
"""Cause of an attempt that ended so."""
COOKIE_BYTES_MAX = 16 << 20
"""Most of one cookie."""
SEND_S = 0.2
"""A function hands over no more than one in this time, but the last one."""
FILES_MAX = 64
"""Most files of a command's cookie."""
_NAME_BYTES_MAX = 255
"""Most that file systems take."""
_FILE = struct.Struct(">HHQ")
"""Bytes of the name, permission bits, bytes of the file."""


class TooLarge(Exception):
    """A cookie that would be larger than it may be; the text says how large it was."""


class Moved(BaseException):
    """Ends a function that has saved its state because its node wants it to go; not an Exception, so that functions
    which catch all of these let it pass."""


class Saving:
    """What `checkpoint` does for the call that runs in this process."""

    def __init__(
        self, send: Callable[[bytes], None], loads: Callable[[bytes], Any], dumps: Callable[[Any], bytes]
    ) -> None:
        """Args:
        send: hands a cookie to the node.
        """
        self._send = send
        self._loads = loads
        self._dumps = dumps
        self._cookie = b""
        self._call = 0
        self._state: Any = None
        self._has_state = self._is_listening = self._is_to_end = False
        self._sent_at = float("-inf")

    def begin(self, cookie: bytes) -> None:
        """A task starts that goes on from `cookie`; b"": from scratch."""
        self._cookie, self._sent_at = cookie, float("-inf")
        self._is_listening = self._is_to_end = False
        self.begin_call(0)

    def begin_call(self, number: int) -> None:
        """The next call of a task of several begins; a cookie is of one of them."""
        self._call = number
        self._state, self._has_state = None, False

    def state(self) -> Any:
        """Return what was saved last in this call, here or by an earlier attempt; None: nothing."""
        self._listen()
        if not self._has_state and self._cookie:
            try:
                call, state = self._loads(self._cookie)
            except Exception:  # unpickling runs the task's own code; what cannot be read is as if there were none
                call, state = -1, None
            self._state, self._has_state = (state if call == self._call else None), True
        return self._state

    def save(self, state: Any) -> None:
        """Hand a state over.

        Raises:
            ValueError: it is too large.
            Moved: it is safe, and the task is to end.
        """
        self._listen()
        cookie = self._dumps((self._call, state))
        if len(cookie) > COOKIE_BYTES_MAX:
            raise ValueError(
                f"the state of this checkpoint takes {len(cookie)} bytes (more than {COOKIE_BYTES_MAX}); "
                "keep less in it, or write large parts to files that the task fetches back"
            )
        self._state, self._has_state = state, True
        now = monotonic()
        if self._is_to_end or now >= self._sent_at + SEND_S:
            self._sent_at = now
            self._send(cookie)
        if self._is_to_end:
            raise Moved

    def _listen(self) -> None:
        """From the first use on SIGTERM does not end the task at once: it may save once more."""
        if not self._is_listening:
            self._is_listening = True
            with contextlib.suppress(ValueError):  # called in a thread
                _signal.signal(_signal.SIGTERM, self._note_end)

    def _note_end(self, _number: int, _frame: object) -> None:
        self._is_to_end = True


_saving: Saving | None = None


def use(saving: Saving | None) -> None:
    """Let `checkpoint` work in this process; None: it does nothing from now on."""
    global _saving
    _saving = saving


def checkpoint(value: Any = None) -> Any:
    """Save how far this task is, so that its next attempt goes on from there if its node goes away.

    Call it without a value first: it returns what an earlier attempt has saved, or None when this one begins from
    scratch.  Then call it with each new state, as often as you like; at most one a second leaves the node.  A state is
    pickled, at most 16 MiB.  When the node is about to leave, the call that saves the last state does not return, and
    the task goes on elsewhere from it.  Outside of a task nothing is saved.

    Args:
        value: the state; anything but None.

    Returns:
        `value`, or without one what was saved last.

    Raises:
        ValueError: the state is too large.
    """
    if _saving is None:
        return value
    if value is None:
        return _saving.state()
    _saving.save(value)
    return value


# --- files of commands --------------------------------------------------------------------------------


def pack_directory(path: str) -> bytes:
    """Return the cookie of the files in a directory; b"" when there are none.

    Files whose name begins with a dot are not taken: a program writes under such a name and renames.  Neither is what
    is no plain file, or in a directory below.

    Raises:
        TooLarge: they are more, or more bytes, than a cookie may have.
        OSError: they cannot be read.
    """
    parts: list[bytes] = []
    size = 0
    for name in sorted(os.listdir(path)):
        encoded = os.fsencode(name)
        if name.startswith(".") or not _is_utf8(encoded):
            continue
        try:
            fd = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, OSError):
            continue  # renamed meanwhile, or a link
        try:
            entry = os.fstat(fd)
            if not stat.S_ISREG(entry.st_mode):
                continue
            size += entry.st_size + len(encoded) + _FILE.size
            if size > COOKIE_BYTES_MAX or len(parts) >= 2 * FILES_MAX:
                raise TooLarge(f"{len(parts) // 2 + 1} files or more, {size} bytes or more")
            data = _read(fd, entry.st_size)
        finally:
            os.close(fd)
        parts += [_FILE.pack(len(encoded), entry.st_mode & 0o777, len(data)) + encoded, data]
    return b"".join(parts)


def unpack_directory(cookie: bytes, path: str) -> None:
    """Put the files of a cookie into an empty directory.

    Raises:
        ValueError: it is none.
        OSError: they cannot be written.
    """
    position = count = 0
    names: set[bytes] = set()
    while position < len(cookie):
        try:
            name_size, mode, size = _FILE.unpack_from(cookie, position)
        except struct.error:
            raise ValueError("not the files of a checkpoint") from None
        position += _FILE.size
        encoded, end = cookie[position : position + name_size], position + name_size + size
        count += 1
        if end > len(cookie) or count > FILES_MAX or not _is_name(encoded) or encoded in names:
            raise ValueError("not the files of a checkpoint")
        names.add(encoded)
        fd = os.open(
            os.path.join(os.fsencode(path), encoded), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        with open(fd, "wb") as file:
            file.write(cookie[position + name_size : end])
            os.fchmod(fd, mode & 0o777 | 0o600)
        position = end


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_name(name: bytes) -> bool:
    if not 0 < len(name) <= _NAME_BYTES_MAX or name.startswith(b"."):
        return False
    return b"/" not in name and b"\0" not in name and _is_utf8(name)
