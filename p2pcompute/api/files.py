"""Files of this machine that go along with calls and commands."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from p2pcompute.errors import UsageError
from p2pcompute.execution.spec import InputFile
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import UPLOAD_FILES_MAX

PLACE: Final = "{}"
"""Stands for the input of a command, or the first argument of a call."""
REMEMBERED_MAX: Final = 64
"""Files that stay in the store while they do not change: many tasks of a job are sent the same ones."""
SETTLED_S: Final = 2.0
"""A file that was changed so lately may change again and bear the same time: file systems count in steps."""

Mark = tuple[int, int, int, int, int]
"""Of a file as it is: device, number, size, when its content was changed, and when anything of it was (which nobody can
set back)."""


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file of this machine, and its name in the task's directory."""

    path: str
    name: str


def filled(patterns: Iterable[str | os.PathLike[str]], value: str | None) -> tuple[str, ...]:
    """Return patterns with a value put in for "{}".

    Raises:
        UsageError: one asks for it, and there is none.
    """
    texts = tuple(os.fspath(pattern) for pattern in patterns)
    if value is None:
        for text in texts:
            if PLACE in text:
                why = "{} stands for the first argument, which has to be text, a path or a number"
                raise UsageError(f"nothing can stand for {{}} in {text!r}", why, "name the file in full")
        return texts
    return tuple(text.replace(PLACE, value) for text in texts)


def sent_files(paths: Sequence[str]) -> list[SentFile]:
    """Return what is sent for these paths, folders with everything in them.

    A relative path is the name in the task's directory; of one from the root, or above this directory, its last part.

    Raises:
        UsageError: one is not there, two have the same name, or there are more than UPLOAD_FILES_MAX.
    """
    found: dict[str, SentFile] = {}
    for path in paths:
        for file in _within(path, _name_of(path)):
            if found.setdefault(file.name, file).path != file.path:
                why = f"{found[file.name].path} and {file.path}"
                raise UsageError(f"two files would have the name {file.name}", why, "give relative paths")
            if len(found) > UPLOAD_FILES_MAX:
                raise UsageError(f"more than {UPLOAD_FILES_MAX} files", path, "send an archive of them")
    return list(found.values())


def _name_of(path: str) -> str:
    name = os.path.normpath(path)
    return os.path.basename(os.path.abspath(path)) if os.path.isabs(name) or name.startswith("..") else name


def _within(path: str, name: str) -> Iterator[SentFile]:
    mode = _status(path).st_mode
    if stat.S_ISREG(mode):
        yield SentFile(path, name)
        return
    if not stat.S_ISDIR(mode):
        raise _unsendable(path, "it is neither a file nor a folder")
    for folder, folders, names in os.walk(path):
        folders.sort()
        inner = os.path.normpath(os.path.join(name, os.path.relpath(folder, path)))
        for inside in sorted(names):
            if os.path.isfile(os.path.join(folder, inside)):
                yield SentFile(os.path.join(folder, inside), inside if inner == "." else f"{inner}/{inside}")


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise _unsendable(path, getattr(error, "strerror", None) or str(error)) from error


def _unsendable(path: str, why: str) -> UsageError:
    return UsageError(f"the file {path} cannot be sent", why, "check its name")


class Taker:
    """Takes files into the store of an embedded node; by any thread."""

    def __init__(self, put: Callable[[str], BlobRef], drop: Callable[[BlobRef], None]) -> None:
        """Args:
        put: takes a file in and pins it.
        drop: takes one pin back.
        """
        self._put = put
        self._drop = drop
        self._known: dict[Mark, BlobRef] = {}
        self._lock = threading.Lock()

    def take(self, file: SentFile, pin: Callable[[Sequence[BlobRef]], None]) -> InputFile:
        """Return a file as a task names it; it is pinned once for the task by `pin`."""
        status = _status(file.path)
        mark = mark_of(status)
        with self._lock:
            ref = self._known.get(mark)
            if ref is not None:
                pin([ref])
            else:
                has_settled = is_settled(status, time.time())
                ref = self._put(file.path)
                pin([ref])
                if not has_settled:
                    self._drop(ref)
                else:
                    self._known[mark] = ref
                    if len(self._known) > REMEMBERED_MAX:
                        self._drop(self._known.pop(next(iter(self._known))))
        return InputFile(file.name, ref, stat.S_IMODE(status.st_mode) & 0o777)


def mark_of(status: os.stat_result) -> Mark:
    """Return what tells a file from itself after a change, once it has settled."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(status: os.stat_result, wall: float) -> bool:
    """False while a file can still change without its mark.

    Args:
        wall: now, or any moment before the file was looked at, in Unix seconds.
    """
    return max(status.st_mtime, status.st_ctime) < wall - SETTLED_S


def digest_of_file(file: SentFile) -> bytes:
    """Return a hash of a file's content; one that has settled is read once for many calls.

    Raises:
        UsageError: it cannot be read.
    """
    status = _status(file.path)
    if is_settled(status, time.time()):
        return _digest_known(file.path, mark_of(status))
    return _digest(file.path)


@lru_cache(maxsize=REMEMBERED_MAX)
def _digest_known(path: str, _mark: Mark) -> bytes:
    return _digest(path)


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError as error:
        raise _unsendable(path, error.strerror or str(error)) from error


def text_of(value: Any) -> str | None:
    """Return an argument as it stands for "{}"; None: it cannot."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return str(value) if isinstance(value, int | float) else None


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return an argument as the task gets it: one that is the path of a sent file becomes its name there.

    Args:
        names: path → name in the task's directory.
    """
    if type(value) is str:
        return names.get(value, value)
    if isinstance(value, os.PathLike) and os.fspath(value) in names:
        return Path(names[os.fspath(value)])
    return value
