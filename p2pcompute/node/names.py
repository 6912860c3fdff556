"""What members were called when they were heard last, and when that was: a restart forgets nobody who is away.

Names are what nodes say of themselves: for people to read, never proof of who it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.limits import NAMES_SAVED_MAX, PEERS_MAX
from p2pcompute.node.membership import clean_name


class Heard(Struct, frozen=True, gc=False):
    """A node as it was heard last."""

    name: str
    wall_s: float
    """Unix seconds."""


class Names:
    """Name and age by key; bound: PEERS_MAX, the one heard longest ago goes."""

    def __init__(self) -> None:
        self._heard: dict[bytes, Heard] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def note(self, key: bytes, name: str, wall_s: float) -> None:
        """A node was heard under this name."""
        self._heard.pop(key, None)
        self._heard[key] = Heard(name, wall_s)
        if len(self._heard) > PEERS_MAX:
            del self._heard[next(iter(self._heard))]

    def get(self, key: bytes) -> Heard | None:
        return self._heard.get(key)

    def saved(self, is_kept: Callable[[bytes], bool]) -> list[Any]:
        """Return what to store of those that are worth it: at most NAMES_SAVED_MAX, those heard last."""
        kept = [(key, heard) for key, heard in self._heard.items() if is_kept(key)]
        return [[key, heard.name, int(heard.wall_s)] for key, heard in kept[-NAMES_SAVED_MAX:]]

    def restore(self, rows: Any, wall_s: float) -> None:
        """Take up what was stored, where nothing newer is known; what cannot be read is passed over.

        Args:
            wall_s: Unix seconds; nobody was heard later than that, whatever a clock said then.
        """
        heard, self._heard = self._heard, {}
        for row in rows if isinstance(rows, list) else ():
            match row:
                case [bytes(key), str(name), int(at), *_] if len(key) == PUBLIC_KEY_BYTES and key not in heard:
                    self.note(key, clean_name(name), min(float(at), wall_s))
        for key, known in heard.items():
            self.note(key, known.name, known.wall_s)
