"""What tasks wrote, made safe for a terminal: text, line ends and tabs, and nothing that commands it.

Other computers' output could move the cursor, change what was printed before, set the title or have the terminal type
words into the shell.  So on a terminal control sequences are left out, colours too; files and pipes get every byte.

Source: ECMA-48 (control sequences and strings).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, Final

from p2pcompute.cli.output import is_terminal

_SEQUENCE: Final = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI
    rb"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # strings: titles, links, device controls
    rb"|[ -/]*[0-Z\\`-~])"
)
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\Z")
_DROPPED: Final = bytes(byte for byte in (*range(0x20), 0x7F) if byte not in b"\n\t")
_UNSAFE: Final = re.compile(
    rb"\xc2[\x80-\x9f]"  # controls of ECMA-48 in one character
    rb"|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]"  # what turns the order of characters round (Unicode, UAX 9)
)
_UNSAFE_BEGUN: Final = re.compile(rb"(?:\xc2|\xe2[\x80\x81]?)\Z")
_INSTEAD: Final = "\N{REPLACEMENT CHARACTER}".encode()
"""Something has to stand there: what is on both sides of a character that is left out could make up another one."""
_HELD_BYTES_MAX: Final = 4096
"""Of a sequence that has begun; what is longer is none."""


def safe_text(text: str) -> str:
    """Return text without control sequences."""
    return _clean(text.encode("utf-8", "backslashreplace"))[0].decode("utf-8", "replace")


def _clean(data: bytes) -> tuple[bytes, bytes]:
    """Return what is safe, and the beginning of a sequence or character at the end."""
    held = b""
    if (match := _UNFINISHED.search(data[-_HELD_BYTES_MAX:])) is not None:
        held = match[0]
        data = data[: len(data) - len(held)]
    data = _SEQUENCE.sub(b"", data).translate(None, _DROPPED)
    if (match := _UNSAFE_BEGUN.search(data[-2:])) is not None:
        held = match[0] + held
        data = data[: len(data) - len(match[0])]
    return _UNSAFE.sub(_INSTEAD, data), held


class SafeStream:
    """A stream of bytes: as it is, or without control sequences where it is a terminal."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._is_terminal = is_terminal(stream)
        self._held = b""

    def begin(self) -> None:
        """Another task's output comes: what the one before left unfinished is not for it."""
        self._held = b""

    def write(self, data: bytes) -> int:
        if not self._is_terminal:
            return self._stream.write(data)
        safe, self._held = _clean(self._held + data)
        self._stream.write(safe)
        return len(data)

    def writelines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()
