"""What tasks print, return and bring back, as bytes or as files that hold them; and files put in their places."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from p2pcompute.errors import StoreError

_CHUNK_BYTES: Final = 256 * 1024

Content = bytes | Path | None
"""Output of a task: the bytes, the file that holds them, or nothing."""


def chunks(content: Content) -> Iterator[bytes]:
    """Yield all of it, without holding it in memory."""
    if isinstance(content, Path):
        with content.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk
    elif content:
        yield content


def content_size(content: Content) -> int:
    """Return the size in bytes."""
    if isinstance(content, Path):
        return content.stat().st_size
    return len(content) if content else 0


def write_content(path: Path, content: Content, mode: int = 0o666) -> None:
    """Write a file that is not there yet.

    Args:
        mode: its permission bits, of which the process's umask takes some away.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as out:
        for chunk in chunks(content):
            out.write(chunk)


def place_file(directory: Path, name: str, content: Content, mode: int) -> Path:
    """Put a file that came back at `directory/name`, whole or not at all; return where it is.  By any thread.

    Args:
        mode: permission bits.

    Raises:
        StoreError: the name would leave the directory.
    """
    parts = name.split("/")
    if name.startswith("/") or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise StoreError(f"a file came back under a name that leaves its directory: {name!r}", code="results-name")
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{secrets.token_hex(4)}.p2pc-part")  # short: the name may be as long as names can be
    try:
        write_content(part, content, mode & 0o777 | 0o400)  # its owner is to read it
        part.replace(path)
    except BaseException:  # tidied up after, and raised again
        part.unlink(missing_ok=True)
        raise
    return path
