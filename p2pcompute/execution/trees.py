"""Removing what tasks leave behind, however they made it.

Imported by the worker process: imports only `os`.
"""

from __future__ import annotations

import os


def _clear(directory: str) -> list[str]:
    """Unlink everything in `directory` but directories; return their names."""
    os.chmod(directory, 0o700)
    below: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            else:
                os.unlink(entry.path)
    return below


def empty_directory(path: str) -> None:
    """Remove everything below `path`: read-only trees, links (never followed) and trees of any depth.

    Directories are moved up to `path` before they are emptied, so neither path lengths nor recursion grow.

    Raises:
        OSError: something cannot be removed (another user's, a mount point).
    """
    serial = 0
    waiting = [os.path.join(path, name) for name in _clear(path)]
    while waiting:
        directory = waiting.pop()
        for name in _clear(directory):
            inner = os.path.join(directory, name)
            os.chmod(inner, 0o700)  # a directory that moves must be writable itself
            while True:
                serial += 1
                target = os.path.join(path, f".{serial}")
                if not os.path.lexists(target):
                    break
            os.rename(inner, target)
            waiting.append(target)
        os.rmdir(directory)


def remove_tree(path: str) -> None:
    """Remove `path` and everything below it; nothing happens when it is not there.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        empty_directory(path)
    except FileNotFoundError:
        if not os.path.lexists(path):
            return
        raise
    os.rmdir(path)


def is_empty(path: str) -> bool:
    """True when the directory has no entry."""
    return not os.listdir(path)
