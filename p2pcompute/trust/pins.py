"""Keys that were believed at first sight: who is met again under the same label must have the same key.

`save_pins` and `load_pins` are the only I/O.  Bound: PINS_MAX labels; when there are more, nobody new is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from p2pcompute.errors import IdentityError, TrustError, UsageError
from p2pcompute.identity.files import read_private, replace_private
from p2pcompute.ids import format_device_id, parse_device_id, short_device_id
from p2pcompute.limits import PIN_CHARS_MAX, PINS_MAX

PINS_FILE: Final = "known_nodes"


class Pins:
    """Label → key, as first seen."""

    def __init__(
        self,
        known: Mapping[str, bytes] | None = None,
        keep: Callable[[Mapping[str, bytes]], None] = lambda _known: None,
        where: str = "",
    ) -> None:
        """Args:
        keep: stores all of them; called after each change.
        where: the file, for people who have to remove a line.
        """
        self._known = dict(known or {})
        self._keep = keep
        self._where = where

    def get(self, label: str) -> bytes | None:
        return self._known.get(label)

    def check(self, label: str, key: bytes, *, who: str) -> None:
        """Believe a key that is new, and refuse one that is not the one seen before.

        Args:
            label: under which it is remembered.
            who: the same in words.

        Raises:
            TrustError: another key, or no room for one more.
        """
        label = label[:PIN_CHARS_MAX]
        known = self._known.get(label)
        if known == key:
            return
        if known is not None:
            raise TrustError(
                f"{who} has another key than before",
                f"it was {short_device_id(known)}, now it is {short_device_id(key)}:"
                " it was set up anew, or somebody wants to be taken for it",
                f"if it was set up anew, remove the line {label!r} from {self._where}" if self._where else None,
                code="key-changed",
            )
        if len(self._known) >= PINS_MAX:
            raise TrustError(
                "too many keys are remembered to believe one more",
                f"{PINS_MAX} is the most",
                f"remove lines from {self._where}" if self._where else None,
                code="pins-full",
            )
        self._known[label] = key
        self._keep(self._known)


def save_pins(directory: Path, known: Mapping[str, bytes]) -> None:
    """Write the file, one line each: id, then label.  Raises IdentityError; the old file stays."""
    text = "".join(f"{format_device_id(key)} {label}\n" for label, key in known.items())
    replace_private(directory / PINS_FILE, text.encode(), unique="pins")


def load_pins(directory: Path) -> dict[str, bytes]:
    """Return what `save_pins` wrote; nothing when there is no file.

    Raises:
        IdentityError: damaged, of another user, or readable by others.
    """
    path = directory / PINS_FILE
    data = read_private(path)
    known: dict[str, bytes] = {}
    try:
        for line in (data or b"").decode().splitlines():
            device_id, _, label = line.partition(" ")
            key = parse_device_id(device_id)
            if not label:
                raise ValueError(line)
            known[label] = key
    except (ValueError, UsageError) as error:
        raise IdentityError(
            f"the file of known nodes {path} is damaged",
            "a line of it is not an id and a name",
            f"repair it, or move it away to believe whoever comes first again: mv {path} {path}.damaged",
        ) from error
    return known
